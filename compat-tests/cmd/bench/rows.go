package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// better says which way a figure should go.
type better bool

const (
	higher better = true
	lower  better = false
)

// figure is one measured number; its ID is the same in every repetition.
type figure struct {
	Row    string  `json:"row"`
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Better better  `json:"higher_is_better"`
	Value  float64 `json:"value"`
	// Aside figures are kept in the JSON file and left out of table and plot.
	Aside bool `json:"aside"`
}

// settings are sizes and times of a run.
type settings struct {
	warmUp, window time.Duration
	// keys are there for the rows on one key at a time; million is the number of
	// keys of the row on large stores.
	keys, rangeKeys, million int
	// failovers is how often a leader is killed, joinBytes the size of the values
	// that a new member has to get.
	failovers, joinBytes int
	// connections is the most that the clients of a load share.
	connections int
}

// row is one thing measured; it gives one or more figures.
type row struct {
	id, title string
	// single rows are for one member, many for more than one.
	single, many bool
	// large rows run on a fresh server of their own; the others share one that
	// holds settings.keys keys.
	large   bool
	measure func(ctx context.Context, target *cluster, s settings) ([]figure, error)
}

var rows = []row{
	only(single, loopRow("put-1", "put, 1 client", put, 1)),
	only(many, askedRow("put-1-leader", "put, 1 client of the leader", put, 1, leading)),
	only(many, askedRow("put-1-follower", "put, 1 client of a follower", put, 1, following)),
	loopRow("put-100", "put, 100 clients", put, 100),
	loopRow("put-1000", "put, 1,000 clients", put, 1000),
	only(single, loopRow("range-1", "linearizable range of 1 key, 1 client", get, 1)),
	only(single, loopRow("range-100", "linearizable range of 1 key, 100 clients", get, 100)),
	only(many, askedRow("range-leader", "linearizable range of 1 key, 100 clients of the leader", get, 100, leading)),
	only(many, askedRow("range-follower", "linearizable range of 1 key, 100 clients of a follower", get, 100, following)),
	only(single, loopRow("range-1000", "linearizable range of 1 key, 1,000 clients", get, 1000)),
	{id: "range-10k", title: "linearizable range of 10,000 keys, 1 client", single: true, measure: measureLongRange},
	{id: "watch-1000", title: "1,000 watches of one key, 1 client puts it", single: true, measure: measureWatches},
	{id: "million", title: "1,000,000 keys", large: true, single: true, measure: measureLargeStore},
	{id: "failover", title: "the leader is killed", large: true, many: true, measure: measureFailover},
	{id: "join", title: "a new member", large: true, many: true, measure: measureJoin},
}

// single and many mark a row for one member or for more.
func single(r *row) { r.single = true }
func many(r *row)   { r.many = true }

func only(mark func(*row), r row) row {
	mark(&r)
	return r
}

// describe titles a row; some are smaller in a quick run.
func (r row) describe(s settings) string {
	switch r.id {
	case "million":
		return fmt.Sprintf("%s keys", thousands(s.million))
	case "failover":
		return fmt.Sprintf("the leader is killed, %d times", s.failovers)
	case "join":
		return fmt.Sprintf("a new member, %d MB to catch up with", s.joinBytes>>20)
	default:
		return r.title
	}
}

func loopRow(id, title string, kind func(keys int) request, clients int) row {
	return row{id: id, title: title, measure: func(_ context.Context, target *cluster, s settings) ([]figure, error) {
		result, err := closedLoop(target, kind(s.keys), clients, s)
		return loopFigures("throughput", "ops/s", result), err
	}}
}

func loopFigures(name, unit string, result outcome) []figure {
	return []figure{
		{Name: name, Unit: unit, Better: higher, Value: result.perSecond()},
		{Name: "latency p50", Unit: "ms", Better: lower, Value: milliseconds(result.P50)},
		{Name: "latency p99", Unit: "ms", Better: lower, Value: milliseconds(result.P99)},
		{Name: "server CPU per operation", Unit: "µs", Better: lower, Value: result.perOperation(result.ServerCPU)},
		{Name: "client CPU per operation", Unit: "µs", Better: lower, Value: result.perOperation(result.ClientCPU), Aside: true},
		{Name: "server CPU", Unit: "cores", Better: lower, Value: result.ServerCPU.Seconds() / result.Window.Seconds(), Aside: true},
		{Name: "client CPU", Unit: "cores", Better: lower, Value: result.ClientCPU.Seconds() / result.Window.Seconds(), Aside: true},
		disturbance(result),
	}
}

const otherCPU = "other CPU"

func disturbance(result outcome) figure {
	return figure{Name: otherCPU, Unit: "cores", Better: lower, Value: result.OtherCPU.Seconds() / result.Window.Seconds(), Aside: true}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func measureLongRange(_ context.Context, target *cluster, s settings) ([]figure, error) {
	result, err := closedLoop(target, getMany(s.rangeKeys), 1, s)
	return loopFigures("throughput", "ranges/s", result), err
}

func measureWatches(_ context.Context, target *cluster, s settings) ([]figure, error) {
	result, err := watchOneKey(target, s.warmUp, s.window)
	if err != nil {
		return nil, err
	}
	perEvent := func(cpu time.Duration) float64 {
		return float64(cpu) / float64(time.Microsecond) / float64(max(1, result.events))
	}
	return []figure{
		{Name: "events delivered", Unit: "events/s", Better: higher, Value: result.eventsPerSecond},
		{Name: "put latency p50", Unit: "ms", Better: lower, Value: milliseconds(result.puts.P50)},
		{Name: "put latency p99", Unit: "ms", Better: lower, Value: milliseconds(result.puts.P99)},
		{Name: "server CPU per event", Unit: "µs", Better: lower, Value: perEvent(result.puts.ServerCPU)},
		{Name: "client CPU per event", Unit: "µs", Better: lower, Value: perEvent(result.puts.ClientCPU), Aside: true},
		{Name: "puts", Unit: "ops/s", Better: higher, Value: result.puts.perSecond(), Aside: true},
		disturbance(result.puts),
	}, nil
}

// measureLargeStore loads a store, looks at its memory, ends the server in order
// and starts it again. The files are in the page cache both times.
func measureLargeStore(ctx context.Context, target *cluster, s settings) ([]figure, error) {
	const settle, limit = 3 * time.Second, 2 * time.Minute
	began := time.Now()
	if err := target.load(ctx, s.million); err != nil {
		return nil, err
	}
	loading := time.Since(began)
	time.Sleep(settle)
	loaded, loadedAnonymous, err := target.memory()
	if err != nil {
		return nil, err
	}
	for _, member := range target.members {
		if err := member.Stop(); err != nil {
			return nil, err
		}
	}
	start, err := target.firstRead(limit)
	if err != nil {
		return nil, err
	}
	time.Sleep(settle)
	restarted, restartedAnonymous, err := target.memory()
	if err != nil {
		return nil, err
	}
	const mib = 1 << 20
	return []figure{
		{Name: "resident memory after the load", Unit: "MiB", Better: lower, Value: loaded / mib},
		{Name: "resident memory after a restart", Unit: "MiB", Better: lower, Value: restarted / mib},
		{Name: "of it not mapped files, after the load", Unit: "MiB", Better: lower, Value: loadedAnonymous / mib},
		{Name: "of it not mapped files, after a restart", Unit: "MiB", Better: lower, Value: restartedAnonymous / mib},
		{Name: "process start to first linearizable read", Unit: "ms", Better: lower, Value: milliseconds(start)},
		{Name: "load by transactions of 128 puts", Unit: "puts/s", Better: higher, Value: float64(s.million) / loading.Seconds(), Aside: true},
	}, nil
}

// choose answers the rows named in a comma-separated list, all that fit the
// number of members for an empty one.
func choose(names string, members int) ([]row, error) {
	if names == "" {
		return slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return !r.fits(members) }), nil
	}
	var chosen []row
	for name := range strings.SplitSeq(names, ",") {
		at := slices.IndexFunc(rows, func(r row) bool { return r.id == name })
		if at < 0 {
			var known []string
			for _, r := range rows {
				known = append(known, r.id)
			}
			return nil, fmt.Errorf("no row %q; there are %s", name, strings.Join(known, ", "))
		}
		if !rows[at].fits(members) {
			return nil, fmt.Errorf("row %s is not for %d members", name, members)
		}
		chosen = append(chosen, rows[at])
	}
	return chosen, nil
}

func (r row) fits(members int) bool { return !(r.single && members > 1) && !(r.many && members == 1) }

func thousands(n int) string {
	text := fmt.Sprint(n)
	for at := len(text) - 3; at > 0; at -= 3 {
		text = text[:at] + "," + text[at:]
	}
	return text
}
