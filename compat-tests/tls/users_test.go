package tls

import (
	"context"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// users are those in certificates; the first three exist.
var users = []string{"root", "user", "nothing", "unlisted", "", "User", "user ", "user\nroot"}

// enable has a server know the first three users, and ask who calls.
func enable(t *testing.T, server *harness.Server) {
	t.Helper()
	conn := server.Dial(t)
	for _, request := range []proto.Message{
		&pb.AuthUserAddRequest{Name: "root", Password: "root"}, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"},
		&pb.AuthUserAddRequest{Name: "user", Password: "user"}, &pb.AuthRoleAddRequest{Name: "user"},
		&pb.AuthUserGrantRoleRequest{User: "user", Role: "user"},
		&pb.AuthRoleGrantPermissionRequest{Name: "user", Perm: &authpb.Permission{PermType: authpb.READWRITE, Key: []byte("a"), RangeEnd: []byte("b")}},
		&pb.AuthUserAddRequest{Name: "nothing", Options: &authpb.UserAddOptions{NoPassword: true}},
		&pb.AuthEnableRequest{},
	} {
		if outcome := harness.Invoke(context.Background(), conn, request); outcome.Err != nil {
			t.Fatalf("%T: %v", request, outcome.Err)
		}
	}
}

// With --client-cert-auth the name in a certificate is a user, unless a token is
// shown; without, a certificate is demanded and says nothing.
func TestUsersOfCertificates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	trusted := "--trusted-ca-file=" + w.known.file
	for name, flags := range map[string][]string{
		"authentication": {trusted, "--client-cert-auth"},
		"certificates":   {trusted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			duo := w.duo(t, append(flags, "--bcrypt-cost=4")...)
			var tokens [2]map[string]string
			duo.Each(func(server *harness.Server) { enable(t, server) })
			for side, server := range []*harness.Server{duo.Etched, duo.Etcd} {
				tokens[side] = map[string]string{"none": "", "garbage": "garbage", "of the future": "abcdefghijklmnop.1"}
				for _, user := range []string{"root", "user"} {
					outcome := harness.Invoke(context.Background(), server.Dial(t), &pb.AuthenticateRequest{Name: user, Password: user})
					if outcome.Err != nil {
						t.Fatal(outcome.Err)
					}
					tokens[side][user] = outcome.Message.(*pb.AuthenticateResponse).Token
				}
			}
			refused := 0
			for _, user := range users {
				shown := w.known.issue(holder{commonName: user})
				var conns [2]*grpc.ClientConn
				for side, server := range []*harness.Server{duo.Etched, duo.Etcd} {
					conns[side] = dial(t, from(""), server.Endpoint(), client(pool(w.known), &shown))
					defer conns[side].Close()
				}
				for _, token := range []string{"none", "root", "user", "garbage", "of the future"} {
					for _, request := range []proto.Message{
						&pb.PutRequest{Key: []byte("a1"), Value: []byte("v")}, &pb.PutRequest{Key: []byte("c"), Value: []byte("v")},
						&pb.RangeRequest{Key: []byte("a1")}, &pb.RangeRequest{Key: []byte("c")}, &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("b"), Serializable: true},
						&pb.DeleteRangeRequest{Key: []byte("a1")}, &pb.DeleteRangeRequest{Key: []byte("c")},
						&pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("c")}}}}},
						&pb.MemberListRequest{}, &pb.LeaseGrantRequest{TTL: 60, ID: 7}, &pb.LeaseRevokeRequest{ID: 7},
						&pb.AuthStatusRequest{}, &pb.AuthUserListRequest{}, &pb.AuthUserGetRequest{Name: "user"}, &pb.AuthRoleGetRequest{Role: "user"},
						&pb.HashKVRequest{}, &pb.AuthUserChangePasswordRequest{Name: "nobody", Password: "x"},
					} {
						var outcomes [2]harness.Outcome
						for side := range outcomes {
							ctx := context.Background()
							if shown := tokens[side][token]; shown != "" {
								ctx = metadata.AppendToOutgoingContext(ctx, "token", shown)
							}
							outcomes[side] = harness.Invoke(ctx, conns[side], request)
							if hash, is := outcomes[side].Message.(*pb.HashKVResponse); is {
								hash.Hash = 0
							}
						}
						if outcomes[1].Err != nil {
							refused++
						}
						if diff := harness.DiffOutcome(outcomes[0], outcomes[1]); diff != "" {
							t.Errorf("%q with token %s: %T\n(-etched +etcd)\n%s", user, token, request, diff)
						}
					}
				}
			}
			if refused == 0 {
				t.Error("nothing was refused")
			}
		})
	}
}

// Locks and elections of the users in certificates, inside and outside of what is theirs.
func TestLocksOfCertificates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	duo := w.duo(t, "--trusted-ca-file="+w.known.file, "--client-cert-auth", "--bcrypt-cost=4")
	duo.Each(func(server *harness.Server) { enable(t, server) })
	as := func(user string) func(request proto.Message) harness.Outcome {
		shown := w.known.issue(holder{commonName: user})
		var conns [2]*grpc.ClientConn
		for side, server := range []*harness.Server{duo.Etched, duo.Etcd} {
			conns[side] = dial(t, from(""), server.Endpoint(), client(pool(w.known), &shown))
			t.Cleanup(func() { _ = conns[side].Close() })
		}
		return func(request proto.Message) harness.Outcome {
			t.Helper()
			var outcomes [2]harness.Outcome
			for side := range outcomes {
				outcomes[side] = harness.Invoke(context.Background(), conns[side], request)
			}
			if diff := harness.DiffOutcome(outcomes[0], outcomes[1]); diff != "" {
				t.Errorf("%q: %T{%v}\n(-etched +etcd)\n%s", user, request, request, diff)
			}
			return outcomes[1]
		}
	}
	root := as("root")
	for _, lease := range []int64{7, 8} {
		root(&pb.LeaseGrantRequest{ID: lease, TTL: 600})
	}
	granted, refused := 0, 0
	for _, user := range users[:4] {
		call := as(user)
		for _, name := range []string{"a/l", "c/l", "b"} {
			key := []byte(name + "/7")
			led := &v3electionpb.LeaderKey{Name: []byte(name), Key: key, Lease: 7}
			for _, request := range []proto.Message{
				&v3lockpb.LockRequest{Name: []byte(name), Lease: 7}, &v3lockpb.UnlockRequest{Key: key},
				&v3electionpb.CampaignRequest{Name: []byte(name), Value: []byte("v"), Lease: 7}, &v3electionpb.LeaderRequest{Name: []byte(name)},
				&v3electionpb.ProclaimRequest{Leader: led, Value: []byte("p")}, &v3electionpb.ResignRequest{Leader: led},
			} {
				// Alone, and where the key is there.
				for _, before := range []proto.Message{nil, &pb.PutRequest{Key: key, Value: []byte("x"), Lease: 7}} {
					if before != nil {
						root(before)
					}
					if made := call(request); made.Err == nil {
						granted++
					} else if strings.Contains(made.Err.Error(), "permission denied") {
						refused++
					}
					root(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
					root(&pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
				}
			}
		}
	}
	if granted == 0 || refused == 0 {
		t.Errorf("%d calls were granted and %d refused", granted, refused)
	}
	// The turn of one who waits comes with another's end.
	root(&v3lockpb.LockRequest{Name: []byte("a/l"), Lease: 8})
	for side, server := range []*harness.Server{duo.Etched, duo.Etcd} {
		shown := w.known.issue(holder{commonName: "user"})
		conn := dial(t, from(""), server.Endpoint(), client(pool(w.known), &shown))
		defer conn.Close()
		held := make(chan harness.Outcome, 1)
		go func() {
			held <- harness.Invoke(context.Background(), conn, &v3lockpb.LockRequest{Name: []byte("a/l"), Lease: 7})
		}()
		own := server.Dial(t)
		there := func() bool {
			found := harness.Invoke(context.Background(), own, &pb.RangeRequest{Key: []byte("a/l/7")})
			return found.Err == nil && found.Message.(*pb.RangeResponse).Count == 1
		}
		for deadline := time.Now().Add(callLimit); !there(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("side %d: nobody waits", side)
			}
		}
		select {
		case early := <-held:
			t.Errorf("side %d: two hold the lock: %v", side, early)
		default:
		}
		if done := harness.Invoke(context.Background(), own, &v3lockpb.UnlockRequest{Key: []byte("a/l/8")}); done.Err != nil {
			t.Fatal(done.Err)
		}
		if outcome := <-held; outcome.Err != nil {
			t.Errorf("side %d: %v", side, outcome.Err)
		}
	}
}

// A watch of a certificate's user ends when its right is gone, as a token's does.
func TestWatchOfCertificate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	root := w.known.issue(holder{commonName: "root"})
	server := harness.Start(t, harness.Etched, harness.Options{
		Flags:      append(w.server.flags(""), "--trusted-ca-file="+w.known.file, "--client-cert-auth", "--bcrypt-cost=4"),
		Encryption: harness.Encryption{ClientTLS: client(pool(w.known), &root)},
	})
	conn := server.Dial(t)
	do := func(request proto.Message) {
		t.Helper()
		if outcome := harness.Invoke(context.Background(), conn, request); outcome.Err != nil {
			t.Fatalf("%T: %v", request, outcome.Err)
		}
	}
	for _, request := range []proto.Message{
		&pb.AuthUserAddRequest{Name: "root", Options: &authpb.UserAddOptions{NoPassword: true}}, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"},
		&pb.AuthUserAddRequest{Name: "user", Options: &authpb.UserAddOptions{NoPassword: true}}, &pb.AuthRoleAddRequest{Name: "user"},
		&pb.AuthUserGrantRoleRequest{User: "user", Role: "user"},
		&pb.AuthRoleGrantPermissionRequest{Name: "user", Perm: &authpb.Permission{PermType: authpb.READ, Key: []byte("a")}},
		&pb.AuthEnableRequest{},
	} {
		do(request)
	}
	user := w.known.issue(holder{commonName: "user"})
	called := dial(t, from(""), server.Endpoint(), client(pool(w.known), &user))
	defer called.Close()
	stream, err := pb.NewWatchClient(called).Watch(harness.Context(t, callLimit))
	if err != nil {
		t.Fatal(err)
	}
	created, err := harness.Exchange(stream, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a")}}})
	if err != nil || created.Canceled {
		t.Fatalf("%v %v", created, err)
	}
	do(&pb.PutRequest{Key: []byte("a"), Value: []byte("seen")})
	if event, err := stream.Recv(); err != nil || len(event.Events) != 1 {
		t.Fatalf("%v %v", event, err)
	}
	do(&pb.AuthUserRevokeRoleRequest{Name: "user", Role: "user"})
	do(&pb.PutRequest{Key: []byte("a"), Value: []byte("not seen")})
	ended, err := stream.Recv()
	if err != nil || !ended.Canceled || !strings.Contains(ended.CancelReason, "permission denied") {
		t.Errorf("%v %v", ended, err)
	}
}
