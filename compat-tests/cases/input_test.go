package cases

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// raw is a codec that sends and receives bytes as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (raw) Name() string { return "proto" }

func invokeRaw(conn *grpc.ClientConn, path string, body []byte, options ...grpc.CallOption) harness.Outcome {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	var answer []byte
	err := conn.Invoke(ctx, path, &body, &answer, append(options, grpc.ForceCodec(raw{}))...)
	return harness.Outcome{Message: &pb.PutRequest{Value: answer}, Err: err}
}

// Bytes that are no message: the code is compared, and that the server says
// whose fault it is; how a decoder words its complaint is its own affair.
func TestMalformedMessages(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	badUTF8 := func(field protowire.Number) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), []byte("\xff\xfe"))
	}
	for _, wrong := range []struct {
		path string
		body []byte
	}{
		{"/etcdserverpb.KV/Range", []byte("\xff")},
		{"/etcdserverpb.KV/Range", []byte("\x0a\x05ab")},
		{"/etcdserverpb.KV/Range", []byte("\x0a")},
		{"/etcdserverpb.KV/Range", []byte("\x00\x00")},
		{"/etcdserverpb.KV/Range", []byte("\x0a\x01a\x0c")},
		{"/etcdserverpb.KV/Range", append([]byte("\x0a\x01a\x18"), strings.Repeat("\xff", 11)...)},
		{"/etcdserverpb.KV/Put", []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")},
		{"/etcdserverpb.KV/Txn", []byte("\x12\x02\x0a\xff")},
		{"/etcdserverpb.KV/Txn", []byte("\x0a\x01\xff")},
		{"/etcdserverpb.KV/DeleteRange", []byte("{}")},
		{"/etcdserverpb.KV/Compact", []byte("revision")},
		{"/etcdserverpb.Lease/LeaseGrant", []byte("\x0a")},
		{"/etcdserverpb.Maintenance/Alarm", []byte("\x0a")},
		{"/etcdserverpb.Maintenance/Status", []byte("\x0a")},
		{"/etcdserverpb.Cluster/MemberUpdate", badUTF8(2)},
		{"/etcdserverpb.Cluster/MemberUpdate", []byte("\x08")},
		{"/grpc.health.v1.Health/Check", badUTF8(1)},
		{"/grpc.health.v1.Health/Check", []byte("\xff")},
	} {
		outcomes := p.parallel(func(side int) harness.Outcome { return invokeRaw(p.conn[side], wrong.path, wrong.body) })
		for i := range outcomes {
			outcomes[i].Err = withoutDetail(outcomes[i].Err)
		}
		p.compare(fmt.Sprintf("%s %q", wrong.path, wrong.body), outcomes)
	}
	// A field of another wire type than its own is an unknown field to etcd's
	// decoder and a mistake to others; either way these requests are refused.
	for _, body := range []string{"\x08\x01", "\x1a\x01a", "\x0d\x01\x01\x01\x01"} {
		for i, conn := range p.conn {
			if outcome := invokeRaw(conn, pb.KV_Range_FullMethodName, []byte(body)); outcome.Err == nil {
				t.Errorf("%s answers %q", harness.Kind(i), body)
			}
		}
	}
	p.do(put("a", "1"))
}

// withoutDetail cuts what a decoder says after the part that is fixed.
func withoutDetail(err error) error {
	const fixed = "grpc: error unmarshalling request: "
	if text := status.Convert(err); err != nil && strings.HasPrefix(text.Message(), fixed) {
		return status.Error(text.Code(), fixed)
	}
	return err
}

// Well-formed messages of an unusual shape.
func TestUnusualMessages(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(put("a", "1"))
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 900, protowire.VarintType), 7)
	key := []byte("\x0a\x01a")
	for _, request := range []struct {
		path string
		body []byte
	}{
		{"/etcdserverpb.KV/Range", append(key, unknown...)},
		{"/etcdserverpb.KV/Range", append(unknown, key...)},
		{"/etcdserverpb.KV/Range", []byte("\x0a\x01x\x0a\x01a")},
		{"/etcdserverpb.KV/Range", append([]byte("\x0a\x81\x00a"), "\x18\x80\x00"...)},
		{"/etcdserverpb.KV/Range", append(key, "\x28\x05"...)},
		{"/etcdserverpb.KV/Range", append(key, "\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"...)},
		{"/etcdserverpb.KV/Range", append(key, "\x38\x07"...)},
		{"/etcdserverpb.KV/Range", nil},
		{"/etcdserverpb.KV/Txn", []byte("\x12\x00")},
		{"/etcdserverpb.KV/Txn", []byte("\x12\x02\x0a\x00")},
		{"/etcdserverpb.KV/Txn", []byte("\x12\x02\x22\x00")},
		{"/etcdserverpb.KV/Txn", []byte("\x12\x0a\x0a\x03\x0a\x01a\x12\x03\x0a\x01b")},
		{"/etcdserverpb.KV/Txn", []byte("\x0a\x03\x1a\x01a\x0a\x05\x08\x09\x1a\x01a")},
		{"/etcdserverpb.KV/Txn", []byte("\x0a\x09\x10\x03\x1a\x01a\x20\x01\x3a\x00")},
		{"/etcdserverpb.Maintenance/Status", unknown},
		{"/etcdserverpb.Lease/LeaseTimeToLive", []byte("\x08\x07\x10\x02")},
		{"/etcdserverpb.Maintenance/HashKV", unknown},
	} {
		if strings.HasSuffix(request.path, "Status") {
			outcomes := p.parallel(func(side int) harness.Outcome { return invokeRaw(p.conn[side], request.path, request.body) })
			for i := range outcomes {
				outcomes[i].Message = &pb.PutRequest{}
			}
			p.compare(request.path, outcomes)
			continue
		}
		outcomes := p.parallel(func(side int) harness.Outcome { return invokeRaw(p.conn[side], request.path, request.body) })
		for i := range outcomes {
			outcomes[i] = decoded(request.path, outcomes[i])
		}
		p.compare(fmt.Sprintf("%s %q", request.path, request.body), outcomes)
	}
}

// decoded turns the bytes of an answer into its message.
func decoded(path string, outcome harness.Outcome) harness.Outcome {
	if outcome.Err != nil {
		return outcome
	}
	message := harness.NewResponse(path)
	if message == nil {
		return harness.Outcome{Err: fmt.Errorf("no method %s", path)}
	}
	err := proto.Unmarshal(outcome.Message.(*pb.PutRequest).Value, message)
	return harness.Outcome{Message: message, Err: err}
}

func TestUnknownMethods(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for _, path := range []string{
		"/etcdserverpb.KV/Nothing", "/etcdserverpb.KV/", "/etcdserverpb.Nothing/Range", "/etcdserverpb.kv/Range",
		"/nothing/nothing", "/nothing", "/", "//", "/etcdserverpb.KV/Range/more", "/etcdserverpb.Watch/Nothing",
		"/grpc.health.v1.Health/Nothing", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
		"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/etcdserverpb.Maintenance/Nothing",
	} {
		outcomes := p.parallel(func(side int) harness.Outcome { return invokeRaw(p.conn[side], path, []byte{}) })
		p.compare(path, outcomes)
		if outcomes[etcd].Err == nil {
			t.Errorf("%s is served", path)
		}
	}
	p.do(put("a", "1"))
}

func TestRequestSizes(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	sized(p, 1<<20+1<<19)
}

func TestRequestSizeFlag(t *testing.T) {
	t.Parallel()
	p := newPair(t, "--max-request-bytes=10000")
	sized(p, 10_000)
}

// sized checks the limits around a largest request: that of a request itself,
// whose envelope takes some bytes of it, and that of a gRPC message.
func sized(p *pair, limit int) {
	const overhead = 512 << 10
	value := func(n int) string { return strings.Repeat("v", n) }
	p.ok(put("fits", value(limit-200)))
	for _, size := range []int{limit, limit + 1, limit + 1000, limit + overhead - 200} {
		p.fails(tooLarge, put("large", value(size)))
	}
	p.fails(tooLarge, txn(nil, ops(put("a", value(limit/2)), put("b", value(limit/2))), nil))
	p.fails(tooLarge, txn(nil, nil, ops(put("a", value(limit)))))
	p.fails(emptyKey, put("", value(limit)))
	p.fails(tooLarge, del(value(limit)))
	p.do(get(value(limit)))
	p.do(txn(nil, ops(get(value(limit))), nil))
	for _, size := range []int{limit + overhead, limit + overhead + 5000} {
		outcome := p.do(put("huge", value(size)))
		if !strings.HasPrefix(harness.ErrorText(outcome.Err), "ResourceExhausted: grpc: received message larger than max") {
			p.t.Errorf("%d bytes: etcd answers %v", size, outcome.Err)
		}
		p.do(get(value(size)))
	}
	for _, key := range []string{"fits", "large", "huge", "a", "b"} {
		p.do(get(key))
	}
	w := p.watch()
	w.create(0, watchKey("fits"))
	for _, side := range w.sides {
		request := watchKey(value(limit + overhead + 5000))
		if err := side.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request}}); err != nil && !errors.Is(err, io.EOF) {
			p.t.Fatal(err)
		}
	}
	if text := harness.ErrorText(w.ends()); !strings.HasPrefix(text, "ResourceExhausted") {
		p.t.Errorf("a watch request too large ends the stream with %s", text)
	}
}

// An answer may be of any size.
func TestLargeAnswers(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for i := range 12 {
		p.ok(put(fmt.Sprintf("k%02d", i), strings.Repeat(string(rune('a'+i)), 1<<20)))
	}
	p.do(span("k", "l"))
	p.compareStreams(span("k", "l"))
	p.do(txn(nil, ops(span("k", "l"), get("k00")), nil))
}

func TestCompression(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for _, request := range []proto.Message{put("a", strings.Repeat("a", 10_000)), get("a"), get("")} {
		outcomes := p.parallel(func(side int) harness.Outcome {
			return invoke(context.Background(), p.conn[side], request, grpc.UseCompressor(gzip.Name))
		})
		p.compare("compressed "+describe(request), outcomes)
	}
}

// Metadata that is none of the server's business, or malformed, changes nothing.
func TestMetadata(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for _, pairs := range [][]string{
		{"hasleader", "true"}, {"hasleader", "maybe"}, {"token", "garbage"}, {"authorization", "Bearer garbage"},
		{"client-api-version", "3.7"}, {"client-api-version", "banana"}, {"x-anything", strings.Repeat("x", 4000)}, {"bin-bin", "\x00\xff"},
	} {
		ctx := metadata.AppendToOutgoingContext(context.Background(), pairs...)
		for _, request := range []proto.Message{put("a", "1"), get("a"), &pb.MemberListRequest{}} {
			outcomes := p.parallel(func(side int) harness.Outcome { return invoke(ctx, p.conn[side], request) })
			p.compare(fmt.Sprint(pairs), outcomes)
		}
	}
}

// A deadline that has passed at the server, and a call that the client gives up.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for _, limit := range []time.Duration{time.Nanosecond, time.Microsecond} {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		outcomes := p.parallel(func(side int) harness.Outcome { return invoke(ctx, p.conn[side], put("a", "1")) })
		cancel()
		for i, outcome := range outcomes {
			if !strings.HasPrefix(harness.ErrorText(outcome.Err), "DeadlineExceeded") {
				t.Errorf("%s: %v", harness.Kind(i), outcome.Err)
			}
		}
	}
	p.duo.Each(func(server *harness.Server) {
		for range 50 {
			ctx, cancel := context.WithCancel(context.Background())
			go cancel()
			_, _ = pb.NewKVClient(server.Dial(t)).Range(ctx, everything())
		}
	})
	p.do(get("missing"))
}

func TestHealthService(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(&healthpb.HealthCheckRequest{})
	for _, service := range []string{"etcdserverpb.KV", "etcdserverpb.Health", "nothing", strings.Repeat("x", 5000)} {
		p.do(&healthpb.HealthCheckRequest{Service: service})
	}
	p.ok(&healthpb.HealthListRequest{})
	for _, service := range []string{"", "nothing"} {
		outcomes := p.parallel(func(side int) harness.Outcome {
			stream, err := healthpb.NewHealthClient(p.conn[side]).Watch(harness.Context(t, callLimit), &healthpb.HealthCheckRequest{Service: service})
			if err != nil {
				return harness.Outcome{Err: err}
			}
			answer, err := stream.Recv()
			return harness.Outcome{Message: answer, Err: err}
		})
		p.compare("health of "+service, outcomes)
	}
	me := p.ok(&pb.MemberListRequest{}).(*pb.MemberListResponse).Members[0].ID
	p.ok(alarm(activate, me, pb.AlarmType_NOSPACE))
	p.ok(&healthpb.HealthCheckRequest{})
	p.ok(&pb.DefragmentRequest{})
	p.ok(&healthpb.HealthCheckRequest{})
}

// farewell is a GOAWAY.
type farewell struct {
	code  http2.ErrCode
	debug string
}

// pingUntilGoAway pings every interval, beside an open stream or without one,
// and answers the GOAWAY, or none after so many pings.
func pingUntilGoAway(t *testing.T, server *harness.Server, beside bool, interval time.Duration, most int) (farewell, bool) {
	t.Helper()
	conn, err := net.Dial("tcp", server.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(callLimit)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if beside {
		openStream(t, framer)
	}
	acknowledged := 0
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("%s: after %d pings: %v", server.Kind(), acknowledged, err)
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = errors.Join(framer.WriteSettingsAck(), framer.WritePing(false, [8]byte{1}))
			}
		case *http2.PingFrame:
			if frame.IsAck() {
				if acknowledged++; acknowledged == most {
					return farewell{}, false
				}
				time.Sleep(interval)
				err = framer.WritePing(false, [8]byte{1})
			}
		case *http2.GoAwayFrame:
			return farewell{frame.ErrCode, string(frame.DebugData())}, true
		}
		if err != nil {
			t.Fatalf("%s: after %d pings: %v", server.Kind(), acknowledged, err)
		}
	}
}

// openStream begins a Watch call and leaves it open.
func openStream(t *testing.T, framer *http2.Framer) {
	t.Helper()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/etcdserverpb.Watch/Watch"},
		{Name: ":authority", Value: "127.0.0.1"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	} {
		if err := encoder.WriteField(field); err != nil {
			t.Fatal(err)
		}
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
}

// Pings beside a stream are held to --grpc-keepalive-min-time (5 s), those
// without any to two hours.
func TestKeepAliveEnforcement(t *testing.T) {
	t.Parallel()
	for _, one := range []struct {
		flags    []string
		beside   bool
		interval time.Duration
		away     bool
	}{
		{nil, false, time.Millisecond, true},
		{nil, true, time.Millisecond, true},
		{[]string{"--grpc-keepalive-min-time=1ms"}, false, 20 * time.Millisecond, true},
		{[]string{"--grpc-keepalive-min-time=1ms"}, true, 20 * time.Millisecond, false},
	} {
		p := newPair(t, one.flags...)
		var farewells [2]farewell
		for i, server := range []*harness.Server{p.duo.Etched, p.duo.Etcd} {
			said, away := pingUntilGoAway(t, server, one.beside, one.interval, 20)
			if away != one.away {
				t.Errorf("%s: %+v: GOAWAY: %v", server.Kind(), one, away)
			}
			farewells[i] = said
		}
		if farewells[etched] != farewells[etcd] {
			t.Errorf("%+v: etched says %+v, etcd %+v", one, farewells[etched], farewells[etcd])
		}
		p.do(get("a"))
	}
}
