package failpoints

import (
	"context"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	writers     = 4
	prefix      = "key/"
	requestTime = 2 * time.Second
)

// Load writes keys, each once, and knows at which revision each was acknowledged.
type Load struct {
	mu    sync.Mutex
	next  int
	acked map[string]int64
}

// Acknowledged is how many keys are.
func (l *Load) Acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

func (l *Load) key() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return fmt.Sprintf("%s%06d", prefix, l.next)
}

func (l *Load) acknowledge(key string, revision int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.acked == nil {
		l.acked = map[string]int64{}
	}
	l.acked[key] = revision
}

// Run writes until the context ends, also while nobody answers. Every other write
// is of one key again and again, so that compactions find something.
func (l *Load) Run(ctx context.Context, client *clientv3.Client) {
	var working sync.WaitGroup
	for range writers {
		working.Go(func() {
			for ctx.Err() == nil {
				l.write(ctx, client)
			}
		})
	}
	working.Wait()
}

func (l *Load) write(ctx context.Context, client *clientv3.Client) {
	limited, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	key := l.key()
	response, err := client.Put(limited, key, key)
	if err != nil {
		// It may be there or not. A process that has ended is not asked all the time.
		time.Sleep(10 * time.Millisecond)
		return
	}
	l.acknowledge(key, response.Header.Revision)
	// Nobody looks whether it is there.
	_, _ = client.Put(limited, "again", key)
}

// Check looks for every acknowledged key, at its revision, as one member has them.
func (l *Load) Check(ctx context.Context, client *clientv3.Client) error {
	got, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithSerializable())
	if err != nil {
		return err
	}
	found := map[string]int64{}
	for _, kv := range got.Kvs {
		if string(kv.Value) == string(kv.Key) {
			found[string(kv.Key)] = kv.ModRevision
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, revision := range l.acked {
		if found[key] != revision {
			return fmt.Errorf("%s was acknowledged at revision %d and is there at %d (0: not at all), of %d acknowledged keys",
				key, revision, found[key], len(l.acked))
		}
	}
	return nil
}
