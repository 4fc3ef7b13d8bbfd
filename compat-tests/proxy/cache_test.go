package proxy

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// cacheCounts are the numbers of a proxy's cache.
func cacheCounts(t *testing.T, proxy *process) string {
	t.Helper()
	var counts []string
	for _, name := range []string{"hits", "misses", "keys"} {
		value := metric(t, "http://"+proxy.address+"/proxy/metrics", "etcd_grpc_proxy_cache_"+name+"_total")
		counts = append(counts, value+" "+name)
	}
	return strings.Join(counts, ", ")
}

// Serializable reads are answered again by either proxy, until what they read is written
// through it.
func TestRangesAreCached(t *testing.T) {
	for _, flags := range [][]string{nil, {"--namespace=ns/"}} {
		var said [2]string
		for side, kind := range kinds {
			server := harness.Start(t, harness.Etcd, harness.Options{})
			proxy := startProxy(t, kind, append(flags, "--endpoints="+server.Endpoint())...)
			prefix := ""
			if flags != nil {
				prefix = "ns/"
			}
			said[side] = cached(t, proxy, server.Client(t), prefix)
		}
		if said[0] != said[1] {
			t.Errorf("%v: etched's proxy:\n%s\netcd's:\n%s", flags, said[0], said[1])
		}
	}
}

func cached(t *testing.T, proxy *process, direct *clientv3.Client, prefix string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := proxy.client(t)
	var said strings.Builder
	get := func(what, key string, options ...clientv3.OpOption) {
		t.Helper()
		got, err := c.Get(ctx, key, options...)
		fmt.Fprintf(&said, "%s: ", what)
		if err != nil {
			fmt.Fprintln(&said, err)
			return
		}
		for _, pair := range got.Kvs {
			fmt.Fprintf(&said, "%s=%s@%d ", pair.Key, pair.Value, pair.ModRevision)
		}
		fmt.Fprintf(&said, "of %d at %d; %s\n", got.Count, got.Header.Revision, cacheCounts(t, proxy))
	}
	put := func(c *clientv3.Client, key, value string) {
		t.Helper()
		_, err := c.Put(ctx, key, value)
		must(t, err)
	}
	anyMember, all := clientv3.WithSerializable(), clientv3.WithPrefix()
	put(c, "k/a", "1")
	put(c, "k/b", "1")
	get("first", "k/a", anyMember)
	get("again", "k/a", anyMember)
	get("all", "k/", all, anyMember)
	get("keys", "k/", all, anyMember, clientv3.WithKeysOnly())
	put(direct, prefix+"k/a", "2")
	get("written elsewhere", "k/a", anyMember)
	get("linearizable", "k/a")
	get("after that", "k/a", anyMember)
	get("all are old", "k/", all, anyMember)
	put(c, "k/a", "3")
	get("written here", "k/a", anyMember)
	get("all are new", "k/", all, anyMember)
	_, err := c.Delete(ctx, "k/b", all)
	must(t, err)
	get("deleted", "k/", all, anyMember)
	_, err = c.Txn(ctx).Then(clientv3.OpPut("k/c", "1")).Commit()
	must(t, err)
	get("by a transaction", "k/c", anyMember)
	get("past", "k/a", anyMember, clientv3.WithRev(3))
	put(c, "k/a", "4")
	get("past again", "k/a", anyMember, clientv3.WithRev(3))
	_, err = c.Compact(ctx, 5)
	must(t, err)
	_, err = c.Get(ctx, "k/a", anyMember, clientv3.WithRev(3))
	fmt.Fprintf(&said, "compacted: %v\n", err)
	return said.String()
}

// What is written by other calls is read through the same proxy too.
func TestOtherWritesAreSeen(t *testing.T) {
	server := harness.Start(t, harness.Etcd, harness.Options{})
	proxy := startProxy(t, harness.Etched, "--endpoints="+server.Endpoint())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := proxy.client(t)
	lease, err := c.Grant(ctx, 60)
	must(t, err)
	_, err = c.Put(ctx, "k", "1", clientv3.WithLease(lease.ID))
	must(t, err)
	count := func() int64 {
		got, err := c.Get(ctx, "k", clientv3.WithSerializable())
		must(t, err)
		return got.Count
	}
	if count() != 1 || count() != 1 {
		t.Error("the key is not there")
	}
	_, err = c.Revoke(ctx, lease.ID)
	must(t, err)
	if count() != 0 {
		t.Error("a key is there whose lease was revoked")
	}
}

// What was answered to one user is answered to no other, nor to the same one without its right.
// etcd's proxy answers all of them.
func TestCachedRangesAreTheirUsers(t *testing.T) {
	server := harness.Start(t, harness.Etcd, harness.Options{})
	admin, ctx := server.Client(t), t.Context()
	for _, user := range []string{"root", "u", "v"} {
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
	_, err = admin.Put(ctx, "k", "1")
	must(t, err)
	_, err = admin.AuthEnable(ctx)
	must(t, err)
	proxy := startProxy(t, harness.Etched, "--endpoints="+server.Endpoint())
	of := func(user string) *clientv3.Client {
		return newClient(t, clientv3.Config{Endpoints: []string{proxy.address}, Username: user, Password: "pw"})
	}
	root, u, v := of("root"), of("u"), of("v")
	read := func(c *clientv3.Client) error {
		_, err := c.Get(ctx, "k", clientv3.WithSerializable())
		return err
	}
	must(t, read(u))
	must(t, read(u))
	if counts := cacheCounts(t, proxy); !strings.HasPrefix(counts, "1 hits") {
		t.Error(counts)
	}
	if err := read(v); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("another user: %v", err)
	}
	if err := read(proxy.client(t)); err == nil || !strings.Contains(err.Error(), "user name is empty") {
		t.Errorf("nobody: %v", err)
	}
	_, err = root.RoleRevokePermission(ctx, "r", "k", "")
	must(t, err)
	if err := read(u); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("without the right: %v", err)
	}
}

// A request that is too large is refused by either proxy, and one that is not passes.
func TestLargeRequests(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{Flags: []string{"--max-request-bytes=3000000"}})
	var said [2]string
	for side, kind := range kinds {
		kv := etcdserverpb.NewKVClient(startProxy(t, kind, "--endpoints="+server.Endpoint()).dial(t))
		for _, size := range []int{1_500_000, 2_000_000} {
			_, err := kv.Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte("k"), Value: make([]byte, size)})
			said[side] += fmt.Sprintln(size, err)
		}
	}
	if said[0] != said[1] {
		t.Errorf("etched's proxy:\n%s\netcd's:\n%s", said[0], said[1])
	}
}
