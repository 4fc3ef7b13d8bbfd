package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

// eachStore tests members of both: one that is by itself, and a follower of three.
func eachStore(t *testing.T, test func(t *testing.T, member *harness.Member)) {
	t.Parallel()
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		for _, members := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s of %d", kind, members), func(t *testing.T) {
				t.Parallel()
				cluster := harness.StartCluster(t, kind, harness.ClusterOptions{Members: members, Direct: true})
				leader, err := cluster.WaitLeader(settleLimit)
				must(t, err)
				if members > 1 {
					leader = cluster.Others(leader)[0]
				}
				test(t, leader)
			})
		}
	}
}

// The API server asks for progress only where every member's version, from its first answer on, is a
// semantic one from 3.5.13 on.
func TestVersionForProgress(t *testing.T) {
	eachStore(t, func(t *testing.T, member *harness.Member) {
		status, err := member.Status(harness.Context(t, settleLimit))
		must(t, err)
		parts := regexp.MustCompile(`^(\d+)\.(\d+)\.(\d+)(-|\+|$)`).FindStringSubmatch(status.Version)
		if parts == nil {
			t.Fatalf("version %q is not a semantic one", status.Version)
		}
		major, minor := number(t, parts[1]), number(t, parts[2])
		if major < 3 || major == 3 && minor < 6 {
			t.Errorf("version %s, from which progress is not asked for", status.Version)
		}
	})
}

// Progress to a revision comes behind every event up to it, of all watches of the stream, however
// fast things change; and it comes soon.
func TestProgressBehindEvents(t *testing.T) {
	eachStore(t, func(t *testing.T, member *harness.Member) {
		const writes = 600
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		client := member.Client(t)
		first, err := client.Put(ctx, "/registry/first", "")
		must(t, err)
		stream, err := pb.NewWatchClient(member.Dial(t)).Watch(ctx)
		must(t, err)
		// Each change is an event of one of two watches.
		for _, prefix := range []string{"/registry/a/", "/registry/b/"} {
			created := &pb.WatchCreateRequest{Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix)), StartRevision: first.Header.Revision + 1}
			must(t, stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: created}}))
		}
		var writing, asking sync.WaitGroup
		writing.Go(func() {
			for i := range writes {
				if _, err := client.Put(ctx, fmt.Sprintf("/registry/%c/%d", 'a'+i%2, i%7), fmt.Sprint(i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
		asking.Go(func() {
			ask := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
			for ctx.Err() == nil {
				if stream.Send(ask) != nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
		last, ends, progress := first.Header.Revision, first.Header.Revision+writes, 0
		seen := map[int64]bool{}
		for settled := int64(0); settled < ends; {
			message, err := stream.Recv()
			if err != nil {
				t.Fatalf("at revision %d of %d, after %d of progress: %v", last, ends, progress, err)
			}
			for _, one := range message.Events {
				if revision := one.Kv.ModRevision; revision <= settled || seen[revision] {
					t.Fatalf("an event of revision %d after progress to %d", revision, settled)
				}
				seen[one.Kv.ModRevision] = true
			}
			if message.WatchId != -1 || message.Created {
				continue
			}
			progress++
			settled = message.Header.Revision
			for ; last < settled; last++ {
				if !seen[last+1] {
					t.Fatalf("progress to %d before the event of %d", settled, last+1)
				}
			}
		}
		// The last write may be seen before its writer is answered.
		writing.Wait()
		cancel()
		asking.Wait()
		if len(seen) != writes {
			t.Errorf("%d events of %d changes", len(seen), writes)
		}
		t.Logf("%d of progress", progress)
	})
}

// chunksOf reads a stream and checks what the API server takes for granted: every chunk has keys,
// unless nothing is in the range at all; more to come is said by the last one alone, which also has
// the revision.
func chunksOf(ctx context.Context, client pb.KVClient, request *pb.RangeRequest) (whole *pb.RangeResponse, chunks int, err error) {
	stream, err := client.RangeStream(ctx, request)
	if err != nil {
		return nil, 0, err
	}
	whole = &pb.RangeResponse{}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if whole.Header == nil {
				return nil, chunks, fmt.Errorf("%d chunks without a revision", chunks)
			}
			return whole, chunks, nil
		}
		if err != nil {
			return nil, chunks, err
		}
		part := chunk.RangeResponse
		chunks++
		switch {
		case whole.Header != nil:
			return nil, chunks, errors.New("a chunk behind the one with the revision")
		case len(part.Kvs) == 0 && (chunks > 1 || part.More || part.Header == nil):
			return nil, chunks, fmt.Errorf("chunk %d has no keys: more %t", chunks, part.More)
		}
		whole.Kvs = append(whole.Kvs, part.Kvs...)
		whole.Header, whole.More, whole.Count = part.Header, part.More, part.Count
	}
}

// What an API server makes of chunks: pages, and what is left after each.
func TestChunksOfRangeStream(t *testing.T) {
	eachStore(t, func(t *testing.T, member *harness.Member) {
		const keys, prefix, end = 3000, "/registry/things/", "/registry/things0"
		ctx := harness.Context(t, 2*time.Minute)
		client, kv := member.Client(t), pb.NewKVClient(member.Dial(t))
		if whole, _, err := chunksOf(ctx, kv, &pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(end)}); err != nil || whole.Count != 0 || whole.More {
			t.Fatalf("nothing: %v %v", whole, err)
		}
		value := strings.Repeat("v", 1500)
		for i := 0; i < keys; i += 100 {
			var puts []clientv3.Op
			for j := i; j < i+100; j++ {
				puts = append(puts, clientv3.OpPut(fmt.Sprintf("%s%05d", prefix, j), value))
			}
			_, err := client.Txn(ctx).Then(puts...).Commit()
			must(t, err)
		}
		last, err := client.Get(ctx, "nothing")
		must(t, err)
		_, err = client.Delete(ctx, fmt.Sprintf("%s%05d", prefix, keys-1))
		must(t, err)
		// Whole pages, a last one that is full, and sizes around those of chunks.
		for _, limit := range []int64{1, 9, 10, 11, 500, 1000, 1499, keys, 0} {
			next, left, most := prefix, int64(keys), 0
			for {
				whole, chunks, err := chunksOf(ctx, kv, &pb.RangeRequest{Key: []byte(next), RangeEnd: []byte(end), Limit: limit, Revision: last.Header.Revision})
				if err != nil {
					t.Fatalf("limit %d from %s: %v", limit, next, err)
				}
				got := int64(len(whole.Kvs))
				if whole.Count != left || whole.More != (got < left) || limit > 0 && whole.More && got != limit {
					t.Fatalf("limit %d from %s: %d keys, count %d of %d, more %t", limit, next, got, whole.Count, left, whole.More)
				}
				most, left = max(most, chunks), left-got
				if !whole.More || limit < 100 && left < keys-200 {
					break
				}
				next = string(whole.Kvs[got-1].Key) + "\x00"
			}
			if limit == 0 && most < 2 {
				t.Errorf("%d keys came in %d chunks", keys, most)
			}
		}
	})
}

// A stream that names no revision is of the one that it ends with, whatever changes meanwhile.
func TestRangeStreamIsOfOneRevision(t *testing.T) {
	eachStore(t, func(t *testing.T, member *harness.Member) {
		const keys, prefix, end, streams = 1000, "/registry/things/", "/registry/things0", 30
		ctx := harness.Context(t, 2*time.Minute)
		client, kv := member.Client(t), pb.NewKVClient(member.Dial(t))
		padding := strings.Repeat("v", 1500)
		for i := 1; i < keys; i++ {
			_, err := client.Put(ctx, fmt.Sprintf("%s%05d", prefix, i), padding)
			must(t, err)
		}
		// Both ends of the range, and a key that is there or not.
		write := func(round int) error {
			value := strconv.Itoa(round)
			middle := clientv3.OpPut(prefix+"00500x", value)
			if round%2 == 1 {
				middle = clientv3.OpDelete(prefix + "00500x")
			}
			_, err := client.Txn(ctx).Then(clientv3.OpPut(prefix+"00000", value), middle, clientv3.OpPut(prefix+"99999", value)).Commit()
			return err
		}
		must(t, write(0))
		stop := make(chan struct{})
		var writing sync.WaitGroup
		writing.Go(func() {
			for round := 1; ; round++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := write(round); err != nil {
					t.Error(err)
					return
				}
			}
		})
		defer writing.Wait()
		defer close(stop)
		rounds := map[string]bool{}
		for range streams {
			whole, chunks, err := chunksOf(ctx, kv, &pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(end)})
			must(t, err)
			begin, finish := whole.Kvs[0], whole.Kvs[len(whole.Kvs)-1]
			round, _ := strconv.Atoi(string(begin.Value))
			if want := keys + 1 + (round+1)%2; string(begin.Value) != string(finish.Value) || len(whole.Kvs) != want || whole.Count != int64(want) {
				t.Fatalf("rounds %s and %s in one answer of %d chunks, %d keys, count %d", begin.Value, finish.Value, chunks, len(whole.Kvs), whole.Count)
			}
			if begin.ModRevision > whole.Header.Revision || finish.ModRevision != begin.ModRevision {
				t.Fatalf("keys of %d and %d in an answer of revision %d", begin.ModRevision, finish.ModRevision, whole.Header.Revision)
			}
			rounds[string(begin.Value)] = true
			again, err := client.Get(ctx, prefix+"00000", clientv3.WithRev(whole.Header.Revision))
			must(t, err)
			if string(again.Kvs[0].Value) != string(begin.Value) {
				t.Fatalf("at revision %d lies round %s, and the stream has %s", whole.Header.Revision, again.Kvs[0].Value, begin.Value)
			}
		}
		if len(rounds) < 2 {
			t.Errorf("%d streams of one round: nothing changed meanwhile", streams)
		}
	})
}
