package backup

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
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

// A snapshot beside puts: its time and memory, and what the puts wait longer for it, of both
// servers in turns. For people: it asserts nothing.
func TestMeasure(t *testing.T) {
	if *measureBytes == 0 {
		t.Skip("-backup.measure=1000000000 measures")
	}
	servers := map[harness.Kind]*harness.Server{}
	kinds := []harness.Kind{harness.Etched, harness.Etcd}
	for _, kind := range kinds {
		servers[kind] = harness.Start(t, kind, harness.Options{Flags: []string{fmt.Sprint("--quota-backend-bytes=", 8<<30)}})
		fill(t, servers[kind], *measureBytes)
		// What follows is that of a member which took all of it long before.
		if err := servers[kind].Stop(); err != nil {
			t.Fatal(err)
		}
		if err := servers[kind].Restart(); err != nil {
			t.Fatal(err)
		}
	}
	found := map[harness.Kind][]measured{}
	for range *measureRounds {
		for _, kind := range kinds {
			found[kind] = append(found[kind], measureSnapshot(t, servers[kind]))
		}
	}
	for _, kind := range kinds {
		var took, alone, beside []time.Duration
		var rate, rateBeside []float64
		var grew []int64
		for _, one := range found[kind] {
			took, rate = append(took, one.took), append(rate, float64(one.bytes)/1e6/one.took.Seconds())
			alone, beside = append(alone, one.alone.Quantile(99)), append(beside, one.beside.Quantile(99))
			rateBeside = append(rateBeside, one.beside.PerSecond())
			grew = append(grew, (one.peaked-one.resident)>>20)
		}
		t.Logf("%-6s %v for %d MB, %.0f MB/s; puts p99 %v alone, %v beside at %.0f/s; memory grew by %d MiB from %d", kind,
			harness.Median(took).Round(time.Millisecond), found[kind][0].bytes/1e6, harness.Median(rate),
			harness.Median(alone), harness.Median(beside), harness.Median(rateBeside), harness.Median(grew), found[kind][0].resident>>20)
	}
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

func measureSnapshot(t *testing.T, server *harness.Server) (one measured) {
	t.Helper()
	value := string(make([]byte, 256))
	clients := make([]*clientv3.Client, *measureClients)
	for client := range clients {
		clients[client] = server.Client(t)
	}
	put := func(client int) error {
		_, err := clients[client].Put(context.Background(), fmt.Sprintf("beside/%d", client), value)
		return err
	}
	one.alone = harness.RunLoad(t, server, *measureClients, func() { time.Sleep(5 * time.Second) }, put)
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
		if one.bytes, err = io.Copy(io.Discard, snapshot); err != nil {
			t.Error(err)
		}
		one.took = time.Since(began)
	}, put)
	if one.peaked, err = server.PeakResidentBytes(); err != nil {
		t.Fatal(err)
	}
	return one
}
