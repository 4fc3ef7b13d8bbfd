package ctl

import (
	"testing"

	"etched.dev/compat-tests/harness"
)

var (
	remaining = replace(`remaining\(\d+s\)`, "remaining(TIME)")
	timeLeft  = replace(`"ttl":\d+`, `"ttl":TIME`)
	fieldLeft = replace(`"TTL" : \d+`, `"TTL" : TIME`)
)

func TestLeases(t *testing.T) {
	harness.OfSingleServers(t)
	t.Parallel()
	b := newBench(t, harness.Options{})
	b.ok("lease list")
	b.ok("lease grant 500")
	b.ok("lease grant 600")
	b.ok("put leased 1 --lease=$1")
	b.ok("put also 1 --lease=$1")
	b.ok("put other 1 --lease=$2 --prev-kv")
	for _, format := range formats {
		b.ok("get leased -w " + format)
		b.ok("lease timetolive $1 -w "+format, remaining, timeLeft, fieldLeft)
		b.ok("lease timetolive $2 --keys -w "+format, remaining, timeLeft, fieldLeft)
		b.do("lease timetolive 1234 -w " + format)
		b.ok("lease keep-alive --once $1 -w " + format)
		b.ok("lease list -w " + format)
	}
	b.do("lease keep-alive --once 1234")
	b.do("lease keep-alive 1234")
	b.ok("put also 2 --ignore-lease")
	b.ok("put leased 2")
	b.ok("lease timetolive $1 --keys", remaining)
	b.fails("put leased 1 --lease=77")
	b.ok("lease revoke $1")
	b.ok("get --prefix ''")
	b.fails("lease revoke $1")
	b.ok("lease timetolive $1")
	b.ok("lease revoke $2 -w json")
	b.ok("lease list")
	for _, line := range []string{"lease grant", "lease grant banana", "lease grant -- -5", "lease grant 9000000001", "lease grant 0", "lease revoke", "lease revoke banana",
		"lease timetolive", "lease timetolive banana", "lease keep-alive", "lease keep-alive banana", "lease", "lease banana"} {
		b.do(line)
	}
}
