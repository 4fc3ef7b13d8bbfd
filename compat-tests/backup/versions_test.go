package backup

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
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

// The etcdutl of an older release reads a snapshot of etched, and makes a directory of it on which
// either server starts.
func TestEtcdutl35TakesASnapshotOfEtched(t *testing.T) {
	t.Parallel()
	content := newContent(t, harness.Start(t, harness.Etched, harness.Options{}), 36)
	content.changes(120)
	content.compact()
	content.users()
	content.changes(20)
	signedLeases(t, content.client)
	snapshot := save(t, content.client)
	// What it calls keys are records.
	type status struct {
		Hash                uint32
		Revision, TotalSize int64
	}
	read := func(output string) (read status) {
		t.Helper()
		if err := json.Unmarshal([]byte(output), &read); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		return read
	}
	own, err := etched("status", snapshot, "-w", "json")
	if err != nil {
		t.Fatal(err)
	}
	if stock := read(etcdutl35(t, "snapshot", "status", snapshot, "-w", "json")); stock != read(own) || stock.Hash == 0 {
		t.Errorf("etcdutl 3.5 says %+v, etched %s", stock, own)
	}
	dir := filepath.Join(t.TempDir(), "restored")
	etcdutl35(t, "snapshot", "restore", snapshot, "--data-dir", dir,
		"--initial-cluster", "default="+harness.AdvertisedPeerURL,
		"--initial-advertise-peer-urls", harness.AdvertisedPeerURL)
	for _, kind := range []harness.Kind{harness.Etcd, harness.Etched} {
		t.Run(kind.String(), func(t *testing.T) {
			compare(t, content, harness.Start(t, kind, harness.Options{DataDir: copied(t, dir)}))
		})
	}
}

// What it copies of a stopped etcd's directory is a directory of an etcd without members, and
// starts as that does: as a new cluster of its own.
func TestEtchedStartsOnWhatEtcdutl35Copied(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etcd35, harness.Options{EtcdFlags: []string{"--snapshot-count=40"}})
	content := newContent(t, server, 37)
	content.changes(80)
	content.compact()
	content.users()
	content.changes(20)
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "copied")
	etcdutl35(t, "backup", "--data-dir", server.DataDir(), "--backup-dir", dir)
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	content.connect()
	compare(t, content, harness.Start(t, harness.Etched, harness.Options{DataDir: dir, EtchedFlags: []string{"--force-new-cluster"}}))
}

func etcdutl35(t *testing.T, args ...string) string {
	t.Helper()
	tool, err := harness.Etcdutl35()
	if err != nil {
		t.Fatal(err)
	}
	output, err := exec.Command(tool, args...).Output()
	if err != nil {
		t.Fatalf("etcdutl 3.5 %q: %v\n%s", args, err, output)
	}
	return string(output)
}
