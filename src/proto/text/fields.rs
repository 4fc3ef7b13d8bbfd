//! The fields of a message in the text form of protobuf, as Go's library writes it.

use std::fmt::Write as _;

/// The fields of a message, those left out that have no value.
pub struct Fields {
    pub text: String,
    older: bool,
}

impl Fields {
    pub fn newer() -> Self {
        Self {
            text: String::new(),
            older: false,
        }
    }

    pub fn older() -> Self {
        Self {
            older: true,
            ..Self::newer()
        }
    }

    pub fn field(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        if !self.older && !self.text.is_empty() {
            self.text.push(' ');
        }
        // A text takes whatever is written to it.
        let _ = write!(self.text, "{name}:{value}");
        if self.older {
            self.text.push(' ');
        }
        self
    }

    pub fn number<N: std::fmt::Display + Default + PartialEq>(self, name: &str, value: N) -> Self {
        match value == N::default() {
            true => self,
            false => self.field(name, value),
        }
    }

    pub fn flag(self, name: &str, value: bool) -> Self {
        match value {
            true => self.field(name, value),
            false => self,
        }
    }

    pub fn word(self, name: &str, value: i32, word: impl FnOnce() -> &'static str) -> Self {
        match value {
            0 => self,
            _ => self.field(name, word()),
        }
    }

    pub fn message(mut self, name: &str, text: &str) -> Self {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        let _ = write!(self.text, "{name}:{{{text}}}");
        self
    }

    pub fn bytes(self, name: &str, value: &[u8]) -> Self {
        if value.is_empty() {
            return self;
        }
        let quoted = match self.older {
            true => quoted_octal(value),
            false => quoted(value),
        };
        self.field(name, quoted)
    }
}

fn quoted_octal(bytes: &[u8]) -> String {
    let mut out = String::from('"');
    for byte in bytes {
        let _ = match byte {
            b'\n' => out.write_str("\\n"),
            b'\r' => out.write_str("\\r"),
            b'\t' => out.write_str("\\t"),
            b'"' | b'\\' => write!(out, "\\{}", *byte as char),
            b' '..=b'~' => out.write_char(*byte as char),
            _ => write!(out, "\\{byte:03o}"),
        };
    }
    out.push('"');
    out
}

/// In quotes, as Go's libraries show what may not be text.
pub fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from('"');
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            let _ = match character {
                '\n' => out.write_str("\\n"),
                '\r' => out.write_str("\\r"),
                '\t' => out.write_str("\\t"),
                '"' | '\\' => write!(out, "\\{character}"),
                '\0'..' ' | '\x7f' => write!(out, "\\x{:02x}", character as u32),
                '\u{80}'..='\u{9f}' => write!(out, "\\u{:04x}", character as u32),
                _ => out.write_char(character),
            };
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_print_is_escaped() {
        let bytes = b"a\n\"\\\x01\x7f\xc3\xbc\xff";
        assert_eq!(quoted(bytes), "\"a\\n\\\"\\\\\\x01\\x7f\u{fc}\\xff\"");
        assert_eq!(
            quoted_octal(bytes),
            "\"a\\n\\\"\\\\\\001\\177\\303\\274\\377\""
        );
    }
}
