package cluster

import (
	"debug/buildinfo"
	"debug/elf"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

//go:embed shim/shim.c
var shimSource []byte

// Shim makes the disks of members stall and their clocks jump: see shim/shim.c.
type Shim struct{ library, dir string }

// NewShim compiles the shim; it skips the test where that would be without effect
// on the server, as on etcd.
func NewShim(tb testing.TB) *Shim {
	tb.Helper()
	binary, err := harness.Binary(Kind())
	if err != nil {
		tb.Fatal(err)
	}
	if !usesLibrary(binary) {
		tb.Skipf("%s makes its system calls by itself, so its disk and clock cannot be tampered with by LD_PRELOAD", binary)
	}
	compiler, err := exec.LookPath("cc")
	if err != nil {
		tb.Skip("there is no C compiler `cc` to build what tampers with disk and clock")
	}
	s := &Shim{dir: tb.TempDir()}
	s.library = filepath.Join(s.dir, "shim.so")
	source := filepath.Join(s.dir, "shim.c")
	if err := os.WriteFile(source, shimSource, 0o600); err != nil {
		tb.Fatal(err)
	}
	out, err := exec.Command(compiler, "-O1", "-shared", "-fPIC", "-o", s.library, source, "-ldl", "-lpthread").CombinedOutput()
	if err != nil {
		tb.Fatalf("compile the shim: %v\n%s", err, out)
	}
	return s
}

// usesLibrary says that a program is linked dynamically and calls the C library
// for its system calls, which Go's programs do not.
func usesLibrary(binary string) bool {
	if _, err := buildinfo.ReadFile(binary); err == nil {
		return false
	}
	file, err := elf.Open(binary)
	if err != nil {
		return false
	}
	defer file.Close()
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return true
		}
	}
	return false
}

// Env is the environment of a member, by its number.
func (s *Shim) Env(member int) []string {
	return []string{"LD_PRELOAD=" + s.library, "SHIM_STALL=" + s.stallFile(member), "SHIM_CLOCK=" + s.clockFile(member)}
}

func (s *Shim) stallFile(member int) string {
	return filepath.Join(s.dir, fmt.Sprintf("stall-%d", member))
}

func (s *Shim) clockFile(member int) string {
	return filepath.Join(s.dir, fmt.Sprintf("clock-%d", member))
}

// Stall makes every fsync of a member wait, until Flow.
func (s *Shim) Stall(member int) error { return os.WriteFile(s.stallFile(member), nil, 0o600) }

// Flow ends a stall.
func (s *Shim) Flow(member int) error { return os.Remove(s.stallFile(member)) }

// Jump sets how far a member's wall clock is off; within 100 ms it notices.
func (s *Shim) Jump(member int, by time.Duration) error {
	next := s.clockFile(member) + ".next"
	if err := os.WriteFile(next, fmt.Append(nil, int(by/time.Second)), 0o600); err != nil {
		return err
	}
	return os.Rename(next, s.clockFile(member))
}
