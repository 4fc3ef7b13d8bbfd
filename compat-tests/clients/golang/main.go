// Command golang uses a server by etcd's own client, and prints what it sees.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func connect(user, password string) (*clientv3.Client, error) {
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(must(os.ReadFile(os.Getenv("CA"))))
	return clientv3.New(clientv3.Config{
		Endpoints: []string{os.Getenv("ENDPOINT")}, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
		TLS: &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12}, Username: user, Password: password,
	})
}

func step(name string) { fmt.Println("==", name) }

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	client := must(connect("", ""))
	keys(ctx, client)
	watch(ctx, client)
	lease(ctx, client)
	lock(ctx)
	elect(ctx)
	auth(ctx, client)
	fmt.Println("done")
}

func show(response *clientv3.GetResponse) {
	for _, kv := range response.Kvs {
		fmt.Printf("%s=%s %d %d %d\n", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version)
	}
	fmt.Println(response.Count, response.More, response.Header.Revision)
}

func keys(ctx context.Context, client *clientv3.Client) {
	step("kv")
	fmt.Println(must(client.Put(ctx, "a", "1")).Header.Revision)
	fmt.Printf("%s\n", must(client.Put(ctx, "a", "2", clientv3.WithPrevKV())).PrevKv.Value)
	must(client.Put(ctx, "b", "3"))
	show(must(client.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend))))
	show(must(client.Get(ctx, "a", clientv3.WithRev(2))))
	show(must(client.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithLimit(1))))
	fmt.Println(must(client.Delete(ctx, "b")).Deleted)
	must(client.Compact(ctx, 2))
	_, err := client.Get(ctx, "a", clientv3.WithRev(1))
	fmt.Println(err)

	step("txn")
	for _, wanted := range []string{"2", "other"} {
		answer := must(client.Txn(ctx).If(clientv3.Compare(clientv3.Value("a"), "=", wanted)).
			Then(clientv3.OpPut("t", "x"), clientv3.OpGet("a")).
			Else(clientv3.OpGet("t"), clientv3.OpDelete("t")).Commit())
		fmt.Println(answer.Succeeded, len(answer.Responses), answer.Header.Revision)
	}
}

func watch(ctx context.Context, client *clientv3.Client) {
	step("watch")
	events := client.Watch(ctx, "w/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	must(client.Put(ctx, "w/1", "one"))
	must(client.Put(ctx, "x", "not watched"))
	must(client.Delete(ctx, "w/1"))
	seen := 0
	collect := func(until int) {
		for seen < until {
			answer := <-events
			if answer.Err() != nil {
				panic(answer.Err())
			}
			for _, event := range answer.Events {
				fmt.Printf("%s %s=%s %d %v\n", event.Type, event.Kv.Key, event.Kv.Value, event.Kv.ModRevision, event.PrevKv != nil)
				seen++
			}
		}
	}
	collect(2)
	fmt.Println("RESTART")
	must(bufio.NewReader(os.Stdin).ReadString('\n'))
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := client.Put(attempt, "w/2", "two")
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			panic(err)
		}
	}
	must(client.Put(ctx, "w/3", "three"))
	collect(4)
}

func lease(ctx context.Context, client *clientv3.Client) {
	step("lease")
	grant := must(client.Grant(ctx, 3))
	must(client.Put(ctx, "l", "leased", clientv3.WithLease(grant.ID)))
	kept, stop := context.WithCancel(ctx)
	alive := must(client.KeepAlive(kept, grant.ID))
	for range 3 {
		fmt.Println((<-alive).TTL)
	}
	fmt.Println(len(must(client.TimeToLive(ctx, grant.ID, clientv3.WithAttachedKeys())).Keys))
	gone := client.Watch(ctx, "l")
	stop()
	fmt.Println((<-gone).Events[0].Type, must(client.TimeToLive(ctx, grant.ID)).TTL)
	grant = must(client.Grant(ctx, 60))
	must(client.Put(ctx, "l", "leased", clientv3.WithLease(grant.ID)))
	must(client.Revoke(ctx, grant.ID))
	fmt.Println(must(client.Get(ctx, "l")).Count)
}

func lock(ctx context.Context) {
	step("lock")
	one, other := must(connect("", "")), must(connect("", ""))
	first := concurrency.NewMutex(must(concurrency.NewSession(one)), "lock")
	second := concurrency.NewMutex(must(concurrency.NewSession(other)), "lock")
	fmt.Println(first.Lock(ctx), second.TryLock(ctx))
	taken := make(chan error)
	go func() { taken <- second.Lock(ctx) }()
	fmt.Println(first.Unlock(ctx), <-taken, first.TryLock(ctx), second.Unlock(ctx))
	_, _ = one.Close(), other.Close()
}

func elect(ctx context.Context) {
	step("election")
	one, other := must(connect("", "")), must(connect("", ""))
	first := concurrency.NewElection(must(concurrency.NewSession(one)), "election")
	second := concurrency.NewElection(must(concurrency.NewSession(other)), "election")
	fmt.Println(first.Campaign(ctx, "first"), string(must(second.Leader(ctx)).Kvs[0].Value))
	seen := second.Observe(ctx)
	fmt.Println(string((<-seen).Kvs[0].Value), first.Proclaim(ctx, "first again"), string((<-seen).Kvs[0].Value))
	elected := make(chan error)
	go func() { elected <- second.Campaign(ctx, "second") }()
	fmt.Println(first.Resign(ctx), <-elected, string((<-seen).Kvs[0].Value), second.Resign(ctx))
	_, err := first.Leader(ctx)
	fmt.Println(err)
	_, _ = one.Close(), other.Close()
}

func auth(ctx context.Context, client *clientv3.Client) {
	step("auth")
	must(client.RoleAdd(ctx, "app"))
	must(client.RoleGrantPermission(ctx, "app", "app/", clientv3.GetPrefixRangeEnd("app/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	must(client.RoleAdd(ctx, "root"))
	for _, user := range []string{"root", "app"} {
		must(client.UserAdd(ctx, user, "secret-"+user))
		must(client.UserGrantRole(ctx, user, user))
	}
	must(client.AuthEnable(ctx))
	app, root := must(connect("app", "secret-app")), must(connect("root", "secret-root"))
	must(app.Put(ctx, "app/colour", "green"))
	show(must(app.Get(ctx, "app/colour")))
	_, err := app.Put(ctx, "other", "red")
	fmt.Println(err)
	_, err = client.Get(ctx, "app/colour")
	fmt.Println(err)
	_, err = connect("app", "wrong")
	fmt.Println(err)
	fmt.Println(must(root.UserList(ctx)).Users)
	must(root.AuthDisable(ctx))
	show(must(client.Get(ctx, "app/colour")))
}
