package damage

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
)

// A state that belongs to another cluster is not taken for this member's own, even
// where the raft log would continue from it.
func TestStateOfAnotherCluster(t *testing.T) {
	t.Parallel()
	server := stopped(t, true)
	other := harness.Start(t, harness.Etched, harness.Options{Flags: []string{"--initial-cluster-token", "another"}})
	if _, err := other.Client(t).Put(harness.Context(t, limit), "key000", "another cluster's"); err != nil {
		t.Fatal(err)
	}
	if err := other.Stop(); err != nil {
		t.Fatal(err)
	}
	replaceState(t, server.DataDir(), other.DataDir())
	before := sums(t, server.DataDir())
	says(t, refused(t, args(t, server.DataDir())...), "the state is of cluster", "put this member's own state back")
	unchanged(t, server, before)
}

// replaceState puts a directory's own state aside, and a copy of another's in its place.
func replaceState(t *testing.T, of, by string) {
	t.Helper()
	own, foreign := filepath.Join(of, "member", "state"), filepath.Join(by, "member", "state")
	if err := os.Rename(own, filepath.Join(of, "member", "aside")); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.Command("cp", "-a", foreign, own).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
}

// restoreState puts the own state back.
func restoreState(t *testing.T, dir string) {
	t.Helper()
	own, aside := filepath.Join(dir, "member", "state"), filepath.Join(dir, "member", "aside")
	if err := errors.Join(os.RemoveAll(own), os.Rename(aside, own)); err != nil {
		t.Fatal(err)
	}
}

// A state of another member of the same cluster fits any member's raft log, and is
// refused all the same: it is not known what of the log it has.
func TestStateOfAnotherMember(t *testing.T) {
	t.Parallel()
	cluster := startThree(t)
	cluster.put(cluster.leader(), 20)
	members := cluster.Members()
	for _, member := range members {
		cluster.must(member.Stop())
	}
	dir := members[0].DataDir()
	replaceState(t, dir, members[1].DataDir())
	before := sums(t, dir)
	says(t, refused(t, args(t, dir)...), "the state is of member", "put this member's own state back")
	unchanged(t, members[0].Server, before)
	binary, err := harness.Binary(harness.Etched)
	cluster.must(err)
	output, err := exec.Command(binary, "check", dir).CombinedOutput()
	if err == nil || !strings.Contains(string(output), "the state is of member") {
		t.Errorf("check: %v: %s", err, output)
	}
	// One without a mark, which programs of before wrote, is taken and is marked then.
	restoreState(t, dir)
	mark := filepath.Join(dir, "member", "state", "OWNER")
	cluster.must(os.Remove(mark))
	for _, member := range members {
		cluster.must(member.Restart())
	}
	cluster.must(cluster.WaitHealthy(limit))
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("its own state has no mark: %v", err)
	}
}

// A member with an old name and a new directory is not the one that it was: a state of the
// old one may lack what the new one acknowledged.
func TestStateOfAnotherDirectory(t *testing.T) {
	t.Parallel()
	server := stopped(t, true)
	old := server.DataDir()
	server.Use(filepath.Join(t.TempDir(), "data"))
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Client(t).Put(harness.Context(t, limit), "key000", "of the new one"); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	// The old state has applied more, and the new log says so; the other way round the log
	// continues where the state ends.
	replaceState(t, old, server.DataDir())
	says(t, refused(t, args(t, old)...), "the state is of another data directory of this member")
}

// A member that was started before cannot be without a log.
func TestMissingLog(t *testing.T) {
	t.Parallel()
	server := stopped(t, true)
	if err := os.RemoveAll(filepath.Join(server.DataDir(), "member", "wal")); err != nil {
		t.Fatal(err)
	}
	says(t, refused(t, args(t, server.DataDir())...), "there is no raft log in", "--wal-dir", "add it again")
}

// A file named IDENTITY that holds no text was damaged; its owner has nothing to do with it.
func TestIdentityThatIsNoText(t *testing.T) {
	t.Parallel()
	server := stopped(t, true)
	edit(t, filepath.Join(server.DataDir(), "member", "IDENTITY"), func(content []byte) { content[len(content)-3] |= 0x80 })
	before := sums(t, server.DataDir())
	says(t, refused(t, args(t, server.DataDir())...), "IDENTITY is damaged", "backup")
	unchanged(t, server, before)
}

// A file system without inodes has no other process at work in it.
func TestNoInodesLeft(t *testing.T) {
	dir := t.TempDir()
	if output, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=200m,nr_inodes=12", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("no file system can be mounted here: %v: %s", err, output)
	}
	t.Cleanup(func() {
		if output, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, output)
		}
	})
	line := refused(t, args(t, filepath.Join(dir, "data"))...)
	says(t, line, "No space left on device", "inodes")
}
