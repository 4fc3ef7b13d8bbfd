package crash

import (
	"fmt"
	"slices"
	"strings"
)

// Kind is a sort of damage.
type Kind string

// The sorts of damage a check can find.
const (
	LostWrite        Kind = "an acknowledged write is lost or differs"
	HalfTransaction  Kind = "a transaction was applied in part"
	Doubled          Kind = "a request was applied twice"
	Phantom          Kind = "a revision nobody asked for"
	RevisionBack     Kind = "revisions went back"
	StaleRead        Kind = "a read missed what was answered before it"
	WrongRead        Kind = "a read differs from the history"
	WatchBroken      Kind = "a watch has a gap, a duplicate or a wrong event"
	WrongHash        Kind = "HashKV differs from the replayed history"
	LeaseBroken      Kind = "a lease is wrong"
	CompactionBroken Kind = "a compaction is wrong"
	Unavailable      Kind = "the server does not serve"
)

// Report is all the damage found by one check, in the order found.
type Report struct{ found []finding }

type finding struct {
	kind Kind
	text string
}

// Add notes one piece of damage.
func (r *Report) Add(kind Kind, format string, arguments ...any) {
	r.found = append(r.found, finding{kind, fmt.Sprintf(format, arguments...)})
}

// Merge adds all of another report.
func (r *Report) Merge(other Report) { r.found = append(r.found, other.found...) }

// Empty says that no damage was found.
func (r *Report) Empty() bool { return len(r.found) == 0 }

// Has says whether damage of one of these kinds was found.
func (r *Report) Has(kinds ...Kind) bool {
	return slices.ContainsFunc(r.found, func(f finding) bool { return slices.Contains(kinds, f.kind) })
}

// String lists the damage by kind, the first few of each.
func (r *Report) String() string {
	const shown = 8
	var kinds []Kind
	byKind := map[Kind][]string{}
	for _, f := range r.found {
		if byKind[f.kind] == nil {
			kinds = append(kinds, f.kind)
		}
		byKind[f.kind] = append(byKind[f.kind], f.text)
	}
	var text strings.Builder
	for _, kind := range kinds {
		texts := byKind[kind]
		fmt.Fprintf(&text, "%s (%d):\n", kind, len(texts))
		for _, line := range texts[:min(shown, len(texts))] {
			fmt.Fprintf(&text, "  %s\n", line)
		}
		if len(texts) > shown {
			fmt.Fprintf(&text, "  and %d more\n", len(texts)-shown)
		}
	}
	return text.String()
}
