package documented

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"etched.dev/compat-tests/harness"
)

// Everybody's, typed twice where a new one is asked for.
const typed = `<<<$'secret\nsecret'`

// The commands of README's section on users, as they stand there, on three members,
// with both kinds of tokens.
func TestUsersOfReadme(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"simple", "signed"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			etcdctl, err := harness.Etcdctl()
			if err != nil {
				t.Fatal(err)
			}
			d := harness.ReadDocument(t, "../../README.md", "## Users", map[string]string{"etcdctl": etcdctl})
			commands, signed := d.Block("etcdctl auth enable"), d.Block("etched --auth-token")
			for _, block := range d.Untried() {
				t.Errorf("nothing runs this:\n%s", block)
			}
			flags := []string{"--bcrypt-cost=4"}
			if kind == "signed" {
				d.Run("openssl ecparam -name prime256v1 -genkey -noout -out ec.pem && openssl ec -in ec.pem -pubout -out ec.pub")
				written := strings.TrimSuffix(strings.TrimSpace(signed), " ...")
				written = strings.ReplaceAll(written, "=ec.", "="+d.Dir+"/ec.")
				flags = append(flags, strings.Fields(written)[1:]...)
			}
			cluster := harness.StartCluster(t, harness.Etched, harness.ClusterOptions{Flags: flags})
			usersOfReadme(t, d, cluster, commands)
			tokensOfReadme(t, cluster, kind == "signed")
		})
	}
}

func usersOfReadme(t *testing.T, d *harness.Document, cluster *harness.Cluster, commands string) {
	t.Helper()
	var endpoints []string
	for _, member := range cluster.Members() {
		endpoints = append(endpoints, member.Endpoint())
	}
	at := func(endpoints, command string) string {
		return d.Run(fmt.Sprintf("export ETCDCTL_ENDPOINTS=%s\n{ %s\n} %s", endpoints, command, typed))
	}
	var last string
	for command := range strings.Lines(commands) {
		last = at(strings.Join(endpoints, ","), command)
	}
	if !strings.HasSuffix(last, "\napp\nroot\n") {
		t.Errorf("the users are %q", last)
	}
	// Each member judges, wherever the commands were given.
	for _, endpoint := range endpoints {
		for command, want := range map[string]string{
			"etcdctl --user app get app/colour":     "app/colour\ngreen\n",
			"! etcdctl --user app put other x":      "permission denied",
			"! etcdctl --user app get ap":           "permission denied",
			"! etcdctl --user app user list":        "permission denied",
			"! etcdctl --user app:wrong get app/a":  "invalid user ID or password",
			"! etcdctl get app/colour":              "user name is empty",
			"etcdctl --user root get --prefix app/": "app/colour\ngreen\n",
		} {
			if seen := at(endpoint, command); !strings.Contains(seen, want) {
				t.Errorf("%s: %s: %q, not %q", endpoint, command, seen, want)
			}
		}
	}
}

// tokensOfReadme sees where a token is valid, and for how long.
func tokensOfReadme(t *testing.T, cluster *harness.Cluster, isSigned bool) {
	t.Helper()
	members := cluster.Members()
	invoke := func(member *harness.Member, token string, request proto.Message) harness.Outcome {
		ctx := metadata.AppendToOutgoingContext(harness.Context(t, limit), "token", token)
		return harness.Invoke(ctx, member.Dial(t), request)
	}
	login := harness.Invoke(context.Background(), members[0].Dial(t), &pb.AuthenticateRequest{Name: "app", Password: "secret"})
	if login.Err != nil {
		t.Fatal(login.Err)
	}
	token := login.Message.(*pb.AuthenticateResponse).Token
	get := &pb.RangeRequest{Key: []byte("app/colour")}
	for _, member := range members {
		if outcome := invoke(member, token, get); outcome.Err != nil {
			t.Errorf("%s: %v", member.Name(), outcome.Err)
		}
	}
	restarted := members[1]
	if err := restarted.Server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := restarted.Restart(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(limit)
	for harness.Invoke(context.Background(), restarted.Dial(t), &pb.AuthStatusRequest{}).Err != nil {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not serve again", restarted.Name())
		}
		time.Sleep(50 * time.Millisecond)
	}
	outcome := invoke(restarted, token, get)
	switch text := harness.ErrorText(outcome.Err); {
	case isSigned && outcome.Err != nil:
		t.Errorf("a signed token after a restart: %s", text)
	case !isSigned && text != "Unauthenticated: etcdserver: invalid auth token":
		t.Errorf("a simple token after a restart: %s", text)
	}
	if outcome := invoke(members[2], token, get); outcome.Err != nil {
		t.Errorf("a member that was not restarted: %v", outcome.Err)
	}
}
