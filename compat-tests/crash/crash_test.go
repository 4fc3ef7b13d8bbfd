package crash

import (
	"flag"
	"os"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

var (
	rounds  = flag.Int("crash.rounds", 20, "rounds of load, kill, restart and check")
	seed    = flag.Uint64("crash.seed", 0, "seed of workload and kills; 0 draws one")
	budget  = flag.Duration("crash.budget", 5*time.Minute, "time after which the test fails, done or not")
	useEtcd = flag.Bool("crash.etcd", false, "kill etcd v3.7.3 instead of etched: the test must find nothing wrong with it")
)

func options(t *testing.T) Options {
	t.Helper()
	kind := harness.Etched
	if *useEtcd {
		kind = harness.Etcd
	}
	if _, err := harness.Binary(kind); err != nil {
		t.Fatal(err)
	}
	dir, err := NewDir()
	if err != nil {
		t.Fatal(err)
	}
	drawn := *seed
	if drawn == 0 {
		drawn = uint64(time.Now().UnixNano())
	}
	return Options{Server: kind, Dir: dir, Seed: drawn, Writers: 8, SnapshotCount: 20, KillFirstStart: kind == harness.Etched}
}

// TestKills kills the server again and again and looks for damage.
func TestKills(t *testing.T) {
	opts := options(t)
	deadline := time.Now().Add(*budget)
	run, err := NewRun(opts)
	if err != nil {
		t.Fatal(err)
	}
	var report Report
	for round := range *rounds {
		if time.Now().After(deadline) {
			report.Add(Unavailable, "only %d of %d rounds within %v", round, *rounds, *budget)
			break
		}
		began := time.Now()
		if report, err = run.Round(KillMode(round) % KillModes); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		t.Logf("round %d: %s; checked %v after: %s", round+1, run.LastKill, time.Since(began).Round(time.Millisecond), run.Describe())
		if !report.Empty() {
			break
		}
	}
	if report.Empty() {
		report = run.ShortLeasesEnd()
	}
	if err := run.Close(); err != nil {
		t.Error(err)
	}
	if !report.Empty() {
		t.Fatalf("DAMAGE after %s\nseed %d, %s\nkept: %s\n%s", run.LastKill, opts.Seed, run.Describe(), run.Where(), report.String())
	}
	if run.Kills < *rounds {
		t.Errorf("%d kills, %d were due", run.Kills, *rounds)
	}
	if err := os.RemoveAll(opts.Dir); err != nil {
		t.Error(err)
	}
}
