package harness

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// FreePort answers a port of 127.0.0.1 on which nothing listens. It lies below
// the range that outgoing connections draw from, so that none of them takes it
// between the test and its use.
func FreePort() (int, error) {
	for range 200 {
		port := 12_000 + rand.IntN(18_000)
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		return port, listener.Close()
	}
	return 0, fmt.Errorf("no free port on 127.0.0.1 after 200 attempts")
}
