//! Random requests in random groups, compared with the model after every group: answers, reads
//! of any kind at any revision, hashes, pages of history, leases.
//!
//! `ETCHED_SEEDS` says how many seeds are tried.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use super::member::{Logged, Member};
use super::{language, restarts, show};
use crate::error::Error;
use crate::mvcc::history::{PageLimit, WithPrevious};
use crate::mvcc::pages::{Pages, Rooms};
use crate::mvcc::read::{PinnedView, RangeRead};
use crate::mvcc::tests::golden::show_event;
use crate::mvcc::{self, Change, compaction};
use crate::proto::authpb::{Permission, UserAddOptions};
use crate::proto::etcdserverpb::compare::TargetUnion;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::*;
use crate::proto::{Event, KeyValue};
use crate::state::auth::verdict::MEMBER_REVISION;
use crate::state::lease::attached_keys;
use crate::state::model::Model;
use crate::state::{Group, kv, txn};
use crate::storage::memory::MemoryEngine;
use crate::types::LeaseId;

/// Keys and ends of ranges: some are prefixes of others, some hold the bytes that keys in the
/// store are escaped with.
const KEYS: [&[u8]; 14] = [
    b"\0",
    b"\0\0",
    b"\0\xff",
    b"a",
    b"a\0",
    b"a\0\0",
    b"a\0\x01",
    b"a\0\xff",
    b"a\x01",
    b"a\xff",
    b"b",
    b"b\0",
    b"\xff",
    b"\xff\xff",
];
const VALUES: [&[u8]; 5] = [
    b"",
    b"1",
    b"2",
    b"\0\xff",
    b"a longer value than the others are",
];
const LEASES: i64 = 4;

/// Users and roles, before what is random.
const SETUP: [&str; 19] = [
    "user add root HASH",
    "user grant root root",
    "user add alice HASH",
    "user add bob HASH",
    "user add carol HASH",
    "role add reader",
    "role add writer",
    "role add both",
    "role grant reader read \\x00..",
    "role grant writer write a..b",
    "role grant writer read a..b",
    "role grant both readwrite a\\x00..\\xff",
    "role grant both write \\x00",
    "user grant alice reader",
    "user grant alice writer",
    "user grant bob both",
    "user grant carol writer",
    "user grant carol both",
    "auth enable",
];

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a [u8]]) -> &'a [u8] {
        from[self.below(from.len() as u64) as usize]
    }

    fn key(&mut self) -> Bytes {
        Bytes::from_static(self.pick(&KEYS))
    }

    /// Key and end of a range; some are empty or inverted.
    fn range(&mut self) -> (Bytes, Bytes) {
        let end = match self.below(4) {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"\0"),
            _ => self.key(),
        };
        (self.key(), end)
    }

    /// A revision around those that exist; often 0.
    fn revision(&mut self, head: i64) -> i64 {
        match self.below(8) {
            0..3 => 0,
            3 => -2 + self.below(3) as i64,
            _ => self.below(head as u64 + 2) as i64,
        }
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.once_in(6);
        let ignore_lease = self.once_in(6);
        let lease = match self.below(3) {
            0 if !ignore_lease => 1 + self.below(LEASES as u64) as i64,
            _ => 0,
        };
        PutRequest {
            key: self.key(),
            value: match ignore_value {
                true => Bytes::new(),
                false => Bytes::from_static(self.pick(&VALUES)),
            },
            lease,
            prev_kv: self.once_in(2),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete_range(&mut self) -> DeleteRangeRequest {
        let (key, mut range_end) = self.range();
        if !self.once_in(4) {
            range_end = Bytes::new();
        }
        DeleteRangeRequest {
            key,
            range_end,
            prev_kv: self.once_in(2),
        }
    }

    fn range_read(&mut self, head: i64) -> RangeRequest {
        let (key, range_end) = self.range();
        let filter = |random: &mut Self| match random.once_in(6) {
            true => random.revision(head),
            false => 0,
        };
        RangeRequest {
            key,
            range_end,
            min_mod_revision: filter(self),
            max_mod_revision: filter(self),
            min_create_revision: filter(self),
            max_create_revision: filter(self),
            limit: match self.below(3) {
                0 => self.below(6) as i64,
                _ => 0,
            },
            revision: self.revision(head),
            sort_order: self.below(3) as i32,
            sort_target: self.below(5) as i32,
            serializable: false,
            keys_only: self.once_in(4),
            count_only: self.once_in(5),
        }
    }

    fn compare(&mut self, head: i64) -> Compare {
        let (key, range_end) = self.range();
        let target = self.below(5);
        Compare {
            result: self.below(4) as i32,
            target: target as i32,
            key,
            range_end,
            target_union: Some(match target {
                0 => TargetUnion::Version(self.below(3) as i64),
                1 => TargetUnion::CreateRevision(self.revision(head)),
                2 => TargetUnion::ModRevision(self.revision(head)),
                3 => TargetUnion::Value(Bytes::from_static(self.pick(&VALUES))),
                _ => TargetUnion::Lease(self.below(LEASES as u64) as i64),
            }),
        }
    }

    fn ops(&mut self, head: i64, depth: u64) -> Vec<RequestOp> {
        let count = self.below(5);
        let mut deleted = false;
        let mut ops = Vec::new();
        for _ in 0..count {
            let request = match self.below(if depth > 0 { 8 } else { 7 }) {
                0..3 => {
                    let mut put = self.put();
                    // etcd fails where a put keeps something of a key that is gone by then.
                    if deleted {
                        put.ignore_value = false;
                        put.ignore_lease = false;
                    }
                    Request::RequestPut(put)
                }
                3..5 => {
                    deleted = true;
                    Request::RequestDeleteRange(self.delete_range())
                }
                5..7 => Request::RequestRange(self.range_read(head)),
                _ => Request::RequestTxn(self.txn(head, depth - 1)),
            };
            deleted |= matches!(request, Request::RequestTxn(_));
            ops.push(RequestOp {
                request: Some(request),
            });
        }
        ops
    }

    fn txn(&mut self, head: i64, depth: u64) -> TxnRequest {
        TxnRequest {
            compare: (0..self.below(3)).map(|_| self.compare(head)).collect(),
            success: self.ops(head, depth),
            failure: self.ops(head, depth),
        }
    }

    fn name(&mut self, names: [&str; 5]) -> String {
        names[self.below(5) as usize].to_owned()
    }

    fn user(&mut self) -> String {
        self.name(["alice", "bob", "carol", "root", ""])
    }

    fn role(&mut self) -> String {
        self.name(["reader", "writer", "both", "root", ""])
    }

    /// Who proposes, often somebody who may: a name, at about the auth revision of now.
    fn header(&mut self, revision: u64) -> Option<RequestHeader> {
        let (username, auth_revision) = match self.below(20) {
            0 => return None,
            1 => (String::new(), 0),
            2..5 => (String::new(), MEMBER_REVISION),
            5..11 => ("root".to_owned(), revision),
            11 => (self.user(), revision.saturating_sub(1)),
            12 => (self.user(), self.below(revision + 3)),
            _ => (self.user(), revision),
        };
        Some(RequestHeader {
            username,
            auth_revision,
            ..Default::default()
        })
    }

    fn permission(&mut self) -> Option<Permission> {
        let (key, range_end) = self.range();
        (!self.once_in(30)).then_some(Permission {
            perm_type: match self.once_in(30) {
                true => 7,
                false => self.below(3) as i32,
            },
            key,
            range_end,
        })
    }

    /// A request about users and roles.
    fn auth_request(&mut self, request: &mut InternalRaftRequest) {
        let (user, role) = (self.user(), self.role());
        let hash = match self.once_in(20) {
            true => "*".to_owned(),
            false => BASE64.encode(VALUES[self.below(5) as usize]),
        };
        match self.below(40) {
            0..6 => request.auth_enable = Some(AuthEnableRequest {}),
            6 => request.auth_disable = Some(AuthDisableRequest {}),
            7 => request.auth_status = Some(AuthStatusRequest {}),
            8..14 => {
                let no_password = self.once_in(4);
                request.auth_user_add = Some(AuthUserAddRequest {
                    name: user,
                    options: self.once_in(2).then_some(UserAddOptions { no_password }),
                    hashed_password: hash,
                    ..Default::default()
                });
            }
            14 => {
                request.auth_user_change_password = Some(AuthUserChangePasswordRequest {
                    name: user,
                    hashed_password: hash,
                    ..Default::default()
                });
            }
            15 => request.auth_user_get = Some(AuthUserGetRequest { name: user }),
            16 => request.auth_user_list = Some(AuthUserListRequest {}),
            17 => request.auth_user_delete = Some(AuthUserDeleteRequest { name: user }),
            18..25 => request.auth_user_grant_role = Some(AuthUserGrantRoleRequest { user, role }),
            25 => {
                request.auth_user_revoke_role =
                    Some(AuthUserRevokeRoleRequest { name: user, role });
            }
            26..29 => request.auth_role_add = Some(AuthRoleAddRequest { name: role }),
            29 => request.auth_role_get = Some(AuthRoleGetRequest { role }),
            30 => request.auth_role_list = Some(AuthRoleListRequest {}),
            31 => request.auth_role_delete = Some(AuthRoleDeleteRequest { role }),
            32..38 => {
                request.auth_role_grant_permission = Some(AuthRoleGrantPermissionRequest {
                    name: role,
                    perm: self.permission(),
                });
            }
            _ => {
                let (key, range_end) = self.range();
                request.auth_role_revoke_permission = Some(AuthRoleRevokePermissionRequest {
                    role,
                    key,
                    range_end,
                });
            }
        }
    }

    /// A request to a keyspace whose newest revision is about `head`, at the auth revision of now.
    pub fn request(&mut self, head: i64, auth: u64) -> InternalRaftRequest {
        let mut request = InternalRaftRequest {
            header: self.header(auth),
            ..Default::default()
        };
        if self.once_in(4) {
            self.auth_request(&mut request);
            return request;
        }
        let lease = 1 + self.below(LEASES as u64) as i64;
        match self.below(100) {
            0..30 => request.put = Some(self.put()),
            30..45 => request.delete_range = Some(self.delete_range()),
            45..75 => request.txn = Some(self.txn(head, 2)),
            75..78 => {
                // Not always what can be compacted, and seldom the newest.
                let revision = self.revision(head) - self.below(10) as i64;
                request.compaction = Some(CompactionRequest {
                    revision,
                    physical: false,
                });
            }
            78..88 => {
                request.lease_grant = Some(LeaseGrantRequest { id: lease, ttl: 60 });
            }
            88..93 => request.lease_revoke = Some(LeaseRevokeRequest { id: lease }),
            93..97 => {
                request.lease_checkpoint = Some(LeaseCheckpointRequest {
                    checkpoints: vec![LeaseCheckpoint {
                        id: lease,
                        remaining_ttl: self.below(60) as i64,
                    }],
                });
            }
            _ => {
                request.alarm = Some(AlarmRequest {
                    // Activated seldom, deactivated often: most requests shall do something.
                    action: if self.once_in(6) { 1 } else { 2 },
                    member_id: 1,
                    alarm: 1 + self.below(2) as i32,
                });
            }
        }
        request
    }
}

/// A model beside a member, both with the same log.
pub struct Pair {
    pub random: Random,
    pub model: Model,
    pub log: Vec<Logged>,
    /// Done first: without it, authentication would hardly ever be enabled.
    setup: VecDeque<InternalRaftRequest>,
    /// How many requests of users were permitted, denied and too old, while that was checked.
    pub judged: [usize; 3],
}

impl Pair {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            model: Model::new(),
            log: Vec::new(),
            setup: match seed % 3 {
                0 => VecDeque::new(),
                _ => SETUP
                    .iter()
                    .map(|command| language::request(command))
                    .collect(),
            },
            judged: [0; 3],
        }
    }

    /// Applies a group of random entries to both and compares the answers.
    pub fn grow(&mut self, member: &mut Member) -> Group {
        let first = self.log.len() as u64 + 1;
        let mut answers = String::new();
        for _ in 0..=self.random.below(6) {
            if self.random.once_in(20) {
                self.log.push(Logged::Empty);
                answers += "done\n";
                continue;
            }
            let (head, auth) = (self.model.head, self.model.auth.revision);
            let request = match self.setup.pop_front() {
                Some(request) => request,
                None => self.random.request(head, auth),
            };
            let of_user = request
                .header
                .as_ref()
                .is_some_and(|h| !h.username.is_empty());
            let checked = self.model.auth.enabled && of_user;
            let answer = self.model.apply(&request);
            self.judged[match &answer {
                Err(Error::PermissionDenied) => 1,
                Err(Error::AuthOldRevision) => 2,
                _ => 0,
            }] += usize::from(checked);
            answers += &show::result(&answer);
            self.log.push(Logged::Request(request));
        }
        let indexes: Vec<u64> = (first..=self.log.len() as u64).collect();
        let group = member.apply_group(&self.log, &indexes);
        let applied = group.applied.iter();
        let given: String = applied
            .map(|applied| show::result(&applied.result))
            .collect();
        assert_eq!(given, answers, "entries {indexes:?}");
        let auth = member.machine.auth();
        let theirs = (self.model.auth.enabled, self.model.auth.revision);
        assert_eq!((auth.is_enabled(), auth.revision()), theirs);
        group
    }

    /// Compares the hash of a compaction that has not begun yet; `previous` is where the last
    /// one went to.
    fn compare_compaction_hash(&self, member: &Member, previous: i64) {
        let before = PinnedView {
            compacted: previous,
            ..member.pinned()
        };
        let target = self.model.compacted;
        let ours = before.hash_for_compaction(target).expect("reads");
        if let Some(theirs) = self.model.compaction_hash(previous, target) {
            assert_eq!(ours.hash, theirs, "from {previous}");
        }
        if let Some(theirs) = self.model.hash(previous, target) {
            assert_eq!(ours.otherwise, theirs, "from {previous}");
        }
    }

    /// Compares everything that can be read; `settled` where no compaction is under way.
    pub fn compare(&mut self, member: &Member, settled: bool) {
        assert_eq!(member.machine.head(), self.model.head);
        assert_eq!(member.machine.compacted(), self.model.compacted);
        assert_eq!(member.machine.keys(), self.model.keys());
        for _ in 0..8 {
            self.compare_range(member);
        }
        self.compare_txn(member);
        self.compare_hash(member);
        self.compare_history(member, settled);
        let leases = member.machine.leases().iter();
        let leases: BTreeMap<_, _> = leases
            .map(|(id, lease)| (id.0, (lease.ttl_s, lease.remaining_ttl_s)))
            .collect();
        assert_eq!(leases, self.model.leases);
        for id in 1..=LEASES {
            let keys = attached_keys(member.engine.latest(), LeaseId(id)).expect("reads");
            assert_eq!(
                keys,
                self.model.attached(id, self.model.head),
                "keys of lease {id}"
            );
        }
    }

    fn compare_range(&mut self, member: &Member) {
        let head = self.model.head;
        let request = self.random.range_read(head);
        let pinned = member.pinned();
        let read = kv::range_read(&request).expect("is valid");
        let ours = refused(pinned.range(&read)).map(|ranged| kv::range_response(ranged, head));
        let theirs = self.model.range(&request, self.model.now());
        let shown = |range: &Result<_, _>| range.as_ref().map(show::range).map_err(|e| *e);
        assert_eq!(shown(&ours), shown(&theirs), "{request:?}");
        assert_eq!(ours, theirs, "the encodings of {request:?}");
        if let Ok(whole) = &ours {
            self.compare_pages(&pinned, &read, whole);
        }
    }

    /// What is measured and given in pages is the answer as well.
    fn compare_pages(&self, pinned: &PinnedView<'_>, read: &RangeRead, whole: &RangeResponse) {
        // What comes after this does not hang on it.
        let mut random = Random::new(self.random.0);
        let room_bytes = random.below(4000) as usize;
        let mut room = |bytes| bytes <= room_bytes;
        let measured = pinned.measure(read, &mut room).expect("reads");
        let kvs = &whole.kvs;
        assert_eq!(measured.pairs, kvs.len(), "{read:?}");
        assert_eq!(measured.size_bytes, kvs.size_bytes() as u64, "{read:?}");
        assert_eq!((measured.count, measured.more), (whole.count, whole.more));
        if let Some(kept) = &measured.kvs {
            assert_eq!(kept, kvs, "{read:?}");
        }
        let page_bytes = 1 + random.below(100) as usize;
        let mut pages = Pages::new(pinned, read.clone(), measured.pairs).expect("reads");
        let (mut frames, mut rest_bytes) = (Vec::new(), 0);
        loop {
            let mut rooms = Rooms {
                page_bytes,
                large_pair: &mut |bytes| bytes <= room_bytes % 200,
                rows: &mut |bytes| bytes <= room_bytes,
            };
            let page = pages.next(pinned, &mut rooms).expect("reads");
            let Some(page) = page else { break };
            assert!((1..=page_bytes.max(room_bytes % 200)).contains(&page.bytes.len()));
            assert_eq!(page.continues, rest_bytes > 0);
            rest_bytes = page.rest_bytes;
            frames.extend_from_slice(&page.bytes);
        }
        assert_eq!(frames, kvs.frames(), "pages of {page_bytes}: {read:?}");
    }

    fn compare_txn(&mut self, member: &Member) {
        let head = self.model.head;
        let mut request = self.random.txn(head, 0);
        for ops in [&mut request.success, &mut request.failure] {
            ops.retain(|op| matches!(op.request, Some(Request::RequestRange(_))));
        }
        assert!(txn::is_read_only(&request));
        let pinned = member.pinned();
        let range = |read: &_| Ok(kv::range_response(pinned.range(read)?, pinned.head));
        let ours = refused(txn::read(&pinned, &request, range));
        let theirs = self.model.read_txn(&request, self.model.now());
        let shown = |txn: &Result<_, _>| txn.as_ref().map(show::txn).map_err(|e| *e);
        assert_eq!(shown(&ours), shown(&theirs), "{request:?}");
        assert_eq!(ours, theirs, "the encodings of {request:?}");
    }

    fn compare_hash(&mut self, member: &Member) {
        let revision = self.random.revision(self.model.head).max(0);
        let expected = match revision {
            0 => Ok(self.model.head),
            revision if revision > self.model.head => Err(Error::FutureRevision),
            revision if revision < self.model.compacted => Err(Error::Compacted),
            revision => Ok(revision),
        };
        let ours = refused(
            member
                .pinned()
                .hash(revision, &std::env::temp_dir())
                .map_err(mvcc::Error::from),
        );
        let shown = ours.map(|hash| {
            assert_eq!(hash.compacted, self.model.compacted);
            if let Some(theirs) = self.model.hash(self.model.compacted, hash.revision) {
                assert_eq!(hash.hash, theirs, "at revision {}", hash.revision);
            }
            let kept = self.model.compaction_hash(hash.compacted, hash.revision);
            if let Some(theirs) = kept {
                assert_eq!(hash.otherwise, theirs, "at revision {}", hash.revision);
            }
            hash.revision
        });
        assert_eq!(shown, expected);
    }

    fn compare_history(&mut self, member: &Member, settled: bool) {
        // While a compaction is under way its own revision may still be whole.
        let first = (self.model.compacted + i64::from(!settled)).max(1);
        let from = first + self.random.below((self.model.head + 2 - first) as u64) as i64;
        let only = self.random.once_in(3).then(|| self.random.key());
        let limit = PageLimit {
            revisions: 1 + self.random.below(6) as usize,
            records: 1 + self.random.below(20) as usize,
            bytes: 1 + self.random.below(2000) as usize,
            whole_bytes: usize::MAX,
        };
        let mut wanted = |key: &[u8], _, _| {
            let wanted = only.as_ref().is_none_or(|only| only == key);
            wanted.then_some(WithPrevious(true))
        };
        let expected = self.model.events(from);
        let mut expected = expected
            .into_iter()
            .filter(|(_, event)| {
                let kv: Option<&KeyValue> = event.kv.as_ref();
                only.is_none() || kv.map(|kv| &kv.key) == only.as_ref()
            })
            .peekable();
        let pinned = member.pinned();
        let mut next = from;
        while next <= self.model.head {
            let page = pinned.changes(next, limit, &mut wanted).expect("reads");
            assert!(page.next > next, "a page must come forward");
            for change in &page.changes {
                assert!((next..page.next).contains(&change.revision.main));
                let (revision, event) = expected.next().expect("an event");
                assert_eq!(change.revision, revision);
                assert_eq!(show_change(change), show_event(&event), "{revision}");
            }
            let behind = expected.peek().map(|(revision, _)| revision.main);
            assert!(behind.is_none_or(|behind| behind >= page.next), "torn");
            next = page.next;
        }
        assert!(expected.next().is_none());
        assert_eq!(next, self.model.head + 1);
    }
}

fn show_change(change: &Change) -> String {
    let event: Event = change.to_event(true).decoded().expect("decodes");
    show_event(&event)
}

pub fn refused<T>(result: mvcc::Result<T>) -> Result<T, Error> {
    result.map_err(|error| match error {
        mvcc::Error::Refused(error) => error,
        mvcc::Error::Storage(error) => panic!("{error}"),
    })
}

/// How many seeds a test tries.
pub fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = std::env::var("ETCHED_SEEDS").ok();
    let number = number.map_or(default, |number| number.parse().expect("a number of seeds"));
    0..number
}

#[test]
fn member_and_model_agree() {
    let mut judged = [0; 3];
    for seed in seeds(50) {
        println!("seed {seed}");
        let engine = Arc::new(MemoryEngine::new());
        let mut member = Member::on(engine);
        let mut pair = Pair::new(seed);
        let mut settled = true;
        for _ in 0..40 {
            let group = pair.grow(&mut member);
            let previous = compaction::finished(member.engine.latest()).expect("reads");
            if group.compacted && settled {
                pair.compare_compaction_hash(&member, previous);
            }
            let batches = match pair.random.below(3) {
                0 => usize::MAX,
                _ => pair.random.below(4) as usize,
            };
            member.compact(1 + pair.random.below(8) as usize, batches);
            let unfinished = compaction::unfinished(member.engine.latest());
            settled = unfinished.expect("reads").is_none();
            pair.compare(&member, settled);
        }
        if seed % 5 == 0 {
            restarts::check(&pair.log);
        }
        for (all, of_seed) in judged.iter_mut().zip(pair.judged) {
            *all += of_seed;
        }
    }
    println!("permitted, denied, too old: {judged:?}");
    assert!(judged.iter().all(|count| *count >= 10), "{judged:?}");
}
