package cases

import (
	"fmt"
	"net"
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
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
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

// listeners are the flags of what a member listens on, each with a port.
var listeners = []string{"--listen-client-urls", "--listen-peer-urls", "--listen-metrics-urls"}

// A port that another process has ends a start at once, and by one line that names it: also
// where only one of the two shares, and whatever is said of its address.
func TestPortsThatAreTaken(t *testing.T) {
	t.Parallel()
	for _, listener := range listeners {
		for _, options := range [][2][]string{
			{nil, nil},
			{{"--socket-reuse-address"}, {"--socket-reuse-address"}},
			{{"--socket-reuse-port"}, {"--socket-reuse-address"}},
			{nil, {"--socket-reuse-port"}},
		} {
			var said [2]string
			for i, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
				port, err := harness.FreePort()
				if err != nil {
					t.Fatal(err)
				}
				place := fmt.Sprintf("%s=http://127.0.0.1:%d", listener, port)
				begin := func(flags []string) *harness.Server {
					return harness.Begin(t, kind, harness.Options{Flags: append([]string{place}, flags...)})
				}
				first := begin(options[0])
				listens(t, port)
				second := begin(options[1])
				select {
				case <-second.Exited():
				case <-time.After(30 * time.Second):
					t.Fatalf("%s %v: a second one has the port of the first", kind, options)
				}
				lines, err := second.Log()
				if err != nil {
					t.Fatal(err)
				}
				last := lines[len(lines)-1]
				reason, _ := last["error"].(string)
				said[i] = fmt.Sprintf("exit %d, %v: %v", second.ProcessState().ExitCode(), last["level"],
					strings.ReplaceAll(reason, strconv.Itoa(port), "PORT"))
				if !first.Running() {
					t.Errorf("%s %v: the first has ended:\n%s", kind, options, first.LogTail(5))
				}
			}
			if want := "exit 1, fatal: listen tcp 127.0.0.1:PORT: bind: address already in use"; said[0] != want || said[1] != want {
				t.Errorf("%s %v: etched says %q, etcd %q", listener, options, said[0], said[1])
			}
		}
	}
}

// listens waits until something takes connections at a port.
func listens(t *testing.T, port int) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = conn.Close()
			return
		}
		last = err
	}
	t.Fatal(last)
}

// Two that share a port have some of its connections each, and what one leaves is the other's.
func TestSharedPortsAreServedByBoth(t *testing.T) {
	t.Parallel()
	const connections = 64
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		for _, listener := range listeners[1:] {
			port, err := harness.FreePort()
			if err != nil {
				t.Fatal(err)
			}
			place := fmt.Sprintf("%s=http://127.0.0.1:%d", listener, port)
			for range 2 {
				harness.Start(t, kind, harness.Options{Flags: []string{"--socket-reuse-port", place}})
			}
		}
		port, err := harness.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		var both []*harness.Server
		for _, name := range []string{"one", "two"} {
			both = append(both, harness.Start(t, kind, harness.Options{
				Name: name, Flags: []string{"--socket-reuse-port", "--socket-reuse-address"}, ClientPort: port,
			}))
		}
		served := func() map[string]int {
			t.Helper()
			found := make(map[string]int)
			for range connections {
				conn := both[0].Dial(t)
				members, err := pb.NewClusterClient(conn).MemberList(harness.Context(t, harness.CallLimit), &pb.MemberListRequest{})
				if err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
				_ = conn.Close()
				found[members.Members[0].Name]++
			}
			return found
		}
		if found := served(); found["one"] == 0 || found["two"] == 0 {
			t.Errorf("%s: of %d connections there are %v", kind, connections, found)
		}
		if err := both[1].Stop(); err != nil {
			t.Fatal(err)
		}
		if found := served(); found["one"] != connections {
			t.Errorf("%s: with one of them there are %v", kind, found)
		}
		// Connections that its last run has closed hold up no start.
		if err := both[1].Restart(); err != nil {
			t.Fatal(err)
		}
		if found := served(); found["one"] == 0 || found["two"] == 0 {
			t.Errorf("%s: with both again there are %v", kind, found)
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
