package edges

import (
	"context"
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
// largest value. Above the limits it calls abort with the reason, for the machine's sake.
func watchMemory(ctx context.Context, server *harness.Server, abort func(string)) (largest int64) {
	for ; ctx.Err() == nil; pause(ctx, sampleEvery) {
		// A member that has exited, or is being started, has none.
		if resident, err := server.ResidentBytes(); err == nil {
			largest = max(largest, resident)
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

// pause sleeps for a time or until the context ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
