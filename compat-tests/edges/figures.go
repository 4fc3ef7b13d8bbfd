package edges

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// figures are the latencies of one kind of probes, and their failures.
type figures struct {
	mu     sync.Mutex
	All    []time.Duration
	Failed int
	Errors tally
}

func (f *figures) add(took time.Duration, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.Failed++
		f.Errors.add(errorText(err))
		return
	}
	f.All = append(f.All, took)
}

// quantile is 0 where nothing was measured.
func (f *figures) quantile(q float64) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.All) == 0 {
		return 0
	}
	sorted := slices.Clone(f.All)
	slices.Sort(sorted)
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// String is "p50/p99" in milliseconds, and what failed.
func (f *figures) String() string {
	text := fmt.Sprintf("%s/%s", milliseconds(f.quantile(0.5)), milliseconds(f.quantile(0.99)))
	if len(f.All) == 0 {
		text = "none"
	}
	if f.Failed > 0 {
		text += fmt.Sprintf(", %d failed", f.Failed)
	}
	return text
}

func milliseconds(d time.Duration) string {
	if d >= 100*time.Millisecond {
		return fmt.Sprintf("%.0f", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.1f", d.Seconds()*1000)
}
