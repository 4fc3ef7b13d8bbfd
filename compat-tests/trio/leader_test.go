package trio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
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

// Every member answers the same of the store, whoever leads.
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

// standing is a watch that was there before its member lost its leader.
type standing struct {
	err   error
	after time.Duration
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

func withoutQuorum(t *testing.T, left int) {
	r := newTrio(t)
	r.ok(leader, put("a", "1"))
	r.ok(leader, &pb.LeaseGrantRequest{ID: 7, TTL: 1000})
	var watches [2][2]standing // with a leader required, and without
	var waited [2]func()
	r.both(func(side int) {
		ctx, cancel := context.WithTimeout(context.Background(), 12*time.Second)
		cut := r.standingWatch(ctx, side, left, true)
		stays := r.standingWatch(ctx, side, left, false)
		waited[side] = func() {
			defer cancel()
			watches[side] = [2]standing{<-cut, <-stays}
		}
	})
	r.each(func(c *harness.Cluster) (failed error) {
		for n, member := range c.Members() {
			if n != left {
				failed = errors.Join(failed, member.Kill())
			}
		}
		return failed
	})
	// The lone member has to notice first.
	r.each(func(c *harness.Cluster) error { return leaderless(c.Members()[left]) })
	t.Run("requests", func(t *testing.T) { r.leaderlessRequests(t, left) })
	r.both(func(side int) { waited[side]() })
	for side, both := range watches {
		t.Logf("%v: the watch that requires a leader ended after %v: %v", harness.Kind(side), both[0].after.Round(time.Millisecond), both[0].err)
		// Three election timeouts, and what it takes to miss the leader.
		if both[0].after > 6*time.Second {
			t.Errorf("%v: the watch that requires a leader ended %v after the leader was lost", harness.Kind(side), both[0].after)
		}
		// etcd ends such a stream in one of several ways, by chance; etched in the one.
		text := harness.ErrorText(both[0].err)
		if side == 0 && text != noLeader && !errors.Is(both[0].err, io.EOF) {
			t.Errorf("%v: the watch that requires a leader ends with %s", harness.Kind(side), text)
		}
		if code := status.Code(both[1].err); code != codes.DeadlineExceeded {
			t.Errorf("%v: a watch that requires no leader ends: %v", harness.Kind(side), both[1].err)
		}
	}
}

// standingWatch makes a watch and answers how it ends.
func (r *trio) standingWatch(ctx context.Context, side, member int, led bool) <-chan standing {
	ended := make(chan standing, 1)
	if led {
		ctx = metadata.AppendToOutgoingContext(ctx, "hasleader", "true")
	}
	began := time.Now()
	stream, err := pb.NewWatchClient(r.conns[side][member]).Watch(ctx)
	if err == nil {
		err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a")}}})
	}
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		ended <- standing{err: fmt.Errorf("create a watch: %w", err)}
		return ended
	}
	go func() {
		for err == nil {
			_, err = stream.Recv()
		}
		ended <- standing{err, time.Since(began)}
	}()
	return ended
}

func leaderless(member *harness.Member) error {
	const limit = 10 * time.Second
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
		{"an empty key", put("", ""), false, "InvalidArgument: etcdserver: key is not provided"},
	} {
		led := one
		led.led, led.want = true, noLeader
		led.name += ", with a leader required"
		requests = append(requests, one, led)
	}
	for _, one := range requests {
		t.Run(one.name, func(t *testing.T) {
			t.Parallel()
			on := *r
			on.t = t
			ask := on.ask
			outcome := harness.Outcome{}
			if one.led {
				outcome = on.askLed(left, one.message)
			} else {
				outcome = ask(left, one.message)
			}
			if got := harness.ErrorText(outcome.Err); one.want != "" && got != one.want {
				t.Errorf("etcd answers %q, this case is about %q", got, one.want)
			}
		})
	}
}
