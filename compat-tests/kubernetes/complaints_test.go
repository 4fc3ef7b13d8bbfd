package kubernetes

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// complaint is an error line of an API server's log without what differs between two of its kind.
type complaint string

var (
	// klog's: severity, date, time, thread, file and line, then the message.
	errorLine = regexp.MustCompile(`^[EF]\d{4} \S+ +\d+ ([^ :]+):\d+\] (.*)$`)
	crashLine = regexp.MustCompile(`^(panic: |fatal error: |goroutine \d+ |WARNING: DATA RACE)`)
	// Addresses, revisions, durations and names differ.
	varying = []struct {
		pattern *regexp.Regexp
		instead string
	}{
		{uuids, "UUID"},
		{regexp.MustCompile(`127\.0\.0\.1:\d+`), "ADDRESS"},
		{regexp.MustCompile(`\b0x[0-9a-f]+\b|\b[0-9a-f]{12,}\b`), "HEX"},
		{regexp.MustCompile(`\d+(\.\d+)?(ns|µs|ms|s|m|h)\b`), "TIME"},
		{regexp.MustCompile(`\d+`), "N"},
	}
)

// complaintsOf reads those of a part of a log; each comes with the line it was made of.
func complaintsOf(text string) map[complaint]string {
	found := map[complaint]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		said := ""
		if parts := errorLine.FindStringSubmatch(line); parts != nil {
			said = parts[1] + ": " + parts[2]
		} else if crashLine.MatchString(line) {
			said = line
		} else {
			continue
		}
		for _, one := range varying {
			said = one.pattern.ReplaceAllString(said, one.instead)
		}
		found[complaint(said)] = line
	}
	return found
}

// What there is or is not by chance, on either store.
var (
	// atStart is what an API server says that is faster than its own first steps.
	atStart = []*regexp.Regexp{
		regexp.MustCompile(`^controller\.go: "(Error while syncing ConfigMap|Failed to ensure lease exists, will retry)" err="namespaces \\"kube-system\\" not found"`),
	}
	// ofOutages are complaints about a store that is away or has no leader, in etcd's words and gRPC's.
	// Which of them it is depends on the call that was under way.
	ofOutages = append([]*regexp.Regexp{
		regexp.MustCompile(`^status\.go: "Unhandled Error" .*: rpc error: code = Unavailable desc = (error reading from server|connection error|transport is closing|closing transport)`),
		regexp.MustCompile(`^status\.go: "Unhandled Error" .*: etcdserver: (request timed out[^:]*|leader changed|no leader)" `),
		regexp.MustCompile(`^watcher\.go: watch chan error: etcdserver: no leader$`),
		// The last is of a watch of the key that says how far, taken up again behind a compaction.
		regexp.MustCompile(`^compact\.go: etcd: endpoint .*: (rpc error: code = Unavailable .*|etcdserver: (request timed out.*|leader changed|no leader|mvcc: required revision has been compacted))$`),
	}, atStart...)
)

// complaints are those of all API servers since their logs were so long; it also answers how long
// they are now.
func (w *world) complaints(since map[string]int) (map[complaint]string, map[string]int) {
	w.t.Helper()
	found, lengths := map[complaint]string{}, map[string]int{}
	for _, server := range w.servers() {
		content, err := os.ReadFile(server.logPath)
		must(w.t, err)
		// A line that is being written is the next part's.
		end := strings.LastIndexByte(string(content), '\n') + 1
		for one, line := range complaintsOf(string(content[since[server.name]:end])) {
			found[one] = server.name + ": " + line
		}
		lengths[server.name] = end
	}
	return found, lengths
}

func TestComplaintsAreFound(t *testing.T) {
	log := `I1129 19:50:23.000001   12345 compact.go:101] etcd: compacted rev (17)
E1129 19:50:23.000002   12345 compact.go:102] etcd: endpoint ([https://127.0.0.1:12345]) compact failed: after 2.5s
E1129 19:50:24.000003   12346 compact.go:102] etcd: endpoint ([https://127.0.0.1:23456]) compact failed: after 700ms
W1129 19:50:25.000004       1 reflector.go:5] a warning
panic: runtime error: index out of range
goroutine 17 [running]:
`
	found := complaintsOf(log)
	for _, one := range []complaint{
		"compact.go: etcd: endpoint ([https://ADDRESS]) compact failed: after TIME",
		"panic: runtime error: index out of range", "goroutine N [running]:",
	} {
		if _, isFound := found[one]; !isFound {
			t.Errorf("not found: %s", one)
		}
	}
	if len(found) != 3 {
		t.Errorf("found: %v", found)
	}
}
