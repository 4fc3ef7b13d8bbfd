package failpoints

import (
	"context"
	"slices"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// ofSnapshot are those that a member comes to which is sent a state.
var ofSnapshot = []string{
	"raftBeforeSaveSnap",
	"raftAfterSaveSnap",
	"raftBeforeApplySnap",
	"applyBeforeOpenSnapshot",
	"applyAfterOpenSnapshot",
	"raftAfterApplySnap",
}

// ofMessages are those before messages are sent, by a leader and by another.
var ofMessages = []string{"raftBeforeLeaderSend", "raftBeforeFollowerSend"}

const healthy = 60 * time.Second

// three are members, each with its failpoints, under load.
type three struct {
	*harness.Cluster
	t          *testing.T
	failpoints []Server
	load       *Load
}

func startThree(t *testing.T, flags ...string) *three {
	t.Helper()
	c := &three{t: t, load: new(Load)}
	var envs []string
	for range 3 {
		failpoints, env := place(t)
		c.failpoints, envs = append(c.failpoints, failpoints), append(envs, env)
	}
	c.Cluster = harness.StartCluster(t, harness.Etched, harness.ClusterOptions{
		Flags: flags, Env: func(member int) []string { return []string{envs[member]} },
	})
	return c
}

// without does something while keys are written through the other members.
func (c *three) without(member *harness.Member, do func()) {
	c.t.Helper()
	client, err := harness.NewClientOf(c.Others(member))
	must(c.t, err)
	defer client.Close()
	ctx, cancel := context.WithCancel(c.t.Context())
	written := make(chan struct{})
	go func() {
		defer close(written)
		c.load.Run(ctx, client)
	}()
	defer func() {
		cancel()
		<-written
	}()
	do()
}

// check expects every member to serve, with every key that was acknowledged.
func (c *three) check() {
	c.t.Helper()
	must(c.t, c.WaitHealthy(healthy))
	for _, member := range c.Members() {
		client, err := harness.NewClientOf([]*harness.Member{member})
		must(c.t, err)
		if err := c.load.Check(harness.Context(c.t, 20*time.Second), client); err != nil {
			c.t.Errorf("%s: %v", member.Name(), err)
		}
		client.Close()
	}
}

func (c *three) leader() *harness.Member {
	c.t.Helper()
	leader, err := c.WaitLeader(healthy)
	must(c.t, err)
	return leader
}

// A member that is sent a state ends while it takes it over, at each step, and
// has everything after the next start.
func TestPanicsWithSnapshots(t *testing.T) {
	needBinary(t)
	// A log is cut when ten times as many entries are applied.
	c := startThree(t, "--snapshot-count=10", "--snapshot-catchup-entries=10")
	for _, name := range ofSnapshot {
		leader := c.leader()
		member := c.Others(leader)[0]
		failpoints := c.failpoints[member.Number()]
		c.SetLinks(member, c.Others(member), harness.Link{Cut: true})
		c.without(member, func() {
			enough := c.load.Acknowledged() + 400
			wait(t, func() bool { return c.load.Acknowledged() >= enough })
			must(t, failpoints.Set(name, "panic"))
			c.Heal()
			waitDeath(t, member.Server, name)
			more := c.load.Acknowledged() + 50
			wait(t, func() bool { return c.load.Acknowledged() >= more })
			must(t, member.Restart())
		})
		if c.check(); t.Failed() {
			return
		}
		// One that has made a state for others keeps what comes after that in its log
		// for a while: the next leader has made none.
		must(t, leader.Kill(), leader.Restart(), c.WaitHealthy(healthy))
	}
}

// A leader and a follower end before they send, and a cluster without one of its
// members continues.
func TestPanicsBeforeMessages(t *testing.T) {
	needBinary(t)
	c := startThree(t)
	// What is saved is in one log of three, or in more.
	for _, name := range append(slices.Clone(ofMessages), "raftBeforeSave", "raftAfterSave", "walBeforeSync") {
		for _, leads := range []bool{true, false} {
			if name == "raftBeforeLeaderSend" && !leads || name == "raftBeforeFollowerSend" && leads {
				continue
			}
			member := c.leader()
			if !leads {
				member = c.Others(member)[0]
			}
			c.without(member, func() {
				enough := c.load.Acknowledged() + 50
				wait(t, func() bool { return c.load.Acknowledged() >= enough })
				must(t, c.failpoints[member.Number()].Set(name, "panic"))
				waitDeath(t, member.Server, name)
				more := c.load.Acknowledged() + 50
				wait(t, func() bool { return c.load.Acknowledged() >= more })
				must(t, member.Restart())
			})
			if c.check(); t.Failed() {
				return
			}
		}
	}
	t.Logf("%d writes acknowledged", c.load.Acknowledged())
}
