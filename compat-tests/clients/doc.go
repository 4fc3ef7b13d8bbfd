// Package clients has programs in the languages of etcd's client libraries use etched and etcd, and
// compares what they see: each prints a transcript without what differs between two runs. The
// programs are installed by scripts/test clients; COMPAT_CLIENTS names where.
//
// A program is given ENDPOINT, as host:port of a TLS port, and CA, the file of its authority. Where it
// prints RESTART, the server is restarted, and it continues when it gets a line.
package clients
