//! Prometheus' text format, version 0.0.4.
//!
//! Families stand in the order of their names and series in the order of their labels' values;
//! numbers are written as Go writes them, so that a scrape of etched and one of etcd can be
//! compared line by line.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::cell::{Reading, Shape};

/// The media type of a page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// What a family's numbers mean to Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// A metric by name.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    /// The buckets of a histogram.
    pub shape: Option<Shape>,
}

/// Label and value pairs; their order does not matter.
pub type Labels<'a> = &'a [(&'static str, &'a str)];

enum Value {
    Number(f64),
    Histogram(Reading),
}

struct Series {
    /// Sorted by name.
    labels: Vec<(&'static str, String)>,
    value: Value,
}

/// All that one scrape shows.
#[derive(Default)]
pub struct Exposition {
    families: BTreeMap<&'static str, (Family, Vec<Series>)>,
}

impl Exposition {
    pub fn number(&mut self, family: &Family, labels: Labels, value: f64) {
        self.add(family, labels, Value::Number(value));
    }

    pub fn histogram(&mut self, family: &Family, labels: Labels, reading: Reading) {
        self.add(family, labels, Value::Histogram(reading));
    }

    fn add(&mut self, family: &Family, labels: Labels, value: Value) {
        let mut labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        labels.sort_by_key(|(name, _)| *name);
        let (_, series) = self
            .families
            .entry(family.name)
            .or_insert_with(|| (*family, Vec::new()));
        series.push(Series { labels, value });
    }

    pub fn render(mut self) -> String {
        let mut page = String::with_capacity(128 << 10);
        for (family, series) in self.families.values_mut() {
            series.sort_by(|one, other| one.labels.cmp(&other.labels));
            let (name, kind) = (family.name, family.kind.name());
            let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
            // Writing to a string cannot fail.
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for one in series {
                write_series(&mut page, name, one);
            }
        }
        page
    }
}

fn write_series(page: &mut String, name: &str, series: &Series) {
    let labels: Vec<_> = series
        .labels
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    match &series.value {
        Value::Number(value) => write_line(page, name, "", &labels, *value),
        Value::Histogram(reading) => {
            let bounds = reading.buckets.iter().copied();
            for (bound, count) in bounds.chain([(f64::INFINITY, reading.count)]) {
                let bound = go_number(bound);
                let mut labels = labels.clone();
                labels.push(("le", &bound));
                write_line(page, name, "_bucket", &labels, count as f64);
            }
            write_line(page, name, "_sum", &labels, reading.sum);
            write_line(page, name, "_count", &labels, reading.count as f64);
        }
    }
}

fn write_line(page: &mut String, name: &str, suffix: &str, labels: &[(&str, &str)], value: f64) {
    page.push_str(name);
    page.push_str(suffix);
    for (at, (label, value)) in labels.iter().enumerate() {
        page.push(if at == 0 { '{' } else { ',' });
        page.push_str(label);
        page.push_str("=\"");
        for character in value.chars() {
            match character {
                '\\' => page.push_str("\\\\"),
                '"' => page.push_str("\\\""),
                '\n' => page.push_str("\\n"),
                other => page.push(other),
            }
        }
        page.push('"');
    }
    if !labels.is_empty() {
        page.push('}');
    }
    page.push(' ');
    page.push_str(&go_number(value));
    page.push('\n');
}

/// The shortest text that reads back as the same number; as Go writes it, with an exponent below
/// 1e-04 and from 1e+06.
fn go_number(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..6).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::cell::Histogram;
    use std::time::Duration;

    #[test]
    fn numbers_are_written_as_go_writes_them() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (-1.0, "-1"),
            (20_000.0, "20000"),
            (0.000_1, "0.0001"),
            (0.000_05, "5e-05"),
            (7.404e-5, "7.404e-05"),
            (0.014_665_768_000_000_001, "0.014665768000000001"),
            (999_999.0, "999999"),
            (1_000_000.0, "1e+06"),
            (1_234_567.891, "1.234567891e+06"),
            (2_147_483_648.0, "2.147483648e+09"),
            (52.4288, "52.4288"),
            (1.844_674_407_370_955_2e19, "1.8446744073709552e+19"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(go_number(value), text);
        }
    }

    #[test]
    fn a_page_is_sorted_and_escaped() {
        let family = |name, kind| Family {
            name,
            help: "a \\ b\nc",
            kind,
            shape: None,
        };
        let histogram = Histogram::new(Shape::seconds(Duration::from_millis(1), 1));
        histogram.observe(Duration::from_millis(5));
        let mut page = Exposition::default();
        page.histogram(
            &family("b", Kind::Histogram),
            &[("z", "1"), ("op", "Put")],
            histogram.read(),
        );
        page.number(&family("a", Kind::Counter), &[("v", "y")], 2.0);
        page.number(&family("a", Kind::Counter), &[("v", "x\"\\\n")], 1.0);
        let expected = concat!(
            "# HELP a a \\\\ b\\nc\n",
            "# TYPE a counter\n",
            "a{v=\"x\\\"\\\\\\n\"} 1\n",
            "a{v=\"y\"} 2\n",
            "# HELP b a \\\\ b\\nc\n",
            "# TYPE b histogram\n",
            "b_bucket{op=\"Put\",z=\"1\",le=\"0.001\"} 0\n",
            "b_bucket{op=\"Put\",z=\"1\",le=\"+Inf\"} 1\n",
            "b_sum{op=\"Put\",z=\"1\"} 0.005\n",
            "b_count{op=\"Put\",z=\"1\"} 1\n",
        );
        assert_eq!(page.render(), expected);
    }
}
