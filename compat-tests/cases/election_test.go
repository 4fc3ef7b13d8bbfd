package cases

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func campaign(name, value string, lease int64) *v3electionpb.CampaignRequest {
	return &v3electionpb.CampaignRequest{Name: []byte(name), Value: []byte(value), Lease: lease}
}

func leader(name string) *v3electionpb.LeaderRequest {
	return &v3electionpb.LeaderRequest{Name: []byte(name)}
}

// leads names a leader as Campaign does.
func leads(name string, lease, rev int64) *v3electionpb.LeaderKey {
	return &v3electionpb.LeaderKey{Name: []byte(name), Key: fmt.Appendf(nil, "%s/%x", name, lease), Rev: rev, Lease: lease}
}

func proclaim(leader *v3electionpb.LeaderKey, value string) *v3electionpb.ProclaimRequest {
	return &v3electionpb.ProclaimRequest{Leader: leader, Value: []byte(value)}
}

func resign(leader *v3electionpb.LeaderKey) *v3electionpb.ResignRequest {
	return &v3electionpb.ResignRequest{Leader: leader}
}

// won makes a campaign that must not wait, and answers its leader.
func (p *pair) won(request *v3electionpb.CampaignRequest) *v3electionpb.LeaderKey {
	p.t.Helper()
	return p.ok(request).(*v3electionpb.CampaignResponse).Leader
}

func TestElectionAlone(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.grants(1, 2, -5)
	p.fails(noLeaderElected, leader("e"))
	first := p.won(campaign("e", "a", 1))
	for _, request := range []proto.Message{
		leader("e"), campaign("e", "a", 1), leader("e"), campaign("e", "b", 1), leader("e"),
		proclaim(first, "c"), leader("e"), proclaim(first, ""), leader("e"), campaign("e", "", 1), everything(),
		campaign("", "v", 1), leader(""), campaign("n", "v", -5), leader("n"),
	} {
		p.ok(request)
	}
	p.fails(noLeaseUncoded, campaign("e2", "v", 77))
	p.fails(tooLargeUncoded, campaign("e2", strings.Repeat("v", 1_600_000), 1))
	p.fails(leaderNotGiven, proclaim(nil, "v"))
	p.fails(leaderNotGiven, resign(nil))
	p.fails(notLeader, proclaim(leads("e", 1, first.Rev+1), "v"))
	p.fails(notLeader, proclaim(leads("nobody", 1, first.Rev), "v"))
	p.fails(emptyKeyUncoded, proclaim(&v3electionpb.LeaderKey{Lease: 1}, "v"))
	p.fails(emptyKeyUncoded, resign(&v3electionpb.LeaderKey{Lease: 1}))
	// With the lease that the request has.
	other := leads("e", 1, first.Rev)
	other.Lease = 2
	p.ok(proclaim(other, "by another lease"))
	p.ok(everything())
	other.Lease = 77
	p.fails(noLeaseUncoded, proclaim(other, "by none"))
	other.Lease = 0
	p.ok(proclaim(other, "by a new one"))
	p.ok(leader("e"), withoutOwnLease)
	// Revision 0 is that of a key which is not there.
	made := leads("made", 1, 0)
	p.ok(proclaim(made, "made"))
	p.ok(leader("made"))
	p.fails(notLeader, proclaim(made, "again"))
	for _, request := range []proto.Message{
		resign(leads("e", 1, first.Rev+1)), leader("e"), resign(leads("nobody", 1, 3)),
		resign(first), resign(first), everything(),
	} {
		p.ok(request, withoutOwnLease)
	}
	p.fails(noLeaderElected, leader("e"))
	p.fails(notLeader, proclaim(first, "v"))
	// Whatever lies below the name and is oldest leads.
	p.ok(put("foreign/key", "v"))
	p.ok(leader("foreign"))
	p.ok(put("foreign", "v"))
	p.ok(leader("foreign"))
}

func TestElectionWithALeaseOfItsOwn(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(campaign("own", "v", 0), withoutOwnLease)
	p.ok(span("own/", "own0"), withoutOwnLease)
	p.ok(&pb.LeaseLeasesRequest{}, withoutOwnLease)
}

func TestElectionInTurn(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.grants(1, 2, 3)
	p.run("by resignation", func(p *pair) {
		first := p.won(campaign("w", "a", 1))
		second := p.queued("w/2", campaign("w", "b", 2))
		third := p.queued("w/3", campaign("w", "c", 3))
		p.ok(leader("w"))
		p.ok(proclaim(first, "a2"))
		second.waits()
		p.ok(resign(first))
		leading := second.ends().Message.(*v3electionpb.CampaignResponse).Leader
		p.ok(leader("w"))
		third.waits()
		p.ok(resign(leading))
		third.endsWith("OK")
		p.ok(leader("w"))
	})
	p.run("with another value while it waits", func(p *pair) {
		first := p.won(campaign("v", "a", 1))
		second := p.queued("v/2", campaign("v", "b", 2))
		again := p.begin(context.Background(), campaign("v", "b2", 2))
		again.waits()
		p.ok(get("v/2"))
		p.ok(resign(first))
		second.endsWith("OK")
		again.endsWith("OK")
		p.ok(leader("v"))
	})
	p.run("a candidate resigns", func(p *pair) {
		first := p.won(campaign("r", "a", 1))
		second := p.queued("r/2", campaign("r", "b", 2))
		created := p.ok(get("r/2")).(*pb.RangeResponse).Kvs[0].CreateRevision
		p.ok(resign(leads("r", 2, created)))
		second.waits()
		p.ok(resign(first))
		// It is not looked at whether its key is still there.
		second.endsWith("OK")
		p.fails(noLeaderElected, leader("r"))
	})
	p.run("a candidate loses its lease", func(p *pair) {
		p.ok(grant(10, 1000))
		first := p.won(campaign("l", "a", 1))
		second := p.queued("l/a", campaign("l", "b", 10))
		p.ok(&pb.LeaseRevokeRequest{ID: 10})
		second.waits()
		p.ok(resign(first))
		second.endsWith("OK")
	})
	p.run("cancelled", func(p *pair) {
		first := p.won(campaign("c", "a", 1))
		second := p.queued("c/2", campaign("c", "b", 2))
		third := p.queued("c/3", campaign("c", "c", 3))
		second.cancel()
		p.until("c/2", false)
		third.waits()
		p.ok(resign(first))
		third.endsWith("OK")
		p.ok(everything())
	})
	p.run("too late", func(p *pair) {
		p.won(campaign("d", "a", 1))
		ctx, cancel := context.WithTimeout(context.Background(), silence)
		defer cancel()
		second := p.begin(ctx, campaign("d", "b", 2))
		p.until("d/2", true)
		second.tooLate()
		p.until("d/2", false)
		p.ok(everything())
	})
}

// observers are the streams of both sides.
type observers struct {
	p     *pair
	heard [2]chan harness.Outcome
}

func (p *pair) observe(ctx context.Context, name string) *observers {
	o := &observers{p: p}
	ctx, cancel := context.WithCancel(ctx)
	p.t.Cleanup(cancel)
	for side := range o.heard {
		o.heard[side] = make(chan harness.Outcome, 100)
		stream, err := v3electionpb.NewElectionClient(p.conn[side]).Observe(ctx, leader(name))
		if err != nil {
			p.t.Fatal(err)
		}
		go func() {
			for {
				message, err := stream.Recv()
				if o.heard[side] <- (harness.Outcome{Message: message, Err: err}); err != nil {
					return
				}
			}
		}()
	}
	return o
}

// hears compares the next news of both sides and answers etcd's.
func (o *observers) hears() harness.Outcome {
	o.p.t.Helper()
	outcomes := o.p.parallel(func(side int) harness.Outcome {
		select {
		case outcome := <-o.heard[side]:
			return outcome
		case <-time.After(watchLimit):
			return harness.Outcome{Err: fmt.Errorf("no news")}
		}
	})
	o.p.compare("Observe", outcomes)
	return outcomes[etcd]
}

func (o *observers) value(want string) {
	o.p.t.Helper()
	outcome := o.hears()
	if outcome.Err != nil {
		o.p.t.Fatal(outcome.Err)
	}
	if got := string(outcome.Message.(*v3electionpb.LeaderResponse).Kv.Value); got != want {
		o.p.t.Errorf("etcd tells %q, this case is about %q", got, want)
	}
}

func (o *observers) silent() {
	o.p.t.Helper()
	time.Sleep(silence)
	for side := range o.heard {
		select {
		case outcome := <-o.heard[side]:
			o.p.t.Errorf("side %d hears %v %v", side, outcome.Message, outcome.Err)
		default:
		}
	}
}

func TestElectionObserved(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.grants(1, 2)
	p.run("from before the first", func(p *pair) {
		o := p.observe(context.Background(), "o")
		o.silent()
		first := p.won(campaign("o", "a", 1))
		o.value("a")
		second := p.queued("o/2", campaign("o", "b", 2))
		o.silent()
		p.ok(proclaim(first, "a2"))
		o.value("a2")
		p.ok(put("o/1", "by hand"))
		o.value("by hand")
		p.ok(resign(first))
		second.endsWith("OK")
		o.value("b")
		p.ok(del("o/2"))
		o.silent()
		p.ok(put("o/foreign", "f"))
		o.value("f")
		p.ok(compact(p.revision()))
		p.ok(put("o/foreign", "f2"))
		o.value("f2")
	})
	p.run("a leader who is there", func(p *pair) {
		p.ok(put("t/x", "v"))
		p.ok(put("else", "v"))
		o := p.observe(context.Background(), "t")
		o.value("v")
		p.ok(txn(nil, ops(del("t/x"), put("t/y", "y"), put("t/z", "z")), nil))
		o.value("y")
	})
	p.run("too late", func(p *pair) {
		ctx, cancel := context.WithTimeout(context.Background(), silence)
		defer cancel()
		o := p.observe(ctx, "late")
		for side := range o.heard {
			// The text depends on whether client or server is first to say so.
			if got := status.Code((<-o.heard[side]).Err); got != codes.DeadlineExceeded {
				p.t.Errorf("side %d ends with %s", side, got)
			}
		}
	})
}

// Who does not read an election holds nobody up, and hears all in the end, or
// the newest.
func TestElectionObservedSlowly(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	client := server.Client(t)
	ctx := harness.Context(t, time.Minute)
	conn := server.Dial(t, grpc.WithInitialWindowSize(1<<16), grpc.WithInitialConnWindowSize(1<<16))
	stream, err := v3electionpb.NewElectionClient(conn).Observe(ctx, leader("slow"))
	if err != nil {
		t.Fatal(err)
	}
	const count = 400
	value := strings.Repeat("v", 100_000)
	for i := range count {
		if _, err := client.Put(ctx, "slow/x", fmt.Sprintf("%d %s", i, value)); err != nil {
			t.Fatal(err)
		}
	}
	last, heard := int64(0), 0
	for {
		news, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if news.Kv.ModRevision <= last {
			t.Fatalf("%d after %d", news.Kv.ModRevision, last)
		}
		heard, last = heard+1, news.Kv.ModRevision
		if strings.HasPrefix(string(news.Kv.Value), fmt.Sprint(count-1)) {
			break
		}
	}
	t.Logf("heard %d of %d", heard, count)
}

// clientv3's elections and the service's meet.
func TestElectionWithClients(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.duo.Each(func(server *harness.Server) {
		t.Run(server.Kind().String(), func(t *testing.T) {
			client := server.Client(t)
			elections := v3electionpb.NewElectionClient(server.Dial(t))
			ctx := harness.Context(t, time.Minute)
			session := must[*concurrency.Session](t)(concurrency.NewSession(client))
			own := concurrency.NewElection(session, "mixed")
			if err := own.Campaign(ctx, "client"); err != nil {
				t.Fatal(err)
			}
			led := must[*v3electionpb.LeaderResponse](t)(elections.Leader(ctx, leader("mixed")))
			if string(led.Kv.Key) != own.Key() || string(led.Kv.Value) != "client" {
				t.Errorf("%v leads", led.Kv)
			}
			won := make(chan error, 1)
			var answer *v3electionpb.CampaignResponse
			go func() {
				var err error
				answer, err = elections.Campaign(ctx, campaign("mixed", "service", 0))
				won <- err
			}()
			within(t, watchLimit, func() error {
				there, err := client.Get(ctx, "mixed/", clientv3.WithPrefix())
				if err == nil && there.Count != 2 {
					err = fmt.Errorf("%d campaign", there.Count)
				}
				return err
			})
			if err := own.Resign(ctx); err != nil {
				t.Fatal(err)
			}
			if err := <-won; err != nil {
				t.Fatal(err)
			}
			seen := must[*clientv3.GetResponse](t)(own.Leader(ctx))
			if string(seen.Kvs[0].Value) != "service" {
				t.Errorf("%v leads", seen.Kvs)
			}
			if _, err := elections.Resign(ctx, resign(answer.Leader)); err != nil {
				t.Error(status.Convert(err))
			}
			if err := own.Campaign(ctx, "again"); err != nil {
				t.Error(err)
			}
		})
	})
}
