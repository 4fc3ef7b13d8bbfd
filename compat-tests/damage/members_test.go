package damage

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

const (
	memberKeys = 60
	// firstSegment holds all that these tests write.
	firstSegment = "0000000000000001.raftlog"
	// settling is longer than a leader that is there needs to be elected, many times over.
	settling = 8 * time.Second
)

// threeMembers are a cluster and the keys that it has acknowledged.
type threeMembers struct {
	*harness.Cluster
	t    *testing.T
	keys int64
}

func startThree(t *testing.T) *threeMembers {
	t.Helper()
	return startThreeWith(t, harness.ClusterOptions{})
}

func startThreeWith(t *testing.T, options harness.ClusterOptions) *threeMembers {
	t.Helper()
	return &threeMembers{Cluster: harness.StartCluster(t, harness.Etched, options), t: t}
}

func (c *threeMembers) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *threeMembers) leader() *harness.Member {
	c.t.Helper()
	leader, err := c.WaitLeader(limit)
	c.must(err)
	return leader
}

// put writes keys through a member; each is acknowledged before the next.
func (c *threeMembers) put(via *harness.Member, count int) {
	c.t.Helper()
	ctx := harness.Context(c.t, 60*time.Second)
	for range count {
		_, err := via.Client(c.t).Put(ctx, fmt.Sprintf("key%03d", c.keys), strings.Repeat("v", logKeyBytes))
		c.must(err)
		c.keys++
	}
}

// all expects every member to serve, and each to have every acknowledged key.
func (c *threeMembers) all() {
	c.t.Helper()
	c.must(c.WaitHealthy(60 * time.Second))
	for _, member := range c.Members() {
		client, err := harness.NewClientOf([]*harness.Member{member})
		c.must(err)
		got, err := client.Get(harness.Context(c.t, limit), "key", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil || got.Count != c.keys {
			c.t.Errorf("%s has %v keys of %d: %v", member.Name(), got, c.keys, err)
		}
		client.Close()
	}
}

// end waits for a member to end by itself, and answers why: its peers may be lost
// and that be logged after the reason.
func (c *threeMembers) end(member *harness.Member) string {
	c.t.Helper()
	for deadline := time.Now().Add(limit); member.Running(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("%s still runs\n%s", member.Name(), member.LogTail(20))
		}
	}
	lines := strings.Split(member.LogTail(20), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if strings.Contains(lines[i], `"level":"fatal"`) {
			return lines[i]
		}
	}
	return member.LogTail(1)
}

func segmentOf(member *harness.Member) string {
	return filepath.Join(member.DataDir(), "member", "wal", firstSegment)
}

// zeroTail takes the end of the last frame from the log of a member that is down,
// and answers what the segment held.
func (c *threeMembers) zeroTail(member *harness.Member) []byte {
	c.t.Helper()
	content, err := os.ReadFile(segmentOf(member))
	c.must(err)
	edit(c.t, segmentOf(member), func(content []byte) {
		end := used(content)
		clear(content[(end-1024)/512*512 : end])
	})
	return content
}

// What keeps a single member from starting keeps one of three, and the others continue.
func TestLostEndOfAMember(t *testing.T) {
	t.Parallel()
	c := startThree(t)
	leader := c.leader()
	harmed := c.Others(leader)[0]
	c.put(leader, memberKeys)
	time.Sleep(markLag)
	c.must(harmed.Kill())
	content, err := os.ReadFile(segmentOf(harmed))
	c.must(err)
	end := used(content)
	for _, harm := range []struct {
		name string
		left []byte
		says string
	}{
		{"cut to half of what it holds", content[:end/2], "cut it short"},
		{"cut to 95 % of what it holds", content[:end*95/100], "cut it short"},
		{"emptied", nil, "acknowledged are missing"},
		{"zeroed", make([]byte, len(content)), "acknowledged are missing"},
		{"its tail zeroed", append(append([]byte(nil), content[:(end-1024)/512*512]...), make([]byte, len(content)-(end-1024)/512*512)...), "acknowledged are missing"},
	} {
		c.must(os.WriteFile(segmentOf(harmed), harm.left, 0o600))
		c.must(harmed.Restart())
		line := c.end(harmed)
		t.Log(harm.name)
		says(t, line, harm.says, "add it again")
		c.put(leader, 1)
	}
	c.must(os.WriteFile(segmentOf(harmed), content, 0o600))
	c.must(harmed.Restart())
	c.all()
}

// A follower that lost the end of its log within the last second starts, and its
// leader shows that it lacks something: it ends and says so. With its log as it
// was it is as good as any after the next election, which it does not wait for.
func TestLostEndThatTheLeaderMisses(t *testing.T) {
	t.Parallel()
	c := startThree(t)
	leader := c.leader()
	harmed := c.Others(leader)[0]
	c.put(leader, memberKeys)
	c.must(harmed.Kill())
	content := c.zeroTail(harmed)
	c.must(harmed.Restart())
	line := c.end(harmed)
	if !strings.Contains(line, "acknowledged are missing") {
		says(t, line, "the raft log ends with entry", "add it again")
	}
	c.put(leader, 1)
	c.must(os.WriteFile(segmentOf(harmed), content, 0o600))
	c.must(harmed.Restart())
	c.all()
	// Its vote is needed now.
	time.Sleep(settling / 4)
	leader = c.leader()
	other := c.Others(harmed, leader)[0]
	c.must(other.Kill())
	c.must(harmed.Kill())
	c.must(harmed.Restart())
	_, err := c.WaitLeader(limit, harmed, leader)
	c.must(err)
	c.put(harmed, 1)
	c.must(other.Restart())
	c.all()
}

// The last writes are acknowledged by two members, one of which loses them while
// all are down. It and the third, which never had them, are a majority without
// them: they must wait for the member that has them, and nothing is lost.
func TestLostEndThatOneOtherMemberHas(t *testing.T) {
	t.Parallel()
	c := startThree(t)
	leader := c.leader()
	harmed, third := c.Others(leader)[0], c.Others(leader)[1]
	c.put(leader, memberKeys)
	c.SetLinks(third, c.Others(third), harness.Link{Cut: true})
	for attempt := 0; ; attempt++ {
		c.put(leader, 1)
		c.must(harmed.Kill())
		content := c.zeroTail(harmed)
		// Where the mark of the log had come so far it does not start: the mark is
		// written once in a second.
		if c.startsInDoubt(harmed) {
			break
		}
		if attempt == 5 {
			t.Fatalf("%s never starts\n%s", harmed.Name(), harmed.LogTail(3))
		}
		c.end(harmed)
		c.must(os.WriteFile(segmentOf(harmed), content, 0o600))
		c.must(harmed.Restart())
		if _, err := c.WaitLeader(limit, leader); err != nil {
			t.Fatal(err)
		}
	}
	c.must(leader.Kill())
	c.must(third.Kill())
	c.must(harmed.Kill())
	c.Heal()
	// Twice, as the second start finds nothing that was cut.
	for range 2 {
		c.must(harmed.Restart())
		if !third.Running() {
			c.must(third.Restart())
		}
		c.without(leader, settling)
		c.must(harmed.Kill())
	}
	c.must(harmed.Restart())
	c.must(leader.Restart())
	c.all()
	c.put(third, 1)
	c.all()
}

// tearWrite leaves something of a write behind the last frame in the log of a member
// that is down, as a power failure may.
func (c *threeMembers) tearWrite(member *harness.Member) {
	c.t.Helper()
	edit(c.t, segmentOf(member), func(content []byte) {
		copy(content[used(content)+64:], "something of a write")
	})
}

// logs waits until a running member has logged a line with all of this.
func (c *threeMembers) logs(member *harness.Member, parts ...string) {
	c.t.Helper()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
	lines:
		for _, line := range strings.Split(member.LogTail(200), "\n") {
			for _, part := range parts {
				if !strings.Contains(line, part) {
					continue lines
				}
			}
			return
		}
	}
	c.t.Fatalf("%s does not say %q\n%s", member.Name(), parts, member.LogTail(20))
}

// A power failure in the middle of a write leaves all in doubt. They say what they
// wait for and are not ready before all are back; or one continues alone.
func TestAllMembersInDoubt(t *testing.T) {
	t.Parallel()
	// Clients are served once there is a leader, probes on ports of their own always.
	var probes []string
	for range 3 {
		port, err := harness.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		probes = append(probes, fmt.Sprintf("http://127.0.0.1:%d", port))
	}
	c := startThreeWith(t, harness.ClusterOptions{
		MemberFlags: func(member int) []string { return []string{"--listen-metrics-urls=" + probes[member]} },
	})
	leader := c.leader()
	c.put(leader, memberKeys)
	all := c.Members()
	status, err := all[2].Status(harness.Context(t, limit))
	c.must(err)
	last := fmt.Sprintf("%x", status.Header.MemberId)
	for _, back := range []string{"the last member", "a cluster of one"} {
		for _, member := range all {
			c.must(member.Kill())
		}
		for _, member := range all {
			c.tearWrite(member)
		}
		if back == "a cluster of one" {
			break
		}
		c.must(all[0].Restart())
		c.must(all[1].Restart())
		c.without(all[2], settling)
		for i, member := range all[:2] {
			c.logs(member, "the raft log may have lost its end")
			c.logs(member, "no leader is elected", last, "last_index", "--force-new-cluster")
			for _, probe := range []string{"/health", "/readyz"} {
				answer, err := http.Get(probes[i] + probe)
				c.must(err)
				answer.Body.Close()
				if answer.StatusCode != http.StatusServiceUnavailable {
					t.Errorf("%s of %s says %s", probe, member.Name(), answer.Status)
				}
			}
		}
		c.must(all[2].Restart())
		c.all()
	}
	one := harness.Start(t, harness.Etched, harness.Options{
		Name: all[0].Name(), DataDir: all[0].DataDir(), EtchedFlags: []string{"--force-new-cluster"},
	})
	got, err := one.Client(t).Get(harness.Context(t, limit), "key", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || got.Count != c.keys {
		t.Errorf("%v keys of %d are left: %v", got, c.keys, err)
	}
}

// A process that is killed leaves no doubt: what it wrote is in the machine's memory.
func TestKilledMembersAreNotInDoubt(t *testing.T) {
	t.Parallel()
	c := startThree(t)
	for range 5 {
		leader := c.leader()
		c.put(leader, 20)
		for _, member := range c.Members() {
			c.must(member.Kill())
		}
		for _, member := range c.Members() {
			c.must(member.Restart())
		}
		c.all()
	}
	for _, member := range c.Members() {
		if log, err := os.ReadFile(member.LogPath()); err != nil || strings.Contains(string(log), "may have lost its end") {
			t.Errorf("%s is in doubt: %v\n%s", member.Name(), err, member.LogTail(20))
		}
	}
}

// startsInDoubt starts a member again, and answers whether it starts and says that
// something was cut off, or refuses to.
func (c *threeMembers) startsInDoubt(member *harness.Member) bool {
	c.t.Helper()
	before, err := os.ReadFile(member.LogPath())
	c.must(err)
	c.must(member.Restart())
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		log, err := os.ReadFile(member.LogPath())
		c.must(err)
		said := string(log[len(before):])
		if strings.Contains(said, "cut off the end of the raft log") {
			return true
		}
		if strings.Contains(said, "acknowledged are missing") {
			return false
		}
	}
	c.t.Fatalf("%s says nothing\n%s", member.Name(), member.LogTail(20))
	return false
}

// without expects no leader and no write while this member is away.
func (c *threeMembers) without(member *harness.Member, wait time.Duration) {
	c.t.Helper()
	others := c.Others(member)
	client, err := harness.NewClientOf(others)
	c.must(err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	if _, err := client.Put(ctx, "without", "a quorum"); err == nil {
		c.t.Fatal("members that lack an acknowledged write take others")
	}
	if leader := c.FindLeader(harness.Context(c.t, limit)); leader != nil {
		c.t.Fatalf("%s leads without an acknowledged write", leader.Name())
	}
}
