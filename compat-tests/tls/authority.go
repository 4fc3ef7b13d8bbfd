// Package tls connects to etched and to etcd v3.7.3 by TLS, with certificates of
// its own authorities, and compares who gets in and what the others see.
package tls

import (
	"crypto"
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

// authority signs certificates; its own is in a file.
type authority struct {
	t           testing.TB
	file        string
	certificate *x509.Certificate
	key         crypto.Signer
	// above are the certificates between this one and its root, itself included.
	above [][]byte
}

// holder is what a certificate says. The zero value is a client and server of no
// name, valid for an hour.
type holder struct {
	commonName    string
	names         []string
	addresses     []string
	usage         []x509.ExtKeyUsage
	noUsage       bool
	begins, ends  time.Duration // from now
	isAuthority   bool
	without       bool // the certificates above it
	key           crypto.Signer
	extra         []pkix.Extension
	organization  string
	noCommonName  bool
	signatureAlgo x509.SignatureAlgorithm
}

var both = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}

func newKey(t testing.TB) crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return number
}

// newAuthority is a root.
func newAuthority(t testing.TB, dir, name string) *authority {
	t.Helper()
	return (&authority{t: t}).below(dir, name)
}

// below is an authority that this one vouches for; a root, where this is none.
func (a *authority) below(dir, name string) *authority {
	a.t.Helper()
	return a.lasting(dir, name, 24*time.Hour)
}

// lasting is below for so long from now; it may be over.
func (a *authority) lasting(dir, name string, left time.Duration) *authority {
	a.t.Helper()
	key := newKey(a.t)
	template := &x509.Certificate{
		SerialNumber: serial(a.t), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(left),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	parent, signer := a.certificate, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	child := &authority{t: a.t, file: filepath.Join(dir, name+".crt"), certificate: certificate, key: key}
	if a.certificate != nil {
		child.above = append([][]byte{der}, a.above...)
	}
	writePEM(a.t, child.file, "CERTIFICATE", der)
	return child
}

// issue makes a certificate.
func (a *authority) issue(h holder) tls.Certificate {
	a.t.Helper()
	if h.key == nil {
		h.key = newKey(a.t)
	}
	if h.ends == 0 {
		h.ends = time.Hour
	}
	if h.begins == 0 {
		h.begins = -time.Hour
	}
	if h.usage == nil && !h.noUsage {
		h.usage = both
	}
	template := &x509.Certificate{
		SerialNumber: serial(a.t), Subject: pkix.Name{CommonName: h.commonName},
		NotBefore: time.Now().Add(h.begins), NotAfter: time.Now().Add(h.ends),
		DNSNames: h.names, ExtKeyUsage: h.usage, KeyUsage: x509.KeyUsageDigitalSignature,
		IsCA: h.isAuthority, BasicConstraintsValid: true, ExtraExtensions: h.extra, SignatureAlgorithm: h.signatureAlgo,
	}
	if h.organization != "" {
		template.Subject.Organization = []string{h.organization}
	}
	if h.isAuthority {
		template.KeyUsage |= x509.KeyUsageCertSign
	}
	for _, address := range h.addresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(address))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, h.key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: h.key}
	if !h.without {
		pair.Certificate = append(pair.Certificate, a.above...)
	}
	return pair
}

// local is a server's certificate for this machine.
func (a *authority) local() tls.Certificate {
	a.t.Helper()
	return a.issue(holder{commonName: "server", names: []string{"localhost"}, addresses: []string{"127.0.0.1", "::1"}})
}

// files are where a pair is.
type files struct{ certificate, key string }

// flags name a pair to a server: prefix is empty or "peer-".
func (f files) flags(prefix string) []string {
	return []string{"--" + prefix + "cert-file=" + f.certificate, "--" + prefix + "key-file=" + f.key}
}

// write puts a pair into files, replacing those at once, as tools do.
func write(t testing.TB, dir, name string, pair tls.Certificate) files {
	t.Helper()
	found := files{filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")}
	writePEM(t, found.certificate, "CERTIFICATE", pair.Certificate...)
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, found.key, "PRIVATE KEY", key)
	return found
}

func writePEM(t testing.TB, path, kind string, blocks ...[]byte) {
	t.Helper()
	var text []byte
	for _, block := range blocks {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: block})...)
	}
	replace(t, path, text)
}

// replace puts content into a file in one step.
func replace(t testing.TB, path string, content []byte) {
	t.Helper()
	fresh := path + ".new"
	if err := os.WriteFile(fresh, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(fresh, path); err != nil {
		t.Fatal(err)
	}
}

// revokes writes a list of revoked certificates, in DER.
func (a *authority) revokes(path string, revoked ...tls.Certificate) []byte {
	a.t.Helper()
	template := &x509.RevocationList{Number: serial(a.t), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, one := range revoked {
		parsed, err := x509.ParseCertificate(one.Certificate[0])
		if err != nil {
			a.t.Fatal(err)
		}
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: parsed.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.certificate, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	replace(a.t, path, der)
	return der
}

// pool is what trusts these authorities.
func pool(authorities ...*authority) *x509.CertPool {
	trusted := x509.NewCertPool()
	for _, one := range authorities {
		trusted.AddCert(one.certificate)
	}
	return trusted
}

// client is how a holder calls a server of these authorities, itself nobody where
// there is no pair.
func client(trusted *x509.CertPool, pair *tls.Certificate) *tls.Config {
	config := &tls.Config{RootCAs: trusted, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}
	if pair != nil {
		// Shown whatever authorities the server says that it knows.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	return config
}
