// Package cases sends the same requests to etched and to etcd v3.7.3 and
// compares every answer: messages with their headers, error codes and texts,
// and the messages of streams.
//
// Cases are written as requests, not as expected answers: what is right is
// what the running etcd says. Where a case asserts more than equality, it
// guards against both servers being wrong in the same way by accident of the
// case (a request that never reached the rule it is about).
package cases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { harness.RunWaiting(m) }

// pair is an etched and an etcd with a raw connection to each.
type pair struct {
	t    *testing.T
	duo  *harness.Duo
	conn [2]*grpc.ClientConn

	differences int
}

const (
	etched = iota
	etcd
)

// newPair starts two fresh servers.
func newPair(t *testing.T, flags ...string) *pair {
	t.Helper()
	duo := harness.StartDuo(t, harness.Options{Flags: flags})
	return &pair{t: t, duo: duo, conn: [2]*grpc.ClientConn{duo.Etched.Dial(t), duo.Etcd.Dial(t)}}
}

// on answers the same servers for a subtest.
func (p *pair) on(t *testing.T) *pair { return &pair{t: t, duo: p.duo, conn: p.conn} }

// run makes a subtest on the same servers.
func (p *pair) run(name string, body func(*pair)) {
	p.t.Run(name, func(t *testing.T) { body(p.on(t)) })
}

// callLimit bounds every call.
const callLimit = harness.CallLimit

// invoke makes one unary call on one side.
func invoke(ctx context.Context, conn *grpc.ClientConn, request proto.Message, options ...grpc.CallOption) harness.Outcome {
	return harness.Invoke(ctx, conn, request, options...)
}

// both makes the call on both sides at once and compares nothing.
func (p *pair) both(request proto.Message) [2]harness.Outcome {
	return p.parallel(func(side int) harness.Outcome {
		return invoke(context.Background(), p.conn[side], request)
	})
}

func (p *pair) parallel(call func(side int) harness.Outcome) [2]harness.Outcome {
	var outcomes [2]harness.Outcome
	var called sync.WaitGroup
	for side := range outcomes {
		called.Go(func() { outcomes[side] = call(side) })
	}
	called.Wait()
	return outcomes
}

// normaliser removes from an answer what may differ.
type normaliser func(proto.Message)

// do makes the call on both sides, compares the outcomes and answers etcd's.
func (p *pair) do(request proto.Message, normalisers ...normaliser) harness.Outcome {
	p.t.Helper()
	outcomes := p.both(request)
	p.compare(describe(request), outcomes, normalisers...)
	return outcomes[etcd]
}

func (p *pair) compare(what string, outcomes [2]harness.Outcome, normalisers ...normaliser) {
	p.t.Helper()
	for i := range outcomes {
		if outcomes[i].Err == nil {
			for _, normalise := range normalisers {
				normalise(outcomes[i].Message)
			}
		}
	}
	if diff := harness.DiffOutcome(outcomes[etched], outcomes[etcd]); diff != "" {
		p.t.Errorf("%s\n(-etched +etcd)\n%s", what, diff)
		const most = 12
		if p.differences++; p.differences == most {
			p.t.Fatalf("%d differences are enough", most)
		}
	}
}

// ok is do for a call that must succeed on etcd.
func (p *pair) ok(request proto.Message, normalisers ...normaliser) proto.Message {
	p.t.Helper()
	outcome := p.do(request, normalisers...)
	if outcome.Err != nil {
		p.t.Fatalf("%s: etcd answers %v", describe(request), outcome.Err)
	}
	return outcome.Message
}

// fails is do for a call that must fail on etcd with this code and text, as
// ErrorText gives it.
func (p *pair) fails(want string, request proto.Message) {
	p.t.Helper()
	if got := harness.ErrorText(p.do(request).Err); got != want {
		p.t.Errorf("%s: etcd answers %q, this case is about %q", describe(request), got, want)
	}
}

// revision answers the current revision of both, which must be the same.
func (p *pair) revision() int64 {
	p.t.Helper()
	return p.ok(&pb.RangeRequest{Key: []byte("k"), CountOnly: true}).(*pb.RangeResponse).Header.Revision
}

func describe(request proto.Message) string {
	text := prototext.MarshalOptions{}.Format(request)
	const most = 600
	if len(text) > most {
		text = text[:most] + "…"
	}
	return fmt.Sprintf("%s{%s}", request.ProtoReflect().Descriptor().Name(), text)
}

// stream sends a RangeStream request and answers one message made of all
// chunks, after checking the rules of chunks themselves.
func rangeStream(conn *grpc.ClientConn, request *pb.RangeRequest) harness.Outcome {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	stream, err := pb.NewKVClient(conn).RangeStream(ctx, request)
	if err != nil {
		return harness.Outcome{Err: err}
	}
	whole := &pb.RangeResponse{}
	last := false
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return harness.Outcome{Message: whole}
		}
		if err != nil {
			return harness.Outcome{Err: err}
		}
		part := chunk.RangeResponse
		if last {
			return harness.Outcome{Err: fmt.Errorf("a chunk after the one with the header")}
		}
		if last = part.Header != nil; !last && (part.More || part.Count != 0) {
			return harness.Outcome{Err: fmt.Errorf("more or count before the last chunk")}
		}
		whole.Kvs = append(whole.Kvs, part.Kvs...)
		whole.Header, whole.More, whole.Count = part.Header, part.More, part.Count
	}
}

// Shorthands that keep the tables readable.

func put(key, value string) *pb.PutRequest {
	return &pb.PutRequest{Key: []byte(key), Value: []byte(value)}
}

func get(key string) *pb.RangeRequest { return &pb.RangeRequest{Key: []byte(key)} }

func span(key, end string) *pb.RangeRequest {
	return &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end)}
}

func everything() *pb.RangeRequest { return span("\x00", "\x00") }

func del(key string) *pb.DeleteRangeRequest { return &pb.DeleteRangeRequest{Key: []byte(key)} }

func delSpan(key, end string) *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}
}

func txn(compares []*pb.Compare, success, failure []*pb.RequestOp) *pb.TxnRequest {
	return &pb.TxnRequest{Compare: compares, Success: success, Failure: failure}
}

func ops(requests ...proto.Message) []*pb.RequestOp {
	var all []*pb.RequestOp
	for _, request := range requests {
		switch request := request.(type) {
		case *pb.RangeRequest:
			all = append(all, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: request}})
		case *pb.PutRequest:
			all = append(all, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: request}})
		case *pb.DeleteRangeRequest:
			all = append(all, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: request}})
		case *pb.TxnRequest:
			all = append(all, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: request}})
		case nil:
			all = append(all, &pb.RequestOp{})
		default:
			panic(fmt.Sprintf("%T is no operation of a txn", request))
		}
	}
	return all
}

func compact(revision int64) *pb.CompactionRequest {
	return &pb.CompactionRequest{Revision: revision, Physical: true}
}

// The texts that cases name.
const (
	emptyKey      = "InvalidArgument: etcdserver: key is not provided"
	keyNotFound   = "InvalidArgument: etcdserver: key not found"
	valueProvided = "InvalidArgument: etcdserver: value is provided"
	leaseProvided = "InvalidArgument: etcdserver: lease is provided"
	tooManyOps    = "InvalidArgument: etcdserver: too many operations in txn request"
	duplicateKey  = "InvalidArgument: etcdserver: duplicate key given in txn request"
	badSort       = "InvalidArgument: etcdserver: invalid sort option"
	badURLs       = "InvalidArgument: etcdserver: given member URLs are invalid"
	tooLarge      = "InvalidArgument: etcdserver: request is too large"
	compacted     = "OutOfRange: etcdserver: mvcc: required revision has been compacted"
	future        = "OutOfRange: etcdserver: mvcc: required revision is a future revision"
	ttlTooLarge   = "OutOfRange: etcdserver: too large lease TTL"
	noSpace       = "ResourceExhausted: etcdserver: mvcc: database space exceeded"
	noLease       = "NotFound: etcdserver: requested lease not found"
	noMember      = "NotFound: etcdserver: member not found"
	leaseExists   = "FailedPrecondition: etcdserver: lease already exists"
	badTransferee = "FailedPrecondition: etcdserver: bad leader transferee"
	corrupt       = "DataLoss: etcdserver: corrupt cluster"
)
