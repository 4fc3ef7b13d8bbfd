//! What is on its way between members: each link delivers in order, and only when a script says so.

use std::collections::{BTreeMap, VecDeque};

use crate::types::MemberId;

/// From whom to whom.
pub type Link = (MemberId, MemberId);

/// See the module.
pub struct Links<T> {
    queues: BTreeMap<Link, VecDeque<T>>,
}

impl<T> Default for Links<T> {
    fn default() -> Self {
        Self {
            queues: BTreeMap::new(),
        }
    }
}

impl<T> Links<T> {
    pub fn send(&mut self, link: Link, message: T) {
        self.queues.entry(link).or_default().push_back(message);
    }

    /// Takes the first `limit` messages of each link that is meant.
    pub fn take(&mut self, meant: impl Fn(&Link) -> bool, limit: usize) -> Vec<(Link, T)> {
        let mut taken = Vec::new();
        for (link, queue) in self.queues.iter_mut().filter(|(link, _)| meant(link)) {
            let count = queue.len().min(limit);
            taken.extend(queue.drain(..count).map(|message| (*link, message)));
        }
        taken
    }

    pub fn iter(&self) -> impl Iterator<Item = (Link, &T)> {
        let queues = self.queues.iter();
        queues.flat_map(|(link, queue)| queue.iter().map(|message| (*link, message)))
    }
}

/// `1->2`, `1->*` or `*->2`: the links that are meant.
pub fn meant(text: &str) -> impl Fn(&Link) -> bool {
    let (from, to) = text.split_once("->").expect("FROM->TO");
    let end = |text: &str| (text != "*").then(|| MemberId(text.parse().expect("a member")));
    let (from, to) = (end(from), end(to));
    move |link| from.is_none_or(|from| from == link.0) && to.is_none_or(|to| to == link.1)
}
