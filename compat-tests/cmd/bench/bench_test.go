package main

import (
	"bytes"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Messages are counted right wherever the frames that carry them are cut.
func TestMessageReaderOverAnyCut(t *testing.T) {
	var stream []byte
	for _, response := range []*pb.WatchResponse{
		{Header: &pb.ResponseHeader{Revision: 7}, WatchId: 3, Created: true},
		{Header: &pb.ResponseHeader{Revision: 8}, WatchId: 3, Events: []*mvccpb.Event{
			{Kv: &mvccpb.KeyValue{Key: []byte("a"), Value: bytes.Repeat([]byte{0x18}, 300)}},
			{Kv: &mvccpb.KeyValue{Key: []byte("b")}},
		}},
		{Header: &pb.ResponseHeader{Revision: 9}, Events: []*mvccpb.Event{{Kv: &mvccpb.KeyValue{Key: []byte("c")}}}},
	} {
		message, err := proto.Marshal(response)
		if err != nil {
			t.Fatal(err)
		}
		stream = append(stream, 0)
		stream = binary.BigEndian.AppendUint32(stream, uint32(len(message)))
		stream = append(stream, message...)
	}
	for cut := range stream {
		var reader messageReader
		board := &scoreboard{}
		for _, part := range [][]byte{stream[:cut], stream[cut:]} {
			if err := reader.take(part, board); err != nil {
				t.Fatal(err)
			}
		}
		if created, delivered := board.created.Load(), board.delivered.Load(); created != 1 || delivered != 3 {
			t.Fatalf("cut at %d: %d created, %d delivered", cut, created, delivered)
		}
	}
}

func TestRandomKeysAreKeys(t *testing.T) {
	const keys = 1000
	known := map[string]bool{}
	for n := range keys {
		known[string(appendKey(nil, n))] = true
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 10 * keys {
		field := appendRandomKey(nil, rng, keys)
		key, length := protowire.ConsumeBytes(field)
		if length != len(field) || len(key) != keyLength || !known[string(key)] {
			t.Fatalf("%q is no key", key)
		}
	}
}

// A ratio above 1 is good news for etched, whichever way the figure goes.
func TestRatio(t *testing.T) {
	for _, c := range []struct {
		better       better
		etcd, etched float64
		want         float64
	}{
		{higher, 100, 200, 2},
		{higher, 200, 100, 0.5},
		{lower, 100, 200, 0.5},
		{lower, 200, 100, 2},
		{lower, 0, 100, 0},
	} {
		if got := ratio(c.better, c.etcd, c.etched); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestPercentiles(t *testing.T) {
	var all []time.Duration
	for n := 100; n >= 1; n-- {
		all = append(all, time.Duration(n))
	}
	if p50, p99 := percentiles(all); p50 != 50 || p99 != 99 {
		t.Errorf("p50 %d, p99 %d", p50, p99)
	}
}

// The plot is well-formed and names every figure that is not aside.
func TestDraw(t *testing.T) {
	plot := draw([]comparison{
		{Title: "a <row>", Name: "shown", Unit: "ms", Etcd: spread{2, 1, 3}, Etched: spread{1, 1, 1}, Ratio: 2, Least: 1, Most: 3},
		{Title: "a <row>", Name: "hidden", Aside: true, Ratio: 1},
		{Title: "another", Name: "unknown"},
	}, "caption")
	decoder := xml.NewDecoder(strings.NewReader(plot))
	for {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, word := range []string{"shown", "unknown", "caption", "2.00×"} {
		if !strings.Contains(plot, word) {
			t.Errorf("the plot lacks %q", word)
		}
	}
	if strings.Contains(plot, "hidden") {
		t.Error("the plot shows a figure that is aside")
	}
}

// Rows for one member and rows for more do not mix.
func TestRowsFitTheMembers(t *testing.T) {
	for members, known := range map[int]string{1: "million", 3: "failover"} {
		chosen, err := choose("", members)
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range []string{"million", "failover", "put-100"} {
			found := slices.ContainsFunc(chosen, func(r row) bool { return r.id == other })
			if found != (other == known || other == "put-100") {
				t.Errorf("%d members, row %s: %t", members, other, found)
			}
		}
	}
	if _, err := choose("million", 3); err == nil {
		t.Error("a row for one member is taken for three")
	}
}
