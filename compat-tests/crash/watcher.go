package crash

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Watcher is one watch that lives on over many servers: whenever a stream ends it
// is resumed, by Follow, from the last revision seen + 1. It speaks the watch
// protocol itself, so that no client library mends or hides what a server sends.
type Watcher struct {
	Name    string
	Keys    Interval
	PrevKV  bool
	Filters []pb.WatchCreateRequest_FilterType
	// Lag, where set, is slept between two responses while Lagging says so: the
	// server must then catch this watch up from its storage.
	Lag     time.Duration
	Lagging func() bool
	// OnRevision, where set, gets the events of each revision.
	OnRevision func([]*mvccpb.Event)

	mu      sync.Mutex
	next    int64 // the revision to resume from
	checked int64 // events up to this revision were compared and dropped
	events  []*mvccpb.Event
	faults  []string
}

// NewWatcher is a watcher that begins at a revision. Only then set its other fields.
func NewWatcher(name string, keys Interval, from int64) *Watcher {
	return &Watcher{Name: name, Keys: keys, next: from, checked: from - 1}
}

// Next is the revision that the watch would be resumed from.
func (w *Watcher) Next() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next
}

// Follow resumes the watch on a connection and reads until the stream ends. That
// the server has gone is no fault, since servers are killed; any other end is one.
func (w *Watcher) Follow(ctx context.Context, connection *grpc.ClientConn) {
	err := w.follow(ctx, connection)
	if code := status.Code(err); code != codes.Unavailable && ctx.Err() == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.fault("the stream ended at next revision %d: %v", w.next, err)
	}
}

func (w *Watcher) follow(ctx context.Context, connection *grpc.ClientConn) error {
	stream, err := pb.NewWatchClient(connection).Watch(ctx)
	if err != nil {
		return err
	}
	request := &pb.WatchCreateRequest{
		Key: []byte(w.Keys.Key), RangeEnd: []byte(w.Keys.End),
		StartRevision: w.Next(), PrevKv: w.PrevKV, Filters: w.Filters,
	}
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request}})
	if err != nil {
		return err
	}
	for created := false; ; {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		w.take(response, &created)
		if w.Lag > 0 && w.Lagging != nil && w.Lagging() {
			time.Sleep(w.Lag)
		}
	}
}

func (w *Watcher) take(response *pb.WatchResponse, created *bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case response.Canceled:
		w.fault("cancelled by the server at next revision %d: compact revision %d, reason %q",
			w.next, response.CompactRevision, response.CancelReason)
	case response.Created:
		*created = true
	case !*created:
		w.fault("a response before `created`: %s", describeEvents(response.Events))
	}
	for rest := response.Events; len(rest) > 0; {
		revision := rest[0].Kv.ModRevision
		n := 1
		for n < len(rest) && rest[n].Kv.ModRevision == revision {
			n++
		}
		if response.Header.Revision < revision {
			w.fault("header revision %d is below its event's revision %d", response.Header.Revision, revision)
		}
		w.revision(revision, rest[:n])
		rest = rest[n:]
	}
}

func (w *Watcher) revision(revision int64, events []*mvccpb.Event) {
	if revision < w.next {
		w.fault("revision %d came again or torn, %d or later was due: %s", revision, w.next, describeEvents(events))
		return
	}
	w.next = revision + 1
	w.events = append(w.events, events...)
	if w.OnRevision != nil {
		w.OnRevision(events)
	}
}

func (w *Watcher) fault(format string, arguments ...any) {
	w.faults = append(w.faults, fmt.Sprintf(format, arguments...))
}

// Await waits until the watch has passed a revision; false after the limit.
func (w *Watcher) Await(revision int64, limit time.Duration) bool {
	return Eventually(limit, func() bool { return w.Next() > revision })
}

// Check compares what came since the last check, up to a revision, with the
// history, and answers every difference.
func (w *Watcher) Check(history *History, until int64) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	faults := w.faults
	w.faults = nil
	cut := slices.IndexFunc(w.events, func(e *mvccpb.Event) bool { return e.Kv.ModRevision > until })
	if cut < 0 {
		cut = len(w.events)
	}
	got := w.events[:cut]
	w.events = slices.Clone(w.events[cut:])
	for revision := w.checked + 1; revision <= until; revision++ {
		for _, event := range history.Events(revision) {
			if !w.wants(event) {
				continue
			}
			if len(got) == 0 || got[0].Kv.ModRevision > revision {
				faults = append(faults, fmt.Sprintf("gap: revision %d is missing: %s", revision, DescribeEvent(event)))
				continue
			}
			if fault := w.differs(got[0], event); fault != "" {
				faults = append(faults, fault)
			}
			got = got[1:]
		}
		for len(got) > 0 && got[0].Kv.ModRevision == revision {
			faults = append(faults, fmt.Sprintf("revision %d: an event too many: %s", revision, DescribeEvent(got[0])))
			got = got[1:]
		}
	}
	w.checked = max(w.checked, until)
	return faults
}

func (w *Watcher) wants(event *mvccpb.Event) bool {
	if !w.Keys.Holds(string(event.Kv.Key)) {
		return false
	}
	unwanted := pb.WatchCreateRequest_NOPUT
	if event.Type == mvccpb.Event_DELETE {
		unwanted = pb.WatchCreateRequest_NODELETE
	}
	return !slices.Contains(w.Filters, unwanted)
}

func (w *Watcher) differs(got, want *mvccpb.Event) string {
	if got.Type != want.Type || !proto.Equal(got.Kv, want.Kv) {
		return fmt.Sprintf("revision %d: %s, the history has %s", want.Kv.ModRevision, DescribeEvent(got), DescribeEvent(want))
	}
	prev := want.PrevKv
	if !w.PrevKV {
		prev = nil
	}
	if !proto.Equal(got.PrevKv, prev) {
		return fmt.Sprintf("revision %d: prev_kv of %s is %s, expected %s",
			want.Kv.ModRevision, DescribeEvent(got), describe(got.PrevKv), describe(prev))
	}
	return ""
}

// Eventually polls until the condition holds; false after the limit.
func Eventually(limit time.Duration, condition func() bool) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(2 * time.Millisecond) {
		if condition() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}
