package cluster

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"etched.dev/compat-tests/harness"
)

// A member is away while another joins and comes to lead: what it has on disk does
// not name the leader that calls it, and it has to follow all the same.
func TestLedByOneThatJoinedMeanwhile(t *testing.T) {
	r := Start(t, Options{ClusterOptions: harness.ClusterOptions{Flags: []string{"--strict-reconfig-check=false"}}})
	leader := r.Leader()
	away := r.Others(leader)[0]
	r.Must(away.Kill())
	ctx := harness.Context(t, 40*time.Second)
	added, err := r.Add(ctx, leader, false)
	r.Must(err)
	r.Must(enthrone(ctx, r, added))
	r.Use(added)
	r.Pass(300 * time.Millisecond)
	r.Must(away.Restart())
	r.Must(r.WaitHealthy(20 * time.Second))
	r.Must(enthrone(ctx, r, added))
	r.Finish()
}

// enthrone asks the leader to hand over until the member does.
func enthrone(ctx context.Context, r *Run, member *harness.Member) error {
	for ctx.Err() == nil {
		leader := r.FindLeader(ctx)
		if leader == member {
			return nil
		}
		if id, err := member.ID(ctx); err == nil && leader != nil {
			// It is tried again until it is so.
			_, _ = pb.NewMaintenanceClient(r.dial(leader)).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: id})
		}
		time.Sleep(50 * time.Millisecond)
	}
	return ctx.Err()
}

// A member comes back with the files of an earlier day: it has acknowledged entries
// that it does not have any more. Either the leader sends them before anything has
// shown that they are gone, or the member stops and says what to do; it must not
// run on without them.
func TestFilesOfAnEarlierDay(t *testing.T) {
	r := Start(t, Options{})
	lost := r.Others(r.Leader())[0]
	r.Must(lost.Kill())
	earlier := filepath.Join(t.TempDir(), "earlier")
	r.Must(os.CopyFS(earlier, os.DirFS(lost.DataDir())))
	r.Must(lost.Restart())
	r.Must(r.WaitHealthy(20 * time.Second))
	r.Pass(500 * time.Millisecond)
	id, err := lost.ID(t.Context())
	r.Must(err)
	r.Must(lost.Kill())
	r.Must(lost.Wipe())
	r.Must(os.CopyFS(lost.DataDir(), os.DirFS(earlier)))
	r.Must(lost.Restart())
	if err := r.WaitHealthy(20 * time.Second); err != nil {
		select {
		case <-lost.Exited():
		default:
			t.Fatalf("it runs and is not healthy: %v", err)
		}
		if said := lost.LogTail(20); !strings.Contains(said, "add it again with an empty data directory") {
			t.Errorf("it does not say what to do:\n%s", said)
		}
		ctx := harness.Context(t, 30*time.Second)
		r.Must(r.RemoveMember(ctx, r.Leader(), lost, id))
		r.Gone(lost)
		t.Log("the member ended")
	}
	r.Finish()
}
