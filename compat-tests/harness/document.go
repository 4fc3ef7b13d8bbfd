package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Document is one whose commands are tried as they are written there, in a
// directory of the test; only what Replace says is written otherwise.
type Document struct {
	Dir     string
	Replace *strings.Replacer
	t       testing.TB
	path    string
	blocks  []string
	inline  []string
	tried   map[string]bool
}

var (
	fenced   = regexp.MustCompile("(?ms)^ *```bash\n(.*?)^ *```$")
	quoted   = regexp.MustCompile("`([^`\n]+)`")
	programs = regexp.MustCompile(`(?m)^ *(etched|etcd|etcdctl) `)
)

var scrapeJob = regexp.MustCompile(`(?m)^ *- job_name: (\S+)$`)

// ScrapeJob is the name of the job that a document has Prometheus scrape members by.
func ScrapeJob(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := scrapeJob.FindAllSubmatch(text, -1)
	if len(found) != 1 {
		t.Fatalf("%s names %d jobs", path, len(found))
	}
	return string(found[0][1])
}

// ReadDocument reads the blocks of commands of a section of a document, which ends where
// the next of its level, or of one above, begins. binaries are found by these names.
func ReadDocument(t testing.TB, path, section string, binaries map[string]string) *Document {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n"+section+"\n")
	if !found {
		t.Fatalf("%s has no section %q", path, section)
	}
	level, _, _ := strings.Cut(section, " ")
	rest = untilHeading(rest, len(level))
	d := &Document{t: t, Dir: t.TempDir(), path: t.TempDir(), Replace: strings.NewReplacer(), tried: map[string]bool{}}
	for _, block := range fenced.FindAllStringSubmatch(rest, -1) {
		d.blocks = append(d.blocks, block[1])
	}
	for _, words := range quoted.FindAllStringSubmatch(fenced.ReplaceAllString(rest, ""), -1) {
		d.inline = append(d.inline, words[1])
	}
	for name, program := range binaries {
		if err := os.Symlink(program, filepath.Join(d.path, name)); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// untilHeading is the text before the first heading of a level, or of one above. A comment among
// commands looks like one and is none.
func untilHeading(text string, level int) string {
	fenced, length := false, 0
	for line := range strings.Lines(text) {
		marks := len(line) - len(strings.TrimLeft(line, "#"))
		if !fenced && marks > 0 && marks <= level && strings.HasPrefix(line[marks:], " ") {
			break
		}
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		}
		length += len(line)
	}
	return text[:length]
}

// Block is the only one that has this text.
func (d *Document) Block(text string) string {
	d.t.Helper()
	block := d.only(d.blocks, text)
	d.tried[block] = true
	return block
}

// Inline is the only text between backquotes, within a sentence, that has this text.
func (d *Document) Inline(text string) string {
	d.t.Helper()
	return d.only(d.inline, text)
}

func (d *Document) only(all []string, text string) string {
	d.t.Helper()
	var found []string
	for _, one := range all {
		if strings.Contains(one, text) {
			found = append(found, one)
		}
	}
	if len(found) != 1 {
		d.t.Fatalf("%d of %d commands have %q", len(found), len(all), text)
	}
	return found[0]
}

// Untried are the blocks that nobody asked for.
func (d *Document) Untried() []string {
	var untried []string
	for _, block := range d.blocks {
		if !d.tried[block] {
			untried = append(untried, block)
		}
	}
	return untried
}

func (d *Document) command(commands string) *exec.Cmd {
	command := exec.Command("bash", "-euo", "pipefail", "-c", d.Replace.Replace(commands))
	command.Dir = d.Dir
	command.Env = append(environment(), "PATH="+d.path+":"+os.Getenv("PATH"))
	return command
}

// Run executes commands, and answers what they printed.
func (d *Document) Run(commands string) string {
	d.t.Helper()
	output, err := d.command(commands).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%v\n%s\n%s", err, commands, output)
	}
	return string(output)
}

// Start executes commands of which the last does not end, and answers what ends
// it as an operator would; the end of the test does too.
func (d *Document) Start(commands string) (stop func()) {
	d.t.Helper()
	log, err := os.CreateTemp(d.Dir, "log")
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	// The program takes the shell's place, so that signals reach it.
	command := d.command(programs.ReplaceAllString(commands, "exec $1 "))
	command.Stdout, command.Stderr = log, log
	started := &process{command: command, exited: make(chan struct{})}
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := startLocked(started); err != nil {
		d.t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		// One that has ended is waited for all the same.
		_ = command.Process.Signal(syscall.SIGTERM)
		select {
		case <-started.exited:
		case <-time.After(30 * time.Second):
			_ = command.Process.Kill()
			d.t.Errorf("does not end: %s", commands)
			<-started.exited
		}
	}
	d.t.Cleanup(func() {
		stop()
		if content, err := os.ReadFile(log.Name()); err == nil && d.t.Failed() {
			lines := strings.Split(strings.TrimSpace(string(content)), "\n")
			d.t.Logf("%s\n%s", commands, strings.Join(lines[max(0, len(lines)-3):], "\n"))
		}
	})
	return stop
}
