package edges

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/net/http2"

	"etched.dev/compat-tests/cluster"
	"etched.dev/compat-tests/harness"
)

// What a member lacks of the machine: it may end of it, in one clear sentence, or wait, but
// nothing that it acknowledged may be lost, and with enough of it the member serves again.

// diskBytes has room for the log's files that are made ahead, two memtables and their tables.
const diskBytes = 448 << 20

// TestDiskFullAtAnyMoment leaves a member some space and has it write until that is used up, so
// that it is a segment of the log that does not fit, or a table, or what a compaction writes.
func TestDiskFullAtAnyMoment(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	const state, log = 0, 1
	for _, moment := range []struct {
		what string
		disk int
		free int64
		// before is how often it puts first, and keeps all of it.
		before int
		// ask is done then in the place of puts.
		ask func(*writer, *testing.T)
	}{
		{what: "a table", disk: state, free: 1 << 20},
		{what: "a later table", disk: state, free: 30 << 20},
		{what: "a segment of the log", disk: log},
		{what: "a part of a segment", disk: log, free: 20 << 20},
		{what: "the copy for a snapshot", disk: state, free: 2 << 20, before: 600, ask: (*writer).snapshot},
		{what: "what a compaction writes", disk: state, free: 1 << 20, before: 1200, ask: (*writer).compact},
	} {
		t.Run(moment.what, func(t *testing.T) {
			disks := cluster.NewSmallDisks(t, 2, diskBytes)
			server := harness.Start(t, harness.Etched, harness.Options{
				DataDir: disks.Dir(state), Flags: []string{"--wal-dir=" + disks.Dir(log)},
			})
			w := &writer{server: server, acknowledged: map[string]string{}, keeps: moment.before > 0}
			w.write(t, max(moment.before, 40), 5*time.Second)
			if err := disks.FillBut(moment.disk, moment.free); err != nil {
				t.Fatal(err)
			}
			if moment.ask != nil {
				moment.ask(w, t)
			} else {
				w.write(t, 2000, 400*time.Millisecond)
			}
			ended := false
			select {
			case <-server.Exited():
				ended = true
				requireOneReason(t, server, "No space left on device")
			case <-time.After(3 * time.Second):
			}
			if err := disks.Free(moment.disk); err != nil {
				t.Fatal(err)
			}
			if ended {
				if err := server.Restart(); err != nil {
					t.Fatalf("with space again it does not start: %v", err)
				}
			}
			w.requireServed(t)
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := server.Restart(); err != nil {
				t.Fatal(err)
			}
			w.requireServed(t)
			t.Logf("ended: %v; %d writes acknowledged", ended, w.count)
		})
	}
}

// writer puts values of 100 kB to a few keys, and compacts now and then.
type writer struct {
	server       *harness.Server
	count        int
	acknowledged map[string]string
	// unknown are keys whose last put may have been made.
	unknown map[string]string
	// keeps is whether it compacts nothing.
	keeps bool
}

// write puts until that fails, or has been done so often; an attempt may take that long.
func (w *writer) write(t *testing.T, times int, limit time.Duration) {
	t.Helper()
	client, err := w.server.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	w.unknown = map[string]string{}
	for n := range times {
		key, value := fmt.Sprintf("full/%02d", n%20), fmt.Sprintf("%d %s", w.count, strings.Repeat("x", 100*kilobyte))
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		put, err := client.Put(ctx, key, value)
		cancel()
		if err != nil {
			w.unknown[key] = value
			return
		}
		w.acknowledged[key] = value
		w.count++
		if n%100 == 99 && !w.keeps {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			_, _ = client.Compact(ctx, put.Header.Revision)
			cancel()
		}
	}
}

// snapshot asks for the whole state, which may fail.
func (w *writer) snapshot(t *testing.T) {
	t.Helper()
	client, err := w.server.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := client.Snapshot(ctx)
	if err == nil {
		defer stream.Close()
		_, err = io.Copy(io.Discard, stream)
	}
	if err == nil || !strings.Contains(err.Error(), "the backup could not be made; this member's log says why") {
		t.Errorf("snapshot: %v", err)
	}
	// A thread of its own writes the log: the answer may come first.
	if _, err := w.server.WaitLog(5*time.Second, 1, harness.Choose(func(line harness.LogLine) bool {
		return strings.Contains(fmt.Sprint(line), "No space left on device")
	})); err != nil {
		t.Errorf("its log does not say why: %v", err)
	}
	if !w.server.Running() {
		t.Error("a snapshot ended the member")
	}
}

// compact asks for the space of all versions but the newest ones, which may end the member.
func (w *writer) compact(t *testing.T) {
	t.Helper()
	client, err := w.server.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	found, err := client.Get(ctx, "full/00")
	if err == nil {
		_, err = client.Compact(ctx, found.Header.Revision, clientv3.WithCompactPhysical())
	}
	t.Logf("compaction: %v", err)
}

// requireServed fails where an acknowledged value is not there, or no new one is taken.
func (w *writer) requireServed(t *testing.T) {
	t.Helper()
	client := w.server.Client(t)
	deadline := time.Now().Add(20 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := client.Put(ctx, "full/after", "x")
		cancel()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("with space again no write is taken: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	for key, value := range w.acknowledged {
		found, err := client.Get(harness.Context(t, 5*time.Second), key)
		if err != nil {
			t.Fatal(err)
		}
		if len(found.Kvs) != 1 {
			t.Errorf("%s is lost", key)
			continue
		}
		if got := string(found.Kvs[0].Value); got != value && got != w.unknown[key] {
			t.Errorf("%s is %.10q, acknowledged was %.10q", key, got, value)
		}
	}
}

// requireOneReason fails where a member did not end by itself, with one line that says why.
func requireOneReason(t *testing.T, server *harness.Server, text string) {
	t.Helper()
	if signal := server.EndedBy(); signal != 0 {
		t.Errorf("the member ended by %v", signal)
	}
	lines, err := server.Log()
	if err != nil {
		t.Fatal(err)
	}
	var reasons []string
	for _, line := range lines {
		if level := line.Level(); level == "fatal" || level == "panic" {
			reasons = append(reasons, fmt.Sprint(line))
		}
	}
	if len(reasons) != 1 || !strings.Contains(reasons[0], text) {
		t.Errorf("the member ended; one line should say %q: %q\n%s", text, reasons, server.LogTail(5))
	}
}

// TestFewFiles starts a member with few descriptors and connects more often than it can take.
func TestFewFiles(t *testing.T) {
	for _, files := range []int{48, 64, 128, 256} {
		t.Run(fmt.Sprint(files), func(t *testing.T) {
			server, err := harness.Launch(harness.Etched, harness.Options{FileLimit: files})
			if files < 64 {
				if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("may have %d files open and needs", files)) {
					t.Errorf("it is refused by %v", err)
				}
				return
			}
			if err != nil {
				t.Fatalf("it does not start: %v", err)
			}
			defer func() { _, _ = server.Kill(), server.Remove() }()
			manyConnections(t, server)
		})
	}
}

func manyConnections(t *testing.T, server *harness.Server) {
	t.Helper()
	s := &attackRun{server: server, kind: harness.Etched, attack: &attack{}}
	client, err := server.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := s.connect(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for _, endpoint := range []string{server.Endpoint(), server.PeerEndpoint()} {
		for range 300 {
			conn, err := s.socket(endpoint)
			if err != nil {
				continue
			}
			_, _ = io.WriteString(conn, http2.ClientPreface)
			_ = http2.NewFramer(conn, nil).WriteSettings()
		}
	}
	// More than a segment of the log, and more than a memtable.
	acknowledged := map[string]string{}
	for n := range 70 {
		key, value := fmt.Sprint("few/", n%9), fmt.Sprint(n, " ", strings.Repeat("x", megabyte))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := client.Put(ctx, key, value)
		cancel()
		if err != nil {
			t.Fatalf("put %d: %v; %s", n, err, server.LogTail(3))
		}
		acknowledged[key] = value
	}
	s.close()
	if !server.Running() {
		t.Fatalf("it exited: %s", lastError(server))
	}
	fresh := server.Client(t)
	if _, err := fresh.Get(harness.Context(t, 15*time.Second), "few/0", clientv3.WithCountOnly()); err != nil {
		t.Errorf("a new connection once others have gone: %v", err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	after := server.Client(t)
	for key, value := range acknowledged {
		found, err := after.Get(harness.Context(t, 5*time.Second), key)
		if err != nil || len(found.Kvs) != 1 {
			t.Errorf("%s after a restart: %v, %v", key, found, err)
			continue
		}
		if got := string(found.Kvs[0].Value); got != value {
			t.Errorf("%s is %.10q, acknowledged was %.10q", key, got, value)
		}
	}
}
