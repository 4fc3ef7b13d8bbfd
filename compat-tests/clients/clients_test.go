package clients

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"etched.dev/compat-tests/harness"
)

// limit is that of one program, restarts of the server included.
const limit = 3 * time.Minute

// languages are the libraries, the program of each, below COMPAT_CLIENTS or here, and the steps
// that its transcript has to have.
var languages = map[string]struct {
	command []string
	steps   string
	// plain is a library without TLS.
	plain bool
}{
	"go-clientv3":      {command: []string{"$INSTALLED/golang"}, steps: "kv txn watch lease lock election auth"},
	"python-etcd3":     {command: []string{"$INSTALLED/python-etcd3/bin/python", "python/etcd3_client.py"}, steps: "kv txn watch lease lock auth"},
	"java-jetcd":       {command: []string{"java", "-cp", "$INSTALLED/java/target/classes:$INSTALLED/java/target/lib/*", "Client"}, steps: "kv txn watch lease lock election auth"},
	"python-aetcd":     {command: []string{"$INSTALLED/python-aetcd/bin/python", "python/aetcd_client.py"}, steps: "kv txn watch lease lock auth", plain: true},
	"rust-etcd-client": {command: []string{"$INSTALLED/rust/debug/client"}, steps: "kv txn watch lease lock election auth"},
	"node-etcd3":       {command: []string{"node", "$INSTALLED/node/client.js"}, steps: "kv txn watch lease lock election auth"},
}

func TestClients(t *testing.T) {
	installed := os.Getenv("COMPAT_CLIENTS")
	if installed == "" {
		t.Skip("the programs are installed by scripts/test clients")
	}
	for name, language := range languages {
		t.Run(name, func(t *testing.T) {
			var command []string
			for _, word := range language.command {
				command = append(command, strings.ReplaceAll(word, "$INSTALLED", installed))
			}
			etched := transcript(t, harness.Etched, command, language.plain)
			etcd := transcript(t, harness.Etcd, command, language.plain)
			if difference := cmp.Diff(strings.Split(etcd, "\n"), strings.Split(etched, "\n")); difference != "" {
				t.Errorf("etcd (-) and etched (+) differ:\n%s", difference)
			}
			for step := range strings.FieldsSeq(language.steps) {
				if strings.Count(etched, "== "+step+"\n") != 1 {
					t.Errorf("no step %s:\n%s", step, etched)
				}
			}
			if !strings.HasSuffix(etched, "\ndone\n") {
				t.Errorf("not done:\n%s", etched)
			}
			t.Logf("%d lines:\n%s", strings.Count(etched, "\n"), etched)
		})
	}
}

// transcript is what the program prints of a server of its own.
func transcript(t *testing.T, kind harness.Kind, command []string, plain bool) string {
	t.Helper()
	ca, flags, client := encryption(t)
	if plain {
		flags, client = nil, nil
	}
	server := harness.Start(t, kind, harness.Options{
		Flags:      append(flags, "--bcrypt-cost=4"),
		Encryption: harness.Encryption{ClientTLS: client},
	})
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	program := exec.CommandContext(ctx, command[0], command[1:]...)
	program.Env = append(os.Environ(), "ENDPOINT="+server.Endpoint(), "CA="+ca)
	program.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	program.Cancel = func() error { return syscall.Kill(-program.Process.Pid, syscall.SIGKILL) }
	var complaints bytes.Buffer
	program.Stderr = &complaints
	output, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	input, err := program.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatalf("%v: %v", command, err)
	}
	var lines strings.Builder
	restarts := 0
	for scanner := bufio.NewScanner(output); scanner.Scan(); {
		if scanner.Text() != "RESTART" {
			fmt.Fprintln(&lines, scanner.Text())
			continue
		}
		restarts++
		if err := server.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(input, "restarted\n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := program.Wait(); err != nil || restarts != 1 {
		t.Fatalf("with %s: %v, %d restarts\n%s\n%s", kind, err, restarts, lines.String(), complaints.String())
	}
	return lines.String()
}

// encryption is the file of an authority, the flags of a server's pair, and how the harness calls it.
func encryption(t *testing.T) (ca string, flags []string, client *tls.Config) {
	t.Helper()
	dir := t.TempDir()
	authority := &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	signer := newKey(t)
	root := sign(t, authority, authority, signer, signer)
	certificate, err := x509.ParseCertificate(root)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	server := sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "server"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, certificate, key, signer)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca = write("ca.crt", "CERTIFICATE", root)
	flags = []string{"--cert-file=" + write("server.crt", "CERTIFICATE", server), "--key-file=" + write("server.key", "PRIVATE KEY", secret)}
	trusted := x509.NewCertPool()
	trusted.AddCert(certificate)
	return ca, flags, &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) []byte {
	t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
