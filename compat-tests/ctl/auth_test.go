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
