package cases

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// logLimit bounds the wait for a line that must come: a log may be written by a thread of
// its own.
const logLimit = 20 * time.Second

// waitLog is WaitLog of a line that says this.
func waitLog(t *testing.T, server *harness.Server, count int, msg string) []harness.LogLine {
	t.Helper()
	lines, err := server.WaitLog(logLimit, count, harness.Says(msg))
	if err != nil {
		t.Fatalf("%q: %v", msg, err)
	}
	return lines
}

// ofTheLanguage are fields about the program rather than about its settings.
var ofTheLanguage = regexp.MustCompile(`^(ts|caller|logger|git-sha|go-version|go-os|go-arch)$`)

// The log of a start holds every setting under etcd's names, so that the version, the quota
// and whatever else is asked of a member later can be read from it.
func TestStartIsLogged(t *testing.T) {
	t.Parallel()
	harness.OfSingleServers(t)
	for _, flags := range [][]string{
		nil,
		{"--quota-backend-bytes=123456789", "--max-txn-ops=7", "--snapshot-count=77", "--max-wals=3", "--max-snapshots=4",
			"--auto-compaction-mode=revision", "--auto-compaction-retention=100", "--heartbeat-interval=50", "--election-timeout=700"},
		{"--cors=http://a.example:80", "--host-whitelist=a.example"},
	} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			t.Parallel()
			p := newPair(t, flags...)
			var lines [2]map[string]any
			for side, server := range []*harness.Server{p.duo.Etched, p.duo.Etcd} {
				address := regexp.MustCompile(`127\.0\.0\.1:\d+`)
				lines[side] = map[string]any{}
				for name, value := range waitLog(t, server, 1, "starting an etcd server")[0] {
					if ofTheLanguage.MatchString(name) {
						continue
					}
					text := strings.ReplaceAll(fmt.Sprint(value), server.DataDir(), "DATA")
					lines[side][name] = address.ReplaceAllString(text, "ADDRESS")
				}
			}
			// etcd shows what a flag of earlier releases set, and no flag sets now.
			delete(lines[etched], "initial-corrupt-check")
			delete(lines[etcd], "initial-corrupt-check")
			for name := range lines[etched] {
				// etched may have more to say.
				if _, known := lines[etcd][name]; !known {
					delete(lines[etched], name)
				}
			}
			if diff := cmp.Diff(lines[etched], lines[etcd]); diff != "" {
				t.Errorf("(-etched +etcd)\n%s", diff)
			}
			if len(lines[etcd]) < 50 {
				t.Errorf("etcd logs %d settings", len(lines[etcd]))
			}
		})
	}
}

// A setting that only bbolt knows is reported where it is seen: etcd logs that it takes
// these at info, etched that they change nothing.
func TestPlainTrafficIsLogged(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	var lines [2][]harness.LogLine
	for side, server := range []*harness.Server{p.duo.Etched, p.duo.Etcd} {
		lines[side] = waitLog(t, server, 1, "serving client traffic insecurely; this is strongly discouraged!")
	}
	address := regexp.MustCompile(`^127\.0\.0\.1:\d+$`)
	compareLines(t, lines, func(_ string, value any) string {
		return address.ReplaceAllString(fmt.Sprint(value), "ADDRESS")
	})
}

func TestBoltFlagsAreLogged(t *testing.T) {
	t.Parallel()
	harness.OfSingleServers(t)
	flags := []string{"--backend-batch-limit=5000", "--backend-batch-interval=200ms", "--backend-bbolt-freelist-type=array"}
	p := newPair(t, flags...)
	waitLog(t, p.duo.Etcd, 1, "setting backend batch limit")
	waitLog(t, p.duo.Etcd, 1, "setting backend batch interval")
	for _, flag := range flags {
		name, _, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
		_, err := p.duo.Etched.WaitLog(logLimit, 1, harness.Choose(func(line harness.LogLine) bool {
			// The command line and all settings are logged anyway.
			if line.Msg() == "Running: " || line.Msg() == "starting an etcd server" {
				return false
			}
			return (line.Level() == "info" || line.Level() == "warn") && strings.Contains(fmt.Sprint(map[string]any(line)), name)
		}))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A directory of its own for the log is nothing to warn of, nor is what lies in it; neither
// at the first start nor at the next.
func TestDirectoryOfTheLog(t *testing.T) {
	t.Parallel()
	harness.OfSingleServers(t)
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		for place, dir := range map[string]string{"elsewhere": filepath.Join(t.TempDir(), "log"), "within the data directory": ""} {
			t.Run(fmt.Sprint(kind, " ", place), func(t *testing.T) {
				t.Parallel()
				data := filepath.Join(t.TempDir(), "data")
				if dir == "" {
					dir = filepath.Join(data, "wal")
				}
				server := harness.Start(t, kind, harness.Options{DataDir: data, Flags: []string{"--wal-dir=" + dir}})
				if err := server.Kill(); err != nil {
					t.Fatal(err)
				}
				if err := server.Restart(); err != nil {
					t.Fatal(err)
				}
				lines, err := server.Log()
				if err != nil {
					t.Fatal(err)
				}
				for _, line := range lines {
					text := fmt.Sprint(map[string]any(line))
					if line.Level() == "warn" && (strings.Contains(text, dir) || strings.Contains(text, "LOCK") || strings.Contains(text, "invalid file")) {
						// etcd knows no directory of the log within the data directory.
						if kind == harness.Etcd && strings.HasPrefix(dir, data) {
							continue
						}
						t.Errorf("%v", line)
					}
				}
			})
		}
	}
}

// slowRequests are requests of every kind that the warnings tell apart, as far as both servers apply
// them.
func slowRequests() []proto.Message {
	return []proto.Message{
		put("a", "a secret value"),
		&pb.PutRequest{Key: []byte("a"), Value: []byte("a secret value"), PrevKv: true},
		get("a"),
		&pb.RangeRequest{Key: []byte("a"), Serializable: true},
		span("a", "c"),
		&pb.RangeRequest{Key: []byte("a"), Limit: 1, SortOrder: pb.RangeRequest_DESCEND, SortTarget: pb.RangeRequest_MOD},
		get("missing"),
		txn([]*pb.Compare{holds("a")}, ops(put("b", "a secret value"), get("a")), ops(del("a"))),
		txn([]*pb.Compare{fails("a")}, ops(put("b", "a secret value"), get("a")), ops(get("a"))),
		txn(nil, ops(get("a"), get("b")), nil),
		del("b"),
		compact(3),
		grant(7, 3600),
		leased("c", "a secret value", 7),
		&pb.LeaseRevokeRequest{ID: 7},
		&pb.AuthRoleAddRequest{Name: "r"},
		&pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{PermType: authpb.READWRITE, Key: []byte("a"), RangeEnd: []byte("b")}},
		&pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{Key: []byte("c")}},
		&pb.AuthUserAddRequest{Name: "u", Password: "a secret value", Options: &authpb.UserAddOptions{}},
		&pb.AuthUserChangePasswordRequest{Name: "u", Password: "a secret value"},
		&pb.AuthUserGrantRoleRequest{User: "u", Role: "r"},
		&pb.AuthUserRevokeRoleRequest{Name: "u", Role: "r"},
		&pb.AuthRoleRevokePermissionRequest{Role: "r", Key: []byte("a"), RangeEnd: []byte("b")},
		&pb.AuthUserDeleteRequest{Name: "u"},
		&pb.AuthRoleDeleteRequest{Role: "r"},
		&pb.AuthDisableRequest{},
	}
}

// blanks are free: Go's text form has them by chance, and brackets of two kinds.
var (
	blanks      = regexp.MustCompile(`\s+`)
	requestID   = regexp.MustCompile(`ID:\d+`)
	sizeOf      = regexp.MustCompile(`size:\d+`)
	anyBrackets = strings.NewReplacer("<", " ", ">", " ", "{", " ", "}", " ", ":", " : ")
)

func plain(value any) string {
	return strings.TrimSpace(blanks.ReplaceAllString(anyBrackets.Replace(fmt.Sprint(value)), " "))
}

// compareLines compares lines of both by their fields; tidy makes a field's text that is
// compared.
func compareLines(t *testing.T, lines [2][]harness.LogLine, tidy func(name string, value any) string) {
	t.Helper()
	tidied := func(line harness.LogLine) map[string]string {
		fields := map[string]string{}
		for _, name := range slices.Sorted(maps.Keys(line)) {
			if !ofTheLanguage.MatchString(name) {
				fields[name] = tidy(name, line[name])
			}
		}
		return fields
	}
	for n := range min(len(lines[etched]), len(lines[etcd])) {
		if diff := cmp.Diff(tidied(lines[etched][n]), tidied(lines[etcd][n])); diff != "" {
			t.Errorf("line %d (-etched +etcd)\n%s", n+1, diff)
		}
	}
	for side, all := range lines {
		for _, line := range all {
			if strings.Contains(fmt.Sprint(map[string]any(line)), "a secret value") {
				t.Errorf("%s tells a value: %v", harness.Kind(side), line)
			}
		}
	}
}

// A request that takes longer than --warning-unary-request-duration is logged with etcd's
// fields.
func TestRequestStats(t *testing.T) {
	t.Parallel()
	harness.OfSingleServers(t)
	p := newPair(t, "--warning-unary-request-duration=1ns")
	const msg, marker = "request stats", "what comes before the table"
	// Every call counts, those by which the servers were found to be ready too.
	p.ok(put(marker, "1"))
	requests := slowRequests()
	for _, request := range requests {
		p.do(request)
	}
	var lines [2][]harness.LogLine
	for side, server := range []*harness.Server{p.duo.Etched, p.duo.Etcd} {
		afterMarker := func(all []harness.LogLine) []harness.LogLine {
			logged := harness.Says(msg)(all)
			begin := slices.IndexFunc(logged, func(line harness.LogLine) bool {
				return strings.Contains(fmt.Sprint(line["request content"]), marker)
			})
			if begin < 0 {
				return nil
			}
			return logged[begin+1:]
		}
		var err error
		if lines[side], err = server.WaitLog(logLimit, len(requests), afterMarker); err != nil {
			t.Errorf("%v", err)
		}
	}
	remote := regexp.MustCompile(`^127\.0\.0\.1:\d+$`)
	compareLines(t, lines, func(name string, value any) string {
		text := fmt.Sprint(value)
		switch name {
		case "start time":
			if _, err := time.Parse(time.RFC3339Nano, text); err != nil {
				return text
			}
			return "TIME"
		case "time spent":
			if spent, err := time.ParseDuration(text); err != nil || spent <= 0 {
				return text
			}
			return "DURATION"
		case "remote":
			return remote.ReplaceAllString(text, "ADDRESS")
		case "request content":
			return plain(value)
		}
		return text
	})
	for n, line := range lines[etcd] {
		if method := fmt.Sprint(line["response type"]); !strings.HasPrefix(method, "/etcdserverpb.") {
			t.Errorf("line %d of etcd: %v", n+1, line)
		}
	}
}

// So is one whose carrying out took longer than --warning-apply-duration, a read too.
func TestApplyTookTooLong(t *testing.T) {
	t.Parallel()
	harness.OfSingleServers(t)
	p := newPair(t, "--warning-apply-duration=1ns")
	const msg = "apply request took too long"
	// What a member and its cluster tell of themselves is applied too, and the first reads.
	p.waitClusterVersion()
	for _, request := range slowRequests() {
		p.do(request)
	}
	// The last to come, so that the lines before it are there.
	p.ok(put("the last", "1"))
	var lines [2][]harness.LogLine
	for side, server := range []*harness.Server{p.duo.Etched, p.duo.Etcd} {
		_, err := server.WaitLog(logLimit, 1, harness.Choose(func(line harness.LogLine) bool {
			return line.Msg() == msg && strings.Contains(fmt.Sprint(line["request"]), "the last")
		}))
		if err != nil {
			t.Errorf("%v", err)
		}
		begun := false
		for _, line := range waitLog(t, server, 1, msg) {
			// The first request of the table begins them.
			begun = begun || strings.Contains(fmt.Sprint(line["request"]), `put:`)
			if begun {
				lines[side] = append(lines[side], line)
			}
		}
	}
	if len(lines[etched]) != len(lines[etcd]) {
		t.Errorf("etched has %d lines, etcd %d", len(lines[etched]), len(lines[etcd]))
	}
	compareLines(t, lines, func(name string, value any) string {
		text := fmt.Sprint(value)
		switch name {
		case "took":
			if took, err := time.ParseDuration(text); err != nil || took <= 0 {
				return text
			}
			return "DURATION"
		case "request":
			return plain(requestID.ReplaceAllString(text, "ID:N"))
		case "response":
			// How large an answer is before its header is filled in is the server's affair.
			return plain(sizeOf.ReplaceAllString(text, "size:N"))
		}
		return text
	})
}

// A line of a warning has a limit: requests below it are not logged.
func TestFastRequestsAreNotLogged(t *testing.T) {
	t.Parallel()
	harness.OfSingleServers(t)
	p := newPair(t, "--warning-unary-request-duration=1h", "--warning-apply-duration=1h")
	for _, request := range slowRequests() {
		p.do(request)
	}
	for _, server := range []*harness.Server{p.duo.Etched, p.duo.Etcd} {
		ctx, cancel := context.WithTimeout(context.Background(), callLimit)
		if _, err := server.Client(t).Put(ctx, "z", "1"); err != nil {
			t.Error(err)
		}
		cancel()
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
		lines, err := server.Log()
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			if line.Msg() == "request stats" || line.Msg() == "apply request took too long" {
				t.Errorf("%s: %v", server.Kind(), line)
			}
		}
	}
}
