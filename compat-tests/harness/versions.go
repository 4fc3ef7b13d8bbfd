package harness

import (
	"path/filepath"
	"sync"
)

// Older releases of etcd, whose snapshots are taken and to which nothing is
// compared. Each is a tool of a module of its own, since one module has one etcd.
const (
	Etcd34 Kind = iota + 100
	Etcd35
	Etcd36
)

// older has, by the name of its module, what builds an older release.
var older = map[Kind]olderEtcd{
	Etcd34: newOlderEtcd("etcd34", "go.etcd.io/etcd"),
	Etcd35: newOlderEtcd("etcd35", "go.etcd.io/etcd/server/v3"),
	Etcd36: newOlderEtcd("etcd36", "go.etcd.io/etcd/server/v3"),
}

type olderEtcd struct {
	name   string
	binary func() (string, error)
}

func newOlderEtcd(name, importPath string) olderEtcd {
	return olderEtcd{name, sync.OnceValues(func() (string, error) {
		return toolOf(filepath.Join(moduleDir(), "versions", name), importPath)
	})}
}

// EtcdOf answers the path of an etcd of a version: 3.5, 3.6, or 3.7, which is the
// reference.
func EtcdOf(version string) (string, error) {
	switch version {
	case "3.5":
		return Binary(Etcd35)
	case "3.6":
		return Binary(Etcd36)
	}
	return Binary(Etcd)
}

var etcdutl35Tool = sync.OnceValues(func() (string, error) {
	return toolOf(filepath.Join(moduleDir(), "versions", "etcd35"), "go.etcd.io/etcd/etcdutl/v3")
})

// Etcdutl35 answers the path of etcdutl 3.5, which takes snapshots too.
func Etcdutl35() (string, error) { return etcdutl35Tool() }
