//! Who gets how many of the descriptors that the process may have open.
//!
//! A member that cannot open the next segment of its log or the next table of its state has to
//! stop, so these come first, then other members, then probes; clients get what is left. Everyone
//! but the log and the state gets connections, and one above its share is closed when it is
//! accepted.

use crate::storage::rocks::INSPECTION_OPEN_FILES;
use crate::transport::MAX_UNLISTED_PEERS;

/// Standard streams, the runtime's own, locks, listeners, the log's segments, `RocksDB`'s own
/// files and those that a flush or a compaction writes, connections to other members and to those
/// that are not known as such yet, and a file or two for a moment (a scrape, a name that is looked
/// up, a checkpoint that is sent).
const OWN: u64 = 64 + 2 * MAX_UNLISTED_PEERS as u64;
/// The least and the most that the engine keeps open of its tables; it takes no fewer than 20. Two
/// engines are open while a received state replaces one that is still read.
const TABLES: (u64, u64) = (20, 1024);
/// Tables of states that are read beside it: a checkpoint for another member, and a state that came
/// from one.
const INSPECTIONS: u64 = 2 * INSPECTION_OPEN_FILES as u64;
/// Incoming connections of members; a pair keeps two in each direction, and calls take more.
const PEERS: (u64, u64) = (16, 128);
/// Connections of the listeners for probes and metrics.
const PROBES: (u64, u64) = (8, 64);
/// Clients have so many, however little is left: the rest is seldom needed all at once.
const MIN_CLIENTS: u64 = 16;

/// With fewer the least of each is more than there is, and a member may run out of descriptors in a
/// cluster.
const ENOUGH: u64 = 224;
/// With fewer what follows is for a member that is idle, or alone.
const FEW: u64 = 128;
/// With fewer not even the log and the state are sure of theirs.
const LEAST: u64 = 64;
/// Of an idle member itself, with the least of tables and what a flush or a compaction writes.
const LEAST_OWN: u64 = 53;

/// How many each may have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    pub tables: usize,
    pub peers: usize,
    pub probes: usize,
    pub clients: usize,
}

impl Descriptors {
    /// Of as many as the system lets this process have; a warning where those are few.
    ///
    /// # Errors
    /// See `of`.
    pub fn of_process() -> Result<Self, String> {
        let limit = raise_limit();
        let descriptors = Self::of(limit)?;
        warn_of_few(limit);
        Ok(descriptors)
    }

    /// Of so many in all.
    ///
    /// # Errors
    /// They are too few for the member and those who connect to it.
    pub fn of(limit: u64) -> Result<Self, String> {
        if limit < LEAST {
            return Err(format!(
                "the process may have {limit} files open and needs {LEAST} at least; raise the limit (ulimit -n, LimitNOFILE=)"
            ));
        }
        if limit < FEW {
            let (peers, probes) = (5, 2);
            let clients = limit - LEAST_OWN - peers - probes;
            return Ok(Self {
                tables: TABLES.0 as usize,
                peers: peers as usize,
                probes: probes as usize,
                clients: clients.min(MIN_CLIENTS) as usize,
            });
        }
        let part = |of: u64, (least, most): (u64, u64)| (limit / of).clamp(least, most);
        let (tables, peers, probes) = (part(8, TABLES), part(16, PEERS), part(16, PROBES));
        let clients = limit.saturating_sub(OWN + 2 * tables + INSPECTIONS + peers + probes);
        let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        Ok(Self {
            tables: count(tables),
            peers: count(peers),
            probes: count(probes),
            clients: count(clients.max(MIN_CLIENTS)),
        })
    }
}

/// Says that a member of a cluster may run out of descriptors.
fn warn_of_few(limit: u64) {
    if limit < ENOUGH {
        tracing::warn!(
            "the process may have {limit} files open; with fewer than {ENOUGH} a member may run out of them and stop: raise the limit (ulimit -n, LimitNOFILE=)"
        );
    }
}

/// Raises the limit of open files as far as the system lets this process, and returns it.
pub fn raise_limit() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let before = limit.current;
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "cannot raise the limit of open files");
            limit.current = before;
        }
    }
    limit.current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_and_the_state_come_first_and_clients_get_the_rest() {
        // The limit, and what tables, peers, probes and clients get of it.
        let cases = [
            (64, [20, 5, 2, 4]),
            (127, [20, 5, 2, 16]),
            (128, [20, 16, 8, 16]),
            (256, [32, 16, 16, 40]),
            (1024, [128, 64, 64, 520]),
            (4096, [512, 128, 64, 2760]),
            (1 << 20, [1024, 128, 64, (1 << 20) - 2360]),
            (u64::MAX, [1024, 128, 64, usize::MAX - 2360]),
        ];
        for (limit, [tables, peers, probes, clients]) in cases {
            let expected = Descriptors {
                tables,
                peers,
                probes,
                clients,
            };
            assert_eq!(Descriptors::of(limit), Ok(expected), "of {limit}");
        }
        assert!(Descriptors::of(LEAST - 1).is_err());
        for limit in ENOUGH..5000 {
            let parts = Descriptors::of(limit).expect("enough");
            let sum = 2 * parts.tables + parts.peers + parts.probes + parts.clients;
            assert!(
                sum as u64 + OWN + INSPECTIONS <= limit,
                "{parts:?} of {limit}"
            );
        }
    }
}
