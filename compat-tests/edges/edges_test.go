package edges

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"etched.dev/compat-tests/harness"
)

func TestMain(m *testing.M) {
	if addresses := os.Getenv(probeTargetEnv); addresses != "" {
		if err := runProbes(addresses); err != nil {
			fmt.Fprintln(os.Stderr, "probes:", err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	code := m.Run()
	if err := publish(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// requireOptIn skips a test that needs a machine for itself for a long time.
func requireOptIn(t *testing.T) {
	t.Helper()
	if os.Getenv("COMPAT_EDGES") == "" {
		t.Skip("attacks are made with COMPAT_EDGES=1, as scripts/test edges does")
	}
}

// The attacks run one after the other, for the sake of the latencies.
func TestAttacks(t *testing.T) {
	requireOptIn(t)
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			var both [2]*Outcome
			for i, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
				t.Run(kind.String(), func(t *testing.T) {
					both[i] = runRow(t, a, kind)
					if kind == harness.Etched && a.compare == nil {
						reportFaults(t, both[i])
					}
				})
			}
			if etched, etcd := both[0], both[1]; a.compare != nil && etched != nil {
				a.compare(etched, etcd)
				reportFaults(t, etched)
			}
		})
	}
}

// reportFaults fails the test for every broken limit, or logs it with -edges.report.
func reportFaults(t *testing.T, o *Outcome) {
	t.Helper()
	for _, fault := range o.Faults {
		if *report {
			t.Logf("%s: %s", o.Attack, fault)
		} else {
			t.Errorf("%s: %s", o.Attack, fault)
		}
	}
}
