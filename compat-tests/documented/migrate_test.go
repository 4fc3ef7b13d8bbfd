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
	was := before{contents: s.contents(client)}
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
	compare := s.Block("diff before.txt -")
	stop = s.startOnEach(start, "10.0.0.")
	s.unchanged(client, compare, was)
	// Undone before clients write, and done again.
	stop()
	stop = s.startOnEach(ofEtcd, "10.0.0.")
	s.unchanged(client, compare, was)
	stop()
	stop = s.startOnEach(start, "10.0.0.")
	// The cluster keeps running, and is then restored over.
	put, err := client.Put(harness.Context(t, limit), "seen", "by clients")
	if err != nil {
		t.Fatal(err)
	}
	stop()
	s.remove("etched")
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
	was := before{contents: s.contents(client), history: s.history(client)}
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
	if last := was.history.last; at != last {
		t.Errorf("the files end at revision %d, the cluster at %d", at, last)
	}
	s.Run("cp " + newest + " stopped.db")
	s.Run(s.Block("etcdutl hashkv"))
	restore := s.Block("etched restore stopped.db")
	start := strings.NewReplacer("--listen-client", "--initial-cluster-token etched-1 --listen-client").Replace(ofEtched)
	s.runOnEach(restore)
	stop = s.startOnEach(start, "10.0.0.")
	s.unchanged(client, s.Block("diff before.txt -"), was)
	// Clients saw more than the file has.
	stop()
	s.remove("etched")
	skips := strings.Replace(restore, "--skip-hash-check", "--skip-hash-check --bump-revision 1000000000 --mark-compacted", 1)
	s.runOnEach(skips)
	s.startOnEach(start, "10.0.0.")
	if after := s.contents(client); !strings.HasPrefix(after, fmt.Sprint(at+1_000_000_000, " ")) {
		t.Errorf("with a bump:\n%s", after)
	}
}

// remove removes a directory of all machines.
func (s *site) remove(name string) {
	s.t.Helper()
	for member := 1; member <= 3; member++ {
		if err := os.RemoveAll(filepath.Join(s.Dir, fmt.Sprintf("m%d", member), name)); err != nil {
			s.t.Fatal(err)
		}
	}
}

func TestOnTheSameDirectory(t *testing.T) {
	t.Parallel()
	s := newSite(t, "MIGRATE.md", "## On the same directory", harness.Etcd36)
	defer s.allTried()
	stop := s.startOnEach(ofEtcd, "10.0.0.")
	client := s.client("10.0.0.")
	s.fill(client)
	was := before{members: s.members(client), beside: s.besideKeys(client), history: s.history(client)}
	writers := s.write(client)
	s.Run(s.Block("endpoint status --write-out=json"))
	compare := s.Block("diff before.txt -")
	start := s.Block("etched --name m$n --data-dir /var/lib/etcd")
	s.refusesInUse(start, writers)
	// The writers continue until nobody serves them any more.
	stop()
	was.written = writers.end()
	stop = s.startOnEach(start, "10.0.0.")
	s.unchanged(client, compare, was)
	if _, err := client.Put(harness.Context(t, limit), "since", "then"); err != nil {
		t.Fatal(err)
	}
	// Both ways back take that along.
	s.backWithASnapshot(client, stop, was)
	s.backWithTheDirectory(client, start, was)
	// The last step does not.
	for member := 1; member <= 3; member++ {
		s.Run("etched check " + filepath.Join(s.Dir, fmt.Sprintf("m%d", member), "etcd"))
	}
	s.remove("etcd/etched")
	s.startOnEach(ofEtcd, "10.0.0.")
	s.unchanged(client, compare, was)
	if found, err := client.Get(harness.Context(t, limit), "since"); err != nil || found.Count > 0 {
		t.Errorf("what was written since is in etcd: %v, %v", found, err)
	}
}

// aside is where the document has an etcd's directory written while etched's is in its place.
var aside = strings.NewReplacer("/var/lib/etcd", "/var/lib/etcd-back")

// backWithASnapshot continues with members that were started on an etcd's directory: a stock etcd is
// made of their snapshot. All are stopped then.
func (s *site) backWithASnapshot(client *clientv3.Client, stop func(), was before) {
	s.t.Helper()
	back := s.continued("### With a snapshot", harness.Etcd)
	defer back.allTried()
	// It is a new cluster.
	was.contents, was.members = s.contents(client), ""
	back.Run(back.Block("snapshot save back.db"))
	stop()
	restore := back.Block("etcdutl snapshot restore back.db")
	if output := back.fails(back.on(1, restore)); !strings.Contains(output, "not empty") {
		s.t.Errorf("restored over a directory that is in use: %s", output)
	}
	restore = aside.Replace(restore)
	if instead := back.Inline("etcd-back"); !strings.Contains(restore, instead) {
		s.t.Errorf("no %s in\n%s", instead, restore)
	}
	back.runOnEach(restore)
	stop = back.startOnEach(aside.Replace(back.Block("etcd --name m$n")), "10.0.0.")
	back.unchanged(client, back.Block("diff etched.txt -"), was)
	stop()
	s.remove("etcd-back")
}

// backWithTheDirectory starts them again: what they export is the etcd that they came from, and what
// was written since.
func (s *site) backWithTheDirectory(client *clientv3.Client, start string, was before) {
	s.t.Helper()
	stop := s.startOnEach(start, "10.0.0.")
	back := s.continued("### With the directory", harness.Etcd)
	was.contents = s.contents(client)
	back.Run(back.Block("endpoint status --write-out=json"))
	stop()
	for member := 1; member <= 3; member++ {
		back.Run(fmt.Sprintf("n=%d\n%s", member, back.Inline("--to /var/lib/etcd-back")))
	}
	stop = back.startOnEach(aside.Replace(back.Block("etcd --name m$n")), "10.0.0.")
	back.unchanged(client, back.Block("diff etched.txt -"), was)
	stop()
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
