package tls

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// A request to the JSON gateway is its client's: the name in the client's
// certificate counts as in a call of gRPC, never the server's own. etcd refuses
// every client with a name there, since its gateway calls with a certificate of
// the server's.
func TestGatewayActsAsItsCaller(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	root := w.known.issue(holder{commonName: "root"})
	server := harness.Start(t, harness.Etched, harness.Options{
		Flags:      append(w.server.flags(""), "--trusted-ca-file="+w.known.file, "--client-cert-auth", "--bcrypt-cost=4"),
		Encryption: harness.Encryption{ClientTLS: client(pool(w.known), &root)},
	})
	conn := server.Dial(t)
	for _, request := range []proto.Message{
		&pb.AuthUserAddRequest{Name: "root", Password: "root"}, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"},
		&pb.AuthUserAddRequest{Name: "user", Password: "user"}, &pb.AuthRoleAddRequest{Name: "user"},
		&pb.AuthUserGrantRoleRequest{User: "user", Role: "user"},
		&pb.AuthRoleGrantPermissionRequest{Name: "user", Perm: &authpb.Permission{PermType: authpb.READWRITE, Key: []byte("a")}},
		&pb.AuthEnableRequest{},
	} {
		if outcome := harness.Invoke(context.Background(), conn, request); outcome.Err != nil {
			t.Fatalf("%T: %v", request, outcome.Err)
		}
	}
	const own, other, users = `kv/put {"key":"YQ==","value":"MQ=="}`, `kv/put {"key":"Yg==","value":"MQ=="}`, `auth/user/list {}`
	for _, http2 := range []bool{false, true} {
		post := func(name, call, token string) (int, string) {
			t.Helper()
			shown := w.known.issue(holder{commonName: name})
			transport := &http.Transport{TLSClientConfig: client(pool(w.known), &shown), ForceAttemptHTTP2: http2}
			if !http2 {
				transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
			}
			defer transport.CloseIdleConnections()
			path, body, _ := strings.Cut(call, " ")
			request, err := http.NewRequestWithContext(harness.Context(t, callLimit), "POST", server.URL()+"/v3/"+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if token != "" {
				request.Header.Set("Authorization", token)
			}
			response, err := (&http.Client{Transport: transport}).Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if isHTTP2 := response.ProtoMajor == 2; isHTTP2 != http2 {
				t.Fatalf("the answer came by %s", response.Proto)
			}
			text, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			return response.StatusCode, string(text)
		}
		var answer struct{ Token string }
		_, text := post("", `auth/authenticate {"name":"user","password":"user"}`, "")
		if err := json.Unmarshal([]byte(text), &answer); err != nil || answer.Token == "" {
			t.Fatalf("%q: %v", text, err)
		}
		for _, c := range []struct {
			name, call, token string
			status            int
		}{
			{"root", own, "", 200}, {"root", other, "", 200}, {"root", users, "", 200},
			{"user", own, "", 200}, {"user", other, "", 403}, {"user", users, "", 403},
			{"unlisted", own, "", 403}, {"", own, "", 403},
			{"root", other, answer.Token, 403}, {"root", own, answer.Token, 200}, {"", own, answer.Token, 200},
			{"root", own, "nonsense", 401},
		} {
			if status, text := post(c.name, c.call, c.token); status != c.status {
				t.Errorf("%+v, HTTP/2 %v: %d %s", fmt.Sprint(c), http2, status, text)
			}
		}
	}
}

// Where clients are let in by the names in their certificates, a request to the JSON
// gateway is let in as a call of gRPC is.
func TestGatewayBehindNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	allowed := w.known.issue(holder{commonName: "client", names: []string{"allowed.test"}})
	server := harness.Start(t, harness.Etched, harness.Options{
		Flags: append(w.server.flags(""), "--trusted-ca-file="+w.known.file, "--client-cert-auth",
			"--client-cert-allowed-hostname=allowed.test"),
		Encryption: harness.Encryption{ClientTLS: client(pool(w.known), &allowed)},
	})
	post := func(shown tls.Certificate) (string, error) {
		transport := &http.Transport{TLSClientConfig: client(pool(w.known), &shown)}
		defer transport.CloseIdleConnections()
		response, err := (&http.Client{Transport: transport, Timeout: callLimit}).Post(
			server.URL()+"/v3/kv/put", "application/json", strings.NewReader(`{"key":"YQ==","value":"MQ=="}`))
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		return response.Status, nil
	}
	if status, err := post(allowed); err != nil || status != "200 OK" {
		t.Errorf("an allowed client: %s %v", status, err)
	}
	if status, err := post(w.known.issue(holder{commonName: "client", names: []string{"other.test"}})); err == nil {
		t.Errorf("another client: %s", status)
	}
}
