package documented

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

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
		_, err = client.Compact(ctx, 50)
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
	return fmt.Sprint(all.Header.Revision, all.Kvs, leases.Leases, users.Users, roles.Roles)
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
	// The cluster goes on, and is then restored over.
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
	defer s.allTried()
	s.startOnEach(ofEtcd, "10.0.0.")
	source := s.client("10.0.0.")
	s.fill(source)
	start := strings.ReplaceAll(s.Block("--initial-cluster-token etched-1"), "/var/lib/etched", "/var/lib/mirrored")
	stopNew := s.startOnEach(start, "10.0.1.")
	mirrored := s.client("10.0.1.")
	stopMirror := s.Start(s.Block("make-mirror"))
	// Clients write meanwhile, and stop.
	ctx := harness.Context(t, limit)
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

func TestBackWithASnapshot(t *testing.T) {
	t.Parallel()
	s := newSite(t, "MIGRATE.md", "### With a snapshot", harness.Etcd)
	defer s.allTried()
	ofEtched := strings.NewReplacer("\netcd ", "\netched ", "/lib/etcd ", "/lib/etched ").Replace(ofEtcd)
	stop := s.startOnEach(ofEtched, "10.0.0.")
	client := s.client("10.0.0.")
	s.fill(client)
	before := s.contents(client)
	s.Run(s.Block("snapshot save back.db"))
	stop()
	s.runOnEach(s.Block("etcdutl snapshot restore back.db"))
	s.startOnEach(s.Block("etcd --name m$n"), "10.0.0.")
	if output := s.Run(s.Block("diff etched.txt -")); output != "the same\n" {
		t.Errorf("compared: %s", output)
	}
	if after := s.contents(client); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

func TestOnTheSameDirectory(t *testing.T) {
	t.Parallel()
	s := newSite(t, "MIGRATE.md", "## On the same directory", harness.Etcd36)
	defer s.allTried()
	stop := s.startOnEach(ofEtcd, "10.0.0.")
	client := s.client("10.0.0.")
	s.fill(client)
	before, members := s.contents(client), s.members(client)
	s.Run(s.Block("endpoint status --write-out=json"))
	stop()
	stop = s.startOnEach(s.Block("etched --name m$n --data-dir /var/lib/etcd"), "10.0.0.")
	if output := s.Run(s.Block("diff before.txt -")); output != "the same\n" {
		t.Errorf("compared: %s", output)
	}
	if after := s.contents(client); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if after := s.members(client); after != members {
		t.Errorf("members were %s, are %s", members, after)
	}
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
	if after := s.contents(client); after != before {
		t.Errorf("before\n%s\nback in etcd\n%s", before, after)
	}
}

func TestBackWithTheDirectory(t *testing.T) {
	t.Parallel()
	s := newSite(t, "MIGRATE.md", "### With the directory", harness.Etcd)
	defer s.allTried()
	ofEtched := strings.NewReplacer("\netcd ", "\netched ", "/lib/etcd ", "/lib/etched ").Replace(ofEtcd)
	stop := s.startOnEach(ofEtched, "10.0.0.")
	client := s.client("10.0.0.")
	s.fill(client)
	before, members := s.contents(client), s.members(client)
	stop()
	s.runOnEach(s.Block("etched export"))
	s.startOnEach(s.Block("etcd --name m$n"), "10.0.0.")
	if after := s.contents(client); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if after := s.members(client); after != members {
		t.Errorf("members were %s, are %s", members, after)
	}
}

// What the table says of etcdutl and etched's directory.
func TestEtcdutlOnEtchedsDirectory(t *testing.T) {
	t.Parallel()
	s := newSite(t, "MIGRATE.md", "## etcdutl, and what etched has instead", harness.Etcd)
	server := harness.Start(t, harness.Etched, harness.Options{})
	if _, err := server.Client(t).Put(harness.Context(t, limit), "key", "value"); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, commands := range []string{"defrag --data-dir", "migrate --target-version 3.6 --data-dir"} {
		output := s.Run(fmt.Sprintf("etcdutl %s %s 2>&1 && exit 1 || true", commands, server.DataDir()))
		if !strings.Contains(output, "member/snap/db: no such file or directory") {
			t.Errorf("etcdutl %s says %s", commands, output)
		}
	}
	for _, commands := range []string{"status", "check", "compact", "log"} {
		s.Run(fmt.Sprintf("etched %s %s", commands, server.DataDir()))
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
}
