package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
)

// Kind says which of the two servers a process is.
type Kind int

const (
	// Etched is the server under test, found through ETCHED_BIN.
	Etched Kind = iota
	// Etcd is the reference: etcd v3.7.3, built from its Go module.
	Etcd
)

// String answers the name used in logs and failures.
func (k Kind) String() string {
	if k == Etched {
		return "etched"
	}
	if one, isOlder := older[k]; isOlder {
		return one.name
	}
	return "etcd"
}

// ErrNoEtched says that ETCHED_BIN names no usable binary.
var ErrNoEtched = errors.New("ETCHED_BIN does not name an etched binary: " +
	"build one with `cargo build --release` and set ETCHED_BIN to its path, or run scripts/test")

// tool builds (through Go's build cache) the tool of this module with the given
// import path and answers the path of its executable.
func tool(importPath string) (string, error) { return toolOf(moduleDir(), importPath) }

// toolOf is the same for the module in a directory.
func toolOf(dir, importPath string) (string, error) {
	command := exec.Command("go", "tool", "-n", importPath)
	command.Dir = dir
	var stderr strings.Builder
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", importPath, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

func moduleDir() string {
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		return filepath.Dir(filepath.Dir(file))
	}
	return "."
}

var (
	etcdTool    = sync.OnceValues(func() (string, error) { return tool("go.etcd.io/etcd/server/v3") })
	etcdctlTool = sync.OnceValues(func() (string, error) { return tool("go.etcd.io/etcd/etcdctl/v3") })
	etcdutlTool = sync.OnceValues(func() (string, error) { return tool("go.etcd.io/etcd/etcdutl/v3") })
)

// Binary answers the path of the server of this kind. ETCHED_BIN names etched's;
// ETCD_BIN, where set, replaces the etcd built from the Go module.
func Binary(kind Kind) (string, error) {
	if kind == Etched {
		path := os.Getenv("ETCHED_BIN")
		if path == "" {
			return "", ErrNoEtched
		}
		if info, err := os.Stat(path); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			return "", fmt.Errorf("%w (it is %q)", ErrNoEtched, path)
		}
		return filepath.Abs(path)
	}
	if one, isOlder := older[kind]; isOlder {
		return one.binary()
	}
	if path := os.Getenv("ETCD_BIN"); path != "" {
		return filepath.Abs(path)
	}
	return etcdTool()
}

// Etcdctl answers the path of stock etcdctl v3.7.3.
func Etcdctl() (string, error) { return etcdctlTool() }

// Etcdutl answers the path of stock etcdutl v3.7.3.
func Etcdutl() (string, error) { return etcdutlTool() }
