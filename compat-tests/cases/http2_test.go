package cases

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// answered is what one call by hand gave.
type answered struct {
	Status, GRPCStatus, Message string
	Bytes                       int
	Reset                       string // the code of a RST_STREAM or a GOAWAY
	Streams                     string // how many streams the server says it takes at once
}

// unlimited is for a limit that is not announced, or that nobody can reach.
const unlimited = "unlimited"

// callByHand makes one serializable Range on a connection of its own, its header fields as
// they are given: a client library would mend or refuse some of them.
func callByHand(server *harness.Server, fields []hpack.HeaderField) (answered, error) {
	return exchangeByHand(server, fields, &pb.RangeRequest{Key: []byte("a"), Serializable: true}, true)
}

// exchangeByHand makes a call with one message, and leaves the stream open where it is not to end.
func exchangeByHand(server *harness.Server, fields []hpack.HeaderField, request proto.Message, end bool) (answered, error) {
	conn, err := net.Dial("tcp", server.Endpoint())
	if err != nil {
		return answered{}, err
	}
	defer conn.Close()
	body, err := proto.Marshal(request)
	if err != nil {
		return answered{}, err
	}
	message := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body)))
	message = append(message, body...)
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range fields {
		if err := encoder.WriteField(field); err != nil {
			return answered{}, err
		}
	}
	framer, greeted := greet(conn)
	if err := errors.Join(
		greeted,
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}),
		framer.WriteData(1, end, message),
	); err != nil {
		return answered{}, err
	}
	return outcomeByHand(framer, 1)
}

// greet begins HTTP/2 on a connection, for calls by hand.
func greet(conn net.Conn) (*http2.Framer, error) {
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, greeted := io.WriteString(conn, http2.ClientPreface)
	return framer, errors.Join(conn.SetDeadline(time.Now().Add(callLimit)), greeted, framer.WriteSettings())
}

// outcomeByHand reads until a stream ends.
func outcomeByHand(framer *http2.Framer, stream uint32) (answered, error) {
	got := answered{Streams: unlimited}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return got, err
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if streams, set := frame.Value(http2.SettingMaxConcurrentStreams); set && streams < 1<<31-1 {
				got.Streams = fmt.Sprint(streams)
			}
			if !frame.IsAck() {
				if err := framer.WriteSettingsAck(); err != nil {
					return got, err
				}
			}
		case *http2.MetaHeadersFrame:
			if frame.StreamID != stream {
				continue
			}
			for _, field := range frame.Fields {
				switch field.Name {
				case ":status":
					got.Status = field.Value
				case "grpc-status":
					got.GRPCStatus = field.Value
				case "grpc-message":
					got.Message = field.Value
				}
			}
			if frame.StreamEnded() {
				return got, nil
			}
		case *http2.DataFrame:
			if frame.StreamID == stream {
				got.Bytes += len(frame.Data())
			}
		case *http2.RSTStreamFrame:
			if frame.StreamID != stream {
				continue
			}
			got.Reset = frame.ErrCode.String()
			return got, nil
		case *http2.GoAwayFrame:
			got.Reset = frame.ErrCode.String()
			return got, nil
		}
	}
}

// fields are the header fields of a call that callByHand makes, but for these.
func fields(more ...hpack.HeaderField) []hpack.HeaderField {
	return append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: pb.KV_Range_FullMethodName},
	}, more...)
}

var usual = []hpack.HeaderField{{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}}

// A connection takes as many streams at once as was announced, without that any number.
func TestStreamLimit(t *testing.T) {
	t.Parallel()
	for flag, limit := range map[string]string{"": unlimited, "--max-concurrent-streams=5": "5", "--max-concurrent-streams=4294967295": unlimited} {
		var flags []string
		if flag != "" {
			flags = append(flags, flag)
		}
		p := newPair(t, flags...)
		p.duo.Each(func(server *harness.Server) {
			call := append(fields(hpack.HeaderField{Name: ":authority", Value: server.Endpoint()}), usual...)
			if got, err := callByHand(server, call); err != nil || got.Streams != limit || got.GRPCStatus != "0" {
				t.Errorf("%s %s: %+v, %v", server.Kind(), flag, got, err)
			}
		})
	}
}

// A client says how long it waits in gRPC's form or gets an answer that says so; a wait of nothing is
// over, and a stream ends when its time is up.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for _, value := range []string{"0n", "0H", "00000000S", "1H", "99999999H", "", "n", "5", "5x", "-1S", "+1S", "1.5S", "xS", " 1S", "123456789S"} {
		var got []answered
		p.duo.Each(func(server *harness.Server) {
			call := append(fields(hpack.HeaderField{Name: ":authority", Value: server.Endpoint()}, hpack.HeaderField{Name: "grpc-timeout", Value: value}), usual...)
			one, err := callByHand(server, call)
			if err != nil {
				t.Errorf("%s %q: %v", server.Kind(), value, err)
			}
			one.Bytes = 0 // Ids differ in length.
			// How a text is encoded is each library's own.
			if one.Message, err = url.PathUnescape(one.Message); err != nil {
				t.Errorf("%s %q: %v", server.Kind(), value, err)
			}
			got = append(got, one)
		})
		if len(got) == 2 && got[0] != got[1] {
			t.Errorf("%q: %+v, %+v", value, got[0], got[1])
		}
	}
	p.duo.Each(func(server *harness.Server) {
		call := append([]hpack.HeaderField{
			{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: pb.Watch_Watch_FullMethodName},
			{Name: ":authority", Value: server.Endpoint()}, {Name: "grpc-timeout", Value: "700m"},
		}, usual...)
		start := time.Now()
		create := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a")}}}
		got, err := exchangeByHand(server, call, create, false)
		took := time.Since(start)
		// grpc-go resets the stream, or its handler is first and says why it ends.
		ended := got.Reset == "CANCEL" || got.GRPCStatus == "4"
		if err != nil || got.Bytes == 0 || !ended || took < 600*time.Millisecond || took > 3*time.Second {
			t.Errorf("%s: a watch for 700 ms: %+v after %v, %v", server.Kind(), got, took, err)
		}
	})
}

// Metadata has no limit that a client would meet, be it one large value or many.
func TestLargeMetadata(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(put("a", "1"))
	const piece = 1000
	for _, size := range []int{15_000, 17_000, 64_000, 200_000, 1_000_000} {
		var many []string
		for i := range size / piece {
			many = append(many, fmt.Sprintf("x-part-%d", i), strings.Repeat("x", piece))
		}
		for shape, pairs := range map[string][]string{"one value": {"x-large", strings.Repeat("x", size)}, "many values": many} {
			ctx := metadata.AppendToOutgoingContext(context.Background(), pairs...)
			what := fmt.Sprintf("%d bytes of metadata, %s", size, shape)
			outcomes := p.parallel(func(side int) harness.Outcome { return invoke(ctx, p.conn[side], get("a")) })
			p.compare(what, outcomes)
			if outcomes[etcd].Err != nil {
				t.Errorf("%s: etcd answers %v", what, outcomes[etcd].Err)
			}
			watched := p.parallel(func(side int) harness.Outcome {
				ctx, cancel := context.WithTimeout(ctx, callLimit)
				defer cancel()
				stream, err := pb.NewWatchClient(p.conn[side]).Watch(ctx)
				if err == nil {
					err = stream.Send(watchRequest(watchKey("a")))
				}
				if err != nil {
					return harness.Outcome{Err: err}
				}
				message, err := stream.Recv()
				return harness.Outcome{Message: message, Err: err}
			})
			p.compare(what+", a watch", watched)
		}
	}
}

func watchRequest(create *pb.WatchCreateRequest) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}
}

// floodLimit is long: a flood takes what the machine needs for it.
const floodLimit = 3 * time.Minute

// flood sends many messages on a stream without waiting for an answer, while it counts the
// answers, until there are enough of them.
func flood[Request, Response any](stream grpc.BidiStreamingClient[Request, Response], many, answers int, message func(n int) *Request) error {
	sent := make(chan error, 1)
	go func() {
		for n := range many {
			if err := stream.Send(message(n)); err != nil {
				sent <- fmt.Errorf("message %d: %w", n, err)
				return
			}
		}
		sent <- nil
	}()
	for n := range answers {
		if _, err := stream.Recv(); err != nil {
			return fmt.Errorf("after %d of %d answers: %w", n, answers, err)
		}
	}
	return <-sent
}

// A client may send as fast as it can: what is too much at a time is held up, never cut off.
func TestFloods(t *testing.T) {
	t.Parallel()
	const many = 60_000
	for name, send := range map[string]func(context.Context, *grpc.ClientConn) error{
		"keepalives": func(ctx context.Context, conn *grpc.ClientConn) error {
			stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
			if err != nil {
				return err
			}
			return flood(stream, many, many, func(int) *pb.LeaseKeepAliveRequest { return &pb.LeaseKeepAliveRequest{ID: 7} })
		},
		"keepalives of no lease": func(ctx context.Context, conn *grpc.ClientConn) error {
			stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
			if err != nil {
				return err
			}
			return flood(stream, many, many, func(int) *pb.LeaseKeepAliveRequest { return &pb.LeaseKeepAliveRequest{ID: 8} })
		},
		"watch creations": func(ctx context.Context, conn *grpc.ClientConn) error {
			stream, err := pb.NewWatchClient(conn).Watch(ctx)
			if err != nil {
				return err
			}
			return flood(stream, many, many, func(n int) *pb.WatchRequest { return watchRequest(watchKey(fmt.Sprint("watched", n))) })
		},
		// Not every progress request is answered, so what follows them is: a watch is created.
		"progress requests": func(ctx context.Context, conn *grpc.ClientConn) error {
			stream, err := pb.NewWatchClient(conn).Watch(ctx)
			if err == nil {
				err = stream.Send(watchRequest(watchKey("a")))
			}
			if err == nil {
				_, err = stream.Recv()
			}
			if err != nil {
				return err
			}
			sent := make(chan error, 1)
			go func() {
				progress := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
				for n := range many {
					if err := stream.Send(progress); err != nil {
						sent <- fmt.Errorf("message %d: %w", n, err)
						return
					}
				}
				sent <- stream.Send(watchRequest(watchKey("b")))
			}()
			for answers := 0; ; answers++ {
				message, err := stream.Recv()
				if err != nil {
					return fmt.Errorf("after %d answers: %w", answers, err)
				}
				if message.Created {
					if answers == 0 {
						return errors.New("no progress request was answered")
					}
					return <-sent
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			p.ok(grant(7, 3600))
			p.duo.Each(func(server *harness.Server) {
				if err := send(harness.Context(t, floodLimit), server.Dial(t)); err != nil {
					t.Errorf("%s: %v", server.Kind(), err)
				}
			})
			p.ok(put("a", "1"))
		})
	}
}

// The same from several streams and connections at once, also where memory is short: what comes has
// to be read on while answers wait for the client's word that it takes more.
func TestFloodsAtOnce(t *testing.T) {
	if harness.Clustered(t) {
		t.Skip("what a member takes in does not depend on the others, and each renewal of a follower is a call to the leader")
	}
	t.Parallel()
	// More than a stream's window takes.
	const many = 20_000
	for name, of := range map[string]struct {
		connections, streams int
		budgetMiB            int
	}{
		"four streams":           {connections: 1, streams: 4},
		"eight streams":          {connections: 1, streams: 8},
		"four connections":       {connections: 4, streams: 1},
		"one in 64 MiB":          {connections: 1, streams: 1, budgetMiB: 64},
		"four streams in 16 MiB": {connections: 1, streams: 4, budgetMiB: 16},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var options harness.Options
			if of.budgetMiB > 0 {
				options.EtchedFlags = []string{fmt.Sprint("--memory-budget-bytes=", of.budgetMiB<<20)}
			}
			duo := harness.StartDuo(t, options)
			duo.Each(func(server *harness.Server) {
				var flooding sync.WaitGroup
				for range of.connections {
					conn := server.Dial(t)
					for range of.streams {
						flooding.Go(func() {
							stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(harness.Context(t, floodLimit))
							if err == nil {
								err = flood(stream, many, many, func(int) *pb.LeaseKeepAliveRequest { return &pb.LeaseKeepAliveRequest{ID: 7} })
							}
							if err != nil {
								t.Errorf("%s: %v", server.Kind(), err)
							}
						})
					}
				}
				flooding.Wait()
			})
		})
	}
}

// Many calls at once, each a stream of its own that ends early: what etcd serves fits into the default
// memory budget.
func TestManyStreams(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.duo.Each(func(server *harness.Server) {
		conn := server.Dial(t)
		const streams = 10_000
		opened := make([]pb.Watch_WatchClient, 0, streams)
		ctx, cancel := context.WithCancel(harness.Context(t, floodLimit))
		for n := range streams {
			stream, err := pb.NewWatchClient(conn).Watch(ctx)
			if err == nil {
				err = stream.Send(watchRequest(watchKey("a")))
			}
			if err != nil {
				t.Errorf("%s: stream %d: %v", server.Kind(), n, err)
				break
			}
			opened = append(opened, stream)
		}
		for n, stream := range opened {
			if message, err := stream.Recv(); err != nil || !message.Created {
				t.Errorf("%s: stream %d: %v %v", server.Kind(), n, message, err)
				break
			}
		}
		cancel()
		// They are reset all at once; the connection stays.
		if outcome := invoke(context.Background(), conn, put("a", "1")); outcome.Err != nil {
			t.Errorf("%s: after %d resets: %v", server.Kind(), len(opened), outcome.Err)
		}
	})
}

// The names of header and trailer fields are etcd's: there is no date among them.
func TestAnswersHeaders(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	names := func(fields metadata.MD) (sorted []string) {
		for name := range fields {
			sorted = append(sorted, name)
		}
		slices.Sort(sorted)
		return sorted
	}
	for _, request := range []proto.Message{put("a", "1"), get("a"), get(""), &pb.MemberListRequest{}, grant(-1, -1)} {
		var got [2]string
		for side, conn := range p.conn {
			var header, trailer metadata.MD
			outcome := invoke(context.Background(), conn, request, grpc.Header(&header), grpc.Trailer(&trailer))
			got[side] = fmt.Sprintf("%v, header %v, trailer %v", harness.ErrorText(outcome.Err), names(header), names(trailer))
		}
		if got[etched] != got[etcd] {
			t.Errorf("%s\n-etched %s\n+etcd   %s", describe(request), got[etched], got[etcd])
		}
	}
	var got [2]string
	for side, conn := range p.conn {
		stream, err := pb.NewWatchClient(conn).Watch(harness.Context(t, callLimit))
		if err == nil {
			err = stream.Send(watchRequest(watchKey("a")))
		}
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		header, err := stream.Header()
		got[side] = fmt.Sprint(names(header), err)
	}
	if got[etched] != got[etcd] {
		t.Errorf("a watch\n-etched %s\n+etcd   %s", got[etched], got[etcd])
	}
}
