// Package backup takes snapshots of etched to etcd's own tools and servers, and
// those of etcd to etched: what one serves of them must be what the other served.
// The same of data directories, on which members change from one to the other.
package backup
