package trio

import (
	"context"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/protobuf/proto"
)

// lists compares what every member says of all members.
func (r *trio) lists() {
	r.t.Helper()
	for member := range r.conns[0] {
		// The first has the member catch up, so that the second shows the same.
		r.ask(member, &pb.MemberListRequest{Linearizable: true})
		r.ask(member, &pb.MemberListRequest{})
	}
}

func TestChangesOfMembers(t *testing.T) {
	r := newTrio(t)
	r.lists()
	ids := r.ids()
	first := r.ok(leader, &pb.MemberListRequest{}).(*pb.MemberListResponse).Members
	// In the first five seconds of a connection nothing is changed.
	for _, member := range []int{leader, follower} {
		r.fails(unhealthy, member, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}})
	}
	r.connected()
	for _, member := range []int{leader, follower, other} {
		r.fails(urlExists, member, &pb.MemberAddRequest{PeerURLs: first[0].PeerURLs})
		r.fails(urlExists, member, &pb.MemberAddRequest{PeerURLs: first[2].PeerURLs, IsLearner: true})
		r.fails(urlExists, member, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1", first[1].PeerURLs[0]}})
		for _, urls := range [][]string{nil, {""}, {"127.0.0.1:1"}, {"http://127.0.0.1"}, {"http://127.0.0.1:1/path"}, {"ftp://127.0.0.1:1"}} {
			r.fails(badURLs, member, &pb.MemberAddRequest{PeerURLs: urls})
		}
		r.fails(noMember, member, &pb.MemberRemoveRequest{ID: 99})
		r.fails(noMember, member, &pb.MemberRemoveRequest{})
		r.fails(noMember, member, &pb.MemberPromoteRequest{ID: 99})
		r.fails(noMember, member, &pb.MemberUpdateRequest{ID: 99, PeerURLs: []string{"http://127.0.0.1:1"}})
		// The lists are in the order of ids, which differ from run to run; an update of
		// a member to its own address is taken.
		r.fails(urlExists, member, &pb.MemberUpdateRequest{ID: first[1].ID, PeerURLs: first[0].PeerURLs})
		for _, id := range ids {
			r.fails(notLearner, member, &pb.MemberPromoteRequest{ID: id})
		}
	}
	r.lists()
	r.unstartedMembers()
	r.lists()
}

// etcd v3.7.3 takes an update to no URLs, or to what is none, whereupon its other
// members end with a panic. Whatever etched answers, it must keep running.
func TestUpdateToBadURLs(t *testing.T) {
	c := harness.StartCluster(t, harness.Etched, harness.ClusterOptions{})
	first, second := c.Members()[0], c.Members()[1]
	id, err := first.ID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	connection := second.Dial(t)
	for _, urls := range [][]string{nil, {""}, {"127.0.0.1:1"}, {"http://127.0.0.1"}, {"http://127.0.0.1:1/path"}, {"ftp://127.0.0.1:1"}} {
		outcome := harness.Invoke(t.Context(), connection, &pb.MemberUpdateRequest{ID: id, PeerURLs: urls})
		t.Logf("%q: etched answers %s", urls, harness.ErrorText(outcome.Err))
	}
	// Where one was taken, the member is to be found again.
	if outcome := harness.Invoke(t.Context(), connection, &pb.MemberUpdateRequest{ID: id, PeerURLs: []string{first.PeerURL()}}); outcome.Err != nil {
		t.Error(outcome.Err)
	}
	if err := c.WaitHealthy(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	if outcome := harness.Invoke(t.Context(), connection, put("a", "1")); outcome.Err != nil {
		t.Error(outcome.Err)
	}
}

// unstartedMembers adds members that nobody starts, and removes them again.
func (r *trio) unstartedMembers() {
	r.t.Helper()
	r.ok(follower, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}, IsLearner: true})
	r.lists()
	// Added twice in one second, a member would have its id twice: another refusal.
	time.Sleep(1100 * time.Millisecond)
	for _, member := range []int{leader, follower} {
		r.ask(member, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:2"}, IsLearner: true})
		r.fails(notReady, member, &pb.MemberPromoteRequest{ID: added(0)})
		r.fails(urlExists, member, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}})
	}
	r.ok(leader, &pb.MemberUpdateRequest{ID: added(0), PeerURLs: []string{"http://127.0.0.1:3", "http://127.0.0.1:1"}})
	r.lists()
	r.ok(other, &pb.MemberRemoveRequest{ID: added(0)})
	r.ask(leader, &pb.MemberRemoveRequest{ID: added(0)})
	r.ask(follower, &pb.MemberPromoteRequest{ID: added(0)})
	r.ask(follower, &pb.MemberUpdateRequest{ID: added(0), PeerURLs: []string{"http://127.0.0.1:4"}})
	r.lists()
	r.ok(leader, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:5"}})
	r.lists()
	for _, urls := range []string{"http://127.0.0.1:6", "http://127.0.0.1:7"} {
		r.ask(follower, &pb.MemberAddRequest{PeerURLs: []string{urls}})
	}
	ids := r.ids()
	r.ok(follower, put("a", "1"))
	r.ok(leader, &pb.MemberRemoveRequest{ID: added(1)})
	r.ok(leader, put("a", "2"))
	for _, id := range ids {
		r.fails(notLearner, follower, &pb.MemberPromoteRequest{ID: id})
	}
}

// Without strict checks, more learners and members that nobody starts are taken.
func TestLooseChangesOfMembers(t *testing.T) {
	r := newTrio(t, "--strict-reconfig-check=false", "--max-learners=2")
	for n, learner := range []bool{true, true, true, false} {
		r.ask(n%3, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:" + string(rune('1'+n))}, IsLearner: learner})
		r.lists()
	}
	r.fails(manyLearners, follower, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:9"}, IsLearner: true})
	r.fails(notReady, follower, &pb.MemberPromoteRequest{ID: added(1)})
	r.ok(follower, &pb.MemberRemoveRequest{ID: added(1)})
	r.ok(leader, put("a", "1"))
	r.lists()
}

// add starts a member on both sides.
func (r *trio) add(learner bool) int {
	r.t.Helper()
	var failures [2]error
	r.both(func(side int) {
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
		defer cancel()
		c := r.sides[side]
		member, err := c.Add(ctx, c.Members()[0], learner)
		if err == nil {
			err = c.WaitHealthy(30 * time.Second)
		}
		var id uint64
		if err == nil {
			id, err = member.ID(ctx)
		}
		if failures[side] = err; err == nil {
			r.learn(side, id)
			r.conns[side] = append(r.conns[side], member.Dial(r.t))
		}
	})
	for side, err := range failures {
		if err != nil {
			r.t.Fatalf("%v: add a member: %v", harness.Kind(side), err)
		}
	}
	return len(r.conns[0]) - 1
}

// What a learner answers, until it is promoted and answers as any other.
func TestLearner(t *testing.T) {
	r := newTrio(t)
	r.ok(leader, put("a", "1"))
	r.ok(leader, &pb.LeaseGrantRequest{ID: 7, TTL: 1000})
	learner := r.add(true)
	r.lists()
	for _, request := range []proto.Message{
		put("a", "2"), get("a"), &pb.DeleteRangeRequest{Key: []byte("a")}, &pb.TxnRequest{}, &pb.CompactionRequest{Revision: 1},
		&pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: serializable("a")}}}},
		put("", ""), &pb.RangeRequest{},
		&pb.LeaseGrantRequest{TTL: 10}, &pb.LeaseRevokeRequest{ID: 7}, &pb.LeaseTimeToLiveRequest{ID: 7}, &pb.LeaseLeasesRequest{},
		&pb.AlarmRequest{}, &pb.DefragmentRequest{}, &pb.HashRequest{}, &pb.HashKVRequest{}, &pb.MoveLeaderRequest{TargetID: added(0)},
		&pb.DowngradeRequest{Version: "3.6.0"}, &pb.AuthStatusRequest{}, &pb.AuthEnableRequest{}, &pb.AuthUserListRequest{}, &pb.AuthenticateRequest{Name: "a"},
		&pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}}, &pb.MemberRemoveRequest{ID: 99}, &pb.MemberPromoteRequest{ID: 99},
		&pb.MemberUpdateRequest{ID: 99, PeerURLs: []string{"http://127.0.0.1:1"}},
		&pb.MemberListRequest{Linearizable: true}, &pb.MemberListRequest{},
		&v3lockpb.LockRequest{Name: []byte("l"), Lease: 7}, &v3lockpb.UnlockRequest{Key: []byte("l")},
		&v3electionpb.CampaignRequest{Name: []byte("l"), Lease: 7}, &v3electionpb.LeaderRequest{Name: []byte("l")},
		&v3electionpb.ProclaimRequest{}, &v3electionpb.ResignRequest{},
	} {
		r.fails(forLearner, learner, request)
	}
	r.ok(learner, serializable("a"))
	r.ask(learner, serializable(""))
	r.statuses()
	r.learnersStreams(learner)
	r.fails(badTransferee, leader, &pb.MoveLeaderRequest{TargetID: added(0)})
	r.connected()
	r.fails(manyLearners, follower, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}, IsLearner: true})
	r.ok(follower, &pb.MemberPromoteRequest{ID: added(0)})
	r.fails(notLearner, leader, &pb.MemberPromoteRequest{ID: added(0)})
	r.each(func(c *harness.Cluster) error { return c.WaitHealthy(20 * time.Second) })
	r.lists()
	r.ok(learner, put("a", "3"))
	r.ok(learner, get("a"))
	r.ok(learner, &pb.LeaseTimeToLiveRequest{ID: 99})
	r.statuses()
}

// statuses compares what every member says of itself.
func (r *trio) statuses() {
	r.t.Helper()
	for member := range r.conns[0] {
		var outcomes [2]harness.Outcome
		r.both(func(side int) {
			outcomes[side] = harness.Invoke(context.Background(), r.conns[side][member], &pb.StatusRequest{})
			if outcomes[side].Err == nil {
				r.normalise(side, outcomes[side].Message)
				withoutSizes(outcomes[side].Message)
			}
		})
		if diff := harness.DiffOutcome(outcomes[0], outcomes[1]); diff != "" {
			r.t.Errorf("status of member %d\n(-etched +etcd)\n%s", member+1, diff)
		}
	}
}

// learnersStreams compares how a learner ends watches and keepalives.
func (r *trio) learnersStreams(learner int) {
	r.t.Helper()
	var watches, keepAlives [2]harness.Outcome
	r.both(func(side int) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		watch, err := pb.NewWatchClient(r.conns[side][learner]).Watch(ctx)
		if err == nil {
			_, err = harness.Exchange(watch, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a")}}})
		}
		watches[side].Err = err
		keepAlive, err := pb.NewLeaseClient(r.conns[side][learner]).LeaseKeepAlive(ctx)
		if err == nil {
			_, err = harness.Exchange(keepAlive, &pb.LeaseKeepAliveRequest{ID: 7})
		}
		keepAlives[side].Err = err
	})
	for what, outcomes := range map[string][2]harness.Outcome{"watch": watches, "keepalive": keepAlives} {
		for side := range outcomes {
			outcomes[side].Message = &pb.ResponseHeader{}
		}
		if diff := harness.DiffOutcome(outcomes[0], outcomes[1]); diff != "" {
			r.t.Errorf("%s of a learner\n(-etched +etcd)\n%s", what, diff)
		}
	}
}

// A removed member ends by itself; the rest continue, and do not know it.
func TestRemovedMember(t *testing.T) {
	r := newTrio(t)
	ids := r.ids()
	r.connected()
	r.ok(follower, &pb.MemberRemoveRequest{ID: ids[other]})
	r.each(func(c *harness.Cluster) error {
		select {
		case <-c.Members()[other].Exited():
			return nil
		case <-time.After(15 * time.Second):
			return context.DeadlineExceeded
		}
	})
	for _, member := range []int{leader, follower} {
		r.ok(member, &pb.MemberListRequest{Linearizable: true})
		r.ok(member, put("a", "1"))
		r.ask(member, &pb.MemberRemoveRequest{ID: ids[other]})
		r.ask(member, &pb.MemberPromoteRequest{ID: ids[other]})
		r.ask(member, &pb.MemberUpdateRequest{ID: ids[other], PeerURLs: []string{"http://127.0.0.1:1"}})
	}
	r.fails(badTransferee, leader, &pb.MoveLeaderRequest{TargetID: ids[other]})
}
