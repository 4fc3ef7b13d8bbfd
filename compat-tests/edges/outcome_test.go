package edges

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// Each broken limit is one fault, and nothing else is.
func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(*Outcome, *probeResults)
		fault  string
	}{
		"nothing":          {func(*Outcome, *probeResults) {}, ""},
		"an end":           {func(o *Outcome, _ *probeResults) { o.Alive = false }, "the process exited"},
		"a peak":           {func(o *Outcome, _ *probeResults) { o.Peak = budget + allowance + 1 }, "317 MiB resident"},
		"a rest":           {func(o *Outcome, _ *probeResults) { o.After = o.Before + allowance + 1 }, "61 MiB stay"},
		"slow reads":       {func(_ *Outcome, b *probeResults) { b.Serializable.All[0] *= 100 }, "serializable reads took 200 ms"},
		"slow rounds":      {func(_ *Outcome, b *probeResults) { b.Linearizable.All[0] *= 100 }, "linearizable reads took 200 ms"},
		"no reads":         {func(_ *Outcome, b *probeResults) { b.Serializable.All = nil }, "no serializable reads were answered"},
		"a read refused":   {func(_ *Outcome, b *probeResults) { b.Linearizable.add(0, errors.New("no")) }, "linearizable reads failed: no ×1"},
		"a put given up":   {func(_ *Outcome, b *probeResults) { b.Puts.add(0, context.DeadlineExceeded) }, "puts failed: time is up ×1"},
		"a probe shut out": {func(_ *Outcome, b *probeResults) { b.Health.add(0, errors.New("no")) }, "probes failed: no ×1"},
	} {
		o, b := &Outcome{Alive: true, Before: 30 << 20, Peak: budget, After: 60 << 20}, &probeResults{}
		for _, one := range []*figures{&b.Serializable, &b.Linearizable, &b.Puts, &b.Health} {
			one.add(2*time.Millisecond, nil)
		}
		c.damage(o, b)
		o.judge(b)
		var expected []string
		if c.fault != "" {
			expected = []string{c.fault}
		}
		if !slices.Equal(o.Faults, expected) {
			t.Errorf("%s: found %q, expected %q", name, o.Faults, expected)
		}
	}
}

func TestComparison(t *testing.T) {
	etched := &Outcome{answers: map[string]int{"a: OK": 1, "b: OK": 1}}
	etcd := &Outcome{answers: map[string]int{"a: OK": 1, "b: OK": 1}}
	if compareAnswers(etched, etcd); len(etched.Faults) != 0 {
		t.Errorf("equal answers differ: %v", etched.Faults)
	}
	etcd.answers = map[string]int{"a: OK": 1, "b: Internal": 1}
	if compareAnswers(etched, etcd); len(etched.Faults) != 1 || !strings.HasSuffix(etched.Seen, ": b: OK") {
		t.Errorf("answers that differ: %v, %s", etched.Faults, etched.Seen)
	}
}

// A compaction is judged beside etcd's, and alone where etcd's did not end.
func TestCompactionLimit(t *testing.T) {
	const second = time.Second
	for _, c := range []struct {
		etched, etcd time.Duration
		broken       bool
	}{
		{0, 8 * second, false}, {15 * second, 8 * second, false}, {17 * second, 8 * second, true},
		{19 * second, 0, false}, {21 * second, 0, true}, {21 * second, 15 * second, true},
		{2 * second, second / 10, false}, {3 * second, second / 10, true},
	} {
		etched := &Outcome{compaction: c.etched}
		compareCompactions(etched, &Outcome{compaction: c.etcd})
		if broken := len(etched.Faults) > 0; broken != c.broken {
			t.Errorf("%v beside %v: %v", c.etched, c.etcd, etched.Faults)
		}
	}
}
