package cluster

import (
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// One follower cannot talk to the leader, but to the other follower: nobody else
// has to notice.
func TestLinkCutBothWays(t *testing.T) {
	r := Start(t, Options{})
	leader := r.Leader()
	followers := r.Others(leader)
	began := r.Now()
	r.SetLinks(leader, followers[:1], harness.Link{Cut: true})
	r.Pass(3 * time.Second)
	r.Cluster.Heal()
	r.Pass(500 * time.Millisecond)
	r.CheckGap("writes", began, r.Now(), Writes)
	r.Finish()
}

// A follower is not heard by the leader, then does not hear it.
func TestLinkCutOneWay(t *testing.T) {
	r := Start(t, Options{})
	leader := r.Leader()
	follower := r.Others(leader)[r.rng.IntN(2)]
	began := r.Now()
	r.SetLink(follower, leader, harness.Link{Silent: true})
	r.Pass(2500 * time.Millisecond)
	r.Cluster.Heal()
	r.SetLink(leader, follower, harness.Link{Silent: true})
	r.Pass(2500 * time.Millisecond)
	r.Cluster.Heal()
	r.Pass(500 * time.Millisecond)
	r.CheckGap("writes", began, r.Now(), Writes)
	r.Finish()
}

// The leader speaks and hears nothing: it must not keep the others from electing
// another for longer than it takes it to notice.
func TestDeafLeader(t *testing.T) {
	r := Start(t, Options{})
	leader := r.Leader()
	followers := r.Others(leader)
	for _, follower := range followers {
		r.SetLink(follower, leader, harness.Link{Silent: true})
	}
	fault := r.Now()
	// It takes up to two election timeouts until the leader looks and misses its
	// quorum, and as long again until a follower misses the leader.
	r.AwaitServiceWithin(4*electionTimeout, fault, followers...)
	r.CheckAlone(leader, fault)
	r.Finish()
}

// The leader hears and cannot speak.
func TestMuteLeader(t *testing.T) {
	r := Start(t, Options{})
	leader := r.Leader()
	followers := r.Others(leader)
	for _, follower := range followers {
		r.SetLink(leader, follower, harness.Link{Silent: true})
	}
	fault := r.Now()
	r.AwaitService(fault, followers...)
	r.CheckAlone(leader, fault)
	r.Finish()
}

// All links are slow, lose packets and break now and then: the cluster still serves.
func TestLinksSlowAndLossy(t *testing.T) {
	r := Start(t, Options{})
	began := r.Now()
	for _, member := range r.Members() {
		r.SetLinks(member, r.Others(member), harness.Link{
			Delay: 20 * time.Millisecond, Jitter: 30 * time.Millisecond,
			BytesPerSecond: 1 << 20, StallChance: 0.02, ResetChance: 0.002,
		})
	}
	r.Pass(4 * time.Second)
	r.Cluster.Heal()
	r.CheckGap("writes", began, r.Now(), Writes)
	r.CheckGap("reads", began, r.Now(), Reads)
	r.Finish()
}

// A minority with the old leader is cut off, once so that it notices and once in
// silence: it must serve neither writes nor linearizable reads.
func TestOldLeaderCutOff(t *testing.T) {
	r := Start(t, Options{})
	for _, link := range []harness.Link{{Silent: true}, {Cut: true}} {
		leader := r.Leader()
		majority := r.Others(leader)
		r.SetLinks(leader, majority, link)
		fault := r.Now()
		r.AwaitService(fault, majority...)
		r.CheckAlone(leader, fault)
		r.Cluster.Heal()
		r.Must(r.WaitHealthy(20 * time.Second))
	}
	r.Finish()
}
