package auth

import (
	"context"
	"fmt"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// A simple token of one member is valid at the others at once and with another
// leader, but not at a member that was restarted.
func TestTokensInACluster(t *testing.T) {
	t.Parallel()
	clusters := harness.StartClusters(t, harness.ClusterOptions{Flags: []string{cheap}})
	outcomes := make(map[harness.Kind][]string)
	clusters.Each(func(c *harness.Cluster) {
		p := &pair{t: t, tokens: map[string][2]string{}}
		note := func(what string, outcome harness.Outcome) {
			outcomes[c.Kind()] = append(outcomes[c.Kind()], what+": "+harness.ErrorText(outcome.Err))
		}
		call := func(member *harness.Member, ctx context.Context, request proto.Message) harness.Outcome {
			return harness.Invoke(ctx, member.Dial(t), request)
		}
		members := c.Members()
		var ids []uint64
		for _, member := range members {
			id, err := member.ID(harness.Context(t, 30*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		for _, request := range []proto.Message{
			userAdd("root", "root"), &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"},
			userAdd("limited", "limited"), &pb.AuthRoleAddRequest{Name: "limited"}, &pb.AuthUserGrantRoleRequest{User: "limited", Role: "limited"},
			permission{readWrite, "a", "b"}.grant("limited"), &pb.AuthEnableRequest{},
		} {
			note("prepare", call(members[0], context.Background(), request))
		}
		login := func(member *harness.Member, name string) {
			outcome := call(member, context.Background(), &pb.AuthenticateRequest{Name: name, Password: name})
			note("log-in", outcome)
			if outcome.Err == nil {
				token := outcome.Message.(*pb.AuthenticateResponse).Token
				p.tokens[name] = [2]string{token, token}
			}
		}
		for round := range 10 {
			login(members[round%3], "limited")
			for _, member := range members {
				if c.Kind() == harness.Etcd {
					// Its members wait for what they had applied before the log-in, and not for the
					// log-in itself: one that lags behind it does not know the token. This is answered
					// when all before it is applied.
					waitReady(t, member.Server)
				}
				note("put", call(member, p.as("limited", etched), put("a1", 0, false)))
				note("get", call(member, p.as("limited", etched), get("a1", "")))
				note("other", call(member, p.as("limited", etched), get("x", "")))
			}
		}
		login(members[0], "root")
		for _, member := range members {
			waitReady(t, member.Server)
		}
		// The leader of now: a busy machine may have had another one elected.
		if err := moveLeader(members, ids, func(member *harness.Member, target uint64) error {
			return call(member, p.as("root", etched), &pb.MoveLeaderRequest{TargetID: target}).Err
		}); err != nil {
			t.Fatal(err)
		}
		for _, member := range members {
			waitReady(t, member.Server)
		}
		for _, member := range members {
			note("get", call(member, p.as("limited", etched), get("a1", "")))
			note("put", call(member, p.as("limited", etched), put("a1", 0, false)))
		}
		restart(t, members[2].Server)
		for _, member := range members {
			note("get", call(member, p.as("limited", etched), get("a1", "")))
		}
		// Revoked everywhere at once, as far as each member has applied it.
		login(members[0], "root")
		for _, member := range members {
			waitReady(t, member.Server)
		}
		note("password", call(members[0], p.as("root", etched), &pb.AuthUserChangePasswordRequest{Name: "limited", Password: "new"}))
		for _, member := range members {
			// A read that asks a quorum first has all of that applied.
			note("wait", call(member, p.as("root", etched), get("a1", "")))
			note("get", call(member, p.as("limited", etched), get("a1", "")))
		}
	})
	ours, theirs := outcomes[harness.Etched], outcomes[harness.Etcd]
	if len(ours) != len(theirs) {
		t.Fatalf("%d and %d answers", len(ours), len(theirs))
	}
	for i := range ours {
		if ours[i] != theirs[i] {
			t.Errorf("answer %d\n-etched: %s\n+etcd:   %s", i, ours[i], theirs[i])
		}
	}
}

// moveLeader has another member lead than does: only the leader takes the call.
func moveLeader(members []*harness.Member, ids []uint64, move func(member *harness.Member, target uint64) error) error {
	var last error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for i, member := range members {
			if last = move(member, ids[(i+1)%len(ids)]); last == nil {
				return nil
			}
		}
	}
	return fmt.Errorf("no member leaves off leading: %w", last)
}
