package proxy

import (
	"context"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// A proxy that was given one member finds the others, and does without the first.
func TestMembersAreFound(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			cluster := harness.StartCluster(t, harness.Etched, harness.ClusterOptions{})
			members := cluster.Members()
			proxy := startProxy(t, kind, "--endpoints="+members[0].Endpoint(), "--endpoints-auto-sync-interval=1s", "--debug")
			proxy.waitFor(t, "set etcd endpoints by autoSync")
			must(t, members[0].Kill())
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c := proxy.client(t)
			for {
				_, err := c.Put(ctx, "k", "1")
				if err == nil {
					break
				}
				must(t, ctx.Err())
			}
		})
	}
}
