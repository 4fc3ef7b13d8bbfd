package tls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
)

// leisure is how long an exchange may take before what ends it may be a server's own
// limit: etcd's for reading from a member is 5 s.
const leisure = 3 * time.Second

// lets answers what a server makes of a caller at the port of members: it answers a
// request, or refuses. That it says nothing for a while would not tell: a name in a
// certificate may have to be looked up first.
func lets(dialler *net.Dialer, address string, config *tls.Config) string {
	for tries := 1; ; tries++ {
		began := time.Now()
		answer := http1(dialler, address, config, "/version")
		if strings.HasPrefix(answer, "200") {
			return "in"
		}
		if time.Since(began) < leisure || tries == 5 {
			return answer
		}
	}
}

// Who may call the port of members: certificates of the right authority, which say
// that their holder is where it calls from, or nothing of it.
func TestPeersThatCall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const here, elsewhere = "127.0.0.1", "127.0.3.7"
	callers := map[string]*tls.Certificate{"nobody": nil}
	for name, h := range map[string]holder{
		"of this address":          {commonName: "a", addresses: []string{here}},
		"of another address":       {commonName: "a", addresses: []string{"10.0.0.7"}},
		"of both":                  {commonName: "b", addresses: []string{"10.0.0.7", here}},
		"of IPv6":                  {commonName: "b", addresses: []string{"::1"}},
		"of the mapped address":    {commonName: "a", addresses: []string{"::ffff:127.0.0.1"}},
		"of no address":            {commonName: "a"},
		"of no address and name":   {},
		"localhost":                {commonName: "c", names: []string{"localhost"}},
		"localhost and another":    {commonName: "a", names: []string{"localhost"}, addresses: []string{"10.0.0.7"}},
		"a name that is not there": {commonName: "a", names: []string{"nothing.invalid"}},
		"a star":                   {commonName: "a", names: []string{"*.nothing.invalid"}},
		"a star of nothing":        {commonName: "a", names: []string{"*"}},
		"a server":                 {commonName: "a", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		"a client":                 {commonName: "a", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		"expired":                  {commonName: "a", begins: -2 * time.Hour, ends: -time.Minute},
		"member.test":              {commonName: "c", names: []string{"localhost", "member.test"}},
	} {
		pair := w.known.issue(h)
		callers[name] = &pair
	}
	other := w.other.issue(holder{commonName: "a", addresses: []string{here}})
	callers["of another authority"] = &other
	trusted := []string{"--peer-trusted-ca-file=" + w.known.file, "--peer-client-cert-auth"}
	for name, flags := range map[string][]string{
		"nothing":             nil,
		"certificates":        trusted[:1],
		"authentication":      trusted,
		"addresses no matter": append(trusted, "--peer-skip-client-san-verification"),
		"allowed names":       append(trusted, "--peer-cert-allowed-cn=a,b"),
		"allowed host names":  append(trusted, "--peer-cert-allowed-hostname=other.test,member.test"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			duo := harness.StartDuo(t, harness.Options{
				Flags: append(w.server.flags("peer-"), flags...), Encryption: harness.Encryption{PeerTLS: true},
			})
			verdicts := map[string]int{}
			for _, who := range slices.Sorted(maps.Keys(callers)) {
				sources := [2]string{here, elsewhere}
				var seen [2][2]string
				var asked sync.WaitGroup
				for at, source := range sources {
					for side, server := range []*harness.Server{duo.Etched, duo.Etcd} {
						asked.Go(func() {
							seen[at][side] = lets(from(source), server.PeerEndpoint(), client(pool(w.known), callers[who]))
						})
					}
				}
				asked.Wait()
				for at, source := range sources {
					verdicts[seen[at][1]]++
					if seen[at][0] != seen[at][1] {
						t.Errorf("%s from %s:\n-etched %s\n+etcd   %s", who, source, seen[at][0], seen[at][1])
					}
				}
			}
			if verdicts["in"] == 0 || flags != nil && len(verdicts) == 1 {
				t.Errorf("%v", verdicts)
			}
			if name != "authentication" {
				return
			}
			for i, who := range slices.Sorted(maps.Keys(callers)) {
				// Each from an address that the log has no line about.
				source := fmt.Sprintf("127.0.4.%d", i+1)
				var logged [2]string
				for side, server := range []*harness.Server{duo.Etched, duo.Etcd} {
					if lets(from(source), server.PeerEndpoint(), client(pool(w.known), callers[who])) != "in" {
						logged[side] = rejection(t, server, source)
					}
				}
				if logged[0] != logged[1] {
					t.Errorf("%s is logged:\n-etched %s\n+etcd   %s", who, logged[0], logged[1])
				}
			}
		})
	}
}

// Whom members call: the address is in the certificate, whose authority is known.
// What they show, and what they ask for, is seen here as the one that is called.
func TestPeersThatAreCalled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	trusted := []string{"--peer-trusted-ca-file=" + w.known.file, "--peer-client-cert-auth"}
	shown := write(t, w.dir, "shown", w.known.issue(holder{commonName: "shown", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}))
	here := holder{commonName: "a", addresses: []string{"127.0.0.1"}}
	for name, one := range map[string]struct {
		called   tls.Certificate
		flags    []string
		accepted bool
	}{
		"this address":      {w.known.issue(here), trusted, true},
		"another address":   {w.known.issue(holder{commonName: "127.0.0.1", addresses: []string{"10.0.0.7"}}), trusted, false},
		"a name":            {w.known.issue(holder{commonName: "127.0.0.1", names: []string{"localhost"}}), trusted, false},
		"its CN":            {w.known.issue(holder{commonName: "127.0.0.1"}), trusted, false},
		"another authority": {w.other.issue(here), trusted, false},
		"any authority":     {w.known.issue(here), nil, false},
		"a client":          {w.known.issue(holder{addresses: here.addresses, usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}), trusted, false},
		"expired":           {w.known.issue(holder{addresses: here.addresses, begins: -2 * time.Hour, ends: -time.Minute}), trusted, false},
		"allowed CN":        {w.known.issue(here), append(trusted, "--peer-cert-allowed-cn=b,a"), true},
		"not allowed CN":    {w.known.issue(here), append(trusted, "--peer-cert-allowed-cn=b"), false},
		"allowed host":      {w.known.issue(here), append(trusted, "--peer-cert-allowed-hostname=127.0.0.1"), true},
		"not allowed host":  {w.known.issue(here), append(trusted, "--peer-cert-allowed-hostname=a.test"), false},
		"its own to show":   {w.known.issue(here), append(trusted, "--peer-client-cert-file="+shown.certificate, "--peer-client-key-file="+shown.key), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var seen [2]string
			var called sync.WaitGroup
			for side, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
				called.Go(func() { seen[side] = w.calls(t, kind, one.called, one.flags) })
			}
			called.Wait()
			if seen[0] != seen[1] {
				t.Errorf("\n-etched %s\n+etcd   %s", seen[0], seen[1])
			}
			if accepted := strings.HasPrefix(seen[1], "accepted"); accepted != one.accepted {
				t.Errorf("etcd: %s", seen[1])
			}
		})
	}
}

// calls starts a member of two, is the other one, and answers what comes.
func (w *world) calls(t *testing.T, kind harness.Kind, shown tls.Certificate, flags []string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port, err := harness.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	own := fmt.Sprintf("https://127.0.0.1:%d", port)
	harness.Begin(t, kind, harness.Options{
		Name: "one", PeerURL: own, InitialCluster: "one=" + own + ",two=https://" + listener.Addr().String(),
		Flags: append(w.server.flags("peer-"), flags...), Encryption: harness.Encryption{PeerTLS: true},
	})
	for {
		if err := listener.(*net.TCPListener).SetDeadline(time.Now().Add(2 * callLimit)); err != nil {
			t.Fatal(err)
		}
		raw, err := listener.Accept()
		if err != nil {
			return "nobody calls"
		}
		defer raw.Close()
		connection := tls.Server(raw, &tls.Config{
			Certificates: []tls.Certificate{shown}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2"},
		})
		ctx, cancel := context.WithTimeout(context.Background(), callLimit)
		err = connection.HandshakeContext(ctx)
		cancel()
		if err != nil {
			return "refused"
		}
		state := connection.ConnectionState()
		if len(state.PeerCertificates) == 0 {
			return "accepted, shows nothing"
		}
		return fmt.Sprintf("accepted, shows %q, calls %q", state.PeerCertificates[0].Subject.CommonName, state.ServerName)
	}
}
