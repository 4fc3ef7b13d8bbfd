package tls

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"etched.dev/compat-tests/harness"
)

// Command lines and files with which no server starts, refused in the same words
// and with the same status.
func TestRefusedStarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	second := write(t, w.dir, "second", w.known.local())
	empty, garbage := filepath.Join(w.dir, "empty"), filepath.Join(w.dir, "garbage")
	for path, content := range map[string]string{empty: "", garbage: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names := strings.NewReplacer("SERVER", filepath.Join(w.dir, "server"), "SECOND", second.key, "EMPTY", empty, "GARBAGE", garbage, "CA", w.known.file)
	const pair, peerPair = " --cert-file=SERVER.crt --key-file=SERVER.key", " --peer-cert-file=SERVER.crt --peer-key-file=SERVER.key"
	const https, peerHTTPS = "--listen-client-urls=https://127.0.0.1:PORT --advertise-client-urls=https://127.0.0.1:PORT", "--listen-peer-urls=https://127.0.0.1:PORT --initial-advertise-peer-urls=https://127.0.0.1:PORT --initial-cluster=default=https://127.0.0.1:PORT"
	for _, args := range []string{
		https, peerHTTPS,
		"--listen-metrics-urls=https://127.0.0.1:PORT",
		https + " --cert-file=SERVER.crt", https + " --key-file=SERVER.key",
		peerHTTPS + " --peer-cert-file=SERVER.crt", peerHTTPS + " --peer-key-file=SERVER.key",
		"--peer-cert-file=SERVER.crt", "--peer-key-file=SERVER.key",
		https + pair + " --client-cert-file=SERVER.crt", https + pair + " --client-key-file=SERVER.key",
		peerHTTPS + peerPair + " --peer-client-cert-file=SERVER.crt", peerHTTPS + peerPair + " --peer-client-key-file=SERVER.key",
		https + " --cert-file=SERVER.crt --key-file=SECOND", peerHTTPS + " --peer-cert-file=SERVER.crt --peer-key-file=SECOND",
		peerHTTPS + peerPair + " --peer-cert-allowed-cn=a --peer-cert-allowed-hostname=b",
		peerHTTPS + peerPair + " --peer-cert-allowed-cn=a,c --peer-cert-allowed-hostname=b,d",
		"--tls-min-version=TLS1.1", "--tls-min-version=TLS1.4", "--tls-max-version=1.3", "--tls-min-version=TLS1.3 --tls-max-version=TLS1.2",
		"--tls-min-version=TLS1.3 --cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
		https + pair + " --cipher-suites=FOO", "--cipher-suites=FOO",
		https + " --cert-file=MISSING --key-file=SERVER.key", https + " --cert-file=SERVER.crt --key-file=MISSING",
		peerHTTPS + " --peer-cert-file=MISSING --peer-key-file=SERVER.key",
		https + pair + " --trusted-ca-file=MISSING", peerHTTPS + peerPair + " --peer-trusted-ca-file=MISSING",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			seen := [2]harness.Exit{}
			for side, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
				line := names.Replace(args)
				for strings.Contains(line, "PORT") {
					port, err := harness.FreePort()
					if err != nil {
						t.Fatal(err)
					}
					line = strings.ReplaceAll(line, "PORT", fmt.Sprint(port))
				}
				line += " --data-dir=" + t.TempDir()
				// What is not said listens nowhere that another may.
				for _, flag := range []string{"--listen-client-urls", "--listen-peer-urls"} {
					if port, err := harness.FreePort(); err == nil && !strings.Contains(line, flag) {
						line += fmt.Sprintf(" %s=http://127.0.0.1:%d", flag, port)
						if flag == "--listen-client-urls" {
							line += fmt.Sprintf(" --advertise-client-urls=http://127.0.0.1:%d", port)
						}
					}
				}
				seen[side] = harness.Exits(t, kind, nil, strings.Fields(line))
				seen[side].Error = ports.ReplaceAllString(seen[side].Error, "127.0.0.1:PORT")
			}
			if seen[0] != seen[1] {
				t.Errorf("\n-etched %+v\n+etcd   %+v", seen[0], seen[1])
			}
			if seen[1].Code != 1 && seen[1].Code != 2 {
				t.Errorf("etcd takes it: %+v", seen[1])
			}
		})
	}
}
