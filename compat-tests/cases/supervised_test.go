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
	s.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
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

// A member that says it is ready dies of the signal that stops it, which an
// init system takes for a clean stop.
func TestStoppedBySignals(t *testing.T) {
	eachKind(t, func(t *testing.T, kind harness.Kind) {
		for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			s := supervise(t, kind, 1)
			if err := s.ready.SetReadDeadline(time.Now().Add(2 * callLimit)); err != nil {
				t.Fatal(err)
			}
			message := make([]byte, 64)
			length, err := s.ready.Read(message)
			if err != nil || string(message[:length]) != "READY=1" {
				t.Fatalf("heard %q, %v", message[:length], err)
			}
			if err := s.command.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			stuck := time.AfterFunc(2*callLimit, func() { _ = s.command.Process.Kill() })
			_ = s.command.Wait()
			stuck.Stop()
			status, _ := s.command.ProcessState.Sys().(syscall.WaitStatus)
			if !status.Signaled() || status.Signal() != signal {
				t.Errorf("%v: ended with %v", signal, s.command.ProcessState)
			}
		}
	})
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
		deadline := time.Now().Add(2 * callLimit)
		for {
			_, _, err := ask("/livez")
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
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
