package kubernetes

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
	"testing"
	"time"
)

// authority signs the certificates of a store and of its API servers, as kubeadm's authorities do.
type authority struct {
	t           testing.TB
	dir, file   string
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// pair is a certificate and its key, in files.
type pair struct{ cert, key string }

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), key: newKey(t)}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	a.certificate = template
	der := a.sign(template, a.key)
	var err error
	a.certificate, err = x509.ParseCertificate(der)
	must(t, err)
	a.file = a.write("ca.crt", "CERTIFICATE", der)
	return a
}

// pair makes one for this machine, a server's and a client's.
func (a *authority) pair(name string, subject pkix.Name) pair {
	a.t.Helper()
	key := newKey(a.t)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	must(a.t, err)
	der := a.sign(&x509.Certificate{
		Subject: subject, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, key)
	return pair{cert: a.write(name+".crt", "CERTIFICATE", der), key: a.write(name+".key", "PRIVATE KEY", secret)}
}

// client is how the holder of a pair calls servers of this authority.
func (a *authority) client(of pair) *tls.Config {
	a.t.Helper()
	loaded, err := tls.LoadX509KeyPair(of.cert, of.key)
	must(a.t, err)
	trusted := x509.NewCertPool()
	trusted.AddCert(a.certificate)
	return &tls.Config{RootCAs: trusted, Certificates: []tls.Certificate{loaded}, MinVersion: tls.VersionTLS12}
}

func (a *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	a.t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	must(a.t, err)
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	must(a.t, err)
	return der
}

func (a *authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	must(a.t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return path
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
