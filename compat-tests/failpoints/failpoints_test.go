package failpoints

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	gofail "go.etcd.io/gofail/runtime"

	"etched.dev/compat-tests/harness"
)

const (
	binary = "ETCHED_FAILPOINTS_BIN"
	// judge, in the environment of this program, has it be a gofail with these names
	// and nothing else.
	judge = "COMPAT_GOFAIL_NAMES"
	// died limits the time from a panic that was set to the end of the process.
	died = 40 * time.Second
)

func TestMain(m *testing.M) {
	if names := os.Getenv(judge); names != "" {
		for name := range strings.SplitSeq(names, ",") {
			gofail.NewFailpoint(name)
		}
		// Until the test that began it is gone.
		_, _ = os.Stdin.Read(make([]byte, 1))
		return
	}
	if path := os.Getenv(binary); path != "" {
		os.Setenv("ETCHED_BIN", path)
	}
	os.Exit(m.Run())
}

func needBinary(t *testing.T) {
	t.Helper()
	if os.Getenv(binary) == "" {
		t.Skip("failpoints are in no release: " + binary + " has to name a build with them, as scripts/test failpoints makes it")
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// place is an address for failpoints, and the variable that says so.
func place(t *testing.T) (Server, string) {
	t.Helper()
	port, err := harness.FreePort()
	must(t, err)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	return Server(address), "GOFAIL_HTTP=" + address
}

// waitDeath waits until a server has ended at a failpoint, which its log names.
func waitDeath(t *testing.T, server *harness.Server, name string) {
	t.Helper()
	select {
	case <-server.Exited():
	case <-time.After(died):
		t.Fatalf("it lives %v after a panic was set at %s\n%s", died, name, server.LogTail(20))
	}
	if signal := server.EndedBy(); signal != syscall.SIGABRT {
		t.Fatalf("it ended by %v (%v), not at a panic\n%s", signal, server.ProcessState(), server.LogTail(20))
	}
	lines, err := server.Log()
	must(t, err)
	last := lines[len(lines)-1]
	if wanted := "failpoint panic: " + name; last.Msg() != wanted {
		t.Fatalf("its last line is %v, not %q", last, wanted)
	}
}

// Every failpoint that a server has is one that these tests end it at.
func TestNames(t *testing.T) {
	needBinary(t)
	failpoints, env := place(t)
	harness.Start(t, harness.Etched, harness.Options{Env: []string{env}})
	got, err := failpoints.Names()
	must(t, err)
	tried := []string{atStart}
	for _, one := range single {
		tried = append(tried, one.name)
	}
	tried = append(tried, ofSnapshot...)
	tried = append(tried, ofMessages...)
	for _, one := range ofLeases {
		tried = append(tried, one.name)
	}
	slices.Sort(tried)
	if tried = slices.Compact(tried); !slices.Equal(got, tried) {
		t.Errorf("there are %q\ntried are %q", got, tried)
	}
}
