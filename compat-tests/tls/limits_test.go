package tls

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// A client that begins a handshake and does not go on is sent away after ten
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
