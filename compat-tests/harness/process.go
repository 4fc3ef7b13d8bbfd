package harness

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

func runLocked(jobs <-chan func()) {
	runtime.LockOSThread()
	for job := range jobs {
		job()
	}
}

func startLocked(p *process) error {
	result := make(chan error)
	spawner() <- func() { result <- p.command.Start() }
	if err := <-result; err != nil {
		return err
	}
	go func() {
		p.err = p.command.Wait()
		close(p.exited)
	}()
	return nil
}

// CPUTime answers the user and system time the running process has used.
func (s *Server) CPUTime() (time.Duration, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.PID()))
	if err != nil {
		return 0, err
	}
	// The command in brackets may hold blanks; state is the first field after it.
	fields := strings.Fields(string(content[strings.LastIndexByte(string(content), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("short /proc/%d/stat", s.PID())
	}
	var ticks int64
	for _, field := range fields[11:13] {
		value, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += value
	}
	const ticksPerSecond = 100
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}

// ResidentBytes answers VmRSS of the running process.
func (s *Server) ResidentBytes() (int64, error) { return s.memory("VmRSS:") }

// PeakResidentBytes answers VmHWM of the running process: the most that was resident
// since its start or since ResetPeak.
func (s *Server) PeakResidentBytes() (int64, error) { return s.memory("VmHWM:") }

// ResetPeak makes PeakResidentBytes count from now on.
func (s *Server) ResetPeak() error {
	const peak = "5"
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.PID()), []byte(peak), 0)
}

func (s *Server) memory(field string) (int64, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID()))
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(content), "\n") {
		if value, ok := strings.CutPrefix(line, field); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib * 1024, err
		}
	}
	return 0, fmt.Errorf("no %s in /proc/%d/status", field, s.PID())
}
