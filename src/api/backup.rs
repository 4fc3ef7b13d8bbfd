//! A backup as etcd streams it, in its Snapshot RPC: the file in parts, and then its SHA-256.
//!
//! It stands beside the call's response (see `body`), since a file may have terabytes and tonic
//! would copy each of them. The hash is the file's maker's affair, on its thread.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::Message;
use tonic::Status;

use super::body::trailers;
use super::sliced::begin_message;
use crate::error::Error;
use crate::proto::etcdserverpb::SnapshotResponse;
use crate::proto::{begin_nested, nested_len};
use crate::service::backup::{Part, Parts};

/// `SnapshotResponse.blob`
const BLOB_TAG: u32 = 3;

/// The messages of a call.
pub struct Backup {
    parts: Parts,
    remaining_bytes: u64,
    version: String,
    /// Of the message that is being sent.
    pieces: VecDeque<Bytes>,
    /// How the call ends, once that is known.
    end: Option<Status>,
    ended: bool,
}

impl Backup {
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            remaining_bytes: 0,
            version: String::new(),
            pieces: VecDeque::new(),
            end: None,
            ended: false,
        }
    }

    /// Begins a message. The fields around the file's bytes are encoded without them.
    fn send(&mut self, blob: Bytes) {
        let before = SnapshotResponse {
            remaining_bytes: self.remaining_bytes,
            ..Default::default()
        };
        let behind = SnapshotResponse {
            version: self.version.clone(),
            ..Default::default()
        };
        let blob_bytes = nested_len(blob.len());
        let mut head = Vec::with_capacity(40);
        begin_message(
            before.encoded_len() + blob_bytes + behind.encoded_len(),
            &mut head,
        );
        before.encode_raw(&mut head);
        begin_nested(BLOB_TAG, blob.len(), &mut head);
        let behind = behind.encode_to_vec();
        self.pieces.extend([head.into(), blob, behind.into()]);
    }

    fn take(&mut self, part: Option<Result<Part, Error>>) {
        // What ends without its last part is no whole file.
        match part.unwrap_or(Err(Error::BackupFailed)) {
            Ok(Part::Begun {
                bytes,
                storage_version,
            }) => {
                self.remaining_bytes = bytes;
                self.version = storage_version;
            }
            Ok(Part::Bytes(bytes)) => {
                self.remaining_bytes = self.remaining_bytes.saturating_sub(bytes.len() as u64);
                self.send(bytes.into());
            }
            Ok(Part::Ended { sha256 }) => {
                self.send(sha256.to_vec().into());
                self.end = Some(Status::ok(""));
            }
            Err(error) => self.end = Some(error.into()),
        }
    }
}

impl HttpBody for Backup {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            match this.pieces.pop_front() {
                Some(piece) if piece.is_empty() => continue,
                Some(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                None => {}
            }
            if this.ended {
                return Poll::Ready(None);
            }
            if let Some(end) = this.end.take() {
                this.ended = true;
                return Poll::Ready(Some(trailers(&end)));
            }
            let part = ready!(this.parts.poll_recv(context));
            this.take(part);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::sync::mpsc;

    use super::*;

    async fn sent(parts: Vec<Result<Part, Error>>) -> (Vec<SnapshotResponse>, Status) {
        let (sender, receiver) = mpsc::channel(8);
        for part in parts {
            sender.send(part).await.expect("is read");
        }
        drop(sender);
        let collected = Backup::new(receiver).collect().await.expect("a body");
        let end = Status::from_header_map(collected.trailers().expect("trailers"));
        let mut bytes = collected.to_bytes();
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let prefix = bytes.split_to(5);
            let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
            let message = bytes.split_to(len as usize);
            messages.push(SnapshotResponse::decode(message).expect("a message"));
        }
        (messages, end.expect("a status"))
    }

    #[tokio::test]
    async fn a_file_is_sent_in_parts_with_what_remains() {
        let begun = || Part::Begun {
            bytes: 7,
            storage_version: "3.7.0".to_owned(),
        };
        let (messages, end) = sent(vec![
            Ok(begun()),
            Ok(Part::Bytes(vec![1; 5])),
            Ok(Part::Bytes(vec![2; 2])),
            Ok(Part::Ended { sha256: [3; 32] }),
        ])
        .await;
        let expected = [(2, vec![1; 5]), (0, vec![2; 2]), (0, vec![3; 32])];
        let expected = expected.map(|(remaining_bytes, blob)| SnapshotResponse {
            remaining_bytes,
            blob: Bytes::from(blob),
            version: "3.7.0".to_owned(),
            ..Default::default()
        });
        assert_eq!((messages, end.code()), (expected.to_vec(), tonic::Code::Ok));
        // Neither a failure nor a silence is an end.
        let failed = sent(vec![Ok(begun()), Err(Error::BackupFailed)]).await;
        let silent = sent(vec![Ok(begun()), Ok(Part::Bytes(vec![1; 5]))]).await;
        assert_eq!((failed.0.len(), silent.0.len()), (0, 1));
        for (_, end) in [failed, silent] {
            assert_eq!(end.code(), Error::BackupFailed.code());
        }
    }
}
