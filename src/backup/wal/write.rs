//! A raft log of etcd, in one segment, record by record.

use bytes::Bytes;
use prost::Message;

use super::message::{self, Entry, HardState, Metadata, SnapshotRecord, kind};

/// The records of a segment. Their bytes are taken out from time to time.
#[derive(Default)]
pub struct Encoder {
    crc: u32,
    out: Vec<u8>,
}

impl Encoder {
    /// Begins a log, which is this member's.
    pub fn new(metadata: &Metadata) -> Self {
        let mut encoder = Self::default();
        encoder.record(kind::CRC, Vec::new());
        encoder.metadata(metadata);
        encoder
    }

    /// Each segment says it once more.
    pub fn metadata(&mut self, metadata: &Metadata) {
        self.record(kind::METADATA, metadata.encode_to_vec());
    }

    pub fn entry(&mut self, entry: &Entry) {
        self.record(kind::ENTRY, entry.encode_to_vec());
    }

    pub fn state(&mut self, state: &HardState) {
        self.record(kind::STATE, state.encode_to_vec());
    }

    pub fn snapshot(&mut self, snapshot: &SnapshotRecord) {
        self.record(kind::SNAPSHOT, snapshot.encode_to_vec());
    }

    /// What was written since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    fn record(&mut self, kind: i64, data: Vec<u8>) {
        self.crc = crc32c::crc32c_append(self.crc, &data);
        let record = message::Record {
            kind: Some(kind),
            crc: Some(self.crc),
            // etcd leaves it out where it is empty.
            data: (!data.is_empty()).then(|| Bytes::from(data)),
        };
        let record = record.encode_to_vec();
        let padding = (8 - record.len() % 8) % 8;
        let mut length = record.len() as u64;
        if padding > 0 {
            length |= (0x80 | padding as u64) << 56;
        }
        self.out.extend_from_slice(&length.to_le_bytes());
        self.out.extend_from_slice(&record);
        self.out.resize(self.out.len() + padding, 0);
    }
}
