// Package backup takes etched's snapshots to etcd's own tools and servers: what
// etcdutl accepts and an etcd serves of them must be what etched serves.
package backup
