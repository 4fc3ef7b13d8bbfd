package tls

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

var (
	measure     = flag.Duration("tls.measure", 0, "measure connections and requests for so long a phase")
	measureRuns = flag.Int("tls.runs", 3, "phases of each kind, of which the median counts")
	measureIdle = flag.Int("tls.idle", 10_000, "idle connections")
)

// measureClients call at once, each on a connection of its own.
const measureClients = 100

// New connections, the memory of idle ones, and requests by TLS, of both servers one
// after the other. For people: it asserts nothing.
func TestMeasure(t *testing.T) {
	if *measure == 0 {
		t.Skip("-tls.measure=5s measures")
	}
	w := newWorld(t)
	user := w.known.issue(holder{commonName: "user"})
	for _, clients := range []struct {
		name  string
		flags []string
		pair  *tls.Certificate
	}{
		{"no certificates of clients", nil, nil},
		{"certificates of clients", []string{"--trusted-ca-file=" + w.known.file, "--client-cert-auth"}, &user},
	} {
		for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
			config := client(pool(w.known), clients.pair)
			config.NextProtos = []string{"h2"}
			launched := func() *harness.Server {
				server, err := harness.Launch(kind, harness.Options{
					Flags: append(w.server.flags(""), clients.flags...), Encryption: harness.Encryption{ClientTLS: config}, FileLimit: 2 * *measureIdle,
				})
				if err != nil {
					t.Fatal(err)
				}
				return server
			}
			server := launched()
			t.Logf("%-7s %s:", kind, clients.name)
			measureConnections(t, server, config)
			measureRequests(t, server, config)
			end(t, server)
			server = launched()
			measureMemory(t, server, config)
			end(t, server)
		}
	}
}

func end(t *testing.T, server *harness.Server) {
	if err := server.Kill(); err != nil {
		t.Error(err)
	}
	if err := server.Remove(); err != nil {
		t.Error(err)
	}
}

// phases answers how many times something was done by so many clients a second, and the
// server's CPU time for each: medians.
func phases(t *testing.T, server *harness.Server, clients int, do func(client int) error) (float64, time.Duration) {
	var perSecond []float64
	var cpu []time.Duration
	for range *measureRuns {
		load := harness.RunLoad(t, server, clients, func() { time.Sleep(*measure) }, do)
		perSecond, cpu = append(perSecond, load.PerSecond()), append(cpu, load.CPU)
	}
	return harness.Median(perSecond), harness.Median(cpu)
}

// opened is a connection of HTTP/2 that both sides have agreed on.
func opened(address string, config *tls.Config) (net.Conn, error) {
	connection, err := tls.Dial("tcp", address, config)
	if err != nil {
		return nil, err
	}
	_ = connection.SetDeadline(time.Now().Add(callLimit))
	if _, err := connection.Write([]byte(http2.ClientPreface)); err != nil {
		return nil, err
	}
	framer := http2.NewFramer(connection, connection)
	if err := framer.WriteSettings(); err != nil {
		return nil, err
	}
	// Until the server has seen what was sent.
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return nil, fmt.Errorf("settings: %w", err)
		}
		if settings, is := frame.(*http2.SettingsFrame); is && settings.IsAck() {
			return connection, nil
		}
	}
}

func measureConnections(t *testing.T, server *harness.Server, config *tls.Config) {
	const diallers = 8
	perSecond, cpu := phases(t, server, diallers, func(int) error {
		connection, err := opened(server.Endpoint(), config)
		if err != nil {
			return err
		}
		return connection.Close()
	})
	t.Logf("  connections %6.0f/s, CPU %v each", perSecond, cpu)
}

func measureRequests(t *testing.T, server *harness.Server, config *tls.Config) {
	conns := make([]*grpc.ClientConn, measureClients)
	for i := range conns {
		conns[i] = dial(t, from(""), server.Endpoint(), config)
		defer conns[i].Close()
	}
	value := make([]byte, 256)
	for name, request := range map[string]proto.Message{
		"put":   &pb.PutRequest{Key: []byte("key"), Value: value},
		"range": &pb.RangeRequest{Key: []byte("key")},
	} {
		perSecond, cpu := phases(t, server, len(conns), func(client int) error {
			return harness.Invoke(context.Background(), conns[client], request).Err
		})
		t.Logf("  %-11s %6.0f/s, CPU %v each", name, perSecond, cpu)
	}
}

func measureMemory(t *testing.T, server *harness.Server, config *tls.Config) {
	const settle = 3 * time.Second
	before := resident(t, server)
	open := idle(t, server, config, *measureIdle)
	time.Sleep(settle)
	after := resident(t, server)
	for _, connection := range open {
		_ = connection.Close()
	}
	t.Logf("  %d idle connections: %.1f MB, %.1f KB each; %.1f MB before", len(open), float64(after)/1e6, float64(after-before)/1e3/float64(max(1, len(open))), float64(before)/1e6)
}

func resident(t *testing.T, server *harness.Server) int64 {
	t.Helper()
	bytes, err := server.ResidentBytes()
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// idle opens so many connections.
func idle(t *testing.T, server *harness.Server, config *tls.Config, count int) []net.Conn {
	t.Helper()
	const openers = 8
	var mu sync.Mutex
	var open []net.Conn
	var opening sync.WaitGroup
	for range openers {
		opening.Go(func() {
			for range count / openers {
				connection, err := opened(server.Endpoint(), config)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				open = append(open, connection)
				mu.Unlock()
			}
		})
	}
	opening.Wait()
	return open
}

// What an idle connection holds stays within bounds. (It is 27 KB, of which the
// libraries' buffers are 16; etcd's is 40.)
func TestMemoryOfIdleConnections(t *testing.T) {
	t.Parallel()
	const first, more, limit = 200, 800, 36_000
	w := newWorld(t)
	config := client(pool(w.known), nil)
	config.NextProtos = []string{"h2"}
	server := harness.Start(t, harness.Etched, harness.Options{
		Flags: w.server.flags(""), Encryption: harness.Encryption{ClientTLS: config}, FileLimit: 4 * (first + more),
	})
	// What the first ones need is there for all.
	open := idle(t, server, config, first)
	before := resident(t, server)
	open = append(open, idle(t, server, config, more)...)
	each := (resident(t, server) - before) / more
	for _, connection := range open {
		_ = connection.Close()
	}
	t.Logf("%d bytes each", each)
	if each > limit {
		t.Errorf("an idle connection holds %d bytes, more than %d", each, limit)
	}
}
