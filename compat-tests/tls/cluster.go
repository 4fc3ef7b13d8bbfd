package tls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// secured is a cluster whose members have a directory of files each: a pair for
// clients, one for members, and the authorities of both.
type secured struct {
	t       testing.TB
	dir     string
	cluster *harness.Cluster
	// shown is what clients show and trust.
	shown atomic.Pointer[person]
}

// person is a client's certificate, and whom it trusts.
type person struct {
	pair    tls.Certificate
	trusted *x509.CertPool
}

func (s *secured) memberDir(member int) string {
	return filepath.Join(s.dir, fmt.Sprintf("m%d", member+1))
}

// flags are a member's.
func (s *secured) flags(member int) []string {
	file := func(name string) string { return filepath.Join(s.memberDir(member), name) }
	return []string{
		"--cert-file=" + file("server.crt"), "--key-file=" + file("server.key"), "--trusted-ca-file=" + file("ca.crt"), "--client-cert-auth",
		"--peer-cert-file=" + file("peer.crt"), "--peer-key-file=" + file("peer.key"), "--peer-trusted-ca-file=" + file("ca.crt"), "--peer-client-cert-auth",
		"--client-crl-file=" + s.list(member), "--peer-crl-file=" + s.list(member),
	}
}

// list is a member's of revoked certificates.
func (s *secured) list(member int) string {
	return filepath.Join(s.memberDir(member), "revoked.crl")
}

// trust gives a member the authorities that it is to trust.
func (s *secured) trust(member int, authorities ...*authority) {
	s.t.Helper()
	var blocks [][]byte
	for _, one := range authorities {
		blocks = append(blocks, one.certificate.Raw)
	}
	writePEM(s.t, filepath.Join(s.memberDir(member), "ca.crt"), "CERTIFICATE", blocks...)
}

// certify gives a member new pairs.
func (s *secured) certify(member int, by *authority) {
	s.t.Helper()
	write(s.t, s.memberDir(member), "server", by.local())
	write(s.t, s.memberDir(member), "peer", by.local())
}

// prepare makes the files of all members.
func (s *secured) prepare(by *authority) {
	s.t.Helper()
	for member := range 3 {
		if err := os.MkdirAll(s.memberDir(member), 0o700); err != nil {
			s.t.Fatal(err)
		}
		s.certify(member, by)
		s.trust(member, by)
		by.revokes(s.list(member))
	}
}

// start launches the members; clients call as `shown` says at each handshake.
func (s *secured) start() {
	s.t.Helper()
	s.cluster = harness.StartCluster(s.t, harness.Etched, harness.ClusterOptions{
		MemberFlags: s.flags,
		Encryption:  harness.Encryption{ClientTLS: s.client(), PeerTLS: true},
	})
}

// client is how clients call, as what they show and trust at each handshake.
func (s *secured) client() *tls.Config {
	return &tls.Config{
		// Verified below, against those who are trusted by then.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &s.shown.Load().pair, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: "127.0.0.1", Roots: s.shown.Load().trusted})
			return err
		},
	}
}

// workload is clients of all members that never stop: some on one connection, some
// on a new one for each pair of requests.
type workload struct {
	mu       sync.RWMutex
	away     *harness.Member // is not called
	running  sync.WaitGroup
	stop     chan struct{}
	answered atomic.Int64
	failed   atomic.Int64
	fresh    atomic.Int64 // connections
}

// load starts them. No request may fail.
func (s *secured) load() *workload {
	w := &workload{stop: make(chan struct{})}
	for number, member := range s.cluster.Members() {
		for _, keeps := range []bool{true, false} {
			w.running.Go(func() { s.call(w, member, fmt.Sprintf("%d %t", number, keeps), keeps) })
		}
	}
	return w
}

func (s *secured) call(w *workload, member *harness.Member, key string, keeps bool) {
	var conn *grpc.ClientConn
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	for number := 0; ; number++ {
		select {
		case <-w.stop:
			return
		default:
		}
		if !w.begin(member) {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if conn == nil {
			var err error
			conn, err = grpc.NewClient(member.Endpoint(), grpc.WithTransportCredentials(credentials.NewTLS(s.client())), grpc.WithDisableRetry())
			if err != nil {
				w.mu.RUnlock()
				s.t.Error(err)
				return
			}
			w.fresh.Add(1)
		}
		if err := putAndGet(conn, key, fmt.Sprint(number)); err != nil {
			if w.failed.Add(1) <= 5 {
				s.t.Errorf("%s, connection kept: %t, request %d at %s: %v", member.Name(), keeps, number, time.Now().Format(time.StampMilli), err)
			}
		}
		w.mu.RUnlock()
		w.answered.Add(1)
		if !keeps {
			_ = conn.Close()
			conn = nil
		}
	}
}

// putAndGet writes and reads what it wrote.
func putAndGet(conn *grpc.ClientConn, key, value string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	kv := pb.NewKVClient(conn)
	if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(value)}); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	answer, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte(key)})
	if err != nil {
		return fmt.Errorf("range: %w", err)
	}
	if len(answer.Kvs) != 1 || string(answer.Kvs[0].Value) != value {
		return fmt.Errorf("range: %v, not %q", answer.Kvs, value)
	}
	return nil
}

// begin holds off what `pause` does until the lock is given back; false where the
// member is not to be called.
func (w *workload) begin(member *harness.Member) bool {
	w.mu.RLock()
	if w.away == member {
		w.mu.RUnlock()
		return false
	}
	return true
}

// hold does something while no request is under way.
func (w *workload) hold(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

// pause does something to a member while nobody calls it.
func (w *workload) pause(member *harness.Member, do func()) {
	set := func(member *harness.Member) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.away = member
	}
	set(member)
	do()
	set(nil)
}

// finish ends the load.
func (w *workload) finish(t testing.TB) {
	t.Helper()
	close(w.stop)
	w.running.Wait()
	t.Logf("%d pairs of requests, %d failed, on %d connections", w.answered.Load(), w.failed.Load(), w.fresh.Load())
	if w.failed.Load() > 0 || w.answered.Load() == 0 {
		t.Errorf("%d of %d requests failed", w.failed.Load(), w.answered.Load())
	}
}
