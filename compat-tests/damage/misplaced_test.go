package damage

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"etched.dev/compat-tests/harness"
)

// A state that belongs to another cluster is not taken for this member's own, even
// where the raft log would go on from it.
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
	own, foreign := filepath.Join(server.DataDir(), "member", "state"), filepath.Join(other.DataDir(), "member", "state")
	if err := os.Rename(own, filepath.Join(server.DataDir(), "member", "state.aside")); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.Command("cp", "-a", foreign, own).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	before := sums(t, server.DataDir())
	says(t, refused(t, args(t, server.DataDir())...), "the state is of cluster", "put this member's own state back")
	unchanged(t, server, before)
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
