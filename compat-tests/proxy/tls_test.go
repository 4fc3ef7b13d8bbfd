package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	clientv3 "go.etcd.io/etcd/client/v3"
)

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
	cluster, own := harness.NewPair(t, ""), harness.NewPair(t, "proxy")
	server := harness.Start(t, harness.Etched, harness.Options{
		Flags:      []string{"--cert-file=" + cluster.Cert, "--key-file=" + cluster.Key, "--trusted-ca-file=" + cluster.Cert},
		Encryption: harness.Encryption{ClientTLS: cluster.Config},
	})
	upstream := []string{"--endpoints=" + server.URL(), "--cert=" + cluster.Cert, "--key=" + cluster.Key, "--cacert=" + cluster.Cert}
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			proxy := startProxy(t, kind, append(upstream,
				"--cert-file="+own.Cert, "--key-file="+own.Key, "--trusted-ca-file="+own.Cert)...)
			if err := reads(t, proxy, own.Config); err != nil {
				t.Error(err)
			}
			if err := reads(t, proxy, &tls.Config{RootCAs: own.Config.RootCAs}); err == nil {
				t.Error("a client without a certificate is answered")
			}
			if err := reads(t, proxy, nil); err == nil {
				t.Error("a client without TLS is answered")
			}
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: own.Config}}
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
			Flags:      []string{"--cert-file=" + cluster.Cert, "--key-file=" + cluster.Key, "--trusted-ca-file=" + cluster.Cert},
			Encryption: harness.Encryption{ClientTLS: cluster.Config},
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
			"--cert="+cluster.Cert, "--key="+cluster.Key)
		if err := reads(t, proxy, nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("a member that nobody vouches for", func(t *testing.T) {
		proxy := startProxy(t, harness.Etched, "--endpoints="+server.URL(), "--cacert="+own.Cert)
		if err := reads(t, proxy, nil); err == nil {
			t.Error("it is called")
		}
	})
	// The members would take the name for the user of all clients.
	for _, kind := range kinds {
		got, last := harness.ExitsSaying(t, kind, nil, append([]string{"grpc-proxy", "start", "--cert=" + own.Cert, "--key=" + own.Key},
			fmt.Sprintf("--listen-addr=127.0.0.1:%d", freePort(t))))
		if got.Code != 1 || !strings.Contains(last, "cert has non empty Common Name (proxy): "+own.Cert) {
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
