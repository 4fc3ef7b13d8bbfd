package httpcases

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// servedPort is where one server answers HTTP.
type servedPort struct {
	name, address string
	server        *harness.Server
}

// Heads of requests have a limit, on every port: one above it gets one answer that says
// so, and then the connection ends. etcd's is a megabyte, etched's 64 KiB and 100 lines.
func TestHeadsHaveALimit(t *testing.T) {
	t.Parallel()
	var at addresses
	var options harness.Options
	for address, flags := range map[*string]*[]string{&at.etched: &options.EtchedFlags, &at.etcd: &options.EtcdFlags} {
		port, err := harness.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		*address = fmt.Sprintf("127.0.0.1:%d", port)
		*flags = []string{"--listen-metrics-urls=http://" + *address}
	}
	duo := startDuo(t, options)
	ports := []servedPort{
		{"etched's for clients", duo.Etched.Endpoint(), duo.Etched}, {"etched's for metrics", at.etched, duo.Etched},
		{"etcd's for clients", duo.Etcd.Endpoint(), duo.Etcd}, {"etcd's for metrics", at.etcd, duo.Etcd},
	}
	for _, port := range ports {
		for _, one := range []struct {
			bytes int
			// Many short lines and few long ones.
			lineBytes    int
			etched, etcd int
		}{
			{1 << 10, 100, 200, 200}, {8 << 10, 100, 200, 200}, {32 << 10, 16 << 10, 200, 200},
			{16 << 10, 100, 431, 200}, {128 << 10, 16 << 10, 431, 200},
			{2 << 20, 64 << 10, 431, 431}, {2 << 20, 1 << 20, 431, 431},
		} {
			status := one.etched
			if port.server.Kind() == harness.Etcd {
				status = one.etcd
			}
			seen := port.head(t, one.bytes, one.lineBytes)
			if !strings.HasPrefix(seen, fmt.Sprint(status)) {
				t.Errorf("%s: a head of %d bytes in lines of %d: %s, not %d", port.name, one.bytes, one.lineBytes, seen, status)
			}
		}
	}
	for _, port := range ports[:2] {
		port.endless(t)
	}
}

// head answers the status of a request whose head has so many bytes, of which the
// connection must end if it was refused and not otherwise.
func (p servedPort) head(t *testing.T, bytes, lineBytes int) string {
	t.Helper()
	conn, err := net.Dial("tcp", p.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(answerLimit)); err != nil {
		t.Fatal(err)
	}
	var head strings.Builder
	head.WriteString("GET /health HTTP/1.1\r\nHost: probe\r\n")
	for line := 0; head.Len() < bytes; line++ {
		name := fmt.Sprintf("X-%d: ", line)
		head.WriteString(name + strings.Repeat("x", lineBytes-len(name)-2) + "\r\n")
	}
	head.WriteString("\r\n")
	// It may end before all was sent.
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(conn, head.String())
		sent <- err
	}()
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return err.Error()
	}
	_, err = io.Copy(io.Discard, response.Body)
	if response.StatusCode == http.StatusOK {
		if err := errors.Join(err, <-sent); err != nil {
			return err.Error()
		}
		return response.Status
	}
	// What was on its way when it ended is answered with a reset, which may cost the body.
	rest, atEnd := io.ReadAll(reader)
	err = errors.Join(err, atEnd)
	if len(rest) > 0 || err != nil && !strings.Contains(err.Error(), "reset") {
		return fmt.Sprintf("%s, and then %q, %v", response.Status, rest, err)
	}
	return response.Status
}

// endless has many clients send heads that do not end, as much as is taken of them: that
// is little, and costs little.
func (p servedPort) endless(t *testing.T) {
	t.Helper()
	const (
		clients   = 64
		mostBytes = 64 << 20
		// A head, what sockets hold, and what an allocator keeps.
		eachMayCost = 512 << 10
	)
	before, err := p.server.ResidentBytes()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.server.ResetPeak(); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			conn, err := net.Dial("tcp", p.address)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(answerLimit))
			sent, _ := io.WriteString(conn, "GET /health HTTP/1.1\r\nHost: probe\r\nX-Long: ")
			piece := []byte(strings.Repeat("x", 64<<10))
			for sent < mostBytes {
				n, err := conn.Write(piece)
				sent += n
				if err != nil {
					break
				}
			}
			if sent >= mostBytes {
				t.Errorf("%s takes a head of %d bytes", p.name, sent)
			}
		})
	}
	all.Wait()
	peak, err := p.server.PeakResidentBytes()
	if err != nil {
		t.Fatal(err)
	}
	if grown := peak - before; grown > clients*eachMayCost {
		t.Errorf("%s: %d heads without an end took %d KiB", p.name, clients, grown>>10)
	}
	if seen := p.head(t, 1<<10, 100); !strings.HasPrefix(seen, "200") {
		t.Errorf("%s afterwards: %s", p.name, seen)
	}
}

// Who sends a head a byte at a time has half a minute for it, however steadily the bytes
// come; so has who sends nothing between two requests, and such a connection ends without
// an answer that nobody asked for.
func TestSlowHeads(t *testing.T) {
	t.Parallel()
	const limit, longest = 30 * time.Second, 40 * time.Second
	metrics, err := harness.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	at := fmt.Sprintf("127.0.0.1:%d", metrics)
	server := harness.Start(t, harness.Etched, harness.Options{Flags: []string{"--listen-metrics-urls=http://" + at}})
	var all sync.WaitGroup
	inTime := func(address, what string, began time.Time) {
		if took := time.Since(began); took < limit-time.Second || took >= longest {
			t.Errorf("%s: %s had %v", address, what, took)
		}
	}
	for _, address := range []string{server.Endpoint(), at} {
		idle, err := dial(address)
		if err != nil {
			t.Fatal(err)
		}
		defer idle.Close()
		if got, err := idle.exchange(get("/health")); err != nil || got.Status != "200 OK" {
			t.Fatalf("%s: %v, %v", address, got, err)
		}
		all.Go(func() {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			began := time.Now()
			ended := make(chan struct{})
			go func() {
				// The end shows here, whatever is written.
				_ = conn.SetReadDeadline(began.Add(longest))
				_, _ = io.Copy(io.Discard, conn)
				close(ended)
			}()
			_, _ = io.WriteString(conn, "GET /health HTTP/1.1\r\nX-Slow: ")
			for {
				select {
				case <-ended:
					inTime(address, "a slow head", began)
					return
				case <-time.After(300 * time.Millisecond):
					_, _ = conn.Write([]byte("x"))
				}
			}
		})
		all.Go(func() {
			began := time.Now()
			_ = idle.SetReadDeadline(began.Add(longest))
			if more, err := io.ReadAll(idle.reader); err != nil || len(more) > 0 {
				t.Errorf("%s: an idle connection: %q, %v", address, more, err)
			}
			inTime(address, "an idle connection", began)
		})
	}
	all.Wait()
}
