package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

const (
	loaded = "loaded"
	// writers write so many objects each, with this pause: longer than an outage lasts.
	writers        = 6
	objectsOfEach  = 60
	pauseOfWriters = 25 * time.Millisecond
	// strikeAfter is when the outage begins.
	strikeAfter = 400 * time.Millisecond
)

// outage is something that happens to the store under load.
type outage struct {
	name   string
	strike func(w *world) error
}

// outagesOf are those of so many members.
func outagesOf(members int) []outage {
	if members == 1 {
		return []outage{
			{"term", func(w *world) error { return w.restart((*harness.Member).Stop, w.store.Members()...) }},
			{"kill", func(w *world) error { return w.restart((*harness.Member).Kill, w.store.Members()...) }},
		}
	}
	ofLeader := func(end func(*harness.Member) error) func(w *world) error {
		return func(w *world) error {
			leader, err := w.store.WaitLeader(settleLimit)
			if err != nil {
				return err
			}
			return w.restart(end, leader)
		}
	}
	return []outage{
		{"move", (*world).moveLeader},
		{"term-leader", ofLeader((*harness.Member).Stop)},
		{"kill-leader", ofLeader((*harness.Member).Kill)},
		{"kill-follower", func(w *world) error {
			leader, err := w.store.WaitLeader(settleLimit)
			if err != nil {
				return err
			}
			return w.restart((*harness.Member).Kill, w.store.Others(leader)[0])
		}},
		{"kill-all", func(w *world) error { return w.restart((*harness.Member).Kill, w.store.Members()...) }},
	}
}

// restart ends members and starts them again a moment later.
func (w *world) restart(end func(*harness.Member) error, members ...*harness.Member) error {
	const away = 500 * time.Millisecond
	for _, member := range members {
		if err := end(member); err != nil {
			return err
		}
	}
	time.Sleep(away)
	for _, member := range members {
		if err := member.Restart(); err != nil {
			return err
		}
	}
	return w.store.WaitHealthy(settleLimit)
}

// moveLeader has another member lead.
func (w *world) moveLeader() error {
	leader, err := w.store.WaitLeader(settleLimit)
	if err != nil {
		return err
	}
	next := w.store.Others(leader)[0]
	id, err := next.ID(w.ctx)
	if err != nil {
		return err
	}
	client, err := harness.NewClientOf([]*harness.Member{leader})
	if err != nil {
		return err
	}
	defer client.Close()
	var answer *clientv3.MoveLeaderResponse
	if answer, err = client.MoveLeader(w.ctx, id); err != nil {
		return fmt.Errorf("%v: %w", answer, err)
	}
	_, err = w.store.WaitLeader(settleLimit, next)
	return err
}

// endure has an outage under load: nothing that was confirmed is lost, a watcher misses nothing, and
// what lay there before lies there unchanged.
func (w *world) endure(one outage) {
	before := w.dump(w.streamed, unchanging)
	events := w.createEvents(one.name)
	seen := make(chan error, 1)
	follower := &follower{world: w, set: one.name, seen: map[string]bool{}}
	go func() { seen <- follower.follow() }()
	var writing sync.WaitGroup
	for writer := range writers {
		writing.Go(func() {
			if err := w.write(one.name, writer); err != nil {
				w.t.Errorf("%s: %v", one.name, err)
			}
		})
	}
	time.Sleep(strikeAfter)
	if err := one.strike(w); err != nil {
		w.t.Errorf("%s: %v", one.name, err)
	}
	writing.Wait()
	if err := <-seen; err != nil {
		w.t.Errorf("a watcher through %s: %v", one.name, err)
	}
	for _, server := range w.servers() {
		server.waitReady(w.t, w.ctx)
		w.eventually(server.name+" has all of "+one.name, func() error {
			list, err := server.get(w.ctx, configMaps(loaded)+"?labelSelector=set%3D"+one.name)
			if err != nil {
				return err
			}
			if got := len(list.items()); got != writers*objectsOfEach {
				w.t.Fatalf("%d of %d objects that were confirmed are there after %s, of %s", got, writers*objectsOfEach, one.name, server.name)
			}
			return nil
		})
	}
	w.compareDumps("before "+one.name, "after it", before, w.dump(w.streamed, unchanging))
	w.expire(events)
	w.t.Logf("%s: %d watches, %d lists of the watcher", one.name, follower.watches, follower.lists)
}

// write creates objects and changes each, trying again until that is confirmed.
func (w *world) write(set string, writer int) error {
	for i := range objectsOfEach {
		server := w.servers()[i%3]
		name := fmt.Sprintf("%s-%d-%d", set, writer, i)
		err := w.insist(func(tried int) error {
			_, err := server.create(w.ctx, configMaps(loaded), configMap(name, map[string]any{"state": "created"}, map[string]any{"set": set}))
			if tried > 0 && codeOf(err) == http.StatusConflict {
				// An attempt before this one was carried out and not confirmed.
				return nil
			}
			return err
		})
		if err == nil {
			err = w.insist(func(int) error {
				_, err := server.patch(w.ctx, configMaps(loaded, name), merging, object{"data": map[string]any{"state": "changed"}})
				return err
			})
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		time.Sleep(pauseOfWriters)
	}
	return nil
}

// insist tries until it succeeds. What was confirmed is never refused as missing.
func (w *world) insist(try func(tried int) error) error {
	for tried, deadline := 0, time.Now().Add(settleLimit); ; tried++ {
		err := try(tried)
		if err == nil {
			return nil
		}
		if code := codeOf(err); code == http.StatusNotFound || code == http.StatusConflict || time.Now().After(deadline) {
			return fmt.Errorf("attempt %d: %w", tried+1, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// follower lists and watches as a controller does, and begins anew where it has to.
type follower struct {
	world          *world
	set            string
	seen           map[string]bool
	last           int64
	lists, watches int
}

// follow ends when every object of the set has been seen as it is in the end.
func (f *follower) follow() error {
	ctx, cancel := context.WithTimeout(f.world.ctx, 2*settleLimit)
	defer cancel()
	for f.last = 0; len(f.seen) < writers*objectsOfEach; {
		var err error
		if f.last == 0 {
			err = f.list(ctx)
		} else {
			err = f.watch(ctx)
		}
		switch {
		case errors.Is(err, errOrder):
			return err
		case ctx.Err() != nil:
			return fmt.Errorf("%d of %d objects seen: %w", len(f.seen), writers*objectsOfEach, err)
		case codeOf(err) == http.StatusGone:
			f.last = 0
		case err != nil:
			time.Sleep(100 * time.Millisecond)
		}
	}
	return nil
}

func (f *follower) list(ctx context.Context) error {
	list, err := f.world.cached.get(ctx, configMaps(loaded)+"?labelSelector=set%3D"+f.set)
	if err != nil {
		return err
	}
	f.lists++
	for _, one := range list.items() {
		f.note(one)
	}
	f.last, err = strconv.ParseInt(list.revision(), 10, 64)
	return err
}

var errOrder = errors.New("out of order")

func (f *follower) watch(ctx context.Context) error {
	f.watches++
	query := url.Values{
		"watch": {"true"}, "allowWatchBookmarks": {"true"}, "timeoutSeconds": {"30"},
		"resourceVersion": {fmt.Sprint(f.last)}, "labelSelector": {"set=" + f.set},
	}
	return f.world.cached.watch(ctx, configMaps(loaded)+"?"+query.Encode(), func(one event) error {
		revision, err := strconv.ParseInt(one.Object.revision(), 10, 64)
		if err != nil {
			return err
		}
		if revision < f.last || revision == f.last && one.Type != "BOOKMARK" {
			return fmt.Errorf("%w: %s of %s at %d after %d", errOrder, one.Type, one.Object.name(), revision, f.last)
		}
		f.last = revision
		if one.Type != "BOOKMARK" {
			f.note(one.Object)
		}
		if len(f.seen) == writers*objectsOfEach {
			return errEnough
		}
		return nil
	})
}

func (f *follower) note(one object) {
	if one.text("data", "state") == "changed" {
		f.seen[one.name()] = true
	}
}
