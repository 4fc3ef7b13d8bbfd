package cluster

import (
	"context"
	"slices"
	"sync"
	"time"

	"etched.dev/compat-tests/crash"
	"etched.dev/compat-tests/harness"
)

// prober writes keys of its own and reads, again and again through each of some
// members, whether or not the requests before were answered: it notices the first
// moment at which the cluster serves, and whether a member ever serves alone.
type prober struct {
	run     *Run
	stop    context.CancelFunc
	probing sync.WaitGroup
}

const (
	// probeEvery is the time between two probes through a member.
	probeEvery = 50 * time.Millisecond
	// probeLimit is what a probe is given.
	probeLimit = 700 * time.Millisecond
)

// Probe begins to probe through these members, until Done.
func (r *Run) Probe(through ...*harness.Member) *prober {
	ctx, cancel := context.WithCancel(context.Background())
	p := &prober{run: r, stop: cancel}
	for _, member := range through {
		c := r.newClient(member.Name(), []*harness.Member{member})
		p.probing.Go(func() {
			var open sync.WaitGroup
			defer open.Wait()
			for ctx.Err() == nil {
				key := c.key()
				open.Go(c.probe)
				open.Go(func() { c.within(probeLimit, &Operation{Action: Get, Key: key}) })
				time.Sleep(probeEvery)
			}
		})
	}
	return p
}

// probe writes a key that nobody else writes.
func (c *client) probe() {
	token := c.log.token()
	c.within(probeLimit, &Operation{Action: Put, Key: probeSpace + token, Value: token})
}

// Done ends the probing.
func (p *prober) Done() {
	p.stop()
	p.probing.Wait()
}

// AwaitService waits for the first write that was sent after a moment and
// answered, and notes damage where it came later than three election timeouts
// (and the slack) after that moment. Without members, all are probed.
func (r *Run) AwaitService(fault time.Duration, through ...*harness.Member) {
	r.Helper()
	r.AwaitServiceWithin(3*electionTimeout, fault, through...)
}

// AwaitServiceWithin is AwaitService with another limit.
func (r *Run) AwaitServiceWithin(limit, fault time.Duration, through ...*harness.Member) {
	r.Helper()
	if len(through) == 0 {
		through = r.Members()
	}
	p := r.Probe(through...)
	defer p.Done()
	const giveUp = 20 * time.Second
	var first time.Duration
	if !crash.Eventually(giveUp, func() bool {
		first = r.firstWrite(fault)
		return first > 0
	}) {
		r.Fault(SlowToServe, "no write succeeded within %v of the fault", giveUp)
		return
	}
	r.Logf("the first write after the fault is answered after %v", round(first-fault))
	if took := first - fault; took > limit+*slack {
		r.Fault(SlowToServe, "the first write after the fault was answered after %v; due are %v, and %v for a busy machine", round(took), limit, *slack)
	}
}

// firstWrite is when the first write was answered that was sent after a moment.
func (r *Run) firstWrite(after time.Duration) (first time.Duration) {
	for _, o := range r.log.operationsSoFar() {
		if o.Writes() && o.Outcome == crash.Acknowledged && o.Call >= after && (first == 0 || o.Return < first) {
			first = o.Return
		}
	}
	return first
}

// CheckGap notes damage where, between two moments, no operation of this sort
// was answered for longer than three election timeouts (and the slack).
func (r *Run) CheckGap(what string, from, until time.Duration, counts func(*Operation) bool) {
	r.Helper()
	longest, at := longestGap(r.log.operationsSoFar(), from, until, counts)
	r.Logf("%s: the longest pause between %v and %v is %v, at %v", what, round(from), round(until), round(longest), round(at))
	if longest > 3*electionTimeout+*slack {
		r.Fault(SlowToServe, "%s: nothing was answered for %v from %v on; due are %v, and %v for a busy machine",
			what, round(longest), round(at), 3*electionTimeout, *slack)
	}
}

func longestGap(operations []*Operation, from, until time.Duration, counts func(*Operation) bool) (longest, at time.Duration) {
	var answered []time.Duration
	for _, o := range operations {
		if o.Outcome == crash.Acknowledged && o.Return > from && o.Return < until && counts(o) {
			answered = append(answered, o.Return)
		}
	}
	slices.Sort(answered)
	last := from
	for _, next := range append(answered, until) {
		if next-last > longest {
			longest, at = next-last, last
		}
		last = next
	}
	return longest, at
}

// Writes and Reads count for CheckGap.
func Writes(o *Operation) bool { return o.Writes() }

// Reads are the linearizable ones.
func Reads(o *Operation) bool { return !o.Writes() }

// CheckAlone notes damage where a member without a quorum answered a request that
// was sent after a moment, until now; it sends some itself.
func (r *Run) CheckAlone(member *harness.Member, from time.Duration) {
	r.Helper()
	p := r.Probe(member)
	r.Pass(300 * time.Millisecond)
	p.Done()
	until, writes, reads := r.Now(), 0, 0
	for _, o := range r.log.operationsSoFar() {
		if o.Via != member.Name() || o.Call < from || o.Return > until {
			continue
		}
		if o.Writes() {
			writes++
		} else {
			reads++
		}
		if o.Outcome == crash.Acknowledged {
			r.Fault(ServedAlone, "%s", o)
		}
	}
	if writes == 0 || reads == 0 {
		r.Fault(WrongCourse, "%d writes and %d reads went to the isolated member: the test shows nothing", writes, reads)
	}
}
