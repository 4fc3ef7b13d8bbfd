package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"etched.dev/compat-tests/harness"
)

const limit = 60 * time.Second

func TestMain(m *testing.M) { harness.RunWaiting(m) }

// A snapshot of either server, of random content, becomes a server of the other
// kind that serves the same, and whose hash is the same: before and after
// compactions, with users, behind a kill.
func TestEtcdServesASnapshotOfEtched(t *testing.T) {
	roundTrips(t, harness.Etched, restoredEtcd)
}

func TestEtchedServesASnapshotOfEtcd(t *testing.T) {
	roundTrips(t, harness.Etcd, restoredEtched)
}

func TestEtchedServesASnapshotOfEtched(t *testing.T) {
	roundTrips(t, harness.Etched, restoredEtched)
}

func roundTrips(t *testing.T, kind harness.Kind, restored func(*testing.T, string, ...string) *harness.Server) {
	t.Parallel()
	server := harness.Start(t, kind, harness.Options{})
	content := newContent(t, server, 1)
	for round, fill := range []func(){
		func() {},
		func() { content.changes(400) },
		func() { content.compact(); content.changes(100) },
		func() { content.users(); content.changes(20) },
		func() { content.compactToTombstone() },
		func() { restart(t, server); content.connect(); content.changes(20) },
	} {
		fill()
		other := restored(t, save(t, content.client))
		t.Run(fmt.Sprintf("round %d", round), func(t *testing.T) {
			compare(t, content, other)
		})
		if err := other.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// Revisions that were skipped are not given out, here nor by an etcd made of a
// snapshot of it; where they were marked so, what came before is compacted away.
func TestBumpedRevisions(t *testing.T) {
	t.Parallel()
	content := newContent(t, harness.Start(t, harness.Etched, harness.Options{}), 2)
	content.changes(50)
	ctx := harness.Context(t, limit)
	before, err := content.client.Get(ctx, "none")
	if err != nil {
		t.Fatal(err)
	}
	const bump = 1_000_000_000
	head := before.Header.Revision + bump
	path := save(t, content.client)
	nowhere := filepath.Join(t.TempDir(), "restored")
	if output, err := etchedRestore(path, nowhere, "--bump-revision", fmt.Sprint(int64(math.MaxInt64))); err == nil || !strings.Contains(output, "beyond the largest revision") {
		t.Errorf("a bump beyond the largest revision: %v: %s", err, output)
	}
	for _, flags := range [][]string{{"--mark-compacted"}, nil} {
		client := content.dial(restoredEtched(t, path, append(flags, "--bump-revision", fmt.Sprint(bump))...))
		etcd := content.dial(restoredEtcd(t, save(t, client)))
		for _, client := range []*clientv3.Client{client, etcd} {
			put, err := client.Put(ctx, "new", "x")
			if err != nil {
				t.Fatal(err)
			}
			if put.Header.Revision != head+1 {
				t.Errorf("%v: the first put has revision %d, wanted %d", flags, put.Header.Revision, head+1)
			}
			if a, b := everything(ctx, t, content.client, 0), everything(ctx, t, client, head); a != b {
				t.Errorf("%v: before\n%s\nafter\n%s", flags, a, b)
			}
		}
		if flags == nil {
			continue
		}
		for answer := range client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(before.Header.Revision)) {
			if answer.CompactRevision != head {
				t.Errorf("a watch from before was answered %v, compacted to %d, wanted %d", answer.Err(), answer.CompactRevision, head)
			}
			break
		}
	}
}

// What is no whole snapshot is refused in one line, and leaves nothing behind.
func TestBadSnapshots(t *testing.T) {
	t.Parallel()
	content := newContent(t, harness.Start(t, harness.Etched, harness.Options{}), 3)
	content.changes(50)
	whole, err := os.ReadFile(save(t, content.client))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	flipped[len(whole)/2] ^= 1
	foreign := bytes.Repeat([]byte("no database "), 1000)
	for _, bad := range []struct {
		name, says string
		bytes      []byte
		flags      []string
	}{
		{"cut short", "no SHA-256 stands behind its data", whole[:len(whole)-5000], nil},
		{"cut short, not checked", "it ends after", whole[:len(whole)-5000], []string{"--skip-hash-check"}},
		{"a bit flipped", "was changed or damaged", flipped, nil},
		{"foreign", "it is not a bbolt database", foreign, []string{"--skip-hash-check"}},
		{"empty", "it is not a bbolt database", nil, []string{"--skip-hash-check"}},
		{"of another program", "it has no bucket", bbolt(t, map[string][2]string{"jobs": {"1", "x"}}), []string{"--skip-hash-check"}},
		{"a bad record", `bucket "key" has a record that cannot be read`,
			bbolt(t, map[string][2]string{"key": {"\x00\x00\x00\x00\x00\x00\x00\x02_\x00\x00\x00\x00\x00\x00\x00\x00", "\xff"}}), []string{"--skip-hash-check"}},
	} {
		t.Run(bad.name, func(t *testing.T) {
			parent := t.TempDir()
			path := filepath.Join(t.TempDir(), "bad.db")
			if err := os.WriteFile(path, bad.bytes, 0o600); err != nil {
				t.Fatal(err)
			}
			output, err := etchedRestore(path, filepath.Join(parent, "data"), bad.flags...)
			if err == nil || !strings.Contains(output, bad.says) || strings.Count(output, "\n") != 1 {
				t.Errorf("answered %v: %q, wanted %q in one line", err, output, bad.says)
			}
			if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
}

// bbolt is a file with a pair in each bucket.
func bbolt(t *testing.T, buckets map[string][2]string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for name, pair := range buckets {
			bucket, err := tx.CreateBucket([]byte(name))
			if err != nil {
				return err
			}
			if err := bucket.Put([]byte(pair[0]), []byte(pair[1])); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return whole
}

func restart(t *testing.T, server *harness.Server) {
	t.Helper()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
}

// save writes a snapshot as etcdctl does, and checks what stands behind the file.
func save(t *testing.T, client *clientv3.Client) string {
	t.Helper()
	stream, err := client.Snapshot(harness.Context(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := io.ReadAll(stream)
	if err != nil {
		t.Fatal(err)
	}
	file, sum := whole[:len(whole)-sha256.Size], whole[len(whole)-sha256.Size:]
	if want := sha256.Sum256(file); !bytes.Equal(sum, want[:]) {
		t.Fatalf("the file's hash is %x, its end says %x", want, sum)
	}
	path := filepath.Join(t.TempDir(), "snapshot.db")
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func etcdutl(t *testing.T, args ...string) string {
	t.Helper()
	tool, err := harness.Etcdutl()
	if err != nil {
		t.Fatal(err)
	}
	output, err := exec.Command(tool, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("etcdutl %s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return string(output)
}

// restoredEtcd starts an etcd on what etcdutl makes of a snapshot.
func restoredEtcd(t *testing.T, path string, flags ...string) *harness.Server {
	t.Helper()
	etcdutl(t, "snapshot", "status", path)
	dir := filepath.Join(t.TempDir(), "restored")
	etcdutl(t, append([]string{"snapshot", "restore", path, "--data-dir", dir,
		"--initial-cluster", "default=" + harness.AdvertisedPeerURL,
		"--initial-advertise-peer-urls", harness.AdvertisedPeerURL}, flags...)...)
	return harness.Start(t, harness.Etcd, harness.Options{DataDir: dir})
}

// restoredEtched starts an etched on what its own command makes of a snapshot.
func restoredEtched(t *testing.T, path string, flags ...string) *harness.Server {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "restored")
	output, err := etchedRestore(path, dir, flags...)
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return harness.Start(t, harness.Etched, harness.Options{DataDir: dir})
}

func etchedRestore(path, dir string, flags ...string) (string, error) {
	return etched(append([]string{"restore", path, "--data-dir", dir,
		"--initial-cluster", "default=" + harness.AdvertisedPeerURL,
		"--initial-advertise-peer-urls", harness.AdvertisedPeerURL}, flags...)...)
}

// etched runs a command, and answers what it printed.
func etched(args ...string) (string, error) {
	binary, err := harness.Binary(harness.Etched)
	if err != nil {
		return "", err
	}
	output, err := exec.Command(binary, args...).CombinedOutput()
	return string(output), err
}

// compare holds everything that a client can read of both servers against each other.
func compare(t *testing.T, content *content, other *harness.Server) {
	t.Helper()
	ctx := harness.Context(t, limit)
	client := content.dial(other)
	want, err := content.client.HashKV(ctx, content.client.Endpoints()[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := client.HashKV(ctx, client.Endpoints()[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	if want.HashRevision == 0 {
		// Older servers do not say it.
		want.HashRevision = want.Header.Revision
	}
	if got.Hash != want.Hash || got.CompactRevision != want.CompactRevision || got.HashRevision != want.HashRevision {
		t.Errorf("hash %d of (%d, %d], the first had %d of (%d, %d]", got.Hash, got.CompactRevision, got.HashRevision,
			want.Hash, want.CompactRevision, want.HashRevision)
	}
	first := max(want.CompactRevision, 1)
	for revision := first; revision <= want.HashRevision; revision++ {
		a, b := everything(ctx, t, content.client, revision), everything(ctx, t, client, revision)
		if a != b {
			t.Fatalf("at revision %d the first has\n%s\nthe second\n%s", revision, a, b)
		}
	}
	if first < want.HashRevision {
		a, b := events(ctx, t, content.client, first+1, want.HashRevision), events(ctx, t, client, first+1, want.HashRevision)
		if a != b {
			t.Errorf("watches from %d on differ: the first\n%s\nthe second\n%s", first+1, a, b)
		}
	}
	if a, b := leases(ctx, t, content.client), leases(ctx, t, client); a != b {
		t.Errorf("leases of the first\n%s\nof the second\n%s", a, b)
	}
	kind := content.server.Kind()
	if a, b := accounts(ctx, t, content.client, kind), accounts(ctx, t, client, kind); a != b {
		t.Errorf("users and roles of the first\n%s\nof the second\n%s", a, b)
	}
}

func everything(ctx context.Context, t *testing.T, client *clientv3.Client, revision int64) string {
	t.Helper()
	answer, err := client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(revision))
	if err != nil {
		t.Fatalf("at revision %d: %v", revision, err)
	}
	var text strings.Builder
	for _, kv := range answer.Kvs {
		text.WriteString(pair(kv))
	}
	return text.String()
}

func pair(kv *mvccpb.KeyValue) string {
	return fmt.Sprintf("%q created %d changed %d version %d lease %x value %x\n", kv.Key, kv.CreateRevision,
		kv.ModRevision, kv.Version, kv.Lease, sha256.Sum256(kv.Value))
}

func events(ctx context.Context, t *testing.T, client *clientv3.Client, from, to int64) string {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var text strings.Builder
	for answer := range client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(from), clientv3.WithPrevKV()) {
		if err := answer.Err(); err != nil {
			t.Fatal(err)
		}
		for _, event := range answer.Events {
			if event.Kv.ModRevision > to {
				break
			}
			fmt.Fprintf(&text, "%v %s", event.Type, pair(event.Kv))
			if event.PrevKv != nil {
				text.WriteString("  was " + pair(event.PrevKv))
			}
		}
		if n := len(answer.Events); n > 0 && answer.Events[n-1].Kv.ModRevision >= to {
			return text.String()
		}
	}
	t.Fatal("the watch ended")
	return ""
}

func leases(ctx context.Context, t *testing.T, client *clientv3.Client) string {
	t.Helper()
	all, err := client.Leases(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lines := map[clientv3.LeaseID]string{}
	for _, lease := range all.Leases {
		answer, err := client.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
		if err != nil {
			t.Fatal(err)
		}
		// etcd's order is that of a map.
		slices.SortFunc(answer.Keys, bytes.Compare)
		lines[lease.ID] = fmt.Sprintf("granted %d keys %q", answer.GrantedTTL, answer.Keys)
	}
	return fmt.Sprint(lines)
}

func accounts(ctx context.Context, t *testing.T, client *clientv3.Client, kind harness.Kind) string {
	t.Helper()
	var text string
	// It came with 3.5.
	if kind != harness.Etcd34 {
		status, err := client.AuthStatus(ctx)
		if err != nil {
			t.Fatal(err)
		}
		text = fmt.Sprintln(status.Enabled, status.AuthRevision)
	}
	users, err := client.UserList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range users.Users {
		user, err := client.UserGet(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintln(name, user.Roles)
	}
	roles, err := client.RoleList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range roles.Roles {
		role, err := client.RoleGet(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if older := kind != harness.Etcd && kind != harness.Etched; older && name == "root" {
			// It may do anything; only 3.7 says so.
			role.Perm = nil
		}
		text += fmt.Sprintln(name, role.Perm)
	}
	return text
}

// content fills a server with what is hard to write down.
type content struct {
	t        *testing.T
	server   *harness.Server
	client   *clientv3.Client
	random   *rand.Rand
	password string
	keys     []string
	leases   []clientv3.LeaseID
}

func newContent(t *testing.T, server *harness.Server, seed uint64) *content {
	c := &content{t: t, server: server, random: rand.New(rand.NewPCG(seed, 0))}
	for i := range 40 {
		c.keys = append(c.keys, fmt.Sprintf("key%02d", i))
	}
	c.keys = append(c.keys, "\x00", "\x00\x00", "a\x00b", "\xff", "\xff\xff", strings.Repeat("long", 2000))
	c.connect()
	return c
}

func (c *content) connect() { c.client = c.dial(c.server) }

// dial connects as root once there are users.
func (c *content) dial(server *harness.Server) *clientv3.Client {
	c.t.Helper()
	config := clientv3.Config{Endpoints: []string{server.Endpoint()}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()}
	if c.password != "" {
		config.Username, config.Password = "root", c.password
	}
	client, err := clientv3.New(config)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = client.Close() })
	return client
}

func (c *content) value() string {
	switch c.random.IntN(40) {
	case 0:
		return ""
	case 1, 2:
		return strings.Repeat("\x00\xff", 3000)
	default:
		return strings.Repeat("x", c.random.IntN(200))
	}
}

func (c *content) op() clientv3.Op {
	key := c.keys[c.random.IntN(len(c.keys))]
	switch n := c.random.IntN(10); {
	case n < 2:
		return clientv3.OpDelete(key)
	case n < 4 && len(c.leases) > 0:
		return clientv3.OpPut(key, c.value(), clientv3.WithLease(c.leases[c.random.IntN(len(c.leases))]))
	default:
		return clientv3.OpPut(key, c.value())
	}
}

func (c *content) changes(count int) {
	c.t.Helper()
	ctx := harness.Context(c.t, limit)
	for i := range count {
		var err error
		switch {
		case i%40 == 0:
			var lease *clientv3.LeaseGrantResponse
			if lease, err = c.client.Grant(ctx, 1000+int64(i)); err == nil {
				c.leases = append(c.leases, lease.ID)
			}
		case i%50 == 30:
			// For a few revisions only: each of them is read whole later.
			_, err = c.client.Put(ctx, "large", strings.Repeat("v", 1_000_000))
		case i%50 == 32:
			_, err = c.client.Put(ctx, "large", "")
		case i%13 == 0:
			_, err = c.client.Delete(ctx, "key1", clientv3.WithRange("key2"))
		case i%7 == 0:
			// Several sub-revisions; a key may be deleted and made again.
			key := c.keys[c.random.IntN(len(c.keys))]
			_, err = c.client.Txn(ctx).Then(clientv3.OpDelete(key), clientv3.OpPut("other"+key, c.value())).Commit()
		default:
			_, err = c.client.Do(ctx, c.op())
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *content) compact() {
	c.t.Helper()
	ctx := harness.Context(c.t, limit)
	answer, err := c.client.Get(ctx, "none")
	if err == nil {
		_, err = c.client.Compact(ctx, answer.Header.Revision-50, clientv3.WithCompactPhysical())
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// compactToTombstone compacts to a revision that deleted a key: etcd keeps its tombstone.
func (c *content) compactToTombstone() {
	c.t.Helper()
	ctx := harness.Context(c.t, limit)
	_, err := c.client.Put(ctx, "mortal", "x")
	var answer *clientv3.DeleteResponse
	if err == nil {
		answer, err = c.client.Delete(ctx, "mortal")
	}
	if err == nil {
		_, err = c.client.Compact(ctx, answer.Header.Revision, clientv3.WithCompactPhysical())
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// users makes some, and enables authentication.
func (c *content) users() {
	c.t.Helper()
	ctx := harness.Context(c.t, limit)
	var err error
	do := func(_ any, next error) {
		if err == nil {
			err = next
		}
	}
	do(c.client.RoleAdd(ctx, "root"))
	do(c.client.RoleAdd(ctx, "reader"))
	do(c.client.RoleGrantPermission(ctx, "reader", "key", "kez", clientv3.PermissionType(clientv3.PermRead)))
	do(c.client.RoleGrantPermission(ctx, "reader", "\x00", "\x00", clientv3.PermissionType(clientv3.PermReadWrite)))
	do(c.client.UserAdd(ctx, "root", "secret"))
	do(c.client.UserAdd(ctx, "bob", "word"))
	do(c.client.UserAddWithOptions(ctx, "nopass", "", &clientv3.UserAddOptions{NoPassword: true}))
	do(c.client.UserGrantRole(ctx, "root", "root"))
	do(c.client.UserGrantRole(ctx, "bob", "reader"))
	do(c.client.AuthEnable(ctx))
	if err != nil {
		c.t.Fatal(err)
	}
	c.password = "secret"
	c.connect()
}
