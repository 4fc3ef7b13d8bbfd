package harness_test

import (
	"context"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// startEtcds starts a cluster of etcd: what is tested here is the harness.
func startEtcds(t *testing.T, options harness.ClusterOptions) *harness.Cluster {
	t.Helper()
	return harness.StartCluster(t, harness.Etcd, options)
}

func leaderOf(t *testing.T, c *harness.Cluster, among ...*harness.Member) *harness.Member {
	t.Helper()
	leader, err := c.WaitLeader(20*time.Second, among...)
	if err != nil {
		t.Fatal(err)
	}
	return leader
}

func put(c *harness.Member, limit time.Duration) error {
	client, err := harness.NewClientOf([]*harness.Member{c})
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err = client.Put(ctx, "key", "value")
	return err
}

// A member that is cut off loses its leadership; its bytes pass again after Heal.
func TestLinksOfACluster(t *testing.T) {
	c := startEtcds(t, harness.ClusterOptions{})
	for _, link := range []harness.Link{{Cut: true}, {Silent: true}} {
		old := leaderOf(t, c)
		others := c.Others(old)
		c.SetLinks(old, others, link)
		leaderOf(t, c, others...)
		if err := put(old, time.Second); err == nil {
			t.Errorf("%+v: a put through an isolated member succeeds", link)
		}
		if err := put(others[0], 5*time.Second); err != nil {
			t.Errorf("%+v: a put through the majority: %v", link, err)
		}
		c.Heal()
		if err := c.WaitHealthy(20 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if refused := c.Network().Refused(); refused > 0 {
		t.Errorf("%d connections of unknown processes", refused)
	}
}

// What the leader sends to a follower is held back; the other way, and the
// other follower, continue.
func TestOneDirectionOfALink(t *testing.T) {
	c := startEtcds(t, harness.ClusterOptions{})
	leader := leaderOf(t, c)
	deaf := c.Others(leader)[0]
	c.SetLink(leader, deaf, harness.Link{Silent: true})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		status, err := deaf.Status(t.Context())
		if err == nil && status.Leader == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a follower that hears nothing of its leader still has it")
		}
	}
	if leaderOf(t, c) != leader {
		t.Error("the leader lost its place for one follower")
	}
	c.Heal()
	if err := c.WaitHealthy(20 * time.Second); err != nil {
		t.Fatal(err)
	}
}

// Two clusters on one network have equal ids and do not mix.
func TestClustersOfOneNetwork(t *testing.T) {
	network := harness.NewNetwork()
	t.Cleanup(func() { _ = network.Close() })
	one := startEtcds(t, harness.ClusterOptions{Network: network})
	two := startEtcds(t, harness.ClusterOptions{Network: network})
	for i := range one.Members() {
		a, err := one.Members()[i].ID(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b, err := two.Members()[i].ID(t.Context())
		if err != nil || a != b {
			t.Errorf("ids %x and %x, %v", a, b, err)
		}
	}
	if err := put(one.Members()[0], 5*time.Second); err != nil {
		t.Fatal(err)
	}
	client, err := harness.NewClientOf(two.Members())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if answer, err := client.Get(t.Context(), "key"); err != nil || len(answer.Kvs) > 0 {
		t.Errorf("a key of the other cluster: %v, %v", answer, err)
	}
}

func TestMembersComeAndGo(t *testing.T) {
	c := startEtcds(t, harness.ClusterOptions{})
	leader := leaderOf(t, c)
	lost := c.Others(leader)[0]
	id, err := lost.ID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := lost.Pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := lost.Status(t.Context()); err == nil {
		t.Error("a paused member answers")
	}
	if err := lost.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := lost.Wipe(); err != nil {
		t.Fatal(err)
	}
	ctx := harness.Context(t, 30*time.Second)
	if err := c.RemoveMember(ctx, leader, lost, id); err != nil {
		t.Fatal(err)
	}
	added, err := c.Add(ctx, leader, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitHealthy(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	if status, err := added.Status(ctx); err != nil || !status.IsLearner {
		t.Errorf("the added learner: %v, %v", status, err)
	}
}
