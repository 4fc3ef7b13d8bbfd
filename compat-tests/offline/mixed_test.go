package offline

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
)

// A state that has applied entries which its raft log does not have, of which one is of another
// day, is a problem that names both numbers, and no member starts on it.
func TestAStateAheadOfItsLog(t *testing.T) {
	t.Parallel()
	server := filled(t)
	// The directory as it is now, and its last entry.
	stop := func() (dir string, last uint64) {
		if err := server.Stop(); err != nil {
			t.Fatal(err)
		}
		dir = copied(t, server.DataDir())
		var status memberStatus
		if err := json.Unmarshal([]byte(succeeds(t, "status", dir, "-w", "json")), &status); err != nil {
			t.Fatal(err)
		}
		if status.AppliedIndex != status.LastIndex {
			t.Fatalf("a member that was stopped has not applied its log: %+v", status)
		}
		return dir, status.LastIndex
	}
	old, oldLast := stop()
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		if _, err := server.Client(t).Put(harness.Context(t, limit), "later", "x"); err != nil {
			t.Fatal(err)
		}
	}
	recent, recentLast := stop()
	exchange := func(name string) {
		t.Helper()
		remove(t, filepath.Join(recent, "member", name))
		if err := os.Rename(filepath.Join(old, "member", name), filepath.Join(recent, "member", name)); err != nil {
			t.Fatal(err)
		}
	}
	exchange("wal")
	before := files(t, recent)
	says := fmt.Sprintf("the raft log ends at entry %d, but entry %d was applied: a part of the log is missing", oldLast, recentLast)
	output, said, status := etched(t, "check", recent)
	if status != 1 || said != "etched check: problems found: 1\n" || strings.Count(output, "raft log and state: "+says) != 1 {
		t.Errorf("status %d, %q, wanted %q:\n%s", status, said, says, output)
	}
	unchanged(t, recent, before)
	server.Use(recent)
	if err := server.Restart(); err == nil || !strings.Contains(server.LogTail(1), says) {
		t.Errorf("it starts: %v\n%s", err, server.LogTail(1))
	}
	// With a state of the same day it is as it was.
	exchange("state")
	succeeds(t, "check", recent)
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
}
