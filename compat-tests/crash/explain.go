package crash

import (
	"bytes"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// explanation holds the operations of one round against the revisions that the
// history gained: each acknowledged operation must have made exactly the
// revision it learned, each revision must have come from somebody.
type explanation struct {
	history     *History
	leases      *Leases
	from, until int64 // the revisions to explain, both included
	claims      map[int64]string
	byToken     map[string]int64
	report      Report
}

// explain answers all that does not fit.
func explain(history *History, leases *Leases, operations []*Operation, from, until int64) Report {
	e := &explanation{
		history: history, leases: leases, from: from, until: until,
		claims: map[int64]string{}, byToken: map[string]int64{},
	}
	e.indexTokens()
	var openDeletions []*Operation
	for _, operation := range operations {
		switch {
		case operation.Outcome == Acknowledged:
			e.acknowledged(operation)
		case !e.unanswered(operation):
			openDeletions = append(openDeletions, operation)
		}
	}
	for revision := from; revision <= until; revision++ {
		if e.claims[revision] == "" && !e.openDeletion(revision, &openDeletions) && !e.leaseEnd(revision) {
			e.report.Add(Phantom, "revision %d: %s", revision, describeEvents(history.Events(revision)))
		}
	}
	return e.report
}

func (e *explanation) indexTokens() {
	for revision := e.from; revision <= e.until; revision++ {
		for _, event := range e.history.Events(revision) {
			if event.Type != mvccpb.Event_PUT {
				continue
			}
			word := TokenOf(event.Kv.Value)
			if other, known := e.byToken[word]; known && other != revision {
				e.report.Add(Doubled, "write %s made revision %d and revision %d", word, other, revision)
			}
			e.byToken[word] = revision
		}
	}
}

func (e *explanation) claim(revision int64, operation *Operation) {
	if other := e.claims[revision]; other != "" {
		e.report.Add(LostWrite, "revision %d was answered to two: %s; %s", revision, other, operation)
		return
	}
	e.claims[revision] = operation.String()
}

func (e *explanation) acknowledged(operation *Operation) {
	if operation.Revision < operation.Floor {
		e.report.Add(RevisionBack, "%s, though revision %d had been answered before it began", operation, operation.Floor)
	}
	if operation.CompareKey != "" {
		e.compared(operation)
	}
	if !operation.Effective() {
		e.withoutEffect(operation)
		return
	}
	if operation.Revision == operation.Floor {
		e.report.Add(RevisionBack, "%s, a revision that had been answered before it began", operation)
	}
	e.claim(operation.Revision, operation)
	e.sameChanges(operation, operation.Revision, LostWrite)
	if operation.WantPrev {
		e.samePrevious(operation)
	}
}

// sameChanges compares what an operation asked for with what a revision holds.
func (e *explanation) sameChanges(operation *Operation, revision int64, otherwise Kind) {
	want, got := operation.Changes(e.history, revision), e.history.Events(revision)
	matched := 0
	for matched < len(want) && matched < len(got) && sameChange(want[matched], got[matched]) {
		matched++
	}
	if matched == len(want) && matched == len(got) {
		return
	}
	kind := otherwise
	if where, found := e.byToken[operation.Token]; found && where == revision && len(want) != len(got) {
		kind = HalfTransaction
	}
	e.report.Add(kind, "%s; the history has there: %s", operation, orNothing(got))
}

func orNothing(events []*mvccpb.Event) string {
	if len(events) == 0 {
		return "nothing"
	}
	return describeEvents(events)
}

func sameChange(want, got *mvccpb.Event) bool {
	return want.Type == got.Type && bytes.Equal(want.Kv.Key, got.Kv.Key) &&
		bytes.Equal(want.Kv.Value, got.Kv.Value) && want.Kv.Lease == got.Kv.Lease
}

func (e *explanation) withoutEffect(operation *Operation) {
	if where, found := e.byToken[operation.Token]; found {
		e.report.Add(HalfTransaction, "%s answered that it wrote nothing, but made revision %d", operation, where)
	}
	if operation.Succeeded {
		if changes := operation.Changes(e.history, operation.Revision+1); len(changes) > 0 {
			e.report.Add(WrongRead, "%s found nothing to delete, the history has there: %s", operation, describeEvents(changes))
		}
	}
}

func (e *explanation) compared(operation *Operation) {
	at := operation.Revision
	if operation.Succeeded {
		at--
	}
	kv := e.history.At(operation.CompareKey, at)
	if operation.Succeeded != (kv.GetModRevision() == operation.CompareMod) {
		e.report.Add(WrongRead, "%s: the comparison with mod revision %d came out %t on %s",
			operation, operation.CompareMod, operation.Succeeded, describe(kv))
	}
	if !operation.Succeeded && !proto.Equal(operation.Seen, kv) {
		e.report.Add(WrongRead, "%s: read %s, the history has %s", operation, describe(operation.Seen), describe(kv))
	}
}

// samePrevious compares the prev_kvs of an answer with the history.
func (e *explanation) samePrevious(operation *Operation) {
	var want []*mvccpb.KeyValue
	for _, event := range e.history.Events(operation.Revision) {
		if kv := e.history.At(string(event.Kv.Key), operation.Revision-1); kv != nil {
			want = append(want, kv)
		}
	}
	if fault := DifferentKVs(operation.Prev, want); fault != "" {
		e.report.Add(WrongRead, "%s: its prev_kvs: %s", operation, fault)
	}
}

// unanswered judges an operation that was not acknowledged; false where only a
// look at the unexplained revisions can find it.
func (e *explanation) unanswered(operation *Operation) bool {
	where, found := e.byToken[operation.Token]
	switch {
	case operation.Outcome == Refused && found:
		e.claim(where, operation)
		e.report.Add(Phantom, "%s, but made revision %d", operation, where)
	case found:
		e.claim(where, operation)
		e.sameChanges(operation, where, HalfTransaction)
		if where <= operation.Floor {
			e.report.Add(RevisionBack, "%s made revision %d, but %d had been answered before it began", operation, where, operation.Floor)
		}
	case operation.Outcome == Unknown:
		return len(operation.Steps) != 1 || !operation.Steps[0].IsDelete()
	}
	return true
}

// openDeletion finds an unanswered deletion that made this revision.
func (e *explanation) openDeletion(revision int64, open *[]*Operation) bool {
	got := e.history.Events(revision)
	for i, operation := range *open {
		want := operation.Changes(e.history, revision)
		if revision <= operation.Floor || len(want) == 0 || len(want) != len(got) {
			continue
		}
		same := true
		for j := range want {
			same = same && sameChange(want[j], got[j])
		}
		if same {
			e.claims[revision] = operation.String()
			*open = append((*open)[:i:i], (*open)[i+1:]...)
			return true
		}
	}
	return false
}

// leaseEnd says whether this revision deletes all keys of one lease, and nothing
// else; a lease that ends too early is damage of its own.
func (e *explanation) leaseEnd(revision int64) bool {
	events := e.history.Events(revision)
	if len(events) == 0 {
		return false
	}
	before := e.history.At(string(events[0].Kv.Key), revision-1)
	if events[0].Type != mvccpb.Event_DELETE || before == nil || before.Lease == 0 {
		return false
	}
	lease, known := e.leases.Get(before.Lease)
	if !known {
		return false
	}
	var got []string
	for _, event := range events {
		if event.Type != mvccpb.Event_DELETE {
			return false
		}
		got = append(got, string(event.Kv.Key))
	}
	want := e.history.Attached(lease.ID, revision-1)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		e.report.Add(LeaseBroken, "revision %d ends lease %x but deletes %v where it held %v", revision, lease.ID, got, want)
	}
	if seen := e.history.SeenAt(revision); !lease.MayHaveEnded(seen) {
		e.report.Add(LeaseBroken, "lease %x of %d s ended %v after it was asked for, at revision %d",
			lease.ID, lease.TTL, seen.Sub(lease.Before), revision)
	}
	return true
}

// DifferentKVs answers the first difference of two lists, or nothing.
func DifferentKVs(got, want []*mvccpb.KeyValue) string {
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			return fmt.Sprintf("%d where %d were due, without %s", len(got), len(want), describe(want[i]))
		case i >= len(want):
			return fmt.Sprintf("%d where %d were due, with %s", len(got), len(want), describe(got[i]))
		case !proto.Equal(got[i], want[i]):
			return fmt.Sprintf("%s where %s was due", describe(got[i]), describe(want[i]))
		}
	}
	return ""
}
