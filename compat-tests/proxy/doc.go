// Package proxy puts the processes that stand before a cluster, the gateway and the
// gRPC proxy, of etched and of etcd, before the same servers: a client behind either
// gets the same answers.
package proxy
