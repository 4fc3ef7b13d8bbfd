package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Exit is how a command line that must not start a server ended.
type Exit struct {
	Code   int
	Stdout string // first line
	First  string // first line of stderr where it is plain text
	Level  string // of the last line of stderr that is JSON
	Msg    string
	Error  string
}

// Exits starts a server that must end at once, in a directory of its own.
func Exits(t testing.TB, kind Kind, environment, args []string) Exit {
	t.Helper()
	got, _ := ExitsSaying(t, kind, environment, args)
	return got
}

// ExitsSaying is Exits with the last line of stderr, whatever that is.
func ExitsSaying(t testing.TB, kind Kind, environment, args []string) (Exit, string) {
	t.Helper()
	binary, err := Binary(kind)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, binary, args...)
	command.Dir = t.TempDir()
	command.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, environment...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	failed := new(exec.ExitError)
	if err := command.Run(); err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	got := Exit{Code: command.ProcessState.ExitCode()}
	got.Stdout, _, _ = strings.Cut(stdout.String(), "\n")
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	if !strings.HasPrefix(lines[0], "{") {
		got.First = lines[0]
	}
	last := lines[len(lines)-1]
	for _, line := range lines {
		var entry struct{ Level, Msg, Error string }
		if json.Unmarshal([]byte(line), &entry) == nil && (entry.Level == "warn" || entry.Level == "fatal") {
			got.Level, got.Msg, got.Error = entry.Level, entry.Msg, entry.Error
		}
	}
	return got, last
}
