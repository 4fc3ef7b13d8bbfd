package edges

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"etched.dev/compat-tests/cluster"
	"etched.dev/compat-tests/crash"
	"etched.dev/compat-tests/harness"
)

const (
	// concurrentAttacks is how many attacks run at a time.
	concurrentAttacks = 2
	// killEvery is the time between two kills, restartAfter the time until the restart.
	killEvery, restartAfter = 12 * time.Second, time.Second
	// mixedLimit bounds the time of one attack.
	mixedLimit = 20 * time.Second
	// mixedWrites is how many bytes attacks may write: the judge holds the whole history
	// in memory.
	mixedWrites = 48 * megabyte
	// mixedFills is how many times attacks may write more than a thousand keys, for the
	// same reason.
	mixedFills = 6
	mixedFiles = 1024
	// mixedReads is what 99 of 100 single reads may take on a machine of two cores that
	// three members, their clients and the attackers share, but for those beside a restart,
	// which may last restartEffect.
	mixedReads, restartEffect = 500 * time.Millisecond, 3 * time.Second
)

// mixture is a run of a cluster under concurrent attacks and kills.
type mixture struct {
	*cluster.Run
	total  *attackRun // notes, faults and outcomes of all attacks
	budget atomic.Int64
	fills  atomic.Int64

	mu  sync.Mutex
	rng *rand.Rand
	// restarts are the times of kills, and of when their effect is over.
	restarts [][2]time.Duration
	// underWay are the attacks of this moment.
	underWay []string
	// peaked is the most that the system says was resident of any member.
	peaked int64
}

// runMixture attacks three members for -edges.minutes.
func runMixture(t *testing.T, kind harness.Kind) *Outcome {
	t.Helper()
	lasting := time.Duration(*minutes * float64(time.Minute))
	drawn := *seed
	if drawn == 0 {
		drawn = uint64(time.Now().UnixNano())
	}
	m := &mixture{total: &attackRun{kind: kind}, rng: rand.New(rand.NewPCG(drawn, 3))}
	m.budget.Store(mixedWrites)
	m.fills.Store(mixedFills)
	m.Run = cluster.Start(t, cluster.Options{
		Etcd: kind == harness.Etcd, Beside: attackSpace,
		// So that an hour's history can still be judged.
		Pause: max(12*time.Millisecond, time.Duration(*minutes*float64(1500*time.Microsecond))),
		ClusterOptions: harness.ClusterOptions{
			Flags: manyOps, EtchedFlags: []string{fmt.Sprint("--memory-budget-bytes=", budget)}, FileLimit: mixedFiles,
		},
	})
	m.total.note("%v, seed %d", lasting, drawn)
	o := &Outcome{Attack: "mixture", Server: kind.String(), Health: "none", Alive: true}
	for _, member := range m.Members() {
		resident, err := member.ResidentBytes()
		m.Must(err)
		o.Before = max(o.Before, resident)
	}
	o.Peak = m.attackAndKill(t.Context(), lasting)
	for _, member := range m.Members() {
		m.notePeak(member)
		if resident, err := member.ResidentBytes(); err == nil {
			o.After = max(o.After, resident)
		}
	}
	o.Peak = max(o.Peak, m.peaked)
	evidence, damage := m.Verdict()
	if evidence != nil {
		acknowledged := o.count(evidence)
		m.judgeReads(evidence)
		o.Writes = fmt.Sprintf("all of %d", acknowledged)
		if damage.Has(crash.LostWrite) {
			o.Writes = fmt.Sprintf("not all of %d", acknowledged)
		}
	}
	if !damage.Empty() {
		m.total.fault("the judge found: %s", damage.String())
	}
	if o.Peak > budget+allowance {
		m.total.fault("%s resident", mebibytes(o.Peak))
	}
	if o.After > o.Before+allowance {
		m.total.fault("%s stay", mebibytes(o.After-o.Before))
	}
	o.Seen, o.answers, o.Notes, o.Faults = m.total.answers.String(), m.total.answers.copied(), m.total.notes, m.total.faults
	if err := record(o); err != nil {
		t.Error(err)
	}
	return o
}

// count fills in the latencies of the run's clients and returns the number of their
// acknowledged writes.
func (o *Outcome) count(evidence *cluster.Evidence) (acknowledged int) {
	reads, writes := &figures{}, &figures{}
	for _, operation := range evidence.Operations {
		into := reads
		if operation.Writes() {
			into = writes
		}
		var err error
		if operation.Outcome != crash.Acknowledged {
			err = errors.New(operation.Err)
		} else if operation.Writes() {
			acknowledged++
		}
		into.add(operation.Return-operation.Call, err)
	}
	o.Reads, o.Puts = "none, "+reads.String(), writes.String()
	return acknowledged
}

// judgeReads judges the latencies of single reads that no restart overlaps.
func (m *mixture) judgeReads(evidence *cluster.Evidence) {
	reads := &figures{}
	for _, operation := range evidence.Operations {
		if operation.Action == cluster.Get && operation.Outcome == crash.Acknowledged && !m.besideRestart(operation) {
			reads.add(operation.Return-operation.Call, nil)
		}
	}
	m.total.note("%d single reads outside of restarts: %v ms", len(reads.All), reads)
	if p99 := reads.quantile(0.99); p99 > mixedReads {
		m.total.fault("single reads took %s ms", milliseconds(p99))
	}
}

func (m *mixture) besideRestart(operation *cluster.Operation) bool {
	return slices.ContainsFunc(m.restarts, func(restart [2]time.Duration) bool {
		return operation.Call < restart[1] && operation.Return > restart[0]
	})
}

// attackAndKill returns the largest resident memory of any member.
func (m *mixture) attackAndKill(parent context.Context, lasting time.Duration) int64 {
	ctx, cancel := context.WithTimeout(parent, lasting)
	defer cancel()
	watched, unwatch := context.WithCancel(parent)
	defer unwatch()
	var watching, attacking sync.WaitGroup
	began := time.Now()
	largest, peaks := make([]int64, len(m.Members())), make([]peak, len(m.Members()))
	for i, member := range m.Members() {
		larger := func(resident int64) { peaks[i].note(member.Server, resident, time.Since(began), m.attacks()) }
		watching.Go(func() {
			largest[i] = watchMemory(watched, member.Server, larger, func(why string) { m.tooLarge(member, why) })
		})
	}
	for range concurrentAttacks {
		attacking.Go(func() {
			for ctx.Err() == nil {
				m.runOneAttack(ctx)
			}
		})
	}
	m.kill(ctx)
	attacking.Wait()
	time.Sleep(settleTime)
	unwatch()
	watching.Wait()
	for i := range peaks {
		if said := peaks[i].String(); said != "" {
			m.total.note("%s: %s", m.Members()[i].Name(), said)
		}
	}
	return slices.Max(largest)
}

// tooLarge reports the first time that a member passed the limit.
func (m *mixture) tooLarge(member *harness.Member, why string) {
	const passed = "a member passed 6 GiB"
	if m.total.answers.of(passed) == 0 {
		m.total.fault("%s: %s", member.Name(), why)
	}
	m.total.answers.add(passed)
}

// draw returns a random number below n.
func (m *mixture) draw(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rng.IntN(n)
}

// begin notes that an attack is under way, until what it answers is called.
func (m *mixture) begin(what string) (end func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.underWay = append(m.underWay, what)
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.underWay = slices.DeleteFunc(m.underWay, func(other string) bool { return other == what })
	}
}

// attacks names those that are under way.
func (m *mixture) attacks() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.underWay, ", ")
}

// runOneAttack makes a random attack on a random member. Errors are expected: the member
// may be killed meanwhile.
func (m *mixture) runOneAttack(parent context.Context) {
	var fit []*attack
	for _, a := range attacks() {
		if a.divisor > 0 {
			fit = append(fit, a)
		}
	}
	a, member := fit[m.draw(len(fit))], m.Members()[m.draw(len(m.Members()))]
	ctx, cancel := context.WithTimeout(parent, mixedLimit)
	defer cancel()
	defer m.begin(a.name + " on " + member.Name())()
	const leaseTTL = 10
	s := &attackRun{
		attack: a, kind: m.total.kind, server: member.Server, among: m.Members(), divisor: a.divisor, spare: &m.budget, fills: &m.fills,
		leaseTTL: leaseTTL,
	}
	client, err := crash.NewClient(member.Endpoint())
	if err != nil {
		m.total.answers.add("no client")
		pause(ctx, time.Second)
		return
	}
	defer client.Close()
	err = s.connect(ctx, client)
	if err == nil && a.setup != nil {
		err = a.setup(ctx, s)
	}
	if err == nil {
		err = a.attack(ctx, s)
	}
	s.close()
	outcome := a.name + ": done"
	if err != nil {
		outcome = a.name + ": interrupted"
	}
	m.total.answers.add(outcome)
	for _, fault := range s.faults {
		m.total.fault("%s on %s: %s", a.name, member.Name(), fault)
	}
	pause(ctx, time.Second)
}

// notePeak takes the peak of a member's life: samples miss the moments between them.
func (m *mixture) notePeak(member *harness.Member) {
	if peaked, err := member.PeakResidentBytes(); err == nil {
		m.peaked = max(m.peaked, peaked)
	}
}

// kill kills and restarts members, one at a time, until the context ends. It also reports
// and restarts members that exited for another reason.
func (m *mixture) kill(ctx context.Context) {
	const pollEvery = 200 * time.Millisecond
	next := time.Now().Add(killEvery / 2)
	for ; ctx.Err() == nil; pause(ctx, pollEvery) {
		for _, member := range m.Members() {
			if !member.Running() {
				m.total.fault("%s exited: %s", member.Name(), lastError(member.Server))
				m.Must(member.Restart())
			}
		}
		if time.Now().Before(next) {
			continue
		}
		next = time.Now().Add(killEvery)
		member := m.Members()[m.draw(len(m.Members()))]
		killed := m.Now()
		m.notePeak(member)
		m.Must(member.Kill())
		m.total.answers.add("kills")
		time.Sleep(restartAfter)
		m.Must(member.Restart())
		m.restarts = append(m.restarts, [2]time.Duration{killed, m.Now() + restartEffect})
	}
}
