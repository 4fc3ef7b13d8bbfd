package kubernetes

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

const varied = "varied"

// done answers what came with no error.
func (w *world) done(answer object, err error) object {
	w.t.Helper()
	must(w.t, err)
	return answer
}

// refused expects a status.
func (w *world) refused(code int, what string, err error) {
	w.t.Helper()
	if got := codeOf(err); got != code {
		w.t.Errorf("%s: %v (%d), not %d", what, err, got, code)
	}
}

func (w *world) namespace(name string) {
	w.t.Helper()
	w.done(w.cached.create(w.ctx, "/api/v1/namespaces", object{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name},
	}))
}

// someKinds are one object of each, by the path of its list.
func someKinds() map[string]object {
	pod := map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"app": "a"}},
		"spec":     map[string]any{"containers": []any{map[string]any{"name": "c", "image": "example.com/c:1"}}},
	}
	selector := map[string]any{"matchLabels": map[string]any{"app": "a"}}
	job := map[string]any{"metadata": map[string]any{}, "spec": map[string]any{
		"restartPolicy": "Never", "containers": []any{map[string]any{"name": "c", "image": "example.com/c:1"}},
	}}
	one := func(version, kind string, more object) object {
		more["apiVersion"], more["kind"] = version, kind
		more["metadata"] = map[string]any{"name": strings.ToLower(kind)}
		return more
	}
	in := func(group, resource string) string { return group + "/namespaces/" + varied + "/" + resource }
	return map[string]object{
		in("/api/v1", "secrets"):                                  one("v1", "Secret", object{"stringData": map[string]any{"key": "value"}}),
		in("/api/v1", "serviceaccounts"):                          one("v1", "ServiceAccount", object{}),
		in("/api/v1", "services"):                                 one("v1", "Service", object{"spec": map[string]any{"clusterIP": "10.96.7.7", "selector": map[string]any{"app": "a"}, "ports": []any{map[string]any{"port": 80}}}}),
		in("/api/v1", "pods"):                                     one("v1", "Pod", object{"spec": pod["spec"]}),
		in("/api/v1", "persistentvolumeclaims"):                   one("v1", "PersistentVolumeClaim", object{"spec": map[string]any{"accessModes": []any{"ReadWriteOnce"}, "resources": map[string]any{"requests": map[string]any{"storage": "1Gi"}}}}),
		in("/apis/apps/v1", "deployments"):                        one("apps/v1", "Deployment", object{"spec": map[string]any{"replicas": 3, "selector": selector, "template": pod}}),
		in("/apis/apps/v1", "statefulsets"):                       one("apps/v1", "StatefulSet", object{"spec": map[string]any{"serviceName": "service", "selector": selector, "template": pod}}),
		in("/apis/batch/v1", "jobs"):                              one("batch/v1", "Job", object{"spec": map[string]any{"template": job}}),
		in("/apis/rbac.authorization.k8s.io/v1", "roles"):         one("rbac.authorization.k8s.io/v1", "Role", object{"rules": []any{}}),
		in("/apis/coordination.k8s.io/v1", "leases"):              one("coordination.k8s.io/v1", "Lease", object{"spec": map[string]any{"holderIdentity": "a", "leaseDurationSeconds": 15}}),
		"/apis/scheduling.k8s.io/v1/priorityclasses":              one("scheduling.k8s.io/v1", "PriorityClass", object{"value": 7}),
		"/apis/storage.k8s.io/v1/storageclasses":                  one("storage.k8s.io/v1", "StorageClass", object{"provisioner": "example.com/p"}),
		"/apis/apiextensions.k8s.io/v1/customresourcedefinitions": customKind(),
	}
}

const (
	customGroup = "/apis/example.com/v1"
	customs     = customGroup + "/namespaces/" + varied + "/things"
)

// customKind defines things, of any shape.
func customKind() object {
	return object{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "things.example.com"},
		"spec": map[string]any{
			"group": "example.com", "scope": "Namespaced",
			"names": map[string]any{"plural": "things", "singular": "thing", "kind": "Thing"},
			"versions": []any{map[string]any{
				"name": "v1", "served": true, "storage": true,
				"schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
			}},
		},
	}
}

// objects creates, reads, changes and deletes what there is of many kinds.
func (w *world) objects() {
	w.namespace(varied)
	for path, one := range someKinds() {
		created := w.done(w.cached.create(w.ctx, path, one))
		_, err := w.cached.create(w.ctx, path, one)
		twice := http.StatusConflict
		if one["kind"] == "Service" {
			// Its address is taken before its name is looked at.
			twice = http.StatusUnprocessableEntity
		}
		w.refused(twice, "twice: "+path, err)
		for _, server := range w.servers() {
			got := w.done(server.get(w.ctx, path+"/"+one.name()))
			// A controller in the API server says that a definition is accepted.
			if got.revision() != created.revision() && one["kind"] != "CustomResourceDefinition" {
				w.t.Errorf("%s of %s is at revision %s, and was created at %s", path, server.name, got.revision(), created.revision())
			}
		}
	}
	w.changes()
	w.deletions()
	w.largeObjects()
	w.counter()
}

// changes are those that a comparison of revisions lets through, and those that it does not.
func (w *world) changes() {
	path := configMaps(varied)
	first := w.done(w.cached.create(w.ctx, path, configMap("changed", map[string]any{"a": "1"}, nil)))
	second := w.done(w.streamed.patch(w.ctx, path+"/changed", merging, object{"data": map[string]any{"b": "2"}}))
	first["data"] = map[string]any{"a": "3"}
	_, err := w.cached.replace(w.ctx, path+"/changed", first)
	w.refused(http.StatusConflict, "a change of an old revision", err)
	second["data"] = map[string]any{"a": "4"}
	third := w.done(w.paged.replace(w.ctx, path+"/changed", second))
	same := w.done(w.cached.replace(w.ctx, path+"/changed", third))
	if same.revision() != third.revision() {
		w.t.Errorf("a change of nothing is at revision %s, after %s", same.revision(), third.revision())
	}
	w.done(w.cached.create(w.ctx, path+"?dryRun=All", configMap("dry", nil, nil)))
	_, err = w.cached.get(w.ctx, path+"/dry")
	w.refused(http.StatusNotFound, "what was created dry", err)
	status := "/apis/apps/v1/namespaces/" + varied + "/deployments/deployment"
	w.done(w.cached.patch(w.ctx, status+"/status", merging, object{"status": map[string]any{"replicas": 3, "observedGeneration": 1}}))
	w.done(w.cached.patch(w.ctx, status+"/scale", merging, object{"spec": map[string]any{"replicas": 5}}))
	if got := w.done(w.streamed.get(w.ctx, status)); got.at("spec", "replicas") != 5.0 || got.at("status", "replicas") != 3.0 {
		w.t.Errorf("a scaled deployment: %v", got)
	}
}

func (w *world) deletions() {
	path := configMaps(varied)
	for i := range 30 {
		w.done(w.cached.create(w.ctx, path, configMap(fmt.Sprintf("deleted-%d", i), nil, map[string]any{"third": strconv.Itoa(i % 3)})))
	}
	_, err := w.cached.delete(w.ctx, path+"/deleted-0", object{"preconditions": map[string]any{"resourceVersion": "1"}})
	w.refused(http.StatusConflict, "a deletion of an old revision", err)
	w.done(w.cached.delete(w.ctx, path+"/deleted-0", nil))
	_, err = w.cached.delete(w.ctx, path+"/deleted-0", nil)
	w.refused(http.StatusNotFound, "a second deletion", err)
	for _, server := range w.servers() {
		_, err = server.get(w.ctx, path+"/deleted-0")
		w.refused(http.StatusNotFound, "what was deleted, of "+server.name, err)
	}
	w.done(w.streamed.delete(w.ctx, path+"?labelSelector=third%3D1", nil))
	for _, server := range w.servers() {
		left := w.done(server.get(w.ctx, path+"?labelSelector=third"))
		if got, want := len(left.items()), 30-1-10; got != want {
			w.t.Errorf("%d are left of %s, not %d", got, server.name, want)
		}
	}
}

// largeObjects are as large as the store takes, and larger.
func (w *world) largeObjects() {
	thing := func(name string, bytes int) object {
		return object{
			"apiVersion": "example.com/v1", "kind": "Thing", "metadata": map[string]any{"name": name},
			"content": strings.Repeat("x", bytes),
		}
	}
	w.eventually("things are served", func() error {
		_, err := w.cached.create(w.ctx, customs, thing("large", 1_400_000))
		return err
	})
	_, err := w.cached.create(w.ctx, customs, thing("too-large", 1_700_000))
	// The API server knows the store's refusal by its code and text, and says it.
	w.refused(http.StatusInternalServerError, "an object above the store's limit", err)
	if refused, _ := err.(*refusal); refused != nil && refused.message != "etcdserver: request is too large" {
		w.t.Errorf("an object above the store's limit: %v", err)
	}
	for i := range 20 {
		w.done(w.cached.create(w.ctx, customs, thing(fmt.Sprintf("small-%d", i), 10)))
	}
}

// counter has many change one object at once, each as it last read it.
func (w *world) counter() {
	const writers, steps = 8, 10
	path := configMaps(varied)
	w.done(w.cached.create(w.ctx, path, configMap("counter", map[string]any{"count": "0"}, nil)))
	var writing sync.WaitGroup
	for i := range writers {
		server := w.servers()[i%3]
		writing.Go(func() {
			for done := 0; done < steps; {
				one, err := server.get(w.ctx, path+"/counter")
				if err == nil {
					count, _ := strconv.Atoi(one.text("data", "count"))
					one["data"] = map[string]any{"count": strconv.Itoa(count + 1)}
					_, err = server.replace(w.ctx, path+"/counter", one)
				}
				switch codeOf(err) {
				case http.StatusOK:
					done++
				case http.StatusConflict:
				default:
					w.t.Errorf("count through %s: %v", server.name, err)
					return
				}
			}
		})
	}
	writing.Wait()
	for _, server := range w.servers() {
		if got := w.done(server.get(w.ctx, path+"/counter")).text("data", "count"); got != strconv.Itoa(writers*steps) {
			w.t.Errorf("%s counts %s of %d", server.name, got, writers*steps)
		}
	}
}

// apply is the server's side of it: who owns which field.
func (w *world) apply() {
	path := configMaps(varied, "applied")
	by := func(manager, more string, data map[string]any) (object, error) {
		return w.cached.patch(w.ctx, path+"?fieldManager="+manager+more, applying, configMap("applied", data, nil))
	}
	w.done(by("first", "", map[string]any{"a": "1", "b": "1"}))
	w.done(by("second", "", map[string]any{"c": "2"}))
	_, err := by("second", "", map[string]any{"b": "2", "c": "2"})
	w.refused(http.StatusConflict, "a field of another manager", err)
	w.done(by("second", "&force=true", map[string]any{"b": "2", "c": "2"}))
	// What the first no longer names, and nobody else owns, is deleted.
	w.done(by("first", "", map[string]any{}))
	for _, server := range w.servers() {
		got := w.done(server.get(w.ctx, path))
		if fmt.Sprint(got["data"]) != "map[b:2 c:2]" {
			w.t.Errorf("applied, of %s: %v", server.name, got)
		}
	}
}
