package random

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
)

const (
	// callLimit bounds a call, waitLimit the wait for messages of watches.
	callLimit = 20 * time.Second
	waitLimit = 8 * time.Second
)

// A difference is what the two servers did not agree on.
type difference struct {
	at    int // index of the operation
	text  string
	fatal bool // no comparison but a failure of the run itself
}

func (d *difference) Error() string { return d.text }

// run applies a sequence to a fresh pair of servers and answers the first
// difference, or nil.
func run(sequence []operation) *difference {
	r := &runner{}
	defer r.close()
	if err := r.start(); err != nil {
		return &difference{text: err.Error(), fatal: true}
	}
	for i, operation := range sequence {
		if err := r.step(operation); err != nil {
			return &difference{at: i, text: err.Error() + r.deaths()}
		}
	}
	// What no range has shown differs in the hash of all of it.
	if err := r.step(operation{request: &pb.HashKVRequest{}}); err != nil {
		return &difference{at: len(sequence) - 1, text: "behind the last operation: " + err.Error() + r.deaths()}
	}
	return nil
}

// runner is one pair of servers and what is known of both.
type runner struct {
	servers   [2]*harness.Server
	conns     [2]*grpc.ClientConn
	streams   [2]*watches
	head      int64
	compacted int64
	open      map[int]watching
	nextID    int64
}

type watching struct{ id, start int64 }

func (r *runner) start() error {
	if err := r.both(func(side int) (err error) {
		r.servers[side], err = harness.Launch(harness.Kind(side), harness.Options{
			ParentDir:          memoryDir(),
			AdvertiseClientURL: "http://127.0.0.1:2379",
			// etcd's state need not outlive the machine here, only a kill.
			EtcdFlags: []string{"--unsafe-no-fsync"},
		})
		return err
	}); err != nil {
		return err
	}
	r.head, r.compacted = 1, -1
	return r.connect()
}

// memoryDir is a directory in memory where there is one: the disk's speed is
// not what is tried here.
func memoryDir() string {
	const dir = "/dev/shm"
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return dir
	}
	return ""
}

func (r *runner) connect() error {
	r.open = map[int]watching{}
	return r.both(func(side int) (err error) {
		r.conns[side], err = grpc.NewClient(r.servers[side].Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDisableRetry(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
		if err != nil {
			return err
		}
		r.streams[side], err = openWatches(r.conns[side])
		return err
	})
}

func (r *runner) disconnect() {
	for side := range r.conns {
		if r.streams[side] != nil {
			r.streams[side].cancel()
		}
		if r.conns[side] != nil {
			_ = r.conns[side].Close()
		}
	}
}

// deaths tells which server has ended and what it said last.
func (r *runner) deaths() string {
	var ended string
	for _, server := range r.servers {
		if !server.Running() {
			ended += fmt.Sprintf("\n%s has ended:\n%s", server.Kind(), server.LogTail(30))
		}
	}
	return ended
}

func (r *runner) close() {
	r.disconnect()
	for _, server := range r.servers {
		if server != nil {
			_ = server.Kill()
			_ = server.Remove()
		}
	}
}

// both runs f for either side at once.
func (r *runner) both(f func(side int) error) error {
	var failures [2]error
	var done sync.WaitGroup
	for side := range failures {
		done.Go(func() { failures[side] = f(side) })
	}
	done.Wait()
	for side, err := range failures {
		if err != nil {
			return fmt.Errorf("%s: %w", harness.Kind(side), err)
		}
	}
	return nil
}

func (r *runner) step(o operation) error {
	switch o.kind {
	case watchStep:
		return r.watch(o)
	case unwatchStep:
		return r.unwatch(o.slot)
	case syncStep:
		return r.sync()
	case restartStep:
		return r.restart()
	}
	if _, ok := o.request.(*pb.CompactionRequest); ok {
		// What a watch still has to read must not be compacted under it.
		if err := r.sync(); err != nil {
			return err
		}
	}
	request := resolve(o.request, r.head, r.compacted)
	if compaction, ok := request.(*pb.CompactionRequest); ok {
		// After a compaction to 0, etcd answers the hash of nothing for the current
		// revision, until ten more compactions have pushed it out.
		compaction.Revision = max(compaction.Revision, 1)
	}
	return r.compare(request, o.kind == streamStep)
}

// compare makes one call on both sides.
func (r *runner) compare(request proto.Message, streamed bool) error {
	var outcomes [2]harness.Outcome
	_ = r.both(func(side int) error {
		ctx, cancel := context.WithTimeout(context.Background(), callLimit)
		defer cancel()
		if streamed {
			outcomes[side] = callStream(ctx, r.conns[side], request.(*pb.RangeRequest))
		} else {
			outcomes[side] = callUnary(ctx, r.conns[side], request)
		}
		return nil
	})
	for i := range outcomes {
		if outcomes[i].Err == nil {
			canonical(outcomes[i].Message)
		}
	}
	if diff := harness.DiffOutcome(outcomes[0], outcomes[1]); diff != "" {
		return fmt.Errorf("%s\n(-etched +etcd)\n%s", formatRequest(request), diff)
	}
	r.learn(request, outcomes[1])
	return nil
}

// canonical removes what may differ: the order of sets and the running down of
// time.
func canonical(message proto.Message) {
	switch answer := message.(type) {
	case *pb.LeaseTimeToLiveResponse:
		if answer.TTL > 0 {
			answer.TTL = 0
		}
		slices.SortFunc(answer.Keys, bytes.Compare)
	case *pb.LeaseLeasesResponse:
		slices.SortFunc(answer.Leases, func(a, b *pb.LeaseStatus) int { return int(a.ID - b.ID) })
	}
}

// learn keeps the current and the compacted revision up to date.
func (r *runner) learn(request proto.Message, outcome harness.Outcome) {
	if outcome.Err != nil {
		return
	}
	if message, ok := outcome.Message.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		r.head = max(r.head, message.GetHeader().GetRevision())
	}
	if compaction, ok := request.(*pb.CompactionRequest); ok {
		r.compacted = compaction.Revision
	}
}

// methods is the path and an empty answer for each request.
func callUnary(ctx context.Context, conn *grpc.ClientConn, request proto.Message) harness.Outcome {
	var path string
	var answer proto.Message
	switch request.(type) {
	case *pb.PutRequest:
		path, answer = pb.KV_Put_FullMethodName, &pb.PutResponse{}
	case *pb.RangeRequest:
		path, answer = pb.KV_Range_FullMethodName, &pb.RangeResponse{}
	case *pb.DeleteRangeRequest:
		path, answer = pb.KV_DeleteRange_FullMethodName, &pb.DeleteRangeResponse{}
	case *pb.TxnRequest:
		path, answer = pb.KV_Txn_FullMethodName, &pb.TxnResponse{}
	case *pb.CompactionRequest:
		path, answer = pb.KV_Compact_FullMethodName, &pb.CompactionResponse{}
	case *pb.LeaseGrantRequest:
		path, answer = pb.Lease_LeaseGrant_FullMethodName, &pb.LeaseGrantResponse{}
	case *pb.LeaseRevokeRequest:
		path, answer = pb.Lease_LeaseRevoke_FullMethodName, &pb.LeaseRevokeResponse{}
	case *pb.LeaseTimeToLiveRequest:
		path, answer = pb.Lease_LeaseTimeToLive_FullMethodName, &pb.LeaseTimeToLiveResponse{}
	case *pb.LeaseLeasesRequest:
		path, answer = pb.Lease_LeaseLeases_FullMethodName, &pb.LeaseLeasesResponse{}
	case *pb.HashKVRequest:
		path, answer = pb.Maintenance_HashKV_FullMethodName, &pb.HashKVResponse{}
	default:
		return harness.Outcome{Err: fmt.Errorf("no method takes %T", request)}
	}
	err := conn.Invoke(ctx, path, request, answer)
	return harness.Outcome{Message: answer, Err: err}
}

// callStream answers all chunks of a RangeStream as one message.
func callStream(ctx context.Context, conn *grpc.ClientConn, request *pb.RangeRequest) harness.Outcome {
	stream, err := pb.NewKVClient(conn).RangeStream(ctx, request)
	if err != nil {
		return harness.Outcome{Err: err}
	}
	whole := &pb.RangeResponse{}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return harness.Outcome{Message: whole}
		}
		if err != nil {
			return harness.Outcome{Err: err}
		}
		part := chunk.RangeResponse
		whole.Kvs = append(whole.Kvs, part.Kvs...)
		whole.Header, whole.More, whole.Count = part.Header, part.More, part.Count
	}
}

// restart kills both servers and starts them again; watches do not survive it.
func (r *runner) restart() error {
	if err := r.sync(); err != nil {
		return err
	}
	r.disconnect()
	if err := r.both(func(side int) error {
		return errors.Join(r.servers[side].Kill(), r.servers[side].Restart())
	}); err != nil {
		return err
	}
	return r.connect()
}
