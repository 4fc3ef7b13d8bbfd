//! What an etcd leaves beside its state: a member reads it once, when it takes the directory over.

use bytes::Bytes;

use super::Seed;
use crate::backup::applied;
use crate::backup::wal::message::{ConfChange, Entry, Snapshot, change_kind, entry_kind};
use crate::backup::wal::read::{Decoder, Record, Segment};
use crate::backup::wal::write::Encoder;
use crate::backup::wal::{Error, snap};
use crate::server::from_etcd::survey::Survey;
use crate::server::from_etcd::translate;
use prost::Message;

/// What the first byte says that the rest is.
const SEGMENT: u8 = b'w';
const REQUEST: u8 = b'r';
const CHANGE: u8 = b'c';
const SNAPSHOT: u8 = b's';
const STORE: u8 = b'j';
const MEMBER: u8 = b'm';

pub fn read(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    match *kind {
        SEGMENT => segment(rest),
        REQUEST => entry(entry_kind::NORMAL, rest),
        CHANGE => entry(entry_kind::CONF_CHANGE, rest),
        SNAPSHOT => {
            if let Ok(snapshot) = snap::parse(Bytes::copy_from_slice(rest)) {
                let again = snap::parse(snap::encode(&snapshot).into());
                assert_eq!(again.expect("is a snap file"), snapshot);
            }
        }
        STORE => {
            let snapshot = Snapshot {
                data: Some(Bytes::copy_from_slice(rest)),
                metadata: None,
            };
            // Either is an answer.
            let _ = snap::has_old_data(&snapshot);
        }
        MEMBER => {
            if let Some(member) = applied::member(rest) {
                let written = crate::backup::etcd::member(&member);
                assert_eq!(applied::member(&written), Some(member));
            }
        }
        _ => {}
    }
}

fn records(bytes: &[u8]) -> Result<Vec<Record>, Error> {
    let segment = Segment {
        name: "log",
        bytes: bytes.len() as u64,
        is_last: true,
    };
    let mut found = Vec::new();
    Decoder::default().segment::<Error>(&segment, &mut &*bytes, &mut |record| {
        found.push(record);
        Ok(())
    })?;
    Ok(found)
}

/// What is read of a segment is the same when it is written again, and the survey of it ends.
fn segment(bytes: &[u8]) {
    let Ok(found) = records(bytes) else {
        return;
    };
    let mut encoder = Encoder::default();
    for record in &found {
        match record {
            Record::Metadata(metadata) => encoder.metadata(metadata),
            Record::Entry(entry) => encoder.entry(entry),
            Record::State(state) => encoder.state(state),
            Record::Snapshot(snapshot) => encoder.snapshot(snapshot),
        }
    }
    let written = encoder.take();
    assert_eq!(records(&written).expect("is a log"), found);
    let mut survey = Survey::default();
    let surveyed = found
        .iter()
        .try_for_each(|record| survey.add(record.clone()));
    if surveyed.is_err() {
        return;
    }
    for index in [0, 1, 9, u64::MAX] {
        let state = applied::Applied {
            index,
            ..Default::default()
        };
        if let Ok((begin, _)) = survey.check(&state) {
            let _ = survey.members(&state, begin, None);
        }
    }
}

/// An entry that is taken comes out the same, however often it is converted.
fn entry(kind: i32, data: &[u8]) {
    let given = Entry {
        kind: Some(kind),
        term: Some(2),
        index: Some(3),
        data: Some(Bytes::copy_from_slice(data)),
    };
    let Ok(ours) = translate::entry(&given, 1) else {
        return;
    };
    let back = translate::entry_of_etcd(&ours, &|_| None).expect("is an entry of ours");
    assert_eq!(translate::entry(&back, 1), Ok(ours));
}

pub fn seeds() -> Vec<Seed> {
    let of = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let member = r#"{"id":171,"peerURLs":["http://a:1"],"isLearner":true,"isPromote":true}"#;
    let change = |kind| {
        ConfChange {
            id: None,
            kind: Some(kind),
            node_id: Some(171),
            context: Some(member.into()),
        }
        .encode_to_vec()
    };
    let logs: [(&str, &[u8], &[u8]); 2] = [
        (
            "3.5",
            include_bytes!("../backup/testdata/etcd-3.5.wal"),
            include_bytes!("../backup/testdata/etcd-3.5.snap"),
        ),
        (
            "3.7",
            include_bytes!("../backup/testdata/etcd-3.7.wal"),
            include_bytes!("../backup/testdata/etcd-3.7.snap"),
        ),
    ];
    let mut seeds = vec![
        Seed::new("member", of(MEMBER, member.as_bytes())),
        Seed::new("added", of(CHANGE, &change(change_kind::ADD_NODE))),
        Seed::new(
            "learner",
            of(CHANGE, &change(change_kind::ADD_LEARNER_NODE)),
        ),
        Seed::new("updated", of(CHANGE, &change(change_kind::UPDATE_NODE))),
        Seed::new("removed", of(CHANGE, &change(change_kind::REMOVE_NODE))),
    ];
    for (version, log, snapshot) in logs {
        seeds.push(Seed::new(format!("log-{version}"), of(SEGMENT, log)));
        if let Ok(parsed) = snap::parse(Bytes::from_static(snapshot)) {
            let store = parsed.data.unwrap_or_default();
            seeds.push(Seed::new(format!("store-{version}"), of(STORE, &store)));
        }
        let of_entries = records(log).unwrap_or_default().into_iter();
        let data = of_entries.filter_map(|record| match record {
            Record::Entry(entry) if entry.kind != Some(entry_kind::CONF_CHANGE) => entry.data,
            _ => None,
        });
        for (at, data) in data.enumerate().filter(|(at, _)| at % 4 == 0) {
            seeds.push(Seed::new(
                format!("request-{version}-{at}"),
                of(REQUEST, &data),
            ));
        }
    }
    seeds.push(Seed::new(
        "snapshot",
        of(SNAPSHOT, include_bytes!("../backup/testdata/etcd-3.7.snap")),
    ));
    seeds
}
