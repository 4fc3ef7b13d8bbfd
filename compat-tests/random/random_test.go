package random

import (
	"flag"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

var (
	seeds      = flag.Int("seeds", 50, "how many seeds to run")
	firstSeed  = flag.Uint64("first-seed", 1, "the first seed")
	operations = flag.Int("ops", 2000, "operations of a sequence")
	shrinkTime = flag.Duration("shrink", 90*time.Second, "how long to shorten a failing sequence; 0 prints it as it is")
)

func TestRandomSequences(t *testing.T) {
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		if _, err := harness.Binary(kind); err != nil {
			t.Fatal(err)
		}
	}
	// Most of a run is one side's waiting for the other.
	workers := max(2, runtime.NumCPU()+1)
	var next atomic.Uint64
	var stop atomic.Bool
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for !stop.Load() {
				n := next.Add(1) - 1
				if n >= uint64(*seeds) {
					return
				}
				if !try(t, *firstSeed+n) {
					stop.Store(true)
				}
			}
		})
	}
	group.Wait()
}

// try runs one seed; where it fails, it prints the shortest sequence found.
func try(t *testing.T, seed uint64) bool {
	sequence := newGenerator(seed).sequence(*operations)
	found := run(sequence)
	if found == nil {
		return true
	}
	if found.fatal {
		t.Errorf("seed %d: %v", seed, found)
		return false
	}
	shortest := sequence[:found.at+1]
	if *shrinkTime > 0 {
		shortest, found = shrink(sequence, found, run, *shrinkTime)
	}
	var text strings.Builder
	for _, o := range shortest {
		fmt.Fprintf(&text, "    %v\n", o)
	}
	t.Errorf("seed %d (go test ./random -first-seed=%d -seeds=1 -ops=%d): %d operations differ at the last:\n%s%v",
		seed, seed, *operations, len(shortest), &text, found)
	return false
}

// The generator must reach what it is there for.
func TestSequencesAreVaried(t *testing.T) {
	count := map[string]int{}
	depth := 0
	for seed := range uint64(10) {
		for _, o := range newGenerator(seed).sequence(2000) {
			count[name(o)]++
			if txn, ok := o.request.(*pb.TxnRequest); ok {
				depth = max(depth, depthOf(txn))
			}
		}
	}
	for _, category := range []string{"put", "delete", "txn", "range", "stream", "compact", "grant", "revoke", "time_to_live", "leases", "hash_kv", "watch", "cancel", "compare", "kill"} {
		if count[category] == 0 {
			t.Errorf("no %s in ten sequences", category)
		}
	}
	if depth != 3 {
		t.Errorf("txns are nested to depth %d", depth)
	}
	if one, two := fmt.Sprint(newGenerator(7).sequence(100)), fmt.Sprint(newGenerator(7).sequence(100)); one != two {
		t.Error("a seed gives two sequences")
	}
}

func depthOf(txn *pb.TxnRequest) int {
	deepest := 0
	for _, op := range append(txn.Success, txn.Failure...) {
		if nested := op.GetRequestTxn(); nested != nil {
			deepest = max(deepest, depthOf(nested))
		}
	}
	return deepest + 1
}

// Shrinking finds the two operations that a made-up failure needs.
func TestShrink(t *testing.T) {
	sequence := newGenerator(1).sequence(500)
	fails := func(sequence []operation) *difference {
		compacted := false
		for i, o := range sequence {
			if _, ok := o.request.(*pb.CompactionRequest); ok {
				compacted = true
			}
			if _, ok := o.request.(*pb.HashKVRequest); ok && compacted {
				return &difference{at: i, text: "made up"}
			}
		}
		return nil
	}
	shortest, found := shrink(sequence, fails(sequence), fails, 10*time.Second)
	if len(shortest) != 2 || found.at != 1 {
		t.Errorf("shrunk to %v at %d", shortest, found.at)
	}
}

func TestResolve(t *testing.T) {
	request := &pb.TxnRequest{
		Compare: []*pb.Compare{{TargetUnion: &pb.Compare_ModRevision{ModRevision: relativeTo(head, -2)}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Revision: relativeTo(compacted, 1), Limit: 3}}}},
	}
	got := resolve(request, 100, 40).(*pb.TxnRequest)
	if got.Compare[0].GetModRevision() != 98 || got.Success[0].GetRequestRange().Revision != 41 || got.Success[0].GetRequestRange().Limit != 3 {
		t.Errorf("resolved to %v", got)
	}
	if request.Compare[0].GetModRevision() != relativeTo(head, -2) {
		t.Error("the request itself was changed")
	}
}
