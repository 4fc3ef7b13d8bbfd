package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"etched.dev/compat-tests/harness"
)

// What only clusters have to show: whom a load asks, how long a cluster is without
// a leader, how fast a new member comes up to the others.

// membersLimit bounds each wait for a cluster.
const membersLimit = time.Minute

// leading and following narrow a cluster to the leader or one follower: loads go
// there, processor time is still that of all members.
func leading(c *cluster) (*cluster, error) {
	leader, err := c.whole.WaitLeader(membersLimit)
	if err != nil {
		return nil, err
	}
	return c.asking(leader), nil
}

func following(c *cluster) (*cluster, error) {
	leader, err := c.whole.WaitLeader(membersLimit)
	if err != nil {
		return nil, err
	}
	return c.asking(c.whole.Others(leader)[0]), nil
}

func (c *cluster) asking(member *harness.Member) *cluster {
	narrow := *c
	narrow.asked = []*harness.Server{member.Server}
	return &narrow
}

// askedRow is a loopRow whose clients ask one member only.
func askedRow(id, title string, kind func(keys int) request, clients int, narrow func(*cluster) (*cluster, error)) row {
	return row{id: id, title: title, measure: func(_ context.Context, target *cluster, s settings) ([]figure, error) {
		asked, err := narrow(target)
		if err != nil {
			return nil, err
		}
		result, err := closedLoop(asked, kind(s.keys), clients, s)
		return loopFigures("throughput", "ops/s", result), err
	}}
}

// measureFailover kills the leader again and again, and takes the time to the
// first write that one of the others answers.
func measureFailover(ctx context.Context, target *cluster, s settings) ([]figure, error) {
	const settle = time.Second
	var took []time.Duration
	for range s.failovers {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		leader, err := target.whole.WaitLeader(membersLimit)
		if err != nil {
			return nil, err
		}
		time.Sleep(settle)
		one, err := failover(target.whole, leader)
		if err != nil {
			return nil, err
		}
		took = append(took, one)
		if err := errors.Join(leader.Restart(), target.whole.WaitHealthy(membersLimit)); err != nil {
			return nil, err
		}
	}
	slices.Sort(took)
	return []figure{
		{Name: "kill to the next write, median", Unit: "ms", Better: lower, Value: milliseconds((took[(len(took)-1)/2] + took[len(took)/2]) / 2)},
		{Name: "kill to the next write, p90", Unit: "ms", Better: lower, Value: milliseconds(took[(len(took)-1)*9/10])},
		{Name: "kill to the next write, longest", Unit: "ms", Better: lower, Value: milliseconds(took[len(took)-1]), Aside: true},
	}, nil
}

// failover kills the leader while each of the others is asked for writes, one
// after the other without waiting for answers.
func failover(whole *harness.Cluster, leader *harness.Member) (time.Duration, error) {
	const every, patience, limit = 10 * time.Millisecond, 2 * time.Second, 30 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	answered := make(chan time.Time, 1)
	var began time.Time
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	var connections []*grpc.ClientConn
	for _, member := range whole.Others(leader) {
		connection, err := connectQuickly(member.Endpoint())
		if err != nil {
			return 0, err
		}
		defer connection.Close()
		if err := putOnce(ctx, connection, limit); err != nil {
			return 0, fmt.Errorf("a put before the leader is killed: %w", err)
		}
		connections = append(connections, connection)
	}
	began = time.Now()
	if err := leader.Kill(); err != nil {
		return 0, err
	}
	for _, connection := range connections {
		asking.Go(func() {
			for ; ctx.Err() == nil; time.Sleep(every) {
				asking.Go(func() {
					if putOnce(ctx, connection, patience) == nil {
						select {
						case answered <- time.Now():
						default:
						}
					}
				})
			}
		})
	}
	select {
	case at := <-answered:
		return at.Sub(began), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("no write within %v of the leader's end", limit)
	}
}

func connectQuickly(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.2, MaxDelay: 100 * time.Millisecond}}))
}

func putOnce(ctx context.Context, connection *grpc.ClientConn, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := pb.NewKVClient(connection).Put(ctx, &pb.PutRequest{Key: appendKey(nil, 0), Value: values[:valueLength]})
	return err
}

// measureJoin fills a cluster and takes the time from the start of a new member,
// a learner, until it has applied all that the leader had by then.
func measureJoin(ctx context.Context, target *cluster, s settings) ([]figure, error) {
	if err := target.fill(ctx, s.joinBytes); err != nil {
		return nil, err
	}
	leader, err := target.whole.WaitLeader(membersLimit)
	if err != nil {
		return nil, err
	}
	status, err := leader.Status(ctx)
	if err != nil {
		return nil, err
	}
	cpu, err := target.cpu()
	if err != nil {
		return nil, err
	}
	joined, err := target.whole.Add(ctx, leader, true)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	for {
		of, err := joined.Status(ctx)
		if err == nil && of.RaftAppliedIndex >= status.RaftAppliedIndex {
			break
		}
		if !joined.Running() || ctx.Err() != nil {
			return nil, fmt.Errorf("the new member does not catch up: %w\n%s", err, joined.LogTail(10))
		}
		time.Sleep(2 * time.Millisecond)
	}
	took := time.Since(began)
	after, err := target.cpu()
	if err != nil {
		return nil, err
	}
	own, err := joined.CPUTime()
	if err != nil {
		return nil, err
	}
	return []figure{
		{Name: "start to caught up", Unit: "s", Better: lower, Value: took.Seconds()},
		{Name: "CPU of all members", Unit: "s", Better: lower, Value: (after - cpu + own).Seconds()},
	}, nil
}

// fill puts values of 4 KiB, 16 in a transaction: enough entries that the log does
// not hold them all. It is not measured.
func (c *cluster) fill(ctx context.Context, size int) error {
	const large, batch, loaders = 4 << 10, 16, 4
	transactions := size / large / batch
	failures := newFailures(loaders)
	var running sync.WaitGroup
	for loader := range loaders {
		running.Go(func() {
			connection, err := grpc.NewClient(c.endpoint(loader), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				failures[loader] = err
				return
			}
			defer connection.Close()
			rng := rand.New(rand.NewPCG(uint64(loader), 7))
			for n := loader; n < transactions && failures[loader] == nil; n += loaders {
				request := &pb.TxnRequest{}
				for i := range batch {
					at := rng.IntN(len(values) - large)
					request.Success = append(request.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
						RequestPut: &pb.PutRequest{Key: appendKey(nil, n*batch+i), Value: values[at : at+large]},
					}})
				}
				_, failures[loader] = pb.NewKVClient(connection).Txn(ctx, request)
			}
		})
	}
	running.Wait()
	if err := firstError(failures); err != nil {
		return fmt.Errorf("fill with %d MB: %w", size>>20, err)
	}
	return nil
}
