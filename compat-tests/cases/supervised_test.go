package cases

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// supervised is a server as an init system sees it.
type supervised struct {
	command *exec.Cmd
	log     bytes.Buffer
	metrics string
	// ready hears what is sent to NOTIFY_SOCKET.
	ready *net.UnixConn
}

// supervise starts a member of a cluster of so many new ones.
func supervise(t *testing.T, kind harness.Kind, members int) *supervised {
	t.Helper()
	return superviseAs(t, kind, members, &syscall.SysProcAttr{})
}

// superviseAs starts one with attributes of its process.
func superviseAs(t *testing.T, kind harness.Kind, members int, attributes *syscall.SysProcAttr) *supervised {
	t.Helper()
	binary, err := harness.Binary(kind)
	if err != nil {
		t.Fatal(err)
	}
	url := func() string {
		port, err := harness.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("http://127.0.0.1:%d", port)
	}
	client, peer := url(), url()
	cluster := "m0=" + peer
	for other := 1; other < members; other++ {
		cluster += fmt.Sprintf(",m%d=%s", other, url())
	}
	s := &supervised{metrics: url()}
	// A name in Linux's own space; Go writes it with an @ as well.
	name := fmt.Sprintf("@compat-%d-%s-%d", os.Getpid(), kind, time.Now().UnixNano())
	if s.ready, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	s.command = exec.Command(binary, "--name=m0", "--data-dir="+t.TempDir(), "--initial-cluster="+cluster,
		"--listen-client-urls="+client, "--advertise-client-urls="+client, "--listen-peer-urls="+peer,
		"--initial-advertise-peer-urls="+peer, "--listen-metrics-urls="+s.metrics)
	s.command.Env = []string{"PATH=" + os.Getenv("PATH"), "NOTIFY_SOCKET=" + name}
	s.command.Stdout, s.command.Stderr = &s.log, &s.log
	attributes.Pdeathsig = syscall.SIGKILL
	s.command.SysProcAttr = attributes
	if err := s.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.command.Process.Kill()
		_ = s.command.Wait()
		_ = s.ready.Close()
		if t.Failed() {
			t.Logf("log of %s:\n%s", kind, s.log.String())
		}
	})
	return s
}

func eachKind(t *testing.T, body func(*testing.T, harness.Kind)) {
	t.Parallel()
	for _, kind := range []harness.Kind{harness.Etcd, harness.Etched} {
		t.Run(kind.String(), func(t *testing.T) { body(t, kind) })
	}
}

// A member that says it is ready stops in order and dies of the signal that stops it, which an
// init system takes for a clean stop.
func TestStoppedBySignals(t *testing.T) {
	eachKind(t, func(t *testing.T, kind harness.Kind) {
		for _, signal := range stopSignals {
			s := supervise(t, kind, 1)
			s.awaitReady(t)
			status := s.stoppedBy(t, signal)
			if !status.Signaled() || status.Signal() != signal {
				t.Errorf("%v: ended with %#x", signal, status)
			}
			s.checkOrder(t)
		}
	})
}

// A signal cannot end the first process of a container: it stops in order, and exits
// successfully.
func TestStoppedAsFirstProcess(t *testing.T) {
	eachKind(t, func(t *testing.T, kind harness.Kind) {
		for _, signal := range stopSignals {
			s := superviseAs(t, kind, 1, firstProcess())
			s.awaitReady(t)
			if status := s.stoppedBy(t, signal); !status.Exited() || status.ExitStatus() != 0 {
				t.Errorf("%v: ended with %#x", signal, status)
			}
			s.checkOrder(t)
		}
	})
}

// A member that waits for others before it is ready has nothing to put in order, and ends at
// once, be it the first process or not.
func TestStoppedBeforeItIsReady(t *testing.T) {
	eachKind(t, func(t *testing.T, kind harness.Kind) {
		for _, signal := range stopSignals {
			for _, attributes := range []*syscall.SysProcAttr{{}, firstProcess()} {
				s := superviseAs(t, kind, 3, attributes)
				s.awaitProbe(t)
				status := s.stoppedBy(t, signal)
				switch first := attributes.Cloneflags != 0; {
				// Go's runtime then exits with a code of its own.
				case first && status.Exited():
				case !first && status.Signaled() && status.Signal() == signal:
				default:
					t.Errorf("%v, first process %t: ended with %#x", signal, first, status)
				}
			}
		}
	})
}

var stopSignals = []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}

// firstProcess are the attributes of the first process of a container.
func firstProcess() *syscall.SysProcAttr {
	self := func(id int) []syscall.SysProcIDMap { return []syscall.SysProcIDMap{{HostID: id, Size: 1}} }
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: self(os.Getuid()), GidMappings: self(os.Getgid()),
	}
}

// awaitReady waits until the member says that it is ready.
func (s *supervised) awaitReady(t *testing.T) {
	t.Helper()
	if err := s.ready.SetReadDeadline(time.Now().Add(2 * callLimit)); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 64)
	length, err := s.ready.Read(message)
	if err != nil || string(message[:length]) != "READY=1" {
		t.Fatalf("heard %q, %v", message[:length], err)
	}
}

// awaitProbe waits until a probe of the member's life is answered.
func (s *supervised) awaitProbe(t *testing.T) {
	t.Helper()
	client := http.Client{Timeout: 2 * callLimit}
	defer client.CloseIdleConnections()
	for deadline := time.Now().Add(2 * callLimit); ; time.Sleep(10 * time.Millisecond) {
		answer, err := client.Get(s.metrics + "/livez")
		if err == nil {
			_ = answer.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// checkOrder checks that a member that has ended stopped in order.
func (s *supervised) checkOrder(t *testing.T) {
	t.Helper()
	for _, said := range []string{`"closing etcd server"`, `"closed etcd server"`} {
		if !bytes.Contains(s.log.Bytes(), []byte(said)) {
			t.Errorf("its log lacks %s", said)
		}
	}
}

// stoppedBy sends a signal, and answers how the member ended.
func (s *supervised) stoppedBy(t *testing.T, signal syscall.Signal) syscall.WaitStatus {
	t.Helper()
	if err := s.command.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(2*callLimit, func() { _ = s.command.Process.Kill() })
	defer stuck.Stop()
	_ = s.command.Wait()
	status, _ := s.command.ProcessState.Sys().(syscall.WaitStatus)
	return status
}

// One of three new members alone: a probe of its life must not wait for the
// others.
func TestProbesWithoutAQuorum(t *testing.T) {
	eachKind(t, func(t *testing.T, kind harness.Kind) {
		s := supervise(t, kind, 3)
		client := http.Client{Timeout: 2 * callLimit}
		defer client.CloseIdleConnections()
		ask := func(path string) (int, string, error) {
			answer, err := client.Get(s.metrics + path)
			if err != nil {
				return 0, "", err
			}
			body, err := io.ReadAll(answer.Body)
			return answer.StatusCode, string(body), err
		}
		s.awaitProbe(t)
		for _, one := range []struct {
			path   string
			status int
			body   string
		}{
			{"/livez", 200, "ok\n"},
			{"/health?serializable=true", 200, `{"health":"true","reason":""}`},
			{"/health", 503, `{"health":"false","reason":"RAFT NO LEADER"}` + "\n"},
			{"/metrics", 200, ""},
			{"/readyz/non_learner", 200, "ok\n"},
			{"/version", 404, "404 page not found\n"},
		} {
			began := time.Now()
			status, body, err := ask(one.path)
			if err != nil || status != one.status || (one.body != "" && body != one.body) {
				t.Errorf("%s: %d %q, %v", one.path, status, body, err)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("%s took %v", one.path, took)
			}
		}
		// It waits for a leader, and not for ever.
		if status, body, err := ask("/readyz"); err != nil || status != 503 {
			t.Errorf("/readyz: %d %q, %v", status, body, err)
		}
	})
}
