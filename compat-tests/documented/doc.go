// Package documented does what docs/MIGRATE.md says, with the commands that stand
// there, and compares what was before with what is afterwards.
package documented
