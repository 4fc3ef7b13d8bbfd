package crash

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"sort"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// firstRevision is the revision of an empty store; the first write makes the next.
const firstRevision = 1

// History is every change of a keyspace from its first revision on. It grows by
// whole revisions, in order. Safe for use by several goroutines.
type History struct {
	mu     sync.RWMutex
	revs   [][]*mvccpb.Event // revs[i] made revision firstRevision+1+i
	seen   []time.Time       // seen[i] is when revs[i] arrived
	keys   map[string][]version
	sorted []string // the keys of the map, in order
}

// version is one change of a key: kv is nil for a deletion.
type version struct {
	main, sub int64
	kv        *mvccpb.KeyValue
}

// NewHistory is the history of an empty store.
func NewHistory() *History { return &History{keys: map[string][]version{}} }

// Head is the last revision recorded.
func (h *History) Head() int64 {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.head()
}

func (h *History) head() int64 { return firstRevision + int64(len(h.revs)) }

// Append adds one whole revision and answers what in it contradicts the history
// before it: its number, create and mod revisions, versions, previous values.
func (h *History) Append(events []*mvccpb.Event, now time.Time) (faults []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	revision := events[0].Kv.ModRevision
	if want := h.head() + 1; revision != want {
		return []string{fmt.Sprintf("revision %d came where %d was due: %s", revision, want, describeEvents(events))}
	}
	h.revs, h.seen = append(h.revs, events), append(h.seen, now)
	for sub, event := range events {
		key := string(event.Kv.Key)
		before := h.latest(key)
		for _, fault := range eventFaults(event, before, revision) {
			faults = append(faults, fmt.Sprintf("revision %d, change %d: %s: %s", revision, sub, fault, DescribeEvent(event)))
		}
		change := version{main: revision, sub: int64(sub)}
		if event.Type == mvccpb.Event_PUT {
			change.kv = event.Kv
		}
		if _, known := h.keys[key]; !known {
			at, _ := slices.BinarySearch(h.sorted, key)
			h.sorted = slices.Insert(h.sorted, at, key)
		}
		h.keys[key] = append(h.keys[key], change)
	}
	return faults
}

func eventFaults(event *mvccpb.Event, before *mvccpb.KeyValue, revision int64) (faults []string) {
	kv := event.Kv
	if kv.ModRevision != revision {
		faults = append(faults, fmt.Sprintf("mod_revision %d", kv.ModRevision))
	}
	if !proto.Equal(event.PrevKv, before) {
		faults = append(faults, fmt.Sprintf("prev_kv is %s, the version before was %s", describe(event.PrevKv), describe(before)))
	}
	if event.Type == mvccpb.Event_DELETE {
		if before == nil {
			faults = append(faults, "deletion of a key that did not exist")
		}
		if !proto.Equal(kv, &mvccpb.KeyValue{Key: kv.Key, ModRevision: revision}) {
			faults = append(faults, "a deletion carries more than key and mod_revision")
		}
		return faults
	}
	created, number := revision, int64(1)
	if before != nil {
		created, number = before.CreateRevision, before.Version+1
	}
	if kv.CreateRevision != created || kv.Version != number {
		faults = append(faults, fmt.Sprintf("create_revision %d version %d, expected %d and %d",
			kv.CreateRevision, kv.Version, created, number))
	}
	return faults
}

func (h *History) latest(key string) *mvccpb.KeyValue {
	if all := h.keys[key]; len(all) > 0 {
		return all[len(all)-1].kv
	}
	return nil
}

// Events answers the changes of one revision, nil where there is no such revision.
func (h *History) Events(revision int64) []*mvccpb.Event {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.events(revision)
}

func (h *History) events(revision int64) []*mvccpb.Event {
	if revision <= firstRevision || revision > h.head() {
		return nil
	}
	return h.revs[revision-firstRevision-1]
}

// At answers the version of a key that a read at this revision returns, or nil.
func (h *History) At(key string, revision int64) *mvccpb.KeyValue {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.at(key, revision)
}

func (h *History) at(key string, revision int64) *mvccpb.KeyValue {
	all := h.keys[key]
	n := sort.Search(len(all), func(i int) bool { return all[i].main > revision })
	if n == 0 {
		return nil
	}
	return all[n-1].kv
}

// Snapshot answers the live keys of [start, end) at a revision, in key order.
func (h *History) Snapshot(keys Interval, revision int64) []*mvccpb.KeyValue {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var live []*mvccpb.KeyValue
	from, _ := slices.BinarySearch(h.sorted, keys.Key)
	for _, key := range h.sorted[from:] {
		if !keys.Holds(key) {
			break
		}
		if kv := h.at(key, revision); kv != nil {
			live = append(live, kv)
		}
	}
	return live
}

// Attached answers the keys that hold a lease at a revision, in key order.
func (h *History) Attached(lease, revision int64) []string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var attached []string
	for _, key := range h.sorted {
		if kv := h.at(key, revision); kv != nil && kv.Lease == lease {
			attached = append(attached, key)
		}
	}
	return attached
}

// SeenAt answers when a recorded revision arrived.
func (h *History) SeenAt(revision int64) time.Time {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.seen[revision-firstRevision-1]
}

// HashKV is etcd v3.7.3's HashKV of a store compacted at `compacted` (-1: never),
// read at `revision`: CRC-32C over the bucket's name and then, in revision order,
// the 17 bytes of each revision (and a 't' for a deletion) and the stored
// KeyValue. Of what is at or below the compacted revision only what is still
// live at `revision` counts (server/storage/mvcc/hash.go, key_index.go).
func (h *History) HashKV(compacted, revision int64) uint32 {
	h.mu.RLock()
	defer h.mu.RUnlock()
	hash := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	hash.Write([]byte("key"))
	var name [18]byte
	for main := int64(firstRevision + 1); main <= min(revision, h.head()); main++ {
		for sub, event := range h.events(main) {
			deletion := event.Type == mvccpb.Event_DELETE
			if main <= compacted && (deletion || h.at(string(event.Kv.Key), revision) != event.Kv) {
				continue
			}
			stored := event.Kv
			if deletion {
				stored = &mvccpb.KeyValue{Key: event.Kv.Key}
			}
			binary.BigEndian.PutUint64(name[0:], uint64(main))
			name[8] = '_'
			binary.BigEndian.PutUint64(name[9:], uint64(sub))
			name[17] = 't'
			length := 17
			if deletion {
				length = 18
			}
			hash.Write(name[:length])
			encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(stored)
			if err != nil {
				panic(fmt.Sprintf("a received KeyValue cannot be encoded: %v", err))
			}
			hash.Write(encoded)
		}
	}
	return hash.Sum32()
}

// Interval is a range of keys as the wire has it: [Key, End); an empty End means
// the one key, "\x00" means from Key on.
type Interval struct{ Key, End string }

// Everything is the whole keyspace.
var Everything = Interval{Key: "\x00", End: "\x00"}

// Prefix is the interval of all keys that begin with p, which must not be empty
// and must not end in 0xff.
func Prefix(p string) Interval {
	end := []byte(p)
	end[len(end)-1]++
	return Interval{Key: p, End: string(end)}
}

// Holds says whether the key lies in the interval.
func (i Interval) Holds(key string) bool {
	switch i.End {
	case "":
		return key == i.Key
	case "\x00":
		return key >= i.Key
	default:
		return key >= i.Key && key < i.End
	}
}

func describe(kv *mvccpb.KeyValue) string {
	if kv == nil {
		return "absent"
	}
	value := string(kv.Value)
	if token, _, found := bytes.Cut(kv.Value, []byte{' '}); found {
		value = fmt.Sprintf("%s +%d bytes", token, len(kv.Value)-len(token))
	}
	return fmt.Sprintf("%s={%s} create %d mod %d version %d lease %x",
		kv.Key, value, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease)
}

// DescribeEvent says in a line what an event did.
func DescribeEvent(event *mvccpb.Event) string {
	return event.Type.String() + " " + describe(event.Kv)
}

func describeEvents(events []*mvccpb.Event) string {
	const shown = 6
	var text string
	for i, event := range events {
		if i == shown {
			return text + fmt.Sprintf("; and %d more", len(events)-shown)
		}
		if i > 0 {
			text += "; "
		}
		text += DescribeEvent(event)
	}
	return text
}
