package proxy

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

var kinds = []harness.Kind{harness.Etched, harness.Etcd}

// process is a gateway or a gRPC proxy.
type process struct {
	address string
	log     string
	command *exec.Cmd
	ended   chan struct{}
}

// start runs a command, which listens on a port of its own, until it says that it serves.
func start(t *testing.T, kind harness.Kind, command, ready string, flags ...string) *process {
	t.Helper()
	binary, err := harness.Binary(kind)
	must(t, err)
	port, err := harness.FreePort()
	must(t, err)
	dir := t.TempDir()
	p := &process{
		address: fmt.Sprintf("127.0.0.1:%d", port), log: filepath.Join(dir, "log"), ended: make(chan struct{}),
	}
	log, err := os.Create(p.log)
	must(t, err)
	defer log.Close()
	p.command = exec.Command(binary, append([]string{command, "start", "--listen-addr=" + p.address}, flags...)...)
	p.command.Dir, p.command.Stdout, p.command.Stderr = dir, log, log
	must(t, p.command.Start())
	go func() {
		_ = p.command.Wait() // How it ended is its state.
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.command.Process.Kill() // It may have ended.
		<-p.ended
		if t.Failed() {
			var lines []string
			for line := range strings.Lines(p.text(t)) {
				if !strings.Contains(line, "zapgrpc") {
					lines = append(lines, line)
				}
			}
			t.Logf("%s %s:\n%s", kind, command, strings.Join(lines, ""))
		}
	})
	p.waitFor(t, ready)
	return p
}

func startGateway(t *testing.T, kind harness.Kind, flags ...string) *process {
	t.Helper()
	return start(t, kind, "gateway", "ready to proxy client requests", flags...)
}

// waitFor waits until the log has a text; the process must not end before.
func (p *process) waitFor(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(p.text(t), text); time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.ended:
			t.Fatalf("it ended without saying %q\n%s", text, p.text(t))
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("it never says %q\n%s", text, p.text(t))
		}
	}
}

func (p *process) text(t *testing.T) string {
	text, err := os.ReadFile(p.log)
	must(t, err)
	return string(text)
}

// stop ends the process as systemd does, and answers how it ended.
func (p *process) stop(t *testing.T) syscall.WaitStatus {
	t.Helper()
	must(t, p.command.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.ended:
	case <-time.After(30 * time.Second):
		t.Fatalf("it still runs:\n%s", p.text(t))
	}
	return p.command.ProcessState.Sys().(syscall.WaitStatus)
}

func (p *process) client(t *testing.T) *clientv3.Client {
	t.Helper()
	return newClient(t, clientv3.Config{Endpoints: []string{p.address}})
}

func newClient(t *testing.T, config clientv3.Config) *clientv3.Client {
	t.Helper()
	config.DialTimeout, config.Logger = 10*time.Second, zap.NewNop()
	c, err := clientv3.New(config)
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// etcdctl runs stock etcdctl and answers what it prints.
func etcdctl(t *testing.T, endpoint string, args ...string) string {
	t.Helper()
	binary, err := harness.Etcdctl()
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, binary, append([]string{"--endpoints=" + endpoint}, args...)...)
	out, err := command.CombinedOutput()
	var said strings.Builder
	for line := range strings.Lines(string(out)) {
		// Its log has times and addresses.
		if !strings.HasPrefix(line, `{"level"`) || strings.Contains(strings.Join(args, " "), "json") {
			said.WriteString(line)
		}
	}
	if err != nil {
		fmt.Fprint(&said, err)
	}
	return said.String()
}
