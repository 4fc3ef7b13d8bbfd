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
	"google.golang.org/grpc/metadata"
)

// statusesOf makes the same call a few times on one connection, one after the
// other, with this representation of :authority, or with an empty one as Go
// writes it, and answers the gRPC statuses. The first call's headers enter the
// table of compressed headers, and later calls refer to them.
func statusesOf(server *harness.Server, authority []byte, calls int) (statuses []string, err error) {
	conn, err := net.Dial("tcp", server.Endpoint())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetDeadline(time.Now().Add(callLimit)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, err
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := framer.WriteSettings(); err != nil {
		return nil, err
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for call := range calls {
		block.Reset()
		stream := uint32(2*call + 1)
		fields := []hpack.HeaderField{
			{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"},
			{Name: ":path", Value: pb.KV_Range_FullMethodName}, {Name: ":authority"},
			{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
		}
		for _, field := range fields {
			if field.Name == ":authority" && authority != nil {
				block.Write(authority)
				continue
			}
			if err := encoder.WriteField(field); err != nil {
				return nil, err
			}
		}
		err := errors.Join(
			framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}),
			framer.WriteData(stream, true, []byte("\x00\x00\x00\x00\x03\x0a\x01a")))
		if err != nil {
			return nil, err
		}
		for len(statuses) == call {
			frame, err := framer.ReadFrame()
			if err != nil {
				return nil, err
			}
			switch frame := frame.(type) {
			case *http2.MetaHeadersFrame:
				if frame.StreamEnded() {
					for _, field := range frame.RegularFields() {
						if field.Name == "grpc-status" {
							statuses = append(statuses, field.Value)
						}
					}
				}
				for _, field := range frame.RegularFields() {
					if field.Name == "date" {
						return nil, fmt.Errorf("the answer has a date: %v", field)
					}
				}
			case *http2.RSTStreamFrame:
				statuses = append(statuses, frame.ErrCode.String())
			case *http2.GoAwayFrame:
				return nil, fmt.Errorf("GOAWAY %s %q", frame.ErrCode, frame.DebugData())
			}
		}
	}
	return statuses, nil
}

// Clients put into :authority what they were told to dial.
func TestAuthorities(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	literal := func(head byte, value string) []byte {
		return append([]byte{head, byte(len(value))}, value...)
	}
	list := "ipv4:///127.0.0.1:1,127.0.0.1:2"
	code := append([]byte{0x41, 0x80 | byte(hpack.HuffmanEncodeLength(list))}, hpack.AppendHuffmanString(nil, list)...)
	for _, authority := range [][]byte{
		nil, // Empty, as Go's encoder writes it.
		literal(0x01, "localhost"), literal(0x41, list), literal(0x41, ""), literal(0x01, list), code,
		literal(0x11, "#initially=[http://127.0.0.1:1]"), literal(0x01, ""), literal(0x11, ""),
	} {
		for _, server := range []*harness.Server{p.duo.Etcd, p.duo.Etched} {
			// Behind an entry that the encoder does not know of it would miscount.
			calls := 3
			if authority != nil && authority[0] == 0x41 {
				calls = 1
			}
			statuses, err := statusesOf(server, authority, calls)
			if err != nil || strings.Join(statuses, "") != strings.Repeat("0", calls) {
				t.Errorf("%s: %q: %v, %v", server.Kind(), authority, statuses, err)
			}
		}
	}
	for _, authority := range []string{list, "#initially=[http://127.0.0.1:1;http://127.0.0.1:2]", "[::1]:2379,[::1]:2380"} {
		var conns [2]*grpc.ClientConn
		for side, server := range []*harness.Server{p.duo.Etched, p.duo.Etcd} {
			conns[side] = server.Dial(t, grpc.WithAuthority(authority))
		}
		for range 3 {
			p.compare("authority "+authority, p.parallel(func(side int) harness.Outcome {
				return invoke(context.Background(), conns[side], get("a"))
			}))
		}
	}
}

// Metadata of a call may be as large as a gRPC server in Go takes it.
func TestLargeMetadata(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(put("a", "1"))
	for _, size := range []int{17_000, 200_000, 1 << 20} {
		ctx := metadata.AppendToOutgoingContext(context.Background(), "x-large", strings.Repeat("x", size))
		outcomes := p.parallel(func(side int) harness.Outcome { return invoke(ctx, p.conn[side], get("a")) })
		p.compare(fmt.Sprintf("metadata of %d bytes", size), outcomes)
		if outcomes[etcd].Err != nil {
			t.Errorf("%d bytes: %v", size, outcomes[etcd].Err)
		}
	}
}

// Requests may be sent on one stream without waiting for answers.
func TestManyRequestsOnAStream(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	lease := p.ok(&pb.LeaseGrantRequest{ID: 7, TTL: 600}).(*pb.LeaseGrantResponse).ID
	limit := 6 * callLimit
	keepAlives := func(conn *grpc.ClientConn) error {
		const count = 60_000
		stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(harness.Context(t, limit))
		if err != nil {
			return err
		}
		return pour(count, func() error { return stream.Send(&pb.LeaseKeepAliveRequest{ID: lease}) }, func() error {
			_, err := stream.Recv()
			return err
		})
	}
	watches := func(conn *grpc.ClientConn) error {
		const count = 20_000
		stream, err := pb.NewWatchClient(conn).Watch(harness.Context(t, limit))
		if err != nil {
			return err
		}
		create := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: watchKey("w")}}
		return pour(count, func() error { return stream.Send(create) }, func() error {
			answer, err := stream.Recv()
			if err == nil && !answer.Created {
				err = fmt.Errorf("no creation: %v", answer)
			}
			return err
		})
	}
	for name, requests := range map[string]func(*grpc.ClientConn) error{"keep-alives": keepAlives, "watches": watches} {
		p.compare(name, p.parallel(func(side int) harness.Outcome {
			return harness.Outcome{Message: &pb.PutRequest{}, Err: requests(p.conn[side])}
		}))
		p.do(get("a"))
	}
}

// pour sends so many requests as fast as it can and takes as many answers.
func pour(count int, send, take func() error) error {
	sent := make(chan error, 1)
	go func() {
		for range count {
			if err := send(); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for at := range count {
		if err := take(); err != nil {
			return fmt.Errorf("after %d answers: %w", at, err)
		}
	}
	return <-sent
}
