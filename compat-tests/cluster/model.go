package cluster

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"etched.dev/compat-tests/crash"
)

// register is the model of one key: its state is the token that it holds, "" for
// none. Operations and their answers are both in the *Operation.
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		return step(state.(string), input.(*Operation))
	},
	DescribeOperation: func(input, _ any) string { return input.(*Operation).String() },
}

// step says whether an operation could have been answered as it was by a key in
// this state, and what the key holds after it. What no answer is known of fits
// anywhere.
func step(state string, o *Operation) (bool, any) {
	known := o.Outcome == crash.Acknowledged
	switch o.Action {
	case Put:
		return !known || !o.SeesPrevious || o.Seen == state, o.Value
	case Delete:
		return !known || o.Applied == (state != ""), ""
	case CompareAndSet:
		equal := state == o.Expect
		if known && (o.Applied != equal || o.Seen != state) {
			return false, state
		}
		if equal {
			return true, o.Value
		}
		return true, state
	default:
		return o.Seen == state, state
	}
}

// linearizable answers what is wrong with the operations, key by key, or
// nothing. Lease keys also end by themselves: they are not for this model.
//
// Many requests with an open fate make the search long. Where it does not end in
// time, the history says which of them took effect, and by when.
func linearizable(operations []*Operation, history *crash.History) (faults []string) {
	const first, second = 5 * time.Second, 20 * time.Second
	byKey := map[string][]*Operation{}
	for _, o := range operations {
		byKey[o.Key] = append(byKey[o.Key], o)
	}
	var fates map[*Operation]time.Duration
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		part := forPorcupine(byKey[key], nil)
		result := porcupine.CheckOperationsTimeout(register, part, first)
		if result == porcupine.Unknown {
			if fates == nil {
				fates = settled(operations, history)
			}
			part = forPorcupine(byKey[key], fates)
			result = porcupine.CheckOperationsTimeout(register, part, second)
		}
		switch result {
		case porcupine.Unknown:
			faults = append(faults, fmt.Sprintf("%s: could not be decided in %v, %d operations", key, first+second, len(part)))
		case porcupine.Illegal:
			faults = append(faults, fmt.Sprintf("%s: no order of its %d operations explains their answers%s", key, len(part), longestOrder(part)))
		}
	}
	return faults
}

// settled answers, for each write without an answer that the history knows, the
// first time at which somebody learned its revision or a later one; 0 for those
// that never happened. Deletions carry no token: their fate stays open.
func settled(operations []*Operation, history *crash.History) map[*Operation]time.Duration {
	revisions := map[string]int64{}
	for revision := int64(firstRevision + 1); revision <= history.Head(); revision++ {
		for _, event := range history.Events(revision) {
			if value := crash.TokenOf(event.Kv.Value); value != "" {
				revisions[value] = revision
			}
		}
	}
	learned := make([]time.Duration, history.Head()+2)
	for i := range learned {
		learned[i] = math.MaxInt64
	}
	for _, o := range operations {
		if o.Outcome == crash.Acknowledged && o.Revision <= history.Head() {
			learned[o.Revision] = min(learned[o.Revision], o.Return)
		}
	}
	for i := len(learned) - 2; i >= 0; i-- {
		learned[i] = min(learned[i], learned[i+1])
	}
	fates := map[*Operation]time.Duration{}
	for _, o := range operations {
		if o.Outcome == crash.Unknown && o.Value != "" {
			fates[o] = 0
			if revision, made := revisions[o.Value]; made {
				fates[o] = learned[revision]
			}
		}
	}
	return fates
}

func forPorcupine(operations []*Operation, fates map[*Operation]time.Duration) []porcupine.Operation {
	var all []porcupine.Operation
	for _, o := range operations {
		if o.Outcome == crash.Refused || o.Lease != 0 || (o.Outcome == crash.Unknown && !o.Writes()) {
			continue
		}
		ended := int64(o.Return)
		if o.Outcome == crash.Unknown {
			ended = math.MaxInt64
			if fate, known := fates[o]; known {
				if fate == 0 {
					continue
				}
				ended = max(int64(fate), int64(o.Call))
			}
		}
		all = append(all, porcupine.Operation{ClientId: o.Client, Input: o, Call: int64(o.Call), Return: ended})
	}
	return all
}

// longestOrder tells the end of the longest order that could be explained.
func longestOrder(part []porcupine.Operation) string {
	_, information := porcupine.CheckOperationsVerbose(register, part, 5*time.Second)
	var longest []porcupine.Operation
	for _, partition := range information.PartialLinearizationsOperations() {
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	const shown = 4
	text := fmt.Sprintf("; %d fit, the last of them:", len(longest))
	for _, operation := range longest[max(0, len(longest)-shown):] {
		text += "\n      " + operation.Input.(*Operation).String()
	}
	return text
}
