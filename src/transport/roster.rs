//! The peers that this member can reach: those that the state lists, and unlisted ones that called.
//!
//! A member that was stopped for a while may be called by a leader that joined in the meantime. Its
//! state lists the leader only after it has the leader's entries, and those come only if it answers.
//! So a caller sends its peer URLs, and is answered there until the state lists it.

use std::collections::BTreeMap;

use super::Peer;
use crate::types::MemberId;

/// The number of unlisted peers that are remembered: each costs connections. One more takes the place
/// of the one that was learned first, which is learned again when it calls again.
pub const MAX_UNLISTED_PEERS: usize = 8;
/// The number of a caller's URLs that are remembered.
const MAX_LEARNED_URLS: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct Roster {
    own: MemberId,
    own_urls: Vec<String>,
    listed: BTreeMap<MemberId, Vec<String>>,
    /// The URLs of each, and its number among all that were learned.
    learned: BTreeMap<MemberId, (Vec<String>, u64)>,
    learned_so_far: u64,
}

impl Roster {
    /// For a member with these peer URLs, as far as it knows them.
    pub fn new(own: MemberId, own_urls: Vec<String>) -> Self {
        Self {
            own,
            own_urls,
            listed: BTreeMap::new(),
            learned: BTreeMap::new(),
            learned_so_far: 0,
        }
    }

    /// Sets the members of the state, with or without this one. Former members are forgotten; an
    /// unlisted peer stays unless it was removed for good.
    pub fn list(&mut self, members: Vec<Peer>, is_removed: impl Fn(MemberId) -> bool) {
        let now: BTreeMap<_, _> = members
            .into_iter()
            .map(|peer| (peer.member, peer.urls))
            .collect();
        let before = std::mem::replace(&mut self.listed, now);
        if let Some(urls) = self.listed.remove(&self.own) {
            self.own_urls = urls;
        }
        let listed = &self.listed;
        self.learned.retain(|member, _| {
            let left = before.contains_key(member) && !listed.contains_key(member);
            !left && !is_removed(*member)
        });
    }

    /// Forgets everyone.
    pub fn clear(&mut self) {
        self.listed.clear();
        self.learned.clear();
    }

    /// A member called and sent its peer URLs. True if they change how it can be reached.
    pub fn learn(&mut self, caller: MemberId, urls: &[String]) -> bool {
        let urls = &urls[..urls.len().min(MAX_LEARNED_URLS)];
        let known = self.listed.get(&caller);
        let known = known.is_some_and(|listed| urls.iter().all(|url| listed.contains(url)));
        if known || urls.is_empty() || caller == self.own {
            // URLs learned before are outdated.
            return !urls.is_empty() && self.learned.remove(&caller).is_some();
        }
        if self
            .learned
            .get(&caller)
            .is_some_and(|(learned, _)| learned == urls)
        {
            return false;
        }
        if !self.listed.contains_key(&caller) && !self.learned.contains_key(&caller) {
            self.make_place();
        }
        self.learned_so_far += 1;
        let learned = (urls.to_vec(), self.learned_so_far);
        self.learned.insert(caller, learned);
        true
    }

    /// Forgets the unlisted peer that was learned first, where no more may be remembered.
    fn make_place(&mut self) {
        let listed = &self.listed;
        let unlisted = self.learned.iter();
        let unlisted = unlisted.filter(|(member, _)| !listed.contains_key(member));
        let unlisted: Vec<_> = unlisted.map(|(member, (_, at))| (*at, *member)).collect();
        if unlisted.len() >= MAX_UNLISTED_PEERS
            && let Some((_, first)) = unlisted.into_iter().min()
        {
            self.learned.remove(&first);
        }
    }

    /// All reachable peers. The URLs in the state come first.
    pub fn peers(&self) -> Vec<Peer> {
        let mut peers = self.listed.clone();
        for (member, (learned, _)) in &self.learned {
            let urls = peers.entry(*member).or_default();
            for url in learned {
                if !urls.contains(url) {
                    urls.push(url.clone());
                }
            }
        }
        let peers = peers.into_iter();
        peers.map(|(member, urls)| Peer { member, urls }).collect()
    }

    /// True for a member of the state, or before there is one for those that this member joins by.
    pub fn lists(&self, member: MemberId) -> bool {
        self.listed.contains_key(&member)
    }

    /// True if the member can be reached.
    #[cfg(any(test, feature = "simulation"))]
    pub fn knows(&self, member: MemberId) -> bool {
        self.listed.contains_key(&member) || self.learned.contains_key(&member)
    }

    /// The peer URLs of this member, as its state has them once it lists the member.
    pub fn own_urls(&self) -> &[String] {
        &self.own_urls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// "2 a b, 3 c": member 2 at a and b, member 3 at c.
    fn members(text: &str) -> Vec<Peer> {
        let peers = text.split(", ").filter(|peer| !peer.is_empty());
        let peer = |text: &str| {
            let (id, rest) = text.split_once(' ').unwrap_or((text, ""));
            Peer {
                member: MemberId(id.parse().expect("an id")),
                urls: urls(rest),
            }
        };
        peers.map(peer).collect()
    }

    fn roster(listed: &str) -> Roster {
        let mut roster = Roster::new(MemberId(1), urls("own"));
        roster.list(members(listed), |_| false);
        roster
    }

    #[test]
    fn a_caller_that_the_state_does_not_name_is_reached_where_it_says() {
        let mut roster = roster("1 here, 2 a");
        assert_eq!(roster.own_urls(), urls("here"));
        assert!(!roster.knows(MemberId(3)));
        assert!(roster.learn(MemberId(3), &urls("c")));
        assert!(!roster.learn(MemberId(3), &urls("c")));
        assert!(roster.lists(MemberId(2)) && !roster.lists(MemberId(3)));
        assert_eq!(roster.peers(), members("2 a, 3 c"));
        // A change of other members has no effect.
        roster.list(members("1 here, 2 a, 4 d"), |_| false);
        assert_eq!(roster.peers(), members("2 a, 3 c, 4 d"));
        // The state lists it, then no longer.
        roster.list(members("2 a, 3 c"), |_| false);
        assert_eq!(roster.peers(), members("2 a, 3 c"));
        roster.list(members("2 a"), |_| false);
        assert_eq!(roster.peers(), members("2 a"));
    }

    #[test]
    fn a_caller_that_moved_is_tried_at_both_places() {
        let mut roster = roster("2 a");
        assert!(!roster.learn(MemberId(2), &urls("a")));
        assert!(roster.learn(MemberId(2), &urls("b a")));
        assert_eq!(roster.peers(), members("2 a b"));
        assert!(roster.learn(MemberId(2), &urls("a")));
        assert_eq!(roster.peers(), members("2 a"));
    }

    #[test]
    fn those_who_are_removed_or_say_nothing_are_nobody() {
        let mut roster = roster("2 a");
        assert!(!roster.learn(MemberId(3), &[]));
        assert!(!roster.learn(MemberId(1), &urls("x")));
        assert!(roster.learn(MemberId(4), &urls("d")));
        roster.list(members("2 a"), |member| member == MemberId(4));
        assert_eq!(roster.peers(), members("2 a"));
        assert_eq!(roster.own_urls(), urls("own"));
        roster.clear();
        assert_eq!(roster.peers(), []);
    }

    #[test]
    fn unlisted_peers_have_a_bound() {
        let mut roster = roster("2 a");
        for id in 10..10 + 2 * MAX_UNLISTED_PEERS as u64 {
            roster.learn(MemberId(id), &vec![format!("{id}"); 2 * MAX_LEARNED_URLS]);
        }
        assert_eq!(roster.peers().len(), 1 + MAX_UNLISTED_PEERS);
        // Members of the state are none.
        assert!(roster.learn(MemberId(2), &urls("b")));
        // The newest ones are known, and one that was forgotten is again when it calls.
        let knows = |roster: &Roster, id| roster.knows(MemberId(id));
        assert!(!knows(&roster, 17) && knows(&roster, 18) && knows(&roster, 25));
        assert!(roster.learn(MemberId(10), &urls("j")));
        assert!(!knows(&roster, 18) && knows(&roster, 10) && knows(&roster, 2));
    }
}
