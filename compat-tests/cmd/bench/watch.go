package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	watches          = 1000
	watchStreams     = 100
	watchConnections = 10
	// watchLead is how many puts may be ahead of the watches: enough to keep the
	// server busy, too few to build a backlog that would be measured as well.
	watchLead = 16

	methodWatch = "/etcdserverpb.Watch/Watch"
)

// watchOutcome is what the watched put measured.
type watchOutcome struct {
	puts            outcome
	eventsPerSecond float64
	events          int
}

// watchOneKey holds 1,000 watches of one key, 100 streams over 10 connections,
// while one client puts that key. The time counted ends with the last event, and
// every watch must have got every event.
func watchOneKey(target *cluster, warmUp, window time.Duration) (watchOutcome, error) {
	board := &scoreboard{}
	failures := newFailures(watchConnections + 1)
	finished := make(chan struct{})
	var running sync.WaitGroup
	for i := range watchConnections {
		running.Go(func() {
			if failures[i] = follow(target.endpoint(i), board, finished); failures[i] != nil {
				board.broken.Store(true)
			}
		})
	}
	if !board.await(&board.created, watches) {
		close(finished)
		running.Wait()
		return watchOutcome{}, fmt.Errorf("%d of %d watches were created: %w", board.created.Load(), watches, firstError(failures))
	}
	plan := newPhase(warmUp, window)
	var latencies []time.Duration
	var puts int64
	putting := make(chan struct{})
	go func() {
		defer close(putting)
		puts, latencies, failures[watchConnections] = putWatched(target, board, plan)
	}()
	time.Sleep(time.Until(plan.from))
	before := board.delivered.Load()
	result, err := target.measure(plan)
	<-putting
	during := board.delivered.Load() - before
	elapsed := time.Since(plan.from)
	whole := board.await(&board.delivered, puts*watches)
	close(finished)
	running.Wait()
	if err := firstError(append(failures, err)); err != nil {
		return watchOutcome{}, err
	}
	if !whole || board.delivered.Load() != puts*watches {
		return watchOutcome{}, fmt.Errorf("%d events came of %d", board.delivered.Load(), puts*watches)
	}
	result.Operations = len(latencies)
	result.P50, result.P99 = percentiles(latencies)
	return watchOutcome{puts: result, events: int(during), eventsPerSecond: float64(during) / elapsed.Seconds()}, nil
}

// scoreboard counts over all connections.
type scoreboard struct {
	created, delivered atomic.Int64
	broken             atomic.Bool
}

func (b *scoreboard) await(counter *atomic.Int64, due int64) bool {
	for deadline := time.Now().Add(ioLimit); counter.Load() < due; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) || b.broken.Load() {
			return false
		}
	}
	return true
}

// putWatched puts the watched key until the plan ends, never more than watchLead
// puts ahead of the slowest of the watches taken together.
func putWatched(target *cluster, board *scoreboard, plan phase) (puts int64, latencies []time.Duration, err error) {
	c, err := dial(target.endpoint(0), methodPut, 1)
	if err != nil {
		return 0, nil, err
	}
	defer c.close()
	if err := c.net.SetDeadline(plan.until.Add(ioLimit)); err != nil {
		return 0, nil, err
	}
	kind, rng := put(1), rand.New(rand.NewPCG(5, 6))
	for time.Now().Before(plan.until) {
		for board.delivered.Load() < (puts-watchLead)*watches {
			if board.broken.Load() || time.Now().After(plan.until.Add(ioLimit)) {
				return puts, latencies, errors.New("the watches stand still")
			}
			time.Sleep(100 * time.Microsecond)
		}
		open, began := true, time.Now()
		c.onEnd = func(int) { open = false }
		if err := c.call(0, kind.encode(nil, rng), true); err != nil {
			return puts, latencies, err
		}
		for open {
			if err := errors.Join(c.flush(), c.step()); err != nil {
				return puts, latencies, err
			}
		}
		puts++
		if now := time.Now(); now.After(plan.from) && now.Before(plan.until) {
			latencies = append(latencies, now.Sub(began))
		}
	}
	return puts, latencies, nil
}

// follow is one connection of watches: it counts what comes until it is asked
// that all is finished.
func follow(address string, board *scoreboard, finished <-chan struct{}) error {
	const streams = watchStreams / watchConnections
	c, err := dial(address, methodWatch, streams)
	if err != nil {
		return err
	}
	defer c.close()
	create, err := proto.Marshal(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: appendKey(nil, 0)},
	}})
	if err != nil {
		return err
	}
	readers := make([]messageReader, streams)
	var failed error
	c.onData = func(slot int, payload []byte) {
		if err := readers[slot].take(payload, board); err != nil {
			failed = err
		}
	}
	c.onEnd = func(int) { failed = errors.New("a watch stream ended") }
	for slot := range streams {
		if err := c.call(slot, create, false); err != nil {
			return err
		}
		for range watches/watchStreams - 1 {
			c.send(c.streams[slot], create, false)
		}
	}
	go func() {
		<-finished
		_ = c.net.SetDeadline(time.Now())
	}()
	for failed == nil {
		if err := c.flush(); err != nil {
			return endOf(err, finished)
		}
		if err := c.step(); err != nil {
			return endOf(err, finished)
		}
	}
	return failed
}

// endOf drops the error of a connection that was closed for being finished.
func endOf(err error, finished <-chan struct{}) error {
	select {
	case <-finished:
		return nil
	default:
		return err
	}
}

// messageReader cuts one stream's DATA into messages and counts what is in them.
type messageReader struct{ partial []byte }

func (r *messageReader) take(payload []byte, board *scoreboard) error {
	rest := payload
	if len(r.partial) > 0 {
		r.partial = append(r.partial, payload...)
		rest = r.partial
	}
	for len(rest) >= 5 {
		length := 5 + int(binary.BigEndian.Uint32(rest[1:]))
		if len(rest) < length {
			break
		}
		if err := count(rest[5:length], board); err != nil {
			return err
		}
		rest = rest[length:]
	}
	r.partial = append(r.partial[:0], rest...)
	return nil
}

// count looks at the fields of one WatchResponse without decoding it.
func count(message []byte, board *scoreboard) error {
	const createdField, cancelledField, eventsField = 3, 4, 11
	var events, created int64
	for len(message) > 0 {
		number, kind, length := protowire.ConsumeTag(message)
		if length < 0 {
			return protowire.ParseError(length)
		}
		skip := protowire.ConsumeFieldValue(number, kind, message[length:])
		if skip < 0 {
			return protowire.ParseError(skip)
		}
		switch number {
		case eventsField:
			events++
		case createdField:
			created++
		case cancelledField:
			return errors.New("a watch was cancelled")
		}
		message = message[length+skip:]
	}
	board.created.Add(created)
	board.delivered.Add(events)
	return nil
}
