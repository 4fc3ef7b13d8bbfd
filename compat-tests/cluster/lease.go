package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/crash"
)

// Lease is one lease, with one key, that a client held and let go.
type Lease struct {
	ID, TTL int64
	Key     string
	// Alive is the earliest time at which it may end: its time to live, counted
	// from before the last renewal was sent that was answered. Where it was to be
	// revoked, it is when that was sent.
	Alive time.Duration
	// Ended is when the first of all watches reported that its key was deleted; 0 for
	// never.
	Ended time.Duration
}

const leaseTTL = 3

// holdLease grants a lease, attaches a key, renews it for a while and then
// revokes or forgets it.
func (c *client) holdLease(stop context.Context) {
	lease := &Lease{TTL: leaseTTL}
	c.log.mu.Lock()
	lease.ID = 0x1ea5e000 + int64(len(c.log.leases)) + 1
	lease.Key = fmt.Sprintf("%s%x", leaseSpace, lease.ID)
	c.log.leases = append(c.log.leases, lease)
	c.log.mu.Unlock()
	sent := c.log.now()
	if !c.grant(lease) {
		return
	}
	c.renewed(lease, sent, leaseTTL)
	c.do(&Operation{Action: Put, Key: lease.Key, Lease: lease.ID})
	for n := 1 + c.rng.IntN(8); n > 0 && stop.Err() == nil; n-- {
		if !c.renew(lease) {
			return
		}
		select {
		case <-stop.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
	// When the run ends, nobody is to wait for leases that are forgotten.
	if stop.Err() != nil || c.rng.IntN(3) == 0 {
		c.revoke(lease)
	}
}

func (c *client) grant(lease *Lease) bool {
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	defer cancel()
	_, err := pb.NewLeaseClient(c.etcd.ActiveConnection()).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: lease.ID, TTL: lease.TTL})
	if crash.OutcomeOf(err) == crash.Refused {
		c.log.fault(crash.LeaseBroken, "the grant of lease %x was refused: %v", lease.ID, err)
	}
	return err == nil
}

func (c *client) renewed(lease *Lease, sent time.Duration, ttl int64) {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	lease.Alive = max(lease.Alive, sent+time.Duration(ttl)*time.Second)
}

func (c *client) alive(lease *Lease) time.Duration {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	return lease.Alive
}

// renew sends one keepalive; false where the lease is known to have ended. What
// fails for want of a leader is tried again until the lease may have ended.
func (c *client) renew(lease *Lease) bool {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		sent := c.log.now()
		response, err := c.etcd.KeepAliveOnce(ctx, clientv3.LeaseID(lease.ID))
		cancel()
		now := c.log.now()
		switch {
		case err == nil && response.TTL > 0:
			c.renewed(lease, sent, response.TTL)
			return true
		case err == nil || errors.Is(err, rpctypes.ErrLeaseNotFound):
			if now < c.alive(lease) {
				c.log.fault(crash.LeaseBroken, "lease %x was gone at %v, its time was not up before %v", lease.ID, round(now), round(c.alive(lease)))
			}
			return false
		case now > c.alive(lease):
			return false
		}
		time.Sleep(idle)
	}
}

func (c *client) revoke(lease *Lease) {
	c.log.mu.Lock()
	lease.Alive = min(lease.Alive, c.log.now())
	c.log.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	defer cancel()
	_, err := pb.NewLeaseClient(c.etcd.ActiveConnection()).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: lease.ID})
	// It may have expired meanwhile, or a first attempt may have been made.
	if err != nil && crash.OutcomeOf(err) == crash.Refused && !errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound) {
		c.log.fault(crash.LeaseBroken, "the revocation of lease %x was refused: %v", lease.ID, err)
	}
}

// holdLeases holds one lease after the other.
func (c *client) holdLeases(stop context.Context) {
	defer c.etcd.Close()
	for stop.Err() == nil {
		c.holdLease(stop)
		time.Sleep(idle)
	}
}
