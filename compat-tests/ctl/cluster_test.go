package ctl

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

var statusFigures = []normaliser{
	replace(`\d+(\.\d+)? [kMG]?B`, "SIZE"),
	replace(`\d+%`, "PERCENT"),
	replace(`(true|false), \d+, \d+, \d+,`, "$1, TERM, INDEX, INDEX,"),
	replace(`│ (true|false) │ (true|false) │ \d+ │ \d+ │ \d+ │`, "│ $1 │ $2 │ TERM │ INDEX │ INDEX │"),
	replace(`"(raftIndex|raftAppliedIndex|dbSize|dbSizeInUse)":\d+`, `"$1":N`),
	replace(`"(RaftIndex|RaftAppliedIndex|DBSize|DBSizeInUse|RaftTerm)" : \d+`, `"$1" : N`),
}

func (b *bench) waitClusterVersion() {
	b.t.Helper()
	for _, s := range b.sides {
		if err := s.server.WaitClusterVersion(2 * commandLimit); err != nil {
			b.t.Fatal(err)
		}
	}
}

func TestEndpoint(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	b.waitClusterVersion()
	b.fill()
	for _, format := range append(formats, "table") {
		b.ok("endpoint status -w "+format, append([]normaliser{table}, statusFigures...)...)
		b.ok("endpoint health -w "+format, table, times)
		b.ok("endpoint hashkv -w "+format, table)
		b.ok("endpoint hashkv --rev 5 -w "+format, table)
	}
	b.ok("compaction 5 --physical")
	b.ok("endpoint hashkv -w json")
	b.fails("endpoint hashkv --rev 3", table)
	b.fails("endpoint hashkv --rev 300", table)
	b.ok("defrag")
	b.ok("endpoint hashkv -w json")
	b.do("endpoint")
	b.do("endpoint status banana", append([]normaliser{table}, statusFigures...)...)
}

// With --cluster, etcdctl calls the URLs that the member advertises.
func TestEndpointCluster(t *testing.T) {
	t.Parallel()
	etcdctl, err := harness.Etcdctl()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, etcdctl: etcdctl}
	for i, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		b.sides[i] = &side{server: harness.Start(t, kind, harness.Options{})}
	}
	b.waitClusterVersion()
	b.ok("endpoint health --cluster", times)
	b.ok("endpoint status --cluster", statusFigures...)
	b.ok("endpoint hashkv --cluster")
	b.ok("defrag --cluster")
	b.ok("member list")
}

func TestMember(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	for _, format := range append(formats, "table") {
		b.ok("member list -w " + format)
		b.ok("member list --consistency s -w " + format)
	}
	b.ok("member list --hex -w json")
	id := b.memberID()
	for _, format := range formats {
		b.do("member update " + id + " --peer-urls=http://127.0.0.1:9999 -w " + format)
	}
	b.ok("member list")
	b.ok("member update " + id + " --peer-urls=http://127.0.0.1:9999,http://127.0.0.1:9998")
	b.ok("member list")
	for _, line := range []string{"member update 1234 --peer-urls=http://127.0.0.1:9", "member update", "member update banana", "member update " + id, "member", "member banana",
		"move-leader", "move-leader 1234", "move-leader banana", "move-leader " + id} {
		b.do(line)
	}
	b.ok("member update " + id + " --peer-urls=" + harness.AdvertisedPeerURL)
}

// memberID is the id of the one member, the same for both.
func (b *bench) memberID() string {
	b.t.Helper()
	listed := b.ok("member list").Stdout
	const digits = 16
	for i := range listed {
		if listed[i] == ',' && i <= digits {
			return listed[:i]
		}
	}
	b.t.Fatalf("no member id in %q", listed)
	return ""
}

func TestAlarms(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	for _, format := range formats {
		b.ok("alarm list -w " + format)
		b.ok("alarm disarm -w " + format)
	}
	b.do("alarm")
	b.do("alarm banana")
	b.do("alarm list banana")
}

// A full store: each server is filled, then asked the same.
func TestAlarmsOfAFullStore(t *testing.T) {
	harness.OfSingleServers(t)
	t.Parallel()
	b := newBench(t, harness.Options{Flags: []string{"--quota-backend-bytes=8388608"}})
	b.waitClusterVersion()
	large := make([]byte, 1<<20)
	for i := range large {
		large[i] = ' ' + byte(rand.IntN('~'-' '))
	}
	for _, s := range b.sides {
		const most = 32
		for i := 0; i < most && b.run(s, s.line("put fill"), string(large)).Code == 0; i++ {
		}
	}
	// What a put that is refused costs in revisions depends on what let it in.
	status := append([]normaliser{replace(`"revision":\d+`, `"revision":N`), replace(`"Revision" : \d+`, `"Revision" : N`)}, statusFigures...)
	b.fails("put small 1")
	b.fails("lease grant 10")
	for _, format := range formats {
		b.ok("alarm list -w "+format, status...)
		b.ok("endpoint status -w "+format, status...)
	}
	b.do("endpoint health", times)
	b.ok("del fill")
	b.ok("alarm disarm")
	b.ok("alarm list")
}

func TestDefragAndVersion(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	b.fill()
	b.ok("defrag")
	b.do("defrag -w json")
	b.ok("version")
	b.do("put a 1 --command-timeout=banana")
	b.do("get a --debug=false")
}

// The load check takes a minute, so it runs on demand; its figures differ, its
// verdict must not.
func TestCheckPerf(t *testing.T) {
	if os.Getenv("COMPAT_CHECK_PERF") == "" {
		t.Skip("set COMPAT_CHECK_PERF=1 to run etcdctl check perf for a minute on each server")
	}
	server := harness.Start(t, harness.Etched, harness.Options{})
	etcdctl, err := harness.Etcdctl()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, etcdctl: etcdctl}
	got := b.runFor(&side{server: server}, 3*time.Minute, "check perf --auto-compact --auto-defrag")
	t.Logf("%s%s", got.Stdout, got.Stderr)
	if got.Code != 0 {
		t.Errorf("etcdctl check perf: exit code %d", got.Code)
	}
}
