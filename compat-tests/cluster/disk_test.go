package cluster

import (
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

func TestDiskFullOnTheLeader(t *testing.T) { fillDisk(t, true) }

func TestDiskFullOnAFollower(t *testing.T) { fillDisk(t, false) }

// fillDisk takes the last free block of a member: whether that ends or waits for
// space, the others serve; with space again it comes back with all it had.
func fillDisk(t *testing.T, leading bool) {
	const size = 448 << 20 // room for the log files that are made ahead
	disks := NewSmallDisks(t, 3, size)
	r := Start(t, Options{Bulk: true, ClusterOptions: harness.ClusterOptions{DataDir: disks.Dir}})
	filled := r.Leader()
	if !leading {
		filled = r.Others(filled)[r.rng.IntN(2)]
	}
	probing := r.Probe(r.Others(filled)...)
	began := r.Now()
	r.Must(disks.Fill(filled.Number()))
	select {
	case <-filled.Exited():
		t.Logf("the member ended %v after its disk was full", round(r.Now()-began))
		r.Pass(3 * time.Second)
	case <-time.After(6 * time.Second):
		t.Log("the member still runs")
	}
	probing.Done()
	r.CheckGap("writes", began, r.Now(), Writes)
	r.Must(disks.Free(filled.Number()))
	r.Finish()
}

// The leader's disk takes seconds over an fsync: it must hand its place over by
// itself, and reads must not wait for the disk at any time.
func TestDiskStalledOnTheLeader(t *testing.T) {
	shim := NewShim(t)
	r := Start(t, Options{ClusterOptions: harness.ClusterOptions{Env: shim.Env}})
	leader := r.Leader()
	others := r.Others(leader)
	r.Must(shim.Stall(leader.Number()))
	fault := r.Now()
	// Before the leader gives up, a quorum of the others' disks may take writes.
	r.Pass(300 * time.Millisecond)
	r.AwaitService(fault, others...)
	if _, err := r.WaitLeader(5*time.Second, others...); err != nil {
		r.Fault(SlowToServe, "the member whose disk stalls leads on: %v", err)
	}
	r.Pass(time.Second)
	r.CheckGap("reads", fault, r.Now(), Reads)
	r.CheckGap("writes", fault, r.Now(), Writes)
	r.Must(shim.Flow(leader.Number()))
	r.Finish()
}

// A follower's disk stalls: nobody has to notice.
func TestDiskStalledOnAFollower(t *testing.T) {
	shim := NewShim(t)
	r := Start(t, Options{ClusterOptions: harness.ClusterOptions{Env: shim.Env}})
	leader := r.Leader()
	follower := r.Others(leader)[r.rng.IntN(2)]
	r.Must(shim.Stall(follower.Number()))
	fault := r.Now()
	r.Pass(3 * time.Second)
	r.CheckGap("writes", fault, r.Now(), Writes)
	r.CheckGap("reads", fault, r.Now(), Reads)
	if now := r.Leader(); now != leader {
		r.Fault(SlowToServe, "the leader changed from %s to %s for the disk of %s", leader.Name(), now.Name(), follower.Name())
	}
	r.Must(shim.Flow(follower.Number()))
	r.Finish()
}

// The wall clocks of members jump by an hour, forth and back: leases and elections
// go by clocks that do not.
func TestClockJumpsByAnHour(t *testing.T) {
	shim := NewShim(t)
	r := Start(t, Options{ClusterOptions: harness.ClusterOptions{Env: shim.Env}})
	leader := r.Leader()
	began := r.Now()
	for _, jump := range []struct {
		member *harness.Member
		by     time.Duration
	}{
		{leader, time.Hour}, {r.Others(leader)[0], -time.Hour}, {leader, -time.Hour}, {r.Others(leader)[0], 0}, {leader, 0},
	} {
		r.Must(shim.Jump(jump.member.Number(), jump.by))
		r.Pass(800 * time.Millisecond)
	}
	r.CheckGap("writes", began, r.Now(), Writes)
	r.CheckGap("reads", began, r.Now(), Reads)
	if now := r.Leader(); now != leader {
		r.Fault(WrongCourse, "the leader changed from %s to %s for a clock", leader.Name(), now.Name())
	}
	r.Finish()
}
