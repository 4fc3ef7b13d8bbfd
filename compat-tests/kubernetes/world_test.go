package kubernetes

import (
	"context"
	"crypto/x509/pkix"
	"os"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

const (
	// compactionInterval is --etcd-compaction-interval: what is older than two of them is gone.
	compactionInterval = 15 * time.Second
	// eventTTL is --event-ttl.
	eventTTL = 12 * time.Second
	// settleLimit is how long anything may take that only has to happen some time.
	settleLimit = time.Minute
)

// world is a store and the API servers on it.
type world struct {
	t       *testing.T
	ctx     context.Context
	store   *harness.Cluster
	started time.Time
	// cached has the defaults. streamed and paged pass the cache by: their lists and watches are
	// the store's, by RangeStream and by pages of Range.
	cached, streamed, paged *apiServer
	// firstRevision is from before anything was created.
	firstRevision string
}

// newWorld starts all of it. The authority is the test's, so that what API servers store of it is
// the same in all worlds.
func newWorld(t *testing.T, kind harness.Kind, members int, by *authority) *world {
	t.Helper()
	w := &world{t: t, ctx: harness.Context(t, 15*time.Minute), started: time.Now()}
	server := by.pair(kind.String()+"-server", pkix.Name{CommonName: "etcd-server"})
	client := by.pair(kind.String()+"-client", pkix.Name{CommonName: "apiserver-etcd-client"})
	w.store = harness.StartCluster(t, kind, harness.ClusterOptions{
		Members: members,
		Direct:  true,
		Flags: []string{
			"--cert-file=" + server.cert, "--key-file=" + server.key, "--trusted-ca-file=" + by.file, "--client-cert-auth",
			"--peer-cert-file=" + server.cert, "--peer-key-file=" + server.key, "--peer-trusted-ca-file=" + by.file, "--peer-client-cert-auth",
			// kubeadm's.
			"--watch-progress-notify-interval=5s",
		},
		Encryption: harness.Encryption{ClientTLS: by.client(client), PeerTLS: true},
	})
	var urls []string
	for _, member := range w.store.Members() {
		urls = append(urls, member.URL())
	}
	start := func(name, address string, more ...string) *apiServer {
		return startAPIServer(t, w.ctx, by, name, append([]string{
			"--etcd-servers=" + strings.Join(urls, ","), "--etcd-cafile=" + by.file, "--etcd-certfile=" + client.cert, "--etcd-keyfile=" + client.key,
			"--etcd-compaction-interval=" + compactionInterval.String(), "--event-ttl=" + eventTTL.String(), "--advertise-address=" + address,
		}, more...))
	}
	// One after the other: what each finds does not depend on which was faster.
	w.cached = start("cached", "192.0.2.1")
	w.streamed = start("streamed", "192.0.2.2", "--watch-cache=false")
	w.paged = start("paged", "192.0.2.3", "--watch-cache=false", "--feature-gates=EtcdRangeStream=false")
	w.log("everything runs")
	return w
}

func (w *world) servers() []*apiServer { return []*apiServer{w.cached, w.streamed, w.paged} }

// log prints how long it took until here.
func (w *world) log(what string) {
	w.t.Helper()
	w.t.Logf("%5.1f s: %s", time.Since(w.started).Seconds(), what)
}

// step does one thing and prints how long it took until then.
func (w *world) step(name string, do func()) {
	w.t.Helper()
	do()
	if w.t.Failed() {
		w.t.FailNow()
	}
	w.log(name)
}

// binary is the kube-apiserver; without one the test is skipped.
func binary(t *testing.T) string {
	t.Helper()
	path := os.Getenv("KUBE_APISERVER")
	if path == "" {
		t.Skip("kube-apiserver is built by scripts/test kubernetes")
	}
	return path
}
