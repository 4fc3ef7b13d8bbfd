package backup

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

// purging has an etcd save its state often and keep little of what that makes superfluous.
var purging = []string{"--snapshot-count=20", "--max-wals=1", "--max-snapshots=1"}

// A member starts on what an etcd left that removed the first segments of its log: who the members
// are, their users and leases stand in the state alone. What it exports has no such entries either.
func TestEtchedStartsOnADirectoryWhoseLogWasPurged(t *testing.T) {
	for i, version := range []string{"3.7", "3.6", "3.5"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			server := harness.Start(t, harness.Etcd, harness.Options{Binary: etcdOf(t, version), EtcdFlags: purging})
			content := newContent(t, server, uint64(50+i))
			content.changes(80)
			content.users()
			content.learners()
			content.purgeLog()
			content.changes(20)
			want := look(t, content.client, 0)
			acknowledged := loadUntilKilled(t, []*clientv3.Client{content.client}, server)
			untouched := hashOf(t, filepath.Join(server.DataDir(), "member"))
			for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
				if kind == harness.Etcd {
					if err := server.Kill(); err != nil {
						t.Fatal(err)
					}
					checkUntouched(t, server, untouched)
					server.Use(exported(t, server.DataDir()))
				}
				become(t, kind, server)
				content.connect()
				want.compare(t, look(t, content.client, want.revision))
				acknowledged.check(t, content.client)
				writesAgain(t, content.client, acknowledged)
			}
		})
	}
}

// checkUntouched wants an etcd's files to be as they were, and the directory of who took them over
// to be whole.
func checkUntouched(t *testing.T, server *harness.Server, before string) {
	t.Helper()
	if hashOf(t, filepath.Join(server.DataDir(), "member")) != before {
		t.Error("etcd's files were changed")
	}
	if output, err := etched("check", server.DataDir()); err != nil {
		t.Errorf("etched check: %v\n%s", err, output)
	}
}

// purgeLog has an etcd fill segments of its log, and remove those that it needs no more: it does at
// its start and from time to time. What fills them is gone from the state too.
func (c *content) purgeLog() {
	c.t.Helper()
	ctx := harness.Context(c.t, 2*limit)
	const megabytes = 170 // a segment is cut at 64 MiB
	value := strings.Repeat("f", 1_000_000)
	compact := func() {
		gone, err := c.client.Delete(ctx, "filling", clientv3.WithPrefix())
		if err == nil {
			_, err = c.client.Compact(ctx, gone.Header.Revision, clientv3.WithCompactPhysical())
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
	for i := range megabytes {
		if _, err := c.client.Put(ctx, fmt.Sprint("filling", i%3), value); err != nil {
			c.t.Fatal(err)
		}
		if i%30 == 29 {
			compact()
		}
	}
	compact()
	restart(c.t, c.server)
	c.connect()
	for {
		segments := found(c.t, c.server.DataDir(), "member/wal/*.wal")
		if len(segments) > 0 && !strings.HasPrefix(filepath.Base(segments[0]), "0000000000000000-") {
			return
		}
		if ctx.Err() != nil {
			c.t.Fatalf("the log still has %v", segments)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
