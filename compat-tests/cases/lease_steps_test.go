package cases

import (
	"bytes"
	"context"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// withoutRemaining drops the remaining time of a lease that has some: it
// depends on when it is asked for.
func withoutRemaining(message proto.Message) {
	if answer := message.(*pb.LeaseTimeToLiveResponse); answer.TTL >= 0 {
		answer.TTL = 0
	}
}

// sortedKeys orders the keys of a lease, which etcd tells in no order.
func sortedKeys(message proto.Message) {
	slices.SortFunc(message.(*pb.LeaseTimeToLiveResponse).Keys, bytes.Compare)
}

func sortLeases(leases []*pb.LeaseStatus) {
	slices.SortFunc(leases, func(a, b *pb.LeaseStatus) int {
		switch {
		case a.ID < b.ID:
			return -1
		case a.ID > b.ID:
			return 1
		}
		return 0
	})
}

// waitConnected waits until both connections serve again after a restart.
func (p *pair) waitConnected() {
	p.t.Helper()
	deadline := time.Now().Add(callLimit)
	for side, conn := range p.conn {
		for {
			outcome := invoke(context.Background(), conn, get("a"))
			if outcome.Err == nil {
				break
			}
			if time.Now().After(deadline) {
				p.t.Fatalf("side %d not back: %v", side, outcome.Err)
			}
			conn.ResetConnectBackoff()
			time.Sleep(20 * time.Millisecond)
		}
	}
}
