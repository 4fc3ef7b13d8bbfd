package kubernetes

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

const (
	many      = "many"
	manyCount = 5000
	slicesOf  = 10
)

func manyName(i int) string { return fmt.Sprintf("m-%05d", i) }

// manyOf is one of them, of about a kilobyte.
func manyOf(i int) object {
	return configMap(manyName(i), map[string]any{"text": strings.Repeat(strconv.Itoa(i)+" ", 150)}, map[string]any{"slice": strconv.Itoa(i % slicesOf)})
}

// createMany makes 5,000 objects.
func (w *world) createMany() {
	w.namespace(many)
	const writers = 8
	var writing sync.WaitGroup
	for writer := range writers {
		writing.Go(func() {
			for i := writer; i < manyCount; i += writers {
				if _, err := w.servers()[i%3].create(w.ctx, configMaps(many), manyOf(i)); err != nil {
					w.t.Errorf("%s: %v", manyName(i), err)
					return
				}
			}
		})
	}
	writing.Wait()
}

// manyNames are those of some of them.
func manyNames(chosen func(int) bool) []string {
	var names []string
	for i := range manyCount {
		if chosen(i) {
			names = append(names, manyName(i))
		}
	}
	return names
}

// expectNames compares names in their order.
func (w *world) expectNames(what string, got, want []string) {
	w.t.Helper()
	if !slices.Equal(got, want) {
		first := 0
		for first < len(got) && first < len(want) && got[first] == want[first] {
			first++
		}
		w.t.Errorf("%s: %d names, not %d; they differ from %d on", what, len(got), len(want), first)
	}
}

// inPages lists by pages; each is called after every one.
func (w *world) inPages(server *apiServer, query url.Values, limit int, each func(page object)) []string {
	w.t.Helper()
	var names []string
	revision := ""
	if query = maps.Clone(query); query == nil {
		query = url.Values{}
	}
	for query.Set("limit", strconv.Itoa(limit)); ; query.Del("resourceVersion") {
		page := w.done(server.get(w.ctx, configMaps(many)+"?"+query.Encode()))
		if revision == "" {
			revision = page.revision()
		}
		if page.revision() != revision {
			w.t.Errorf("pages of %s at revisions %s and %s", server.name, revision, page.revision())
		}
		names = append(names, page.names()...)
		next := page.text("metadata", "continue")
		if len(page.items()) > limit || next != "" && len(page.items()) != limit {
			w.t.Errorf("a page of %s has %d of %d objects", server.name, len(page.items()), limit)
		}
		if left, isCounted := page.at("metadata", "remainingItemCount").(float64); isCounted && int(left) != manyCount-len(names) {
			w.t.Errorf("after %d of %d objects %s says that %v are left", len(names), manyCount, server.name, left)
		}
		if each != nil {
			each(page)
		}
		if next == "" {
			return names
		}
		query.Set("continue", next)
		query.Del("resourceVersionMatch")
	}
}

// lists are all there are: whole, by pages, selected, of now and of a revision.
func (w *world) lists() {
	all := manyNames(func(int) bool { return true })
	third := manyNames(func(i int) bool { return i%slicesOf == 3 })
	bySlice := url.Values{"labelSelector": {"slice=3"}}
	for _, server := range w.servers() {
		whole := w.done(server.get(w.ctx, configMaps(many)))
		w.expectNames("all of "+server.name, whole.names(), all)
		w.expectNames("pages of "+server.name, w.inPages(server, nil, 700, nil), all)
		selected := w.done(server.get(w.ctx, configMaps(many)+"?"+bySlice.Encode()))
		w.expectNames("selected of "+server.name, selected.names(), third)
		w.expectNames("selected pages of "+server.name, w.inPages(server, bySlice, 70, nil), third)
		// What a page ends with has nothing behind it.
		w.expectNames("one page of "+server.name, w.inPages(server, nil, manyCount, nil), all)
		// Pages continue at the revision of the first, whatever is deleted meanwhile.
		deleted := false
		w.expectNames("pages with a deletion, of "+server.name, w.inPages(server, nil, 1700, func(object) {
			if !deleted {
				w.done(server.delete(w.ctx, configMaps(many, manyName(manyCount-1)), nil))
				deleted = true
			}
		}), all)
		now := w.done(server.get(w.ctx, configMaps(many)))
		w.expectNames("after a deletion, of "+server.name, now.names(), all[:manyCount-1])
		exact := w.done(server.get(w.ctx, configMaps(many)+"?resourceVersionMatch=Exact&resourceVersion="+whole.revision()))
		w.expectNames("an old revision of "+server.name, exact.names(), all)
		pages := w.inPages(server, url.Values{"resourceVersionMatch": {"Exact"}, "resourceVersion": {whole.revision()}}, 900, nil)
		w.expectNames("pages of an old revision of "+server.name, pages, all)
		_, err := server.get(w.ctx, configMaps(many)+"?resourceVersionMatch=Exact&resourceVersion=1000000000")
		if codeOf(err) < http.StatusBadRequest {
			w.t.Errorf("a revision of the future, of %s: %v", server.name, err)
		}
		w.done(server.create(w.ctx, configMaps(many), manyOf(manyCount-1)))
	}
	if w.streamed.metric(w.t, w.ctx, "etcd_requests_total", `operation="listStream"`, `resource="configmaps"`) == 0 {
		w.t.Error("no list came by RangeStream")
	}
	if w.paged.metric(w.t, w.ctx, "etcd_requests_total", `operation="listStream"`) != 0 {
		w.t.Error("lists came by RangeStream where it is off")
	}
}

// consistent has the cache answer what another API server wrote just before. The writes are of
// another kind, so that the cache cannot learn the revision from an event: it asks for progress.
func (w *world) consistent() {
	const rounds = 20
	secrets := "/api/v1/namespaces/" + varied + "/secrets"
	before := w.reads("true", "false")
	start := time.Now()
	for i := range rounds {
		written := w.done(w.streamed.patch(w.ctx, secrets+"/secret", merging, object{"stringData": map[string]any{"round": strconv.Itoa(i)}}))
		listed := w.done(w.cached.get(w.ctx, configMaps(varied)+"?labelSelector=third"))
		if number(w.t, listed.revision()) < number(w.t, written.revision()) {
			w.t.Errorf("a list at revision %s after a write at %s", listed.revision(), written.revision())
		}
	}
	took := time.Since(start)
	if took > rounds*time.Second {
		w.t.Errorf("%d consistent lists took %v: progress came by its interval and not when it was asked for", rounds, took)
	}
	if got := w.reads("true", "false") - before; got < rounds {
		w.t.Errorf("%v of %d lists were the cache's", got, rounds)
	}
	if failed := w.reads("false") + w.reads("true", "true"); failed > 0 {
		w.t.Errorf("%v consistent reads of the cache failed or fell back", failed)
	}
	w.t.Logf("%d consistent lists took %v", rounds, took)
}

// reads counts consistent reads of the cache by their success and by whether they fell back.
func (w *world) reads(success string, fallback ...string) float64 {
	labels := []string{`success="` + success + `"`}
	for _, one := range fallback {
		labels = append(labels, `fallback="`+one+`"`)
	}
	return w.cached.metric(w.t, w.ctx, "apiserver_watch_cache_consistent_read_total", labels...)
}

// compaction waits for the API servers' own: what is older is gone, and said to be.
func (w *world) compaction() {
	page := w.done(w.streamed.get(w.ctx, configMaps(many)+"?limit=100"))
	old, next := page.revision(), url.QueryEscape(page.text("metadata", "continue"))
	names := page.names()
	for i := range 10 {
		w.done(w.cached.patch(w.ctx, configMaps(varied, "changed"), merging, object{"data": map[string]any{"before": strconv.Itoa(i)}}))
	}
	w.eventually("revision "+old+" is compacted", func() error {
		_, err := w.streamed.get(w.ctx, configMaps(many)+"?limit=1&resourceVersionMatch=Exact&resourceVersion="+old)
		if codeOf(err) != http.StatusGone {
			return fmt.Errorf("a list of revision %s: %v", old, err)
		}
		return nil
	})
	for _, server := range []*apiServer{w.streamed, w.paged} {
		_, err := server.get(w.ctx, configMaps(many)+"?limit=100&continue="+next)
		w.refused(http.StatusGone, "pages of a compacted revision, of "+server.name, err)
		refused, _ := err.(*refusal)
		if refused == nil || refused.next == "" {
			w.t.Fatalf("%s gives no way to continue: %v", server.name, err)
		}
		rest := w.done(server.get(w.ctx, configMaps(many)+"?continue="+url.QueryEscape(refused.next)))
		w.expectNames("the rest of pages, of "+server.name, append(slices.Clone(names), rest.names()...), manyNames(func(int) bool { return true }))
	}
	// The cache may still know what the store does not.
	for _, server := range []*apiServer{w.streamed, w.paged} {
		err := server.watch(w.ctx, configMaps(many)+"?watch=true&timeoutSeconds=20&resourceVersion="+w.firstRevision, func(one event) error {
			return fmt.Errorf("%s of %s", one.Type, one.Object.name())
		})
		w.refused(http.StatusGone, "a watch from a compacted revision, of "+server.name, err)
	}
	client, err := harness.NewClientOf(w.store.Members())
	must(w.t, err)
	defer client.Close()
	kept, err := client.Get(w.ctx, "compact_rev_key", clientv3.WithRev(number(w.t, w.firstRevision)))
	if err == nil {
		w.t.Errorf("revision %s of the store is there: %v", w.firstRevision, kept)
	}
}

// eventually tries again until there is no error.
func (w *world) eventually(what string, try func() error) {
	w.t.Helper()
	for deadline := time.Now().Add(settleLimit); ; time.Sleep(200 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || w.ctx.Err() != nil {
			w.t.Fatalf("not within %v: %s: %v", settleLimit, what, err)
		}
	}
}

func number(t interface{ Fatal(...any) }, text string) int64 {
	value, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}
