package tls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"etched.dev/compat-tests/harness"
)

// A connection takes as many streams at once as was announced, without that any number.
func TestStreamLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	config := client(pool(w.known), nil)
	config.NextProtos = []string{"h2"}
	for flag, limit := range map[string]uint32{"": 0, "--max-concurrent-streams=5": 5, "--max-concurrent-streams=4294967295": 0} {
		var flags []string
		if flag != "" {
			flags = append(flags, flag)
		}
		w.duo(t, flags...).Each(func(server *harness.Server) {
			if found, err := announcedStreams(server.Endpoint(), config); err != nil || found != limit {
				t.Errorf("%s %s: %d streams, %v", server.Kind(), flag, found, err)
			}
		})
	}
}

// announcedStreams is how many streams at once a server says it takes, 0 where nobody can reach the
// limit.
func announcedStreams(address string, config *tls.Config) (uint32, error) {
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(callLimit)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return 0, err
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		return 0, err
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return 0, err
		}
		settings, is := frame.(*http2.SettingsFrame)
		if !is || settings.IsAck() {
			continue
		}
		if streams, set := settings.Value(http2.SettingMaxConcurrentStreams); set && streams < 1<<31-1 {
			return streams, nil
		}
		return 0, nil
	}
}

// A client that begins a handshake and does not continue is sent away after ten
// seconds (CVE-2026-73500), and so is one that says nothing at all.
func TestHandshakesHaveALimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	duo := w.duo(t)
	for name, said := range map[string]string{"a first byte": "\x16", "half a hello": "\x16\x03\x01\x02\x00\x01\x00", "nothing": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.DialTimeout("tcp", duo.Etched.Endpoint(), 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, said); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			_ = conn.SetReadDeadline(began.Add(40 * time.Second))
			_, err = io.Copy(io.Discard, conn)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("it is still connected after 40 s")
			}
			if took := time.Since(began); took < 5*time.Second || said != "" && took > 25*time.Second {
				t.Errorf("sent away after %v", took)
			}
		})
	}
}

// A member says in its log that a certificate in use is about to expire, and nothing of
// one that is not.
func TestWarningsOfExpiry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for days, expected := range map[int]int{20: 1, 40: 0} {
		pair := w.known.issue(holder{
			commonName: "server", addresses: []string{"127.0.0.1"}, ends: time.Duration(days)*24*time.Hour + time.Hour,
		})
		server := harness.Start(t, harness.Etched, harness.Options{
			Flags:      write(t, t.TempDir(), "server", pair).flags(""),
			Encryption: harness.Encryption{ClientTLS: client(pool(w.known), nil)},
		})
		about := harness.Says("a certificate is about to expire")
		if expected > 0 {
			if _, err := server.WaitLog(2*callLimit, expected, about); err != nil {
				t.Error(err)
			}
		}
		lines, err := server.Log()
		if err != nil {
			t.Fatal(err)
		}
		found := about(lines)
		if len(found) != expected {
			t.Errorf("%d days: %v", days, found)
		}
		for _, line := range found {
			if line.Level() != "warn" || fmt.Sprint(line["days-left"], line["role"]) != fmt.Sprint(days, "client") {
				t.Errorf("%d days: %v", days, line)
			}
		}
	}
}

// A file of certificates that cannot be read to its end, as on a file system whose server
// is away, holds up nobody: a pipe without a writer is such a file. Handshakes continue with
// what is in use, and so does everything else; a file that can be read again counts again.
func TestFilesThatBlock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	local := func() tls.Certificate {
		return w.known.issue(holder{commonName: "server", addresses: []string{"127.0.0.1"}})
	}
	first, next := local(), local()
	dir := t.TempDir()
	pair := write(t, dir, "server", first)
	server := harness.Start(t, harness.Etched, harness.Options{
		Flags:      pair.flags(""),
		Encryption: harness.Encryption{ClientTLS: client(pool(w.known), nil)},
	})
	shown := func() (string, error) {
		conn, err := tls.DialWithDialer(from(""), "tcp", server.Endpoint(), client(pool(w.known), nil))
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
	}
	serial := func(pair tls.Certificate) string {
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.SerialNumber.String()
	}
	old := serial(first)
	open := server.Client(t)
	if _, err := open.Put(harness.Context(t, callLimit), "a", "1"); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := errors.Join(syscall.Mkfifo(pipe, 0o600), os.Link(pipe, pipe+".new"), os.Rename(pipe+".new", pair.certificate)); err != nil {
		t.Fatal(err)
	}
	// More than there are threads that serve.
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if seen, err := shown(); err != nil || seen != old {
				t.Errorf("within it: %s, %v", seen, err)
			}
		})
	}
	for range 20 {
		if _, err := open.Put(harness.Context(t, time.Second), "a", "2"); err != nil {
			t.Errorf("a connection that was open: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	all.Wait()
	if _, err := server.WaitLog(callLimit, 1, harness.Says("cannot tell in time whether the TLS files have changed; what they held before stays in use")); err != nil {
		t.Error(err)
	}
	write(t, dir, "server", next)
	writer, err := os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("nobody reads the file: %v", err)
	}
	_ = writer.Close()
	deadline := time.Now().Add(callLimit)
	for {
		seen, err := shown()
		if err == nil && seen == serial(next) {
			break
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("afterwards: %s, %v", seen, err)
		}
	}
}
