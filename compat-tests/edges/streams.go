package edges

import (
	"context"
	"fmt"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2/hpack"
)

// streamAttacks hold little for each of very many streams.
func streamAttacks() []*attack {
	return []*attack{
		{
			name: "streams-open",
			does: "40,000 streams for watches, without one, on 40 connections",
			attack: func(ctx context.Context, s *attackRun) error {
				return openStreams(ctx, s, 40_000, pb.Watch_Watch_FullMethodName, nil)
			}, divisor: 10,
		},
		{
			name: "calls-open",
			does: "20,000 calls without a message, with 13 kB of headers each, on 20 connections",
			attack: func(ctx context.Context, s *attackRun) error {
				return openStreams(ctx, s, 20_000, pb.KV_Put_FullMethodName, longHeaders())
			}, divisor: 10,
		},
	}
}

func longHeaders() []hpack.HeaderField {
	more := make([]hpack.HeaderField, 100)
	for n := range more {
		more[n] = hpack.HeaderField{Name: fmt.Sprint("edges-", n), Value: fmt.Sprintf("%0100d", n)}
	}
	return more
}

// openStreams opens calls and sends nothing but their headers.
func openStreams(ctx context.Context, s *attackRun, streams int, path string, more []hpack.HeaderField) error {
	const each = 1000
	var mu sync.Mutex
	var calls []*call
	var opening sync.WaitGroup
	for rest := s.count(streams); rest > 0 && ctx.Err() == nil; rest -= each {
		w, err := s.http2Conn(clientOptions{})
		if err != nil {
			s.answers.addMany(errorText(err), min(rest, each))
			continue
		}
		opening.Go(func() {
			for n := range min(rest, each) {
				opened, err := w.open(path, more...)
				if err != nil {
					s.answers.addMany(errorText(err), min(rest, each)-n)
					return
				}
				mu.Lock()
				calls = append(calls, opened)
				mu.Unlock()
			}
		})
	}
	opening.Wait()
	pause(ctx, s.holdTime())
	s.countOpen(calls)
	return ctx.Err()
}
