package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"

	"etched.dev/compat-tests/crash"
	"etched.dev/compat-tests/harness"
)

// collectLimit bounds each wait for evidence.
const collectLimit = 20 * time.Second

// Collect heals the cluster, ends the load and asks every member for all that it
// has. Damage that clients noticed at once is written to the run's report.
func (r *Run) Collect() (*Evidence, error) {
	if err := r.Heal(); err != nil {
		return nil, err
	}
	r.Pass(500 * time.Millisecond)
	r.stop()
	r.working.Wait()
	if err := r.leasesEnd(); err != nil {
		return nil, err
	}
	r.lastReads()
	head, err := r.fence()
	if err != nil {
		return nil, err
	}
	for _, w := range r.watchers {
		if !w.gone && !crash.Eventually(collectLimit, func() bool { return w.seen() >= head }) {
			r.Fault(crash.WatchBroken, "%s stands at revision %d, %d is due", w.got.Name, w.seen(), head)
		}
	}
	evidence := &Evidence{Head: head, Beside: r.beside, Operations: r.log.operationsSoFar(), Leases: r.log.leases}
	for _, w := range r.watchers {
		evidence.Watches = append(evidence.Watches, w.taken(head))
	}
	r.report.Merge(r.log.faults)
	for _, member := range r.Members() {
		view, err := r.view(member, head)
		if err != nil {
			return evidence, err
		}
		evidence.Members = append(evidence.Members, view)
	}
	evidence.Events = evidence.Members[0].Events
	return evidence, nil
}

// fence makes one more write, which everybody is to see; nothing comes after it.
func (r *Run) fence() (int64, error) {
	c := r.newClient("all", r.Members())
	defer c.etcd.Close()
	var last *Operation
	for range 5 {
		if last = c.do(&Operation{Action: Put, Key: "fence"}); last.Outcome == crash.Acknowledged {
			return last.Revision, nil
		}
	}
	return 0, fmt.Errorf("the last write fails: %s", last)
}

// lastReads reads every key through every member.
func (r *Run) lastReads() {
	var reading sync.WaitGroup
	for _, member := range r.Members() {
		c := r.newClient(member.Name(), []*harness.Member{member})
		reading.Go(func() {
			for n := range hotKeys {
				if got := c.do(&Operation{Action: Get, Key: fmt.Sprintf("%s%02d", hotSpace, n)}); got.Outcome != crash.Acknowledged {
					r.log.fault(crash.Unavailable, "a last read: %s", got)
				}
			}
		})
	}
	reading.Wait()
}

// leasesEnd waits until all leases have ended that nobody renews any more. A new
// leader may have given each of them its whole time again.
func (r *Run) leasesEnd() error {
	client := pb.NewLeaseClient(r.dial(r.Members()[0]))
	var left []*pb.LeaseStatus
	var last error
	ended := crash.Eventually(collectLimit, func() bool {
		ctx, cancel := context.WithTimeout(r.life, requestLimit)
		defer cancel()
		var response *pb.LeaseLeasesResponse
		if response, last = client.LeaseLeases(ctx, &pb.LeaseLeasesRequest{}); last != nil {
			return false
		}
		left = response.Leases
		time.Sleep(20 * time.Millisecond)
		return len(left) == 0
	})
	if last != nil {
		return fmt.Errorf("list of leases: %w", last)
	}
	if !ended {
		r.Fault(crash.LeaseBroken, "%d leases of %d s have not ended after %v: %v", len(left), leaseTTL, collectLimit, left)
	}
	return nil
}

// view asks one member for its history, keys and hash at a revision.
func (r *Run) view(member *harness.Member, head int64) (*View, error) {
	// A history of an hour has a hundred thousand revisions.
	ctx, cancel := context.WithTimeout(r.life, collectLimit+time.Duration(head)*time.Millisecond)
	defer cancel()
	connection := r.dial(member)
	view := &View{Name: member.Name()}
	var err error
	if view.Events, err = eventsUpTo(ctx, connection, head); err != nil {
		return nil, fmt.Errorf("history of %s: %w", member.Name(), err)
	}
	keys, err := pb.NewKVClient(connection).Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Serializable: true, Revision: head})
	if err != nil {
		return nil, fmt.Errorf("keys of %s: %w", member.Name(), err)
	}
	view.KVs = keys.Kvs
	hash, err := pb.NewMaintenanceClient(connection).HashKV(ctx, &pb.HashKVRequest{Revision: head})
	if err != nil {
		return nil, fmt.Errorf("hash of %s: %w", member.Name(), err)
	}
	view.Hash = hash.Hash
	return view, nil
}

// eventsUpTo reads the history by a watch from its beginning.
func eventsUpTo(ctx context.Context, connection *grpc.ClientConn, head int64) ([]*mvccpb.Event, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := pb.NewWatchClient(connection).Watch(ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: firstRevision + 1, PrevKv: true,
	}}})
	if err != nil {
		return nil, err
	}
	var events []*mvccpb.Event
	for {
		response, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if response.Canceled {
			return nil, fmt.Errorf("cancelled: compact revision %d, reason %q", response.CompactRevision, response.CancelReason)
		}
		for _, event := range response.Events {
			if event.Kv.ModRevision <= head {
				events = append(events, event)
			}
		}
		if len(events) > 0 && events[len(events)-1].Kv.ModRevision >= head {
			return events, nil
		}
	}
}
