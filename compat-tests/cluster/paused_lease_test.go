package cluster

import (
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

// The leader that decides when a lease ends stands still for a while, in which
// nobody can renew it: etched gives that time back, etcd does not. The README says
// so, with these figures. The member is alone: others would lead after a second,
// and give the lease all of its time anew.
func TestLeaseOfAPausedLeader(t *testing.T) {
	const ttl, pause = 20 * time.Second, 8 * time.Second
	for kind, least := range map[harness.Kind]time.Duration{harness.Etched: ttl + pause, harness.Etcd: ttl} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			c := harness.StartCluster(t, kind, harness.ClusterOptions{Members: 1})
			leader := c.Members()[0]
			etcd := leader.Client(t)
			ctx := harness.Context(t, least+10*time.Second)
			deleted := etcd.Watch(ctx, "held", clientv3.WithFilterPut(), clientv3.WithCreatedNotify())
			if created := <-deleted; created.Err() != nil {
				t.Fatal(created.Err())
			}
			granting := time.Now()
			lease, err := etcd.Grant(ctx, int64(ttl/time.Second))
			if err != nil {
				t.Fatal(err)
			}
			granted := time.Now()
			if _, err := etcd.Put(ctx, "held", "", clientv3.WithLease(lease.ID)); err != nil {
				t.Fatal(err)
			}
			if err := leader.Pause(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(pause)
			if err := leader.Continue(); err != nil {
				t.Fatal(err)
			}
			response := <-deleted
			if err := response.Err(); err != nil || len(response.Events) != 1 {
				t.Fatalf("the lease did not end by itself: %v, %v", response.Events, err)
			}
			lived := time.Since(granting)
			// A stop is noticed, and a lease's end seen, by looks half a second apart.
			if lived < least-time.Second || time.Since(granted) > least+2*time.Second+*slack {
				t.Errorf("a lease of %v lived for %v, with its leader stopped for %v; due are %v", ttl, lived.Round(time.Millisecond), pause, least)
			}
			t.Logf("lived for %v", lived.Round(time.Millisecond))
		})
	}
}
