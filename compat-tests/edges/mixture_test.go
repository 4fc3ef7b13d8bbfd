package edges

import (
	"testing"

	"etched.dev/compat-tests/harness"
)

// The attacks, two at a time, on three members, with kills; then the judge.
func TestMixture(t *testing.T) {
	requireOptIn(t)
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		t.Run(kind.String(), func(t *testing.T) {
			o := runMixture(t, kind)
			if kind == harness.Etched {
				reportFaults(t, o)
			}
		})
	}
}
