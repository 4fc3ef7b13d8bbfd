package harness

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"
)

// Resource is what a process may have a limited amount of, as in prlimit(2).
type Resource int

const (
	// ThreadsOfUser are those of all processes of a user, save root's.
	ThreadsOfUser Resource = 6
	// OpenFiles are those of one process.
	OpenFiles Resource = 7
)

// Limit sets how much of a resource the running process may have from now on, and
// answers what it was. The hard limit stays.
func (s *Server) Limit(resource Resource, most uint64) (uint64, error) {
	ask := func(set, found *syscall.Rlimit) error {
		_, _, code := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(s.PID()), uintptr(resource),
			uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(found)), 0, 0)
		if code != 0 {
			return fmt.Errorf("prlimit of %d: %w", s.PID(), code)
		}
		return nil
	}
	var before syscall.Rlimit
	if err := ask(nil, &before); err != nil {
		return 0, err
	}
	return before.Cur, ask(&syscall.Rlimit{Cur: most, Max: before.Max}, nil)
}

// Threads counts those of the running process.
func (s *Server) Threads() (int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", s.PID()))
	return len(entries), err
}

// OpenFiles counts those of the running process.
func (s *Server) OpenFiles() (int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.PID()))
	return len(entries), err
}

// CanLimitThreads says why no process can be started whose threads have a limit; nil where
// one can be. Root's have none, so it has to be another user's, which only root can start.
func CanLimitThreads() error {
	if os.Geteuid() != 0 {
		return errors.New("only root can start a process of another user")
	}
	_, err := exec.LookPath("prlimit")
	return err
}

// giveTo has a user find the binary in the server's directory, and own that.
func (s *Server) giveTo(user int) error {
	copied := filepath.Join(s.root, filepath.Base(s.binary))
	from, err := os.Open(s.binary)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(copied, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(to, from); err != nil {
		return errors.Join(err, to.Close())
	}
	s.binary = copied
	return errors.Join(to.Close(), os.Chown(s.root, user, user))
}

// limited is a command line behind one that sets the limits and is replaced by it, since
// they have to hold from the first instruction on.
func (o *Options) limited(line []string) []string {
	if o.FileLimit != 0 {
		line = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, o.FileLimit), "sh"}, line...)
	}
	if o.ThreadLimit != 0 {
		limit := strings.ReplaceAll("--nproc=N:N", "N", fmt.Sprint(o.ThreadLimit))
		line = append([]string{"prlimit", limit}, line...)
	}
	return line
}
