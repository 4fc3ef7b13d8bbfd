package backup

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

// A start that takes an etcd's directory over, for as long as it takes, asks
// systemd for time and ends at a signal; the next one begins anew.
func TestSignalsEndATakeover(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etcd, harness.Options{})
	content := newContent(t, server, 40)
	content.changes(60)
	want := look(t, content.client, 0)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	systemd, name := notified(t)
	begin := func() *harness.Server {
		return harness.Begin(t, harness.Etched, harness.Options{DataDir: server.DataDir(), Env: []string{"NOTIFY_SOCKET=" + name}})
	}
	// The process that opens it waits until somebody writes to it.
	db := filepath.Join(server.DataDir(), "member", "snap", "db")
	if err := os.Rename(db, db+".away"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(db, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		member := begin()
		if heard := hear(t, systemd); !strings.HasPrefix(heard, "EXTEND_TIMEOUT_USEC=") {
			t.Errorf("systemd hears %q", heard)
		}
		if err := member.Signal(signal); err != nil {
			t.Fatal(err)
		}
		select {
		case <-member.Exited():
		case <-time.After(limit):
			t.Fatalf("it does not end at %v", signal)
		}
		if by := member.EndedBy(); by != signal {
			t.Errorf("it ended by %v, wanted %v: %s", by, signal, member.LogTail(10))
		}
	}
	if err := os.Rename(db+".away", db); err != nil {
		t.Fatal(err)
	}
	member := begin()
	if err := member.WaitReady(limit); err != nil {
		t.Fatal(err)
	}
	for _, says := range []string{"EXTEND_TIMEOUT_USEC=", "READY=1"} {
		if heard := hear(t, systemd); !strings.HasPrefix(heard, says) {
			t.Errorf("systemd hears %q, wanted %s", heard, says)
		}
	}
	want.compare(t, look(t, content.dial(member), want.revision))
}

// notified is a socket as systemd has it, and its name.
func notified(t *testing.T) (*net.UnixConn, string) {
	t.Helper()
	// The names of temporary directories are too long for one.
	dir, err := os.MkdirTemp("", "notify")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	name := filepath.Join(dir, "socket")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	return socket, name
}

func hear(t *testing.T, socket *net.UnixConn) string {
	t.Helper()
	if err := socket.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	heard := make([]byte, 100)
	n, err := socket.Read(heard)
	if err != nil {
		t.Fatal(err)
	}
	return string(heard[:n])
}

// A restore and an export that are interrupted in their work end by the signal and
// leave nothing.
func TestInterruptedCommands(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	content := newContent(t, server, 41)
	ctx := harness.Context(t, limit)
	for i := range 400 {
		var puts []clientv3.Op
		for j := range 100 {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("key%d", i*100+j), strings.Repeat("v", 100)))
		}
		if _, err := content.client.Txn(ctx).Then(puts...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	snapshot := save(t, content.client)
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	binary, err := harness.Binary(harness.Etched)
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{
		{"restore", snapshot, "--data-dir"},
		{"export", server.DataDir(), "--to"},
	} {
		t.Run(command[0], func(t *testing.T) {
			parent := t.TempDir()
			target := filepath.Join(parent, "data")
			interrupted := 0
			for round := 0; interrupted < 2 && round < 20; round++ {
				signal := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM}[interrupted%2]
				run := exec.Command(binary, append(command, target)...)
				var output bytes.Buffer
				run.Stdout, run.Stderr = &output, &output
				if err := run.Start(); err != nil {
					t.Fatal(err)
				}
				// Once it has begun, as long as it is not done.
				for len(found(t, parent, "*")) == 0 {
					time.Sleep(time.Millisecond)
				}
				_ = run.Process.Signal(signal)
				err := run.Wait()
				if err == nil {
					// It was too late.
					if err := os.RemoveAll(target); err != nil {
						t.Fatal(err)
					}
					continue
				}
				interrupted++
				status, _ := run.ProcessState.Sys().(syscall.WaitStatus)
				if status.Signal() != signal || !strings.HasSuffix(output.String(), command[0]+": interrupted\n") {
					t.Errorf("%v ended it with %v: %s", signal, err, output.String())
				}
				left := append(found(t, parent, "*"), found(t, server.DataDir(), "receiving*", "*/receiving*")...)
				if len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			}
			if interrupted < 2 {
				t.Error("it was never interrupted")
			}
		})
	}
}

// found lists what patterns find in a directory.
func found(t *testing.T, dir string, patterns ...string) []string {
	t.Helper()
	var all []string
	for _, pattern := range patterns {
		some, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, some...)
	}
	return all
}
