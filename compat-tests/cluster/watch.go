package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"etched.dev/compat-tests/crash"
)

// firstRevision is the revision of an empty store.
const firstRevision = 1

// Watch is what one watch of the whole keyspace was sent, in order. Whenever its
// stream ends it is resumed from the last revision seen + 1.
type Watch struct {
	Name string
	// Events are all that came, Faults what else was wrong with a response.
	Events []*mvccpb.Event
	Faults []string
	// Until is the revision up to which all is due; 0 for a watch whose member was
	// removed: all that is due is no gap in what came.
	Until int64
}

// watcher records a Watch.
type watcher struct {
	log  *log
	mu   sync.Mutex
	next int64
	gone bool
	got  Watch
	// ends tells of each deletion of a lease's key, when it comes.
	ends func(key string)
}

func newWatcher(name string, log *log, ends func(key string)) *watcher {
	return &watcher{log: log, next: firstRevision + 1, got: Watch{Name: name}, ends: ends}
}

// followMember watches through one member, without any client library's help,
// until the context ends. With requireLeader a member without a leader has to end
// the stream.
func (w *watcher) followMember(ctx context.Context, connection *grpc.ClientConn, requireLeader bool) {
	if requireLeader {
		ctx = metadata.AppendToOutgoingContext(ctx, "hasleader", "true")
	}
	for ctx.Err() == nil {
		err := w.stream(ctx, connection)
		// etcd ends a stream for want of a leader in one of several ways, by chance.
		left := requireLeader && (errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled)
		if status.Code(err) != codes.Unavailable && !left && ctx.Err() == nil {
			w.fault("the stream ended after revision %d: %v", w.seen(), err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(idle):
		}
	}
}

func (w *watcher) stream(ctx context.Context, connection *grpc.ClientConn) error {
	stream, err := pb.NewWatchClient(connection).Watch(ctx)
	if err != nil {
		return err
	}
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: w.seen() + 1,
	}}})
	if err != nil {
		return err
	}
	for created := false; ; {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		if response.Created == created {
			w.fault("created %t, events %d, after created %t", response.Created, len(response.Events), created)
		}
		created = true
		if response.Canceled {
			// What a member without a leader says, which the next attempt finds out.
			if response.CancelReason == "etcdserver: no leader" {
				return status.Error(codes.Unavailable, response.CancelReason)
			}
			w.fault("cancelled after revision %d: compact revision %d, reason %q", w.seen(), response.CompactRevision, response.CancelReason)
			return status.Error(codes.Unavailable, "cancelled")
		}
		w.take(response.Header.Revision, response.Events)
	}
}

// followAll watches by the official client, which resumes by itself.
func (w *watcher) followAll(ctx context.Context, client *clientv3.Client) {
	responses := client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(firstRevision+1))
	for response := range responses {
		if response.Canceled && ctx.Err() == nil {
			w.fault("cancelled after revision %d: compact revision %d, %v", w.seen(), response.CompactRevision, response.Err())
		}
		events := make([]*mvccpb.Event, len(response.Events))
		for i, event := range response.Events {
			events[i] = (*mvccpb.Event)(event)
		}
		w.take(response.Header.Revision, events)
	}
}

func (w *watcher) take(header int64, events []*mvccpb.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, event := range events {
		if header < event.Kv.ModRevision {
			w.got.Faults = append(w.got.Faults, fmt.Sprintf("header revision %d is below its event's: %s", header, crash.DescribeEvent(event)))
		}
		if event.Type == mvccpb.Event_DELETE {
			w.ends(string(event.Kv.Key))
		}
		w.got.Events = append(w.got.Events, event)
		w.next = event.Kv.ModRevision + 1
	}
}

func (w *watcher) fault(format string, arguments ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got.Faults = append(w.got.Faults, fmt.Sprintf(format, arguments...))
}

// seen is the last revision that came.
func (w *watcher) seen() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next - 1
}

// taken answers what came, as due up to a revision.
func (w *watcher) taken(until int64) *Watch {
	w.mu.Lock()
	defer w.mu.Unlock()
	got := w.got
	got.Events = append([]*mvccpb.Event(nil), got.Events...)
	if !w.gone {
		got.Until = until
	}
	return &got
}

// checkWatch answers how what a watch got differs from the history.
func checkWatch(w *Watch, history *crash.History) []string {
	faults := append([]string(nil), w.Faults...)
	until := w.Until
	if until == 0 && len(w.Events) > 0 {
		until = w.Events[len(w.Events)-1].Kv.ModRevision
	}
	got := w.Events
	for revision := int64(firstRevision + 1); revision <= until; revision++ {
		for _, want := range history.Events(revision) {
			switch {
			case len(got) == 0 || got[0].Kv.ModRevision > revision:
				faults = append(faults, fmt.Sprintf("gap: revision %d is missing: %s", revision, crash.DescribeEvent(want)))
				continue
			case got[0].Kv.ModRevision < revision:
				faults = append(faults, fmt.Sprintf("at revision %d came again or late: %s", revision, crash.DescribeEvent(got[0])))
				for len(got) > 0 && got[0].Kv.ModRevision < revision {
					got = got[1:]
				}
				if len(got) == 0 || got[0].Kv.ModRevision != revision {
					continue
				}
			}
			if !sameEvent(got[0], want) {
				faults = append(faults, fmt.Sprintf("revision %d: %s, the history has %s", revision, crash.DescribeEvent(got[0]), crash.DescribeEvent(want)))
			}
			got = got[1:]
		}
		for len(got) > 0 && got[0].Kv.ModRevision == revision {
			faults = append(faults, fmt.Sprintf("revision %d: an event too many: %s", revision, crash.DescribeEvent(got[0])))
			got = got[1:]
		}
	}
	for _, event := range got {
		if event.Kv.ModRevision <= until {
			faults = append(faults, fmt.Sprintf("came again or late: %s", crash.DescribeEvent(event)))
		}
	}
	return faults
}
