package harness

import (
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// RunWaiting runs the tests of a package that mostly wait: more of them at a
// time than there are processors, unless the command line says how many.
func RunWaiting(m *testing.M) {
	flag.Parse()
	asked := false
	flag.Visit(func(one *flag.Flag) { asked = asked || one.Name == "test.parallel" })
	if !asked {
		if err := flag.Set("test.parallel", "6"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// Exchange sends a request on a stream and waits for what is answered. Where the
// server has ended the stream by then, sending says io.EOF and no more: the
// reason comes with what is received.
func Exchange[Request, Answer any](stream interface {
	Send(Request) error
	Recv() (Answer, error)
}, request Request) (Answer, error) {
	if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
		var none Answer
		return none, err
	}
	return stream.Recv()
}

// Start launches a server for the length of a test and fails the test where it
// cannot. Of a failed test the log is kept and its path printed.
func Start(tb testing.TB, kind Kind, options Options) *Server {
	tb.Helper()
	server, err := Launch(kind, options)
	if err != nil {
		tb.Fatalf("start %s: %v", kind, err)
	}
	tb.Cleanup(func() { server.finish(tb) })
	return server
}

// Begin is Start without a wait: for a server that is not to serve.
func Begin(tb testing.TB, kind Kind, options Options) *Server {
	tb.Helper()
	server, err := prepare(kind, options)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { server.finish(tb) })
	if err := errors.Join(server.choosePorts(), server.Spawn()); err != nil {
		tb.Fatalf("start %s: %v", kind, err)
	}
	return server
}

func (s *Server) finish(tb testing.TB) {
	if err := s.Kill(); err != nil {
		tb.Errorf("end %s: %v", s.kind, err)
	}
	if tb.Failed() {
		s.keepLog(tb)
	}
	if err := s.Remove(); err != nil {
		tb.Errorf("remove the directory of %s: %v", s.kind, err)
	}
}

func (s *Server) keepLog(tb testing.TB) {
	content, err := os.ReadFile(s.logPath)
	if err != nil {
		tb.Logf("log of %s: %v", s.kind, err)
		return
	}
	kept, err := os.MkdirTemp("", "compat-log-")
	if err != nil {
		tb.Logf("log of %s: %v", s.kind, err)
		return
	}
	path := filepath.Join(kept, filepath.Base(s.logPath))
	if err := os.WriteFile(path, content, 0o600); err != nil {
		tb.Logf("log of %s: %v", s.kind, err)
		return
	}
	tb.Logf("log of %s kept in %s", s.kind, path)
}

// StartCluster launches a cluster for the length of a test and fails the test
// where it cannot. Of a failed test the logs are kept and their paths printed.
func StartCluster(tb testing.TB, kind Kind, options ClusterOptions) *Cluster {
	tb.Helper()
	cluster, err := LaunchCluster(kind, options)
	if err != nil {
		tb.Fatalf("start a cluster of %s: %v", kind, err)
	}
	tb.Cleanup(func() { cluster.finish(tb) })
	return cluster
}

func (c *Cluster) finish(tb testing.TB) {
	if tb.Failed() {
		for _, member := range c.all() {
			member.keepLog(tb)
		}
	}
	if err := c.Remove(); err != nil {
		tb.Errorf("end the cluster: %v", err)
	}
}

// Duo is an etched and an etcd with equal settings.
type Duo struct {
	Etched, Etcd *Server
	clusters     *Clusters
}

// StartDuo starts both servers at once; see Start. Unless options say
// otherwise, both advertise the same client URL. With COMPAT_MEMBERS=3 both are
// members of a cluster each: the leaders, or followers with COMPAT_VIA=follower.
func StartDuo(tb testing.TB, options Options) *Duo {
	tb.Helper()
	if members, asked := clusterWanted(tb); members > 0 {
		return startClusterDuo(tb, options, members, asked)
	}
	if options.AdvertiseClientURL == "" {
		options.AdvertiseClientURL = "http://127.0.0.1:2379"
	}
	for _, kind := range []Kind{Etched, Etcd} {
		if _, err := Binary(kind); err != nil {
			tb.Fatal(err)
		}
	}
	servers := [2]*Server{}
	failures := [2]error{}
	var started sync.WaitGroup
	for i, kind := range []Kind{Etched, Etcd} {
		started.Go(func() { servers[i], failures[i] = Launch(kind, options) })
	}
	started.Wait()
	for _, server := range servers {
		if server != nil {
			tb.Cleanup(func() { server.finish(tb) })
		}
	}
	for i, kind := range []Kind{Etched, Etcd} {
		if failures[i] != nil {
			tb.Fatalf("start %s: %v", kind, failures[i])
		}
	}
	return &Duo{Etched: servers[0], Etcd: servers[1]}
}

// Each calls f for etched and then for etcd.
func (d *Duo) Each(f func(*Server)) {
	f(d.Etched)
	f(d.Etcd)
}

// Client is a new official client, closed at the end of the test.
func (s *Server) Client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	client, err := s.NewClient()
	if err != nil {
		tb.Fatalf("client of %s: %v", s.kind, err)
	}
	tb.Cleanup(func() { _ = client.Close() })
	return client
}

// NewClient is a new official client; the caller closes it.
func (s *Server) NewClient() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints:   []string{s.URL()},
		DialTimeout: 10 * time.Second,
		Logger:      zap.NewNop(),
		TLS:         s.options.ClientTLS,
	})
}

// Dial is a raw connection with no retries and no limit on message sizes,
// closed at the end of the test.
func (s *Server) Dial(tb testing.TB, options ...grpc.DialOption) *grpc.ClientConn {
	tb.Helper()
	const unlimited = 1 << 30
	options = append([]grpc.DialOption{
		s.options.credentials(),
		grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(unlimited), grpc.MaxCallSendMsgSize(unlimited)),
	}, options...)
	connection, err := grpc.NewClient(s.Endpoint(), options...)
	if err != nil {
		tb.Fatalf("dial %s: %v", s.kind, err)
	}
	tb.Cleanup(func() { _ = connection.Close() })
	return connection
}

// Context is a context that ends with the test or after the given time.
func Context(tb testing.TB, limit time.Duration) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	tb.Cleanup(cancel)
	return ctx
}
