package cases

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// The figures that follow from the requests alone are equal.
func TestMetricValues(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	history(p)
	p.ok(compact(p.revision() - 3))
	p.fails(noLease, leased("x", "1", 99))
	w := p.watch()
	w.create(0, watchKey("a"))
	for _, line := range []string{
		"etcd_debugging_mvcc_current_revision", "etcd_debugging_mvcc_compact_revision", "etcd_debugging_mvcc_keys_total",
		"etcd_debugging_mvcc_watcher_total", "etcd_debugging_mvcc_watch_stream_total", "etcd_server_has_leader", "etcd_server_is_leader",
		"etcd_mvcc_put_total", "etcd_mvcc_delete_total", "etcd_mvcc_txn_total", "etcd_server_quota_backend_bytes",
		`grpc_server_handled_total{grpc_code="NotFound",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"}`,
		`grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"}`,
		`grpc_server_started_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}`,
	} {
		var values [2]string
		for i, server := range []*harness.Server{p.duo.Etched, p.duo.Etcd} {
			_, page, err := server.HTTPGet("/metrics")
			if err != nil {
				t.Fatal(err)
			}
			for text := range strings.Lines(page) {
				if value, ok := strings.CutPrefix(text, line+" "); ok {
					values[i] = value
				}
			}
		}
		if values[etched] != values[etcd] || values[etcd] == "" {
			t.Errorf("%s is %q here and %q at etcd", line, values[etched], values[etcd])
		}
	}
}

// gRPC and HTTP share the client port; other first bytes are turned away.
func TestSharedPort(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.duo.Each(func(server *harness.Server) {
		for _, greeting := range []string{"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", "nonsense\r\n\r\n", "\x00\x00\x00\x00", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"} {
			conn, err := net.Dial("tcp", server.Endpoint())
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
			if _, err := fmt.Fprint(conn, greeting); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}
		healthIs(t, server, 200, "true")
	})
	p.do(put("a", "1"))
}
