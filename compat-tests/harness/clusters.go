package harness

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Clusters are a cluster of etched's and one of etcd's with equal settings, on
// one network: member by member they have the same peer URLs and ids. In both,
// the first member leads.
type Clusters struct {
	Etched, Etcd *Cluster
}

// StartClusters starts both clusters; see StartCluster. Unless options say
// otherwise, the members of both advertise the same client URLs, which lead
// nowhere.
func StartClusters(tb testing.TB, options ClusterOptions) *Clusters {
	tb.Helper()
	for _, kind := range []Kind{Etched, Etcd} {
		if _, err := Binary(kind); err != nil {
			tb.Fatal(err)
		}
	}
	if options.AdvertiseClientURL == nil {
		const first = 2379
		options.AdvertiseClientURL = func(member int) string { return fmt.Sprintf("http://127.0.0.1:%d", first+10*member) }
	}
	options.Network = NewNetwork()
	tb.Cleanup(func() { _ = options.Network.Close() })
	members := max(options.Members, 3)
	if err := options.Network.grow(members); err != nil {
		tb.Fatal(err)
	}
	var both [2]*Cluster
	var failures [2]error
	var started sync.WaitGroup
	for i, kind := range []Kind{Etched, Etcd} {
		started.Go(func() {
			if both[i], failures[i] = LaunchCluster(kind, options); failures[i] == nil {
				failures[i] = both[i].Lead(both[i].Members()[0], 20*time.Second)
			}
		})
	}
	started.Wait()
	for _, c := range both {
		if c != nil {
			tb.Cleanup(func() { c.finish(tb) })
		}
	}
	for i, kind := range []Kind{Etched, Etcd} {
		if failures[i] != nil {
			tb.Fatalf("start a cluster of %s: %v", kind, failures[i])
		}
	}
	return &Clusters{Etched: both[0], Etcd: both[1]}
}

// Each calls f for etched's cluster and then for etcd's.
func (c *Clusters) Each(f func(*Cluster)) {
	f(c.Etched)
	f(c.Etcd)
}

// Duo is the members of one number as a Duo.
func (c *Clusters) Duo(member int) *Duo {
	return &Duo{Etched: c.Etched.Members()[member].Server, Etcd: c.Etcd.Members()[member].Server, clusters: c}
}

// Settle waits until the clusters that a Duo may be of are whole, and the first
// members lead again: to be called after a restart.
func (d *Duo) Settle(tb testing.TB) {
	tb.Helper()
	if d.clusters == nil {
		return
	}
	d.clusters.Each(func(c *Cluster) {
		if err := c.Lead(c.Members()[0], 30*time.Second); err != nil {
			tb.Fatal(err)
		}
	})
}

// OfSingleServers skips a test where Duos are members of clusters: it is about what
// only a single server answers so.
func OfSingleServers(tb testing.TB) {
	tb.Helper()
	if members, _ := clusterWanted(tb); members > 0 {
		tb.Skip("of a single server")
	}
}

// Lead makes a member the leader, and waits until all follow it.
func (c *Cluster) Lead(member *Member, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var last error
	for ctx.Err() == nil {
		leader := c.FindLeader(ctx)
		if leader == member {
			if last = c.unhealthy(ctx); last == nil {
				return nil
			}
		} else if leader != nil {
			last = leader.moveLeader(ctx, member)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("%s does not come to lead within %v: %w%s", member.Name(), limit, last, c.logTails())
}

func (m *Member) moveLeader(ctx context.Context, to *Member) error {
	id, err := to.ID(ctx)
	if err != nil {
		return err
	}
	connection, err := m.connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = pb.NewMaintenanceClient(connection).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: id})
	return err
}

// The environment can make every Duo a member of a cluster each, so that what
// was written for single servers is tried on clusters.
const (
	// membersVariable is how many members; viaVariable is which of them is asked:
	// "leader", or "follower", which is the second.
	membersVariable = "COMPAT_MEMBERS"
	viaVariable     = "COMPAT_VIA"
)

// Clustered says whether each side of a Duo is a cluster.
func Clustered(tb testing.TB) bool {
	members, _ := clusterWanted(tb)
	return members > 0
}

// clusterWanted answers how many members Duos are to have, and the number of the
// one to ask; 0 members for single servers.
func clusterWanted(tb testing.TB) (members, asked int) {
	tb.Helper()
	text := os.Getenv(membersVariable)
	if text == "" || text == "1" {
		return 0, 0
	}
	members, err := strconv.Atoi(text)
	if err != nil || members < 1 {
		tb.Fatalf("%s=%q is no number of members", membersVariable, text)
	}
	switch via := os.Getenv(viaVariable); via {
	case "", "leader":
		return members, 0
	case "follower":
		return members, 1
	default:
		tb.Fatalf("%s=%q is neither leader nor follower", viaVariable, via)
		return 0, 0
	}
}

// startClusterDuo starts two clusters in place of two servers. What is about a
// single server's own settings is skipped.
func startClusterDuo(tb testing.TB, options Options, members, asked int) *Duo {
	tb.Helper()
	own := options.Name + options.DataDir + options.InitialCluster + options.PeerURL
	for _, flag := range options.Flags {
		if strings.HasPrefix(flag, "--initial-") {
			own += flag
		}
	}
	if own != "" || options.ClientPort != 0 {
		tb.Skipf("of a single server: %q", own)
	}
	return StartClusters(tb, ClusterOptions{
		Members: members, ParentDir: options.ParentDir, ReadyTimeout: options.ReadyTimeout,
		Flags: options.Flags, EtchedFlags: options.EtchedFlags, EtcdFlags: options.EtcdFlags,
		Env: func(int) []string { return options.Env },
	}).Duo(asked)
}
