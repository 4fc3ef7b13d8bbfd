package httpcases

import (
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// probes are the targets whose answers depend on how the member is.
var probes = strings.Fields(`
	/health /health?serializable=true /health?serializable=false /health?serializable=banana /health?serializable
	/health?serializable=false&serializable=true /health?exclude=NOSPACE /health?exclude=CORRUPT
	/health?exclude=NOSPACE&exclude=CORRUPT /health?exclude=NOSPACE,CORRUPT /health?exclude=nospace /health?exclude=
	/health?exclude=NONE /health?exclude=%4eOSPACE /health?anything
	/livez /livez?verbose /livez?verbose=false /livez?exclude=serializable_read /livez?exclude=serializable_read&verbose
	/livez?exclude=nope /livez/serializable_read /livez/serializable_read?verbose /livez/serializable_read?exclude=serializable_read
	/readyz /readyz?verbose /readyz?exclude=data_corruption /readyz?exclude=data_corruption&verbose
	/readyz?exclude=linearizable_read&exclude=serializable_read&exclude=non_learner&verbose /readyz?exclude=a&exclude=b
	/readyz/data_corruption /readyz/data_corruption?verbose /readyz/serializable_read /readyz/linearizable_read?verbose
	/readyz/non_learner`)

// unknown are targets that lead nowhere.
var unknown = strings.Fields(`
	/ /nothing /health/ /Health /health;x /health%3f /livez/ /livez/nope /livez/data_corruption /livez/serializable_read/
	/readyz/ /readyz/nope /readyz/Data_corruption /livez%2fserializable_read /version/ /version/x /metrics/ /debug /debug/
	/debug/vars/ /debug/pprof/ /debug/requests /debug/events /members /v2/keys /v2/machines /config/local/log
	/leases /raft /%2f/health /foo/%2e%2e/x /a"b /v3beta`)

func startDuo(t *testing.T, options harness.Options) *harness.Duo {
	t.Helper()
	duo := harness.StartDuo(t, options)
	duo.Each(func(server *harness.Server) {
		if err := server.WaitClusterVersion(20 * time.Second); err != nil {
			t.Fatal(err)
		}
	})
	return duo
}

func alarm(t *testing.T, duo *harness.Duo, action pb.AlarmRequest_AlarmAction, kind pb.AlarmType, member uint64) {
	t.Helper()
	duo.Each(func(server *harness.Server) {
		client := pb.NewMaintenanceClient(server.Dial(t))
		request := &pb.AlarmRequest{Action: action, Alarm: kind, MemberID: member}
		if _, err := client.Alarm(harness.Context(t, 10*time.Second), request); err != nil {
			t.Fatalf("%s: %v: %v", server.Kind(), request, err)
		}
	})
}

func TestClientPort(t *testing.T) {
	t.Parallel()
	// Without the gateway: /v3/ is then nothing special in etcd either.
	duo := startDuo(t, harness.Options{Flags: []string{"--enable-grpc-gateway=false"}})
	at := clientPorts(duo)
	t.Run("probes", func(t *testing.T) {
		for _, target := range probes {
			wants(t, get(target), at.compare(t, get(target)), 200)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		for _, target := range append(unknown, "/v3", "/v3/", "/v3/kv/range", "/v3beta/kv/range") {
			wants(t, get(target), at.compare(t, get(target)), 404)
		}
	})
	t.Run("version", func(t *testing.T) {
		for _, target := range []string{"/version", "/version?x", "/versio%6e"} {
			wants(t, get(target), at.compare(t, get(target)), 200)
		}
	})
	t.Run("methods", func(t *testing.T) {
		for _, method := range []string{"HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "OPTIONS", "get", "FOO"} {
			for _, target := range []string{
				"/health", "/livez", "/readyz/data_corruption", "/livez/nope", "/version", "/debug/vars", "/nothing", "/",
			} {
				at.compare(t, ask{method: method, target: target})
			}
		}
	})
	t.Run("headers", func(t *testing.T) { compareHeaders(t, at) })
	t.Run("bodies", func(t *testing.T) { compareBodies(t, at) })
	t.Run("debug vars", func(t *testing.T) { compareVariables(t, at) })
	t.Run("alarms", func(t *testing.T) { compareAlarms(t, duo) })
}

func compareHeaders(t *testing.T, at addresses) {
	for status, list := range map[int][]ask{
		200: {
			get("/health", "Host: evil.example"),
			get("/health", "Host: [::1]:2379"),
			get("/health", "Origin: http://evil.example"),
			get("/health", "Connection: close"),
			get("/health", "Authorization: nonsense"),
			get("/health", "Accept: application/json"),
			get("/health", "Accept-Encoding: gzip"),
			get("/health", "Content-Type: application/grpc"),
			get("http://elsewhere.example/health"),
			{method: "OPTIONS", target: "*"},
			{method: "OPTIONS", target: "/v3/kv/put", headers: []string{
				"Origin: http://a.example", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-y",
			}},
		},
		400: {
			get("/health", "Host"), get("/health", "Host: a b"), get("/health", "Host: a", "Host: b"),
		},
		417: {{method: "POST", target: "/health", headers: []string{"Expect: nonsense"}}},
	} {
		for _, asked := range list {
			wants(t, asked, at.compare(t, asked), status)
		}
	}
}

// A body that nobody reads neither changes the answer nor spoils the next
// request on its connection.
func compareBodies(t *testing.T, at addresses) {
	list := []ask{
		{method: "POST", target: "/health", body: "abc"},
		get("/version"),
		{method: "POST", target: "/etcdserverpb.KV/Range", headers: []string{"Content-Type: application/grpc"}, body: "\x00\x00\x00\x00\x00"},
		{method: "PUT", target: "/v2/keys/a", body: strings.Repeat("x", 10_000)},
		get("/health"),
		{method: "GET", target: "/livez", body: "a body"},
		get("/readyz/non_learner"),
	}
	replies := map[string][]reply{}
	for _, address := range []string{at.etched, at.etcd} {
		c, err := dial(address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, asked := range list {
			got, err := c.exchange(asked)
			if err != nil {
				t.Errorf("%s: %v: %v", address, asked, err)
				break
			}
			replies[address] = append(replies[address], got)
		}
	}
	for i := range min(len(replies[at.etched]), len(replies[at.etcd])) {
		ours, theirs := replies[at.etched][i], replies[at.etcd][i]
		if ours.Status != theirs.Status || ours.Body != theirs.Body {
			t.Errorf("%v: %q %q, etcd answers %q %q", list[i], ours.Status, ours.Body, theirs.Status, theirs.Body)
		}
	}
}

func compareAlarms(t *testing.T, duo *harness.Duo) {
	at := clientPorts(duo)
	const me, other = 0, 0xabc
	probe := func(healthy int) {
		t.Helper()
		wants(t, get("/health"), at.compare(t, get("/health")), healthy)
		for _, target := range probes {
			at.compare(t, get(target))
		}
	}
	steps := []struct {
		action pb.AlarmRequest_AlarmAction
		kind   pb.AlarmType
		member uint64
		health int
	}{
		{pb.AlarmRequest_ACTIVATE, pb.AlarmType_NOSPACE, other, 503},
		{pb.AlarmRequest_ACTIVATE, pb.AlarmType_CORRUPT, me, 503},
		{pb.AlarmRequest_DEACTIVATE, pb.AlarmType_NOSPACE, other, 503},
		{pb.AlarmRequest_DEACTIVATE, pb.AlarmType_CORRUPT, me, 200},
	}
	for _, step := range steps {
		alarm(t, duo, step.action, step.kind, step.member)
		// With two alarms etcd names either of them, whichever its map gives first.
		if step.action == pb.AlarmRequest_ACTIVATE && step.kind == pb.AlarmType_CORRUPT {
			for _, target := range []string{"/health?exclude=NOSPACE", "/health?exclude=CORRUPT", "/health?exclude=NOSPACE&exclude=CORRUPT", "/livez", "/readyz", "/readyz?exclude=data_corruption"} {
				at.compare(t, get(target))
			}
			continue
		}
		probe(step.health)
	}
}
