package edges

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"
)

const (
	// forgedSnapshots are begun under as many ids, and more comes of each for as long.
	forgedSnapshots   = 200
	snapshotsLast     = 3 * time.Second
	snapshotsEach     = 50
	snapshotPartBytes = 16 * kilobyte
	// receivedAtOnce is how many a member takes at the same time from anybody.
	receivedAtOnce = 2
	// threadsBeside may be begun meanwhile for what else the member does.
	threadsBeside = 16
)

// forgeSnapshots begins snapshots under many ids, those of members among them, and lets a
// little more come of each all the time. A member that took them would fill its disk, or
// have a thread wait for each. It must take few, hold no more threads, and take writes.
func forgeSnapshots(ctx context.Context, s *attackRun, v *target) {
	threads, err := v.server.Threads()
	if err != nil {
		s.note("the threads before forged snapshots: %v", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotsLast)
	defer cancel()
	calls := v.beginSnapshots(ctx, s, s.count(forgedSnapshots))
	most, bytes, dirs := 0, int64(0), 0
	part := framedBytes(field(2, junkBytes(snapshotPartBytes)))
	for n := 0; ctx.Err() == nil; n++ {
		for _, opened := range calls {
			if opened.ended() {
				continue
			}
			limited, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
			_ = opened.send(limited, part, false)
			cancel()
		}
		if err := s.put(ctx, fmt.Sprint("forged/", n%10), 100); err != nil && ctx.Err() == nil && !s.mixed() {
			s.fault("a put beside forged snapshots: %v", err)
		}
		if now, err := v.server.Threads(); err == nil {
			most = max(most, now)
		}
		nowDirs, nowBytes := received(v.server.DataDir())
		dirs, bytes = max(dirs, nowDirs), max(bytes, nowBytes)
		pause(ctx, 100*time.Millisecond)
	}
	for _, opened := range calls {
		s.answers.add(opened.await(100 * time.Millisecond))
	}
	switch {
	case dirs > receivedAtOnce:
		s.fault("%d forged snapshots came in at once, of %d bytes", dirs, bytes)
	case !s.mixed() && most > threads+threadsBeside:
		s.fault("%d threads became %d beside forged snapshots", threads, most)
	}
}

// beginSnapshots opens the calls and announces a file in each.
func (v *target) beginSnapshots(ctx context.Context, s *attackRun, count int) []*call {
	var w *http2Conn
	var calls []*call
	file := field(1, append(field(1, []byte("000001.sst")), number(2, 1<<30)...))
	known := v.senders()
	for n := range count {
		if n%snapshotsEach == 0 {
			var err error
			if w, err = dialHTTP2(v.server.PeerEndpoint(), clientOptions{}); err != nil {
				s.answers.add(errorText(err))
				return calls
			}
			s.keep(w.close)
		}
		from := unknownSender + uint64(n)
		if n < len(known) {
			from = known[n]
		}
		opened, err := w.open("/etchedpeer.Peer/Snapshot", v.headersFrom(from)...)
		if err == nil {
			err = opened.send(ctx, framedBytes(file), false)
		}
		if err != nil {
			s.answers.add(errorText(err))
			continue
		}
		calls = append(calls, opened)
	}
	return calls
}

// received counts the snapshots that are coming in to a data directory, and their bytes.
func received(dataDir string) (dirs int, bytes int64) {
	found, _ := filepath.Glob(filepath.Join(dataDir, "member", "receiving-*"))
	for _, dir := range found {
		_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return nil
			}
			if info, err := entry.Info(); err == nil {
				bytes += info.Size()
			}
			return nil
		})
	}
	return len(found), bytes
}
