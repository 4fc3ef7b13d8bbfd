package kubernetes

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
)

// dump is every object of an API server by its path, of the resources that are chosen.
func (w *world) dump(server *apiServer, chosen func(resource string) bool) map[string]object {
	w.t.Helper()
	found := map[string]object{}
	for _, group := range w.groups(server) {
		for _, one := range asObjects(w.done(server.get(w.ctx, group)).at("resources")) {
			resource := one.text("name")
			verbs := fmt.Sprint(one["verbs"])
			if strings.Contains(resource, "/") || !strings.Contains(verbs, "list") || !chosen(resource) {
				continue
			}
			for _, item := range w.done(server.get(w.ctx, group+"/"+resource)).items() {
				found[strings.Join([]string{group, resource, item.text("metadata", "namespace"), item.name()}, " ")] = item
			}
		}
	}
	return found
}

// groups are the paths of all groups, each in the version that it prefers.
func (w *world) groups(server *apiServer) []string {
	groups := []string{"/api/v1"}
	for _, one := range asObjects(w.done(server.get(w.ctx, "/apis")).at("groups")) {
		groups = append(groups, "/apis/"+one.text("preferredVersion", "groupVersion"))
	}
	return groups
}

func asObjects(list any) []object {
	return object{"items": list}.items()
}

// ofStore are resources that are stored as they are shown. The state of components is asked for, and
// events come and go.
func ofStore(resource string) bool {
	return resource != "componentstatuses" && resource != "events"
}

// unchanging are resources that no API server changes by itself.
func unchanging(resource string) bool {
	// What controllers in API servers write: who is there, and what is accepted.
	written := []string{"leases", "endpoints", "endpointslices", "apiservices", "flowschemas", "prioritylevelconfigurations", "servicecidrs", "customresourcedefinitions"}
	return ofStore(resource) && !slices.Contains(written, resource)
}

// compareDumps expects the same objects, revisions included.
func (w *world) compareDumps(first, second string, one, other map[string]object) {
	w.t.Helper()
	text := func(found map[string]object) map[string]string {
		texts := map[string]string{}
		for path, item := range found {
			if !strings.Contains(path, " "+loaded+" ") {
				texts[path] = w.encode(item)
			}
		}
		return texts
	}
	compareTexts(w.t, first, second, text(one), text(other))
}

func (w *world) encode(item object) string {
	encoded, err := json.Marshal(item)
	must(w.t, err)
	return string(encoded)
}

// compareTexts expects the same texts under the same names.
func compareTexts(t interface {
	Helper()
	Errorf(string, ...any)
}, first, second string, one, other map[string]string) {
	t.Helper()
	const most = 10
	found := 0
	names := maps.Clone(one)
	maps.Copy(names, other)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if one[name] == other[name] {
			continue
		}
		if found++; found <= most {
			t.Errorf("%s (-) and %s (+): %s\n%s", first, second, name, cmp.Diff(one[name], other[name]))
		}
	}
	if found > most {
		t.Errorf("%s and %s: %d objects differ", first, second, found)
	}
}

// What is different in any two clusters.
var (
	uuids = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	times = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
)

// comparable are all objects without what is different in any two clusters.
func (w *world) comparable(found map[string]object) map[string]string {
	w.t.Helper()
	texts := map[string]string{}
	for path, item := range found {
		metadata, _ := item["metadata"].(map[string]any)
		delete(metadata, "resourceVersion")
		if strings.Contains(path, " endpointslices ") {
			// How often its addresses came and went.
			delete(metadata, "generation")
		}
		text := w.encode(item)
		for _, server := range w.servers() {
			text = strings.ReplaceAll(text, server.port(), "port")
		}
		texts[path] = times.ReplaceAllString(uuids.ReplaceAllString(text, "uuid"), "time")
	}
	return texts
}
