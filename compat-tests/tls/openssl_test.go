package tls

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// spoken is what openssl s_client says of a connection.
var spoken = []*regexp.Regexp{
	regexp.MustCompile(`(?m)^New, (TLSv[0-9.]+), Cipher is`),
	regexp.MustCompile(`(?m)^(ALPN protocol: \S+|No ALPN negotiated)`),
	regexp.MustCompile(`(HTTP/1\.1 \d+)`),
	regexp.MustCompile(`(SSL alert number \d+|no protocols available)`),
}

// chosen is the cipher suite, compared only where the client leaves no choice: else
// each server has its own favourite.
var chosen = regexp.MustCompile(`(?m)^New, TLSv[0-9.]+, Cipher is (\S+)`)

// openssl connects with s_client, asks by HTTP/1.1 where that was agreed on, and
// answers what became of it.
func openssl(t *testing.T, address, request string, args []string, withCipher bool) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	command := exec.CommandContext(ctx, "openssl", append([]string{"s_client", "-connect", address}, args...)...)
	command.Stdin = strings.NewReader(request)
	if request != "" {
		// Until the server has answered and closed.
		command.Args = append(command.Args, "-ign_eof")
	}
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	err := command.Run()
	if ctx.Err() != nil {
		return "no end"
	}
	if err != nil && command.ProcessState == nil {
		t.Fatalf("openssl: %v", err)
	}
	var said []string
	patterns := spoken
	if withCipher {
		patterns = append(patterns, chosen)
	}
	for _, pattern := range patterns {
		if found := pattern.FindStringSubmatch(output.String()); found != nil {
			said = append(said, found[1])
		}
	}
	text := strings.Join(said, ", ")
	if at := strings.Index(text, "SSL alert"); at >= 0 {
		// What was agreed on before is no use.
		text = text[at:]
	}
	// Go accepts HTTP/1.1 by not answering that it does.
	text = strings.Replace(text, "ALPN protocol: http/1.1", "No ALPN negotiated", 1)
	return fmt.Sprintf("%s; exit %d", text, command.ProcessState.ExitCode())
}

// suites are openssl's names, and whether etched has what etcd has. Those that it has not are
// left out by its library: without forward secrecy, or in the mode CBC.
var suites = map[string]bool{
	"ECDHE-RSA-AES128-GCM-SHA256": true, "ECDHE-RSA-AES256-GCM-SHA384": true, "ECDHE-RSA-CHACHA20-POLY1305": true,
	"ECDHE-ECDSA-AES128-GCM-SHA256": true, "ECDHE-ECDSA-AES256-GCM-SHA384": true, "ECDHE-ECDSA-CHACHA20-POLY1305": true,
	"ECDHE-RSA-AES128-SHA": false, "ECDHE-RSA-AES256-SHA": false, "ECDHE-ECDSA-AES128-SHA": false, "ECDHE-ECDSA-AES256-SHA": false,
	"ECDHE-RSA-AES128-SHA256": true, "AES128-GCM-SHA256": true, "AES256-SHA": true,
}

const getVersion = "GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

// Versions, cipher suites, groups, protocols and names that clients ask for.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl must be on the PATH")
	}
	w := newWorld(t)
	user := write(t, w.dir, "user", w.known.issue(holder{commonName: "user"}))
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	withRSA := write(t, w.dir, "rsa", w.known.issue(holder{addresses: []string{"127.0.0.1"}, key: key}))
	trusted := "--trusted-ca-file=" + w.known.file
	for name, one := range map[string]struct {
		server files
		flags  []string
	}{
		"ECDSA":    {w.server, nil},
		"RSA":      {withRSA, []string{trusted}},
		"TLS 1.3":  {w.server, []string{"--tls-min-version=TLS1.3"}},
		"TLS 1.2":  {withRSA, []string{"--tls-max-version=TLS1.2"}},
		"a suite":  {withRSA, []string{"--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"}},
		"no suite": {withRSA, []string{"--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_AES_128_GCM_SHA256"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			served := *w
			served.server = one.server
			duo := served.duo(t, one.flags...)
			try := func(request string, words string, withCipher bool) (ours, theirs string) {
				t.Helper()
				args := append(strings.Fields(words), "-CAfile", w.known.file, "-cert", user.certificate, "-key", user.key)
				return openssl(t, duo.Etched.Endpoint(), request, args, withCipher), openssl(t, duo.Etcd.Endpoint(), request, args, withCipher)
			}
			equal := func(request, words string, withCipher bool) {
				t.Helper()
				if ours, theirs := try(request, words, withCipher); ours != theirs {
					t.Errorf("%s:\n-etched %s\n+etcd   %s", words, ours, theirs)
				}
			}
			const insecure = " -cipher ALL:@SECLEVEL=0"
			for _, version := range []string{"", "-tls1 " + insecure, "-tls1_1" + insecure, "-tls1_2", "-tls1_3"} {
				equal(getVersion, version, false)
			}
			for suite, has := range suites {
				ours, theirs := try(getVersion, "-tls1_2 -cipher "+suite+":@SECLEVEL=0", true)
				if !has && strings.Contains(theirs, "HTTP/1.1 200") {
					if !strings.Contains(ours, "alert number 40") {
						t.Errorf("%s: %s; it is listed as one that etched has not", suite, ours)
					}
				} else if ours != theirs {
					t.Errorf("%s:\n-etched %s\n+etcd   %s", suite, ours, theirs)
				}
			}
			if name != "ECDSA" {
				return
			}
			for _, suite := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_CCM_SHA256"} {
				equal(getVersion, "-tls1_3 -ciphersuites "+suite, true)
			}
			for _, group := range []string{"X25519", "P-256", "P-384", "X448"} {
				equal(getVersion, "-groups "+group, false)
			}
			for _, protocols := range []string{"http/1.1", "h2,http/1.1", "http/1.1,h2", "h2", "spdy/3", "h3,http/1.1", "http/1.0"} {
				request := getVersion
				if strings.Contains(protocols, "h2") {
					request = ""
				}
				equal(request, "-alpn "+protocols, false)
			}
			for _, sni := range []string{"-noservername", "-servername localhost", "-servername other.test", "-servername 127.0.0.1", "-servername a_b"} {
				equal(getVersion, sni, false)
			}
		})
	}
}

// A connection that begins with something else than what the port speaks is closed,
// and the log has a line of it.
func TestWrongPort(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	encrypted, plain := w.duo(t), harness.StartDuo(t, harness.Options{})
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	for i, said := range []string{getVersion, preface, "\x00\x01\x02\x03\x04\x05\x06\x07"} {
		source := fmt.Sprintf("127.0.2.%d", i+1)
		var seen, logged [2]string
		for side, server := range []*harness.Server{encrypted.Etched, encrypted.Etcd} {
			for range 3 {
				seen[side] = says(t, source, server.Endpoint(), said)
			}
			logged[side] = rejection(t, server, source)
		}
		if seen[0] != seen[1] || logged[0] != logged[1] {
			t.Errorf("%q:\n-etched %s, %s\n+etcd   %s, %s", said, seen[0], logged[0], seen[1], logged[1])
		}
		lines := rejections(t, encrypted.Etched, source)
		if len(lines) != 1 {
			t.Errorf("%q: %d lines of three connections within a minute", said, len(lines))
		}
	}
	source := "127.0.2.100"
	for side, server := range []*harness.Server{plain.Etched, plain.Etcd} {
		if seen := http1(from(source), server.Endpoint(), client(pool(w.known), nil), "/version"); seen != "refused: EOF" {
			t.Errorf("TLS at a plain port, %d: %s", side, seen)
		}
	}
	// etcd says nothing.
	if line := rejection(t, plain.Etched, source); !strings.Contains(line, "a TLS handshake at a port that has no TLS") {
		t.Errorf("TLS at a plain port is logged: %s", line)
	}
}

// says answers what comes back, as far as the connection is not just closed.
func says(t *testing.T, source, address, text string) string {
	t.Helper()
	connection, err := from(source).Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(callLimit))
	if _, err := connection.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 100)
	count, err := connection.Read(answer)
	if count > 0 {
		return fmt.Sprintf("%q", answer[:count])
	}
	return outcome(err)
}
