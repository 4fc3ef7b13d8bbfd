// Package documented does what docs/MIGRATE.md, docs/OPERATIONS.md and a part of README say, with the commands that stand
// there, and compares what was before with what is afterwards. It also starts members as the
// manifests in packaging/kubernetes do.
package documented
