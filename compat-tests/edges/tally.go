package edges

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"google.golang.org/grpc/status"
)

// tally counts outcomes of calls and connections.
type tally struct {
	mu     sync.Mutex
	Counts map[string]int
}

func (t *tally) add(what string) { t.addMany(what, 1) }

func (t *tally) addMany(what string, n int) {
	if n == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.Counts == nil {
		t.Counts = map[string]int{}
	}
	t.Counts[what] += n
}

// of is how often an answer was recorded.
func (t *tally) of(what string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.Counts[what]
}

func (t *tally) copied() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.Counts)
}

// String lists the most frequent ones.
func (t *tally) String() string {
	counts := t.copied()
	keys := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), strings.Compare(a, b))
	})
	const shown = 12
	var texts []string
	for i, key := range keys {
		if i == shown {
			texts = append(texts, fmt.Sprintf("and %d more", len(keys)-shown))
			break
		}
		texts = append(texts, fmt.Sprintf("%s ×%d", key, counts[key]))
	}
	return strings.Join(texts, "; ")
}

// errorText classifies an error in a few words.
func errorText(err error) string {
	var timeout net.Error
	switch {
	case err == nil:
		return "OK"
	case errors.Is(err, errEnded):
		return "stream ended"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return "connection closed"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "time is up"
	case errors.Is(err, context.Canceled):
		return "given up"
	}
	if _, known := status.FromError(err); known {
		return status.Code(err).String()
	}
	return err.Error()
}
