package random

import "time"

// shrink leaves out as many operations as it can in the given time such that
// the rest still fails, and answers the rest with its difference. Kinds of
// operations go first, then ever smaller chunks.
func shrink(sequence []operation, found *difference, fails func([]operation) *difference, limit time.Duration) ([]operation, *difference) {
	deadline := time.Now().Add(limit)
	sequence = sequence[:found.at+1]
	try := func(shorter []operation) bool {
		if len(shorter) == len(sequence) || time.Now().After(deadline) {
			return false
		}
		failed := fails(shorter)
		if failed == nil || failed.fatal {
			return false
		}
		sequence, found = shorter[:min(failed.at+1, len(shorter))], failed
		return true
	}
	for _, category := range categories(sequence) {
		try(without(sequence, func(_ int, o operation) bool { return name(o) == category }))
	}
	for size := (len(sequence) + 1) / 2; size >= 1; {
		removed := false
		for from := 0; from < len(sequence) && time.Now().Before(deadline); {
			if try(without(sequence, func(i int, _ operation) bool { return i >= from && i < from+size })) {
				removed = true
			} else {
				from += size
			}
		}
		if size == 1 && !removed || !time.Now().Before(deadline) {
			break
		}
		size = max(1, min(size/2, len(sequence)/2))
	}
	return sequence, found
}

// without answers the operations for which drop is false.
func without(sequence []operation, drop func(int, operation) bool) []operation {
	var kept []operation
	for i, o := range sequence {
		if !drop(i, o) {
			kept = append(kept, o)
		}
	}
	return kept
}

// name is a category of operations: the first word of its line.
func name(o operation) string {
	text := o.String()
	for i := range text {
		if text[i] == '(' || text[i] == ' ' || text[i] == '[' {
			return text[:i]
		}
	}
	return text
}

func categories(sequence []operation) []string {
	var found []string
	seen := map[string]bool{}
	for _, o := range sequence {
		if category := name(o); !seen[category] {
			seen[category] = true
			found = append(found, category)
		}
	}
	return found
}
