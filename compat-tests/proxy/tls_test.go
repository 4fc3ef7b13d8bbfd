package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// newPair makes one for this machine, with a common name or without.
func newPair(t *testing.T, name string) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name, Organization: []string{"test"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
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

// reads says whether a client gets an answer behind a proxy.
func reads(t *testing.T, p *process, config *tls.Config) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := newClient(t, clientv3.Config{Endpoints: []string{p.address}, TLS: config}).Get(ctx, "k")
	return err
}

// TLS on both sides, with certificates that each side demands of the other.
func TestProxyWithTLS(t *testing.T) {
	cluster, own := newPair(t, ""), newPair(t, "proxy")
	server := harness.Start(t, harness.Etched, harness.Options{
		Flags:      []string{"--cert-file=" + cluster.cert, "--key-file=" + cluster.key, "--trusted-ca-file=" + cluster.cert},
		Encryption: harness.Encryption{ClientTLS: cluster.config},
	})
	upstream := []string{"--endpoints=" + server.URL(), "--cert=" + cluster.cert, "--key=" + cluster.key, "--cacert=" + cluster.cert}
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			proxy := startProxy(t, kind, append(upstream,
				"--cert-file="+own.cert, "--key-file="+own.key, "--trusted-ca-file="+own.cert)...)
			if err := reads(t, proxy, own.config); err != nil {
				t.Error(err)
			}
			if err := reads(t, proxy, &tls.Config{RootCAs: own.config.RootCAs}); err == nil {
				t.Error("a client without a certificate is answered")
			}
			if err := reads(t, proxy, nil); err == nil {
				t.Error("a client without TLS is answered")
			}
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: own.config}}
			base := "https://" + proxy.address
			if body := page(t, client, base+"/health", http.StatusOK); body != `{"health":"true","reason":""}` {
				t.Error(body)
			}
			if body := page(t, client, base+"/metrics", http.StatusOK); !strings.Contains(body, "etcd_server_has_leader") {
				t.Error(body)
			}
		})
	}
	t.Run("metrics of the first member", func(t *testing.T) {
		other := harness.Start(t, harness.Etched, harness.Options{
			Flags:      []string{"--cert-file=" + cluster.cert, "--key-file=" + cluster.key, "--trusted-ca-file=" + cluster.cert},
			Encryption: harness.Encryption{ClientTLS: cluster.config},
		})
		_, err := other.Client(t).Put(t.Context(), "k", "1")
		must(t, err)
		proxy := startProxy(t, harness.Etched, append(slices.Clone(upstream[1:]), "--endpoints="+server.URL()+","+other.URL())...)
		for range 4 {
			if found := metric(t, "http://"+proxy.address+"/metrics", "etcd_mvcc_put_total"); found != "0" {
				t.Errorf("%s puts", found)
			}
		}
	})
	t.Run("a certificate that is made", func(t *testing.T) {
		proxy := startProxy(t, harness.Etched, append(upstream, "--auto-tls")...)
		if err := reads(t, proxy, &tls.Config{InsecureSkipVerify: true}); err != nil {
			t.Error(err)
		}
	})
	t.Run("a member that is not verified", func(t *testing.T) {
		proxy := startProxy(t, harness.Etched, "--endpoints="+server.URL(), "--insecure-skip-tls-verify",
			"--cert="+cluster.cert, "--key="+cluster.key)
		if err := reads(t, proxy, nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("a member that nobody vouches for", func(t *testing.T) {
		proxy := startProxy(t, harness.Etched, "--endpoints="+server.URL(), "--cacert="+own.cert)
		if err := reads(t, proxy, nil); err == nil {
			t.Error("it is called")
		}
	})
	// The members would take the name for the user of all clients.
	for _, kind := range kinds {
		got, last := harness.ExitsSaying(t, kind, nil, append([]string{"grpc-proxy", "start", "--cert=" + own.cert, "--key=" + own.key},
			fmt.Sprintf("--listen-addr=127.0.0.1:%d", freePort(t))))
		if got.Code != 1 || !strings.Contains(last, "cert has non empty Common Name (proxy): "+own.cert) {
			t.Errorf("%s: %+v", kind, got)
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	port, err := harness.FreePort()
	must(t, err)
	return port
}
