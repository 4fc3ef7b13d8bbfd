package backup

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

var (
	measureBytes   = flag.Int64("backup.measure", 0, "measure snapshots of so many bytes of values beside puts")
	measureClients = flag.Int("backup.clients", 4, "clients that put beside a snapshot")
	measureRounds  = flag.Int("backup.rounds", 3, "snapshots of each server, of which the medians count")
)

const measuredValueBytes = 4 << 10

// measured is what one snapshot came to.
type measured struct {
	took             time.Duration
	bytes            int64
	alone, beside    harness.Load
	resident, peaked int64
}

// What a snapshot may take of memory, and how little its time and that of puts beside it may gain in
// one run with etcd; what they do gain is in docs/PERFORMANCE.md.
const (
	allowedBytes = 64 << 20
	leastGain    = 1.5
)

// A snapshot beside puts: its time and memory, and what the puts wait longer for it, of both
// servers in turns.
func TestMeasure(t *testing.T) {
	if *measureBytes == 0 {
		t.Skip("-backup.measure=1000000000 measures")
	}
	servers := map[harness.Kind]*harness.Server{}
	kinds := []harness.Kind{harness.Etched, harness.Etcd}
	for _, kind := range kinds {
		servers[kind] = startFilled(t, kind, *measureBytes)
	}
	found := map[harness.Kind][]measured{}
	for range *measureRounds {
		for _, kind := range kinds {
			found[kind] = append(found[kind], measureSnapshot(t, servers[kind], 5*time.Second, readAtOnce))
		}
	}
	took, beside := map[harness.Kind]time.Duration{}, map[harness.Kind]time.Duration{}
	for _, kind := range kinds {
		var times, alone, besides []time.Duration
		var rate, rateBeside []float64
		var grew []int64
		for _, one := range found[kind] {
			times, rate = append(times, one.took), append(rate, float64(one.bytes)/1e6/one.took.Seconds())
			alone, besides = append(alone, one.alone.Quantile(99)), append(besides, one.beside.Quantile(99))
			rateBeside = append(rateBeside, one.beside.PerSecond())
			grew = append(grew, (one.peaked-one.resident)>>20)
		}
		took[kind], beside[kind] = harness.Median(times), harness.Median(besides)
		t.Logf("%-6s %v for %d MB, %.0f MB/s; puts p99 %v alone, %v beside at %.0f/s; memory grew by %d MiB from %d", kind,
			took[kind].Round(time.Millisecond), found[kind][0].bytes/1e6, harness.Median(rate),
			harness.Median(alone), beside[kind], harness.Median(rateBeside), harness.Median(grew), found[kind][0].resident>>20)
		if kind == harness.Etched && harness.Median(grew) >= allowedBytes>>20 {
			t.Errorf("memory grew by %d MiB", grew)
		}
	}
	if gain := took[harness.Etcd].Seconds() / took[harness.Etched].Seconds(); gain < leastGain {
		t.Errorf("a snapshot is %.2f times as fast as etcd's", gain)
	}
	if beside[harness.Etched] > beside[harness.Etcd] {
		t.Errorf("puts beside it have p99 %v, etcd's %v", beside[harness.Etched], beside[harness.Etcd])
	}
}

// However slowly a snapshot is read, those who write do not wait for it, and memory does not hold it.
func TestASnapshotHoldsUpNobody(t *testing.T) {
	const bytes = 200_000_000
	server := startFilled(t, harness.Etched, bytes)
	one := measureSnapshot(t, server, time.Second, func(snapshot io.Reader, puts []atomic.Int64) (int64, error) {
		const parts, each = 10, 20
		var all int64
		for range parts {
			read, err := io.CopyN(io.Discard, snapshot, bytes/parts)
			if all += read; err != nil {
				return all, err
			}
			for client := range puts {
				enough := puts[client].Load() + each
				for deadline := time.Now().Add(limit); puts[client].Load() < enough; time.Sleep(time.Millisecond) {
					if time.Now().After(deadline) {
						return all, fmt.Errorf("client %d does not get on after %d bytes", client, all)
					}
				}
			}
		}
		rest, err := io.Copy(io.Discard, snapshot)
		return all + rest, err
	})
	t.Logf("%d MB in %v; memory grew by %d MiB from %d", one.bytes/1e6, one.took.Round(time.Millisecond), (one.peaked-one.resident)>>20, one.resident>>20)
	if grew := one.peaked - one.resident; grew >= allowedBytes {
		t.Errorf("memory grew by %d bytes for %d of a snapshot", grew, one.bytes)
	}
}

// startFilled has a server with so many bytes of values.
func startFilled(t *testing.T, kind harness.Kind, bytes int64) *harness.Server {
	t.Helper()
	server := harness.Start(t, kind, harness.Options{Flags: []string{fmt.Sprint("--quota-backend-bytes=", 8<<30)}})
	fill(t, server, bytes)
	// What follows is that of a member which took all of it long before.
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	return server
}

// fill puts values that nothing compresses.
func fill(t *testing.T, server *harness.Server, bytes int64) {
	t.Helper()
	const ofTxn = 100
	client := server.Client(t)
	random := rand.NewChaCha8([32]byte{1})
	for key := int64(0); key < bytes/measuredValueBytes; key += ofTxn {
		var puts []clientv3.Op
		for one := range int64(ofTxn) {
			value := make([]byte, measuredValueBytes)
			_, _ = random.Read(value)
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("filled/%09d", key+one), string(value)))
		}
		if _, err := client.Txn(harness.Context(t, time.Minute)).Then(puts...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
}

// readAtOnce reads a snapshot as fast as it comes.
func readAtOnce(snapshot io.Reader, _ []atomic.Int64) (int64, error) {
	return io.Copy(io.Discard, snapshot)
}

// measureSnapshot has clients put for a while, and then beside a snapshot. Who reads that sees how
// many puts of each client were acknowledged.
func measureSnapshot(t *testing.T, server *harness.Server, while time.Duration, read func(io.Reader, []atomic.Int64) (int64, error)) (one measured) {
	t.Helper()
	value := string(make([]byte, 256))
	clients := make([]*clientv3.Client, *measureClients)
	for client := range clients {
		clients[client] = server.Client(t)
	}
	puts := make([]atomic.Int64, len(clients))
	put := func(client int) error {
		_, err := clients[client].Put(context.Background(), fmt.Sprintf("beside/%d", client), value)
		puts[client].Add(1)
		return err
	}
	one.alone = harness.RunLoad(t, server, *measureClients, func() { time.Sleep(while) }, put)
	var err error
	if one.resident, err = server.ResidentBytes(); err != nil {
		t.Fatal(err)
	}
	if err := server.ResetPeak(); err != nil {
		t.Fatal(err)
	}
	one.beside = harness.RunLoad(t, server, *measureClients, func() {
		began := time.Now()
		snapshot, err := server.Client(t).Snapshot(harness.Context(t, 10*time.Minute))
		if err != nil {
			t.Error(err)
			return
		}
		defer snapshot.Close()
		if one.bytes, err = read(snapshot, puts); err != nil {
			t.Error(err)
		}
		one.took = time.Since(began)
	}, put)
	if one.peaked, err = server.PeakResidentBytes(); err != nil {
		t.Fatal(err)
	}
	return one
}
