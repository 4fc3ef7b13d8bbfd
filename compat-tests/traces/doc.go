// Package traces runs both servers with a collector of traces each, makes the
// same calls in traces of their client's, and compares the spans: which there
// are, below which, with which attributes and events. It also takes the
// collector away.
package traces
