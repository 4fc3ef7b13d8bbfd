package failpoints

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

// leaseCall answers the TTL of a lease as a client sees it.
type leaseCall func(context.Context, *clientv3.Client, clientv3.LeaseID) (int64, error)

func leftOf(ctx context.Context, client *clientv3.Client, id clientv3.LeaseID) (int64, error) {
	left, err := client.TimeToLive(ctx, id)
	if err != nil {
		return 0, err
	}
	return left.TTL, nil
}

func renewed(ctx context.Context, client *clientv3.Client, id clientv3.LeaseID) (int64, error) {
	kept, err := client.KeepAliveOnce(ctx, id)
	if err != nil {
		return 0, err
	}
	return kept.TTL, nil
}

// ofLeases are those that the leader comes to for a lease, and by which call: of
// another member's client or of its own.
var ofLeases = []struct {
	name      string
	forwarded bool
	call      leaseCall
}{
	{"beforeLookupWhenLeaseTimeToLive", false, leftOf},
	{"beforeLookupWhenForwardLeaseTimeToLive", true, leftOf},
	{"beforeCheckpointInLeaseRenew", false, renewed},
	{"beforeCheckpointInLeaseRenew", true, renewed},
	{"beforeServeHTTPLeaseRenew", true, renewed},
}

// A leader that ends while it serves another member's call about a lease leaves
// that to the next one.
func TestPanicsWithForwardedLeases(t *testing.T) {
	needBinary(t)
	c := startThree(t)
	for _, one := range ofLeases {
		if !one.forwarded {
			continue
		}
		leader := c.leader()
		other := c.Others(leader)[0].Client(t)
		ctx := harness.Context(t, 60*time.Second)
		lease, err := other.Grant(ctx, 100)
		must(t, err)
		c.without(leader, func() {
			must(t, c.failpoints[leader.Number()].Set(one.name, "panic"))
			left, err := one.call(ctx, other, lease.ID)
			if err != nil || left < 1 || left > 100 {
				t.Errorf("%s: %d s are left, %v", one.name, left, err)
			}
			waitDeath(t, leader.Server, one.name)
			must(t, leader.Restart())
		})
		if c.check(); t.Failed() {
			return
		}
	}
}

// A leader that was held up and leads no more says nothing of a lease by its own
// clock: the next one may have extended it.
func TestLeasesAcrossAChangeOfLeaders(t *testing.T) {
	needBinary(t)
	c := startThree(t)
	const ttl, held = 2, 4 * time.Second
	for _, one := range ofLeases {
		leader := c.leader()
		next, asked := c.Others(leader)[0], leader
		if one.forwarded {
			asked = c.Others(leader)[1]
		}
		ctx := harness.Context(t, 60*time.Second)
		lease, err := next.Client(t).Grant(ctx, ttl)
		must(t, err)
		// Another's renewals, which go to the member that leads.
		keeping, stop := context.WithCancel(ctx)
		kept, err := next.Client(t).KeepAlive(keeping, lease.ID)
		must(t, err)
		failpoints := c.failpoints[leader.Number()]
		// The call is the one that is held up, renewals of the other client are not.
		terms := `1*sleep("4s")`
		if one.name == "beforeCheckpointInLeaseRenew" || one.name == "beforeServeHTTPLeaseRenew" {
			stop()
			for range kept {
			}
		}
		must(t, failpoints.Set(one.name, terms))
		type answer struct {
			left int64
			err  error
		}
		answers, began := make(chan answer, 1), time.Now()
		client := asked.Client(t)
		go func() {
			left, err := one.call(ctx, client, lease.ID)
			answers <- answer{left, err}
		}()
		wait(t, func() bool {
			count, err := failpoints.Count(one.name)
			must(t, err)
			return count == "1"
		})
		if keeping.Err() != nil {
			keeping, stop = context.WithCancel(ctx)
			kept, err = next.Client(t).KeepAlive(keeping, lease.ID)
			must(t, err)
		}
		must(t, c.Lead(next, healthy))
		got := <-answers
		if took := time.Since(began); took < held {
			t.Errorf("%s: the answer came after %v, and not behind the pause", one.name, took)
		}
		if got.err != nil || got.left < 1 || got.left > ttl {
			t.Errorf("%s, forwarded %v: %d s are left, %v", one.name, one.forwarded, got.left, got.err)
		}
		stop()
		for range kept {
		}
		must(t, failpoints.Clear(one.name))
	}
}
