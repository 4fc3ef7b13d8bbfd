package edges

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// small attacks hold little for each of very many calls: answers, events, headers.
func smallAttacks() []*attack {
	smallAnswers := func(options clientOptions) func(context.Context, *attackRun) error {
		return func(ctx context.Context, s *attackRun) error {
			return callUnreadOn(ctx, s, s.count(10_000), options, pb.KV_Range_FullMethodName, rangeOf("small", ""))
		}
	}
	return []*attack{
		{
			name:  "answers-small",
			does:  "10,000 answers of 30 kB that nobody reads; windows of 2 GB",
			setup: smallValue, attack: smallAnswers(clientOptions{wide: true, unread: true}), divisor: 10,
		},
		{
			name:  "answers-closed",
			does:  "the same, by a client whose windows let nothing through",
			setup: smallValue, attack: smallAnswers(clientOptions{closed: true, unread: true}), divisor: 10,
		},
		{
			name:  "streams-sorted",
			does:  "100 RangeStreams of 165 MB, ordered by value, which nobody reads; windows of 2 GB",
			setup: largeValues, attack: sortedStreams, divisor: 10,
		},
		{
			name:   "watches-small",
			does:   "3,000 streams with a watch each, unread, windows of 2 GB, and 500 puts of 100 bytes",
			attack: smallEvents, divisor: 10,
		},
		{
			name:   "headers",
			does:   "1,000 calls of 24,000 headers each, of which a byte each is sent, and no message",
			attack: manyHeaders, divisor: 4,
		},
		{
			name:   "header-blocks",
			does:   "100 connections that send 15 MB of a call's headers without their end",
			attack: endlessHeaders, divisor: 4,
		},
		{
			name:   "resets",
			does:   "10 connections that begin 20,000 calls each and give each up at once",
			attack: rapidResets, divisor: 10,
		},
		{
			name:   "continuations",
			does:   "10 connections that continue a call's headers 200,000 times each, with nothing",
			attack: emptyContinuations, divisor: 10,
		},
	}
}

func rapidResets(ctx context.Context, s *attackRun) error {
	return s.flood(ctx, func(w *http2Conn) error {
		for range s.count(20_000) {
			opened, err := w.open(pb.KV_Range_FullMethodName)
			if err != nil {
				return err
			}
			if err := w.write(func() error { return w.framer.WriteRSTStream(opened.id, http2.ErrCodeCancel) }); err != nil {
				return err
			}
			w.end(opened.id, "given up")
		}
		return nil
	})
}

func emptyContinuations(ctx context.Context, s *attackRun) error {
	return s.flood(ctx, func(w *http2Conn) error {
		opening, err := w.openingBlock()
		if err != nil {
			return err
		}
		return w.write(func() error {
			err := w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: opening})
			for n := 0; n < s.count(200_000) && err == nil; n++ {
				err = w.framer.WriteContinuation(1, false, nil)
			}
			return err
		})
	})
}

// flood runs f on ten connections at once, and counts how they ended.
func (s *attackRun) flood(ctx context.Context, f func(*http2Conn) error) error {
	var flooding sync.WaitGroup
	for range 10 {
		w, err := s.http2Conn(clientOptions{})
		if err != nil {
			s.answers.add(errorText(err))
			continue
		}
		flooding.Go(func() {
			if err := f(w); err != nil {
				s.answers.add("cut off")
				return
			}
			s.answers.add("all taken")
		})
	}
	flooding.Wait()
	pause(ctx, s.holdTime())
	return ctx.Err()
}

func smallValue(ctx context.Context, s *attackRun) error {
	return s.putOnce(ctx, "small", 30*kilobyte)
}

func sortedStreams(ctx context.Context, s *attackRun) error {
	byValue := rangeOf("wide/", "wide0")
	byValue.SortTarget = pb.RangeRequest_VALUE
	return callUnread(ctx, s, s.count(100), true, pb.KV_RangeStream_FullMethodName, byValue)
}

func smallEvents(ctx context.Context, s *attackRun) error {
	watch := framed(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte(attackSpace + "watched"),
	}}})
	err := s.onConnections(ctx, s.count(3000), clientOptions{wide: true, unread: true}, func(w *http2Conn) error {
		opened, err := w.open(pb.Watch_Watch_FullMethodName)
		if err != nil {
			return err
		}
		s.answers.add("watch opened")
		return opened.send(ctx, watch, false)
	})
	if err != nil {
		return err
	}
	pause(ctx, time.Second)
	began := time.Now()
	var put tally
	for range s.count(500) {
		put.add(errorText(s.put(ctx, "watched", 100)))
	}
	s.note("puts of 100 bytes took %.1f s: %v", time.Since(began).Seconds(), &put)
	pause(ctx, s.holdTime())
	return ctx.Err()
}

func manyHeaders(ctx context.Context, s *attackRun) error {
	const headers = 24_000
	more := make([]hpack.HeaderField, headers)
	for n := range more {
		more[n] = hpack.HeaderField{Name: "edges", Value: "again"}
	}
	var mu sync.Mutex
	var calls []*call
	err := s.onConnections(ctx, s.count(1000), clientOptions{}, func(w *http2Conn) error {
		opened, err := w.open(pb.KV_Put_FullMethodName, more...)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, opened)
		return nil
	})
	pause(ctx, s.holdTime())
	s.countOpen(calls)
	return err
}

func endlessHeaders(ctx context.Context, s *attackRun) error {
	const blockBytes = 15 * megabyte
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	field := hpack.HeaderField{Name: "edges", Value: string(bytes.Repeat([]byte("x"), widestFrame-100)), Sensitive: true}
	if err := encoder.WriteField(field); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, 3*s.holdTime())
	defer cancel()
	var sending sync.WaitGroup
	for range s.count(100) {
		w, err := s.http2Conn(clientOptions{})
		if err != nil {
			s.answers.add(errorText(err))
			continue
		}
		sending.Go(func() {
			sent, err := w.sendHeaders(limited, block.Bytes(), blockBytes)
			switch {
			case err == nil:
				s.answers.add("all but the end taken")
			case limited.Err() != nil || sent < blockBytes:
				s.answers.add("not read on")
			default:
				s.answers.add(errorText(err))
			}
		})
	}
	sending.Wait()
	pause(ctx, s.holdTime())
	return ctx.Err()
}

// sendHeaders sends so many bytes of a block that does not end, each fragment a frame.
func (w *http2Conn) sendHeaders(ctx context.Context, fragment []byte, blockBytes int) (sent int, err error) {
	opening, err := w.openingBlock()
	if err != nil {
		return 0, err
	}
	err = w.write(func() error {
		return w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: opening})
	})
	for sent < blockBytes && err == nil {
		if ctx.Err() != nil {
			return sent, ctx.Err()
		}
		if err = w.write(func() error { return w.framer.WriteContinuation(1, false, fragment) }); err == nil {
			sent += len(fragment)
		}
	}
	if err != nil {
		return sent, fmt.Errorf("after %d bytes: %w", sent, err)
	}
	return sent, nil
}

// openingBlock is what the headers of a put begin with.
func (w *http2Conn) openingBlock() ([]byte, error) {
	w.writing.Lock()
	defer w.writing.Unlock()
	w.block.Reset()
	for _, field := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"},
		{Name: ":path", Value: pb.KV_Put_FullMethodName}, {Name: ":authority", Value: "edges"},
	} {
		if err := w.encoder.WriteField(field); err != nil {
			return nil, err
		}
	}
	return bytes.Clone(w.block.Bytes()), nil
}
