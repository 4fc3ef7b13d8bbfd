package tls

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// manual is a document, whose commands are tried as they are written there; only
// the addresses are this machine's.
type manual struct {
	t      *testing.T
	blocks []string
	dir    string
	path   string // of programs, before the usual one
}

var (
	fenced    = regexp.MustCompile("(?ms)^ *```bash\n(.*?)^ *```$")
	addresses = regexp.MustCompile(`10\.0\.0\.(\d|\$n)`)
	// tlsFlags are those of the documented command line that name files, or demand them.
	tlsFlags = regexp.MustCompile(`--(peer-)?(client-cert-auth|(cert-file|key-file|trusted-ca-file) \S+)`)
)

func readManual(t *testing.T, path string) *manual {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m := &manual{t: t, dir: t.TempDir()}
	for _, found := range fenced.FindAllStringSubmatch(string(text), -1) {
		m.blocks = append(m.blocks, addresses.ReplaceAllString(found[1], "127.0.0.1"))
	}
	return m
}

// block is the one that has this text.
func (m *manual) block(text string) string {
	m.t.Helper()
	for _, block := range m.blocks {
		if strings.Contains(block, text) {
			return block
		}
	}
	m.t.Fatalf("no commands have %q", text)
	return ""
}

// run executes commands where the certificates are.
func (m *manual) run(commands string) {
	m.t.Helper()
	command := exec.Command("bash", "-euc", commands)
	command.Dir = m.dir
	command.Env = append(os.Environ(), "PATH="+m.path+":"+os.Getenv("PATH"))
	if output, err := command.CombinedOutput(); err != nil {
		m.t.Fatalf("%v\n%s\n%s", err, commands, output)
	}
}

// functions are the first lines of the first block.
func (m *manual) functions() string {
	m.t.Helper()
	defined, _, found := strings.Cut(m.block("certificate() {"), "\nauthority clients-ca\n")
	if !found {
		m.t.Fatal("docs/SECURITY.md does not begin as it did")
	}
	return defined + "\n"
}

// deploy copies a file to each member under a name.
func (m *manual) deploy(file func(member int) string, as func(member int) string) {
	m.t.Helper()
	for member := 1; member <= 3; member++ {
		content, err := os.ReadFile(filepath.Join(m.dir, file(member)))
		if err != nil {
			m.t.Fatal(err)
		}
		directory := filepath.Join(m.dir, fmt.Sprintf("m%d.etc", member))
		if err := os.MkdirAll(directory, 0o700); err != nil {
			m.t.Fatal(err)
		}
		replace(m.t, filepath.Join(directory, as(member)), content)
	}
}

func (m *manual) deployPairs() {
	m.t.Helper()
	for _, ending := range []string{".crt", ".key", "-peer.crt", "-peer.key"} {
		file := func(member int) string { return fmt.Sprintf("m%d%s", member, ending) }
		m.deploy(file, file)
	}
}

// person is a client with files.
func (m *manual) person(name string, trusted ...string) *person {
	m.t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(m.dir, name+".crt"), filepath.Join(m.dir, name+".key"))
	if err != nil {
		m.t.Fatal(err)
	}
	one := &person{pair: pair, trusted: x509.NewCertPool()}
	for _, file := range trusted {
		content, err := os.ReadFile(filepath.Join(m.dir, file))
		if err != nil || !one.trusted.AppendCertsFromPEM(content) {
			m.t.Fatalf("%s: %v", file, err)
		}
	}
	return one
}

// The commands of docs/SECURITY.md, with clients that do not stop.
func TestAsDocumented(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl must be on the PATH")
	}
	m := readManual(t, "../../docs/SECURITY.md")
	m.run(m.block("certificate() {"))
	named := func(name string) func(int) string { return func(int) string { return name } }
	for _, name := range []string{"clients-ca.crt", "peers-ca.crt"} {
		m.deploy(named(name), named(name))
	}
	m.deployPairs()
	s := &secured{t: t, dir: m.dir}
	s.shown.Store(m.person("root", "clients-ca.crt"))
	s.cluster = harness.StartCluster(t, harness.Etched, harness.ClusterOptions{
		MemberFlags: func(member int) []string {
			var flags []string
			for _, flag := range tlsFlags.FindAllString(m.block("etched --name m1"), -1) {
				flag = strings.ReplaceAll(flag, "/etc/etched/m1", fmt.Sprintf("/etc/etched/m%d", member+1))
				flag = strings.ReplaceAll(flag, "/etc/etched", filepath.Join(m.dir, fmt.Sprintf("m%d.etc", member+1)))
				flags = append(flags, strings.Fields(flag)...)
			}
			return flags
		},
		Encryption: harness.Encryption{ClientTLS: s.client(), PeerTLS: true},
	})
	load := s.load()
	defer load.finish(t)
	all := func() {
		t.Helper()
		time.Sleep(settles)
		for _, member := range s.cluster.Members() {
			s.reconnect(load, member)
		}
	}
	first := s.cluster.Members()[0].Endpoint()
	before := s.shownBy(first)
	m.run(m.functions() + m.block("\ncertificate peers-ca m1-peer"))
	m.deployPairs()
	all()
	if s.shownBy(first) == before {
		t.Error("m1 does not show its new certificate")
	}
	former := s.shown.Load()

	clients, members := m.block("authority next-clients-ca"), m.block("certificate next-clients-ca root")
	peers := func(commands string) string { return strings.ReplaceAll(commands, "clients-ca", "peers-ca") }
	m.run(m.functions() + clients)
	m.deploy(named("both.crt"), named("clients-ca.crt"))
	s.shown.Store(m.person("root", "both.crt"))
	m.run(m.functions() + peers(clients))
	m.deploy(named("both.crt"), named("peers-ca.crt"))
	all()
	m.run(m.functions() + members + `
for n in 1 2 3; do certificate next-peers-ca "m$n-peer" IP:127.0.0.1; done`)
	s.shown.Store(m.person("root", "clients-ca.crt", "next-clients-ca.crt"))
	m.deployPairs()
	all()
	for _, name := range []string{"clients-ca.crt", "peers-ca.crt"} {
		m.deploy(named("next-"+name), named(name))
	}
	s.shown.Store(m.person("root", "next-clients-ca.crt"))
	all()
	if seen := http1(from(""), first, client(s.shown.Load().trusted, &former.pair), "/version"); seen != "remote error: tls: unknown certificate authority" {
		t.Errorf("a client of the old authority: %s", seen)
	}
	if seen := http1(from(""), first, client(s.shown.Load().trusted, &s.shown.Load().pair), "/health"); !strings.HasPrefix(seen, "200") {
		t.Errorf("a client of the new authority: %s", seen)
	}
}

// The commands of README, in an empty directory.
func TestReadme(t *testing.T) {
	t.Parallel()
	m := readManual(t, "../../README.md")
	m.path = t.TempDir()
	etched, err := harness.Binary(harness.Etched)
	if err != nil {
		t.Fatal(err)
	}
	etcdctl, err := harness.Etcdctl()
	if err != nil {
		t.Fatal(err)
	}
	for name, program := range map[string]string{"etched": etched, "etcdctl": etcdctl} {
		if err := os.Symlink(program, filepath.Join(m.path, name)); err != nil {
			t.Fatal(err)
		}
	}
	clients, err := harness.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	peers, err := harness.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	port := func(commands string) string {
		return strings.ReplaceAll(commands, ":2379", fmt.Sprintf(":%d", clients))
	}
	start := strings.TrimSpace(port(m.block("etched --data-dir data --cert-file")))
	m.run(m.block("-subj /CN=my-ca"))
	// It ends with the commands, of which the last asks each of the kinds.
	m.run(fmt.Sprintf(`%s --listen-peer-urls=http://127.0.0.1:%d >log 2>&1 &
member=$!
trap 'kill $member; wait $member || true' EXIT
for try in {1..200}; do
	curl --silent --cacert ca.crt --cert root.crt --key root.key https://127.0.0.1:%d/health >health && break
	sleep 0.1
done
%s
etcdctl user list >users
curl --silent --fail --cacert ca.crt --cert root.crt --key root.key https://127.0.0.1:%d/health >health`, start, peers, clients, port(m.block("etcdctl user list")), clients))
	for file, want := range map[string]string{"users": "root\n", "health": `{"health":"true","reason":""}`} {
		if content, err := os.ReadFile(filepath.Join(m.dir, file)); err != nil || string(content) != want {
			t.Errorf("%s: %q, %v", file, content, err)
		}
	}
}
