package cases

import (
	"fmt"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// history writes keys with several versions, equal values, tombstones and
// bytes at the edges of the key space, and answers the revision after it.
func history(p *pair) int64 {
	for i, key := range []string{"a", "b", "ba", "c", "d", "\x00", "\x00\x00", "\xff", "\xff\xff", "aa"} {
		p.ok(put(key, strings.Repeat(string(rune('z'-i%4)), 1+i%3)))
	}
	p.ok(put("b", "second"))
	p.ok(put("c", ""))
	p.ok(put("c", "third"))
	p.ok(del("d"))
	p.ok(put("d", "born again"))
	p.ok(del("aa"))
	p.ok(txn(nil, ops(put("t2", "same"), put("t1", "same"), del("ba")), nil))
	return p.revision()
}

func TestRangeBounds(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	history(p)
	bounds := []string{"", "\x00", "\x00\x00", "a", "b", "b\x00", "c", "zz", "\xff", "\xff\xff", "\xff\xff\xff"}
	for _, key := range bounds {
		for _, end := range bounds {
			p.do(span(key, end))
			p.compareStreams(span(key, end))
		}
	}
	p.fails(emptyKey, span("", ""))
	p.fails(emptyKey, span("", "z"))
	if all := p.ok(everything()).(*pb.RangeResponse); all.Count != 10 {
		t.Errorf("everything counts %d", all.Count)
	}
	if none := p.ok(span("c", "b")).(*pb.RangeResponse); none.Count != 0 {
		t.Errorf("an inverted range counts %d", none.Count)
	}
}

// compareStreams makes a RangeStream on both sides.
func (p *pair) compareStreams(request *pb.RangeRequest) harness.Outcome {
	p.t.Helper()
	outcomes := p.parallel(func(side int) harness.Outcome { return rangeStream(p.conn[side], request) })
	p.compare("stream of "+describe(request), outcomes)
	return outcomes[etcd]
}

// A stream in every order that cannot be read: an answer, never a reset.
func TestStreamsOfNoRevision(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	head := history(p)
	p.ok(&pb.CompactionRequest{Revision: head - 2})
	for target := range int32(5) {
		for order := range int32(3) {
			for _, revision := range []int64{1, head - 3, head - 2, head + 1, -1} {
				p.compareStreams(&pb.RangeRequest{
					Key: []byte("\x00"), RangeEnd: []byte("\x00"), Revision: revision,
					SortOrder: pb.RangeRequest_SortOrder(order), SortTarget: pb.RangeRequest_SortTarget(target),
				})
			}
		}
	}
}

func TestRangeOptions(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	head := history(p)
	for order := range int32(3) {
		for target := range int32(5) {
			for _, limit := range []int64{-1, 0, 1, 3, 9, 10, 11, 1 << 62, 1<<63 - 1} {
				for flags := range 8 {
					request := &pb.RangeRequest{
						Key: []byte("\x00"), RangeEnd: []byte("\x00"), Limit: limit,
						SortOrder: pb.RangeRequest_SortOrder(order), SortTarget: pb.RangeRequest_SortTarget(target),
						KeysOnly: flags&1 != 0, CountOnly: flags&2 != 0, Serializable: flags&4 != 0,
					}
					p.do(request)
					if order == 0 && limit >= 0 {
						// A target without an order: each chunk is sorted by itself.
						p.compareStreams(request)
						request.Revision = head - 3
						p.compareStreams(request)
					}
				}
			}
		}
	}
	for revision := int64(-3); revision <= head+2; revision++ {
		for _, limit := range []int64{0, 2} {
			request := everything()
			request.Revision, request.Limit = revision, limit
			p.do(request)
			p.compareStreams(request)
			request.KeysOnly = true
			p.do(request)
			request.CountOnly = true
			p.do(request)
			p.compareStreams(request)
		}
	}
}

func TestRangeRevisionFilters(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	head := history(p)
	for low := int64(-1); low <= head+1; low += 3 {
		for high := int64(-1); high <= head+1; high += 3 {
			for _, limit := range []int64{0, 2} {
				for _, flags := range []int{0, 1, 2, 3} {
					request := everything()
					request.Limit, request.KeysOnly, request.CountOnly = limit, flags&1 != 0, flags&2 != 0
					request.MinModRevision, request.MaxModRevision = low, high
					p.do(request)
					request.MinModRevision, request.MaxModRevision = 0, 0
					request.MinCreateRevision, request.MaxCreateRevision = low, high
					p.do(request)
					request.MinModRevision, request.SortTarget = low, pb.RangeRequest_VERSION
					request.Revision = head - 2
					p.do(request)
				}
			}
		}
	}
}

func TestRangeRefusals(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	head := history(p)
	p.fails(badSort, &pb.RangeRequest{Key: []byte("a"), SortOrder: 3})
	p.fails(badSort, &pb.RangeRequest{Key: []byte("a"), SortOrder: -1})
	p.fails(badSort, &pb.RangeRequest{Key: []byte("a"), SortTarget: 5})
	p.fails(badSort, &pb.RangeRequest{Key: []byte("a"), SortTarget: 1 << 30})
	p.fails(emptyKey, &pb.RangeRequest{SortTarget: 5})
	p.fails(future, &pb.RangeRequest{Key: []byte("a"), Revision: head + 1})
	p.fails(future, &pb.RangeRequest{Key: []byte("a"), Revision: 1<<63 - 1})
	p.ok(compact(head - 2))
	p.fails(compacted, &pb.RangeRequest{Key: []byte("a"), Revision: head - 3})
	p.fails(compacted, &pb.RangeRequest{Key: []byte("a"), Revision: 1})
	p.ok(&pb.RangeRequest{Key: []byte("a"), Revision: head - 2})
	p.ok(&pb.RangeRequest{Key: []byte("a"), Revision: -7})
	for _, request := range []*pb.RangeRequest{
		{}, {Key: []byte("a"), SortOrder: 9}, {Key: []byte("a"), SortTarget: 9},
		{Key: []byte("a"), SortTarget: pb.RangeRequest_MOD}, {Key: []byte("a"), SortOrder: pb.RangeRequest_ASCEND},
		{Key: []byte("a"), SortOrder: pb.RangeRequest_DESCEND},
		{Key: []byte("a"), SortTarget: pb.RangeRequest_MOD, SortOrder: pb.RangeRequest_ASCEND},
		{Key: []byte("a"), MinModRevision: 1}, {Key: []byte("a"), MaxModRevision: 1},
		{Key: []byte("a"), MinCreateRevision: 1}, {Key: []byte("a"), MaxCreateRevision: 1},
		{Key: []byte("a"), MaxCreateRevision: -1}, {Key: []byte("a"), Revision: head + 1},
		{Key: []byte("a"), Revision: head - 3}, {Key: []byte("a"), Revision: -1}, {Key: []byte("a"), Limit: -1},
		{Key: []byte("\x00"), RangeEnd: []byte("\x00"), Limit: -1},
		{Key: []byte("\x00"), RangeEnd: []byte("\x00"), CountOnly: true, Limit: 2},
		{Key: []byte("\x00"), RangeEnd: []byte("\x00"), Serializable: true},
	} {
		p.compareStreams(request)
	}
}

// Answers of many keys: RangeStream cuts them in chunks, Range does not.
func TestRangeOfManyKeys(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	value := strings.Repeat("v", 2000)
	const keys = 3000
	for i := 0; i < keys; i += 100 {
		batch := txn(nil, nil, nil)
		for j := range 100 {
			batch.Success = append(batch.Success, ops(put(fmt.Sprintf("many/%05d", i+j), value))...)
		}
		p.ok(batch)
	}
	for _, limit := range []int64{0, 1, 9, 10, 11, 29, 30, 31, 2500, keys, keys + 1} {
		request := span("many/", "many0")
		request.Limit = limit
		p.do(request)
		streamed := p.compareStreams(request)
		if answer, ok := streamed.Message.(*pb.RangeResponse); !ok || answer.Count != keys {
			t.Errorf("limit %d: streamed count of %d keys: %v", limit, keys, streamed.Err)
		}
		request.KeysOnly = true
		p.do(request)
		p.compareStreams(request)
	}
}
