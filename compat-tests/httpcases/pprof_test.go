package httpcases

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// Without the flag there are no profiles, here and at etcd; with debug lines
// there are without it.
func TestProfilesAreAskedFor(t *testing.T) {
	t.Parallel()
	duo := startDuo(t, harness.Options{})
	for _, target := range []string{"/debug/pprof", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/profile"} {
		wants(t, get(target), clientPorts(duo).compare(t, get(target)), 404)
	}
	debug := harness.Start(t, harness.Etched, harness.Options{Flags: []string{"--log-level=debug"}})
	if code, _, err := debug.HTTPGet("/debug/pprof/heap"); err != nil || code != http.StatusOK {
		t.Errorf("with --log-level=debug: %d, %v", code, err)
	}
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	duo := startDuo(t, harness.Options{Flags: []string{"--enable-pprof"}})
	at := clientPorts(duo)
	for status, targets := range map[int][]string{
		200: {"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/allocs", "/debug/pprof/goroutine", "/debug/pprof/cmdline", "/debug/pprof/symbol"},
		307: {"/debug/pprof"},
		404: {"/debug/pprof/nothing"},
	} {
		for _, target := range targets {
			own := func(r *reply) {
				if status == 200 && target != "/debug/pprof/symbol" {
					r.Body = ""
					// One may be longer than what a server sends at once.
					r.Header.Del("Content-Length")
				}
				r.Header.Del("X-Go-Pprof")
				// etcd's are goroutines, in the tool's format.
				if strings.HasSuffix(target, "/goroutine") {
					r.Header.Del("Content-Type")
					r.Header.Del("Content-Disposition")
				}
			}
			wants(t, get(target), at.compare(t, get(target), own), status)
		}
	}
	// What etcd's language has and etched's has not is refused in a sentence.
	for _, name := range []string{"block", "mutex", "threadcreate", "trace"} {
		code, body, err := duo.Etched.HTTPGet("/debug/pprof/" + name)
		if err != nil || code != http.StatusNotFound || !strings.HasSuffix(body, ".\n") {
			t.Errorf("%s: %d %q, %v", name, code, body, err)
		}
	}
	// Not on the port of probes, nor in numbers that would hold a member up.
	for _, target := range []string{"/debug/pprof/profile?seconds=301", "/debug/pprof/heap?seconds=3", "/debug/pprof/allocs?debug=1"} {
		if code, body, err := duo.Etched.HTTPGet(target); err != nil || code != http.StatusBadRequest {
			t.Errorf("%s: %d %q, %v", target, code, body, err)
		}
	}
	t.Run("threads", func(t *testing.T) {
		_, body, err := duo.Etched.HTTPGet("/debug/pprof/goroutine")
		if err != nil || !regexp.MustCompile(`^threads: [0-9]+\n`).MatchString(body) || !regexp.MustCompile(`(?m)^ *[0-9]+ raft +[RSD] [0-9.]+$`).MatchString(body) {
			t.Errorf("%q, %v", body, err)
		}
	})
	t.Run("command line", func(t *testing.T) {
		_, body, err := duo.Etched.HTTPGet("/debug/pprof/cmdline")
		arguments := strings.Split(body, "\x00")
		if err != nil || len(arguments) < 3 || arguments[len(arguments)-1] != "--enable-pprof" {
			t.Errorf("%q, %v", body, err)
		}
	})
	t.Run("processors", func(t *testing.T) { readsProcessors(t, duo.Etched) })
	t.Run("heap", func(t *testing.T) { readsHeap(t, duo.Etched) })
}

// pprofTop is what `go tool pprof -top` says of a profile.
func pprofTop(t *testing.T, server *harness.Server, page string, options ...string) string {
	t.Helper()
	arguments := append([]string{"tool", "pprof", "-symbolize=none", "-top", "-nodecount=500"}, options...)
	command := exec.Command("go", append(arguments, "http://"+server.Endpoint()+page)...)
	command.Env = append(os.Environ(), "PPROF_TMPDIR="+t.TempDir())
	var complaints bytes.Buffer
	command.Stderr = &complaints
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", page, err, complaints.String())
	}
	return string(out)
}

// readsProcessors has a member do something and looks for it in the profile.
func readsProcessors(t *testing.T, server *harness.Server) {
	busy, stop := context.WithCancel(t.Context())
	defer stop()
	client := server.Client(t)
	var working sync.WaitGroup
	for worker := range 4 {
		working.Go(func() {
			for busy.Err() == nil {
				if _, err := client.Put(busy, fmt.Sprint("worker ", worker), strings.Repeat("x", 1000)); err != nil && busy.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	top := pprofTop(t, server, "/debug/pprof/profile?seconds=3", "-cum")
	if !strings.Contains(top, "Type: cpu\n") || !regexp.MustCompile(`(?m)^Duration: [3-9](\.[0-9]+)?s, Total samples = [0-9.]+m?s`).MatchString(top) {
		t.Errorf("no profile of three seconds:\n%.500s", top)
	}
	if !strings.Contains(top, "etched::") || strings.Contains(top, "perf_signal_handler") {
		t.Errorf("not etched's own functions:\n%.2000s", top)
	}
	// One at once; the second is refused as at etcd.
	address := "http://" + server.Endpoint() + "/debug/pprof/profile?seconds=300"
	ask, err := http.NewRequestWithContext(busy, "GET", address, nil)
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		// It may be refused for the short ones below.
		for refused := true; refused; {
			response, err := http.DefaultClient.Do(ask)
			if refused = err == nil; refused {
				response.Body.Close()
			}
		}
	}()
	const refusal = "Could not enable CPU profiling: cpu profiling already in use\n"
	for deadline := time.Now().Add(answerLimit); ; {
		code, body, err := server.HTTPGet("/debug/pprof/profile?seconds=1")
		if err == nil && code == http.StatusInternalServerError && body == refusal {
			break
		}
		if time.Now().After(deadline) {
			stop()
			t.Fatalf("a second profile: %d %.100q, %v", code, body, err)
		}
	}
	stop()
	<-gone
	working.Wait()
	// Who hung up holds nothing.
	for deadline := time.Now().Add(answerLimit); ; time.Sleep(50 * time.Millisecond) {
		code, body, err := server.HTTPGet("/debug/pprof/profile?seconds=1")
		if err == nil && code == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the client of another had gone: %d %.100q, %v", code, body, err)
		}
	}
}

// readsHeap has a member hold something and looks for it in the profile.
func readsHeap(t *testing.T, server *harness.Server) {
	inUse := func() (total string) {
		top := pprofTop(t, server, "/debug/pprof/heap")
		if !strings.Contains(top, "Type: inuse_space\n") {
			t.Fatalf("no heap profile:\n%.500s", top)
		}
		if !strings.Contains(top, "etched::") || strings.Contains(top, "walk_stack") {
			t.Errorf("not etched's own functions:\n%.2000s", top)
		}
		return top
	}
	inUse()
	allocated := pprofTop(t, server, "/debug/pprof/allocs", "-sample_index=alloc_space")
	if !strings.Contains(allocated, "Type: alloc_space\n") || !strings.Contains(allocated, "etched::") {
		t.Errorf("nothing was allocated:\n%.500s", allocated)
	}
	// The names of addresses, as the tool asks for them.
	response, err := http.Get("http://" + server.Endpoint() + "/debug/pprof/symbol?0x1+zzz+0x10")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || string(body) != "num_symbols: 1\n" {
		t.Errorf("symbols of no functions: %q, %v", body, err)
	}
}
