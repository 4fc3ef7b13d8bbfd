package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"etched.dev/compat-tests/harness"
)

// same are the buckets that a restore leaves as they are.
var same = []string{"alarm", "auth", "authRoles", "authUsers", "key", "lease"}

// A state is taken from etched to etcd and back to etched: every file has the same
// pairs in every bucket but those of the members, and etcdutl finds the hash that
// the servers have.
func TestThereAndBack(t *testing.T) {
	t.Parallel()
	first := newContent(t, harness.Start(t, harness.Etched, harness.Options{}), 40)
	first.changes(200)
	first.compact()
	first.learners()
	first.users()
	first.changes(50)
	signedLeases(t, first.client)
	raiseAlarm(t, first.client)
	want, file := hashOfHead(t, first.client), save(t, first.client)
	buckets := bucketsOf(t, file)
	for _, bucket := range same {
		if len(buckets[bucket]) == 0 {
			t.Errorf("the bucket %s is empty", bucket)
		}
	}
	if got := buckets["members_removed"]; len(got) != 1 {
		t.Errorf("removed members: %q", got)
	}
	for _, leg := range []struct {
		name     string
		restored func(*testing.T, string, ...string) *harness.Server
	}{{"etcd", restoredEtcd}, {"etched again", restoredEtched}} {
		// On a copy: the tool writes to the file.
		var offline struct {
			Hash            uint32 `json:"hash"`
			HashRevision    int64  `json:"hashRevision"`
			CompactRevision int64  `json:"compactRevision"`
		}
		if err := json.Unmarshal([]byte(etcdutl(t, "hashkv", copied(t, file), "-w", "json")), &offline); err != nil {
			t.Fatal(err)
		}
		if offline.Hash != want.Hash || offline.HashRevision != want.HashRevision || offline.CompactRevision != want.CompactRevision {
			t.Errorf("etcdutl hashkv of the file for %s: %+v, the server had %v", leg.name, offline, want)
		}
		server := leg.restored(t, file)
		client := first.dial(server)
		if got := hashOfHead(t, client); got.Hash != want.Hash || got.CompactRevision != want.CompactRevision {
			t.Errorf("%s has the hash %v, the first %v", leg.name, got, want)
		}
		compare(t, first, server)
		if _, err := client.Put(harness.Context(t, limit), "refused", "x"); err == nil {
			t.Errorf("%s took a put with an alarm of no space", leg.name)
		}
		file = save(t, client)
		got := bucketsOf(t, file)
		for _, bucket := range same {
			if a, b := fmt.Sprintf("%q", buckets[bucket]), fmt.Sprintf("%q", got[bucket]); a != b {
				t.Errorf("the bucket %s of the first\n%.2000s\nof %s\n%.2000s", bucket, a, leg.name, b)
			}
		}
	}
}

// What the buckets of the cluster and of raft have is what etcd writes there: the version and the
// voters, and the target of a downgrade that is on.
func TestBucketsOfTheCluster(t *testing.T) {
	t.Parallel()
	type saved struct{ cluster, raft string }
	before, within := map[harness.Kind]saved{}, map[harness.Kind]saved{}
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		server := harness.Start(t, kind, harness.Options{})
		read := func() saved {
			buckets := bucketsOf(t, save(t, server.Client(t)))
			var raft [][2]string
			for _, pair := range buckets["meta"] {
				// How far it is differs, and is compared by what the servers answer.
				if pair[0] != "consistent_index" && pair[0] != "term" {
					raft = append(raft, pair)
				}
			}
			return saved{fmt.Sprintf("%q", buckets["cluster"]), fmt.Sprintf("%q", raft)}
		}
		if err := server.WaitClusterVersion(limit); err != nil {
			t.Fatal(err)
		}
		before[kind] = read()
		enabled := &pb.DowngradeRequest{Action: pb.DowngradeRequest_ENABLE, Version: "3.6.0"}
		if _, err := pb.NewMaintenanceClient(server.Client(t).ActiveConnection()).Downgrade(harness.Context(t, limit), enabled); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
			_, body, err := server.HTTPGet("/version")
			if err == nil && strings.Contains(body, `"etcdcluster":"3.6.0"`) && strings.Contains(body, `"storage":"3.6.0"`) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%v is not on the way down: %s, %v", kind, body, err)
			}
		}
		within[kind] = read()
	}
	for _, found := range []map[harness.Kind]saved{before, within} {
		if found[harness.Etched] != found[harness.Etcd] {
			t.Errorf("etched saves\n%+v\netcd\n%+v", found[harness.Etched], found[harness.Etcd])
		}
	}
	if before[harness.Etcd] == within[harness.Etcd] {
		t.Errorf("a downgrade changes nothing: %+v", within[harness.Etcd])
	}
}

// signedLeases grants leases whose ids are below zero, whose bytes come behind those of
// all others.
func signedLeases(t *testing.T, client *clientv3.Client) {
	t.Helper()
	leases := pb.NewLeaseClient(client.ActiveConnection())
	for _, id := range []int64{-5, math.MinInt64, 7} {
		if _, err := leases.LeaseGrant(harness.Context(t, limit), &pb.LeaseGrantRequest{ID: id, TTL: 3600}); err != nil {
			t.Fatal(err)
		}
	}
}

func raiseAlarm(t *testing.T, client *clientv3.Client) {
	t.Helper()
	ctx := harness.Context(t, limit)
	status, err := client.Status(ctx, client.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	_, err = pb.NewMaintenanceClient(client.ActiveConnection()).Alarm(ctx, &pb.AlarmRequest{
		Action: pb.AlarmRequest_ACTIVATE, MemberID: status.Header.MemberId, Alarm: pb.AlarmType_NOSPACE,
	})
	if err != nil {
		t.Fatal(err)
	}
}

func hashOfHead(t *testing.T, client *clientv3.Client) *clientv3.HashKVResponse {
	t.Helper()
	hash, err := client.HashKV(harness.Context(t, limit), client.Endpoints()[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

// bucketsOf are the pairs of a snapshot's file, as bbolt itself reads it.
func bucketsOf(t *testing.T, path string) map[string][][2]string {
	t.Helper()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Without the hash behind it.
	copied := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(copied, whole[:len(whole)-sha256.Size], 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(copied, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	buckets := map[string][][2]string{}
	err = db.View(func(tx *bolt.Tx) error {
		for problem := range tx.Check() {
			t.Errorf("bbolt's check: %v", problem)
		}
		return tx.ForEach(func(name []byte, bucket *bolt.Bucket) error {
			return bucket.ForEach(func(key, value []byte) error {
				buckets[string(name)] = append(buckets[string(name)], [2]string{string(key), string(value)})
				return nil
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return buckets
}

// Each message of a snapshot says what remains and of what version the file is,
// of both servers: the last has the hash and nothing remains.
func TestMessagesOfASnapshot(t *testing.T) {
	t.Parallel()
	versions := map[string]bool{}
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		content := newContent(t, harness.Start(t, kind, harness.Options{}), 41)
		content.changes(100)
		stream, err := pb.NewMaintenanceClient(content.client.ActiveConnection()).Snapshot(harness.Context(t, limit), &pb.SnapshotRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var messages []*pb.SnapshotResponse
		for {
			message, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			messages = append(messages, message)
		}
		var rest uint64
		hash := sha256.New()
		for n := len(messages) - 1; n >= 0; n-- {
			message := messages[n]
			if message.RemainingBytes != rest {
				t.Errorf("%v: message %d of %d says that %d bytes remain, %d do", kind, n, len(messages), message.RemainingBytes, rest)
			}
			if n < len(messages)-1 {
				rest += uint64(len(message.Blob))
			}
			versions[message.Version] = true
		}
		for _, message := range messages[:len(messages)-1] {
			hash.Write(message.Blob)
		}
		if last := messages[len(messages)-1].Blob; !bytes.Equal(last, hash.Sum(nil)) {
			t.Errorf("%v: the last message has %x", kind, last)
		}
	}
	if len(versions) != 1 {
		t.Errorf("versions: %v", versions)
	}
}

// A snapshot that is saved while others write is of one revision: transactions
// are in it whole, and all that was acknowledged before it began.
func TestASnapshotBesideWrites(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	content := newContent(t, server, 42)
	content.changes(200)
	ctx, stop := context.WithCancel(harness.Context(t, limit))
	defer stop()
	written := make(chan int, 1)
	began := make(chan struct{})
	go func() {
		number := 0
		defer func() { written <- number }()
		for ctx.Err() == nil {
			value := strconv.Itoa(number + 1)
			_, err := content.client.Txn(ctx).Then(clientv3.OpPut("one", value), clientv3.OpPut("two", value)).Commit()
			if err != nil {
				return
			}
			if number++; number == 50 {
				close(began)
			}
		}
	}()
	<-began
	for round := range 3 {
		before, err := content.client.Get(ctx, "one")
		if err != nil {
			t.Fatal(err)
		}
		file := save(t, content.client)
		for _, restored := range []func(*testing.T, string, ...string) *harness.Server{restoredEtcd, restoredEtched} {
			other := restored(t, file)
			client := content.dial(other)
			answer, err := client.Txn(ctx).Then(clientv3.OpGet("one"), clientv3.OpGet("two")).Commit()
			if err != nil {
				t.Fatal(err)
			}
			one, two := answer.Responses[0].GetResponseRange().Kvs[0], answer.Responses[1].GetResponseRange().Kvs[0]
			if string(one.Value) != string(two.Value) || one.ModRevision != two.ModRevision {
				t.Errorf("round %d: a part of a transaction: %v %v", round, one, two)
			}
			if one.ModRevision < before.Kvs[0].ModRevision || one.ModRevision != answer.Header.Revision {
				t.Errorf("round %d: revision %d of %d, acknowledged before %d", round, one.ModRevision, answer.Header.Revision, before.Kvs[0].ModRevision)
			}
			if err := other.Stop(); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop()
	if number := <-written; number < 100 {
		t.Errorf("only %d transactions beside three snapshots", number)
	}
}

// The file of a stopped etcd has no hash, and is restored where that is said. That of one which
// runs is refused: pages of it are written while they would be read.
func TestAFileWithoutItsHash(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etcd, harness.Options{})
	content := newContent(t, server, 43)
	content.changes(60)
	want := look(t, content.client, 0)
	file := filepath.Join(server.DataDir(), "member", "snap", "db")
	const running = "it belongs to an etcd that runs: save a snapshot of that, or stop it first\n"
	parent := t.TempDir()
	if output, err := etchedRestore(file, filepath.Join(parent, "restored"), "--skip-hash-check"); err == nil || !strings.HasSuffix(output, running) {
		t.Errorf("restored beside its etcd: %v: %s", err, output)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	if output, err := etched("status", file); err == nil || !strings.HasSuffix(output, running) {
		t.Errorf("its status beside its etcd: %v: %s", err, output)
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if output, err := etched("status", file); err != nil {
		t.Errorf("its status: %v: %s", err, output)
	}
	if output, err := etchedRestore(file, filepath.Join(t.TempDir(), "restored")); err == nil {
		t.Errorf("restored without its hash: %s", output)
	}
	restored := content.dial(restoredEtched(t, file, "--skip-hash-check"))
	want.compare(t, look(t, restored, want.revision))
}

// An etcd that ended within a compaction may have removed all that was written last, an older one
// also the deletion that it compacted to. No revision up to there is given out again.
func TestAFileWithinACompaction(t *testing.T) {
	t.Parallel()
	const kept, compacted = "\x00\x00\x00\x00\x00\x00\x00\x02_\x00\x00\x00\x00\x00\x00\x00\x00", "\x00\x00\x00\x00\x00\x00\x00\x09_\x00\x00\x00\x00\x00\x00\x00\x00"
	pair, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte("key"), Value: []byte("x"), CreateRevision: 2, ModRevision: 2, Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(file, bbolt(t, map[string][2]string{"key": {kept, string(pair)}, "meta": {"scheduledCompactRev", compacted}}), 0o600); err != nil {
		t.Fatal(err)
	}
	client := restoredEtched(t, file, "--skip-hash-check").Client(t)
	ctx := harness.Context(t, limit)
	got, err := client.Get(ctx, "key")
	if err != nil || got.Header.Revision != 9 || got.Count != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	if put, err := client.Put(ctx, "key", "y"); err != nil || put.Header.Revision != 10 {
		t.Errorf("%v, %v", put, err)
	}
	if _, err := client.Get(ctx, "key", clientv3.WithRev(8)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("of before the compaction: %v", err)
	}
}
