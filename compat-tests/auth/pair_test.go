// Package auth asks etched and etcd v3.7.3 the same as users with different
// rights, and compares every verdict: answers, error codes and texts, and the
// reasons that streams end with.
package auth

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { harness.RunWaiting(m) }

const (
	etched = iota
	etcd
)

// pair is an etched and an etcd, and who has logged in there.
type pair struct {
	t           *testing.T
	duo         *harness.Duo
	conn        [2]*grpc.ClientConn
	tokens      map[string][2]string
	differences int
	// Inverted ranges that etcd did not judge by their first key.
	prunedWrongly int
}

// cheap hashes passwords at the least cost.
const cheap = "--bcrypt-cost=4"

func newPair(t *testing.T, options harness.Options) *pair {
	t.Helper()
	options.Flags = append(options.Flags, cheap)
	p := &pair{t: t, duo: harness.StartDuo(t, options), tokens: map[string][2]string{}}
	p.connect()
	return p
}

func (p *pair) connect() {
	p.conn = [2]*grpc.ClientConn{p.duo.Etched.Dial(p.t), p.duo.Etcd.Dial(p.t)}
}

// anyone is who shows nothing. Other names with a colon are metadata, as
// "token:x"; the rest are users who have logged in.
const anyone = ""

// as is what somebody shows to one side.
func (p *pair) as(who string, side int) context.Context {
	ctx := context.Background()
	switch field, value, isMetadata := strings.Cut(who, ":"); {
	case who == anyone:
		return ctx
	case isMetadata:
		for name, tokens := range p.tokens {
			value = strings.ReplaceAll(value, "<"+name+">", tokens[side])
		}
		return metadata.AppendToOutgoingContext(ctx, field, value)
	}
	token, known := p.tokens[who]
	if !known {
		p.t.Fatalf("%s has not logged in", who)
	}
	return metadata.AppendToOutgoingContext(ctx, "token", token[side])
}

// do makes the call on both sides, compares, and answers etcd's outcome.
func (p *pair) do(who string, request proto.Message) harness.Outcome {
	p.t.Helper()
	outcomes := p.both(func(side int) harness.Outcome {
		return harness.Invoke(p.as(who, side), p.conn[side], request)
	})
	p.compare(who, request, outcomes)
	return outcomes[etcd]
}

// ok is do for what etcd must answer without an error.
func (p *pair) ok(who string, request proto.Message) proto.Message {
	p.t.Helper()
	outcome := p.do(who, request)
	if outcome.Err != nil {
		p.t.Fatalf("%s: %s: %v", who, describe(request), outcome.Err)
	}
	return outcome.Message
}

// fails is do for what etcd must refuse, with this text in it.
func (p *pair) fails(who string, request proto.Message, text string) {
	p.t.Helper()
	outcome := p.do(who, request)
	if got := harness.ErrorText(outcome.Err); !strings.Contains(got, text) {
		p.t.Errorf("%s: %s: %s, not %q", who, describe(request), got, text)
	}
}

func (p *pair) both(call func(side int) harness.Outcome) [2]harness.Outcome {
	var outcomes [2]harness.Outcome
	var called sync.WaitGroup
	for side := range outcomes {
		called.Go(func() { outcomes[side] = call(side) })
	}
	called.Wait()
	return outcomes
}

func (p *pair) compare(who string, request proto.Message, outcomes [2]harness.Outcome) {
	p.t.Helper()
	for _, outcome := range outcomes {
		switch answer := outcome.Message.(type) {
		case *pb.AuthenticateResponse:
			answer.Token = ""
		case *pb.StatusResponse:
			// What each says of its disk and its log is its own.
			answer.Reset()
		case *pb.HashResponse:
			answer.Hash = 0
		case *pb.LeaseLeasesResponse:
			// They come in the order of their ends, which a follower does not know.
			slices.SortFunc(answer.Leases, func(one, other *pb.LeaseStatus) int { return cmp.Compare(one.ID, other.ID) })
		case *pb.LeaseTimeToLiveResponse:
			// It differs by the time that passes, and etcd's keys have no order.
			answer.TTL = min(answer.TTL, 1)
			slices.SortFunc(answer.Keys, bytes.Compare)
		}
	}
	if diff := harness.DiffOutcome(outcomes[etched], outcomes[etcd]); diff != "" {
		p.t.Errorf("as %q: %s\n(-etched +etcd)\n%s", who, describe(request), diff)
		const most = 12
		if p.differences++; p.differences == most {
			p.t.Fatalf("%d differences are enough", most)
		}
	}
}

func describe(request proto.Message) string {
	text := prototext.MarshalOptions{}.Format(request)
	return fmt.Sprintf("%s{%.300s}", request.ProtoReflect().Descriptor().Name(), text)
}

// login has a user log in on both sides.
func (p *pair) login(name, password string) {
	p.t.Helper()
	var tokens [2]string
	request := &pb.AuthenticateRequest{Name: name, Password: password}
	outcomes := p.both(func(side int) harness.Outcome {
		return harness.Invoke(context.Background(), p.conn[side], request)
	})
	for side, outcome := range outcomes {
		if outcome.Err != nil {
			p.t.Fatalf("log-in of %s at %d: %v", name, side, outcome.Err)
		}
		tokens[side] = outcome.Message.(*pb.AuthenticateResponse).Token
	}
	p.tokens[name] = tokens
}

// enable makes the users of a table with a role each that has these permissions,
// and root, and logs all in.
func (p *pair) enable(users map[string][]permission) {
	p.t.Helper()
	p.ok(anyone, &pb.AuthUserAddRequest{Name: "root", Password: "root"})
	p.ok(anyone, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"})
	for _, name := range sorted(users) {
		p.ok(anyone, &pb.AuthUserAddRequest{Name: name, Password: name})
		p.ok(anyone, &pb.AuthRoleAddRequest{Name: name})
		p.ok(anyone, &pb.AuthUserGrantRoleRequest{User: name, Role: name})
		for _, one := range users[name] {
			p.ok(anyone, one.grant(name))
		}
	}
	p.ok(anyone, &pb.AuthEnableRequest{})
	p.login("root", "root")
	for _, name := range sorted(users) {
		p.login(name, name)
	}
}

// restart kills a server and starts it again. Only a request about authentication
// can tell that it is ready.
func restart(t *testing.T, server *harness.Server) {
	t.Helper()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Spawn(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, server)
}

func waitReady(t *testing.T, server *harness.Server) {
	t.Helper()
	conn := server.Dial(t)
	ctx := harness.Context(t, 30*time.Second)
	for {
		outcome := harness.Invoke(ctx, conn, &pb.AuthStatusRequest{})
		if outcome.Err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(outcome.Err)
		}
		conn.ResetConnectBackoff()
		time.Sleep(20 * time.Millisecond)
	}
}
