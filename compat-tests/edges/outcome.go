package edges

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"etched.dev/compat-tests/harness"
)

const (
	// budget is etched's --memory-budget-bytes in every row.
	budget = 256 << 20
	// allowance is how much may be resident above the budget, and how much more than
	// before once the connections are closed.
	allowance = 64 * megabyte
	// settleTime is the time after the attack until memory is compared.
	settleTime = 10 * time.Second
)

// Outcome is the result of one attack on one server.
type Outcome struct {
	Attack, Server       string
	Before, Peak, After  int64
	Reads                string // serializable, then linearizable
	Puts, Health         string
	Alive                bool
	Writes               string // acknowledged and kept
	NewConnections, Seen string
	Notes, Faults        []string
	answers              map[string]int
	compaction           time.Duration // 0 where there was none
}

// judge adds a fault for every limit that is broken.
func (o *Outcome) judge(b *probeResults) {
	fault := func(format string, arguments ...any) { o.Faults = append(o.Faults, fmt.Sprintf(format, arguments...)) }
	if !o.Alive {
		fault("the process exited")
	}
	if o.Peak > budget+allowance {
		fault("%s resident", mebibytes(o.Peak))
	}
	if o.After > o.Before+allowance {
		fault("%s stay", mebibytes(o.After-o.Before))
	}
	for _, one := range []struct {
		what    string
		figures *figures
		limit   time.Duration
	}{
		{"serializable reads", &b.Serializable, *p99Limit},
		{"linearizable reads", &b.Linearizable, *p99Limit},
		{"puts", &b.Puts, probeLimit},
		{"probes", &b.Health, probeLimit},
	} {
		if p99 := one.figures.quantile(0.99); p99 > one.limit {
			fault("%s took %s ms", one.what, milliseconds(p99))
		}
		if one.figures.Failed > 0 {
			fault("%s failed: %v", one.what, &one.figures.Errors)
		}
		if len(one.figures.All) == 0 {
			fault("no %s were answered", one.what)
		}
	}
}

// compareCompactions judges how long a physical compaction took.
func compareCompactions(etched, etcd *Outcome) {
	const longest, least = 20 * time.Second, 2 * time.Second
	limit, beside := longest, ""
	// etcd may have failed before.
	if etcd != nil && etcd.compaction > 0 {
		limit, beside = min(longest, max(2*etcd.compaction, least)), fmt.Sprintf(", etcd's %.1f s", etcd.compaction.Seconds())
	}
	if took := etched.compaction; took > limit {
		etched.Faults = append(etched.Faults, fmt.Sprintf("the physical compaction took %.1f s%s", took.Seconds(), beside))
	}
}

// compareAnswers sets Seen to how the answers differ.
func compareAnswers(etched, etcd *Outcome) {
	if etcd == nil {
		return
	}
	var differing []string
	for _, answer := range slices.Sorted(maps.Keys(etched.answers)) {
		if etcd.answers[answer] == 0 {
			differing = append(differing, answer)
		}
	}
	etched.Seen, etcd.Seen = fmt.Sprintf("%d answers, each as etcd's", len(etched.answers)), fmt.Sprintf("%d answers", len(etcd.answers))
	if len(differing) > 0 {
		etched.Seen = "other than etcd: " + strings.Join(differing, "; ")
		etched.Faults = append(etched.Faults, fmt.Sprintf("%d answers differ from etcd's", len(differing)))
	}
}

// lastError is the last error in the log, or else its last lines.
func lastError(server *harness.Server) string {
	lines, err := server.Log()
	if err != nil || len(lines) == 0 {
		return server.LogTail(1)
	}
	const few, longest = 3, 250
	var words []string
	for _, line := range lines[max(len(lines)-few, 0):] {
		words = append(words, line.Msg())
	}
	for _, line := range lines {
		if level := line.Level(); level == "error" || level == "fatal" || level == "panic" {
			words = []string{line.Msg()}
			if cause, ok := line["error"].(string); ok {
				words = append(words, cause)
			}
		}
	}
	text := strings.Join(words, ": ")
	return text[:min(len(text), longest)]
}

func mebibytes(bytes int64) string { return fmt.Sprintf("%d MiB", bytes>>20) }

// outcomes are all rows so far.
var outcomes struct {
	mu  sync.Mutex
	all []*Outcome
}

func record(o *Outcome) error {
	outcomes.mu.Lock()
	defer outcomes.mu.Unlock()
	outcomes.all = append(outcomes.all, o)
	return writeTable(outcomes.all)
}

// writeTable writes the file of -edges.table, after each row since a run is long.
func writeTable(all []*Outcome) error {
	if *tablePath == "" {
		return nil
	}
	return os.WriteFile(*tablePath, []byte(table(all)), 0o644)
}

// table formats outcomes in Markdown.
func table(all []*Outcome) string {
	var text strings.Builder
	text.WriteString("| attack | server | resident before, peak, 10 s after (MiB) | reads serializable, linearizable: p50/p99 ms | puts: p50/p99 ms | probes: p50/p99 ms | alive | acknowledged writes kept | new connections | what the attacker was answered | limits |\n")
	text.WriteString("|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, o := range all {
		alive, limits := "yes", "kept"
		if !o.Alive {
			alive = "**no**"
		}
		switch {
		case o.Server == harness.Etcd.String():
			limits = "none"
		case len(o.Faults) > 0:
			limits = "**broken**: " + strings.Join(o.Faults, "; ")
		}
		answers := o.Seen
		if len(o.Notes) > 0 {
			answers = strings.TrimPrefix(answers+". "+strings.Join(o.Notes, "; "), ". ")
		}
		cells := []string{
			o.Attack, o.Server, fmt.Sprintf("%d, %d, %d", o.Before>>20, o.Peak>>20, o.After>>20), o.Reads, o.Puts, o.Health, alive,
			o.Writes, o.NewConnections, answers, limits,
		}
		for i, cell := range cells {
			cells[i] = strings.NewReplacer("|", `\|`, "\n", " ").Replace(cell)
		}
		fmt.Fprintf(&text, "| %s |\n", strings.Join(cells, " | "))
	}
	return text.String()
}

// publish prints the table and writes its file once more.
func publish() error {
	outcomes.mu.Lock()
	defer outcomes.mu.Unlock()
	if len(outcomes.all) == 0 {
		return nil
	}
	fmt.Print(table(outcomes.all))
	return writeTable(outcomes.all)
}
