package offline

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
)

// What of the raft log is not needed any more is removed, but where a flag asks to keep
// it; `etched log` shows it, and nobody else reads it.
func TestMaxWals(t *testing.T) {
	t.Parallel()
	for _, want := range []struct {
		flags []string
		kept  int
	}{{nil, 0}, {[]string{"--max-wals=0"}, 2}, {[]string{"--max-wals=1"}, 1}} {
		t.Run(strings.Join(want.flags, " "), func(t *testing.T) {
			flags := append([]string{"--snapshot-count=10", "--snapshot-catchup-entries=5"}, want.flags...)
			server := harness.Start(t, harness.Etched, harness.Options{Flags: flags})
			client, ctx := server.Client(t), harness.Context(t, limit)
			gone := func() (kept []string) {
				kept, err := filepath.Glob(filepath.Join(server.DataDir(), "member", "wal", "*.kept"))
				if err != nil {
					t.Fatal(err)
				}
				return kept
			}
			first := filepath.Join(server.DataDir(), "member", "wal", fmt.Sprintf("%016x.raftlog", 2))
			// A file has 64 MB; the second one is retired when it is.
			for i := 0; ; i++ {
				if _, err := client.Put(ctx, "key", fmt.Sprintf("%01000000d", i)); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat(first); i > 130 && os.IsNotExist(err) {
					break
				}
			}
			if kept := gone(); len(kept) != want.kept {
				t.Errorf("kept: %v", kept)
			}
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			begins := strings.HasPrefix(succeeds(t, "log", server.DataDir()), `{"term":2,"index":2,`)
			if begins != (want.kept == 2) {
				t.Errorf("the log has its beginning: %v", begins)
			}
			succeeds(t, "check", server.DataDir())
			for _, name := range gone() {
				if err := os.WriteFile(name, []byte("damage"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := server.Restart(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
