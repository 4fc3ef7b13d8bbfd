//! The messages of a profile (pprof's profile.proto), and how they are put together.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use super::symbols;

/// What a number counts, and in what unit.
pub type Quantity = (&'static str, &'static str);

#[derive(Clone, PartialEq, Message)]
pub struct Profile {
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    #[prost(int64, tag = "7")]
    pub drop_frames: i64,
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    pub period: i64,
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
}

/// Texts are places in the table of strings.
#[derive(Clone, PartialEq, Message)]
pub struct ValueType {
    #[prost(int64, tag = "1")]
    pub kind: i64,
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Sample {
    /// From the innermost call outwards.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Label {
    #[prost(int64, tag = "1")]
    pub key: i64,
    #[prost(int64, tag = "2")]
    pub text: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Mapping {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(int64, tag = "5")]
    pub filename: i64,
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
    #[prost(bool, tag = "8")]
    pub has_filenames: bool,
    #[prost(bool, tag = "9")]
    pub has_line_numbers: bool,
    #[prost(bool, tag = "10")]
    pub has_inline_frames: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Location {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    #[prost(uint64, tag = "3")]
    pub address: u64,
    /// The last is the function itself, those before it were inlined there.
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Line {
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    #[prost(int64, tag = "2")]
    pub line: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Function {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(int64, tag = "2")]
    pub name: i64,
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    #[prost(int64, tag = "4")]
    pub filename: i64,
}

/// The one mapping: addresses need none, and functions are named already, which it says.
const MAPPING: u64 = 1;

/// Puts a profile together.
pub struct Builder {
    profile: Profile,
    strings: BTreeMap<String, i64>,
    locations: BTreeMap<usize, u64>,
    functions: BTreeMap<(i64, i64), u64>,
}

impl Builder {
    /// A profile made at this time since the Unix epoch, whose samples have these numbers, one for
    /// each `period` of what is sampled.
    pub fn new(types: &[Quantity], sampled: Quantity, period: i64, at: Duration) -> Self {
        let mut builder = Self {
            profile: Profile::default(),
            strings: BTreeMap::new(),
            locations: BTreeMap::new(),
            functions: BTreeMap::new(),
        };
        // The format wants the empty one first.
        builder.string("");
        let types = types.iter().map(|kind| builder.quantity(*kind)).collect();
        builder.profile.sample_type = types;
        builder.profile.period_type = Some(builder.quantity(sampled));
        builder.profile.period = period;
        builder.profile.time_nanos = nanos(at);
        let program = std::env::current_exe().unwrap_or_default();
        let filename = builder.string(&program.to_string_lossy());
        builder.profile.mapping.push(Mapping {
            id: MAPPING,
            filename,
            has_functions: true,
            has_filenames: true,
            has_line_numbers: true,
            has_inline_frames: true,
        });
        builder
    }

    pub fn lasted(&mut self, duration: Duration) {
        self.profile.duration_nanos = nanos(duration);
    }

    /// Which of the numbers a reader sees first.
    pub fn shows(&mut self, kind: &str) {
        self.profile.default_sample_type = self.string(kind);
    }

    /// Functions by a regular expression that readers leave out, with what they call.
    pub fn leaves_out(&mut self, functions: &str) {
        self.profile.drop_frames = self.string(functions);
    }

    /// Adds a stack, from the innermost call outwards.
    pub fn sample(&mut self, stack: &[usize], values: Vec<i64>, thread: Option<&str>) {
        let label = thread.map(|name| Label {
            key: self.string("thread"),
            text: self.string(name),
        });
        let sample = Sample {
            location_id: stack
                .iter()
                .map(|address| self.location(*address))
                .collect(),
            value: values,
            label: label.into_iter().collect(),
        };
        self.profile.sample.push(sample);
    }

    /// The profile's file.
    ///
    /// # Errors
    /// None, where memory is what it is written to.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        let mut file = GzEncoder::new(Vec::new(), Compression::fast());
        file.write_all(&self.profile.encode_to_vec())?;
        file.finish()
    }

    fn quantity(&mut self, (kind, unit): Quantity) -> ValueType {
        ValueType {
            kind: self.string(kind),
            unit: self.string(unit),
        }
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(at) = self.strings.get(text) {
            return *at;
        }
        let at = self.strings.len() as i64;
        self.strings.insert(text.to_owned(), at);
        self.profile.string_table.push(text.to_owned());
        at
    }

    fn location(&mut self, address: usize) -> u64 {
        if let Some(id) = self.locations.get(&address) {
            return *id;
        }
        let id = self.locations.len() as u64 + 1;
        self.locations.insert(address, id);
        let mut lines = Vec::new();
        symbols::calls_at(address, |call| {
            lines.push(Line {
                function_id: self.function(&call.function, &call.file),
                line: call.line.into(),
            });
        });
        self.profile.location.push(Location {
            id,
            mapping_id: MAPPING,
            address: address as u64,
            line: lines,
        });
        id
    }

    fn function(&mut self, name: &str, file: &str) -> u64 {
        let (name, filename) = (self.string(name), self.string(file));
        let next = self.functions.len() as u64 + 1;
        let id = *self.functions.entry((name, filename)).or_insert(next);
        if id == next {
            self.profile.function.push(Function {
                id,
                name,
                system_name: name,
                filename,
            });
        }
        id
    }
}

fn nanos(duration: Duration) -> i64 {
    duration.as_nanos() as i64
}

/// Reads a file back.
#[cfg(test)]
pub fn read(file: &[u8]) -> Profile {
    let mut bytes = Vec::new();
    let mut reader = flate2::read::GzDecoder::new(file);
    io::Read::read_to_end(&mut reader, &mut bytes).expect("a compressed file");
    Profile::decode(bytes.as_slice()).expect("a profile")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_equal_is_there_once() {
        let quantities = [("a", "count"), ("b", "bytes")];
        let mut builder = Builder::new(&quantities, ("b", "bytes"), 7, Duration::from_secs(2));
        builder.shows("a");
        let here = what_is_equal_is_there_once as fn() as usize + 1;
        builder.sample(&[here, 16], vec![1, 2], Some("raft"));
        builder.sample(&[16, here], vec![3, 4], None);
        let profile = read(&builder.finish().expect("a file"));
        let text = |at: i64| profile.string_table[at as usize].as_str();
        assert_eq!(text(0), "");
        let kinds = profile.sample_type.iter();
        let kinds: Vec<_> = kinds
            .map(|kind| (text(kind.kind), text(kind.unit)))
            .collect();
        assert_eq!(kinds, quantities);
        assert_eq!(text(profile.default_sample_type), "a");
        assert_eq!((profile.period, profile.time_nanos), (7, 2_000_000_000));
        let [one, two] = profile.sample.as_slice() else {
            panic!("{:?}", profile.sample);
        };
        assert_eq!(one.location_id, [1, 2]);
        assert_eq!(two.location_id, [2, 1]);
        assert_eq!(
            (text(one.label[0].key), text(one.label[0].text)),
            ("thread", "raft")
        );
        let addresses = profile.location.iter().map(|place| place.address);
        assert_eq!(addresses.collect::<Vec<_>>(), [here as u64, 16]);
        let function = profile.location[0].line.last().expect("a name").function_id;
        let function = &profile.function[function as usize - 1];
        assert!(text(function.name).ends_with("::format::what_is_equal_is_there_once"));
        assert!(text(function.filename).ends_with("format.rs"));
    }
}
