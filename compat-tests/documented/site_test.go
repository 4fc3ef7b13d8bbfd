package documented

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"etched.dev/compat-tests/harness"
)

const limit = 2 * time.Minute

// networks gives each test addresses of its own, all on this machine.
var networks atomic.Int32

func newNetwork() string {
	return fmt.Sprintf("127.%d.", 10+(os.Getpid()*7+int(networks.Add(1)))%200)
}

// site is where a section of a document is carried out: machines whose addresses
// and directories are this machine's.
type site struct {
	*harness.Document
	t        *testing.T
	document string
	network  string
}

// allTried reports the blocks of commands that nothing ran.
func (s *site) allTried() {
	s.t.Helper()
	for _, block := range s.Untried() {
		s.t.Errorf("nothing runs this:\n%s", block)
	}
}

// newSite has the etcd of a kind beside etched.
func newSite(t *testing.T, document, section string, etcd harness.Kind) *site {
	t.Helper()
	binaries := map[string]string{}
	for name, find := range map[string]func() (string, error){
		"etched":  func() (string, error) { return harness.Binary(harness.Etched) },
		"etcd":    func() (string, error) { return harness.Binary(etcd) },
		"etcdctl": harness.Etcdctl, "etcdutl": harness.Etcdutl,
	} {
		path, err := find()
		if err != nil {
			t.Fatal(err)
		}
		binaries[name] = path
	}
	network := newNetwork()
	d := harness.ReadDocument(t, "../../docs/"+document, section, binaries)
	d.Replace = strings.NewReplacer("10.0.", network, "/var/lib/", d.Dir+"/m$n/")
	return &site{d, t, document, network}
}

// continued is another section of the document, carried out on the same machines with the etcd of a
// kind.
func (s *site) continued(section string, etcd harness.Kind) *site {
	s.t.Helper()
	next := newSite(s.t, s.document, section, etcd)
	next.Dir, next.network, next.Replace = s.Dir, s.network, s.Replace
	return next
}

// on are commands as they are typed on one of the machines.
func (s *site) on(member int, commands string) string {
	s.t.Helper()
	const first = "n=1   # 2 and 3 on the others\n"
	if !strings.Contains(commands, first) {
		s.t.Fatalf("these are for the first machine alone:\n%s", commands)
	}
	return strings.Replace(commands, first, fmt.Sprintf("n=%d\n", member), 1)
}

// runOnEach carries out commands on all machines, one after the other.
func (s *site) runOnEach(commands string) {
	s.t.Helper()
	for member := 1; member <= 3; member++ {
		s.Run(s.on(member, commands))
	}
}

// fails carries out commands of which the last ends with status 1, and answers what they printed.
func (s *site) fails(commands string) string {
	s.t.Helper()
	output := s.Run("(\n" + strings.TrimSuffix(commands, "\n") + "\n) 2>&1 && exit 1\necho status $?")
	rest, failed := strings.CutSuffix(output, "status 1\n")
	if !failed {
		s.t.Errorf("not refused: %s\n%s", commands, output)
	}
	return rest
}

// startOnEach starts a cluster, and waits until it serves at these addresses.
func (s *site) startOnEach(commands, addresses string) (stop func()) {
	s.t.Helper()
	var stops []func()
	for member := 1; member <= 3; member++ {
		if err := os.MkdirAll(filepath.Join(s.Dir, fmt.Sprintf("m%d", member)), 0o700); err != nil {
			s.t.Fatal(err)
		}
		stops = append(stops, s.Start(s.on(member, commands)))
	}
	client := s.client(addresses)
	ctx := harness.Context(s.t, limit)
	for {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		_, err := client.Get(attempt, "none")
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			s.t.Fatalf("no cluster at %s: %v", addresses, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

func (s *site) client(addresses string) *clientv3.Client {
	s.t.Helper()
	var endpoints []string
	for member := 1; member <= 3; member++ {
		endpoints = append(endpoints, s.Replace.Replace(fmt.Sprintf("%s%d:2379", addresses, member)))
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = client.Close() })
	return client
}

// before is what clients saw of a cluster before it moved. What a way does not take along is left
// empty.
type before struct {
	contents, members, beside string
	history                   history
	written                   map[string]int64
}

// unchanged wants the commands of the document that compare hashes to find them the same, and
// clients to see what they saw before.
func (s *site) unchanged(client *clientv3.Client, compare string, was before) {
	s.t.Helper()
	if output := s.Run(compare); output != "the same\n" {
		s.t.Errorf("compared: %s", output)
	}
	for _, one := range []struct {
		what, was string
		is        func(*clientv3.Client) string
	}{
		{"contents", was.contents, s.contents},
		{"members", was.members, s.members},
		{"leases, users and roles", was.beside, s.besideKeys},
		{"revisions", was.history.lines, func(client *clientv3.Client) string {
			return s.historyUpTo(client, was.history.last).lines
		}},
	} {
		if one.was == "" {
			continue
		}
		if is := one.is(client); is != one.was {
			s.t.Errorf("%s were\n%s\nare\n%s", one.what, one.was, is)
		}
	}
	s.hasAll(client, was.written)
}
