// Package random applies seeded sequences of operations to etched and to etcd
// and compares every answer and every watch event.
//
// One sequence runs on one fresh pair of servers, one operation at a time, so
// that a seed always gives the same run. A failing sequence is cut down to a
// few operations that still fail before it is printed.
package random
