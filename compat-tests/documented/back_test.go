package documented

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
)

func TestBackWithASnapshot(t *testing.T) {
	t.Parallel()
	s := newSite(t, "MIGRATE.md", "### With a snapshot", harness.Etcd)
	defer s.allTried()
	stop := s.startOnEach(ofEtched, "10.0.0.")
	client := s.client("10.0.0.")
	s.fill(client)
	was := before{contents: s.contents(client)}
	s.Run(s.Block("snapshot save back.db"))
	stop()
	s.runOnEach(s.Block("etcdutl snapshot restore back.db"))
	s.startOnEach(s.Block("etcd --name m$n"), "10.0.0.")
	s.unchanged(client, s.Block("diff etched.txt -"), was)
}

func TestBackWithTheDirectory(t *testing.T) {
	t.Parallel()
	s := newSite(t, "MIGRATE.md", "### With the directory", harness.Etcd)
	defer s.allTried()
	stop := s.startOnEach(ofEtched, "10.0.0.")
	client := s.client("10.0.0.")
	s.fill(client)
	was := before{members: s.members(client), beside: s.besideKeys(client), history: s.history(client)}
	writers := s.write(client)
	s.Run(s.Block("endpoint status --write-out=json"))
	export := s.Block("etched export")
	s.refusesToExport(export)
	stop()
	was.written = writers.end()
	for member := 1; member <= 3; member++ {
		s.Run(s.on(member, export))
		// The file has what the member had, as stock tools see it.
		output := s.Run(fmt.Sprintf(`n=%d
cp /var/lib/etcd/member/snap/db copied.db
etcdutl hashkv copied.db --rev $(cat etched-rev.txt) | cut -d, -f1,2`, member))
		hashes, err := os.ReadFile(filepath.Join(s.Dir, "etched.txt"))
		if err != nil || strings.Count(string(hashes), ", "+output) != 3 {
			t.Errorf("exported with the hash %sof members with\n%s%v", output, hashes, err)
		}
		s.Run(fmt.Sprintf("n=%d\netched check /var/lib/etched", member))
	}
	s.startOnEach(s.Block("etcd --name m$n"), "10.0.0.")
	s.unchanged(client, s.Block("diff etched.txt -"), was)
}

// refusesToExport calls the tools for a stopped member beside one that serves.
func (s *site) refusesToExport(export string) {
	s.t.Helper()
	commands := []string{s.on(1, export)}
	for _, tool := range []string{"status", "check", "compact", "log"} {
		commands = append(commands, fmt.Sprintf("n=1\netched %s /var/lib/etched", tool))
	}
	for _, command := range commands {
		if output := s.fails(command); !strings.Contains(output, "in use by") {
			s.t.Errorf("beside a member that runs:\n%s%s", command, output)
		}
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "m1", "etcd")); !os.IsNotExist(err) {
		s.t.Errorf("something was exported: %v", err)
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

// A mirror from etched to etcd, with the addresses exchanged.
func TestBackWithAMirror(t *testing.T) {
	t.Parallel()
	s := newSite(t, "MIGRATE.md", "## By a mirror", harness.Etcd)
	s.Replace = strings.NewReplacer("10.0.0.", s.network+"1.", "10.0.1.", s.network+"0.", "/var/lib/", s.Dir+"/m$n/")
	target := strings.NewReplacer("etched --name", "etcd --name").Replace(s.Block("--initial-cluster-token etched-1"))
	mirror(s, ofEtched, target)
}
