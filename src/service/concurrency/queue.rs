//! Whose turn it is: the keys below one prefix in the order of their creation, and who waits for
//! those before his own to go.
//!
//! A waiter is the one whose key was created at some revision; its turn has come when no key with a
//! lower create revision is left. New keys are always created behind all others, so that never
//! ceases to be true.
//!
//! ```text
//!                begin: the first keys, as of a revision
//!   (not begun) ------------------------------------------> following
//!        ^                                                      |
//!        |  lost: events are gone, or                           |
//!        |  the keys that it holds have all gone and            |
//!        +------------------------------------------------------+
//!           there are others behind them
//! ```
//!
//! Only the first keys are held, up to a bound, since a prefix can have any number of them; with
//! all of those gone it has to begin anew. So an event costs the logarithm of what is held, each
//! waiter is woken once, and all keys are read once for each `MAX_KEYS` that go.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use crate::probe::{self, Defect};

/// Keys held at once.
pub const MAX_KEYS: usize = 256;
/// What a key takes beside its bytes.
const KEY_BYTES: usize = 160;

/// What a waiter learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Its turn has come: its key was there as of this revision, and nobody before it.
    First(i64),
    /// Somebody is before it.
    Behind,
    /// Its turn has come after that, or its own key has gone: nobody is before it, and whether its
    /// key is still there has to be checked.
    Reached,
}

struct Waiter<W> {
    waiter: W,
    /// Somebody was seen before it.
    behind: bool,
}

/// See the module. `W` is what a waiter is notified by.
pub struct WaitQueue<W> {
    /// What the keys may take that are held.
    capacity_bytes: usize,
    used_bytes: usize,
    /// By create revision; a transaction may create several at one.
    keys: BTreeSet<(i64, Bytes)>,
    created: HashMap<Bytes, i64>,
    /// No key lies behind those that are held.
    complete: bool,
    /// Everything up to this revision is known; None where it has not begun.
    known: Option<i64>,
    /// By create revision, then by number.
    waiters: BTreeMap<(i64, u64), Waiter<W>>,
    /// Those of them that were not checked yet.
    fresh: Vec<(i64, u64)>,
    next_number: u64,
}

impl<W> WaitQueue<W> {
    pub fn new(capacity_bytes: usize) -> Self {
        Self {
            capacity_bytes,
            used_bytes: 0,
            keys: BTreeSet::new(),
            created: HashMap::new(),
            complete: false,
            known: None,
            waiters: BTreeMap::new(),
            fresh: Vec::new(),
            next_number: 0,
        }
    }

    /// What the keys may take from the next `begin` on; one is held in any case.
    pub fn set_capacity(&mut self, bytes: usize) {
        self.capacity_bytes = bytes;
    }

    /// The first keys below the prefix, with their create revisions in order, as of `revision`;
    /// `complete` if these are all.
    pub fn begin(
        &mut self,
        keys: impl IntoIterator<Item = (i64, Bytes)>,
        complete: bool,
        revision: i64,
    ) {
        self.keys.clear();
        self.created.clear();
        self.used_bytes = 0;
        self.complete = true;
        for (created, key) in keys {
            self.append(created, key);
        }
        self.complete &= complete;
        self.known = Some(revision);
    }

    /// Events were lost.
    pub fn lost(&mut self) {
        self.known = None;
    }

    /// A key was put.
    pub fn put(&mut self, key: &[u8], created: i64, modified: i64) {
        if created == modified {
            self.append(created, Bytes::copy_from_slice(key));
        } else if probe::injected(Defect::PutEndsTurn) {
            self.deleted(key);
        }
    }

    pub fn deleted(&mut self, key: &[u8]) {
        if let Some((key, created)) = self.created.remove_entry(key) {
            self.used_bytes -= cost(&key);
            let place = (created, key);
            if probe::injected(Defect::NearestAlone) {
                self.keys = self.keys.split_off(&place);
            }
            self.keys.remove(&place);
        }
    }

    /// All events up to this revision were seen.
    pub fn reached(&mut self, revision: i64) {
        if let Some(known) = &mut self.known {
            *known = revision.max(*known);
        }
    }

    /// A key that was created behind all others.
    fn append(&mut self, created: i64, key: Bytes) {
        let used_bytes = self.used_bytes + cost(&key);
        let fits = self.keys.len() < MAX_KEYS && used_bytes <= self.capacity_bytes;
        if !self.complete || !(fits || self.keys.is_empty()) {
            self.complete = false;
            return;
        }
        self.used_bytes = used_bytes;
        self.created.insert(key.clone(), created);
        self.keys.insert((created, key));
    }

    /// Who waits until nothing is left that was created before; returns what `leave` takes.
    pub fn join(&mut self, created: i64, waiter: W) -> (i64, u64) {
        let place = (created, self.next_number);
        self.next_number += 1;
        let behind = false;
        self.waiters.insert(place, Waiter { waiter, behind });
        self.fresh.push(place);
        place
    }

    pub fn leave(&mut self, place: (i64, u64)) {
        self.waiters.remove(&place);
    }

    /// Tells those whose turn has come, who are no longer in it, and each who is seen to be behind
    /// somebody, once.
    pub fn turns(&mut self, mut tell: impl FnMut(&W, Turn)) {
        let Some(known) = self.known else {
            return;
        };
        let first = match self.keys.first() {
            Some((created, _)) => *created,
            // No key is left at all.
            None if self.complete => i64::MAX,
            None => return,
        };
        let is_there = |created| created == first || probe::injected(Defect::FirstUnseen);
        while let Some(entry) = self.waiters.first_entry() {
            let (created, _) = *entry.key();
            if created > known || created > first {
                break;
            }
            let Waiter { waiter, behind } = entry.remove();
            let is_first = !behind && is_there(created);
            tell(
                &waiter,
                if is_first {
                    Turn::First(known)
                } else {
                    Turn::Reached
                },
            );
        }
        let waiters = &mut self.waiters;
        self.fresh.retain(|place| match waiters.get_mut(place) {
            Some(waiter) if place.0 <= known => {
                waiter.behind = true;
                tell(&waiter.waiter, Turn::Behind);
                false
            }
            waiter => waiter.is_some(),
        });
    }

    /// It has to begin anew.
    pub fn is_lost(&self) -> bool {
        self.known.is_none() || self.keys.is_empty() && !self.complete
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }
}

fn cost(key: &[u8]) -> usize {
    KEY_BYTES + key.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script;

    /// What keys may take that a script does not say otherwise for.
    const CAPACITY_BYTES: usize = 1 << 20;

    fn number(text: &str) -> i64 {
        text.parse().expect("a number")
    }

    /// `key@created`.
    fn pair(text: &str) -> (i64, Bytes) {
        let (key, created) = text.split_once('@').expect("key@revision");
        (number(created), Bytes::copy_from_slice(key.as_bytes()))
    }

    /// Plays a command and prints whose turn has come, and if the queue has to begin anew.
    fn play(
        queue: &mut WaitQueue<String>,
        places: &mut HashMap<String, (i64, u64)>,
        command: &str,
    ) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["capacity", bytes] => queue.set_capacity(number(bytes) as usize),
            ["begin", revision, ref keys @ .., complete] => {
                let keys = keys.iter().map(|key| pair(key));
                queue.begin(keys, complete == "all", number(revision));
            }
            ["put", key, modified] => {
                let (created, key) = pair(key);
                queue.put(&key, created, number(modified));
                queue.reached(number(modified));
            }
            ["deleted", key, revision] => {
                queue.deleted(key.as_bytes());
                queue.reached(number(revision));
            }
            ["reached", revision] => queue.reached(number(revision)),
            ["lost"] => queue.lost(),
            ["join", who] => {
                let (created, name) = pair(who);
                let name = String::from_utf8(name.to_vec()).expect("a name");
                places.insert(name.clone(), queue.join(created, name));
            }
            ["leave", name] => queue.leave(places[name]),
            _ => panic!("{command}"),
        }
        let mut printed = String::new();
        queue.turns(|who, turn| printed += &format!("{who}: {turn:?}\n"));
        if queue.is_lost() {
            printed += "has to begin\n";
        }
        printed
    }

    #[test]
    fn scripts_print_whose_turn_it_is() {
        let played = script::play_scenarios(
            "service/concurrency/testdata",
            || (WaitQueue::new(CAPACITY_BYTES), HashMap::new()),
            |(queue, places), command| play(queue, places, command),
        );
        assert!(played >= 8, "{played}");
    }

    /// Against all keys, from a seed: a turn comes when, and only when, none before it is left.
    #[test]
    fn turns_come_as_a_plain_search_says() {
        for seed in 0..200_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut below = |bound: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % bound
            };
            let (mut keys, mut waits) = (BTreeMap::<String, i64>::new(), Vec::new());
            // Room for three keys or so.
            let mut queue = WaitQueue::new(3 * KEY_BYTES + 12);
            for revision in 1..300_i64 {
                let key = format!("k{}", below(12));
                match keys.get(&key) {
                    None => {
                        queue.put(key.as_bytes(), revision, revision);
                        keys.insert(key, revision);
                        if below(2) == 0 {
                            queue.join(revision, revision);
                            waits.push(revision);
                        }
                    }
                    Some(created) if below(4) == 0 => {
                        queue.put(key.as_bytes(), *created, revision);
                    }
                    Some(_) => {
                        queue.deleted(key.as_bytes());
                        keys.remove(&key);
                    }
                }
                queue.reached(revision);
                if below(50) == 0 {
                    queue.lost();
                }
                if queue.is_lost() {
                    let all: BTreeSet<_> =
                        keys.iter().map(|(key, created)| (*created, key)).collect();
                    let first = all.iter().take(1 + below(5) as usize);
                    let first: Vec<_> = first
                        .map(|(created, key)| (*created, (*key).clone().into()))
                        .collect();
                    let complete = first.len() == all.len();
                    queue.begin(first, complete, revision);
                }
                let mut came = Vec::new();
                queue.turns(|created, turn| {
                    if turn != Turn::Behind {
                        came.push(*created);
                    }
                });
                came.sort_unstable();
                let (now, later): (Vec<_>, Vec<_>) = waits
                    .into_iter()
                    .partition(|waiter| keys.values().all(|created| created >= waiter));
                assert_eq!(came, now, "seed {seed}, revision {revision}");
                waits = later;
                assert!(queue.keys.len() <= 4 && queue.keys.len() == queue.created.len());
            }
        }
    }
}
