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

// The directory of an etcd 3.4 is refused in a line that says what it is.
func TestADirectoryOfEtcd34IsRefused(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etcd34, harness.Options{EtcdFlags: []string{"--snapshot-count=30"}})
	newContent(t, server, 35).changes(60)
	saysRefused(t, server.DataDir(), "an etcd runs on it")
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	refused(t, server.DataDir(), "it is of etcd 3.4.0, and those from 3.5 on can be taken over", `(docs/MIGRATE.md, "By a snapshot")`)
}
