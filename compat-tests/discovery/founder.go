package discovery

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// place is where a member listens; both kinds use it in turn, so that ids are equal.
type place struct{ client, peer int }

func newPlace(t *testing.T) place {
	t.Helper()
	var ports [2]int
	for i := range ports {
		port, err := harness.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = port
	}
	return place{ports[0], ports[1]}
}

func (p place) clientURL() string { return fmt.Sprintf("http://127.0.0.1:%d", p.client) }
func (p place) peerURL() string   { return fmt.Sprintf("http://127.0.0.1:%d", p.peer) }

// founder is a member that starts without data, with nothing said of its cluster but
// what its flags say.
type founder struct {
	dir     string
	log     string
	command *exec.Cmd
	ended   chan error
}

func start(t *testing.T, kind harness.Kind, name string, at place, flags ...string) *founder {
	t.Helper()
	return startIn(t, kind, t.TempDir(), name, at, flags...)
}

func startIn(t *testing.T, kind harness.Kind, dir, name string, at place, flags ...string) *founder {
	t.Helper()
	binary, err := harness.Binary(kind)
	if err != nil {
		t.Fatal(err)
	}
	f := &founder{dir: dir, log: filepath.Join(dir, "log"), ended: make(chan error, 1)}
	log, err := os.OpenFile(f.log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	f.command = exec.Command(binary, append([]string{
		"--name=" + name, "--data-dir=" + filepath.Join(dir, "data"),
		"--listen-client-urls=" + at.clientURL(), "--advertise-client-urls=" + at.clientURL(),
		"--listen-peer-urls=" + at.peerURL(), "--initial-advertise-peer-urls=" + at.peerURL(),
	}, flags...)...)
	f.command.Stdout, f.command.Stderr = log, log
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "ETCD_") {
			f.command.Env = append(f.command.Env, entry)
		}
	}
	if err := f.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { f.ended <- f.command.Wait() }()
	t.Cleanup(f.kill)
	return f
}

func (f *founder) kill() {
	_ = f.command.Process.Signal(syscall.SIGKILL) // It may have ended.
	err := <-f.ended
	f.ended <- err
}

// running says whether the process still runs.
func (f *founder) running() bool {
	select {
	case err := <-f.ended:
		f.ended <- err
		return false
	default:
		return true
	}
}

// waitFor waits until the log has a text; the process must not end before.
func (f *founder) waitFor(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		found := strings.Contains(f.text(t), text)
		switch {
		case found:
			return
		case !f.running():
			t.Fatalf("it ended without saying %q\n%s", text, f.text(t))
		case time.Now().After(deadline):
			t.Fatalf("it never says %q\n%s", text, f.text(t))
		}
	}
}

// end answers how the process ended by itself.
func (f *founder) end(t *testing.T) (code int) {
	t.Helper()
	select {
	case err := <-f.ended:
		f.ended <- err
	case <-time.After(30 * time.Second):
		t.Fatalf("it still runs:\n%s", f.text(t))
	}
	return f.command.ProcessState.ExitCode()
}

func (f *founder) text(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(f.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// refusal is the exit code and the log's last line, or its last two warnings, without
// what no two runs have in common.
func (f *founder) refusal(t *testing.T) string {
	t.Helper()
	code := f.end(t)
	lines := bytes.Split(bytes.TrimSpace([]byte(f.text(t))), []byte("\n"))
	var last []string
	for _, line := range lines[max(0, len(lines)-2):] {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		level := fields["level"]
		if level == "fatal" {
			last = nil
		}
		if level == "warn" || level == "fatal" {
			last = append(last, fmt.Sprintf("%v: %v: %v", level, fields["msg"], fields["error"]))
		}
	}
	return fmt.Sprintf("exit %d\n%s", code, strings.Join(last, "\n"))
}
