// Package edges attacks one member from outside and measures what the attack costs its
// other clients.
//
// Each attack is a row of a table: its setup, the attack, and how often it is made in a
// full run. Every row has the same measurements (Outcome): resident memory before the
// attack, at its peak and after the attacker has closed its connections; the latency of
// single reads, puts, health probes and new connections meanwhile; whether the process
// lives, what refused clients were answered, and whether every acknowledged write is
// there after a SIGKILL. etched and etcd v3.7.3 take the same attacks; only etched is
// held to limits.
//
// The attacker has its own HTTP/2 client (http2.go): a library would read what it is
// sent, respect windows or complete its requests. It discards all responses, so that its
// own memory does not grow with the attack.
//
// The mixture (mixture.go) runs the attacks concurrently on the three members of a run
// of package cluster, with kills, and ends with the judge of that package.
package edges
