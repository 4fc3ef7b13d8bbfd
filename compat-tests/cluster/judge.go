package cluster

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"etched.dev/compat-tests/crash"
)

// What only a cluster can get wrong; the other kinds of damage are crash's.
const (
	NotLinearizable crash.Kind = "operations on a key are not linearizable"
	MembersDiffer   crash.Kind = "members differ"
	SlowToServe     crash.Kind = "the cluster took too long to serve again"
	ServedAlone     crash.Kind = "a member without a quorum served"
	WrongCourse     crash.Kind = "the test could not take its course"
)

// Evidence is all that a run left behind.
type Evidence struct {
	Operations []*Operation
	Leases     []*Lease
	Watches    []*Watch
	// Events are the history as one member tells it, with previous values, in order
	// of their revisions up to Head.
	Events []*mvccpb.Event
	Head   int64
	// Beside begins the keys whose writers kept no record; "" where there are none.
	Beside string
	// Members are the other members' views, and the same one's again.
	Members []*View
}

// View is one member's state at Evidence.Head.
type View struct {
	Name   string
	Events []*mvccpb.Event
	KVs    []*mvccpb.KeyValue
	Hash   uint32
}

// Judge answers everything in the evidence that must not be.
func Judge(e *Evidence) crash.Report {
	j := &judge{evidence: e, history: crash.NewHistory(), byToken: map[string]*Operation{}, claims: map[int64]*Operation{}}
	j.build()
	j.revisions()
	j.writes()
	j.origins()
	for _, fault := range linearizable(e.Operations, j.history) {
		j.report.Add(NotLinearizable, "%s", fault)
	}
	for _, watch := range e.Watches {
		for _, fault := range checkWatch(watch, j.history) {
			j.report.Add(crash.WatchBroken, "%s: %s", watch.Name, fault)
		}
	}
	j.leases()
	for _, view := range e.Members {
		j.member(view)
	}
	return j.report
}

type judge struct {
	evidence *Evidence
	history  *crash.History
	byToken  map[string]*Operation
	claims   map[int64]*Operation // the acknowledged write that was answered a revision
	report   crash.Report
}

// build makes the history of the events; what contradicts itself in it is damage.
func (j *judge) build() {
	for rest := j.evidence.Events; len(rest) > 0; {
		revision, n := rest[0].Kv.ModRevision, 1
		for n < len(rest) && rest[n].Kv.ModRevision == revision {
			n++
		}
		for _, fault := range j.history.Append(rest[:n], time.Time{}) {
			j.report.Add(crash.LostWrite, "the history: %s", fault)
		}
		rest = rest[n:]
	}
	if j.history.Head() != j.evidence.Head {
		j.report.Add(crash.LostWrite, "the history ends at revision %d, the last write was answered %d", j.history.Head(), j.evidence.Head)
	}
	for _, o := range j.evidence.Operations {
		if o.Value != "" {
			j.byToken[o.Value] = o
		}
	}
}

// revisions checks that nobody learned a revision below one that somebody had
// learned before the request was sent.
func (j *judge) revisions() {
	var answered []*Operation
	for _, o := range j.evidence.Operations {
		if o.Outcome == crash.Acknowledged {
			answered = append(answered, o)
		}
	}
	byCall := slices.Clone(answered)
	slices.SortFunc(byCall, func(a, b *Operation) int { return int(a.Call - b.Call) })
	slices.SortFunc(answered, func(a, b *Operation) int { return int(a.Return - b.Return) })
	var highest *Operation
	for _, o := range byCall {
		for len(answered) > 0 && answered[0].Return < o.Call {
			if highest == nil || answered[0].Revision > highest.Revision {
				highest = answered[0]
			}
			answered = answered[1:]
		}
		if highest == nil || o.Revision > highest.Revision || (o.Revision == highest.Revision && !o.Effective()) {
			continue
		}
		kind := crash.RevisionBack
		if !o.Writes() {
			kind = crash.StaleRead
		}
		j.report.Add(kind, "%s\n    began after the answer to %s", o, highest)
	}
}

// writes checks that each acknowledged write made the revision it was answered, and
// nothing else, and that a refused one made none.
func (j *judge) writes() {
	made := map[string]int64{}
	for _, event := range j.evidence.Events {
		if event.Type != mvccpb.Event_PUT || j.unrecorded(event) {
			continue
		}
		value := crash.TokenOf(event.Kv.Value)
		if other, twice := made[value]; twice {
			j.report.Add(crash.Doubled, "%s made revision %d and revision %d", value, other, event.Kv.ModRevision)
		}
		made[value] = event.Kv.ModRevision
	}
	for _, o := range j.evidence.Operations {
		if !o.Writes() {
			continue
		}
		where, found := made[o.Value]
		switch {
		case o.Outcome == crash.Refused && found && o.Value != "":
			j.report.Add(crash.Phantom, "%s, but made revision %d", o, where)
		case o.Outcome != crash.Acknowledged:
		case !o.Effective():
			if found && o.Value != "" {
				j.report.Add(crash.Phantom, "%s, but made revision %d", o, where)
			}
		default:
			j.acknowledged(o)
		}
	}
}

func (j *judge) acknowledged(o *Operation) {
	if other := j.claims[o.Revision]; other != nil {
		j.report.Add(crash.LostWrite, "revision %d was answered to two: %s; %s", o.Revision, other, o)
	}
	j.claims[o.Revision] = o
	events := j.history.Events(o.Revision)
	if len(events) != 1 || string(events[0].Kv.Key) != o.Key || crash.TokenOf(events[0].Kv.Value) != o.Value ||
		(events[0].Type == mvccpb.Event_DELETE) != (o.Action == Delete) || events[0].Kv.Lease != o.Lease {
		j.report.Add(crash.LostWrite, "%s; the history has there: %s", o, describe(events))
	}
}

func describe(events []*mvccpb.Event) string {
	if len(events) == 0 {
		return "nothing"
	}
	var texts []string
	for _, event := range events {
		texts = append(texts, crash.DescribeEvent(event))
	}
	return strings.Join(texts, "; ")
}

// origins checks that each revision that nobody learned was made by somebody
// whose request's fate was open, or by a lease's end.
func (j *judge) origins() {
	open := map[string]int{} // deletions without an answer, by key
	for _, o := range j.evidence.Operations {
		if o.Action == Delete && o.Outcome == crash.Unknown {
			open[o.Key]++
		}
	}
	leases := map[string]bool{}
	for _, lease := range j.evidence.Leases {
		leases[lease.Key] = true
	}
	for revision := int64(firstRevision + 1); revision <= j.history.Head(); revision++ {
		if j.claims[revision] != nil {
			continue
		}
		for _, event := range j.history.Events(revision) {
			key := string(event.Kv.Key)
			if j.unrecorded(event) {
				continue
			}
			if event.Type == mvccpb.Event_DELETE {
				if !leases[key] {
					if open[key]--; open[key] < 0 {
						j.report.Add(crash.Phantom, "%s", crash.DescribeEvent(event))
					}
				}
				continue
			}
			o := j.byToken[crash.TokenOf(event.Kv.Value)]
			if o == nil || o.Key != key || o.Outcome == crash.Refused {
				j.report.Add(crash.Phantom, "%s", crash.DescribeEvent(event))
			}
		}
	}
}

// unrecorded says that nobody is known to have asked for this, nor has to be.
func (j *judge) unrecorded(event *mvccpb.Event) bool {
	return j.evidence.Beside != "" && strings.HasPrefix(string(event.Kv.Key), j.evidence.Beside)
}

// leases checks that none ended before its time.
func (j *judge) leases() {
	for _, lease := range j.evidence.Leases {
		if lease.Ended > 0 && lease.Ended < lease.Alive {
			j.report.Add(crash.LeaseBroken, "lease %x ended at %v, its time was not up before %v", lease.ID, round(lease.Ended), round(lease.Alive))
		}
	}
}

// member holds one member's view against the history.
func (j *judge) member(view *View) {
	for i := range max(len(view.Events), len(j.evidence.Events)) {
		if i >= len(view.Events) || i >= len(j.evidence.Events) || !proto.Equal(view.Events[i], j.evidence.Events[i]) {
			j.report.Add(MembersDiffer, "%s: event %d of %d is %s, another member has %s of %d", view.Name, i+1, len(view.Events),
				eventAt(view.Events, i), eventAt(j.evidence.Events, i), len(j.evidence.Events))
			break
		}
	}
	want := j.history.Snapshot(crash.Everything, j.evidence.Head)
	if fault := crash.DifferentKVs(view.KVs, want); fault != "" {
		j.report.Add(MembersDiffer, "%s: keys at revision %d: %s", view.Name, j.evidence.Head, fault)
	}
	if hash := j.history.HashKV(-1, j.evidence.Head); hash != view.Hash {
		j.report.Add(crash.WrongHash, "%s: HashKV at revision %d is %08x, the history's %08x", view.Name, j.evidence.Head, view.Hash, hash)
	}
}

func eventAt(events []*mvccpb.Event, i int) string {
	if i >= len(events) {
		return "nothing"
	}
	return crash.DescribeEvent(events[i])
}

// sameEvent compares without previous values.
func sameEvent(a, b *mvccpb.Event) bool {
	return a.Type == b.Type && bytes.Equal(a.Kv.Key, b.Kv.Key) && proto.Equal(a.Kv, b.Kv)
}

// Summary tells in a line how much there is.
func (e *Evidence) Summary() string {
	var counts [3]int
	reads := 0
	for _, o := range e.Operations {
		if o.Writes() {
			counts[o.Outcome]++
		} else if o.Outcome == crash.Acknowledged {
			reads++
		}
	}
	return fmt.Sprintf("%d revisions, writes: %d acknowledged, %d open, %d refused; %d reads, %d leases, %d watches",
		e.Head, counts[crash.Acknowledged], counts[crash.Unknown], counts[crash.Refused], reads, len(e.Leases), len(e.Watches))
}
