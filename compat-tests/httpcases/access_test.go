package httpcases

import (
	"crypto/tls"
	"net/http"
	"slices"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
)

// The harness asks under the address, so that this has to be let in.
var accessFlags = []string{
	"--host-whitelist=127.0.0.1,good.example", "--cors=http://a.example:1,https://b.example:443",
}

// withoutBody leaves out what a refusal says, which is each server's own.
func withoutBody(r *reply) {
	r.Body = ""
	r.Header.Del("Content-Length")
}

func TestHostsAndOrigins(t *testing.T) {
	t.Parallel()
	at := clientPorts(startDuo(t, harness.Options{Flags: accessFlags}))
	for status, hosts := range map[int][]string{
		200: {"good.example", "good.example:2379", "127.0.0.1"},
		421: {"evil.example", "good.example.evil.example", "GOOD.example", "good.example.", "good.example:1:2", "", "[::1]:2379"},
	} {
		targets := []string{"/health"}
		if status == 421 {
			targets = append(targets, "/v3/kv/range", "/v3beta/kv/range", "/metrics", "/nothing")
		}
		for _, host := range hosts {
			for _, target := range targets {
				asked := get(target, "Host: "+host)
				wants(t, asked, at.compare(t, asked, withoutBody), status)
			}
		}
	}
	const allowed = "Access-Control-Allow-Origin"
	for origin, expected := range map[string]string{
		"http://a.example:1": "http://a.example:1", "https://b.example:443": "https://b.example:443",
		"http://a.example": "", "https://a.example:1": "", "https://b.example": "", "null": "", "*": "",
	} {
		for _, method := range []string{"GET", "OPTIONS"} {
			for _, target := range []string{"/health", "/nothing"} {
				asked := ask{method: method, target: target, headers: []string{"Host: good.example", "Origin: " + origin}}
				theirs := at.compare(t, asked, withoutBody)
				if found := theirs.Header.Get(allowed); found != expected {
					t.Errorf("%v: etcd allows %q, this case is about %q", asked, found, expected)
				}
			}
		}
	}
	asked := get("/health", "Host: good.example")
	if theirs := at.compare(t, asked, withoutBody); theirs.Header.Get(allowed) != "" {
		t.Errorf("etcd answers %v where no page asks", theirs.Header)
	}
}

// With TLS any Host is let in: a page that has another name for the server gets no
// connection.
func TestHostsOverTLS(t *testing.T) {
	t.Parallel()
	options := overTLS()
	options.Flags = append(options.Flags, accessFlags...)
	duo := startDuo(t, options)
	for _, protocol := range []string{"http/1.1", "h2"} {
		transport := &http.Transport{
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}},
			ForceAttemptHTTP2: protocol == "h2",
		}
		defer transport.CloseIdleConnections()
		client := http.Client{Timeout: answerLimit, Transport: transport}
		for _, host := range []string{"good.example", "evil.example", "evil.example:2379"} {
			var seen []string
			duo.Each(func(server *harness.Server) {
				request, err := http.NewRequest("POST", server.URL()+"/v3/kv/range", strings.NewReader(`{"key":"YQ=="}`))
				if err != nil {
					t.Fatal(err)
				}
				request.Host = host
				response, err := client.Do(request)
				if err != nil {
					t.Fatalf("%s: %v", server.Kind(), err)
				}
				_ = response.Body.Close()
				seen = append(seen, response.Proto+" "+response.Status)
			})
			if usual := []string{"HTTP/1.1 200 OK", "HTTP/2.0 200 OK"}; seen[0] != seen[1] || !slices.Contains(usual, seen[1]) {
				t.Errorf("%s to %s: etched %s, etcd %s", protocol, host, seen[0], seen[1])
			}
		}
	}
}
