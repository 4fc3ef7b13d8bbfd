package cases

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

func TestFreshStore(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	if revision := p.revision(); revision != 1 {
		t.Errorf("a fresh store is at %d", revision)
	}
	p.do(everything())
	p.do(del("missing"))
	p.do(txn(nil, nil, nil))
	p.do(&pb.HashKVRequest{})
	first := p.ok(put("k", "v")).(*pb.PutResponse)
	if first.Header.Revision != 2 {
		t.Errorf("the first put makes %d", first.Header.Revision)
	}
	p.do(everything())
}

func TestPut(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(&pb.LeaseGrantRequest{ID: 7, TTL: 1000})
	p.ok(&pb.LeaseGrantRequest{ID: -7, TTL: 1000})
	p.ok(put("k", "one"))
	for _, request := range []*pb.PutRequest{
		{Value: []byte("v")},
		{Key: []byte("k"), Value: []byte("two"), PrevKv: true},
		{Key: []byte("new"), Value: []byte("v"), PrevKv: true},
		{Key: []byte("k"), PrevKv: true},
		{Key: []byte("k"), Value: []byte("three"), Lease: 7},
		{Key: []byte("k"), Value: []byte("four"), Lease: 7, PrevKv: true},
		{Key: []byte("k"), Value: []byte("five"), IgnoreLease: true, PrevKv: true},
		{Key: []byte("k"), IgnoreValue: true, Lease: 7, PrevKv: true},
		{Key: []byte("k"), IgnoreValue: true, PrevKv: true},
		{Key: []byte("k"), IgnoreValue: true, IgnoreLease: true, PrevKv: true},
		{Key: []byte("k"), IgnoreLease: true},
		{Key: []byte("k"), Value: []byte("six"), Lease: -7},
		{Key: []byte("k"), Value: []byte("seven"), Lease: -7, PrevKv: true},
		{Key: []byte("k"), Lease: 8},
		{Key: []byte("k"), Lease: -8},
		{Key: []byte("k"), Lease: -1 << 63},
		{Key: []byte("k"), IgnoreValue: true, Value: []byte("v")},
		{Key: []byte("k"), IgnoreLease: true, Lease: 7},
		{Key: []byte("k"), IgnoreValue: true, Value: []byte("v"), IgnoreLease: true, Lease: 7},
		{IgnoreValue: true, Value: []byte("v")},
		{Key: []byte("missing"), IgnoreValue: true},
		{Key: []byte("missing"), IgnoreLease: true},
		{Key: []byte("missing"), IgnoreValue: true, Lease: 99},
		{Key: []byte("\x00")},
		{Key: []byte("\x00\xff\x00"), Value: []byte("\x00\xff")},
		{Key: []byte(strings.Repeat("k", 70_000)), Value: []byte("v"), PrevKv: true},
	} {
		p.do(request)
		p.do(everything())
	}
	p.fails(emptyKey, put("", "v"))
	p.fails(noLease, &pb.PutRequest{Key: []byte("k"), Lease: 9})
	p.fails(valueProvided, &pb.PutRequest{Key: []byte("k"), IgnoreValue: true, Value: []byte("v")})
	p.fails(leaseProvided, &pb.PutRequest{Key: []byte("k"), IgnoreLease: true, Lease: 9})
	p.fails(keyNotFound, &pb.PutRequest{Key: []byte("missing"), IgnoreValue: true})
	p.fails(keyNotFound, &pb.PutRequest{Key: []byte("missing"), IgnoreLease: true})
	p.do(&pb.LeaseTimeToLiveRequest{ID: 7, Keys: true}, withoutRemaining)
	p.do(&pb.LeaseTimeToLiveRequest{ID: -7, Keys: true}, withoutRemaining)
}

func TestDeleteRange(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	bounds := []string{"", "\x00", "a", "b", "b\x00", "d", "\xff\xff"}
	for _, key := range bounds {
		for _, end := range bounds {
			for _, previous := range []bool{false, true} {
				for _, kept := range []string{"\x00", "a", "b", "c", "\xff"} {
					p.ok(put(kept, "v"))
				}
				request := delSpan(key, end)
				request.PrevKv = previous
				p.do(request)
				p.do(everything())
			}
		}
	}
	p.fails(emptyKey, del(""))
	before := p.revision()
	if none := p.ok(del("missing")).(*pb.DeleteRangeResponse); none.Deleted != 0 || none.Header.Revision != before {
		t.Errorf("deleting a missing key gives %v at revision %d", none, before)
	}
	p.do(delSpan("\x00", "\x00"))
	p.do(delSpan("\x00", "\x00"))
}

func TestCompact(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	head := history(p)
	p.fails(compacted, compact(-1))
	p.fails(compacted, compact(-5))
	p.do(compact(0))
	p.fails(compacted, compact(0))
	p.fails(future, compact(head+1))
	p.fails(future, compact(1<<63-1))
	for _, revision := range []int64{1, 2, head / 2, head/2 + 1} {
		for _, physical := range []bool{false, true} {
			request := compact(revision)
			request.Physical = physical
			p.do(request)
			p.do(everything())
		}
	}
	p.fails(compacted, compact(head/2))
	for revision := int64(1); revision <= head; revision++ {
		request := everything()
		request.Revision = revision
		p.do(request)
	}
	if answer := p.ok(compact(head)).(*pb.CompactionResponse); answer.Header.Revision != head {
		t.Errorf("the answer to a compaction is at %d, head %d", answer.Header.Revision, head)
	}
	p.fails(compacted, compact(head))
	p.fails(compacted, &pb.CompactionRequest{Revision: head})
	request := everything()
	request.Revision = head
	p.ok(request)
	p.fails(compacted, &pb.RangeRequest{Key: []byte("a"), Revision: head - 1})
	p.do(txn(nil, ops(put("x", "y"), &pb.RangeRequest{Key: []byte("a"), Revision: head - 1}), nil))
	p.do(put("x", "y"))
	p.do(everything())
}

// The same history must hash the same, at every revision, before and after
// compactions, and after deletes and re-creations.
func TestHashKV(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	hashAll := func() {
		head := p.revision()
		for revision := int64(-2); revision <= head+2; revision++ {
			p.do(&pb.HashKVRequest{Revision: revision})
		}
	}
	hashAll()
	p.ok(&pb.LeaseGrantRequest{ID: 11, TTL: 1000})
	p.ok(&pb.PutRequest{Key: []byte("leased"), Value: []byte("v"), Lease: 11})
	head := history(p)
	hashAll()
	fresh := p.ok(&pb.HashKVRequest{}).(*pb.HashKVResponse)
	if fresh.CompactRevision != -1 || fresh.HashRevision != head || fresh.Hash == 0 {
		t.Errorf("before any compaction: %v", fresh)
	}
	for _, revision := range []int64{2, 5, head - 8, head - 3, head - 1, head} {
		p.ok(compact(revision))
		hashAll()
	}
	p.fails(compacted, &pb.HashKVRequest{Revision: head - 2})
	p.fails(future, &pb.HashKVRequest{Revision: head + 1})
	p.ok(&pb.LeaseRevokeRequest{ID: 11})
	history(p)
	p.ok(delSpan("\x00", "\x00"))
	hashAll()
	p.ok(compact(p.revision()))
	hashAll()
	history(p)
	hashAll()
	duoRestart(p)
	hashAll()
	p.do(everything())
}

// A compaction that keeps only a tombstone, or nothing, of a key.
func TestHashKVOfTombstones(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for _, request := range []proto.Message{
		put("a", "1"), del("a"), put("b", "1"), del("b"), put("b", "2"),
		txn(nil, ops(put("c", "1"), del("b"), put("d", "2")), nil),
		txn(nil, ops(del("d"), put("a", "1")), nil), del("c"),
	} {
		p.ok(request)
	}
	head := p.revision()
	for revision := int64(1); revision <= head; revision++ {
		p.ok(compact(revision))
		for at := revision - 1; at <= head; at++ {
			p.do(&pb.HashKVRequest{Revision: at})
		}
		p.do(&pb.HashKVRequest{})
	}
}

// The hashes of the last ten compactions, as they were just before, are kept in
// memory and answered for their revisions even after later compactions; a
// restart forgets them.
func TestHashKVOfPastCompactions(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	history(p)
	head := history(p)
	hashAll := func() {
		for revision := int64(1); revision <= head; revision++ {
			p.do(&pb.HashKVRequest{Revision: revision})
		}
	}
	for revision := int64(2); revision <= 2*12; revision += 2 {
		before := p.ok(&pb.HashKVRequest{Revision: revision}).(*pb.HashKVResponse)
		p.ok(compact(revision))
		after := p.ok(&pb.HashKVRequest{Revision: revision}).(*pb.HashKVResponse)
		if before.Hash != after.Hash || before.CompactRevision != after.CompactRevision {
			t.Errorf("etcd answers %v before and %v after the compaction to %d", before, after, revision)
		}
		hashAll()
	}
	duoRestart(p)
	hashAll()
	p.fails(compacted, &pb.HashKVRequest{Revision: 22})
}

// Hash covers the whole backend and so differs; only its shape is compared.
func TestHash(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	hash := func(message proto.Message) {
		answer := message.(*pb.HashResponse)
		if answer.Hash == 0 {
			t.Error("hash is 0")
		}
		answer.Hash = 0
	}
	p.ok(&pb.HashRequest{}, hash)
	history(p)
	p.ok(&pb.HashRequest{}, hash)
}

// duoRestart stops both servers in order and starts them again.
func duoRestart(p *pair) {
	p.t.Helper()
	var restarted sync.WaitGroup
	p.duo.Each(func(server *harness.Server) {
		restarted.Go(func() {
			if err := errors.Join(server.Stop(), server.Restart()); err != nil {
				p.t.Error(err)
			}
		})
	})
	restarted.Wait()
	if p.t.Failed() {
		p.t.FailNow()
	}
	p.duo.Settle(p.t)
	for side := range p.conn {
		p.conn[side].ResetConnectBackoff()
	}
	p.waitConnected()
}
