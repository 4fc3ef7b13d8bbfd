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

// LimitOpenFiles sets how many files the running process may have open from now on, and
// answers how many those were. The hard limit stays.
func (s *Server) LimitOpenFiles(most uint64) (uint64, error) {
	ask := func(set, found *syscall.Rlimit) error {
		_, _, code := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(s.PID()), syscall.RLIMIT_NOFILE,
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

// LimitThreads sets how many threads the processes of the server's user may have from now
// on. Only that user may, or who has the right to raise limits, which root need not have.
func (s *Server) LimitThreads(most int) error {
	command := exec.Command("prlimit", fmt.Sprintf("--pid=%d", s.PID()), fmt.Sprintf("--nproc=%d:", most))
	command.SysProcAttr = &syscall.SysProcAttr{Credential: s.options.credential()}
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w", output, err)
	}
	return nil
}

// credential is of the user that the process runs as; nil where that is this one's.
func (o *Options) credential() *syscall.Credential {
	if o.User == 0 {
		return nil
	}
	return &syscall.Credential{Uid: uint32(o.User), Gid: uint32(o.User)}
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
