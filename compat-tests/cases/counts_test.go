package cases

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

const (
	countedKeys  = 150_000
	countedAtOne = 1_000
)

func countedKey(number int) string {
	return fmt.Sprintf("/registry/kind%d/namespace-%03d/name-%07d", number%3, number%97, number)
}

// counting asks both for counts: pages, counts alone, and streams.
type counting struct {
	*pair
	random *rand.Rand
}

func (c *counting) randomSpan() *pb.RangeRequest {
	first, last := countedKey(c.random.IntN(countedKeys)), countedKey(c.random.IntN(countedKeys))
	switch c.random.IntN(6) {
	case 0:
		return everything()
	case 1:
		return span(first, "\x00")
	case 2:
		return span("/registry/", "/registry0")
	case 3:
		kind := c.random.IntN(3)
		return span(fmt.Sprintf("/registry/kind%d/", kind), fmt.Sprintf("/registry/kind%d0", kind))
	default:
		return span(min(first, last), max(first, last))
	}
}

// ask compares counts of random ranges at these revisions, 0 for the newest.
func (c *counting) ask(what string, revisions ...int64) {
	c.t.Helper()
	for range 25 {
		for _, revision := range revisions {
			request := c.randomSpan()
			request.Revision = revision
			request.CountOnly = c.random.IntN(2) == 0
			request.KeysOnly = true
			// What is not cut is seldom asked for: it is all of the keys.
			request.Limit = int64(1 + c.random.IntN(500))
			keeps := func(proto.Message) {}
			switch c.random.IntN(8) {
			case 0:
				// Many keys have one create revision: in what order is anybody's choice.
				request.SortTarget = pb.RangeRequest_CREATE
				keeps = func(answer proto.Message) { answer.(*pb.RangeResponse).Kvs = nil }
			case 1:
				request.MaxModRevision = 1 + c.random.Int64N(200)
			}
			outcome := c.do(request, keeps)
			if outcome.Err != nil {
				c.t.Errorf("%s: %s: etcd answers %v", what, describe(request), outcome.Err)
			}
		}
	}
}

// pages reads a range page by page at one revision, and writes between two pages where `write` says what.
func (c *counting) pages(revision int64, write func(page int) proto.Message) {
	c.t.Helper()
	all := span("/registry/kind1/", "/registry/kind10")
	all.Revision, all.Limit, all.KeysOnly = revision, 4_000, true
	for page := 0; ; page++ {
		answer := c.ok(all).(*pb.RangeResponse)
		if !answer.More {
			if page < 5 {
				c.t.Errorf("only %d pages", page)
			}
			return
		}
		all.Key = append(answer.Kvs[len(answer.Kvs)-1].Key, 0)
		if write != nil {
			c.ok(write(page))
		}
	}
}

// Counts of many keys, which are not those of a walk here: at the head and at older revisions, while
// keys come and go, behind deletions of many, a compaction, a stop and a kill.
func TestCountsOfManyKeys(t *testing.T) {
	t.Parallel()
	p := newPair(t, fmt.Sprintf("--max-txn-ops=%d", countedAtOne))
	c := &counting{pair: p, random: rand.New(rand.NewPCG(1, 2))}
	order := c.random.Perm(countedKeys)
	var revisions []int64
	for len(order) > 0 {
		var puts []proto.Message
		for _, number := range order[:countedAtOne] {
			puts = append(puts, put(countedKey(number), "v"))
		}
		order = order[countedAtOne:]
		c.do(txn(nil, ops(puts...), nil), func(answer proto.Message) {
			answer.(*pb.TxnResponse).Responses = nil
		})
		if len(order)%50_000 == 0 {
			revisions = append(revisions, p.revision())
			c.ask("while keys come", 0, revisions[0])
		}
	}
	c.ask("behind the last put", append(revisions, 0)...)
	c.pages(revisions[2], nil)
	before := p.revision()
	c.pages(before, func(page int) proto.Message {
		switch page % 3 {
		case 0:
			return del(countedKey(page*1_000 + 1))
		case 1:
			return put(countedKey(page*1_000+1)+"-more", "v")
		default:
			return put(countedKey(page*1_000+1), "again")
		}
	})
	// More than a slice, and some of them again.
	p.ok(delSpan("/registry/kind2/namespace-02", "/registry/kind2/namespace-05"))
	c.ask("behind a deletion", 0, before, revisions[1])
	for number := 0; number < 3_000; number += 7 {
		c.both(put(countedKey(number), "once more"))
	}
	c.ask("behind some that came again", 0, before)
	middle := p.revision()
	time.Sleep(2 * time.Second)
	c.ask("at rest", 0, before, middle)

	p.ok(compact(middle))
	c.ask("behind a compaction", 0, middle)
	p.fails(compacted, &pb.RangeRequest{
		Key: []byte("/"), RangeEnd: []byte("0"), CountOnly: true, Revision: middle - 1,
	})
	p.ok(delSpan("/registry/kind0/", "/registry/kind00"))
	c.ask("behind another deletion", 0, middle)

	duoRestart(p)
	c.ask("behind a restart", 0, middle)
	p.ok(put(countedKey(0), "v"))
	c.ask("behind a put", 0, middle)
	time.Sleep(1500 * time.Millisecond)
	c.ask("at rest behind a restart", 0, middle)
	for number := range 2_000 {
		c.both(put(countedKey(number*3), "v"))
	}
	duoKill(p)
	c.ask("behind a kill", 0, middle)
	p.ok(delSpan("\x00", "\x00"))
	c.ask("behind the last deletion", 0, middle)
	p.ok(compact(p.revision()))
	c.ask("behind the last compaction", 0)
}

// duoKill ends both servers where they are, and starts them again.
func duoKill(p *pair) {
	p.t.Helper()
	p.duo.Each(func(server *harness.Server) {
		if err := errors.Join(server.Kill(), server.Restart()); err != nil {
			p.t.Fatal(err)
		}
	})
	p.duo.Settle(p.t)
	for _, conn := range p.conn {
		conn.ResetConnectBackoff()
	}
	p.waitConnected()
}
