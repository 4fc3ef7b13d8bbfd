// Package discovery starts members that have no data yet: by a discovery service, where
// founders of one kind find each other in a server of the other, and into clusters that
// must turn them away, where the refusals of both kinds are compared.
package discovery
