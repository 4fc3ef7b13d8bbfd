package harness

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// LogLine is one line of a server's log.
type LogLine map[string]any

// Level is debug, info, warn, error, fatal.
func (l LogLine) Level() string { return l.text("level") }

// Msg is what the line says.
func (l LogLine) Msg() string { return l.text("msg") }

func (l LogLine) text(field string) string {
	text, _ := l[field].(string)
	return text
}

// Log answers the lines of the server's log, of all its runs; what is no JSON is left out.
func (s *Server) Log() ([]LogLine, error) {
	file, err := os.Open(s.logPath)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var lines []LogLine
	reader := bufio.NewReader(file)
	for {
		text, err := reader.ReadBytes('\n')
		if err != nil {
			// A line without its end is still being written.
			return lines, nil
		}
		line := LogLine{}
		if json.Unmarshal(text, &line) == nil {
			lines = append(lines, line)
		}
	}
}

// WaitLog waits until a choice from the log has at least so many lines, and answers those.
func (s *Server) WaitLog(limit time.Duration, count int, choose func([]LogLine) []LogLine) ([]LogLine, error) {
	deadline := time.Now().Add(limit)
	for {
		lines, err := s.Log()
		if err != nil {
			return nil, err
		}
		found := choose(lines)
		if len(found) >= count {
			return found, nil
		}
		if time.Now().After(deadline) {
			return found, fmt.Errorf("%s: %d of %d lines within %v", s.kind, len(found), count, limit)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Choose is a choice for WaitLog: the lines that are wanted.
func Choose(wanted func(LogLine) bool) func([]LogLine) []LogLine {
	return func(lines []LogLine) (chosen []LogLine) {
		for _, line := range lines {
			if wanted(line) {
				chosen = append(chosen, line)
			}
		}
		return chosen
	}
}

// Says is a choice for WaitLog: the lines that say this.
func Says(msg string) func([]LogLine) []LogLine {
	return Choose(func(line LogLine) bool { return line.Msg() == msg })
}
