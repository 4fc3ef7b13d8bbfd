package ctl

import (
	"testing"

	"etched.dev/compat-tests/harness"
)

// Where auth was never enabled a name and a password change nothing, and the store of users
// is there, empty.
func TestAuthNeverEnabled(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	b.waitClusterVersion()
	for _, who := range []string{"--user root:x", "--user=root --password=x", "--user nobody:"} {
		b.ok(who + " put a b")
		b.ok(who + " get a")
		b.ok(who+" endpoint health", replace(`[0-9.]+(µs|ms)`, "TIME"))
		b.ok(who + " lease list")
		b.ok(who + " member list")
		b.ok(who + " del a")
	}
	for _, line := range []string{"auth status", "user list", "role list"} {
		b.ok(line)
		b.ok("--user root:x " + line)
		for _, format := range append(formats, "table") {
			// Not every format is there for each.
			b.do(line + " -w " + format)
		}
	}
	for _, line := range []string{"auth", "auth banana", "auth status more", "user", "user list more", "role", "role list more"} {
		b.do(line)
	}
	// None of this was a write.
	b.ok("get --prefix '' -w json")
}

// The commands of etcd's documents on authentication, in its order, and what a
// user without rights is answered.
func TestUsersRolesAndAuth(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{Flags: []string{"--bcrypt-cost=4"}})
	b.waitClusterVersion()
	b.fails("auth enable --user root:x")
	b.ok("user add root:rootpw")
	b.ok("user add plain:pw")
	b.ok("user add nopw --no-password")
	b.fails("user add plain:pw")
	b.fails("user add")
	b.input("user add typed", "typedpw\ntypedpw\n")
	b.input("user add typed2 --interactive=false", "typedpw\n")
	b.ok("user list")
	b.ok("role add rw")
	b.ok("role add ro")
	b.fails("role add rw")
	for _, line := range []string{
		"role grant-permission rw readwrite foo", "role grant-permission rw readwrite foo zoo",
		"role grant-permission rw write pre/ --prefix=true", "role grant-permission ro read from --from-key=true", "role grant-permission ro read '' --prefix=true",
		"role grant-permission ro read all '' --from-key",
		"role grant-permission ro banana x", "role grant-permission nothing read x", "role grant-permission ro read b a",
		"role get rw", "role get ro", "role get root", "role get nothing", "role list",
		"user grant-role plain rw", "user grant-role plain nothing", "user grant-role nobody rw", "user grant-role root root",
		"user get plain", "user get plain --detail", "user get nobody", "user get root",
	} {
		b.do(line)
	}
	for _, line := range []string{"user get plain", "user list", "role get rw", "role list", "auth status"} {
		for _, format := range append(formats, "table") {
			b.do(line + " -w " + format)
		}
	}
	b.ok("auth enable")
	b.ok("auth status")
	b.fails("put foo bar")
	b.fails("--user plain:wrong put foo bar")
	b.fails("--user nobody:pw put foo bar")
	b.fails("--user nopw:pw put foo bar")
	for _, who := range []string{"--user plain:pw ", "--user=plain --password=pw ", "--user root:rootpw "} {
		for _, line := range []string{
			"put foo bar", "get foo", "get fooz", "get zoo", "put pre/a b", "get pre/a", "del foo", "get --prefix ''",
			"user get plain", "user get root", "user list", "role get rw", "role get ro", "role list", "auth status",
			"member list -w json", "lease list", "compaction 1", "alarm list",
		} {
			b.do(who + line)
		}
	}
	root := "--user root:rootpw "
	for _, line := range []string{
		"role revoke-permission rw foo zoo", "role revoke-permission rw foo zoo", "role revoke-permission rw pre/ --prefix", "role get rw",
		"user revoke-role plain rw", "user revoke-role plain rw", "user revoke-role root root", "user get plain",
		"user passwd plain --interactive=false", "user delete plain", "user delete plain", "user delete root", "role delete rw", "role delete rw", "role delete root",
		"user list", "role list",
	} {
		b.input(root+line, "newpw\n")
	}
	b.fails("auth disable")
	b.ok(root + "auth disable")
	b.ok("auth status")
	b.ok("user list")
}
