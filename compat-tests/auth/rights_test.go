package auth

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

const (
	read      = authpb.READ
	write     = authpb.WRITE
	readWrite = authpb.READWRITE
)

func put(key string, lease int64, prev bool) *pb.PutRequest {
	return &pb.PutRequest{Key: []byte(key), Value: []byte("v"), Lease: lease, PrevKv: prev}
}

func get(key, end string) *pb.RangeRequest {
	return &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end)}
}

func del(key, end string, prev bool) *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end), PrevKv: prev}
}

func operation(request proto.Message) *pb.RequestOp {
	switch request := request.(type) {
	case *pb.PutRequest:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: request}}
	case *pb.RangeRequest:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: request}}
	case *pb.DeleteRangeRequest:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: request}}
	case *pb.TxnRequest:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: request}}
	}
	panic(fmt.Sprintf("no operation: %T", request))
}

func compare(key, end string) *pb.Compare {
	return &pb.Compare{Key: []byte(key), RangeEnd: []byte(end), Target: pb.Compare_VERSION, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Version{}}
}

func txn(compares []*pb.Compare, then, otherwise proto.Message) *pb.TxnRequest {
	request := &pb.TxnRequest{Compare: compares}
	if then != nil {
		request.Success = []*pb.RequestOp{operation(then)}
	}
	if otherwise != nil {
		request.Failure = []*pb.RequestOp{operation(otherwise)}
	}
	return request
}

// people are the callers, in all tests of the table.
var people = []string{
	anyone, "token:garbage", "token:abcdefghijklmnop.1", "token:", "authorization:garbage", "limited", "reader", "root",
	"token:Bearer <limited>", "authorization:<limited>", "authorization:Bearer <limited>", "authorization:bearer <limited>",
}

// limited may do something with a to b, nothing else but to write to m;
// reader may read all.
var rights = map[string][]permission{
	"limited": {{readWrite, "a", "b"}, {read, "c", ""}, {write, "d", ""}, {write, "m", "n"}},
	"reader":  {{read, "\x00", "\x00"}},
}

// The table of rights, each row by each of the people.
func TestRights(t *testing.T) {
	t.Parallel()
	p := newPair(t, harness.Options{})
	p.ok(anyone, &pb.LeaseGrantRequest{ID: 7, TTL: 600})
	p.ok(anyone, &pb.LeaseGrantRequest{ID: 8, TTL: 600})
	p.ok(anyone, &pb.LeaseGrantRequest{ID: 9, TTL: 600})
	for key, lease := range map[string]int64{"a1": 7, "c": 0, "d": 8, "x": 9} {
		p.ok(anyone, put(key, lease, false))
	}
	p.enable(rights)
	rows := []proto.Message{
		get("a1", ""), get("a", "b"), get("a", "b\x00"), get("a", "\x00"), get("c", ""), get("c", "c\x00"), get("d", ""), get("x", ""), get("\x00", "\x00"), get("nothing", ""), get("a1", "a"), get("a1", "a1"), get("x", "a"), get("x", "x"),
		&pb.RangeRequest{Key: []byte("x"), KeysOnly: true}, &pb.RangeRequest{Key: []byte("x"), CountOnly: true}, &pb.RangeRequest{Key: []byte("x"), Serializable: true},
		&pb.RangeRequest{Key: []byte("a1"), Serializable: true}, &pb.RangeRequest{}, &pb.RangeRequest{Key: []byte("x"), Revision: 900},
		put("a1", 0, false), put("a1", 0, true), put("c", 0, false), put("d", 0, false), put("d", 0, true), put("x", 0, false), put("", 0, false),
		put("a1", 7, false), put("a1", 9, false), put("d", 8, true), put("a1", 8, false), put("a1", 1234, false), put("x", 1234, false),
		&pb.PutRequest{Key: []byte("d"), IgnoreValue: true}, &pb.PutRequest{Key: []byte("d"), IgnoreLease: true}, &pb.PutRequest{Key: []byte("d"), Value: []byte("v"), IgnoreValue: true},
		del("a2", "", false), del("a2", "", true), del("d2", "", false), del("m", "n", false), del("m", "n", true), del("x2", "", false), del("a", "\x00", false),
		&pb.TxnRequest{}, txn([]*pb.Compare{compare("x", "")}, nil, nil), txn([]*pb.Compare{compare("a", "b")}, nil, nil), txn([]*pb.Compare{compare("a", "\x00")}, nil, nil),
		txn(nil, get("a1", ""), nil), txn(nil, get("x", ""), nil), txn(nil, nil, get("x", "")), txn(nil, get("a1", ""), put("x", 0, false)),
		txn(nil, put("a1", 0, false), nil), txn(nil, put("x", 0, false), nil), txn(nil, nil, put("x", 0, false)), txn(nil, put("d", 0, true), nil), txn(nil, put("a1", 9, false), nil),
		txn(nil, txn(nil, put("x", 0, false), nil), nil), txn(nil, txn(nil, nil, del("m", "n", true)), nil), txn(nil, txn([]*pb.Compare{compare("x", "")}, put("a1", 0, false), nil), nil),
		txn(nil, txn(nil, txn(nil, get("x", ""), nil), nil), nil), txn(nil, txn(nil, put("a1", 0, false), nil), nil),
		&pb.CompactionRequest{Revision: 2}, &pb.CompactionRequest{Revision: 900},
		&pb.LeaseGrantRequest{ID: 7, TTL: 60}, &pb.LeaseRevokeRequest{ID: 1234}, &pb.LeaseTimeToLiveRequest{ID: 1234, Keys: true},
		&pb.LeaseLeasesRequest{}, &pb.MemberListRequest{}, &pb.StatusRequest{}, &pb.AlarmRequest{}, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE},
		&pb.MemberAddRequest{}, &pb.MemberAddRequest{PeerURLs: []string{"bad"}}, &pb.MemberRemoveRequest{ID: 5}, &pb.MemberUpdateRequest{ID: 5, PeerURLs: []string{"http://127.0.0.1:1"}}, &pb.MemberPromoteRequest{ID: 5},
		&pb.DefragmentRequest{}, &pb.HashRequest{}, &pb.HashKVRequest{}, &pb.MoveLeaderRequest{TargetID: 5}, &pb.DowngradeRequest{Action: pb.DowngradeRequest_CANCEL},
		&pb.DowngradeRequest{Action: pb.DowngradeRequest_VALIDATE, Version: "x"}, &pb.AuthStatusRequest{},
		&pb.AuthUserGetRequest{Name: "limited"}, &pb.AuthUserGetRequest{Name: "reader"}, &pb.AuthUserGetRequest{Name: "nobody"},
		&pb.AuthRoleGetRequest{Role: "limited"}, &pb.AuthRoleGetRequest{Role: "reader"}, &pb.AuthRoleGetRequest{Role: "nothing"},
		&pb.AuthUserListRequest{}, &pb.AuthRoleListRequest{}, &pb.AuthEnableRequest{},
	}
	for _, row := range rows {
		for _, who := range people {
			p.do(who, row)
		}
	}
	for _, lease := range []int64{7, 8, 9} {
		for _, keys := range []bool{false, true} {
			for _, who := range people {
				p.do(who, &pb.LeaseTimeToLiveRequest{ID: lease, Keys: keys})
			}
		}
	}
	for _, lease := range []int64{9, 8, 7} {
		for _, who := range people {
			p.do(who, &pb.LeaseRevokeRequest{ID: lease})
		}
	}
	p.fails("limited", get("x", ""), "permission denied")
	p.fails(anyone, get("x", ""), "user name is empty")
	p.fails("token:garbage", get("x", ""), "invalid auth token")
	p.ok("root", get("x", ""))
}

// Streams: what they say of each message, or how they end.
func TestRightsOfStreams(t *testing.T) {
	t.Parallel()
	p := newPair(t, harness.Options{})
	p.ok(anyone, &pb.LeaseGrantRequest{ID: 7, TTL: 600})
	p.ok(anyone, &pb.LeaseGrantRequest{ID: 9, TTL: 600})
	p.ok(anyone, put("a1", 7, false))
	p.ok(anyone, put("x", 9, false))
	p.enable(rights)
	for _, who := range people {
		for _, create := range []*pb.WatchCreateRequest{
			{Key: []byte("a1")}, {Key: []byte("a"), RangeEnd: []byte("b")}, {Key: []byte("a"), RangeEnd: []byte("\x00")}, {Key: []byte("x")},
			{}, {RangeEnd: []byte("\x00")}, {Key: []byte("d")}, {Key: []byte("c"), PrevKv: true}, {Key: []byte("x"), StartRevision: -1},
		} {
			p.both2(who, create, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
				stream, err := pb.NewWatchClient(conn).Watch(ctx)
				if err != nil {
					return nil, err
				}
				return harness.Exchange(stream, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
			})
		}
		for _, lease := range []int64{7, 9, 1234} {
			p.keepAlive(who, &pb.LeaseKeepAliveRequest{ID: lease})
		}
		for _, request := range []*pb.RangeRequest{get("a", "b"), get("x", ""), get("a", "\x00")} {
			p.both2(who, request, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
				stream, err := pb.NewKVClient(conn).RangeStream(ctx, request)
				if err != nil {
					return nil, err
				}
				return stream.Recv()
			})
		}
		p.both2(who, &pb.SnapshotRequest{}, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
			stream, err := pb.NewMaintenanceClient(conn).Snapshot(ctx, &pb.SnapshotRequest{})
			if err != nil {
				return nil, err
			}
			// What is in it is another matter.
			_, err = stream.Recv()
			return &pb.SnapshotResponse{}, err
		})
	}
}

func (p *pair) keepAlive(who string, request *pb.LeaseKeepAliveRequest) harness.Outcome {
	p.t.Helper()
	return p.both2(who, request, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
		if err != nil {
			return nil, err
		}
		return harness.Exchange(stream, request)
	})
}

// both2 compares the first answer of a stream of both sides, and answers etcd's.
func (p *pair) both2(who string, request proto.Message, call func(context.Context, *grpc.ClientConn) (proto.Message, error)) harness.Outcome {
	p.t.Helper()
	outcomes := p.both(func(side int) harness.Outcome {
		ctx, cancel := context.WithTimeout(p.as(who, side), 10*time.Second)
		defer cancel()
		message, err := call(ctx, p.conn[side])
		if err != nil {
			message = nil
		}
		if err == io.EOF {
			err = nil
		}
		return harness.Outcome{Message: message, Err: err}
	})
	p.compare(who, request, outcomes)
	return outcomes[etcd]
}

// What a running stream does when users and roles change: as in etcd a later
// message is judged anew; unlike in etcd a running watch ends.
func TestRunningWatch(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{Flags: []string{cheap}})
	p := &pair{t: t, duo: &harness.Duo{Etched: server, Etcd: server}, tokens: map[string][2]string{}}
	p.connect()
	ctx := harness.Context(t, 20*time.Second)
	call := func(who string, request proto.Message) {
		if outcome := harness.Invoke(p.as(who, etched), p.conn[etched], request); outcome.Err != nil {
			t.Fatalf("%s: %v", describe(request), outcome.Err)
		}
	}
	for _, request := range []proto.Message{
		userAdd("root", "root"), &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"},
		userAdd("limited", "limited"), &pb.AuthRoleAddRequest{Name: "limited"}, &pb.AuthUserGrantRoleRequest{User: "limited", Role: "limited"},
		permission{readWrite, "a", "b"}.grant("limited"), &pb.AuthEnableRequest{},
	} {
		call(anyone, request)
	}
	p.login("root", "root")
	p.login("limited", "limited")
	watching, cancel := context.WithTimeout(p.as("limited", etched), 15*time.Second)
	defer cancel()
	stream, err := pb.NewWatchClient(p.conn[etched]).Watch(watching)
	if err != nil {
		t.Fatal(err)
	}
	create := &pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("b")}
	if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
		t.Fatal(err)
	}
	next := func() *pb.WatchResponse {
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if answer := next(); !answer.Created || answer.Canceled {
		t.Fatalf("%v", answer)
	}
	call("root", put("a1", 0, false))
	if answer := next(); len(answer.Events) != 1 {
		t.Fatalf("%v", answer)
	}
	call("root", &pb.AuthUserRevokeRoleRequest{Name: "limited", Role: "limited"})
	if answer := next(); !answer.Canceled || answer.CancelReason != "rpc error: code = PermissionDenied desc = etcdserver: permission denied" {
		t.Fatalf("%v", answer)
	}
	if ctx.Err() != nil {
		t.Fatal(ctx.Err())
	}
}
