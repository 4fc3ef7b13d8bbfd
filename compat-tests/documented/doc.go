// Package documented does what docs/MIGRATE.md and docs/OPERATIONS.md say, with the commands that stand
// there, and compares what was before with what is afterwards. It also starts members as the
// manifests in packaging/kubernetes do.
package documented
