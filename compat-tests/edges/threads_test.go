package edges

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

// lonely is a user that has no other process: a limit counts the threads of all of them.
func lonely() int { return 100_000 + os.Getpid()%100_000 }

// TestFewThreads starts a member that may have few threads. It refuses to start, in one
// sentence, before it has begun anything that would fail.
func TestFewThreads(t *testing.T) {
	if err := harness.CanLimitThreads(); err != nil {
		t.Skip(err)
	}
	for _, threads := range []int{1, 2, 5, 9, 14} {
		t.Run(fmt.Sprint(threads), func(t *testing.T) {
			server := harness.Begin(t, harness.Etched, harness.Options{User: lonely(), ThreadLimit: threads})
			select {
			case <-server.Exited():
			case <-time.After(10 * time.Second):
				t.Fatalf("it starts:\n%s", server.LogTail(5))
			}
			// The first thread is the process.
			requireOneReason(t, server, fmt.Sprintf("the process can have %d more threads", threads-1))
			requireNoPanic(t, server)
		})
	}
}

// requireNoPanic fails where a log has what is said of a panic, or of a library that gave up.
func requireNoPanic(t *testing.T, server *harness.Server) {
	t.Helper()
	log := server.LogTail(10_000)
	for _, text := range []string{"panic", "terminate called", "can't spawn"} {
		if strings.Contains(log, text) {
			t.Errorf("the log says %q:\n%s", text, log)
		}
	}
}

// TestNoThreadLater lets a member start, and then have not one thread more. It does all that
// it does for clients with those that it has.
func TestNoThreadLater(t *testing.T) {
	if err := harness.CanLimitThreads(); err != nil {
		t.Skip(err)
	}
	server := harness.Start(t, harness.Etched, harness.Options{
		User: lonely(), Flags: []string{"--snapshot-count=50"},
	})
	client := server.Client(t)
	if err := server.LimitThreads(1); err != nil {
		t.Fatal(err)
	}
	before, err := server.Threads()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d threads", before)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	// More than a segment of the log and than a memtable, with flushes all along.
	w := &writer{server: server, acknowledged: map[string]string{}, keeps: true}
	w.write(t, 900, 10*time.Second)
	if w.count != 900 {
		t.Errorf("%d writes were acknowledged", w.count)
	}
	for what, ask := range map[string]func() error{
		"large reads at once": func() error { return largeReads(ctx, client, 20) },
		"a snapshot": func() error {
			stream, err := client.Snapshot(ctx)
			if err != nil {
				return err
			}
			defer stream.Close()
			_, err = io.Copy(io.Discard, stream)
			return err
		},
		"a watch of the past": func() error {
			watched := client.Watch(ctx, "full/", clientv3.WithPrefix(), clientv3.WithRev(1))
			response := <-watched
			return response.Err()
		},
		"a user's password": func() error {
			_, err := client.UserAdd(ctx, "root", "secret")
			return err
		},
		"a hash": func() error {
			_, err := client.HashKV(ctx, server.Endpoint(), 0)
			return err
		},
		"a defragmentation": func() error {
			_, err := client.Defragment(ctx, server.Endpoint())
			return err
		},
	} {
		if err := ask(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	w.compact(t)
	// What begins threads that go again.
	time.Sleep(12 * time.Second)
	w.requireServed(t)
	after, err := server.Threads()
	if err != nil || after > before {
		t.Errorf("%d threads became %d, %v: the test shows nothing", before, after, err)
	}
	requireNoPanic(t, server)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	w.requireServed(t)
}

// largeReads are as many ranges of all keys, each of some megabytes.
func largeReads(ctx context.Context, client *clientv3.Client, count int) error {
	ended := make(chan error, count)
	for range count {
		go func() {
			_, err := client.Get(ctx, "full/", clientv3.WithPrefix())
			ended <- err
		}()
	}
	for range count {
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}
