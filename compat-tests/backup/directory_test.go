package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"etched.dev/compat-tests/harness"
)

// How etcds are started whose directories are taken over: one that saves a
// snapshot now and then, and one whose state stays far behind its log, so that
// most of what was written is in entries.
var habits = []struct {
	name  string
	flags []string
}{
	{"snapshots", []string{"--snapshot-count=40"}},
	{"entries", []string{"--backend-batch-interval=1h", "--backend-batch-limit=1000000"}},
}

// A member continues where an etcd was killed under load: with its ids, and all
// that was acknowledged. Once it has started, etcd's files may go.
func TestEtchedStartsOnADirectoryOfEtcd(t *testing.T) {
	for i, version := range []string{"3.7", "3.6", "3.5"} {
		for j, habit := range habits {
			t.Run(version+" "+habit.name, func(t *testing.T) {
				t.Parallel()
				var flags []string
				if i == j {
					flags = []string{"--wal-dir=" + t.TempDir()}
				}
				server := harness.Start(t, harness.Etcd, harness.Options{Binary: etcdOf(t, version), Flags: flags, EtcdFlags: habit.flags})
				content := newContent(t, server, uint64(10+2*i+j))
				content.changes(80)
				if j == 0 {
					content.compact()
				}
				content.users()
				content.learners()
				content.changes(20)
				want := look(t, content.client, 0)
				acknowledged := loadUntilKilled(t, []*clientv3.Client{content.client}, server)
				untouched := hashOf(t, filepath.Join(server.DataDir(), "member"))
				become(t, harness.Etched, server)
				content.connect()
				want.compare(t, look(t, content.client, want.revision))
				acknowledged.check(t, content.client)
				if hashOf(t, filepath.Join(server.DataDir(), "member")) != untouched {
					t.Error("etcd's files were changed")
				}
				writesAgain(t, content.client, acknowledged)
				if lines, err := server.Log(); err != nil || len(tookOver(lines)) != 1 {
					t.Errorf("%d lines say what was taken over (%v)", len(tookOver(lines)), err)
				}
				if err := os.RemoveAll(filepath.Join(server.DataDir(), "member")); err != nil {
					t.Fatal(err)
				}
				checkStopped(t, server, flags)
				if err := server.Restart(); err != nil {
					t.Fatal(err)
				}
				content.connect()
				want.compare(t, look(t, content.client, want.revision))
			})
		}
	}
}

// tookOver are the lines about an etcd's data; the rest of them says how to go back.
var tookOver = harness.Choose(func(line harness.LogLine) bool {
	return strings.HasPrefix(line.Msg(), "took over the data of an etcd, whose files stay as they are")
})

// checkStopped stops a member and looks at its directory with the tools for that.
func checkStopped(t *testing.T, server *harness.Server, flags []string) {
	t.Helper()
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"check", "status"} {
		if output, err := etched(append([]string{tool, server.DataDir()}, flags...)...); err != nil {
			t.Errorf("etched %s: %v\n%s", tool, err, output)
		}
	}
}

// All members of a cluster are stopped at different entries, and start as another
// kind: on what etcd left, and again on what was exported for an etcd.
func TestAClusterChangesItsKind(t *testing.T) {
	for i, version := range []string{"3.7", "3.6", "3.5"} {
		habit := habits[i%len(habits)]
		t.Run(version+" "+habit.name, func(t *testing.T) {
			t.Parallel()
			cluster := harness.StartCluster(t, harness.Etcd, harness.ClusterOptions{Binary: etcdOf(t, version), EtcdFlags: habit.flags})
			members := cluster.Members()
			var servers []*harness.Server
			for _, member := range members {
				servers = append(servers, member.Server)
			}
			content := newContent(t, servers[0], uint64(20+i))
			content.changes(60)
			want := look(t, content.client, 0)
			for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
				var clients []*clientv3.Client
				for _, server := range servers {
					clients = append(clients, content.dial(server))
				}
				acknowledged := loadUntilKilled(t, clients, servers...)
				for _, server := range servers {
					if kind == harness.Etcd {
						server.Use(exported(t, server.DataDir()))
					}
					if err := server.Become(kind); err != nil {
						t.Fatal(err)
					}
					if err := server.Spawn(); err != nil {
						t.Fatal(err)
					}
				}
				if err := cluster.WaitHealthy(limit); err != nil {
					t.Fatal(err)
				}
				sameHash(t, members)
				for _, server := range servers {
					client := content.dial(server)
					want.compare(t, look(t, client, want.revision))
					acknowledged.check(t, client)
					writesAgain(t, client, acknowledged)
				}
				if kind == harness.Etched {
					sameInAnEtcd(t, content, servers[i])
				}
			}
		})
	}
}

// sameInAnEtcd restores an etcd from a snapshot of a member, and compares their hashes.
func sameInAnEtcd(t *testing.T, content *content, member *harness.Server) {
	t.Helper()
	client := content.dial(member)
	restored := hashOfHead(t, content.dial(restoredEtcd(t, save(t, client))))
	own, err := client.HashKV(harness.Context(t, limit), client.Endpoints()[0], restored.HashRevision)
	if err != nil {
		t.Fatal(err)
	}
	if own.Hash != restored.Hash || own.CompactRevision != restored.CompactRevision {
		t.Errorf("a snapshot has the hash %v, its member %v", restored, own)
	}
}

// A stock etcd continues where a member was killed.
func TestEtcdStartsOnWhatWasExported(t *testing.T) {
	for _, flags := range [][]string{nil, {"--wal-dir=" + filepath.Join(t.TempDir(), "log")}} {
		t.Run(fmt.Sprint(len(flags), " flags"), func(t *testing.T) {
			t.Parallel()
			etcdStartsOnWhatWasExported(t, flags)
		})
	}
}

func etcdStartsOnWhatWasExported(t *testing.T, flags []string) {
	server := harness.Start(t, harness.Etched, harness.Options{EtchedFlags: flags})
	content := newContent(t, server, 30)
	content.changes(80)
	content.compact()
	content.users()
	content.learners()
	content.changes(20)
	want := look(t, content.client, 0)
	acknowledged := loadUntilKilled(t, []*clientv3.Client{content.client}, server)
	if len(flags) == 0 {
		// The member itself continues afterwards as if nothing had been exported.
		exportedDespiteKills(t, server.DataDir())
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
		content.connect()
		want.compare(t, look(t, content.client, want.revision))
		acknowledged.check(t, content.client)
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	server.Use(exportedDespiteKills(t, server.DataDir(), flags...))
	become(t, harness.Etcd, server)
	content.connect()
	want.compare(t, look(t, content.client, want.revision))
	acknowledged.check(t, content.client)
	writesAgain(t, content.client, acknowledged)
	if len(flags) > 0 {
		// Its log is where an etcd has it, and no longer where it was.
		return
	}
	// And back again, on what that etcd left.
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	become(t, harness.Etched, server)
	content.connect()
	want.compare(t, look(t, content.client, want.revision))
	acknowledged.check(t, content.client)
}

// learners changes the members: one that never starts is added, gets other URLs
// and is removed, another one stays.
func (c *content) learners() {
	c.t.Helper()
	ctx := harness.Context(c.t, limit)
	gone, err := c.client.MemberAddAsLearner(ctx, []string{"http://127.0.0.1:7"})
	if err == nil {
		_, err = c.client.MemberUpdate(ctx, gone.Member.ID, []string{"http://127.0.0.1:8"})
	}
	if err == nil {
		_, err = c.client.MemberRemove(ctx, gone.Member.ID)
	}
	if err == nil {
		_, err = c.client.MemberAddAsLearner(ctx, []string{"http://127.0.0.1:9"})
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// What etcd's own tool restored is a directory of an etcd as well.
func TestEtchedStartsOnWhatEtcdutlRestored(t *testing.T) {
	t.Parallel()
	content := newContent(t, harness.Start(t, harness.Etcd, harness.Options{}), 31)
	content.changes(80)
	dir := filepath.Join(t.TempDir(), "restored")
	etcdutl(t, "snapshot", "restore", save(t, content.client), "--data-dir", dir,
		"--initial-cluster", "default="+harness.AdvertisedPeerURL,
		"--initial-advertise-peer-urls", harness.AdvertisedPeerURL)
	compare(t, content, harness.Start(t, harness.Etched, harness.Options{DataDir: dir}))
}

// Killed at any moment of its first start, a member starts anew from etcd's files.
func TestAStartOnADirectoryOfEtcdIsCutOff(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etcd, harness.Options{})
	content := newContent(t, server, 32)
	content.changes(60)
	want := look(t, content.client, 0)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Become(harness.Etched); err != nil {
		t.Fatal(err)
	}
	cuts := 0
	for wait := 5 * time.Millisecond; ; wait += wait / 4 {
		if err := server.Spawn(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait)
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(server.DataDir(), "etched")); err == nil {
			break
		}
		cuts++
	}
	if cuts == 0 {
		t.Error("no start was cut off")
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	content.connect()
	want.compare(t, look(t, content.client, want.revision))
	if left, err := os.ReadDir(server.DataDir()); err != nil || len(left) != 2 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// Both do not run on one directory, and what an etcd writes behind a member's back
// is reported.
func TestAnEtcdBehindAMembersBack(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etcd, harness.Options{})
	newContent(t, server, 34).changes(5)
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		become(t, kind, server)
	}
	saysRefused(t, server.DataDir(), `an etcd runs on it; stop that first`)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	become(t, harness.Etched, server)
	if tail := server.LogTail(100); !strings.Contains(tail, "what an etcd wrote since is not here") {
		t.Errorf("nothing is reported: %s", tail)
	}
}

// What cannot be taken over is refused in one line that names the way that is
// left, and nothing is written.
func TestDirectoriesThatAreRefused(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etcd, harness.Options{Binary: etcdOf(t, "3.5"), EtcdFlags: []string{"--enable-v2", "--snapshot-count=30"}})
	content := newContent(t, server, 33)
	content.changes(40)
	saysRefused(t, server.DataDir(), `an etcd runs on it; stop that first (docs/MIGRATE.md, "On the same directory")`)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	whole := server.DataDir()
	for _, bad := range []struct {
		name, says string
		damage     func(dir string) error
	}{
		{"no log", "its raft log is missing; give the --wal-dir that etcd had, if it had one", func(dir string) error {
			return os.RemoveAll(filepath.Join(dir, "wal"))
		}},
		{"no state", "its state, member/snap/db, is missing", func(dir string) error {
			return os.Remove(filepath.Join(dir, "snap", "db"))
		}},
		{"a damaged log", "0000000000000000-0000000000000000.wal is damaged at byte", func(dir string) error {
			return flip(filepath.Join(dir, "wal", "0000000000000000-0000000000000000.wal"), 600)
		}},
		{"a state cut short", "it ends after", func(dir string) error {
			return os.Truncate(filepath.Join(dir, "snap", "db"), 9000)
		}},
		{"a foreign state", "it is not a bbolt database", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "snap", "db"), bytes.Repeat([]byte("sealed"), 4000), 0o600)
		}},
	} {
		t.Run(bad.name, func(t *testing.T) {
			dir := copied(t, whole)
			if err := bad.damage(filepath.Join(dir, "member")); err != nil {
				t.Fatal(err)
			}
			refused(t, dir, bad.says, `(docs/MIGRATE.md, "By a snapshot")`)
		})
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	old, err := http.PostForm(server.URL()+"/v2/keys/folder", url.Values{"value": {"x"}})
	if err != nil || old.StatusCode != http.StatusCreated {
		t.Fatal(old, err)
	}
	_ = old.Body.Close()
	refusedOld := func() {
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		refused(t, server.DataDir(), "second API", `(docs/MIGRATE.md, "By a snapshot")`)
	}
	// In the log, and in a snapshot.
	refusedOld()
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	content.connect()
	content.changes(60)
	refusedOld()
}

func etcdOf(t *testing.T, version string) string {
	t.Helper()
	path, err := harness.EtcdOf(version)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func become(t *testing.T, kind harness.Kind, server *harness.Server) {
	t.Helper()
	if err := server.Become(kind); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
}

// exported is an etcd's directory of a stopped member.
func exported(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "exported")
	if output, err := etched("export", dir, "--to", to); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return to
}

// exportedDespiteKills kills exports at any moment until one is done before that.
func exportedDespiteKills(t *testing.T, dir string, flags ...string) string {
	t.Helper()
	binary, err := harness.Binary(harness.Etched)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "exported")
	kills := 0
	for wait := 5 * time.Millisecond; ; wait += wait / 4 {
		export := exec.Command(binary, append([]string{"export", dir, "--to", to}, flags...)...)
		if err := export.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait)
		_ = export.Process.Kill()
		err := export.Wait()
		if _, missing := os.Stat(to); missing == nil {
			break
		} else if err == nil {
			t.Fatal("an export made nothing")
		}
		kills++
	}
	if kills == 0 {
		t.Error("no export was killed")
	}
	if left, err := os.ReadDir(filepath.Dir(to)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
	return to
}

// refused is saysRefused, and wants the directory to be left as it was.
func refused(t *testing.T, dir string, says ...string) {
	t.Helper()
	before := hashOf(t, dir)
	saysRefused(t, dir, says...)
	if hashOf(t, dir) != before {
		t.Error("the directory was changed")
	}
}

// saysRefused starts a member on a directory, and wants it to end with one line
// that says all this.
func saysRefused(t *testing.T, dir string, says ...string) {
	t.Helper()
	server := harness.Begin(t, harness.Etched, harness.Options{DataDir: dir})
	select {
	case <-server.Exited():
	case <-time.After(limit):
		t.Fatal("it does not end")
	}
	fatal := 0
	for line := range strings.Lines(server.LogTail(100)) {
		if !strings.Contains(line, `"level":"fatal"`) {
			continue
		}
		fatal++
		line = strings.ReplaceAll(line, `\"`, `"`)
		for _, part := range says {
			if !strings.Contains(line, part) {
				t.Errorf("it does not say %s: %s", part, line)
			}
		}
	}
	if fatal != 1 {
		t.Errorf("%d lines: %s", fatal, server.LogTail(100))
	}
}

func flip(path string, at int64) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	one := make([]byte, 1)
	if _, err := file.ReadAt(one, at); err != nil {
		return err
	}
	one[0] ^= 1
	_, err = file.WriteAt(one, at)
	return err
}

func copied(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if output, err := exec.Command("cp", "-r", "--sparse=always", dir, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return to
}

// hashOf is a hash of the names and contents of all files in a directory.
func hashOf(t *testing.T, dir string) string {
	t.Helper()
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		// An etcd that runs fills it with zeros.
		content = bytes.TrimRight(content, "\x00")
		fmt.Fprintf(sum, "%s %x\n", path, sha256.Sum256(content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// seen is what a client can read of a server, up to a revision.
type seen struct {
	revision int64
	parts    map[string]string
}

// look reads everything; up to the newest revision where none is given.
func look(t *testing.T, client *clientv3.Client, revision int64) *seen {
	t.Helper()
	ctx := harness.Context(t, limit)
	newest, err := client.Get(ctx, "none")
	if err != nil {
		t.Fatal(err)
	}
	if revision == 0 {
		revision = newest.Header.Revision
	}
	hash, err := client.HashKV(ctx, client.Endpoints()[0], revision)
	if err != nil {
		t.Fatal(err)
	}
	members, err := client.MemberList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]string{
		"hash":    fmt.Sprint(hash.Hash, hash.CompactRevision),
		"cluster": fmt.Sprintf("%x", newest.Header.ClusterId),
		"leases":  leases(ctx, t, client),
	}
	for line := range strings.Lines(accounts(ctx, t, client, harness.Etcd)) {
		// What the role of root may do was not shown before etcd 3.6.
		if !strings.HasPrefix(line, "root [") || strings.HasPrefix(line, "root [root]") {
			parts["accounts"] += line
		}
	}
	for _, member := range members.Members {
		parts["members"] += fmt.Sprintf("%x %s %q %v\n", member.ID, member.Name, member.PeerURLs, member.IsLearner)
	}
	first := max(hash.CompactRevision, 1)
	for at := first; at <= revision; at++ {
		parts[fmt.Sprint("revision ", at)] = everything(ctx, t, client, at)
	}
	if first < revision {
		parts["events"] = events(ctx, t, client, first+1, revision)
	}
	return &seen{revision, parts}
}

func (s *seen) compare(t *testing.T, other *seen) {
	t.Helper()
	for name, was := range s.parts {
		if is := other.parts[name]; is != was {
			t.Errorf("%s: %s", name, difference(was, is))
		}
	}
	if len(s.parts) != len(other.parts) {
		t.Errorf("%d parts, were %d", len(other.parts), len(s.parts))
	}
}

// difference is the first line that is not the same.
func difference(was, is string) string {
	a, b := strings.Split(was, "\n"), strings.Split(is, "\n")
	for i := 0; i < min(len(a), len(b)); i++ {
		if a[i] != b[i] {
			return fmt.Sprintf("was %.300s, is %.300s", a[i], b[i])
		}
	}
	return fmt.Sprintf("had %d lines, has %d", len(a), len(b))
}

// acknowledged is the revisions of keys that each were written once.
type acknowledged map[string]int64

// loadUntilKilled writes through all clients until the servers are killed: the
// last one a while before the others, which end at once.
func loadUntilKilled(t *testing.T, clients []*clientv3.Client, servers ...*harness.Server) acknowledged {
	t.Helper()
	all := acknowledged{}
	var mu sync.Mutex
	var writers sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for w, client := range clients {
		for k := range 3 {
			writers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					key := fmt.Sprintf("load %d %d %d %d", time.Now().UnixNano(), w, k, i)
					answer, err := client.Put(ctx, key, key)
					if err != nil {
						// Of a member that is gone, or of a leader that was.
						time.Sleep(time.Millisecond)
						continue
					}
					mu.Lock()
					all[key] = answer.Header.Revision
					mu.Unlock()
				}
			})
		}
	}
	written := func(more int) {
		mu.Lock()
		enough := len(all) + more
		mu.Unlock()
		for {
			mu.Lock()
			now := len(all)
			mu.Unlock()
			if now >= enough || ctx.Err() != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	written(100)
	if last := len(servers) - 1; last > 0 {
		if err := servers[last].Kill(); err != nil {
			t.Fatal(err)
		}
		servers = servers[:last]
		written(100)
	}
	for _, server := range servers {
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	writers.Wait()
	if len(all) < 100 {
		t.Fatalf("only %d writes were acknowledged", len(all))
	}
	return all
}

func (a acknowledged) check(t *testing.T, client *clientv3.Client) {
	t.Helper()
	ctx := harness.Context(t, limit)
	answer, err := client.Get(ctx, "load ", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int64{}
	for _, pair := range answer.Kvs {
		found[string(pair.Key)] = pair.ModRevision
	}
	for key, revision := range a {
		if found[key] != revision {
			t.Fatalf("%s was acknowledged at %d, and is at %d", key, revision, found[key])
		}
	}
}

// writesAgain writes, and watches what was written before and since.
func writesAgain(t *testing.T, client *clientv3.Client, before acknowledged) {
	t.Helper()
	ctx := harness.Context(t, limit)
	put, err := client.Put(ctx, "continues", "x")
	if err != nil {
		t.Fatal(err)
	}
	last := int64(0)
	for _, revision := range before {
		last = max(last, revision)
	}
	if put.Header.Revision <= last {
		t.Errorf("a put has revision %d, and %d was given out before", put.Header.Revision, last)
	}
	seen := map[string]bool{}
	for answer := range client.Watch(ctx, "load ", clientv3.WithRange("loae"), clientv3.WithRev(last), clientv3.WithProgressNotify()) {
		if err := answer.Err(); err != nil {
			t.Fatal(err)
		}
		for _, event := range answer.Events {
			seen[string(event.Kv.Key)] = true
		}
		if len(seen) > 0 {
			break
		}
	}
	if len(seen) == 0 {
		t.Error("a watch from before shows nothing")
	}
}

// sameHash wants all members to have the same, once they are equally far.
func sameHash(t *testing.T, members []*harness.Member) {
	t.Helper()
	ctx := harness.Context(t, limit)
	client, err := clientv3.New(clientv3.Config{Endpoints: harness.Endpoints(members), Logger: zap.NewNop(), DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	newest, err := client.Get(ctx, "none")
	if err != nil {
		t.Fatal(err)
	}
	hashes := map[uint32]bool{}
	for _, endpoint := range client.Endpoints() {
		for {
			hash, err := client.HashKV(ctx, endpoint, newest.Header.Revision)
			if err == nil {
				hashes[hash.Hash] = true
				break
			}
			// It has not applied that much yet.
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if len(hashes) != 1 {
		t.Errorf("the members' hashes differ: %v", hashes)
	}
}
