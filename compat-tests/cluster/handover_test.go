package cluster

import (
	"syscall"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// A leader that is stopped hands over to a member that lives, though one has just died: it is
// not the one with the highest id, nor the furthest of them, but one that is connected.
//
// That it did shows in the order: when its process has ended another leads already. Were it
// not so, the rest would have to miss it first, which takes ticks that are long here.
func TestStopOfALeaderBesideADeadFollower(t *testing.T) {
	const heartbeat, soon = 400 * time.Millisecond, 800 * time.Millisecond
	c := harness.StartCluster(t, Kind(), harness.ClusterOptions{
		Members: 5, Flags: []string{"--heartbeat-interval=400", "--election-timeout=4000"},
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const rounds = 2
	for round := range rounds {
		leader, err := c.WaitLeader(20 * time.Second)
		must(err)
		var dead *harness.Member
		var highest uint64
		for _, follower := range c.Others(leader) {
			id, err := follower.ID(t.Context())
			must(err)
			if id > highest {
				dead, highest = follower, id
			}
		}
		must(dead.Kill())
		// Less than a heartbeat: the leader cannot know of it by a missing answer.
		time.Sleep(heartbeat / 3)
		stopped := time.Now()
		must(leader.Signal(syscall.SIGTERM))
		select {
		case <-leader.Exited():
		case <-time.After(30 * time.Second):
			t.Fatalf("%s runs on 30 s after SIGTERM", leader.Name())
		}
		took := time.Since(stopped)
		next, err := c.WaitLeader(soon, c.Others(leader, dead)...)
		if err != nil {
			t.Errorf("round %d: %s ended %v after SIGTERM, and nobody led then: %v", round+1, leader.Name(), took.Round(time.Millisecond), err)
		} else {
			t.Logf("round %d: %s led %v after SIGTERM", round+1, next.Name(), time.Since(stopped).Round(time.Millisecond))
		}
		must(leader.Restart())
		must(dead.Restart())
		must(c.WaitHealthy(60 * time.Second))
	}
}
