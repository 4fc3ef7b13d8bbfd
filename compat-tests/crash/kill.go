package crash

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// KillMode is the moment at which a round kills the server.
type KillMode int

// The moments. After any of them the server may be killed again while it starts.
const (
	// UnderLoad kills at a random moment.
	UnderLoad KillMode = iota
	// AfterAnswer kills as soon as some client has its answer.
	AfterAnswer
	// DuringFlush kills shortly after a new file has come into the data directory:
	// the state is being flushed, or the raft log continues in another file.
	DuringFlush
	// DuringCompaction kills shortly after a compaction was asked for.
	DuringCompaction
	// KillModes is their number.
	KillModes
)

// String names the moment.
func (m KillMode) String() string {
	return [...]string{"under load", "right after an answer", "during a flush", "during a compaction"}[m]
}

// kill waits for the moment and kills; compactions continue until then.
func (r *Run) kill(mode KillMode) {
	began := time.Now()
	r.compactEvery(r.life, time.Duration(200+r.rng.Int64N(800))*time.Millisecond)
	pause := time.Duration(r.rng.Int64N(int64(15 * time.Millisecond)))
	switch mode {
	case UnderLoad:
		time.Sleep(pause)
	case AfterAnswer:
		floor := r.log.Begin()
		Eventually(requestLimit, func() bool { return r.log.Begin() > floor })
	case DuringFlush:
		r.awaitNewFile()
		time.Sleep(pause)
	case DuringCompaction:
		ctx, cancel := context.WithTimeout(r.life, requestLimit)
		defer cancel()
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			r.compact(ctx, true, true)
		}()
		time.Sleep(pause)
		defer func() { <-asked }()
	}
	if err := r.server.Kill(); err != nil {
		r.log.Fault(Unavailable, "kill: %v", err)
	}
	r.killed()
	r.Kills++
	r.LastKill = fmt.Sprintf("a kill %s, %v into the round", mode, time.Since(began).Round(time.Millisecond))
}

// awaitNewFile waits until a file comes into the data directory.
func (r *Run) awaitNewFile() {
	before := files(r.server.DataDir())
	Eventually(requestLimit, func() bool {
		for path := range files(r.server.DataDir()) {
			if !before[path] {
				return true
			}
		}
		return false
	})
}

func files(directory string) map[string]bool {
	found := map[string]bool{}
	// Files come and go meanwhile: what cannot be looked at is not there.
	_ = filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			found[path] = true
		}
		return nil
	})
	return found
}

// compactEvery lets the given time pass, compacting now and then.
func (r *Run) compactEvery(ctx context.Context, length time.Duration) {
	for end := time.Now().Add(length); time.Now().Before(end); {
		time.Sleep(min(time.Until(end), time.Duration(100+r.rng.Int64N(300))*time.Millisecond))
		if r.rng.IntN(2) == 0 {
			r.compact(ctx, r.rng.IntN(2) == 0, r.rng.IntN(4) == 0)
		}
	}
}

// compact asks for a compaction at a revision that every watch has passed, so
// that none has to be cancelled. Unless it is to reach far, it stays below the
// round's own writes, which are to be read at their revisions later.
func (r *Run) compact(ctx context.Context, physical, far bool) {
	highest := r.history.Head()
	for _, watcher := range r.watchers {
		highest = min(highest, watcher.Next()-1)
	}
	if !far {
		highest = min(highest, r.explained)
	}
	lowest := max(r.compactions.LastAskedFor(), firstRevision) + 1
	if lowest > highest {
		return
	}
	revision := lowest + r.rng.Int64N(highest-lowest+1)
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	floor := r.log.Begin()
	r.compactions.Asking(revision)
	response, err := pb.NewKVClient(r.raw).Compact(ctx, &pb.CompactionRequest{Revision: revision, Physical: physical})
	switch OutcomeOf(err) {
	case Acknowledged:
		r.compactions.Acknowledged(revision)
		if response.Header.Revision < floor {
			r.log.Fault(RevisionBack, "a compaction answered revision %d, %d had been answered before it began", response.Header.Revision, floor)
		}
	case Refused:
		r.log.Fault(CompactionBroken, "a compaction at %d, above the last one, was refused: %v", revision, err)
	}
}
