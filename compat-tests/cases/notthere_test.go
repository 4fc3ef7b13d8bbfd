package cases

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
)

// What the README and --help say is not there is not there, and says so as they
// say it. Each claim stands here in their words: one that is reworded, added or
// dropped there has to be looked at here.

// absence checks one claim against a running member.
type absence func(*testing.T, *harness.Server)

// The cells of the README's column "not yet (and what it answers)", by row.
var notInREADME = map[string]struct {
	claim  string
	checks []absence
}{
	"Commands": {"of `grpc-proxy`: `--experimental-leasing-prefix` (refused)", []absence{
		refusesProxyFlags,
	}},
}

// The sentence at the end of --help, a list.
const notInHelp = "Not in etched: "

var checksOfHelp = map[string]absence{
	"the flag --experimental-leasing-prefix of the command grpc-proxy": refusesProxyFlags,
}

func TestWhatIsNotThere(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{})
	claims := readmeClaims(t)
	for row, claim := range claims {
		expected, known := notInREADME[row]
		if !known || expected.claim != claim {
			t.Errorf("nothing here checks what the README says of %s: %q", row, claim)
		}
	}
	for row, expected := range notInREADME {
		if claims[row] == "" {
			t.Errorf("the README no longer says of %s: %q", row, expected.claim)
		}
		for _, check := range expected.checks {
			check(t, server)
		}
	}
	sentence := helpSentence(t)
	for item := range checksOfHelp {
		if !strings.Contains(sentence, item) {
			t.Errorf("--help no longer says that there is none of: %s", item)
		}
		sentence = strings.Replace(sentence, item, "", 1)
	}
	if rest := strings.Trim(strings.ReplaceAll(sentence, "and", ""), " ,."); rest != "" {
		t.Errorf("nothing here checks what --help says is not there: %q", rest)
	}
	for _, check := range checksOfHelp {
		check(t, server)
	}
}

// readmeClaims are the last cells of the table that has them, by the first.
func readmeClaims(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "| | works | not yet (and what it answers) |\n|---|---|---|\n")
	if !found {
		t.Fatal("the README has no table of what is not there")
	}
	claims := make(map[string]string)
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 5 {
			break
		}
		if claim := strings.TrimSpace(cells[3]); claim != "" {
			claims[strings.TrimSpace(cells[1])] = claim
		}
	}
	return claims
}

// help is what --help says, its lines broken nowhere.
func help(t *testing.T) string {
	t.Helper()
	binary, err := harness.Binary(harness.Etched)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(binary, "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func helpSentence(t *testing.T) string {
	t.Helper()
	_, sentence, found := strings.Cut(help(t), notInHelp)
	if !found {
		t.Fatalf("--help has no sentence that begins with %q", notInHelp)
	}
	return strings.Join(strings.Fields(sentence), " ")
}

var flagInHelp = regexp.MustCompile(`(?m)^ +--(\S+) <([A-Z]+)>\n +(.*)$`)

// Each flag that --help calls without an effect is accepted, and named in the log
// of the start.
func TestFlagsWithoutEffect(t *testing.T) {
	t.Parallel()
	var without []string
	for _, flag := range flagInHelp.FindAllStringSubmatch(help(t), -1) {
		name, usage := flag[1], flag[3]
		if strings.Contains(usage, "[no effect: ") {
			without = append(without, "--"+name+"="+otherThanDefault(name, flag[2], usage))
		}
	}
	if len(without) == 0 {
		t.Error("--help lists no flag as without an effect: is its form another?")
	}
	server := harness.Start(t, harness.Etched, harness.Options{Flags: without})
	lines, err := server.Log()
	if err != nil {
		t.Fatal(err)
	}
	named := make(map[string]bool)
	for _, line := range harness.Says("the flag has no effect in etched")(lines) {
		named[fmt.Sprint(line["flag"])] = true
	}
	for _, flag := range without {
		name, _, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
		if !named[name] {
			t.Errorf("the log of a start with %s does not say that it has no effect; it names %v", flag, slices.Sorted(maps.Keys(named)))
		}
	}
}

// otherThanDefault is a value that asks a flag for something, and that it could have.
func otherThanDefault(name, kind, usage string) string {
	isOn := strings.Contains(usage, "[default: true]")
	switch {
	case kind == "BOOL":
		return fmt.Sprint(!isOn)
	case kind == "NUMBER":
		return "7"
	case kind == "DURATION":
		return "7s"
	case name == "v2-deprecation":
		return "gone"
	case name == "backend-bbolt-freelist-type":
		return "map"
	case name == "cipher-suites":
		return "TLS_AES_128_GCM_SHA256"
	case name == "tls-min-version":
		// TLS1.3 would go with no cipher suites.
		return ""
	case name == "tls-max-version":
		return "TLS1.3"
	default:
		return "x"
	}
}

func refusesProxyFlags(t *testing.T, _ *harness.Server) {
	t.Helper()
	for _, flag := range []string{"--experimental-leasing-prefix=l"} {
		name, _, _ := strings.Cut(flag, "=")
		got := harness.Exits(t, harness.Etched, nil, []string{"grpc-proxy", "start", flag})
		if got.Code != 1 || !strings.HasPrefix(got.First, name+" is not built yet in etched ") {
			t.Errorf("%s: %+v", flag, got)
		}
	}
}
