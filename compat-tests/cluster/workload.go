package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/crash"
)

const (
	// hotKeys is the number of keys that everyone writes and reads.
	hotKeys    = 16
	hotSpace   = "r/"
	leaseSpace = "l/"
	probeSpace = "p/"
	bulkSpace  = "b/"

	// requestLimit is what clients give a request before its fate is open. It is
	// shorter than a server's own limit, so that a client never waits out a fault.
	requestLimit = 2 * time.Second
	// usualPause is what a client takes between two requests, idle what it takes after
	// one that failed: enough load to notice everything, and a machine of two cores
	// that also runs three members keeps time for elections.
	usualPause = 12 * time.Millisecond
	idle       = 40 * time.Millisecond
)

// client sends one request after the other.
type client struct {
	number int
	via    string
	log    *log
	rng    *rand.Rand
	etcd   *clientv3.Client
	seen   map[string]string // the value last seen of each key
}

// writeNext is the next request of a writer, drawn at random.
func (c *client) writeNext() *Operation {
	key := c.key()
	operation := &Operation{Action: Put, Key: key}
	switch draw := c.rng.IntN(100); {
	case draw < 50:
		operation.SeesPrevious = draw < 25
	case draw < 85:
		operation.Action, operation.Expect = CompareAndSet, c.seen[key]
	default:
		operation.Action = Delete
	}
	return c.do(operation)
}

// readNext is the next request of a reader.
func (c *client) readNext() *Operation {
	return c.do(&Operation{Action: Get, Key: c.key()})
}

// bulkNext writes a large value, so that logs and files grow.
func (c *client) bulkNext() *Operation {
	const keys = 4
	return c.do(&Operation{Action: Put, Key: fmt.Sprint(bulkSpace, c.rng.IntN(keys))})
}

func (c *client) key() string { return fmt.Sprintf("%s%02d", hotSpace, c.rng.IntN(hotKeys)) }

// do sends the operation once and records it.
func (c *client) do(operation *Operation) *Operation {
	c.within(requestLimit, operation)
	c.remember(operation)
	return operation
}

// within is do with another limit, and for use by several goroutines at once.
func (c *client) within(limit time.Duration, operation *Operation) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	operation.Client, operation.Via = c.number, c.via
	if operation.Value == "" && (operation.Action == Put || operation.Action == CompareAndSet) {
		operation.Value = c.log.token()
	}
	filling := 0
	if operation.Value != "" {
		filling = c.filling(operation)
	}
	operation.Call = c.log.now()
	err := c.send(ctx, operation, filling)
	operation.Return = c.log.now()
	if operation.Outcome = crash.OutcomeOf(err); err != nil {
		operation.Err = err.Error()
	}
	c.log.done(operation)
}

func (c *client) send(ctx context.Context, operation *Operation, filling int) error {
	switch operation.Action {
	case Put:
		return c.put(ctx, operation, filling)
	case Delete:
		response, err := c.etcd.Delete(ctx, operation.Key)
		if err == nil {
			operation.Revision, operation.Applied = response.Header.Revision, response.Deleted > 0
		}
		return err
	case CompareAndSet:
		return c.compareAndSet(ctx, operation, filling)
	default:
		response, err := c.etcd.Get(ctx, operation.Key)
		if err == nil {
			operation.Revision = response.Header.Revision
			if len(response.Kvs) > 0 {
				operation.Seen = crash.TokenOf(response.Kvs[0].Value)
			}
		}
		return err
	}
}

// filling is how long the filling behind a token is to be, so that logs and
// flushes are not all alike; never 0, since a compare-and-set looks for some.
func (c *client) filling(operation *Operation) int {
	switch {
	case strings.HasPrefix(operation.Key, probeSpace):
		return 1
	case strings.HasPrefix(operation.Key, bulkSpace):
		return 32<<10 + c.rng.IntN(64<<10)
	default:
		return 1 + c.rng.IntN(200)
	}
}

func filled(token string, filling int) string { return token + " " + strings.Repeat("x", filling) }

func (c *client) put(ctx context.Context, operation *Operation, filling int) error {
	options := []clientv3.OpOption{clientv3.WithLease(clientv3.LeaseID(operation.Lease))}
	if operation.SeesPrevious {
		options = append(options, clientv3.WithPrevKV())
	}
	response, err := c.etcd.Put(ctx, operation.Key, filled(operation.Value, filling), options...)
	if err != nil {
		return err
	}
	operation.Revision = response.Header.Revision
	if response.PrevKv != nil {
		operation.Seen = crash.TokenOf(response.PrevKv.Value)
	}
	return nil
}

// compareAndSet compares by value: a key holds a token and filling that this
// client does not know, so the comparison is with the range of all fillings.
func (c *client) compareAndSet(ctx context.Context, operation *Operation, filling int) error {
	conditions := []clientv3.Cmp{clientv3.Compare(clientv3.Version(operation.Key), "=", 0)}
	if operation.Expect != "" {
		conditions = []clientv3.Cmp{
			clientv3.Compare(clientv3.Value(operation.Key), ">", operation.Expect+" "),
			clientv3.Compare(clientv3.Value(operation.Key), "<", operation.Expect+"!"),
		}
	}
	response, err := c.etcd.Txn(ctx).If(conditions...).
		Then(clientv3.OpPut(operation.Key, filled(operation.Value, filling))).
		Else(clientv3.OpGet(operation.Key)).Commit()
	if err != nil {
		return err
	}
	operation.Revision, operation.Applied = response.Header.Revision, response.Succeeded
	if response.Succeeded {
		operation.Seen = operation.Expect
		return nil
	}
	if found := response.Responses[0].GetResponseRange(); len(found.GetKvs()) > 0 {
		operation.Seen = crash.TokenOf(found.Kvs[0].Value)
	}
	return nil
}

func (c *client) remember(operation *Operation) {
	if operation.Outcome != crash.Acknowledged || !strings.HasPrefix(operation.Key, hotSpace) {
		return
	}
	switch {
	case operation.Action == Delete:
		c.seen[operation.Key] = ""
	case operation.Effective():
		c.seen[operation.Key] = operation.Value
	default:
		c.seen[operation.Key] = operation.Seen
	}
}

// work sends requests until the context ends; the last one is waited for.
func (c *client) work(stop context.Context, next func(*client) *Operation, between time.Duration) {
	defer c.etcd.Close()
	for stop.Err() == nil {
		wait := between
		if next(c).Outcome == crash.Unknown {
			wait = max(idle, between)
		}
		select {
		case <-stop.Done():
		case <-time.After(wait):
		}
	}
}
