// Package crash kills the real server binary with SIGKILL under load and checks
// after each restart that nothing a client learned has been taken back.
//
// The judge is a history: one watch over the whole keyspace records every
// revision from the first on (History). It is resumed after each kill from its
// last revision + 1, so that a lost, doubled or rewritten revision shows as a
// break in it. Everything else is compared with the history: what each request
// was answered (Operation), what every other watch was sent (Watcher), what
// reads at the head and at old revisions return, leases, and HashKV, which the
// history computes on its own as etcd v3.7.3 defines it.
//
// A request that failed in a way that leaves its fate open is recorded as
// unknown: it may show in the history once and whole, or not at all. No request
// is retried.
//
// SIGKILL leaves the page cache alone: a write that was never synced survives
// it. What a power loss does is for the simulator to test.
package crash
