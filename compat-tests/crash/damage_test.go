package crash

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

const (
	methodPut     = "/etcdserverpb.KV/Put"
	methodRange   = "/etcdserverpb.KV/Range"
	methodTxn     = "/etcdserverpb.KV/Txn"
	methodCompact = "/etcdserverpb.KV/Compact"
	methodWatch   = "/etcdserverpb.Watch/Watch"
	methodGrant   = "/etcdserverpb.Lease/LeaseGrant"
	methodHashKV  = "/etcdserverpb.Maintenance/HashKV"
)

// damage is a server that breaks a promise, and what the test must call that.
type damage struct {
	name      string
	finds     []Kind
	tamper    func() tamper
	whileDown func() func(dataDir string) error
	mode      KillMode
}

// damages are tried one by one. The first breaks nothing: it shows that the
// proxy itself is not what the others are found by.
var damages = []damage{
	{name: "none", tamper: func() tamper { return tamper{} }},
	{name: "a put is acknowledged, not made", finds: []Kind{LostWrite}, tamper: falseAnswer},
	{name: "a put is made twice", finds: []Kind{Doubled}, tamper: doublePut},
	{name: "a put is refused, yet made", finds: []Kind{Phantom, Unavailable}, tamper: refusedPut},
	{name: "half a transaction", finds: []Kind{HalfTransaction}, tamper: halfTxn},
	{name: "an old answer to a read", finds: []Kind{StaleRead}, tamper: oldAnswer},
	{name: "a watch without an event", finds: []Kind{WatchBroken}, tamper: watched(func(response *pb.WatchResponse) []*pb.WatchResponse {
		response.Events = response.Events[1:]
		return []*pb.WatchResponse{response}
	})},
	{name: "a watch with an event twice", finds: []Kind{WatchBroken}, tamper: watched(func(response *pb.WatchResponse) []*pb.WatchResponse {
		return []*pb.WatchResponse{response, response}
	})},
	{name: "a watch without prev_kv", finds: []Kind{WatchBroken}, tamper: watched(func(response *pb.WatchResponse) []*pb.WatchResponse {
		for _, event := range response.Events {
			event.PrevKv = nil
		}
		return []*pb.WatchResponse{response}
	})},
	{name: "a lease of two seconds for an hour", finds: []Kind{LeaseBroken}, tamper: shortLease},
	{name: "a compaction acknowledged, not made", finds: []Kind{CompactionBroken}, tamper: noCompaction, mode: DuringCompaction},
	{name: "another HashKV", finds: []Kind{WrongHash}, tamper: otherHash},
	{name: "the log's tail is lost", finds: []Kind{LostWrite, RevisionBack, WatchBroken, Unavailable}, whileDown: func() func(string) error { return loseLogTail }},
	{name: "an older data directory", finds: []Kind{RevisionBack}, whileDown: olderData},
}

// TestFindsDamage shows that TestKills can fail: each way of breaking a promise
// must be found, and called by its name.
func TestFindsDamage(t *testing.T) {
	for _, damage := range damages {
		t.Run(damage.name, func(t *testing.T) {
			report := damage.run(t)
			if len(damage.finds) == 0 {
				if !report.Empty() {
					t.Fatalf("nothing was damaged, but found:\n%s", report.String())
				}
				return
			}
			// Where the damage falls is chance: it may fall where another name is due.
			for attempt := 1; !report.Has(damage.finds...); attempt++ {
				if attempt == 3 {
					t.Fatalf("not found: %q\n%s", damage.finds, report.String())
				}
				report = damage.run(t)
			}
			first, _, _ := strings.Cut(report.String(), "\n  and ")
			t.Log(first)
		})
	}
}

func (d damage) run(t *testing.T) Report {
	opts := options(t)
	defer os.RemoveAll(opts.Dir)
	if d.tamper != nil {
		opts.Between = func(endpoint string) (string, error) {
			p, err := newProxy(endpoint, d.tamper())
			if err != nil {
				return "", err
			}
			t.Cleanup(p.close)
			return p.listener.Addr().String(), nil
		}
	}
	if d.whileDown != nil {
		opts.WhileDown = d.whileDown()
	}
	run, err := NewRun(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	// Where the machine is slow, a round may be over before anything is damaged.
	rounds := 6
	if len(d.finds) == 0 {
		rounds = 1
	}
	var report Report
	for ; rounds > 0 && report.Empty(); rounds-- {
		if report, err = run.Round(d.mode); err != nil {
			t.Fatal(err)
		}
	}
	return report
}

// every answers true each nth time.
func every(n int) func() bool {
	var calls int
	return func() bool {
		calls++
		return calls%n == 0
	}
}

func decode[M proto.Message](message []byte, into M) M {
	if err := proto.Unmarshal(message, into); err != nil {
		panic(err)
	}
	return into
}

func encode(message proto.Message) []byte {
	encoded, err := proto.Marshal(message)
	if err != nil {
		panic(err)
	}
	return encoded
}

func falseAnswer() tamper {
	var last int64
	now := every(10)
	return tamper{
		request: func(_ *proxy, method string, message []byte) ([][]byte, []byte) {
			if method == methodPut && last > 0 && now() {
				return nil, encode(&pb.PutResponse{Header: &pb.ResponseHeader{Revision: last + 1}})
			}
			return [][]byte{message}, nil
		},
		response: func(_ *proxy, method string, message []byte) ([][]byte, error) {
			if method == methodPut {
				last = max(last, decode(message, &pb.PutResponse{}).Header.Revision)
			}
			return [][]byte{message}, nil
		},
	}
}

func doublePut() tamper {
	now := every(10)
	return tamper{request: func(p *proxy, method string, message []byte) ([][]byte, []byte) {
		if method == methodPut && now() {
			_ = p.invoke(method, message, &raw{})
		}
		return [][]byte{message}, nil
	}}
}

func refusedPut() tamper {
	now := every(10)
	return tamper{response: func(_ *proxy, method string, message []byte) ([][]byte, error) {
		if method == methodPut && now() {
			return nil, errRefused
		}
		return [][]byte{message}, nil
	}}
}

func halfTxn() tamper {
	// No other transaction has this many puts and nothing else.
	const half = 5
	now := every(5)
	return tamper{
		request: func(_ *proxy, method string, message []byte) ([][]byte, []byte) {
			if method != methodTxn {
				return [][]byte{message}, nil
			}
			request := decode(message, &pb.TxnRequest{})
			if len(request.Success) == groupSize && now() {
				request.Success = request.Success[:half]
			}
			return [][]byte{encode(request)}, nil
		},
		response: func(_ *proxy, method string, message []byte) ([][]byte, error) {
			if method != methodTxn {
				return [][]byte{message}, nil
			}
			response := decode(message, &pb.TxnResponse{})
			puts := 0
			for _, part := range response.Responses {
				if part.GetResponsePut() != nil {
					puts++
				}
			}
			if puts == half && len(response.Responses) == half {
				response.Responses = append(response.Responses, response.Responses[:groupSize-half]...)
			}
			return [][]byte{encode(response)}, nil
		},
	}
}

func oldAnswer() tamper {
	answers := map[string][]byte{}
	now := every(5)
	return tamper{request: func(p *proxy, method string, message []byte) ([][]byte, []byte) {
		if method != methodRange || decode(message, &pb.RangeRequest{}).Revision != 0 {
			return [][]byte{message}, nil
		}
		old, known := answers[string(message)]
		if !known {
			var response raw
			if p.invoke(method, message, &response) == nil {
				answers[string(message)] = response.bytes
			}
			return [][]byte{message}, nil
		}
		if now() {
			return nil, old
		}
		return [][]byte{message}, nil
	}}
}

func watched(change func(*pb.WatchResponse) []*pb.WatchResponse) func() tamper {
	return func() tamper {
		now := every(20)
		return tamper{response: func(_ *proxy, method string, message []byte) ([][]byte, error) {
			if method != methodWatch {
				return [][]byte{message}, nil
			}
			response := decode(message, &pb.WatchResponse{})
			withPrev := false
			for _, event := range response.Events {
				withPrev = withPrev || event.PrevKv != nil && event.Type == mvccpb.Event_PUT
			}
			if !withPrev || !now() {
				return [][]byte{message}, nil
			}
			var give [][]byte
			for _, changed := range change(response) {
				give = append(give, encode(changed))
			}
			return give, nil
		}}
	}
}

func shortLease() tamper {
	return tamper{
		request: func(_ *proxy, method string, message []byte) ([][]byte, []byte) {
			if method == methodGrant {
				request := decode(message, &pb.LeaseGrantRequest{})
				request.TTL = min(request.TTL, 5)
				message = encode(request)
			}
			return [][]byte{message}, nil
		},
		response: func(_ *proxy, method string, message []byte) ([][]byte, error) {
			if method == methodGrant {
				response := decode(message, &pb.LeaseGrantResponse{})
				if response.TTL == 5 {
					response.TTL = longTTL
				}
				message = encode(response)
			}
			return [][]byte{message}, nil
		},
	}
}

func noCompaction() tamper {
	return tamper{request: func(_ *proxy, method string, message []byte) ([][]byte, []byte) {
		if method == methodCompact {
			return nil, encode(&pb.CompactionResponse{Header: &pb.ResponseHeader{Revision: 1 << 40}})
		}
		return [][]byte{message}, nil
	}}
}

func otherHash() tamper {
	return tamper{response: func(_ *proxy, method string, message []byte) ([][]byte, error) {
		if method == methodHashKV {
			response := decode(message, &pb.HashKVResponse{})
			response.Hash++
			message = encode(response)
		}
		return [][]byte{message}, nil
	}}
}

// loseLogTail overwrites the last blocks written to the raft log with zeros, as
// if they had never been synced. It knows the names of etcd's and etched's files;
// later ones may have been made ahead and hold nothing.
func loseLogTail(dataDir string) error {
	var logs []string
	err := filepath.WalkDir(dataDir, func(path string, _ fs.DirEntry, err error) error {
		if extension := filepath.Ext(path); extension == ".wal" || extension == ".raftlog" {
			logs = append(logs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Sort(logs)
	for _, path := range slices.Backward(logs) {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		const block, lost = 4096, 256
		blocks := len(bytes.TrimRight(content, "\x00")) / block
		if blocks <= lost {
			continue
		}
		clear(content[(blocks-lost)*block:])
		return os.WriteFile(path, content, 0o600)
	}
	// Little was written where the machine is slow; the next round damages it.
	return nil
}

// olderData puts back, at the second kill, what the data directory held at the first.
func olderData() func(string) error {
	var kills int
	return func(dataDir string) error {
		old := dataDir + ".old"
		if kills++; kills == 1 {
			return os.CopyFS(old, os.DirFS(dataDir))
		}
		if err := os.RemoveAll(dataDir); err != nil {
			return err
		}
		return os.CopyFS(dataDir, os.DirFS(old))
	}
}
