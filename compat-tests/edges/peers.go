package edges

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/encoding/protowire"

	"etched.dev/compat-tests/harness"
)

// unknownSender is the id of no member.
const unknownSender = 0xbad

// target is a member with all that a client can learn of it.
type target struct {
	server  *harness.Server
	status  *pb.StatusResponse
	members []*pb.Member
}

// forgedPeers sends forged requests to peer ports. The list of members must not change, and
// each member must live and start again.
func forgedPeers(ctx context.Context, s *attackRun) error {
	servers := []*harness.Server{s.server}
	for _, member := range s.among {
		if member.Server != s.server && !s.mixed() {
			servers = append(servers, member.Server)
		}
	}
	before, err := memberIDs(ctx, s)
	if err != nil {
		return err
	}
	for _, server := range servers {
		v, err := inspect(ctx, server)
		if err != nil && s.mixed() {
			return err
		}
		if err != nil {
			s.fault("no status before the forged requests to %s: %s", server.PeerEndpoint(), errorText(err))
			continue
		}
		forgeHTTP(ctx, s, v)
		if s.kind == harness.Etched {
			forgeCalls(ctx, s, v)
			forgeSnapshots(ctx, s, v)
		}
	}
	pause(ctx, s.holdTime())
	after, err := memberIDs(ctx, s)
	switch {
	case err != nil && s.mixed():
		return err
	case err != nil:
		s.fault("the members after forged requests: %v", err)
	case after != before:
		s.fault("the members were %s, after forged requests they are %s", before, after)
	}
	if s.mixed() {
		// Only mixture.kill restarts members there.
		return ctx.Err()
	}
	for _, server := range servers {
		if !server.Running() {
			s.fault("a member exited: %s", lastError(server))
			continue
		}
		// A junk entry in the log would only show at the next start.
		if server == s.server {
			continue
		}
		if err := server.Kill(); err != nil {
			return err
		}
		if err := server.Restart(); err != nil {
			s.fault("a member does not start after forged requests: %s", lastError(server))
		}
	}
	return ctx.Err()
}

func inspect(ctx context.Context, server *harness.Server) (*target, error) {
	client, err := server.NewClient()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	limited, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	status, err := client.Status(limited, server.Endpoint())
	if err != nil {
		return nil, err
	}
	list, err := client.MemberList(limited)
	if err != nil {
		return nil, err
	}
	return &target{server: server, status: (*pb.StatusResponse)(status), members: list.Members}, nil
}

func memberIDs(ctx context.Context, s *attackRun) (string, error) {
	limited, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	list, err := s.client.MemberList(limited)
	if err != nil {
		return "", err
	}
	var ids []string
	for _, member := range list.Members {
		ids = append(ids, fmt.Sprintf("%x %v", member.ID, member.PeerURLs))
	}
	return strings.Join(ids, ", "), nil
}

// forgeHTTP sends HTTP/1 requests for etcd's paths, and junk, to the peer port.
func forgeHTTP(ctx context.Context, s *attackRun, v *target) {
	junk := string(junkBytes(1000))
	cluster := fmt.Sprintf("X-Etcd-Cluster-Id: %x\r\nX-Server-From: %x\r\nX-Raft-To: %x\r\n", v.status.Header.ClusterId, unknownSender, v.status.Header.MemberId)
	post := func(path, headers string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: edges\r\nConnection: close\r\nContent-Type: application/protobuf\r\n%sContent-Length: %d\r\n\r\n%s",
			path, headers, len(junk), junk)
	}
	requests := map[string]string{"junkBytes": junk}
	for _, path := range []string{"/raft", "/raft/snapshot", "/members/promote/1", "/leases", "/leases/internal", "/downgrade/enabled", "/members"} {
		requests["POST "+path] = post(path, "")
		requests["POST "+path+" with ids"] = post(path, cluster)
	}
	requests["GET /raft/stream"] = "GET /raft/stream/msgappv2/bad HTTP/1.1\r\nHost: edges\r\nConnection: close\r\n" + cluster + "\r\n"
	for _, request := range requests {
		s.answers.add(func() string {
			conn, err := s.socket(v.server.PeerEndpoint())
			if err != nil {
				return errorText(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
			if _, err := io.WriteString(conn, request); err != nil {
				return errorText(err)
			}
			line := make([]byte, len("HTTP/1.1 000"))
			if _, err := io.ReadFull(conn, line); err != nil {
				return errorText(err)
			}
			if strings.HasPrefix(string(line), "HTTP/1.1 ") {
				return string(line)
			}
			return "an answer in HTTP/2"
		}())
		if ctx.Err() != nil {
			return
		}
	}
}

// forgeCalls makes calls to etched's peer service.
func forgeCalls(ctx context.Context, s *attackRun, v *target) {
	for _, forged := range forgeries(v) {
		outcome := func() string {
			w, err := dialHTTP2(v.server.PeerEndpoint(), clientOptions{})
			if err != nil {
				return errorText(err)
			}
			s.keep(w.close)
			opened, err := w.open("/etchedpeer.Peer/"+forged.method, forged.headers...)
			if err == nil {
				err = opened.send(ctx, framedBytes(forged.body), forged.ends)
			}
			if err != nil {
				return errorText(err)
			}
			const limit = 500 * time.Millisecond
			return opened.await(limit)
		}()
		s.answers.add(outcome)
		if forged.answered && outcome == "OK" {
			s.fault("a forged call was answered: %s", forged.what)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// forgery is one call to the peer service.
type forgery struct {
	what, method string
	headers      []hpack.HeaderField
	body         []byte
	// ends says that the request ends the stream.
	ends bool
	// answered says that the code OK would be a fault.
	answered bool
}

func forgeries(v *target) []forgery {
	var all []forgery
	for _, method := range []string{"Messages", "Snapshot", "Ask"} {
		all = append(all, forgery{what: "junkBytes without ids", method: method, body: junkBytes(1000), ends: true})
	}
	for _, from := range v.senders() {
		all = append(all, v.forgeriesOf(from)...)
	}
	return all
}

// senders are the ids in forged calls: an unknown one, and another member's, whose
// incarnation the forger does not know.
func (v *target) senders() []uint64 {
	for _, member := range v.members {
		if member.ID != v.status.Header.MemberId {
			return []uint64{unknownSender, member.ID}
		}
	}
	return []uint64{unknownSender}
}

func (v *target) forgeriesOf(from uint64) []forgery {
	var all []forgery
	headers := v.headersFrom(from)
	for _, method := range []string{"Messages", "Snapshot", "Ask"} {
		all = append(all,
			forgery{what: "junkBytes", method: method, headers: headers, body: junkBytes(1000), ends: true},
			forgery{what: "a method too many", method: method + "More", headers: headers, body: junkBytes(10), ends: true})
	}
	const renewLease, promote, hashKV, downgrade = 2, 4, 5, 6
	for kind, body := range map[protowire.Number][]byte{
		renewLease: number(1, 1), promote: number(1, v.status.Header.MemberId), hashKV: nil, downgrade: nil,
	} {
		all = append(all, forgery{
			what: fmt.Sprintf("peer request %d", kind), method: "Ask", headers: headers, body: field(kind, body), ends: true, answered: true,
		})
	}
	remove := v.members[len(v.members)-1].ID
	for _, lane := range []string{"bulk", "urgent"} {
		headers := append(v.headersFrom(from), hpack.HeaderField{Name: "etched-lane", Value: lane})
		for what, message := range map[string][]byte{
			"a forwarded removal":      field(2, v.forwardedRemoval(remove)),
			"a forwarded junk request": field(2, v.forwardedJunk()),
			"junk for raft":            field(1, junkBytes(200)),
			"a junk entry, committed":  field(1, v.junkEntry(from)),
			"the same, of the leader":  field(1, v.junkEntry(v.status.Leader)),
			// A member that believed it would take its own log for a damaged one, and end.
			"a heartbeat beyond the log": field(1, v.heartbeat(from, v.status.RaftTerm, v.status.RaftIndex+1_000_000)),
			// Or have no term left for another election.
			"a heartbeat of the last term": field(1, v.heartbeat(from, 1<<62-1, 0)),
		} {
			all = append(all, forgery{what: what, method: "Messages", headers: headers, body: append(field(1, message), number(2, 1)...)})
		}
	}
	file := append(field(1, []byte("../../CURRENT")), number(2, 1<<60)...)
	return append(all, forgery{what: "a file outside", method: "Snapshot", headers: headers, body: field(1, file)})
}

// headersFrom are the header fields of a call from this id to the target.
func (v *target) headersFrom(from uint64) []hpack.HeaderField {
	return []hpack.HeaderField{
		{Name: "etched-cluster-id", Value: fmt.Sprintf("%x", v.status.Header.ClusterId)},
		{Name: "etched-from", Value: fmt.Sprintf("%x", from)},
		{Name: "etched-to", Value: fmt.Sprintf("%x", v.status.Header.MemberId)},
		{Name: "etched-incarnation", Value: fmt.Sprintf("%x", unknownSender)},
		{Name: "etched-version", Value: v.status.Version},
	}
}

func (v *target) forwardedRemoval(id uint64) []byte {
	change := append(number(1, id), field(3, nil)...)
	change = append(append(change, number(6, 1)...), number(7, unknownSender)...)
	return append(append(number(1, unknownSender), number(2, v.status.RaftTerm)...), field(4, change)...)
}

func (v *target) forwardedJunk() []byte {
	return append(append(number(1, unknownSender), number(2, v.status.RaftTerm)...), field(3, junkBytes(100))...)
}

// heartbeat is one of a leader of this term, which has committed so much.
func (v *target) heartbeat(from, term, commit uint64) []byte {
	const heartbeat = 8
	message := append(number(1, heartbeat), number(2, v.status.Header.MemberId)...)
	message = append(append(message, number(3, from)...), number(4, term)...)
	return append(message, number(8, commit)...)
}

// junkEntry appends, after the target's last entry, a committed one that cannot be decoded.
func (v *target) junkEntry(from uint64) []byte {
	const appendEntries = 3
	index := v.status.RaftIndex
	entry := append(append(number(2, v.status.RaftTerm), number(3, index+1)...), field(4, junkBytes(100))...)
	var message []byte
	for tag, value := range []uint64{1: appendEntries, 2: v.status.Header.MemberId, 3: from, 4: v.status.RaftTerm, 5: v.status.RaftTerm, 6: index} {
		if tag > 0 {
			message = append(message, number(protowire.Number(tag), value)...)
		}
	}
	return append(append(message, field(7, entry)...), number(8, index+1)...)
}

func number(tag protowire.Number, value uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, tag, protowire.VarintType), value)
}

func field(tag protowire.Number, body []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, tag, protowire.BytesType), body)
}

// junkBytes is the same in every run.
func junkBytes(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	bytes := make([]byte, n)
	for i := range bytes {
		bytes[i] = byte(rng.Uint32())
	}
	return bytes
}
