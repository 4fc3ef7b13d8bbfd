package cases

import (
	"context"
	"fmt"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

func grant(id, ttl int64) *pb.LeaseGrantRequest { return &pb.LeaseGrantRequest{ID: id, TTL: ttl} }

func leased(key, value string, lease int64) *pb.PutRequest {
	return &pb.PutRequest{Key: []byte(key), Value: []byte(value), Lease: lease}
}

func timeToLive(id int64) *pb.LeaseTimeToLiveRequest {
	return &pb.LeaseTimeToLiveRequest{ID: id, Keys: true}
}

func TestLeaseGrant(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for id, ttl := range []int64{0, 1, 2, 3, 60, -1, -1 << 63, 8_999_999_999, 9_000_000_000} {
		granted := p.ok(grant(int64(id+1), ttl)).(*pb.LeaseGrantResponse)
		if granted.TTL < 2 {
			t.Errorf("TTL %d is granted as %d", ttl, granted.TTL)
		}
		p.do(timeToLive(int64(id+1)), withoutRemaining)
	}
	p.fails(ttlTooLarge, grant(100, 9_000_000_001))
	p.fails(ttlTooLarge, grant(100, 1<<63-1))
	p.fails(leaseExists, grant(1, 60))
	p.fails(ttlTooLarge, grant(1, 1<<62))
	p.ok(grant(-5, 60))
	p.ok(grant(1<<63-1, 60))
	p.ok(grant(-1<<63, 60))
	p.fails(leaseExists, grant(-5, 60))
	p.do(&pb.LeaseLeasesRequest{}, sortedLeases)
	if revision := p.revision(); revision != 1 {
		t.Errorf("grants moved the revision to %d", revision)
	}
}

// sortedLeases orders a list that etcd orders by expiry.
func sortedLeases(message proto.Message) {
	sortLeases(message.(*pb.LeaseLeasesResponse).Leases)
}

func TestLeaseGrantFlag(t *testing.T) {
	t.Parallel()
	p := newPair(t, "--heartbeat-interval=200", "--election-timeout=3000")
	for id, ttl := range []int64{0, 1, 4, 5, 6} {
		p.ok(grant(int64(id+1), ttl))
	}
}

func TestLeaseIDsOfTheServer(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	seen := map[int64]bool{}
	chosen := func(message proto.Message) {
		answer := message.(*pb.LeaseGrantResponse)
		if answer.ID <= 0 || seen[answer.ID] {
			t.Errorf("chosen id %d", answer.ID)
		}
		seen[answer.ID] = true
		answer.ID = 0
	}
	for range 20 {
		p.ok(grant(0, 60), chosen)
	}
}

func TestLeaseAttachAndDetach(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(grant(1, 1000))
	p.ok(grant(2, 1000))
	look := func() {
		for id := int64(0); id <= 3; id++ {
			p.do(timeToLive(id), withoutRemaining, sortedKeys)
			p.do(&pb.LeaseTimeToLiveRequest{ID: id}, withoutRemaining)
		}
		p.do(everything())
	}
	for _, step := range []proto.Message{
		leased("a", "1", 1), leased("b", "1", 1), leased("c", "1", 2),
		leased("a", "2", 2), leased("b", "2", 0),
		&pb.PutRequest{Key: []byte("a"), Value: []byte("3"), IgnoreLease: true},
		&pb.PutRequest{Key: []byte("c"), IgnoreValue: true, Lease: 1},
		&pb.PutRequest{Key: []byte("c"), IgnoreValue: true, IgnoreLease: true},
		del("a"), leased("a", "again", 1), leased("a", "again", 1),
		txn(nil, ops(leased("t1", "1", 1), leased("t2", "1", 2), del("c")), nil),
		txn(nil, ops(leased("t1", "2", 2), put("t2", "2"), txn(nil, ops(leased("t3", "1", 2)), nil)), nil),
		txn(nil, ops(leased("t1", "3", 1), delSpan("t1", "\x00")), nil),
		leased("x", "1", 3), leased("x", "1", -1),
		&pb.LeaseRevokeRequest{ID: 3}, &pb.LeaseRevokeRequest{ID: 0}, &pb.LeaseRevokeRequest{ID: 1},
		leased("a", "late", 1), &pb.LeaseRevokeRequest{ID: 1}, grant(1, 1000), leased("a", "new", 1),
	} {
		p.do(step)
		look()
	}
	p.fails(noLease, &pb.LeaseRevokeRequest{ID: 77})
	if gone := p.ok(timeToLive(77)).(*pb.LeaseTimeToLiveResponse); gone.TTL != -1 || gone.GrantedTTL != 0 {
		t.Errorf("an unknown lease: %v", gone)
	}
	p.do(&pb.LeaseLeasesRequest{}, sortedLeases)
	duoRestart(p)
	look()
	p.do(&pb.LeaseLeasesRequest{}, sortedLeases)
	p.do(&pb.HashKVRequest{})
}

// All keys of a lease go in one revision, in the order of keys.
func TestLeaseRevokeIsOneRevision(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	w := p.watch()
	w.create(0, watchSpan("\x00", "\x00", 0))
	p.ok(grant(1, 1000))
	p.ok(grant(2, 1000))
	for _, key := range []string{"z", "b", "a", "m"} {
		p.ok(leased(key, "v", 1))
		w.next(0)
	}
	before := p.revision()
	if answer := p.ok(&pb.LeaseRevokeRequest{ID: 1}).(*pb.LeaseRevokeResponse); answer.Header.Revision != before+1 {
		t.Errorf("revoked at %d after %d", answer.Header.Revision, before)
	}
	message := w.next(0)
	if len(message.Events) != 4 || string(message.Events[0].Kv.Key) != "a" || message.Events[0].Type != mvccpb.Event_DELETE {
		t.Errorf("revoked: %v", message)
	}
	p.ok(&pb.LeaseRevokeRequest{ID: 2})
	if revision := p.revision(); revision != before+1 {
		t.Errorf("revoking a lease without keys moved the revision to %d", revision)
	}
	w.events(w.create(1, watchSpan("\x00", "\x00", 1)).WatchId, before+1)
}

func TestLeaseExpiry(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	w := p.watch()
	w.create(0, watchSpan("\x00", "\x00", 0))
	p.ok(grant(1, 2))
	p.ok(grant(2, 1000))
	for _, step := range []*pb.PutRequest{leased("c", "1", 1), leased("a", "1", 1), leased("b", "1", 1), leased("kept", "1", 2), leased("moved", "1", 1), leased("moved", "2", 2)} {
		p.ok(step)
		w.next(0)
	}
	began := time.Now()
	message := w.next(0)
	if len(message.Events) != 3 {
		t.Errorf("expired: %v", message)
	}
	if took := time.Since(began); took < time.Second || took > 8*time.Second {
		t.Errorf("expired after %v", took)
	}
	p.do(everything())
	p.do(timeToLive(1))
	p.fails(noLease, &pb.LeaseRevokeRequest{ID: 1})
	p.fails(noLease, leased("x", "1", 1))
	p.ok(grant(1, 1000))
	p.do(&pb.LeaseLeasesRequest{}, sortedLeases)
}

// keepAlive opens a keepalive stream to both.
func (p *pair) keepAlive() [2]pb.Lease_LeaseKeepAliveClient {
	p.t.Helper()
	var streams [2]pb.Lease_LeaseKeepAliveClient
	for i, conn := range p.conn {
		stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(harness.Context(p.t, time.Minute))
		if err != nil {
			p.t.Fatal(err)
		}
		streams[i] = stream
	}
	return streams
}

func TestLeaseKeepAlive(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(grant(1, 100))
	p.ok(grant(2, 2))
	p.ok(leased("k", "v", 2))
	streams := p.keepAlive()
	renew := func(id, want int64) {
		p.t.Helper()
		outcomes := p.parallel(func(side int) harness.Outcome {
			if err := streams[side].Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
				return harness.Outcome{Err: err}
			}
			answer, err := streams[side].Recv()
			return harness.Outcome{Message: answer, Err: err}
		})
		p.compare(fmt.Sprint("keep alive ", id), outcomes)
		if answer, ok := outcomes[etcd].Message.(*pb.LeaseKeepAliveResponse); !ok || answer.TTL != want {
			t.Errorf("lease %d kept alive for %v", id, answer)
		}
	}
	renew(1, 100)
	renew(9, 0)
	renew(0, 0)
	renew(-3, 0)
	// Twice the lease's time, kept alive all along.
	for range 8 {
		renew(2, 2)
		time.Sleep(500 * time.Millisecond)
	}
	p.ok(get("k"))
	if kept := p.ok(get("k")).(*pb.RangeResponse); kept.Count != 1 {
		t.Error("the lease expired in spite of being kept alive")
	}
	p.ok(&pb.LeaseRevokeRequest{ID: 2})
	renew(2, 0)
	renew(1, 100)
	for _, stream := range streams {
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
	}
	outcomes := p.parallel(func(side int) harness.Outcome {
		answer, err := streams[side].Recv()
		return harness.Outcome{Message: answer, Err: err}
	})
	p.compare("the end of a keepalive stream", outcomes)
}

// A restart keeps leases; each starts again with its whole time or, where a
// checkpoint recorded how much was left, with that.
func TestLeaseOverRestart(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(grant(1, 3))
	p.ok(grant(2, 500))
	p.ok(leased("short", "v", 1))
	p.ok(leased("long", "v", 2))
	duoRestart(p)
	p.do(timeToLive(2), withoutRemaining)
	p.do(get("long"))
	w := p.watch()
	w.create(0, watchSpan("\x00", "\x00", 3))
	w.next(0) // long's put
	if message := w.next(0); len(message.Events) != 1 || string(message.Events[0].Kv.Key) != "short" {
		t.Errorf("expired after a restart: %v", message)
	}
}

// The remaining time that is reported runs down from the granted one.
func TestLeaseRemaining(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(grant(1, 100))
	time.Sleep(2200 * time.Millisecond)
	for side, conn := range p.conn {
		outcome := invoke(context.Background(), conn, timeToLive(1))
		if outcome.Err != nil {
			t.Fatal(outcome.Err)
		}
		if answer := outcome.Message.(*pb.LeaseTimeToLiveResponse); answer.TTL < 90 || answer.TTL > 97 || answer.GrantedTTL != 100 {
			t.Errorf("%s: %v after 2.2 s", harness.Kind(side), answer)
		}
	}
}
