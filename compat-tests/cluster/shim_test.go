package cluster

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// The shim does what tests of disks and clocks rely on: seen on a single member.
func TestShim(t *testing.T) {
	shim := NewShim(t)
	c := harness.StartCluster(t, Kind(), harness.ClusterOptions{Members: 1, Env: shim.Env})
	member := c.Members()[0]
	client, err := harness.NewClientOf(c.Members())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	put := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		_, err := client.Put(ctx, "key", "value")
		return err
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(put(5 * time.Second))
	must(shim.Stall(0))
	if put(300*time.Millisecond) == nil {
		t.Error("a put was answered while no fsync can have returned")
	}
	must(shim.Flow(0))
	must(put(5 * time.Second))
	must(shim.Jump(0, time.Hour))
	time.Sleep(200 * time.Millisecond)
	must(put(5 * time.Second))
	must(member.Stop())
	lines := strings.Split(strings.TrimSpace(member.LogTail(3)), "\n")
	var last struct{ TS time.Time }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
		t.Fatalf("%v: %s", err, lines[len(lines)-1])
	}
	if off := time.Until(last.TS); off < 59*time.Minute || off > 61*time.Minute {
		t.Errorf("after a jump by an hour, the log is %v ahead", off)
	}
}
