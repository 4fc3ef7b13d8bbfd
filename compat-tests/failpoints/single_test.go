package failpoints

import (
	"context"
	"strconv"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

// atStart is come to before there are clients.
const atStart = "beforePublishing"

// A trigger is done again and again beside writes until the server has ended.
type trigger func(ctx context.Context, client *clientv3.Client)

// single are those that a single member comes to, and by what beside writes.
var single = []struct {
	name    string
	trigger trigger
}{
	{"raftBeforeSave", nil},
	{"raftAfterSave", nil},
	{"walBeforeSync", nil},
	{"walAfterSync", nil},
	{"raftBeforeLeaderSend", nil},
	{"beforeApplyOneEntryNormal", nil},
	{"beforeCommit", nil},
	{"afterCommit", nil},
	{"compactBeforeCommitScheduledCompact", compact},
	{"compactAfterCommitScheduledCompact", compact},
	{"compactBeforeCommitBatch", compact},
	{"compactAfterCommitBatch", compact},
	{"compactBeforeSetFinishedCompact", compact},
	{"compactAfterSetFinishedCompact", compact},
	{"beforeLookupWhenLeaseTimeToLive", timeToLive},
	{"beforeCheckpointInLeaseRenew", renew},
	{"beforeSendWatchResponse", watch},
	{"beforeSyncWatchers", watch},
	// The last: a member that is not there stays behind.
	{"beforeApplyOneConfChange", addLearner},
}

func compact(ctx context.Context, client *clientv3.Client) {
	if got, err := client.Get(ctx, "again"); err == nil {
		_, _ = client.Compact(ctx, got.Header.Revision)
	}
}

// watch has history read for it, and sent.
func watch(ctx context.Context, client *clientv3.Client) {
	got, err := client.Get(ctx, "again")
	if err != nil || len(got.Kvs) == 0 {
		return
	}
	events := client.Watch(ctx, "again", clientv3.WithRev(got.Kvs[0].ModRevision))
	select {
	case <-events:
	case <-ctx.Done():
	}
}

// timeToLive asks for what is left of a lease.
func timeToLive(ctx context.Context, client *clientv3.Client) {
	if lease, err := client.Grant(ctx, 60); err == nil {
		_, _ = client.TimeToLive(ctx, lease.ID)
	}
}

func renew(ctx context.Context, client *clientv3.Client) {
	if lease, err := client.Grant(ctx, 60); err == nil {
		_, _ = client.KeepAliveOnce(ctx, lease.ID)
	}
}

func addLearner(ctx context.Context, client *clientv3.Client) {
	_, _ = client.MemberAddAsLearner(ctx, []string{"http://127.0.0.1:9"})
}

// try does a trigger until the context ends.
func (trigger trigger) try(ctx context.Context, client *clientv3.Client) {
	for ctx.Err() == nil {
		limited, cancel := context.WithTimeout(ctx, requestTime)
		trigger(limited, client)
		cancel()
		time.Sleep(10 * time.Millisecond)
	}
}

// A member that ended at a failpoint has everything that it acknowledged.
func TestPanicsOfASingleMember(t *testing.T) {
	needBinary(t)
	failpoints, env := place(t)
	server := harness.Start(t, harness.Etched, harness.Options{
		Env: []string{env}, Flags: []string{"--compaction-batch-limit=10"},
	})
	var load Load
	for _, one := range single {
		ok := t.Run(one.name, func(t *testing.T) {
			client := server.Client(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			written := make(chan struct{})
			go func() {
				defer close(written)
				load.Run(ctx, client)
			}()
			enough := load.Acknowledged() + 20
			wait(t, func() bool { return load.Acknowledged() >= enough })
			must(t, failpoints.Set(one.name, "panic"))
			if one.trigger != nil {
				go one.trigger.try(ctx, client)
			}
			waitDeath(t, server, one.name)
			cancel()
			<-written
			must(t, server.Restart())
			must(t, load.Check(harness.Context(t, 20*time.Second), server.Client(t)))
		})
		if !ok {
			return
		}
	}
	t.Logf("%d writes acknowledged", load.Acknowledged())
}

// What the environment says counts from the start on.
func TestPanicAtAStart(t *testing.T) {
	needBinary(t)
	dir := t.TempDir()
	first := harness.Start(t, harness.Etched, harness.Options{DataDir: dir})
	var load Load
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	load.Run(ctx, first.Client(t))
	must(t, first.Stop())
	dying := harness.Begin(t, harness.Etched, harness.Options{
		DataDir: dir, Env: []string{"GOFAIL_FAILPOINTS=walAfterSync=off;" + atStart + `=panic("now")`},
	})
	waitDeath(t, dying, "now")
	last := harness.Start(t, harness.Etched, harness.Options{DataDir: dir})
	checking := harness.Context(t, 20*time.Second)
	must(t, load.Check(checking, last.Client(t)))
	// A write that is not there, or not where it was answered to be, is found.
	for key, revision := range load.acked {
		for _, lost := range []map[string]int64{{key: revision + 1}, {prefix + "none": revision}} {
			if (&Load{acked: lost}).Check(checking, last.Client(t)) == nil {
				t.Errorf("nothing is missing of %v", lost)
			}
		}
		break
	}
	if load.Acknowledged() < 20 {
		t.Errorf("%d writes are too few to say anything", load.Acknowledged())
	}
}

// A sleep holds up what has to pass the place until it is taken away, and is
// counted.
func TestSleepHoldsUpWrites(t *testing.T) {
	needBinary(t)
	failpoints, env := place(t)
	server := harness.Start(t, harness.Etched, harness.Options{Env: []string{env}})
	client := server.Client(t)
	put := func() time.Duration {
		began := time.Now()
		_, err := client.Put(harness.Context(t, 20*time.Second), "a", "b")
		must(t, err)
		return time.Since(began)
	}
	const pause = time.Second
	for _, name := range []string{"raftBeforeSave", "raftAfterSave", "walBeforeSync", "beforeCommit"} {
		for _, terms := range []string{`sleep("1s")`, "sleep(1000)", "1*off->sleep(1000)"} {
			must(t, failpoints.Set(name, terms))
			took := put()
			if terms[0] == '1' {
				took = put()
			}
			if took < pause {
				t.Errorf("with %s at %s a put took %v", terms, name, took)
			}
			count, err := failpoints.Count(name)
			must(t, err, failpoints.Clear(name))
			if number, err := strconv.Atoi(count); err != nil || number < 1 {
				t.Errorf("%s at %s was counted %q times", terms, name, count)
			}
			if took := put(); took >= pause {
				t.Errorf("without any at %s a put took %v", name, took)
			}
		}
	}
}

// A sleep before the responses of a watch holds up nobody else: neither its
// creation, nor writes, nor the requests that set failpoints.
func TestSleepHoldsUpWatch(t *testing.T) {
	needBinary(t)
	failpoints, env := place(t)
	server := harness.Start(t, harness.Etched, harness.Options{Env: []string{env}})
	client := server.Client(t)
	ctx := harness.Context(t, 60*time.Second)
	const pause = 3 * time.Second
	const name = "beforeSendWatchResponse"
	must(t, failpoints.Set(name, `sleep("3s")`))
	var watches []clientv3.WatchChan
	for range 8 {
		// A stream each, more than there are threads.
		events := server.Client(t).Watch(ctx, "a", clientv3.WithCreatedNotify())
		if created := <-events; !created.Created {
			t.Fatalf("%+v", created)
		}
		watches = append(watches, events)
	}
	began := time.Now()
	for range 20 {
		_, err := client.Put(ctx, "b", "")
		must(t, err)
	}
	_, err := client.Put(ctx, "a", "")
	must(t, err)
	if _, err := client.Put(ctx, "b", ""); err != nil || time.Since(began) >= pause {
		t.Errorf("writes took %v: %v", time.Since(began), err)
	}
	if _, err := failpoints.Count(name); err != nil || time.Since(began) >= pause {
		t.Errorf("asking took %v: %v", time.Since(began), err)
	}
	for _, events := range watches {
		got := <-events
		if len(got.Events) != 1 || time.Since(began) < pause {
			t.Errorf("%+v after %v", got, time.Since(began))
		}
	}
	must(t, failpoints.Clear(name))
}

// wait waits until something is so.
func wait(t *testing.T, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 30 s")
		}
	}
}
