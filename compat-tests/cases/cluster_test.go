package cases

import (
	"context"
	"fmt"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// withoutSizes drops what depends on the files and on the log's length, after
// checking that it is reported at all.
func withoutSizes(t *testing.T) normaliser {
	return func(message proto.Message) {
		status := message.(*pb.StatusResponse)
		if status.DbSize <= 0 || status.DbSizeInUse <= 0 || status.DbSizeInUse > status.DbSize {
			t.Errorf("db_size %d, in use %d", status.DbSize, status.DbSizeInUse)
		}
		if status.RaftIndex == 0 || status.RaftAppliedIndex == 0 || status.RaftAppliedIndex > status.RaftIndex {
			t.Errorf("raft_index %d, applied %d", status.RaftIndex, status.RaftAppliedIndex)
		}
		if status.RaftTerm == 0 || status.Header.RaftTerm != status.RaftTerm {
			t.Errorf("raft_term %d, header's %d", status.RaftTerm, status.Header.RaftTerm)
		}
		status.DbSize, status.DbSizeInUse, status.RaftIndex, status.RaftAppliedIndex = 0, 0, 0, 0
	}
}

func (p *pair) waitClusterVersion() {
	p.t.Helper()
	p.duo.Each(func(server *harness.Server) {
		if err := server.WaitClusterVersion(20 * time.Second); err != nil {
			p.t.Fatal(err)
		}
	})
}

func TestStatus(t *testing.T) {
	harness.OfSingleServers(t)
	t.Parallel()
	p := newPair(t)
	p.waitClusterVersion()
	status := p.ok(&pb.StatusRequest{}, withoutSizes(t)).(*pb.StatusResponse)
	if status.Leader == 0 || status.Leader != status.Header.MemberId || status.Version == "" {
		t.Errorf("status: %v", status)
	}
	history(p)
	p.do(&pb.StatusRequest{}, withoutSizes(t))
	duoRestart(p)
	p.waitClusterVersion()
	p.do(&pb.StatusRequest{}, withoutSizes(t))
}

// What is applied is committed: a status that follows an answer never shows more entries
// applied than committed, nor one that is asked for beside writes.
func TestStatusIndexes(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	const writes = 400
	for side, conn := range p.conn {
		for n := range writes {
			wrote := invoke(context.Background(), conn, put("a", fmt.Sprint(n)))
			asked := invoke(context.Background(), conn, &pb.StatusRequest{})
			if wrote.Err != nil || asked.Err != nil {
				t.Fatal(wrote.Err, asked.Err)
			}
			status := asked.Message.(*pb.StatusResponse)
			if status.RaftAppliedIndex > status.RaftIndex {
				t.Fatalf("%s: write %d: raft_index %d, applied %d", harness.Kind(side), n, status.RaftIndex, status.RaftAppliedIndex)
			}
		}
	}
	// etcd reads the two one after the other, and may show what was applied in between.
	conn, writer := p.conn[etched], p.duo.Etched.Dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 4 {
		go func() {
			for ctx.Err() == nil {
				_ = invoke(ctx, writer, put("b", "1"))
			}
		}()
	}
	for range writes {
		asked := invoke(context.Background(), conn, &pb.StatusRequest{})
		if asked.Err != nil {
			t.Fatal(asked.Err)
		}
		if status := asked.Message.(*pb.StatusResponse); status.RaftAppliedIndex > status.RaftIndex {
			t.Fatalf("beside writes: raft_index %d, applied %d", status.RaftIndex, status.RaftAppliedIndex)
		}
	}
}

func TestStatusQuota(t *testing.T) {
	t.Parallel()
	for _, flag := range []string{"--quota-backend-bytes=123456789", "--quota-backend-bytes=-1"} {
		p := newPair(t, flag)
		p.waitClusterVersion()
		p.do(&pb.StatusRequest{}, withoutSizes(t))
	}
}

func TestMembers(t *testing.T) {
	harness.OfSingleServers(t)
	t.Parallel()
	p := newPair(t)
	list := func() *pb.MemberListResponse {
		p.do(&pb.MemberListRequest{})
		return p.ok(&pb.MemberListRequest{Linearizable: true}).(*pb.MemberListResponse)
	}
	members := list()
	if len(members.Members) != 1 || members.Header.Revision != 0 {
		t.Fatalf("members: %v", members)
	}
	me := members.Members[0].ID
	p.fails(noMember, &pb.MemberUpdateRequest{ID: 1, PeerURLs: []string{"http://127.0.0.1:9999"}})
	p.fails(noMember, &pb.MemberUpdateRequest{})
	for _, urls := range [][]string{
		{"http://127.0.0.1:9999"},
		{"http://127.0.0.1:9999"},
		{"http://127.0.0.1:9999", "http://127.0.0.1:9998"},
		{"http://127.0.0.1:9998", "http://127.0.0.1:9999"},
		{harness.AdvertisedPeerURL},
	} {
		p.do(&pb.MemberUpdateRequest{ID: me, PeerURLs: urls})
		list()
	}
	duoRestart(p)
	if members := list(); members.Members[0].ID != me {
		t.Errorf("the id changed to %x", members.Members[0].ID)
	}
	p.do(get("a"))
}

// Names, tokens and peer URLs go into the ids.
func TestIDs(t *testing.T) {
	t.Parallel()
	const two = "http://127.0.0.1:2380,http://127.0.0.1:2390"
	for _, options := range []harness.Options{
		{Name: "another"},
		{Flags: []string{"--initial-cluster-token=token"}},
		{Flags: []string{"--initial-cluster-token="}},
		{Flags: []string{"--initial-advertise-peer-urls=" + two, "--initial-cluster=default=http://127.0.0.1:2390,default=http://127.0.0.1:2380"}},
		{AdvertiseClientURL: "http://127.0.0.1:4444,http://127.0.0.1:3333"},
	} {
		duo := harness.StartDuo(t, options)
		p := &pair{t: t, duo: duo}
		p.conn[etched], p.conn[etcd] = duo.Etched.Dial(t), duo.Etcd.Dial(t)
		p.ok(&pb.MemberListRequest{Linearizable: true})
	}
}

func TestMoveLeader(t *testing.T) {
	harness.OfSingleServers(t)
	t.Parallel()
	p := newPair(t)
	me := p.ok(&pb.MemberListRequest{}).(*pb.MemberListResponse).Members[0].ID
	p.fails(badTransferee, &pb.MoveLeaderRequest{})
	p.fails(badTransferee, &pb.MoveLeaderRequest{TargetID: 1})
	p.do(&pb.MoveLeaderRequest{TargetID: me})
	p.do(put("a", "1"))
}

func TestDefragment(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	history(p)
	p.ok(compact(p.revision()))
	p.ok(&pb.DefragmentRequest{})
	p.do(everything())
	p.do(&pb.HashKVRequest{})
}
