package cases

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/clientv3util"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/ordering"
)

// bothClients runs a body against either server through the official client
// and then compares everything stored: what the client's recipes leave behind
// must be the same, down to revisions.
func bothClients(t *testing.T, body func(*testing.T, *clientv3.Client)) {
	t.Helper()
	compareClients(t, false, body)
}

// compareClients compares hashes only where no lease id that a server chose is
// part of what they are taken over.
func compareClients(t *testing.T, leasesChosen bool, body func(*testing.T, *clientv3.Client)) {
	t.Helper()
	t.Parallel()
	p := newPair(t)
	p.duo.Each(func(server *harness.Server) {
		t.Run(server.Kind().String(), func(t *testing.T) { body(t, server.Client(t)) })
	})
	p.do(everything())
	if !leasesChosen {
		p.do(&pb.HashKVRequest{})
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func TestClientKV(t *testing.T) {
	bothClients(t, func(t *testing.T, client *clientv3.Client) {
		ctx := harness.Context(t, time.Minute)
		must[*clientv3.PutResponse](t)(client.Put(ctx, "foo", "1"))
		created := must[*clientv3.TxnResponse](t)(client.Txn(ctx).If(clientv3util.KeyMissing("foo")).Then(clientv3.OpPut("foo", "2")).Else(clientv3.OpGet("foo")).Commit())
		if created.Succeeded || string(created.Responses[0].GetResponseRange().Kvs[0].Value) != "1" {
			t.Errorf("put if absent: %v", created)
		}
		modified := created.Responses[0].GetResponseRange().Kvs[0].ModRevision
		for i, want := range []bool{true, false} {
			swapped := must[*clientv3.TxnResponse](t)(client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision("foo"), "=", modified)).Then(clientv3.OpPut("foo", fmt.Sprint(i))).Commit())
			if swapped.Succeeded != want {
				t.Errorf("compare and set %d: %v", i, swapped.Succeeded)
			}
		}
		must[*clientv3.PutResponse](t)(client.Put(ctx, "foo/a", "x"))
		got := must[*clientv3.GetResponse](t)(client.Get(ctx, "foo", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend), clientv3.WithLimit(1)))
		if len(got.Kvs) != 1 || string(got.Kvs[0].Key) != "foo/a" || got.Count != 2 || !got.More {
			t.Errorf("get: %v", got)
		}
		if _, err := client.Get(ctx, "foo", clientv3.WithRev(99)); !errors.Is(err, rpctypes.ErrFutureRev) {
			t.Errorf("a future revision: %v", err)
		}
		if _, err := client.Compact(ctx, 3, clientv3.WithCompactPhysical()); err != nil {
			t.Error(err)
		}
		if _, err := client.Get(ctx, "foo", clientv3.WithRev(2)); !errors.Is(err, rpctypes.ErrCompacted) {
			t.Errorf("a compacted revision: %v", err)
		}
		must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "foo/", clientv3.WithPrefix(), clientv3.WithPrevKV()))
	})
}

func TestClientWatch(t *testing.T) {
	bothClients(t, func(t *testing.T, client *clientv3.Client) {
		ctx := harness.Context(t, time.Minute)
		const writes = 50
		var watching sync.WaitGroup
		for _, from := range []int64{0, 1, 20} {
			opened := client.Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
			if created := <-opened; !created.Created {
				t.Errorf("the first message is %v", created)
			}
			watching.Go(func() {
				next := max(from, 2)
				for next <= writes+1 {
					message, ok := <-opened
					if !ok || message.Err() != nil {
						t.Errorf("from %d at %d: %v %v", from, next, ok, message.Err())
						return
					}
					for _, event := range message.Events {
						if event.Kv.ModRevision != next {
							t.Errorf("from %d: event of %d, not %d", from, event.Kv.ModRevision, next)
							return
						}
						next++
					}
				}
			})
		}
		for i := range writes {
			must[*clientv3.PutResponse](t)(client.Put(ctx, fmt.Sprint("k", i%3), fmt.Sprint(i)))
		}
		watching.Wait()
		must[*clientv3.CompactResponse](t)(client.Compact(ctx, writes))
		if message := <-client.Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithRev(5)); message.CompactRevision != writes || !errors.Is(message.Err(), rpctypes.ErrCompacted) {
			t.Errorf("from a compacted revision: %v", message)
		}
		if err := client.RequestProgress(ctx); err != nil {
			t.Error(err)
		}
	})
}

func TestClientLease(t *testing.T) {
	compareClients(t, true, func(t *testing.T, client *clientv3.Client) {
		ctx := harness.Context(t, time.Minute)
		granted := must[*clientv3.LeaseGrantResponse](t)(client.Grant(ctx, 3))
		must[*clientv3.PutResponse](t)(client.Put(ctx, "leased", "v", clientv3.WithLease(granted.ID)))
		alive := must[<-chan *clientv3.LeaseKeepAliveResponse](t)(client.KeepAlive(ctx, granted.ID))
		for range 4 {
			if answer, ok := <-alive; !ok || answer.TTL != 3 {
				t.Fatalf("keepalive: %v %v", answer, ok)
			}
		}
		must[*clientv3.LeaseRevokeResponse](t)(client.Revoke(ctx, granted.ID))
		for range alive {
		}
		if _, err := client.KeepAliveOnce(ctx, granted.ID); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			t.Errorf("keepalive of a revoked lease: %v", err)
		}
		if _, err := client.Put(ctx, "x", "v", clientv3.WithLease(granted.ID)); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			t.Errorf("put under a revoked lease: %v", err)
		}
	})
}

// Locks, elections and transactional memory, each with several contenders.
func TestClientConcurrency(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.duo.Each(func(server *harness.Server) {
		t.Run(server.Kind().String(), func(t *testing.T) {
			client := server.Client(t)
			ctx := harness.Context(t, time.Minute)
			const contenders, rounds = 4, 5
			var group sync.WaitGroup
			inside, counted := 0, 0
			for i := range contenders {
				group.Go(func() {
					session, err := concurrency.NewSession(client, concurrency.WithTTL(10))
					if err != nil {
						t.Error(err)
						return
					}
					defer session.Close()
					mutex := concurrency.NewMutex(session, "/lock")
					for range rounds {
						if err := mutex.Lock(ctx); err != nil {
							t.Error(err)
							return
						}
						if inside++; inside != 1 {
							t.Errorf("%d hold the lock", inside)
						}
						counted++
						inside--
						if err := mutex.Unlock(ctx); err != nil {
							t.Error(err)
						}
						_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
							var n int
							_, _ = fmt.Sscan(stm.Get("counter"), &n)
							stm.Put("counter", fmt.Sprint(n+1))
							return nil
						})
						if err != nil {
							t.Error(err)
						}
					}
					election := concurrency.NewElection(session, "/election")
					if err := election.Campaign(ctx, fmt.Sprint(i)); err != nil {
						t.Error(err)
						return
					}
					if leader, err := election.Leader(ctx); err != nil || string(leader.Kvs[0].Value) != fmt.Sprint(i) {
						t.Errorf("leader: %v %v", leader, err)
					}
					if err := election.Resign(ctx); err != nil {
						t.Error(err)
					}
				})
			}
			group.Wait()
			got := must[*clientv3.GetResponse](t)(client.Get(ctx, "counter"))
			if counted != contenders*rounds || string(got.Kvs[0].Value) != fmt.Sprint(contenders*rounds) {
				t.Errorf("counted %d, stored %s", counted, got.Kvs[0].Value)
			}
		})
	})
}

func TestClientNamespaceAndOrdering(t *testing.T) {
	bothClients(t, func(t *testing.T, client *clientv3.Client) {
		ctx := harness.Context(t, time.Minute)
		kv := ordering.NewKV(namespace.NewKV(client.KV, "space/"), func(clientv3.Op, clientv3.OpResponse, int64) error { return ordering.ErrNoGreaterRev })
		watcher := namespace.NewWatcher(client.Watcher, "space/")
		watched := watcher.Watch(ctx, "a", clientv3.WithCreatedNotify())
		<-watched
		must[*clientv3.PutResponse](t)(kv.Put(ctx, "a", "1"))
		if message := <-watched; string(message.Events[0].Kv.Key) != "a" {
			t.Errorf("watched %v", message)
		}
		must[*clientv3.PutResponse](t)(client.Put(ctx, "outside", "1"))
		if got := must[*clientv3.GetResponse](t)(kv.Get(ctx, "", clientv3.WithFromKey())); got.Count != 1 || string(got.Kvs[0].Key) != "a" {
			t.Errorf("the namespace holds %v", got)
		}
	})
}

func TestClientLeasing(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.duo.Each(func(server *harness.Server) {
		t.Run(server.Kind().String(), func(t *testing.T) {
			ctx := harness.Context(t, time.Minute)
			owner, release := must2(leasing.NewKV(server.Client(t), "leasing/"))(t)
			defer release()
			other, releaseOther := must2(leasing.NewKV(server.Client(t), "leasing/"))(t)
			defer releaseOther()
			must[*clientv3.PutResponse](t)(owner.Put(ctx, "k", "1"))
			for range 3 {
				if got := must[*clientv3.GetResponse](t)(owner.Get(ctx, "k")); string(got.Kvs[0].Value) != "1" {
					t.Errorf("got %v", got)
				}
			}
			must[*clientv3.PutResponse](t)(other.Put(ctx, "k", "2"))
			if got := must[*clientv3.GetResponse](t)(owner.Get(ctx, "k")); string(got.Kvs[0].Value) != "2" {
				t.Errorf("a stale read: %v", got)
			}
			txn := must[*clientv3.TxnResponse](t)(owner.Txn(ctx).If(clientv3.Compare(clientv3.Value("k"), "=", "2")).Then(clientv3.OpPut("k", "3"), clientv3.OpGet("k")).Commit())
			if !txn.Succeeded {
				t.Errorf("txn: %v", txn)
			}
		})
	})
}

func must2[A, B any](a A, b B, err error) func(*testing.T) (A, B) {
	return func(t *testing.T) (A, B) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return a, b
	}
}

func TestClientMirror(t *testing.T) {
	bothClients(t, func(t *testing.T, client *clientv3.Client) {
		ctx, cancel := context.WithCancel(harness.Context(t, time.Minute))
		defer cancel()
		for i := range 1500 {
			must[*clientv3.PutResponse](t)(client.Put(ctx, fmt.Sprintf("m/%04d", i), "v"))
		}
		syncer := mirror.NewSyncer(client, "m/", 0)
		base, failures := syncer.SyncBase(ctx)
		keys := 0
		for page := range base {
			keys += len(page.Kvs)
		}
		if err := <-failures; err != nil || keys != 1500 {
			t.Fatalf("%d keys: %v", keys, err)
		}
		updates := syncer.SyncUpdates(ctx)
		must[*clientv3.PutResponse](t)(client.Put(ctx, "m/new", "v"))
		if message := <-updates; len(message.Events) != 1 || string(message.Events[0].Kv.Key) != "m/new" {
			t.Errorf("update: %v", message)
		}
	})
}

func TestClientNaming(t *testing.T) {
	bothClients(t, func(t *testing.T, client *clientv3.Client) {
		ctx := harness.Context(t, time.Minute)
		manager := must[endpoints.Manager](t)(endpoints.NewManager(client, "service"))
		updates := must[endpoints.WatchChannel](t)(manager.NewWatchChannel(ctx))
		if err := manager.AddEndpoint(ctx, "service/1", endpoints.Endpoint{Addr: "127.0.0.1:1"}); err != nil {
			t.Fatal(err)
		}
		if update := <-updates; len(update) != 1 || update[0].Endpoint.Addr != "127.0.0.1:1" {
			t.Errorf("update: %v", update)
		}
		if listed := must[endpoints.Key2EndpointMap](t)(manager.List(ctx)); len(listed) != 1 {
			t.Errorf("listed: %v", listed)
		}
		if err := manager.DeleteEndpoint(ctx, "service/1"); err != nil {
			t.Error(err)
		}
	})
}

// The calls of a kube-apiserver, through the client made for it.
func TestClientKubernetes(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.duo.Each(func(server *harness.Server) {
		t.Run(server.Kind().String(), func(t *testing.T) {
			ctx := harness.Context(t, time.Minute)
			client := must[*kubernetes.Client](t)(kubernetes.New(clientv3.Config{Endpoints: []string{server.Endpoint()}}))
			defer client.Close()
			var revisions []int64
			for i := range 10 {
				put := must[kubernetes.PutResponse](t)(client.OptimisticPut(ctx, fmt.Sprint("/registry/pods/", i), []byte("v"), 0, kubernetes.PutOptions{GetOnFailure: true}))
				if !put.Succeeded {
					t.Errorf("create: %v", put)
				}
				revisions = append(revisions, put.Revision)
			}
			again := must[kubernetes.PutResponse](t)(client.OptimisticPut(ctx, "/registry/pods/3", []byte("w"), 0, kubernetes.PutOptions{GetOnFailure: true}))
			if again.Succeeded || again.KV == nil || again.KV.ModRevision != revisions[3] {
				t.Errorf("create again: %v", again)
			}
			if swapped := must[kubernetes.PutResponse](t)(client.OptimisticPut(ctx, "/registry/pods/3", []byte("w"), revisions[3], kubernetes.PutOptions{})); !swapped.Succeeded {
				t.Errorf("update: %v", swapped)
			}
			page := must[kubernetes.ListResponse](t)(client.List(ctx, "/registry/pods/", kubernetes.ListOptions{Limit: 4}))
			if len(page.Kvs) != 4 || page.Count != 10 {
				t.Errorf("list: %d of %d", len(page.Kvs), page.Count)
			}
			rest := must[kubernetes.ListResponse](t)(client.List(ctx, "/registry/pods/", kubernetes.ListOptions{Revision: page.Revision, Continue: string(page.Kvs[3].Key) + "\x00"}))
			if len(rest.Kvs) != 6 {
				t.Errorf("the rest: %d", len(rest.Kvs))
			}
			if count := must[int64](t)(client.Count(ctx, "/registry/", kubernetes.CountOptions{})); count != 10 {
				t.Errorf("count: %d", count)
			}
			if deleted := must[kubernetes.DeleteResponse](t)(client.OptimisticDelete(ctx, "/registry/pods/3", revisions[3], kubernetes.DeleteOptions{GetOnFailure: true})); deleted.Succeeded || deleted.KV == nil {
				t.Errorf("delete of an old version: %v", deleted)
			}
			if deleted := must[kubernetes.DeleteResponse](t)(client.OptimisticDelete(ctx, "/registry/pods/4", revisions[4], kubernetes.DeleteOptions{})); !deleted.Succeeded {
				t.Errorf("delete: %v", deleted)
			}
		})
	})
	p.do(everything())
	p.do(&pb.HashKVRequest{})
}

// A client made with all of its own settings: keepalives, rejecting old
// clusters, synchronising its endpoints.
func TestClientSettings(t *testing.T) {
	t.Parallel()
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		server := harness.Start(t, kind, harness.Options{})
		if err := server.WaitClusterVersion(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		client, err := clientv3.New(clientv3.Config{
			Endpoints: []string{server.Endpoint()}, DialTimeout: 5 * time.Second, DialKeepAliveTime: time.Second, DialKeepAliveTimeout: time.Second,
			PermitWithoutStream: true, RejectOldCluster: true, AutoSyncInterval: 200 * time.Millisecond,
		})
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		defer client.Close()
		ctx := harness.Context(t, time.Minute)
		if err := client.Sync(ctx); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if synced := client.Endpoints(); len(synced) != 1 || synced[0] != server.URL() {
			t.Errorf("%s: endpoints %v", kind, synced)
		}
		for range 5 {
			if _, err := client.Put(ctx, "a", "1"); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}
