package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"etched.dev/compat-tests/harness"
)

// A learner comes and is promoted, a follower and then the leader are removed,
// all under load; a removed member ends by itself.
func TestMembersAddedPromotedAndRemoved(t *testing.T) {
	r := Start(t, Options{})
	began := r.Now()
	ctx := harness.Context(t, time.Minute)
	leader := r.Leader()
	added, err := r.Add(ctx, leader, true)
	r.Must(err)
	r.Must(r.WaitHealthy(30 * time.Second))
	r.Must(promote(ctx, r, added))
	r.Use(added)
	r.Pass(500 * time.Millisecond)
	for _, removed := range []*harness.Member{r.Others(leader, added)[0], leader} {
		through := r.Others(removed)[0]
		id, err := removed.ID(ctx)
		r.Must(err)
		r.Must(r.RemoveMember(ctx, through, removed, id))
		r.Gone(removed)
		select {
		case <-removed.Exited():
		case <-time.After(10 * time.Second):
			r.Fault(WrongCourse, "%s runs 10 s after it was removed\n%s", removed.Name(), removed.LogTail(10))
		}
		r.Must(r.WaitHealthy(30 * time.Second))
		r.Pass(500 * time.Millisecond)
	}
	r.CheckGap("writes", began, r.Now(), Writes)
	r.Finish()
}

// promote asks the leader until the learner has caught up, and waits until that
// knows that it is none any more.
func promote(ctx context.Context, r *Run, learner *harness.Member) error {
	id, err := learner.ID(ctx)
	if err != nil {
		return err
	}
	client := pb.NewClusterClient(r.dial(r.Leader()))
	for {
		_, err = client.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: id})
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return err
		}
		if harness.ErrorText(err) != "FailedPrecondition: etcdserver: can only promote a learner member which is in sync with leader" &&
			harness.ErrorText(err) != "Unavailable: etcdserver: unhealthy cluster" {
			return fmt.Errorf("promote: %w", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	for ctx.Err() == nil {
		if status, err := learner.Status(ctx); err == nil && !status.IsLearner {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s is a learner though it was promoted", learner.Name())
}
