package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	keyLength   = 32
	valueLength = 256

	methodPut   = "/etcdserverpb.KV/Put"
	methodRange = "/etcdserverpb.KV/Range"
)

// appendKey appends the n-th key: 32 bytes, in the order of n.
func appendKey(to []byte, n int) []byte {
	return fmt.Appendf(to, "bench/%0*d", keyLength-len("bench/"), n)
}

// values is noise that values are cut from, so that none compresses and each
// differs from the last.
var values = func() []byte {
	noise := rand.New(rand.NewPCG(1, 2))
	pool := make([]byte, 64<<10)
	for i := 0; i < len(pool); i += 8 {
		binary.LittleEndian.PutUint64(pool[i:], noise.Uint64())
	}
	return pool
}()

func value(rng *rand.Rand) []byte {
	at := rng.IntN(len(values) - valueLength)
	return values[at : at+valueLength]
}

// request is a kind of request that is sent over and over.
type request struct {
	method string
	// encode appends a request, drawn at random, to an empty buffer.
	encode func(to []byte, rng *rand.Rand) []byte
	// least is how many bytes an answer has at least: one with less is an error.
	least int
}

// put writes a random key of the first `keys`.
func put(keys int) request {
	return request{method: methodPut, least: 1, encode: func(to []byte, rng *rand.Rand) []byte {
		to = appendRandomKey(protowire.AppendTag(to, 1, protowire.BytesType), rng, keys)
		to = protowire.AppendTag(to, 2, protowire.BytesType)
		return protowire.AppendBytes(to, value(rng))
	}}
}

// get reads a random key of the first `keys`, linearizable.
func get(keys int) request {
	return request{method: methodRange, least: keyLength + valueLength, encode: func(to []byte, rng *rand.Rand) []byte {
		return appendRandomKey(protowire.AppendTag(to, 1, protowire.BytesType), rng, keys)
	}}
}

// getMany reads the first `keys` keys, linearizable.
func getMany(keys int) request {
	return request{method: methodRange, least: keys * (keyLength + valueLength), encode: func(to []byte, _ *rand.Rand) []byte {
		to = protowire.AppendTag(to, 1, protowire.BytesType)
		to = protowire.AppendBytes(to, appendKey(nil, 0))
		to = protowire.AppendTag(to, 2, protowire.BytesType)
		return protowire.AppendBytes(to, appendKey(nil, keys))
	}}
}

// appendRandomKey appends what appendKey makes, with its length but without
// formatting: it is called for every request.
func appendRandomKey(to []byte, rng *rand.Rand, keys int) []byte {
	to = protowire.AppendString(to, "bench/00000000000000000000000000")
	for at, n := len(to)-1, rng.IntN(keys); n > 0; at, n = at-1, n/10 {
		to[at] = byte('0' + n%10)
	}
	return to
}

// phase is the time plan of one load: what completes between from and until counts.
type phase struct{ from, until time.Time }

func newPhase(warmUp, window time.Duration) phase {
	from := time.Now().Add(warmUp)
	return phase{from: from, until: from.Add(window)}
}

// outcome is what a load measured within its window.
type outcome struct {
	Operations int
	Window     time.Duration
	P50, P99   time.Duration
	ServerCPU  time.Duration
	ClientCPU  time.Duration
	// OtherCPU is what all else on the machine used: a little is the kernel's, much
	// of it means that the figures are disturbed.
	OtherCPU time.Duration
}

func (o outcome) perSecond() float64 { return float64(o.Operations) / o.Window.Seconds() }

// perOperation is a processor time by operation, in microseconds.
func (o outcome) perOperation(cpu time.Duration) float64 {
	return float64(cpu) / float64(time.Microsecond) / float64(max(1, o.Operations))
}

// closedLoop runs clients that each have one request open at all times, over
// as many connections up to a limit, 100 by default: what etcd's own published
// figures have.
func closedLoop(target *cluster, kind request, clients int, s settings) (outcome, error) {
	connections := min(s.connections, clients)
	plan := newPhase(s.warmUp, s.window)
	latencies, failures := newLatencies(connections), newFailures(connections)
	var running sync.WaitGroup
	for i := range connections {
		slots := clients / connections
		if i < clients%connections {
			slots++
		}
		rng := rand.New(rand.NewPCG(uint64(i), uint64(clients)))
		running.Go(func() {
			failures[i] = drive(target.endpoint(i), kind, slots, plan, rng, &latencies[i])
		})
	}
	result, err := target.measure(plan)
	running.Wait()
	if failed := firstError(append(failures, err)); failed != nil {
		return outcome{}, fmt.Errorf("%s with %d clients: %w", kind.method, clients, failed)
	}
	all := slices.Concat(latencies...)
	result.Operations = len(all)
	result.P50, result.P99 = percentiles(all)
	return result, nil
}

func newLatencies(n int) [][]time.Duration {
	latencies := make([][]time.Duration, n)
	for i := range latencies {
		latencies[i] = make([]time.Duration, 0, 1<<12)
	}
	return latencies
}

func newFailures(n int) []error { return make([]error, n) }

func firstError(all []error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

// drive is one connection's share of a closed loop.
func drive(address string, kind request, slots int, plan phase, rng *rand.Rand, latencies *[]time.Duration) error {
	c, err := dial(address, kind.method, slots)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.net.SetDeadline(plan.until.Add(ioLimit)); err != nil {
		return err
	}
	began, received := make([]time.Time, slots), make([]int, slots)
	buffer := make([]byte, 0, 1024)
	open := 0
	var failed error
	issue := func(slot int, now time.Time) {
		began[slot], received[slot] = now, 0
		buffer = kind.encode(buffer[:0], rng)
		if err := c.call(slot, buffer, true); err != nil {
			failed = err
		}
		open++
	}
	c.onData = func(slot int, payload []byte) { received[slot] += len(payload) }
	c.onEnd = func(slot int) {
		open--
		if received[slot] < kind.least {
			failed = fmt.Errorf("an answer of %d bytes where at least %d were due", received[slot], kind.least)
		}
		now := time.Now()
		if now.After(plan.from) && now.Before(plan.until) {
			*latencies = append(*latencies, now.Sub(began[slot]))
		}
		if now.Before(plan.until) {
			issue(slot, now)
		}
	}
	for slot := range slots {
		issue(slot, time.Now())
	}
	for open > 0 && failed == nil {
		if err := c.flush(); err != nil {
			return err
		}
		if err := c.step(); err != nil {
			return err
		}
	}
	return failed
}

// percentiles answers the 50th and the 99th; it sorts in place.
func percentiles(all []time.Duration) (p50, p99 time.Duration) {
	if len(all) == 0 {
		return 0, 0
	}
	slices.Sort(all)
	return all[(len(all)-1)/2], all[(len(all)-1)*99/100]
}

// ownCPU is the processor time that this process has used.
func ownCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
