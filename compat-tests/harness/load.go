package harness

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Load is what some clients did at once, over and over.
type Load struct {
	Took time.Duration
	// Times are how long each call took, from the shortest.
	Times []time.Duration
	// CPU is the server's time for each.
	CPU time.Duration
}

// PerSecond is how many calls were made a second.
func (l Load) PerSecond() float64 { return float64(len(l.Times)) / l.Took.Seconds() }

// Quantile is the time that so many of a hundred calls did not exceed.
func (l Load) Quantile(percent int) time.Duration {
	if len(l.Times) == 0 {
		return 0
	}
	return l.Times[len(l.Times)*percent/100].Round(time.Microsecond)
}

// RunLoad has so many clients call a server for as long as something lasts. The first
// error of a client ends it, and fails the test.
func RunLoad(t *testing.T, server *Server, clients int, lasts func(), call func(client int) error) Load {
	t.Helper()
	return RunPacedLoad(t, server, clients, 0, lasts, call)
}

// RunPacedLoad is RunLoad with so many calls a second at most, 0 for any number. A call
// that begins late, because those before it took long, counts from when it was to begin.
func RunPacedLoad(t *testing.T, server *Server, clients, perSecond int, lasts func(), call func(client int) error) Load {
	t.Helper()
	var every time.Duration
	if perSecond > 0 {
		every = time.Second / time.Duration(perSecond)
	}
	before, err := server.CPUTime()
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var running sync.WaitGroup
	times := make([][]time.Duration, clients)
	began := time.Now()
	for client := range clients {
		running.Go(func() {
			next := began.Add(time.Duration(client) * every)
			for !stop.Load() {
				called := time.Now()
				if every > 0 {
					time.Sleep(time.Until(next))
					called, next = next, next.Add(time.Duration(clients)*every)
				}
				if err := call(client); err != nil {
					t.Error(err)
					return
				}
				times[client] = append(times[client], time.Since(called))
			}
		})
	}
	lasts()
	stop.Store(true)
	running.Wait()
	load := Load{Took: time.Since(began), Times: slices.Concat(times...)}
	after, err := server.CPUTime()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(load.Times)
	load.CPU = (after - before) / time.Duration(max(1, len(load.Times)))
	return load
}

// Median is the middle one of some figures, the higher one of two.
func Median[T int64 | float64 | time.Duration](figures []T) T {
	slices.Sort(figures)
	return figures[len(figures)/2]
}
