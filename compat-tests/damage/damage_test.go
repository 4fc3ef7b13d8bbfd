// Package damage starts etched on data directories that it must not use as they
// are: taken, unreadable, of a newer format, damaged. Each gets one sentence and
// an exit, and nothing in the directory changes.
package damage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

const limit = 20 * time.Second

// stopped is a member that was killed after some writes, so that both the raft
// log and, for flush, files of the engine hold something.
func stopped(t *testing.T, flush bool) *harness.Server {
	t.Helper()
	server := harness.Start(t, harness.Etched, harness.Options{})
	client := server.Client(t)
	ctx := harness.Context(t, limit)
	for i := range 50 {
		if _, err := client.Put(ctx, fmt.Sprintf("key%03d", i), strings.Repeat("v", 3000)); err != nil {
			t.Fatal(err)
		}
	}
	stop := server.Kill
	if flush {
		stop = server.Stop
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	return server
}

// refused starts the member by hand and returns what it said before it gave up.
func refused(t *testing.T, args ...string) string {
	t.Helper()
	binary, err := harness.Binary(harness.Etched)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	command := exec.CommandContext(ctx, binary, args...)
	output, err := command.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("started where it should have refused to:\n%s", output)
	}
	if err == nil || command.ProcessState.ExitCode() != 1 {
		t.Fatalf("ended with %v, not with status 1:\n%s", err, output)
	}
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	return lines[len(lines)-1]
}

// args are those of a member on this data directory and ports of its own.
func args(t *testing.T, dataDir string) []string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + listener.Addr().String()
	listener.Close()
	return []string{"--data-dir", dataDir, "--listen-client-urls", url, "--advertise-client-urls", url}
}

// sums are the contents of all files of a directory, but for the lock.
func sums(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	found := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || entry.Name() == "LOCK" || strings.Contains(path, "/state/") {
			return err
		}
		content, err := os.ReadFile(path)
		found[path] = sha256.Sum256(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// edit rewrites a file.
func edit(t *testing.T, path string, change func([]byte)) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	change(content)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
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

func says(t *testing.T, line string, words ...string) {
	t.Helper()
	if !strings.Contains(line, `"level":"fatal"`) {
		t.Errorf("the last line is not fatal: %s", line)
	}
	for _, word := range words {
		if !strings.Contains(line, word) {
			t.Errorf("does not say %q: %s", word, line)
		}
	}
}

func TestTakenDirectory(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	says(t, refused(t, args(t, server.DataDir())...), "in use by another process", "--data-dir")
}

func TestTakenPort(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	line := refused(t, "--data-dir", t.TempDir(), "--listen-client-urls", server.URL(), "--advertise-client-urls", server.URL())
	says(t, line, "listen tcp "+server.Endpoint()+": bind: address already in use")
}

func TestFileInPlaceOfDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	says(t, refused(t, args(t, file)...), file, "is a directory")
	if content, _ := os.ReadFile(file); string(content) != "mine" {
		t.Errorf("the file changed: %q", content)
	}
}

// A directory that an etcd uses is left to it. (Which others are refused is tried in
// package backup.)
func TestDirectoryOfARunningEtcd(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etcd, harness.Options{})
	says(t, refused(t, args(t, server.DataDir())...), "an etcd runs on it")
	if _, err := server.Client(t).Put(harness.Context(t, 5*time.Second), "a", "1"); err != nil {
		t.Errorf("etcd cannot use its directory any more: %v", err)
	}
}

func TestNewerFormat(t *testing.T) {
	t.Parallel()
	server := stopped(t, true)
	identity := filepath.Join(server.DataDir(), "member", "IDENTITY")
	edit(t, identity, func(content []byte) { copy(content, bytes.Replace(content, []byte("format 1"), []byte("format 9"), 1)) })
	before := sums(t, server.DataDir())
	says(t, refused(t, args(t, server.DataDir())...), "format 9", "newer etched")
	unchanged(t, server, before)
}

func TestMissingIdentity(t *testing.T) {
	t.Parallel()
	server := stopped(t, true)
	if err := os.Remove(filepath.Join(server.DataDir(), "member", "IDENTITY")); err != nil {
		t.Fatal(err)
	}
	before := sums(t, server.DataDir())
	says(t, refused(t, args(t, server.DataDir())...), "the raft log")
	unchanged(t, server, before)
}

func unchanged(t *testing.T, server *harness.Server, before map[string][32]byte) {
	t.Helper()
	after := sums(t, server.DataDir())
	for path, sum := range before {
		if after[path] != sum {
			t.Errorf("%s changed", path)
		}
	}
	if len(after) != len(before) {
		t.Errorf("%d files became %d", len(before), len(after))
	}
}

// used are the bytes of a segment up to the last that is not zero.
func used(content []byte) int {
	return len(bytes.TrimRight(content, "\x00"))
}

// A bit that flipped in the raft log is damage to what was acknowledged, in the
// middle as at the end.
func TestFlippedBitInTheLog(t *testing.T) {
	t.Parallel()
	for name, where := range map[string]func(int) int{
		"head":   func(int) int { return 20 },
		"middle": func(used int) int { return used / 2 },
		"tail":   func(used int) int { return used - 5 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := stopped(t, false)
			segment := only(t, filepath.Join(server.DataDir(), "member", "wal", "*1.raftlog"))
			edit(t, segment, func(content []byte) { content[where(used(content))] ^= 0x10 })
			before := sums(t, server.DataDir())
			says(t, refused(t, args(t, server.DataDir())...), segment, "damaged")
			unchanged(t, server, before)
		})
	}
}

// A damaged file of the engine is noticed at the latest when it is read, and
// ends the member: a wrong answer would be worse.
func TestFlippedBitInTheState(t *testing.T) {
	t.Parallel()
	server := stopped(t, true)
	files, err := filepath.Glob(filepath.Join(server.DataDir(), "member", "state", "*.sst"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files of the engine: %v", err)
	}
	for _, file := range files {
		edit(t, file, func(content []byte) {
			for at := 64; at < len(content); at += 4096 {
				content[at] ^= 0x10
			}
		})
	}
	if err := server.Spawn(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(limit)
	client, err := server.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for server.Running() && time.Now().Before(deadline) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		got, err := client.Get(ctx, "key", clientv3.WithPrefix())
		cancel()
		if err == nil && got.Count != 50 {
			t.Fatalf("a damaged store answered with %d keys", got.Count)
		}
	}
	if server.Running() {
		t.Fatal("the member keeps running with a damaged store")
	}
	line := server.LogTail(1)
	says(t, line, "damaged", "backup")
}
