package httpcases

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
)

func TestMetricsPort(t *testing.T) {
	t.Parallel()
	var at addresses
	var options harness.Options
	for _, side := range []struct {
		address *string
		flags   *[]string
	}{{&at.etched, &options.EtchedFlags}, {&at.etcd, &options.EtcdFlags}} {
		port, err := harness.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		*side.address = fmt.Sprintf("127.0.0.1:%d", port)
		*side.flags = []string{"--listen-metrics-urls=http://" + *side.address}
	}
	duo := startDuo(t, options)
	duo.Each(func(server *harness.Server) {
		// Some families appear with the first request.
		if _, err := server.Client(t).Put(harness.Context(t, answerLimit), "a", "1"); err != nil {
			t.Fatal(err)
		}
	})
	for _, target := range probes {
		wants(t, get(target), at.compare(t, get(target)), 200)
	}
	for _, target := range append([]string{"/version", "/debug/vars", "/v3", "/v3/", "/v3/kv/range"}, unknown...) {
		wants(t, get(target), at.compare(t, get(target)), 404)
	}
	for _, method := range []string{"HEAD", "POST", "OPTIONS"} {
		for _, target := range []string{"/health", "/readyz", "/livez/serializable_read", "/livez/nope", "/version", "/"} {
			at.compare(t, ask{method: method, target: target})
		}
	}
	wants(t, get("/health"), at.compare(t, get("/health", "Host: evil.example", "Origin: http://evil.example")), 200)
	t.Run("page", func(t *testing.T) { compareMetrics(t, at) })
	t.Run("client port", func(t *testing.T) { compareMetrics(t, clientPorts(duo)) })
}

// notHere are families of etcd's about its language, and the number of keys,
// which etched would have to count, and the feature gates of the next release.
var notHere = regexp.MustCompile(`^(go_|etcd_debugging_mvcc_keys_total$|etcd_server_feature_enabled.*(NonBlockingDefrag|RaftAsyncStorageWrites))`)

// valued are labels whose values are of no interest.
var valued = regexp.MustCompile(`server_go_version="[^"]*"`)

// compareMetrics compares names, types and series of a page, and how it is
// served. The numbers are for other cases.
func compareMetrics(t *testing.T, at addresses) {
	for _, asked := range []ask{
		get("/metrics"),
		{method: "POST", target: "/metrics"},
		{method: "FOO", target: "/metrics"},
		{method: "HEAD", target: "/metrics"},
		get("/metrics", "Accept: text/plain;version=0.0.4;q=0.5,*/*;q=0.1"),
		get("/metrics", "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"),
	} {
		noBody := func(r *reply) { r.Body = "" }
		chunked := func(r *reply) { r.Header.Del("Content-Length") }
		wants(t, asked, at.compare(t, asked, noBody, chunked), 200)
	}
	ours, theirs := families(t, at.etched), families(t, at.etcd)
	for name, kind := range theirs.types {
		if !notHere.MatchString(name) && ours.types[name] != kind {
			t.Errorf("%s is a %q here and a %q at etcd", name, ours.types[name], kind)
		}
	}
	for name, kind := range ours.types {
		// What etcd has no name for has one of etched's own.
		if theirs.types[name] != kind && !strings.HasPrefix(name, "etched_") {
			t.Errorf("%s is a %q here and a %q at etcd", name, kind, theirs.types[name])
		}
	}
	compareSeries(t, ours.series, theirs.series)
	t.Run("gzip", func(t *testing.T) { unzipped(t, at) })
}

// steady are the families whose series, label values included, a fresh member
// shows whatever was asked of it.
var steady = regexp.MustCompile(`^(grpc_server_(started|handled|msg)|etcd_server_(id|version|go_version|feature_enabled)|` +
	`etcd_cluster_version|etcd_network_known_peers|etcd_disk_|etcd_snap_|etcd_mvcc_|etcd_debugging_(lease|mvcc|store|snap|disk)|promhttp_)`)

func compareSeries(t *testing.T, ours, theirs map[string]bool) {
	lacks := func(what string, one, other map[string]bool) {
		var lacking []string
		for series := range other {
			if steady.MatchString(series) && !notHere.MatchString(series) && !one[series] {
				lacking = append(lacking, series)
			}
		}
		slices.Sort(lacking)
		if len(lacking) > 0 {
			t.Errorf("%s lacks %d series:\n%s", what, len(lacking), strings.Join(lacking[:min(20, len(lacking))], "\n"))
		}
	}
	lacks("etched", ours, theirs)
	lacks("etcd", theirs, ours)
}

type metricsPage struct {
	types  map[string]string
	series map[string]bool
}

func families(t *testing.T, address string) metricsPage {
	t.Helper()
	got, err := send(address, get("/metrics"))
	if err != nil {
		t.Fatal(err)
	}
	page := metricsPage{map[string]string{}, map[string]bool{}}
	for line := range strings.Lines(got.Body) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			page.types[name] = kind
		} else if !strings.HasPrefix(line, "#") {
			page.series[valued.ReplaceAllString(line[:strings.LastIndexByte(line, ' ')], "language")] = true
		}
	}
	if len(page.types) < 20 {
		t.Fatalf("%s: a page of %d families: %v", address, len(page.types), slices.Sorted(maps.Keys(page.types)))
	}
	return page
}

// unzipped reads a page as scrapers ask for it.
func unzipped(t *testing.T, at addresses) {
	for _, address := range []string{at.etched, at.etcd} {
		got, err := send(address, get("/metrics", "Accept-Encoding: gzip"))
		if err != nil {
			t.Fatal(err)
		}
		if encoding := got.Header.Get("Content-Encoding"); encoding != "gzip" {
			t.Fatalf("%s: Content-Encoding %q", address, encoding)
		}
		reader, err := gzip.NewReader(bytes.NewBufferString(got.Body))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(reader)
		if err != nil || !bytes.Contains(text, []byte("\netcd_server_has_leader 1\n")) {
			t.Errorf("%s: %d bytes, %v", address, len(text), err)
		}
		if _, err := http.Get("http://" + address + "/metrics"); err != nil {
			t.Error(err)
		}
	}
}
