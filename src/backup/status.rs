//! What is in etcd's file: the numbers that `etcdutl snapshot status` has, counted as it counts
//! them.

use std::collections::HashSet;

use prost::Message;

use super::bbolt::read::File;
use super::etcd::{Record, bucket, key};
use super::import::Error;
use crate::proto::KeyValue;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// CRC-32C of the names of all buckets and their pairs.
    pub hash: u32,
    pub revision: i64,
    /// Keys that are there at the newest revision. etcdutl counts the record that stands for
    /// skipped revisions as one of the empty key.
    pub total_keys: u64,
    pub total_bytes: u64,
    /// Of the storage; empty in files of etcd before 3.6.
    pub version: String,
}

/// Reads a whole file.
pub fn status(file: &File) -> Result<Status, Error> {
    let mut status = Status {
        total_bytes: file.bytes(),
        ..Status::default()
    };
    let mut keys = HashSet::new();
    let mut has_keyspace = false;
    for name in file.buckets()? {
        status.hash = crc32c::crc32c_append(status.hash, &name);
        let is_keyspace = name == bucket::KEY;
        has_keyspace |= is_keyspace;
        file.each::<Error>(&name, &mut |at, value| {
            status.hash = crc32c::crc32c_append(status.hash, at);
            status.hash = crc32c::crc32c_append(status.hash, value);
            if name == bucket::META && at == key::STORAGE_VERSION {
                status.version = String::from_utf8_lossy(value).into_owned();
            }
            if !is_keyspace {
                return Ok(());
            }
            let damaged = || super::import::damaged(&name, at);
            let record = Record::parse(at).ok_or_else(damaged)?;
            let pair = KeyValue::decode(value).map_err(|_| damaged())?;
            status.revision = record.revision.main;
            match record.tombstone {
                true => keys.remove(&pair.key),
                false => keys.insert(pair.key),
            };
            Ok(())
        })?;
    }
    if !has_keyspace {
        return Err(Error::NoBucket(super::import::text(bucket::KEY)));
    }
    status.total_keys = keys.len() as u64;
    Ok(status)
}
