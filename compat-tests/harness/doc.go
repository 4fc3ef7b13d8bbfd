// Package harness starts, stops and kills etched and etcd v3.7.3 as separate
// processes with equal settings, so that tests can send the same requests to
// both and compare what comes back.
//
// Both get the same advertised peer URL and token, hence the same member and
// cluster ids: only raft_term is normalised before answers are compared.
// Everything listens on 127.0.0.1 on free ports; every wait has a limit.
package harness
