package proxy

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Two servers that know nothing of each other are a member that is behind and one that is not:
// once a read showed the revision of the second, none shows the first's. etcd's proxy waits at
// its start where it has the flag, and orders nothing.
func TestReadsAreOrdered(t *testing.T) {
	behind, ahead := harness.Start(t, harness.Etched, harness.Options{}), harness.Start(t, harness.Etched, harness.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var newest int64
	for range 10 {
		put, err := ahead.Client(t).Put(ctx, "k", "1")
		must(t, err)
		newest = put.Header.Revision
	}
	const reads = 60
	const flag = "--experimental-serializable-ordering"
	for _, one := range []struct {
		kind    harness.Kind
		flags   []string
		ordered bool
	}{{harness.Etched, nil, false}, {harness.Etched, []string{flag}, true}, {harness.Etcd, []string{flag}, false}} {
		proxy := startProxy(t, one.kind, append(one.flags, "--endpoints="+behind.Endpoint()+","+ahead.Endpoint())...)
		c := proxy.client(t)
		var older, last int64
		for i := range reads {
			// Another key each time, which no cache knows.
			key, anyMember := fmt.Sprint("k", i), clientv3.WithSerializable()
			var header = func() int64 {
				if i%2 == 0 {
					got, err := c.Get(ctx, key, anyMember)
					must(t, err)
					return got.Header.Revision
				}
				got, err := c.Txn(ctx).Then(clientv3.OpGet(key, anyMember)).Commit()
				must(t, err)
				return got.Header.Revision
			}()
			if header < last {
				older++
			}
			last = header
		}
		if one.ordered != (older == 0) || one.ordered && last != newest {
			t.Errorf("%s %v: %d of %d reads were older than the one before; the last is of %d", one.kind, one.flags, older, reads, last)
		}
	}
	// Where only the one that is behind is left, it is not read from.
	proxy := startProxy(t, harness.Etched, flag, "--endpoints="+behind.Endpoint()+","+ahead.Endpoint())
	c := proxy.client(t)
	for {
		got, err := c.Get(ctx, "k")
		must(t, err)
		if got.Header.Revision == newest {
			break
		}
	}
	must(t, ahead.Kill())
	for {
		_, err := c.Get(ctx, "other", clientv3.WithSerializable())
		if err == nil {
			t.Fatal("a read shows an older state")
		}
		if strings.Contains(err.Error(), "no cluster members have a revision higher than the previously received revision") {
			break
		}
		must(t, ctx.Err())
	}
}
