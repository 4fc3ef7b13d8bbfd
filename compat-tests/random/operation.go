package random

import (
	"fmt"
	"math/rand/v2"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// An operation is one step of a sequence, the same for both servers.
//
// Revisions in its request are relative until it runs: relativeTo(head, -3)
// stands for three below the current revision. So a sequence keeps its meaning
// when others of its operations are left out.
type operation struct {
	kind    kind
	request proto.Message // of callStep and streamStep
	create  *pb.WatchCreateRequest
	slot    int // of watchStep and unwatchStep
}

type kind int

const (
	callStep kind = iota
	streamStep
	watchStep
	unwatchStep
	syncStep
	restartStep
)

// mark is a revision that others are named by.
type mark int64

const (
	head      mark = 1 << 40
	compacted mark = 1 << 41
	reach          = 1 << 20
)

func relativeTo(to mark, offset int64) int64 { return int64(to) + offset }

// resolve answers a copy of the request with every relative revision replaced.
func resolve(request proto.Message, headRevision, compactedRevision int64) proto.Message {
	copied := proto.Clone(request)
	resolveFields(copied.ProtoReflect(), func(value int64) int64 {
		switch {
		case near(value, head):
			return headRevision + value - int64(head)
		case near(value, compacted):
			return max(compactedRevision, 0) + value - int64(compacted)
		}
		return value
	})
	return copied
}

func near(value int64, to mark) bool { return value > int64(to)-reach && value < int64(to)+reach }

func resolveFields(message protoreflect.Message, resolved func(int64) int64) {
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Kind() == protoreflect.Int64Kind && !field.IsList():
			message.Set(field, protoreflect.ValueOfInt64(resolved(value.Int())))
		case field.Message() == nil:
		case field.IsList():
			for i := range value.List().Len() {
				resolveFields(value.List().Get(i).Message(), resolved)
			}
		default:
			resolveFields(value.Message(), resolved)
		}
		return true
	})
}

// slots is how many watches may be open at a time.
const slots = 6

// leases is how many lease ids are in use, from 1 on.
const leases = 6

// generator draws operations from a seed.
type generator struct {
	random *rand.Rand
	keys   []string
	// sortable says that the keys are few enough for etcd's sort to be a stable
	// one: above twelve, the order of equals is an accident of its algorithm.
	sortable bool
	restarts bool
}

func newGenerator(seed uint64) *generator {
	g := &generator{random: rand.New(rand.NewPCG(seed, 0)), sortable: seed%5 != 4, restarts: seed%10 == 3}
	if g.sortable {
		g.keys = []string{"\x00", "a", "a\x00", "aa", "ab", "b", "c", "d", "e", "\xfe", "\xff\xff"}
		return g
	}
	for i := range 300 {
		g.keys = append(g.keys, fmt.Sprintf("k%03d", i))
	}
	return g
}

// sequence draws n operations and a sync at the end.
func (g *generator) sequence(n int) []operation {
	all := make([]operation, 0, n+1)
	for len(all) < n {
		all = append(all, g.operation())
	}
	return append(all, operation{kind: syncStep})
}

func (g *generator) operation() operation {
	switch n := g.random.IntN(1000); {
	case n < 260:
		return operation{request: g.put()}
	case n < 340:
		return operation{request: g.deleteRange()}
	case n < 560:
		return operation{request: g.txn(3)}
	case n < 770:
		return operation{request: g.rangeRequest()}
	case n < 800:
		return operation{kind: streamStep, request: g.streamable()}
	case n < 815:
		return operation{request: g.compact()}
	case n < 845:
		return operation{request: &pb.LeaseGrantRequest{ID: g.lease(), TTL: 1000 + g.random.Int64N(1000)}}
	case n < 860:
		return operation{request: &pb.LeaseRevokeRequest{ID: g.lease()}}
	case n < 880:
		return operation{request: &pb.LeaseTimeToLiveRequest{ID: g.lease(), Keys: true}}
	case n < 890:
		return operation{request: &pb.LeaseLeasesRequest{}}
	case n < 920:
		return operation{request: &pb.HashKVRequest{Revision: g.revision()}}
	case n < 960:
		return operation{kind: watchStep, slot: g.random.IntN(slots), create: g.watch()}
	case n < 975:
		return operation{kind: unwatchStep, slot: g.random.IntN(slots)}
	case n < 976 && g.restarts:
		return operation{kind: restartStep}
	case n < 985:
		return operation{kind: syncStep}
	}
	return operation{request: g.rangeRequest()}
}

func (g *generator) chance(percent int) bool { return g.random.IntN(100) < percent }

func (g *generator) key() []byte { return []byte(g.keys[g.random.IntN(len(g.keys))]) }

func (g *generator) lease() int64 { return 1 + g.random.Int64N(leases) }

// end draws an end for a range from the key: none, the next key's, any, open.
func (g *generator) end(key []byte) []byte {
	switch g.random.IntN(6) {
	case 0, 1:
		return nil
	case 2:
		return append(append([]byte(nil), key...), 0)
	case 3:
		return []byte("\x00")
	}
	return g.key()
}

// revision draws a revision to read at: mostly the current one.
func (g *generator) revision() int64 {
	switch n := g.random.IntN(20); {
	case n < 9:
		return 0
	case n < 16:
		return relativeTo(head, -g.random.Int64N(40))
	case n < 18:
		return relativeTo(compacted, g.random.Int64N(5)-2)
	case n < 19:
		return relativeTo(head, 1)
	}
	return g.random.Int64N(60) - 3
}

func (g *generator) put() *pb.PutRequest {
	request := &pb.PutRequest{Key: g.key(), Value: g.value(), PrevKv: g.chance(30)}
	if g.chance(25) {
		request.Lease = g.lease()
	}
	switch g.random.IntN(20) {
	case 0:
		request.IgnoreValue = true
		if g.chance(80) {
			request.Value = nil
		}
	case 1:
		request.IgnoreLease = true
		if g.chance(80) {
			request.Lease = 0
		}
	}
	return request
}

func (g *generator) value() []byte {
	switch n := g.random.IntN(20); {
	case n == 0:
		return nil
	case n == 1:
		large := make([]byte, g.random.IntN(5000))
		for i := range large {
			large[i] = byte(g.random.Uint32())
		}
		return large
	}
	return fmt.Appendf(nil, "%d", g.random.IntN(30))
}

func (g *generator) deleteRange() *pb.DeleteRangeRequest {
	request := &pb.DeleteRangeRequest{Key: g.key(), PrevKv: g.chance(40)}
	if g.chance(30) {
		request.RangeEnd = g.end(request.Key)
	}
	return request
}

func (g *generator) rangeRequest() *pb.RangeRequest {
	request := &pb.RangeRequest{
		Key: g.key(), Revision: g.revision(), Serializable: g.chance(30),
		KeysOnly: g.chance(15), CountOnly: g.chance(10),
	}
	request.RangeEnd = g.end(request.Key)
	if g.chance(40) {
		request.Limit = g.random.Int64N(8) - 1
	}
	if g.chance(40) {
		request.SortOrder = pb.RangeRequest_SortOrder(g.random.IntN(3))
		if g.sortable {
			request.SortTarget = pb.RangeRequest_SortTarget(g.random.IntN(5))
		}
	}
	if g.chance(15) {
		for _, bound := range []*int64{&request.MinModRevision, &request.MaxModRevision, &request.MinCreateRevision, &request.MaxCreateRevision} {
			if g.chance(40) {
				*bound = relativeTo(head, -g.random.Int64N(60))
			}
		}
	}
	return request
}

func (g *generator) streamable() *pb.RangeRequest {
	request := g.rangeRequest()
	if g.chance(90) {
		request.SortTarget, request.SortOrder = 0, 0
		request.MinModRevision, request.MaxModRevision, request.MinCreateRevision, request.MaxCreateRevision = 0, 0, 0, 0
	}
	return request
}

// Every compaction waits for its end: until then, which hash is reported for its
// revision depends on the time.
func (g *generator) compact() *pb.CompactionRequest {
	request := &pb.CompactionRequest{Physical: true}
	switch n := g.random.IntN(10); {
	case n < 7:
		request.Revision = relativeTo(head, -g.random.Int64N(60))
	case n < 9:
		request.Revision = relativeTo(compacted, g.random.Int64N(8)-1)
	default:
		request.Revision = relativeTo(head, 1)
	}
	return request
}

func (g *generator) watch() *pb.WatchCreateRequest {
	request := &pb.WatchCreateRequest{Key: g.key(), PrevKv: g.chance(50)}
	request.RangeEnd = g.end(request.Key)
	if g.chance(30) {
		request.Key, request.RangeEnd = []byte("\x00"), []byte("\x00")
	}
	if request.StartRevision = g.revision(); request.StartRevision == 0 && g.chance(20) {
		request.StartRevision = relativeTo(head, g.random.Int64N(4))
	}
	if g.chance(20) {
		request.Filters = append(request.Filters, pb.WatchCreateRequest_FilterType(g.random.IntN(2)))
	}
	return request
}

func (g *generator) txn(depth int) *pb.TxnRequest {
	request := &pb.TxnRequest{}
	for range g.random.IntN(4) {
		request.Compare = append(request.Compare, g.compare())
	}
	for range g.random.IntN(5) {
		request.Success = append(request.Success, g.requestOp(depth))
	}
	for range g.random.IntN(4) {
		request.Failure = append(request.Failure, g.requestOp(depth))
	}
	return request
}

func (g *generator) requestOp(depth int) *pb.RequestOp {
	switch n := g.random.IntN(100); {
	case n < 40:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: g.put()}}
	case n < 55:
		request := g.deleteRange()
		if string(request.RangeEnd) == "\x00" {
			// Etcd lets such a delete stand before a put of the same key, and then a
			// compaction to their revision loses the put and ends the server.
			request.RangeEnd = nil
		}
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: request}}
	case n < 75 && depth > 1:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txn(depth - 1)}}
	}
	request := g.rangeRequest()
	if g.chance(80) {
		request.Revision = 0
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: request}}
}

func (g *generator) compare() *pb.Compare {
	compare := &pb.Compare{Key: g.key(), Result: pb.Compare_CompareResult(g.random.IntN(4)), Target: pb.Compare_CompareTarget(g.random.IntN(5))}
	if g.chance(20) {
		compare.RangeEnd = g.end(compare.Key)
	}
	target := compare.Target
	if g.chance(3) {
		target = pb.Compare_CompareTarget(g.random.IntN(6))
	}
	revision := relativeTo(head, -g.random.Int64N(20))
	if g.chance(30) {
		revision = 0
	}
	switch target {
	case pb.Compare_VERSION:
		compare.TargetUnion = &pb.Compare_Version{Version: g.random.Int64N(4)}
	case pb.Compare_CREATE:
		compare.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: revision}
	case pb.Compare_MOD:
		compare.TargetUnion = &pb.Compare_ModRevision{ModRevision: revision}
	case pb.Compare_VALUE:
		compare.TargetUnion = &pb.Compare_Value{Value: g.value()}
	case pb.Compare_LEASE:
		compare.TargetUnion = &pb.Compare_Lease{Lease: g.lease() - 1}
	}
	return compare
}
