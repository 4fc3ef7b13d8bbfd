package httpcases

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// A member without its quorum, new or restarted, is asked on the port for metrics how it is:
// the probes that need no quorum are answered, or a supervisor would kill what only waits.
func TestMetricsPortBeforeAQuorum(t *testing.T) {
	t.Parallel()
	var ports [3]int
	for i := range ports {
		port, err := harness.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = port
	}
	metricsAt := func(member int) string { return fmt.Sprintf("127.0.0.1:%d", ports[member]) }
	targets := []string{
		"/livez", "/livez?verbose", "/livez/serializable_read", "/health?serializable=true", "/metrics", "/readyz/non_learner",
		"/readyz/serializable_read", "/readyz/data_corruption", "/nothing", "/version",
		// This one asks the quorum, and says after some time that there is none. One such
		// request is enough: etcd asks one after the other.
		"/health",
	}
	type answer struct{ status, body string }
	var answers [2]map[string]answer
	for side, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		answers[side] = map[string]answer{}
		c := harness.StartCluster(t, kind, harness.ClusterOptions{
			Env: func(member int) []string { return []string{"ETCD_LISTEN_METRICS_URLS=http://" + metricsAt(member)} },
		})
		left := c.Members()[0]
		for _, state := range []string{"restarted", "new"} {
			for _, member := range c.Members() {
				if err := member.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			if state == "new" {
				if err := left.Wipe(); err != nil {
					t.Fatal(err)
				}
			}
			if err := left.Restart(); err != nil {
				t.Fatal(err)
			}
			var asked sync.WaitGroup
			var kept sync.Mutex
			for _, target := range targets {
				asked.Go(func() {
					got, err := untilBound(left, metricsAt(0), get(target))
					if err != nil {
						t.Errorf("%s, %s: %s: %v", kind, state, target, err)
					}
					// What a page of metrics says is for other cases.
					if target == "/metrics" {
						got.Body = ""
					}
					kept.Lock()
					defer kept.Unlock()
					answers[side][state+" "+target] = answer{got.Status, got.Body}
				})
			}
			asked.Wait()
			// The port is that of this process, which still waits.
			if !left.Running() {
				t.Errorf("%s, %s: it ended\n%s", kind, state, left.LogTail(10))
			}
		}
		if err := left.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	for what, theirs := range answers[1] {
		if ours := answers[0][what]; ours != theirs {
			t.Errorf("%s\n-etched %+v\n+etcd   %+v", what, ours, theirs)
		}
	}
	for _, state := range []string{"restarted ", "new "} {
		for _, target := range []string{"/livez", "/health?serializable=true", "/metrics"} {
			if got := answers[1][state+target]; got.status != "200 OK" {
				t.Errorf("%s%s: etcd answers %+v, this case is about 200", state, target, got)
			}
		}
	}
}

// untilBound asks again while nobody listens: the process has just been started.
func untilBound(member *harness.Member, address string, asked ask) (reply, error) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		c, err := dial(address)
		if err != nil {
			if !member.Running() || time.Now().After(deadline) {
				return reply{}, errors.Join(err, fmt.Errorf("running: %t\n%s", member.Running(), member.LogTail(10)))
			}
			continue
		}
		defer c.Close()
		return c.exchange(asked)
	}
}
