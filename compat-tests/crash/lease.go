package crash

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Lease is one lease that a client asked for.
type Lease struct {
	ID, TTL int64
	// Before is when the grant was about to be sent: no clock of the server's can
	// have started earlier.
	Before  time.Time
	Granted Outcome
	// RevokeTried says that Revoked holds the outcome of a revocation.
	RevokeTried bool
	Revoked     Outcome
}

// MayHaveEnded says whether a lease can be gone at this time.
func (l *Lease) MayHaveEnded(now time.Time) bool {
	return l.Granted != Acknowledged ||
		l.RevokeTried && l.Revoked != Refused ||
		!now.Before(l.Before.Add(time.Duration(l.TTL)*time.Second))
}

// longTTL leases outlive every test; the others are meant to expire in it.
const longTTL = 3600

// Leases are all leases ever asked for. Safe for use by several goroutines.
type Leases struct {
	mu   sync.Mutex
	byID map[int64]*Lease
	last int64
}

// NewLeases begins its ids at a number that is easy to tell from others.
func NewLeases() *Leases { return &Leases{byID: map[int64]*Lease{}, last: 0x1ea5e000} }

// New registers a lease that is about to be asked for.
func (l *Leases) New(ttl int64) Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	lease := &Lease{ID: l.last, TTL: ttl, Before: time.Now()}
	l.byID[lease.ID] = lease
	return *lease
}

// Granted records the outcome of the grant.
func (l *Leases) Granted(id int64, outcome Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.byID[id].Granted = outcome
}

// Revoking records a revocation about to be sent; Revoked its outcome.
func (l *Leases) Revoking(id int64) { l.Revoked(id, Unknown) }

// Revoked records the outcome of a revocation.
func (l *Leases) Revoked(id int64, outcome Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.byID[id].RevokeTried, l.byID[id].Revoked = true, outcome
}

// Get answers a lease by its id.
func (l *Leases) Get(id int64) (Lease, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lease, known := l.byID[id]
	if !known {
		return Lease{}, false
	}
	return *lease, true
}

// All answers every lease, by id.
func (l *Leases) All() []Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Lease, 0, len(l.byID))
	for _, lease := range l.byID {
		all = append(all, *lease)
	}
	slices.SortFunc(all, func(a, b Lease) int { return int(a.ID - b.ID) })
	return all
}

// Usable draws one of the newest long leases that nobody tried to revoke, or 0.
func (l *Leases) Usable(rng *rand.Rand) int64 {
	const newest = 8
	l.mu.Lock()
	defer l.mu.Unlock()
	var usable []int64
	for id := l.last; id > 0 && len(usable) < newest; id-- {
		lease, known := l.byID[id]
		if !known {
			break
		}
		if lease.TTL == longTTL && lease.Granted == Acknowledged && !lease.RevokeTried {
			usable = append(usable, id)
		}
	}
	if len(usable) == 0 {
		return 0
	}
	return usable[rng.IntN(len(usable))]
}
