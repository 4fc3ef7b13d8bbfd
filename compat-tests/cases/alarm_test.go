package cases

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

const (
	getAlarms  = pb.AlarmRequest_GET
	activate   = pb.AlarmRequest_ACTIVATE
	deactivate = pb.AlarmRequest_DEACTIVATE
)

func alarm(action pb.AlarmRequest_AlarmAction, member uint64, kind pb.AlarmType) *pb.AlarmRequest {
	return &pb.AlarmRequest{Action: action, MemberID: member, Alarm: kind}
}

// sortedAlarms orders a list that etcd tells in no order.
func sortedAlarms(message proto.Message) {
	alarms := message.(*pb.AlarmResponse).Alarms
	for i := range alarms {
		for j := i; j > 0 && alarmKey(alarms[j]) < alarmKey(alarms[j-1]); j-- {
			alarms[j], alarms[j-1] = alarms[j-1], alarms[j]
		}
	}
}

func alarmKey(member *pb.AlarmMember) string {
	return fmt.Sprintf("%02d %020d", member.Alarm, member.MemberID)
}

func TestAlarmTable(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	me := p.ok(&pb.MemberListRequest{}).(*pb.MemberListResponse).Members[0].ID
	for _, kind := range []pb.AlarmType{pb.AlarmType_NONE, pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT} {
		for _, member := range []uint64{0, me, 42} {
			for _, action := range []pb.AlarmRequest_AlarmAction{getAlarms, activate, activate, deactivate, deactivate, activate} {
				p.do(alarm(action, member, kind), sortedAlarms)
				p.do(alarm(getAlarms, 0, pb.AlarmType_NONE), sortedAlarms)
				p.do(alarm(getAlarms, 0, pb.AlarmType_NOSPACE), sortedAlarms)
				p.do(put("a", "1"))
			}
		}
	}
	p.duo.Each(func(server *harness.Server) { healthIs(t, server, 503, "false") })
	for _, kind := range []pb.AlarmType{3, 9, -1} {
		p.do(alarm(getAlarms, 0, kind))
		p.do(alarm(getAlarms, me, kind))
	}
	duoRestart(p)
	p.do(alarm(getAlarms, 0, pb.AlarmType_NONE), sortedAlarms)
	p.do(put("a", "1"))
}

// Etcd ends itself over an action that it does not know and keeps an alarm of
// a kind that it does not know; etched refuses both and lives on.
func TestAlarmOfUnknownKind(t *testing.T) {
	t.Parallel()
	conn := harness.Start(t, harness.Etched, harness.Options{}).Dial(t)
	for _, request := range []*pb.AlarmRequest{alarm(9, 0, pb.AlarmType_NOSPACE), alarm(-1, 0, 0), alarm(activate, 0, 9), alarm(deactivate, 0, -1)} {
		if text := harness.ErrorText(invoke(context.Background(), conn, request).Err); !strings.HasPrefix(text, "InvalidArgument: ") {
			t.Errorf("%s: %s", describe(request), text)
		}
	}
	if outcome := invoke(context.Background(), conn, put("a", "1")); outcome.Err != nil {
		t.Error(outcome.Err)
	}
}

func healthIs(t *testing.T, server *harness.Server, status int, health string) {
	t.Helper()
	code, body, err := server.HTTPGet("/health")
	if err != nil || code != status || !strings.Contains(body, `"health":"`+health+`"`) {
		t.Errorf("%s: /health: %d %s %v", server.Kind(), code, body, err)
	}
}

// What each request answers while an alarm stands, and that disarming ends it.
func TestAlarmEffects(t *testing.T) {
	t.Parallel()
	for _, kind := range []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			p.waitClusterVersion()
			history(p)
			p.ok(grant(1, 1000))
			p.ok(grant(2, 1000))
			p.ok(leased("leased", "v", 1))
			me := p.ok(&pb.MemberListRequest{}).(*pb.MemberListResponse).Members[0].ID
			p.ok(alarm(activate, me, kind))
			underAlarm(p, kind)
			duoRestart(p)
			p.waitClusterVersion()
			underAlarm(p, kind)
			p.ok(alarm(deactivate, me, kind))
			for _, request := range []proto.Message{put("a", "again"), grant(5, 60), txn(nil, ops(put("a", "1")), nil), everything(), &pb.HashKVRequest{}} {
				p.ok(request)
			}
			p.do(&pb.StatusRequest{}, withoutSizes(t))
		})
	}
}

func underAlarm(p *pair, kind pb.AlarmType) {
	p.t.Helper()
	want := map[pb.AlarmType]string{pb.AlarmType_NOSPACE: noSpace, pb.AlarmType_CORRUPT: corrupt}[kind]
	p.fails(want, put("a", "refused"))
	p.fails(emptyKey, put("", "refused"))
	p.fails(want, leased("a", "refused", 99))
	p.fails(want, grant(3, 60))
	p.fails(want, txn(nil, ops(put("a", "1")), nil))
	p.fails(want, txn([]*pb.Compare{fails("a")}, ops(put("a", "1")), ops(get("a"))))
	p.fails(want, txn(nil, ops(txn(nil, nil, ops(put("a", "1")))), nil))
	for _, request := range []proto.Message{
		get("a"), everything(), &pb.RangeRequest{Key: []byte("a"), Serializable: true},
		txn(nil, ops(get("a")), nil), txn(nil, nil, nil), txn(nil, ops(del("b")), nil), txn(nil, ops(txn(nil, ops(get("a")), nil)), nil),
		grant(1, 60), grant(0, 1<<60), del("d"), delSpan("t", "u"), compact(p.revision() - 1), &pb.LeaseRevokeRequest{ID: 2}, &pb.LeaseRevokeRequest{ID: 99},
		&pb.HashKVRequest{}, &pb.MemberListRequest{Linearizable: true}, &pb.DefragmentRequest{}, everything(),
	} {
		p.do(request)
	}
	p.do(&pb.LeaseTimeToLiveRequest{ID: 1, Keys: true}, withoutRemaining)
	p.do(&pb.StatusRequest{}, withoutSizes(p.t))
	p.compareStreams(everything())
	for i, stream := range p.keepAlive() {
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: 1}); err != nil {
			p.t.Fatal(err)
		}
		if answer, err := stream.Recv(); err != nil || answer.TTL != 1000 {
			p.t.Errorf("%s: keepalive under an alarm: %v, %v", harness.Kind(i), answer, err)
		}
	}
}

// A small quota: each server is filled until it refuses. How much fits depends
// on the files; what happens then does not.
func TestQuota(t *testing.T) {
	harness.OfSingleServers(t)
	t.Parallel()
	const quota = 24 << 20
	duo := harness.StartDuo(t, harness.Options{Flags: []string{fmt.Sprint("--quota-backend-bytes=", quota)}})
	for _, server := range []*harness.Server{duo.Etched, duo.Etcd} {
		t.Run(server.Kind().String(), func(t *testing.T) {
			t.Parallel()
			fillAndFree(t, server, quota)
		})
	}
}

// noise is a value that no compression makes smaller.
func noise(size int) string {
	value := make([]byte, size)
	for i := range value {
		value[i] = byte(rand.Uint32())
	}
	return string(value)
}

func fillAndFree(t *testing.T, server *harness.Server, quota int) {
	conn := server.Dial(t)
	call := func(request proto.Message) harness.Outcome { return invoke(context.Background(), conn, request) }
	refused := 0
	for refused < 2*quota>>20 && harness.ErrorText(call(put(fmt.Sprintf("fill/%03d", refused), noise(1<<20))).Err) != noSpace {
		refused++
	}
	if stored := refused << 20; stored < quota/4 || stored > 2*quota {
		t.Errorf("%d bytes of values fitted a quota of %d", stored, quota)
	}
	alarms := call(alarm(getAlarms, 0, pb.AlarmType_NONE))
	if alarms.Err != nil || len(alarms.Message.(*pb.AlarmResponse).Alarms) != 1 {
		t.Fatalf("alarms: %v", alarms)
	}
	raised := alarms.Message.(*pb.AlarmResponse).Alarms[0]
	if raised.Alarm != pb.AlarmType_NOSPACE || raised.MemberID != alarms.Message.(*pb.AlarmResponse).Header.MemberId {
		t.Errorf("alarm: %v", raised)
	}
	if text := harness.ErrorText(call(put("small", "v")).Err); text != noSpace {
		t.Errorf("a small put under the alarm: %s", text)
	}
	healthIs(t, server, 503, "false")
	freed := call(delSpan("fill/", "fill0"))
	if freed.Err != nil || freed.Message.(*pb.DeleteRangeResponse).Deleted < int64(refused) {
		t.Fatalf("delete under the alarm: %v", freed)
	}
	revision := freed.Message.(*pb.DeleteRangeResponse).Header.Revision
	for _, request := range []proto.Message{compact(revision), &pb.DefragmentRequest{}, alarm(deactivate, raised.MemberID, raised.Alarm)} {
		if outcome := call(request); outcome.Err != nil {
			t.Fatalf("%s: %v", describe(request), outcome.Err)
		}
	}
	healthIs(t, server, 200, "true")
	// The space is to be had again, if not at once.
	deadline := time.Now().Add(30 * time.Second)
	for i := 0; i < refused/2; {
		switch text := harness.ErrorText(call(put(fmt.Sprintf("again/%03d", i), noise(1<<20))).Err); {
		case text == "OK":
			i++
		case text == noSpace && time.Now().Before(deadline):
			time.Sleep(200 * time.Millisecond)
			call(alarm(deactivate, raised.MemberID, raised.Alarm))
		default:
			t.Fatalf("put %d of %d after the space was freed: %s", i, refused/2, text)
		}
	}
}
