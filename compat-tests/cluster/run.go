package cluster

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"etched.dev/compat-tests/crash"
	"etched.dev/compat-tests/harness"
)

var (
	useEtcd = flag.Bool("cluster.etcd", false, "give etcd v3.7.3 the bad days instead of etched: what is its own to get wrong is then reported, the rest must pass")
	seed    = flag.Uint64("cluster.seed", 0, "seed of the workload; 0 draws one")
	longer  = flag.Float64("cluster.longer", 1, "how many times longer load and faults last")
	slack   = flag.Duration("cluster.slack", 1500*time.Millisecond, "what a busy machine may add to three election timeouts before the cluster serves again")
)

// electionTimeout is the servers' default.
const electionTimeout = time.Second

// Options describe a run beside the flags.
type Options struct {
	harness.ClusterOptions
	// Bulk adds a client that writes large values.
	Bulk bool
	// Etcd makes the members etcd's, whatever the flags say.
	Etcd bool
	// Pause is what a client takes between two requests; 0 is the usual time. A long run
	// leaves a history that can still be judged with a longer one.
	Pause time.Duration
	// Beside begins the keys, if any, that others than the clients write meanwhile: what
	// they hold must be the same everywhere, but is held against no record.
	Beside string
}

// Run is a cluster under load, from its start to its verdict.
type Run struct {
	testing.TB
	*harness.Cluster
	log  *log
	seed uint64
	rng  *rand.Rand

	pause  time.Duration
	beside string

	clients int
	working sync.WaitGroup
	stop    context.CancelFunc // of the clients
	stopped context.Context

	watchers  []*watcher
	ofMember  map[*harness.Member]*watcher
	following sync.WaitGroup
	unfollow  context.CancelFunc // of the watches
	life      context.Context
	closing   []func() error

	report crash.Report // what the test itself found
}

// Kind says which servers a run is about.
func Kind() harness.Kind {
	if *useEtcd {
		return harness.Etcd
	}
	return harness.Etched
}

// Start starts a cluster, its watches and its clients, and lets some time pass.
func Start(tb testing.TB, options Options) *Run {
	tb.Helper()
	r := &Run{
		TB: tb, seed: *seed, log: &log{}, ofMember: map[*harness.Member]*watcher{},
		pause: cmp.Or(options.Pause, usualPause), beside: options.Beside,
	}
	if r.seed == 0 {
		r.seed = uint64(time.Now().UnixNano())
	}
	r.rng = rand.New(rand.NewPCG(r.seed, 1))
	kind := Kind()
	if options.Etcd {
		kind = harness.Etcd
	}
	r.Cluster = harness.StartCluster(tb, kind, options.ClusterOptions)
	r.log.began = time.Now()
	r.stopped, r.stop = context.WithCancel(context.Background())
	r.life, r.unfollow = context.WithCancel(context.Background())
	tb.Cleanup(r.end)
	everyone := r.newClient("all", r.Members())
	r.watch("the official client's watch", func(w *watcher) { w.followAll(r.life, everyone.etcd) })
	for _, member := range r.Members() {
		r.Use(member)
	}
	for range 2 {
		writer, reader := r.newClient("all", r.Members()), r.newClient("all", r.Members())
		r.working.Go(func() { writer.work(r.stopped, (*client).writeNext, r.pause) })
		r.working.Go(func() { reader.work(r.stopped, (*client).readNext, r.pause) })
	}
	for range 3 {
		holder := r.newClient("all", r.Members())
		r.working.Go(func() { holder.holdLeases(r.stopped) })
	}
	if options.Bulk {
		bulk := r.newClient("all", r.Members())
		r.working.Go(func() { bulk.work(r.stopped, (*client).bulkNext, 2*r.pause) })
	}
	r.Pass(1500 * time.Millisecond)
	return r
}

// Pass lets time pass, more of it in a longer run.
func (r *Run) Pass(d time.Duration) { time.Sleep(time.Duration(float64(d) * *longer)) }

// Now is the time since the run began, as operations have it.
func (r *Run) Now() time.Duration { return r.log.now() }

// Use gives a member a writer, a reader and a watch of its own.
func (r *Run) Use(member *harness.Member) {
	writer, reader := r.newClient(member.Name(), []*harness.Member{member}), r.newClient(member.Name(), []*harness.Member{member})
	r.working.Go(func() { writer.work(r.stopped, (*client).writeNext, r.pause) })
	r.working.Go(func() { reader.work(r.stopped, (*client).readNext, r.pause) })
	requireLeader := r.rng.IntN(2) == 0
	name := fmt.Sprintf("the watch of %s", member.Name())
	if requireLeader {
		name += ", with a leader required"
	}
	connection := r.dial(member)
	r.ofMember[member] = r.watch(name, func(w *watcher) { w.followMember(r.life, connection, requireLeader) })
}

func (r *Run) watch(name string, follow func(*watcher)) *watcher {
	w := newWatcher(name, r.log, r.leaseEnded)
	r.watchers = append(r.watchers, w)
	r.following.Go(func() { follow(w) })
	return w
}

// leaseEnded notes when the key of a lease was first seen to be deleted.
func (r *Run) leaseEnded(key string) {
	now := r.log.now()
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	for _, lease := range r.log.leases {
		if lease.Key == key && lease.Ended == 0 {
			lease.Ended = now
		}
	}
}

// dial connects to one member for the length of the run.
func (r *Run) dial(member *harness.Member) *grpc.ClientConn {
	r.Helper()
	connection, err := grpc.NewClient(member.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(), crash.Quick, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		r.Fatal(err)
	}
	r.closing = append(r.closing, connection.Close)
	return connection
}

func (r *Run) newClient(via string, members []*harness.Member) *client {
	r.Helper()
	etcd, err := crash.NewClient(harness.Endpoints(members)...)
	if err != nil {
		r.Fatal(err)
	}
	r.closing = append(r.closing, etcd.Close)
	r.clients++
	return &client{
		number: r.clients, via: via, log: r.log, etcd: etcd, seen: map[string]string{},
		rng: rand.New(rand.NewPCG(r.seed, uint64(r.clients)+1)),
	}
}

// Leader answers the leader; the test ends where there is none.
func (r *Run) Leader() *harness.Member {
	r.Helper()
	leader, err := r.WaitLeader(20 * time.Second)
	if err != nil {
		r.Fatal(err)
	}
	return leader
}

// Must ends the test on an error of its own doing.
func (r *Run) Must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// Fault records damage that a test noticed by itself.
func (r *Run) Fault(kind crash.Kind, format string, arguments ...any) {
	r.report.Add(kind, format, arguments...)
}

// Gone says that a member was removed: its watch need not get more than it has.
func (r *Run) Gone(member *harness.Member) {
	w := r.ofMember[member]
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gone = true
}

// Finish fails the test on whatever is wrong with the verdict.
func (r *Run) Finish() {
	r.Helper()
	if _, report := r.Verdict(); !report.Empty() {
		r.Fatalf("DAMAGE, seed %d\n%s", r.seed, report.String())
	}
}

// Verdict waits until the cluster is whole again, ends the load, collects the
// evidence and answers it, nil where there is none, with all that is wrong. Members
// that do not run are started.
func (r *Run) Verdict() (*Evidence, crash.Report) {
	r.Helper()
	evidence, err := r.Collect()
	if err != nil {
		r.Fault(WrongCourse, "%v", err)
	}
	if evidence != nil {
		began := time.Now()
		r.report.Merge(Judge(evidence))
		r.Logf("%v in all, judged in %v: %s", round(r.Now()), round(time.Since(began)), evidence.Summary())
	}
	return evidence, r.report
}

// end stops everything that Collect may not have come to stop.
func (r *Run) end() {
	r.stop()
	r.unfollow()
	r.working.Wait()
	for _, one := range r.closing {
		_ = one()
	}
	r.following.Wait()
}

// Heal ends all faults that Collect does not want: links, pauses, ended members.
func (r *Run) Heal() error {
	r.Cluster.Heal()
	var failures []error
	for _, member := range r.Members() {
		switch {
		case !member.Running():
			failures = append(failures, member.Restart())
		case !member.Serving():
			failures = append(failures, member.Continue())
		}
	}
	return errors.Join(append(failures, r.WaitHealthy(30*time.Second))...)
}
