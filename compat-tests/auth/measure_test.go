package auth

import (
	"context"
	"flag"
	"slices"
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
	measureLogins = flag.Int("auth.logins", 1000, "log-ins beside the load")
	// A figure of one run says little where others use the machine.
	measureRounds  = flag.Int("auth.rounds", 1, "how often all of it is measured")
	measureTokens  = flag.String("auth.tokens", "", "the one kind of tokens to measure, as simple")
	measureClients = flag.Int("auth.clients", 16, "clients of the load, four on a connection")
)

// Requests with each kind of token, and beside a flood of log-ins, of both
// servers one after the other. For people: it asserts nothing.
func TestMeasure(t *testing.T) {
	if *measure == 0 {
		t.Skip("-auth.measure=5s measures")
	}
	hs256, _ := writeKeys(t, t.TempDir(), "HS256")
	rs256, _ := writeKeys(t, t.TempDir(), "RS256")
	for range *measureRounds {
		for _, kind := range []struct{ name, flag string }{
			{"none", ""}, {"simple", "--auth-token=simple"}, {"HS256", hs256}, {"RS256", rs256},
		} {
			if *measureTokens != "" && *measureTokens != kind.name {
				continue
			}
			for _, server := range []harness.Kind{harness.Etched, harness.Etcd} {
				measureOne(t, server, kind.name, kind.flag)
			}
		}
	}
}

func measureOne(t *testing.T, kind harness.Kind, name, tokens string) {
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
	conn := server.Dial(t)
	ctx := context.Background()
	if tokens != "" {
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
		ctx = metadata.AppendToOutgoingContext(ctx, "token", login.Message.(*pb.AuthenticateResponse).Token)
	}
	for _, one := range []struct {
		name    string
		request proto.Message
	}{{"put", put("a1", 0, false)}, {"get", get("a1", "")}} {
		before, _ := server.CPUTime()
		times := load(t, server, ctx, one.request, func() { time.Sleep(*measure) })
		after, _ := server.CPUTime()
		cpu := (after - before) / time.Duration(max(1, len(times)))
		t.Logf("%-6s %-6s %s: %6.0f/s, p50 %v, p99 %v, CPU %v each", name, kind, one.name, float64(len(times))/measure.Seconds(), quantile(times, 50), quantile(times, 99), cpu)
		if tokens != "--auth-token=simple" {
			continue
		}
		var took time.Duration
		var failed atomic.Int64
		times = load(t, server, ctx, one.request, func() { took = logins(t, server, &failed) })
		t.Logf("%-6s %-6s %s beside %d log-ins that took %v (%d refused): %6.0f/s, p50 %v, p99 %v",
			name, kind, one.name, *measureLogins, took.Round(time.Millisecond), failed.Load(), float64(len(times))/took.Seconds(), quantile(times, 50), quantile(times, 99))
	}
}

// load makes the request over and over while something lasts, and answers how long
// each took.
func load(t *testing.T, server *harness.Server, ctx context.Context, request proto.Message, lasts func()) []time.Duration {
	var stop atomic.Bool
	var loading sync.WaitGroup
	times := make([][]time.Duration, *measureClients)
	var conn *grpc.ClientConn
	for i := range times {
		if i%4 == 0 {
			conn = server.Dial(t)
		}
		loading.Go(func() {
			for !stop.Load() {
				began := time.Now()
				if outcome := harness.Invoke(ctx, conn, request); outcome.Err != nil {
					t.Error(outcome.Err)
					return
				}
				times[i] = append(times[i], time.Since(began))
			}
		})
	}
	lasts()
	stop.Store(true)
	loading.Wait()
	all := slices.Concat(times...)
	slices.Sort(all)
	return all
}

func quantile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)*percent/100].Round(time.Microsecond)
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
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			request := &pb.AuthenticateRequest{Name: "limited", Password: password}
			err := conn.Invoke(ctx, pb.Auth_Authenticate_FullMethodName, request, &pb.AuthenticateResponse{})
			if err != nil {
				failed.Add(1)
			}
		})
	}
	all.Wait()
	return time.Since(began)
}
