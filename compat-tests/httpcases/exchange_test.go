// Package httpcases sends the same plain HTTP requests, byte for byte, to
// etched and to etcd v3.7.3 and compares what comes back: status line, headers
// and body.
//
// Requests are written by hand rather than by net/http, so that targets and
// headers that a proper client would mend arrive as they are.
package httpcases

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	"github.com/google/go-cmp/cmp"
)

// answerLimit is longer than the longest wait a health check makes.
const answerLimit = 12 * time.Second

// ask is one request. Headers are whole lines; without a Host among them the
// usual one is sent.
type ask struct {
	method, target string
	headers        []string
	body           string
}

func (a ask) String() string {
	return strings.Join(append([]string{a.method + " " + a.target}, a.headers...), " | ")
}

func (a ask) bytes() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s HTTP/1.1\r\n", a.method, a.target)
	if !slices.ContainsFunc(a.headers, func(line string) bool { return strings.HasPrefix(line, "Host") }) {
		text.WriteString("Host: probe\r\n")
	}
	for _, line := range a.headers {
		if line != "Host" {
			text.WriteString(line + "\r\n")
		}
	}
	if a.body != "" {
		fmt.Fprintf(&text, "Content-Length: %d\r\n", len(a.body))
	}
	return text.String() + "\r\n" + a.body
}

// reply is what is compared.
type reply struct {
	Status string
	Header http.Header
	Body   string
}

// connection is one TCP connection on which requests follow each other.
type connection struct {
	net.Conn
	reader *bufio.Reader
}

func dial(address string) (*connection, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return &connection{conn, bufio.NewReader(conn)}, nil
}

func (c *connection) exchange(a ask) (reply, error) {
	if err := c.SetDeadline(time.Now().Add(answerLimit)); err != nil {
		return reply{}, err
	}
	if _, err := io.WriteString(c, a.bytes()); err != nil {
		return reply{}, err
	}
	response, err := http.ReadResponse(c.reader, &http.Request{Method: a.method})
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return reply{}, err
	}
	header := response.Header.Clone()
	header.Del("Date")
	if response.Close {
		header.Set("Connection", "close")
	}
	return reply{response.Status, header, string(body)}, nil
}

// send makes one request on a connection of its own.
func send(address string, a ask) (reply, error) {
	c, err := dial(address)
	if err != nil {
		return reply{}, err
	}
	defer c.Close()
	return c.exchange(a)
}

// addresses are where the two servers listen.
type addresses struct{ etched, etcd string }

func clientPorts(duo *harness.Duo) addresses {
	return addresses{duo.Etched.Endpoint(), duo.Etcd.Endpoint()}
}

// compare makes the request on both and answers etcd's reply.
func (a addresses) compare(t *testing.T, asked ask, tidies ...func(*reply)) reply {
	t.Helper()
	ours, err := send(a.etched, asked)
	if err != nil {
		t.Errorf("%v: etched: %v", asked, err)
		return reply{}
	}
	theirs, err := send(a.etcd, asked)
	if err != nil {
		t.Fatalf("%v: etcd: %v", asked, err)
	}
	for _, tidy := range append(tidies, checkOrder(asked)) {
		tidy(&ours)
		tidy(&theirs)
	}
	if theirs.Header.Get("Content-Length") == "" {
		// etcd leaves it out of long and of headless answers; what is there may stay.
		ours.Header.Del("Content-Length")
	}
	if diff := cmp.Diff(ours, theirs); diff != "" {
		t.Errorf("%v (-etched +etcd)\n%s", asked, diff)
	}
	return theirs
}

// checkOrder sorts the lines of readiness checks, which etcd makes in no order.
func checkOrder(asked ask) func(*reply) {
	return func(r *reply) {
		if !strings.HasPrefix(asked.target, "/readyz") {
			return
		}
		lines := strings.SplitAfter(r.Body, "\n")
		checks := 0
		for checks < len(lines) && strings.HasPrefix(lines[checks], "[") {
			checks++
		}
		slices.Sort(lines[:checks])
		r.Body = strings.Join(lines, "")
	}
}

// wants fails unless etcd's reply has this status: it keeps a case from
// comparing two answers to something it is not about.
func wants(t *testing.T, asked ask, got reply, status int) {
	t.Helper()
	if !strings.HasPrefix(got.Status, fmt.Sprint(status)) {
		t.Errorf("%v: etcd answers %q, this case is about %d", asked, got.Status, status)
	}
}

func get(target string, headers ...string) ask {
	return ask{method: "GET", target: target, headers: headers}
}
