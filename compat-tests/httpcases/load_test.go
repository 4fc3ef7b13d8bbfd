package httpcases

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Both servers get the same requests, then their pages are compared: every
// family of etcd's is here with the same type, labels and buckets, and what both
// count is the same within two percent. What is not has a line below.

// countsOtherwise are the series that count something else here, and why. One
// that comes to count the same is to be taken off the list, but for what is
// another number in each run.
var countsOtherwise = []struct {
	series  string
	differs bool
	reason  string
}{
	{`process_.*`, false, "the process's"},
	{`promhttp_.*`, false, "scrapes, not the load"},
	{`etcd_debugging_disk_backend_commit_(rebalance|spill|write)_duration_seconds`, true, "steps of bbolt's commits, which are not made here"},
	{`etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds`, true, "there is no index in memory to compact"},
	{`etcd_disk_backend_commit_duration_seconds`, true, "etcd commits every 100 ms or 10,000 operations, etched each group of entries"},
	{`etcd_disk_wal_write_duration_seconds`, true, "a write and its sync are one step here, timed as the sync"},
	{`etcd_disk_wal_fsync_duration_seconds`, false, "how many entries share a sync is a matter of time"},
	{`etcd_mvcc_delete_total`, true, "etcd counts each key that is deleted with its lease"},
	{`etcd_mvcc_range_total`, true, "etcd counts what writing transactions compare"},
	{`etcd_network_client_grpc_(received|sent)_bytes_total`, true, "all bytes of connections here, the messages alone at etcd"},
	{`etcd_server_apply_duration_seconds op=Cluster(MemberAttr|Version)Set .*`, true, "the cluster's own entries are not timed here"},
	{`etcd_server_apply_duration_seconds op=LeaseRevoke success=false .*`, true, "a lease that is none is refused before anything is proposed"},
	{`etcd_debugging_server_watch_send_loop_.*`, false, "how many events share an answer is a matter of time"},
	{`grpc_server_(handled_total|msg_sent_total) .*grpc_method=(LeaseKeepAlive|Watch) .*`, false, "who ends a stream first, and what shares an answer, is a matter of time"},
	{`grpc_server_msg_sent_total grpc_method=Snapshot .*`, true, "the file is smaller, and its parts are larger"},
}

// absentHere are etcd's families that are not on the page.
var absentHere = []struct{ families, reason string }{
	{`go_.*`, "Go's runtime"},
	{`etcd_debugging_store_(reads|writes)_total`, "of etcd's v2 store, which etched never had"},
}

func TestMetricsUnderLoad(t *testing.T) {
	t.Parallel()
	duo := startDuo(t, harness.Options{Flags: []string{"--metrics=extensive"}})
	pages := map[harness.Kind]map[string]*dto.MetricFamily{}
	duo.Each(func(server *harness.Server) {
		load(t, server)
		pages[server.Kind()] = scrape(t, server)
	})
	ours, theirs := pages[harness.Etched], pages[harness.Etcd]
	for _, name := range slices.Sorted(maps.Keys(theirs)) {
		absent := slices.ContainsFunc(absentHere, func(one struct{ families, reason string }) bool { return matches(one.families, name) })
		switch {
		case absent && ours[name] != nil:
			t.Errorf("%s is there, and on the list of what is not", name)
		case absent:
		case ours[name] == nil:
			t.Errorf("%s is not there", name)
		default:
			compareFamily(t, ours[name], theirs[name])
		}
	}
	for i, one := range countsOtherwise {
		if one.differs && !otherwise[i] {
			t.Errorf("what is said of %s is no longer so: %s", one.series, one.reason)
		}
	}
}

// otherwise are the places in countsOtherwise of what did count otherwise.
var otherwise = map[int]bool{}

func matches(pattern, text string) bool {
	return regexp.MustCompile(`^(` + pattern + `)$`).MatchString(text)
}

func scrape(t *testing.T, server *harness.Server) map[string]*dto.MetricFamily {
	t.Helper()
	response, err := http.Get("http://" + server.Endpoint() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(text)))
	if err != nil {
		t.Fatalf("%s: %v", server.Kind(), err)
	}
	return families
}

func compareFamily(t *testing.T, ours, theirs *dto.MetricFamily) {
	name := theirs.GetName()
	if ours.GetType() != theirs.GetType() {
		t.Errorf("%s is a %v here and a %v at etcd", name, ours.GetType(), theirs.GetType())
		return
	}
	shape := func(family *dto.MetricFamily) (shapes []string) {
		for _, metric := range family.Metric {
			var labels, buckets []string
			for _, label := range metric.Label {
				labels = append(labels, label.GetName())
			}
			for _, bucket := range metric.GetHistogram().GetBucket() {
				buckets = append(buckets, fmt.Sprint(bucket.GetUpperBound()))
			}
			shapes = append(shapes, fmt.Sprint(labels, buckets))
		}
		slices.Sort(shapes)
		return slices.Compact(shapes)
	}
	if a, b := shape(ours), shape(theirs); !slices.Equal(a, b) {
		t.Errorf("%s has labels and buckets %v here and %v at etcd", name, a, b)
	}
	if theirs.GetType() == dto.MetricType_GAUGE && !countingGauges.MatchString(name) {
		return
	}
	a, b := counts(ours), counts(theirs)
	for _, series := range slices.Sorted(maps.Keys(b)) {
		a, b := a[series], b[series]
		if off := math.Abs(a-b) / max(1, math.Abs(b)); off > 0.02 && !mayDiffer(series) {
			t.Errorf("%s is %v here and %v at etcd", series, a, b)
		}
	}
	for _, series := range slices.Sorted(maps.Keys(a)) {
		if _, there := b[series]; !there && a[series] > 0 && !mayDiffer(series) {
			t.Errorf("%s is %v here and not there at etcd", series, a[series])
		}
	}
}

// countingGauges only grow although etcd calls them gauges.
var countingGauges = regexp.MustCompile(`^etcd_server_proposals_(committed|applied|pending)|^etcd_debugging_(mvcc_.*|auth_revision)$`)

// counts are the numbers of a family that count something, by series.
func counts(family *dto.MetricFamily) map[string]float64 {
	all := make(map[string]float64)
	for _, metric := range family.Metric {
		series := family.GetName()
		for _, label := range metric.Label {
			series += fmt.Sprintf(" %s=%s", label.GetName(), label.GetValue())
		}
		switch family.GetType() {
		case dto.MetricType_COUNTER:
			all[series] = metric.GetCounter().GetValue()
		case dto.MetricType_GAUGE:
			all[series] = metric.GetGauge().GetValue()
		case dto.MetricType_HISTOGRAM:
			all[series] = float64(metric.GetHistogram().GetSampleCount())
		}
	}
	return all
}

// mayDiffer tells whether a series is known to count otherwise here.
func mayDiffer(series string) bool {
	for i, one := range countsOtherwise {
		if matches(one.series, series) {
			otherwise[i] = true
			return true
		}
	}
	return false
}

// load asks a server for something of everything, one after the other.
func load(t *testing.T, server *harness.Server) {
	t.Helper()
	ctx := harness.Context(t, 2*time.Minute)
	client := server.Client(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", server.Kind(), err)
		}
	}
	const many, some = 400, 100
	watching, stop := context.WithCancel(ctx)
	events := client.Watch(watching, "key", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-events
	for i := range many {
		_, err := client.Put(ctx, fmt.Sprintf("key %04d", i), strings.Repeat("v", 100))
		must(err)
		_, err = client.Get(ctx, fmt.Sprintf("key %04d", i))
		must(err)
	}
	for i := range some {
		_, err := client.Get(ctx, "key", clientv3.WithPrefix(), clientv3.WithSerializable(), clientv3.WithLimit(10))
		must(err)
		key := fmt.Sprintf("key %04d", i)
		_, err = client.Txn(ctx).If(clientv3.Compare(clientv3.Version(key), "=", 1)).
			Then(clientv3.OpPut(key, "a"), clientv3.OpPut(key+"b", "b"), clientv3.OpGet(key)).Commit()
		must(err)
		_, err = client.Txn(ctx).Then(clientv3.OpGet(key), clientv3.OpGet("key 0000")).Commit()
		must(err)
		_, err = client.Delete(ctx, key+"b")
		must(err)
	}
	for seen := 0; seen < many+3*some; {
		response, open := <-events
		if !open || response.Err() != nil {
			t.Fatalf("%s: %d events, then %v", server.Kind(), seen, response.Err())
		}
		seen += len(response.Events)
	}
	stop()
	// Several watches of a stream, and several renewals.
	// The official client would cancel each, in a race with the end of the stream.
	watching, stop = context.WithCancel(ctx)
	watches, err := pb.NewWatchClient(server.Dial(t)).Watch(watching)
	must(err)
	for range 20 {
		create := &pb.WatchCreateRequest{Key: []byte("none")}
		must(watches.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}))
		_, err = watches.Recv()
		must(err)
	}
	stop()
	granted, err := client.Grant(ctx, 60)
	must(err)
	renewals, err := pb.NewLeaseClient(server.Dial(t)).LeaseKeepAlive(ctx)
	must(err)
	for range some {
		must(renewals.Send(&pb.LeaseKeepAliveRequest{ID: int64(granted.ID)}))
		_, err = renewals.Recv()
		must(err)
	}
	must(renewals.CloseSend())
	if _, err = renewals.Recv(); err != io.EOF {
		t.Fatalf("%s: after the last renewal: %v", server.Kind(), err)
	}
	for range some {
		granted, err := client.Grant(ctx, 60)
		must(err)
		_, err = client.Put(ctx, "leased", "", clientv3.WithLease(granted.ID))
		must(err)
		_, err = client.KeepAliveOnce(ctx, granted.ID)
		must(err)
		_, err = client.TimeToLive(ctx, granted.ID)
		must(err)
		_, err = client.Revoke(ctx, granted.ID)
		must(err)
	}
	head, err := client.Get(ctx, "nothing")
	must(err)
	_, err = client.Compact(ctx, head.Header.Revision-10, clientv3.WithCompactPhysical())
	must(err)
	// Refused, in some ways.
	for range some {
		if _, err := client.Get(ctx, "a", clientv3.WithRev(1)); err == nil {
			t.Fatal("a compacted revision was read")
		}
		if _, err := client.Put(ctx, "", ""); err == nil {
			t.Fatal("a put without a key")
		}
		if _, err := client.Revoke(ctx, 4711); err == nil {
			t.Fatal("a lease that is none was revoked")
		}
	}
	maintenance := pb.NewMaintenanceClient(server.Dial(t))
	_, err = maintenance.Hash(ctx, &pb.HashRequest{})
	must(err)
	_, err = maintenance.HashKV(ctx, &pb.HashKVRequest{})
	must(err)
	_, err = client.Status(ctx, server.Endpoint())
	must(err)
	_, err = client.MemberList(ctx)
	must(err)
	snapshot, err := client.Snapshot(ctx)
	must(err)
	_, err = io.Copy(io.Discard, snapshot)
	must(err)
	must(snapshot.Close())
	for _, name := range []string{"root", "one"} {
		_, err = client.UserAdd(ctx, name, "secret")
		must(err)
	}
	_, err = client.RoleAdd(ctx, "root")
	must(err)
	_, err = client.UserGrantRole(ctx, "root", "root")
	must(err)
	_, err = client.AuthEnable(ctx)
	must(err)
	config := clientv3.Config{Endpoints: []string{server.Endpoint()}, DialTimeout: answerLimit, Username: "root", Password: "secret"}
	root, err := clientv3.New(config)
	must(err)
	defer root.Close()
	for range some {
		_, err = root.Put(ctx, "by root", "")
		must(err)
	}
	_, err = root.AuthDisable(ctx)
	must(err)
}
