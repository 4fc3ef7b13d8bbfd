package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"etched.dev/compat-tests/harness"
)

// results are the figures of all repetitions.
type results struct {
	Began   time.Time `json:"began"`
	Took    string    `json:"took"`
	Quick   bool      `json:"quick"`
	Members int       `json:"members"`
	Reps    int       `json:"repetitions"`
	Window  string    `json:"window"`
	// Connections is the most that a load spreads its clients over.
	Connections int               `json:"connections"`
	Binaries    map[string]string `json:"binaries"`
	Machine     map[string]string `json:"machine"`
	// Figures are by server, then one list for each repetition.
	Figures     map[string][][]figure `json:"figures"`
	Comparisons []comparison          `json:"comparisons"`

	settings settings
}

// comparison is one figure of both servers.
type comparison struct {
	Row   string `json:"row"`
	Title string `json:"title"`
	Name  string `json:"name"`
	Unit  string `json:"unit"`

	Better better `json:"higher_is_better"`
	Etcd   spread `json:"etcd"`
	Etched spread `json:"etched"`
	// Ratio says how many times better etched's median is; below 1 it is worse.
	// Least and most are what the repetitions would allow at the extremes.
	Ratio float64 `json:"ratio"`
	Least float64 `json:"ratio_least"`
	Most  float64 `json:"ratio_most"`
	Aside bool    `json:"aside"`
}

// spread is a median with the least and the most.
type spread struct {
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
}

func newResults(o options) *results {
	return &results{
		Began: time.Now().UTC(), Quick: o.quick, Members: o.members, Reps: o.reps,
		Window: o.settings.window.String(), Connections: o.settings.connections,
		Binaries: map[string]string{}, Figures: map[string][][]figure{},
		Machine: map[string]string{
			"cores": fmt.Sprint(runtime.NumCPU()), "cpu": fieldOf("/proc/cpuinfo", "model name"),
			"memory": fieldOf("/proc/meminfo", "MemTotal"), "kernel": fieldOf("/proc/version", ""),
		},
		settings: o.settings,
	}
}

// fieldOf answers the value of the first line `name: value` of a file; of its
// first line for an empty name.
func fieldOf(path, name string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for line := range strings.SplitSeq(string(content), "\n") {
		if name == "" {
			return line
		}
		if key, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func (r *results) add(kind harness.Kind, figures []figure) {
	r.Figures[kind.String()] = append(r.Figures[kind.String()], figures)
}

// caption says in a line what the figures are of.
func (r *results) caption() string {
	text := fmt.Sprintf("%s cores (%s), medians of %d, windows of %s, members: %d",
		r.Machine["cores"], r.Machine["cpu"], r.Reps, r.Window, r.Members)
	if r.Quick {
		text += "; quick run: a first look only"
	}
	if other := r.disturbance(""); other > disturbing {
		text += fmt.Sprintf("; DISTURBED: other processes used up to %.1f cores", other)
	}
	return text
}

// disturbing is what other processes may use, in cores, before a figure is marked.
const disturbing = 0.25

// disturbance is the most that other processes used during a row, in cores;
// during any for an empty id.
func (r *results) disturbance(row string) (most float64) {
	for _, repetitions := range r.Figures {
		for _, figures := range repetitions {
			for _, figure := range figures {
				if figure.Name == otherCPU && (row == "" || row == figure.Row) {
					most = max(most, figure.Value)
				}
			}
		}
	}
	return most
}

// compare answers every figure that both servers have, in the order measured.
func (r *results) compare() []comparison {
	titles := map[string]string{}
	for _, row := range rows {
		titles[row.id] = row.describe(r.settings)
		if r.disturbance(row.id) > disturbing {
			titles[row.id] += " (disturbed)"
		}
	}
	var all []comparison
	for i, figure := range r.Figures[harness.Etcd.String()][0] {
		etcd := spreadOf(r.Figures[harness.Etcd.String()], i)
		etched := spreadOf(r.Figures[harness.Etched.String()], i)
		c := comparison{
			Row: figure.Row, Title: titles[figure.Row], Name: figure.Name, Unit: figure.Unit,
			Better: figure.Better, Etcd: etcd, Etched: etched, Aside: figure.Aside,
		}
		c.Ratio = ratio(figure.Better, etcd.Median, etched.Median)
		if figure.Better == higher {
			c.Least, c.Most = ratio(higher, etcd.Most, etched.Least), ratio(higher, etcd.Least, etched.Most)
		} else {
			c.Least, c.Most = ratio(lower, etcd.Least, etched.Most), ratio(lower, etcd.Most, etched.Least)
		}
		all = append(all, c)
	}
	return all
}

// ratio is how many times better etched is; 0 where it cannot be said.
func ratio(better better, etcd, etched float64) float64 {
	if etcd <= 0 || etched <= 0 {
		return 0
	}
	if better == higher {
		return etched / etcd
	}
	return etcd / etched
}

func spreadOf(repetitions [][]figure, i int) spread {
	var values []float64
	for _, figures := range repetitions {
		values = append(values, figures[i].Value)
	}
	slices.Sort(values)
	n := len(values)
	return spread{Median: (values[(n-1)/2] + values[n/2]) / 2, Least: values[0], Most: values[n-1]}
}

func (r *results) write(path string, comparisons []comparison) error {
	r.Comparisons, r.Took = comparisons, time.Since(started).Round(time.Second).String()
	encoded, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(encoded, '\n'), 0o644)
}

// table is the comparison as markdown.
func table(comparisons []comparison, caption string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s\n\n", caption)
	fmt.Fprintf(&text, "| what | figure | better | etcd v3.7.3 | etched | etched is better by |\n|---|---|---|---:|---:|---:|\n")
	last := ""
	for _, c := range comparisons {
		if c.Aside {
			continue
		}
		title := c.Title
		if title == last {
			title = ""
		}
		last = c.Title
		direction := "↓"
		if c.Better == higher {
			direction = "↑"
		}
		fmt.Fprintf(&text, "| %s | %s, %s | %s | %s | %s | %s |\n",
			title, c.Name, c.Unit, direction, short(c.Etcd.Median), short(c.Etched.Median), times(c.Ratio))
	}
	return text.String()
}

// times writes a ratio; one below 1 is marked.
func times(ratio float64) string {
	switch {
	case ratio == 0:
		return "?"
	case ratio < 0.995:
		return fmt.Sprintf("**%.2f × (worse)**", ratio)
	default:
		return fmt.Sprintf("%.2f ×", ratio)
	}
}

// short writes a number with three significant digits, thousands parted.
func short(value float64) string {
	switch {
	case value == 0:
		return "0"
	case math.Abs(value) >= 100:
		return thousands(int(math.Round(value)))
	case math.Abs(value) >= 10:
		return fmt.Sprintf("%.1f", value)
	case math.Abs(value) >= 1:
		return fmt.Sprintf("%.2f", value)
	default:
		return fmt.Sprintf("%.3f", value)
	}
}
