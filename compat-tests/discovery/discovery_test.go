package discovery

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func client(t *testing.T, endpoints ...string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// waitMembers waits until a cluster has so many members that published their names.
func waitMembers(t *testing.T, c *clientv3.Client, count int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		var named int
		response, err := c.MemberList(ctx)
		if err == nil {
			for _, member := range response.Members {
				if len(member.ClientURLs) > 0 {
					named++
				}
			}
		}
		if named == count {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%d of %d members: %v, %v", named, count, response, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

var refusedWords = map[string]string{
	"":  "discovery: size key not found",
	"x": "discovery: size key is bad",
	"0": "discovery: size key is bad",
}

// Two founders of either kind find each other in a server of either kind; a third is
// turned away.
func TestFoundersFindEachOther(t *testing.T) {
	for _, founders := range []harness.Kind{harness.Etched, harness.Etcd} {
		for _, service := range []harness.Kind{harness.Etched, harness.Etcd} {
			t.Run(fmt.Sprintf("%s in %s", founders, service), func(t *testing.T) {
				t.Parallel()
				findEachOther(t, founders, harness.Start(t, service, harness.Options{}))
			})
		}
	}
}

func findEachOther(t *testing.T, kind harness.Kind, service *harness.Server) {
	store := client(t, service.Endpoint())
	flags := []string{"--discovery-token=tok", "--discovery-endpoints=http://127.0.0.1:1," + service.Endpoint()}
	one, two, three := newPlace(t), newPlace(t), newPlace(t)
	for _, size := range []string{"", "x", "0"} {
		if size != "" {
			_, err := store.Put(t.Context(), "/_etcd/registry/tok/_config/size", size)
			must(t, err)
		}
		expectRefusal(t, start(t, kind, "one", one, flags...).refusal(t), refusedWords[size])
	}
	_, err := store.Put(t.Context(), "/_etcd/registry/tok/_config/size", "2")
	must(t, err)
	start(t, kind, "one", one, flags...)
	time.Sleep(500 * time.Millisecond) // It waits by its watch.
	start(t, kind, "two", two, flags...)
	found := client(t, one.clientURL(), two.clientURL())
	waitMembers(t, found, 2)
	_, err = found.Put(t.Context(), "a", "1")
	must(t, err)
	expectRefusal(t, start(t, kind, "three", three, flags...).refusal(t), "discovery: cluster is full")
	keys, err := store.Get(t.Context(), "/_etcd/registry/tok/members", clientv3.WithPrefix())
	must(t, err)
	for _, pair := range keys.Kvs {
		value := string(pair.Value)
		if value != "one="+one.peerURL() && value != "two="+two.peerURL() {
			t.Errorf("%s=%s", pair.Key, value)
		}
	}
	if len(keys.Kvs) != 2 {
		t.Errorf("%d members are registered", len(keys.Kvs))
	}
}

func expectRefusal(t *testing.T, found, word string) {
	t.Helper()
	expected := "exit 1\n" +
		"warn: failed to bootstrap; discovery token was already used: failed to join discovery cluster (" + word + ")\n" +
		"warn: do not reuse discovery token; generate a new one to bootstrap a cluster: <nil>"
	if found != expected {
		t.Errorf("found\n%s\nexpected\n%s", found, expected)
	}
}

// A service that wants to know who asks.
func TestDiscoveryLogsIn(t *testing.T) {
	service := harness.Start(t, harness.Etcd, harness.Options{})
	store := client(t, service.Endpoint())
	_, err := store.Put(t.Context(), "/_etcd/registry/tok/_config/size", "1")
	must(t, err)
	_, err = store.UserAdd(t.Context(), "root", "secret")
	must(t, err)
	_, err = store.UserGrantRole(t.Context(), "root", "root")
	must(t, err)
	_, err = store.AuthEnable(t.Context())
	must(t, err)
	for _, kind := range []harness.Kind{harness.Etcd, harness.Etched} {
		t.Run(kind.String(), func(t *testing.T) {
			at := newPlace(t)
			flags := func(password string) []string {
				return []string{"--discovery-token=tok", "--discovery-endpoints=" + service.Endpoint(),
					"--discovery-user=root", "--discovery-password=" + password}
			}
			expectRefusal(t, start(t, kind, "one", at, flags("wrong")...).refusal(t),
				"etcdserver: authentication failed, invalid user ID or password")
			admin, err := clientv3.New(clientv3.Config{
				Endpoints: []string{service.Endpoint()}, Username: "root", Password: "secret",
			})
			must(t, err)
			defer admin.Close()
			_, err = admin.Delete(t.Context(), "/_etcd/registry/tok/members", clientv3.WithPrefix())
			must(t, err)
			start(t, kind, "one", at, flags("secret")...)
			waitMembers(t, client(t, at.clientURL()), 1)
		})
	}
}

// Starts that must not come about, next to a founder that runs: the same words from both.
func TestRefusedStarts(t *testing.T) {
	one, two := newPlace(t), newPlace(t)
	both := fmt.Sprintf("--initial-cluster=one=%s,two=%s", one.peerURL(), two.peerURL())
	alone := "--initial-cluster=one=" + one.peerURL()
	const existing = "--initial-cluster-state=existing"
	cases := []struct {
		name  string
		flags []string
	}{
		{"not added", []string{existing, both}},
		{"peers that are not there", []string{existing, "--initial-cluster=one=http://127.0.0.1:1,two=" + two.peerURL()}},
		{"name missing", []string{existing, alone}},
		{"name missing in a new cluster", []string{alone}},
		{"the same URL twice", []string{existing, "--initial-cluster=one=" + two.peerURL() + ",two=" + two.peerURL()}},
		{"other URLs than advertised", []string{"--initial-cluster=two=http://127.0.0.1:1"}},
		{"discovered and existing", []string{existing, "--discovery-token=t", "--discovery-endpoints=127.0.0.1:1"}},
		{"a token alone", []string{"--discovery-token=t"}},
		{"discovered and listed", []string{"--discovery-token=t", "--discovery-endpoints=127.0.0.1:1", both}},
	}
	refusals := func(kind harness.Kind) (texts []string) {
		founded := start(t, kind, "one", one, alone)
		defer founded.kill()
		waitMembers(t, client(t, one.clientURL()), 1)
		// etcd decides its cluster's version some time after it serves.
		time.Sleep(5 * time.Second)
		for _, c := range cases {
			texts = append(texts, start(t, kind, "two", two, c.flags...).refusal(t))
		}
		return texts
	}
	etched, etcd := refusals(harness.Etched), refusals(harness.Etcd)
	for i, c := range cases {
		if etched[i] != etcd[i] {
			t.Errorf("%s: etched\n%s\netcd\n%s", c.name, etched[i], etcd[i])
		}
	}
}

// A founder that lost its data is turned away by the others. etcd lets it in where it
// says that the cluster exists; etched does not. With another token it is another
// member, of another cluster: see TestRecoveryInPlace.
func TestWipedFounder(t *testing.T) {
	one, two := newPlace(t), newPlace(t)
	both := fmt.Sprintf("--initial-cluster=one=%s,two=%s", one.peerURL(), two.peerURL())
	wiped := func(t *testing.T, kind harness.Kind, flags ...string) string {
		start(t, kind, "one", one, both)
		dir := t.TempDir()
		lost := startIn(t, kind, dir, "two", two, both)
		waitMembers(t, client(t, one.clientURL(), two.clientURL()), 2)
		lost.kill()
		must(t, os.RemoveAll(filepath.Join(dir, "data")))
		return startIn(t, kind, dir, "two", two, append(flags, both)...).refusal(t)
	}
	var refusals [2]string
	for i, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		t.Run(kind.String(), func(t *testing.T) { refusals[i] = wiped(t, kind) })
	}
	if refusals[0] != refusals[1] || !strings.Contains(refusals[0], "has already been bootstrapped") {
		t.Errorf("etched\n%s\netcd\n%s", refusals[0], refusals[1])
	}
	const existing = "--initial-cluster-state=existing"
	t.Run(existing, func(t *testing.T) {
		if refusal := wiped(t, harness.Etched, existing); !strings.Contains(refusal, "has already been bootstrapped") {
			t.Error(refusal)
		}
	})
}

// Three members are restarted one by one without their data, as a new cluster at the same
// URLs that only its token tells from the old: how a cluster is recovered in place. Each of
// them waits, saying why the old ones do not listen, until two are new and serve.
func TestRecoveryInPlace(t *testing.T) {
	for _, kind := range []harness.Kind{harness.Etcd, harness.Etched} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			recoverInPlace(t, kind)
		})
	}
}

func recoverInPlace(t *testing.T, kind harness.Kind) {
	names := []string{"one", "two", "three"}
	var places []place
	var dirs, listed, urls []string
	for _, name := range names {
		at := newPlace(t)
		places, dirs = append(places, at), append(dirs, t.TempDir())
		listed, urls = append(listed, name+"="+at.peerURL()), append(urls, at.clientURL())
	}
	cluster := "--initial-cluster=" + strings.Join(listed, ",")
	members := make([]*founder, len(names))
	for i, name := range names {
		members[i] = startIn(t, kind, dirs[i], name, places[i], cluster, "--initial-cluster-token=old")
	}
	waitMembers(t, client(t, urls...), len(names))
	putUntilTaken(t, client(t, urls...), "of the old cluster")
	for i, name := range names {
		members[i].kill()
		must(t, os.RemoveAll(filepath.Join(dirs[i], "data")))
		members[i] = startIn(t, kind, dirs[i], name, places[i], cluster, "--initial-cluster-token=new", "--initial-cluster-state=new")
		switch i {
		case 0:
			members[i].waitFor(t, "cluster ID mismatch")
			// The old members continue without it.
			putUntilTaken(t, client(t, urls[1:]...), "of the old cluster")
		case 1:
			putUntilTaken(t, client(t, urls[:2]...), "of the new cluster")
		}
		for _, member := range members[:i+1] {
			if !member.running() {
				t.Fatalf("%s: a member of the new cluster ended\n%s", name, member.text(t))
			}
		}
	}
	waitMembers(t, client(t, urls[2]), len(names))
	for _, url := range urls {
		old, err := client(t, url).Get(t.Context(), "of the old cluster")
		must(t, err)
		fresh, err := client(t, url).Get(t.Context(), "of the new cluster")
		must(t, err)
		if old.Count != 0 || fresh.Count != 1 {
			t.Errorf("%s has %d keys of the old cluster and %d of the new", url, old.Count, fresh.Count)
		}
	}
}

// putUntilTaken puts a key, again where a change of leaders was in the way.
func putUntilTaken(t *testing.T, c *clientv3.Client, key string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		_, err := c.Put(ctx, key, "1")
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// An endpoint with a scheme of gRPC's resolvers reaches nothing: etcd tries it for ever, etched
// says so.
func TestEndpointsOfOtherSchemes(t *testing.T) {
	service := harness.Start(t, harness.Etcd, harness.Options{})
	flags := []string{"--discovery-token=tok", "--discovery-request-timeout=1s", "--discovery-endpoints=dns:///" + service.Endpoint()}
	if refusal := start(t, harness.Etched, "one", newPlace(t), flags...).refusal(t); !strings.Contains(refusal, "with dns reaches nothing") {
		t.Error(refusal)
	}
	tries := start(t, harness.Etcd, "one", newPlace(t), flags...)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		log, err := os.ReadFile(tries.log)
		must(t, err)
		if strings.Contains(string(log), "retry connecting to discovery service") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s", log)
		}
	}
}
