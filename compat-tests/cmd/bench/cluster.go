package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"etched.dev/compat-tests/harness"
)

// cluster is what is measured: the members of one server kind. All that a row
// asks of it (addresses, processor time, memory) is a sum or a choice over its
// members, so that a row does not know how many there are.
type cluster struct {
	kind    harness.Kind
	members []*harness.Server
	// asked are those that loads go to.
	asked []*harness.Server
	// whole is what the members belong to, nil for a single one.
	whole *harness.Cluster
}

// quota keeps a server from refusing puts in the middle of a run.
const quota = "--quota-backend-bytes=8589934592"

// startCluster starts fresh members with their data below parent.
func startCluster(kind harness.Kind, members int, parent string) (*cluster, error) {
	if members > 1 {
		whole, err := harness.LaunchCluster(kind, harness.ClusterOptions{
			Members: members, ParentDir: parent, Flags: []string{quota}, Direct: true,
		})
		if err != nil {
			return nil, err
		}
		c := &cluster{kind: kind, whole: whole}
		for _, member := range whole.Members() {
			c.members = append(c.members, member.Server)
		}
		c.asked = c.members
		return c, nil
	}
	server, err := harness.Launch(kind, harness.Options{ParentDir: parent, Flags: []string{quota}})
	if err != nil {
		return nil, err
	}
	alone := []*harness.Server{server}
	return &cluster{kind: kind, members: alone, asked: alone}, nil
}

// endpoint is the address that the i-th connection of a load goes to.
func (c *cluster) endpoint(i int) string { return c.asked[i%len(c.asked)].Endpoint() }

// remove ends all members and deletes their data.
func (c *cluster) remove() error {
	if c.whole != nil {
		return c.whole.Remove()
	}
	var failures []error
	for _, member := range c.members {
		failures = append(failures, member.Kill(), member.Remove())
	}
	return errors.Join(failures...)
}

// cpu is the processor time all members have used.
func (c *cluster) cpu() (total time.Duration, err error) {
	for _, member := range c.members {
		used, err := member.CPUTime()
		if err != nil {
			return 0, err
		}
		total += used
	}
	return total, nil
}

// memory is the resident memory of all members, in bytes: in all, and the part
// that is not a mapped file (which the kernel can drop when memory is short).
func (c *cluster) memory() (resident, anonymous float64, err error) {
	for _, member := range c.members {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", member.PID()))
		if err != nil {
			return 0, 0, err
		}
		for line := range strings.SplitSeq(string(content), "\n") {
			name, text, _ := strings.Cut(line, ":")
			if name != "VmRSS" && name != "RssAnon" {
				continue
			}
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(text), " kB"), 10, 64)
			if err != nil {
				return 0, 0, err
			}
			if name == "VmRSS" {
				resident += float64(kib) * 1024
			} else {
				anonymous += float64(kib) * 1024
			}
		}
	}
	return resident, anonymous, nil
}

// measure sleeps through a phase and answers the processor times of its window.
func (c *cluster) measure(plan phase) (outcome, error) {
	time.Sleep(time.Until(plan.from))
	began := time.Now()
	server, err := c.cpu()
	if err != nil {
		return outcome{}, err
	}
	own, busy := ownCPU(), busyCPU()
	time.Sleep(time.Until(plan.until))
	serverAfter, err := c.cpu()
	if err != nil {
		return outcome{}, err
	}
	result := outcome{Window: time.Since(began), ServerCPU: serverAfter - server, ClientCPU: ownCPU() - own}
	result.OtherCPU = max(0, busyCPU()-busy-result.ServerCPU-result.ClientCPU)
	return result, nil
}

// awaitQuiet waits until nothing but this process uses the machine's processors, at
// most for the given time; it answers the time it took. What members have left to write
// of the load, or of the row before, is no part of the next row.
func (c *cluster) awaitQuiet(limit time.Duration) time.Duration {
	const look, quiet = 400 * time.Millisecond, 0.15
	began := time.Now()
	for time.Since(began)+look < limit {
		now := time.Now()
		result, err := c.measure(phase{from: now, until: now.Add(look)})
		if err != nil || (result.OtherCPU+result.ServerCPU).Seconds() < quiet*result.Window.Seconds() {
			break
		}
	}
	return time.Since(began)
}

// busyCPU is the processor time that the whole machine has used, with what its
// host took away; 0 where it is not known.
func busyCPU() time.Duration {
	content, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	const idle, waiting, all = 4, 5, 8 // columns after the name; guests are in user already
	first, _, _ := strings.Cut(string(content), "\n")
	var ticks int64
	for column, text := range strings.Fields(first) {
		if column == 0 || column == idle || column == waiting || column > all {
			continue
		}
		count, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0
		}
		ticks += count
	}
	const ticksPerSecond = 100
	return time.Duration(ticks) * time.Second / ticksPerSecond
}

func (c *cluster) connect() (*grpc.ClientConn, error) {
	return grpc.NewClient(c.endpoint(0), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
}

// load puts the first `keys` keys, in order, by transactions of 128 puts. It is
// not measured.
func (c *cluster) load(ctx context.Context, keys int) error {
	const batch, loaders = 128, 4
	connection, err := c.connect()
	if err != nil {
		return err
	}
	defer connection.Close()
	client := pb.NewKVClient(connection)
	failures := newFailures(loaders)
	var running sync.WaitGroup
	for loader := range loaders {
		running.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(loader), 3))
			for first := loader * batch; first < keys && failures[loader] == nil; first += loaders * batch {
				_, failures[loader] = client.Txn(ctx, putMany(first, min(first+batch, keys), rng))
			}
		})
	}
	running.Wait()
	if err := firstError(failures); err != nil {
		return fmt.Errorf("load %d keys: %w", keys, err)
	}
	response, err := client.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true})
	if err != nil {
		return err
	}
	if response.Count != int64(keys) {
		return fmt.Errorf("%d keys are there after %d were loaded", response.Count, keys)
	}
	return nil
}

// settle has every member put its store in order. Else it depends on the load's size
// whether a row pays for what is left of it: etched writes it out once enough has come
// together, which may be within the first row or never.
func (c *cluster) settle(ctx context.Context) error {
	for i := range c.members {
		connection, err := grpc.NewClient(c.endpoint(i), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		_, err = pb.NewMaintenanceClient(connection).Defragment(ctx, &pb.DefragmentRequest{})
		_ = connection.Close()
		if err != nil {
			return fmt.Errorf("defragment: %w", err)
		}
	}
	return nil
}

func putMany(from, until int, rng *rand.Rand) *pb.TxnRequest {
	request := &pb.TxnRequest{}
	for n := from; n < until; n++ {
		request.Success = append(request.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: appendKey(nil, n), Value: value(rng)},
		}})
	}
	return request
}

// firstRead starts the ended member and answers the time from its start to its
// first answer to a linearizable read of a loaded key.
func (c *cluster) firstRead(limit time.Duration) (time.Duration, error) {
	began := time.Now()
	if err := c.members[0].Spawn(); err != nil {
		return 0, err
	}
	var last error
	for time.Since(began) < limit && c.members[0].Running() {
		if last = readOnce(c.endpoint(0), limit-time.Since(began)); last == nil {
			return time.Since(began), nil
		}
		time.Sleep(time.Millisecond)
	}
	return 0, fmt.Errorf("no first read within %v: %w\n%s", limit, last, c.members[0].LogTail(10))
}

func readOnce(address string, limit time.Duration) error {
	c, err := dial(address, methodRange, 1)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.net.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	received, done := 0, false
	c.onData = func(_ int, payload []byte) { received += len(payload) }
	c.onEnd = func(int) { done = true }
	if err := c.call(0, get(1).encode(nil, rand.New(rand.NewPCG(1, 1))), true); err != nil {
		return err
	}
	for !done {
		if err := c.flush(); err != nil {
			return err
		}
		if err := c.step(); err != nil {
			return err
		}
	}
	if received < valueLength {
		return errors.New("the key read first has no value")
	}
	return nil
}
