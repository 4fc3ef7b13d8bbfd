package trio

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
)

// ledWatches are clients as kube-apiserver is one: each wants a watch that requires a leader,
// and when it is refused or cut asks again at once.
type ledWatches struct {
	refused, created atomic.Int64
	// lateRefusals are those of requests that were made after led was set.
	lateRefusals atomic.Int64
	led          atomic.Bool
}

func (w *ledWatches) run(ctx context.Context, client pb.WatchClient) {
	ctx = metadata.AppendToOutgoingContext(ctx, "hasleader", "true")
	for ctx.Err() == nil {
		led := w.led.Load()
		err := w.once(ctx, client)
		if ctx.Err() == nil && err != nil && harness.ErrorText(err) == noLeader {
			w.refused.Add(1)
			if led {
				w.lateRefusals.Add(1)
			}
		}
	}
}

// once makes a watch and follows it to its end.
func (w *ledWatches) once(ctx context.Context, client pb.WatchClient) error {
	stream, err := client.Watch(ctx)
	var message *pb.WatchResponse
	if err == nil {
		message, err = harness.Exchange(stream, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a")}}})
	}
	for ; err == nil; message, err = stream.Recv() {
		if message.Created {
			w.created.Add(1)
		}
	}
	return err
}

// Two of three members are killed and come back, beside clients that require a leader. Once
// the third knows a leader again it refuses nobody for the want of one, and all clients have
// their watches.
func TestWatchesOverALostQuorum(t *testing.T) {
	for _, c := range []struct {
		name string
		left int
	}{{"a leader is left", leader}, {"a follower is left", follower}} {
		t.Run(c.name, func(t *testing.T) {
			r := newTrio(t)
			r.each(func(cluster *harness.Cluster) error { return watchesOverALostQuorum(t, cluster, c.left) })
		})
	}
}

func watchesOverALostQuorum(t *testing.T, c *harness.Cluster, left int) error {
	const clients = 50
	member := c.Members()[left]
	watches := &ledWatches{}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	client := pb.NewWatchClient(member.Dial(t))
	for range clients {
		running.Go(func() { watches.run(ctx, client) })
	}
	for watches.created.Load() < clients && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	killed := time.Now()
	for _, other := range c.Others(member) {
		if err := other.Kill(); err != nil {
			return err
		}
	}
	if err := leaderless(member); err != nil {
		return err
	}
	lost := time.Now()
	// Long enough for the watches that were there to be cut.
	for watches.refused.Load() < 2*clients && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	cut := time.Now()
	for _, other := range c.Others(member) {
		if err := other.Restart(); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		if status, err := member.Status(ctx); err == nil && status.Leader != 0 {
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	back := time.Now()
	watches.led.Store(true)
	refused, created := watches.refused.Load(), watches.created.Load()
	for watches.created.Load() < 2*clients && ctx.Err() == nil {
		time.Sleep(2 * time.Millisecond)
	}
	round := func(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
	t.Logf("%v: leaderless %v after the kill, streams cut %v later, a leader %v after the restart; %d refusals till then, %d watches; all watches %v later",
		c.Kind(), round(lost.Sub(killed)), round(cut.Sub(lost)), round(back.Sub(cut)), refused, created, round(time.Since(back)))
	if ctx.Err() != nil {
		t.Errorf("%v: %d of %d watches came back", c.Kind(), watches.created.Load()-clients, clients)
	}
	if err := c.WaitHealthy(patience); err != nil {
		return err
	}
	if late := watches.lateRefusals.Load(); late > 0 {
		t.Errorf("%v: %d refusals of what was asked when there was a leader", c.Kind(), late)
	}
	return nil
}
