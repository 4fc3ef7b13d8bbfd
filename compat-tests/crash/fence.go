package crash

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// check compares the restarted server with all that is known.
func (r *Run) check() Report {
	ctx, cancel := context.WithTimeout(r.life, 3*checkLimit)
	defer cancel()
	c := &checker{
		client: r.checking, connection: r.raw, history: r.history,
		leases: r.leases, compactions: r.compactions, rng: r.rng,
	}
	r.firstRead(ctx, c)
	fences := r.fences(ctx, c)
	operations, reads, faults := r.log.Take()
	c.report.Merge(faults)
	if fences == nil {
		return c.report
	}
	for _, operation := range operations {
		r.outcomes[operation.Outcome]++
	}
	c.report.Merge(explain(r.history, r.leases, operations, r.explained+1, fences.last))
	r.explained = fences.last
	c.reads(reads)
	for watcher, until := range fences.of {
		for _, fault := range watcher.Check(r.history, until) {
			c.add(WatchBroken, "%s: %s", watcher.Name, fault)
		}
	}
	c.hash(ctx)
	c.keyspace(ctx)
	c.pins(ctx, r.pinsToRead(operations))
	c.heldLeases(ctx)
	c.pastWatch(ctx)
	c.compactedWatch(ctx)
	return c.report
}

// firstRead checks that the server knows at least the highest revision answered.
func (r *Run) firstRead(ctx context.Context, c *checker) {
	floor := max(r.log.Begin(), r.history.Head())
	response, err := r.checking.Get(ctx, hotKey)
	switch {
	case err != nil:
		c.add(Unavailable, "first read: %v", err)
	case response.Header.Revision < floor:
		c.add(RevisionBack, "the server is at revision %d, %d had been answered before the kill", response.Header.Revision, floor)
	}
}

// fenceRevisions are, for each watcher, the revision of an event of its own that
// comes after everything to check.
type fenceRevisions struct {
	of   map[*Watcher]int64
	last int64
}

// fences writes and deletes a key in each watcher's range and waits until all
// watchers have passed that; nil where they cannot be written.
func (r *Run) fences(ctx context.Context, c *checker) *fenceRevisions {
	client := &Client{log: r.log, history: r.history, leases: r.leases, rng: r.rng, client: r.checking}
	fences := &fenceRevisions{of: map[*Watcher]int64{}}
	for _, key := range []string{plainSpace + "~", groupSpace + "~", leaseSpace + "~", hotKey} {
		word := r.log.Token()
		put := &Operation{Token: word, Name: "put", Steps: []Step{{Key: key, Value: word}}}
		drop := &Operation{Token: r.log.Token(), Name: "delete", Steps: []Step{{Delete: Interval{Key: key}}}}
		for _, operation := range []*Operation{put, drop} {
			client.Do(ctx, operation)
			if operation.Outcome != Acknowledged {
				c.add(Unavailable, "a write after the restart: %s", operation)
				return nil
			}
			for _, watcher := range r.watchers {
				if watcher.wantsStep(operation.Steps[0]) {
					fences.of[watcher] = operation.Revision
				}
			}
			fences.last = operation.Revision
		}
	}
	for watcher, until := range fences.of {
		if !watcher.Await(until, c.limit()) {
			c.add(WatchBroken, "%s: stands at revision %d, %d was due", watcher.Name, watcher.Next()-1, until)
		}
	}
	if r.history.Head() < fences.last {
		return nil
	}
	return fences
}

func (w *Watcher) wantsStep(step Step) bool {
	event := &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: &mvccpb.KeyValue{Key: []byte(step.Key)}}
	if step.IsDelete() {
		event = &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(step.Delete.Key)}}
	}
	return w.wants(event)
}

// pinsToRead answers all acknowledged versions of this round and some of earlier
// ones, without those that are compacted away.
func (r *Run) pinsToRead(operations []*Operation) []pin {
	const fromEarlier, kept = 200, 20_000
	var pins []pin
	for _, operation := range operations {
		if operation.Outcome != Acknowledged || !operation.Effective() {
			continue
		}
		for _, step := range operation.Steps {
			key := step.Key
			if step.IsDelete() {
				key = step.Delete.Key
			}
			pins = append(pins, pin{key, operation.Revision})
		}
	}
	earlier := r.pins
	for range min(fromEarlier, len(earlier)) {
		pins = append(pins, earlier[r.rng.IntN(len(earlier))])
	}
	r.pins = append(earlier, pins[:min(len(pins), kept/20)]...)
	readable := pins[:0:0]
	for _, pin := range pins {
		if pin.revision >= r.compactions.Done() {
			readable = append(readable, pin)
		}
	}
	return readable
}

// ShortLeasesEnd waits until every lease that was due to expire has done so.
func (r *Run) ShortLeasesEnd() (report Report) {
	var left []int64
	client := pb.NewLeaseClient(r.raw)
	ended := Eventually(checkLimit, func() bool {
		ctx, cancel := context.WithTimeout(r.life, requestLimit)
		defer cancel()
		left = nil
		response, err := client.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
		if err != nil {
			return false
		}
		for _, status := range response.Leases {
			if lease, known := r.leases.Get(status.ID); known && lease.TTL != longTTL {
				left = append(left, status.ID)
			}
		}
		time.Sleep(50 * time.Millisecond)
		return len(left) == 0
	})
	if !ended {
		report.Add(LeaseBroken, "leases of at most 4 s have not expired: %x", left)
	}
	return report
}
