package crash

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Outcome is what the client knows of a request's fate.
type Outcome int

const (
	// Unknown requests may have been applied, once, or not at all.
	Unknown Outcome = iota
	// Acknowledged requests were answered with success.
	Acknowledged
	// Refused requests were answered with an error that rules out any effect.
	Refused
)

// String names the outcome in a report.
func (o Outcome) String() string { return [...]string{"unknown", "acknowledged", "refused"}[o] }

// OutcomeOf judges an error. Only codes that etcd gives before it applies
// anything count as a refusal; whatever speaks of a connection, a time limit or
// the server's state leaves the fate open.
func OutcomeOf(err error) Outcome {
	if err == nil {
		return Acknowledged
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return Unknown
	}
	code := status.Code(err)
	var known rpctypes.EtcdError
	if errors.As(err, &known) {
		code = known.Code()
	}
	switch code {
	case codes.InvalidArgument, codes.NotFound, codes.OutOfRange, codes.FailedPrecondition:
		return Refused
	default:
		return Unknown
	}
}

// Step is one change a write asks for: a put of Key, or the deletion of Delete.
type Step struct {
	Key, Value string
	Lease      int64
	Delete     Interval
}

// IsDelete says which of the two it is.
func (s Step) IsDelete() bool { return s.Key == "" }

// Operation is one write request and what the client learned of it.
type Operation struct {
	Token string
	// Name and Steps are the request; Steps of a failed compare had no effect.
	Name  string
	Steps []Step
	// CompareKey, where set, had to be at CompareMod for the steps to be taken.
	CompareKey string
	CompareMod int64
	// Floor is the highest revision that anyone had learned before this began.
	Floor int64

	Outcome Outcome
	Err     error
	// The rest is the answer of an acknowledged one.
	Revision  int64
	Succeeded bool
	Deleted   int64
	// Prev holds the prev_kvs of the answer where WantPrev asked for them.
	WantPrev bool
	Prev     []*mvccpb.KeyValue
	// Seen is what the failure branch of a compare read.
	Seen *mvccpb.KeyValue
}

// Effective says whether an acknowledged operation made a revision.
func (o *Operation) Effective() bool {
	if !o.Succeeded {
		return false
	}
	for _, step := range o.Steps {
		if !step.IsDelete() {
			return true
		}
	}
	return o.Deleted > 0
}

// Changes answers the events that the steps make if applied as this revision.
func (o *Operation) Changes(history *History, revision int64) []*mvccpb.Event {
	var changes []*mvccpb.Event
	for _, step := range o.Steps {
		if !step.IsDelete() {
			changes = append(changes, &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: &mvccpb.KeyValue{
				Key: []byte(step.Key), Value: []byte(step.Value), Lease: step.Lease,
			}})
			continue
		}
		for _, kv := range history.Snapshot(step.Delete, revision-1) {
			changes = append(changes, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: kv.Key}})
		}
	}
	return changes
}

// String describes the operation in a report.
func (o *Operation) String() string {
	var steps []string
	for i, step := range o.Steps {
		if i == 4 {
			steps = append(steps, fmt.Sprintf("and %d more", len(o.Steps)-i))
			break
		}
		if step.IsDelete() {
			steps = append(steps, fmt.Sprintf("delete %q..%q", step.Delete.Key, step.Delete.End))
		} else {
			steps = append(steps, "put "+step.Key)
		}
	}
	text := fmt.Sprintf("%s %s [%s] %s", o.Name, o.Token, strings.Join(steps, ", "), o.Outcome)
	switch o.Outcome {
	case Acknowledged:
		text += fmt.Sprintf(" at revision %d", o.Revision)
	default:
		text += fmt.Sprintf(" (%v)", o.Err)
	}
	return text
}

// Read is one answered linearizable read.
type Read struct {
	Keys            Interval
	Floor, Revision int64
	KVs             []*mvccpb.KeyValue
}

// Log takes what clients did between two checks.
type Log struct {
	mu         sync.Mutex
	operations []*Operation
	reads      []*Read
	faults     Report
	floor      atomic.Int64
	tokens     atomic.Int64
}

// Begin answers the highest revision that anyone has learned so far.
func (l *Log) Begin() int64 { return l.floor.Load() }

// Learned notes that somebody learned this revision.
func (l *Log) Learned(revision int64) {
	for {
		current := l.floor.Load()
		if revision <= current || l.floor.CompareAndSwap(current, revision) {
			return
		}
	}
}

// Token is a new word that no other write carries.
func (l *Log) Token() string { return fmt.Sprintf("t%d", l.tokens.Add(1)) }

// Done records a finished operation.
func (l *Log) Done(operation *Operation) {
	if operation.Outcome == Acknowledged {
		l.Learned(operation.Revision)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.operations = append(l.operations, operation)
}

// Observed records an answered read.
func (l *Log) Observed(read *Read) {
	l.Learned(read.Revision)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads = append(l.reads, read)
}

// Fault records a wrong answer noticed at once.
func (l *Log) Fault(kind Kind, format string, arguments ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults.Add(kind, format, arguments...)
}

// Take answers and forgets all that was recorded.
func (l *Log) Take() ([]*Operation, []*Read, Report) {
	l.mu.Lock()
	defer l.mu.Unlock()
	operations, reads, faults := l.operations, l.reads, l.faults
	l.operations, l.reads, l.faults = nil, nil, Report{}
	return operations, reads, faults
}

// TokenOf cuts the operation's token out of a value.
func TokenOf(value []byte) string {
	word, _, _ := strings.Cut(string(value), " ")
	return word
}
