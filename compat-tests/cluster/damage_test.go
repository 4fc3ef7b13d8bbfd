package cluster

import (
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"etched.dev/compat-tests/crash"
)

// damage is written into recorded evidence; Judge must call it by one of the kinds.
type damage struct {
	name  string
	finds []crash.Kind
	// write answers false where the evidence has no place for this damage.
	write func(*Evidence) bool
}

// damages are tried one by one. The first breaks nothing: it shows that the
// others are found by what they break.
var damages = []damage{
	{"none", nil, func(*Evidence) bool { return true }},
	{"an acknowledged write that nobody has", []crash.Kind{crash.LostWrite}, func(e *Evidence) bool {
		o := pick(e, acknowledged(Put))
		lost := *o
		lost.Value, lost.Key = "t-lost", "r/lost"
		lost.Revision = e.Head + 1
		e.Operations = append(e.Operations, &lost)
		return true
	}},
	{"the last writes are gone", []crash.Kind{crash.LostWrite}, func(e *Evidence) bool {
		e.Events = e.Events[:len(e.Events)-3]
		for _, view := range e.Members {
			view.Events = e.Events
		}
		return true
	}},
	{"another write took a revision that was answered", []crash.Kind{crash.LostWrite}, func(e *Evidence) bool {
		o := pick(e, acknowledged(Put))
		for _, events := range allEvents(e) {
			events[eventOf(events, o.Revision)].Kv.Value = []byte("t-other xx")
		}
		return true
	}},
	{"a write was made twice", []crash.Kind{crash.Doubled}, func(e *Evidence) bool {
		puts := puts(e)
		for _, events := range allEvents(e) {
			events[puts[len(puts)-2]].Kv.Value = events[puts[3]].Kv.Value
		}
		return true
	}},
	{"a refused write was made", []crash.Kind{crash.Phantom}, func(e *Evidence) bool {
		o := pick(e, acknowledged(Put))
		o.Outcome = crash.Refused
		return true
	}},
	{"a revision that nobody asked for", []crash.Kind{crash.Phantom}, func(e *Evidence) bool {
		o := pick(e, acknowledged(Put))
		e.Operations = slices.DeleteFunc(e.Operations, func(other *Operation) bool { return other == o })
		return true
	}},
	{"a revision that nobody asked for, where others may write", nil, func(e *Evidence) bool {
		o := pick(e, ofProbe)
		e.Operations, e.Beside = slices.DeleteFunc(e.Operations, func(other *Operation) bool { return other == o }), probeSpace
		return o != nil
	}},
	{"a deletion that nobody asked for", []crash.Kind{crash.Phantom}, func(e *Evidence) bool {
		o := pick(e, func(o *Operation) bool { return acknowledged(Delete)(o) && o.Applied && !openDeletion(e, o.Key) })
		if o == nil {
			return false
		}
		e.Operations = slices.DeleteFunc(e.Operations, func(other *Operation) bool { return other == o })
		return true
	}},
	{"a stale read that shows its revision", []crash.Kind{crash.StaleRead}, func(e *Evidence) bool {
		o := pick(e, acknowledged(Get))
		o.Revision /= 2
		return true
	}},
	// Only the order of the operations on its key can tell.
	{"a stale read that hides its revision", []crash.Kind{NotLinearizable}, func(e *Evidence) bool {
		before := map[string]string{}
		for _, o := range byRevision(e) {
			was, known := before[o.Key]
			if o.Action == Get && known && was != o.Seen && longAfterWrite(e, o) {
				o.Seen = was
				return true
			}
			if o.Effective() && o.Action != Get && strings.HasPrefix(o.Key, hotSpace) {
				before[o.Key] = previousValue(e, o)
			}
		}
		return false
	}},
	{"a read that found nothing", []crash.Kind{NotLinearizable}, func(e *Evidence) bool {
		for _, o := range byRevision(e) {
			if o.Action == Get && o.Seen != "" && longAfterWrite(e, o) {
				o.Seen = ""
				return true
			}
		}
		return false
	}},
	{"two comparisons with one value both succeed", []crash.Kind{NotLinearizable}, func(e *Evidence) bool {
		o := pick(e, func(o *Operation) bool { return acknowledged(CompareAndSet)(o) && !o.Applied })
		o.Applied, o.Seen = true, o.Expect
		return true
	}},
	{"a deletion says that it found something", []crash.Kind{NotLinearizable}, func(e *Evidence) bool {
		o := pick(e, func(o *Operation) bool { return acknowledged(Delete)(o) && !o.Applied })
		if o == nil {
			return false
		}
		o.Applied = true
		return true
	}},
	{"a write is answered a revision of before", []crash.Kind{crash.RevisionBack}, func(e *Evidence) bool {
		o := pick(e, acknowledged(Put))
		o.Revision /= 2
		return true
	}},
	{"a watch without an event", []crash.Kind{crash.WatchBroken}, watched(func(events []*mvccpb.Event, at int) []*mvccpb.Event {
		return slices.Delete(events, at, at+1)
	})},
	{"a watch without its last event", []crash.Kind{crash.WatchBroken}, watched(func(events []*mvccpb.Event, _ int) []*mvccpb.Event {
		return events[:len(events)-1]
	})},
	{"a watch with an event twice", []crash.Kind{crash.WatchBroken}, watched(func(events []*mvccpb.Event, at int) []*mvccpb.Event {
		return slices.Insert(events, at, events[at])
	})},
	{"a watch with an event again later", []crash.Kind{crash.WatchBroken}, watched(func(events []*mvccpb.Event, at int) []*mvccpb.Event {
		return append(events, events[at])
	})},
	{"a watch with events out of order", []crash.Kind{crash.WatchBroken}, watched(func(events []*mvccpb.Event, at int) []*mvccpb.Event {
		events[at], events[at+1] = events[at+1], events[at]
		return events
	})},
	{"a watch with another value", []crash.Kind{crash.WatchBroken}, watched(func(events []*mvccpb.Event, at int) []*mvccpb.Event {
		events[at].Kv.Value = append(events[at].Kv.Value, 'y')
		return events
	})},
	{"a watch with an event of its own", []crash.Kind{crash.WatchBroken}, watched(func(events []*mvccpb.Event, at int) []*mvccpb.Event {
		event := proto.Clone(events[at]).(*mvccpb.Event)
		event.Kv.Key = []byte("r/own")
		return slices.Insert(events, at+1, event)
	})},
	{"a member has another history", []crash.Kind{MembersDiffer}, func(e *Evidence) bool {
		view := e.Members[1]
		view.Events = slices.Delete(view.Events, 5, 6)
		return true
	}},
	{"a member lacks a key", []crash.Kind{MembersDiffer}, func(e *Evidence) bool {
		view := e.Members[2]
		view.KVs = slices.Delete(view.KVs, 1, 2)
		return true
	}},
	{"a member has another hash", []crash.Kind{crash.WrongHash}, func(e *Evidence) bool {
		e.Members[2].Hash++
		return true
	}},
	{"a lease ends early", []crash.Kind{crash.LeaseBroken}, func(e *Evidence) bool {
		for _, lease := range e.Leases {
			if lease.Ended > 0 {
				lease.Ended = lease.Alive - time.Millisecond
				return true
			}
		}
		return false
	}},
}

// TestDamagesAreFound records one run with a bad moment in it and writes each
// damage into a copy of what it left behind. The run is etcd's: what is tested
// here is what judges.
func TestDamagesAreFound(t *testing.T) {
	r := Start(t, Options{Etcd: true})
	leader := r.Leader()
	fault := r.Now()
	r.Must(leader.Kill())
	// What is awaited may be a write of another client's; one of a probe's has to be there as well.
	p := r.Probe(r.Others(leader)...)
	r.AwaitService(fault, r.Others(leader)...)
	if !crash.Eventually(20*time.Second, func() bool { return slices.ContainsFunc(r.log.operationsSoFar(), ofProbe) }) {
		t.Fatal("no write of a probe was answered")
	}
	p.Done()
	recorded, err := r.Collect()
	r.Must(err)
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			evidence := copyOf(recorded)
			if !d.write(evidence) {
				t.Fatal("the evidence has no place for this damage")
			}
			report := Judge(evidence)
			if len(d.finds) == 0 && !report.Empty() {
				t.Fatalf("found without damage:\n%s", report.String())
			}
			for _, kind := range d.finds {
				if !report.Has(kind) {
					t.Errorf("%q was not found, only:\n%s", kind, report.String())
				}
			}
		})
	}
}

// Where the answers to requests are not known, each may have happened or not: but
// not in part, and not twice.
func TestOpenFates(t *testing.T) {
	at := func(call, answered int) (time.Duration, time.Duration) {
		return time.Duration(call), time.Duration(answered)
	}
	operation := func(action Action, value, expect, seen string, outcome crash.Outcome, call, answered int) *Operation {
		o := &Operation{Action: action, Key: "k", Value: value, Expect: expect, Seen: seen, Outcome: outcome, Applied: outcome == crash.Acknowledged}
		o.Call, o.Return = at(call, answered)
		return o
	}
	const open, known = crash.Unknown, crash.Acknowledged
	for name, c := range map[string]struct {
		fine       bool
		operations []*Operation
	}{
		"took effect":         {true, []*Operation{operation(Put, "a", "", "", open, 1, 2), operation(Get, "", "", "a", known, 3, 4)}},
		"took effect later":   {true, []*Operation{operation(Put, "a", "", "", open, 1, 2), operation(Get, "", "", "", known, 3, 4), operation(Get, "", "", "a", known, 5, 6)}},
		"never":               {true, []*Operation{operation(Put, "a", "", "", open, 1, 2), operation(Get, "", "", "", known, 3, 4)}},
		"came and went":       {false, []*Operation{operation(Put, "a", "", "", open, 1, 2), operation(Get, "", "", "a", known, 3, 4), operation(Get, "", "", "", known, 5, 6)}},
		"not sent yet":        {false, []*Operation{operation(Get, "", "", "a", known, 1, 2), operation(Put, "a", "", "", open, 3, 4)}},
		"twice":               {false, []*Operation{operation(Put, "a", "", "", open, 1, 2), operation(Get, "", "", "a", known, 3, 4), operation(Put, "b", "", "", known, 5, 6), operation(Get, "", "", "b", known, 7, 8), operation(Get, "", "", "a", known, 9, 10)}},
		"a swap that matched": {true, []*Operation{operation(Put, "a", "", "", known, 1, 2), operation(CompareAndSet, "b", "a", "", open, 3, 4), operation(Get, "", "", "b", known, 5, 6)}},
		"a swap that did not": {false, []*Operation{operation(Put, "a", "", "", known, 1, 2), operation(CompareAndSet, "b", "c", "", open, 3, 4), operation(Get, "", "", "b", known, 5, 6)}},
		"a deletion":          {true, []*Operation{operation(Put, "a", "", "", known, 1, 2), operation(Delete, "", "", "", open, 3, 4), operation(Get, "", "", "", known, 5, 6)}},
	} {
		faults := linearizable(c.operations, crash.NewHistory())
		if (len(faults) == 0) != c.fine {
			t.Errorf("%s: %v", name, faults)
		}
	}
}

func TestLongestGap(t *testing.T) {
	answered := func(at ...time.Duration) (all []*Operation) {
		for _, one := range at {
			all = append(all, &Operation{Action: Put, Outcome: crash.Acknowledged, Return: one})
		}
		return append(all, &Operation{Action: Put, Outcome: crash.Unknown, Return: 15})
	}
	for _, c := range []struct {
		operations []*Operation
		gap, at    time.Duration
	}{
		{answered(), 20, 10},
		{answered(12, 27, 28), 15, 12},
		{answered(9, 11, 13, 31), 17, 13},
	} {
		if gap, at := longestGap(c.operations, 10, 30, Writes); gap != c.gap || at != c.at {
			t.Errorf("%v at %v, expected %v at %v", gap, at, c.gap, c.at)
		}
	}
}

func acknowledged(action Action) func(*Operation) bool {
	return func(o *Operation) bool {
		return o.Action == action && o.Outcome == crash.Acknowledged && strings.HasPrefix(o.Key, hotSpace)
	}
}

// openDeletion says that a deletion of the key has no answer: it may have been made,
// and stands for one deletion that nobody else asked for.
func openDeletion(e *Evidence, key string) bool {
	return slices.ContainsFunc(e.Operations, func(o *Operation) bool {
		return o.Action == Delete && o.Outcome == crash.Unknown && o.Key == key
	})
}

// ofProbe is for writes of probes that were acknowledged.
func ofProbe(o *Operation) bool {
	return o.Action == Put && o.Outcome == crash.Acknowledged && strings.HasPrefix(o.Key, probeSpace)
}

// pick answers an operation from the middle of the run, nil where there is none.
func pick(e *Evidence, fits func(*Operation) bool) *Operation {
	var all []*Operation
	for _, o := range e.Operations {
		if fits(o) {
			all = append(all, o)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[len(all)/2]
}

func byRevision(e *Evidence) []*Operation {
	var all []*Operation
	for _, o := range e.Operations {
		if o.Outcome == crash.Acknowledged {
			all = append(all, o)
		}
	}
	slices.SortStableFunc(all, func(a, b *Operation) int { return int(a.Revision - b.Revision) })
	return all
}

// longAfterWrite says that nobody wrote the key while the read was under way, and
// that no fate of an earlier write to it is open.
func longAfterWrite(e *Evidence, read *Operation) bool {
	for _, o := range e.Operations {
		if o.Key == read.Key && o.Writes() && o.Call < read.Return && (o.Return > read.Call || o.Outcome == crash.Unknown) {
			return false
		}
	}
	return true
}

func previousValue(e *Evidence, o *Operation) string {
	event := e.Events[eventOf(e.Events, o.Revision)]
	return crash.TokenOf(event.PrevKv.GetValue())
}

func eventOf(events []*mvccpb.Event, revision int64) int {
	return slices.IndexFunc(events, func(event *mvccpb.Event) bool { return event.Kv.ModRevision == revision })
}

// allEvents are the lists of events that members tell, without watches.
func allEvents(e *Evidence) [][]*mvccpb.Event {
	lists := [][]*mvccpb.Event{e.Events}
	for _, view := range e.Members {
		lists = append(lists, view.Events)
	}
	return lists
}

func puts(e *Evidence) (at []int) {
	for i, event := range e.Events {
		if event.Type == mvccpb.Event_PUT && strings.HasPrefix(string(event.Kv.Key), hotSpace) {
			at = append(at, i)
		}
	}
	return at
}

func watched(change func(events []*mvccpb.Event, at int) []*mvccpb.Event) func(*Evidence) bool {
	return func(e *Evidence) bool {
		watch := e.Watches[len(e.Watches)/2]
		watch.Events = change(watch.Events, len(watch.Events)/2)
		return true
	}
}

func copyOf(e *Evidence) *Evidence {
	copied := &Evidence{Head: e.Head, Events: copyEvents(e.Events)}
	for _, o := range e.Operations {
		one := *o
		copied.Operations = append(copied.Operations, &one)
	}
	for _, lease := range e.Leases {
		one := *lease
		copied.Leases = append(copied.Leases, &one)
	}
	for _, watch := range e.Watches {
		one := *watch
		one.Events = copyEvents(watch.Events)
		copied.Watches = append(copied.Watches, &one)
	}
	for _, view := range e.Members {
		one := *view
		one.Events, one.KVs = copyEvents(view.Events), slices.Clone(view.KVs)
		copied.Members = append(copied.Members, &one)
	}
	return copied
}

func copyEvents(events []*mvccpb.Event) []*mvccpb.Event {
	copied := make([]*mvccpb.Event, len(events))
	for i, event := range events {
		copied[i] = proto.Clone(event).(*mvccpb.Event)
	}
	return copied
}
