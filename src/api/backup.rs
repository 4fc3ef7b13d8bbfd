//! A snapshot as etcd streams it: the file in parts, and then its SHA-256.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_lc_rs::digest;
use bytes::Bytes;
use tokio_stream::Stream;
use tonic::Status;

use crate::error::Error;
use crate::proto::etcdserverpb::SnapshotResponse;
use crate::service::backup::{Part, Parts};

/// The messages of a call.
pub struct Backup {
    parts: Parts,
    hash: digest::Context,
    remaining_bytes: u64,
    version: String,
    ended: bool,
}

impl Backup {
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            hash: digest::Context::new(&digest::SHA256),
            remaining_bytes: 0,
            version: String::new(),
            ended: false,
        }
    }

    fn message(&self, blob: impl Into<Bytes>) -> SnapshotResponse {
        SnapshotResponse {
            header: None,
            remaining_bytes: self.remaining_bytes,
            blob: blob.into(),
            version: self.version.clone(),
        }
    }

    /// What a part is on the wire; nothing for the first.
    fn of_part(&mut self, part: Part) -> Option<SnapshotResponse> {
        match part {
            Part::Begun {
                bytes,
                storage_version,
            } => {
                self.remaining_bytes = bytes;
                self.version = storage_version;
                None
            }
            Part::Bytes(bytes) => {
                self.hash.update(&bytes);
                self.remaining_bytes = self.remaining_bytes.saturating_sub(bytes.len() as u64);
                Some(self.message(bytes))
            }
            Part::Ended => {
                self.ended = true;
                let hash = self.hash.clone().finish();
                Some(self.message(hash.as_ref().to_vec()))
            }
        }
    }
}

impl Stream for Backup {
    type Item = Result<SnapshotResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.ended {
            let part = ready!(self.parts.poll_recv(context));
            // What ends without its last part is no whole snapshot.
            match part.unwrap_or(Err(Error::BackupFailed)) {
                Ok(part) => {
                    if let Some(message) = self.of_part(part) {
                        return Poll::Ready(Some(Ok(message)));
                    }
                }
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
        Poll::Ready(None)
    }
}
