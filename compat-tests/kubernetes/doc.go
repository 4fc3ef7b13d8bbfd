// Package kubernetes runs a real kube-apiserver on etched and on etcd, does the same things by its
// API, and compares: what is stored, and what the API server complains of in its log. The
// kube-apiserver is a tool of the module in apiserver/, and scripts/test kubernetes builds it;
// KUBE_APISERVER names it.
//
// There are three API servers on one store, since each asks it differently: with the defaults, with
// lists and watches that pass the cache by, and the same without RangeStream, as before Kubernetes
// 1.37. Each of them also compacts, and one of them at a time may.
//
// What the API server asks of a store and no other package of compat-tests has is tested on its own,
// without an API server, in contract_test.go.
package kubernetes
