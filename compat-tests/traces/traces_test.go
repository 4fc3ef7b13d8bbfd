package traces

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

func TestMain(m *testing.M) { harness.RunWaiting(m) }

// ofEtched are the spans that stand for stages of etched's own, below etcd's.
var ofEtched = []string{"admission", "propose", "log", "apply", "read_index", "ask_leader", "forwarded"}

// client is the span of the client's in which it makes its calls.
const client = "00f067aa0ba902b7"

// quickly has finished spans sent soon, by either server.
var quickly = []string{"OTEL_BSP_SCHEDULE_DELAY=50"}

// options of a server that sends traces to an address.
func options(address string, flags ...string) harness.Options {
	return harness.Options{
		Flags: append([]string{
			"--enable-distributed-tracing", "--distributed-tracing-address=" + address,
		}, flags...),
		Env: quickly,
	}
}

// side is a server, its collector and a connection to it.
type side struct {
	server    *harness.Server
	collector *collector
	conn      *grpc.ClientConn
}

func start(t *testing.T, kind harness.Kind, flags ...string) side {
	t.Helper()
	c := startCollector(t)
	server := harness.Start(t, kind, options(c.address, flags...))
	return side{server, c, server.Dial(t)}
}

// inTrace is the context of a call in a trace of its client's, sampled or not.
func inTrace(t *testing.T, trace string, sampled bool) context.Context {
	t.Helper()
	flags := map[bool]string{true: "01", false: "00"}[sampled]
	ctx := harness.Context(t, harness.CallLimit)
	return metadata.AppendToOutgoingContext(ctx, "traceparent", fmt.Sprintf("00-%s-%s-%s", trace, client, flags))
}

// numbered is the id of a trace.
func numbered(number int) string { return fmt.Sprintf("4bf92f3577b34da6a3ce929d0e0e%04x", number) }

// call is a call to compare; what it answers is compared elsewhere.
type call struct {
	name string
	make func(context.Context, *grpc.ClientConn)
}

// stream sends requests one by one, each behind the answer to the one before.
func stream[Request, Answer any](open func(context.Context, *grpc.ClientConn) (interface {
	Send(Request) error
	Recv() (Answer, error)
	CloseSend() error
}, error), requests ...Request) func(context.Context, *grpc.ClientConn) {
	return func(ctx context.Context, conn *grpc.ClientConn) {
		opened, err := open(ctx, conn)
		if err != nil {
			return
		}
		for _, request := range requests {
			_ = opened.Send(request)
			_, _ = opened.Recv()
		}
		_ = opened.CloseSend()
		for {
			if _, err := opened.Recv(); err != nil {
				return
			}
		}
	}
}

func calls() []call {
	kv := pb.NewKVClient
	lease := pb.NewLeaseClient
	key, end := []byte("a\"b"), []byte("b")
	putOp := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Lease: 7}}}
	getOp := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}
	exists := &pb.Compare{Target: pb.Compare_VERSION, Key: key, TargetUnion: &pb.Compare_Version{Version: 1}}
	return []call{
		{"grant", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = lease(conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 7, TTL: 600})
		}},
		{"put", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = kv(conn).Put(ctx, &pb.PutRequest{Key: key, Value: []byte("1")})
		}},
		{"put refused", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = kv(conn).Put(ctx, &pb.PutRequest{})
		}},
		{"put with a lease that is not there", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = kv(conn).Put(ctx, &pb.PutRequest{Key: key, Lease: 99})
		}},
		{"range", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = kv(conn).Range(ctx, &pb.RangeRequest{Key: key, RangeEnd: end, Limit: 3, KeysOnly: true})
		}},
		{"range of the future", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = kv(conn).Range(ctx, &pb.RangeRequest{Key: key, Revision: 1000})
		}},
		{"serializable count", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = kv(conn).Range(ctx, &pb.RangeRequest{Key: key, Serializable: true, CountOnly: true})
		}},
		{"range stream", func(ctx context.Context, conn *grpc.ClientConn) {
			opened, err := kv(conn).RangeStream(ctx, &pb.RangeRequest{Key: key, RangeEnd: end})
			for err == nil {
				_, err = opened.Recv()
			}
		}},
		{"transaction", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = kv(conn).Txn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{exists}, Success: []*pb.RequestOp{putOp, getOp}, Failure: []*pb.RequestOp{getOp}})
		}},
		{"transaction that reads", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = kv(conn).Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{getOp}})
		}},
		{"empty transaction", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = kv(conn).Txn(ctx, &pb.TxnRequest{})
		}},
		{"delete", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = kv(conn).DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key, RangeEnd: end})
		}},
		{"compact", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = kv(conn).Compact(ctx, &pb.CompactionRequest{Revision: 3, Physical: true})
		}},
		{"watch", stream(func(ctx context.Context, conn *grpc.ClientConn) (interface {
			Send(*pb.WatchRequest) error
			Recv() (*pb.WatchResponse, error)
			CloseSend() error
		}, error) {
			// A deadline would end it at either side first.
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(500*time.Millisecond, cancel)
			return pb.NewWatchClient(conn).Watch(ctx)
		},
			&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
				Key: key, RangeEnd: end, PrevKv: true, ProgressNotify: true,
			}}},
			&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
				Key: key, StartRevision: 100, Fragment: true,
			}}},
			&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 1}}},
		)},
		{"keep-alive", stream(func(ctx context.Context, conn *grpc.ClientConn) (interface {
			Send(*pb.LeaseKeepAliveRequest) error
			Recv() (*pb.LeaseKeepAliveResponse, error)
			CloseSend() error
		}, error) {
			return lease(conn).LeaseKeepAlive(ctx)
		}, &pb.LeaseKeepAliveRequest{ID: 7}, &pb.LeaseKeepAliveRequest{ID: 7})},
		{"revoke", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = lease(conn).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 7})
		}},
		{"revoke what is not there", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = lease(conn).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 7})
		}},
		{"status", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
		}},
		{"members", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = pb.NewClusterClient(conn).MemberList(ctx, &pb.MemberListRequest{})
		}},
		{"role", func(ctx context.Context, conn *grpc.ClientConn) {
			_, _ = pb.NewAuthClient(conn).RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "r"})
		}},
	}
}

// shown is a span as both have to have it.
type shown struct {
	Name, Below, Status string
	Kind                tracepb.Span_SpanKind
	Attributes          map[string]string
	Events              []string
}

// comparable are the spans of a trace without what is etched's own. The port is
// each server's own.
func comparable(t *testing.T, spans []span, port string) []shown {
	t.Helper()
	names := map[string]string{client: "the client's"}
	for _, one := range spans {
		names[one.ID] = one.Name
	}
	var found []shown
	for _, one := range spans {
		if slices.Contains(ofEtched, one.Name) {
			continue
		}
		attributes := maps.Clone(one.Attributes)
		if attributes["server.port"] == port {
			attributes["server.port"] = "its own"
		}
		found = append(found, shown{one.Name, names[one.Parent], one.Status, one.Kind, attributes, one.Events})
	}
	slices.SortFunc(found, func(a, b shown) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return found
}

func port(server *harness.Server) string {
	_, port, _ := strings.Cut(server.Endpoint(), ":")
	return port
}

func TestCallsHaveEtcdsSpans(t *testing.T) {
	t.Parallel()
	etched, etcd := start(t, harness.Etched), start(t, harness.Etcd)
	for number, call := range calls() {
		t.Run(call.name, func(t *testing.T) {
			trace := numbered(number)
			var both [2][]shown
			for i, one := range []side{etched, etcd} {
				call.make(inTrace(t, trace, true), one.conn)
				both[i] = comparable(t, one.collector.ended(t, trace), port(one.server))
			}
			if diff := cmp.Diff(both[1], both[0]); diff != "" {
				t.Errorf("(-etcd +etched)\n%s", diff)
			}
		})
	}
}

// What etched does for a put stands below the put, in order, each within its parent.
func TestStagesOfAPut(t *testing.T) {
	t.Parallel()
	one := start(t, harness.Etched, "--log-level=error")
	trace := numbered(1)
	if _, err := pb.NewKVClient(one.conn).Put(inTrace(t, trace, true), &pb.PutRequest{Key: []byte("k")}); err != nil {
		t.Fatal(err)
	}
	spans := make(map[string]span)
	for _, found := range one.collector.ended(t, trace) {
		spans[found.Name] = found
	}
	for name, parent := range map[string]string{
		"put": "etcdserverpb.KV/Put", "admission": "put", "propose": "put", "log": "propose", "apply": "propose",
	} {
		stage, of := spans[name], spans[parent]
		if stage.Parent == "" || stage.Parent != of.ID {
			t.Errorf("%s is not below %s: %+v", name, parent, stage)
		}
		if stage.Start < of.Start || stage.End > of.End || stage.Start > stage.End {
			t.Errorf("%s, from %d to %d, is not within %s, from %d to %d", name, stage.Start, stage.End, parent, of.Start, of.End)
		}
	}
	if spans["admission"].End > spans["propose"].Start || spans["log"].End > spans["apply"].Start {
		t.Errorf("the stages are in no order: %+v", spans)
	}
	if want := []string{"proposed", "committed", "answered"}; !slices.Equal(spans["propose"].Events, want) {
		t.Errorf("the events of propose are %q", spans["propose"].Events)
	}
}

// A proposal that a member forwards to its leader is followed there: what the leader logs and
// applies for it stands below what the member has done.
func TestForwardedProposals(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	with := options(c.address)
	cluster := harness.StartCluster(t, harness.Etched, harness.ClusterOptions{
		Flags: with.Flags, Env: func(int) []string { return with.Env },
		MemberFlags: func(member int) []string {
			return []string{fmt.Sprintf("--distributed-tracing-instance-id=m%d", member+1)}
		},
	})
	leader, err := cluster.WaitLeader(30 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	follower := cluster.Others(leader)[0]
	for number, member := range []*harness.Member{leader, follower} {
		trace := numbered(number)
		if _, err := pb.NewKVClient(member.Dial(t)).Put(inTrace(t, trace, true), &pb.PutRequest{Key: []byte("k")}); err != nil {
			t.Fatal(err)
		}
		// Those of either member come when it sends them.
		want := []string{"admission", "apply", "etcdserverpb.KV/Put", "log", "propose", "put"}
		if member == follower {
			want = []string{"admission", "apply", "apply", "etcdserverpb.KV/Put", "forwarded", "log", "propose", "put"}
		}
		var names []string
		spans := make(map[string]span)
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline) && !slices.Equal(names, want); time.Sleep(20 * time.Millisecond) {
			names = nil
			for _, one := range c.of(trace) {
				names = append(names, one.Name)
				spans[one.Resource["service.instance.id"]+" "+one.Name] = one
			}
			slices.Sort(names)
		}
		if !slices.Equal(names, want) {
			t.Fatalf("through %s, where %s leads, there are %q, not %q", member.Name(), leader.Name(), names, want)
		}
		at := func(member *harness.Member, name string) span {
			return spans[fmt.Sprintf("%q %s", member.Name(), name)]
		}
		for _, one := range []struct{ stage, above span }{
			{at(member, "put"), at(member, "etcdserverpb.KV/Put")},
			{at(member, "propose"), at(member, "put")},
			{at(member, "apply"), at(member, "propose")},
		} {
			if one.stage.ID == "" || one.stage.Parent != one.above.ID {
				t.Errorf("%+v is not below %+v", one.stage, one.above)
			}
		}
		if member == leader {
			continue
		}
		forwarded := at(leader, "forwarded")
		for _, one := range []struct{ stage, above span }{
			{forwarded, at(follower, "propose")}, {at(leader, "log"), forwarded}, {at(leader, "apply"), forwarded},
		} {
			if one.stage.ID == "" || one.stage.Parent != one.above.ID {
				t.Errorf("%+v is not below %+v", one.stage, one.above)
			}
		}
		if want := []string{"proposed", "committed"}; !slices.Equal(forwarded.Events, want) {
			t.Errorf("the events at the leader are %q", forwarded.Events)
		}
		id, err := follower.ID(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if from := forwarded.Attributes["from"]; from != fmt.Sprintf("%q", fmt.Sprintf("%x", id)) {
			t.Errorf("it is said to be from %s, and is from %x", from, id)
		}
	}
}

// How spans are sent away is said by the variables of OpenTelemetry, as far as the flags do not.
func TestHowSpansAreSent(t *testing.T) {
	t.Parallel()
	for number, env := range [][]string{
		nil,
		{"OTEL_EXPORTER_OTLP_COMPRESSION=gzip", "OTEL_EXPORTER_OTLP_HEADERS=api-key=of%20all,tenant=a"},
		{"OTEL_EXPORTER_OTLP_TRACES_COMPRESSION=gzip", "OTEL_EXPORTER_OTLP_TRACES_HEADERS=api-key=own"},
		{"OTEL_EXPORTER_OTLP_COMPRESSION=gzip", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION=none"},
		{"OTEL_EXPORTER_OTLP_COMPRESSION=nothing-known", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"},
	} {
		var both [2][]string
		for i, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
			c := startCollector(t)
			with := options(c.address)
			with.Env = append(slices.Clone(with.Env), env...)
			conn := harness.Start(t, kind, with).Dial(t)
			_, _ = pb.NewKVClient(conn).Range(inTrace(t, numbered(1), true), &pb.RangeRequest{Key: []byte("k")})
			c.ended(t, numbered(1))
			both[i] = c.sentHow()
		}
		if diff := cmp.Diff(both[1], both[0]); diff != "" {
			t.Errorf("%q (-etcd +etched)\n%s", env, diff)
		}
		if compressed := slices.Contains(both[1], "grpc-encoding: gzip"); compressed != (number == 1 || number == 2) {
			t.Errorf("%q: etcd sends with %q", env, both[1])
		}
	}
}

// A resource says whose spans these are.
func TestResources(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{
		nil,
		{"--distributed-tracing-service-name=store", "--distributed-tracing-instance-id=one"},
	} {
		var both [2]map[string]string
		for i, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
			c := startCollector(t)
			with := options(c.address, flags...)
			with.Env = append(with.Env, "OTEL_RESOURCE_ATTRIBUTES=zone=z1,service.name=another")
			conn := harness.Start(t, kind, with).Dial(t)
			_, _ = pb.NewKVClient(conn).Range(inTrace(t, numbered(1), true), &pb.RangeRequest{Key: []byte("k")})
			both[i] = c.ended(t, numbered(1))[0].Resource
		}
		if diff := cmp.Diff(both[1], both[0]); diff != "" {
			t.Errorf("%q (-etcd +etched)\n%s", flags, diff)
		}
	}
}

// Without a rate only those calls are traced whose client says so.
func TestSampling(t *testing.T) {
	t.Parallel()
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		none, all := start(t, kind), start(t, kind, "--distributed-tracing-sampling-rate=1000000")
		for _, one := range []side{none, all} {
			kv := pb.NewKVClient(one.conn)
			for range 20 {
				if _, err := kv.Put(harness.Context(t, harness.CallLimit), &pb.PutRequest{Key: []byte("untraced")}); err != nil {
					t.Fatal(err)
				}
				if _, err := kv.Put(inTrace(t, numbered(1), false), &pb.PutRequest{Key: []byte("unsampled")}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := kv.Put(inTrace(t, numbered(2), true), &pb.PutRequest{Key: []byte("sampled")}); err != nil {
				t.Fatal(err)
			}
			one.collector.ended(t, numbered(2))
			if unsampled := one.collector.of(numbered(1)); len(unsampled) > 0 {
				t.Errorf("%s has spans that its client does not want: %v", kind, unsampled)
			}
		}
		if others := len(none.collector.all()) - len(none.collector.of(numbered(2))); others > 0 {
			t.Errorf("%s begins %d traces of its own without a rate", kind, others)
		}
		begun := make(map[string]bool)
		for _, one := range all.collector.all() {
			if one.Name == "etcdserverpb.KV/Put" && one.Parent == "" {
				begun[one.Trace] = true
			}
		}
		if len(begun) != 20 {
			t.Errorf("%s begins %d traces of 20 calls at the highest rate", kind, len(begun))
		}
	}
}

// A collector that is not there, or that never answers, is named once in the log and costs nothing.
func TestCollectorIsAway(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	gone, err := harness.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	for name, address := range map[string]string{
		"gone": fmt.Sprintf("127.0.0.1:%d", gone), "silent": silent.Addr().String(),
	} {
		t.Run(name, func(t *testing.T) {
			with := options(address, "--distributed-tracing-sampling-rate=1000000")
			with.Env = append(with.Env, "OTEL_EXPORTER_OTLP_TIMEOUT=1000")
			server := harness.Start(t, harness.Etched, with)
			kv := pb.NewKVClient(server.Dial(t))
			var slowest time.Duration
			for range 3000 {
				begun := time.Now()
				if _, err := kv.Put(inTrace(t, numbered(1), true), &pb.PutRequest{Key: []byte("k")}); err != nil {
					t.Fatal(err)
				}
				slowest = max(slowest, time.Since(begun))
			}
			const most = 900 * time.Millisecond
			if slowest > most {
				t.Errorf("a put took %v", slowest)
			}
			const warning = "the collector of traces did not take spans; they are lost, and nothing else is affected"
			if _, err := server.WaitLog(20*time.Second, 1, harness.Says(warning)); err != nil {
				t.Error(err)
			}
			named := func(most int) {
				t.Helper()
				lines, err := server.Log()
				if err != nil {
					t.Fatal(err)
				}
				if said := harness.Says(warning)(lines); len(said) < 1 || len(said) > most {
					t.Errorf("the log names the collector %d times: %v", len(said), said)
				}
			}
			time.Sleep(3 * time.Second)
			named(1)
			begun := time.Now()
			if err := server.Stop(); err != nil {
				t.Error(err)
			}
			if took := time.Since(begun); took > 4*time.Second {
				t.Errorf("the stop took %v", took)
			}
			// The last word is of what was lost since the first.
			named(2)
		})
	}
}

// What a stop leaves in the queue is sent before the process ends.
func TestStopSendsWhatIsLeft(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	with := options(c.address)
	with.Env = []string{"OTEL_BSP_SCHEDULE_DELAY=600000"}
	server := harness.Start(t, harness.Etched, with)
	conn := server.Dial(t)
	if _, err := pb.NewKVClient(conn).Put(inTrace(t, numbered(1), true), &pb.PutRequest{Key: []byte("k")}); err != nil {
		t.Fatal(err)
	}
	if early := c.all(); len(early) > 0 {
		t.Fatalf("spans came before the stop: %v", early)
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	c.ended(t, numbered(1))
}
