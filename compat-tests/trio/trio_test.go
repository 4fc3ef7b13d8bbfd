// Package trio asks three members of etched and three of etcd the same and
// compares every answer: what only clusters answer (changes of members, learners,
// moved leaderships, lost quorums). What single servers answer too is asked of
// clusters by the other packages, where COMPAT_MEMBERS=3 is in the environment.
//
// Both clusters have the same peer URLs and so the same ids; members that come
// later have ids of their time, which are put in the place of aliases in requests
// and give way to them in answers.
package trio

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	leader   = 0 // the member that leads, as StartClusters has it
	follower = 1
	other    = 2
)

// trio is a cluster of each kind. Index 0 is etched's, 1 etcd's.
type trio struct {
	t       *testing.T
	sides   [2]*harness.Cluster
	conns   [2][]*grpc.ClientConn // by member
	real    [2]map[uint64]uint64  // ids by alias
	aliases [2]map[uint64]uint64  // aliases by id

	differences int
}

func newTrio(t *testing.T, flags ...string) *trio {
	t.Helper()
	clusters := harness.StartClusters(t, harness.ClusterOptions{Flags: flags})
	r := &trio{t: t, sides: [2]*harness.Cluster{clusters.Etched, clusters.Etcd}}
	for i, side := range r.sides {
		r.real[i], r.aliases[i] = map[uint64]uint64{}, map[uint64]uint64{}
		for _, member := range side.Members() {
			r.conns[i] = append(r.conns[i], member.Dial(t))
		}
	}
	return r
}

// both calls for both sides at once.
func (r *trio) both(call func(side int)) {
	var calls sync.WaitGroup
	for side := range r.sides {
		calls.Go(func() { call(side) })
	}
	calls.Wait()
}

// each calls for both sides at once; the test ends where one fails.
func (r *trio) each(call func(*harness.Cluster) error) {
	r.t.Helper()
	var failures [2]error
	r.both(func(side int) { failures[side] = call(r.sides[side]) })
	for side, err := range failures {
		if err != nil {
			r.t.Fatalf("%v: %v", harness.Kind(side), err)
		}
	}
}

// ask sends a request to the members of one number and compares the answers.
func (r *trio) ask(member int, request proto.Message, options ...grpc.CallOption) harness.Outcome {
	r.t.Helper()
	return r.askIn(context.Background(), member, request, options...)
}

// askLed asks for an answer only of members that have a leader.
func (r *trio) askLed(member int, request proto.Message) harness.Outcome {
	r.t.Helper()
	return r.askIn(metadata.AppendToOutgoingContext(context.Background(), "hasleader", "true"), member, request)
}

func (r *trio) askIn(ctx context.Context, member int, request proto.Message, options ...grpc.CallOption) harness.Outcome {
	r.t.Helper()
	var outcomes [2]harness.Outcome
	r.both(func(side int) {
		outcomes[side] = harness.Invoke(ctx, r.conns[side][member], r.translate(side, request), options...)
	})
	for side := range outcomes {
		if added, ok := outcomes[side].Message.(*pb.MemberAddResponse); ok && outcomes[side].Err == nil {
			r.learn(side, added.Member.ID)
		}
	}
	for side := range outcomes {
		if outcomes[side].Err == nil {
			r.normalise(side, outcomes[side].Message)
		}
	}
	if diff := harness.DiffOutcome(outcomes[0], outcomes[1]); diff != "" {
		r.t.Errorf("%s via member %d\n(-etched +etcd)\n%s", describe(request), member+1, diff)
		const most = 12
		if r.differences++; r.differences == most {
			r.t.Fatalf("%d differences are enough", most)
		}
	}
	return outcomes[1]
}

// ok is ask for a request that must succeed on etcd.
func (r *trio) ok(member int, request proto.Message) proto.Message {
	r.t.Helper()
	outcome := r.ask(member, request)
	if outcome.Err != nil {
		r.t.Errorf("%s via member %d: etcd answers %v", describe(request), member+1, outcome.Err)
	}
	return outcome.Message
}

// fails is ask for a request that must fail on etcd with this code and text.
func (r *trio) fails(want string, member int, request proto.Message) {
	r.t.Helper()
	if got := harness.ErrorText(r.ask(member, request).Err); got != want {
		r.t.Errorf("%s via member %d: etcd answers %q, this case is about %q", describe(request), member+1, got, want)
	}
}

func describe(request proto.Message) string {
	return fmt.Sprintf("%s{%s}", request.ProtoReflect().Descriptor().Name(), prototext.MarshalOptions{}.Format(request))
}

// learn gives the next alias to an added member's id.
func (r *trio) learn(side int, id uint64) {
	const first = 0xadd0
	alias := uint64(first + len(r.aliases[side]))
	r.aliases[side][id], r.real[side][alias] = alias, id
}

// added is the alias of the n-th member that was added.
func added(n int) uint64 { return uint64(0xadd0 + n) }

func (r *trio) translate(side int, request proto.Message) proto.Message {
	copied := proto.Clone(request)
	replaceIDs(copied.ProtoReflect(), r.real[side])
	return copied
}

// normalise puts aliases for ids and sorts members, whose order is that of ids.
func (r *trio) normalise(side int, message proto.Message) {
	replaceIDs(message.ProtoReflect(), r.aliases[side])
	list := message.ProtoReflect().Descriptor().Fields().ByName("members")
	if list == nil {
		return
	}
	members := message.(interface{ GetMembers() []*pb.Member }).GetMembers()
	slices.SortFunc(members, func(a, b *pb.Member) int {
		return strings.Compare(fmt.Sprint(a.PeerURLs), fmt.Sprint(b.PeerURLs))
	})
}

func replaceIDs(message protoreflect.Message, by map[uint64]uint64) {
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Kind() == protoreflect.Uint64Kind && !field.IsList():
			if other, known := by[value.Uint()]; known {
				message.Set(field, protoreflect.ValueOfUint64(other))
			}
		case field.Message() == nil || field.IsMap():
		case field.IsList():
			for i := range value.List().Len() {
				replaceIDs(value.List().Get(i).Message(), by)
			}
		default:
			replaceIDs(value.Message(), by)
		}
		return true
	})
}

// settle waits until both clusters are whole and lead by their first members.
func (r *trio) settle() {
	r.t.Helper()
	r.each(func(c *harness.Cluster) error { return c.Lead(c.Members()[0], 30*time.Second) })
}

// connected waits until members have been connected for the time that changes of
// members ask for.
func (r *trio) connected() { time.Sleep(5500 * time.Millisecond) }

// ids are those of the three first members, by number.
func (r *trio) ids() (ids []uint64) {
	r.t.Helper()
	for member := range r.conns[0] {
		answer := r.ok(member, &pb.MemberListRequest{})
		ids = append(ids, answer.(*pb.MemberListResponse).Header.MemberId)
	}
	return ids
}

func put(key, value string) *pb.PutRequest {
	return &pb.PutRequest{Key: []byte(key), Value: []byte(value)}
}

func get(key string) *pb.RangeRequest { return &pb.RangeRequest{Key: []byte(key)} }

func serializable(key string) *pb.RangeRequest {
	return &pb.RangeRequest{Key: []byte(key), Serializable: true}
}

// withoutSizes drops of a status what depends on files and on the log's length.
func withoutSizes(message proto.Message) {
	status := message.(*pb.StatusResponse)
	status.DbSize, status.DbSizeInUse, status.RaftIndex, status.RaftAppliedIndex = 0, 0, 0, 0
	// A new member of etcd shows an older one until it has migrated.
	status.StorageVersion = ""
}

// The texts that cases name.
const (
	urlExists     = "FailedPrecondition: etcdserver: Peer URLs already exists"
	badURLs       = "InvalidArgument: etcdserver: given member URLs are invalid"
	noMember      = "NotFound: etcdserver: member not found"
	notLearner    = "FailedPrecondition: etcdserver: can only promote a learner member"
	notReady      = "FailedPrecondition: etcdserver: can only promote a learner member which is in sync with leader"
	manyLearners  = "FailedPrecondition: etcdserver: too many learner members in cluster"
	unhealthy     = "Unavailable: etcdserver: unhealthy cluster"
	notLeader     = "FailedPrecondition: etcdserver: not leader"
	badTransferee = "FailedPrecondition: etcdserver: bad leader transferee"
	forLearner    = "FailedPrecondition: etcdserver: rpc not supported for learner"
	noLeader      = "Unavailable: etcdserver: no leader"
	timedOut      = "Unavailable: etcdserver: request timed out"
	pastDeadline  = "DeadlineExceeded: context deadline exceeded"
)
