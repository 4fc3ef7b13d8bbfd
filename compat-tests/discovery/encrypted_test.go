package discovery

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// pair is a certificate that vouches for itself, and its key, in files.
type pair struct {
	cert, key string
	config    *tls.Config
}

// newPair makes one for this machine and the names of files.
func newPair(t *testing.T, names ...string) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: append(names, "localhost"), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	dir := t.TempDir()
	made := pair{cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	must(t, os.WriteFile(made.cert, certPEM, 0o600))
	must(t, os.WriteFile(made.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	loaded, err := tls.LoadX509KeyPair(made.cert, made.key)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	made.config = &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{loaded}}
	return made
}

func encryptedClient(t *testing.T, at pair, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second, TLS: at.config,
	})
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A service that demands a certificate, of founders of either kind.
func TestDiscoveryByTLS(t *testing.T) {
	shown, other := newPair(t), newPair(t)
	for _, kind := range []harness.Kind{harness.Etcd, harness.Etched} {
		at := newPlace(t)
		url := strings.Replace(at.clientURL(), "http:", "https:", 1)
		start(t, kind, "service", at,
			"--listen-client-urls="+url, "--advertise-client-urls="+url,
			"--cert-file="+shown.cert, "--key-file="+shown.key,
			"--client-cert-auth", "--trusted-ca-file="+shown.cert)
		store := encryptedClient(t, shown, url)
		for _, founder := range []harness.Kind{harness.Etcd, harness.Etched} {
			for form, endpoint := range map[string]string{
				"a URL": "https://127.0.0.1:1," + url, "no scheme": strings.TrimPrefix(url, "https://"),
			} {
				t.Run(founder.String()+" in "+kind.String()+" by "+form, func(t *testing.T) {
					empty := func() {
						_, err := store.Delete(t.Context(), "/_etcd/registry/tok/", clientv3.WithPrefix())
						must(t, err)
						_, err = store.Put(t.Context(), "/_etcd/registry/tok/_config/size", "1")
						must(t, err)
					}
					empty()
					flags := func(shown, trusted pair) []string {
						return []string{"--discovery-token=tok", "--discovery-endpoints=" + endpoint,
							"--discovery-cert=" + shown.cert, "--discovery-key=" + shown.key,
							"--discovery-cacert=" + trusted.cert}
					}
					for _, wrong := range [][]string{flags(other, shown), flags(shown, other)} {
						lost := start(t, founder, "lost", newPlace(t), wrong...)
						lost.waitFor(t, "retry connecting to discovery service")
						lost.kill()
					}
					anyService := append(flags(shown, other), "--discovery-insecure-skip-tls-verify")
					for _, right := range [][]string{flags(shown, shown), anyService} {
						empty()
						mine := newPlace(t)
						start(t, founder, "one", mine, right...)
						waitMembers(t, client(t, mine.clientURL()), 1)
					}
				})
			}
		}
	}
}

// Clients come through files, with and without TLS; what a killed member leaves is in nobody's way,
// and nothing is left of one that stops.
func TestSocketFiles(t *testing.T) {
	for _, kind := range []harness.Kind{harness.Etcd, harness.Etched} {
		t.Run(kind.String(), func(t *testing.T) {
			// Not t.TempDir(): the kernel takes short paths only.
			files, err := os.MkdirTemp("", "s")
			must(t, err)
			t.Cleanup(func() { _ = os.RemoveAll(files) })
			shown := newPair(t, "s.sock")
			plain, secure := filepath.Join(files, "p.sock"), filepath.Join(files, "s.sock")
			at, dir := newPlace(t), t.TempDir()
			run := func() *founder {
				return startIn(t, kind, dir, "one", at,
					"--listen-client-urls=unix://"+plain+",unixs://"+secure, "--advertise-client-urls=unix://"+plain,
					"--cert-file="+shown.cert, "--key-file="+shown.key, "--initial-cluster=one="+at.peerURL())
			}
			member := run()
			waitMembers(t, client(t, "unix://"+plain), 1)
			member.kill()
			for _, file := range []string{plain, secure} {
				if _, err := os.Stat(file); err != nil {
					t.Error(err)
				}
			}
			member = run()
			putUntilTaken(t, client(t, "unix://"+plain), "a")
			putUntilTaken(t, encryptedClient(t, shown, "unixs://"+secure), "b")
			must(t, member.command.Process.Signal(syscall.SIGTERM))
			member.end(t)
			for _, file := range []string{plain, secure} {
				if _, err := os.Stat(file); !os.IsNotExist(err) {
					t.Errorf("%s: %v", file, err)
				}
			}
		})
	}
}
