package edges

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

var (
	tablePath = flag.String("edges.table", "", "write the table of outcomes to this file, too")
	report    = flag.Bool("edges.report", false, "only report what breaks a limit")
	long      = flag.Bool("edges.long", false, "10,000 unread watches instead of 3,000")
	minutes   = flag.Float64("edges.minutes", 1, "how long the mixture lasts")
	seed      = flag.Uint64("edges.seed", 0, "seed of the mixture; 0 draws one")
	p99Limit  = flag.Duration("edges.p99", 20*time.Millisecond, "what 99 of 100 single reads beside an attack may take at most")
)

// shortDivisor divides the counts under -short.
const shortDivisor = 10

// runRow makes one attack on one server.
func runRow(t *testing.T, a *attack, kind harness.Kind) *Outcome {
	t.Helper()
	s := &attackRun{attack: a, kind: kind, divisor: 1, leaseTTL: 600}
	if testing.Short() {
		s.divisor = shortDivisor
	}
	metricsURL := s.start(t)
	client, err := s.server.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := s.connect(t.Context(), client); err != nil {
		t.Fatalf("connect: %v", err)
	}
	if a.setup != nil {
		ctx, cancel := context.WithTimeout(t.Context(), setupLimit)
		defer cancel()
		if err := a.setup(ctx, s); err != nil {
			t.Fatalf("setup: %v", err)
		}
	}
	o := &Outcome{Attack: a.name, Server: kind.String()}
	p, err := startProbes(s.server, metricsURL)
	if err != nil {
		t.Fatal(err)
	}
	results := s.measure(t, o, p)
	o.Reads = fmt.Sprintf("%v, %v", &results.Serializable, &results.Linearizable)
	o.Puts, o.Health, o.NewConnections = results.Puts.String(), results.Health.String(), results.NewConnections.String()
	if late := results.Late.quantile(0.99); late > *p99Limit/4 {
		s.note("reads were sent %s ms late, by a busy machine", milliseconds(late))
	}
	o.Writes = fmt.Sprintf("unknown of %d", len(results.Acked))
	// It must start again, with all that it acknowledged.
	if err := errors.Join(s.server.Kill(), s.server.Restart()); err != nil {
		s.fault("it does not start again: %s", lastError(s.server))
	} else {
		found, err := countKept(s.server, results.Acked)
		if o.Writes = fmt.Sprintf("%d of %d", found, len(results.Acked)); err != nil {
			s.fault("reading what was acknowledged: %v", err)
		} else if found < len(results.Acked) {
			s.fault("%d acknowledged writes lost", len(results.Acked)-found)
		}
	}
	o.Seen, o.answers, o.Notes = s.answers.String(), s.answers.copied(), s.notes
	o.Faults, o.compaction = s.faults, s.compaction
	o.judge(results)
	if err := record(o); err != nil {
		t.Error(err)
	}
	return o
}

// start starts the server, or the cluster whose leader is attacked, and returns the URL of
// its metrics port.
func (s *attackRun) start(t *testing.T) string {
	t.Helper()
	etched := append([]string{fmt.Sprint("--memory-budget-bytes=", budget)}, s.attack.flags...)
	var metrics []string
	for range max(s.attack.members, 1) {
		port, err := harness.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		metrics = append(metrics, fmt.Sprintf("http://127.0.0.1:%d", port))
	}
	env := func(member int) []string { return []string{"ETCD_LISTEN_METRICS_URLS=" + metrics[member]} }
	if s.attack.members == 0 {
		s.server = harness.Start(t, s.kind, harness.Options{
			EtchedFlags: etched, EtcdFlags: s.attack.flags, Env: env(0), FileLimit: s.attack.files,
		})
		return metrics[0]
	}
	cluster := harness.StartCluster(t, s.kind, harness.ClusterOptions{
		Members: s.attack.members, EtchedFlags: etched, EtcdFlags: s.attack.flags, Env: env, FileLimit: s.attack.files, Direct: true,
	})
	leader, err := cluster.WaitLeader(probeLimit)
	if err != nil {
		t.Fatal(err)
	}
	s.server, s.among = leader.Server, cluster.Members()
	return metrics[leader.Number()]
}

// measure makes the attack, from the memory before it to the memory after it.
func (s *attackRun) measure(t *testing.T, o *Outcome, p *probes) *probeResults {
	t.Helper()
	const settle, atLeast = time.Second, 4 * time.Second
	time.Sleep(settle)
	before, err := s.server.ResidentBytes()
	if err := errors.Join(err, s.server.ResetPeak()); err != nil {
		t.Fatal(err)
	}
	o.Before = before
	ctx, cancel := context.WithTimeout(t.Context(), attackLimit)
	defer cancel()
	watched, unwatch := context.WithCancel(context.Background())
	largest := make(chan int64, 1)
	go func() {
		noted := map[string]bool{}
		larger := func(int64) {}
		largest <- watchMemory(watched, s.server, larger, func(why string) {
			if !noted[why] {
				s.note("%s", why)
			}
			noted[why] = true
			cancel()
		})
	}()
	began := time.Now()
	if err := s.attack.attack(ctx, s); err != nil {
		s.note("cut short: %v", err)
	}
	pause(ctx, atLeast-time.Since(began))
	o.Alive = s.server.Running()
	// A process that has exited has none; watchMemory has seen it before.
	peak, _ := s.server.PeakResidentBytes()
	s.close()
	results, err := p.stop()
	if err != nil {
		t.Fatalf("the probes: %v", err)
	}
	wait := settleTime
	if testing.Short() {
		wait /= 2
	}
	time.Sleep(wait)
	unwatch()
	o.Peak = max(<-largest, peak)
	if o.Alive = o.Alive && s.server.Running(); !o.Alive {
		s.note("it exited: %s", lastError(s.server))
		return results
	}
	if later, err := s.server.PeakResidentBytes(); err == nil {
		o.Peak = max(o.Peak, later)
	}
	if o.After, err = s.server.ResidentBytes(); err != nil {
		t.Fatal(err)
	}
	return results
}
