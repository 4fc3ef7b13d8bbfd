package harness

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
)

// The ports that this process has handed out. Test processes that run side by
// side draw from different slices of the range, most of the time.
var (
	handedOut   = map[int]bool{}
	handedOutMu sync.Mutex
)

const (
	firstPort     = 12_000
	portSlices    = 6
	portsPerSlice = 3_000
)

// FreePort answers a port of 127.0.0.1 on which nothing listens, and never the
// same one twice. It lies below the range that outgoing connections draw from, so
// that none of them takes it between the test and its use.
func FreePort() (int, error) {
	handedOutMu.Lock()
	defer handedOutMu.Unlock()
	slice := firstPort + os.Getpid()%portSlices*portsPerSlice
	for range 400 {
		port := slice + rand.IntN(portsPerSlice)
		if handedOut[port] {
			continue
		}
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		handedOut[port] = true
		return port, listener.Close()
	}
	return 0, fmt.Errorf("no free port on 127.0.0.1 after 400 attempts")
}
