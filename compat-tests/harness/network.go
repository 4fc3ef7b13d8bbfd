package harness

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Network is the addresses at which members find each other. It listens on every
// advertised peer URL itself and passes what comes on to the member meant, so
// that each directed link between two members can be cut, silenced or slowed.
//
// Who dialed is known by the process that holds the other end of the connection
// (dialerOf): a member needs no setting of its own for that. It also lets two
// clusters share one network and with it their peer URLs, hence their ids: a
// connection is made to the member of the dialer's own cluster.
type Network struct {
	mu       sync.Mutex
	nodes    []net.Listener
	clusters []*Cluster
	links    map[way]Link
	changed  chan struct{} // closed and replaced when links change
	conns    map[*conn]struct{}
	refused  int // connections of processes that are no member
	closed   bool
}

// way is a direction between two members of a cluster, by their nodes.
type way struct {
	cluster  *Cluster
	from, to int
}

// Link is what happens to bytes on their way from one member to another. The
// zero value passes them on.
type Link struct {
	// Cut closes connections that this direction is part of, and refuses new ones.
	Cut bool
	// Silent keeps connections open and bytes back, until it ends.
	Silent bool
	// Delay, and up to Jitter more, is added to each chunk; order is kept.
	Delay, Jitter time.Duration
	// BytesPerSecond limits the rate; 0 means no limit.
	BytesPerSecond int
	// StallChance is that of a chunk to take 200 ms longer, as a lost packet does
	// which TCP has to send again; ResetChance that of a chunk to end its connection.
	StallChance, ResetChance float64
}

// NewNetwork has no addresses yet.
func NewNetwork() *Network {
	return &Network{links: map[way]Link{}, changed: make(chan struct{}), conns: map[*conn]struct{}{}}
}

// grow opens addresses until there are so many.
func (n *Network) grow(nodes int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	const attempts = 50
	for failed := 0; len(n.nodes) < nodes; {
		port, err := FreePort()
		if err != nil {
			return err
		}
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			if failed++; failed == attempts {
				return err
			}
			continue
		}
		node := len(n.nodes)
		n.nodes = append(n.nodes, listener)
		go n.accept(node, listener)
	}
	return nil
}

// address is where the peer URL of a node leads.
func (n *Network) address(node int) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nodes[node].Addr().String()
}

func (n *Network) attach(c *Cluster) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.clusters = append(n.clusters, c)
}

// Close ends all connections and stops listening.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	var failures []error
	for _, listener := range n.nodes {
		failures = append(failures, listener.Close())
	}
	for open := range n.conns {
		open.reset()
	}
	return errors.Join(failures...)
}

// Refused is how many connections came from processes that are no member.
func (n *Network) Refused() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.refused
}

// set changes links; a cut one loses its connections.
func (n *Network) set(link Link, ways ...way) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range ways {
		n.links[w] = link
	}
	close(n.changed)
	n.changed = make(chan struct{})
	for open := range n.conns {
		if n.links[open.there()].Cut || n.links[open.back()].Cut {
			open.reset()
		}
	}
}

// link answers a link as it is now, and what is closed when any changes.
func (n *Network) link(w way) (Link, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.links[w], n.changed
}

func (n *Network) accept(node int, listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go n.connect(node, connection.(*net.TCPConn))
	}
}

// connect passes an accepted connection on to the member of its dialer's cluster.
func (n *Network) connect(node int, accepted *net.TCPConn) {
	w, target := n.newConn(node, accepted)
	if w == nil {
		abort(accepted)
		return
	}
	defer n.drop(w)
	const dialLimit = 2 * time.Second
	dialed, err := net.DialTimeout("tcp", target, dialLimit)
	if err != nil {
		w.reset()
		return
	}
	if !w.complete(dialed.(*net.TCPConn)) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { n.carry(w, w.there(), w.dialer, w.target) })
	both.Go(func() { n.carry(w, w.back(), w.target, w.dialer) })
	both.Wait()
	w.reset()
}

// newConn registers a connection, nil for one that is to be refused.
func (n *Network) newConn(node int, accepted *net.TCPConn) (*conn, string) {
	n.mu.Lock()
	known := map[int]*Member{}
	var pids []int
	for _, cluster := range n.clusters {
		for _, member := range cluster.all() {
			if member.Running() {
				known[member.PID()] = member
				pids = append(pids, member.PID())
			}
		}
	}
	n.mu.Unlock()
	pid, err := dialerOf(accepted, pids)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		n.refused++
		return nil, ""
	}
	source := known[pid]
	target := source.cluster.at(node)
	w := &conn{cluster: source.cluster, from: source.node, to: node, dialer: accepted, done: make(chan struct{})}
	if target == nil || n.closed || n.links[w.there()].Cut || n.links[w.back()].Cut {
		return nil, ""
	}
	n.conns[w] = struct{}{}
	return w, fmt.Sprintf("127.0.0.1:%d", target.peerPort)
}

func (n *Network) drop(w *conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, w)
}

// conn is one connection from a member to another through the network.
type conn struct {
	cluster  *Cluster
	from, to int
	dialer   *net.TCPConn

	mu     sync.Mutex
	target *net.TCPConn
	ended  bool
	done   chan struct{}
}

func (w *conn) there() way { return way{w.cluster, w.from, w.to} }
func (w *conn) back() way  { return way{w.cluster, w.to, w.from} }

// complete adds the second half; false where the connection was ended meanwhile.
func (w *conn) complete(target *net.TCPConn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		abort(target)
		return false
	}
	w.target = target
	return true
}

// reset ends both halves at once.
func (w *conn) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	w.ended = true
	close(w.done)
	abort(w.dialer)
	if w.target != nil {
		abort(w.target)
	}
}

// abort ends a connection so that the other end notices at once.
func abort(connection *net.TCPConn) {
	_ = connection.SetLinger(0)
	_ = connection.Close()
}

// chunk is bytes that were read together; an empty one is the end of the stream.
type chunk struct {
	bytes []byte
	came  time.Time
}

// carry copies one direction of a connection, as its link says, until it ends. What a
// link holds back is bounded; then the sender has to wait, as with any network.
func (n *Network) carry(w *conn, along way, source, sink *net.TCPConn) {
	const chunkBytes, held = 16 << 10, 64
	queue := make(chan chunk, held)
	go func() {
		defer close(queue)
		for {
			buffer := make([]byte, chunkBytes)
			count, err := source.Read(buffer)
			if err != nil {
				count = 0
			}
			select {
			case queue <- chunk{buffer[:count], time.Now()}:
			case <-w.done:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for next := range queue {
		if !n.hold(w, along, next) {
			return
		}
		var err error
		if len(next.bytes) == 0 {
			err = sink.CloseWrite()
		} else {
			_, err = sink.Write(next.bytes)
		}
		if err != nil {
			// The sender is to learn of it as of anything else: not through silence.
			n.hold(w, way{along.cluster, along.to, along.from}, chunk{came: time.Now()})
			w.reset()
			return
		}
	}
}

// hold keeps a chunk back for as long as its link wants; false where the connection
// ended meanwhile.
func (n *Network) hold(w *conn, along way, next chunk) bool {
	const resent = 200 * time.Millisecond
	link, _ := n.link(along)
	if link.ResetChance > 0 && rand.Float64() < link.ResetChance {
		w.reset()
		return false
	}
	wait := link.Delay - time.Since(next.came)
	if link.Jitter > 0 {
		wait += rand.N(link.Jitter)
	}
	if link.StallChance > 0 && rand.Float64() < link.StallChance {
		wait += resent
	}
	if link.BytesPerSecond > 0 {
		wait = max(wait, 0) + time.Duration(len(next.bytes))*time.Second/time.Duration(link.BytesPerSecond)
	}
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-w.done:
			return false
		}
	}
	for {
		link, changed := n.link(along)
		if !link.Silent {
			return true
		}
		select {
		case <-changed:
		case <-w.done:
			return false
		}
	}
}
