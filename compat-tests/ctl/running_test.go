package ctl

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu      sync.Mutex
	content bytes.Buffer
}

func (b *buffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.Write(data)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.String()
}

// running is one etcdctl against each server that runs until it is ended.
type running struct {
	b     *bench
	text  string
	parts [2]*part
}

type part struct {
	command        *exec.Cmd
	stdin          io.WriteCloser
	stdout, stderr buffer
}

// begin starts a command line on both servers.
func (b *bench) begin(text string, words ...string) *running {
	b.t.Helper()
	r := &running{b: b, text: text}
	for i, s := range b.sides {
		ctx, cancel := context.WithTimeout(context.Background(), 2*commandLimit)
		b.t.Cleanup(cancel)
		one := &part{command: b.command(ctx, s, append(s.line(text), words...))}
		one.command.Stdout, one.command.Stderr = &one.stdout, &one.stderr
		one.command.WaitDelay = time.Second
		stdin, err := one.command.StdinPipe()
		if err != nil {
			b.t.Fatal(err)
		}
		one.stdin = stdin
		if err := one.command.Start(); err != nil {
			b.t.Fatal(err)
		}
		r.parts[i] = one
	}
	return r
}

// say writes a line to the standard input of both.
func (r *running) say(line string) {
	r.b.t.Helper()
	for _, one := range r.parts {
		if _, err := io.WriteString(one.stdin, line+"\n"); err != nil {
			r.b.t.Fatal(err)
		}
	}
}

// until waits until the outputs of both hold the text n times.
func (r *running) until(text string, n int) {
	r.b.t.Helper()
	deadline := time.Now().Add(commandLimit)
	for i, one := range r.parts {
		for strings.Count(one.stdout.String()+one.stderr.String(), text) < n {
			if time.Now().After(deadline) {
				r.b.t.Fatalf("%v: etcdctl %s never said %q %d times but\n%s%s", harness.Kind(i), r.text, text, n, &one.stdout, &one.stderr)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// end interrupts both and compares what they gave.
func (r *running) end(more ...normaliser) result {
	r.b.t.Helper()
	for _, one := range r.parts {
		if err := one.command.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
			r.b.t.Fatal(err)
		}
	}
	return r.wait(more...)
}

// wait waits for both to end by themselves and compares what they gave.
func (r *running) wait(more ...normaliser) result {
	r.b.t.Helper()
	var results [2]result
	for i, one := range r.parts {
		_ = one.command.Wait()
		results[i] = result{one.command.ProcessState.ExitCode(), one.stdout.String(), one.stderr.String()}
	}
	r.b.compare(r.text, results, more...)
	return results[1]
}

func (b *bench) runFor(s *side, limit time.Duration, text string) result {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	command := b.command(ctx, s, s.line(text))
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	_ = command.Run()
	return result{command.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	b.fill()
	for i, line := range []string{
		"watch --rev 1 a", "watch --rev 1 --prefix ''", "watch --rev 1 a c", "watch --rev 1 a --prev-kv", "watch --rev 3 --prefix '' --prev-kv",
		"watch --rev 1 --prefix '' -w json", "watch --rev 1 --prefix '' --prev-kv -w json", "watch --rev 1 --prefix '' --prev-kv -w fields", "watch --rev 1 a --hex",
	} {
		last := fmt.Sprint("last", i)
		watch := b.begin(line)
		b.ok("put a live")
		b.ok("del a")
		b.ok("put a " + last)
		if strings.Contains(line, "json") {
			last = base64.StdEncoding.EncodeToString([]byte(last))
		} else if strings.Contains(line, "hex") {
			last = fmt.Sprintf(`\x%x`, last[len(last)-1:])
		}
		watch.until(last, 1)
		watch.end(joinMessages...)
	}
}

// joinMessages drops what depends on how events are spread over messages while
// a watch catches up beside writes.
var joinMessages = []normaliser{
	replace(`\{"Header":\{[^}]*\},"Events":`, ""),
	replace(`,"CompactRevision":0,"Canceled":false,"Created":false[^}]*\}`, ""),
	replace(`\]\s*\[`, ","),
	replace(`"(ClusterID|MemberID|Revision|RaftTerm)" : \S+\n`, ""),
}

func TestWatchRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	b.fill()
	b.ok("compaction 5")
	for _, line := range []string{"watch --rev 2 a", "watch --rev 2 --prefix '' -w json", "watch b a", "watch b b", "watch", "watch a --", "watch --prefix a b"} {
		b.fails(line)
	}
}

func TestWatchExec(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	b.fill()
	watch := b.begin("watch --rev 1 a --", "sh", "-c", `echo "$ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"`)
	// Caught up first: otherwise the last event may share a message with others.
	watch.until(`"PUT" "a" "2"`, 1)
	b.ok("put a end")
	watch.until(`"PUT" "a" "end"`, 1)
	watch.end()
	failing := b.begin("watch --rev 1 a --", "false")
	failing.wait()
}

func TestWatchInteractive(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	b.fill()
	watch := b.begin("watch -i")
	watch.say("banana")
	watch.until("only support watch", 1)
	watch.say("watch")
	watch.until("Invalid command watch", 1)
	watch.say("watch --rev 1 a")
	watch.until("PUT", 2)
	watch.say("watch --prefix b --rev 1")
	watch.until("PUT", 4)
	b.ok("put a live")
	watch.until("live", 1)
	watch.say("progress")
	watch.until("progress notify", 1)
	watch.say("watch --rev 2 z -- echo seen $ETCD_WATCH_VALUE")
	watch.until("seen", 1)
	watch.end()
	b.input("watch -i", "watch a\n")
}

func TestLeaseKeepAliveContinues(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	b.ok("lease grant 3")
	b.ok("put leased 1 --lease=$1")
	alive := b.begin("lease keep-alive $1")
	alive.until("keepalived", 3)
	b.ok("get leased")
	b.ok("lease revoke $1")
	alive.until("expired or revoked", 1)
	alive.wait(replace(`(?m)^lease .* keepalived .*\n`, ""))
}

func TestLockAndElect(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	owner := replace(`name/[0-9a-f]+`, "name/OWNER")
	b.ok("lock name echo held", owner)
	b.do("lock name false", owner)
	b.do("lock", owner)
	first := b.begin("lock name")
	first.until("name/", 1)
	second := b.begin("lock name echo second")
	b.ok("put unrelated 1")
	first.end(owner)
	second.until("second", 1)
	second.wait(owner)
	b.do("get --prefix name/ --count-only -w fields")
	leader := b.begin("elect name proposal")
	leader.until("proposal", 1)
	observer := b.begin("elect -l name")
	observer.until("proposal", 1)
	observer.end(owner)
	leader.end(owner)
}

func TestMakeMirror(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	for _, line := range []string{"put from/a 1", "put from/b 2", "put from/a 3", "put other 1"} {
		b.ok(line)
	}
	// Each mirrors one prefix of its own server to another.
	var mirrors [2]*part
	for i, s := range b.sides {
		ctx, cancel := context.WithTimeout(context.Background(), 2*commandLimit)
		t.Cleanup(cancel)
		mirrors[i] = &part{command: b.command(ctx, s, []string{"make-mirror", "--prefix=from/", "--dest-prefix=to/", s.server.Endpoint()})}
		mirrors[i].command.Stdout, mirrors[i].command.Stderr = &mirrors[i].stdout, &mirrors[i].stderr
		if err := mirrors[i].command.Start(); err != nil {
			t.Fatal(err)
		}
	}
	b.wanted("get to/b --print-value-only", "2\n")
	b.ok("put from/c 4")
	b.ok("del from/b")
	b.ok("put from/last end")
	b.wanted("get to/last --print-value-only", "end\n")
	b.ok("get --prefix to/")
	var results [2]result
	for i, mirror := range mirrors {
		if err := mirror.command.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_ = mirror.command.Wait()
		results[i] = result{mirror.command.ProcessState.ExitCode(), mirror.stdout.String(), mirror.stderr.String()}
	}
	b.compare("make-mirror", results)
	for _, line := range []string{"make-mirror", "make-mirror --prefix=a --no-dest-prefix --dest-prefix=b 127.0.0.1:1"} {
		b.do(line)
	}
}

// wanted waits until a command line gives an output on both.
func (b *bench) wanted(text, stdout string) {
	b.t.Helper()
	deadline := time.Now().Add(commandLimit)
	for i, s := range b.sides {
		for b.run(s, s.line(text), "").Stdout != stdout {
			if time.Now().After(deadline) {
				b.t.Fatalf("%v: etcdctl %s never gave %q", harness.Kind(i), text, stdout)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// No server at all: what etcdctl says is its own, but the exit is the same.
func TestStoppedServer(t *testing.T) {
	t.Parallel()
	b := newBench(t, harness.Options{})
	b.ok("put a 1")
	for _, s := range b.sides {
		if err := s.server.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	b.fails("get a --command-timeout=500ms --dial-timeout=300ms", replace(`\{.*?\}`, "{}"))
	b.fails("endpoint health --command-timeout=500ms", replace(`\{.*?\}`, "{}"), replace(`(?s).*`, ""))
}
