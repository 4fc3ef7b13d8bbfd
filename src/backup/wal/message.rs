//! The messages of etcd's raft log and snap files, field for field.

use bytes::Bytes;

/// `walpb.Record`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    #[prost(int64, optional, tag = "1")]
    pub kind: Option<i64>,
    #[prost(uint32, optional, tag = "2")]
    pub crc: Option<u32>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub data: Option<Bytes>,
}

/// The kinds of records.
pub mod kind {
    pub const METADATA: i64 = 1;
    pub const ENTRY: i64 = 2;
    pub const STATE: i64 = 3;
    pub const CRC: i64 = 4;
    pub const SNAPSHOT: i64 = 5;
}

/// `etcdserverpb.Metadata`: whose log it is.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Metadata {
    #[prost(uint64, optional, tag = "1")]
    pub node_id: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub cluster_id: Option<u64>,
}

/// `raftpb.Entry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    #[prost(int32, optional, tag = "1")]
    pub kind: Option<i32>,
    #[prost(uint64, optional, tag = "2")]
    pub term: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    pub index: Option<u64>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub data: Option<Bytes>,
}

/// The kinds of entries.
pub mod entry_kind {
    pub const NORMAL: i32 = 0;
    pub const CONF_CHANGE: i32 = 1;
}

/// `raftpb.HardState`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct HardState {
    #[prost(uint64, optional, tag = "1")]
    pub term: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub vote: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    pub commit: Option<u64>,
}

/// `raftpb.ConfState` of a cluster that is not between two configurations.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ConfState {
    #[prost(uint64, repeated, packed = "false", tag = "1")]
    pub voters: Vec<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "2")]
    pub learners: Vec<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "3")]
    pub voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    pub learners_next: Vec<u64>,
    #[prost(bool, optional, tag = "5")]
    pub auto_leave: Option<bool>,
}

/// `walpb.Snapshot`: the state after this entry was saved.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SnapshotRecord {
    #[prost(uint64, optional, tag = "1")]
    pub index: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub term: Option<u64>,
    #[prost(message, optional, tag = "3")]
    pub conf_state: Option<ConfState>,
}

/// `raftpb.ConfChange`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfChange {
    #[prost(uint64, optional, tag = "1")]
    pub id: Option<u64>,
    #[prost(int32, optional, tag = "2")]
    pub kind: Option<i32>,
    #[prost(uint64, optional, tag = "3")]
    pub node_id: Option<u64>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub context: Option<Bytes>,
}

/// The kinds of changes, which are not numbered as in raft-rs.
pub mod change_kind {
    pub const ADD_NODE: i32 = 0;
    pub const REMOVE_NODE: i32 = 1;
    pub const UPDATE_NODE: i32 = 2;
    pub const ADD_LEARNER_NODE: i32 = 3;
}

/// `snappb.Snapshot`: a snap file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapFile {
    #[prost(uint32, optional, tag = "1")]
    pub crc: Option<u32>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub data: Option<Bytes>,
}

/// `raftpb.Snapshot`: what is in it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Snapshot {
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub data: Option<Bytes>,
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<SnapshotMetadata>,
}

/// `raftpb.SnapshotMetadata`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SnapshotMetadata {
    #[prost(message, optional, tag = "1")]
    pub conf_state: Option<ConfState>,
    #[prost(uint64, optional, tag = "2")]
    pub index: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    pub term: Option<u64>,
}
