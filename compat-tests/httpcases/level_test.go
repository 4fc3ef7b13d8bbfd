package httpcases

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// etcd cannot change its level at run time. What can, and has etcd's logger,
// answers as the handler of that logger, which is the judge here.
func TestLogLevel(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	zaps := httptest.NewServer(zap.NewAtomicLevel())
	defer zaps.Close()
	const form = "Content-Type: application/x-www-form-urlencoded"
	for _, asked := range []ask{
		{method: "GET"},
		{method: "PUT", body: `{"level":"debug"}`},
		{method: "GET"},
		{method: "PUT", body: `{"level":"WARN"} and more`},
		{method: "PUT", body: `{"LEVEL":"Error","other":[1]}`},
		{method: "PUT", body: "level=fatal", headers: []string{form}},
		{method: "PUT", body: "a=b&level=dpanic&level=x", headers: []string{form}},
		{method: "PUT", target: "?level=panic", headers: []string{form}},
		{method: "PUT", target: "?level=x", body: "level=info", headers: []string{form}},
		{method: "PUT", body: "level=warning", headers: []string{form}},
		// Refused, each in the same words.
		{method: "PUT", body: `{"level":"loud"}`},
		{method: "PUT", body: "level=loud", headers: []string{form}},
		{method: "PUT", body: "level=", headers: []string{form}},
		{method: "PUT", body: "other=info", headers: []string{form}},
		{method: "PUT", body: `{"level":null}`},
		{method: "PUT", body: `{}`},
		{method: "PUT"},
		{method: "POST", body: `{"level":"info"}`},
		{method: "DELETE"},
		{method: "GET"},
		// Refused, each in words of the language's JSON.
		{method: "PUT", body: `{"level":`},
		{method: "PUT", body: `level=info`},
		{method: "PUT", body: `{"level":1}`},
		{method: "PUT", body: `["info"]`},
		{method: "GET"},
		// Nothing means info.
		{method: "PUT", body: `{"level":""}`},
		{method: "GET"},
	} {
		asked.target = "/debug/log-level" + asked.target
		at := addresses{server.Endpoint(), strings.TrimPrefix(zaps.URL, "http://")}
		noCORS := func(r *reply) {
			for name := range r.Header {
				if strings.HasPrefix(name, "Access-Control-") {
					r.Header.Del(name)
				}
			}
			var refusal struct{ Error string }
			_ = json.Unmarshal([]byte(r.Body), &refusal)
			if begin := "malformed request body: "; strings.HasPrefix(refusal.Error, begin) &&
				!strings.Contains(refusal.Error, "unrecognized") && !strings.HasSuffix(refusal.Error, "EOF") {
				r.Body = begin
				r.Header.Del("Content-Length")
			}
		}
		at.compare(t, asked, noCORS)
	}
}

// A changed level has its effect at once, and a line says who is to be thanked.
func TestLogLevelTakesEffect(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	set := func(level string) {
		t.Helper()
		request, err := http.NewRequest("PUT", "http://"+server.Endpoint()+"/debug/log-level", strings.NewReader(fmt.Sprintf(`{"level":%q}`, level)))
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || string(body) != fmt.Sprintf("{\"level\":%q}\n", level) {
			t.Fatalf("%q, %v", body, err)
		}
	}
	// A call of a client is a debug line of its own.
	call := func(client *clientv3.Client) {
		t.Helper()
		if _, err := client.Get(harness.Context(t, answerLimit), "a"); err != nil {
			t.Fatal(err)
		}
	}
	client := server.Client(t)
	for _, level := range []string{"debug", "error", "info"} {
		call(client)
		set(level)
	}
	// Lines are written by a thread of their own, in order.
	if _, err := server.WaitLog(answerLimit, 3, harness.Says("the log's level was changed")); err != nil {
		t.Fatal(err)
	}
	lines, err := server.Log()
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, line := range lines {
		switch line["msg"] {
		case "the log's level was changed":
			seen = append(seen, fmt.Sprintf("%v to %v", line["from"], line["to"]))
		case "request stats":
			if method, _ := line["response type"].(string); strings.HasSuffix(method, "/Range") {
				seen = append(seen, "a call")
			}
		}
	}
	if diff := cmp.Diff(seen, []string{"info to debug", "a call", "debug to error", "error to info"}); diff != "" {
		t.Errorf("in the log (-there +expected)\n%s", diff)
	}
}

// With authentication a change is root's.
func TestLogLevelIsRoots(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	conn := server.Dial(t)
	for _, request := range []proto.Message{
		&pb.AuthUserAddRequest{Name: "root", Password: "pass"}, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"},
		&pb.AuthUserAddRequest{Name: "other", Password: "pass"}, &pb.AuthEnableRequest{},
	} {
		if outcome := harness.Invoke(t.Context(), conn, request); outcome.Err != nil {
			t.Fatal(outcome.Err)
		}
	}
	token := func(user string) string {
		login := harness.Invoke(t.Context(), conn, &pb.AuthenticateRequest{Name: user, Password: "pass"})
		if login.Err != nil {
			t.Fatal(login.Err)
		}
		return login.Message.(*pb.AuthenticateResponse).Token
	}
	for _, attempt := range []struct {
		method, token string
		status        int
		body          string
	}{
		{"PUT", "", http.StatusForbidden, `{"error":"etcdserver: user name is empty"}`},
		{"PUT", "junk", http.StatusUnauthorized, `{"error":"etcdserver: invalid auth token"}`},
		{"PUT", token("other"), http.StatusForbidden, `{"error":"etcdserver: permission denied"}`},
		{"GET", "", http.StatusOK, `{"level":"info"}`},
		{"PUT", token("root"), http.StatusOK, `{"level":"warn"}`},
	} {
		request, err := http.NewRequest(attempt.method, "http://"+server.Endpoint()+"/debug/log-level", strings.NewReader(`{"level":"warn"}`))
		if err != nil {
			t.Fatal(err)
		}
		if attempt.token != "" {
			request.Header.Set("Authorization", attempt.token)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || response.StatusCode != attempt.status || string(body) != attempt.body+"\n" {
			t.Errorf("%s with %q: %d %q, %v", attempt.method, attempt.token, response.StatusCode, body, err)
		}
	}
}
