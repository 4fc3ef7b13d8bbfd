package failpoints

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
)

// startJudge begins a real gofail with these failpoints.
func startJudge(t *testing.T, names []string) Server {
	t.Helper()
	server, env := place(t)
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), env, judge+"="+strings.Join(names, ","))
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	must(t, err, command.Start())
	t.Cleanup(func() {
		stdin.Close()
		if err := command.Wait(); err != nil {
			t.Errorf("the gofail of this test: %v", err)
		}
	})
	// It listens before it has names.
	wait(t, func() bool {
		got, err := server.Names()
		return err == nil && len(got) == len(names)
	})
	return server
}

// The same requests are answered as by gofail, to the byte. Nothing here comes to
// a failpoint: the server has no clients.
func TestAnswersAreGofails(t *testing.T) {
	needBinary(t)
	etched, env := place(t)
	harness.Start(t, harness.Etched, harness.Options{Env: []string{env}})
	names, err := etched.Names()
	must(t, err)
	gofail := startJudge(t, names)
	const some, other = "applyAfterOpenSnapshot", "raftBeforeApplySnap"
	for _, request := range []struct{ method, path, body string }{
		{"GET", "/", ""},
		{"GET", "/" + some, ""},
		{"GET", "/" + some + "/count", ""},
		{"GET", "/absent", ""},
		{"GET", "/absent/count", ""},
		{"GET", "/" + some + "?x=y", ""},
		{"DELETE", "/" + some, ""},
		{"DELETE", "/absent", ""},
		{"DELETE", "/", ""},
		{"PUT", "/absent", "panic"},
		{"PUT", "/", "panic"},
		{"PUT", "/" + some, "panic"},
		{"GET", "/" + some, ""},
		{"GET", "/" + some + "/count", ""},
		{"PUT", "/" + some, ""},
		{"PUT", "/" + some, "panik"},
		{"PUT", "/" + some, "panic\n"},
		{"PUT", "/" + some, "50%sleep(10)"},
		{"GET", "/" + some, ""},
		{"PUT", "/" + some, "50.0%sleep(10)"},
		{"PUT", "/" + some, `5*off->1*panic("it is so")`},
		{"PUT", "/" + some, `sleep("1m5s")`},
		{"PUT", "/" + some, "print->"},
		{"PUT", "/" + some, "return(true)"},
		{"GET", "/", ""},
		{"PUT", "/failpoints", some + "=off;" + other + "=sleep(1)"},
		{"GET", "/" + other, ""},
		{"GET", "/", ""},
		{"PUT", "/failpoints", ""},
		{"PUT", "/failpoints", some},
		{"PUT", "/failpoints", some + "=off=off"},
		{"PUT", "/failpoints", "absent=off"},
		{"PUT", "/failpoints", some + "=of"},
		{"GET", "/", ""},
		{"DELETE", "/" + some, ""},
		{"DELETE", "/" + some, ""},
		{"DELETE", "/" + other, ""},
		{"GET", "/", ""},
		{"POST", "/" + some, "off"},
		{"PATCH", "/" + some, "off"},
	} {
		wanted, err := gofail.Ask(request.method, request.path, request.body)
		must(t, err)
		got, err := etched.Ask(request.method, request.path, request.body)
		must(t, err)
		if got != wanted {
			t.Errorf("%s %s %q:\netched %+v\ngofail %+v", request.method, request.path, request.body, got, wanted)
		}
	}
}

// A start that was asked for something that cannot be had says so and ends.
func TestEnvironmentIsRefused(t *testing.T) {
	needBinary(t)
	for _, one := range []struct{ env, said string }{
		{"GOFAIL_FAILPOINTS=absent=panic", "GOFAIL_FAILPOINTS: absent: failpoint: failpoint does not exist"},
		{"GOFAIL_FAILPOINTS=walAfterSync=panik", "GOFAIL_FAILPOINTS: walAfterSync: failpoint: could not parse terms"},
		{"GOFAIL_FAILPOINTS=walAfterSync", `GOFAIL_FAILPOINTS: bad failpoint "walAfterSync"`},
		{"GOFAIL_HTTP=22381", `GOFAIL_HTTP is no HOST:PORT: "22381": `},
		{"GOFAIL_HTTP=192.0.2.1:22381", "GOFAIL_HTTP: listen tcp 192.0.2.1:22381: bind: cannot assign requested address"},
	} {
		got := harness.Exits(t, harness.Etched, []string{one.env}, nil)
		if got.Code != 1 || got.Level != "fatal" || !strings.HasPrefix(got.Error, one.said) {
			t.Errorf("%s: %+v", one.env, got)
		}
	}
}
