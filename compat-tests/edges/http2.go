package edges

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

const (
	// dialLimit bounds a connect, writeLimit one write to a socket.
	dialLimit, writeLimit = 5 * time.Second, 10 * time.Second
	// usualWindow is the initial window of HTTP/2, of a stream and of a connection.
	usualWindow = 65_535
	widestFrame = 16_384
)

// clientOptions is how a connection reads.
type clientOptions struct {
	// wide advertises the largest windows, so that whole responses may be sent.
	wide bool
	// closed advertises windows of nothing, so that no answer may be sent.
	closed bool
	// unread never reads the socket.
	unread bool
}

// http2Conn is a client connection that does not respect what a library would.
type http2Conn struct {
	conn    net.Conn
	options clientOptions

	writing sync.Mutex // guards the following
	framer  *http2.Framer
	block   bytes.Buffer
	encoder *hpack.Encoder
	next    uint32

	mu      sync.Mutex // guards the following, and the state of calls
	changed *sync.Cond
	window  int64
	initial int64
	calls   map[uint32]*call
	gone    error
}

// call is one stream of a connection.
type call struct {
	http2Conn *http2Conn
	id        uint32
	window    int64
	done      chan struct{}
	// outcome is set once done; bytes counts the response.
	outcome string
	bytes   int64
}

// dialHTTP2 connects and sends the preface and the settings.
func dialHTTP2(endpoint string, options clientOptions) (*http2Conn, error) {
	conn, err := net.DialTimeout("tcp", endpoint, dialLimit)
	if err != nil {
		return nil, err
	}
	w := &http2Conn{
		conn: conn, options: options, framer: http2.NewFramer(conn, conn), next: 1,
		window: usualWindow, initial: usualWindow, calls: map[uint32]*call{},
	}
	w.changed = sync.NewCond(&w.mu)
	w.encoder = hpack.NewEncoder(&w.block)
	w.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	w.framer.SetReuseFrames()
	const widest = 1<<31 - 1
	err = w.write(func() error {
		if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
			return err
		}
		if options.closed {
			return w.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		}
		if !options.wide {
			return w.framer.WriteSettings()
		}
		return errors.Join(
			w.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: widest}),
			w.framer.WriteWindowUpdate(0, widest-usualWindow))
	})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if !options.unread {
		go w.read()
	}
	return w, nil
}

func (w *http2Conn) close() error { return w.conn.Close() }

// write calls f, which writes frames, under the lock and with a deadline.
func (w *http2Conn) write(f func() error) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	if err := w.conn.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	return f()
}

// open starts a gRPC call, with header fields beside the usual ones.
func (w *http2Conn) open(path string, more ...hpack.HeaderField) (*call, error) {
	fields := append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: path},
		{Name: ":authority", Value: "edges"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	}, more...)
	opened := &call{http2Conn: w, done: make(chan struct{})}
	err := w.write(func() error {
		w.block.Reset()
		for _, field := range fields {
			if err := w.encoder.WriteField(field); err != nil {
				return err
			}
		}
		opened.id = w.next
		w.next += 2
		w.mu.Lock()
		opened.window = w.initial
		w.calls[opened.id] = opened
		gone := w.gone
		w.mu.Unlock()
		if gone != nil {
			return gone
		}
		first, rest := w.block.Bytes(), []byte(nil)
		if len(first) > widestFrame {
			first, rest = first[:widestFrame], first[widestFrame:]
		}
		err := w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: opened.id, BlockFragment: first, EndHeaders: len(rest) == 0})
		for len(rest) > 0 && err == nil {
			n := min(len(rest), widestFrame)
			err = w.framer.WriteContinuation(opened.id, n == len(rest), rest[:n])
			rest = rest[n:]
		}
		return err
	})
	return opened, err
}

// ask starts a unary call and sends its request.
func (w *http2Conn) ask(ctx context.Context, path string, request proto.Message, more ...hpack.HeaderField) (*call, error) {
	asked, err := w.open(path, more...)
	if err != nil {
		return asked, err
	}
	return asked, asked.send(ctx, framed(request), true)
}

// framed is a message with the prefix of gRPC.
func framed(message proto.Message) []byte {
	body, err := proto.Marshal(message)
	if err != nil {
		panic(fmt.Sprintf("marshal: %v", err))
	}
	return framedBytes(body)
}

func framedBytes(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
}

var errEnded = errors.New("the server ended the stream")

// send sends bytes within the server's windows, and the end of the stream with the last.
func (c *call) send(ctx context.Context, data []byte, last bool) error {
	stop := context.AfterFunc(ctx, c.http2Conn.changed.Broadcast)
	defer stop()
	for {
		n, err := c.room(ctx, len(data))
		if err != nil {
			return err
		}
		end := last && n == len(data)
		if err := c.http2Conn.write(func() error { return c.http2Conn.framer.WriteData(c.id, end, data[:n]) }); err != nil {
			return err
		}
		if data = data[n:]; len(data) == 0 {
			return nil
		}
	}
}

// room waits for and takes a part of the windows.
func (c *call) room(ctx context.Context, wanted int) (int, error) {
	w := c.http2Conn
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case c.outcome != "":
			return 0, errEnded
		case w.gone != nil:
			return 0, w.gone
		case ctx.Err() != nil:
			return 0, ctx.Err()
		}
		n := min(int64(wanted), w.window, c.window, widestFrame)
		if n > 0 || wanted == 0 {
			n = max(n, 0)
			w.window -= n
			c.window -= n
			return int(n), nil
		}
		w.changed.Wait()
	}
}

// await returns the outcome of the call: the name of its gRPC code, or what came instead.
func (c *call) await(limit time.Duration) string {
	select {
	case <-c.done:
		return c.outcome
	case <-time.After(limit):
		return fmt.Sprintf("nothing for %v", limit)
	}
}

// ended says whether the call has an outcome.
func (c *call) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// finish needs the lock.
func (c *call) finish(outcome string) {
	if c.outcome != "" {
		return
	}
	c.outcome = outcome
	delete(c.http2Conn.calls, c.id)
	close(c.done)
	c.http2Conn.changed.Broadcast()
}

// read handles frames until the connection ends.
func (w *http2Conn) read() {
	err := w.frames()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gone = fmt.Errorf("connection: %w", err)
	for _, c := range w.calls {
		c.finish("connection closed")
	}
	w.changed.Broadcast()
}

func (w *http2Conn) frames() error {
	var consumed uint32 // bytes not yet added to the window again
	for {
		frame, err := w.framer.ReadFrame()
		if err != nil {
			return err
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				w.settings(frame)
				err = w.write(w.framer.WriteSettingsAck)
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				err = w.write(func() error { return w.framer.WritePing(true, frame.Data) })
			}
		case *http2.WindowUpdateFrame:
			w.widen(frame.StreamID, int64(frame.Increment))
		case *http2.DataFrame:
			n := uint32(frame.Length)
			w.taken(frame)
			if consumed += n; consumed >= usualWindow/2 {
				increment := consumed
				err = w.write(func() error { return w.framer.WriteWindowUpdate(0, increment) })
				consumed = 0
			}
			if !w.options.wide && n > 0 && !frame.StreamEnded() && err == nil {
				err = w.write(func() error { return w.framer.WriteWindowUpdate(frame.StreamID, n) })
			}
		case *http2.MetaHeadersFrame:
			w.headers(frame)
		case *http2.RSTStreamFrame:
			w.end(frame.StreamID, "reset "+frame.ErrCode.String())
		case *http2.GoAwayFrame:
			w.goAway(frame)
		}
		if err != nil {
			return err
		}
	}
}

func (w *http2Conn) settings(frame *http2.SettingsFrame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if initial, set := frame.Value(http2.SettingInitialWindowSize); set {
		for _, c := range w.calls {
			c.window += int64(initial) - w.initial
		}
		w.initial = int64(initial)
	}
	w.changed.Broadcast()
}

func (w *http2Conn) widen(stream uint32, by int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if stream == 0 {
		w.window += by
	} else if c := w.calls[stream]; c != nil {
		c.window += by
	}
	w.changed.Broadcast()
}

func (w *http2Conn) taken(frame *http2.DataFrame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.calls[frame.StreamID]
	if c == nil {
		return
	}
	c.bytes += int64(len(frame.Data()))
	if frame.StreamEnded() {
		c.finish("ended without a status")
	}
}

func (w *http2Conn) headers(frame *http2.MetaHeadersFrame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.calls[frame.StreamID]
	if c == nil {
		return
	}
	outcome := "ended without a status"
	for _, field := range frame.Fields {
		switch field.Name {
		case ":status":
			if field.Value != "200" {
				outcome = "HTTP " + field.Value
			}
		case "grpc-status":
			code, err := strconv.Atoi(field.Value)
			if outcome = codes.Code(code).String(); err != nil {
				outcome = "grpc-status " + field.Value
			}
		}
	}
	if frame.StreamEnded() {
		c.finish(outcome)
	}
}

func (w *http2Conn) end(stream uint32, outcome string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.calls[stream]; c != nil {
		c.finish(outcome)
	}
}

// goAway ends the calls that the server will not process.
func (w *http2Conn) goAway(frame *http2.GoAwayFrame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, c := range w.calls {
		if id > frame.LastStreamID {
			c.finish("GOAWAY " + frame.ErrCode.String())
		}
	}
}
