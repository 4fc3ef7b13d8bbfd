// Package offline runs the commands for what a stopped member left: on whole
// directories, on those of a killed member, and on damaged ones, which they name
// and leave as they are.
package offline
