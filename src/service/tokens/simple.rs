//! Simple tokens: 16 random letters, a dot, and the raft index of the log-in's entry.
//!
//! A member draws the letters and proposes them; every member that applies the entry keeps the
//! token for a while, so that it is valid everywhere but not after a restart. Using it renews it,
//! here alone.
//!
//! Time and chance are handed in. A token is valid for its time to live and not a moment longer;
//! a renewal counts from the second in which it was used, because it would otherwise have to be
//! ordered anew at every call. etcd keeps any number of tokens. Here there are at most
//! `MAX_TOKENS`; one more takes the place of the one that would expire first, whose owner logs in
//! again, as after its expiry.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::env::Rng;
use crate::service::caller::User;

/// A log-in takes tens of milliseconds of a processor, so that only a flood of them gets there. All
/// take some 20 MB.
pub const MAX_TOKENS: usize = 1 << 16;
/// If a token's time to live is 0.
pub const DEFAULT_TTL: Duration = Duration::from_secs(300);
/// A token that was used less than this after its last renewal is not renewed.
const RENEWAL_STEP: Duration = Duration::from_secs(1);

const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const PREFIX_LETTERS: usize = 16;

/// The letters that a token begins with.
pub fn draw_prefix(rng: &dyn Rng) -> String {
    let mut prefix = String::with_capacity(PREFIX_LETTERS);
    while prefix.len() < PREFIX_LETTERS {
        // Ten numbers below 64 of each random one; those beyond the letters are drawn again, so
        // that all letters are as likely.
        let mut bits = rng.next_u64();
        for _ in 0..10 {
            if let Some(letter) = LETTERS.get((bits & 63) as usize)
                && prefix.len() < PREFIX_LETTERS
            {
                prefix.push(char::from(*letter));
            }
            bits >>= 6;
        }
    }
    prefix
}

/// The index in a token; none if it has not the form of a simple token.
pub fn index_of(token: &str) -> Option<u64> {
    let (_, digits) = token.split_once('.')?;
    // A second dot is no digit, nor is a sign.
    match digits.bytes().all(|byte| byte.is_ascii_digit()) {
        true => digits.parse().ok(),
        false => None,
    }
}

/// The tokens that a member knows.
pub struct Table {
    ttl: Duration,
    max_tokens: usize,
    tokens: HashMap<Arc<str>, KeptToken>,
    /// By expiry, and by order of issue where that is the same.
    expiries: BTreeMap<(Duration, u64), Arc<str>>,
    issued: u64,
    /// Tokens up to this index are not issued.
    behind: u64,
}

struct KeptToken {
    user: Arc<User>,
    number: u64,
    expires: Duration,
}

impl Table {
    pub fn new(ttl: Duration) -> Self {
        let ttl = match ttl {
            Duration::ZERO => DEFAULT_TTL,
            ttl => ttl,
        };
        Self {
            ttl,
            max_tokens: MAX_TOKENS,
            tokens: HashMap::new(),
            expiries: BTreeMap::new(),
            issued: 0,
            behind: 0,
        }
    }

    /// From now on, only tokens of later entries are issued.
    pub fn issue_behind(&mut self, index: u64) {
        self.behind = index;
    }

    /// A user has got this token.
    pub fn issue(&mut self, token: &str, user: &str, now: Duration) {
        if index_of(token).is_none_or(|index| index <= self.behind) {
            return;
        }
        self.sweep(now);
        self.remove(token);
        if self.tokens.len() >= self.max_tokens
            && let Some((_, first)) = self.expiries.pop_first()
        {
            self.tokens.remove(&first);
        }
        self.issued += 1;
        let token: Arc<str> = token.into();
        let user = User {
            name: user.to_owned(),
            auth_revision: 0,
        };
        let entry = KeptToken {
            user: Arc::new(user),
            number: self.issued,
            expires: now.saturating_add(self.ttl),
        };
        self.expiries
            .insert((entry.expires, entry.number), token.clone());
        self.tokens.insert(token, entry);
    }

    /// Whose token it is, at the present auth revision.
    pub fn user(&mut self, token: &str, auth_revision: u64, now: Duration) -> Option<Arc<User>> {
        let entry = self.tokens.get_mut(token)?;
        if entry.expires <= now {
            self.remove(token);
            return None;
        }
        let expires = now.saturating_add(self.ttl);
        if entry.expires.saturating_add(RENEWAL_STEP) <= expires
            && let Some(token) = self.expiries.remove(&(entry.expires, entry.number))
        {
            entry.expires = expires;
            self.expiries.insert((expires, entry.number), token);
        }
        if entry.user.auth_revision != auth_revision {
            entry.user = Arc::new(User {
                name: entry.user.name.clone(),
                auth_revision,
            });
        }
        Some(entry.user.clone())
    }

    /// Drops the tokens that have expired.
    pub fn sweep(&mut self, now: Duration) {
        while let Some(first) = self.expiries.first_entry()
            && first.key().0 <= now
        {
            let token = first.remove();
            self.tokens.remove(&token);
        }
    }

    /// Drops the tokens of a user.
    pub fn revoke_user(&mut self, user: &str) {
        let expiries = &mut self.expiries;
        self.tokens.retain(|_, entry| {
            let keeps = entry.user.name != user;
            if !keeps {
                expiries.remove(&(entry.expires, entry.number));
            }
            keeps
        });
    }

    /// Drops all tokens.
    pub fn revoke_all(&mut self) {
        self.tokens.clear();
        self.expiries.clear();
    }

    fn remove(&mut self, token: &str) {
        if let Some(entry) = self.tokens.remove(token) {
            self.expiries.remove(&(entry.expires, entry.number));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Splitmix64.
    struct Seeded(AtomicU64);

    impl Rng for Seeded {
        fn next_u64(&self) -> u64 {
            let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
    }

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_prefix_has_sixteen_letters_each_as_likely() {
        let rng = Seeded(AtomicU64::new(7));
        let mut counts: BTreeMap<u8, u32> = BTreeMap::new();
        const PREFIXES: u32 = 13_000;
        for _ in 0..PREFIXES {
            let prefix = draw_prefix(&rng);
            assert_eq!(prefix.len(), 16);
            for letter in prefix.bytes() {
                *counts.entry(letter).or_default() += 1;
            }
        }
        assert_eq!(counts.len(), 52);
        let expected = PREFIXES * 16 / 52;
        for (letter, count) in counts {
            assert!(letter.is_ascii_alphabetic());
            let off = count.abs_diff(expected);
            assert!(off < expected / 10, "{count} of {}", char::from(letter));
        }
    }

    #[test]
    fn the_index_is_what_stands_behind_the_only_dot() {
        for (token, index) in [
            ("abcdefghijklmnop.17", Some(17)),
            (".5", Some(5)),
            ("a.18446744073709551615", Some(u64::MAX)),
            ("a.18446744073709551616", None),
            ("a.+5", None),
            ("a.-5", None),
            ("a.", None),
            ("a.5.6", None),
            ("a", None),
            ("", None),
            ("a.0x5", None),
        ] {
            assert_eq!(index_of(token), index, "{token}");
        }
    }

    /// Names at which times whose token it is; the time to live is 10 s.
    fn table() -> Table {
        Table::new(Duration::from_secs(10))
    }

    fn name(table: &mut Table, token: &str, now_ms: u64) -> Option<String> {
        let user = table.user(token, 1, ms(now_ms));
        user.map(|user| user.name.clone())
    }

    #[test]
    fn a_token_lives_as_long_as_it_is_used() {
        let mut table = table();
        table.issue("a.1", "alice", ms(500));
        table.issue("b.2", "bob", ms(500));
        assert_eq!(name(&mut table, "a.1", 10_499).as_deref(), Some("alice"));
        assert_eq!(name(&mut table, "b.2", 10_500), None);
        // Renewed at 10,499; not again by a use within the same second.
        assert_eq!(name(&mut table, "a.1", 11_000).as_deref(), Some("alice"));
        table.sweep(ms(20_498));
        assert_eq!(table.tokens.len(), 1);
        table.sweep(ms(20_499));
        assert_eq!((table.tokens.len(), table.expiries.len()), (0, 0));
        assert_eq!(name(&mut table, "a.1", 11_000), None);
    }

    #[test]
    fn a_time_to_live_of_nothing_is_the_default() {
        let mut table = Table::new(Duration::ZERO);
        table.issue("a.1", "alice", ms(0));
        assert!(name(&mut table, "a.1", 299_999).is_some());
        let mut table = Table::new(Duration::MAX);
        table.issue("a.1", "alice", ms(1));
        assert!(name(&mut table, "a.1", 299_999).is_some());
    }

    #[test]
    fn the_identity_has_the_revision_of_the_call() {
        let mut table = table();
        table.issue("a.1", "alice", ms(0));
        for revision in [1, 7, 7, 9] {
            let user = table.user("a.1", revision, ms(1)).expect("valid");
            assert_eq!((&*user.name, user.auth_revision), ("alice", revision));
        }
    }

    #[test]
    fn tokens_end_with_their_user_or_all_at_once() {
        let mut table = table();
        for (token, user) in [("a.1", "alice"), ("b.2", "bob"), ("a.3", "alice")] {
            table.issue(token, user, ms(0));
        }
        table.revoke_user("alice");
        table.revoke_user("nobody");
        let left = ["a.1", "b.2", "a.3"].map(|token| name(&mut table, token, 1));
        assert_eq!(left, [None, Some("bob".to_owned()), None]);
        assert_eq!(table.expiries.len(), 1);
        table.revoke_all();
        assert_eq!(name(&mut table, "b.2", 1), None);
        assert_eq!((table.tokens.len(), table.expiries.len()), (0, 0));
    }

    #[test]
    fn tokens_of_an_earlier_process_are_not_issued_again() {
        let mut table = table();
        table.issue_behind(7);
        for (token, expected) in [("a.7", false), ("a.8", true), ("a", false)] {
            table.issue(token, "alice", ms(0));
            assert_eq!(name(&mut table, token, 1).is_some(), expected, "{token}");
        }
    }

    #[test]
    fn one_too_many_takes_the_place_of_the_first_to_expire() {
        let mut table = table();
        table.max_tokens = 2;
        table.issue("a.1", "alice", ms(0));
        table.issue("b.2", "bob", ms(2));
        assert!(name(&mut table, "a.1", 2_000).is_some());
        table.issue("c.3", "carol", ms(2_001));
        let left = ["a.1", "b.2", "c.3"].map(|token| name(&mut table, token, 2_002).is_some());
        assert_eq!(left, [true, false, true]);
        // The same token again is no further one.
        table.issue("c.3", "carol", ms(2_003));
        assert_eq!((table.tokens.len(), table.expiries.len()), (2, 2));
    }
}
