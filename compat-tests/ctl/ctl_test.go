// Package ctl drives stock etcdctl v3.7.3 against etched and against etcd
// v3.7.3 and compares exit codes, standard output and standard error.
package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) { harness.RunWaiting(m) }

// commandLimit bounds each run of etcdctl.
const commandLimit = 30 * time.Second

// side is one server and the ids of leases it has given out.
type side struct {
	server *harness.Server
	leases []string
	// members are those of a cluster; added are the ids of members that were added.
	members []*harness.Member
	added   []string
}

// bench runs the same command lines against both servers.
type bench struct {
	t       *testing.T
	etcdctl string
	sides   [2]*side
}

func newBench(t *testing.T, options harness.Options) *bench {
	t.Helper()
	etcdctl, err := harness.Etcdctl()
	if err != nil {
		t.Fatal(err)
	}
	duo := harness.StartDuo(t, options)
	return &bench{t: t, etcdctl: etcdctl, sides: [2]*side{{server: duo.Etched}, {server: duo.Etcd}}}
}

// result is what one run gave.
type result struct {
	Code           int
	Stdout, Stderr string
}

// line splits a command line at blanks; a word ” stands for an empty one, and
// $1 for the first lease that was granted, ENDPOINT1 for the first member's address,
// MEMBER1 for the id of the first member that was added.
func (s *side) line(text string) []string {
	var words []string
	for _, word := range strings.Fields(text) {
		if word == "''" {
			word = ""
		}
		for i, lease := range s.leases {
			word = strings.ReplaceAll(word, fmt.Sprint("$", i+1), lease)
		}
		for i, member := range s.members {
			word = strings.ReplaceAll(word, fmt.Sprint("ENDPOINT", i+1), member.Endpoint())
		}
		for i, id := range s.added {
			word = strings.ReplaceAll(word, fmt.Sprint("MEMBER", i+1), id)
		}
		words = append(words, word)
	}
	return words
}

func (b *bench) command(ctx context.Context, s *side, args []string) *exec.Cmd {
	if !slices.ContainsFunc(args, func(word string) bool { return strings.HasPrefix(word, "--endpoints=") }) {
		args = append([]string{"--endpoints=" + s.server.Endpoint()}, args...)
	}
	command := exec.CommandContext(ctx, b.etcdctl, args...)
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "ETCDCTL_") {
			command.Env = append(command.Env, entry)
		}
	}
	command.Dir = b.t.TempDir()
	return command
}

func (b *bench) run(s *side, args []string, stdin string) result {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	command := b.command(ctx, s, args)
	var stdout, stderr bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := command.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		b.t.Fatalf("etcdctl %q: %v", args, err)
	}
	return result{command.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// do runs a command line on both, compares, and answers etcd's result.
func (b *bench) do(text string, more ...normaliser) result { return b.input(text, "", more...) }

// input is do with a standard input.
func (b *bench) input(text, stdin string, more ...normaliser) result {
	b.t.Helper()
	var results [2]result
	var done sync.WaitGroup
	for i, s := range b.sides {
		done.Go(func() { results[i] = b.run(s, s.line(text), stdin) })
	}
	done.Wait()
	for i, s := range b.sides {
		s.learn(results[i].Stdout)
	}
	b.compare(text, results, more...)
	return results[1]
}

// ok is do for a line that must succeed on etcd.
func (b *bench) ok(text string, more ...normaliser) result {
	b.t.Helper()
	got := b.do(text, more...)
	if got.Code != 0 {
		b.t.Errorf("etcdctl %s: exit code %d of etcd's\n%s", text, got.Code, got.Stderr)
	}
	return got
}

// fails is do for a line that must fail on etcd.
func (b *bench) fails(text string, more ...normaliser) result {
	b.t.Helper()
	got := b.do(text, more...)
	if got.Code == 0 {
		b.t.Errorf("etcdctl %s: succeeds on etcd", text)
	}
	return got
}

func (b *bench) compare(text string, results [2]result, more ...normaliser) {
	b.t.Helper()
	for i, s := range b.sides {
		for _, output := range []*string{&results[i].Stdout, &results[i].Stderr} {
			*output = s.normal(*output)
			for _, normalise := range more {
				*output = normalise(*output)
			}
		}
	}
	if diff := cmp.Diff(results[0], results[1]); diff != "" {
		b.t.Errorf("etcdctl %s\n(-etched +etcd)\n%s", text, diff)
	}
}

var granted = regexp.MustCompile(`lease ([0-9a-f]+) granted`)

// learn keeps the ids of leases granted and of members added.
func (s *side) learn(stdout string) {
	for _, match := range granted.FindAllStringSubmatch(stdout, -1) {
		s.leases = append(s.leases, match[1])
	}
	for _, match := range addedMember.FindAllStringSubmatch(stdout, -1) {
		s.added = append(s.added, match[1])
	}
}

// normaliser removes from an output what may differ.
type normaliser func(string) string

// replace makes a normaliser of a pattern.
func replace(pattern, by string) normaliser {
	compiled := regexp.MustCompile(pattern)
	return func(text string) string { return compiled.ReplaceAllString(text, by) }
}

// everywhere are the parts of any output that may differ.
var everywhere = []normaliser{
	replace(`"raft_term":\d+`, `"raft_term":TERM`),
	replace(`"raftTerm":\d+`, `"raftTerm":TERM`),
	replace(`"RaftTerm" : \d+`, `"RaftTerm" : TERM`),
	replace(`"ts":"[^"]*"`, `"ts":"TIME"`),
	replace(`took = [0-9.]+(ns|µs|ms|s)`, `took = TIME`),
	replace(`[tT]ook [0-9.]+(ns|µs|ms|s)`, `took TIME`),
	replace(`"took":"?[^",}]*"?`, `"took":"TIME"`),
	replace(`"duration": ?"[^"]*"`, `"duration":"TIME"`),
	replace(`LocalAddr: '[^']*'`, `LocalAddr: 'ADDRESS'`),
	replace(`0x[0-9a-f]{8,}`, `ADDRESS`),
	// One blank or two, as the hash of etcd's program has it.
	replace(`(memberID:\d+) +(alarm:)`, `$1 $2`),
}

func (s *side) normal(text string) string {
	for i, member := range s.members {
		text = strings.ReplaceAll(text, member.Endpoint(), fmt.Sprint("ENDPOINT", i+1))
	}
	for i, id := range s.added {
		// etcdctl pads an id whose first digits are zeros.
		text = replace(` +`+id, " "+id)(text)
		text = strings.ReplaceAll(text, id, fmt.Sprint("MEMBER", i+1))
	}
	text = strings.ReplaceAll(text, s.server.Endpoint(), "ENDPOINT")
	for i, lease := range s.leases {
		text = strings.ReplaceAll(text, lease, fmt.Sprint("LEASE", i+1))
		var id int64
		if _, err := fmt.Sscanf(lease, "%x", &id); err == nil {
			text = strings.ReplaceAll(text, fmt.Sprint(id), fmt.Sprint("LEASE", i+1))
		}
	}
	for _, normalise := range everywhere {
		text = normalise(text)
	}
	return text
}

// table makes the widths of columns not count.
var table = func(text string) string {
	return replace(`[─-]+`, "-")(replace(` +`, " ")(text))
}
