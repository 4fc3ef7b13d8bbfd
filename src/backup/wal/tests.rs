//! The files in `testdata` are of etcds: each put seven keys, added a learner, changed its URLs,
//! removed it and deleted a key, with a snap file every six entries; then it was killed. The zeros
//! at the end of their segments are cut off.

use bytes::Bytes;
use prost::Message;

use super::message::{ConfChange, SnapshotRecord, change_kind, entry_kind};
use super::read::{Decoder, Record, Segment, Wal};
use super::write::Encoder;
use super::{Error, parse_segment_name, segment_name, snap};
use crate::proto::membershippb::{Attributes, Member, RaftAttributes};

const LOGS: [(&str, &[u8]); 3] = [
    ("3.5", include_bytes!("../testdata/etcd-3.5.wal")),
    ("3.6", include_bytes!("../testdata/etcd-3.6.wal")),
    ("3.7", include_bytes!("../testdata/etcd-3.7.wal")),
];
const SNAPSHOTS: [(&str, &[u8]); 3] = [
    ("3.5", include_bytes!("../testdata/etcd-3.5.snap")),
    ("3.6", include_bytes!("../testdata/etcd-3.6.snap")),
    ("3.7", include_bytes!("../testdata/etcd-3.7.snap")),
];

fn records(bytes: &[u8], is_last: bool) -> Result<Vec<Record>, Error> {
    let mut found = Vec::new();
    let segment = Segment {
        name: "log",
        bytes: bytes.len() as u64,
        is_last,
    };
    Decoder::default().segment::<Error>(&segment, &mut &*bytes, &mut |record| {
        found.push(record);
        Ok(())
    })?;
    Ok(found)
}

fn written(records: &[Record]) -> Vec<u8> {
    let mut encoder = Encoder::default();
    for record in records {
        match record {
            Record::Metadata(metadata) => encoder = Encoder::new(metadata),
            Record::Entry(entry) => encoder.entry(entry),
            Record::State(state) => encoder.state(state),
            Record::Snapshot(snapshot) => encoder.snapshot(snapshot),
        }
    }
    encoder.take()
}

#[test]
fn a_log_of_etcd_is_read() {
    for (version, bytes) in LOGS {
        let (mut metadata, mut commit, mut last) = (None, 0, 0);
        let (mut snapshots, mut changes) = (Vec::new(), Vec::new());
        for record in records(bytes, true).expect(version) {
            match record {
                Record::Metadata(found) => metadata = Some(found),
                Record::State(state) => commit = state.commit.unwrap_or_default(),
                Record::Snapshot(SnapshotRecord { index, .. }) => snapshots.extend(index),
                Record::Entry(entry) => {
                    assert_eq!(entry.index, Some(last + 1), "{version}");
                    last += 1;
                    if entry.kind == Some(entry_kind::CONF_CHANGE) {
                        let change = ConfChange::decode(entry.data.unwrap_or_default());
                        changes.extend(change.expect(version).kind);
                    }
                }
            }
        }
        let metadata = metadata.expect(version);
        assert_ne!(metadata.node_id.unwrap_or_default(), 0);
        assert_ne!(metadata.cluster_id.unwrap_or_default(), 0);
        assert!(last >= 14 && commit >= 13, "{version}: {commit} of {last}");
        assert_eq!(snapshots, [0, 7, 14], "{version}");
        let expected = [
            change_kind::ADD_NODE,
            change_kind::ADD_LEARNER_NODE,
            change_kind::UPDATE_NODE,
            change_kind::REMOVE_NODE,
        ];
        assert_eq!(changes, expected, "{version}");
    }
}

#[test]
fn what_is_written_is_what_etcd_writes() {
    for (version, bytes) in LOGS {
        let own = written(&records(bytes, true).expect(version));
        assert!(bytes.starts_with(&own), "{version}");
        assert!(
            bytes[own.len()..].iter().all(|byte| *byte == 0),
            "{version}"
        );
    }
    for (version, bytes) in SNAPSHOTS {
        let parsed = snap::parse(Bytes::from_static(bytes)).expect(version);
        assert_eq!(snap::encode(&parsed), bytes, "{version}");
    }
}

/// Wherever a write ended, what is before it is read; within a log it is damage.
#[test]
fn a_log_that_is_cut_off_ends_earlier() {
    let (_, bytes) = LOGS[2];
    let all = records(bytes, true).expect("reads");
    let own = written(&all).len();
    let mut seen = 0;
    for end in 0..own {
        let mut padded = bytes[..end].to_vec();
        let found = records(&padded, true).expect("reads");
        assert_eq!(found, all[..found.len()], "{end}");
        seen = found.len();
        // What a crash leaves of a frame in a file that is longer: whole sectors.
        padded.truncate(end / 512 * 512);
        padded.resize(bytes.len() + 1024, 0);
        let torn = records(&padded, true).expect("reads");
        assert_eq!(torn, all[..torn.len()], "{end}");
        let ends_within = written(&all[..found.len()]).len() != end;
        let middle = records(&bytes[..end], false);
        assert!(middle.is_err() || !ends_within || found.is_empty(), "{end}");
    }
    assert_eq!(seen, all.len() - 1);
}

#[test]
fn a_changed_byte_is_found() {
    let (_, bytes) = LOGS[2];
    let all = records(bytes, true).expect("reads");
    let own = written(&all).len();
    let mut refused = 0;
    for at in 0..own {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 0x10;
        match records(&damaged, true) {
            Err(_) => refused += 1,
            // A length beyond the file's end is a write that was cut off; padding is not read.
            Ok(found) => assert_eq!(found, all[..found.len()], "{at}"),
        }
    }
    assert!(refused * 10 > own * 7, "{refused} of {own}");
    for (_, bytes) in SNAPSHOTS {
        for at in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 0x10;
            assert!(snap::parse(damaged.into()).is_err(), "{at}");
        }
    }
}

#[test]
fn segments_are_found_in_order() {
    assert_eq!(parse_segment_name(&segment_name(3, 0x1f)), Some((3, 0x1f)));
    for name in ["0.tmp", "3-1f.wal", "0000000000000001.wal", "IDENTITY"] {
        assert_eq!(parse_segment_name(name), None, "{name}");
    }
    let dir = tempfile::tempdir().expect("a directory");
    assert!(Wal::find(dir.path()).expect("lists").is_none());
    assert!(
        Wal::find(&dir.path().join("none"))
            .expect("lists")
            .is_none()
    );
    let (_, bytes) = LOGS[2];
    let all = records(bytes, true).expect("reads");
    let (first, second) = all.split_at(all.len() / 2);
    // etcd begins each segment with the checksum of what came before it.
    let joined = written(&all);
    let (first_bytes, second_bytes) = joined.split_at(written(first).len());
    let crc = crc_of(second_bytes);
    let put = |name: &str, parts: &[&[u8]]| {
        std::fs::write(dir.path().join(name), parts.concat()).expect("writes");
    };
    put(&segment_name(0, 0), &[first_bytes]);
    put(&segment_name(1, 9), &[&crc, second_bytes]);
    let read = |behind| {
        let wal = Wal::find(dir.path())?.expect("is there");
        let mut found = Vec::new();
        wal.each::<Error>(behind, &mut |record| {
            found.push(record);
            Ok(())
        })?;
        Ok::<_, Error>(found)
    };
    assert_eq!(read(8).expect("reads"), all);
    assert_eq!(read(9).expect("reads"), second);
    put(&segment_name(1, 9), &[&[0x10; 8], &crc, second_bytes]);
    assert!(read(0).is_ok(), "a length beyond its end ends the last one");
    put(&segment_name(2, 12), &[]);
    assert!(matches!(read(0), Err(Error::Damaged { .. })));
    put(&segment_name(4, 15), &[]);
    assert!(matches!(read(0), Err(Error::Missing { .. })));
}

/// A frame that says the checksum of all that is before these frames of the log.
fn crc_of(frames: &[u8]) -> Vec<u8> {
    use super::message::{Record, kind};
    let all = LOGS[2].1;
    let at = all
        .windows(frames.len())
        .position(|part| part == frames)
        .expect("is there");
    // The frame before ends there; its record says the checksum.
    let mut offset = 0;
    let mut crc = 0;
    while offset < at {
        let length = u64::from_le_bytes(all[offset..offset + 8].try_into().expect("eight"));
        let bytes = (length & ((1 << 56) - 1)) as usize;
        let record = Record::decode(&all[offset + 8..offset + 8 + bytes]).expect("reads");
        crc = record.crc.unwrap_or_default();
        offset += 8 + bytes.next_multiple_of(8);
    }
    let record = Record {
        kind: Some(kind::CRC),
        crc: Some(crc),
        data: None,
    }
    .encode_to_vec();
    let padding = (8 - record.len() % 8) % 8;
    let mut length = record.len() as u64;
    if padding > 0 {
        length |= (0x80 | padding as u64) << 56;
    }
    [&length.to_le_bytes()[..], &record, &vec![0; padding]].concat()
}

#[test]
fn old_data_is_distinguished_from_members() {
    for (version, bytes) in SNAPSHOTS {
        let mut parsed = snap::parse(Bytes::from_static(bytes)).expect(version);
        assert!(!snap::has_old_data(&parsed).expect(version), "{version}");
        let metadata = parsed.metadata.clone().expect(version);
        assert_eq!(metadata.index, Some(14));
        assert_eq!(metadata.conf_state.unwrap_or_default().voters.len(), 1);
        parsed.data = Some("{".into());
        assert!(snap::has_old_data(&parsed).is_err());
    }
    let member = Member {
        id: 0xab,
        raft_attributes: Some(RaftAttributes {
            peer_urls: vec!["http://a:1".to_owned()],
            is_learner: true,
        }),
        member_attributes: Some(Attributes {
            name: "a".to_owned(),
            client_urls: Vec::new(),
        }),
    };
    let text = snap::store(&[member], &[0xcd], Some("3.7.0")).expect("is made");
    let mut snapshot = snap::parse(Bytes::from_static(SNAPSHOTS[2].1)).expect("reads");
    snapshot.data = Some(text.clone().into());
    assert!(!snap::has_old_data(&snapshot).expect("reads"));
    let text = String::from_utf8(text).expect("text");
    for part in [
        r#""Path":"/0/members/ab/raftAttributes""#,
        r#"{\"peerURLs\":[\"http://a:1\"],\"isLearner\":true}"#,
        r#""Path":"/0/removed_members/cd""#,
        r#""Value":"3.7.0","Children":null"#,
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    for (place, is_data) in [
        (r#"{"1":{"Children":{"k":{"Value":"v"}}}}"#, true),
        (r#"{"0":{"Children":{"k":{}}},"1":{"Children":{}}}"#, false),
        (r#"{"2":{"Children":{"roles":{"Children":{}}}}}"#, false),
        (
            r#"{"2":{"Children":{"roles":{"Children":{"r":{}}}}}}"#,
            true,
        ),
    ] {
        snapshot.data = Some(format!(r#"{{"Root":{{"Children":{place}}}}}"#).into());
        assert_eq!(snap::has_old_data(&snapshot).expect("reads"), is_data);
    }
}
