//! Keeps values by key range and finds all ranges that a key lies in.
//!
//! Single keys sit in a hash map. Other ranges sit in an AVL tree ordered by start and end in
//! which each node knows the farthest end below it: a search leaves out every subtree that ends
//! before the key, so k ranges among n are found in O((k + 1) log n). Balance comes from the
//! tree's shape alone, because clients choose the ranges. Equal ranges share a node.
//!
//! Nodes live in one array and are named by their place in it, which is used again after
//! `remove`.

use std::cmp::Ordering;
use std::collections::HashMap;

use bytes::Bytes;

use crate::types::KeyRange;

/// The place of a range in its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeId(u32);

/// No node.
const NIL: NodeId = NodeId(u32::MAX);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Open,
}

impl End {
    fn is_behind(&self, key: &[u8]) -> bool {
        match self {
            End::Before(end) => key < end.as_ref(),
            End::Open => true,
        }
    }
}

struct Node<T> {
    /// `None` for a single key.
    end: Option<End>,
    start: Bytes,
    left: NodeId,
    right: NodeId,
    /// Of the subtree: the node with the farthest end.
    farthest: NodeId,
    height: u8,
    value: T,
}

/// Values by key range; see the module.
pub(super) struct RangeSet<T> {
    nodes: Vec<Node<T>>,
    free: Vec<NodeId>,
    points: HashMap<Bytes, NodeId>,
    root: NodeId,
}

impl<T> Default for RangeSet<T> {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            points: HashMap::new(),
            root: NIL,
        }
    }
}

impl<T: Default> RangeSet<T> {
    /// The node of `range`, made with a default value where there was none.
    pub fn insert(&mut self, range: &KeyRange) -> NodeId {
        let (start, end) = match range {
            KeyRange::Point(key) => return self.insert_point(key),
            KeyRange::Span(start, end) => (start, End::Before(end.clone())),
            KeyRange::From(start) => (start, End::Open),
        };
        if let Some(found) = self.find(start, &end) {
            return found;
        }
        let new = self.allocate(start, Some(end));
        self.root = self.insert_below(self.root, new);
        new
    }

    /// The value of `range`, made with a default one where there was none.
    pub fn get_mut_of(&mut self, range: &KeyRange) -> &mut T {
        let id = self.insert(range);
        self.get_mut(id)
    }

    fn insert_point(&mut self, key: &Bytes) -> NodeId {
        if let Some(found) = self.points.get(key) {
            return *found;
        }
        let new = self.allocate(key, None);
        self.points.insert(key.clone(), new);
        new
    }

    /// Takes the range of `id` out. `id` must be in the set.
    pub fn remove(&mut self, id: NodeId) -> T {
        if self.node(id).end.is_none() {
            let key = std::mem::take(&mut self.node_mut(id).start);
            self.points.remove(&key);
        } else {
            self.root = self.remove_below(self.root, id);
        }
        self.free.push(id);
        let node = self.node_mut(id);
        node.start = Bytes::new();
        node.end = None;
        std::mem::take(&mut node.value)
    }

    /// Takes every range out, in no useful but always the same order. The places stay, so that
    /// an old `NodeId` still names one.
    pub fn take_all(&mut self) -> Vec<T> {
        self.points.clear();
        self.root = NIL;
        self.free = (0..self.nodes.len() as u32).map(NodeId).collect();
        let nodes = self.nodes.iter_mut();
        nodes.map(|node| std::mem::take(&mut node.value)).collect()
    }

    fn allocate(&mut self, start: &Bytes, end: Option<End>) -> NodeId {
        let id = self.free.pop().unwrap_or(NodeId(self.nodes.len() as u32));
        let node = Node {
            end,
            start: start.clone(),
            left: NIL,
            right: NIL,
            farthest: id,
            height: 1,
            value: T::default(),
        };
        match self.nodes.get_mut(id.0 as usize) {
            Some(place) => *place = node,
            None => self.nodes.push(node),
        }
        id
    }
}

impl<T> RangeSet<T> {
    /// The value at `id`; the default one after `remove`.
    pub fn get(&self, id: NodeId) -> &T {
        &self.node(id).value
    }

    pub fn get_mut(&mut self, id: NodeId) -> &mut T {
        &mut self.node_mut(id).value
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Every value, default ones in free places included.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.nodes.iter_mut().map(|node| &mut node.value)
    }

    /// The ranges in which a key of `span` may lie, with their values, in no useful order.
    pub fn overlapping<'a>(
        &'a self,
        span: &'a KeyRange,
    ) -> impl Iterator<Item = (KeyRange, &'a T)> + 'a {
        let points = self.points.iter().filter(|(key, _)| span.contains(key));
        let points = points.map(|(key, id)| (KeyRange::Point(key.clone()), self.get(*id)));
        let spans = self.nodes.iter().filter_map(move |node| {
            let begins_before = match span {
                KeyRange::Span(_, end) => node.start < *end,
                KeyRange::Point(key) => node.start <= *key,
                KeyRange::From(_) => true,
            };
            // A place without an end is free, or a point's.
            let end = node.end.as_ref().filter(|_| begins_before)?;
            let start = node.start.clone();
            let range = match end {
                End::Before(end) => KeyRange::Span(start, end.clone()),
                End::Open => KeyRange::From(start),
            };
            end.is_behind(span.start()).then_some((range, &node.value))
        });
        points.chain(spans)
    }

    /// Appends the ranges that `key` lies in to `found`.
    pub fn matching(&self, key: &[u8], found: &mut Vec<NodeId>) {
        found.extend(self.points.get(key));
        self.stab(self.root, key, found);
    }

    fn stab(&self, at: NodeId, key: &[u8], found: &mut Vec<NodeId>) {
        if at == NIL || !self.is_behind(self.node(at).farthest, key) {
            return;
        }
        let node = self.node(at);
        self.stab(node.left, key, found);
        if node.start.as_ref() <= key {
            if self.is_behind(at, key) {
                found.push(at);
            }
            self.stab(node.right, key, found);
        }
    }

    fn is_behind(&self, id: NodeId, key: &[u8]) -> bool {
        self.node(id)
            .end
            .as_ref()
            .is_some_and(|end| end.is_behind(key))
    }

    fn find(&self, start: &Bytes, end: &End) -> Option<NodeId> {
        let mut at = self.root;
        while at != NIL {
            let node = self.node(at);
            at = match (start, Some(end)).cmp(&(&node.start, node.end.as_ref())) {
                Ordering::Less => node.left,
                Ordering::Equal => return Some(at),
                Ordering::Greater => node.right,
            };
        }
        None
    }

    fn node(&self, id: NodeId) -> &Node<T> {
        &self.nodes[id.0 as usize]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node<T> {
        &mut self.nodes[id.0 as usize]
    }

    fn is_before(&self, a: NodeId, b: NodeId) -> bool {
        let (a, b) = (self.node(a), self.node(b));
        (&a.start, &a.end) < (&b.start, &b.end)
    }

    /// Returns the new top of the subtree.
    fn insert_below(&mut self, at: NodeId, new: NodeId) -> NodeId {
        if at == NIL {
            return new;
        }
        if self.is_before(new, at) {
            let left = self.insert_below(self.node(at).left, new);
            self.node_mut(at).left = left;
        } else {
            let right = self.insert_below(self.node(at).right, new);
            self.node_mut(at).right = right;
        }
        self.balance(at)
    }

    /// Returns the new top of the subtree.
    fn remove_below(&mut self, at: NodeId, gone: NodeId) -> NodeId {
        let (left, right) = (self.node(at).left, self.node(at).right);
        if at == gone {
            if left == NIL {
                return right;
            }
            if right == NIL {
                return left;
            }
            let (rest, first) = self.split_first(right);
            self.node_mut(first).left = left;
            self.node_mut(first).right = rest;
            return self.balance(first);
        }
        if self.is_before(gone, at) {
            let left = self.remove_below(left, gone);
            self.node_mut(at).left = left;
        } else {
            let right = self.remove_below(right, gone);
            self.node_mut(at).right = right;
        }
        self.balance(at)
    }

    /// Takes the first node out of a subtree: what remains of it, and that node.
    fn split_first(&mut self, at: NodeId) -> (NodeId, NodeId) {
        let left = self.node(at).left;
        if left == NIL {
            return (self.node(at).right, at);
        }
        let (rest, first) = self.split_first(left);
        self.node_mut(at).left = rest;
        (self.balance(at), first)
    }

    fn height(&self, id: NodeId) -> u8 {
        if id == NIL { 0 } else { self.node(id).height }
    }

    /// Positive where the left side is higher.
    fn slope(&self, at: NodeId) -> i16 {
        let node = self.node(at);
        i16::from(self.height(node.left)) - i16::from(self.height(node.right))
    }

    /// Makes the heights of both sides differ by one at most; returns the new top.
    fn balance(&mut self, at: NodeId) -> NodeId {
        let slope = self.slope(at);
        if slope > 1 {
            let left = self.node(at).left;
            if self.slope(left) < 0 {
                let left = self.rotate_left(left);
                self.node_mut(at).left = left;
            }
            return self.rotate_right(at);
        }
        if slope < -1 {
            let right = self.node(at).right;
            if self.slope(right) > 0 {
                let right = self.rotate_right(right);
                self.node_mut(at).right = right;
            }
            return self.rotate_left(at);
        }
        self.update(at);
        at
    }

    fn rotate_right(&mut self, at: NodeId) -> NodeId {
        let top = self.node(at).left;
        self.node_mut(at).left = self.node(top).right;
        self.node_mut(top).right = at;
        self.update(at);
        self.update(top);
        top
    }

    fn rotate_left(&mut self, at: NodeId) -> NodeId {
        let top = self.node(at).right;
        self.node_mut(at).right = self.node(top).left;
        self.node_mut(top).left = at;
        self.update(at);
        self.update(top);
        top
    }

    fn update(&mut self, at: NodeId) {
        let (left, right) = (self.node(at).left, self.node(at).right);
        let mut farthest = at;
        for side in [left, right] {
            if side != NIL {
                let candidate = self.node(side).farthest;
                if self.node(candidate).end > self.node(farthest).end {
                    farthest = candidate;
                }
            }
        }
        let height = 1 + self.height(left).max(self.height(right));
        let node = self.node_mut(at);
        node.farthest = farthest;
        node.height = height;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator; the seed is the test's only chance.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (self.0 >> 33) % bound
        }

        fn key(&mut self) -> Bytes {
            let len = 1 + self.below(3);
            (0..len)
                .map(|_| b"\0ab\xff"[self.below(4) as usize])
                .collect()
        }

        fn range(&mut self) -> KeyRange {
            match self.below(4) {
                0 => KeyRange::Point(self.key()),
                1 => KeyRange::From(self.key()),
                _ => loop {
                    let range = KeyRange::Span(self.key(), self.key());
                    if !range.is_empty() {
                        return range;
                    }
                },
            }
        }
    }

    fn check_shape(set: &RangeSet<u32>, at: NodeId) -> u8 {
        if at == NIL {
            return 0;
        }
        let node = set.node(at);
        let (left, right) = (check_shape(set, node.left), check_shape(set, node.right));
        assert!(left.abs_diff(right) <= 1, "the tree leans");
        assert_eq!(node.height, 1 + left.max(right));
        node.height
    }

    #[test]
    fn agrees_with_a_list() {
        for seed in 0..40 {
            let mut dice = Dice(seed);
            let mut set = RangeSet::<u32>::default();
            let mut list: Vec<(KeyRange, NodeId)> = Vec::new();
            for step in 0..600 {
                // The set grows in the first half and shrinks in the second.
                let grow = dice.below(3) < if step < 300 { 2 } else { 1 };
                if grow || list.is_empty() {
                    let range = dice.range();
                    let id = set.insert(&range);
                    match list.iter().find(|(known, _)| *known == range) {
                        Some((_, known)) => assert_eq!(*known, id, "equal ranges share a node"),
                        None => list.push((range, id)),
                    }
                    *set.get_mut(id) += 1;
                } else {
                    let at = dice.below(list.len() as u64) as usize;
                    let (_, id) = list.swap_remove(at);
                    assert!(set.remove(id) > 0);
                    assert_eq!(*set.get(id), 0);
                }
                assert_eq!(set.len(), list.len());
                check_shape(&set, set.root);
                let key = dice.key();
                let mut found = Vec::new();
                set.matching(&key, &mut found);
                found.sort_unstable();
                let mut expected: Vec<_> = list
                    .iter()
                    .filter(|(range, _)| range.contains(&key))
                    .map(|(_, id)| *id)
                    .collect();
                expected.sort_unstable();
                assert_eq!(found, expected, "seed {seed} step {step} key {key:?}");
            }
        }
    }

    #[test]
    fn sorted_input_keeps_the_tree_low() {
        let mut set = RangeSet::<u32>::default();
        for number in 0..10_000u32 {
            let start = Bytes::copy_from_slice(&number.to_be_bytes());
            set.insert(&KeyRange::Span(start, Bytes::from_static(b"\xff")));
        }
        assert!(check_shape(&set, set.root) <= 19);
    }
}
