package cases

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

func TestWatchFromEveryRevision(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	history(p)
	head := history(p)
	w := p.watch()
	for from := int64(0); from <= head+2; from++ {
		request := watchSpan("\x00", "\x00", from)
		request.PrevKv = true
		created := w.create(from, request)
		if created.Header.Revision != head {
			t.Errorf("created at %d, head %d", created.Header.Revision, head)
		}
		if from != 0 && from <= head {
			if events := w.events(created.WatchId, head); events[len(events)-1].Kv.ModRevision != head {
				t.Errorf("the last event is %v", events[len(events)-1])
			}
		}
	}
	p.ok(txn(nil, ops(put("a", "live"), del("b"), put("new", "1"), del("missing")), nil))
	for id := int64(0); id <= head+1; id++ {
		w.next(id)
	}
	p.ok(put("a", "more"))
	for id := int64(0); id <= head+2; id++ {
		w.next(id)
	}
}

// A key that is put and deleted in one revision, and the other way round.
func TestWatchOfPutAndDeleteInOneRevision(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	w := p.watch()
	live := watchSpan("\x00", "\x00", 0)
	live.PrevKv = true
	w.create(0, live)
	p.ok(put("a", "0"))
	w.next(0)
	for _, step := range []*pb.TxnRequest{
		txn(nil, ops(put("a", "1"), delSpan("a", "\x00")), nil),
		txn(nil, ops(put("a", "2"), delSpan("a", "\x00")), nil),
		txn(nil, ops(put("b", "1"), delSpan("a", "\x00"), get("b")), nil),
		txn(nil, ops(delSpan("a", "\x00"), put("c", "1")), nil),
		txn(nil, ops(delSpan("a", "\x00"), put("c", "2")), nil),
		txn(nil, ops(txn(nil, ops(put("c", "3")), nil), txn(nil, ops(del("c")), nil)), nil),
		txn(nil, ops(txn(nil, ops(put("c", "4")), nil), txn(nil, ops(del("c")), nil)), nil),
	} {
		p.ok(step)
		w.next(0)
		p.do(everything())
	}
	head := p.revision()
	for from := int64(1); from <= head; from++ {
		again := watchSpan("\x00", "\x00", from)
		again.PrevKv = true
		w.events(w.create(from, again).WatchId, head)
		p.do(&pb.RangeRequest{Key: []byte("\x00"), RangeEnd: []byte("\x00"), Revision: from})
	}
}

func TestWatchRanges(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	w := p.watch()
	spans := [][2]string{{"a", ""}, {"b", ""}, {"missing", ""}, {"a", "c"}, {"a", "b"}, {"b", "\x00"}, {"", ""},
		{"", "\x00"}, {"\x00", "\x00"}, {"\x00", "b"}, {"\xff", "\x00"}, {"a", "a\x00"}, {"", "b"}}
	for id, span := range spans {
		w.create(int64(id), watchSpan(span[0], span[1], 0))
	}
	head := history(p)
	p.ok(put("\x00", "last"))
	p.ok(delSpan("\x00", "\x00"))
	for id := range spans {
		if id != 2 {
			w.events(int64(id), lastRevision(p, spans[id], head))
		}
	}
	for id, span := range spans {
		again := int64(len(spans) + id)
		w.create(again, watchSpan(span[0], span[1], 1))
		if id != 2 {
			w.events(again, lastRevision(p, span, head))
		}
	}
	w.quiet(2)
}

// lastRevision is that of the last event in a span: the final delete where a
// key of the span still lived before it, as etcd tells.
func lastRevision(p *pair, span [2]string, head int64) int64 {
	p.t.Helper()
	key, end := span[0], span[1]
	if key == "" {
		key = "\x00"
	}
	request := spanAt(key, end, head+1)
	if p.ok(request).(*pb.RangeResponse).Count > 0 {
		return head + 2
	}
	p.t.Fatalf("nothing lives in %q", span)
	return 0
}

func spanAt(key, end string, revision int64) *pb.RangeRequest {
	request := span(key, end)
	request.Revision = revision
	return request
}

func TestWatchRefusals(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	history(p)
	w := p.watch()
	for _, wrong := range []struct {
		reason  string
		request *pb.WatchCreateRequest
	}{
		{"mvcc: watcher range is empty", watchSpan("b", "b", 0)},
		{"mvcc: watcher range is empty", watchSpan("b", "a", 0)},
		{"mvcc: watcher range is empty", watchSpan("b", "a", 3)},
		{"mvcc: watcher range is empty", watchSpan("b", "\x00\x00", 3)},
		{"etcdserver: mvcc: required revision has been compacted", watchSpan("b", "", -1)},
		{"etcdserver: mvcc: required revision has been compacted", watchSpan("b", "a", -1)},
		{"etcdserver: mvcc: required revision has been compacted", watchSpan("b", "", -1<<63)},
	} {
		message := w.create(-1, wrong.request)
		if message.CancelReason != wrong.reason || !message.Canceled {
			t.Errorf("%v: etcd answers %v", wrong.request, message)
		}
	}
	w.create(4, withID(4, watchKey("a")))
	if message := w.create(-1, withID(4, watchKey("b"))); message.CancelReason != "mvcc: duplicate watch ID provided on the WatchStream" {
		t.Errorf("duplicate: %v", message)
	}
	// The stream lives on, and so does the watch whose id was asked for again.
	p.ok(put("a", "live"))
	w.next(4)
	w.send(&pb.WatchRequest{})
	w.cancel(99)
	w.cancel(-1)
	w.quiet(-1, 99, 0)
	p.ok(put("a", "live"))
	w.next(4)
}

func withID(id int64, request *pb.WatchCreateRequest) *pb.WatchCreateRequest {
	request.WatchId = id
	return request
}

func TestWatchIDs(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	w := p.watch()
	w.create(0, watchKey("a"))
	w.create(1, withID(1, watchKey("a")))
	w.create(2, withID(2, watchKey("a")))
	w.create(3, watchKey("a"))
	w.create(1<<40, withID(1<<40, watchKey("a")))
	w.create(4, watchKey("a"))
	w.create(-5, withID(-5, watchKey("a")))
	ids := []int64{0, 1, 2, 3, 4, 1 << 40, -5}
	p.ok(put("a", "1"))
	for _, id := range ids {
		w.next(id)
	}
	w.cancel(1)
	if message := w.next(1); !message.Canceled || message.CancelReason != "" || message.CompactRevision != 0 {
		t.Errorf("canceled: %v", message)
	}
	w.cancel(1)
	p.ok(put("a", "2"))
	w.quiet(1)
	w.create(1, withID(1, watchKey("a")))
	w.cancel(0)
	w.next(0) // the event
	w.next(0) // the end
	w.create(5, watchKey("a"))
	p.ok(put("a", "3"))
	for _, id := range ids[2:] {
		w.next(id)
		w.next(id)
	}
	w.next(1)
	w.next(5)
	w.quiet(append(ids, 6, -1)...)
}

func TestWatchPrevKV(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	w := p.watch()
	live := watchSpan("\x00", "\x00", 0)
	live.PrevKv = true
	w.create(0, live)
	steps := []proto.Message{
		put("a", "1"), put("a", "2"), del("a"), put("a", "3"), put("b", ""), put("b", ""),
		txn(nil, ops(del("a"), put("b", "x"), put("c", "y")), nil), delSpan("\x00", "\x00"),
	}
	for _, step := range steps {
		p.ok(step)
		w.next(0)
	}
	head := p.revision()
	w.create(1, func() *pb.WatchCreateRequest { r := watchSpan("\x00", "\x00", 1); r.PrevKv = true; return r }())
	w.events(1, head)
	// What went before a revision is gone once that revision is compacted to.
	for revision := int64(2); revision <= head; revision++ {
		p.ok(compact(revision))
		request := watchSpan("\x00", "\x00", revision)
		request.PrevKv = true
		created := w.create(revision, request)
		w.events(created.WatchId, head)
	}
}

func TestWatchWithAndWithoutPrevKV(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	w := p.watch()
	for id := range int64(6) {
		request := watchSpan("a", "c", 0)
		request.PrevKv = id%2 == 1
		w.create(id, request)
	}
	for i := range 10 {
		p.ok(txn(nil, ops(put("a", fmt.Sprint(i)), put("b", fmt.Sprint(i))), nil))
		for id := range int64(6) {
			if message := w.next(id); (message.Events[0].PrevKv != nil) != (id%2 == 1 && i > 0) {
				t.Errorf("watch %d: %v", id, message)
			}
		}
	}
}

func TestWatchFilters(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	w := p.watch()
	const noPut, noDelete = pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE
	filters := [][]pb.WatchCreateRequest_FilterType{{}, {noPut}, {noDelete}, {noPut, noDelete}, {noPut, noPut}, {9}, {9, noPut}, {-1}}
	id := int64(0)
	for _, from := range []int64{0, 1} {
		for _, filter := range filters {
			request := watchSpan("\x00", "\x00", from)
			request.Filters = filter
			w.create(id, request)
			id++
		}
	}
	history(p)
	p.ok(txn(nil, ops(put("k", "1"), put("l", "1")), nil))
	last := p.revision()
	p.ok(txn(nil, ops(del("k"), put("l", "2")), nil))
	last++
	for id := range id {
		if filter := filters[id%int64(len(filters))]; len(filter) < 2 || filter[1] != noDelete {
			w.events(id, last)
		}
	}
	for i, filter := range filters {
		request := watchSpan("\x00", "\x00", 1)
		request.Filters = filter
		w.create(id+int64(i), request)
		if len(filter) < 2 || filter[1] != noDelete {
			w.events(id+int64(i), last)
		}
	}
	w.quiet(3, 11, id+3)
	w.progress()
	w.next(-1)
}

func TestWatchCompaction(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	head := history(p)
	p.ok(compact(head - 4))
	w := p.watch()
	for id, from := range []int64{1, 2, head - 5} {
		w.create(int64(id), watchSpan("\x00", "\x00", from))
		message := w.next(int64(id))
		if !message.Canceled || message.CompactRevision != head-4 || message.CancelReason != "" || message.Header.Revision != 0 {
			t.Errorf("from %d: etcd answers %v", from, message)
		}
	}
	for id, from := range []int64{head - 4, head - 3, head} {
		created := w.create(int64(id+3), watchSpan("\x00", "\x00", from))
		w.events(created.WatchId, head)
	}
	// The id of a watch that was cut stays taken until the client cancels it.
	w.create(-1, withID(1, watchKey("a")))
	w.cancel(1)
	w.next(1)
	w.create(1, withID(1, watchKey("a")))
	w.create(6, watchSpan("a", "", head+5))
	p.ok(put("a", "x"))
	p.ok(compact(p.revision()))
	p.ok(put("a", "y"))
	for _, id := range []int64{1, 3, 4, 5} {
		w.next(id)
		w.next(id)
	}
	w.quiet(0, 1, 2, 3, 4, 5, 6)
	for range 3 {
		p.ok(put("a", "z"))
	}
	w.next(6)
	// A tombstone at the compacted revision is seen from there.
	p.ok(put("gone", "x"))
	p.ok(del("gone"))
	gone := p.revision()
	p.ok(put("after", "x"))
	p.ok(compact(gone))
	created := w.create(7, watchSpan("gone", "", gone))
	if events := w.events(created.WatchId, gone); events[0].Type != mvccpb.Event_DELETE {
		t.Errorf("from a tombstone: %v", events)
	}
	p.ok(compact(gone + 1))
	w.create(8, watchSpan("gone", "", gone))
	w.next(8)
}

func TestWatchProgressOnRequest(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	head := history(p)
	w := p.watch()
	w.progress()
	w.quiet(-1, 0)
	w.create(0, watchKey("a"))
	w.progress()
	if message := w.next(-1); message.Header.Revision != head || len(message.Events) != 0 {
		t.Errorf("progress at %d: %v", head, message)
	}
	p.ok(put("unwatched", "v"))
	w.progress()
	if message := w.next(-1); message.Header.Revision != head+1 {
		t.Errorf("progress at %d: %v", head+1, message)
	}
	p.ok(put("a", "v"))
	w.next(0)
	w.progress()
	w.next(-1)
	w.create(1, watchSpan("\x00", "\x00", 1))
	w.events(1, head+2)
	time.Sleep(silence)
	w.progress()
	w.next(-1)
	// A watch of the future keeps the stream from being in step.
	w.create(2, watchSpan("a", "", head+4))
	w.progress()
	w.quiet(-1)
	p.ok(put("unwatched", "v"))
	p.ok(put("unwatched", "v"))
	w.next(1)
	w.next(1)
	w.progress()
	w.next(-1)
	w.cancel(0)
	w.next(0)
	w.progress()
	w.next(-1)
	w.quiet(0, 1, 2, -1)
}

func TestWatchProgressByInterval(t *testing.T) {
	t.Parallel()
	p := newPair(t, "--watch-progress-notify-interval=200ms")
	p.ok(put("a", "v"))
	w := p.watch()
	request := watchKey("a")
	request.ProgressNotify = true
	w.create(0, request)
	w.create(1, watchKey("a"))
	for range 3 {
		if message := w.next(0); len(message.Events) != 0 || message.Header.Revision != 2 {
			t.Errorf("progress: %v", message)
		}
	}
	w.quiet(1, -1)
	for _, side := range w.sides {
		// Drop what has come, by the time it has taken to look.
		for side.take(0, 0) != nil {
		}
	}
	p.ok(put("b", "v"))
	for i, side := range w.sides {
		deadline := time.Now().Add(watchLimit)
		for message := side.take(0, watchLimit); ; message = side.take(0, watchLimit) {
			if message != nil && message.Header.Revision == 3 && len(message.Events) == 0 {
				break
			}
			if message == nil || time.Now().After(deadline) {
				t.Fatalf("%s: no progress to revision 3", harness.Kind(i))
			}
		}
	}
}

// More revisions than one message may hold, and revisions of many events.
func TestWatchCatchUp(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	const revisions = 2600
	for i := range revisions {
		if i%100 == 50 {
			batch := txn(nil, nil, nil)
			for j := range 128 {
				batch.Success = append(batch.Success, ops(put(fmt.Sprintf("k%03d", j), fmt.Sprint(i)))...)
			}
			p.ok(batch)
		} else {
			p.ok(put(fmt.Sprintf("k%03d", i%7), fmt.Sprint(i)))
		}
	}
	head := p.revision()
	w := p.watch()
	for id, from := range []int64{1, 1000, 2000, head} {
		w.create(int64(id), watchSpan("k", "l", from))
	}
	for id, from := range []int64{1, 1000, 2000, head} {
		events := w.events(int64(id), head)
		if events[0].Kv.ModRevision < from || int64(len(events)) < head-from {
			t.Errorf("from %d: %d events, the first of %d", from, len(events), events[0].Kv.ModRevision)
		}
	}
	p.ok(put("k000", "live"))
	for id := range int64(4) {
		w.next(id)
	}
}

func TestWatchFragments(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	const values = 7
	value := strings.Repeat("v", 700<<10)
	for i := range values {
		p.ok(put(fmt.Sprintf("k%d", i), value))
	}
	p.ok(put("small", "v"))
	head := p.revision()
	w := p.watch()
	for id, fragment := range []bool{false, true} {
		request := watchSpan("k", "l", 1)
		request.Fragment = fragment
		w.create(int64(id), request)
		w.events(int64(id), head-1)
	}
	request := watchSpan("k", "l", 1)
	request.Fragment = true
	w.create(2, request)
	parts := 0
	for {
		parts++
		if !w.next(2).Fragment {
			break
		}
	}
	if parts < 2 {
		t.Errorf("%d fragments", parts)
	}
	// One event larger than the limit is not cut, and small ones need no cut.
	single := watchKey("k0")
	single.StartRevision, single.Fragment = 1, true
	w.create(3, single)
	if w.next(3).Fragment {
		t.Error("a single event is a fragment")
	}
	p.ok(put("k0", "v"))
	for id := range int64(4) {
		w.next(id)
	}
}

// The limit on fragments follows --max-request-bytes.
func TestWatchFragmentsOfSmallEvents(t *testing.T) {
	t.Parallel()
	p := newPair(t, "--max-request-bytes=2000")
	value := strings.Repeat("v", 1500)
	for i := range 900 {
		p.ok(put(fmt.Sprintf("k%d", i%10), value))
	}
	head := p.revision()
	w := p.watch()
	request := watchSpan("k", "l", 1)
	request.Fragment, request.PrevKv = true, true
	w.create(0, request)
	parts := 0
	for {
		parts++
		if !w.next(0).Fragment {
			break
		}
	}
	if parts < 3 {
		t.Errorf("%d fragments", parts)
	}
	if head != 901 {
		t.Errorf("head is %d", head)
	}
}

func TestWatchStreamEnds(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	// A stream that the client has finished sending on keeps its watches.
	w := p.watch()
	w.create(0, watchKey("a"))
	for _, side := range w.sides {
		if err := side.stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
	}
	p.ok(put("a", "1"))
	w.next(0)
	time.Sleep(silence)
	p.ok(put("a", "2"))
	w.next(0)
	// A stop ends it.
	var stopped sync.WaitGroup
	p.duo.Each(func(server *harness.Server) {
		stopped.Go(func() {
			if err := server.Stop(); err != nil {
				t.Error(err)
			}
		})
	})
	stopped.Wait()
	t.Logf("etcd ends the stream with %v", w.ends())
}

func TestWatchWithLeaderRequired(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	w := &watchPair{p: p}
	ctx := metadata.AppendToOutgoingContext(harness.Context(t, time.Minute), "hasleader", "true")
	for i, conn := range p.conn {
		side, err := openWatchSide(ctx, conn)
		if err != nil {
			t.Fatal(err)
		}
		w.sides[i] = side
	}
	w.create(0, watchKey("a"))
	p.ok(put("a", "1"))
	w.next(0)
}

func TestWatchManyOnOneStream(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	w := p.watch()
	const watches = 300
	for id := range int64(watches) {
		w.create(id, watchKey(fmt.Sprintf("k%d", id%10)))
	}
	for i := range 30 {
		p.ok(txn(nil, ops(put(fmt.Sprintf("k%d", i%10), fmt.Sprint(i)), put(fmt.Sprintf("k%d", (i+3)%10), fmt.Sprint(i))), nil))
	}
	head := p.revision()
	for id := range int64(watches) {
		// Key k is written by i = k and by i = k - 3, last with i = 20 + one of them.
		key := id % 10
		last := max(20+key, 20+(key+7)%10) + 2
		if events := w.events(id, last); len(events) != 6 {
			t.Errorf("watch %d has %d events, head %d", id, len(events), head)
		}
	}
}

// A reader that does not read holds nobody up and misses nothing once it does.
func TestWatchSlowReader(t *testing.T) {
	t.Parallel()
	duo := harness.StartDuo(t, harness.Options{})
	duo.Each(func(server *harness.Server) { slowReader(t, server) })
}

func slowReader(t *testing.T, server *harness.Server) {
	reader, writer := server.Dial(t), server.Dial(t)
	stream, err := pb.NewWatchClient(reader).Watch(harness.Context(t, 3*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: watchKey("k")}})
	if err != nil {
		t.Fatal(err)
	}
	const writes = 1200
	value := strings.Repeat("v", 8<<10)
	var slowest time.Duration
	for i := range writes {
		began := time.Now()
		if outcome := invoke(context.Background(), writer, put("k", fmt.Sprint(i, value))); outcome.Err != nil {
			t.Fatal(outcome.Err)
		}
		slowest = max(slowest, time.Since(began))
	}
	if slowest > 5*time.Second {
		t.Errorf("%s: a put took %v beside a slow reader", server.Kind(), slowest)
	}
	var seen []int64
	for len(seen) < writes {
		message, err := stream.Recv()
		if err != nil {
			t.Fatalf("%s: after %d events: %v", server.Kind(), len(seen), err)
		}
		for _, event := range message.Events {
			seen = append(seen, event.Kv.ModRevision)
		}
	}
	if !slices.IsSorted(seen) || seen[0] != 2 || seen[writes-1] != writes+1 || len(seen) != writes {
		t.Errorf("%s: events of revisions %d to %d, %d of them", server.Kind(), seen[0], seen[len(seen)-1], len(seen))
	}
}
