//! A raft log of etcd that nobody writes to, record by record.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use super::message::{Entry, HardState, Metadata, SnapshotRecord, kind};
use super::{Error, message, parse_segment_name};

const SECTOR_BYTES: u64 = 512;
const LENGTH_BYTES: u64 = 8;

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    Metadata(Metadata),
    Entry(Entry),
    State(HardState),
    Snapshot(SnapshotRecord),
}

/// What is done with a record. An error ends the reading.
pub type Visit<'a, E> = dyn FnMut(Record) -> Result<(), E> + 'a;

/// The segments of a directory.
pub struct Wal {
    dir: PathBuf,
    /// In order, with the index of the first entry that each was made for.
    segments: Vec<(String, u64)>,
}

impl Wal {
    /// Lists the segments of a directory; `None` where it has none.
    pub fn find(dir: &Path) -> Result<Option<Self>, Error> {
        let failed = |error| Error::Io {
            file: dir.display().to_string(),
            error,
        };
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_string_lossy().into_owned();
            if let Some((sequence, index)) = parse_segment_name(&name) {
                found.push((sequence, name, index));
            }
        }
        found.sort_unstable();
        for (before, behind) in found.iter().zip(found.iter().skip(1)) {
            if before.0 + 1 != behind.0 {
                return Err(Error::Missing {
                    before: before.1.clone(),
                    behind: behind.1.clone(),
                });
            }
        }
        let segments = found.into_iter().map(|(_, name, index)| (name, index));
        let segments: Vec<_> = segments.collect();
        Ok((!segments.is_empty()).then(|| Self {
            dir: dir.to_owned(),
            segments,
        }))
    }

    /// Visits the records of all segments that may hold what comes behind the entry `behind`.
    pub fn each<E: From<Error>>(&self, behind: u64, visit: &mut Visit<'_, E>) -> Result<(), E> {
        let first = self
            .segments
            .iter()
            .rposition(|(_, index)| *index <= behind)
            .unwrap_or(0);
        let mut decoder = Decoder::default();
        let wanted = &self.segments[first..];
        for (at, (name, _)) in wanted.iter().enumerate() {
            let failed = |error| Error::Io {
                file: name.clone(),
                error,
            };
            let file = File::open(self.dir.join(name)).map_err(failed)?;
            let bytes = file.metadata().map_err(failed)?.len();
            let segment = Segment {
                name,
                bytes,
                is_last: at + 1 == wanted.len(),
            };
            decoder.segment(&segment, &mut BufReader::new(file), visit)?;
        }
        Ok(())
    }
}

/// A segment to read.
pub struct Segment<'a> {
    pub name: &'a str,
    pub bytes: u64,
    /// The last one may end in a write that a crash interrupted.
    pub is_last: bool,
}

/// Reads segments, the next one with each call.
#[derive(Default)]
pub struct Decoder {
    /// Of what came before; a log may begin anywhere.
    crc: Option<u32>,
}

impl Decoder {
    /// Visits the records of a segment.
    pub fn segment<E: From<Error>>(
        &mut self,
        segment: &Segment<'_>,
        source: &mut dyn Read,
        visit: &mut Visit<'_, E>,
    ) -> Result<(), E> {
        let mut at = 0;
        while let Some((frame, end)) = segment.frame(source, at)? {
            match self.record(&frame) {
                Ok(Some(record)) => visit(record)?,
                Ok(None) => {}
                Err(_) if segment.is_last && is_torn(&frame, at + LENGTH_BYTES) => break,
                Err(reason) => return Err(segment.damaged(at, reason).into()),
            }
            at = end;
        }
        Ok(())
    }

    /// Reads a record and checks it; `None` for one of a checksum.
    fn record(&mut self, frame: &Frame) -> Result<Option<Record>, &'static str> {
        let record =
            message::Record::decode(frame.record.clone()).map_err(|_| "a record cannot be read")?;
        let data = record.data.unwrap_or_default();
        let said = record.crc.unwrap_or_default();
        if record.kind == Some(kind::CRC) {
            // It says the checksum of all before it.
            return match self.crc.replace(said) {
                Some(crc) if crc != said => Err("its checksum is not that of what is before it"),
                _ => Ok(None),
            };
        }
        let crc = crc32c::crc32c_append(self.crc.unwrap_or_default(), &data);
        if crc != said {
            return Err("a checksum does not fit");
        }
        self.crc = Some(crc);
        let decoded = match record.kind {
            Some(kind::METADATA) => Metadata::decode(data).map(Record::Metadata),
            Some(kind::ENTRY) => Entry::decode(data).map(Record::Entry),
            Some(kind::STATE) => HardState::decode(data).map(Record::State),
            Some(kind::SNAPSHOT) => SnapshotRecord::decode(data).map(Record::Snapshot),
            _ => return Err("a record is of no known kind"),
        };
        decoded.map(Some).map_err(|_| "a record cannot be read")
    }
}

/// A record with what pads it.
struct Frame {
    record: Bytes,
    all: Bytes,
}

impl Segment<'_> {
    /// The frame at an offset, and where the next one begins; `None` at the end.
    fn frame(&self, source: &mut dyn Read, at: u64) -> Result<Option<(Frame, u64)>, Error> {
        let left = self.bytes.saturating_sub(at);
        if left < LENGTH_BYTES {
            return self.cut(at, left > 0);
        }
        let mut length = [0; LENGTH_BYTES as usize];
        let failed = |error| Error::Io {
            file: self.name.to_owned(),
            error,
        };
        source.read_exact(&mut length).map_err(failed)?;
        let length = u64::from_le_bytes(length);
        if length == 0 {
            return Ok(None);
        }
        let record_bytes = length & ((1 << 56) - 1);
        let padding = match length >> 63 {
            1 => length >> 56 & 7,
            _ => 0,
        };
        let frame_bytes = record_bytes + padding;
        if frame_bytes > left - LENGTH_BYTES {
            return self.cut(at, true);
        }
        let mut all = vec![0; frame_bytes as usize];
        source.read_exact(&mut all).map_err(failed)?;
        let all = Bytes::from(all);
        let record = all.slice(..record_bytes as usize);
        Ok(Some((
            Frame { record, all },
            at + LENGTH_BYTES + frame_bytes,
        )))
    }

    /// The end of the file, within a frame or not.
    fn cut<T>(&self, at: u64, within: bool) -> Result<Option<T>, Error> {
        match within && !self.is_last {
            true => Err(self.damaged(at, "it ends within a record")),
            false => Ok(None),
        }
    }

    fn damaged(&self, offset: u64, reason: &'static str) -> Error {
        Error::Damaged {
            file: self.name.to_owned(),
            offset,
            reason,
        }
    }
}

/// True where a sector of a frame that begins at `offset` is empty: it was not written wholly.
fn is_torn(frame: &Frame, offset: u64) -> bool {
    let first = (SECTOR_BYTES - offset % SECTOR_BYTES).min(frame.all.len() as u64);
    let (first, rest) = frame.all.split_at(first as usize);
    let mut sectors = std::iter::once(first).chain(rest.chunks(SECTOR_BYTES as usize));
    sectors.any(|sector| !sector.is_empty() && sector.iter().all(|byte| *byte == 0))
}
