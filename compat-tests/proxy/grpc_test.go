package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc/metadata"
)

func startProxy(t *testing.T, kind harness.Kind, flags ...string) *process {
	t.Helper()
	return start(t, kind, "grpc-proxy", "started gRPC proxy", flags...)
}

var numbers = regexp.MustCompile(`[0-9]+`)

// What etcdctl prints behind a proxy of either kind, before a server of its own each: the
// same commands in the same order.
func TestEtcdctlBehindAProxy(t *testing.T) {
	for name, flags := range map[string][]string{"plain": nil, "namespace": {"--namespace=ns/"}} {
		t.Run(name, func(t *testing.T) {
			var said [2][]string
			for side, kind := range kinds {
				server := harness.Start(t, harness.Etcd, harness.Options{})
				proxy := startProxy(t, kind, append([]string{"--endpoints=" + server.Endpoint()}, flags...)...)
				said[side] = commands(t, proxy, server)
			}
			for i := range said[0] {
				if said[0][i] != said[1][i] {
					t.Errorf("behind etched's proxy:\n%s\nbehind etcd's:\n%s", said[0][i], said[1][i])
				}
			}
		})
	}
}

func commands(t *testing.T, proxy *process, server *harness.Server) (said []string) {
	t.Helper()
	dir := t.TempDir()
	run := func(args ...string) string {
		out := etcdctl(t, proxy.address, args...)
		said = append(said, fmt.Sprintf("%v: %s", args, out))
		return out
	}
	run("put", "a", "1")
	run("put", "b", "2")
	run("get", "a", "-w=fields", "--consistency=s")
	run("get", "a", "c", "--keys-only")
	run("get", "", "--from-key", "--print-value-only")
	run("get", "", "--prefix", "--count-only", "-w=fields")
	run("put", "a", "3", "--prev-kv")
	run("get", "a", "--rev=2")
	run("get", "a", "--rev=100")
	run("del", "b", "--prev-kv")
	run("del", "", "--prefix")
	run("put", "", "1")
	run("compact", "3")
	run("get", "a", "--rev=1")
	run("lease", "grant", "x")
	run("alarm", "list")
	run("role", "add", "r")
	run("role", "grant-permission", "r", "readwrite", "a", "c")
	run("role", "get", "r")
	run("user", "add", "root:secret")
	run("user", "grant-role", "root", "root")
	run("user", "add", "u:pw")
	run("user", "grant-role", "u", "r")
	run("auth", "enable")
	run("get", "a")
	run("--user=u:wrong", "get", "a")
	run("--user=root:secret", "put", "a", "4")
	run("--user=root:secret", "get", "a")
	run("--user=u:pw", "get", "z")
	run("--user=root:secret", "auth", "disable")
	direct := etcdctl(t, server.Endpoint(), "get", "", "--from-key", "--keys-only")
	said = append(said, "directly: "+direct)
	// What has ids or addresses in it, without them.
	for _, args := range [][]string{
		{"endpoint", "status", "-w=fields"}, {"endpoint", "hashkv", "-w=fields"}, {"member", "list", "-w=fields"},
	} {
		out := numbers.ReplaceAllString(etcdctl(t, proxy.address, args...), "N")
		said = append(said, fmt.Sprintf("%v: %s", args, out))
	}
	if out := run("defrag"); !strings.HasPrefix(out, "Finished") {
		said[len(said)-1] = "defrag: " + out
	} else {
		said[len(said)-1] = "defrag" // Which says how long it took.
	}
	out := etcdctl(t, proxy.address, "snapshot", "save", filepath.Join(dir, "snapshot"))
	said = append(said, fmt.Sprint("snapshot: ", strings.Contains(out, "Snapshot saved at")))
	for i, line := range said {
		said[i] = strings.ReplaceAll(strings.ReplaceAll(line, proxy.address, "PROXY"), dir, "DIR")
	}
	return said
}

// The same program of an official client behind both, before one server.
func TestClientBehindAProxy(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{})
	for _, flags := range [][]string{nil, {"--namespace=ns/"}} {
		var said [2]string
		for side, kind := range kinds {
			flags := append([]string{"--endpoints=http://" + server.Endpoint()}, flags...)
			said[side] = program(t, startProxy(t, kind, flags...).client(t))
			_, err := server.Client(t).Delete(t.Context(), "", clientv3.WithPrefix())
			must(t, err)
		}
		if said[0] != said[1] {
			t.Errorf("%v: behind etched's proxy:\n%s\nbehind etcd's:\n%s", flags, said[0], said[1])
		}
	}
}

// program answers what a client sees, with revisions counted from its first.
func program(t *testing.T, c *clientv3.Client) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var said strings.Builder
	first, err := c.Put(ctx, "first", "1")
	must(t, err)
	base := first.Header.Revision
	watch := func(name, key string, count int, options ...clientv3.OpOption) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for answer := range c.Watch(ctx, key, options...) {
			for _, event := range answer.Events {
				previous := ""
				if event.PrevKv != nil {
					previous = fmt.Sprintf(" was %s=%s", event.PrevKv.Key, event.PrevKv.Value)
				}
				fmt.Fprintf(&said, "%s: %s %s=%s@%d%s\n", name, event.Type, event.Kv.Key, event.Kv.Value, event.Kv.ModRevision-base, previous)
				count--
			}
			if answer.Canceled {
				fmt.Fprintf(&said, "%s: canceled, %v\n", name, answer.Err())
				return
			}
			if count <= 0 {
				return
			}
		}
	}
	txn, err := c.Txn(ctx).If(clientv3.Compare(clientv3.Value("first"), "=", "1")).
		Then(clientv3.OpPut("w/a", "1"), clientv3.OpGet("first"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("w/b", "2")}, nil)).Commit()
	must(t, err)
	fmt.Fprintf(&said, "txn %v, %d answers, %s\n", txn.Succeeded, len(txn.Responses), txn.Responses[1].GetResponseRange().Kvs[0].Key)
	_, err = c.Put(ctx, "w/a", "3")
	must(t, err)
	_, err = c.Delete(ctx, "w/", clientv3.WithPrefix())
	must(t, err)
	from := clientv3.WithRev(base)
	watch("all", "w/", 5, from, clientv3.WithPrefix(), clientv3.WithPrevKV())
	watch("puts", "w/", 3, from, clientv3.WithPrefix(), clientv3.WithFilterDelete())
	watch("deletes", "w/a", 1, from, clientv3.WithFilterPut())
	watch("from key", "w/b", 2, from, clientv3.WithFromKey())
	_, err = c.Compact(ctx, base+2)
	must(t, err)
	watch("compacted", "w/", 5, from, clientv3.WithPrefix())
	watch("negative", "w/", 5, clientv3.WithRev(-1))

	lease, err := c.Grant(ctx, 60)
	must(t, err)
	_, err = c.Put(ctx, "leased", "1", clientv3.WithLease(lease.ID))
	must(t, err)
	kept, err := c.KeepAliveOnce(ctx, lease.ID)
	must(t, err)
	left, err := c.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	must(t, err)
	fmt.Fprintf(&said, "lease %d %d %s\n", kept.TTL, left.GrantedTTL, left.Keys)
	_, err = c.Revoke(ctx, lease.ID)
	must(t, err)
	_, err = c.KeepAliveOnce(ctx, lease.ID)
	fmt.Fprintf(&said, "gone lease: %v\n", err)
	_, err = c.Put(ctx, "leased", "1", clientv3.WithLease(12345))
	fmt.Fprintf(&said, "no lease: %v\n", err)

	session, err := concurrency.NewSession(c, concurrency.WithTTL(60))
	must(t, err)
	mutex := concurrency.NewMutex(session, "lock")
	must(t, mutex.Lock(ctx))
	other, err := concurrency.NewSession(c, concurrency.WithTTL(60))
	must(t, err)
	err = concurrency.NewMutex(other, "lock").TryLock(ctx)
	fmt.Fprintf(&said, "locked: %v\n", err)
	must(t, mutex.Unlock(ctx))
	election := concurrency.NewElection(session, "elect")
	must(t, election.Campaign(ctx, "me"))
	leader, err := election.Leader(ctx)
	must(t, err)
	fmt.Fprintf(&said, "leader %s\n", leader.Kvs[0].Value)
	must(t, session.Close())
	must(t, other.Close())
	members, err := c.MemberList(ctx)
	must(t, err)
	fmt.Fprintf(&said, "members %d %v\n", len(members.Members), members.Members[0].ClientURLs)
	return said.String()
}

// metric is a number of a page of metrics.
func metric(t *testing.T, url, name string) string {
	t.Helper()
	body := page(t, http.DefaultClient, url, http.StatusOK)
	for line := range strings.Lines(body) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("%s has no %s:\n%s", url, name, body)
	return ""
}

func page(t *testing.T, client *http.Client, url string, status int) string {
	t.Helper()
	response, err := client.Get(url)
	must(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must(t, err)
	if response.StatusCode != status {
		t.Errorf("%s: %d\n%s", url, response.StatusCode, body)
	}
	return string(body)
}

// Two hundred watches of a key, in as many streams, are one at the server, and each sees
// every event, over a restart of the server too.
func TestManyWatchesAreOne(t *testing.T) {
	const count = 200
	for _, upstream := range kinds {
		t.Run(upstream.String(), func(t *testing.T) {
			server := harness.Start(t, upstream, harness.Options{})
			proxy := startProxy(t, harness.Etched, "--endpoints="+server.Endpoint())
			c := proxy.client(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			const last = "last"
			var begun, seen sync.WaitGroup
			failures := make(chan error, count)
			for i := range count {
				begun.Add(1)
				// Other metadata is another stream of the client.
				ctx := metadata.AppendToOutgoingContext(ctx, "number", fmt.Sprint(i))
				watch := c.Watch(ctx, "k", clientv3.WithCreatedNotify())
				seen.Go(func() {
					created := <-watch
					begun.Done()
					if !created.Created {
						failures <- fmt.Errorf("watch %d: %+v", i, created)
						return
					}
					var values []string
					for answer := range watch {
						for _, event := range answer.Events {
							values = append(values, string(event.Kv.Value))
						}
						if len(values) > 0 && values[len(values)-1] == last {
							break
						}
					}
					if got := strings.Join(values, " "); got != "1 2 "+last {
						failures <- fmt.Errorf("watch %d saw %s", i, got)
					}
				})
			}
			begun.Wait()
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
				found := metric(t, "http://"+server.Endpoint()+"/metrics", "etcd_debugging_mvcc_watcher_total")
				if found == "1" {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("the server has %s watches", found)
				}
			}
			if found := metric(t, "http://"+proxy.address+"/proxy/metrics", "etcd_grpc_proxy_watchers_coalescing_total"); found != fmt.Sprint(count-1) {
				t.Errorf("%s watches are shared", found)
			}
			put := func(value string) {
				direct := server.Client(t)
				_, err := direct.Put(ctx, "k", value)
				must(t, err)
			}
			put("1")
			must(t, server.Stop())
			must(t, server.Restart())
			put("2")
			put(last)
			seen.Wait()
			close(failures)
			for failure := range failures {
				t.Error(failure)
			}
		})
	}
}

// A member dies, and clients continue.
func TestMemberDiesBehindTheProxy(t *testing.T) {
	cluster := harness.StartCluster(t, harness.Etched, harness.ClusterOptions{})
	members := cluster.Members()
	proxy := startProxy(t, harness.Etched, "--endpoints="+strings.Join(harness.Endpoints(members), ","))
	c := proxy.client(t)
	watch := c.Watch(t.Context(), "k", clientv3.WithPrefix())
	must(t, members[1].Kill())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range 10 {
		key := fmt.Sprint("k", i)
		for {
			_, err := c.Put(ctx, key, "1")
			if err == nil {
				break
			}
			must(t, ctx.Err())
		}
	}
	found := map[string]bool{}
	for len(found) < 10 {
		select {
		case answer, open := <-watch:
			if !open || answer.Err() != nil {
				t.Fatalf("the watch ended: %v", answer.Err())
			}
			for _, event := range answer.Events {
				found[string(event.Kv.Key)] = true
			}
		case <-ctx.Done():
			t.Fatalf("seen %v", found)
		}
	}
	got, err := c.Get(ctx, "k", clientv3.WithPrefix())
	if err != nil || got.Count != 10 {
		t.Errorf("%v, %v", got, err)
	}
}

// A lease is kept by many clients.
func TestManyKeepALease(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{})
	proxy := startProxy(t, harness.Etched, "--endpoints="+server.Endpoint())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	lease, err := proxy.client(t).Grant(ctx, 30)
	must(t, err)
	var all sync.WaitGroup
	failures := make(chan error, 20)
	for range 20 {
		c := proxy.client(t)
		all.Go(func() {
			for range 10 {
				answer, err := c.KeepAliveOnce(ctx, lease.ID)
				if err != nil || answer.TTL != 30 {
					failures <- errors.Join(err, fmt.Errorf("%+v", answer))
					return
				}
			}
		})
	}
	all.Wait()
	close(failures)
	for failure := range failures {
		t.Error(failure)
	}
}

// Who may not see a key sees it no more because others may.
func TestWatchesOfUsersAreTheirOwn(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{})
	admin := server.Client(t)
	ctx := t.Context()
	for _, user := range []string{"root", "u"} {
		_, err := admin.UserAdd(ctx, user, "pw")
		must(t, err)
	}
	_, err := admin.UserGrantRole(ctx, "root", "root")
	must(t, err)
	_, err = admin.AuthEnable(ctx)
	must(t, err)
	proxy := startProxy(t, harness.Etched, "--endpoints="+server.Endpoint())
	of := func(user string) *clientv3.Client {
		return newClient(t, clientv3.Config{Endpoints: []string{proxy.address}, Username: user, Password: "pw"})
	}
	root := of("root")
	watch := root.Watch(ctx, "k", clientv3.WithCreatedNotify())
	if created := <-watch; !created.Created || created.Canceled {
		t.Fatalf("%+v", created)
	}
	refused := <-of("u").Watch(ctx, "k")
	if refused.Err() == nil || !strings.Contains(refused.Err().Error(), "permission denied") {
		t.Errorf("%+v", refused)
	}
	_, err = root.Put(ctx, "k", "1")
	must(t, err)
	if seen := <-watch; len(seen.Events) != 1 {
		t.Errorf("%+v", seen)
	}
	if _, err := proxy.client(t).Get(ctx, "k"); err == nil || !strings.Contains(err.Error(), "user name is empty") {
		t.Errorf("nobody reads: %v", err)
	}
}

// What was allowed an earlier watch of the same user is not allowed a later one that joins it.
func TestLaterWatchIsJudged(t *testing.T) {
	// A running watch continues there without its right.
	server := harness.Start(t, harness.Etcd, harness.Options{})
	admin, ctx := server.Client(t), t.Context()
	for _, user := range []string{"root", "u"} {
		_, err := admin.UserAdd(ctx, user, "pw")
		must(t, err)
	}
	_, err := admin.UserGrantRole(ctx, "root", "root")
	must(t, err)
	_, err = admin.RoleAdd(ctx, "r")
	must(t, err)
	_, err = admin.RoleGrantPermission(ctx, "r", "k", "", clientv3.PermissionType(clientv3.PermRead))
	must(t, err)
	_, err = admin.UserGrantRole(ctx, "u", "r")
	must(t, err)
	put, err := admin.Put(ctx, "k", "1")
	must(t, err)
	_, err = admin.AuthEnable(ctx)
	must(t, err)
	root := newClient(t, clientv3.Config{Endpoints: []string{server.Endpoint()}, Username: "root", Password: "pw"})
	for _, kind := range kinds {
		proxy := startProxy(t, kind, "--endpoints="+server.Endpoint())
		u := newClient(t, clientv3.Config{Endpoints: []string{proxy.address}, Username: "u", Password: "pw"})
		from := clientv3.WithRev(put.Header.Revision + 1)
		if created := <-u.Watch(ctx, "k", from, clientv3.WithCreatedNotify()); !created.Created || created.Canceled {
			t.Fatalf("%s: %+v", kind, created)
		}
		_, err = root.RoleRevokePermission(ctx, "r", "k", "")
		must(t, err)
		refused := <-u.Watch(ctx, "k", from, clientv3.WithCreatedNotify())
		if refused.Err() == nil || !strings.Contains(refused.Err().Error(), "permission denied") {
			t.Errorf("%s: %+v", kind, refused)
		}
		_, err = root.RoleGrantPermission(ctx, "r", "k", "", clientv3.PermissionType(clientv3.PermRead))
		must(t, err)
	}
}

// The proxy's pages, and its end.
func TestPages(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{})
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			port, err := harness.FreePort()
			must(t, err)
			alone := fmt.Sprintf("http://127.0.0.1:%d", port)
			// etcd's proxy calls itself at its advertised address.
			own, err := harness.FreePort()
			must(t, err)
			address := fmt.Sprintf("127.0.0.1:%d", own)
			proxy := startProxy(t, kind, "--listen-addr="+address, "--advertise-client-url="+address,
				"--endpoints="+server.Endpoint(), "--metrics-addr="+alone)
			for _, base := range []string{"http://" + address, alone} {
				for _, path := range []string{"/health", "/proxy/health"} {
					if body := page(t, http.DefaultClient, base+path, http.StatusOK); body != `{"health":"true","reason":""}` {
						t.Errorf("%s%s: %s", base, path, body)
					}
				}
				metric(t, base+"/metrics", "etcd_server_has_leader")
				metric(t, base+"/proxy/metrics", "etcd_grpc_proxy_watchers_coalescing_total")
				page(t, http.DefaultClient, base+"/version", http.StatusNotFound)
				page(t, http.DefaultClient, base+"/debug/pprof/", http.StatusNotFound)
			}
			if kind == harness.Etched {
				if status := proxy.stop(t); status.Signal() != syscall.SIGTERM {
					t.Errorf("it ended by %v", status)
				}
			}
		})
	}
}

// Profiles are there where the flag asks for them, and not on the port of the metrics.
func TestProfiles(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{})
	for _, kind := range kinds {
		alone := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
		proxy := startProxy(t, kind, "--endpoints="+server.Endpoint(), "--metrics-addr="+alone, "--enable-pprof")
		for _, path := range []string{"/debug/pprof/heap", "/debug/pprof/profile?seconds=1"} {
			if body := page(t, http.DefaultClient, "http://"+proxy.address+path, http.StatusOK); !strings.HasPrefix(body, "\x1f\x8b") {
				t.Errorf("%s %s is no profile: %q", kind, path, body)
			}
		}
		page(t, http.DefaultClient, alone+"/debug/pprof/", http.StatusNotFound)
	}
}

// A member's page is the first one's, however its URL is written.
func TestMetricsOfTheFirstMember(t *testing.T) {
	first, second := harness.Start(t, harness.Etched, harness.Options{}), harness.Start(t, harness.Etched, harness.Options{})
	_, err := first.Client(t).Put(t.Context(), "k", "1")
	must(t, err)
	proxy := startProxy(t, harness.Etched, fmt.Sprintf("--endpoints=http://%s/,http://%s/", first.Endpoint(), second.Endpoint()))
	for range 4 {
		if found := metric(t, "http://"+proxy.address+"/metrics", "etcd_mvcc_put_total"); found != "1" {
			t.Errorf("%s puts", found)
		}
	}
}

// A name is listened at by IPv4, as in Go.
func TestListensByIPv4(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{})
	for _, start := range []func(*testing.T, harness.Kind, ...string) *process{startProxy, startGateway} {
		port := freePort(t)
		start(t, harness.Etched, "--endpoints="+server.Endpoint(), fmt.Sprintf("--listen-addr=localhost:%d", port))
		if out := etcdctl(t, fmt.Sprintf("127.0.0.1:%d", port), "get", "k"); out != "" {
			t.Error(out)
		}
	}
}

// Proxies of both kinds know each other.
func TestProxiesKnowEachOther(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{})
	var proxies []*process
	for i, kind := range kinds {
		proxies = append(proxies, startProxy(t, kind, "--endpoints="+server.Endpoint(), "--resolver-prefix=proxies",
			"--resolver-ttl=30", fmt.Sprintf("--advertise-client-url=10.0.0.%d:1", i)))
	}
	listed := func(p *process) string {
		var answer struct {
			Members []struct {
				Name       string   `json:"name"`
				ClientURLs []string `json:"clientURLs"`
			} `json:"members"`
		}
		must(t, json.NewDecoder(bytes.NewReader([]byte(etcdctl(t, p.address, "member", "list", "-w=json")))).Decode(&answer))
		var all []string
		for _, member := range answer.Members {
			all = append(all, fmt.Sprint(member.Name, member.ClientURLs))
		}
		return strings.Join(slices.Sorted(slices.Values(all)), " ")
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		one, two := listed(proxies[0]), listed(proxies[1])
		if one == two && strings.Contains(one, "10.0.0.0:1") && strings.Contains(one, "10.0.0.1:1") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("etched's: %s\netcd's: %s", one, two)
		}
	}
}
