package discovery

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func encryptedClient(t *testing.T, at harness.Pair, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second, TLS: at.Config,
	})
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A service that demands a certificate, of founders of either kind.
func TestDiscoveryByTLS(t *testing.T) {
	shown, other := harness.NewPair(t, ""), harness.NewPair(t, "")
	for _, kind := range []harness.Kind{harness.Etcd, harness.Etched} {
		at := newPlace(t)
		url := strings.Replace(at.clientURL(), "http:", "https:", 1)
		start(t, kind, "service", at,
			"--listen-client-urls="+url, "--advertise-client-urls="+url,
			"--cert-file="+shown.Cert, "--key-file="+shown.Key,
			"--client-cert-auth", "--trusted-ca-file="+shown.Cert)
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
					flags := func(shown, trusted harness.Pair) []string {
						return []string{"--discovery-token=tok", "--discovery-endpoints=" + endpoint,
							"--discovery-cert=" + shown.Cert, "--discovery-key=" + shown.Key,
							"--discovery-cacert=" + trusted.Cert}
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
			shown := harness.NewPair(t, "", "s.sock")
			plain, secure := filepath.Join(files, "p.sock"), filepath.Join(files, "s.sock")
			at, dir := newPlace(t), t.TempDir()
			run := func() *founder {
				return startIn(t, kind, dir, "one", at,
					"--listen-client-urls=unix://"+plain+",unixs://"+secure, "--advertise-client-urls=unix://"+plain,
					"--cert-file="+shown.Cert, "--key-file="+shown.Key, "--initial-cluster=one="+at.peerURL())
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
