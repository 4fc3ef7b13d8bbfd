package auth

import (
	"context"
	"flag"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

var (
	measure       = flag.Duration("auth.measure", 0, "measure requests with authentication for so long a phase")
	measureLogins = flag.Int("auth.logins", 1000, "log-ins beside a load that leaves processors idle")
	measureRate   = flag.Int("auth.rate", 500, "requests a second of that load")
	// A figure of one run says little where others use the machine.
	measureRounds  = flag.Int("auth.rounds", 1, "how often each is measured, of which the medians count")
	measureTokens  = flag.String("auth.tokens", "", "the one kind of tokens to measure, as simple")
	measureClients = flag.Int("auth.clients", 16, "clients of the load, four on a connection")
)

const clientsOfConn = 4

// figure is what one phase came to.
type figure struct {
	perSecond float64
	p99, cpu  time.Duration
}

// Requests with each kind of token, and beside a flood of log-ins, of both servers in turns.
// For people: it asserts nothing.
func TestMeasure(t *testing.T) {
	if *measure == 0 {
		t.Skip("-auth.measure=5s measures")
	}
	hs256, _ := writeKeys(t, t.TempDir(), "HS256")
	rs256, _ := writeKeys(t, t.TempDir(), "RS256")
	for _, kind := range []struct{ name, flag string }{
		{"none", ""}, {"simple", "--auth-token=simple"}, {"HS256", hs256}, {"RS256", rs256},
	} {
		if *measureTokens != "" && *measureTokens != kind.name {
			continue
		}
		found := map[string]map[harness.Kind][]figure{}
		for range *measureRounds {
			for _, server := range []harness.Kind{harness.Etched, harness.Etcd} {
				for phase, one := range measureOne(t, server, kind.flag) {
					if found[phase] == nil {
						found[phase] = map[harness.Kind][]figure{}
					}
					found[phase][server] = append(found[phase][server], one)
				}
			}
		}
		for _, phase := range slices.Sorted(maps.Keys(found)) {
			etched, etcd := median(found[phase][harness.Etched]), median(found[phase][harness.Etcd])
			t.Logf("%-6s %-18s etched %6.0f/s, p99 %v, CPU %v; etcd %6.0f/s, p99 %v, CPU %v; ratio %.2f, CPU %.2f", kind.name, phase,
				etched.perSecond, etched.p99, etched.cpu, etcd.perSecond, etcd.p99, etcd.cpu,
				etched.perSecond/etcd.perSecond, float64(etched.cpu)/float64(etcd.cpu))
		}
	}
}

// median is the middle of each column.
func median(rows []figure) figure {
	var perSecond []float64
	var p99, cpu []time.Duration
	for _, row := range rows {
		perSecond, p99, cpu = append(perSecond, row.perSecond), append(p99, row.p99), append(cpu, row.cpu)
	}
	return figure{harness.Median(perSecond), harness.Median(p99), harness.Median(cpu)}
}

// measureOne answers what each phase on a new server came to.
func measureOne(t *testing.T, kind harness.Kind, tokens string) map[string]figure {
	options := harness.Options{}
	if tokens != "" {
		options.Flags = []string{tokens}
	}
	server, err := harness.Launch(kind, options)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Kill()
		_ = server.Remove()
	}()
	ctx := context.Background()
	if tokens != "" {
		ctx = loggedIn(t, ctx, server.Dial(t))
	}
	var conns []*grpc.ClientConn
	for range (*measureClients + clientsOfConn - 1) / clientsOfConn {
		conns = append(conns, server.Dial(t))
	}
	found := map[string]figure{}
	for name, request := range map[string]proto.Message{"put": put("a1", 0, false), "get": get("a1", "")} {
		var failed atomic.Int64
		mayFail := false
		load := func(phase string, perSecond int, lasts func()) {
			load := harness.RunPacedLoad(t, server, *measureClients, perSecond, lasts, func(client int) error {
				err := harness.Invoke(ctx, conns[client/clientsOfConn], request).Err
				if err != nil && mayFail {
					failed.Add(1)
					return nil
				}
				return err
			})
			found[phase] = figure{load.PerSecond(), load.Quantile(99), load.CPU}
		}
		load(name, 0, func() { time.Sleep(*measure) })
		// Log-ins have what nobody else wants of the processors: beside a load that wants all
		// they would take as long as it does.
		if tokens == "--auth-token=simple" && *measureLogins > 0 {
			load(name+" at a rate", *measureRate, func() { time.Sleep(*measure) })
			// etcd's requests may wait for all of them, and time out.
			mayFail = true
			load(name+" beside log-ins", *measureRate, func() {
				var refused atomic.Int64
				took := logins(t, server, &refused)
				t.Logf("%s: %d log-ins beside %ss took %v, %d came to nothing", kind, *measureLogins, name, took.Round(time.Millisecond), refused.Load())
			})
			t.Logf("%s: %d %ss beside them failed", kind, failed.Swap(0), name)
			mayFail = false
		}
	}
	return found
}

// loggedIn makes users, of which one is limited to a range, and logs that one in.
func loggedIn(t *testing.T, ctx context.Context, conn *grpc.ClientConn) context.Context {
	for _, request := range []proto.Message{
		userAdd("root", "root"), &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"},
		userAdd("limited", "limited"), &pb.AuthRoleAddRequest{Name: "limited"}, &pb.AuthUserGrantRoleRequest{User: "limited", Role: "limited"},
		permission{readWrite, "a", "b"}.grant("limited"), &pb.AuthEnableRequest{},
	} {
		if outcome := harness.Invoke(ctx, conn, request); outcome.Err != nil {
			t.Fatal(outcome.Err)
		}
	}
	login := harness.Invoke(ctx, conn, &pb.AuthenticateRequest{Name: "limited", Password: "limited"})
	if login.Err != nil {
		t.Fatal(login.Err)
	}
	return metadata.AppendToOutgoingContext(ctx, "token", login.Message.(*pb.AuthenticateResponse).Token)
}

// logins are half of them with a wrong password.
func logins(t *testing.T, server *harness.Server, failed *atomic.Int64) time.Duration {
	began := time.Now()
	conn := server.Dial(t)
	var all sync.WaitGroup
	for i := range *measureLogins {
		password := "limited"
		if i%2 == 0 {
			password = "wrong"
		}
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			defer cancel()
			request := &pb.AuthenticateRequest{Name: "limited", Password: password}
			err := conn.Invoke(ctx, pb.Auth_Authenticate_FullMethodName, request, &pb.AuthenticateResponse{})
			isAnswer := err == nil || strings.Contains(err.Error(), "invalid user ID or password")
			if !isAnswer {
				failed.Add(1)
			}
		})
	}
	all.Wait()
	return time.Since(began)
}
