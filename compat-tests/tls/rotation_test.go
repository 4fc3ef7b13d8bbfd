package tls

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// settles is how long a load runs on after each change.
const settles = 300 * time.Millisecond

// shownBy answers the serial number of the certificate that a member shows.
func (s *secured) shownBy(address string) string {
	s.t.Helper()
	connection, err := tls.Dial("tcp", address, s.client())
	if err != nil {
		s.t.Fatal(err)
	}
	defer connection.Close()
	return connection.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// reconnect ends a member's connections with the others, so that handshakes are made
// with the files of now. No request is under way meanwhile: what is lost with a
// connection between members may fail, and is not what is tried here.
func (s *secured) reconnect(load *workload, member *harness.Member) {
	s.t.Helper()
	load.hold(func() {
		s.cluster.SetLinks(member, s.cluster.Others(member), harness.Link{Cut: true})
		s.cluster.Heal()
		if err := s.cluster.WaitHealthy(20 * time.Second); err != nil {
			s.t.Error(err)
		}
	})
	time.Sleep(settles)
}

// Certificates, authorities and lists of revoked certificates are replaced under load,
// no member restarts, and no request fails.
func TestRotation(t *testing.T) {
	t.Parallel()
	s := &secured{t: t, dir: t.TempDir()}
	old, next := newAuthority(t, s.dir, "old"), newAuthority(t, s.dir, "new")
	s.prepare(old)
	former := person{old.issue(holder{commonName: "client"}), pool(old)}
	s.shown.Store(&former)
	s.start()
	if err := s.cluster.Lead(s.cluster.Members()[0], 20*time.Second); err != nil {
		t.Fatal(err)
	}
	load := s.load()
	defer func() {
		load.finish(t)
		if err := s.cluster.WaitHealthy(20 * time.Second); err != nil {
			t.Error(err)
		}
	}()
	each := func(what string, change func(member int)) {
		t.Helper()
		for number, member := range s.cluster.Members() {
			t.Logf("%s: %s of %s", time.Now().Format(time.StampMilli), what, member.Name())
			change(number)
			time.Sleep(settles)
			s.reconnect(load, member)
		}
	}
	newPairs := func(by *authority) {
		t.Helper()
		seen := map[string]bool{}
		for _, member := range s.cluster.Members() {
			seen[s.shownBy(member.Endpoint())] = true
		}
		each("new pairs", func(member int) { s.certify(member, by) })
		for _, member := range s.cluster.Members() {
			if shown := s.shownBy(member.Endpoint()); seen[shown] {
				t.Errorf("%s shows the old certificate", member.Name())
			}
		}
	}
	newPairs(old)
	s.broken(load, s.cluster.Members()[1], 1)

	once := old.issue(holder{commonName: "once"})
	isIn := func(member *harness.Member) bool {
		return strings.HasPrefix(http1(from(""), member.Endpoint(), client(pool(old), &once), "/version"), "200")
	}
	for _, list := range []struct {
		name    string
		revoked []tls.Certificate
	}{{"a list of one", []tls.Certificate{once}}, {"a list of others", []tls.Certificate{old.local(), old.local()}}} {
		each(list.name, func(member int) { old.revokes(s.list(member), list.revoked...) })
		for _, member := range s.cluster.Members() {
			if in := isIn(member); in != (len(list.revoked) > 1) {
				t.Errorf("%s: %s lets the one in that is revoked: %t", list.name, member.Name(), in)
			}
		}
	}

	// The way of docs/SECURITY.md.
	both := person{former.pair, pool(old, next)}
	s.shown.Store(&both)
	each("both authorities", func(member int) { s.trust(member, old, next) })
	renewed := person{next.issue(holder{commonName: "client"}), both.trusted}
	s.shown.Store(&renewed)
	newPairs(next)
	latter := person{renewed.pair, pool(next)}
	s.shown.Store(&latter)
	each("the new authority alone", func(member int) { s.trust(member, next) })

	for i, member := range s.cluster.Members() {
		if seen := http1(from(""), member.Endpoint(), client(pool(next), &former.pair), "/version"); seen != "remote error: tls: unknown certificate authority" {
			t.Errorf("a client of the old authority: %s", seen)
		}
		for _, line := range rejections(t, member.Server, "127.0.0.1") {
			// Those that `reconnect` ended in the middle of a handshake are not meant.
			reason := fmt.Sprint(line["error"])
			if line.Msg() == "rejected connection on peer endpoint" && (strings.HasPrefix(reason, "tls:") || strings.HasPrefix(reason, "x509:")) {
				t.Errorf("m%d: %v", i+1, line)
			}
		}
	}
	// A member comes back with the new files only.
	follower := s.cluster.Members()[2]
	load.pause(follower, func() {
		if err := follower.Server.Stop(); err != nil {
			t.Error(err)
		}
		if err := follower.Restart(); err != nil {
			t.Error(err)
		}
		if err := s.cluster.WaitHealthy(20 * time.Second); err != nil {
			t.Error(err)
		}
	})
}

// broken replaces files of a member by what is none: what was in use stays so, and
// the log says why, once.
func (s *secured) broken(load *workload, member *harness.Member, number int) {
	s.t.Helper()
	// How many read it: the authorities are those of clients, of members that call and
	// of those that are called.
	for name, readers := range map[string]int{"server.crt": 1, "peer.key": 2, "ca.crt": 3, "revoked.crl": 3} {
		path := filepath.Join(s.memberDir(number), name)
		content, err := os.ReadFile(path)
		if err != nil {
			s.t.Fatal(err)
		}
		shown := s.shownBy(member.Endpoint())
		const warning = "cannot use the changed TLS files; what they held before stays in use"
		before, err := member.Log()
		if err != nil {
			s.t.Fatal(err)
		}
		warned := len(harness.Says(warning)(before))
		replace(s.t, path, []byte("-----BEGIN NOTHING-----\n"))
		s.reconnect(load, member)
		if now := s.shownBy(member.Endpoint()); now != shown {
			s.t.Errorf("%s: %s shows another certificate", name, member.Name())
		}
		lines, err := member.WaitLog(2*callLimit, warned+1, harness.Says(warning))
		if err != nil {
			s.t.Errorf("%s: %v", name, err)
		} else if reason := fmt.Sprint(lines[len(lines)-1]["error"]); reason == "" || lines[len(lines)-1].Level() != "warn" {
			s.t.Errorf("%s: %v", name, lines[len(lines)-1])
		}
		if len(lines) > warned+readers {
			s.t.Errorf("%s: %d lines within a minute", name, len(lines)-warned)
		}
		replace(s.t, path, content)
		s.reconnect(load, member)
	}
}
