// Command bench measures etched and etcd v3.7.3 one after the other, in turns, on
// one disk, and prints their medians and ratios as a markdown table; the figures
// of every repetition go to bench.json, the ratios to bench.svg.
//
// Absolute figures belong to the machine they were taken on; ratios travel. The
// load runs beside the server on the same cores, so its own processor time is in
// the JSON file.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"etched.dev/compat-tests/harness"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	out, rows string
	reps      int
	limit     time.Duration
	quick     bool
	members   int
	// quiet is how much longer rows may wait for a quiet machine.
	quiet    *time.Duration
	settings settings
}

func parse() options {
	var o options
	flag.StringVar(&o.out, "out", "bench-results", "directory for bench.json and bench.svg, and for the data while it runs: its disk is the one measured")
	flag.StringVar(&o.rows, "rows", "", "comma-separated rows to measure; empty for all")
	flag.IntVar(&o.reps, "reps", 3, "repetitions, each with both servers")
	flag.DurationVar(&o.limit, "limit", 30*time.Minute, "time after which the run is given up")
	flag.BoolVar(&o.quick, "quick", false, "short windows and 100,000 keys where a full run has 1,000,000: for a first look, not for comparing")
	flag.IntVar(&o.members, "members", 1, "members of each cluster; more than one have rows of their own")
	o.quiet = flag.Duration("quiet", 3*time.Minute, "how long rows may wait, all together, until nothing else uses the processors")
	connections := flag.Int("connections", 100, "the most connections that the clients of one load share")
	flag.Parse()
	o.settings = settings{
		connections: max(1, *connections),
		warmUp:      time.Second, window: 6 * time.Second,
		keys: 100_000, rangeKeys: 10_000, million: 1_000_000,
		failovers: 20, joinBytes: 1 << 30,
	}
	if o.quick {
		o.settings.warmUp, o.settings.window = 500*time.Millisecond, 2*time.Second
		o.settings.million = 100_000
		o.settings.failovers, o.settings.joinBytes = 5, 64<<20
	}
	return o
}

func run() error {
	o := parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("%q is not a flag", flag.Arg(0))
	}
	chosen, err := choose(o.rows, o.members)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	data, err := os.MkdirTemp(o.out, "data-")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.limit)
	defer cancel()
	removeOnSignal(data)
	results := newResults(o)
	failed := results.collect(ctx, o, chosen, data)
	if err := os.RemoveAll(data); err != nil {
		failed = errors.Join(failed, err)
	}
	if failed != nil {
		return failed
	}
	comparisons := results.compare()
	if err := results.write(filepath.Join(o.out, "bench.json"), comparisons); err != nil {
		return err
	}
	plot := filepath.Join(o.out, "bench.svg")
	if err := os.WriteFile(plot, []byte(draw(comparisons, results.caption())), 0o644); err != nil {
		return err
	}
	fmt.Println(table(comparisons, results.caption()))
	progress("figures in %s, plot in %s", filepath.Join(o.out, "bench.json"), plot)
	return nil
}

// removeOnSignal keeps an interrupted run from leaving gigabytes behind. The
// servers end with this process.
func removeOnSignal(data string) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		progress("ended by signal: %v", <-signals)
		if err := os.RemoveAll(data); err != nil {
			progress("%v", err)
		}
		os.Exit(1)
	}()
}

// collect runs all repetitions, each server first in every second one.
func (r *results) collect(ctx context.Context, o options, chosen []row, data string) error {
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		binary, err := harness.Binary(kind)
		if err != nil {
			return err
		}
		r.Binaries[kind.String()] = version(binary)
	}
	for repetition := range o.reps {
		order := []harness.Kind{harness.Etcd, harness.Etched}
		if repetition%2 == 1 {
			order[0], order[1] = order[1], order[0]
		}
		for _, kind := range order {
			began := time.Now()
			progress("repetition %d of %d, %s", repetition+1, o.reps, kind)
			figures, err := measureAll(ctx, kind, o, chosen, data)
			if err != nil {
				return fmt.Errorf("%s, repetition %d: %w", kind, repetition+1, err)
			}
			r.add(kind, figures)
			progress("repetition %d of %d, %s: took %v", repetition+1, o.reps, kind, time.Since(began).Round(time.Second))
		}
		// A run that is ended early leaves the repetitions that it has finished.
		if err := r.write(filepath.Join(o.out, "bench.json"), r.compare()); err != nil {
			return err
		}
	}
	return nil
}

// measureAll measures every chosen row on one kind of server.
func measureAll(ctx context.Context, kind harness.Kind, o options, chosen []row, data string) ([]figure, error) {
	var all []figure
	var shared *cluster
	defer func() {
		if shared != nil {
			_ = shared.remove()
		}
	}()
	for _, row := range chosen {
		if row.large {
			continue
		}
		if shared == nil {
			var err error
			if shared, err = startCluster(kind, o.members, data); err != nil {
				return nil, err
			}
			if err := shared.load(ctx, o.settings.keys); err != nil {
				return nil, err
			}
			if err := shared.settle(ctx); err != nil {
				return nil, err
			}
		}
		figures, err := measureRow(ctx, row, shared, o)
		if err != nil {
			return nil, err
		}
		all = append(all, figures...)
	}
	if shared != nil {
		if err := shared.remove(); err != nil {
			return nil, err
		}
		shared = nil
	}
	for _, row := range chosen {
		if !row.large {
			continue
		}
		figures, err := measureLarge(ctx, row, kind, o, data)
		if err != nil {
			return nil, err
		}
		all = append(all, figures...)
	}
	return all, nil
}

func measureLarge(ctx context.Context, row row, kind harness.Kind, o options, data string) ([]figure, error) {
	target, err := startCluster(kind, o.members, data)
	if err != nil {
		return nil, err
	}
	figures, err := measureRow(ctx, row, target, o)
	return figures, errors.Join(err, target.remove())
}

func measureRow(ctx context.Context, row row, target *cluster, o options) ([]figure, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("given up before row %s: %w", row.id, err)
	}
	const longest = 20 * time.Second
	*o.quiet -= target.awaitQuiet(min(longest, *o.quiet))
	figures, err := row.measure(ctx, target, o.settings)
	if err != nil {
		return nil, fmt.Errorf("row %s: %w\n%s", row.id, err, target.members[0].LogTail(5))
	}
	var parts []string
	for i := range figures {
		figures[i].Row = row.id
		if !figures[i].Aside {
			parts = append(parts, fmt.Sprintf("%s %s", short(figures[i].Value), figures[i].Unit))
		} else if figures[i].Name == otherCPU && figures[i].Value > disturbing {
			parts = append(parts, fmt.Sprintf("DISTURBED: others used %.1f cores", figures[i].Value))
		}
	}
	progress("  %-7s %-11s %s", target.kind, row.id, strings.Join(parts, ", "))
	// The next row is not to pay for what this one left behind.
	time.Sleep(500 * time.Millisecond)
	runtime.GC()
	return figures, nil
}

var started = time.Now()

func progress(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "[%4.0fs] %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, arguments...))
}

// version is the first line that the binary tells of itself.
func version(binary string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return "unknown: " + err.Error()
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return first
}
