package protocheck

import (
	"flag"
	"os/exec"
	"regexp"
	"slices"
	"testing"

	"etched.dev/compat-tests/harness"
	"go.etcd.io/etcd/server/v3/embed"
)

// own are the flags that etcd does not have.
var own = []string{"client-cert-allowed-cn", "memory-budget-bytes", "watch-permission-recheck"}

// stale are in the help of etcd, which refuses them.
var stale = []string{"discovery", "discovery-proxy"}

var named = regexp.MustCompile(`(?m)^ +(?:etcd )?--([a-z0-9-]+)`)

// helped are the flags that a program's help begins a line with.
func helped(t *testing.T, kind harness.Kind) []string {
	t.Helper()
	binary, err := harness.Binary(kind)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(binary, "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var names []string
	for _, found := range named.FindAllSubmatch(out, -1) {
		names = append(names, string(found[1]))
	}
	return names
}

// Every flag of etcd's is in etched's help, and of others only those that are said to be its own.
func TestFlagsAreEtcds(t *testing.T) {
	// Most are those of a member that is part of another program; the help of etcd has the rest.
	theirs := helped(t, harness.Etcd)
	set := flag.NewFlagSet("etcd", flag.ContinueOnError)
	embed.NewConfig().AddFlags(set)
	set.VisitAll(func(one *flag.Flag) { theirs = append(theirs, one.Name) })
	for _, name := range stale {
		if exit := harness.Exits(t, harness.Etcd, nil, []string{"--" + name + "=x"}); exit.Code != 2 {
			t.Errorf("etcd takes --%s: %+v", name, exit)
		}
	}
	slices.Sort(theirs)
	theirs = slices.DeleteFunc(slices.Compact(theirs), func(name string) bool { return slices.Contains(stale, name) })
	ours := helped(t, harness.Etched)
	if len(theirs) < 100 || len(ours) < 100 {
		t.Fatalf("%d flags of etcd and %d of etched: were they read?", len(theirs), len(ours))
	}
	for _, name := range theirs {
		if !slices.Contains(ours, name) {
			t.Errorf("etched's help has no --%s", name)
		}
		if slices.Contains(own, name) {
			t.Errorf("--%s is etcd's too", name)
		}
	}
	for _, name := range ours {
		if !slices.Contains(theirs, name) && !slices.Contains(own, name) {
			t.Errorf("etcd has no --%s", name)
		}
	}
	for _, name := range own {
		if !slices.Contains(ours, name) {
			t.Errorf("etched's help has no --%s", name)
		}
	}
}
