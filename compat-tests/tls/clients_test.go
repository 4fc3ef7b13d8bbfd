package tls

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

func TestMain(m *testing.M) { harness.RunWaiting(m) }

// world is two authorities, of which servers know the first, and files for them.
type world struct {
	dir          string
	known, other *authority
	// past is known and over.
	past    *authority
	trusted string // both, as a file
	server  files
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{dir: dir, known: newAuthority(t, dir, "known"), other: newAuthority(t, dir, "else")}
	w.past = (&authority{t: t}).lasting(dir, "past", -time.Minute)
	w.trusted = filepath.Join(dir, "trusted.crt")
	writePEM(t, w.trusted, "CERTIFICATE", w.past.certificate.Raw, w.known.certificate.Raw)
	w.server = write(t, dir, "server", w.known.local())
	return w
}

// duo starts servers with this certificate. The harness itself shows root's.
func (w *world) duo(t testing.TB, flags ...string) *harness.Duo {
	t.Helper()
	root := w.known.issue(holder{commonName: "root", names: []string{"allowed.test"}})
	return harness.StartDuo(t, harness.Options{
		Flags:      append(w.server.flags(""), flags...),
		Encryption: harness.Encryption{ClientTLS: client(pool(w.known), &root)},
	})
}

// callers are who may want to connect, nil with nothing to show.
func (w *world) callers(t testing.TB) map[string]*tls.Certificate {
	t.Helper()
	below := w.known.below(w.dir, "below")
	critical := pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 9999}, Critical: true, Value: []byte{5, 0}}
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*tls.Certificate{"nobody": nil}
	for name, h := range map[string]holder{
		"a user":                     {commonName: "user"},
		"root":                       {commonName: "root"},
		"without a name":             {},
		"expired":                    {commonName: "user", begins: -2 * time.Hour, ends: -time.Minute},
		"not yet valid":              {commonName: "user", begins: time.Hour},
		"a server":                   {commonName: "user", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		"a client only":              {commonName: "user", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		"for any usage":              {commonName: "user", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}},
		"for no usage in particular": {commonName: "user", noUsage: true},
		"for signing code":           {commonName: "user", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}},
		"allowed.test":               {commonName: "user", names: []string{"other.test", "allowed.test"}},
		"ALLOWED.test":               {commonName: "user", names: []string{"ALLOWED.test"}},
		"other.test":                 {commonName: "user", names: []string{"other.test"}},
		"*.second.test":              {commonName: "user", names: []string{"*.second.test"}},
		"its CN is allowed.test":     {commonName: "allowed.test"},
		"another address":            {commonName: "user", addresses: []string{"10.0.0.7"}},
		"the second allowed":         {commonName: "user", names: []string{"a.second.test"}},
		"with RSA":                   {commonName: "user", key: rsa2048},
		"with P-384":                 {commonName: "user", key: p384},
		"with P-521":                 {commonName: "user", key: p521},
		"with Ed25519":               {commonName: "user", key: edwards},
		"with an unknown extension":  {commonName: "user", extra: []pkix.Extension{critical}},
		"an authority":               {commonName: "user", isAuthority: true},
	} {
		pair := w.known.issue(h)
		found[name] = &pair
	}
	for name, pair := range map[string]tls.Certificate{
		"of a namesake":            newAuthority(t, t.TempDir(), "known").issue(holder{commonName: "user"}),
		"of an expired authority":  w.past.issue(holder{commonName: "user"}),
		"of another authority":     w.other.issue(holder{commonName: "user"}),
		"by way of one between":    below.issue(holder{commonName: "user"}),
		"without the one between":  below.issue(holder{commonName: "user", without: true}),
		"signed by itself":         {Certificate: [][]byte{w.other.certificate.Raw}, PrivateKey: w.other.key},
		"the known authority":      {Certificate: [][]byte{w.known.certificate.Raw}, PrivateKey: w.known.key},
		"with somebody else's key": {Certificate: w.known.issue(holder{commonName: "user"}).Certificate, PrivateKey: newKey(t)},
	} {
		found[name] = &pair
	}
	return found
}

// stricter are certificates that etcd takes and etched does not.
var stricter = map[string]string{
	"an authority":  "one that may sign others is no client's, unless it is itself in the file of authorities",
	"for any usage": "the library asks for the usage by its name, where a certificate names any",
}

// Who connects, to servers that want different things of clients.
func TestWhoConnects(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	callers := w.callers(t)
	trusted := "--trusted-ca-file=" + w.trusted
	for name, flags := range map[string][]string{
		"no certificates":    nil,
		"certificates":       {trusted},
		"authentication":     {trusted, "--client-cert-auth"},
		"allowed host names": {trusted, "--client-cert-auth", "--client-cert-allowed-hostname=allowed.test,a.second.test"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			duo := w.duo(t, flags...)
			duo.Each(func(server *harness.Server) {
				if err := server.WaitClusterVersion(6 * callLimit); err != nil {
					t.Fatal(err)
				}
			})
			var in, out int
			for i, who := range slices.Sorted(maps.Keys(callers)) {
				source := fmt.Sprintf("127.0.1.%d", i+1)
				var seen, logged [2]string
				for side, server := range []*harness.Server{duo.Etched, duo.Etcd} {
					seen[side], logged[side] = connects(t, server, source, client(pool(w.known), callers[who]))
				}
				if logged[1] == "" {
					in++
				} else {
					out++
				}
				if stricter[who] != "" && flags != nil && (logged[1] == "" || name == "allowed host names") {
					if logged[0] == "" {
						t.Errorf("%s: accepted as well; it is listed as a difference", who)
					}
					continue
				}
				if seen[0] != seen[1] {
					t.Errorf("%s:\n-etched %s\n+etcd   %s", who, seen[0], seen[1])
				}
				if logged[0] != logged[1] {
					t.Errorf("%s is logged:\n-etched %s\n+etcd   %s", who, logged[0], logged[1])
				}
			}
			if in == 0 || flags != nil && out == 0 {
				t.Errorf("%d are in and %d are not", in, out)
			}
		})
	}
}

// connects tries all ways to call a server, and answers what came of them and what
// the server's log has of it, if it was refused.
func connects(t *testing.T, server *harness.Server, source string, config *tls.Config) (seen, logged string) {
	t.Helper()
	dialler := from(source)
	var all []string
	refused := false
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		versioned := config.Clone()
		versioned.MinVersion, versioned.MaxVersion = version, version
		answer := http1(dialler, server.Endpoint(), versioned, "/health")
		refused = refused || !strings.HasPrefix(answer, "200")
		// TLS 1.2 has no word for it; the library says it all the same.
		if version == tls.VersionTLS12 && answer == "remote error: tls: certificate required" {
			answer = "remote error: tls: handshake failure"
		}
		all = append(all, answer)
	}
	all = append(all, http1(dialler, server.Endpoint(), config, "/version"), grpcOutcome(t, dialler, server.Endpoint(), config))
	if refused {
		logged = rejection(t, server, source)
	}
	return strings.Join(all, " | "), logged
}

// detail is what etcd adds: what a resolver said, what it thinks of a namesake's
// certificate, and what was wrong in a signature.
var detail = regexp.MustCompile(` \(lookup .*?\)| \(possibly because of .*?\)|: ECDSA verification failure`)

// now is when a certificate was judged.
var ports = regexp.MustCompile(`127\.0\.0\.1:\d+`)

var now = regexp.MustCompile(`current time [-0-9T:Z]+`)

// ofAddress chooses the lines about refused connections from an address.
func ofAddress(source string) func([]harness.LogLine) []harness.LogLine {
	return harness.Choose(func(line harness.LogLine) bool {
		remote, _ := line["remote-addr"].(string)
		return strings.HasPrefix(line.Msg(), "rejected connection") && strings.HasPrefix(remote, source+":")
	})
}

// rejections are those that the log has by now.
func rejections(t *testing.T, server *harness.Server, source string) []harness.LogLine {
	t.Helper()
	lines, err := server.Log()
	if err != nil {
		t.Fatal(err)
	}
	return ofAddress(source)(lines)
}

// rejection waits for the first line about an address, and answers what it says. The
// names of a certificate that nobody vouches for are in etched's line, and not in
// etcd's: they are left out.
func rejection(t *testing.T, server *harness.Server, source string) string {
	t.Helper()
	lines, err := server.WaitLog(2*callLimit, 1, ofAddress(source))
	if err != nil {
		return "no line"
	}
	line := maps.Clone(lines[0])
	reason := fmt.Sprint(line["error"])
	left := []string{"ts", "caller", "remote-addr"}
	if !strings.Contains(reason, "authentication failed") {
		left = append(left, "ip-addresses", "dns-names")
	}
	for _, field := range left {
		delete(line, field)
	}
	text := now.ReplaceAllString(fmt.Sprint(map[string]any(line)), "current time NOW")
	return detail.ReplaceAllString(text, "")
}
