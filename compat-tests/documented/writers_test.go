package documented

import (
	"context"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

// writers put keys, each once, until they are ended; what fails is not tried again.
type writers struct {
	end func() map[string]int64

	mu           sync.Mutex
	acknowledged map[string]int64
}

// write starts some. Their keys begin with "written".
func (s *site) write(client *clientv3.Client) *writers {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &writers{acknowledged: map[string]int64{}}
	var running sync.WaitGroup
	for writer := range 3 {
		running.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				attempt, done := context.WithTimeout(ctx, time.Second)
				key := fmt.Sprintf("written %d %d", writer, i)
				put, err := client.Put(attempt, key, "x")
				done()
				if err == nil {
					w.mu.Lock()
					w.acknowledged[key] = put.Header.Revision
					w.mu.Unlock()
				}
				// Others work on this machine as well.
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	w.end = func() map[string]int64 {
		cancel()
		running.Wait()
		return w.acknowledged
	}
	s.t.Cleanup(func() { w.end() })
	for deadline := time.Now().Add(limit); w.count() < 20; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatal("the writers do not get on")
		}
	}
	return w
}

// count is how many puts were acknowledged so far.
func (w *writers) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acknowledged)
}

// hasAll wants all that was acknowledged to writers, at the revisions that were answered.
func (s *site) hasAll(client *clientv3.Client, written map[string]int64) {
	s.t.Helper()
	all, err := client.Get(harness.Context(s.t, limit), "written ", clientv3.WithPrefix())
	if err != nil {
		s.t.Fatal(err)
	}
	found := map[string]int64{}
	for _, pair := range all.Kvs {
		found[string(pair.Key)] = pair.ModRevision
	}
	for key, revision := range written {
		if found[key] != revision {
			s.t.Fatalf("%q was acknowledged at revision %d and is at %d", key, revision, found[key])
		}
	}
}
