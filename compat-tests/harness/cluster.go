package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// ClusterOptions describe a cluster; the zero value is three fresh members with
// defaults.
type ClusterOptions struct {
	// Members is how many there are at first; 0 means 3.
	Members int
	// Flags are added for every member of either kind.
	Flags, EtchedFlags, EtcdFlags []string
	// Binary is the program of all members; empty means that of the kind.
	Binary string
	// ParentDir holds fresh data directories; empty means the system's default.
	ParentDir string
	// Network, where set, is shared with another cluster, and with it the peer URLs
	// and ids; the caller closes it.
	Network *Network
	// Direct leaves out the network: members find each other without proxies between
	// them, whose time a measurement would count. Links cannot be set then.
	Direct bool
	// DataDir, Env and AdvertiseClientURL, where set, are asked for each member, by
	// its number from 0 on; see Options.
	DataDir            func(member int) string
	Env                func(member int) []string
	AdvertiseClientURL func(member int) string
	// FileLimit is how many files each member may have open; see Options.
	FileLimit int
	// ReadyTimeout limits the wait for all members to serve; 0 means 60 s.
	ReadyTimeout time.Duration
	Encryption
	// MemberFlags, where set, are added to Flags for each member, as DataDir is.
	MemberFlags func(member int) []string
}

// Cluster is some members of one kind and the network between them. Its methods
// may be called by several goroutines; those of one member, by one at a time.
type Cluster struct {
	kind       Kind
	options    ClusterOptions
	network    *Network
	ownNetwork bool

	mu      sync.Mutex
	ports   []int     // of peers, by node, where there is no network
	members []*Member // every one there ever was, by node
	gone    map[*Member]bool
}

// Member is one server of a cluster.
type Member struct {
	*Server
	cluster *Cluster
	node    int
	paused  atomic.Bool
	connect func() (*grpc.ClientConn, error)
}

// LaunchCluster starts a cluster and waits until all members serve. The caller
// ends it with Remove.
func LaunchCluster(kind Kind, options ClusterOptions) (*Cluster, error) {
	if options.Members == 0 {
		options.Members = 3
	}
	c := &Cluster{kind: kind, options: options, network: options.Network, gone: map[*Member]bool{}}
	if c.network == nil {
		c.network, c.ownNetwork = NewNetwork(), true
	}
	c.network.attach(c)
	if err := c.launch(); err != nil {
		return nil, errors.Join(err, c.Remove())
	}
	return c, nil
}

func (c *Cluster) launch() error {
	if err := c.grow(c.options.Members); err != nil {
		return err
	}
	var named []string
	for node := range c.options.Members {
		named = append(named, memberName(node)+"="+c.peerURL(node))
	}
	for node := range c.options.Members {
		member, err := c.prepare(node, strings.Join(named, ","), "new")
		if err != nil {
			return err
		}
		if err := member.Spawn(); err != nil {
			return err
		}
	}
	limit := c.options.ReadyTimeout
	if limit == 0 {
		limit = 60 * time.Second
	}
	return c.WaitHealthy(limit)
}

// grow makes addresses for so many nodes.
func (c *Cluster) grow(nodes int) error {
	if !c.options.Direct {
		return c.network.grow(nodes)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.ports) < nodes {
		port, err := FreePort()
		if err != nil {
			return err
		}
		c.ports = append(c.ports, port)
	}
	return nil
}

// peerURL is what the member of a node advertises.
func (c *Cluster) peerURL(node int) string {
	if !c.options.Direct {
		return c.options.peerScheme() + "://" + c.network.address(node)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%s://127.0.0.1:%d", c.options.peerScheme(), c.ports[node])
}

func memberName(node int) string { return fmt.Sprintf("m%d", node+1) }

// prepare makes the member of a node, not started yet.
func (c *Cluster) prepare(node int, initial, state string) (*Member, error) {
	options := Options{
		Name: memberName(node), PeerURL: c.peerURL(node), InitialCluster: initial,
		Binary: c.options.Binary, ParentDir: c.options.ParentDir, FileLimit: c.options.FileLimit, EtchedFlags: c.options.EtchedFlags, EtcdFlags: c.options.EtcdFlags,
		Flags: append([]string{"--initial-cluster-state=" + state}, c.options.Flags...), Encryption: c.options.Encryption,
	}
	if c.options.MemberFlags != nil {
		options.Flags = append(options.Flags, c.options.MemberFlags(node)...)
	}
	if c.options.DataDir != nil {
		options.DataDir = c.options.DataDir(node)
	}
	if c.options.Env != nil {
		options.Env = c.options.Env(node)
	}
	if c.options.AdvertiseClientURL != nil {
		options.AdvertiseClientURL = c.options.AdvertiseClientURL(node)
	}
	server, err := prepare(c.kind, options)
	if err != nil {
		return nil, err
	}
	if err := server.choosePorts(); err != nil {
		return nil, errors.Join(err, server.Remove())
	}
	if c.options.Direct {
		server.peerPort = c.ports[node]
	}
	member := &Member{Server: server, cluster: c, node: node}
	member.connect = sync.OnceValues(func() (*grpc.ClientConn, error) {
		return grpc.NewClient(member.Endpoint(), quick, options.credentials())
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = append(c.members, member)
	return member, nil
}

// quick reconnects fast: members are meant to be back in moments.
var quick = grpc.WithConnectParams(grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond},
	MinConnectTimeout: time.Second,
})

// all answers every member there ever was.
func (c *Cluster) all() []*Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*Member(nil), c.members...)
}

// at answers the member of a node, nil where there is none.
func (c *Cluster) at(node int) *Member {
	for _, member := range c.all() {
		if member.node == node {
			return member
		}
	}
	return nil
}

// Kind says which servers the members are.
func (c *Cluster) Kind() Kind { return c.kind }

// Network is what lies between the members.
func (c *Cluster) Network() *Network { return c.network }

// Members answers the members that have not been removed, whether or not they run.
func (c *Cluster) Members() []*Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	var members []*Member
	for _, member := range c.members {
		if !c.gone[member] {
			members = append(members, member)
		}
	}
	return members
}

// Others answers the members without these.
func (c *Cluster) Others(without ...*Member) []*Member {
	var others []*Member
	for _, member := range c.Members() {
		kept := true
		for _, one := range without {
			kept = kept && one != member
		}
		if kept {
			others = append(others, member)
		}
	}
	return others
}

// Endpoints answers the client addresses of the members.
func Endpoints(members []*Member) []string {
	var endpoints []string
	for _, member := range members {
		endpoints = append(endpoints, member.Endpoint())
	}
	return endpoints
}

// NewClientOf is a new official client of some members; the caller closes it.
func NewClientOf(members []*Member, options ...grpc.DialOption) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: Endpoints(members), DialTimeout: 5 * time.Second, Logger: zap.NewNop(), TLS: members[0].options.ClientTLS,
		DialOptions: append([]grpc.DialOption{quick}, options...),
	})
}

// Status asks a member for its status, with a short limit.
func (m *Member) Status(ctx context.Context) (*pb.StatusResponse, error) {
	const limit = 500 * time.Millisecond
	connection, err := m.connect()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return pb.NewMaintenanceClient(connection).Status(ctx, &pb.StatusRequest{})
}

// ID asks a member for its id.
func (m *Member) ID(ctx context.Context) (uint64, error) {
	status, err := m.Status(ctx)
	if err != nil {
		return 0, fmt.Errorf("the id of %s: %w", m.Name(), err)
	}
	return status.Header.MemberId, nil
}

// Name is --name.
func (m *Member) Name() string { return m.options.Name }

// Number is the member's, from 0 on, in the order in which members were made.
func (m *Member) Number() int { return m.node }

// PeerURL is the advertised peer URL: a proxy's.
func (m *Member) PeerURL() string { return m.options.PeerURL }

// Serving says that the process runs and is not paused.
func (m *Member) Serving() bool { return m.Running() && !m.paused.Load() }

// Pause stops the process in its tracks and waits until every thread of it has
// stopped: on another core one may run on after the signal was sent. Continue lets it
// run again.
func (m *Member) Pause() error {
	m.paused.Store(true)
	if err := m.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		stopped, err := m.stopped()
		if stopped || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s runs on 5 s after SIGSTOP", m.Name())
		}
	}
}

// stopped says whether every thread of the process is stopped.
func (m *Member) stopped() (bool, error) {
	states, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", m.PID()))
	if err != nil {
		return false, err
	}
	for _, path := range states {
		content, err := os.ReadFile(path)
		if err != nil {
			return false, err
		}
		// The state follows the name, which is in parentheses and may hold some itself.
		_, state, _ := strings.Cut(string(content[bytes.LastIndexByte(content, ')'):]), " ")
		if !strings.HasPrefix(state, "T") {
			return false, nil
		}
	}
	return len(states) > 0, nil
}

// Continue ends a pause.
func (m *Member) Continue() error {
	m.paused.Store(false)
	return m.Signal(syscall.SIGCONT)
}

// Kill sends SIGKILL, which also ends a paused process, and waits for the end.
func (m *Member) Kill() error {
	m.paused.Store(false)
	return m.Server.Kill()
}

// Wipe deletes the data of a member that does not run.
func (m *Member) Wipe() error {
	if m.Running() {
		return fmt.Errorf("%s runs, its data must stay", m.Name())
	}
	return os.RemoveAll(m.DataDir())
}

// Restart starts the ended process again without waiting for it; WaitHealthy does.
func (m *Member) Restart() error { return m.Spawn() }

// FindLeader answers the member that most serving members of the latest term
// call their leader, nil where there is none.
func (c *Cluster) FindLeader(ctx context.Context) *Member {
	var term uint64
	var leader *Member
	ids, named := map[uint64]*Member{}, map[uint64]uint64{}
	for _, member := range c.Members() {
		if !member.Running() {
			continue
		}
		status, err := member.Status(ctx)
		if err != nil {
			continue
		}
		ids[status.Header.MemberId] = member
		if status.Leader != 0 && status.RaftTerm >= term {
			term = status.RaftTerm
			named[term] = status.Leader
		}
	}
	if id, known := named[term]; known {
		leader = ids[id]
	}
	return leader
}

// WaitLeader waits for a leader; it must be one of the members given, if any.
func (c *Cluster) WaitLeader(limit time.Duration, among ...*Member) (*Member, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for ctx.Err() == nil {
		leader := c.FindLeader(ctx)
		for _, member := range among {
			if leader == member {
				return leader, nil
			}
		}
		if leader != nil && len(among) == 0 {
			return leader, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, fmt.Errorf("no leader within %v%s", limit, c.logTails())
}

// WaitHealthy waits until every member that is not removed serves, follows the
// same leader and has applied what that had when it was asked.
func (c *Cluster) WaitHealthy(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var last error
	for ctx.Err() == nil {
		if last = c.unhealthy(ctx); last == nil {
			return nil
		}
		for _, member := range c.Members() {
			if !member.Running() {
				return fmt.Errorf("%s %s does not run\n%s", c.kind, member.Name(), member.LogTail(20))
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("not healthy within %v: %w%s", limit, last, c.logTails())
}

// unhealthy answers the first thing that is wrong.
func (c *Cluster) unhealthy(ctx context.Context) error {
	var leader, term, applied uint64
	var statuses []*pb.StatusResponse
	for _, member := range c.Members() {
		status, err := member.Status(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", member.Name(), err)
		}
		statuses = append(statuses, status)
		if leader == 0 {
			leader, term = status.Leader, status.RaftTerm
		}
		if status.Leader == 0 || status.Leader != leader || status.RaftTerm != term {
			return fmt.Errorf("%s follows %x in term %d, the first member %x in %d",
				member.Name(), status.Leader, status.RaftTerm, leader, term)
		}
		if status.Header.MemberId == leader {
			applied = status.RaftAppliedIndex
		}
	}
	for i, member := range c.Members() {
		if statuses[i].RaftAppliedIndex < applied {
			// It was asked before the leader, perhaps; asked again it must be there.
			status, err := member.Status(ctx)
			if err != nil || status.RaftAppliedIndex < applied {
				return fmt.Errorf("%s has applied %d of the leader's %d: %w", member.Name(), statuses[i].RaftAppliedIndex, applied, err)
			}
		}
		if !statuses[i].IsLearner {
			if err := member.readOnce(ctx); err != nil {
				return fmt.Errorf("%s: %w", member.Name(), err)
			}
		}
	}
	return nil
}

// readOnce makes a linearizable read.
func (m *Member) readOnce(ctx context.Context) error {
	connection, err := m.connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err = pb.NewKVClient(connection).Range(ctx, &pb.RangeRequest{Key: []byte("\x00"), CountOnly: true, Limit: 1})
	return err
}

func (c *Cluster) logTails() string {
	const lines = 6
	var text strings.Builder
	for _, member := range c.Members() {
		fmt.Fprintf(&text, "\n%s %s, running %t:\n%s", c.kind, member.Name(), member.Running(), member.LogTail(lines))
	}
	return text.String()
}

// Add makes a member known to the cluster through one of its members and starts
// it on an empty directory; it does not wait until that serves.
func (c *Cluster) Add(ctx context.Context, through *Member, learner bool) (*Member, error) {
	c.mu.Lock()
	node := len(c.members)
	c.mu.Unlock()
	if err := c.grow(node + 1); err != nil {
		return nil, err
	}
	connection, err := through.connect()
	if err != nil {
		return nil, err
	}
	var response *pb.MemberAddResponse
	err = untilSettled(ctx, func() (err error) {
		response, err = pb.NewClusterClient(connection).MemberAdd(ctx, &pb.MemberAddRequest{
			PeerURLs: []string{c.peerURL(node)}, IsLearner: learner,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	var named []string
	for _, member := range response.Members {
		name := member.Name
		if member.ID == response.Member.ID {
			name = memberName(node)
		}
		for _, url := range member.PeerURLs {
			named = append(named, name+"="+url)
		}
	}
	added, err := c.prepare(node, strings.Join(named, ","), "existing")
	if err != nil {
		return nil, err
	}
	return added, added.Spawn()
}

// RemoveMember removes a member from the cluster through another; the process,
// where it runs, is expected to end by itself.
func (c *Cluster) RemoveMember(ctx context.Context, through, member *Member, id uint64) error {
	connection, err := through.connect()
	if err != nil {
		return err
	}
	err = untilSettled(ctx, func() error {
		_, err := pb.NewClusterClient(connection).MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id})
		return err
	})
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.gone[member] = true
	}
	return err
}

// untilSettled asks again while a change of members is refused because the
// members have not been connected for the five seconds that it takes.
func untilSettled(ctx context.Context, ask func() error) error {
	for {
		err := ask()
		if ctx.Err() != nil || !errors.Is(rpctypes.Error(err), rpctypes.ErrUnhealthy) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// SetLink sets what happens to bytes from one member to another.
func (c *Cluster) SetLink(from, to *Member, link Link) {
	c.network.set(link, way{c, from.node, to.node})
}

// SetLinks sets both directions between a member and each of the others.
func (c *Cluster) SetLinks(member *Member, others []*Member, link Link) {
	var ways []way
	for _, other := range others {
		ways = append(ways, way{c, member.node, other.node}, way{c, other.node, member.node})
	}
	c.network.set(link, ways...)
}

// Heal makes every link pass everything again.
func (c *Cluster) Heal() {
	var ways []way
	for _, from := range c.all() {
		for _, to := range c.all() {
			ways = append(ways, way{c, from.node, to.node})
		}
	}
	c.network.set(Link{}, ways...)
}

// Remove ends all members and deletes their data.
func (c *Cluster) Remove() error {
	var failures []error
	for _, member := range c.all() {
		failures = append(failures, member.Kill(), member.Server.Remove())
		if connection, err := member.connect(); err == nil {
			_ = connection.Close()
		}
	}
	if c.ownNetwork {
		failures = append(failures, c.network.Close())
	}
	return errors.Join(failures...)
}
