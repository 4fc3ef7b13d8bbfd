package backup

import (
	"flag"
	"math/rand/v2"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

var deepSeed = flag.Uint64("backup.seed", 0, "seed of deep histories; 0 draws one")

// keptRevisions are so many at least, whatever was compacted.
const keptRevisions = 500

// A few keys with many versions each, written, deleted and written again, by themselves, within
// transactions and with their leases: both ways take all of it along, there and back.
func TestDeepHistories(t *testing.T) {
	for name, goThereAndBack := range map[string]func(*testing.T, *content){
		"snapshots": func(t *testing.T, content *content) {
			etcd := restoredEtcd(t, save(t, content.client))
			compare(t, content, etcd)
			compare(t, content, restoredEtched(t, save(t, content.dial(etcd))))
		},
		"directories": func(t *testing.T, content *content) {
			server := content.server
			for _, kind := range []harness.Kind{harness.Etcd, harness.Etched} {
				want := look(t, content.client, 0)
				if changes := strings.Count(want.parts["events"], "\n"); changes < keptRevisions {
					t.Fatalf("a history of %d changes", changes)
				}
				if err := server.Kill(); err != nil {
					t.Fatal(err)
				}
				if kind == harness.Etcd {
					server.Use(exported(t, server.DataDir()))
				}
				become(t, kind, server)
				content.connect()
				want.compare(t, look(t, content.client, want.revision))
				content.deepen(300)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := *deepSeed
			if seed == 0 {
				seed = rand.Uint64()
			}
			t.Logf("-backup.seed=%d", seed)
			content := newContent(t, harness.Start(t, harness.Etched, harness.Options{}), seed)
			content.keys = []string{"\x00", "deep", "deep\x00", strings.Repeat("deep", 500), "\xff\xff"}
			content.deepen(1500)
			goThereAndBack(t, content)
		})
	}
}

// deepen makes so many revisions of the keys, about.
func (c *content) deepen(count int) {
	c.t.Helper()
	ctx := harness.Context(c.t, limit)
	do := func(_ any, err error) {
		if err != nil {
			c.t.Helper()
			c.t.Fatal(err)
		}
	}
	for range count {
		switch n := c.random.IntN(1000); {
		case n < 10:
			lease, err := c.client.Grant(ctx, 1000+int64(n))
			do(lease, err)
			c.leases = append(c.leases, lease.ID)
		case n < 15 && len(c.leases) > 1:
			// All that is attached to it is deleted in one revision.
			at := c.random.IntN(len(c.leases))
			do(c.client.Revoke(ctx, c.leases[at]))
			c.leases = append(c.leases[:at], c.leases[at+1:]...)
		case n < 18:
			c.compactDeep()
		case n < 30:
			do(c.client.Delete(ctx, "\x00", clientv3.WithFromKey()))
		case n < 200:
			// Each in a part of one revision, the deleted ones too.
			var ops []clientv3.Op
			for _, key := range c.keys {
				switch c.random.IntN(3) {
				case 0:
					ops = append(ops, clientv3.OpPut(key, c.value()))
				case 1:
					ops = append(ops, clientv3.OpDelete(key))
				}
			}
			do(c.client.Txn(ctx).Then(ops...).Commit())
		default:
			do(c.client.Do(ctx, c.op()))
		}
	}
}

// compactDeep compacts to a revision that leaves some, of a deletion or not.
func (c *content) compactDeep() {
	c.t.Helper()
	ctx := harness.Context(c.t, limit)
	hash, err := c.client.HashKV(ctx, c.client.Endpoints()[0], 0)
	if err != nil {
		c.t.Fatal(err)
	}
	first, last := hash.CompactRevision+1, hash.Header.Revision-2*keptRevisions
	if first >= last {
		return
	}
	var options []clientv3.CompactOption
	if c.random.IntN(2) == 0 {
		options = append(options, clientv3.WithCompactPhysical())
	}
	if _, err := c.client.Compact(ctx, first+c.random.Int64N(last-first), options...); err != nil {
		c.t.Fatal(err)
	}
}
