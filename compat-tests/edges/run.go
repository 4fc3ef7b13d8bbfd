package edges

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

// attackSpace is the prefix of all keys that attacks write.
const attackSpace = "x/"

const (
	kilobyte, megabyte = 1_000, 1_000_000
	// attackLimit bounds the time of one attack, setupLimit that of its setup.
	attackLimit, setupLimit = time.Minute, 3 * time.Minute
)

// attack is one row.
type attack struct {
	name string
	// does describes the attack in a full run.
	does string
	// members is the size of the cluster, whose leader is attacked; 0 is a single member.
	members int
	// files is ulimit -n of each member; 0 is none.
	files int
	flags []string
	// setup runs before the measurement.
	setup func(context.Context, *attackRun) error
	// attack returns when all requests are sent or answered; its connections stay open
	// until close.
	attack func(context.Context, *attackRun) error
	// compare adds to etched's row what is broken beside etcd's, which is nil where there
	// is none; nil where nothing is compared.
	compare func(etched, etcd *Outcome)
	// divisor divides counts in the mixture; with 0 the attack is not part of it.
	divisor int
}

// attackRun is one attack on one member.
type attackRun struct {
	attack *attack
	kind   harness.Kind
	server *harness.Server   // under attack
	among  []*harness.Member // the members of its cluster, if it has one
	client *clientv3.Client  // connected before the attack
	// divisor divides every count.
	divisor int
	// spare is how many bytes attacks may still write; nil is no limit.
	spare *atomic.Int64
	// fills is how many times attacks may still write many keys; nil is no limit.
	fills *atomic.Int64
	// leaseTTL is the TTL of leases, in seconds: an interrupted attack leaves some.
	leaseTTL int64

	answers tally // what the attacker was answered

	// deleted is the revision of a deletion before the attack.
	deleted int64
	// compaction is how long a physical compaction took, if there was one.
	compaction time.Duration

	mu     sync.Mutex
	notes  []string
	faults []string
	opened []func() error
}

// mixed says that other attacks and kills run concurrently.
func (s *attackRun) mixed() bool { return s.spare != nil }

// count scales a count of a full run down to this one.
func (s *attackRun) count(full int) int { return max(full/max(s.divisor, 1), 1) }

// note adds a remark to the row.
func (s *attackRun) note(format string, arguments ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, fmt.Sprintf(format, arguments...))
}

// fault adds a broken requirement to the row, up to a number.
func (s *attackRun) fault(format string, arguments ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const most = 20
	text := fmt.Sprintf(format, arguments...)
	if len(s.faults) < most && !slices.Contains(s.faults, text) {
		s.faults = append(s.faults, text)
	}
}

// keep leaves something open until close.
func (s *attackRun) keep(close func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened = append(s.opened, close)
}

// close closes all connections of the attack.
func (s *attackRun) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, close := range s.opened {
		_ = close()
	}
	s.opened = nil
}

// http2Conn opens a connection that stays open until close.
func (s *attackRun) http2Conn(options clientOptions) (*http2Conn, error) {
	w, err := dialHTTP2(s.server.Endpoint(), options)
	if err != nil {
		return nil, err
	}
	s.keep(w.close)
	return w, nil
}

// socket opens a TCP connection that stays open until close.
func (s *attackRun) socket(endpoint string) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", endpoint, dialLimit)
	if err != nil {
		return nil, err
	}
	s.keep(conn.Close)
	return conn, nil
}

// onConnections calls f once for each stream, a hundred of them to a connection. A server
// may refuse a connection: that is recorded, and its streams are skipped.
func (s *attackRun) onConnections(ctx context.Context, streams int, options clientOptions, f func(*http2Conn) error) error {
	const each = 100
	var opening sync.WaitGroup
	for rest := streams; rest > 0 && ctx.Err() == nil; rest -= each {
		w, err := s.http2Conn(options)
		if err != nil {
			s.answers.addMany(errorText(err), min(rest, each))
			continue
		}
		opening.Go(func() {
			for n := range min(rest, each) {
				if err := f(w); err != nil {
					s.answers.addMany(errorText(err), min(rest, each)-n)
					return
				}
			}
		})
	}
	opening.Wait()
	return ctx.Err()
}

// put writes a value of this size, or a small one when spare is used up.
func (s *attackRun) put(ctx context.Context, key string, bytes int, options ...clientv3.OpOption) error {
	if s.mixed() && s.spare.Add(-int64(bytes)) < 0 {
		bytes = 100
	}
	_, err := s.client.Put(ctx, attackSpace+key, string(make([]byte, bytes)), options...)
	return err
}

// connect sets the client and opens its connection, which the attack may make impossible
// later.
func (s *attackRun) connect(ctx context.Context, client *clientv3.Client) error {
	s.client = client
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	_, err := client.Get(ctx, attackSpace, clientv3.WithSerializable())
	return err
}

// putOnce is put, unless the key exists, as it may in the mixture.
func (s *attackRun) putOnce(ctx context.Context, key string, bytes int) error {
	found, err := s.client.Get(ctx, attackSpace+key, clientv3.WithCountOnly())
	if err != nil || found.Count > 0 {
		return err
	}
	return s.put(ctx, key, bytes)
}

// fill writes small keys below a prefix, in transactions of a thousand: of those only one
// when fills is used up.
func (s *attackRun) fill(ctx context.Context, prefix string, keys int, lease clientv3.LeaseID) error {
	const each, writers = 1000, 4
	if s.mixed() && keys > 10*each && s.fills.Add(-1) < 0 {
		keys = each
	}
	var writing sync.WaitGroup
	failures := make([]error, writers)
	var next atomic.Int64
	for writer := range writers {
		writing.Go(func() {
			for failures[writer] == nil {
				from := int(next.Add(each)) - each
				if from >= keys {
					return
				}
				var puts []clientv3.Op
				for n := from; n < min(from+each, keys); n++ {
					puts = append(puts, clientv3.OpPut(fmt.Sprintf("%s%s%08d", attackSpace, prefix, n), "small", clientv3.WithLease(lease)))
				}
				_, failures[writer] = s.client.Txn(ctx).Then(puts...).Commit()
			}
		})
	}
	writing.Wait()
	return errors.Join(failures...)
}

// rangeOf is a serializable request for a key or a range.
func rangeOf(key, end string) *pb.RangeRequest {
	request := &pb.RangeRequest{Key: []byte(attackSpace + key), Serializable: true}
	if end != "" {
		request.RangeEnd = []byte(attackSpace + end)
	}
	return request
}
