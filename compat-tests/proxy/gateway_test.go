package proxy

import (
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// A client behind either gateway has what it has without one, until the gateway stops.
func TestGatewayPassesOn(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{})
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			gateway := startGateway(t, kind, "--endpoints=http://"+server.Endpoint())
			key := "/" + kind.String()
			watch := gateway.client(t).Watch(t.Context(), key)
			if out := etcdctl(t, gateway.address, "put", key, "1"); out != "OK\n" {
				t.Error(out)
			}
			if out := etcdctl(t, gateway.address, "get", "--print-value-only", key); out != "1\n" {
				t.Error(out)
			}
			select {
			case answer := <-watch:
				if len(answer.Events) != 1 || string(answer.Events[0].Kv.Key) != key {
					t.Errorf("%+v", answer)
				}
			case <-time.After(time.Minute):
				t.Error("the watch sees nothing")
			}
			direct := etcdctl(t, server.Endpoint(), "member", "list")
			if through := etcdctl(t, gateway.address, "member", "list"); through != direct {
				t.Errorf("%s is not %s", through, direct)
			}
			connection, err := net.Dial("tcp", gateway.address)
			must(t, err)
			defer connection.Close()
			if status := gateway.stop(t); status.Signal() != syscall.SIGTERM {
				t.Errorf("it ended by %v", status)
			}
			if _, err := io.ReadAll(io.LimitReader(connection, 1)); err != nil && !isReset(err) {
				t.Errorf("the connection is not closed: %v", err)
			}
		})
	}
}

func isReset(err error) bool { return strings.Contains(err.Error(), "reset") }

// A member dies, and is used again when it is back.
func TestMemberDiesBehindTheGateway(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			cluster := harness.StartCluster(t, harness.Etched, harness.ClusterOptions{})
			members := cluster.Members()
			gateway := startGateway(t, kind, "--retry-delay=1s",
				"--endpoints="+strings.Join(harness.Endpoints(members), ","))
			c := gateway.client(t)
			dead := members[0]
			must(t, dead.Kill())
			// Each in a connection of its own, in turn: one of three meets the dead one.
			for i := range 6 {
				out := etcdctl(t, gateway.address, "put", "k", fmt.Sprint(i))
				if !strings.HasPrefix(out, "OK") {
					t.Errorf("put %d: %s", i, out)
				}
			}
			gateway.waitFor(t, "deactivated endpoint")
			if _, err := c.Put(t.Context(), "k", "of the old client"); err != nil {
				t.Error(err)
			}
			must(t, dead.Spawn())
			gateway.waitFor(t, `"activated"`)
			must(t, cluster.WaitHealthy(time.Minute))
		})
	}
}

// The end of what a client sends is passed on, and it is answered. etcd's gateway ends
// both ways then.
func TestGatewayPassesOnHalfCloses(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			all, _ := io.ReadAll(connection) // What was read is compared.
			_, _ = connection.Write(append([]byte("all of "), all...))
			_ = connection.Close()
		}
	}()
	gateway := startGateway(t, harness.Etched, "--endpoints="+listener.Addr().String())
	connection, err := net.Dial("tcp", gateway.address)
	must(t, err)
	defer connection.Close()
	sent := strings.Repeat("x", 1<<20)
	_, err = connection.Write([]byte(sent))
	must(t, err)
	must(t, connection.(*net.TCPConn).CloseWrite())
	must(t, connection.SetReadDeadline(time.Now().Add(time.Minute)))
	answer, err := io.ReadAll(connection)
	if err != nil || string(answer) != "all of "+sent {
		t.Errorf("%d bytes, %v", len(answer), err)
	}
}

// A gRPC proxy that is its own member would call itself without an end; etcd's does.
func TestProxyOfItself(t *testing.T) {
	local := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	got, last := harness.ExitsSaying(t, harness.Etched, nil, []string{"grpc-proxy", "start", "--listen-addr=" + local, "--endpoints=" + local})
	if got.Code != 1 || !strings.Contains(last, "should not resolve to the proxy listen addr ("+local+")") {
		t.Errorf("%+v", got)
	}
}

// What is refused at the start; etched's words are on stderr, where etcd's are in part on
// stdout.
func TestGatewaysThatDoNotStart(t *testing.T) {
	port, err := harness.FreePort()
	must(t, err)
	local := fmt.Sprintf("127.0.0.1:%d", port)
	for _, one := range []struct {
		flags []string
		says  string
		both  bool
	}{
		{[]string{"--listen-addr=" + local, "--endpoints=" + local}, "should not resolve to the gateway listen addr (" + local + ")", true},
		{[]string{"--listen-addr=" + local, "--endpoints=http://localhost:" + fmt.Sprint(port)}, "should not resolve to the gateway listen addr", true},
		{[]string{fmt.Sprintf("--listen-addr=0.0.0.0:%d", port), "--endpoints=" + local}, "should not resolve to the gateway listen addr", false},
		{[]string{"--listen-addr=" + local, "--endpoints=localhost"}, `error parsing endpoint "localhost"`, true},
		{[]string{"--listen-addr=localhost"}, "failed to validate listen address: localhost", true},
	} {
		for _, kind := range kinds {
			if kind == harness.Etcd && !one.both {
				continue
			}
			got, last := harness.ExitsSaying(t, kind, nil, append([]string{"gateway", "start"}, one.flags...))
			words := got.Stdout + got.First + last
			if got.Code != 1 || !strings.Contains(words, one.says) {
				t.Errorf("%s %v: %+v", kind, one.flags, got)
			}
		}
	}
}
