package auth

import (
	"context"
	"fmt"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

func lock(name string, lease int64) *v3lockpb.LockRequest {
	return &v3lockpb.LockRequest{Name: []byte(name), Lease: lease}
}

func unlock(key string) *v3lockpb.UnlockRequest { return &v3lockpb.UnlockRequest{Key: []byte(key)} }

func campaign(name, value string, lease int64) *v3electionpb.CampaignRequest {
	return &v3electionpb.CampaignRequest{Name: []byte(name), Value: []byte(value), Lease: lease}
}

func leader(name string) *v3electionpb.LeaderRequest {
	return &v3electionpb.LeaderRequest{Name: []byte(name)}
}

// There are people with each half of the right to a name.
var rightsToName = map[string][]permission{
	"limited": {{readWrite, "l/", "l0"}},
	"reader":  {{read, "l/", "l0"}},
	"writer":  {{write, "l/", "l0"}},
	"own":     {{readWrite, "l/7", ""}},
	"half":    {{write, "l/", "l0"}, {read, "l/7", ""}},
}

var peopleOfName = []string{anyone, "token:garbage", "limited", "reader", "writer", "own", "half", "root"}

// Lock and Election, each call by each of the people, and what it leaves behind.
func TestRightsOfLocksAndElections(t *testing.T) {
	t.Parallel()
	p := newPair(t, harness.Options{})
	for _, lease := range []int64{7, 8} {
		p.ok(anyone, &pb.LeaseGrantRequest{ID: lease, TTL: 600})
	}
	p.enable(rightsToName)
	key := func(name string, rev int64) *v3electionpb.LeaderKey {
		return &v3electionpb.LeaderKey{Name: []byte("l"), Key: []byte(name), Rev: rev, Lease: 7}
	}
	for _, who := range peopleOfName {
		for _, row := range []proto.Message{
			lock("l", 7), lock("l", 1234), lock("m", 7), unlock("l/7"), unlock("m/7"), unlock(""),
			campaign("l", "v", 7), campaign("l", "v", 1234), campaign("m", "v", 7), leader("l"), leader("m"),
			&v3electionpb.ProclaimRequest{Leader: key("l/7", 0), Value: []byte("p")},
			&v3electionpb.ProclaimRequest{Leader: key("l/7", 999), Value: []byte("p")},
			&v3electionpb.ProclaimRequest{Leader: key("m/7", 0), Value: []byte("p")},
			&v3electionpb.ResignRequest{Leader: key("l/7", 999)}, &v3electionpb.ResignRequest{Leader: key("m/7", 0)},
			&v3electionpb.ResignRequest{Leader: &v3electionpb.LeaderKey{Name: []byte("l"), Key: []byte("l/7")}},
		} {
			p.do(who, row)
			p.do("root", get("\x00", "\x00"))
			// Whatever is found there stays the same for all.
			p.do("root", del("\x00", "\x00", false))
			p.ok("root", put("l/7", 7, false))
			p.do(who, row)
			p.do("root", get("\x00", "\x00"))
			p.do("root", del("\x00", "\x00", false))
		}
	}
	p.fails("reader", lock("l", 7), "Unknown: etcdserver: permission denied")
	p.fails(anyone, lock("l", 7), "Unknown: etcdserver: user name is empty")
	p.fails("token:garbage", lock("l", 7), "Unknown: etcdserver: invalid auth token")
	p.fails("limited", lock("l", 1234), "Unknown: etcdserver: requested lease not found")
	for _, who := range []string{anyone, "token:garbage"} {
		p.fails(who, lock("l", 0), "Unknown: ")
		p.fails(who, campaign("l", "v", 0), "Unknown: ")
		p.fails(who, &v3electionpb.ResignRequest{Leader: &v3electionpb.LeaderKey{Key: []byte("l/7")}}, "Unknown: ")
	}
}

func TestRightsToObserve(t *testing.T) {
	t.Parallel()
	p := newPair(t, harness.Options{})
	p.ok(anyone, put("l/7", 0, false))
	p.enable(rightsToName)
	for _, who := range peopleOfName {
		for _, name := range []string{"l", "m"} {
			if name == "m" && who == "root" {
				continue
			}
			p.both2(who, leader(name), func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
				stream, err := v3electionpb.NewElectionClient(conn).Observe(ctx, leader(name))
				if err != nil {
					return nil, err
				}
				return stream.Recv()
			})
		}
	}
}

// waits makes a call that waits on both sides, until its key is there.
func (p *pair) waits(who, key string, request proto.Message) (context.CancelFunc, [2]chan harness.Outcome) {
	p.t.Helper()
	var ended [2]chan harness.Outcome
	var cancels [2]context.CancelFunc
	for side := range ended {
		ended[side] = make(chan harness.Outcome, 1)
		var ctx context.Context
		ctx, cancels[side] = context.WithCancel(p.as(who, side))
		p.t.Cleanup(cancels[side])
		go func() { ended[side] <- harness.Invoke(ctx, p.conn[side], request) }()
	}
	for side := range ended {
		p.untilOn(side, key, true)
	}
	time.Sleep(100 * time.Millisecond)
	return func() { cancels[0](); cancels[1]() }, ended
}

func (p *pair) untilOn(side int, key string, there bool) {
	p.t.Helper()
	for range 500 {
		who := "root"
		if len(p.tokens) == 0 {
			who = anyone
		}
		outcome := harness.Invoke(p.as(who, side), p.conn[side], get(key, ""))
		if outcome.Err == nil && (outcome.Message.(*pb.RangeResponse).Count > 0) == there {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	p.t.Fatalf("side %d: %s", side, key)
}

func (p *pair) ends(who string, request proto.Message, ended [2]chan harness.Outcome) harness.Outcome {
	p.t.Helper()
	outcomes := p.both(func(side int) harness.Outcome {
		select {
		case outcome := <-ended[side]:
			return outcome
		case <-time.After(15 * time.Second):
			return harness.Outcome{Err: fmt.Errorf("no answer")}
		}
	})
	p.compare(who, request, outcomes)
	return outcomes[etcd]
}

// What changes while a call waits is asked for again when its turn has come.
func TestRightsAfterAWait(t *testing.T) {
	t.Parallel()
	p := newPair(t, harness.Options{})
	for _, lease := range []int64{7, 8} {
		p.ok(anyone, &pb.LeaseGrantRequest{ID: lease, TTL: 600})
	}
	p.enable(rightsToName)
	grantAll := rightsToName["limited"][0]
	revoke := &pb.AuthRoleRevokePermissionRequest{Role: "limited", Key: []byte("l/"), RangeEnd: []byte("l0")}
	for _, request := range []proto.Message{lock("l", 7), campaign("l", "v", 7)} {
		for _, change := range []struct {
			name           string
			before, behind func()
		}{
			{"nothing", func() {}, func() {}},
			{"another right", func() { p.ok("root", &pb.AuthRoleAddRequest{Name: "more"}) }, func() { p.ok("root", &pb.AuthRoleDeleteRequest{Role: "more"}) }},
			{"the right", func() { p.ok("root", revoke) }, func() { p.ok("root", grantAll.grant("limited")) }},
		} {
			p.ok("root", lock("l", 8))
			_, ended := p.waits("limited", "l/7", request)
			change.before()
			p.ok("root", unlock("l/8"))
			p.ends("limited", request, ended)
			change.behind()
			t.Logf("%s: %s", describe(request), change.name)
			// Without the right etcd cannot take a key back either.
			p.ok("root", del("\x00", "\x00", false))
		}
	}
}

// Authentication is enabled while calls wait: their callers are asked who they are.
func TestAuthEnabledWhileCallsWait(t *testing.T) {
	t.Parallel()
	p := newPair(t, harness.Options{})
	for _, lease := range []int64{7, 8, 9} {
		p.ok(anyone, &pb.LeaseGrantRequest{ID: lease, TTL: 600})
	}
	p.ok(anyone, lock("l", 8))
	locks, campaigns := lock("l", 7), campaign("l", "v", 9)
	_, locking := p.waits(anyone, "l/7", locks)
	_, campaigning := p.waits(anyone, "l/9", campaigns)
	p.enable(rightsToName)
	p.ok("root", unlock("l/8"))
	if got := harness.ErrorText(p.ends(anyone, locks, locking).Err); got != "Unknown: etcdserver: user name is empty" {
		t.Errorf("etcd answers %s", got)
	}
	p.do("root", get("\x00", "\x00"))
	p.ok("root", unlock("l/7"))
	p.ends(anyone, campaigns, campaigning)
	p.do("root", get("\x00", "\x00"))
}

// A call that is given up takes its key back, as its caller. (In etcd it stays, since
// it is taken back as nobody: the next in line waits for its lease to end.)
func TestKeysAreTakenBackWithAuth(t *testing.T) {
	t.Parallel()
	p := newPair(t, harness.Options{})
	for _, lease := range []int64{7, 8} {
		p.ok(anyone, &pb.LeaseGrantRequest{ID: lease, TTL: 600})
	}
	p.enable(rightsToName)
	// What stays in etcd makes the revisions differ.
	root := func(request proto.Message) {
		outcomes := p.both(func(side int) harness.Outcome {
			return harness.Invoke(p.as("root", side), p.conn[side], request)
		})
		for side, outcome := range outcomes {
			if outcome.Err != nil {
				t.Fatalf("side %d: %s: %v", side, describe(request), outcome.Err)
			}
		}
	}
	for _, request := range []proto.Message{lock("l", 7), campaign("l", "v", 7)} {
		root(lock("l", 8))
		cancel, ended := p.waits("limited", "l/7", request)
		cancel()
		p.ends("limited", request, ended)
		p.untilOn(etched, "l/7", false)
		outcome := harness.Invoke(p.as("root", etcd), p.conn[etcd], get("l/7", ""))
		t.Logf("etcd has %d keys left", outcome.Message.(*pb.RangeResponse).Count)
		root(del("\x00", "\x00", false))
	}
}
