//! A status as etcdutl prints one.

use std::io::{self, Write};

use serde_json::{Map, Value};

use crate::config::Format;

/// A number or a word of a status.
pub struct Cell {
    /// In a table and as a field.
    pub title: &'static str,
    /// In JSON.
    pub name: &'static str,
    pub value: Value,
    /// For people, where that differs.
    pub text: Option<String>,
}

impl Cell {
    pub fn new(title: &'static str, name: &'static str, value: impl Into<Value>) -> Self {
        Self {
            title,
            name,
            value: value.into(),
            text: None,
        }
    }

    /// In tables and lines it is shown as this text.
    #[must_use]
    pub fn shown(mut self, text: String) -> Self {
        self.text = Some(text);
        self
    }

    fn plain(&self) -> String {
        match &self.value {
            Value::String(text) => text.clone(),
            value => value.to_string(),
        }
    }

    fn for_people(&self) -> String {
        self.text.clone().unwrap_or_else(|| self.plain())
    }
}

pub fn print(cells: &[Cell], format: Format, out: &mut dyn Write) -> io::Result<()> {
    match format {
        Format::Simple => {
            let texts: Vec<String> = cells.iter().map(Cell::for_people).collect();
            writeln!(out, "{}", texts.join(", "))
        }
        Format::Json => {
            let pairs = cells
                .iter()
                .map(|cell| (cell.name.to_owned(), cell.value.clone()));
            writeln!(out, "{}", Value::Object(pairs.collect::<Map<_, _>>()))
        }
        Format::Fields => {
            for cell in cells {
                writeln!(out, "\"{}\" : {}", field(cell), cell.plain())?;
            }
            Ok(())
        }
        Format::Table => table(cells, out),
    }
}

/// etcdutl names some fields otherwise than its columns.
fn field(cell: &Cell) -> String {
    let title = cell.title.strip_prefix("total ").unwrap_or(cell.title);
    let (first, rest) = title.split_at(1);
    format!("{}{rest}", first.to_uppercase())
}

fn table(cells: &[Cell], out: &mut dyn Write) -> io::Result<()> {
    let columns: Vec<(String, String)> = cells
        .iter()
        .map(|cell| (cell.title.to_uppercase(), cell.for_people()))
        .collect();
    let width = |(title, text): &(String, String)| title.chars().count().max(text.chars().count());
    let rule = |left: &str, middle: &str, right: &str| {
        let lines: Vec<String> = columns
            .iter()
            .map(|column| "─".repeat(width(column) + 2))
            .collect();
        format!("{left}{}{right}", lines.join(middle))
    };
    let row = |cells: Vec<String>| format!("│ {} │", cells.join(" │ "));
    let titles = columns
        .iter()
        .map(|column| format!("{:^1$}", column.0, width(column)));
    let texts = columns
        .iter()
        .map(|column| format!("{:>1$}", column.1, width(column)));
    for line in [
        rule("┌", "┬", "┐"),
        row(titles.collect()),
        rule("├", "┼", "┤"),
        row(texts.collect()),
        rule("└", "┴", "┘"),
    ] {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// A size in decimal units, rounded as etcdutl does: to tenths, and those of ten and more to the
/// next even number.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut unit, mut scale) = (0, 1);
    while bytes / scale >= 1000 && unit + 1 < UNITS.len() {
        scale *= 1000;
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let tenths = (bytes as f64 / scale as f64 * 10.0 + 0.5).floor() / 10.0;
    let digits = usize::from(tenths < 10.0);
    format!("{tenths:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_decimal_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (20_480, "20 kB"),
            (9_949, "9.9 kB"),
            (9_950, "10 kB"),
            (21_500, "22 kB"),
            (82_854_982, "83 MB"),
            (8_000_000_000, "8.0 GB"),
            (u64::MAX, "18 EB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn the_formats_are_etcdutl_s() {
        let cells = [
            Cell::new("hash", "hash", 1_512_972_546).shown("5a2e2102".to_owned()),
            Cell::new("total keys", "totalKey", 4),
            Cell::new("version", "version", "3.7.0"),
        ];
        for (format, expected) in [
            (Format::Simple, "5a2e2102, 4, 3.7.0\n"),
            (
                Format::Json,
                "{\"hash\":1512972546,\"totalKey\":4,\"version\":\"3.7.0\"}\n",
            ),
            (
                Format::Fields,
                "\"Hash\" : 1512972546\n\"Keys\" : 4\n\"Version\" : 3.7.0\n",
            ),
            (
                Format::Table,
                "┌──────────┬────────────┬─────────┐\n\
                 │   HASH   │ TOTAL KEYS │ VERSION │\n\
                 ├──────────┼────────────┼─────────┤\n\
                 │ 5a2e2102 │          4 │   3.7.0 │\n\
                 └──────────┴────────────┴─────────┘\n",
            ),
        ] {
            let mut out = Vec::new();
            print(&cells, format, &mut out).expect("prints");
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }
}
