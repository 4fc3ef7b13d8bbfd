package edges

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"

	"etched.dev/compat-tests/crash"
	"etched.dev/compat-tests/harness"
)

// manyOps lets setups write many keys in few transactions.
var manyOps = []string{"--max-txn-ops=1000"}

// slicedDivisor leaves 20,000 of a million keys in the mixture: several batches of a deletion.
const slicedDivisor = 50

// attacks are the rows of the table, in order.
func attacks() []*attack {
	return slices.Concat(largeAttacks(), smallAttacks(), streamAttacks())
}

func largeAttacks() []*attack {
	return []*attack{
		{
			name: "nothing",
			does: "nothing: what the probes cost and see by themselves",
			attack: func(context.Context, *attackRun) error {
				return nil
			},
		},
		{
			name:  "descriptors",
			does:  "`ulimit -n 1024`, 1,500 idle connections, then 160 puts of 1 MB, for which files have to be made",
			files: 1024, attack: idleConnections, divisor: 1,
		},
		{
			name:  "descriptors-cluster",
			does:  "the same to the leader of three, while a follower is killed and started again",
			files: 1024, members: 3, attack: idleConnections,
		},
		{
			name:   "announced",
			does:   "1,000 streams that send five bytes each, which announce 2 MB",
			attack: announced, divisor: 4,
		},
		{
			name:   "unfinished",
			does:   "1,000 requests of 1.4 MB without their last byte",
			attack: func(ctx context.Context, s *attackRun) error { return unfinished(ctx, s, 1_400*kilobyte) }, divisor: 4,
		},
		{
			name:   "unfinished-larger",
			does:   "1,000 requests of 1.9 MB, allowance --max-request-bytes, without their last byte",
			attack: func(ctx context.Context, s *attackRun) error { return unfinished(ctx, s, 1_900*kilobyte) }, divisor: 4,
		},
		{
			name:   "watches",
			does:   "3,000 streams (10,000 with -edges.long) with a watch each, unread, and 30 puts of 100 kB",
			attack: unreadWatches, divisor: 10,
		},
		{
			name:   "scrapes",
			does:   "50 connections that send 1,000 GETs of /metrics each and read nothing",
			attack: unreadScrapes, divisor: 5,
		},
		{
			name:  "txns",
			does:  "20 transactions at once, of 127 ranges of 1 MB each",
			setup: largeValue, attack: wideTxns, divisor: 5,
		},
		{
			name:  "ranges",
			does:  "4 ranges of 165 MB at once",
			setup: largeValues, attack: wideRanges, divisor: 10,
		},
		{
			name:  "answers",
			does:  "1,000 answers of 1 MB that nobody reads, HTTP/2's usual windows",
			setup: largeValue, attack: func(ctx context.Context, s *attackRun) error { return unreadAnswers(ctx, s, false) }, divisor: 4,
		},
		{
			name:  "answers-wide",
			does:  "the same, by a client that offers windows of 2 GB",
			setup: largeValue, attack: func(ctx context.Context, s *attackRun) error { return unreadAnswers(ctx, s, true) }, divisor: 4,
		},
		{
			name:  "streams",
			does:  "100 RangeStreams of 165 MB on one connection, which nobody reads; windows of 2 GB",
			setup: largeValues, attack: unreadStreams, divisor: 10,
		},
		{
			name: "lists", flags: manyOps,
			does:  "1,000 answers that name the 50,000 keys of a lease, which nobody reads; windows of 2 GB",
			setup: leaseSome, attack: unreadLists, divisor: 10,
		},
		{
			name: "delete", flags: manyOps,
			does: "one request that deletes 1,000,000 keys, then a physical compaction",
			setup: func(ctx context.Context, s *attackRun) error {
				return s.fill(ctx, "many/", s.count(1_000_000), 0)
			},
			attack: deleteMany, compare: compareCompactions, divisor: slicedDivisor,
		},
		{
			name: "delete-txn", flags: manyOps,
			does: "one transaction that deletes 1,000,000 keys and puts one",
			setup: func(ctx context.Context, s *attackRun) error {
				return s.fill(ctx, "many/", s.count(1_000_000), 0)
			},
			attack: deleteManyInTxn, divisor: slicedDivisor,
		},
		{
			name: "behind", flags: manyOps,
			does:  "20 watches, of a stream each, that catch up over the deletion of 1,000,000 keys, with their values",
			setup: deletedBefore, attack: watchesBehind, divisor: slicedDivisor,
		},
		{
			name: "revoke", flags: manyOps,
			does:  "the revocation of a lease with 1,000,000 keys",
			setup: leaseMany, attack: revokeMany, divisor: slicedDivisor,
		},
		{
			name:   "timeouts",
			does:   "grpc-timeout `0n`, malformed, overlong",
			attack: timeouts, compare: compareAnswers, divisor: 1,
		},
		{
			name:   "alarms",
			does:   "Alarm GET of types that there are not",
			attack: unknownAlarms, compare: compareAnswers, divisor: 1,
		},
		{
			name:   "peers",
			does:   "junk, and requests of an unknown sender, to the peer port of a single member; 200 snapshots under as many ids",
			attack: forgedPeers, divisor: 1,
		},
		{
			name: "peers-cluster", members: 3,
			does:   "the same to all of three members; the unknown sender asks to remove one, and sends committed junk",
			attack: forgedPeers,
		},
	}
}

func idleConnections(ctx context.Context, s *attackRun) error {
	var conns []interface {
		io.Reader
		SetReadDeadline(time.Time) error
	}
	for n := range 1500 {
		conn, err := s.socket(s.server.Endpoint())
		if err != nil {
			s.answers.add(errorText(err))
			continue
		}
		// Every other one sends the preface, as an idle HTTP/2 client has.
		if n%2 == 0 {
			_, _ = io.WriteString(conn, http2.ClientPreface)
			_ = http2.NewFramer(conn, nil).WriteSettings()
		}
		conns = append(conns, conn)
	}
	pause(ctx, time.Second)
	for _, conn := range conns {
		_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := io.Copy(io.Discard, conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.answers.add("idle connection held")
		} else {
			s.answers.add("idle connection closed")
		}
	}
	var put tally
	defer func() { s.note("puts of 1 MB: %v", &put) }()
	// More than two segments of the log, and more than a memtable.
	for n := range 160 {
		if n == 40 && s.attack.members > 0 {
			if err := restartFollower(ctx, s); err != nil {
				s.fault("a follower beside the attacked leader: %v", err)
			}
		}
		limited, cancel := context.WithTimeout(ctx, probeLimit)
		err := s.put(limited, fmt.Sprint("idle/", n%8), megabyte)
		cancel()
		put.add(errorText(err))
		if ctx.Err() != nil || !s.server.Running() {
			break
		}
	}
	return ctx.Err()
}

// restartFollower kills a follower and waits until it serves again, for which the attacked
// leader has to accept its connections.
func restartFollower(ctx context.Context, s *attackRun) error {
	var follower *harness.Member
	for _, member := range s.among {
		if member.Server != s.server {
			follower = member
		}
	}
	if err := follower.Kill(); err != nil {
		return err
	}
	began := time.Now()
	if err := follower.Restart(); err != nil {
		return err
	}
	if err := follower.WaitReady(20 * time.Second); err != nil {
		return err
	}
	s.note("a follower serves %.1f s after its restart", time.Since(began).Seconds())
	return ctx.Err()
}

func announced(ctx context.Context, s *attackRun) error {
	const announcedBytes = 2 * megabyte
	five := binary.BigEndian.AppendUint32([]byte{0}, announcedBytes)
	var mu sync.Mutex
	var calls []*call
	err := s.onConnections(ctx, s.count(1000), clientOptions{}, func(w *http2Conn) error {
		opened, err := w.open(pb.KV_Put_FullMethodName)
		if err != nil {
			return err
		}
		mu.Lock()
		calls = append(calls, opened)
		mu.Unlock()
		return opened.send(ctx, five, false)
	})
	pause(ctx, s.holdTime())
	s.countOpen(calls)
	return err
}

// countOpen counts the outcomes of calls so far.
func (s *attackRun) countOpen(calls []*call) {
	for _, c := range calls {
		select {
		case <-c.done:
			s.answers.add(c.outcome)
		default:
			s.answers.add("stream held")
		}
	}
}

// holdTime is how long an attack keeps its streams open.
func (s *attackRun) holdTime() time.Duration {
	if s.divisor > 1 {
		return 2 * time.Second
	}
	return 6 * time.Second
}

func unfinished(ctx context.Context, s *attackRun, size int) error {
	whole := framed(&pb.PutRequest{Key: []byte(attackSpace + "unfinished"), Value: make([]byte, size)})
	limited, cancel := context.WithTimeout(ctx, s.holdTime())
	defer cancel()
	var sending sync.WaitGroup
	err := s.onConnections(ctx, s.count(1000), clientOptions{}, func(w *http2Conn) error {
		opened, err := w.open(pb.KV_Put_FullMethodName)
		if err != nil {
			return err
		}
		sending.Go(func() {
			err := opened.send(limited, whole[:len(whole)-1], false)
			pause(limited, s.holdTime())
			select {
			case <-opened.done:
				s.answers.add(opened.outcome)
				return
			default:
			}
			switch {
			case err == nil:
				s.answers.add("all but a byte taken")
			case limited.Err() != nil:
				s.answers.add("blocked by flow control")
			default:
				s.answers.add(errorText(err))
			}
		})
		return nil
	})
	sending.Wait()
	return err
}

func unreadWatches(ctx context.Context, s *attackRun) error {
	streams := s.count(3000)
	if *long {
		streams = s.count(10_000)
	}
	watch := framed(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte(attackSpace + "watched"),
	}}})
	err := s.onConnections(ctx, streams, clientOptions{unread: true}, func(w *http2Conn) error {
		opened, err := w.open(pb.Watch_Watch_FullMethodName)
		if err != nil {
			return err
		}
		if err := opened.send(ctx, watch, false); err != nil {
			return err
		}
		s.answers.add("watch opened")
		return nil
	})
	if err != nil {
		return err
	}
	pause(ctx, time.Second)
	began := time.Now()
	var put tally
	for range 30 {
		put.add(errorText(s.put(ctx, "watched", 100*kilobyte)))
	}
	s.note("30 puts of 100 kB took %.1f s: %v", time.Since(began).Seconds(), &put)
	pause(ctx, s.holdTime())
	return ctx.Err()
}

func unreadScrapes(ctx context.Context, s *attackRun) error {
	requests := strings.Repeat("GET /metrics HTTP/1.1\r\nHost: edges\r\n\r\n", 1000)
	var sending sync.WaitGroup
	for range s.count(50) {
		conn, err := s.socket(s.server.Endpoint())
		if err != nil {
			s.answers.add(errorText(err))
			continue
		}
		sending.Go(func() {
			_ = conn.SetWriteDeadline(time.Now().Add(writeLimit / 2))
			_, err := io.WriteString(conn, requests)
			if err == nil {
				s.answers.add("1,000 GETs sent")
			} else {
				s.answers.add(errorText(err))
			}
		})
	}
	sending.Wait()
	pause(ctx, 2*s.holdTime())
	return ctx.Err()
}

// largeValue writes a key of 1 MB.
func largeValue(ctx context.Context, s *attackRun) error { return s.putOnce(ctx, "large", megabyte) }

// largeValues writes 165 keys of 1 MB.
func largeValues(ctx context.Context, s *attackRun) error {
	for n := range s.count(165) {
		if err := s.putOnce(ctx, fmt.Sprintf("wide/%03d", n), megabyte); err != nil {
			return err
		}
	}
	return nil
}

// callAtOnce makes concurrent calls, each on its own connection, and discards the responses.
func callAtOnce(ctx context.Context, s *attackRun, calls int, path string, request func() framedRequest) error {
	const limit = 30 * time.Second
	began := time.Now()
	var asking sync.WaitGroup
	var mu sync.Mutex
	var bytes int64
	for range calls {
		asking.Go(func() {
			w, err := s.http2Conn(clientOptions{wide: true})
			if err != nil {
				s.answers.add(errorText(err))
				return
			}
			opened, err := w.open(path)
			if err == nil {
				err = opened.send(ctx, request(), true)
			}
			if err != nil {
				s.answers.add(errorText(err))
				return
			}
			s.answers.add(opened.await(limit))
			w.mu.Lock()
			defer w.mu.Unlock()
			mu.Lock()
			defer mu.Unlock()
			bytes += opened.bytes
		})
	}
	asking.Wait()
	s.note("%d MB of answers within %.1f s", bytes/megabyte, time.Since(began).Seconds())
	return ctx.Err()
}

// framedRequest is a request with the prefix of gRPC.
type framedRequest []byte

func wideTxns(ctx context.Context, s *attackRun) error {
	const ranges = 127
	txn := &pb.TxnRequest{}
	for range ranges {
		txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: rangeOf("large", "")}})
	}
	return callAtOnce(ctx, s, s.count(20), pb.KV_Txn_FullMethodName, func() framedRequest { return framed(txn) })
}

func wideRanges(ctx context.Context, s *attackRun) error {
	return callAtOnce(ctx, s, 4, pb.KV_Range_FullMethodName, func() framedRequest { return framed(rangeOf("wide/", "wide0")) })
}

func unreadAnswers(ctx context.Context, s *attackRun, wide bool) error {
	return callUnread(ctx, s, s.count(1000), wide, pb.KV_Range_FullMethodName, rangeOf("large", ""))
}

func unreadStreams(ctx context.Context, s *attackRun) error {
	return callUnread(ctx, s, s.count(100), true, pb.KV_RangeStream_FullMethodName, rangeOf("wide/", "wide0"))
}

func unreadLists(ctx context.Context, s *attackRun) error {
	return callUnread(ctx, s, s.count(1000), true, pb.Lease_LeaseTimeToLive_FullMethodName,
		&pb.LeaseTimeToLiveRequest{ID: manyLease, Keys: true})
}

// callUnread sends the same request many times and reads no response.
func callUnread(ctx context.Context, s *attackRun, calls int, wide bool, path string, request proto.Message) error {
	return callUnreadOn(ctx, s, calls, clientOptions{wide: wide, unread: true}, path, request)
}

func callUnreadOn(ctx context.Context, s *attackRun, calls int, options clientOptions, path string, request proto.Message) error {
	err := s.onConnections(ctx, calls, options, func(w *http2Conn) error {
		if _, err := w.ask(ctx, path, request); err != nil {
			return err
		}
		s.answers.add("asked")
		return nil
	})
	pause(ctx, 2*s.holdTime())
	return err
}

func deleteMany(ctx context.Context, s *attackRun) error {
	began := time.Now()
	deleted, err := s.client.Delete(ctx, attackSpace+"many/", clientv3.WithPrefix())
	s.answers.add("delete: " + errorText(err))
	if err != nil {
		return ctx.Err()
	}
	s.note("%d keys deleted in %.1f s", deleted.Deleted, time.Since(began).Seconds())
	if s.mixed() {
		// The judge needs the whole history, and another attack may delete the same keys.
		return ctx.Err()
	}
	if want := int64(s.count(1_000_000)); deleted.Deleted != want {
		s.fault("%d keys deleted of %d", deleted.Deleted, want)
	}
	began = time.Now()
	_, err = s.client.Compact(ctx, deleted.Header.Revision, clientv3.WithCompactPhysical())
	s.note("physical compaction: %s after %.1f s", errorText(err), time.Since(began).Seconds())
	if err == nil {
		s.compaction = time.Since(began)
	} else {
		s.fault("physical compaction: %s", errorText(err))
	}
	return ctx.Err()
}

func deleteManyInTxn(ctx context.Context, s *attackRun) error {
	began := time.Now()
	done, err := s.client.Txn(ctx).Then(
		clientv3.OpDelete(attackSpace+"many/", clientv3.WithPrefix()),
		clientv3.OpPut(attackSpace+"beside", "small"),
	).Commit()
	s.answers.add("transaction: " + errorText(err))
	if err != nil {
		return ctx.Err()
	}
	deleted := done.Responses[0].GetResponseDeleteRange().Deleted
	s.note("%d keys deleted in %.1f s", deleted, time.Since(began).Seconds())
	if want := int64(s.count(1_000_000)); deleted != want && !s.mixed() {
		s.fault("%d keys deleted of %d", deleted, want)
	}
	return ctx.Err()
}

// deletedBefore leaves the deletion of many keys in the history.
func deletedBefore(ctx context.Context, s *attackRun) error {
	if err := s.fill(ctx, "behind/", s.count(1_000_000), 0); err != nil {
		return err
	}
	deleted, err := s.client.Delete(ctx, attackSpace+"behind/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	s.deleted = deleted.Header.Revision
	return nil
}

func watchesBehind(ctx context.Context, s *attackRun) error {
	const watches = 20
	watch := framed(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte(attackSpace + "behind/"), RangeEnd: []byte(attackSpace + "behind0"), StartRevision: s.deleted, PrevKv: true,
	}}})
	began := time.Now()
	var reading []*call
	for range watches {
		// The client takes what comes.
		w, err := s.http2Conn(clientOptions{wide: true})
		if err != nil {
			s.answers.add(errorText(err))
			continue
		}
		opened, err := w.open(pb.Watch_Watch_FullMethodName)
		if err == nil {
			err = opened.send(ctx, watch, false)
		}
		s.answers.add("watch: " + errorText(err))
		reading = append(reading, opened)
	}
	// An event of a deletion, with its key twice, is larger than this.
	want := int64(s.count(1_000_000)) * 30
	caughtUp := func() (caughtUp int) {
		for _, c := range reading {
			c.http2Conn.mu.Lock()
			if c.bytes >= want {
				caughtUp++
			}
			c.http2Conn.mu.Unlock()
		}
		return caughtUp
	}
	for caughtUp() < len(reading) && ctx.Err() == nil && s.server.Running() {
		pause(ctx, 100*time.Millisecond)
		if s.mixed() && time.Since(began) > s.holdTime() {
			break
		}
	}
	s.note("%d of %d watches have caught up within %.1f s", caughtUp(), watches, time.Since(began).Seconds())
	if caughtUp() < watches && !s.mixed() {
		s.fault("%d of %d watches have caught up", caughtUp(), watches)
	}
	return ctx.Err()
}

const manyLease = 0x0ed6e5

func leaseMany(ctx context.Context, s *attackRun) error {
	return lease(ctx, s, s.count(1_000_000))
}

func leaseSome(ctx context.Context, s *attackRun) error {
	return lease(ctx, s, s.count(50_000))
}

// lease writes keys of a lease.
func lease(ctx context.Context, s *attackRun, keys int) error {
	_, err := pb.NewLeaseClient(s.client.ActiveConnection()).LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: s.leaseTTL, ID: manyLease})
	if err != nil {
		return err
	}
	return s.fill(ctx, "leased/", keys, manyLease)
}

func revokeMany(ctx context.Context, s *attackRun) error {
	began := time.Now()
	// Not through the client, which would retry after a timeout.
	_, err := pb.NewLeaseClient(s.client.ActiveConnection()).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: manyLease})
	s.answers.add("revoke: " + errorText(err))
	s.note("answered after %.1f s", time.Since(began).Seconds())
	if s.mixed() {
		return ctx.Err()
	}
	// After a timeout the revocation may still be applied.
	const limit = 30 * time.Second
	var left *clientv3.GetResponse
	gone := crash.Eventually(limit, func() bool {
		pause(ctx, 100*time.Millisecond)
		left, err = s.client.Get(ctx, attackSpace+"leased/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		return ctx.Err() != nil || err == nil && left.Count == 0
	})
	if !gone {
		s.fault("the keys of the revoked lease are not gone after %v", limit)
	}
	s.note("its keys are gone after %.1f s", time.Since(began).Seconds())
	return ctx.Err()
}
