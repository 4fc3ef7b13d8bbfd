package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// dial connects to a proxy without a client library between.
func (p *process) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	connection, err := grpc.NewClient(p.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { _ = connection.Close() })
	return connection
}

// Clients that stop reading large answers keep nobody from the member.
func TestSlowReadersHoldUpNobody(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{})
	proxy := startProxy(t, harness.Etched, "--endpoints="+server.Endpoint())
	direct, ctx := server.Client(t), t.Context()
	for i := range 12 {
		_, err := direct.Put(ctx, fmt.Sprint("k", i), strings.Repeat("x", 1<<20))
		must(t, err)
	}
	// As many as a member makes at once.
	for range 2 {
		stream, err := etcdserverpb.NewMaintenanceClient(proxy.dial(t)).Snapshot(ctx, &etcdserverpb.SnapshotRequest{})
		must(t, err)
		_, err = stream.Recv()
		must(t, err)
	}
	// What can be on its way to them is.
	time.Sleep(time.Second)
	for i := range 5 {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if _, err := proxy.client(t).Get(ctx, "k0"); err != nil {
			t.Fatalf("get %d: %v", i, err)
		}
	}
}

// silence is the address of a host that drops what is sent to it: the queue of its listener
// is full, and nobody takes from it.
func silence(t *testing.T) string {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	must(t, err)
	t.Cleanup(func() { _ = syscall.Close(socket) })
	must(t, syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	must(t, syscall.Listen(socket, 0))
	bound, err := syscall.Getsockname(socket)
	must(t, err)
	address := fmt.Sprintf("127.0.0.1:%d", bound.(*syscall.SockaddrInet4).Port)
	for {
		queued, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { _ = queued.Close() })
	}
}

// A member whose host is off costs no call anything, and one with a short deadline neither.
func TestMemberThatIsOff(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{})
	proxy := startProxy(t, harness.Etched, "--endpoints="+silence(t)+","+server.Endpoint())
	c := proxy.client(t)
	for i := range 12 {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := c.Get(ctx, "k")
		cancel()
		if err != nil {
			t.Errorf("get %d: %v", i, err)
		}
	}
}

// dying is a member that breaks its connections within an answer, behind a part of it.
func dying(t *testing.T, part []byte) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var all sync.Map
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Protocols: &protocols,
		ConnState: func(connection net.Conn, _ http.ConnState) { all.Store(connection, true) },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			_, _ = w.Write(part) // The connection ends in any case.
			w.(http.Flusher).Flush()
			time.Sleep(200 * time.Millisecond)
			all.Range(func(one, _ any) bool {
				_ = one.(net.Conn).Close()
				return true
			})
		}),
	}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return listener.Addr().String()
}

// A member that dies while it answers is UNAVAILABLE to the client, with a namespace too.
func TestMemberDiesInAnAnswer(t *testing.T) {
	half := append([]byte{0, 0, 0, 1, 0}, "begins"...)
	for _, one := range []struct {
		part  []byte
		flags []string
	}{{nil, nil}, {nil, []string{"--namespace=ns/"}}, {half, []string{"--namespace=ns/"}}} {
		proxy := startProxy(t, harness.Etched, append(one.flags, "--endpoints="+dying(t, one.part))...)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_, err := etcdserverpb.NewKVClient(proxy.dial(t)).Range(ctx, &etcdserverpb.RangeRequest{Key: []byte("k")})
		cancel()
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%v, %q: %v", one.flags, one.part, err)
		}
	}
}

// A client that sends its last request and says so gets the answer, and the end, as from a
// member.
func TestLastRenewalIsAnswered(t *testing.T) {
	for _, upstream := range kinds {
		server := harness.Start(t, upstream, harness.Options{})
		proxy := startProxy(t, harness.Etched, "--endpoints="+server.Endpoint())
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		lease, err := server.Client(t).Grant(ctx, 60)
		must(t, err)
		for name, connection := range map[string]*grpc.ClientConn{"member": server.Dial(t), "proxy": proxy.dial(t)} {
			stream, err := etcdserverpb.NewLeaseClient(connection).LeaseKeepAlive(ctx)
			must(t, err)
			for range 3 {
				must(t, stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: int64(lease.ID)}))
			}
			must(t, stream.CloseSend())
			for i := range 3 {
				if answer, err := stream.Recv(); err != nil || answer.TTL != 60 {
					t.Errorf("%s of %s, %d: %+v, %v", name, upstream, i, answer, err)
				}
			}
			if answer, err := stream.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("%s of %s continues: %+v, %v", name, upstream, answer, err)
			}
		}
	}
}

// A client that sends renewals without waiting gets an answer to each, as long as it takes them.
func TestManyRenewalsWithoutWaiting(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{})
	proxy := startProxy(t, harness.Etched, "--endpoints="+server.Endpoint())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	lease, err := server.Client(t).Grant(ctx, 60)
	must(t, err)
	const many = 20_000
	for _, id := range []int64{int64(lease.ID), 7} {
		stream, err := etcdserverpb.NewLeaseClient(proxy.dial(t)).LeaseKeepAlive(ctx)
		must(t, err)
		sent := make(chan error, 1)
		go func() {
			for range many {
				if err := stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: id}); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		for n := range many {
			if _, err := stream.Recv(); err != nil {
				t.Fatalf("lease %x: after %d answers: %v", id, n, err)
			}
		}
		must(t, <-sent)
	}
}

// Progress through the proxy is true: who asks has got all up to the revision of the answer,
// which is not older than what was written before the request.
func TestProgressIsTrue(t *testing.T) {
	for _, upstream := range kinds {
		t.Run(upstream.String(), func(t *testing.T) {
			server := harness.Start(t, upstream, harness.Options{})
			proxy := startProxy(t, harness.Etched, "--endpoints="+server.Endpoint())
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			direct := server.Client(t)
			first, err := direct.Put(ctx, "k", "first")
			must(t, err)
			const history, clients, rounds = 300, 5, 20
			for i := range history {
				_, err := direct.Put(ctx, "k", fmt.Sprint(i))
				must(t, err)
			}
			var all sync.WaitGroup
			for i := range clients {
				all.Go(func() {
					for round := range rounds {
						err := progresses(ctx, direct, proxy.client(t), first.Header.Revision)
						if err != nil {
							t.Errorf("client %d, round %d: %v", i, round, err)
							return
						}
					}
				})
			}
			all.Wait()
		})
	}
}

// progresses begins a watch of history, writes, and asks until the answer shows the write.
func progresses(ctx context.Context, direct, c *clientv3.Client, from int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := c.Watch(ctx, "k", clientv3.WithRev(from), clientv3.WithProgressNotify())
	put, err := direct.Put(ctx, "k", "later")
	if err != nil {
		return err
	}
	wanted, seen := put.Header.Revision, from-1
	ask := time.NewTicker(50 * time.Millisecond)
	defer ask.Stop()
	limit := time.After(30 * time.Second)
	for {
		select {
		case answer, open := <-watch:
			if !open || answer.Err() != nil {
				return fmt.Errorf("the watch ended: %w", answer.Err())
			}
			for _, event := range answer.Events {
				// Every revision has an event of the key.
				if event.Kv.ModRevision != seen+1 {
					return fmt.Errorf("%d comes after %d", event.Kv.ModRevision, seen)
				}
				seen = event.Kv.ModRevision
			}
			if answer.IsProgressNotify() && answer.Header.Revision > seen {
				return fmt.Errorf("progress to %d, and %d is the last seen", answer.Header.Revision, seen)
			}
			if answer.IsProgressNotify() && answer.Header.Revision >= wanted {
				return nil
			}
		case <-ask.C:
			if err := c.RequestProgress(ctx); err != nil {
				return err
			}
		case <-limit:
			return fmt.Errorf("no progress to %d, seen %d", wanted, seen)
		}
	}
}
