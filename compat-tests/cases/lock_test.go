package cases

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func lock(name string, lease int64) *v3lockpb.LockRequest {
	return &v3lockpb.LockRequest{Name: []byte(name), Lease: lease}
}

func unlock(key string) *v3lockpb.UnlockRequest { return &v3lockpb.UnlockRequest{Key: []byte(key)} }

// The errors of Lock and Election, which have no code of their own.
const (
	noLeaseUncoded  = "Unknown: etcdserver: requested lease not found"
	emptyKeyUncoded = "Unknown: etcdserver: key is not provided"
	tooLargeUncoded = "Unknown: etcdserver: request is too large"
	sessionExpired  = "Unknown: mutex: session is expired"
	notLeader       = "Unknown: election: not leader"
	noLeaderElected = "Unknown: election: no leader"
	leaderNotGiven  = "Unknown: \"leader\" field must be provided"
)

// waiting is a call that both sides were asked and that may not have ended.
type waiting struct {
	p       *pair
	request proto.Message
	cancel  context.CancelFunc
	ended   [2]chan harness.Outcome
}

// begin asks both sides and does not wait.
func (p *pair) begin(ctx context.Context, request proto.Message) *waiting {
	ctx, cancel := context.WithCancel(ctx)
	p.t.Cleanup(cancel)
	w := &waiting{p: p, request: request, cancel: cancel}
	for side := range w.ended {
		w.ended[side] = make(chan harness.Outcome, 1)
		go func() { w.ended[side] <- invoke(ctx, p.conn[side], request) }()
	}
	return w
}

// queued is begin for a call that must wait: it returns when its key is there.
func (p *pair) queued(key string, request proto.Message) *waiting {
	p.t.Helper()
	w := p.begin(context.Background(), request)
	p.until(key, true)
	w.waits()
	return w
}

// until returns when a key is there, or not, on both sides.
func (p *pair) until(key string, there bool) {
	p.t.Helper()
	for side := range p.conn {
		within(p.t, watchLimit, func() error {
			outcome := invoke(context.Background(), p.conn[side], get(key))
			if outcome.Err != nil {
				return outcome.Err
			}
			if count := outcome.Message.(*pb.RangeResponse).Count; (count > 0) != there {
				return fmt.Errorf("side %d has %d of %s", side, count, key)
			}
			return nil
		})
	}
}

// within tries until it succeeds.
func within(t *testing.T, limit time.Duration, try func() error) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// waits checks that no side has ended.
func (w *waiting) waits() {
	w.p.t.Helper()
	time.Sleep(silence / 4)
	for side := range w.ended {
		select {
		case outcome := <-w.ended[side]:
			w.p.t.Fatalf("side %d: %s does not wait: %v %v", side, describe(w.request), outcome.Message, outcome.Err)
		default:
		}
	}
}

// ends waits for both sides, compares, and answers etcd's outcome.
func (w *waiting) ends(normalisers ...normaliser) harness.Outcome {
	w.p.t.Helper()
	outcomes := w.p.parallel(func(side int) harness.Outcome {
		select {
		case outcome := <-w.ended[side]:
			return outcome
		case <-time.After(watchLimit):
			return harness.Outcome{Err: fmt.Errorf("no answer")}
		}
	})
	w.p.compare(describe(w.request), outcomes, normalisers...)
	return outcomes[etcd]
}

// endsWith is ends for a call that must end so on etcd.
func (w *waiting) endsWith(want string) {
	w.p.t.Helper()
	if got := harness.ErrorText(w.ends().Err); got != want {
		w.p.t.Errorf("%s: etcd answers %q, this case is about %q", describe(w.request), got, want)
	}
}

// endsApart is for what the two sides answer differently, on purpose.
func (w *waiting) endsApart(ours, theirs string) {
	w.p.t.Helper()
	for side, want := range []string{ours, theirs} {
		if got := harness.ErrorText((<-w.ended[side]).Err); got != want {
			w.p.t.Errorf("side %d: %s: %q, not %q", side, describe(w.request), got, want)
		}
	}
}

// tooLate waits for both sides to end by the deadline. The text depends on whether
// client or server is first to say so.
func (w *waiting) tooLate() {
	w.p.t.Helper()
	for side := range w.ended {
		if err := (<-w.ended[side]).Err; status.Code(err) != codes.DeadlineExceeded {
			w.p.t.Errorf("side %d: %s: %v", side, describe(w.request), err)
		}
	}
}

// withoutOwnLease hides the lease that a call made for itself.
func withoutOwnLease(message proto.Message) {
	cut := func(key []byte) []byte { return key[:bytes.LastIndexByte(key, '/')+1] }
	switch answer := message.(type) {
	case *v3lockpb.LockResponse:
		answer.Key = cut(answer.Key)
	case *v3electionpb.CampaignResponse:
		answer.Leader.Key, answer.Leader.Lease = cut(answer.Leader.Key), 0
	case *v3electionpb.LeaderResponse:
		answer.Kv.Lease = 0
	case *pb.RangeResponse:
		for _, kv := range answer.Kvs {
			kv.Key, kv.Lease = cut(kv.Key), 0
		}
	case *pb.LeaseLeasesResponse:
		for _, lease := range answer.Leases {
			lease.ID = 0
		}
	}
}

func (p *pair) grants(leases ...int64) {
	p.t.Helper()
	for _, lease := range leases {
		p.ok(grant(lease, 1000))
	}
}

func TestLockAlone(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.grants(1, 0xabc, -5, 1<<63-1, -1<<63)
	for _, request := range []proto.Message{
		lock("l", 1), lock("l", 1), lock("s/", 1), lock("", 1), lock("a/b", 0xabc), lock("\x00\xff", 1),
		lock("n", -5), lock("n2", 1<<63-1), lock("n3", -1<<63), everything(),
		unlock("l/1"), unlock("l/1"), unlock("l"), unlock("nothing"), everything(), lock("l", 1), lock("l", 1), everything(),
	} {
		p.ok(request)
	}
	p.fails(noLeaseUncoded, lock("l2", 77))
	p.fails(noLeaseUncoded, lock("", -1))
	p.fails(emptyKeyUncoded, unlock(""))
	p.fails(tooLargeUncoded, lock(strings.Repeat("n", 1_600_000), 1))
	p.fails(tooLargeUncoded, unlock(strings.Repeat("n", 1_600_000)))
	// The key of a lease is taken as it is found: with a value, and with another lease.
	p.ok(leased("found/1", "value", 0xabc))
	p.ok(lock("found", 1))
	p.ok(everything())
	p.ok(&pb.LeaseRevokeRequest{ID: 1})
	p.ok(everything())
	// Keys of all that begins with "/" are below the empty name.
	p.do(span("/", "0"))
}

func TestLockWithALeaseOfItsOwn(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(lock("own", 0), withoutOwnLease)
	p.ok(span("own/", "own0"), withoutOwnLease)
	p.ok(&pb.LeaseLeasesRequest{}, withoutOwnLease)
	for side := range p.conn {
		leases := invoke(context.Background(), p.conn[side], &pb.LeaseLeasesRequest{}).Message.(*pb.LeaseLeasesResponse)
		left := invoke(context.Background(), p.conn[side], timeToLive(leases.Leases[0].ID)).Message.(*pb.LeaseTimeToLiveResponse)
		if want := fmt.Sprintf("own/%x", left.ID); left.GrantedTTL != 60 || string(left.Keys[0]) != want {
			t.Errorf("side %d: %v, not %s for 60 s", side, left, want)
		}
	}
	// Nobody holds a second one of his own.
	w := p.begin(context.Background(), lock("own", 0))
	w.waits()
	p.ok(delSpan("own/", "own/z"), func(message proto.Message) {
		// Of both, since both are deleted: the one that waits finds its key gone.
		if got := message.(*pb.DeleteRangeResponse).Deleted; got != 2 {
			t.Errorf("%d are deleted", got)
		}
	})
	w.endsWith(sessionExpired)
	p.ok(&pb.LeaseLeasesRequest{}, withoutOwnLease)
}

func TestLockInTurn(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.grants(1, 2, 3, 4, 5)
	p.run("by unlock", func(p *pair) {
		p.ok(lock("w", 1))
		second := p.queued("w/2", lock("w", 2))
		third := p.queued("w/3", lock("w", 3))
		p.ok(lock("w", 1))
		again := p.begin(context.Background(), lock("w", 3))
		again.waits()
		p.ok(unlock("w/1"))
		second.endsWith("OK")
		third.waits()
		p.ok(unlock("w/2"))
		third.endsWith("OK")
		again.endsWith("OK")
		p.ok(everything())
	})
	p.run("foreign keys count", func(p *pair) {
		p.ok(put("f/zzz", "v"))
		first := p.queued("f/1", lock("f", 1))
		p.ok(put("f/later", "v"))
		p.ok(put("f/zzz", "v2"))
		p.ok(put("f", "v"))
		first.waits()
		p.ok(del("f/zzz"))
		first.endsWith("OK")
		second := p.queued("f/2", lock("f", 2))
		p.ok(unlock("f/1"))
		second.waits()
		p.ok(txn(nil, ops(del("f/later"), put("f/later2", "v")), nil))
		second.endsWith("OK")
	})
	p.run("a key below a key below the name", func(p *pair) {
		p.ok(put("deep/a/b", "v"))
		first := p.queued("deep/1", lock("deep", 1))
		p.ok(delSpan("deep/a", "deep/b"))
		first.endsWith("OK")
	})
	p.run("the holder's lease is revoked", func(p *pair) {
		p.ok(grant(10, 1000))
		p.ok(lock("h", 10))
		first := p.queued("h/1", lock("h", 1))
		p.ok(&pb.LeaseRevokeRequest{ID: 10})
		first.endsWith("OK")
	})
	p.run("the holder's lease expires", func(p *pair) {
		p.ok(grant(11, 2))
		p.ok(lock("x", 11))
		p.queued("x/1", lock("x", 1)).endsWith("OK")
	})
	p.run("one in the middle is deleted", func(p *pair) {
		p.ok(lock("m", 1))
		second := p.queued("m/2", lock("m", 2))
		third := p.queued("m/3", lock("m", 3))
		p.ok(del("m/2"))
		second.waits()
		p.ok(unlock("m/1"))
		second.endsWith(sessionExpired)
		third.endsWith("OK")
	})
	p.run("the own lease is lost while it waits", func(p *pair) {
		p.ok(grant(12, 1000))
		p.ok(lock("o", 1))
		second := p.queued("o/c", lock("o", 12))
		third := p.queued("o/3", lock("o", 3))
		p.ok(&pb.LeaseRevokeRequest{ID: 12})
		second.waits()
		third.waits()
		p.ok(unlock("o/1"))
		second.endsWith(sessionExpired)
		third.endsWith("OK")
	})
	p.run("a key that comes again comes last", func(p *pair) {
		p.ok(lock("r", 1))
		second := p.queued("r/2", lock("r", 2))
		third := p.queued("r/3", lock("r", 3))
		p.ok(del("r/2"))
		p.ok(put("r/2", "by hand"))
		p.ok(unlock("r/1"))
		// Its key is there, if not where it was. etcd gives the lock to both; here who
		// comes last is not before the third.
		second.endsApart(sessionExpired, "OK")
		third.endsWith("OK")
	})
	p.run("the history is compacted meanwhile", func(p *pair) {
		p.ok(lock("c", 1))
		second := p.queued("c/2", lock("c", 2))
		p.ok(put("c2", "v"))
		p.ok(compact(p.revision()))
		second.waits()
		p.ok(unlock("c/1"))
		second.endsWith("OK")
	})
	p.run("a name within a name", func(p *pair) {
		p.ok(lock("in", 1))
		inner := p.begin(context.Background(), lock("in/1", 2))
		inner.endsWith("OK")
		outer := p.queued("in/3", lock("in", 3))
		p.ok(unlock("in/1"))
		outer.waits()
		p.ok(unlock("in/1/2"))
		outer.endsWith("OK")
	})
}

func TestLockGivenUp(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.grants(1, 2, 3)
	p.ok(lock("g", 1))
	p.run("cancelled", func(p *pair) {
		second := p.queued("g/2", lock("g", 2))
		third := p.queued("g/3", lock("g", 3))
		second.cancel()
		p.until("g/2", false)
		second.ends()
		third.waits()
		third.cancel()
		p.until("g/3", false)
		p.ok(everything())
	})
	p.run("too late", func(p *pair) {
		ctx, cancel := context.WithTimeout(context.Background(), silence)
		defer cancel()
		second := p.begin(ctx, lock("g", 2))
		p.until("g/2", true)
		second.tooLate()
		p.until("g/2", false)
		p.ok(everything())
	})
	p.run("disconnected", func(p *pair) {
		var gone [2]*grpc.ClientConn
		for side, server := range []*harness.Server{p.duo.Etched, p.duo.Etcd} {
			gone[side] = server.Dial(p.t)
			go invoke(context.Background(), gone[side], lock("g", 2))
		}
		p.until("g/2", true)
		for _, conn := range gone {
			_ = conn.Close()
		}
		p.until("g/2", false)
		p.ok(everything())
	})
	p.run("by one of two calls of a lease", func(p *pair) {
		first := p.queued("g/2", lock("g", 2))
		other := p.begin(context.Background(), lock("g", 2))
		other.waits()
		other.cancel()
		p.until("g/2", false)
		first.waits()
		p.ok(unlock("g/1"))
		first.endsWith(sessionExpired)
		p.ok(everything())
	})
	p.run("of who has the lock already", func(p *pair) {
		p.ok(lock("again", 1))
		ctx, cancel := context.WithTimeout(context.Background(), time.Nanosecond)
		defer cancel()
		for range 20 {
			p.begin(ctx, lock("again", 1)).tooLate()
		}
		p.ok(everything())
	})
}

// One who waits is waited for no longer than its member lives.
func TestLockAtAStop(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.grants(1, 2)
	p.ok(lock("s", 1))
	w := p.queued("s/2", lock("s", 2))
	started := time.Now()
	if err := p.duo.Etched.Stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("the stop took %s", took)
	}
	if outcome := <-w.ended[etched]; status.Code(outcome.Err) != codes.Unavailable {
		t.Errorf("%v", outcome.Err)
	}
}

// ownLock locks by the service as clientv3's Mutex does.
type ownLock struct {
	conn  *grpc.ClientConn
	name  string
	lease clientv3.LeaseID
	key   []byte
}

func (l *ownLock) Lock(ctx context.Context) error {
	answer, err := v3lockpb.NewLockClient(l.conn).Lock(ctx, lock(l.name, int64(l.lease)))
	if err == nil {
		l.key = answer.Key
	}
	return err
}

func (l *ownLock) Unlock(ctx context.Context) error {
	_, err := v3lockpb.NewLockClient(l.conn).Unlock(ctx, &v3lockpb.UnlockRequest{Key: l.key})
	return err
}

// Twenty clients lock and unlock three names at random, half of them by the
// service and half by clientv3's Mutex; some give up, and some lose their lease.
// No two hold one name, each holder has the oldest key, and nothing is left over.
func TestLockExcludes(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	server := harness.Start(t, harness.Etched, harness.Options{})
	client := server.Client(t)
	ctx := harness.Context(t, time.Minute)
	end := time.Now().Add(8 * time.Second)
	names := []string{"random/a", "random/a/b", "other"}
	holders := make([]atomic.Int64, len(names))
	var group sync.WaitGroup
	var locked, gaveUp, lost atomic.Int64
	for i := range 20 {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		conn := server.Dial(t)
		group.Go(func() {
			for time.Now().Before(end) {
				session, err := concurrency.NewSession(client, concurrency.WithTTL(60))
				if err != nil {
					t.Error(err)
					return
				}
				for range 1 + random.IntN(5) {
					one := random.IntN(len(names))
					var mutex interface {
						Lock(context.Context) error
						Unlock(context.Context) error
					} = concurrency.NewMutex(session, names[one])
					if i%2 == 0 {
						mutex = &ownLock{conn: conn, name: names[one], lease: session.Lease()}
					}
					limit := 20 * time.Second
					if random.IntN(4) == 0 {
						limit = time.Duration(random.IntN(40)) * time.Millisecond
					}
					waits, cancel := context.WithTimeout(ctx, limit)
					err := mutex.Lock(waits)
					cancel()
					if err != nil {
						if limit > time.Second {
							t.Errorf("%s: %v", names[one], err)
						}
						gaveUp.Add(1)
						// Its outcome is open: the lock may be its own by now.
						break
					}
					if now := holders[one].Add(1); now != 1 {
						t.Errorf("%d hold %s", now, names[one])
					}
					locked.Add(1)
					oldest, err := client.Get(ctx, names[one]+"/", clientv3.WithFirstCreate()...)
					if key := fmt.Sprintf("%s/%x", names[one], session.Lease()); err != nil || string(oldest.Kvs[0].Key) != key {
						t.Errorf("%s holds the lock and %v, %v is the oldest", key, oldest, err)
					}
					holders[one].Add(-1)
					if random.IntN(8) == 0 {
						lost.Add(1)
						break
					}
					if err := mutex.Unlock(ctx); err != nil {
						t.Error(err)
					}
				}
				if err := session.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	t.Logf("%d locks, %d given up, %d ended by their lease", locked.Load(), gaveUp.Load(), lost.Load())
	if locked.Load() < 100 || gaveUp.Load() == 0 || lost.Load() == 0 {
		t.Error("too little happened")
	}
	within(t, watchLimit, func() error {
		left, err := client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithKeysOnly())
		if err == nil && left.Count > 0 {
			err = fmt.Errorf("left over: %v", left.Kvs)
		}
		return err
	})
}

// A thousand wait for one lock, and get it in the order of their keys.
func TestLockWithManyWaiting(t *testing.T) {
	t.Parallel()
	const many = 1000
	harness.OfSingleServers(t)
	duo := harness.StartDuo(t, harness.Options{})
	for _, server := range []*harness.Server{duo.Etched, duo.Etcd} {
		t.Run(server.Kind().String(), func(t *testing.T) {
			ctx := harness.Context(t, 2*time.Minute)
			conn := server.Dial(t)
			locks := v3lockpb.NewLockClient(conn)
			for lease := int64(1); lease <= many+1; lease++ {
				if _, err := pb.NewLeaseClient(conn).LeaseGrant(ctx, grant(lease, 1000)); err != nil {
					t.Fatal(err)
				}
			}
			holder, err := locks.Lock(ctx, lock("many", many+1))
			if err != nil {
				t.Fatal(err)
			}
			started := time.Now()
			type turn struct{ lease, created int64 }
			var mu sync.Mutex
			var turns []turn
			var group sync.WaitGroup
			for lease := int64(1); lease <= many; lease++ {
				group.Go(func() {
					locked, err := locks.Lock(ctx, lock("many", lease))
					if err != nil {
						t.Error(err)
						return
					}
					kv, err := pb.NewKVClient(conn).Range(ctx, get(string(locked.Key)))
					if err != nil || len(kv.Kvs) != 1 {
						t.Errorf("%v %v", kv, err)
						return
					}
					mu.Lock()
					turns = append(turns, turn{lease, kv.Kvs[0].CreateRevision})
					mu.Unlock()
					if _, err := locks.Unlock(ctx, &v3lockpb.UnlockRequest{Key: locked.Key}); err != nil {
						t.Error(err)
					}
				})
			}
			within(t, time.Minute, func() error {
				there, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("many/"), RangeEnd: []byte("many0"), CountOnly: true})
				if err == nil && there.Count != many+1 {
					err = fmt.Errorf("%d wait", there.Count)
				}
				return err
			})
			begun := time.Since(started)
			started = time.Now()
			if _, err := locks.Unlock(ctx, &v3lockpb.UnlockRequest{Key: holder.Key}); err != nil {
				t.Fatal(err)
			}
			group.Wait()
			t.Logf("%d began to wait within %s and had the lock one after the other within %s", many, begun, time.Since(started))
			if len(turns) != many {
				t.Fatalf("%d had the lock", len(turns))
			}
			for i := range turns[1:] {
				if turns[i].created >= turns[i+1].created {
					t.Errorf("%v came before %v", turns[i], turns[i+1])
				}
			}
		})
	}
}
