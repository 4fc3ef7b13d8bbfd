package edges

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"etched.dev/compat-tests/harness"
)

const (
	readEvery, putEvery, healthEvery, connectEvery = 10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond
	// probeLimit is what one probe is given.
	probeLimit = 10 * time.Second
	// openProbes bounds the probes of one kind that wait for their answer.
	openProbes = 4096
)

// probeResults are the measurements of well-behaved clients during an attack.
type probeResults struct {
	Serializable, Linearizable, Puts, Health figures
	NewConnections                           tally
	// Late is by how much reads were sent after their time: the machine's share, not the
	// server's, of a latency.
	Late figures
	// Acked are the acknowledged writes.
	Acked map[string]string
}

const keptPrefix, probeKey = "kept/", "probe"

// probes are clients in a process of their own: in the attacker's process the scheduler
// would delay them behind a thousand attacking goroutines.
type probes struct {
	command *exec.Cmd
	stdin   io.Closer // closed to stop them
	results *json.Decoder
}

// probeTargetEnv is the environment variable with the addresses that such a process probes.
const probeTargetEnv = "EDGES_PROBE_TARGET"

// startProbes starts the process and waits until it is connected.
func startProbes(server *harness.Server, metricsURL string) (*probes, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	command := exec.Command(self)
	command.Env = append(os.Environ(), probeTargetEnv+"="+server.Endpoint()+" "+metricsURL)
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	p := &probes{command: command, stdin: stdin, results: json.NewDecoder(out)}
	var ready string
	if err := p.results.Decode(&ready); err != nil {
		return nil, errors.Join(fmt.Errorf("the probes do not start: %w", err), stdin.Close(), command.Wait())
	}
	return p, nil
}

// stop ends the probes, after the requests in flight, and returns their results.
func (p *probes) stop() (*probeResults, error) {
	results := &probeResults{}
	closing := p.stdin.Close()
	decoding := p.results.Decode(results)
	return results, errors.Join(closing, decoding, p.command.Wait())
}

// runProbes is the main function of the process of the probes. It ends with its standard
// input.
func runProbes(addresses string) error {
	endpoint, metricsURL, _ := strings.Cut(addresses, " ")
	p := &prober{endpoint: endpoint, metricsURL: metricsURL, probeResults: probeResults{Acked: map[string]string{}}}
	connection, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		return err
	}
	defer connection.Close()
	p.client = pb.NewKVClient(connection)
	limited, cancel := context.WithTimeout(context.Background(), probeLimit)
	defer cancel()
	if _, err := p.client.Put(limited, &pb.PutRequest{Key: []byte(probeKey), Value: []byte("probe")}); err != nil {
		return fmt.Errorf("the first put: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var working sync.WaitGroup
	for _, work := range []func(context.Context){p.reads, p.writes, p.probeHealth, p.connectAnew} {
		working.Go(func() { work(ctx) })
	}
	results := json.NewEncoder(os.Stdout)
	if err := results.Encode("ready"); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	stop()
	working.Wait()
	return errors.Join(err, results.Encode(&p.probeResults))
}

// prober are the probes, within their process.
type prober struct {
	probeResults
	endpoint, metricsURL string
	client               pb.KVClient
}

// reads sends reads at fixed times, whether or not earlier ones were answered: a stall of
// a second then counts in a hundred latencies, not in one.
func (p *prober) reads(ctx context.Context) {
	var open sync.WaitGroup
	defer open.Wait()
	var waiting atomic.Int64
	next := time.Now()
	for ctx.Err() == nil {
		due := next
		p.Late.add(time.Since(due), nil)
		for serializable, into := range map[bool]*figures{true: &p.Serializable, false: &p.Linearizable} {
			if waiting.Load() >= openProbes {
				into.add(0, errors.New("too many wait already"))
				continue
			}
			waiting.Add(1)
			open.Go(func() {
				defer waiting.Add(-1)
				limited, cancel := context.WithTimeout(context.Background(), probeLimit)
				defer cancel()
				_, err := p.client.Range(limited, &pb.RangeRequest{Key: []byte(probeKey), Serializable: serializable})
				into.add(time.Since(due), err)
			})
		}
		next = next.Add(readEvery)
		pause(ctx, time.Until(next))
	}
}

func (p *prober) writes(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		key, value := fmt.Sprintf("%s%06d", keptPrefix, n), fmt.Sprint("value of ", n)
		began := time.Now()
		limited, cancel := context.WithTimeout(context.Background(), probeLimit)
		_, err := p.client.Put(limited, &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
		cancel()
		p.Puts.add(time.Since(began), err)
		if err == nil {
			p.Acked[key] = value
		}
		pause(ctx, putEvery)
	}
}

// probeHealth sends health probes to the metrics port, each on a new connection.
func (p *prober) probeHealth(ctx context.Context) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for ctx.Err() == nil && p.metricsURL != "" {
		began := time.Now()
		response, err := client.Get(p.metricsURL + "/health")
		if err == nil {
			_, err = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
			if err == nil && response.StatusCode != http.StatusOK {
				err = fmt.Errorf("HTTP %d", response.StatusCode)
			}
		}
		p.Health.add(time.Since(began), err)
		pause(ctx, healthEvery)
	}
}

// connectAnew opens connections to the client port, each for a single read.
func (p *prober) connectAnew(ctx context.Context) {
	const limit = 2 * time.Second
	for ctx.Err() == nil {
		p.NewConnections.add(func() string {
			conn, err := dialHTTP2(p.endpoint, clientOptions{})
			if err != nil {
				return errorText(err)
			}
			defer conn.close()
			limited, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			asked, err := conn.ask(limited, pb.KV_Range_FullMethodName, &pb.RangeRequest{Key: []byte(probeKey), Serializable: true})
			if err != nil {
				return errorText(err)
			}
			return asked.await(limit)
		}())
		pause(ctx, connectEvery)
	}
}

// countKept returns how many acknowledged writes the server still has.
func countKept(server *harness.Server, acked map[string]string) (int, error) {
	client, err := server.NewClient()
	if err != nil {
		return 0, err
	}
	defer client.Close()
	found := 0
	for key, value := range acked {
		ctx, cancel := context.WithTimeout(context.Background(), probeLimit)
		got, err := client.Get(ctx, key)
		cancel()
		if err != nil {
			return found, err
		}
		if len(got.Kvs) == 1 && string(got.Kvs[0].Value) == value {
			found++
		}
	}
	return found, nil
}
