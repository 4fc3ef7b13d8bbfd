package cases

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// page is what an HTTP request gave.
type page struct {
	status              int
	contentType, body   string
	allow, location     string
	contentTypeOptions  string
	accessControlOrigin string
}

func fetch(server *harness.Server, method, path string) (page, error) {
	request, err := http.NewRequest(method, server.URL()+path, nil)
	if err != nil {
		return page{}, err
	}
	client := http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		return page{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	header := response.Header
	return page{
		status: response.StatusCode, contentType: header.Get("Content-Type"), body: string(body),
		allow: header.Get("Allow"), location: header.Get("Location"),
		contentTypeOptions: header.Get("X-Content-Type-Options"), accessControlOrigin: header.Get("Access-Control-Allow-Origin"),
	}, err
}

// pages fetches from both and compares all that was given.
func (p *pair) pages(method, path string) page {
	p.t.Helper()
	var got [2]page
	for i, server := range []*harness.Server{p.duo.Etched, p.duo.Etcd} {
		one, err := fetch(server, method, path)
		if err != nil {
			p.t.Fatalf("%s: %s %s: %v", server.Kind(), method, path, err)
		}
		got[i] = one
	}
	if got[etched] != got[etcd] {
		p.t.Errorf("%s %s\n-etched %+v\n+etcd   %+v", method, path, got[etched], got[etcd])
	}
	return got[etcd]
}

func TestHTTPProbes(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.waitClusterVersion()
	if version := p.pages("GET", "/version"); version.status != 200 || !strings.Contains(version.body, `"etcdcluster":"3.7.0"`) {
		t.Errorf("/version: %+v", version)
	}
	probes := func() {
		for _, path := range []string{"/health", "/health?serializable=true", "/health?serializable=false", "/health?serializable=banana",
			"/health?exclude=NOSPACE", "/health?exclude=CORRUPT", "/health?exclude=NOSPACE&exclude=CORRUPT", "/health?exclude=nospace", "/health?anything"} {
			p.pages("GET", path)
		}
	}
	probes()
	if health := p.pages("GET", "/health"); health.status != 200 || !strings.Contains(health.body, `"true"`) {
		t.Errorf("/health: %+v", health)
	}
	me := p.ok(&pb.MemberListRequest{}).(*pb.MemberListResponse).Members[0].ID
	for _, kind := range []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT} {
		p.ok(alarm(activate, me, kind))
		probes()
		if health := p.pages("GET", "/health"); health.status != 503 {
			t.Errorf("/health under %v: %+v", kind, health)
		}
		p.ok(alarm(deactivate, me, kind))
		probes()
	}
}

func TestHTTPMethodsAndPaths(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.waitClusterVersion()
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"} {
		for _, path := range []string{"/health", "/version"} {
			p.pages(method, path)
		}
	}
	for _, path := range []string{"/", "/nothing", "/health/", "/Health", "/version/", "/metrics/", "/members", "/v2/keys", "/config/local/log"} {
		if got := p.pages("GET", path); got.status != 404 {
			t.Errorf("%s: %+v", path, got)
		}
	}
}

var series = regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`)

// metricTypes answers the type of each family of series that a server exposes.
func metricTypes(t *testing.T, server *harness.Server) map[string]string {
	t.Helper()
	got, err := fetch(server, "GET", "/metrics")
	if err != nil || got.status != 200 || !strings.HasPrefix(got.contentType, "text/plain; version=0.0.4") {
		t.Fatalf("%s: /metrics: %d %s %v", server.Kind(), got.status, got.contentType, err)
	}
	types := map[string]string{}
	for _, match := range series.FindAllStringSubmatch(got.body, -1) {
		types[match[1]] = match[2]
	}
	return types
}

// requiredSeries are those that dashboards and alerts of etcd read first.
var requiredSeries = strings.Fields(`
	etcd_server_has_leader etcd_server_is_leader etcd_server_leader_changes_seen_total
	etcd_server_proposals_committed_total etcd_server_proposals_applied_total
	etcd_server_proposals_pending etcd_server_proposals_failed_total
	etcd_server_quota_backend_bytes etcd_server_version
	etcd_disk_wal_fsync_duration_seconds etcd_disk_backend_commit_duration_seconds
	etcd_mvcc_db_total_size_in_bytes etcd_mvcc_db_total_size_in_use_in_bytes
	etcd_mvcc_put_total etcd_mvcc_delete_total etcd_mvcc_range_total etcd_mvcc_txn_total
	etcd_debugging_mvcc_current_revision etcd_debugging_mvcc_compact_revision
	etcd_debugging_mvcc_keys_total etcd_debugging_mvcc_watcher_total etcd_debugging_mvcc_watch_stream_total
	grpc_server_started_total grpc_server_handled_total
	process_resident_memory_bytes process_cpu_seconds_total process_open_fds process_start_time_seconds
`)

func TestMetrics(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.waitClusterVersion()
	history(p)
	p.ok(compact(p.revision() - 3))
	ours, theirs := metricTypes(t, p.duo.Etched), metricTypes(t, p.duo.Etcd)
	for _, name := range requiredSeries {
		if theirs[name] == "" {
			t.Errorf("etcd has no %s", name)
		}
		if ours[name] != theirs[name] {
			t.Errorf("%s is a %q here and a %q at etcd", name, ours[name], theirs[name])
		}
	}
	for name, kind := range ours {
		if belongs := strings.HasPrefix(name, "etcd_") || strings.HasPrefix(name, "grpc_"); belongs && theirs[name] != kind {
			t.Errorf("%s is a %q here and a %q at etcd", name, kind, theirs[name])
		}
	}
}

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
			got, err := fetch(server, "GET", "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			for text := range strings.Lines(got.body) {
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
