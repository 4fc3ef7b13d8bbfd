package kubernetes

import (
	"bytes"
	"context"
	"crypto/x509/pkix"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// apiServer is a running kube-apiserver and an administrator's client of it.
type apiServer struct {
	*api
	name    string
	logPath string
	command *exec.Cmd
	exited  chan error
}

// startAPIServer waits until it is ready; the test's end ends it.
func startAPIServer(t *testing.T, ctx context.Context, by *authority, name string, flags []string) *apiServer {
	t.Helper()
	port, err := harness.FreePort()
	must(t, err)
	dir := t.TempDir()
	serving := by.pair(name+"-serving", pkix.Name{CommonName: "kube-apiserver"})
	accounts := by.pair(name+"-accounts", pkix.Name{CommonName: "service-accounts"})
	administrator := by.pair(name+"-administrator", pkix.Name{CommonName: "administrator", Organization: []string{"system:masters"}})
	s := &apiServer{
		name: name, logPath: filepath.Join(dir, name+".log"), exited: make(chan error, 1),
		api: &api{base: fmt.Sprintf("https://127.0.0.1:%d", port), client: &http.Client{Transport: &http.Transport{
			TLSClientConfig: by.client(administrator), ForceAttemptHTTP2: true,
		}}},
	}
	t.Cleanup(s.api.client.CloseIdleConnections)
	s.command = exec.Command(binary(t), append([]string{
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port), "--cert-dir=" + dir,
		"--tls-cert-file=" + serving.cert, "--tls-private-key-file=" + serving.key, "--client-ca-file=" + by.file,
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + accounts.cert,
		"--service-account-signing-key-file=" + accounts.key, "--service-cluster-ip-range=10.96.0.0/16",
		// Nothing makes the accounts that it would ask for.
		"--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount",
		// All of a machine would share one lease and disturb each other.
		"--feature-gates=APIServerIdentity=false,UnknownVersionInteroperabilityProxy=false", "--v=1",
	}, flags...)...)
	log, err := os.Create(s.logPath)
	must(t, err)
	defer log.Close()
	s.command.Stdout, s.command.Stderr = log, log
	must(t, s.command.Start())
	go func() { s.exited <- s.command.Wait() }()
	t.Cleanup(func() { s.finish(t) })
	s.waitReady(t, ctx)
	return s
}

func (s *apiServer) port() string { return s.base[strings.LastIndexByte(s.base, ':')+1:] }

// waitReady waits until every check of readiness passes.
func (s *apiServer) waitReady(t *testing.T, ctx context.Context) {
	t.Helper()
	const limit = 3 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		status, text, err := s.text(ctx, "/readyz?verbose")
		if err == nil && status == http.StatusOK {
			return
		}
		select {
		case err := <-s.exited:
			s.exited <- err
			t.Fatalf("%s ended: %v\n%s", s.name, err, s.logTail())
		case <-ctx.Done():
			t.Fatalf("%s is not ready within %v: %d %v %s\n%s", s.name, limit, status, err, text, s.logTail())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// stop ends it in order.
func (s *apiServer) stop(t *testing.T) {
	t.Helper()
	const limit = 90 * time.Second
	must(t, s.command.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-s.exited:
		s.exited <- err
		if err != nil {
			t.Errorf("%s: %v after SIGTERM\n%s", s.name, err, s.logTail())
		}
	case <-time.After(limit):
		t.Errorf("%s runs %v after SIGTERM", s.name, limit)
	}
}

func (s *apiServer) finish(t *testing.T) {
	_ = s.command.Process.Kill()
	<-s.exited
	if !t.Failed() {
		return
	}
	kept, err := os.MkdirTemp("", "compat-log-")
	if err == nil {
		path := filepath.Join(kept, filepath.Base(s.logPath))
		if err = os.Rename(s.logPath, path); err == nil {
			t.Logf("log of %s kept in %s", s.name, path)
			return
		}
	}
	t.Logf("log of %s: %v", s.name, err)
}

func (s *apiServer) logTail() string {
	const most = 4000
	content, err := os.ReadFile(s.logPath)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(content[max(0, len(content)-most):]))
}

// metric is the sum of a counter's series that have all of these labels, each as name="value".
func (s *apiServer) metric(t *testing.T, ctx context.Context, name string, labels ...string) float64 {
	t.Helper()
	status, text, err := s.text(ctx, "/metrics")
	if err != nil || status != http.StatusOK {
		t.Fatalf("metrics of %s: %d %v", s.name, status, err)
	}
	var sum float64
series:
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, name+"{") && !strings.HasPrefix(line, name+" ") {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(line, label) {
				continue series
			}
		}
		var value float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(strings.TrimSpace(line), ' '):], &value); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		sum += value
	}
	return sum
}
