//! Who is next, where computations wait: one line for each address, and within it one for each
//! name. The addresses take turns, and so do the names of each.
//!
//! So a client who asks for a thousand is as far from another's first as the other's own number of
//! waiting ones, and a flood for many names from one address is one address. Where the room is
//! full, the newest of the longest line gives its place to one of a shorter line. A flood from many
//! addresses gets as many turns: there is no telling it from as many clients.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};

use crate::types::Remote;

/// Where a request comes from; none for those of this machine without an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source(Option<IpAddr>);

impl From<Remote> for Source {
    /// The last half of an IPv6 address is its owner's to choose.
    fn from(remote: Remote) -> Self {
        let address = remote.ip().map(|address| address.to_canonical());
        Self(address.map(|address| match address {
            IpAddr::V6(address) => {
                let network = address.to_bits() >> 64 << 64;
                IpAddr::V6(Ipv6Addr::from_bits(network))
            }
            address => address,
        }))
    }
}

/// For whom something waits: an address, and the user that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requester {
    pub source: Source,
    pub name: String,
}

/// Of one name.
struct Line<T> {
    name: String,
    waiting: VecDeque<T>,
}

/// Of one address, which has one at least.
struct Lines<T> {
    source: Source,
    of_names: VecDeque<Line<T>>,
    count: usize,
}

/// See the module. An address or a name that has nothing waiting is not in it.
pub struct Room<T> {
    max: usize,
    of_sources: VecDeque<Lines<T>>,
    count: usize,
}

impl<T> Room<T> {
    pub fn for_most(max: usize) -> Self {
        Self {
            max,
            of_sources: VecDeque::new(),
            count: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    /// Has it wait. Returns what has to leave instead, which may be itself.
    pub fn enter(&mut self, requester: Requester, item: T) -> Option<T> {
        let mut left = None;
        if self.count >= self.max {
            let own = self.lines_of(requester.source).map_or(0, |own| own.count);
            let longest = self.of_sources.iter_mut().max_by_key(|lines| lines.count);
            match longest {
                Some(longest) if longest.count > own + 1 => left = longest.leave(),
                _ => return Some(item),
            }
            self.count -= usize::from(left.is_some());
        }
        if self.lines_of(requester.source).is_none() {
            self.of_sources.push_back(Lines {
                source: requester.source,
                of_names: VecDeque::new(),
                count: 0,
            });
        }
        if let Some(lines) = self.lines_of(requester.source) {
            lines.enter(requester.name, item);
            self.count += 1;
        }
        left
    }

    /// Takes who is next.
    pub fn next(&mut self) -> Option<T> {
        let mut lines = self.of_sources.pop_front()?;
        let item = lines.next();
        self.count -= usize::from(item.is_some());
        if lines.count > 0 {
            self.of_sources.push_back(lines);
        }
        item
    }

    /// Drops those who do not wait any more.
    pub fn keep(&mut self, mut waits: impl FnMut(&T) -> bool) {
        for lines in &mut self.of_sources {
            for line in &mut lines.of_names {
                line.waiting.retain(&mut waits);
            }
            lines.of_names.retain(|line| !line.waiting.is_empty());
            lines.count = lines.of_names.iter().map(|line| line.waiting.len()).sum();
        }
        self.of_sources.retain(|lines| lines.count > 0);
        self.count = self.of_sources.iter().map(|lines| lines.count).sum();
    }

    fn lines_of(&mut self, source: Source) -> Option<&mut Lines<T>> {
        self.of_sources
            .iter_mut()
            .find(|lines| lines.source == source)
    }
}

impl<T> Lines<T> {
    fn enter(&mut self, name: String, item: T) {
        self.count += 1;
        match self.of_names.iter_mut().find(|line| line.name == name) {
            Some(line) => line.waiting.push_back(item),
            None => self.of_names.push_back(Line {
                name,
                waiting: VecDeque::from([item]),
            }),
        }
    }

    fn next(&mut self) -> Option<T> {
        let mut line = self.of_names.pop_front()?;
        let item = line.waiting.pop_front();
        self.count -= usize::from(item.is_some());
        if !line.waiting.is_empty() {
            self.of_names.push_back(line);
        }
        item
    }

    /// Takes the newest of the longest line; never the last of all.
    fn leave(&mut self) -> Option<T> {
        let lines = self.of_names.iter_mut();
        let longest = lines.max_by_key(|line| line.waiting.len())?;
        let item = longest.waiting.pop_back();
        self.count -= usize::from(item.is_some());
        self.of_names.retain(|line| !line.waiting.is_empty());
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requester(address: &str, name: &str) -> Requester {
        let address: IpAddr = address.parse().expect("an address");
        Requester {
            source: Remote::Tcp((address, 1).into()).into(),
            name: name.to_owned(),
        }
    }

    /// Everything, in order.
    fn drained(room: &mut Room<String>) -> String {
        let all: Vec<_> = std::iter::from_fn(|| room.next()).collect();
        assert_eq!((room.len(), room.of_sources.len()), (0, 0));
        all.join(" ")
    }

    /// Each word enters: `address/name`, numbered by itself.
    fn room(max: usize, words: &str) -> (Room<String>, Vec<String>) {
        let (mut room, mut left) = (Room::for_most(max), Vec::new());
        for (number, word) in words.split_whitespace().enumerate() {
            let (address, name) = word.split_once('/').expect("a name");
            let requester = requester(&format!("10.0.0.{address}"), name);
            left.extend(room.enter(requester, format!("{word}{number}")));
            assert!(room.len() <= max);
        }
        (room, left)
    }

    #[test]
    fn addresses_take_turns_and_so_do_their_names() {
        for (words, expected) in [
            ("", ""),
            ("1/a 1/a 1/a", "1/a0 1/a1 1/a2"),
            ("1/a 1/a 1/a 2/a", "1/a0 2/a3 1/a1 1/a2"),
            ("1/a 1/a 1/a 1/b 2/a 2/a", "1/a0 2/a4 1/b3 2/a5 1/a1 1/a2"),
            ("1/a 1/b 1/c 2/c 3/c", "1/a0 2/c3 3/c4 1/b1 1/c2"),
        ] {
            let (mut room, left) = room(100, words);
            assert!(left.is_empty());
            assert_eq!(drained(&mut room), expected, "{words}");
        }
    }

    #[test]
    fn who_has_many_gives_way_to_who_has_few() {
        for (words, left, expected) in [
            // The newest one of the longest line, and of its longest name's.
            ("1/a 1/a 1/b 2/a", "1/a1", "1/a0 2/a3 1/b2"),
            ("1/a 1/a 1/a 2/a 2/a", "1/a2 2/a4", "1/a0 2/a3 1/a1"),
            ("1/a 1/a 1/a 1/b", "1/b3", "1/a0 1/a1 1/a2"),
            ("1/a 2/a 3/a 4/a", "4/a3", "1/a0 2/a1 3/a2"),
        ] {
            let (mut room, found) = room(3, words);
            assert_eq!(found.join(" "), left, "{words}");
            assert_eq!(drained(&mut room), expected, "{words}");
        }
    }

    #[test]
    fn who_left_has_no_place() {
        let (mut room, _) = room(100, "1/a 1/a 1/b 2/a 3/a");
        room.keep(|item| !item.starts_with("1/b") && !item.starts_with("3/"));
        assert_eq!(room.len(), 3);
        assert_eq!(drained(&mut room), "1/a0 2/a3 1/a1");
    }

    #[test]
    fn the_part_of_an_address_that_its_owner_chooses_does_not_count() {
        for (one, other, same) in [
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            let same_requester = requester(one, "a") == requester(other, "a");
            assert_eq!(same_requester, same, "{one} {other}");
        }
    }
}
