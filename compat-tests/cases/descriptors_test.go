package cases

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// TestConnectionsTakeNoDescriptorsOfTheLog holds more idle connections than the
// process may open files. The log begins a new segment and the state new tables
// all the same, who was connected before is served, and so are probes on their
// own port; a client that connects when connections are closed again is served too.
func TestConnectionsTakeNoDescriptorsOfTheLog(t *testing.T) {
	t.Parallel()
	port, err := harness.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	probes := fmt.Sprintf("127.0.0.1:%d", port)
	server := harness.Start(t, harness.Etched, harness.Options{
		FileLimit: 256,
		Flags:     []string{"--listen-metrics-urls=http://" + probes},
	})
	client := server.Client(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := client.Put(ctx, "before", "1"); err != nil {
		t.Fatal(err)
	}
	segments := func() int {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(server.DataDir(), "member", "wal"))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := segments()
	idle := make([]net.Conn, 400)
	for i := range idle {
		if idle[i], err = net.DialTimeout("tcp", server.Endpoint(), 5*time.Second); err != nil {
			t.Fatal(err)
		}
		defer idle[i].Close()
	}
	// More than a segment holds, at one key, so that the quota is not reached.
	value := strings.Repeat("v", 1_000_000)
	for i := range 140 {
		if _, err := client.Put(ctx, "k", value); err != nil {
			t.Fatalf("put %d: %v", i, err)
		}
	}
	if after := segments(); after <= before {
		t.Errorf("%d segments before and %d after: the test shows nothing", before, after)
	}
	probe := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) string {
		t.Helper()
		answer, err := probe.Get("http://" + probes + path)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode != 200 {
			t.Fatalf("%s: %s, %v", path, answer.Status, err)
		}
		return string(body)
	}
	get("/health")
	if page := get("/metrics"); strings.Contains(page, "\netched_connections_refused_total 0\n") {
		t.Error("no connection was refused: the test shows nothing")
	}
	closed := 0
	for _, conn := range idle {
		conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); err == io.EOF {
			closed++
		}
		conn.Close()
	}
	if closed < 200 {
		t.Errorf("%d of %d connections were closed", closed, len(idle))
	}
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if _, _, err = server.HTTPGet("/version"); err == nil {
			break
		}
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("nobody gets in after connections were closed: %v", err)
		}
	}
	lines, err := server.WaitLog(logLimit, 1, harness.Choose(func(line harness.LogLine) bool {
		return strings.Contains(line.Msg(), "connections are closed at once")
	}))
	if err != nil || len(lines) != 1 {
		t.Errorf("the log tells of it %d times in a minute: %v", len(lines), err)
	}
}

// TestAcceptFailuresAreSaidOnce takes all descriptors that are left from a member. Who
// connects then waits, the log says so once, and with descriptors again all are served.
func TestAcceptFailuresAreSaidOnce(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	failures := harness.Choose(func(line harness.LogLine) bool {
		return strings.Contains(line.Msg(), "cannot accept a connection")
	})
	open, err := server.OpenFiles()
	if err != nil {
		t.Fatal(err)
	}
	before, err := server.LimitOpenFiles(uint64(open))
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		conn, err := net.DialTimeout("tcp", server.Endpoint(), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	// It tries ten times a second.
	time.Sleep(3 * time.Second)
	lines, err := server.WaitLog(logLimit, 1, failures)
	if err != nil || len(lines) != 1 {
		t.Errorf("the log tells of it %d times in three seconds: %v", len(lines), err)
	}
	if _, err := server.LimitOpenFiles(before); err != nil {
		t.Fatal(err)
	}
	if _, _, err := server.HTTPGet("/version"); err != nil {
		t.Errorf("with descriptors again nobody is served: %v", err)
	}
}
