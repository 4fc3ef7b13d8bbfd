package tls

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
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
