package damage

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

const (
	// keys of this size fill the first segment of the log, of 4 MB, and begin the second.
	logKeys     = 900
	logKeyBytes = 6000
	// segmentBytes are those of every segment but the first.
	segmentBytes = 64_000_000
	// markLag is how long after a write the log's mark names it, at the latest, and
	// some time for a slow machine.
	markLag = 3 * time.Second
)

// harmedLog is a member that was killed, and the last segment of its log that was begun.
type harmedLog struct {
	server  *harness.Server
	segment string
	content []byte
}

func logOf(t *testing.T, wait time.Duration, stop func(*harness.Server) error) *harmedLog {
	t.Helper()
	server := harness.Start(t, harness.Etched, harness.Options{})
	client := server.Client(t)
	ctx := harness.Context(t, 60*time.Second)
	for i := range logKeys {
		if _, err := client.Put(ctx, fmt.Sprintf("key%03d", i), strings.Repeat("v", logKeyBytes)); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(wait)
	if err := stop(server); err != nil {
		t.Fatal(err)
	}
	log := &harmedLog{server: server, segment: filepath.Join(server.DataDir(), "member", "wal", "0000000000000002.raftlog")}
	content, err := os.ReadFile(log.segment)
	if err != nil {
		t.Fatalf("the second segment was not begun: %v", err)
	}
	log.content = content
	return log
}

// next is the segment behind the last that was begun.
func (l *harmedLog) next() string {
	return strings.Replace(l.segment, "2.raftlog", "3.raftlog", 1)
}

// write puts a segment of this content in the place of the last that was begun.
func (l *harmedLog) write(t *testing.T, content []byte) {
	t.Helper()
	if err := os.WriteFile(l.segment, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// zero is the content with zeros from one byte to another.
func (l *harmedLog) zero(from, to int) []byte {
	content := append([]byte(nil), l.content...)
	clear(content[from:to])
	return content
}

// whole puts back what was harmed, and expects every acknowledged key.
func (l *harmedLog) whole(t *testing.T) {
	t.Helper()
	l.write(t, l.content)
	if err := os.Remove(l.next()); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := l.server.Restart(); err != nil {
		t.Fatalf("%v\n%s", err, l.server.LogTail(5))
	}
	l.count(t, logKeys)
}

func (l *harmedLog) count(t *testing.T, least int64) {
	t.Helper()
	got, err := l.server.Client(t).Get(harness.Context(t, limit), "key", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || got.Count < least || got.Count > logKeys {
		t.Errorf("%v keys are left, of at least %d: %v", got, least, err)
	}
}

// A log that lost its end is refused in one sentence, whatever took it away, and
// nothing in the directory changes.
func TestLostEndOfTheLog(t *testing.T) {
	t.Parallel()
	log := logOf(t, markLag, (*harness.Server).Kill)
	end := used(log.content)
	cut := func(percent int) func(*testing.T) {
		return func(t *testing.T) { log.write(t, log.content[:end*percent/100]) }
	}
	spare := func(t *testing.T) {
		if err := os.WriteFile(log.next(), make([]byte, segmentBytes), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(t *testing.T) {
		if err := os.Remove(log.segment); err != nil {
			t.Fatal(err)
		}
	}
	empty := func(t *testing.T) { log.write(t, nil) }
	zero := func(t *testing.T) { log.write(t, log.zero(0, end)) }
	both := func(harm, more func(*testing.T)) func(*testing.T) {
		return func(t *testing.T) { harm(t); more(t) }
	}
	missing := "acknowledged are missing"
	for _, harm := range []struct {
		name string
		do   func(*testing.T)
		says string
	}{
		{"the last begun segment emptied", empty, missing},
		{"the last begun segment zeroed", zero, missing},
		{"the last begun segment removed", remove, missing},
		{"the last begun segment emptied, another behind it", both(empty, spare), "is made only when this one is in use"},
		{"the last begun segment zeroed, another behind it", both(zero, spare), "is made only when this one is in use"},
		{"the last begun segment removed, another behind it", both(remove, spare), "is missing"},
		{"cut to half of what it holds", cut(50), "cut it short"},
		{"cut to 95 % of what it holds", cut(95), "cut it short"},
		{"cut behind the last frame", cut(100), "cut it short"},
		{"a sector of the last frame zeroed", func(t *testing.T) {
			sector := (end - 1024) / 512 * 512
			log.write(t, log.zero(sector, sector+512))
		}, missing},
		{"the tail of the last frame zeroed", func(t *testing.T) {
			log.write(t, log.zero((end-1024)/512*512, end))
		}, missing},
		{"all of the last frames zeroed", func(t *testing.T) {
			log.write(t, log.zero((end/2)/512*512, end))
		}, missing},
	} {
		t.Run(harm.name, func(t *testing.T) {
			defer log.write(t, log.content)
			defer os.Remove(log.next())
			harm.do(t)
			before := sums(t, log.server.DataDir())
			says(t, refused(t, args(t, log.server.DataDir())...), harm.says, "nothing was changed", "add it again", "backup")
			unchanged(t, log.server, before)
		})
	}
	log.whole(t)
}

// After an orderly stop the mark names all that was written.
func TestLostEndAfterAStop(t *testing.T) {
	t.Parallel()
	log := logOf(t, 0, (*harness.Server).Stop)
	end := used(log.content)
	log.write(t, log.zero((end-1024)/512*512, end))
	says(t, refused(t, args(t, log.server.DataDir())...), "acknowledged are missing")
	log.whole(t)
}

// Right after a write nothing but the log itself tells of it: zeros in its place
// are taken for a write that a crash tore, and said to be. What was acknowledged
// longer ago is there, or the member does not start.
func TestLostEndWithinTheLastSecond(t *testing.T) {
	t.Parallel()
	log := logOf(t, 0, (*harness.Server).Kill)
	end := used(log.content)
	log.write(t, log.zero((end-1024)/512*512, end))
	if err := log.server.Restart(); err != nil {
		if tail := log.server.LogTail(1); !strings.Contains(tail, "acknowledged are missing") {
			t.Fatalf("%v\n%s", err, tail)
		}
		return
	}
	if tail := log.server.LogTail(100); !strings.Contains(tail, "cut off the end of the raft log") {
		t.Errorf("no word of what was cut:\n%s", tail)
	}
	log.count(t, logKeys-1)
}
