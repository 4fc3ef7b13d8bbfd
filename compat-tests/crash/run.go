package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"etched.dev/compat-tests/harness"
)

// Options describe one run.
type Options struct {
	// Server is the kind to kill; Dir is a new directory for its data and log.
	Server harness.Kind
	Dir    string
	// Seed decides the workload and the kills; with real time in play the same
	// seed gives the same choices, not the same interleaving.
	Seed uint64
	// Writers is the number of writing clients; there is one of each other sort.
	Writers int
	// SnapshotCount is --snapshot-count: small, so that state is flushed and the
	// log cut many times in each round.
	SnapshotCount int
	// KillFirstStart kills the server while it makes its first files, too. etcd
	// v3.7.3 does not survive that: killed between the making of its log and the
	// first commit, it finds no member in it and never elects itself.
	KillFirstStart bool
	// Between, where set, may put a proxy between the clients and the server: it
	// gets the server's address and answers the one to use.
	Between func(endpoint string) (string, error)
	// WhileDown, where set, is called between a kill and the next start.
	WhileDown func(dataDir string) error
}

// Run is one server's life through many kills.
type Run struct {
	options     Options
	rng         *rand.Rand
	server      *harness.Server
	endpoint    string
	log         *Log
	history     *History
	leases      *Leases
	compactions *Compactions
	recorder    *Watcher
	watchers    []*Watcher // the recorder among them
	standing    *standingWatch

	life      context.Context // ends when the server is killed
	killed    context.CancelFunc
	followers sync.WaitGroup
	clients   []*clientv3.Client
	checking  *clientv3.Client
	raw       *grpc.ClientConn

	explained int64 // every revision up to this one was explained
	outcomes  [Refused + 1]int
	pins      []pin // of earlier rounds
	startTime time.Duration
	lagging   sync.RWMutex // read-held while slow watchers are to be slow
	slow      bool

	// Kills counts the SIGKILLs so far; LastKill tells of the latest.
	Kills    int
	LastKill string
}

// NewRun starts the server and its watches.
func NewRun(options Options) (*Run, error) {
	r := &Run{
		options: options, rng: rand.New(rand.NewPCG(options.Seed, 1)),
		log: &Log{}, history: NewHistory(), leases: NewLeases(), compactions: NewCompactions(),
		explained: firstRevision,
	}
	port, err := harness.FreePort()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	r.server, err = harness.Launch(options.Server, harness.Options{
		ParentDir: options.Dir, DataDir: filepath.Join(options.Dir, "data"), ClientPort: port,
		Flags: []string{
			fmt.Sprintf("--snapshot-count=%d", options.SnapshotCount),
			fmt.Sprintf("--snapshot-catchup-entries=%d", options.SnapshotCount/2),
		},
	})
	if err != nil {
		return nil, err
	}
	r.startTime = time.Since(began)
	if options.KillFirstStart {
		if err := r.killFirstStart(); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	r.endpoint = r.server.Endpoint()
	if options.Between != nil {
		if r.endpoint, err = options.Between(r.endpoint); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	r.makeWatchers()
	if err := r.connect(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// killFirstStart begins again on an empty directory and kills the server while
// it makes its first files, so that later starts find them half made.
func (r *Run) killFirstStart() error {
	if err := r.server.Kill(); err != nil {
		return err
	}
	if err := os.RemoveAll(r.server.DataDir()); err != nil {
		return err
	}
	return r.restart(2)
}

// Close ends the server and all clients; the directory stays.
func (r *Run) Close() error {
	err := r.server.Kill()
	r.disconnect()
	if r.standing != nil {
		r.standing.close()
	}
	return err
}

// Where tells where the data and the log of the server are.
func (r *Run) Where() string {
	return fmt.Sprintf("data %s, log %s", r.server.DataDir(), r.server.LogPath())
}

// Describe tells what the run holds.
func (r *Run) Describe() string {
	return fmt.Sprintf("%d kills, head revision %d, compacted %d, %d leases, writes: %d acknowledged, %d unknown, %d refused",
		r.Kills, r.history.Head(), r.compactions.Done(), len(r.leases.All()),
		r.outcomes[Acknowledged], r.outcomes[Unknown], r.outcomes[Refused])
}

func (r *Run) makeWatchers() {
	everything := func(name string) *Watcher { return NewWatcher(name, Everything, firstRevision+1) }
	r.recorder = everything("recorder")
	r.recorder.PrevKV = true
	r.recorder.OnRevision = r.record
	lagging := everything("slow reader")
	lagging.PrevKV, lagging.Lag, lagging.Lagging = true, 30*time.Millisecond, r.isSlow
	plain := NewWatcher("plain keys without prev_kv", Prefix(plainSpace), firstRevision+1)
	group := NewWatcher("groups with prev_kv", Prefix(groupSpace), firstRevision+1)
	group.PrevKV = true
	hot := NewWatcher("one key", Interval{Key: hotKey}, firstRevision+1)
	hot.PrevKV = true
	leased := NewWatcher("deletions of leased keys", Prefix(leaseSpace), firstRevision+1)
	leased.PrevKV, leased.Filters = true, []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}
	puts := NewWatcher("puts of plain keys", Prefix(plainSpace), firstRevision+1)
	puts.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}
	r.watchers = []*Watcher{r.recorder, lagging, plain, group, hot, leased, puts}
}

// record is called under the recorder's lock.
func (r *Run) record(events []*mvccpb.Event) {
	for _, fault := range r.history.Append(events, time.Now()) {
		r.log.Fault(WatchBroken, "recorder: %s", fault)
	}
}

func (r *Run) isSlow() bool {
	r.lagging.RLock()
	defer r.lagging.RUnlock()
	return r.slow
}

func (r *Run) setSlow(slow bool) {
	r.lagging.Lock()
	defer r.lagging.Unlock()
	r.slow = slow
}

// Quick makes a connection come back fast: a server is meant to be back in moments.
var Quick = grpc.WithConnectParams(grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond},
	MinConnectTimeout: 2 * time.Second,
})

// NewClient is an official client that sends every request once.
func NewClient(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: requestLimit, Logger: zap.NewNop(),
		// One attempt: a retry would hide an unknown outcome.
		MaxUnaryRetries: 1,
		DialOptions:     []grpc.DialOption{Quick, grpc.WithDisableRetry()},
	})
}

// others is the number of clients that are no writers: a reader, a holder of
// leases, a writer of large values.
const others = 3

// connect makes the clients for a server that has come up, and resumes every watch.
func (r *Run) connect() (err error) {
	r.life, r.killed = context.WithCancel(context.Background())
	if r.raw, err = grpc.NewClient(r.endpoint, Quick, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30))); err != nil {
		return err
	}
	if r.checking, err = NewClient(r.endpoint); err != nil {
		return err
	}
	for range r.options.Writers + others {
		client, err := NewClient(r.endpoint)
		if err != nil {
			return err
		}
		r.clients = append(r.clients, client)
	}
	if r.standing == nil {
		if r.standing, err = newStandingWatch(r.endpoint); err != nil {
			return err
		}
		r.watchers = append(r.watchers, r.standing.watcher)
	}
	for _, watcher := range r.watchers {
		if watcher != r.standing.watcher {
			r.followers.Go(func() { watcher.Follow(r.life, r.raw) })
		}
	}
	return nil
}

func (r *Run) disconnect() {
	if r.killed != nil {
		r.killed()
	}
	r.followers.Wait()
	for _, client := range r.clients {
		_ = client.Close()
	}
	r.clients = nil
	if r.checking != nil {
		_ = r.checking.Close()
	}
	if r.raw != nil {
		_ = r.raw.Close()
	}
	r.checking, r.raw = nil, nil
}

// Round puts load on the server, kills it, starts it again and checks. An error
// means that the round could not be run; damage is in the report.
func (r *Run) Round(mode KillMode) (Report, error) {
	r.setSlow(true)
	r.load(mode)
	r.setSlow(false)
	r.disconnect()
	if r.options.WhileDown != nil {
		if err := r.options.WhileDown(r.server.DataDir()); err != nil {
			return Report{}, err
		}
	}
	var report Report
	if err := r.restart(r.drawKills()); err != nil {
		report.Add(Unavailable, "after %s: %v", r.LastKill, err)
		return report, nil
	}
	if err := r.connect(); err != nil {
		return report, err
	}
	return r.check(), nil
}

// load runs all clients until the moment of the kill has come.
func (r *Run) load(mode KillMode) {
	stopping := make(chan struct{})
	var running sync.WaitGroup
	work := func(client *clientv3.Client, request func(*Client, context.Context), pause time.Duration) {
		c := &Client{
			log: r.log, history: r.history, leases: r.leases, client: client,
			rng: rand.New(rand.NewPCG(r.rng.Uint64(), r.rng.Uint64())),
		}
		running.Go(func() {
			for {
				select {
				case <-stopping:
					return
				default:
					request(c, r.life)
					time.Sleep(pause)
				}
			}
		})
	}
	for _, client := range r.clients[:r.options.Writers] {
		work(client, (*Client).Write, 0)
	}
	const leasePause, bulkPause = 5 * time.Millisecond, 15 * time.Millisecond
	work(r.clients[r.options.Writers], (*Client).Read, 0)
	work(r.clients[r.options.Writers+1], (*Client).UseLease, leasePause)
	work(r.clients[r.options.Writers+2], (*Client).WriteBulk, bulkPause)
	r.kill(mode)
	close(stopping)
	running.Wait()
}

// drawKills draws how often a start is to be killed: mostly not at all.
func (r *Run) drawKills() (kills int) {
	for kills < 3 && r.rng.IntN(5) < 2 {
		kills++
	}
	return kills
}

// restart starts the server after killing it that often while it starts.
func (r *Run) restart(kills int) error {
	for range kills {
		if err := r.server.Spawn(); err != nil {
			return err
		}
		time.Sleep(time.Duration(r.rng.Int64N(int64(r.startTime) + 1)))
		if !r.server.Running() {
			return fmt.Errorf("the server ended by itself while starting:\n%s", r.server.LogTail(20))
		}
		if err := r.server.Kill(); err != nil {
			return err
		}
		r.Kills++
		r.LastKill += ", and while starting"
	}
	if err := r.server.Spawn(); err != nil {
		return err
	}
	began := time.Now()
	if err := r.server.WaitReady(checkLimit); err != nil {
		return err
	}
	r.startTime = time.Since(began)
	return nil
}

// NewDir makes a directory for a run below the system's temporary directory.
func NewDir() (string, error) { return os.MkdirTemp("", "crash-") }
