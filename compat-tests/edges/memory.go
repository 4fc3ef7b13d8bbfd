package edges

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"etched.dev/compat-tests/harness"
)

const (
	sampleEvery = 50 * time.Millisecond
	// attackMemoryLimit is the resident memory at which the attack is stopped,
	// memberMemoryLimit that at which the member is killed.
	attackMemoryLimit, memberMemoryLimit = 6 << 30, 8 << 30
)

// watchMemory samples a member's resident memory until the context ends and returns the
// largest value; each that is larger than all before is sent to larger. Above the limits it
// calls abort with the reason, for the machine's sake.
func watchMemory(ctx context.Context, server *harness.Server, larger func(int64), abort func(string)) (largest int64) {
	for ; ctx.Err() == nil; pause(ctx, sampleEvery) {
		// A member that has exited, or is being started, has none.
		if resident, err := server.ResidentBytes(); err == nil {
			if resident > largest {
				largest = resident
				larger(resident)
			}
			if resident > attackMemoryLimit {
				abort("stopped at 6 GiB")
			}
			if resident > memberMemoryLimit {
				abort("member killed at 8 GiB")
				_ = server.Signal(syscall.SIGKILL)
			}
		}
	}
	return largest
}

// peak says where a member's memory was when it was largest, of what comes near the limit.
type peak struct {
	mu       sync.Mutex
	resident int64
	said     string
}

// note asks the member what its memory is used for, beside the sampling. underWay names
// the attacks of that moment.
func (p *peak) note(server *harness.Server, resident int64, since time.Duration, underWay string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if resident <= (budget+allowance)*7/8 || resident < p.resident+(4<<20) {
		return
	}
	p.resident = resident
	p.said = fmt.Sprintf("%s after %v under %s", mebibytes(resident), since.Round(time.Second), underWay)
	go func() {
		parts := memoryParts(server.Endpoint())
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.resident == resident {
			p.said += ": " + parts
		}
	}()
}

func (p *peak) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said
}

// memoryParts returns the member's figures of etched_memory_bytes.
func memoryParts(endpoint string) string {
	const limit = 2 * time.Second
	client := http.Client{Timeout: limit}
	response, err := client.Get("http://" + endpoint + "/metrics")
	if err != nil {
		return "its metrics did not come: " + err.Error()
	}
	defer response.Body.Close()
	var parts []string
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if found, is := strings.CutPrefix(lines.Text(), `etched_memory_bytes{part="`); is {
			parts = append(parts, strings.Replace(found, `"} `, " ", 1))
		}
	}
	return strings.Join(parts, ", ")
}

// pause sleeps for a time or until the context ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
