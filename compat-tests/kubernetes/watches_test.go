package kubernetes

import (
	"fmt"
	"net/url"
	"slices"
	"time"
)

// watches see each change once and in order.
func (w *world) watches() {
	const objects = 20
	from := w.done(w.cached.get(w.ctx, configMaps(varied))).revision()
	var want []string
	write := func(kind, name string, answer object, err error) {
		w.t.Helper()
		w.done(answer, err)
		want = append(want, kind+" "+name)
	}
	for i := range objects {
		name := fmt.Sprintf("watched-%d", i)
		created, err := w.servers()[i%3].create(w.ctx, configMaps(varied), configMap(name, nil, map[string]any{"watched": "yes"}))
		write("ADDED", name, created, err)
		changed, err := w.servers()[(i+1)%3].patch(w.ctx, configMaps(varied, name), merging, object{"data": map[string]any{"a": "b"}})
		write("MODIFIED", name, changed, err)
		if i%2 == 0 {
			gone, err := w.servers()[(i+2)%3].delete(w.ctx, configMaps(varied, name), nil)
			write("DELETED", name, gone, err)
		}
	}
	for _, server := range w.servers() {
		query := url.Values{
			"watch": {"true"}, "allowWatchBookmarks": {"true"}, "timeoutSeconds": {"60"},
			"resourceVersion": {from}, "labelSelector": {"watched=yes"},
		}
		var got []string
		last := number(w.t, from)
		must(w.t, server.watch(w.ctx, configMaps(varied)+"?"+query.Encode(), func(one event) error {
			revision := number(w.t, one.Object.revision())
			if one.Type == "BOOKMARK" {
				return nil
			}
			got = append(got, one.Type+" "+one.Object.name())
			if revision <= last {
				return fmt.Errorf("%s at %d after %d", got[len(got)-1], revision, last)
			}
			last = revision
			if len(got) == len(want) {
				return errEnough
			}
			return nil
		}))
		w.expectNames("events of "+server.name, got, want)
	}
	w.watchOne(from)
}

// bookmarked watches what does not change while other things do. The cache sends a bookmark two seconds
// before the end, and it has the revision from progress alone, which the store sends by its interval.
func (w *world) bookmarked() (wait func()) {
	const seconds = 16
	from := w.done(w.cached.get(w.ctx, customs)).revision()
	done := make(chan error, 1)
	go func() {
		var marks []string
		query := url.Values{"watch": {"true"}, "allowWatchBookmarks": {"true"}, "timeoutSeconds": {fmt.Sprint(seconds)}, "resourceVersion": {from}}
		err := w.cached.watch(w.ctx, customs+"?"+query.Encode(), func(one event) error {
			if one.Type != "BOOKMARK" {
				return fmt.Errorf("%s of %s, which nobody changed", one.Type, one.Object.name())
			}
			marks = append(marks, one.Object.revision())
			return nil
		})
		if err == nil && (len(marks) == 0 || marks[len(marks)-1] == from) {
			err = fmt.Errorf("bookmarks from revision %s on: %v", from, marks)
		}
		done <- err
	}()
	return func() {
		w.t.Helper()
		must(w.t, <-done)
	}
}

// watchOne watches a single object: of the store, a watch of one key.
func (w *world) watchOne(from string) {
	for _, server := range w.servers() {
		var got []string
		query := url.Values{"watch": {"true"}, "timeoutSeconds": {"30"}, "resourceVersion": {from}, "fieldSelector": {"metadata.name=watched-2"}}
		must(w.t, server.watch(w.ctx, configMaps(varied)+"?"+query.Encode(), func(one event) error {
			got = append(got, one.Type)
			if one.Type == "DELETED" {
				return errEnough
			}
			return nil
		}))
		if !slices.Equal(got, []string{"ADDED", "MODIFIED", "DELETED"}) {
			w.t.Errorf("events of one object, of %s: %v", server.name, got)
		}
	}
}

// watchLists are watches that begin with what is there: 5,000 objects, then a bookmark, then what
// changes.
func (w *world) watchLists() {
	for _, server := range w.servers() {
		query := url.Values{
			"watch": {"true"}, "sendInitialEvents": {"true"}, "resourceVersionMatch": {"NotOlderThan"},
			"allowWatchBookmarks": {"true"}, "timeoutSeconds": {"60"},
		}
		var names []string
		ended := ""
		must(w.t, server.watch(w.ctx, configMaps(many)+"?"+query.Encode(), func(one event) error {
			switch {
			case one.isInitialEnd():
				ended = one.Object.revision()
				_, err := server.patch(w.ctx, configMaps(many, manyName(7)), merging, object{"data": map[string]any{"seen": server.name}})
				return err
			case one.Type == "BOOKMARK":
				return nil
			case ended != "":
				if one.Type != "MODIFIED" || one.Object.name() != manyName(7) || number(w.t, one.Object.revision()) <= number(w.t, ended) {
					return fmt.Errorf("%s of %s at %s, after the end at %s", one.Type, one.Object.name(), one.Object.revision(), ended)
				}
				return errEnough
			case one.Type != "ADDED":
				return fmt.Errorf("%s of %s before the end", one.Type, one.Object.name())
			}
			names = append(names, one.Object.name())
			return nil
		}))
		slices.Sort(names)
		w.expectNames("a watch list of "+server.name, names, manyNames(func(int) bool { return true }))
	}
}

// leased are events that were created together.
type leased struct {
	path string
	at   time.Time
	name string
}

// createEvents creates some, which the API server gives a lease.
func (w *world) createEvents(name string) leased {
	made := leased{path: "/api/v1/namespaces/" + varied + "/events", at: time.Now(), name: name}
	for i := range 10 {
		w.done(w.cached.create(w.ctx, made.path, object{
			"apiVersion": "v1", "kind": "Event", "metadata": map[string]any{"name": fmt.Sprintf("%s-%d", name, i), "labels": map[string]any{"set": name}},
			"involvedObject": map[string]any{"kind": "ConfigMap", "namespace": varied, "name": "changed"},
			"reason":         "Tested", "message": "a test", "type": "Normal",
		}))
	}
	return made
}

func (w *world) leasedLeft(made leased) int {
	w.t.Helper()
	return len(w.done(w.streamed.get(w.ctx, made.path+"?labelSelector=set%3D"+made.name)).items())
}

// expire expects events to be there until their time is over, and then to be gone. A restart or a
// new leader may give a lease its whole time again, never less than it had.
func (w *world) expire(made leased) {
	// Under the lease is what is left of the time when the last of them came.
	if left := w.leasedLeft(made); time.Since(made.at) < eventTTL && left != 10 {
		w.t.Errorf("%d of 10 events %s are left after %v", left, made.name, time.Since(made.at))
	}
	w.eventually("events "+made.name+" expire", func() error {
		if left := w.leasedLeft(made); left > 0 {
			return fmt.Errorf("%d are left after %v", left, time.Since(made.at))
		}
		return nil
	})
	if took := time.Since(made.at); took < eventTTL {
		w.t.Errorf("events %s expired within %v, before %v", made.name, took, eventTTL)
	}
}
