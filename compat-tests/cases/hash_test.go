package cases

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

func compactNow(revision int64) proto.Message {
	return &pb.CompactionRequest{Revision: revision, Physical: true}
}

// More keys than are hashed at once: the hashes that compactions keep, those of
// the present history, and those of after a restart.
func TestHashKVOfManyKeys(t *testing.T) {
	t.Parallel()
	const each, transactions = 10_000, 23
	p := newPair(t, fmt.Sprint("--max-txn-ops=", each))
	change := func(from, step int, of func(int) proto.Message) {
		var all []proto.Message
		for i := range each {
			all = append(all, of(from+i*step))
		}
		for _, done := range p.both(txn(nil, ops(all...), nil)) {
			if done.Err != nil {
				t.Fatal(done.Err)
			}
		}
	}
	key := func(i int) string { return fmt.Sprint("key", i*7_919%(each*transactions)) }
	revisions := []int64{0}
	look := func() {
		for _, revision := range revisions {
			p.do(&pb.HashKVRequest{Revision: revision})
		}
	}
	for at := range transactions {
		change(at*each, 1, func(i int) proto.Message { return put(key(i), fmt.Sprint(at)) })
	}
	revisions = append(revisions, p.revision())
	change(0, 3, func(i int) proto.Message { return put(key(i), "again") })
	change(1, 5, func(i int) proto.Message { return del(key(i)) })
	revisions = append(revisions, p.revision()-1, p.revision())
	look()
	for _, revision := range revisions[1:] {
		p.ok(compactNow(revision))
		look()
		change(2, 7, func(i int) proto.Message { return put(key(i), "later") })
		p.do(&pb.HashKVRequest{})
	}
	duoRestart(p)
	look()
	hashesAtOnce(t, p)
}

// hashesAtOnce asks an etched for more hashes than it computes at a time: the others
// wait, hold next to nothing, and no put waits for them.
func hashesAtOnce(t *testing.T, p *pair) {
	t.Helper()
	const hashes, puts = 20, 20
	server := p.duo.Etched
	before, err := server.ResidentBytes()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.ResetPeak(); err != nil {
		t.Fatal(err)
	}
	var asked sync.WaitGroup
	for range hashes {
		asked.Go(func() {
			if outcome := invoke(context.Background(), p.conn[etched], &pb.HashKVRequest{}); outcome.Err != nil {
				t.Error(outcome.Err)
			}
		})
	}
	began := time.Now()
	for range puts {
		if outcome := invoke(context.Background(), p.conn[etched], put("beside", "x")); outcome.Err != nil {
			t.Error(outcome.Err)
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("%d puts took %v", puts, took)
	}
	asked.Wait()
	peak, err := server.PeakResidentBytes()
	if err != nil {
		t.Fatal(err)
	}
	// A few hashes at a time, the blocks that they read, and what puts took meanwhile.
	if more := peak - before; more > 128<<20 {
		t.Errorf("%d hashes took %d MiB", hashes, more>>20)
	}
}

// A compaction to 0 keeps a hash as others do. etcd answers it to everybody who
// asks for the newest, until ten others were kept, or it starts again.
func TestHashKVOfACompactionToZero(t *testing.T) {
	t.Parallel()
	for _, restarts := range []bool{true, false} {
		p := newPair(t)
		history(p)
		head := history(p)
		look := func() {
			for revision := range head + 1 {
				p.do(&pb.HashKVRequest{Revision: revision})
			}
		}
		p.ok(compactNow(0))
		zero := p.ok(&pb.HashKVRequest{}).(*pb.HashKVResponse)
		if zero.HashRevision != 0 || zero.CompactRevision != -1 {
			t.Errorf("etcd answers %v", zero)
		}
		look()
		if restarts {
			duoRestart(p)
			look()
			continue
		}
		for revision := range int64(11) {
			p.ok(compactNow(revision + 1))
			p.do(&pb.HashKVRequest{})
		}
		look()
	}
}
