package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// checkLimit bounds each wait of a check.
const checkLimit = 20 * time.Second

// checker compares a server that nobody writes to, save for expiring leases,
// with the history.
type checker struct {
	client      *clientv3.Client
	connection  *grpc.ClientConn
	history     *History
	leases      *Leases
	compactions *Compactions
	rng         *rand.Rand
	mu          sync.Mutex
	report      Report
}

func (c *checker) add(kind Kind, format string, arguments ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Add(kind, format, arguments...)
}

// limit bounds a wait: once damage is found, what is missing will not come.
func (c *checker) limit() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.report.Empty() {
		return checkLimit
	}
	return 200 * time.Millisecond
}

// awaitHistory waits until the recording watch has brought a revision.
func (c *checker) awaitHistory(revision int64) bool {
	if Eventually(c.limit(), func() bool { return c.history.Head() >= revision }) {
		return true
	}
	c.add(WatchBroken, "the recording watch stands at revision %d, the server answered %d", c.history.Head(), revision)
	return false
}

// reads compares what readers were answered under load.
func (c *checker) reads(reads []*Read) {
	for _, read := range reads {
		if read.Revision < read.Floor {
			c.add(StaleRead, "%q..%q was read at revision %d, though %d had been answered before it began",
				read.Keys.Key, read.Keys.End, read.Revision, read.Floor)
		}
		if fault := DifferentKVs(read.KVs, c.history.Snapshot(read.Keys, read.Revision)); fault != "" {
			kind := WrongRead
			if mixedTokens(read.KVs) && read.Keys.End != "" {
				kind = HalfTransaction
			}
			c.add(kind, "%q..%q at revision %d: %s", read.Keys.Key, read.Keys.End, read.Revision, fault)
		}
	}
}

// mixedTokens says that keys which are only written whole hold different writes.
func mixedTokens(kvs []*mvccpb.KeyValue) bool {
	for _, kv := range kvs {
		if TokenOf(kv.Value) != TokenOf(kvs[0].Value) || len(kvs) != groupSize {
			return true
		}
	}
	return false
}

// keyspace reads everything at the head and at some older revisions, and one
// revision that is compacted away.
func (c *checker) keyspace(ctx context.Context) {
	compacted, head := c.compactions.Done(), c.history.Head()
	revisions := []int64{0, head}
	for range 3 {
		oldest := max(compacted, firstRevision)
		revisions = append(revisions, oldest+c.rng.Int64N(head-oldest+1))
	}
	for _, revision := range revisions {
		response, err := c.client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(revision))
		if err != nil {
			c.add(WrongRead, "everything at revision %d: %v", revision, err)
			continue
		}
		at := revision
		if at == 0 {
			at = response.Header.Revision
		}
		if !c.awaitHistory(at) {
			continue
		}
		if fault := DifferentKVs(response.Kvs, c.history.Snapshot(Everything, at)); fault != "" {
			c.add(LostWrite, "everything at revision %d (asked for %d): %s", at, revision, fault)
		}
	}
	if compacted > 1 {
		_, err := c.client.Get(ctx, hotKey, clientv3.WithRev(compacted-1))
		if !errors.Is(err, rpctypes.ErrCompacted) {
			c.add(CompactionBroken, "compacted at %d, a read at %d answered %v", compacted, compacted-1, err)
		}
	}
}

// pin is a version of a key that was acknowledged.
type pin struct {
	key      string
	revision int64
}

// pins reads keys at the revisions at which their writes were acknowledged.
func (c *checker) pins(ctx context.Context, pins []pin) {
	const readers = 8
	var running sync.WaitGroup
	for n := range readers {
		running.Go(func() {
			for i := n; i < len(pins); i += readers {
				c.pin(ctx, pins[i])
			}
		})
	}
	running.Wait()
}

func (c *checker) pin(ctx context.Context, pin pin) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	response, err := c.client.Get(ctx, pin.key, clientv3.WithRev(pin.revision))
	if err != nil {
		c.add(LostWrite, "%s at its acknowledged revision %d: %v", pin.key, pin.revision, err)
		return
	}
	var got *mvccpb.KeyValue
	if len(response.Kvs) > 0 {
		got = response.Kvs[0]
	}
	if want := c.history.At(pin.key, pin.revision); !proto.Equal(got, want) {
		c.add(LostWrite, "%s at its acknowledged revision %d: %s, acknowledged was %s", pin.key, pin.revision, describe(got), describe(want))
	}
}

// hash compares HashKV at the head and at an older revision with the history's.
func (c *checker) hash(ctx context.Context) {
	response := c.hashAt(ctx, 0)
	if response == nil {
		return
	}
	if fault := c.compactions.Restored(response.CompactRevision); fault != "" {
		c.add(CompactionBroken, "%s", fault)
	}
	oldest := max(c.compactions.Done(), firstRevision)
	c.hashAt(ctx, oldest+c.rng.Int64N(c.history.Head()-oldest+1))
}

func (c *checker) hashAt(ctx context.Context, revision int64) *pb.HashKVResponse {
	response, err := pb.NewMaintenanceClient(c.connection).HashKV(ctx, &pb.HashKVRequest{Revision: revision})
	if err != nil {
		c.add(WrongHash, "HashKV at revision %d: %v", revision, err)
		return nil
	}
	if !c.awaitHistory(response.HashRevision) {
		return nil
	}
	if want := c.history.HashKV(response.CompactRevision, response.HashRevision); response.Hash != want {
		c.add(WrongHash, "at revision %d, compacted at %d: %08x, the replayed history has %08x",
			response.HashRevision, response.CompactRevision, response.Hash, want)
	}
	return response
}

// heldLeases compares the leases that the server has with those asked for.
func (c *checker) heldLeases(ctx context.Context) {
	client := pb.NewLeaseClient(c.connection)
	before := time.Now()
	response, err := client.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		c.add(LeaseBroken, "list of leases: %v", err)
		return
	}
	held := map[int64]bool{}
	for _, status := range response.Leases {
		held[status.ID] = true
		lease, known := c.leases.Get(status.ID)
		if !known {
			c.add(LeaseBroken, "lease %x was never asked for", status.ID)
		} else if lease.RevokeTried && lease.Revoked == Acknowledged {
			c.add(LeaseBroken, "lease %x is back after its revocation was acknowledged", status.ID)
		}
	}
	var long []Lease
	for _, lease := range c.leases.All() {
		if !held[lease.ID] && !lease.MayHaveEnded(time.Now()) {
			c.add(LeaseBroken, "lease %x of %d s, granted %v ago, is gone", lease.ID, lease.TTL, before.Sub(lease.Before))
		}
		if held[lease.ID] && lease.TTL == longTTL {
			long = append(long, lease)
		}
	}
	c.rng.Shuffle(len(long), func(i, j int) { long[i], long[j] = long[j], long[i] })
	const asked = 20
	for _, lease := range long[:min(asked, len(long))] {
		c.longLease(ctx, client, lease)
	}
}

// longLease compares time and keys of a lease that cannot have expired.
func (c *checker) longLease(ctx context.Context, client pb.LeaseClient, lease Lease) {
	response, err := client.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: lease.ID, Keys: true})
	if err != nil {
		c.add(LeaseBroken, "time to live of lease %x: %v", lease.ID, err)
		return
	}
	// A restart may extend a lease, by up to its full time and an election timeout.
	const slack = 3
	least := longTTL - int64(time.Since(lease.Before)/time.Second) - slack
	if response.GrantedTTL != longTTL || response.TTL < least || response.TTL > longTTL+slack {
		c.add(LeaseBroken, "lease %x of %d s has %d s of %d s left, at least %d were due",
			lease.ID, lease.TTL, response.TTL, response.GrantedTTL, least)
	}
	var keys []string
	for _, key := range response.Keys {
		keys = append(keys, string(key))
	}
	want := c.history.Attached(lease.ID, c.history.Head())
	if !sameSet(keys, want) {
		c.add(LeaseBroken, "lease %x holds %v, the history has %v", lease.ID, keys, want)
	}
}

func sameSet(a, b []string) bool {
	in := map[string]int{}
	for _, word := range a {
		in[word]++
	}
	for _, word := range b {
		in[word]--
	}
	for _, n := range in {
		if n != 0 {
			return false
		}
	}
	return true
}

// pastWatch starts a watch in the past, as someone does who comes back after a
// long time, and compares what it catches up on.
func (c *checker) pastWatch(ctx context.Context) {
	head := c.history.Head()
	oldest := max(c.compactions.Done(), firstRevision) + 1
	if oldest > head {
		return
	}
	from := oldest + c.rng.Int64N(head-oldest+1)
	watcher := NewWatcher("from the past", Everything, from)
	watcher.PrevKV = true
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var following sync.WaitGroup
	following.Go(func() { watcher.Follow(ctx, c.connection) })
	if !watcher.Await(head, c.limit()) {
		c.add(WatchBroken, "a watch from revision %d stands at %d, the head is %d", from, watcher.Next()-1, head)
	}
	cancel()
	following.Wait()
	for _, fault := range watcher.Check(c.history, head) {
		c.add(WatchBroken, "a watch from revision %d: %s", from, fault)
	}
}

// compactedWatch starts a watch below the compacted revision: it must be refused.
func (c *checker) compactedWatch(ctx context.Context) {
	compacted := c.compactions.Done()
	if compacted <= 1 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	for response := range c.client.Watch(ctx, hotKey, clientv3.WithRev(compacted-1)) {
		if response.CompactRevision != compacted {
			c.add(CompactionBroken, "a watch from %d was answered: compact revision %d, error %v; compacted is %d",
				compacted-1, response.CompactRevision, response.Err(), compacted)
		}
		return
	}
	c.add(CompactionBroken, "a watch from %d, compacted at %d, was answered nothing", compacted-1, compacted)
}

// Compactions are the revisions that were asked to be compacted at; they only
// ever grow. Safe for use by several goroutines.
type Compactions struct {
	mu           sync.Mutex
	done         int64
	tried        []int64 // without an answer, above done
	lastAskedFor int64
}

// NewCompactions says that nothing was compacted.
func NewCompactions() *Compactions { return &Compactions{done: -1, lastAskedFor: -1} }

// Done is the latest revision known to be compacted at, -1 if there is none.
func (c *Compactions) Done() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done
}

// LastAskedFor is the highest revision that a compaction was asked for.
func (c *Compactions) LastAskedFor() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastAskedFor
}

// Asking notes a compaction about to be sent; Acknowledged its success.
func (c *Compactions) Asking(revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tried, c.lastAskedFor = append(c.tried, revision), revision
}

// Acknowledged notes the success of a compaction.
func (c *Compactions) Acknowledged(revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done, c.tried = revision, nil
}

// Restored takes the compacted revision that a restarted server tells, and
// answers what is wrong with it, or nothing.
func (c *Compactions) Restored(compacted int64) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	possible := compacted == c.done
	for _, revision := range c.tried {
		possible = possible || compacted == revision
	}
	if !possible {
		return fmt.Sprintf("the server is compacted at %d; acknowledged is %d, unanswered are %v", compacted, c.done, c.tried)
	}
	c.done, c.tried = compacted, nil
	return ""
}
