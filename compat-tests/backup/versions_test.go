package backup

import (
	"testing"

	"etched.dev/compat-tests/harness"
)

// Snapshots of older releases, which lack buckets and keys that later ones have.
func TestEtchedServesASnapshotOfOlderEtcds(t *testing.T) {
	for _, kind := range []harness.Kind{harness.Etcd34, harness.Etcd35, harness.Etcd36} {
		t.Run(kind.String(), func(t *testing.T) {
			roundTrips(t, kind, restoredEtched)
		})
	}
}
