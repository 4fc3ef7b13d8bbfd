package cases

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"
)

// authorities are what clients put into :authority, which is often no authority.
var authorities = []string{
	"127.0.0.1:2379", "localhost", "[::1]:1", "EXAMPLE.com.:2379",
	// gRPC's C core sends the target that it was given.
	"ipv4:///127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2", "ipv6:%5B::1%5D:1", "dns:///host:1", "unix:/tmp/etcd.sock", "unix:tmp/etcd.sock",
	// Old and new grpc-go, of sockets of this machine.
	"unix:///tmp/etcd.sock", "/tmp/etcd.sock", "%2Ftmp%2Fetcd.sock", "unix-abstract:etcd", "passthrough:///127.0.0.1:1", "passthrough:///unix:///tmp/etcd.sock",
	// clientv3: 3.4, and 3.5.0 on.
	"endpoint://client-5e4f/127.0.0.1:1", "#initially=[http://127.0.0.1:1]", "#initially=[http://127.0.0.1:1;http://127.0.0.1:2]", "etcd-endpoints://0xc000123/127.0.0.1:1",
	"%23initially=%5Bhttp:%2F%2F127.0.0.1:1%5D",
	// What users configure.
	"http://127.0.0.1:1", "https://user@host/path?q#f", "user@host:1", "user:word@host:1", "a@b@c", "@", "@host",
	"fe80::1", "::1", "[fe80::1%eth0]:1", "[fe80::1%25eth0]:1", "[::1", "::1]", "[]", "[]:1", "[::1]x", "[", "]",
	"my_service:1", "_", "host:port", "host:", "host:99999", "host:-1", "host:0", ":1", ":", "a:b:c", "host,other", "a;b", "*", "a*b",
	"a b", " ", " host", "host ", "a\tb", "%", "%zz", "%00", "50%", "%20", "ß", "主机:1", "\xff", "a\x80b", "/", "?", "\\", "host/", "\"", "<a>", "{a}", "a|b", "a^b", "`",
	strings.Repeat("a", 300), strings.Repeat("127.0.0.1:2379,", 300), strings.Repeat("#", 5000),
	"",
}

// TestAuthorities sends them as most clients do, and in the header "host".
func TestAuthorities(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(put("a", "1"))
	var calls [][]hpack.HeaderField
	for _, authority := range authorities {
		pseudo, host := hpack.HeaderField{Name: ":authority", Value: authority}, hpack.HeaderField{Name: "host", Value: authority}
		calls = append(calls,
			append(fields(pseudo), usual...),
			append(fields(usual...), host),
			append(append(fields(pseudo), usual...), hpack.HeaderField{Name: "host", Value: "other"}),
			append(append(fields(hpack.HeaderField{Name: ":authority", Value: "other"}), usual...), host))
	}
	for _, call := range calls {
		var got [2]answered
		for side, server := range []*harness.Server{p.duo.Etched, p.duo.Etcd} {
			var err error
			if got[side], err = callByHand(server, call); err != nil {
				t.Errorf("%s: %.300v: %v after %+v", server.Kind(), call, err, got[side])
			}
		}
		if got[etched] != got[etcd] {
			t.Errorf("%.300q\n-etched %+v\n+etcd   %+v", call[3:], got[etched], got[etcd])
		}
		if got[etcd].GRPCStatus != "0" {
			t.Errorf("%.300q: etcd answers %+v", call[3:], got[etcd])
		}
	}
}

// text is a string of a header block, plain or in Huffman's code.
func text(value string, code bool) []byte {
	first, bytes := byte(0), []byte(value)
	if code {
		first, bytes = 0x80, hpack.AppendHuffmanString(nil, value)
	}
	return append(integer(first, 7, len(bytes)), bytes...)
}

// integer is one whose first byte has these bits before its own.
func integer(first byte, bits, value int) []byte {
	most := 1<<bits - 1
	if value < most {
		return []byte{first | byte(value)}
	}
	return binary.AppendUvarint([]byte{first | byte(most)}, uint64(value-most))
}

// representation is one way to write :authority into a header block.
type representation struct {
	first byte // what says whether it enters the table
	bits  int
	// named is an index, 0 for the name itself.
	named         int
	codeOf, coded bool // the name and the value are in Huffman's code
}

func (r representation) of(value string) []byte {
	name := integer(r.first, r.bits, r.named)
	if r.named == 0 {
		name = append(name, text(":authority", r.codeOf)...)
	}
	return append(name, text(value, r.coded)...)
}

func representations() (all []representation) {
	for _, r := range []representation{{first: 0x40, bits: 6}, {first: 0, bits: 4}, {first: 0x10, bits: 4}} {
		for _, r.coded = range []bool{false, true} {
			r.named, r.codeOf = 1, false
			all = append(all, r)
			for r.named = 0; ; {
				all = append(all, r)
				if r.codeOf {
					break
				}
				r.codeOf = true
			}
		}
	}
	return all
}

// framing is how a header block is put into frames.
type framing struct {
	name     string
	padding  uint8
	priority bool
	// cuts are where a frame ends, in hundredths of the block.
	cuts []int
}

var framings = []framing{
	{name: "one frame"}, {name: "padded", padding: 9}, {name: "with a priority", priority: true}, {name: "padded, with a priority", padding: 255, priority: true},
	{name: "two frames", cuts: []int{50}}, {name: "an empty first", cuts: []int{0}}, {name: "an empty last", cuts: []int{100}},
	{name: "many", cuts: []int{3, 9, 20, 20, 21, 30, 45, 50, 61, 75, 99}}, {name: "many, padded, with a priority", padding: 1, priority: true, cuts: []int{5, 20, 80}},
}

func (f framing) write(framer *http2.Framer, stream uint32, block []byte) error {
	var pieces [][]byte
	from := 0
	for _, cut := range append(f.cuts, 100) {
		until := len(block) * cut / 100
		pieces, from = append(pieces, block[from:until]), until
	}
	param := http2.HeadersFrameParam{StreamID: stream, BlockFragment: pieces[0], PadLength: f.padding, EndHeaders: len(pieces) == 1}
	if f.priority {
		param.Priority = http2.PriorityParam{Exclusive: true, Weight: 7}
	}
	written := framer.WriteHeaders(param)
	for n, piece := range pieces[1:] {
		written = errors.Join(written, framer.WriteContinuation(stream, n == len(pieces)-2, piece))
	}
	return written
}

// blocks are the header blocks of a connection's calls.
type blocks struct {
	name string
	all  [][]byte
}

const (
	// POST and http, which are static entries.
	methodAndScheme = "\x83\x86"
	tableOf         = 62 // the newest entry of a table
)

var (
	pathEnters = append(integer(0x40, 6, 4), text(pb.KV_Range_FullMethodName, true)...)
	pathStays  = append(integer(0, 4, 4), text(pb.KV_Range_FullMethodName, false)...)
	typeEnters = append(integer(0x40, 6, 31), text("application/grpc", true)...)
	typeStays  = append(integer(0, 4, 31), text("application/grpc", false)...)
	teEnters   = append(append([]byte{0x40}, text("te", false)...), text("trailers", true)...)
)

func join(parts ...[]byte) (all []byte) {
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

func indexed(n int) []byte { return integer(0x80, 7, n) }

// connections are what encoders may make of calls with this authority.
func connections(value string) (all []blocks) {
	begin := []byte(methodAndScheme)
	for _, r := range representations() {
		name := fmt.Sprintf("%+v", r)
		written := r.of(value)
		// The first call fills the table, the next refer to it, also by the name alone, in each way
		// to write a literal; then the table is emptied, and filled anew.
		if r.first != 0x40 {
			all = append(all, blocks{name + ", again and again", [][]byte{
				join(begin, pathEnters, written, typeEnters), join(begin, written, indexed(tableOf+1), indexed(tableOf)), join(begin, indexed(tableOf+1), written, indexed(tableOf)),
			}})
			continue
		}
		byName := func(first byte, bits, index int, other string) []byte {
			return append(integer(first, bits, index), text(other, r.coded)...)
		}
		whole := join(begin, pathEnters, written, typeEnters) // type, authority, path
		all = append(all,
			blocks{name + ", by its index", [][]byte{
				whole, join(begin, indexed(tableOf+2), indexed(tableOf+1), indexed(tableOf)), join(indexed(tableOf+1), begin, indexed(tableOf+2), indexed(tableOf)),
				// Another entry comes before it is referred to.
				join(begin, pathEnters, indexed(tableOf+2), indexed(tableOf+1), teEnters), join(begin, indexed(tableOf+1), indexed(tableOf+3), indexed(tableOf+2), indexed(tableOf)),
			}},
			blocks{name + ", by its name", [][]byte{
				whole, join(begin, indexed(tableOf+2), byName(0, 4, tableOf+1, value), indexed(tableOf)), join(begin, indexed(tableOf+2), byName(0x10, 4, tableOf+1, "host:1"), indexed(tableOf)),
				join(begin, indexed(tableOf+2), byName(0x40, 6, tableOf+1, value), indexed(tableOf+1)),
				join(begin, indexed(tableOf+3), indexed(tableOf), indexed(tableOf+1)),
				join(begin, indexed(tableOf+3), byName(0x40, 6, tableOf, "host:1"), indexed(tableOf+2)),
				join(begin, indexed(tableOf+4), byName(0x40, 6, tableOf, "#a[b]"), indexed(tableOf+3)),
				join(begin, indexed(tableOf+5), byName(0x40, 6, tableOf, ""), indexed(tableOf+4)),
				join(begin, indexed(tableOf+6), indexed(tableOf), indexed(tableOf+4)),
			}},
			blocks{name + ", its table emptied", [][]byte{
				whole, join(integer(0x20, 5, 0), integer(0x20, 5, 4096), whole), join(begin, indexed(tableOf+2), indexed(tableOf+1), indexed(tableOf)),
				join(integer(0x20, 5, 0), begin, pathStays, written, typeStays), join(begin, pathStays, written, typeStays),
				join(integer(0x20, 5, 4096), whole), join(begin, indexed(tableOf+2), indexed(tableOf+1), indexed(tableOf)),
			}},
			// It is left with room for few entries, so that those before drop out.
			blocks{name + ", a small table", [][]byte{
				join(integer(0x20, 5, 140), begin, pathStays, written, typeEnters), join(begin, pathStays, indexed(tableOf+1), indexed(tableOf)),
				join(begin, pathStays, written, typeStays), join(begin, pathStays, indexed(tableOf), indexed(tableOf+1)),
				join(begin, pathStays, written, typeEnters), join(begin, indexed(tableOf+1), pathStays, indexed(tableOf)),
			}},
		)
	}
	return all
}

// exchange makes the calls of a connection, one after the other, until one fails.
func exchange(server *harness.Server, frames framing, all [][]byte) (got []answered, failed error) {
	conn, err := net.Dial("tcp", server.Endpoint())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	body, err := proto.Marshal(&pb.RangeRequest{Key: []byte("a"), Serializable: true})
	if err != nil {
		return nil, err
	}
	message := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
	framer, err := greet(conn)
	if err != nil {
		return nil, err
	}
	for n, block := range all {
		stream := uint32(2*n + 1)
		if err := errors.Join(frames.write(framer, stream, block), framer.WriteData(stream, true, message)); err != nil {
			return got, err
		}
		one, err := outcomeByHand(framer, stream)
		one.Streams = "" // Announced once.
		if got = append(got, one); err != nil {
			return got, err
		}
	}
	return got, nil
}

// What an encoder may make of the headers: every representation of :authority, in one frame or
// many, and later calls that refer to it.
func TestRepresentationsOfAuthorities(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.ok(put("a", "1"))
	for _, value := range []string{"host:1", "ipv4:///127.0.0.1:1,127.0.0.1:2", "#initially=[http://127.0.0.1:1]", "", "a b", "\xff", "/"} {
		for _, connection := range connections(value) {
			for _, frames := range framings {
				what := fmt.Sprintf("%q, %s, %s", value, connection.name, frames.name)
				var got [2]string
				for side, server := range []*harness.Server{p.duo.Etched, p.duo.Etcd} {
					all, err := exchange(server, frames, connection.all)
					got[side] = fmt.Sprintf("%+v, %v", all, err)
					if side == etcd && (len(all) != len(connection.all) || all[len(all)-1].GRPCStatus != "0") {
						t.Errorf("%s: etcd answers %s", what, got[side])
					}
				}
				if got[etched] != got[etcd] {
					t.Errorf("%s\n-etched %s\n+etcd   %s", what, got[etched], got[etcd])
				}
			}
		}
	}
}
