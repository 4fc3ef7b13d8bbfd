package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// payloads are the lines of a proxy's log that show messages, with numbers left out.
func (p *process) payloads(t *testing.T) (found []string) {
	t.Helper()
	for line := range strings.Lines(p.text(t)) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) != nil {
			continue
		}
		said := fmt.Sprint(fields["msg"])
		if !strings.Contains(said, "payload logged as grpc.") {
			continue
		}
		if peer := fmt.Sprint(fields["peer.address"]); !strings.HasPrefix(peer, "127.0.0.1:") {
			t.Errorf("a line has the peer %s: %s", peer, line)
		}
		said = fmt.Sprint(fields["level"], " ", said, ": ", fields["grpc.service"], "/", fields["grpc.method"])
		for _, name := range []string{"grpc.request.content", "grpc.response.content"} {
			if content, ok := fields[name].(string); ok {
				var message any
				if json.Unmarshal([]byte(content), &message) == nil {
					// With the fields in one order.
					sorted, err := json.Marshal(message)
					must(t, err)
					content = string(sorted)
				}
				said += " " + name + "=" + content
			}
		}
		for _, name := range []string{"grpc.request.error", "grpc.response.error"} {
			if text, ok := fields[name].(string); ok {
				said += " " + name + "=" + withoutCode.ReplaceAllString(text, "")
			}
		}
		found = append(found, numbers.ReplaceAllString(said, "N"))
	}
	return found
}

// What comes from a member has no code before it in etcd's proxy.
var withoutCode = regexp.MustCompile(`^rpc error: code = [A-Za-z]+ desc = `)

// Requests and answers are logged as etcd's proxy logs them.
func TestMessagesAreLogged(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{})
	var said [2][]string
	for side, kind := range kinds {
		proxy := startProxy(t, kind, "--endpoints="+server.Endpoint(), "--experimental-enable-grpc-logging")
		connection := proxy.dial(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		kv := etcdserverpb.NewKVClient(connection)
		_, err := kv.Put(ctx, &etcdserverpb.PutRequest{Key: []byte("k"), Value: []byte("value")})
		must(t, err)
		_, err = kv.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte("k"), SortOrder: etcdserverpb.RangeRequest_DESCEND})
		must(t, err)
		if _, err = kv.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte("k"), Revision: 1 << 40}); err == nil {
			t.Error("a revision of the future is read")
		}
		leases := etcdserverpb.NewLeaseClient(connection)
		lease, err := leases.LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{TTL: 60})
		must(t, err)
		renewals, err := leases.LeaseKeepAlive(ctx)
		must(t, err)
		must(t, renewals.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: lease.ID}))
		_, err = renewals.Recv()
		must(t, err)
		must(t, renewals.CloseSend())
		// etcd's proxy ends it as canceled.
		_, _ = renewals.Recv()
		proxy.waitFor(t, `"EOF"`)
		said[side] = proxy.payloads(t)
	}
	if !slices.Equal(said[0], said[1]) {
		t.Errorf("etched's proxy:\n%s\netcd's:\n%s", strings.Join(said[0], "\n"), strings.Join(said[1], "\n"))
	}
}

// A password is in no line.
func TestSecretsAreNotLogged(t *testing.T) {
	server := harness.Start(t, harness.Etched, harness.Options{})
	proxy := startProxy(t, harness.Etched, "--endpoints="+server.Endpoint(), "--experimental-enable-grpc-logging")
	_, err := proxy.client(t).UserAdd(t.Context(), "root", "unsaid")
	must(t, err)
	proxy.waitFor(t, "UserAdd")
	if text := proxy.text(t); strings.Contains(text, "unsaid") || !strings.Contains(text, "***") {
		t.Error(text)
	}
}
