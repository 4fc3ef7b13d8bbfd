// Package manifests holds packaging/helm and packaging/kubernetes to Kubernetes' own types, and the
// one to the other. It is a module of its own, since Helm and Kubernetes bring many others along.
package manifests
