package cases

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Every target with every result, on present and missing keys, single and in
// ranges, with the union's field of the target, of another target, and unset.
func TestTxnCompares(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(&pb.LeaseGrantRequest{ID: 5, TTL: 1000})
	p.ok(put("a", "1"))
	p.ok(put("b", "2"))
	p.ok(put("b", "2"))
	p.ok(&pb.PutRequest{Key: []byte("c"), Value: []byte("2"), Lease: 5})
	p.ok(put("empty", ""))
	unions := func(number int64) []pb.Compare {
		return []pb.Compare{
			{TargetUnion: &pb.Compare_Version{Version: number}},
			{TargetUnion: &pb.Compare_CreateRevision{CreateRevision: number}},
			{TargetUnion: &pb.Compare_ModRevision{ModRevision: number}},
			{TargetUnion: &pb.Compare_Value{Value: []byte(fmt.Sprint(number))}},
			{TargetUnion: &pb.Compare_Lease{Lease: number}},
		}
	}
	keys := [][2]string{{"a", ""}, {"b", ""}, {"c", ""}, {"empty", ""}, {"missing", ""},
		{"a", "c"}, {"a", "d"}, {"x", "z"}, {"\x00", "\x00"}, {"b", "\x00"}, {"c", "a"}}
	succeeded := 0
	for _, span := range keys {
		for target := range int32(6) {
			for result := range int32(5) {
				for _, number := range []int64{-1, 0, 1, 2, 3, 5} {
					compares := []*pb.Compare{}
					for i := range unions(number) {
						if int32(i) == target || number == 2 {
							compares = append(compares, &unions(number)[i])
						}
					}
					if number == 0 {
						compares = append(compares, &pb.Compare{})
					}
					for _, compare := range compares {
						compare.Key, compare.RangeEnd = []byte(span[0]), []byte(span[1])
						compare.Target, compare.Result = pb.Compare_CompareTarget(target), pb.Compare_CompareResult(result)
						if p.ok(txn([]*pb.Compare{compare}, nil, nil)).(*pb.TxnResponse).Succeeded {
							succeeded++
						}
					}
				}
			}
		}
	}
	if succeeded < 100 {
		t.Errorf("only %d compares held", succeeded)
	}
	p.fails(emptyKey, txn([]*pb.Compare{{}}, nil, nil))
	p.do(txn([]*pb.Compare{holds("a"), fails("a")}, ops(get("a")), ops(get("b"))))
	p.do(txn([]*pb.Compare{{Key: []byte("a"), Target: -1, Result: -1}}, ops(get("a")), ops(get("b"))))
}

// holds is a compare that is true whether or not the key exists, fails is false.
func holds(key string) *pb.Compare {
	return &pb.Compare{Key: []byte(key), Target: pb.Compare_VERSION, Result: pb.Compare_GREATER,
		TargetUnion: &pb.Compare_Version{Version: -1}}
}

func fails(key string) *pb.Compare {
	return &pb.Compare{Key: []byte(key), Target: pb.Compare_VERSION, Result: pb.Compare_LESS,
		TargetUnion: &pb.Compare_Version{Version: -1}}
}

func version(key string, number int64) *pb.Compare {
	return &pb.Compare{Key: []byte(key), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: number}}
}

func TestTxnEffects(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(&pb.LeaseGrantRequest{ID: 5, TTL: 1000})
	p.ok(put("a", "1"))
	all := everything()
	for _, step := range []proto.Message{
		txn(nil, nil, nil),
		txn(nil, ops(all), nil),
		txn(nil, ops(del("missing")), nil),
		txn(nil, ops(put("b", "1"), put("c", "1"), all, del("a"), all), nil),
		txn(nil, ops(all, del("a"), all), nil),
		txn(nil, ops(&pb.PutRequest{Key: []byte("b"), Value: []byte("2"), PrevKv: true, Lease: 5}), nil),
		txn(nil, ops(&pb.DeleteRangeRequest{Key: []byte("b"), RangeEnd: []byte("d"), PrevKv: true}, all), nil),
		txn([]*pb.Compare{version("a", 0)}, ops(put("a", "created")), ops(get("a"))),
		txn([]*pb.Compare{version("a", 0)}, ops(put("a", "created")), ops(get("a"))),
		txn([]*pb.Compare{fails("a")}, ops(put("x", "1")), ops(put("x", "2"))),
		txn([]*pb.Compare{holds("a")}, ops(put("x", "1")), ops(put("x", "2"))),
		txn(nil, ops(txn([]*pb.Compare{holds("x")}, ops(put("n", "1"), all), ops(put("n", "2"))), put("m", "1")), nil),
		txn(nil, ops(put("m", "2"), txn([]*pb.Compare{version("m", 1)}, ops(get("m"), put("seen", "before")), ops(get("m"), put("seen", "after")))), nil),
		txn(nil, ops(txn(nil, ops(txn(nil, ops(txn(nil, ops(put("deep", "1"), all), nil)), nil)), nil)), nil),
		txn(nil, ops(txn([]*pb.Compare{fails("x")}, nil, ops(txn([]*pb.Compare{fails("x")}, nil, ops(del("deep"))))), get("deep")), nil),
		txn(nil, ops(txn(nil, nil, nil), txn(nil, nil, nil)), nil),
		txn(nil, ops(txn(nil, ops(del("missing")), nil)), nil),
		txn(nil, ops(txn(nil, ops(get("a")), nil)), nil),
		txn(nil, ops(del("a"), txn(nil, ops(all), nil)), nil),
		txn(nil, ops(txn([]*pb.Compare{fails("a")}, ops(put("z1", "1")), ops(get("a"))), txn([]*pb.Compare{holds("a")}, ops(put("z2", "1")), ops(get("a"))),
			txn([]*pb.Compare{holds("z1")}, ops(put("z3", "1"), txn([]*pb.Compare{version("z2", 1)}, ops(put("z4", "then")), ops(put("z4", "else")))), nil)), nil),
	} {
		p.do(step)
		p.do(everything())
	}
	request := everything()
	for revision := int64(1); revision <= p.revision(); revision++ {
		request.Revision = revision
		p.do(request)
	}
	p.do(&pb.HashKVRequest{})
}

// Checks run on the branch taken only, and a failed one leaves no trace.
func TestTxnChecks(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(put("a", "1"))
	p.ok(put("a", "2"))
	p.ok(put("a", "3"))
	p.ok(compact(3))
	head := p.revision()
	at := func(revision int64) *pb.RangeRequest { return &pb.RangeRequest{Key: []byte("a"), Revision: revision} }
	for _, wrong := range []struct {
		want string
		op   proto.Message
	}{
		{noLease, &pb.PutRequest{Key: []byte("b"), Lease: 99}},
		{keyNotFound, &pb.PutRequest{Key: []byte("b"), IgnoreValue: true}},
		{keyNotFound, &pb.PutRequest{Key: []byte("b"), IgnoreLease: true}},
		{compacted, at(2)}, {compacted, at(1)}, {compacted, at(-1)}, {compacted, at(-9)},
		{future, at(head + 1)}, {future, at(head + 2)},
	} {
		p.fails(wrong.want, txn(nil, ops(wrong.op), nil))
		p.fails(wrong.want, txn(nil, ops(put("first", "1"), wrong.op), nil))
		p.fails(wrong.want, txn([]*pb.Compare{fails("a")}, nil, ops(wrong.op)))
		p.fails(wrong.want, txn(nil, ops(txn(nil, ops(txn(nil, ops(wrong.op), nil)), nil)), nil))
		p.do(txn([]*pb.Compare{fails("a")}, ops(wrong.op), ops(get("a"))))
		p.do(txn(nil, ops(get("a")), ops(wrong.op)))
		p.do(txn(nil, ops(txn(nil, ops(get("a")), ops(wrong.op))), nil))
	}
	if now := p.revision(); now != head {
		t.Errorf("failed txns moved the revision from %d to %d", head, now)
	}
	p.do(everything())
	for _, revision := range []int64{0, 3, head} {
		p.ok(txn(nil, ops(at(revision)), nil))
		p.do(txn(nil, ops(put("b", "1"), at(revision)), nil))
	}
}

func TestTxnRevisionsBeforeAnyCompaction(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(put("a", "1"))
	for revision := int64(-4); revision <= 4; revision++ {
		p.do(txn(nil, ops(&pb.RangeRequest{Key: []byte("a"), Revision: revision}), nil))
		p.do(txn(nil, ops(&pb.RangeRequest{Key: []byte("a"), Revision: revision}, put("b", "1")), nil))
	}
}

// Requests that are refused whichever branch they stand in.
func TestTxnRefusals(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for _, wrong := range []struct {
		want string
		op   proto.Message
	}{
		{emptyKey, get("")}, {emptyKey, put("", "v")}, {emptyKey, del("")}, {keyNotFound, nil},
		{badSort, &pb.RangeRequest{Key: []byte("a"), SortOrder: 7}},
		{badSort, &pb.RangeRequest{Key: []byte("a"), SortTarget: 7}},
		{valueProvided, &pb.PutRequest{Key: []byte("a"), IgnoreValue: true, Value: []byte("v")}},
		{leaseProvided, &pb.PutRequest{Key: []byte("a"), IgnoreLease: true, Lease: 1}},
		{emptyKey, txn([]*pb.Compare{{}}, nil, nil)},
	} {
		p.fails(wrong.want, txn(nil, ops(wrong.op), nil))
		p.fails(wrong.want, txn(nil, nil, ops(wrong.op)))
		p.fails(wrong.want, txn(nil, nil, ops(txn(nil, nil, ops(wrong.op)))))
		p.do(txn(nil, ops(wrong.op, get("")), ops(nil)))
	}
	p.do(everything())
}

func TestTxnDuplicates(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for _, key := range []string{"a", "b", "c"} {
		p.ok(put(key, "0"))
	}
	a, b := put("a", "1"), put("b", "1")
	for _, duplicate := range [][]*pb.RequestOp{
		ops(a, a),
		ops(a, b, a),
		ops(a, del("a")),
		ops(del("a"), a),
		ops(a, delSpan("a", "b")),
		ops(a, txn(nil, ops(a), nil)),
		ops(a, txn(nil, nil, ops(a))),
		ops(txn(nil, ops(a), nil), txn(nil, ops(a), nil)),
		ops(txn(nil, ops(a), nil), txn(nil, nil, ops(a))),
		ops(txn(nil, ops(del("a")), nil), a),
		ops(a, txn(nil, ops(del("a")), nil)),
		ops(del("a"), txn(nil, ops(a), nil)),
		ops(txn(nil, ops(del("a")), nil), txn(nil, ops(a), nil)),
		ops(txn(nil, ops(delSpan("a", "c")), nil), txn(nil, nil, ops(b))),
		ops(txn(nil, ops(txn(nil, ops(a), nil)), nil), a),
		ops(txn(nil, ops(txn(nil, ops(del("a")), nil)), nil), txn(nil, ops(txn(nil, ops(a), nil)), nil)),
	} {
		p.fails(duplicateKey, txn(nil, duplicate, nil))
		p.fails(duplicateKey, txn(nil, nil, duplicate))
	}
	for _, fine := range [][]*pb.RequestOp{
		ops(a, b),
		ops(a, delSpan("b", "c")),
		ops(b, delSpan("a", "b")),
		ops(b, delSpan("b\x00", "\x00")),
		ops(del("a"), del("a")),
		ops(delSpan("a", "c"), delSpan("b", "d")),
		ops(a, get("a")),
		ops(txn(nil, ops(a), ops(a))),
		ops(txn(nil, ops(a), ops(del("a")))),
		ops(txn(nil, ops(a), nil), txn(nil, ops(del("a")), nil)),
		ops(txn(nil, ops(txn(nil, ops(a), nil)), nil), txn(nil, ops(txn(nil, ops(del("a")), nil)), nil)),
		ops(txn(nil, ops(b), nil), txn(nil, nil, ops(del("b")))),
		// An end of "\0" is taken literally here: such a range is an inverted one
		// and meets no put. So one key can be put and deleted in one revision.
		ops(a, delSpan("\x00", "\x00")),
		ops(delSpan("\x00", "\x00"), a),
		ops(b, delSpan("a", "\x00")),
		ops(delSpan("a", "\x00"), b),
		ops(b, delSpan("b", "\x00")),
		ops(put("b\x00", "1"), delSpan("b", "\x00")),
		ops(put("new", "1"), delSpan("new", "\x00"), get("new")),
		ops(put("new", "1"), delSpan("new", "\x00"), txn(nil, ops(get("new")), nil)),
		ops(a, delSpan("a", "\x00"), delSpan("a", "\x00")),
	} {
		p.ok(txn(nil, fine, fine))
		p.do(everything())
	}
	// Inverted, empty and open ranges overlap nothing or everything, as etcd's
	// interval tree has it.
	for _, span := range [][2]string{{"c", "a"}, {"a", "a"}, {"b", "a"}, {"\x00", "\x00"}, {"a", "\x00"}, {"c", "\x00"}} {
		for _, key := range []string{"a", "b", "c", "\x00", "\xff"} {
			p.do(txn(nil, ops(put(key, "1"), delSpan(span[0], span[1])), nil))
			p.do(txn(nil, ops(txn(nil, ops(delSpan(span[0], span[1])), nil), txn(nil, ops(put(key, "1")), nil)), nil))
		}
	}
	p.do(everything())
	for revision := int64(1); revision <= p.revision(); revision++ {
		p.do(&pb.RangeRequest{Key: []byte("\x00"), RangeEnd: []byte("\x00"), Revision: revision})
		p.do(&pb.HashKVRequest{Revision: revision})
	}
	p.ok(put("last", "1"))
	p.ok(compact(p.revision()))
	p.do(&pb.HashKVRequest{})
	p.do(everything())
}

// A delete to the end of the key space may stand before a put of a key in it.
// Etcd loses that put to a compaction to just this revision and ends itself
// when the key is read; so only etched is asked.
func TestCompactionToDeleteAndPutInOneRevision(t *testing.T) {
	t.Parallel()
	conn := harness.Start(t, harness.Etched, harness.Options{}).Dial(t)
	for _, request := range []proto.Message{
		put("k", "1"), txn(nil, ops(delSpan("a", "\x00"), put("k", "2")), nil), compact(3), put("other", "1"), compact(4),
	} {
		if outcome := invoke(context.Background(), conn, request); outcome.Err != nil {
			t.Fatalf("%s: %v", describe(request), outcome.Err)
		}
		want := "2"
		if proto.Equal(request, put("k", "1")) {
			want = "1"
		}
		outcome := invoke(context.Background(), conn, get("k"))
		if kvs := outcome.Message.(*pb.RangeResponse).Kvs; outcome.Err != nil || len(kvs) != 1 || string(kvs[0].Value) != want {
			t.Errorf("after %s: %v", describe(request), outcome)
		}
	}
}

func TestTxnLimits(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	limited(p, 128)
}

func TestTxnLimitFlag(t *testing.T) {
	t.Parallel()
	p := newPair(t, "--max-txn-ops=4")
	limited(p, 4)
}

// limited checks the limit on operations: of compares, of each branch, and of
// what is left to nested txns.
func limited(p *pair, limit int) {
	gets := func(n int) []*pb.RequestOp {
		var all []*pb.RequestOp
		for range n {
			all = append(all, ops(get("a"))...)
		}
		return all
	}
	compares := func(n int) []*pb.Compare {
		var all []*pb.Compare
		for range n {
			all = append(all, holds("a"))
		}
		return all
	}
	for _, n := range []int{limit - 1, limit} {
		p.ok(txn(compares(n), gets(n), gets(n)))
	}
	p.fails(tooManyOps, txn(compares(limit+1), nil, nil))
	p.fails(tooManyOps, txn(nil, gets(limit+1), nil))
	p.fails(tooManyOps, txn(nil, nil, gets(limit+1)))
	p.fails(tooManyOps, txn(nil, append(gets(limit), nil), nil))
	for outer := 1; outer <= 3; outer++ {
		for _, inner := range []int{limit - outer - 1, limit - outer, limit - outer + 1, limit} {
			nested := txn(nil, gets(max(inner, 0)), nil)
			p.do(txn(nil, append(gets(outer-1), ops(nested)...), nil))
			p.do(txn(compares(outer), ops(nested), nil))
			p.do(txn(nil, gets(outer), ops(nested)))
			p.do(txn(nil, ops(txn(compares(max(inner, 0)), nil, nil)), gets(outer)))
			p.do(txn(nil, ops(txn(nil, ops(nested), nil)), nil))
		}
	}
}

// etcd takes transactions nested as deep as --max-txn-ops allows, 128. etched
// reads messages nested 100 deep, which is 49 transactions, and refuses deeper
// ones before it looks at them: nobody is known to need more.
func TestTxnNestedDeep(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	const limit = 30
	deep := txn(nil, ops(put("deep", "1")), nil)
	for range limit {
		p.do(deep)
		deep = txn(nil, ops(deep), nil)
	}
}

// Nesting beyond any limit is refused and ends nobody.
func TestTxnNestedBeyondMeasure(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for _, depth := range []int{1000, 9000, 40_000, 150_000} {
		body := nestedTxn(depth)
		for i, conn := range p.conn {
			if outcome := invokeRaw(conn, pb.KV_Txn_FullMethodName, body); outcome.Err == nil {
				t.Errorf("%s takes a txn nested %d deep", harness.Kind(i), depth)
			}
		}
		p.do(put("a", "1"))
	}
}

// nestedTxn encodes an empty txn inside so many others.
func nestedTxn(depth int) []byte {
	// The lengths are known from the inside out, the bytes are written outside in.
	lengths := make([]int, 0, 2*depth)
	size := 0
	for range depth {
		lengths = append(lengths, size)
		size += 1 + protowire.SizeVarint(uint64(size))
		lengths = append(lengths, size)
		size += 1 + protowire.SizeVarint(uint64(size))
	}
	body := make([]byte, 0, size)
	for i := len(lengths) - 1; i >= 0; i -= 2 {
		body = protowire.AppendVarint(protowire.AppendTag(body, 2, protowire.BytesType), uint64(lengths[i]))   // TxnRequest.success
		body = protowire.AppendVarint(protowire.AppendTag(body, 4, protowire.BytesType), uint64(lengths[i-1])) // RequestOp.request_txn
	}
	return body
}

// A write whose answer would be larger than the memory budget lets it be is refused before
// it is proposed: nothing of it happens. etcd answers it, or the client refuses the answer.
func TestWritesWithTooLargeAnswersChangeNothing(t *testing.T) {
	t.Parallel()
	const least, values = 16 << 20, 6
	server := harness.Start(t, harness.Etched, harness.Options{
		EtchedFlags: []string{fmt.Sprint("--memory-budget-bytes=", least)},
	})
	client := server.Client(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for n := range values {
		if _, err := client.Put(ctx, fmt.Sprint("wide/", n), strings.Repeat("v", 1_000_000)); err != nil {
			t.Fatal(err)
		}
	}
	before, err := client.Get(ctx, "wide/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	read := clientv3.OpGet("wide/", clientv3.WithPrefix())
	marker := clientv3.OpPut("marker", "")
	remove := clientv3.OpDelete("wide/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	kv := pb.NewKVClient(client.ActiveConnection())
	for name, call := range map[string]func() error{
		"a range": func() error {
			_, err := client.Txn(ctx).Then(marker, read).Commit()
			return err
		},
		"a range of a nested transaction": func() error {
			_, err := client.Txn(ctx).Then(marker, clientv3.OpTxn(nil, []clientv3.Op{read}, nil)).Commit()
			return err
		},
		"what a transaction deletes": func() error {
			_, err := client.Txn(ctx).Then(marker, remove).Commit()
			return err
		},
		"what a request deletes": func() error {
			_, err := kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("wide/"), RangeEnd: []byte("wide0"), PrevKv: true})
			return err
		},
	} {
		err := call()
		if status.Code(err) != codes.ResourceExhausted || !strings.Contains(fmt.Sprint(err), "nothing was changed") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The branch that is not taken is not read.
	if _, err := client.Txn(ctx).Else(marker, read).Commit(); err != nil {
		t.Errorf("the branch not taken: %v", err)
	}
	after, err := client.Get(ctx, "wide/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	if after.Count != values || after.Header.Revision != before.Header.Revision {
		t.Errorf("%d keys at revision %d, before %d at %d", after.Count, after.Header.Revision, before.Count, before.Header.Revision)
	}
	// What answers less is done.
	if _, err := client.Txn(ctx).Then(marker, clientv3.OpDelete("wide/", clientv3.WithPrefix())).Commit(); err != nil {
		t.Error(err)
	}
}
