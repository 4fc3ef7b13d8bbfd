package httpcases

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"

	"etched.dev/compat-tests/harness"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
)

// HTTP/2 without TLS is gRPC's alone: anything else gets an error that says so.
func TestHTTP2WithoutGRPC(t *testing.T) {
	t.Parallel()
	duo := harness.StartDuo(t, harness.Options{})
	client := http.Client{Timeout: answerLimit, Transport: &http2.Transport{
		AllowHTTP: true,
		DialTLSContext: func(_ context.Context, network, address string, _ *tls.Config) (net.Conn, error) {
			return net.Dial(network, address)
		},
	}}
	for _, asked := range []struct{ method, path, contentType string }{
		{"GET", "/health", ""},
		{"GET", "/version", "text/plain"},
		{"POST", "/v3/kv/range", "application/json"},
		{"POST", "/etcdserverpb.KV/Range", ""},
		{"GET", "/etcdserverpb.KV/Range", "application/grpc"},
		{"POST", "/etcdserverpb.KV/Range", "application/grpcx"},
	} {
		var replies [2]reply
		for i, server := range []*harness.Server{duo.Etched, duo.Etcd} {
			request, err := http.NewRequest(asked.method, server.URL()+asked.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if asked.contentType != "" {
				request.Header.Set("Content-Type", asked.contentType)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatalf("%s: %v: %v", server.Kind(), asked, err)
			}
			body, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatalf("%s: %v: %v", server.Kind(), asked, err)
			}
			_ = response.Body.Close()
			replies[i] = reply{response.Status, response.Header, string(body)}
			replies[i].Header.Del("Date")
			// How much of a text is escaped on the wire is free: clients unescape it.
			message, err := url.PathUnescape(replies[i].Header.Get("Grpc-Message"))
			if err != nil {
				t.Fatalf("%s: %v: %v", server.Kind(), asked, err)
			}
			replies[i].Header.Set("Grpc-Message", message)
		}
		if diff := cmp.Diff(replies[0], replies[1]); diff != "" {
			t.Errorf("%v (-etched +etcd)\n%s", asked, diff)
		}
	}
}
