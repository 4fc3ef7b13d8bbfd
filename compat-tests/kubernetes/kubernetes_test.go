package kubernetes

import (
	"maps"
	"regexp"
	"slices"
	"testing"

	"etched.dev/compat-tests/harness"
)

func TestMain(m *testing.M) { harness.RunWaiting(m) }

func TestOneMember(t *testing.T) { compareStores(t, 1) }

func TestThreeMembers(t *testing.T) { compareStores(t, 3) }

// result is what is compared of a store.
type result struct {
	calm, disturbed map[complaint]string
	stored          map[string]string
}

// compareStores does the same on both. They run side by side, since most of it is waiting.
func compareStores(t *testing.T, members int) {
	binary(t)
	by := newAuthority(t)
	kinds := []harness.Kind{harness.Etched, harness.Etcd}
	results := map[harness.Kind]*result{harness.Etched: {}, harness.Etcd: {}}
	t.Run("on", func(t *testing.T) {
		for _, kind := range kinds {
			t.Run(kind.String(), func(t *testing.T) {
				t.Parallel()
				newWorld(t, kind, members, by).exercise(members, results[kind])
			})
		}
	})
	etched, etcd := results[harness.Etched], results[harness.Etcd]
	if t.Failed() || len(etched.stored) == 0 || len(etcd.stored) == 0 {
		t.Fatal("not all was done on both")
	}
	compareComplaints(t, "undisturbed", etched.calm, etcd.calm, atStart)
	compareComplaints(t, "disturbed", etched.disturbed, etcd.disturbed, ofOutages)
	compareTexts(t, "etcd", "etched", etcd.stored, etched.stored)
	t.Logf("%d objects are the same", len(etched.stored))
}

// exercise is all there is to do to one store.
func (w *world) exercise(members int, into *result) {
	w.firstRevision = w.done(w.streamed.get(w.ctx, "/api/v1/namespaces")).revision()
	w.step("objects of many kinds", w.objects)
	w.step("server-side apply", w.apply)
	w.step("watches", w.watches)
	var events leased
	w.step("events", func() { events = w.createEvents("calm") })
	bookmarked := w.bookmarked()
	w.step("5,000 objects", w.createMany)
	w.step("bookmarks", bookmarked)
	w.step("lists", w.lists)
	w.step("watch lists", w.watchLists)
	w.step("consistent lists", w.consistent)
	w.step("events expire", func() { w.expire(events) })
	w.step("compaction", w.compaction)
	w.step("the cache has what the store has", w.cacheIsStore)
	var lengths map[string]int
	into.calm, lengths = w.complaints(nil)
	w.namespace(loaded)
	for _, one := range outagesOf(members) {
		w.step("outage: "+one.name, func() { w.endure(one) })
	}
	w.step("the cache has what the store has, afterwards", w.cacheIsStore)
	into.disturbed, _ = w.complaints(lengths)
	into.stored = w.comparable(w.dump(w.streamed, ofStore))
	for _, server := range w.servers() {
		w.step("end of "+server.name, func() { server.stop(w.t) })
	}
}

// cacheIsStore compares what the cache has with what the store has.
func (w *world) cacheIsStore() {
	w.compareDumps("the store", "the cache", w.dump(w.streamed, unchanging), w.dump(w.cached, unchanging))
	w.compareDumps("RangeStream", "Range", w.dump(w.streamed, unchanging), w.dump(w.paged, unchanging))
}

// compareComplaints expects none about etched that there is not about etcd.
func compareComplaints(t *testing.T, when string, etched, etcd map[complaint]string, usual []*regexp.Regexp) {
	t.Helper()
	for _, one := range slices.Sorted(maps.Keys(etched)) {
		_, isBoth := etcd[one]
		isUsual := slices.ContainsFunc(usual, func(pattern *regexp.Regexp) bool { return pattern.MatchString(string(one)) })
		if !isBoth && !isUsual {
			t.Errorf("%s, on etched only: %s\n  %s", when, one, etched[one])
		}
	}
	for _, one := range slices.Sorted(maps.Keys(etcd)) {
		if _, isBoth := etched[one]; !isBoth {
			t.Logf("%s, on etcd only: %s\n  %s", when, one, etcd[one])
		}
	}
	t.Logf("%s: %d kinds of complaints on etched, %d on etcd", when, len(etched), len(etcd))
}
