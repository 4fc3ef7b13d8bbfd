//! Backups for clients, as etcd's snapshot files: a few at a time, each on a thread at its own
//! pace.
//!
//! A backup holds a view of the engine, a thread and its part of memory until its last part is
//! taken. So a reader that stands still for `UNREAD_LIMIT` gets no more of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use tokio::sync::mpsc;

use super::caller::Caller;
use super::handle::Handle;
use super::rpcs::{self, Costly};
use crate::backup::{self, export::Export};
use crate::env::{self, Clock};
use crate::error::Error;
use crate::replica::shared::Shared;

/// Each holds a thread.
const TURNS: Costly = rpcs::turns_of(rpcs::MAINTENANCE, "Snapshot");
/// How long the next part waits for its reader.
const UNREAD_LIMIT: Duration = Duration::from_secs(120);
/// Parts that wait between the disk and the network.
const WAITING_PARTS: usize = 2;

/// A snapshot file's next message.
pub enum Part {
    /// Comes first.
    Begun {
        bytes: u64,
        storage_version: String,
    },
    Bytes(Vec<u8>),
    /// Comes last; without it, and without an error, the file is not whole. The hash is of all
    /// bytes.
    Ended {
        sha256: [u8; 32],
    },
}

pub type Parts = mpsc::Receiver<Result<Part, Error>>;
type Sender = mpsc::Sender<Result<Part, Error>>;

impl Handle {
    /// Begins a snapshot file of the state as of now.
    pub async fn back_up(&self, caller: &Caller) -> Result<Parts, Error> {
        let turn = self.turns(TURNS).clone().acquire_owned();
        let clock = self.shared().clock.clone();
        let limit = self.deadline(caller).saturating_sub(clock.now());
        let Some(Ok(permit)) = env::timeout(clock.as_ref(), limit, turn).await else {
            return match caller.is_late(clock.now()) {
                true => Err(Error::DeadlineExceeded),
                false => Err(Error::Overloaded),
            };
        };
        let (made, making) = mpsc::channel(WAITING_PARTS);
        let (shared, dir) = (self.shared().clone(), self.settings.scratch_dir.clone());
        self.shared().executor.spawn_blocking(Box::new(move || {
            let _permit = permit;
            if let Err(error) = make(&shared, &dir, &made) {
                fail(&shared, &error, &made);
            }
        }));
        let (sender, parts) = mpsc::channel(1);
        self.spawn(hand_over(making, sender, clock));
        Ok(parts)
    }
}

/// Passes parts on until their reader is gone, or stands still.
async fn hand_over(mut making: Parts, sender: Sender, clock: Arc<dyn Clock>) {
    while let Some(part) = making.recv().await {
        let sent = env::timeout(clock.as_ref(), UNREAD_LIMIT, sender.send(part)).await;
        if !matches!(sent, Some(Ok(()))) {
            return;
        }
    }
}

fn make(shared: &Shared, dir: &Path, made: &Sender) -> Result<(), backup::Error> {
    let send = |part| {
        let sent = made.blocking_send(Ok(part));
        sent.map_err(|_| backup::Error::Unread)
    };
    let started = shared.clock.now();
    // A view between entries: the engine alone may hold a part of a deletion.
    let view = shared.view();
    let export = Export::new(view.read(), dir, &|| !made.is_closed())?;
    send(Part::Begun {
        bytes: export.bytes(),
        storage_version: export.storage_version().to_owned(),
    })?;
    let mut hash = digest::Context::new(&digest::SHA256);
    export.write(&mut |bytes| {
        hash.update(&bytes);
        send(Part::Bytes(bytes))
    })?;
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(hash.finish().as_ref());
    send(Part::Ended { sha256 })?;
    let took = shared.clock.now() - started;
    shared.metrics.backend_snapshot.observe(took);
    Ok(())
}

fn fail(shared: &Shared, error: &backup::Error, made: &Sender) {
    match error {
        backup::Error::Unread => {
            tracing::info!("a backup for a client ended before its last part was read");
            return;
        }
        backup::Error::Storage(error) => shared.fail(error.to_string()),
        backup::Error::Sort(_) => tracing::warn!(%error, "cannot make a backup for a client"),
    }
    // Who asked may be gone by now.
    let _ = made.blocking_send(Err(Error::BackupFailed));
}
