package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// AdvertisedPeerURL is what every server tells about itself; equal on both
// sides, so that member and cluster ids are equal too. A single member never
// dials it.
const AdvertisedPeerURL = "http://127.0.0.1:2380"

// Options describe one server; the zero value is a fresh member with defaults.
type Options struct {
	// Name is --name; empty means "default".
	Name string
	// Flags are added for either kind; EtchedFlags and EtcdFlags for one of them.
	Flags, EtchedFlags, EtcdFlags []string
	// Binary is the program to start; empty means that of the kind.
	Binary string
	// Env is added to the environment, from which every ETCD_* variable is removed.
	Env []string
	// DataDir is created where missing and never removed; empty means a fresh
	// one, removed by Remove (by the end of the test, for Start).
	DataDir string
	// ParentDir holds fresh data directories; empty means the system's default.
	ParentDir string
	// ClientPort is the client port; 0 means a free one.
	ClientPort int
	// AdvertiseClientURL is --advertise-client-urls; empty means the URL listened on.
	AdvertiseClientURL string
	// PeerURL is --initial-advertise-peer-urls; empty means AdvertisedPeerURL.
	PeerURL string
	// InitialCluster is --initial-cluster; empty means this member alone.
	InitialCluster string
	// FileLimit is how many files the process may have open; 0 means as many as this one.
	FileLimit int
	// User is the user and the group that the process runs as; 0 means this one's. Only root
	// can have another.
	User int
	// ThreadLimit is how many threads the processes of the user may have; 0 means no limit.
	// See CanLimitThreads.
	ThreadLimit int
	// ReadyTimeout limits the wait for the first linearizable read; 0 means 30 s.
	ReadyTimeout time.Duration
	Encryption
}

// Server is one process, running or ended. Its methods are not for use from
// several goroutines at once, save Exited, PID, Running, CPUTime and those of
// its memory.
type Server struct {
	kind     Kind
	options  Options
	binary   string
	root     string
	dataDir  string
	logPath  string
	port     int
	peerPort int
	latest   atomic.Pointer[process]
}

type process struct {
	command *exec.Cmd
	exited  chan struct{}
	err     error
}

// Launch starts a server and waits until it answers a linearizable read. The
// caller ends it with Stop or Kill and then calls Remove.
func Launch(kind Kind, options Options) (*Server, error) {
	server, err := prepare(kind, options)
	if err != nil {
		return nil, err
	}
	const attempts = 3
	for attempt := 1; ; attempt++ {
		if err = server.choosePorts(); err == nil {
			err = server.Restart()
		}
		if err == nil {
			return server, nil
		}
		if attempt == attempts || !server.lostPort() {
			return nil, errors.Join(err, server.Remove())
		}
	}
}

// prepare makes a server's directory; it has no ports yet and does not run.
func prepare(kind Kind, options Options) (*Server, error) {
	binary, err := Binary(kind)
	if err != nil {
		return nil, err
	}
	if options.Binary != "" {
		binary = options.Binary
	}
	root, err := os.MkdirTemp(options.ParentDir, "compat-"+kind.String()+"-")
	if err != nil {
		return nil, err
	}
	server := &Server{
		kind: kind, options: options, binary: binary, root: root,
		dataDir: options.DataDir, logPath: filepath.Join(root, kind.String()+".log"),
	}
	if server.dataDir == "" {
		server.dataDir = filepath.Join(root, "data")
	}
	if options.User != 0 {
		if err := server.giveTo(options.User); err != nil {
			return nil, errors.Join(err, server.Remove())
		}
	}
	return server, nil
}

func (s *Server) choosePorts() (err error) {
	if s.port = s.options.ClientPort; s.port == 0 {
		if s.port, err = FreePort(); err != nil {
			return err
		}
	}
	s.peerPort, err = FreePort()
	return err
}

// lostPort says whether the last start failed for a port that another took.
func (s *Server) lostPort() bool {
	return strings.Contains(strings.ToLower(s.LogTail(20)), "address already in use")
}

// Args answers the command line, without the program's name.
func (s *Server) Args() []string {
	name := s.options.Name
	if name == "" {
		name = "default"
	}
	advertise := s.options.AdvertiseClientURL
	if advertise == "" {
		advertise = s.URL()
	}
	peerURL := s.options.PeerURL
	if peerURL == "" {
		peerURL = s.options.peerScheme() + strings.TrimPrefix(AdvertisedPeerURL, "http")
	}
	cluster := s.options.InitialCluster
	if cluster == "" {
		cluster = name + "=" + peerURL
	}
	args := []string{
		"--name=" + name,
		"--data-dir=" + s.dataDir,
		"--listen-client-urls=" + s.URL(),
		"--advertise-client-urls=" + advertise,
		fmt.Sprintf("--listen-peer-urls=%s://127.0.0.1:%d", s.options.peerScheme(), s.peerPort),
		"--initial-advertise-peer-urls=" + peerURL,
		"--initial-cluster=" + cluster,
	}
	args = append(args, s.options.Flags...)
	if s.kind == Etched {
		return append(args, s.options.EtchedFlags...)
	}
	return append(args, s.options.EtcdFlags...)
}

// Restart starts the ended process again on the same data directory and ports.
func (s *Server) Restart() error {
	if err := s.Spawn(); err != nil {
		return err
	}
	limit := s.options.ReadyTimeout
	if limit == 0 {
		limit = 30 * time.Second
	}
	if err := s.WaitReady(limit); err != nil {
		return errors.Join(err, s.Kill())
	}
	return nil
}

// Become has the ended process be one of another kind when it starts again, on
// the same directory and ports.
func (s *Server) Become(kind Kind) error {
	if s.Running() {
		return fmt.Errorf("%s still runs", s.kind)
	}
	binary, err := Binary(kind)
	s.kind, s.binary = kind, binary
	return err
}

// Use has the ended process start on another data directory the next time.
func (s *Server) Use(dataDir string) { s.dataDir = dataDir }

// Spawn starts the ended process again without waiting for it to be ready.
func (s *Server) Spawn() error {
	if s.Running() {
		return fmt.Errorf("%s is running already", s.kind)
	}
	log, err := os.OpenFile(s.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	command := s.command()
	command.Stdout, command.Stderr = log, log
	command.Env = append(environment(), s.options.Env...)
	command.Dir = s.root
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: s.options.credential()}
	started := &process{command: command, exited: make(chan struct{})}
	if err := startLocked(started); err != nil {
		return err
	}
	s.latest.Store(started)
	return nil
}

// command is the process to start.
func (s *Server) command() *exec.Cmd {
	line := s.options.limited(append([]string{s.binary}, s.Args()...))
	return exec.Command(line[0], line[1:]...)
}

// environment is this process's, without settings meant for an etcd or etcdctl.
func environment() []string {
	var kept []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "ETCD_") && !strings.HasPrefix(entry, "ETCDCTL_") {
			kept = append(kept, entry)
		}
	}
	return kept
}

// WaitReady waits until a linearizable read is answered.
func (s *Server) WaitReady(limit time.Duration) error {
	connection, err := grpc.NewClient(s.Endpoint(), s.options.credentials())
	if err != nil {
		return err
	}
	defer connection.Close()
	client := pb.NewKVClient(connection)
	deadline := time.Now().Add(limit)
	var last error
	for time.Now().Before(deadline) {
		select {
		case <-s.latest.Load().exited:
			return fmt.Errorf("%s ended before it was ready: %v\n%s", s.kind, s.latest.Load().err, s.LogTail(20))
		default:
		}
		ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(time.Second))
		_, last = client.Range(ctx, &pb.RangeRequest{Key: []byte("\x00"), CountOnly: true, Limit: 1})
		cancel()
		// Who is not known is answered so behind the same wait.
		if last == nil || status.Convert(last).Message() == "etcdserver: user name is empty" {
			return nil
		}
		connection.ResetConnectBackoff()
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s not ready within %v: %w\n%s", s.kind, limit, last, s.LogTail(20))
}

// WaitClusterVersion waits until /version tells a decided cluster version and a
// storage version: etcd takes some seconds over both.
func (s *Server) WaitClusterVersion(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	var last string
	for time.Now().Before(deadline) {
		_, body, err := s.HTTPGet("/version")
		last = fmt.Sprint(body, err)
		if err == nil && strings.Contains(body, `"etcdcluster":"3.7.0"`) && strings.Contains(body, `"storage":"3.7.0"`) {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("%s: no cluster version within %v: %s", s.kind, limit, last)
}

// HTTPGet answers status and body of a GET on the client port.
func (s *Server) HTTPGet(path string) (int, string, error) {
	transport := &http.Transport{TLSClientConfig: s.options.ClientTLS}
	defer transport.CloseIdleConnections()
	client := http.Client{Timeout: 10 * time.Second, Transport: transport}
	response, err := client.Get(s.URL() + path)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// Kind says which server this is.
func (s *Server) Kind() Kind { return s.kind }

// Endpoint is the client address, host:port.
func (s *Server) Endpoint() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// PeerEndpoint is where the server listens for other members, host:port.
func (s *Server) PeerEndpoint() string { return fmt.Sprintf("127.0.0.1:%d", s.peerPort) }

// URL is the client address as a URL.
func (s *Server) URL() string { return s.options.clientScheme() + "://" + s.Endpoint() }

// DataDir is the directory given as --data-dir.
func (s *Server) DataDir() string { return s.dataDir }

// LogPath is the file that takes stdout and stderr of every run.
func (s *Server) LogPath() string { return s.logPath }

// PID is the process id of the latest run.
func (s *Server) PID() int { return s.latest.Load().command.Process.Pid }

// Exited is closed when the latest run has ended.
func (s *Server) Exited() <-chan struct{} { return s.latest.Load().exited }

// ProcessState is how the latest run ended, nil while it runs.
func (s *Server) ProcessState() *os.ProcessState {
	if s.Running() {
		return nil
	}
	return s.latest.Load().command.ProcessState
}

// EndedBy is the signal that the latest run died of, 0 where it exited or runs.
func (s *Server) EndedBy() syscall.Signal {
	state := s.ProcessState()
	if state == nil {
		return 0
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return status.Signal()
	}
	return 0
}

// Running says whether the process has been started and has not ended.
func (s *Server) Running() bool {
	latest := s.latest.Load()
	if latest == nil {
		return false
	}
	select {
	case <-latest.exited:
		return false
	default:
		return true
	}
}

// Stop sends SIGTERM and waits up to 20 s; an exit status other than 0 and 143
// and an end by another signal are errors. After the limit it kills.
func (s *Server) Stop() error {
	if !s.Running() {
		return nil
	}
	if err := s.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-s.latest.Load().exited:
	case <-time.After(20 * time.Second):
		return errors.Join(fmt.Errorf("%s did not stop within 20 s of SIGTERM", s.kind), s.Kill())
	}
	status, _ := s.latest.Load().command.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() && status.Signal() == syscall.SIGTERM {
		return nil
	}
	if code := status.ExitStatus(); code != 0 && code != 128+int(syscall.SIGTERM) {
		return fmt.Errorf("%s stopped with %v\n%s", s.kind, s.latest.Load().err, s.LogTail(20))
	}
	return nil
}

// Kill sends SIGKILL and waits for the end.
func (s *Server) Kill() error {
	if !s.Running() {
		return nil
	}
	if err := s.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.latest.Load().exited:
		return nil
	case <-time.After(20 * time.Second):
		return fmt.Errorf("%s outlived SIGKILL by 20 s", s.kind)
	}
}

// Signal sends a signal to the running process.
func (s *Server) Signal(signal os.Signal) error {
	return s.latest.Load().command.Process.Signal(signal)
}

// Remove deletes logs and a data directory that Launch made. The process must
// have ended.
func (s *Server) Remove() error { return os.RemoveAll(s.root) }

// LogTail answers the last lines of the log.
func (s *Server) LogTail(lines int) string {
	content, err := os.ReadFile(s.logPath)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimRight(content, "\n"), []byte("\n"))
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return string(bytes.Join(all, []byte("\n")))
}

// spawner starts processes from one locked thread: the kernel kills a child
// with Pdeathsig when the thread that started it ends, not only the process.
var spawner = sync.OnceValue(func() chan<- func() {
	jobs := make(chan func())
	go runLocked(jobs)
	return jobs
})
