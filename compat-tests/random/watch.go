package random

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

// watches is one stream of one server with every event it has had, by watch.
type watches struct {
	stream pb.Watch_WatchClient
	cancel context.CancelFunc

	mu       sync.Mutex
	arrived  chan struct{} // holds a token once something has come
	events   map[int64][]*mvccpb.Event
	control  map[int64][]*pb.WatchResponse
	progress int64
	end      error
}

func openWatches(conn *grpc.ClientConn) (*watches, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &watches{
		stream: stream, cancel: cancel, arrived: make(chan struct{}, 1),
		events: map[int64][]*mvccpb.Event{}, control: map[int64][]*pb.WatchResponse{},
	}
	go w.receive()
	return w, nil
}

func (w *watches) receive() {
	for {
		message, err := w.stream.Recv()
		w.mu.Lock()
		switch {
		case err != nil:
			w.end = err
		case message.Created || message.Canceled:
			w.control[message.WatchId] = append(w.control[message.WatchId], message)
		case len(message.Events) == 0:
			w.progress = max(w.progress, message.Header.Revision)
		default:
			w.events[message.WatchId] = append(w.events[message.WatchId], message.Events...)
		}
		w.mu.Unlock()
		select {
		case w.arrived <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

var errNothingCame = errors.New("nothing came in time")

// await waits until ready answers true, calling nudge now and then.
func (w *watches) await(ready func() bool, nudge func() error) error {
	deadline := time.Now().Add(waitLimit)
	pause := 2 * time.Millisecond
	for {
		w.mu.Lock()
		done, end := ready(), w.end
		w.mu.Unlock()
		switch {
		case done:
			return nil
		case end != nil:
			return fmt.Errorf("the watch stream ended: %w", end)
		case time.Now().After(deadline):
			return errNothingCame
		}
		select {
		case <-w.arrived:
		case <-time.After(pause):
			pause = min(2*pause, 50*time.Millisecond)
			if err := nudge(); err != nil {
				return err
			}
		}
	}
}

func noNudge() error { return nil }

// take waits for the next control message of a watch.
func (w *watches) take(id int64) (message *pb.WatchResponse, err error) {
	err = w.await(func() bool {
		queue := w.control[id]
		if len(queue) == 0 {
			return false
		}
		message, w.control[id] = queue[0], queue[1:]
		return true
	}, noNudge)
	return message, err
}

// request sends to both servers.
func (r *runner) request(request *pb.WatchRequest) error {
	return r.both(func(side int) error { return r.streams[side].stream.Send(request) })
}

// answered takes a control message of a watch from both and compares them.
func (r *runner) answered(id int64) (*pb.WatchResponse, error) {
	var messages [2]*pb.WatchResponse
	if err := r.both(func(side int) (err error) {
		messages[side], err = r.streams[side].take(id)
		return err
	}); err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	if diff := harness.Diff(messages[0], messages[1]); diff != "" {
		return nil, fmt.Errorf("watch (-etched +etcd)\n%s", diff)
	}
	return messages[1], nil
}

func (r *runner) watch(o operation) error {
	if err := r.unwatch(o.slot); err != nil {
		return err
	}
	create := resolve(o.create, r.head, r.compacted).(*pb.WatchCreateRequest)
	r.nextID++
	create.WatchId = r.nextID
	if err := r.request(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
		return err
	}
	id := create.WatchId
	if r.refused(create) {
		id = -1
	}
	created, err := r.answered(id)
	if err != nil || created.Canceled {
		return err
	}
	if create.StartRevision > 0 && create.StartRevision < r.compacted {
		// It is cut, but counts as one that lags until the client gives it up.
		if _, err := r.answered(id); err != nil {
			return err
		}
		return r.give(id)
	}
	r.open[o.slot] = watching{id: id, start: create.StartRevision}
	return nil
}

// refused says whether a watch is answered under the id -1.
func (r *runner) refused(create *pb.WatchCreateRequest) bool {
	end := string(create.RangeEnd)
	return create.StartRevision < 0 || end != "" && end != "\x00" && string(create.Key) >= end
}

// give cancels a watch and compares the answer.
func (r *runner) give(id int64) error {
	if err := r.request(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}); err != nil {
		return err
	}
	_, err := r.answered(id)
	return err
}

func (r *runner) unwatch(slot int) error {
	open, ok := r.open[slot]
	if !ok {
		return nil
	}
	if err := r.sync(); err != nil {
		return err
	}
	delete(r.open, slot)
	return r.give(open.id)
}

// sync waits until every watch of both servers has had all its events and
// compares them.
func (r *runner) sync() error {
	if len(r.open) == 0 {
		return nil
	}
	// Progress to a revision that is new was reported after every watch was made.
	// And a watch of the future keeps its stream from telling any.
	until := r.head + 1
	for _, open := range r.open {
		until = max(until, open.start)
	}
	for r.head < until {
		if err := r.compare(&pb.PutRequest{Key: []byte("a"), Value: []byte("sync")}, false); err != nil {
			return err
		}
	}
	ask := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
	if err := r.both(func(side int) error {
		stream := r.streams[side]
		nudge := func() error { return stream.stream.Send(ask) }
		if err := nudge(); err != nil {
			return err
		}
		return stream.await(func() bool { return stream.progress >= r.head }, nudge)
	}); err != nil {
		return fmt.Errorf("progress to revision %d: %w", r.head, err)
	}
	return r.compareEvents()
}

func (r *runner) compareEvents() error {
	var events [2]map[int64][]*mvccpb.Event
	for side, stream := range r.streams {
		stream.mu.Lock()
		events[side], stream.events = stream.events, map[int64][]*mvccpb.Event{}
		stream.mu.Unlock()
	}
	var ids []int64
	for _, side := range events {
		for id := range side {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		ours, theirs := events[0][id], events[1][id]
		for i := range min(len(ours), len(theirs)) {
			if diff := harness.Diff(ours[i], theirs[i]); diff != "" {
				return fmt.Errorf("watch %d, event %d of %d and %d (-etched +etcd)\n%s", id, i, len(ours), len(theirs), diff)
			}
		}
		if len(ours) != len(theirs) {
			longer := append(ours, theirs...)[min(len(ours), len(theirs))]
			return fmt.Errorf("watch %d: %d events of etched, %d of etcd; the first more is %v", id, len(ours), len(theirs), longer)
		}
	}
	return nil
}
