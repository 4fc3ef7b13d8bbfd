package proxy

import (
	"context"
	"encoding/binary"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// pinged counts the pings of a connection that keep it alive.
type pinged struct {
	net.Conn
	mutex *sync.Mutex
	pings *int
	// Of the stream, what belongs to a frame that has begun.
	rest []byte
	// The preface of HTTP/2 has been read.
	begun bool
}

// With these grpc-go measures a connection.
var measuring = [8]byte{2, 4, 16, 16, 9, 14, 7, 7}

func (p *pinged) Read(to []byte) (int, error) {
	n, err := p.Conn.Read(to)
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.rest = append(p.rest, to[:n]...)
	if !p.begun {
		if len(p.rest) < len(http2.ClientPreface) {
			return n, err
		}
		p.rest, p.begun = p.rest[len(http2.ClientPreface):], true
	}
	const head = 9
	for len(p.rest) >= head {
		length := int(binary.BigEndian.Uint32(p.rest) >> 8)
		if len(p.rest) < head+length {
			break
		}
		frame := p.rest[:head+length]
		isAck := http2.Flags(frame[4]).Has(http2.FlagPingAck)
		if http2.FrameType(frame[3]) == http2.FramePing && !isAck && [8]byte(frame[head:]) != measuring {
			*p.pings++
		}
		p.rest = p.rest[head+length:]
	}
	return n, err
}

type pingedListener struct {
	net.Listener
	mutex sync.Mutex
	pings int
}

func (l *pingedListener) Accept() (net.Conn, error) {
	connection, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &pinged{Conn: connection, mutex: &l.mutex, pings: &l.pings}, nil
}

func (l *pingedListener) count() int {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.pings
}

// refusing is a member that answers every call at once, without doing it.
func refusing(t *testing.T) *pingedListener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	counted := &pingedListener{Listener: listener}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Protocols: &protocols,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Grpc-Status", "12")
		}),
	}
	go func() { _ = server.Serve(counted) }()
	t.Cleanup(func() { _ = server.Close() })
	return counted
}

// A connection without calls is pinged where the flag says so, and not more often than every
// ten seconds. etcd's proxy always has a watch open at the cluster, so that it has no connection
// without calls.
func TestPingsWithoutCalls(t *testing.T) {
	for name, flags := range map[string][]string{"with": {"--permit-without-stream"}, "without": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			member := refusing(t)
			proxy := startProxy(t, harness.Etched, append(flags, "--endpoints="+member.Addr().String(), "--dial-keepalive-time=1s")...)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := etcdserverpb.NewKVClient(proxy.dial(t)).Range(ctx, &etcdserverpb.RangeRequest{Key: []byte("k")})
			if status.Code(err) != codes.Unimplemented {
				t.Fatal(err)
			}
			time.Sleep(14 * time.Second)
			if found, wanted := member.count(), len(flags); found != wanted {
				t.Errorf("%d pings, not %d", found, wanted)
			}
		})
	}
}
