package offline

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

const limit = 60 * time.Second

// etched runs a command, and answers what it printed and said, and its status.
func etched(t *testing.T, args ...string) (output, said string, status int) {
	t.Helper()
	binary, err := harness.Binary(harness.Etched)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(binary, args...)
	var stdout, stderr strings.Builder
	command.Stdout, command.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := command.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return stdout.String(), stderr.String(), command.ProcessState.ExitCode()
}

// succeeds is etched of what must not fail.
func succeeds(t *testing.T, args ...string) string {
	t.Helper()
	output, said, status := etched(t, args...)
	if status != 0 {
		t.Fatalf("etched %s: status %d\n%s%s", strings.Join(args, " "), status, output, said)
	}
	return output
}

// files are the contents of a directory, with the times of the last change.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		content := []byte(nil)
		if !entry.IsDir() {
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		found[path] = fmt.Sprintf("%x %v %v", sha256.Sum256(content), info.ModTime(), info.Mode())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// unchanged fails where anything in the directory is not as it was.
func unchanged(t *testing.T, dir string, before map[string]string) {
	t.Helper()
	after := files(t, dir)
	for path, content := range before {
		if after[path] != content {
			t.Errorf("%s was %q, is %q", path, content, after[path])
		}
	}
	for path := range after {
		if _, there := before[path]; !there {
			t.Errorf("%s is new", path)
		}
	}
}

// filled is a member with a history: keys that were overwritten, deleted, attached
// to a lease, and compacted in part.
func filled(t *testing.T) *harness.Server {
	t.Helper()
	server := harness.Start(t, harness.Etched, harness.Options{})
	client := server.Client(t)
	ctx := harness.Context(t, limit)
	lease, err := client.Grant(ctx, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var last int64
	for i := range 300 {
		key := fmt.Sprintf("key%02d", i%50)
		options := []clientv3.OpOption{}
		if i%7 == 0 {
			options = append(options, clientv3.WithLease(lease.ID))
		}
		put, err := client.Put(ctx, key, strings.Repeat("v", i*17%3000), options...)
		if err != nil {
			t.Fatal(err)
		}
		last = put.Header.Revision
		if i%11 == 0 {
			if _, err := client.Delete(ctx, key); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := client.Compact(ctx, last-100, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	return server
}

func save(t *testing.T, server *harness.Server) string {
	t.Helper()
	stream, err := server.Client(t).Snapshot(harness.Context(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(stream)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "snapshot.db")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Of a snapshot, of either server, etched prints what etcdutl prints.
func TestStatusOfSnapshots(t *testing.T) {
	t.Parallel()
	etcdutl, err := harness.Etcdutl()
	if err != nil {
		t.Fatal(err)
	}
	etcd := harness.Start(t, harness.Etcd, harness.Options{})
	for i := range 20 {
		if _, err := etcd.Client(t).Put(harness.Context(t, limit), fmt.Sprintf("key%d", i%15), "value"); err != nil {
			t.Fatal(err)
		}
	}
	ofEtcd, bumped := save(t, etcd), filepath.Join(t.TempDir(), "bumped")
	restore := exec.Command(etcdutl, "snapshot", "restore", ofEtcd, "--data-dir", bumped, "--bump-revision", "1000", "--mark-compacted")
	if output, err := restore.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	for name, path := range map[string]string{
		"etched": save(t, filled(t)), "etcd": ofEtcd, "bumped": filepath.Join(bumped, "member", "snap", "db"),
	} {
		for _, format := range []string{"simple", "table", "json", "fields"} {
			want, err := exec.Command(etcdutl, "snapshot", "status", path, "-w", format).Output()
			if err != nil {
				t.Fatal(err)
			}
			if got := succeeds(t, "status", path, "-w", format); got != string(want) {
				t.Errorf("%s, %s: etcdutl says\n%setched\n%s", name, format, want, got)
			}
		}
	}
}

// memberStatus is what `etched status` says of a directory.
type memberStatus struct {
	HashKV                                         uint32
	Revision, TotalKey, CompactRevision, TotalSize int64
	AppliedIndex, LastIndex                        uint64
	Member, Cluster, Version                       string
}

// What is said of a stopped member is what it said of itself.
func TestStatusOfAMember(t *testing.T) {
	t.Parallel()
	server := filled(t)
	client := server.Client(t)
	ctx := harness.Context(t, limit)
	hash, err := client.HashKV(ctx, server.Endpoint(), 0)
	if err != nil {
		t.Fatal(err)
	}
	count, err := client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	dir := server.DataDir()
	if _, said, status := etched(t, "status", dir); status != 1 || !strings.Contains(said, "in use by a running member") {
		t.Errorf("beside the member: status %d, %q", status, said)
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	before := files(t, dir)
	var got memberStatus
	if err := json.Unmarshal([]byte(succeeds(t, "status", dir, "-w", "json")), &got); err != nil {
		t.Fatal(err)
	}
	if got.HashKV != hash.Hash || got.Revision != hash.Header.Revision || got.TotalKey != count.Count ||
		got.CompactRevision != hash.CompactRevision || got.Version != "3.7.0" || got.TotalSize == 0 ||
		got.Member != fmt.Sprintf("%x", hash.Header.MemberId) || got.Cluster != fmt.Sprintf("%x", hash.Header.ClusterId) {
		t.Errorf("%+v, but the member said %v and had %d keys", got, hash, count.Count)
	}
	if got.AppliedIndex != got.LastIndex {
		t.Errorf("a member that was stopped has not applied its log: %+v", got)
	}
	for _, format := range []string{"simple", "table", "fields"} {
		if output := succeeds(t, "status", dir, "-w", format); !strings.Contains(output, fmt.Sprint(got.HashKV)) {
			t.Errorf("%s: %s", format, output)
		}
	}
	unchanged(t, dir, before)
}

// A member that was killed has a log that is ahead of its state, and nothing is
// wrong with that.
func TestAKilledMember(t *testing.T) {
	t.Parallel()
	server := filled(t)
	if _, err := server.Client(t).UserAdd(harness.Context(t, limit), "bob", "hunter2"); err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	dir := server.DataDir()
	before := files(t, dir)
	if log := succeeds(t, "log", dir); !strings.Contains(log, `AuthUserAddRequest { name: \"bob\"`) || strings.Contains(log, "hunter2") {
		t.Errorf("the log does not name the user, or shows a password:\n%s", log)
	}
	output := succeeds(t, "check", dir)
	for _, words := range []string{"raft log: entries 2 to ", "state: revision ", "whole"} {
		if !strings.Contains(output, words) {
			t.Errorf("check does not say %q:\n%s", words, output)
		}
	}
	succeeds(t, "status", dir)
	// Every entry is there, in order, with what it asked for.
	next, puts := uint64(2), 0
	lines := bufio.NewScanner(strings.NewReader(succeeds(t, "log", dir)))
	for lines.Scan() {
		var line struct {
			Term, Index   uint64
			Type, Request string
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}
		if line.Index != next || line.Term == 0 || line.Type == "" {
			t.Fatalf("entry %d is due: %s", next, lines.Text())
		}
		if strings.Contains(line.Request, "put:<key:\"key") {
			puts++
		}
		next++
	}
	if puts != 300 {
		t.Errorf("the log has %d puts of 300", puts)
	}
	if output := succeeds(t, "log", dir, "--from", "5", "--to", "6"); strings.Count(output, "\n") != 2 {
		t.Errorf("two entries:\n%s", output)
	}
	unchanged(t, dir, before)
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
}

// A compacted directory is smaller, holds the same, and serves.
func TestCompact(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	client := server.Client(t)
	ctx := harness.Context(t, limit)
	var last int64
	for i := range 400 {
		put, err := client.Put(ctx, fmt.Sprintf("key%02d", i%10), strings.Repeat(fmt.Sprint(i), 3000))
		if err != nil {
			t.Fatal(err)
		}
		last = put.Header.Revision
		if i == 200 {
			// What is flushed lies in the files that are compacted.
			if err := server.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := server.Restart(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := client.Compact(ctx, last, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	hash, err := client.HashKV(ctx, server.Endpoint(), 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := server.DataDir()
	if _, said, status := etched(t, "compact", dir); status != 1 || !strings.Contains(said, "in use by a running member") {
		t.Errorf("beside the member: status %d, %q", status, said)
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	var before, after memberStatus
	for at, status := range []*memberStatus{&before, &after} {
		if at == 1 {
			succeeds(t, "compact", dir)
		}
		if err := json.Unmarshal([]byte(succeeds(t, "status", dir, "-w", "json")), status); err != nil {
			t.Fatal(err)
		}
	}
	if after.HashKV != hash.Hash || after.Revision != before.Revision || after.TotalSize >= before.TotalSize {
		t.Errorf("before %+v, after %+v, the member had the hash %d", before, after, hash.Hash)
	}
	succeeds(t, "check", dir)
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	again, err := client.HashKV(ctx, server.Endpoint(), 0)
	if err != nil || again.Hash != hash.Hash {
		t.Errorf("the hash was %v, is %v, %v", hash, again, err)
	}
}

func only(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		t.Fatalf("no file %s: %v", pattern, err)
	}
	return found[0]
}

func flip(t *testing.T, path string, at func(size int) int) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content[at(len(content))] ^= 0x10
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// Damage is named with the file that has it, and what is damaged stays as it is.
func TestDamage(t *testing.T) {
	t.Parallel()
	whole := filled(t)
	if err := whole.Stop(); err != nil {
		t.Fatal(err)
	}
	// The largest has the versions.
	largest := func(t *testing.T, dir string) string {
		found, err := filepath.Glob(filepath.Join(dir, "member", "state", "*.sst"))
		if err != nil || len(found) == 0 {
			t.Fatalf("no files of the engine: %v", err)
		}
		size := func(path string) int64 {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			return info.Size()
		}
		best := found[0]
		for _, path := range found {
			if size(path) > size(best) {
				best = path
			}
		}
		return best
	}
	member := func(names ...string) func(string) string {
		return func(dir string) string { return filepath.Join(append([]string{dir, "member"}, names...)...) }
	}
	segment := func(dir string) string { return member("wal")(dir) }
	for name, damage := range map[string]struct {
		harm func(t *testing.T, dir string)
		says string
	}{
		"a bit of the log": {func(t *testing.T, dir string) {
			flip(t, only(t, filepath.Join(segment(dir), "*1.raftlog")), func(int) int { return 9000 })
		}, "1.raftlog is damaged at byte"},
		"no log":           {func(t *testing.T, dir string) { remove(t, segment(dir)) }, "raft log"},
		"no segment":       {func(t *testing.T, dir string) { remove(t, only(t, filepath.Join(segment(dir), "*1.raftlog"))) }, "raft log"},
		"a bit of a table": {func(t *testing.T, dir string) { flip(t, largest(t, dir), func(size int) int { return size / 3 }) }, ".sst"},
		"no table":         {func(t *testing.T, dir string) { remove(t, largest(t, dir)) }, ".sst"},
		"no state":         {func(t *testing.T, dir string) { remove(t, member("state")(dir)) }, "state"},
		"no manifest": {func(t *testing.T, dir string) {
			remove(t, only(t, filepath.Join(member("state")(dir), "MANIFEST-*")))
		}, "MANIFEST"},
		"an identity without a member": {func(t *testing.T, dir string) {
			if err := os.WriteFile(member("IDENTITY")(dir), []byte("format 1\ncluster 1\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "it has no line for member"},
		"another member's identity": {func(t *testing.T, dir string) {
			if err := os.WriteFile(member("IDENTITY")(dir), []byte("format 1\ncluster 1\nmember 2\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "belongs to member"},
		"no identity": {func(t *testing.T, dir string) { remove(t, member("IDENTITY")(dir)) }, "its IDENTITY file is missing"},
		"a newer format": {func(t *testing.T, dir string) {
			if err := os.WriteFile(member("IDENTITY")(dir), []byte("format 99\ncluster 1\nmember 2\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "format 99"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := copied(t, whole.DataDir())
			succeeds(t, "check", dir)
			damage.harm(t, dir)
			before := files(t, dir)
			output, said, status := etched(t, "check", dir)
			if status != 1 || !strings.Contains(output+said, damage.says) || !strings.HasPrefix(said, "etched check: ") {
				t.Errorf("status %d, does not say %q:\n%s%s", status, damage.says, output, said)
			}
			_, said, status = etched(t, "compact", dir)
			if status != 1 || strings.Count(said, "\n") != 1 {
				t.Errorf("compact: status %d: %s", status, said)
			}
			for _, command := range []string{"status", "log"} {
				// What is damaged need not be what they read.
				if _, said, status := etched(t, command, dir); status == 1 && strings.Count(said, "\n") != 1 || status > 1 {
					t.Errorf("%s: status %d: %s", command, status, said)
				}
			}
			unchanged(t, dir, before)
		})
	}
}

// copied is a copy of a directory.
func copied(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "data")
	if output, err := exec.Command("cp", "-a", dir, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return to
}

// What is no directory of a member is refused in one sentence.
func TestForeignPaths(t *testing.T) {
	t.Parallel()
	etcd := harness.Start(t, harness.Etcd, harness.Options{})
	if err := etcd.Stop(); err != nil {
		t.Fatal(err)
	}
	empty, file := t.TempDir(), filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, refused := range []struct{ command, path, says string }{
		{"status", etcd.DataDir(), "holds the data of an etcd, not of etched; `etched status "},
		{"check", etcd.DataDir(), "holds the data of an etcd"},
		{"log", empty, "is no data directory of etched"},
		{"compact", empty, "is no data directory of etched"},
		{"status", empty, "is no data directory of etched"},
		{"status", filepath.Join(empty, "none"), "is no data directory of etched"},
		{"status", file, "it is not a bbolt database"},
		{"check", file, "is no data directory of etched"},
	} {
		output, said, status := etched(t, refused.command, refused.path)
		if status != 1 || output != "" || !strings.Contains(said, refused.says) || strings.Count(said, "\n") != 1 {
			t.Errorf("%s %s: status %d, %q: %s%s", refused.command, refused.path, status, refused.says, output, said)
		}
	}
	if left, err := os.ReadDir(empty); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
