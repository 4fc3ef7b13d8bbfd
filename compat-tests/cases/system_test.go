package cases

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// Flags that ask something of the operating system: what it says of the process
// afterwards is what they are judged by.

// Two members of different clusters may have one port where both say so, and not otherwise.
func TestPortsAreSharedWhereAsked(t *testing.T) {
	t.Parallel()
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		port, err := harness.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		begin := func(flags ...string) *harness.Server {
			return harness.Begin(t, kind, harness.Options{Flags: flags, ClientPort: port})
		}
		ready := func(server *harness.Server) bool {
			return strings.Contains(server.LogTail(1000), "ready to serve client requests")
		}
		const shared = "--socket-reuse-port"
		both := []*harness.Server{begin(shared), begin(shared)}
		for deadline := time.Now().Add(30 * time.Second); !ready(both[0]) || !ready(both[1]); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: two do not share a port:\n%s\n%s", kind, both[0].LogTail(3), both[1].LogTail(3))
			}
		}
		third := begin()
		select {
		case <-third.Exited():
			if tail := third.LogTail(20); !strings.Contains(tail, "address already in use") {
				t.Errorf("%s: a third one ends for another reason:\n%s", kind, tail)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("%s: one that does not share has the port of others", kind)
		}
		for _, server := range both {
			if !server.Running() {
				t.Errorf("%s: one of two has ended:\n%s", kind, server.LogTail(5))
			}
		}
	}
}

var locked = regexp.MustCompile(`(?m)^VmLck:\s*(\d+) kB$`)

func lockedKiB(t *testing.T, server *harness.Server) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", server.PID()))
	if err != nil {
		t.Fatal(err)
	}
	found := locked.FindSubmatch(status)
	if found == nil {
		t.Fatalf("the kernel does not say what is locked:\n%s", status)
	}
	size, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return size
}

func TestMemoryIsLocked(t *testing.T) {
	t.Parallel()
	var limit syscall.Rlimit
	const memlock = 8 // RLIMIT_MEMLOCK
	if err := syscall.Getrlimit(memlock, &limit); err != nil {
		t.Fatal(err)
	}
	unlimited := limit.Cur == ^uint64(0)
	if os.Geteuid() != 0 && !unlimited {
		t.Skip("this user may not lock the memory of a process")
	}
	plain := harness.Start(t, harness.Etched, harness.Options{})
	if size := lockedKiB(t, plain); size != 0 {
		t.Errorf("without the flag %d KiB are locked", size)
	}
	with := harness.Start(t, harness.Etched, harness.Options{Flags: []string{"--memory-mlock"}})
	if size := lockedKiB(t, with); size == 0 {
		t.Error("with the flag nothing is locked")
	}
}

// A member that may lock some of its memory says so, and does not die of it later.
func TestMemoryThatMayNotBeLocked(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("setpriv"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and setpriv, to start one that may not")
	}
	binary, err := harness.Binary(harness.Etched)
	if err != nil {
		t.Fatal(err)
	}
	bounded := filepath.Join(t.TempDir(), "etched")
	script := fmt.Sprintf("#!/bin/sh\nulimit -l 64\nexec setpriv --bounding-set=-ipc_lock -- %s \"$@\"\n", binary)
	if err := os.WriteFile(bounded, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	server := harness.Begin(t, harness.Etched, harness.Options{Binary: bounded, Flags: []string{"--memory-mlock"}})
	select {
	case <-server.Exited():
	case <-time.After(30 * time.Second):
		t.Fatalf("it runs:\n%s", server.LogTail(5))
	}
	if tail := server.LogTail(20); !strings.Contains(tail, "--memory-mlock: this process may lock 65536 bytes only") {
		t.Errorf("it ends with\n%s", tail)
	}
}
