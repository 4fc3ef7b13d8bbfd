package auth

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

var (
	randomSeed  = flag.Uint64("auth.seed", 1, "the first seed of random users, roles and requests")
	randomSeeds = flag.Int("auth.seeds", 2, "how many seeds")
	randomSteps = flag.Int("auth.steps", 5000, "requests a seed")
)

// dice makes requests about few keys, users and roles, so that they meet.
type dice struct{ *rand.Rand }

var (
	names = []string{"alice", "bob", "carol", "root"}
	roles = []string{"r1", "r2", "r3", "root"}
	keys  = []string{"a", "a1", "b", "b1", "c", "d", "e"}
	ends  = []string{"", "", "", "b", "c", "d", "f", "\x00"}
	// Of the keys of the lease that has many, some.
	parts    = []string{"l", "l050", "l100", "l150"}
	partEnds = []string{"", "l050", "l100", "l150", "m", "m", "\x00"}
)

// The leases that are asked for. The last has many keys: who may do something with it
// is decided by several permissions together.
const (
	firstLease = 100
	largeLease = 104
	leases     = largeLease - firstLease + 1
	largeKeys  = 200
)

func pick[T any](d dice, list []T) T { return list[d.IntN(len(list))] }

func (d dice) key() string { return pick(d, keys) }

func (d dice) chance(percent int) bool { return d.IntN(100) < percent }

// span has an end of any kind, but behind its start; inverted is about the others.
func (d dice) span() (key, end string) {
	key, end = d.key(), pick(d, ends)
	if d.chance(25) {
		key, end = pick(d, parts), pick(d, partEnds)
	}
	if end != "" && end != "\x00" && end <= key {
		end = key + "\x00"
	}
	return key, end
}

// inverted is a range whose end is not behind its start: it has no keys.
func (d dice) inverted() (key, end string) {
	key = pick(d, keys[1:])
	return key, pick(d, []string{"a", key, key[:1]})
}

func (d dice) lease() int64 {
	if d.chance(50) {
		return 0
	}
	return firstLease + d.Int64N(leases)
}

func (d dice) write() proto.Message {
	if d.chance(60) {
		return put(d.key(), d.lease(), d.chance(30))
	}
	key, end := d.span()
	return del(key, end, d.chance(30))
}

func (d dice) txn(depth int) *pb.TxnRequest {
	request := &pb.TxnRequest{}
	for range d.IntN(3) {
		request.Compare = append(request.Compare, compare(d.span()))
	}
	branch := func() (operations []*pb.RequestOp) {
		// A key is written once at most.
		written := false
		for range d.IntN(3) {
			switch {
			case depth > 0 && d.chance(25) && !written:
				operations = append(operations, operation(d.txn(depth-1)))
				written = true
			case d.chance(50) && !written:
				operations = append(operations, operation(d.write()))
				written = true
			default:
				operations = append(operations, operation(get(d.span())))
			}
		}
		return operations
	}
	request.Success, request.Failure = branch(), branch()
	return request
}

// request is anything but what changes users and roles.
func (d dice) request() proto.Message {
	lease := firstLease + d.Int64N(leases)
	switch d.IntN(17) {
	case 0, 1, 2:
		key, end := d.span()
		return &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end), CountOnly: d.chance(20), KeysOnly: d.chance(20), Serializable: d.chance(20)}
	case 3, 4, 5:
		return d.write()
	case 6, 7, 8:
		return d.txn(2)
	case 9:
		return &pb.LeaseRevokeRequest{ID: lease}
	case 10:
		return &pb.LeaseLeasesRequest{}
	case 11, 12:
		return &pb.LeaseTimeToLiveRequest{ID: lease, Keys: d.chance(80)}
	case 13:
		return &pb.LeaseKeepAliveRequest{ID: lease}
	default:
		return &pb.LeaseGrantRequest{ID: lease, TTL: 1000}
	}
}

// change is about users and roles, and mostly works.
func (d dice) change() proto.Message {
	switch d.IntN(14) {
	case 0:
		return userAdd(pick(d, names), "pw")
	case 1:
		return &pb.AuthUserDeleteRequest{Name: pick(d, names)}
	case 2:
		return &pb.AuthRoleAddRequest{Name: pick(d, roles)}
	case 3:
		if d.chance(50) {
			return &pb.AuthRoleDeleteRequest{Role: pick(d, roles)}
		}
		return &pb.AuthUserChangePasswordRequest{Name: pick(d, names), Password: "pw"}
	case 4, 5, 6:
		return &pb.AuthUserGrantRoleRequest{User: pick(d, names), Role: pick(d, roles)}
	case 7:
		return &pb.AuthUserRevokeRoleRequest{Name: pick(d, names), Role: pick(d, roles)}
	case 8, 9, 10, 11:
		key, end := d.span()
		if d.chance(5) {
			key, end = d.inverted()
		}
		return permission{authpb.Permission_Type(d.IntN(3)), key, end}.grant(pick(d, roles))
	case 12:
		key, end := d.span()
		return &pb.AuthRoleRevokePermissionRequest{Role: pick(d, roles), Key: []byte(key), RangeEnd: []byte(end)}
	default:
		if d.chance(50) {
			return &pb.AuthUserGetRequest{Name: pick(d, names)}
		}
		return &pb.AuthRoleGetRequest{Role: pick(d, roles)}
	}
}

// inverted asks for a range that is inverted: alone, or in a transaction. etched judges
// it by its first key, and so does etcd but where its tree looks past the permission:
// what both say of the first key alone has to be the same, and etched's verdict on the
// range that of the key.
func (p *pair) inverted(who string, d dice) (refused bool) {
	p.t.Helper()
	key, end := d.inverted()
	kind, prev := d.IntN(4), d.chance(50)
	ask := func(end string) proto.Message {
		switch kind {
		case 0:
			return get(key, end)
		case 1:
			// Of the two branches the one that is empty is taken.
			return txn(nil, &pb.TxnRequest{}, del(key, end, prev))
		case 2:
			return txn([]*pb.Compare{compare(key, end)}, nil, nil)
		default:
			return txn(nil, txn(nil, nil, get(key, end)), nil)
		}
	}
	request := ask(end)
	outcomes := p.both(func(side int) harness.Outcome {
		return harness.Invoke(p.as(who, side), p.conn[side], request)
	})
	if harness.ErrorText(outcomes[etched].Err) == harness.ErrorText(outcomes[etcd].Err) {
		p.compare(who, request, outcomes)
		return outcomes[etcd].Err != nil
	}
	p.prunedWrongly++
	point := p.do(who, ask(""))
	if got, want := harness.ErrorText(outcomes[etched].Err), harness.ErrorText(point.Err); got != want {
		p.t.Errorf("as %q: %s: %q, and of its first key %q", who, describe(request), got, want)
	}
	return outcomes[etched].Err != nil
}

// Random users with random roles ask for anything; verdicts and answers are
// compared. -auth.seeds=100 is for a night.
func TestRandomRequests(t *testing.T) {
	t.Parallel()
	for i := range *randomSeeds {
		seed := *randomSeed + uint64(i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			randomRequests(t, dice{rand.New(rand.NewPCG(seed, 7))})
		})
	}
}

// keepSmall empties a role that has as many permissions as etcd sorts by insertion:
// with more, those of one key come in an order that Go's sort leaves open, and a grant
// changes the first of them.
func (p *pair) keepSmall(role string) {
	p.t.Helper()
	answer := p.do("root", &pb.AuthRoleGetRequest{Role: role})
	found, ok := answer.Message.(*pb.AuthRoleGetResponse)
	if answer.Err != nil || !ok || len(found.Perm) < 12 {
		return
	}
	p.ok("root", &pb.AuthRoleDeleteRequest{Role: role})
	p.ok("root", &pb.AuthRoleAddRequest{Name: role})
}

// attach gives the large lease its keys, which a revocation has taken.
func (p *pair) attach() {
	p.t.Helper()
	const most = 100
	for first := 0; first < largeKeys; first += most {
		request := &pb.TxnRequest{}
		for i := range most {
			request.Success = append(request.Success, operation(put(fmt.Sprintf("l%03d", first+i), largeLease, false)))
		}
		p.ok("root", request)
	}
}

// verdicts counts what etcd said of requests about leases: a run in which all of a kind
// were allowed, or refused, has compared little.
type verdicts map[string]*[2]int

func (v verdicts) add(who string, request proto.Message, outcome harness.Outcome) {
	var kind string
	switch one := request.(type) {
	case *pb.LeaseTimeToLiveRequest:
		answer, ok := outcome.Message.(*pb.LeaseTimeToLiveResponse)
		// Nobody is refused what it shows nothing of.
		if outcome.Err == nil && (!ok || len(answer.Keys) == 0) || !one.Keys {
			return
		}
		kind = "keys of a lease"
	case *pb.LeaseKeepAliveRequest:
		kind = "renewal"
	case *pb.LeaseRevokeRequest:
		kind = "revocation"
	case *pb.LeaseLeasesRequest:
		kind = "list of leases"
	default:
		return
	}
	isRefused := strings.Contains(harness.ErrorText(outcome.Err), "permission denied")
	if who == "root" || outcome.Err != nil && !isRefused {
		return
	}
	if v[kind] == nil {
		v[kind] = &[2]int{}
	}
	if isRefused {
		v[kind][1]++
	} else {
		v[kind][0]++
	}
}

func (v verdicts) check(t *testing.T) {
	t.Helper()
	if len(v) != 4 {
		t.Errorf("only %d kinds of requests about leases had verdicts", len(v))
	}
	for kind, counts := range v {
		if counts[0] == 0 || counts[1] == 0 {
			t.Errorf("%s: %d were allowed and %d refused", kind, counts[0], counts[1])
		}
		t.Logf("%s: %d were allowed and %d refused", kind, counts[0], counts[1])
	}
}

func randomRequests(t *testing.T, d dice) {
	p := newPair(t, harness.Options{})
	p.enable(nil)
	p.tokens["alice"], p.tokens["bob"], p.tokens["carol"] = p.tokens["root"], p.tokens["root"], p.tokens["root"]
	for _, name := range names[:3] {
		p.ok("root", userAdd(name, "pw"))
		p.login(name, "pw")
	}
	for _, role := range roles[:3] {
		p.ok("root", &pb.AuthRoleAddRequest{Name: role})
	}
	passwords := map[string]string{"root": "root", "alice": "pw", "bob": "pw", "carol": "pw"}
	refused, refusedInverted, inverted := 0, 0, 0
	aboutLeases := verdicts{}
	for range *randomSteps {
		who := pick(d, names)
		if d.chance(8) {
			inverted++
			if p.inverted(who, d) {
				refusedInverted++
			}
			continue
		}
		request := d.request()
		if d.chance(30) {
			request = d.change()
			if d.chance(80) {
				who = "root"
			}
		}
		var outcome harness.Outcome
		if renewal, ok := request.(*pb.LeaseKeepAliveRequest); ok {
			outcome = p.keepAlive(who, renewal)
		} else {
			outcome = p.do(who, request)
		}
		if outcome.Err != nil {
			refused++
		}
		aboutLeases.add(who, request, outcome)
		if grant, ok := request.(*pb.LeaseGrantRequest); ok && outcome.Err == nil && grant.ID == largeLease {
			p.attach()
		}
		if grant, ok := request.(*pb.AuthRoleGrantPermissionRequest); ok && outcome.Err == nil && grant.Name != "root" {
			p.keepSmall(grant.Name)
		}
		if change, ok := request.(*pb.AuthUserChangePasswordRequest); ok && outcome.Err == nil {
			passwords[change.Name] = "pw"
		}
		text := harness.ErrorText(outcome.Err)
		if text == "Unauthenticated: etcdserver: invalid auth token" || d.chance(2) {
			login := &pb.AuthenticateRequest{Name: who, Password: passwords[who]}
			if p.do(anyone, login).Err == nil {
				p.login(who, passwords[who])
			}
		}
		if root := p.do("root", &pb.AuthUserGetRequest{Name: "root"}); root.Err != nil {
			p.login("root", passwords["root"])
		}
	}
	p.ok("root", get("\x00", "\x00"))
	p.ok(anyone, &pb.AuthStatusRequest{})
	if refused == 0 || refused == *randomSteps {
		t.Errorf("%d of %d were refused", refused, *randomSteps)
	}
	if refusedInverted == 0 || refusedInverted == inverted {
		t.Errorf("%d of %d inverted ranges were refused", refusedInverted, inverted)
	}
	if p.prunedWrongly > inverted/4 {
		t.Errorf("etcd judged %d of %d inverted ranges by something else", p.prunedWrongly, inverted)
	}
	aboutLeases.check(t)
	t.Logf("%d of %d inverted ranges were judged unlike their first key by etcd", p.prunedWrongly, inverted)
}
