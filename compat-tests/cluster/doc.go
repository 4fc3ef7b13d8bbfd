// Package cluster gives three members bad days and checks that their clients
// never notice more than a pause.
//
// While a test kills, pauses, cuts off, fills or replaces members, clients put,
// delete, compare-and-set, read (linearizable), hold leases and watch, through
// every member and through all. Whatever they send and are answered is recorded
// with its times (Operation, Watch, Lease). When the fault is over and all
// members follow one leader again, the history of the keyspace is read from each
// of them, and Judge holds the record against it. It looks at nothing but this
// Evidence, so that damage can be written into a recorded one to see whether it
// is found: the tests of Judge do that.
//
// What is held against the evidence:
//   - the operations on each key are linearizable, by porcupine; a request whose
//     fate is open may have taken effect at any time after it was sent, or never;
//   - revisions never go back: a request that begins after another's answer sees at least
//     the revision of that answer;
//   - each acknowledged write made exactly the revision that it was answered, no write
//     made two, no revision came from nobody;
//   - every watch got every event, once and in order;
//   - all members have the same history, keys and HashKV at the same revision;
//   - no lease ended before its time.
//
// Time to the next successful write is counted from the moment of the fault and
// must be at most three election timeouts, and what -cluster.slack allows a
// machine that is busy.
package cluster
