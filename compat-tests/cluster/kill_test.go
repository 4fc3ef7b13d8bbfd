package cluster

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/crash"
	"etched.dev/compat-tests/harness"
)

func TestLeaderKilled(t *testing.T) {
	r := Start(t, Options{})
	leader := r.Leader()
	fault := r.Now()
	r.Must(leader.Kill())
	r.AwaitService(fault, r.Others(leader)...)
	r.Pass(time.Second)
	r.Must(leader.Restart())
	r.Must(r.WaitHealthy(30 * time.Second))
	r.Pass(500 * time.Millisecond)
	r.Finish()
}

// A member whose disk is lost is removed, and another takes its place.
func TestFollowerKilledWipedAndReplaced(t *testing.T) {
	r := Start(t, Options{})
	leader := r.Leader()
	lost := r.Others(leader)[0]
	id, err := lost.ID(t.Context())
	r.Must(err)
	began := r.Now()
	r.Must(lost.Kill())
	r.Must(lost.Wipe())
	r.Pass(500 * time.Millisecond)
	ctx := harness.Context(t, 30*time.Second)
	r.Must(r.RemoveMember(ctx, leader, lost, id))
	r.Gone(lost)
	added, err := r.Add(ctx, leader, false)
	r.Must(err)
	r.Use(added)
	r.Must(r.WaitHealthy(30 * time.Second))
	r.Pass(500 * time.Millisecond)
	r.CheckGap("writes", began, r.Now(), Writes)
	r.Finish()
}

// The leader stands still for longer than it takes to elect another, then continues
// as if nothing had been. It must neither answer renewals of leases that count no
// more, nor have leases revoked that others have renewed: etcd v3.7.3 does now and
// then, where its first tick comes before the others' messages.
func TestLeaderPaused(t *testing.T) {
	r := Start(t, Options{})
	leader := r.Leader()
	fault := r.Now()
	r.Must(leader.Pause())
	r.AwaitService(fault, r.Others(leader)...)
	r.Pass(1500 * time.Millisecond)
	r.Must(leader.Continue())
	r.Pass(time.Second)
	r.Finish()
}

// All members are killed at once, and started again.
func TestWholeClusterKilled(t *testing.T) {
	r := Start(t, Options{})
	for range 2 {
		var killing sync.WaitGroup
		for _, member := range r.Members() {
			killing.Go(func() {
				if err := member.Kill(); err != nil {
					r.log.fault(WrongCourse, "%v", err)
				}
			})
		}
		killing.Wait()
		restart := r.Now()
		for _, member := range r.Members() {
			r.Must(member.Restart())
		}
		r.AwaitService(restart)
		r.Pass(700 * time.Millisecond)
	}
	r.Finish()
}

// Each member is stopped in order and started again: writes never pause for long,
// since a leader that stops hands its place over first.
func TestRollingRestart(t *testing.T) {
	r := Start(t, Options{})
	probing := r.Probe(r.Members()...)
	began := r.Now()
	for _, member := range r.Members() {
		r.Must(member.Stop())
		r.Must(member.Restart())
		r.Must(r.WaitHealthy(30 * time.Second))
		r.Pass(300 * time.Millisecond)
	}
	probing.Done()
	r.CheckGap("writes", began, r.Now(), Writes)
	r.Finish()
}

// A member misses more than the log keeps, while it lives and is watched, and so
// is sent a snapshot under load.
func TestMemberBehindTheLog(t *testing.T) {
	const kept, more = 20, 5
	r := Start(t, Options{ClusterOptions: harness.ClusterOptions{
		Flags: []string{fmt.Sprint("--snapshot-count=", kept), fmt.Sprint("--snapshot-catchup-entries=", more)},
	}})
	leader := r.Leader()
	behind := r.Others(leader)[0]
	before, err := behind.Status(t.Context())
	r.Must(err)
	r.SetLinks(behind, r.Others(behind), harness.Link{Cut: true})
	reached := crash.Eventually(30*time.Second, func() bool {
		time.Sleep(50 * time.Millisecond)
		status, err := r.Leader().Status(t.Context())
		return err == nil && status.RaftIndex > before.RaftIndex+8*(kept+more)
	})
	if !reached {
		t.Fatal("the log did not grow past what it keeps")
	}
	r.SetLinks(behind, r.Others(behind), harness.Link{})
	r.Must(r.WaitHealthy(30 * time.Second))
	// The same again for one that is down meanwhile.
	r.Must(behind.Kill())
	r.Pass(2 * time.Second)
	r.Must(behind.Restart())
	r.Must(r.WaitHealthy(30 * time.Second))
	r.Pass(500 * time.Millisecond)
	r.Finish()
}
