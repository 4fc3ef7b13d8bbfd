package httpcases

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/websocket"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// The JSON gateway: the same requests to both, bodies compared as values, since
// neither the order of names nor blanks are anybody's promise.

// call is one request to the gateway, and the status that it is about.
type call struct {
	status     int
	path, body string
	headers    []string
}

func (c call) ask() ask {
	return ask{method: "POST", target: "/v3/" + c.path, headers: c.headers, body: c.body}
}

// gatewayReply is what is compared of an answer of the gateway.
type gatewayReply struct {
	Status string
	Header http.Header
	Body   []any
}

// headersOfGateway are compared; how long a body is and how it is cut is not.
var headersOfGateway = []string{
	"Content-Type", "Grpc-Metadata-Content-Type", "Www-Authenticate", "Access-Control-Allow-Origin", "Trailer",
}

// ownFigures are values that no two servers share, whatever is asked.
var ownFigures = []string{
	"raft_term", "raftTerm", "raftIndex", "raftAppliedIndex", "dbSize", "dbSizeInUse", "hash", "token", "blob",
}

func jsonValues(t *testing.T, text []byte, hidden []string) []any {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var values []any
	for {
		var value any
		err := decoder.Decode(&value)
		if err == io.EOF {
			return values
		}
		if err != nil {
			t.Errorf("%q is no JSON: %v", text, err)
			return values
		}
		values = append(values, hide(value, hidden))
	}
}

func hide(value any, hidden []string) any {
	switch value := value.(type) {
	case map[string]any:
		if alarms, isList := value["errors"].([]any); isList {
			for i := range alarms {
				// One or two blanks between fields, as the build of etcd has it.
				alarms[i] = strings.Join(strings.Fields(fmt.Sprint(alarms[i])), " ")
			}
		}
		for name, content := range value {
			if slices.Contains(hidden, name) {
				value[name] = "…"
			} else {
				value[name] = hide(content, hidden)
			}
		}
		// What a text that is no message is called is the parser's affair.
		message, _ := value["message"].(string)
		switch {
		case isOfTheParser(message):
			value["message"] = "of the parser"
		case strings.HasPrefix(message, "stream terminated by RST_STREAM"):
			// etcd's gateway says either, as its own clock or that of the server is first.
			value["message"] = "context deadline exceeded"
		}
	case []any:
		for i := range value {
			value[i] = hide(value[i], hidden)
		}
	}
	return value
}

func isOfTheParser(message string) bool {
	for _, beginning := range []string{"proto:", "invalid character", "json:"} {
		if strings.HasPrefix(message, beginning) {
			return true
		}
	}
	return false
}

func gatewayAnswer(t *testing.T, r reply, hidden []string) gatewayReply {
	t.Helper()
	kept := http.Header{}
	for _, name := range headersOfGateway {
		if values, there := r.Header[name]; there {
			kept[name] = values
		}
	}
	return gatewayReply{r.Status, kept, jsonValues(t, []byte(r.Body), hidden)}
}

// both makes a call on both and compares.
func (a addresses) both(t *testing.T, c call) {
	t.Helper()
	a.bothOf(t, c.ask(), c.status, ownFigures)
}

// bothOf makes a request on both and compares the answers of the gateway; a status
// of 0 is any.
func (a addresses) bothOf(t *testing.T, asked ask, status int, hidden []string) {
	t.Helper()
	var answers [2]gatewayReply
	var both sync.WaitGroup
	for side, address := range []string{a.etched, a.etcd} {
		both.Go(func() {
			got, err := send(address, asked)
			if err != nil {
				t.Errorf("%v: %s: %v", asked, []string{"etched", "etcd"}[side], err)
				return
			}
			if strings.HasPrefix(asked.target, "/v3/maintenance/snapshot") && strings.HasPrefix(got.Status, "200") {
				// How a state is written is each server's own.
				got.Body = ""
			}
			answers[side] = gatewayAnswer(t, got, hidden)
		})
	}
	both.Wait()
	if status != 0 {
		wants(t, asked, reply{Status: answers[1].Status}, status)
	}
	if diff := cmp.Diff(answers[0], answers[1]); diff != "" {
		t.Errorf("%v (-etched +etcd)\n%s", asked, diff)
	}
}

func calls(status int, table string) []call {
	var found []call
	for line := range strings.Lines(table) {
		path, body, _ := strings.Cut(strings.TrimSpace(line), " ")
		if path != "" {
			found = append(found, call{status: status, path: path, body: body})
		}
	}
	return found
}

// routesOfEtcd are the paths that etcd's annotations give its RPCs.
func routesOfEtcd(t *testing.T) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	rule, err := protoregistry.GlobalTypes.FindExtensionByName("google.api.http")
	if err != nil {
		t.Fatal(err)
	}
	routes := map[string]protoreflect.MethodDescriptor{}
	add := func(method protoreflect.MethodDescriptor, rule protoreflect.Message) {
		fields := rule.Descriptor().Fields()
		routes[strings.TrimPrefix(rule.Get(fields.ByName("post")).String(), "/v3/")] = method
		more := rule.Get(fields.ByName("additional_bindings")).List()
		for i := range more.Len() {
			inner := more.Get(i).Message()
			routes[strings.TrimPrefix(inner.Get(fields.ByName("post")).String(), "/v3/")] = method
		}
	}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				options := methods.Get(j).Options()
				if options != nil && proto.HasExtension(options, rule) {
					message, isMessage := proto.GetExtension(options, rule).(proto.Message)
					if isMessage {
						add(methods.Get(j), message.ProtoReflect())
					}
				}
			}
		}
		return true
	})
	return routes
}

// Every path of etcd's is there, takes POST alone and an empty body as an empty
// message; its neighbours are not.
func TestGatewayRoutes(t *testing.T) {
	t.Parallel()
	at := clientPorts(startDuo(t, harness.Options{}))
	routes := routesOfEtcd(t)
	const known = 51
	if len(routes) != known {
		t.Fatalf("%d routes in etcd's descriptors: %v", len(routes), slices.Sorted(maps.Keys(routes)))
	}
	compared := 0
	// etcd takes one compaction at 0, and has a hash of no revision from then on.
	at.both(t, call{status: 200, path: "kv/put", body: `{"key":"YQ=="}`})
	at.both(t, call{status: 200, path: "kv/compaction", body: `{"revision":"2"}`})
	// Leases get numbers of the servers' own here, and what is given up in time may take a
	// revision before the next call or after it.
	hidden := append(slices.Clone(ownFigures), "lease", "ID", "key", "revision", "hash_revision")
	compare := func(asked ask, status int) {
		at.bothOf(t, asked, status, hidden)
		compared++
	}
	// Some continue for as long as they may.
	endless := []string{"watch", "election/observe", "election/campaign", "lock/lock"}
	for _, path := range slices.Sorted(maps.Keys(routes)) {
		limit := "Grpc-Timeout: 10S"
		if slices.Contains(endless, path) {
			limit = "Grpc-Timeout: 3S"
		}
		for _, body := range []string{"", `{"nothing": [1]}`} {
			compare(call{path: path, body: body, headers: []string{limit}}.ask(), 0)
		}
		for _, method := range []string{"GET", "PUT", "DELETE", "HEAD"} {
			compare(ask{method: method, target: "/v3/" + path}, 501)
		}
		for _, other := range []string{path + "/", strings.ToUpper(path), path + "x", path + "/x"} {
			compare(call{path: other}.ask(), 404)
		}
	}
	for _, other := range []string{"", "kv", "kv/rangestream", "KV/Range", "maintenance", "etcdserverpb.KV/Range"} {
		compare(call{path: other, body: "{}"}.ask(), 404)
	}
	for _, spelled := range []string{"kv%2frange", "kv/%72ange", "kv/range?key=YQ=="} {
		compare(call{path: spelled, body: `{"key":"YQ=="}`}.ask(), 200)
	}
	compare(call{path: "kv/range;x", body: `{"key":"YQ=="}`}.ask(), 404)
	// The path of etcd 3.3 leads to the same; no other does.
	for path, status := range map[string]int{
		"/v3beta/kv/range": 200, "/v3beta/kv%2frange": 200, "/v3beta/kv/range?/v3beta/": 200,
		"/v3beta/": 404, "/v3beta/v3beta/kv/range": 404, "/v3/v3beta/kv/range": 404,
	} {
		compare(ask{method: "POST", target: path, body: `{"key":"YQ=="}`}, status)
	}
	for _, path := range []string{"/v3beta", "/v3alpha/kv/range", "/v3betas/kv/range"} {
		asked := ask{method: "POST", target: path, body: `{"key":"YQ=="}`}
		wants(t, asked, at.compare(t, asked), 404)
		compared++
	}
	t.Logf("%d answers compared", compared)
}

// One call after the other, each RPC that changes or shows something.
const gatewaySequence = `
	kv/put {"key":"Zm9v","value":"YmFy"}
	kv/put {"key":"Zm9v","value":"YmF6","prev_kv":true}
	kv/put {"key":"Zm9v","value":"YmF6","prevKv":true}
	kv/put {"key":"_-8","value":"AAEC/w=="}
	kv/put {"value":"YQ==","key":"YQ=="} behind
	kv/put {"key":"YQ==","value":"Yg==","lease":"0","ignore_value":false}
	kv/put {"key":"Yg==","value":"","unknown":{"deep":[1,"2",{"x":null}]}}
	kv/range {"key":"Zm9v"}
	kv/range {"key":"AA==","range_end":"AA=="}
	kv/range {"key":"AA==","rangeEnd":"AA==","limit":"1"}
	kv/range {"key":"AA==","range_end":"AA==","limit":1,"sort_order":"DESCEND","sort_target":"MOD"}
	kv/range {"key":"AA==","range_end":"AA==","sort_order":2,"sort_target":4}
	kv/range {"key":"AA==","range_end":"AA==","sort_order":"SIDEWAYS"}
	kv/range {"key":"AA==","range_end":"AA==","count_only":true}
	kv/range {"key":"AA==","range_end":"AA==","keys_only":true,"serializable":true}
	kv/range {"key":"bm90aGluZw=="}
	kv/range {"key":"Zm9v","revision":"2"}
	kv/range {"key":"Zm9v","revision":2.0}
	kv/txn {}
	kv/txn {"compare":[{"target":"VALUE","key":"Zm9v","value":"YmF6"}],"success":[{"request_put":{"key":"Yw==","value":"MQ=="}},{"request_range":{"key":"Yw=="}}],"failure":[]}
	kv/txn {"compare":[{"target":"VERSION","key":"YQ==","version":"0"}],"success":[],"failure":[{"requestDeleteRange":{"key":"Yw==","prevKv":true}},{"request_txn":{"success":[{"request_put":{"key":"ZA=="}}]}}]}
	kv/txn {"compare":[{"target":"CREATE","result":"GREATER","key":"YQ==","create_revision":"1"},{"target":"MOD","result":"NOT_EQUAL","key":"YQ==","mod_revision":"1"},{"target":"LEASE","key":"YQ==","lease":"0"}],"success":[{"request_range":{"key":"YQ=="}}]}
	kv/deleterange {"key":"ZA==","prev_kv":true}
	kv/deleterange {"key":"bm90aGluZw=="}
	kv/compaction {"revision":"3"}
	lease/grant {"TTL":"60","ID":"77"}
	lease/grant {"TTL":60,"ID":78}
	lease/grant {"ttl":60,"ID":"79"}
	kv/put {"key":"bGVhc2Vk","value":"eA==","lease":"77"}
	lease/timetolive {"ID":"77","keys":true}
	kv/lease/timetolive {"ID":"77"}
	lease/timetolive {"ID":"12345"}
	lease/leases {}
	kv/lease/leases
	lease/keepalive {"ID":"77"}
	lease/keepalive {"ID":"77"}{"ID":"78"} {"ID":"404"}
	lease/keepalive
	lease/revoke {"ID":"77"}
	kv/lease/revoke {"ID":"78"}
	cluster/member/list {}
	cluster/member/list {"linearizable":true}
	cluster/member/add {"peerURLs":["http://127.0.0.1:1"],"isLearner":true}
	maintenance/status {}
	maintenance/hash {}
	maintenance/hashkv {}
	maintenance/hashkv {"revision":"5","hash":"1"}
	maintenance/alarm {}
	maintenance/alarm {"action":"GET","alarm":"NOSPACE"}
	maintenance/alarm {"action":"ACTIVATE","alarm":"NOSPACE","memberID":"3319814642761637952"}
	maintenance/status {}
	maintenance/alarm {"action":"DEACTIVATE","alarm":"NOSPACE","memberID":"3319814642761637952"}
	maintenance/defragment {}
	maintenance/downgrade {"action":"VALIDATE","version":"3.6.0"}
	auth/status {}
	auth/user/add {"name":"root","password":"root"}
	auth/user/add {"name":"alice","password":"alice"}
	auth/user/add {"name":"bob","options":{"no_password":true}}
	auth/user/changepw {"name":"alice","password":"pass"}
	auth/user/list {}
	auth/role/add {"name":"root"}
	auth/role/add {"name":"reader"}
	auth/role/grant {"name":"reader","perm":{"permType":"READ","key":"YQ==","range_end":"Yg=="}}
	auth/role/grant {"name":"reader","perm":{"permType":2,"key":"eA=="}}
	auth/role/get {"role":"reader"}
	auth/role/list {}
	auth/role/revoke {"role":"reader","key":"eA=="}
	auth/user/grant {"user":"root","role":"root"}
	auth/user/grant {"user":"alice","role":"reader"}
	auth/user/get {"name":"alice"}
	auth/user/revoke {"name":"alice","role":"reader"}
	auth/user/delete {"name":"bob"}
	auth/role/delete {"role":"reader"}
	lease/grant {"TTL":"600","ID":"80"}
	lease/grant {"TTL":"600","ID":"81"}
	lock/lock {"name":"bG9jaw==","lease":"80"}
	lock/unlock {"key":"bG9jay81MA=="}
	lock/lock {"name":"bG9jaw==","lease":"80"}
	election/campaign {"name":"ZWxlY3Q=","lease":"80","value":"djE="}
	election/leader {"name":"ZWxlY3Q="}
	`

const gatewayRefusals = `
	kv/range {
	kv/range {"key"
	kv/range {"key":"YQ=="
	kv/range [
	kv/range [{}]
	kv/range null
	kv/range 5
	kv/range "text"
	kv/range nonsense
	kv/range }
	kv/range {,}
	kv/range {"key":}
	kv/range {'key':'YQ=='}
	kv/range {"key":5}
	kv/range {"key":"!!"}
	kv/range {"key":"YQ=","limit":"x"}
	kv/range {"key":"YQ==","limit":"1.5"}
	kv/range {"key":"YQ==","limit":1.5}
	kv/range {"key":"YQ==","limit":true}
	kv/range {"key":"YQ==","limit":"9223372036854775808"}
	kv/range {"key":"YQ==","serializable":"true"}
	kv/range {"key":"YQ==","sort_order":[]}
	kv/range {"key":["YQ=="]}
	kv/range {"key":"YQ==","key":"YQ=="}
	kv/range {"key":"YQ==","rangeEnd":"Yg==","range_end":"Yg=="}
	kv/txn {"compare":{}}
	kv/txn {"compare":[5]}
	kv/txn {"success":[{"request_put":{"key":"YQ=="},"request_range":{"key":"YQ=="}}]}
	kv/txn {"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}
	kv/range {}
	kv/put {}
	kv/put {"key":"YQ==","lease":"5","ignore_lease":true}
	kv/range {"key":"YQ==","revision":"1"}
	kv/range {"key":"YQ==","revision":"1000"}
	kv/compaction {"revision":"1"}
	kv/compaction {"revision":"1000"}
	lease/grant {"TTL":"9000000001"}
	lease/grant {"TTL":"60","ID":"80"}
	cluster/member/add {"peerURLs":["nonsense"]}
	auth/authenticate {"name":"alice","password":"wrong"}
	auth/user/add {"name":"alice","password":"x"}
	auth/user/add {}
	auth/role/add {"name":"root"}
	auth/user/get {"name":"nobody"}
	auth/role/get {"role":"nothing"}
	auth/user/grant {"user":"alice","role":"nothing"}
	maintenance/downgrade {"action":"ENABLE","version":"3.0.0"}
	`

// Their status is not 400.
var gatewayOtherRefusals = map[int]string{
	404: `
	lease/revoke {"ID":"404"}
	kv/put {"key":"YQ==","lease":"404"}
	cluster/member/remove {"ID":"1"}
	cluster/member/update {"ID":"1","peerURLs":["http://127.0.0.1:9"]}
	cluster/member/promote {"ID":"1"}
	`,
	500: `
	election/leader {"name":"bm9ib2R5"}
	election/proclaim {"value":"djI="}
	election/resign {}
	`,
}

func TestGatewayCalls(t *testing.T) {
	t.Parallel()
	at := clientPorts(startDuo(t, harness.Options{}))
	compared := 0
	for _, c := range calls(200, gatewaySequence) {
		at.both(t, c)
		compared++
	}
	for _, c := range calls(400, gatewayRefusals) {
		at.both(t, c)
		compared++
	}
	for status, table := range gatewayOtherRefusals {
		for _, c := range calls(status, table) {
			at.both(t, c)
			compared++
		}
	}
	large := strings.Repeat("AAAA", 1_000_000)
	for _, c := range []call{
		{400, "kv/put", `{"key":"YQ==","value":"` + large[:2_100_000] + `"}`, nil},
		{429, "kv/put", `{"key":"YQ==","value":"` + large[:3_000_000] + `"}`, nil},
		{200, "kv/put", `{"key":"YQ==","value":"` + large[:1_900_000] + `"}`, nil},
		{200, "kv/range", `{"key":"YQ=="}`, nil},
		{200, "kv/txn", `{"success":[{"request_range":{"key":"AA==","range_end":"AA=="}},{"request_range":{"key":"YQ=="}}]}`, nil},
		{200, "kv/range", `{"key":"YQ=="}`, []string{"Content-Type: text/plain", "Accept: text/html"}},
		{200, "kv/range", `{"key":"YQ=="}`, []string{"Content-Type: application/x-www-form-urlencoded"}},
		{200, "kv/range", `{"key":"YQ=="}`, []string{"Grpc-Metadata-hasleader: true", "Grpc-Timeout: 5S"}},
		{200, "kv/range", `{"key":"YQ=="}`, []string{"Grpc-Timeout: 0S", "Authorization: nonsense", "Token: x"}},
		{400, "kv/range", `{"key":"YQ=="}`, []string{"Grpc-Timeout: soon"}},
		{504, "kv/range", `{"key":"YQ=="}`, []string{"Grpc-Timeout: 1n"}},
		{504, "kv/range", `{"key":"YQ=="}`, []string{"Grpc-Timeout: -1S"}},
		{504, "watch", ``, []string{"Grpc-Timeout: 300m"}},
		{504, "election/observe", `{"name":"bm9ib2R5"}`, []string{"Grpc-Timeout: 300m"}},
		{200, "watch", `{"create_request":{"key":"YQ=="}}`, []string{"Grpc-Timeout: 700m"}},
		{200, "election/observe", `{"name":"ZWxlY3Q="}`, []string{"Grpc-Timeout: 700m"}},
		{504, "lock/lock", `{"name":"bG9jaw==","lease":"81"}`, []string{"Grpc-Timeout: 700m"}},
	} {
		at.both(t, c)
		compared++
	}
	t.Logf("%d answers compared", compared)
}

func TestGatewayWithoutIt(t *testing.T) {
	t.Parallel()
	at := clientPorts(startDuo(t, harness.Options{Flags: []string{"--enable-grpc-gateway=false"}}))
	for _, path := range []string{"kv/range", "watch", ""} {
		asked := ask{method: "POST", target: "/v3/" + path, body: "{}"}
		wants(t, asked, at.compare(t, asked), 404)
	}
}

// With authentication on, a call has the rights of its token and of nothing else.
func TestGatewayAuth(t *testing.T) {
	t.Parallel()
	duo := startDuo(t, harness.Options{})
	at := clientPorts(duo)
	for _, c := range calls(200, `
		kv/put {"key":"YQ==","value":"MQ=="}
		auth/user/add {"name":"root","password":"root"}
		auth/user/grant {"user":"root","role":"root"}
		auth/user/add {"name":"alice","password":"alice"}
		auth/role/add {"name":"reader"}
		auth/role/grant {"name":"reader","perm":{"permType":"READ","key":"YQ=="}}
		auth/user/grant {"user":"alice","role":"reader"}
		auth/enable {}
		`) {
		// The role root comes with the user where there is none.
		if c.path == "auth/user/grant" && strings.Contains(c.body, `"root"`) {
			at.both(t, call{status: 200, path: "auth/role/add", body: `{"name":"root"}`})
		}
		at.both(t, c)
	}
	tokens := map[string][2]string{"nobody": {}, "wrong": {"nonsense", "nonsense"}}
	for _, user := range []string{"root", "alice"} {
		var pair [2]string
		for side, address := range []string{at.etched, at.etcd} {
			got, err := send(address, call{path: "auth/authenticate", body: fmt.Sprintf(`{"name":%q,"password":%q}`, user, user)}.ask())
			if err != nil {
				t.Fatal(err)
			}
			var answer struct{ Token string }
			if err := json.Unmarshal([]byte(got.Body), &answer); err != nil || answer.Token == "" {
				t.Fatalf("%s: %q: %v", user, got.Body, err)
			}
			pair[side] = answer.Token
		}
		tokens[user] = pair
	}
	compared := 0
	for user, pair := range tokens {
		for number, form := range []string{"Authorization: %s", "Authorization: Bearer %s", "Grpc-Metadata-Token: %s", "Grpc-Metadata-Authorization: %s", "Token: %s"} {
			for _, c := range calls(0, `
				kv/range {"key":"YQ=="}
				kv/range {"key":"Yg=="}
				kv/put {"key":"YQ==","value":"MQ=="}
				kv/txn {"success":[{"request_range":{"key":"YQ=="}}]}
				lease/leases {}
				auth/user/list {}
				auth/status {}
				auth/user/get {"name":"alice"}
				cluster/member/list {}
				maintenance/status {}
				maintenance/hash {}
				lease/keepalive {"ID":"5"}
				watch {"create_request":{"key":"Yg=="}}
				election/observe {"name":"YQ=="}
				`) {
				isStream := c.path == "watch" || c.path == "election/observe"
				if isStream && number > 0 {
					continue
				}
				var answers [2]gatewayReply
				for side, address := range []string{at.etched, at.etcd} {
					c.headers = []string{"Grpc-Timeout: 10S"}
					if isStream {
						// They continue for as long as they may.
						c.headers = []string{"Grpc-Timeout: 1S"}
					}
					if pair[side] != "" {
						c.headers = append(c.headers, fmt.Sprintf(form, pair[side]))
					}
					got, err := send(address, c.ask())
					if err != nil {
						t.Fatalf("%v: %v", c, err)
					}
					answers[side] = gatewayAnswer(t, got, ownFigures)
				}
				if diff := cmp.Diff(answers[0], answers[1]); diff != "" {
					t.Errorf("%s, %s: %v (-etched +etcd)\n%s", user, form, c, diff)
				}
				compared++
			}
			if user == "nobody" {
				break
			}
		}
	}
	t.Logf("%d answers compared", compared)
}

// form is how the content of a POST is named whose method a header can override.
const form = "Content-Type: application/x-www-form-urlencoded"

// A method that overrides POST is looked for in its place: there is no other than POST itself, and
// that has lost its body to the form.
func TestGatewayMethodOverride(t *testing.T) {
	t.Parallel()
	at := clientPorts(startDuo(t, harness.Options{}))
	const body = `{"key":"YQ=="}`
	at.both(t, call{200, "kv/put", body, nil})
	for _, c := range []call{
		{200, "kv/range", body, []string{form, "X-HTTP-Method-Override:"}},
		{200, "kv/range", body, []string{"X-HTTP-Method-Override: GET"}},
		{200, "kv/range", body, []string{"Content-Type: application/json", "X-HTTP-Method-Override: GET"}},
		{200, "kv/range", body, []string{form + "; charset=utf-8", "X-HTTP-Method-Override: GET"}},
		{200, "kv/range", body, []string{"Content-Type: Application/x-www-form-urlencoded", "X-HTTP-Method-Override: GET"}},
		{501, "kv/range", body, []string{form, "X-HTTP-Method-Override: GET"}},
		{501, "kv/range", body, []string{form, "x-http-method-override: delete"}},
		{501, "kv/range", body, []string{form, "X-HTTP-Method-Override: post it"}},
		{501, "kv/range", "", []string{form, "X-HTTP-Method-Override: GET"}},
		{404, "kv/nothing", body, []string{form, "X-HTTP-Method-Override: GET"}},
		{404, "kv/nothing", body, []string{form, "X-HTTP-Method-Override: POST"}},
		// The message is empty.
		{400, "kv/range", body, []string{form, "X-HTTP-Method-Override: POST"}},
		{400, "kv/range", body, []string{form, "X-HTTP-Method-Override: post"}},
		{200, "cluster/member/list", `no JSON`, []string{form, "X-HTTP-Method-Override: POST"}},
		{200, "lease/leases", body, []string{form, "X-HTTP-Method-Override: POST", "X-HTTP-Method-Override: GET"}},
		{504, "watch", `{"create_request":{"key":"YQ=="}}`, []string{form, "X-HTTP-Method-Override: POST", "Grpc-Timeout: 500m"}},
		{501, "kv/range", strings.Repeat("a=1&", 9_999), []string{form, "X-HTTP-Method-Override: GET"}},
	} {
		at.both(t, c)
	}
	// What is no form is said so in the very words, whatever is asked for.
	for _, broken := range []string{
		"%", "%4", "%zz", "%4g=1", "a=%4=1", "%4=1", "a%4&%zz", "a=1&b=%&c", "k=%e4%f6%4%", "a;b", "%zz&a;b", "a;b&%zz", "+%+%41",
		"a=%\xff\x00", "%\"q", strings.Repeat("&", 10_000), strings.Repeat("a=1&", 10_000) + ";",
		strings.Repeat("%41", 4_000_000),
	} {
		for _, c := range []call{
			{400, "kv/range", broken, []string{form, "X-HTTP-Method-Override: GET"}},
			{400, "kv/nothing", broken, []string{form, "X-HTTP-Method-Override: POST"}},
		} {
			at.bothOf(t, c.ask(), c.status, nil)
		}
	}
	for _, query := range []string{"%zz", "a;b", "a=%4"} {
		at.bothOf(t, call{400, "kv/range?" + query, "a=1", []string{form, "X-HTTP-Method-Override: GET"}}.ask(), 400, nil)
		at.bothOf(t, call{400, "kv/range?" + query, "%;", []string{form, "X-HTTP-Method-Override: GET"}}.ask(), 400, nil)
		at.both(t, call{200, "kv/range?" + query, body, nil})
	}
}

// What of headers reaches the server, and which of them are refused before that.
func TestGatewayMetadata(t *testing.T) {
	t.Parallel()
	duo := startDuo(t, harness.Options{})
	at := clientPorts(duo)
	for _, headers := range [][]string{
		{"Grpc-Metadata-X-Bin:"},
		{"Grpc-Metadata-X-Bin: AAEC/w=="},
		{"Grpc-Metadata-X-Bin: AAEC/w"},
		{"Grpc-Metadata-X-Bin: AAEC/x"},
		{"grpc-metadata-x-bin: YWJj", "Grpc-Metadata-X-Bin: YWI"},
		{"Grpc-Metadata-Token-Bin: YWJj", "Grpc-Metadata-Hasleader-Bin: YQ"},
		{"Grpc-Metadata-Grpc-Trace-Bin: AAAA"},
		{"X-Bin: !"},
		{"Grpc-Metadata-Bin: YWJj"},
		{"Grpc-Metadata-Xbin: !"},
		{"Grpc-Metadata-X: \xe4"},
		{"Grpc-Metadata-X: a\tb"},
		{"Grpc-Metadata-a!b: c"},
		{"Grpc-Metadata-Te: x", "Grpc-Metadata-User-Agent: x", "Grpc-Metadata-Content-Type: x", "Grpc-Metadata-Grpc-Encoding: x"},
		{"Grpc-Metadata-Host: elsewhere", "Grpc-Metadata-Grpc-Timeout: x", "Grpc-Metadata-Grpc-Status: 3"},
		{"Grpc-Metadata-Content-Length: 1", "Grpc-Metadata-Transfer-Encoding: x", "Grpc-Metadata-Upgrade: x"},
	} {
		at.both(t, call{200, "cluster/member/list", "{}", headers})
	}
	for header, status := range map[string]int{
		"Grpc-Metadata-X-Bin: !":               400,
		"Grpc-Metadata-X-Bin: A":               400,
		"Grpc-Metadata-X-Bin: AB=":             400,
		"Grpc-Metadata-X-Bin: AB=C":            400,
		"Grpc-Metadata-X-Bin: AB==C":           400,
		"Grpc-Metadata-X-Bin: AB==AAAA":        400,
		"Grpc-Metadata-X-Bin: ABC=AAAA":        400,
		"Grpc-Metadata-X-Bin: AAA=AAA":         400,
		"Grpc-Metadata-X-Bin: ====":            400,
		"Grpc-Metadata-X-Bin: A===":            400,
		"Grpc-Metadata-X-Bin: AAAAAAAA-_==":    400,
		"Grpc-Metadata-X-Bin: AAAA AAA":        400,
		"Grpc-Metadata-X-Bin: AAAAAAAAAAA\xff": 400,
		"Grpc-Metadata-Content-Type-Bin: ?":    400,
		"Grpc-Metadata-Grpc-Trace-Bin: ?":      400,
		"grpc-metadata-bin: ?":                 400,
		"Grpc-Metadata-Bin: /w==":              500,
		"Grpc-Metadata-: x":                    500,
		"Authorization: \xe4":                  500,
		"Authorization: a\tb":                  500,
	} {
		for _, path := range []string{"cluster/member/list", "watch"} {
			at.bothOf(t, call{status, path, "{}", []string{header, "Grpc-Timeout: 10S"}}.ask(), status, nil)
		}
		at.both(t, call{400, "cluster/member/list", "{}", []string{header, "Grpc-Timeout: soon"}})
		at.both(t, call{404, "nothing", "{}", []string{header}})
	}
}

// lines reads a stream of the gateway line by line.
type lines struct {
	send    *io.PipeWriter
	decoder *json.Decoder
	close   func()
}

// overTLS are servers that are spoken to by HTTP/2: etcd's HTTP/1 answers a stream
// only when its requests have come to their end.
func overTLS() harness.Options {
	return harness.Options{
		Flags:      []string{"--auto-tls"},
		Encryption: harness.Encryption{ClientTLS: &tls.Config{InsecureSkipVerify: true}},
	}
}

func overHTTP2() *http.Client {
	return &http.Client{Transport: &http.Transport{
		ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
}

func openLines(t *testing.T, server *harness.Server, path, first string) *lines {
	t.Helper()
	reader, writer := io.Pipe()
	request, err := http.NewRequestWithContext(harness.Context(t, time.Minute), "POST", server.URL()+"/v3/"+path, reader)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(writer, first) }()
	response, err := overHTTP2().Do(request)
	if err != nil {
		t.Fatalf("%s: %v", server.Kind(), err)
	}
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", server.Kind(), response.Status)
	}
	decoder := json.NewDecoder(response.Body)
	decoder.UseNumber()
	closeBoth := func() {
		_ = writer.Close()
		_ = response.Body.Close()
	}
	t.Cleanup(closeBoth)
	return &lines{writer, decoder, closeBoth}
}

func (l *lines) next(t *testing.T) any {
	t.Helper()
	var value any
	if err := l.decoder.Decode(&value); err != nil {
		t.Fatal(err)
	}
	return hide(value, ownFigures)
}

// A watch that is spoken to while it runs.
func TestGatewayWatch(t *testing.T) {
	t.Parallel()
	duo := startDuo(t, overTLS())
	var seen [2][]any
	for side, server := range []*harness.Server{duo.Etched, duo.Etcd} {
		post := func(path, body string) {
			response, err := overHTTP2().Post(server.URL()+"/v3/"+path, "application/json", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
		}
		l := openLines(t, server, "watch", `{"create_request":{"key":"YQ==","prev_kv":true}}`)
		take := func(count int) {
			for range count {
				seen[side] = append(seen[side], l.next(t))
			}
		}
		take(1)
		post("kv/put", `{"key":"YQ==","value":"MQ=="}`)
		take(1)
		post("kv/put", `{"key":"YQ==","value":"Mg=="}`)
		take(1)
		post("kv/deleterange", `{"key":"YQ=="}`)
		take(1)
		for _, message := range []string{
			`{"create_request":{"key":"Yg==","start_revision":"2","watch_id":"7"}}` + "\n",
			`{"create_request":{"key":"YQ==","start_revision":"2","filters":["NODELETE"],"watch_id":"8"}}`,
		} {
			if _, err := io.WriteString(l.send, message); err != nil {
				t.Fatal(err)
			}
			take(1)
		}
		take(1)
		for _, message := range []string{`{"cancel_request":{"watch_id":"7"}}`, `{"progress_request":{}}`} {
			if _, err := io.WriteString(l.send, message); err != nil {
				t.Fatal(err)
			}
			take(1)
		}
		// The end of the requests is not the end of the watch.
		if err := l.send.Close(); err != nil {
			t.Fatal(err)
		}
		post("kv/put", `{"key":"YQ==","value":"Mw=="}`)
		take(2)
		// Which of two watches hears of a revision first is by chance.
		slices.SortFunc(seen[side][len(seen[side])-2:], func(a, b any) int {
			return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
		})
		post("kv/compaction", `{"revision":"4"}`)
		old := openLines(t, server, "watch", `{"create_request":{"key":"YQ==","start_revision":"2"}}`)
		seen[side] = append(seen[side], old.next(t), old.next(t))
	}
	if diff := cmp.Diff(seen[0], seen[1]); diff != "" {
		t.Errorf("(-etched +etcd)\n%s", diff)
	}
	if len(seen[0]) != 13 {
		t.Errorf("%d lines", len(seen[0]))
	}
}

// A keep-alive stream answers each message, and ends with them.
func TestGatewayKeepAlive(t *testing.T) {
	t.Parallel()
	duo := startDuo(t, overTLS())
	var seen [2][]any
	for side, server := range []*harness.Server{duo.Etched, duo.Etcd} {
		client := pb.NewLeaseClient(server.Dial(t))
		if _, err := client.LeaseGrant(harness.Context(t, 10*time.Second), &pb.LeaseGrantRequest{ID: 5, TTL: 60}); err != nil {
			t.Fatal(err)
		}
		l := openLines(t, server, "lease/keepalive", `{"ID":"5"}`)
		seen[side] = append(seen[side], l.next(t))
		for range 3 {
			if _, err := io.WriteString(l.send, `{"ID":"5"}`); err != nil {
				t.Fatal(err)
			}
			seen[side] = append(seen[side], l.next(t))
		}
		if err := l.send.Close(); err != nil {
			t.Fatal(err)
		}
		var more any
		if err := l.decoder.Decode(&more); err != io.EOF {
			t.Errorf("%s: %v, %v behind the last message", server.Kind(), more, err)
		}
	}
	if diff := cmp.Diff(seen[0], seen[1]); diff != "" {
		t.Errorf("(-etched +etcd)\n%s", diff)
	}
}

// The streams over WebSockets, which etcd's gateway has for browsers.
func TestGatewayWebSocket(t *testing.T) {
	t.Parallel()
	duo := startDuo(t, harness.Options{})
	const grant = `{"TTL":"60","ID":"9"}`
	var seen [2][]any
	for side, server := range []*harness.Server{duo.Etched, duo.Etcd} {
		open := func(path string, headers http.Header, protocols ...string) *websocket.Conn {
			dialer := websocket.Dialer{Subprotocols: protocols, HandshakeTimeout: answerLimit}
			socket, _, err := dialer.Dial("ws://"+server.Endpoint()+"/v3/"+path, headers)
			if err != nil {
				t.Fatalf("%s: %s: %v", server.Kind(), path, err)
			}
			t.Cleanup(func() { _ = socket.Close() })
			if err := socket.SetReadDeadline(time.Now().Add(answerLimit)); err != nil {
				t.Fatal(err)
			}
			return socket
		}
		exchange := func(socket *websocket.Conn, message string) {
			t.Helper()
			if message != "" {
				if err := socket.WriteMessage(websocket.TextMessage, []byte(message)); err != nil {
					t.Fatal(err)
				}
			}
			_, text, err := socket.ReadMessage()
			if err != nil {
				t.Fatalf("%s: behind %q: %v", server.Kind(), message, err)
			}
			seen[side] = append(seen[side], jsonValues(t, text, ownFigures)...)
		}
		if _, err := send(server.Endpoint(), call{path: "lease/grant", body: grant}.ask()); err != nil {
			t.Fatal(err)
		}
		watch := open("watch", nil)
		exchange(watch, `{"create_request":{"key":"YQ=="}}`)
		exchange(watch, `{"create_request":{"key":"Yg==","watch_id":"7"}}`)
		if _, err := send(server.Endpoint(), call{path: "kv/put", body: `{"key":"YQ==","value":"MQ=="}`}.ask()); err != nil {
			t.Fatal(err)
		}
		exchange(watch, "")
		exchange(watch, `{"cancel_request":{"watch_id":"7"}}`)
		watchers(t, server, 1)
		if err := watch.Close(); err != nil {
			t.Fatal(err)
		}
		watchers(t, server, 0)
		keepAlive := open("lease/keepalive", nil, "Bearer", "nonsense")
		exchange(keepAlive, `{"ID":"9"}`)
		exchange(keepAlive, `{"ID":"404"}`)
		exchange(open("nothing", nil), "")
	}
	if diff := cmp.Diff(seen[0], seen[1]); diff != "" {
		t.Errorf("(-etched +etcd)\n%s", diff)
	}
	for _, refused := range []ask{
		get("/v3/watch", "Connection: Upgrade", "Upgrade: websocket"),
		get("/v3/watch", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 8"),
		{method: "POST", target: "/v3/watch", headers: []string{
			"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13",
		}},
	} {
		var statuses [2]string
		for side, address := range []string{duo.Etched.Endpoint(), duo.Etcd.Endpoint()} {
			got, err := send(address, refused)
			if err != nil {
				t.Fatal(err)
			}
			statuses[side] = got.Status
		}
		if statuses[0] != statuses[1] {
			t.Errorf("%v: %v", refused, statuses)
		}
	}
}

// A stop of the server does not wait for a WebSocket, and ends it.
func TestGatewayWebSocketEndsWithItsServer(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	socket, _, err := websocket.DefaultDialer.Dial("ws://"+server.Endpoint()+"/v3/watch", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := socket.WriteMessage(websocket.TextMessage, []byte(`{"create_request":{"key":"YQ=="}}`)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := socket.ReadMessage(); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := socket.ReadMessage(); err == nil {
		t.Error("a message of a server that has stopped")
	}
}

// A client that disconnects ends its call: its watch is no longer there.
func TestGatewayCancel(t *testing.T) {
	t.Parallel()
	duo := startDuo(t, overTLS())
	duo.Each(func(server *harness.Server) {
		l := openLines(t, server, "watch", `{"create_request":{"key":"YQ=="}}`)
		l.next(t)
		watchers(t, server, 1)
		l.close()
		watchers(t, server, 0)
	})
}

func watchers(t *testing.T, server *harness.Server, count int) {
	t.Helper()
	line := fmt.Sprintf("\netcd_debugging_mvcc_watcher_total %d\n", count)
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, page, err := server.HTTPGet("/metrics")
		if err == nil && strings.Contains(page, line) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s: not %d watchers: %v", server.Kind(), count, err)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Where etcd answers nothing, or hides an error, etched says what is wrong.
func TestGatewayMalformedStreams(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	for _, c := range calls(400, `
		watch {
		watch {"create_request":{"key":5}}
		watch nonsense
		lease/keepalive {"ID":{}}
		`) {
		got, err := send(server.Endpoint(), c.ask())
		if err != nil {
			t.Errorf("%v: %v", c, err)
			continue
		}
		wants(t, c.ask(), got, 400)
		if !strings.HasPrefix(got.Body, `{"error":{"code":3,"message":"`) {
			t.Errorf("%v: %q", c, got.Body)
		}
	}
	secure := harness.Start(t, harness.Etched, overTLS())
	l := openLines(t, secure, "watch", `{"create_request":{"key":"YQ=="}}`)
	l.next(t)
	if _, err := io.WriteString(l.send, "nonsense\n"); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(l.next(t)); !strings.Contains(got, "code:3") {
		t.Errorf("behind a malformed message: %s", got)
	}
}
