package auth

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// permission is one of a role: a kind, a key and a range end.
type permission struct {
	kind     authpb.Permission_Type
	key, end string
}

func (one permission) grant(role string) *pb.AuthRoleGrantPermissionRequest {
	return &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: &authpb.Permission{
		PermType: one.kind, Key: []byte(one.key), RangeEnd: []byte(one.end),
	}}
}

func sorted[V any](table map[string]V) []string { return slices.Sorted(maps.Keys(table)) }

func userAdd(name, password string) proto.Message {
	return &pb.AuthUserAddRequest{Name: name, Password: password}
}

// Every method with its preconditions, in an order in which each is met and
// missed; the auth revision is compared after each.
func TestUsersAndRoles(t *testing.T) {
	t.Parallel()
	p := newPair(t, harness.Options{})
	long := strings.Repeat("x", 72)
	grant := func(role string, kind authpb.Permission_Type, key, end string) proto.Message {
		return permission{kind, key, end}.grant(role)
	}
	revoke := func(role, key, end string) proto.Message {
		return &pb.AuthRoleRevokePermissionRequest{Role: role, Key: []byte(key), RangeEnd: []byte(end)}
	}
	hashed := &pb.AuthUserChangePasswordRequest{Name: "hash", HashedPassword: "JDJhJDA0JC9tME1KOUV0VVViajVmRGRQdTVvcS5PR2R3Y2dhOEFyQVlMQUNBRWVNL2JxV0FGY2lRbW5X"}
	steps := []proto.Message{
		&pb.AuthStatusRequest{}, &pb.AuthUserListRequest{}, &pb.AuthRoleListRequest{},
		&pb.AuthEnableRequest{}, &pb.AuthDisableRequest{},
		&pb.AuthenticateRequest{Name: "root", Password: "x"},
		userAdd("", ""), userAdd("", "x"), userAdd("a", "pw"), userAdd("a", "pw"), userAdd("b", ""),
		userAdd("long", long), userAdd("longer", long+"x"), userAdd("é\x00 ", "pw"),
		&pb.AuthUserAddRequest{Name: "cert", Options: &authpb.UserAddOptions{NoPassword: true}},
		&pb.AuthUserAddRequest{Name: "cert2", Password: "given", Options: &authpb.UserAddOptions{NoPassword: true}},
		&pb.AuthUserAddRequest{Name: "hash", HashedPassword: "not base64"},
		&pb.AuthUserGetRequest{Name: "a"}, &pb.AuthUserGetRequest{Name: "nobody"}, &pb.AuthUserGetRequest{},
		&pb.AuthUserChangePasswordRequest{Name: "nobody", Password: "x"},
		&pb.AuthUserChangePasswordRequest{Name: "a", Password: "pw2"},
		&pb.AuthUserChangePasswordRequest{Name: "a", Password: long + "x"},
		&pb.AuthUserChangePasswordRequest{Name: "b", HashedPassword: "%%"},
		&pb.AuthUserChangePasswordRequest{Name: "b"},
		&pb.AuthUserChangePasswordRequest{Name: "cert", Password: "x"}, hashed,
		&pb.AuthRoleAddRequest{}, &pb.AuthRoleAddRequest{Name: "r"}, &pb.AuthRoleAddRequest{Name: "r"}, &pb.AuthRoleAddRequest{Name: "q"},
		&pb.AuthRoleGetRequest{Role: "r"}, &pb.AuthRoleGetRequest{Role: "nothing"}, &pb.AuthRoleGetRequest{Role: "root"},
		&pb.AuthRoleGrantPermissionRequest{Name: "r"}, &pb.AuthRoleGrantPermissionRequest{Name: "nothing"},
		grant("nothing", 0, "a", ""), grant("r", 0, "", ""), grant("r", 0, "", "\x00"), grant("r", 0, "b", "a"), grant("r", 0, "b", "b"),
		grant("r", 0, "c", "d"), grant("r", 1, "c", "d"), grant("r", 2, "a", ""), grant("r", 0, "b", "\x00"), grant("r", 0, "\x00", "\x00"),
		grant("r", 0, "c", "d"), grant("r", 0, "c", "e"), grant("r", 1, "c", "e"), grant("r", 2, "c", "d"), grant("r", 2, "c", "d"),
		&pb.AuthRoleGetRequest{Role: "r"},
		revoke("nothing", "a", ""), revoke("r", "a", "b"), revoke("r", "a", ""), revoke("r", "a", ""), revoke("r", "c", "d"),
		&pb.AuthRoleGetRequest{Role: "r"},
		&pb.AuthUserGrantRoleRequest{User: "nobody", Role: "r"}, &pb.AuthUserGrantRoleRequest{User: "a", Role: "nothing"},
		&pb.AuthUserGrantRoleRequest{User: "a", Role: "r"}, &pb.AuthUserGrantRoleRequest{User: "a", Role: "r"},
		&pb.AuthUserGrantRoleRequest{User: "a", Role: "q"}, &pb.AuthUserGrantRoleRequest{User: "b", Role: "root"},
		&pb.AuthUserGetRequest{Name: "a"}, &pb.AuthUserGetRequest{Name: "b"},
		&pb.AuthUserRevokeRoleRequest{Name: "nobody", Role: "r"}, &pb.AuthUserRevokeRoleRequest{Name: "a", Role: "nothing"},
		&pb.AuthUserRevokeRoleRequest{Name: "a", Role: "q"}, &pb.AuthUserRevokeRoleRequest{Name: "a", Role: "q"},
		&pb.AuthUserRevokeRoleRequest{Name: "b", Role: "root"},
		&pb.AuthRoleDeleteRequest{Role: "nothing"}, &pb.AuthRoleDeleteRequest{Role: "r"}, &pb.AuthUserGetRequest{Name: "a"},
		&pb.AuthRoleDeleteRequest{Role: "root"},
		&pb.AuthUserDeleteRequest{Name: "nobody"}, &pb.AuthUserDeleteRequest{Name: "b"}, &pb.AuthUserDeleteRequest{Name: "root"},
		&pb.AuthUserListRequest{}, &pb.AuthRoleListRequest{},
		&pb.AuthEnableRequest{}, userAdd("root", "pw"), &pb.AuthEnableRequest{},
		&pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}, &pb.AuthEnableRequest{},
	}
	for _, step := range steps {
		p.do(anyone, step)
		p.ok(anyone, &pb.AuthStatusRequest{})
	}
	for _, wrong := range []*pb.AuthenticateRequest{
		{}, {Name: "root"}, {Name: "root", Password: "no"}, {Name: "nobody", Password: "pw"},
		{Name: "cert", Password: "x"}, {Name: "cert"}, {Name: "b", Password: ""}, {Name: "a", Password: "pw"}, {Name: "a", Password: "pw2"},
		{Name: "long", Password: long}, {Name: "long", Password: long + "x"}, {Name: "long", Password: long[1:]},
		{Name: "hash", Password: "pw"}, {Name: "hash", Password: ""},
	} {
		p.do(anyone, wrong)
		p.do("token:garbage", wrong)
	}
	p.login("root", "pw")
	p.login("a", "pw2")
	for _, step := range []proto.Message{
		&pb.AuthEnableRequest{}, &pb.AuthUserDeleteRequest{Name: "root"}, &pb.AuthUserRevokeRoleRequest{Name: "root", Role: "root"},
		&pb.AuthRoleDeleteRequest{Role: "root"}, &pb.AuthRoleAddRequest{Name: "root"}, &pb.AuthRoleDeleteRequest{Role: "root"},
		&pb.AuthRoleGetRequest{Role: "root"}, &pb.AuthRoleAddRequest{Name: "r"}, &pb.AuthUserGrantRoleRequest{User: "a", Role: "r"},
		&pb.AuthUserGetRequest{Name: "a"}, &pb.AuthUserGetRequest{Name: "root"}, &pb.AuthUserGetRequest{Name: "nobody"},
		&pb.AuthRoleGetRequest{Role: "r"}, &pb.AuthRoleGetRequest{Role: "q"}, &pb.AuthUserListRequest{}, &pb.AuthRoleListRequest{},
		userAdd("a", "pw"), userAdd("longer", long+"x"), userAdd("", "x"),
		&pb.AuthUserChangePasswordRequest{Name: "nobody", Password: "x"}, &pb.AuthUserChangePasswordRequest{Name: "nobody", Password: long + "x"},
	} {
		for _, who := range []string{anyone, "token:garbage", "a", "root"} {
			p.do(who, step)
			p.ok(anyone, &pb.AuthStatusRequest{})
		}
	}
	// A user's tokens go with its password, and with itself.
	get := &pb.AuthUserGetRequest{Name: "a"}
	p.ok("a", get)
	p.ok("root", &pb.AuthUserChangePasswordRequest{Name: "a", Password: "new"})
	p.fails("a", get, "invalid auth token")
	p.login("a", "new")
	p.ok("root", &pb.AuthUserDeleteRequest{Name: "a"})
	p.fails("a", get, "invalid auth token")
	// All go when it is disabled.
	p.ok("root", &pb.AuthDisableRequest{})
	p.ok("root", &pb.AuthDisableRequest{})
	p.ok(anyone, &pb.AuthStatusRequest{})
	p.ok(anyone, &pb.AuthEnableRequest{})
	p.fails("root", get, "invalid auth token")
}
