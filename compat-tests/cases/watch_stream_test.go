package cases

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// watchLimit bounds the wait for a message that must come.
	watchLimit = 15 * time.Second
	// silence is how long nothing must come for it to count as none: etcd
	// catches a watch up within 100 ms.
	silence = 400 * time.Millisecond
)

// watchSide is a watch stream of one server. Its messages are kept by watch
// id: between watches of one stream there is no order.
type watchSide struct {
	stream  pb.Watch_WatchClient
	mu      sync.Mutex
	arrived *sync.Cond
	queues  map[int64][]*pb.WatchResponse
	floors  map[int64]int64
	broken  []string
	end     error
}

func openWatchSide(ctx context.Context, conn *grpc.ClientConn) (*watchSide, error) {
	stream, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return nil, err
	}
	side := &watchSide{stream: stream, queues: map[int64][]*pb.WatchResponse{}, floors: map[int64]int64{}}
	side.arrived = sync.NewCond(&side.mu)
	go side.receive()
	return side, nil
}

func (s *watchSide) receive() {
	for {
		message, err := s.stream.Recv()
		s.mu.Lock()
		if err != nil {
			s.end = err
		} else {
			s.check(message)
			s.queues[message.WatchId] = append(s.queues[message.WatchId], message)
		}
		s.arrived.Broadcast()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// check holds a message against the rules that every server keeps: events in
// order, none below what was delivered or announced before, no revision torn.
func (s *watchSide) check(message *pb.WatchResponse) {
	id := message.WatchId
	if message.Created {
		s.floors[id] = 0
	}
	for _, event := range message.Events {
		if event.Kv.ModRevision < s.floors[id] {
			s.broken = append(s.broken, fmt.Sprintf("watch %d: event of revision %d after %d", id, event.Kv.ModRevision, s.floors[id]))
		}
		s.floors[id] = event.Kv.ModRevision
		if message.Header.Revision < event.Kv.ModRevision {
			s.broken = append(s.broken, fmt.Sprintf("watch %d: event of revision %d under a header of %d", id, event.Kv.ModRevision, message.Header.Revision))
		}
	}
	if len(message.Events) > 0 && !message.Fragment {
		s.floors[id]++
	}
	if len(message.Events) == 0 && !message.Created && !message.Canceled {
		for watch := range s.floors {
			if id == -1 || id == watch {
				s.floors[watch] = max(s.floors[watch], message.Header.Revision+1)
			}
		}
	}
}

// take waits for the next message of a watch; nil when the limit has passed or
// the stream has ended.
func (s *watchSide) take(id int64, limit time.Duration) *pb.WatchResponse {
	timer := time.AfterFunc(limit, func() {
		s.mu.Lock()
		s.arrived.Broadcast()
		s.mu.Unlock()
	})
	defer timer.Stop()
	deadline := time.Now().Add(limit)
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if queue := s.queues[id]; len(queue) > 0 {
			s.queues[id] = queue[1:]
			return queue[0]
		}
		if s.end != nil || !time.Now().Before(deadline) {
			return nil
		}
		s.arrived.Wait()
	}
}

// watchPair is a watch stream to each server.
type watchPair struct {
	p     *pair
	sides [2]*watchSide
}

func (p *pair) watch() *watchPair {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	w := &watchPair{p: p}
	for i, conn := range p.conn {
		side, err := openWatchSide(ctx, conn)
		if err != nil {
			p.t.Fatal(err)
		}
		w.sides[i] = side
	}
	p.t.Cleanup(func() {
		cancel()
		for i, side := range w.sides {
			side.mu.Lock()
			for _, broken := range side.broken {
				p.t.Errorf("%s: %s", harness.Kind(i), broken)
			}
			side.mu.Unlock()
		}
	})
	return w
}

func (w *watchPair) send(request *pb.WatchRequest) {
	w.p.t.Helper()
	for _, side := range w.sides {
		if err := side.stream.Send(request); err != nil {
			w.p.t.Fatal(err)
		}
	}
}

// create asks for a watch and compares the first message of the id that the
// server is expected to give; it answers etcd's.
func (w *watchPair) create(id int64, request *pb.WatchCreateRequest) *pb.WatchResponse {
	w.p.t.Helper()
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request}})
	message := w.next(id)
	if message != nil && !message.Created {
		w.p.t.Errorf("the first message of a watch is %v", message)
	}
	return message
}

func (w *watchPair) cancel(id int64) {
	w.p.t.Helper()
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
}

func (w *watchPair) progress() {
	w.p.t.Helper()
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

// next takes one message of a watch from both, compares them whole and answers
// etcd's.
func (w *watchPair) next(id int64) *pb.WatchResponse {
	w.p.t.Helper()
	var messages [2]*pb.WatchResponse
	for i, side := range w.sides {
		if messages[i] = side.take(id, watchLimit); messages[i] == nil {
			w.p.t.Fatalf("%s: no message of watch %d; stream: %v", harness.Kind(i), id, side.end)
		}
	}
	if diff := harness.Diff(messages[etched], messages[etcd]); diff != "" {
		w.p.t.Errorf("watch %d (-etched +etcd)\n%s", id, diff)
	}
	return messages[etcd]
}

// events takes messages of a watch from both sides until the events of the
// given revision have come and compares the events, however they were spread
// over messages.
func (w *watchPair) events(id, through int64) []*mvccpb.Event {
	w.p.t.Helper()
	var collected [2][]*mvccpb.Event
	for i := range w.sides {
		collected[i] = w.collect(i, id, through)
	}
	for j := range min(len(collected[etched]), len(collected[etcd])) {
		if diff := harness.Diff(collected[etched][j], collected[etcd][j]); diff != "" {
			w.p.t.Fatalf("watch %d, event %d (-etched +etcd)\n%s", id, j, diff)
		}
	}
	if len(collected[etched]) != len(collected[etcd]) {
		w.p.t.Fatalf("watch %d: etched sent %d events, etcd %d", id, len(collected[etched]), len(collected[etcd]))
	}
	return collected[etcd]
}

func (w *watchPair) collect(side int, id, through int64) (events []*mvccpb.Event) {
	w.p.t.Helper()
	for len(events) == 0 || events[len(events)-1].Kv.ModRevision < through {
		message := w.sides[side].take(id, watchLimit)
		if message == nil {
			w.p.t.Fatalf("%s: %d events of watch %d, not through revision %d; stream: %v",
				harness.Kind(side), len(events), id, through, w.sides[side].end)
		}
		if message.Created || message.Canceled {
			w.p.t.Fatalf("%s: %v among events of watch %d", harness.Kind(side), message, id)
		}
		revisions := map[int64]bool{}
		for _, event := range message.Events {
			revisions[event.Kv.ModRevision] = true
		}
		const mostRevisions = 1000
		if len(revisions) > mostRevisions {
			w.p.t.Errorf("%s: %d revisions in one message", harness.Kind(side), len(revisions))
		}
		events = append(events, message.Events...)
	}
	return events
}

// quiet checks that neither side has or gets a message of the watches.
func (w *watchPair) quiet(ids ...int64) {
	w.p.t.Helper()
	time.Sleep(silence)
	for i, side := range w.sides {
		for _, id := range ids {
			if message := side.take(id, 0); message != nil {
				w.p.t.Errorf("%s: unexpected message %v", harness.Kind(i), message)
			}
		}
	}
}

// ends waits until both streams have ended and compares how; where it was by
// the connection's end, only the code counts.
func (w *watchPair) ends() error {
	w.p.t.Helper()
	deadline := time.Now().Add(watchLimit)
	var ends [2]error
	for i, side := range w.sides {
		for ends[i] == nil && time.Now().Before(deadline) {
			side.mu.Lock()
			ends[i] = side.end
			side.mu.Unlock()
			time.Sleep(5 * time.Millisecond)
		}
	}
	text := func(err error) string {
		if status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "closing transport") {
			return "Unavailable"
		}
		return harness.ErrorText(err)
	}
	if one, two := text(ends[etched]), text(ends[etcd]); one != two {
		w.p.t.Errorf("etched ends the stream with %s, etcd with %s", one, two)
	}
	return ends[etcd]
}

func watchKey(key string) *pb.WatchCreateRequest { return &pb.WatchCreateRequest{Key: []byte(key)} }

func watchSpan(key, end string, from int64) *pb.WatchCreateRequest {
	return &pb.WatchCreateRequest{Key: []byte(key), RangeEnd: []byte(end), StartRevision: from}
}
