package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The keyspace: plain keys that everyone puts, deletes and compares; groups that
// are only ever written or deleted whole; keys of short leases; a few large ones;
// one hot key.
const (
	plainKeys  = 300
	groups     = 12
	groupSize  = 8
	plainSpace = "k/"
	groupSpace = "g/"
	leaseSpace = "l/"
	bulkSpace  = "bulk/"
	hotKey     = "hot"

	requestLimit = 5 * time.Second
)

// Client is one client of the server: it sends one request after the other.
type Client struct {
	log     *Log
	history *History
	leases  *Leases
	rng     *rand.Rand
	client  *clientv3.Client
}

// Write is the next request of a writing client, drawn at random.
func (c *Client) Write(ctx context.Context) {
	switch draw := c.rng.IntN(100); {
	case draw < 36:
		c.put(ctx, c.plainKey())
	case draw < 42:
		c.put(ctx, hotKey)
	case draw < 54:
		c.delete(ctx, Interval{Key: c.plainKey()})
	case draw < 72:
		c.writeGroup(ctx)
	case draw < 76:
		c.delete(ctx, Prefix(groupPrefix(c.rng.IntN(groups))))
	case draw < 88:
		c.mixedTxn(ctx)
	default:
		c.compareAndSet(ctx)
	}
}

func (c *Client) plainKey() string { return fmt.Sprintf("%s%03d", plainSpace, c.rng.IntN(plainKeys)) }

func groupPrefix(group int) string { return fmt.Sprintf("%s%02d/", groupSpace, group) }

// value is a token and filling: mostly small, at times some kilobytes, so that
// logs and flushes are not all alike.
func (c *Client) value(word string) string {
	length := c.rng.IntN(300)
	if c.rng.IntN(100) == 0 {
		length = 8 << 10
	}
	return word + " " + strings.Repeat("x", length)
}

func (c *Client) put(ctx context.Context, key string) {
	var lease int64
	if c.rng.IntN(10) == 0 {
		lease = c.leases.Usable(c.rng)
	}
	word := c.log.Token()
	c.Do(ctx, &Operation{
		Token: word, Name: "put", WantPrev: c.rng.IntN(3) == 0,
		Steps: []Step{{Key: key, Value: c.value(word), Lease: lease}},
	})
}

func (c *Client) delete(ctx context.Context, keys Interval) {
	c.Do(ctx, &Operation{
		Token: c.log.Token(), Name: "delete", WantPrev: c.rng.IntN(2) == 0,
		Steps: []Step{{Delete: keys}},
	})
}

func (c *Client) writeGroup(ctx context.Context) {
	word := c.log.Token()
	operation := &Operation{Token: word, Name: "txn"}
	prefix, value := groupPrefix(c.rng.IntN(groups)), c.value(word)
	for i := range groupSize {
		operation.Steps = append(operation.Steps, Step{Key: fmt.Sprintf("%s%d", prefix, i), Value: value})
	}
	c.Do(ctx, operation)
}

func (c *Client) mixedTxn(ctx context.Context) {
	word := c.log.Token()
	operation := &Operation{Token: word, Name: "txn"}
	puts := 1 + c.rng.IntN(4)
	for i, n := range c.rng.Perm(plainKeys)[:puts+c.rng.IntN(4)] {
		key := fmt.Sprintf("%s%03d", plainSpace, n)
		if i < puts {
			operation.Steps = append(operation.Steps, Step{Key: key, Value: c.value(word)})
		} else {
			operation.Steps = append(operation.Steps, Step{Delete: Interval{Key: key}})
		}
	}
	c.rng.Shuffle(len(operation.Steps), func(i, j int) {
		operation.Steps[i], operation.Steps[j] = operation.Steps[j], operation.Steps[i]
	})
	c.Do(ctx, operation)
}

func (c *Client) compareAndSet(ctx context.Context) {
	word, key := c.log.Token(), c.plainKey()
	operation := &Operation{
		Token: word, Name: "compare-and-set", CompareKey: key,
		Steps: []Step{{Key: key, Value: c.value(word)}},
	}
	if kv := c.history.At(key, c.history.Head()); kv != nil {
		operation.CompareMod = kv.ModRevision
	}
	c.Do(ctx, operation)
}

// Do sends the operation once and records it with its outcome.
func (c *Client) Do(ctx context.Context, operation *Operation) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	operation.Floor = c.log.Begin()
	switch operation.Name {
	case "put":
		c.sendPut(ctx, operation)
	case "delete":
		c.sendDelete(ctx, operation)
	default:
		c.sendTxn(ctx, operation)
	}
	operation.Outcome = OutcomeOf(operation.Err)
	c.log.Done(operation)
	if operation.Outcome == Unknown {
		time.Sleep(5 * time.Millisecond)
	}
}

func (c *Client) sendPut(ctx context.Context, operation *Operation) {
	step := operation.Steps[0]
	options := []clientv3.OpOption{clientv3.WithLease(clientv3.LeaseID(step.Lease))}
	if operation.WantPrev {
		options = append(options, clientv3.WithPrevKV())
	}
	response, err := c.client.Put(ctx, step.Key, step.Value, options...)
	if operation.Err = err; err != nil {
		return
	}
	operation.Revision, operation.Succeeded = response.Header.Revision, true
	if response.PrevKv != nil {
		operation.Prev = []*mvccpb.KeyValue{response.PrevKv}
	}
}

func (c *Client) sendDelete(ctx context.Context, operation *Operation) {
	step := operation.Steps[0]
	var options []clientv3.OpOption
	if step.Delete.End != "" {
		options = append(options, clientv3.WithRange(step.Delete.End))
	}
	if operation.WantPrev {
		options = append(options, clientv3.WithPrevKV())
	}
	response, err := c.client.Delete(ctx, step.Delete.Key, options...)
	if operation.Err = err; err != nil {
		return
	}
	operation.Revision, operation.Succeeded = response.Header.Revision, true
	operation.Deleted, operation.Prev = response.Deleted, response.PrevKvs
}

func (c *Client) sendTxn(ctx context.Context, operation *Operation) {
	txn := c.client.Txn(ctx)
	var otherwise []clientv3.Op
	if operation.CompareKey != "" {
		txn = txn.If(clientv3.Compare(clientv3.ModRevision(operation.CompareKey), "=", operation.CompareMod))
		otherwise = []clientv3.Op{clientv3.OpGet(operation.CompareKey)}
	}
	var then []clientv3.Op
	for _, step := range operation.Steps {
		if step.IsDelete() {
			then = append(then, clientv3.OpDelete(step.Delete.Key))
		} else {
			then = append(then, clientv3.OpPut(step.Key, step.Value, clientv3.WithLease(clientv3.LeaseID(step.Lease))))
		}
	}
	response, err := txn.Then(then...).Else(otherwise...).Commit()
	if operation.Err = err; err != nil {
		return
	}
	operation.Revision, operation.Succeeded = response.Header.Revision, response.Succeeded
	due := len(then)
	if !response.Succeeded {
		due = 1
	}
	if len(response.Responses) != due {
		c.log.Fault(WrongRead, "%s: %d responses where %d were due", operation, len(response.Responses), due)
		return
	}
	for _, part := range response.Responses {
		if deleted := part.GetResponseDeleteRange(); deleted != nil {
			operation.Deleted += deleted.Deleted
		}
		if found := part.GetResponseRange(); found != nil && len(found.Kvs) > 0 {
			operation.Seen = found.Kvs[0]
		}
	}
}

// WriteBulk puts a large value: enough of them fill the raft log's files and the
// state's buffers within a few rounds, so that files are changed, flushed and cut.
func (c *Client) WriteBulk(ctx context.Context) {
	const bulkKeys, smallest, spread = 4, 64 << 10, 192 << 10
	word := c.log.Token()
	c.Do(ctx, &Operation{Token: word, Name: "put", Steps: []Step{{
		Key:   fmt.Sprintf("%s%d", bulkSpace, c.rng.IntN(bulkKeys)),
		Value: word + " " + strings.Repeat("x", smallest+c.rng.IntN(spread)),
	}}})
}

// Read is the next request of a reading client: a whole group, the hot key or a
// plain one, linearizable.
func (c *Client) Read(ctx context.Context) {
	keys := Interval{Key: hotKey}
	switch draw := c.rng.IntN(10); {
	case draw < 5:
		keys = Prefix(groupPrefix(c.rng.IntN(groups)))
	case draw < 9:
		keys = Interval{Key: c.plainKey()}
	}
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	floor := c.log.Begin()
	response, err := c.client.Get(ctx, keys.Key, rangeEnd(keys)...)
	if err != nil {
		time.Sleep(5 * time.Millisecond)
		return
	}
	c.log.Observed(&Read{Keys: keys, Floor: floor, Revision: response.Header.Revision, KVs: response.Kvs})
}

func rangeEnd(keys Interval) []clientv3.OpOption {
	if keys.End == "" {
		return nil
	}
	return []clientv3.OpOption{clientv3.WithRange(keys.End)}
}

// UseLease grants a lease, puts a few keys under it and sometimes revokes it.
func (c *Client) UseLease(ctx context.Context) {
	ttl := int64(2 + c.rng.IntN(3))
	if c.rng.IntN(3) == 0 {
		ttl = longTTL
	}
	lease := c.leases.New(ttl)
	leases := pb.NewLeaseClient(c.client.ActiveConnection())
	requestCtx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	response, err := leases.LeaseGrant(requestCtx, &pb.LeaseGrantRequest{ID: lease.ID, TTL: ttl})
	c.leases.Granted(lease.ID, OutcomeOf(err))
	if err != nil {
		time.Sleep(5 * time.Millisecond)
		return
	}
	c.log.Learned(response.Header.Revision)
	if response.ID != lease.ID || response.TTL != ttl {
		c.log.Fault(LeaseBroken, "asked for lease %x with TTL %d, was granted %x with %d", lease.ID, ttl, response.ID, response.TTL)
	}
	for i := range 1 + c.rng.IntN(4) {
		word := c.log.Token()
		c.Do(ctx, &Operation{Token: word, Name: "put", Steps: []Step{{
			Key: fmt.Sprintf("%s%x/%d", leaseSpace, lease.ID, i), Value: c.value(word), Lease: lease.ID,
		}}})
	}
	if ttl == longTTL && c.rng.IntN(2) == 0 {
		c.revoke(ctx, lease.ID)
	}
}

func (c *Client) revoke(ctx context.Context, lease int64) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	c.leases.Revoking(lease)
	response, err := pb.NewLeaseClient(c.client.ActiveConnection()).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: lease})
	c.leases.Revoked(lease, OutcomeOf(err))
	switch OutcomeOf(err) {
	case Acknowledged:
		c.log.Learned(response.Header.Revision)
	case Refused:
		c.log.Fault(LeaseBroken, "revocation of lease %x, granted and never revoked, was refused: %v", lease, err)
	}
}
