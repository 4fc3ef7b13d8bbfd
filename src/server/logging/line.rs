//! The format of a log line.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

use crate::config::{Level, LogFormat};
use crate::types::timestamp;

/// A line of the log, not formatted yet.
pub struct Line<'a> {
    pub level: Level,
    /// Since the Unix epoch.
    pub wall: Duration,
    pub logger: Option<&'a str>,
    /// A source file's path and line.
    pub caller: Option<(&'a str, u32)>,
    pub msg: &'a str,
    pub fields: Vec<(&'static str, Value)>,
}

impl Line<'_> {
    /// The line's bytes, its end of line included and no other.
    pub fn bytes(&self, format: LogFormat) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        match format {
            LogFormat::Json => self.json(&mut out),
            LogFormat::Console => self.columns(&mut out),
        }
        out.push(b'\n');
        out
    }

    fn json(&self, out: &mut Vec<u8>) {
        let mut pair = |key: &str, value: &Value| {
            out.push(if out.is_empty() { b'{' } else { b',' });
            append(out, &Value::from(key), Compact);
            out.push(b':');
            append(out, value, Compact);
        };
        pair("level", &self.level.name().into());
        pair("ts", &timestamp(self.wall).into());
        if let Some(logger) = self.logger {
            pair("logger", &logger.into());
        }
        if let Some(caller) = self.caller {
            pair("caller", &short(caller).into());
        }
        pair("msg", &self.msg.into());
        for (key, value) in &self.fields {
            pair(key, value);
        }
        out.push(b'}');
    }

    fn columns(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(timestamp(self.wall).as_bytes());
        out.push(b'\t');
        out.extend_from_slice(self.level.name().as_bytes());
        if let Some(logger) = self.logger {
            out.push(b'\t');
            out.extend_from_slice(logger.as_bytes());
        }
        if let Some(caller) = self.caller {
            out.push(b'\t');
            out.extend_from_slice(short(caller).as_bytes());
        }
        out.push(b'\t');
        // A message with an end of line in it must not look like two lines.
        for c in self.msg.chars() {
            match c.is_control() {
                true => out.extend(c.escape_default().map(|c| c as u8)),
                false => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if self.fields.is_empty() {
            return;
        }
        for (at, (key, value)) in self.fields.iter().enumerate() {
            out.extend_from_slice(if at == 0 { b"\t{" } else { b", " });
            append(out, &Value::from(*key), Spaced);
            out.extend_from_slice(b": ");
            append(out, value, Spaced);
        }
        out.push(b'}');
    }
}

/// The last directory, the file and the line.
fn short((file, line): (&str, u32)) -> String {
    let start = file.rmatch_indices('/').nth(1).map_or(0, |(at, _)| at + 1);
    format!("{}:{line}", &file[start..])
}

fn append(out: &mut Vec<u8>, value: &Value, formatter: impl Formatter) {
    // Neither a value nor a vector of bytes has a way to refuse.
    let _ = value.serialize(&mut Serializer::with_formatter(out, formatter));
}

struct Compact;

impl Formatter for Compact {}

/// With a blank after each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}
