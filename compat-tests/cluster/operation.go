package cluster

import (
	"fmt"
	"sync"
	"time"

	"etched.dev/compat-tests/crash"
)

// Action is a sort of request.
type Action string

// The actions of clients. All reads are linearizable.
const (
	Put           Action = "put"
	Delete        Action = "delete"
	CompareAndSet Action = "compare-and-set"
	Get           Action = "get"
)

// Operation is one request for one key and what its client learned.
type Operation struct {
	Client int
	// Via is the member that was asked, "all" for a client that knows all of them.
	Via    string
	Action Action
	Key    string
	// Value is the token of what a put or a compare-and-set writes; no two
	// operations share one. Its lease is 0 for most.
	Value string
	Lease int64
	// Expect is the value that a compare-and-set asks for; "" means no such key.
	Expect string

	// Call and Return are counted from the run's beginning.
	Call, Return time.Duration
	Outcome      crash.Outcome
	Err          string

	// The rest is the answer of an acknowledged one. Revision is the header's.
	Revision int64
	// Applied says that a compare-and-set or a deletion changed something.
	Applied bool
	// Seen is the value that a get, a failed compare-and-set or a put with
	// SeesPrevious found; "" where there was none.
	Seen         string
	SeesPrevious bool
}

// Writes says that the operation is no read.
func (o *Operation) Writes() bool { return o.Action != Get }

// Effective says whether an acknowledged operation made a revision.
func (o *Operation) Effective() bool {
	return o.Action == Put || (o.Applied && o.Action != Get)
}

// String describes the operation in a report.
func (o *Operation) String() string {
	text := fmt.Sprintf("%s %s", o.Action, o.Key)
	if o.Value != "" {
		text += " " + o.Value
	}
	if o.Action == CompareAndSet {
		text += fmt.Sprintf(" if %q", o.Expect)
	}
	text += fmt.Sprintf(" via %s at %v..%v: %s", o.Via, round(o.Call), round(o.Return), o.Outcome)
	if o.Outcome != crash.Acknowledged {
		return text + " (" + o.Err + ")"
	}
	text += fmt.Sprintf(" at revision %d", o.Revision)
	if o.Action == CompareAndSet || o.Action == Delete {
		text += fmt.Sprintf(", applied %t", o.Applied)
	}
	if o.Action != Delete {
		text += fmt.Sprintf(", saw %q", o.Seen)
	}
	return text
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// log takes what clients did. Safe for use by several goroutines.
type log struct {
	began time.Time

	mu         sync.Mutex
	operations []*Operation
	leases     []*Lease
	faults     crash.Report
	tokens     int
}

// now is the time since the run began.
func (l *log) now() time.Duration { return time.Since(l.began) }

// token is a new word that no other write carries.
func (l *log) token() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tokens++
	return fmt.Sprint("t", l.tokens)
}

func (l *log) done(operation *Operation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.operations = append(l.operations, operation)
}

// fault records damage that was noticed at once.
func (l *log) fault(kind crash.Kind, format string, arguments ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults.Add(kind, format, arguments...)
}

// operationsSoFar answers what is done, in the order in which it ended.
func (l *log) operationsSoFar() []*Operation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Operation(nil), l.operations...)
}
