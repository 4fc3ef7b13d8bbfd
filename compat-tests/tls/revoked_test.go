package tls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"etched.dev/compat-tests/harness"
)

// Lists of revoked certificates, for clients and for members: read again at each
// connection by both. A list in PEM, and one that is broken, is etched's matter alone:
// etcd refuses everybody then.
func TestRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	list := filepath.Join(w.dir, "revoked.crl")
	good, bad := w.known.issue(holder{commonName: "good"}), w.known.issue(holder{commonName: "bad"})
	w.known.revokes(list, bad)
	duo := harness.StartDuo(t, harness.Options{
		Flags: append(append(w.server.flags(""), w.server.flags("peer-")...),
			"--trusted-ca-file="+w.known.file, "--client-cert-auth", "--client-crl-file="+list,
			"--peer-trusted-ca-file="+w.known.file, "--peer-client-cert-auth", "--peer-crl-file="+list),
		Encryption: harness.Encryption{ClientTLS: client(pool(w.known), &good), PeerTLS: true},
	})
	servers := []*harness.Server{duo.Etched, duo.Etcd}
	// What a client sees of its revocation is not the same: etcd closes the connection,
	// etched says why.
	in := func(server *harness.Server, source string, shown *tls.Certificate) [2]bool {
		config := client(pool(w.known), shown)
		return [2]bool{
			strings.HasPrefix(http1(from(source), server.Endpoint(), config, "/health"), "200"),
			lets(from(source), server.PeerEndpoint(), config) == "in",
		}
	}
	expect := func(what string, shown *tls.Certificate, servers []*harness.Server, expected bool) {
		t.Helper()
		for _, server := range servers {
			if seen := in(server, "", shown); seen != [2]bool{expected, expected} {
				t.Errorf("%s, %s: clients and members are let in: %v", what, server.Kind(), seen)
			}
		}
	}
	expect("the good one", &good, servers, true)
	expect("the bad one", &bad, servers, false)
	var logged [2][]string
	for side, server := range servers {
		in(server, "127.0.5.1", &bad)
		if _, err := server.WaitLog(2*callLimit, 2, ofAddress("127.0.5.1")); err != nil {
			t.Error(err)
		}
		for _, line := range rejections(t, server, "127.0.5.1") {
			text := fmt.Sprint(line.Msg(), ": ", line["error"])
			if len(logged[side]) < 2 {
				logged[side] = append(logged[side], text)
			}
		}
	}
	if fmt.Sprint(logged[0]) != fmt.Sprint(logged[1]) {
		t.Errorf("logged:\n-etched %q\n+etcd   %q", logged[0], logged[1])
	}
	w.known.revokes(list, good)
	expect("the good one, revoked now", &good, servers, false)
	expect("the bad one, which is not any more", &bad, servers, true)

	etched := servers[:1]
	replace(t, list, []byte("nothing"))
	expect("the good one, with a broken list", &good, etched, false)
	expect("the bad one, with a broken list", &bad, etched, true)
	der := w.known.revokes(list, bad)
	replace(t, list, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	expect("the good one, with a list in PEM", &good, etched, true)
	expect("the bad one, with a list in PEM", &bad, etched, false)
}

// made is what there is to compare of a certificate that a server made for itself.
type made struct {
	Files   string
	Subject string
	Names   string
	Usage   []x509.ExtKeyUsage
	KeyUse  x509.KeyUsage
	IsCA    bool
	Curve   elliptic.Curve
	Days    int
}

// Certificates that servers make for themselves: the same files, which say the same,
// and are used again after a restart.
func TestSelfSigned(t *testing.T) {
	t.Parallel()
	duo := harness.StartDuo(t, harness.Options{
		Flags:      []string{"--auto-tls", "--peer-auto-tls", "--self-signed-cert-validity=2"},
		Encryption: harness.Encryption{ClientTLS: &tls.Config{InsecureSkipVerify: true}, PeerTLS: true},
	})
	var shown [2][2]made
	for side, server := range []*harness.Server{duo.Etched, duo.Etcd} {
		serials := map[string]bool{}
		for run := range 2 {
			for at, address := range []string{server.Endpoint(), server.PeerEndpoint()} {
				connection, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
				if err != nil {
					t.Fatal(err)
				}
				one := connection.ConnectionState().PeerCertificates[0]
				_ = connection.Close()
				serials[one.SerialNumber.String()] = true
				key, _ := one.PublicKey.(*ecdsa.PublicKey)
				if key == nil {
					t.Fatalf("%T", one.PublicKey)
				}
				shown[side][at] = made{
					listed(t, filepath.Join(server.DataDir(), "fixtures")), one.Subject.String(), fmt.Sprint(one.DNSNames, one.IPAddresses),
					one.ExtKeyUsage, one.KeyUsage, one.IsCA, key.Curve, int(time.Until(one.NotAfter).Round(24*time.Hour).Hours() / 24),
				}
			}
			if run == 0 {
				if err := server.Stop(); err != nil {
					t.Fatal(err)
				}
				if err := server.Restart(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if len(serials) != 2 {
			t.Errorf("%s shows %d certificates at two ports", server.Kind(), len(serials))
		}
	}
	if fmt.Sprint(shown[0]) != fmt.Sprint(shown[1]) {
		t.Errorf("\n-etched %v\n+etcd   %v", shown[0], shown[1])
	}
}

// listed is what a directory has, with modes.
func listed(t *testing.T, directory string) string {
	t.Helper()
	var text []string
	err := filepath.Walk(directory, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(directory, path)
		mode := info.Mode().String()
		// A certificate is no secret; who may read it beside its owner is the umask's.
		if strings.HasSuffix(name, "cert.pem") {
			mode = ""
		}
		text = append(text, name+" "+mode)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(text, ", ")
}

// Members that make their certificates are a cluster, and warn nobody of each other.
func TestSelfSignedMembers(t *testing.T) {
	t.Parallel()
	cluster := harness.StartCluster(t, harness.Etched, harness.ClusterOptions{
		Flags:      []string{"--auto-tls", "--peer-auto-tls"},
		Encryption: harness.Encryption{ClientTLS: &tls.Config{InsecureSkipVerify: true}, PeerTLS: true},
	})
	for number, member := range cluster.Members() {
		if lines := rejections(t, member.Server, "127.0.0.1"); len(lines) > 0 {
			t.Errorf("%s: %v", member.Name(), lines[0])
		}
		client := member.Client(t)
		if _, err := client.Put(harness.Context(t, callLimit), fmt.Sprint("by ", number), "x"); err != nil {
			t.Errorf("%s: %v", member.Name(), err)
		}
	}
	for number, member := range cluster.Members() {
		restart := func() {
			if err := member.Server.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := member.Restart(); err != nil {
				t.Fatal(err)
			}
		}
		if number > 0 {
			restart()
		}
		found, err := member.Client(t).Get(harness.Context(t, 20*time.Second), "by ", clientv3.WithPrefix())
		if err != nil || len(found.Kvs) != 3 {
			t.Errorf("%s: %v, %v", member.Name(), found, err)
		}
	}
}
