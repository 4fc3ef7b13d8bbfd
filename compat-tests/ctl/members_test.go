package ctl

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// newMembersBench runs command lines against three members of each kind; those
// of number 0 lead and are asked unless a line says otherwise. The members'
// addresses are ENDPOINT1 and so on in a line and in outputs.
func newMembersBench(t *testing.T) *bench {
	t.Helper()
	etcdctl, err := harness.Etcdctl()
	if err != nil {
		t.Fatal(err)
	}
	// With --cluster, etcdctl calls the URLs that members advertise: their own.
	clusters := harness.StartClusters(t, harness.ClusterOptions{AdvertiseClientURL: func(int) string { return "" }})
	b := &bench{t: t, etcdctl: etcdctl}
	for i, c := range []*harness.Cluster{clusters.Etched, clusters.Etcd} {
		b.sides[i] = &side{server: c.Members()[0].Server, members: c.Members()}
	}
	b.waitClusterVersion()
	return b
}

// interrupt ends a member on both sides and waits until the others have noticed:
// a cluster takes no voter before all have been connected for five seconds.
func (b *bench) interrupt(number int, id string) {
	b.t.Helper()
	for _, s := range b.sides {
		if err := s.members[number].Kill(); err != nil {
			b.t.Fatal(err)
		}
	}
	b.untilConnected(id, false)
}

// untilConnected waits until the first member says of another one on both sides that it
// is connected, or that it is not.
func (b *bench) untilConnected(id string, connected bool) {
	b.t.Helper()
	for _, s := range b.sides {
		remote := fmt.Sprintf(`Remote="%s"`, id)
		if err := s.wait(func() bool {
			_, page, err := s.server.HTTPGet("/metrics")
			for line := range strings.Lines(page) {
				if strings.HasPrefix(line, "etcd_network_active_peers{") && strings.Contains(line, remote) {
					return strings.HasSuffix(strings.TrimSpace(line), " 1") == connected
				}
			}
			return err == nil && !connected
		}); err != nil {
			b.t.Fatal(err)
		}
	}
}

// resume starts an interrupted member again and waits until it serves.
func (b *bench) resume(number int) {
	b.t.Helper()
	for _, s := range b.sides {
		if err := s.members[number].Restart(); err != nil {
			b.t.Fatal(err)
		}
		if err := s.members[number].WaitReady(commandLimit); err != nil {
			b.t.Fatal(err)
		}
	}
}

// memberIDs are those of the members, by number; they are the same on both sides.
func (b *bench) memberIDs() []string {
	b.t.Helper()
	var ids []string
	for _, member := range b.sides[1].members {
		id, err := member.ID(b.t.Context())
		if err != nil {
			b.t.Fatal(err)
		}
		ids = append(ids, fmt.Sprintf("%x", id))
	}
	return ids
}

var (
	addedMember = regexp.MustCompile(`Member +([0-9a-f]+) added`)
	times       = replace(`[0-9.]+(µs|ms|s)\b`, "TIME")
	// The order of lines is that of answers, or of ids that belong to their time.
	sorted = func(text string) string {
		lines := strings.Split(text, "\n")
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
)

func TestEndpointsOfACluster(t *testing.T) {
	t.Parallel()
	b := newMembersBench(t)
	b.ok("put a 1")
	b.ok("put b 2 --endpoints=ENDPOINT2")
	b.ok("del a --endpoints=ENDPOINT3")
	const all = "--endpoints=ENDPOINT1,ENDPOINT2,ENDPOINT3"
	for _, format := range append(formats, "table") {
		for _, which := range []string{"--cluster", all, "--endpoints=ENDPOINT2"} {
			status := append([]normaliser{table}, statusFigures...)
			b.ok("endpoint status "+which+" -w "+format, append(status, sortedWords)...)
			b.ok("endpoint health "+which+" -w "+format, table, times, sortedWords)
			b.ok("endpoint hashkv "+which+" -w "+format, table, sortedWords)
		}
		b.ok("member list -w "+format+" --endpoints=ENDPOINT3", table)
	}
	b.ok("endpoint hashkv --cluster --rev 3", sorted)
	b.ok("defrag --cluster", sorted)
	b.ok("alarm list")
	b.ok("get b --consistency=s --endpoints=ENDPOINT3")
	b.ok("get b " + all)
	for _, s := range b.sides {
		if err := s.members[2].Kill(); err != nil {
			t.Fatal(err)
		}
	}
	b.fails("endpoint health --cluster --command-timeout=10s", replace(`\{.*?\}`, "{}"), times, sorted)
	b.ok("get b " + all)
}

func TestMoveLeaderOfACluster(t *testing.T) {
	t.Parallel()
	b := newMembersBench(t)
	ids := b.memberIDs()
	b.fails("move-leader " + ids[1] + " --endpoints=ENDPOINT2")
	b.fails("move-leader 1234")
	b.fails("move-leader 0")
	b.do("move-leader " + ids[0])
	b.ok("move-leader " + ids[2] + " --endpoints=ENDPOINT1,ENDPOINT2,ENDPOINT3")
	for _, s := range b.sides {
		if err := s.wait(func() bool {
			return strings.Contains(b.run(s, s.line("endpoint status --endpoints=ENDPOINT3"), "").Stdout, ", true, false, ")
		}); err != nil {
			t.Fatal(err)
		}
	}
	b.ok("endpoint status --cluster", append(statusFigures, sorted)...)
	b.fails("move-leader " + ids[1])
	b.ok("put a 1")
}

func (s *side) wait(condition func() bool) error {
	for deadline := time.Now().Add(commandLimit); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: nothing came of it within %v", s.server.Kind(), commandLimit)
		}
	}
	return nil
}

// Members are added, updated and removed that nobody starts; lines that go wrong
// say the same.
func TestMembersOfACluster(t *testing.T) {
	t.Parallel()
	b := newMembersBench(t)
	ids := b.memberIDs()
	peers := b.sides[1].members[1].PeerURL()
	b.interrupt(2, ids[2])
	b.fails("member add one --peer-urls=http://127.0.0.1:1")
	b.resume(2)
	b.untilConnected(ids[2], true)
	time.Sleep(5500 * time.Millisecond)
	for _, line := range []string{
		"member add", "member add one", "member add one two", "member add one --peer-urls=banana", "member add one --peer-urls=" + peers,
		"member promote", "member promote banana", "member promote 1234", "member promote " + ids[1],
		"member remove", "member remove banana", "member remove 1234", "member update 1234 --peer-urls=http://127.0.0.1:1",
		"member update " + ids[0] + " --peer-urls=" + peers, "member update " + ids[0],
	} {
		b.do(line)
	}
	b.ok("member add learner --learner --peer-urls=http://127.0.0.1:1 --endpoints=ENDPOINT2", sorted, sortedWords)
	b.fails("member add second --learner --peer-urls=http://127.0.0.1:2")
	b.fails("member promote MEMBER1")
	b.fails("member promote MEMBER1 --endpoints=ENDPOINT3")
	for _, format := range []string{"simple", "table"} {
		b.ok("member list -w "+format, table, sorted)
	}
	b.ok("member update MEMBER1 --peer-urls=http://127.0.0.1:3")
	b.ok("member list --hex -w fields", sortedWords)
	b.ok("member remove MEMBER1 --endpoints=ENDPOINT3")
	b.do("member remove MEMBER1")
	b.do("member promote MEMBER1")
	b.ok("member add voter --peer-urls=http://127.0.0.1:4,http://127.0.0.1:5", sorted, sortedWords)
	b.ok("member list", sorted)
	b.ok("put a 1")
	b.ok("member remove MEMBER2")
	b.ok("member remove " + ids[2] + " --endpoints=ENDPOINT1,ENDPOINT2")
	b.ok("member list", sorted)
	b.ok("put a 2 --endpoints=ENDPOINT2")
}

// sortedWords makes the order of members in one line not count.
func sortedWords(text string) string {
	return strings.ReplaceAll(sorted(strings.NewReplacer(" ", "\n", ",", "\n", `"`, "\n").Replace(text)), "\n", " ")
}
