package cases

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"etched.dev/compat-tests/harness"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// Command lines that are refused, each in the same words by both.
func TestRefusedCommandLines(t *testing.T) {
	t.Parallel()
	for _, args := range []string{
		"--bogus", "-bogus=1", "---name", "--name", "--heartbeat-interval=x", "--heartbeat-interval=-1", "--heartbeat-interval 1.5",
		"--pre-vote=maybe", "--initial-cluster-state=foo", "--quota-backend-bytes=lots", "--max-txn-ops=-1", "--max-concurrent-streams=99999999999",
		"--grpc-keepalive-min-time=5", "--watch-progress-notify-interval=soon", "--listen-client-urls=ftp://127.0.0.1:1",
		"--listen-client-urls=http://127.0.0.1", "--listen-client-urls=http://127.0.0.1:1/path", "--listen-peer-urls=http://example:1",
		"--heartbeat-interval=0", "--election-timeout=0", "--election-timeout=400", "--election-timeout=60000",
		"--auto-compaction-mode=foo", "--auto-compaction-mode=", "--auto-compaction-retention=foo", "--auto-compaction-mode=revision --auto-compaction-retention=x",
		"--listen-client-urls=http://127.0.0.1:1", "--name=b --initial-cluster=a=http://127.0.0.1:2380",
		"--initial-advertise-peer-urls=http://127.0.0.1:7", "--initial-advertise-peer-urls=http://:7", "--compact-hash-check-time=0s",
		"--logger=foo", "--log-format=xml", "--feature-gates=Foo=true", "--feature-gates=LeaseCheckpoint",
		"--config-file=/does/not/exist", "foo", "--snapshot-count=x", "--max-learners=-1",
	} {
		t.Run(args, func(t *testing.T) {
			words := strings.Fields(args)
			ours, theirs := harness.Exits(t, harness.Etched, nil, words), harness.Exits(t, harness.Etcd, nil, words)
			if ours != theirs {
				t.Errorf("\n-etched %+v\n+etcd   %+v", ours, theirs)
			}
			if theirs.Code == 0 || theirs.Code == -1 {
				t.Errorf("etcd takes it: %+v", theirs)
			}
		})
	}
}

func TestRefusedEnvironment(t *testing.T) {
	t.Parallel()
	for _, environment := range []string{"ETCD_HEARTBEAT_INTERVAL=x", "ETCD_HEARTBEAT_INTERVAL=0", "ETCD_NAME=b", "ETCD_AUTO_COMPACTION_MODE=foo"} {
		args := []string{"--initial-cluster=a=http://127.0.0.1:2380"}
		ours, theirs := harness.Exits(t, harness.Etched, []string{environment}, args), harness.Exits(t, harness.Etcd, []string{environment}, args)
		if ours != theirs {
			t.Errorf("%s\n-etched %+v\n+etcd   %+v", environment, ours, theirs)
		}
	}
	both := []string{"--heartbeat-interval=100"}
	ours, theirs := harness.Exits(t, harness.Etched, []string{"ETCD_HEARTBEAT_INTERVAL=100"}, both), harness.Exits(t, harness.Etcd, []string{"ETCD_HEARTBEAT_INTERVAL=100"}, both)
	if ours != theirs {
		t.Errorf("flag and variable\n-etched %+v\n+etcd   %+v", ours, theirs)
	}
}

// The first line of --version is etcd's, since scripts read that one; etched's own comes later.
func TestVersionAndHelp(t *testing.T) {
	t.Parallel()
	binary, err := harness.Binary(harness.Etched)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(binary, "--version").Output()
	lines := strings.Split(string(out), "\n")
	if err != nil || lines[0] != "etcd Version: 3.7.3" || !strings.Contains(string(out), "\nGit SHA: ") {
		t.Errorf("--version: %v\n%s", err, out)
	}
	for _, flag := range []string{"--help", "-h"} {
		ours, theirs := harness.Exits(t, harness.Etched, nil, []string{flag}), harness.Exits(t, harness.Etcd, nil, []string{flag})
		if ours.Code != theirs.Code {
			t.Errorf("%s exits with %d, etcd's with %d", flag, ours.Code, theirs.Code)
		}
	}
}

// All spellings of a flag, the environment and the file reach the same setting.
func TestWaysToSetAFlag(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "config.yml")
	for name, options := range map[string]harness.Options{
		"two dashes":  {Flags: []string{"--max-txn-ops=3"}},
		"one dash":    {Flags: []string{"-max-txn-ops=3"}},
		"next word":   {Flags: []string{"-max-txn-ops", "3"}},
		"last wins":   {Flags: []string{"--max-txn-ops=9", "--max-txn-ops=3"}},
		"environment": {Env: []string{"ETCD_MAX_TXN_OPS=3", "ETCD_NOTHING=known"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			three(t, options)
		})
	}
	t.Run("file", func(t *testing.T) {
		for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
			port, err := harness.FreePort()
			if err != nil {
				t.Fatal(err)
			}
			peer, err := harness.FreePort()
			if err != nil {
				t.Fatal(err)
			}
			content := fmt.Sprintf("name: from-file\ndata-dir: %s\nmax-txn-ops: 3\nlisten-client-urls: http://127.0.0.1:%d\nadvertise-client-urls: http://127.0.0.1:%d\n"+
				"listen-peer-urls: http://127.0.0.1:%d\ninitial-advertise-peer-urls: http://127.0.0.1:2380\ninitial-cluster: from-file=http://127.0.0.1:2380\nunknown-key: 1\n",
				filepath.Join(t.TempDir(), "data"), port, port, peer)
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			server := harness.Start(t, kind, harness.Options{Flags: []string{"--config-file=" + file, "--max-txn-ops=99"}, ClientPort: port})
			list := invoke(context.Background(), server.Dial(t), &pb.MemberListRequest{})
			if list.Err != nil || list.Message.(*pb.MemberListResponse).Members[0].Name != "from-file" {
				t.Errorf("%s: %v", kind, list)
			}
			limitIsThree(t, server)
		}
	})
}

func three(t *testing.T, options harness.Options) {
	t.Helper()
	harness.StartDuo(t, options).Each(func(server *harness.Server) { limitIsThree(t, server) })
}

func limitIsThree(t *testing.T, server *harness.Server) {
	t.Helper()
	conn := server.Dial(t)
	gets := ops(get("a"), get("a"), get("a"))
	if outcome := invoke(context.Background(), conn, txn(nil, gets, nil)); outcome.Err != nil {
		t.Errorf("%s: three operations: %v", server.Kind(), outcome.Err)
	}
	if text := harness.ErrorText(invoke(context.Background(), conn, txn(nil, append(gets, gets...), nil)).Err); text != tooManyOps {
		t.Errorf("%s: six operations: %s", server.Kind(), text)
	}
}

// Periodic compaction with a short period comes to the head once writes end.
func TestAutoCompactionPeriodic(t *testing.T) {
	t.Parallel()
	p := newPair(t, "--auto-compaction-mode=periodic", "--auto-compaction-retention=1s")
	began := time.Now()
	for time.Since(began) < 3*time.Second {
		p.ok(put("a", "1"))
		time.Sleep(50 * time.Millisecond)
	}
	head := p.revision()
	for i, conn := range p.conn {
		deadline := time.Now().Add(10 * time.Second)
		for {
			hash := invoke(context.Background(), conn, &pb.HashKVRequest{})
			if hash.Err == nil && hash.Message.(*pb.HashKVResponse).CompactRevision == head {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: not compacted to %d: %v", harness.Kind(i), head, hash)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	p.fails(compacted, &pb.RangeRequest{Key: []byte("a"), Revision: head - 1})
	p.do(&pb.RangeRequest{Key: []byte("a"), Revision: head})
}

// What is younger than the retention stays: etcd keeps up to a tenth more, never less. Writes
// continue all the time, so that there is always something that could be let go too early.
func TestAutoCompactionKeepsTheRetention(t *testing.T) {
	t.Parallel()
	const retention, watched = 8 * time.Second, 14 * time.Second
	p := newPair(t, "--auto-compaction-mode=periodic", fmt.Sprint("--auto-compaction-retention=", retention))
	for side, conn := range p.conn {
		t.Run(harness.Kind(side).String(), func(t *testing.T) {
			t.Parallel()
			type write struct {
				at       time.Time // when it was answered
				revision int64
			}
			var writes []write
			compacted := int64(0)
			for began := time.Now(); time.Since(began) < watched; time.Sleep(20 * time.Millisecond) {
				wrote := invoke(context.Background(), conn, put("a", "1"))
				// Asked for after the answer: what is compacted by then is older than now.
				hash := invoke(context.Background(), conn, &pb.HashKVRequest{})
				seen := time.Now()
				if wrote.Err != nil || hash.Err != nil {
					t.Fatal(wrote.Err, hash.Err)
				}
				writes = append(writes, write{seen, wrote.Message.(*pb.PutResponse).Header.Revision})
				compacted = max(compacted, hash.Message.(*pb.HashKVResponse).CompactRevision)
				for _, one := range writes {
					// A revision is superseded, and can be let go, once the next is made.
					if one.revision == compacted && seen.Sub(one.at) < retention {
						t.Fatalf("compacted to %d, which was made %v ago", compacted, seen.Sub(one.at).Round(10*time.Millisecond))
					}
				}
			}
			if compacted <= 0 {
				t.Errorf("nothing was compacted within %v", watched)
			}
		})
	}
}

// A retention that has not passed leaves everything; revision mode looks every
// five minutes only, so here it is just taken.
func TestAutoCompactionNotYet(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{
		{"--auto-compaction-retention=1"}, {"--auto-compaction-retention=30m"}, {"--auto-compaction-retention=0"},
		{"--auto-compaction-mode=revision", "--auto-compaction-retention=2"}, {"--auto-compaction-mode=revision", "--auto-compaction-retention=0"},
	} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			t.Parallel()
			p := newPair(t, flags...)
			history(p)
			p.do(&pb.HashKVRequest{})
			p.do(&pb.RangeRequest{Key: []byte("a"), Revision: 2})
		})
	}
}

// Everything is there again after a stop and after a kill.
func TestStateOverRestarts(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.waitClusterVersion()
	me := p.ok(&pb.MemberListRequest{}).(*pb.MemberListResponse).Members[0].ID
	look := func() {
		for _, request := range []proto.Message{everything(), &pb.HashKVRequest{}, alarm(getAlarms, 0, 0), &pb.MemberListRequest{}} {
			p.do(request)
		}
		p.do(timeToLive(1), withoutRemaining, sortedKeys)
		for revision := int64(1); revision <= p.revision(); revision++ {
			p.do(&pb.RangeRequest{Key: []byte("\x00"), RangeEnd: []byte("\x00"), Revision: revision})
		}
		w := p.watch()
		request := watchSpan("\x00", "\x00", 15)
		request.PrevKv = true
		w.create(0, request)
		w.events(0, p.revision())
	}
	p.ok(grant(1, 1000))
	for round := range 3 {
		p.ok(leased(fmt.Sprint("leased", round), "v", 1))
		history(p)
		if round == 1 {
			p.ok(compact(12))
			p.ok(alarm(activate, me, pb.AlarmType_NOSPACE))
			look()
			p.ok(alarm(deactivate, me, pb.AlarmType_NOSPACE))
		}
		if round == 0 {
			duoRestart(p)
		} else {
			p.duo.Each(func(server *harness.Server) {
				if err := errors.Join(server.Kill(), server.Restart()); err != nil {
					t.Fatal(err)
				}
			})
			for _, conn := range p.conn {
				conn.ResetConnectBackoff()
			}
			p.waitConnected()
		}
		if round > 0 {
			look()
		}
	}
}

// A member answers nobody before its name and client URLs are known to the
// cluster.
func TestFirstAnswerOfAFreshMember(t *testing.T) {
	t.Parallel()
	for range 4 {
		for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
			server := harness.Start(t, kind, harness.Options{})
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(server.DataDir()); err != nil {
				t.Fatal(err)
			}
			if err := server.Spawn(); err != nil {
				t.Fatal(err)
			}
			conn := server.Dial(t)
			deadline := time.Now().Add(callLimit)
			for {
				list := invoke(context.Background(), conn, &pb.MemberListRequest{})
				if list.Err == nil {
					if member := list.Message.(*pb.MemberListResponse).Members[0]; member.Name == "" || len(member.ClientURLs) == 0 {
						t.Errorf("%s: the first answer tells of %v", kind, member)
					}
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s: %v", kind, list.Err)
				}
				conn.ResetConnectBackoff()
				time.Sleep(time.Millisecond)
			}
		}
	}
}

// Either signal stops a member in order, whatever its clients are doing, and is what it dies of.
func TestSignals(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			p.ok(put("a", "1"))
			p.duo.Each(func(server *harness.Server) {
				if err := server.Signal(signal); err != nil {
					t.Fatal(err)
				}
				select {
				case <-server.Exited():
				case <-time.After(30 * time.Second):
					t.Fatalf("%s runs on 30 s after %v", server.Kind(), signal)
				}
				// To systemd an end by these signals is a clean one, an exit with 143 is none.
				if ended := server.EndedBy(); ended != signal {
					t.Errorf("%s ends by signal %d after %v: %v", server.Kind(), ended, signal, server.ProcessState())
				}
				if err := server.Restart(); err != nil {
					t.Fatal(err)
				}
			})
			p.waitConnected()
			p.do(everything())
		})
	}
}

// A supervisor is notified once the member serves, through a socket in the file system or one
// that has a name only.
func TestNotification(t *testing.T) {
	t.Parallel()
	harness.OfSingleServers(t)
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		for place, name := range map[string]string{
			"a path": filepath.Join(t.TempDir(), "notify"),
			"a name": fmt.Sprintf("@compat-%d-%s", os.Getpid(), kind),
		} {
			t.Run(fmt.Sprint(kind, " ", place), func(t *testing.T) {
				t.Parallel()
				socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
				if err != nil {
					t.Fatal(err)
				}
				defer socket.Close()
				server := harness.Start(t, kind, harness.Options{Env: []string{"NOTIFY_SOCKET=" + name}})
				if err := socket.SetReadDeadline(time.Now().Add(callLimit)); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, 1024)
				n, _, err := socket.ReadFrom(got)
				if err != nil || string(got[:n]) != "READY=1" {
					t.Errorf("notified with %q: %v\n%s", got[:n], err, server.LogTail(5))
				}
			})
		}
	}
}

// sampleConfiguration has every key of the sample that etcd comes with, at its value there;
// what is no key any more is there too. Addresses and the directory are the caller's.
const sampleConfiguration = `name: 'default'
data-dir: %[1]s
wal-dir:
snapshot-count: 10000
heartbeat-interval: 100
election-timeout: 1000
quota-backend-bytes: 0
listen-peer-urls: http://127.0.0.1:%[3]d
listen-client-urls: http://127.0.0.1:%[2]d
max-snapshots: 5
max-wals: 5
cors:
initial-advertise-peer-urls: http://127.0.0.1:%[3]d
advertise-client-urls: http://127.0.0.1:%[2]d
discovery:
discovery-fallback: 'proxy'
discovery-proxy:
discovery-srv:
initial-cluster: default=http://127.0.0.1:%[3]d
initial-cluster-token: 'etcd-cluster'
initial-cluster-state: 'new'
strict-reconfig-check: false
enable-pprof: true
proxy: 'off'
proxy-failure-wait: 5000
proxy-refresh-interval: 30000
proxy-dial-timeout: 1000
proxy-write-timeout: 5000
proxy-read-timeout: 0
client-transport-security:
  cert-file:
  key-file:
  client-cert-auth: false
  trusted-ca-file:
  auto-tls: false
peer-transport-security:
  cert-file:
  key-file:
  client-cert-auth: false
  trusted-ca-file:
  auto-tls: false
self-signed-cert-validity: 1
log-level: debug
logger: zap
log-outputs: [stderr]
force-new-cluster: false
auto-compaction-mode: periodic
auto-compaction-retention: "1"
cipher-suites: [
  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
]
tls-min-version: 'TLS1.2'
tls-max-version: 'TLS1.3'
`

// What a configuration says of TLS has no meaning without certificates, and starts a member
// all the same: etcd's own sample has it, and so have the flags of many an installation.
func TestTLSSettingsWithoutCertificates(t *testing.T) {
	t.Parallel()
	harness.OfSingleServers(t)
	for _, kind := range []harness.Kind{harness.Etched, harness.Etcd} {
		t.Run(fmt.Sprint(kind, " sample"), func(t *testing.T) {
			t.Parallel()
			var ports [2]int
			for i := range ports {
				port, err := harness.FreePort()
				if err != nil {
					t.Fatal(err)
				}
				ports[i] = port
			}
			file := filepath.Join(t.TempDir(), "etcd.conf.yml")
			content := fmt.Sprintf(sampleConfiguration, filepath.Join(t.TempDir(), "data"), ports[0], ports[1])
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			server := harness.Start(t, kind, harness.Options{ClientPort: ports[0], Flags: []string{"--config-file=" + file}})
			if outcome := invoke(context.Background(), server.Dial(t), put("a", "1")); outcome.Err != nil {
				t.Error(outcome.Err)
			}
		})
		for _, flags := range [][]string{
			{"--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"},
			{"--tls-min-version=TLS1.2"}, {"--tls-min-version=TLS1.3", "--tls-max-version=TLS1.3"}, {"--tls-max-version=TLS1.3"},
			{"--self-signed-cert-validity=3"}, {"--enable-pprof=true"}, {"--client-cert-auth=false", "--peer-client-cert-auth=false", "--auto-tls=false"},
		} {
			t.Run(fmt.Sprint(kind, " ", strings.Join(flags, " ")), func(t *testing.T) {
				t.Parallel()
				server := harness.Start(t, kind, harness.Options{Flags: flags})
				if outcome := invoke(context.Background(), server.Dial(t), put("a", "1")); outcome.Err != nil {
					t.Error(outcome.Err)
				}
			})
		}
	}
}
