package trio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

func TestMoveLeader(t *testing.T) {
	r := newTrio(t)
	ids := r.ids()
	r.statuses()
	for _, member := range []int{follower, other} {
		for _, target := range append(ids, 99, 0) {
			r.fails(notLeader, member, &pb.MoveLeaderRequest{TargetID: target})
		}
	}
	r.fails(badTransferee, leader, &pb.MoveLeaderRequest{TargetID: 99})
	r.fails(badTransferee, leader, &pb.MoveLeaderRequest{})
	r.ok(leader, &pb.MoveLeaderRequest{TargetID: ids[leader]})
	r.ok(leader, &pb.MoveLeaderRequest{TargetID: ids[follower]})
	r.each(func(c *harness.Cluster) error {
		_, err := c.WaitLeader(10*time.Second, c.Members()[follower])
		return errors.Join(err, c.WaitHealthy(10*time.Second))
	})
	r.statuses()
	r.fails(notLeader, leader, &pb.MoveLeaderRequest{TargetID: ids[leader]})
	for member := range ids {
		r.ok(member, put("a", fmt.Sprint(member)))
		r.ok(member, get("a"))
	}
}

// Every member answers the same of the store, under every leader.
func TestHashesOfMembers(t *testing.T) {
	r := newTrio(t)
	for n := range 20 {
		r.ok(n%3, put(fmt.Sprint("key", n%7), fmt.Sprint(n)))
	}
	r.ok(follower, &pb.DeleteRangeRequest{Key: []byte("key3")})
	r.ok(other, &pb.CompactionRequest{Revision: 9, Physical: true})
	r.each(func(c *harness.Cluster) error { return c.WaitHealthy(10 * time.Second) })
	for member := range 3 {
		r.ok(member, &pb.HashKVRequest{})
		r.ok(member, &pb.HashKVRequest{Revision: 15})
		r.ask(member, &pb.HashKVRequest{Revision: 3})
		r.ask(member, &pb.HashKVRequest{Revision: 300})
	}
}

// Two of three members are gone: what the last one answers, which led or followed.
func TestWithoutQuorum(t *testing.T) {
	for _, c := range []struct {
		name string
		left int
	}{{"a leader is left", leader}, {"a follower is left", follower}} {
		t.Run(c.name, func(t *testing.T) { withoutQuorum(t, c.left) })
	}
}

// A call that waits for a lock waits on while the member that led, and had the
// lock's holder for a client, is killed and another leads.
func TestLockOverALostLeader(t *testing.T) {
	r := newTrio(t)
	for _, lease := range []int64{7, 8} {
		r.ok(leader, &pb.LeaseGrantRequest{ID: lease, TTL: 1000})
	}
	r.ok(leader, &v3lockpb.LockRequest{Name: []byte("l"), Lease: 7})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var locked [2]chan error
	for side := range locked {
		locked[side] = make(chan error, 1)
		go func() {
			locks := v3lockpb.NewLockClient(r.conns[side][follower])
			_, err := locks.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("l"), Lease: 8})
			locked[side] <- err
		}()
	}
	r.each(func(c *harness.Cluster) error {
		conn := r.conns[c.Kind()][other]
		for ctx.Err() == nil {
			outcome := harness.Invoke(ctx, conn, get("l/8"))
			if outcome.Err == nil && outcome.Message.(*pb.RangeResponse).Count > 0 {
				break
			}
		}
		// Behind its key a call reads who is before it, which a leader's end may fail.
		time.Sleep(time.Second)
		if err := c.Members()[leader].Kill(); err != nil {
			return err
		}
		_, err := c.WaitLeader(patience, c.Members()[follower], c.Members()[other])
		return err
	})
	for side := range locked {
		select {
		case err := <-locked[side]:
			t.Errorf("%v: the lock does not wait: %v", harness.Kind(side), err)
			continue
		default:
		}
		unlock := &v3lockpb.UnlockRequest{Key: []byte("l/7")}
		if outcome := harness.Invoke(ctx, r.conns[side][other], unlock); outcome.Err != nil {
			t.Errorf("%v: %v", harness.Kind(side), outcome.Err)
		}
		if err := <-locked[side]; err != nil {
			t.Errorf("%v: %v", harness.Kind(side), err)
		}
	}
}

// patience bounds every wait of a test for what must come; what comes before what is shown by
// order, since a busy machine takes its time.
const patience = 2 * time.Minute

func withoutQuorum(t *testing.T, left int) {
	r := newTrio(t)
	// A cluster without a quorum never decides its version, and answers so.
	r.each(func(c *harness.Cluster) error { return c.Members()[left].WaitClusterVersion(patience) })
	r.ok(leader, put("a", "1"))
	r.ok(leader, &pb.LeaseGrantRequest{ID: 7, TTL: 1000})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var cut, stays [2]*standing // with a leader required, and without
	r.both(func(side int) {
		cut[side] = r.standingWatch(ctx, side, left, true)
		stays[side] = r.standingWatch(ctx, side, left, false)
	})
	r.each(func(c *harness.Cluster) (failed error) {
		for n, member := range c.Members() {
			if n != left {
				failed = errors.Join(failed, member.Kill())
			}
		}
		return failed
	})
	// The isolated member has to notice first.
	r.each(func(c *harness.Cluster) error { return leaderless(c.Members()[left]) })
	noticed := time.Now()
	t.Run("requests", func(t *testing.T) { r.leaderlessRequests(t, left) })
	for side := range r.sides {
		kind := harness.Kind(side)
		// It was cut by itself, while the other continues: that one is asked, and answers.
		err := cut[side].wait(patience)
		t.Logf("%v: the watch that requires a leader ended: %v", kind, err)
		if ctx.Err() != nil || err == nil {
			t.Errorf("%v: the watch that requires a leader still runs %v after the leader was lost", kind, time.Since(noticed))
		}
		// etcd ends such a stream in one of several ways, by chance; etched in the one.
		if text := harness.ErrorText(err); side == 0 && text != noLeader && !errors.Is(err, io.EOF) {
			t.Errorf("%v: the watch that requires a leader ends with %s", kind, text)
		}
		if err := stays[side].ask(); err != nil {
			t.Errorf("%v: a watch that requires no leader ends: %v", kind, err)
		}
	}
}

// standing is a watch that was there before its member lost its leader.
type standing struct {
	stream   pb.Watch_WatchClient
	messages chan *pb.WatchResponse
	ended    chan error
}

// standingWatch makes a watch.
func (r *trio) standingWatch(ctx context.Context, side, member int, led bool) *standing {
	if led {
		ctx = metadata.AppendToOutgoingContext(ctx, "hasleader", "true")
	}
	s := &standing{messages: make(chan *pb.WatchResponse, 16), ended: make(chan error, 1)}
	stream, err := pb.NewWatchClient(r.conns[side][member]).Watch(ctx)
	if s.stream = stream; err == nil {
		err = s.create()
	}
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		s.ended <- fmt.Errorf("create a watch: %w", err)
		return s
	}
	go func() {
		for {
			message, err := stream.Recv()
			if err != nil {
				s.ended <- err
				return
			}
			s.messages <- message
		}
	}()
	return s
}

func (s *standing) create() error {
	return s.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a")}}})
}

// wait answers how the stream ended, nil where it continues.
func (s *standing) wait(limit time.Duration) error {
	select {
	case err := <-s.ended:
		s.ended <- err
		return err
	case <-time.After(limit):
		return nil
	}
}

// ask makes another watch on the stream, and answers why there is no answer.
func (s *standing) ask() error {
	if err := s.create(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	select {
	case <-s.messages:
		return nil
	case err := <-s.ended:
		s.ended <- err
		return err
	case <-time.After(patience):
		return errors.New("no answer")
	}
}

func leaderless(member *harness.Member) error {
	const limit = patience
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if status, err := member.Status(context.Background()); err == nil && status.Leader == 0 {
			return nil
		}
	}
	return fmt.Errorf("%s still has a leader %v after it was left alone", member.Name(), limit)
}

// leaderlessRequests are sent all at once, since most of them time out.
func (r *trio) leaderlessRequests(t *testing.T, left int) {
	type request struct {
		name    string
		message proto.Message
		led     bool
		want    string // "" where any answer will do that both give
	}
	var requests []request
	for _, one := range []request{
		{"put", put("a", "2"), false, pastDeadline},
		{"range", get("a"), false, timedOut},
		{"serializable range", serializable("a"), false, "OK"},
		{"txn that writes", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put("a", "2")}}}}, false, pastDeadline},
		{"txn that reads", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: serializable("a")}}}}, false, ""},
		{"delete", &pb.DeleteRangeRequest{Key: []byte("a")}, false, pastDeadline},
		{"compaction", &pb.CompactionRequest{Revision: 1}, false, ""},
		{"grant", &pb.LeaseGrantRequest{ID: 9, TTL: 60}, false, pastDeadline},
		{"revoke", &pb.LeaseRevokeRequest{ID: 7}, false, pastDeadline},
		{"time to live", &pb.LeaseTimeToLiveRequest{ID: 7}, false, ""},
		{"leases", &pb.LeaseLeasesRequest{}, false, ""},
		{"members", &pb.MemberListRequest{}, false, "OK"},
		{"members, linearizable", &pb.MemberListRequest{Linearizable: true}, false, ""},
		{"add", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}}, false, ""},
		{"promote", &pb.MemberPromoteRequest{ID: 99}, false, ""},
		{"move leader", &pb.MoveLeaderRequest{TargetID: 99}, false, ""},
		{"alarms", &pb.AlarmRequest{}, false, ""},
		{"hash", &pb.HashKVRequest{}, false, "OK"},
		{"defragmentation", &pb.DefragmentRequest{}, false, "OK"},
		{"downgrade", &pb.DowngradeRequest{Version: "3.6.0"}, false, ""},
		{"lock", &v3lockpb.LockRequest{Name: []byte("l"), Lease: 7}, false, ""},
		{"unlock", &v3lockpb.UnlockRequest{Key: []byte("l/7")}, false, ""},
		{"campaign", &v3electionpb.CampaignRequest{Name: []byte("l"), Lease: 7}, false, ""},
		{"leader of an election", &v3electionpb.LeaderRequest{Name: []byte("l")}, false, ""},
		{"an empty key", put("", ""), false, "InvalidArgument: etcdserver: key is not provided"},
	} {
		led := one
		led.led, led.want = true, noLeader
		led.name += ", with a leader required"
		requests = append(requests, one, led)
	}
	var asked sync.WaitGroup
	for _, one := range requests {
		// Not with Parallel, which lets as many run at a time as there are processors.
		asked.Go(func() {
			t.Run(one.name, func(t *testing.T) {
				on := *r
				on.t = t
				ask := on.ask
				if one.led {
					ask = func(member int, request proto.Message, _ ...grpc.CallOption) harness.Outcome {
						return on.askLed(member, request)
					}
				}
				if got := harness.ErrorText(ask(left, one.message).Err); one.want != "" && got != one.want {
					t.Errorf("etcd answers %q, this case is about %q", got, one.want)
				}
			})
		})
	}
	asked.Wait()
}
