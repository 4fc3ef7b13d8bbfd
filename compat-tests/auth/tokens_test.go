package auth

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// A simple token lives as long as it is used, and not over a restart.
func TestSimpleTokens(t *testing.T) {
	t.Parallel()
	p := newPair(t, harness.Options{Flags: []string{"--auth-token-ttl=2"}})
	p.enable(rights)
	// etcd looks for tokens that have expired once a second.
	const ttl, late = 2 * time.Second, time.Second
	begun, used := time.Now(), time.Now()
	for time.Since(begun) < 2*(ttl+late) {
		time.Sleep(ttl / 3)
		if time.Since(used) > ttl {
			// A machine that is so busy lets it expire.
			p.login("limited", "limited")
			begun = time.Now()
		}
		p.ok("limited", get("a1", ""))
		used = time.Now()
	}
	p.fails("reader", get("a1", ""), "invalid auth token")
	// Each use of one that has not expired yet renews it.
	for range 5 {
		time.Sleep(ttl + late + 200*time.Millisecond)
		answered := p.both(func(side int) harness.Outcome {
			return harness.Invoke(p.as("limited", side), p.conn[side], get("a1", ""))
		})
		if answered[etched].Err != nil && answered[etcd].Err != nil {
			break
		}
	}
	p.fails("limited", get("a1", ""), "invalid auth token")
	p.login("limited", "limited")
	p.ok("limited", get("a1", ""))
	// Of another auth revision it is still good, since it takes the one of now.
	p.login("root", "root")
	p.ok("root", &pb.AuthRoleAddRequest{Name: "more"})
	p.ok("limited", get("a1", ""))
	p.ok("limited", put("a1", 0, false))
	p.duo.Each(func(server *harness.Server) { restart(t, server) })
	p.connect()
	p.fails("limited", get("a1", ""), "invalid auth token")
	p.ok(anyone, &pb.AuthStatusRequest{})
	p.login("limited", "limited")
	p.ok("limited", get("a1", ""))
}

// A token that says it is of an entry far ahead holds no call: etcd's waits as
// long as its client.
func TestTokenOfTheFuture(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{Flags: []string{cheap}})
	p := &pair{t: t, duo: &harness.Duo{Etched: server, Etcd: server}, tokens: map[string][2]string{}}
	p.connect()
	for _, request := range []proto.Message{
		userAdd("root", "root"), &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}, &pb.AuthEnableRequest{},
	} {
		if outcome := harness.Invoke(context.Background(), p.conn[etched], request); outcome.Err != nil {
			t.Fatal(outcome.Err)
		}
	}
	for _, index := range []string{"999", "18446744073709551615"} {
		began := time.Now()
		outcome := harness.Invoke(p.as("token:abcdefghijklmnop."+index, etched), p.conn[etched], get("a", ""))
		if text := harness.ErrorText(outcome.Err); text != "Unauthenticated: etcdserver: invalid auth token" {
			t.Error(text)
		}
		if took := time.Since(began); took > harness.CallLimit/2 {
			t.Errorf("%s took %v", index, took)
		}
	}
}

// writeKeys writes the pair of a key and answers the flag that names it, with
// and without what signs.
func writeKeys(t *testing.T, dir, method string) (both, public string) {
	t.Helper()
	write := func(name, kind string, der []byte, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		content := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	flag := "--auth-token=jwt,ttl=10m,sign-method=" + method
	var private, open any
	var err error
	switch method {
	case "HS256":
		path := filepath.Join(dir, "secret")
		if err := os.WriteFile(path, []byte(rand.Text()), 0o600); err != nil {
			t.Fatal(err)
		}
		return flag + ",priv-key=" + path, ""
	case "RS256", "PS384":
		var key *rsa.PrivateKey
		key, err = rsa.GenerateKey(rand.Reader, 2048)
		private, open = key, &key.PublicKey
	case "ES256", "ES512":
		curve := map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES512": elliptic.P521()}[method]
		var key *ecdsa.PrivateKey
		key, err = ecdsa.GenerateKey(curve, rand.Reader)
		private, open = key, &key.PublicKey
	case "EdDSA":
		open, private, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	privatePath := write("private", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(open)
	publicPath := write("public", "PUBLIC KEY", der, err)
	return fmt.Sprintf("%s,priv-key=%s,pub-key=%s", flag, privatePath, publicPath), flag + ",pub-key=" + publicPath
}

// Signed tokens of either server are valid at the other, as of the auth revision
// that is in them.
func TestSignedTokens(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"HS256", "RS256", "PS384", "ES256", "ES512", "EdDSA"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			flag, verifying := writeKeys(t, t.TempDir(), method)
			p := newPair(t, harness.Options{Flags: []string{flag}})
			p.enable(rights)
			own := p.tokens["limited"]
			p.tokens["other's"] = [2]string{own[etcd], own[etched]}
			for _, who := range []string{"limited", "other's"} {
				p.ok(who, put("a1", 0, false))
				p.ok(who, get("a1", ""))
				p.fails(who, get("x", ""), "permission denied")
				p.do("token:"+own[etched][:len(own[etched])-4], get("a1", ""))
			}
			// A change takes what is asked of keys from all tokens, and nothing else.
			p.ok("root", &pb.AuthRoleAddRequest{Name: "more"})
			for _, who := range []string{"limited", "other's", "root"} {
				for _, request := range []proto.Message{
					get("a1", ""), put("a1", 0, false), del("a1", "", false), txn(nil, get("a1", ""), nil), txn(nil, put("a1", 0, false), nil),
					&pb.LeaseGrantRequest{ID: 77, TTL: 60}, &pb.MemberListRequest{}, &pb.StatusRequest{}, &pb.AuthUserGetRequest{Name: "limited"},
					&pb.LeaseTimeToLiveRequest{ID: 1234, Keys: true}, &pb.LeaseRevokeRequest{ID: 77},
				} {
					p.do(who, request)
				}
			}
			p.fails("limited", get("a1", ""), "revision of auth store is old")
			p.ok("root", &pb.AuthUserListRequest{})
			p.login("limited", "limited")
			p.ok("limited", get("a1", ""))
			// They outlive a restart, with the key for verifying alone as well.
			if verifying == "" {
				return
			}
			q := newPair(t, harness.Options{Flags: []string{verifying}})
			q.ok(anyone, userAdd("root", "root"))
			q.ok(anyone, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"})
			q.ok(anyone, &pb.AuthEnableRequest{})
			q.fails(anyone, &pb.AuthenticateRequest{Name: "root", Password: "root"}, "auth: token signing attempted with verify-only key")
			q.fails(anyone, &pb.AuthenticateRequest{Name: "root", Password: "no"}, "authentication failed")
			q.tokens = p.tokens
			q.ok("root", &pb.AuthUserListRequest{})
		})
	}
}

// Where keys were changed old tokens are refused, and clients log in again by
// themselves.
func TestRotatedKeys(t *testing.T) {
	t.Parallel()
	dirs := [2]string{t.TempDir(), t.TempDir()}
	flag, _ := writeKeys(t, dirs[0], "ES256")
	writeKeys(t, dirs[1], "ES256")
	p := newPair(t, harness.Options{Flags: []string{flag}})
	p.enable(rights)
	var clients [2]*clientv3.Client
	for side, server := range []*harness.Server{p.duo.Etched, p.duo.Etcd} {
		client, err := clientv3.New(clientv3.Config{
			Endpoints: []string{server.Endpoint()}, Username: "limited", Password: "limited", Logger: zap.NewNop(), DialTimeout: 10 * time.Second,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		clients[side] = client
	}
	for _, name := range []string{"private", "public"} {
		if err := os.Rename(filepath.Join(dirs[1], name), filepath.Join(dirs[0], name)); err != nil {
			t.Fatal(err)
		}
	}
	p.ok("limited", get("a1", ""))
	p.duo.Each(func(server *harness.Server) { restart(t, server) })
	p.connect()
	p.fails("limited", get("a1", ""), "invalid auth token")
	for side, client := range clients {
		if _, err := client.Get(harness.Context(t, 15*time.Second), "a1"); err != nil {
			t.Errorf("%d: %v", side, err)
		}
	}
}

// Without tokens of any kind nobody can log in, and leases expire all the same,
// and the probes answer: what members do themselves needs no token.
func TestMembersNeedNoToken(t *testing.T) {
	t.Parallel()
	_, verifying := writeKeys(t, t.TempDir(), "ES256")
	for _, flag := range []string{"--auth-token=", verifying} {
		server := harness.Start(t, harness.Etched, harness.Options{Flags: []string{cheap, flag}})
		conn := server.Dial(t)
		ctx := harness.Context(t, 60*time.Second)
		for _, request := range []proto.Message{
			// It must not end before what comes next is done.
			&pb.LeaseGrantRequest{ID: 7, TTL: 8}, put("x", 7, false),
			userAdd("root", "root"), &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}, &pb.AuthEnableRequest{},
		} {
			if outcome := harness.Invoke(ctx, conn, request); outcome.Err != nil {
				t.Fatal(outcome.Err)
			}
		}
		if outcome := harness.Invoke(ctx, conn, &pb.AuthenticateRequest{Name: "root", Password: "root"}); outcome.Err == nil {
			t.Error("logged in")
		}
		for _, path := range []string{"/health", "/livez", "/readyz"} {
			if code, body, err := server.HTTPGet(path); err != nil || code != 200 {
				t.Errorf("%s: %d %s %v", path, code, body, err)
			}
		}
		const metric = "etcd_debugging_server_lease_expired_total 1"
		for {
			_, body, err := server.HTTPGet("/metrics")
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(body, metric) {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("%s: the lease does not expire", flag)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// No password is in a log or on the disk, not even where everything is logged,
// nor are tokens and hashes in a log.
func TestPasswordsAreNowhere(t *testing.T) {
	t.Parallel()
	server := harness.Start(t, harness.Etched, harness.Options{Flags: []string{
		cheap, "--log-level=debug", "--warning-unary-request-duration=1ns", "--warning-apply-duration=1ns",
	}})
	conn := server.Dial(t)
	const secret = "hunter2hunter2"
	var token string
	for _, request := range []proto.Message{
		userAdd("root", secret+"1"), &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"},
		&pb.AuthUserChangePasswordRequest{Name: "root", Password: secret + "2"},
		&pb.AuthEnableRequest{}, &pb.AuthenticateRequest{Name: "root", Password: secret + "2"},
		&pb.AuthenticateRequest{Name: "root", Password: secret + "3"},
		&pb.AuthenticateRequest{Name: secret[:2], Password: secret + "4"},
	} {
		outcome := harness.Invoke(harness.Context(t, 20*time.Second), conn, request)
		if login, ok := outcome.Message.(*pb.AuthenticateResponse); ok && outcome.Err == nil {
			token = login.Token
		}
	}
	p := &pair{t: t}
	harness.Invoke(p.as("token:"+token, etched), conn, get("a", ""))
	harness.Invoke(p.as("token:"+token+"x", etched), conn, get("a", ""))
	if token == "" {
		t.Fatal("nobody logged in")
	}
	// The JSON gateway has them too, in what it understands and in what it does not.
	for body, status := range map[string]int{
		`{"name":"root","password":"` + secret + `2"}`:        200,
		`{"name":"root","password":"` + secret + `5"}`:        400,
		`{"name":"root","password":"` + secret + `6"`:         400,
		`{"name":"root","password":{"a":"` + secret + `7"}}`:  400,
		`{"name":"root","password":"` + secret + `8","x":[]}`: 400,
		`"` + secret + `9"`: 400,
	} {
		request, err := http.NewRequest("POST", server.URL()+"/v3/auth/authenticate", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", token)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != status {
			t.Errorf("%s: %s", body, response.Status)
		}
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(server.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{secret, token[:16], "$2a$", "JDJhJ"} {
		if at := bytes.Index(log, []byte(word)); at >= 0 {
			t.Errorf("%s is in the log: %.200s", word, log[max(0, at-100):])
		}
	}
	files := 0
	err = filepath.WalkDir(server.DataDir(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(secret)) {
			t.Errorf("a password is in %s", path)
		}
		files++
		return err
	})
	if err != nil || files < 3 {
		t.Errorf("%d files: %v", files, err)
	}
}
