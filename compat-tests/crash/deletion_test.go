package crash

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

const (
	// deletedKeys are several batches for etched; what they write is several flushes of a
	// member with the least memory.
	deletedKeys   = 60_000
	deletionTries = 6
	deletionLimit = 2 * time.Minute
)

// deletions take away all keys below "k", which have the lease. A start that finds a part of
// one says so.
var deletions = []struct {
	name   string
	said   string
	remove func(context.Context, *clientv3.Client, clientv3.LeaseID) error
}{
	{"range", "finishing a deletion that was interrupted", func(ctx context.Context, client *clientv3.Client, _ clientv3.LeaseID) error {
		_, err := client.Delete(ctx, "k", clientv3.WithPrefix())
		return err
	}},
	{"lease", "finishing a deletion that was interrupted", func(ctx context.Context, client *clientv3.Client, lease clientv3.LeaseID) error {
		_, err := client.Revoke(ctx, lease)
		return err
	}},
	{"transaction", "taking back a transaction that was interrupted", func(ctx context.Context, client *clientv3.Client, _ clientv3.LeaseID) error {
		_, err := client.Txn(ctx).Then(clientv3.OpDelete("k", clientv3.WithPrefix()), clientv3.OpPut("beside", "")).Commit()
		return err
	}},
}

// TestKillsWithinDeletions kills a member when a part of a deletion is on its disk: the
// next start finishes it, or begins it anew, in the one revision of all of it.
func TestKillsWithinDeletions(t *testing.T) {
	for _, deletion := range deletions {
		t.Run(deletion.name, func(t *testing.T) {
			server := harness.Start(t, harness.Etched, harness.Options{
				EtchedFlags: []string{fmt.Sprint("--memory-budget-bytes=", 16<<20)},
			})
			// Which flush holds a part of it is chance.
			for try := range deletionTries {
				killWithin(t, server, 1+try, deletion.remove)
				lines, err := server.Log()
				if err != nil {
					t.Fatal(err)
				}
				if resumed := len(harness.Says(deletion.said)(lines)); resumed > 0 {
					t.Logf("found in try %d", try+1)
					return
				}
			}
			t.Errorf("no start in %d found a part of a deletion", deletionTries)
		})
	}
}

// killWithin kills the server when so many flushes have followed the begin of a deletion,
// and checks that all of it was done or nothing.
func killWithin(t *testing.T, server *harness.Server, flushes int, remove func(context.Context, *clientv3.Client, clientv3.LeaseID) error) {
	t.Helper()
	ctx := harness.Context(t, deletionLimit)
	client := server.Client(t)
	lease := fillForDeletion(ctx, t, client)
	before := head(ctx, t, client)
	known := files(server.DataDir())
	done := make(chan error, 1)
	go func() { done <- remove(ctx, client, lease) }()
	Eventually(deletionLimit, func() bool {
		return len(done) > 0 || newTables(server.DataDir(), known) >= flushes
	})
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	acknowledged := <-done == nil
	// Whatever was left is no damage.
	binary, err := harness.Binary(harness.Etched)
	if err != nil {
		t.Fatal(err)
	}
	if output, err := exec.Command(binary, "check", server.DataDir()).CombinedOutput(); err != nil {
		t.Errorf("etched check: %v\n%s", err, output)
	}
	for range 2 {
		if err := server.Restart(); err != nil {
			t.Fatalf("%v\n%s", err, server.LogTail(5))
		}
		checkDeletion(ctx, t, server, before, lease, acknowledged)
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
}

func newTables(directory string, known map[string]bool) (tables int) {
	for path := range files(directory) {
		if filepath.Ext(path) == ".sst" && !known[path] {
			tables++
		}
	}
	return tables
}

func fillForDeletion(ctx context.Context, t *testing.T, client *clientv3.Client) clientv3.LeaseID {
	t.Helper()
	lease, err := client.Grant(ctx, 3600)
	if err != nil {
		t.Fatal(err)
	}
	const group = 100
	value := strings.Repeat("v", 60)
	for from := 0; from < deletedKeys; from += group {
		var puts []clientv3.Op
		for i := from; i < from+group; i++ {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("k%06d", i), value, clientv3.WithLease(lease.ID)))
		}
		if _, err := client.Txn(ctx).Then(puts...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	return lease.ID
}

func head(ctx context.Context, t *testing.T, client *clientv3.Client) int64 {
	t.Helper()
	got, err := client.Get(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	return got.Header.Revision
}

func checkDeletion(ctx context.Context, t *testing.T, server *harness.Server, before int64, lease clientv3.LeaseID, acknowledged bool) {
	t.Helper()
	client := server.Client(t)
	defer client.Close()
	count := func(options ...clientv3.OpOption) int64 {
		options = append(options, clientv3.WithPrefix(), clientv3.WithCountOnly())
		got, err := client.Get(ctx, "k", options...)
		if err != nil {
			t.Fatal(err)
		}
		return got.Count
	}
	left, now := count(), head(ctx, t, client)
	if left == deletedKeys && now == before && !acknowledged {
		return
	}
	if left != 0 || now != before+1 {
		t.Fatalf("%d keys are left at revision %d, behind %d; acknowledged: %v", left, now, before, acknowledged)
	}
	if was := count(clientv3.WithRev(before)); was != deletedKeys {
		t.Errorf("%d keys at the revision before", was)
	}
	// A lease that is gone has no time to live; one whose keys were deleted has no keys.
	about, err := client.TimeToLive(ctx, lease, clientv3.WithAttachedKeys())
	if err != nil || len(about.Keys) > 0 {
		t.Errorf("the lease has %d keys: %v", len(about.Keys), err)
	}
	deleted := map[string]bool{}
	for response := range client.Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithRev(before+1), clientv3.WithFragment()) {
		if err := response.Err(); err != nil {
			t.Fatal(err)
		}
		for _, event := range response.Events {
			key := string(event.Kv.Key)
			if event.Type != clientv3.EventTypeDelete || event.Kv.ModRevision != before+1 || deleted[key] {
				t.Fatalf("an event %v of %s", event, key)
			}
			deleted[key] = true
		}
		if len(deleted) == deletedKeys {
			return
		}
	}
	t.Fatalf("%d keys were reported as deleted", len(deleted))
}
