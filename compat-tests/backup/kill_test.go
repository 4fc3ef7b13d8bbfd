package backup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

// A restore that is killed, at whatever moment, leaves no directory that a member
// would start on, and the next one works beside what it left.
func TestKilledRestores(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	content := newContent(t, server, 4)
	ctx := harness.Context(t, limit)
	for i := range 100 {
		var puts []clientv3.Op
		for j := range 100 {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("key%d", (i*100+j)%3000), strings.Repeat("v", 300)))
		}
		if _, err := content.client.Txn(ctx).Then(puts...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	path := save(t, content.client)
	parent := t.TempDir()
	dir := filepath.Join(parent, "data")
	restore := func() *exec.Cmd {
		binary, err := harness.Binary(harness.Etched)
		if err != nil {
			t.Fatal(err)
		}
		return exec.Command(binary, "restore", path, "--data-dir", dir,
			"--initial-cluster", "default="+harness.AdvertisedPeerURL, "--initial-advertise-peer-urls", harness.AdvertisedPeerURL)
	}
	whole := func() bool {
		t.Helper()
		if _, err := os.Stat(dir); os.IsNotExist(err) {
			return false
		}
		binary, err := harness.Binary(harness.Etched)
		if err != nil {
			t.Fatal(err)
		}
		if output, err := exec.Command(binary, "check", dir).CombinedOutput(); err != nil {
			t.Fatalf("left a directory that is not whole: %v\n%s", err, output)
		}
		return true
	}
	began := time.Now()
	if output, err := restore().CombinedOutput(); err != nil || !whole() {
		t.Fatalf("%v: %s", err, output)
	}
	took := time.Since(began)
	interrupted := 0
	for round := range 30 {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		command := restore()
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(content.random.Int64N(int64(took) * 11 / 10)))
		_ = command.Process.Kill()
		killed := command.Wait() != nil
		if done := whole(); !killed && !done {
			t.Fatalf("round %d: ended well and left nothing", round)
		}
		if left, err := filepath.Glob(filepath.Join(parent, "*.restoring")); err != nil {
			t.Fatal(err)
		} else if len(left) > 0 {
			interrupted++
		}
	}
	if interrupted == 0 {
		t.Error("no restore was interrupted in its work")
	}
	t.Logf("%d of 30 restores left something", interrupted)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if output, err := restore().CombinedOutput(); err != nil || !whole() {
		t.Fatalf("behind all of them: %v: %s", err, output)
	}
	left, err := os.ReadDir(parent)
	if err != nil || len(left) != 1 {
		t.Errorf("%v is beside the directory, %v", left, err)
	}
	compare(t, content, harness.Start(t, harness.Etched, harness.Options{DataDir: dir}))
}

// What was restored without skipped revisions says when to skip some, and a
// directory of a member that is in the way does.
func TestAdviceToSkipRevisions(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	path := save(t, newContent(t, server, 5).client)
	const advice = "--bump-revision 1000000000 --mark-compacted"
	dir := filepath.Join(t.TempDir(), "data")
	for _, want := range []struct {
		dir, says string
		flags     []string
		fails     bool
	}{
		{dir, "no revisions were skipped; if the old cluster kept running after the file was saved", nil, false},
		{dir, "not empty or could not be read; move it away", nil, true},
		{filepath.Join(t.TempDir(), "other"), "", strings.Fields(advice), false},
	} {
		output, err := etchedRestore(path, want.dir, want.flags...)
		if want.fails != (err != nil) || want.says != "" && !strings.Contains(output, want.says) ||
			strings.Contains(output, advice) != (want.flags == nil) {
			t.Errorf("%v: %v: %s", want, err, output)
		}
	}
}
