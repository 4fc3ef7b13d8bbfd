package documented

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

// compactedTo is the first revision of which a cluster that was filled has all.
const compactedTo = 50

// fill writes keys with a history, some attached to a lease, and a user.
func (s *site) fill(client *clientv3.Client) {
	s.t.Helper()
	ctx := harness.Context(s.t, limit)
	lease, err := client.Grant(ctx, 3600)
	for i := range 200 {
		if err != nil {
			s.t.Fatal(err)
		}
		switch key := fmt.Sprintf("key%02d", i%60); i % 9 {
		case 0:
			_, err = client.Delete(ctx, key)
		case 1:
			_, err = client.Put(ctx, key, fmt.Sprintf("value %d", i), clientv3.WithLease(lease.ID))
		default:
			_, err = client.Put(ctx, key, strings.Repeat(fmt.Sprintf("value %d ", i), 50))
		}
	}
	if err == nil {
		_, err = client.Compact(ctx, compactedTo)
	}
	if err == nil {
		_, err = client.RoleAdd(ctx, "reader")
	}
	if err == nil {
		_, err = client.UserAdd(ctx, "bob", "secret")
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// contents is what a client can read of a cluster, beside ids.
func (s *site) contents(client *clientv3.Client) string {
	s.t.Helper()
	ctx := harness.Context(s.t, limit)
	all, err := client.Get(ctx, "\x00", clientv3.WithFromKey())
	if err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprint(all.Header.Revision, all.Kvs, s.besideKeys(client))
}

// besideKeys are leases, users and roles.
func (s *site) besideKeys(client *clientv3.Client) string {
	s.t.Helper()
	ctx := harness.Context(s.t, limit)
	leases, err := client.Leases(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	users, err := client.UserList(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	roles, err := client.RoleList(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprint(leases.Leases, users.Users, roles.Roles)
}

// history is all that a filled cluster has at every revision that is kept, up to one.
type history struct {
	last  int64
	lines string
}

// history reads it up to the newest revision.
func (s *site) history(client *clientv3.Client) history {
	s.t.Helper()
	newest, err := client.Get(harness.Context(s.t, limit), "none")
	if err != nil {
		s.t.Fatal(err)
	}
	if newest.Header.Revision < compactedTo+100 {
		s.t.Fatalf("revision %d is the newest", newest.Header.Revision)
	}
	return s.historyUpTo(client, newest.Header.Revision)
}

func (s *site) historyUpTo(client *clientv3.Client, last int64) history {
	s.t.Helper()
	ctx := harness.Context(s.t, limit)
	var lines strings.Builder
	for revision := int64(compactedTo); revision <= last; revision++ {
		all, err := client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(revision))
		if err != nil {
			s.t.Fatalf("at revision %d: %v", revision, err)
		}
		fmt.Fprintf(&lines, "%d %d %x\n", revision, all.Count, sha256.Sum256([]byte(fmt.Sprint(all.Kvs))))
	}
	return history{last, lines.String()}
}

// sameHistory wants one to be what it was.
func (s *site) sameHistory(client *clientv3.Client, before history) {
	s.t.Helper()
	if after := s.historyUpTo(client, before.last); after != before {
		s.t.Errorf("revisions were\n%s\nare\n%s", before.lines, after.lines)
	}
}

// members are who is in the cluster.
func (s *site) members(client *clientv3.Client) string {
	s.t.Helper()
	list, err := client.MemberList(harness.Context(s.t, limit))
	if err != nil {
		s.t.Fatal(err)
	}
	text := fmt.Sprintf("cluster %x", list.Header.ClusterId)
	for _, member := range list.Members {
		text += fmt.Sprintf(" %x %s %v", member.ID, member.Name, member.PeerURLs)
	}
	return text
}

// ofEtcd starts the cluster that is to be moved.
const ofEtcd = `n=1   # 2 and 3 on the others
etcd --name m$n --data-dir /var/lib/etcd \
  --listen-client-urls http://10.0.0.$n:2379 --advertise-client-urls http://10.0.0.$n:2379 \
  --listen-peer-urls http://10.0.0.$n:2380 --initial-advertise-peer-urls http://10.0.0.$n:2380 \
  --initial-cluster m1=http://10.0.0.1:2380,m2=http://10.0.0.2:2380,m3=http://10.0.0.3:2380
`

// ofEtched is the same of etched.
var ofEtched = strings.NewReplacer("\netcd ", "\netched ", "/lib/etcd ", "/lib/etched ").Replace(ofEtcd)

func TestBySnapshot(t *testing.T) {
	t.Parallel()
	s := newSite(t, "MIGRATE.md", "## By a snapshot", harness.Etcd36)
	defer s.allTried()
	stop := s.startOnEach(ofEtcd, "10.0.0.")
	client := s.client("10.0.0.")
	s.fill(client)
	before := s.contents(client)
	// Steps 2 to 6.
	output := s.Run(s.Block("snapshot save backup.db"))
	if strings.Count(output, "REVISION") != 1 {
		t.Errorf("no table:\n%s", output)
	}
	hashes, err := os.ReadFile(filepath.Join(s.Dir, "before.txt"))
	if err != nil || strings.Count(string(hashes), "\n") != 3 {
		t.Fatalf("three hashes:\n%s\n%v", hashes, err)
	}
	stop()
	s.runOnEach(s.Block("--initial-cluster-token etched-1 --initial-advertise"))
	start := s.Block("etched --name m$n --data-dir")
	stop = s.startOnEach(start, "10.0.0.")
	if output := s.Run(s.Block("diff before.txt -")); output != "the same\n" {
		t.Errorf("compared: %s", output)
	}
	if after := s.contents(client); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	// The cluster keeps running, and is then restored over.
	put, err := client.Put(harness.Context(t, limit), "seen", "by clients")
	if err != nil {
		t.Fatal(err)
	}
	stop()
	for member := 1; member <= 3; member++ {
		if err := os.RemoveAll(filepath.Join(s.Dir, fmt.Sprintf("m%d", member), "etched")); err != nil {
			t.Fatal(err)
		}
	}
	s.runOnEach(s.Block("--bump-revision 1000000000"))
	s.startOnEach(strings.ReplaceAll(start, "etched-1", "etched-2"), "10.0.0.")
	answer, ended := <-client.Watch(harness.Context(t, limit), "seen", clientv3.WithRev(put.Header.Revision))
	if !ended || answer.CompactRevision < 1_000_000_000 {
		t.Errorf("a watch from revision %d on is answered %v", put.Header.Revision, answer)
	}
	if after := s.contents(client); !strings.HasPrefix(after, "1000000") || strings.Contains(after, "seen") {
		t.Errorf("after it was restored over:\n%s", after)
	}
}

func TestByMirror(t *testing.T) {
	t.Parallel()
	s := newSite(t, "MIGRATE.md", "## By a mirror", harness.Etcd36)
	mirror(s, ofEtcd, s.Block("--initial-cluster-token etched-1"))
}

// mirror has one cluster follow another until the clients change over.
func mirror(s *site, startOld, startNew string) {
	defer s.allTried()
	t := s.t
	s.startOnEach(startOld, "10.0.0.")
	source := s.client("10.0.0.")
	s.fill(source)
	stopNew := s.startOnEach(strings.ReplaceAll(startNew, "/var/lib/etched", "/var/lib/mirrored"), "10.0.1.")
	mirrored := s.client("10.0.1.")
	ctx := harness.Context(t, limit)
	// The first one ends early, and what it left is removed: a key is deleted meanwhile.
	if _, err := source.Put(ctx, "gone", "between two mirrors"); err != nil {
		t.Fatal(err)
	}
	stopMirror := s.Start(s.Block("make-mirror"))
	for {
		gone, err := mirrored.Get(ctx, "gone")
		if err != nil {
			t.Fatal(err)
		}
		if gone.Count > 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	stopMirror()
	if _, err := source.Delete(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	s.Run(s.Block(`del "" --prefix`))
	stopMirror = s.Start(s.Block("make-mirror"))
	// Clients write meanwhile, and stop.
	for i := range 300 {
		var err error
		if key := fmt.Sprintf("busy%02d", i%40); i%5 == 0 {
			_, err = source.Delete(ctx, key)
		} else {
			_, err = source.Put(ctx, key, fmt.Sprint(i))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if output := s.Run(s.Block("--count-only")); strings.Count(output, "Count") != 2 {
		t.Errorf("numbers of keys:\n%s", output)
	}
	s.Run(s.Block("put migration/last"))
	if output := s.Run(s.Block("cmp <(")); output != "the same\n" {
		t.Errorf("compared: %s", output)
	}
	stopMirror()
	s.Run(s.Block("del migration/last"))
	if all, err := mirrored.Get(ctx, "", clientv3.WithPrefix()); err != nil || all.Count < 50 {
		t.Errorf("%v, %v", all, err)
	}
	stopNew()
}

func TestByTheFileOfAStoppedEtcd(t *testing.T) {
	t.Parallel()
	s := newSite(t, "MIGRATE.md", "## By the file of a stopped etcd", harness.Etcd36)
	defer s.allTried()
	stop := s.startOnEach(ofEtcd, "10.0.0.")
	client := s.client("10.0.0.")
	s.fill(client)
	contents := s.contents(client)
	before := s.history(client)
	look := s.Block("cp /var/lib/etcd/member/snap/db")
	if output := s.fails(s.on(1, look)); !strings.Contains(output, "belongs to an etcd that runs") {
		t.Errorf("the file of an etcd that runs: %s", output)
	}
	stop()
	newest, at := "", int64(0)
	for member := 1; member <= 3; member++ {
		output := s.Run(s.on(member, look))
		file := fmt.Sprintf("stopped-m%d.db", member)
		if stock := s.Run("etcdutl snapshot status --write-out=fields " + file); stock != output {
			t.Errorf("etcdutl says of %s\n%setched\n%s", file, stock, output)
		}
		var status struct{ Revision int64 }
		if err := json.Unmarshal([]byte(s.Run("etched status --write-out=json "+file)), &status); err != nil {
			t.Fatal(err)
		}
		if newest == "" || status.Revision > at {
			newest, at = file, status.Revision
		}
	}
	if at != before.last {
		t.Errorf("the files end at revision %d, the cluster at %d", at, before.last)
	}
	s.Run("cp " + newest + " stopped.db")
	s.Run(s.Block("etcdutl hashkv"))
	s.runOnEach(s.Block("etched restore stopped.db"))
	s.startOnEach(strings.NewReplacer("--listen-client", "--initial-cluster-token etched-1 --listen-client").Replace(ofEtched), "10.0.0.")
	if output := s.Run(s.Block("diff before.txt -")); output != "the same\n" {
		t.Errorf("compared: %s", output)
	}
	s.sameHistory(client, before)
	if after := s.contents(client); after != contents {
		t.Errorf("before\n%s\nafter\n%s", contents, after)
	}
}

func TestOnTheSameDirectory(t *testing.T) {
	t.Parallel()
	s := newSite(t, "MIGRATE.md", "## On the same directory", harness.Etcd36)
	defer s.allTried()
	stop := s.startOnEach(ofEtcd, "10.0.0.")
	client := s.client("10.0.0.")
	s.fill(client)
	members, beside := s.members(client), s.besideKeys(client)
	before := s.history(client)
	writers := s.write(client)
	s.Run(s.Block("endpoint status --write-out=json"))
	hashes := s.Block("diff before.txt -")
	start := s.Block("etched --name m$n --data-dir /var/lib/etcd")
	s.refusesInUse(start, writers)
	// The writers continue until nobody serves them any more.
	stop()
	written := writers.end()
	compare := func(of string) {
		t.Helper()
		if output := s.Run(hashes); output != "the same\n" {
			t.Errorf("%s: compared: %s", of, output)
		}
		s.sameHistory(client, before)
		if after := s.members(client); after != members {
			t.Errorf("%s: members were %s, are %s", of, members, after)
		}
		if after := s.besideKeys(client); after != beside {
			t.Errorf("%s: leases, users and roles were %s, are %s", of, beside, after)
		}
		s.hasAll(client, written)
	}
	stop = s.startOnEach(start, "10.0.0.")
	compare("etched")
	if _, err := client.Put(harness.Context(t, limit), "since", "then"); err != nil {
		t.Fatal(err)
	}
	stop()
	for member := 1; member <= 3; member++ {
		dir := filepath.Join(s.Dir, fmt.Sprintf("m%d", member), "etcd")
		s.Run("etched check " + dir)
		// The last step.
		if err := os.RemoveAll(filepath.Join(dir, "etched")); err != nil {
			t.Fatal(err)
		}
	}
	s.startOnEach(ofEtcd, "10.0.0.")
	compare("back in etcd")
	if found, err := client.Get(harness.Context(t, limit), "since"); err != nil || found.Count > 0 {
		t.Errorf("what was written since is in etcd: %v, %v", found, err)
	}
}

// refusesInUse starts members beside an etcd that serves, on its directories: with its addresses,
// and with others.
func (s *site) refusesInUse(start string, writers *writers) {
	s.t.Helper()
	already := writers.count()
	for member := 1; member <= 3; member++ {
		command := strings.Replace(s.on(member, start), "etched --name", "timeout 60 etched --name", 1)
		elsewhere := strings.NewReplacer("--listen-client-urls http://10.0.0.$n:2379", "--listen-client-urls http://10.0.0.$n:3379",
			"--listen-peer-urls http://10.0.0.$n:2380", "--listen-peer-urls http://10.0.0.$n:3380").Replace(command)
		for says, command := range map[string]string{"address already in use": command, "an etcd runs on it; stop that first": elsewhere} {
			if output := s.fails(command); !strings.Contains(strings.ToLower(output), says) {
				s.t.Errorf("beside an etcd that runs, not %q:\n%s", says, output)
			}
		}
		dir := filepath.Join(s.Dir, fmt.Sprintf("m%d", member), "etcd")
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			s.t.Errorf("beside etcd's files: %v, %v", left, err)
		}
	}
	if more := writers.count() - already; more == 0 {
		s.t.Error("nothing was written meanwhile")
	}
}
