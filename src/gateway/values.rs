//! Where a JSON value ends in a text that is still coming, and what it takes to parse it. Its
//! content is for the parser: this reads brackets, commas and strings alone, each byte once.

/// What a parsed object takes beside its texts, and what an element of a list; `src/fuzz/` measures.
const OBJECT_BYTES: usize = 768;
const ELEMENT_BYTES: usize = 192;

/// Looks for the end of one value after the other.
#[derive(Default)]
pub struct Values {
    /// So much of the text has been read.
    seen: usize,
    depth: usize,
    state: ValueState,
    /// What the value takes beside its text once it is parsed, as far as it has come.
    pub parsed_bytes: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum ValueState {
    /// Blanks in front of a value.
    #[default]
    Before,
    /// Within brackets.
    Within,
    String,
    Escape,
    /// A number or a word.
    Word,
}

impl Values {
    /// The end of the value that `text` begins with, or nothing as long as it has not come.
    /// The text may have grown since the last call, and begins anew after each value; what has
    /// been counted stays until it is taken.
    pub fn end(&mut self, text: &[u8]) -> Option<usize> {
        for (at, byte) in text.iter().enumerate().skip(self.seen) {
            if let Some(end) = self.take(*byte, at) {
                *self = Self {
                    parsed_bytes: self.parsed_bytes,
                    ..Self::default()
                };
                return Some(end);
            }
        }
        self.seen = text.len();
        None
    }

    fn take(&mut self, byte: u8, at: usize) -> Option<usize> {
        match (self.state, byte) {
            (ValueState::Escape, _) => self.state = ValueState::String,
            (ValueState::String, b'\\') => self.state = ValueState::Escape,
            (ValueState::String, b'"') => {
                self.state = ValueState::Within;
                return (self.depth == 0).then_some(at + 1);
            }
            (ValueState::String, _) => {}
            (ValueState::Word, b' ' | b'\t' | b'\r' | b'\n' | b'{' | b'[' | b'"' | b'}' | b']') => {
                return Some(at);
            }
            (ValueState::Word, _) => {}
            (ValueState::Before, b' ' | b'\t' | b'\r' | b'\n') => {}
            (ValueState::Before | ValueState::Within, b'{' | b'[') => {
                self.state = ValueState::Within;
                self.depth += 1;
                self.parsed_bytes += match byte {
                    b'{' => OBJECT_BYTES,
                    _ => ELEMENT_BYTES,
                };
            }
            (ValueState::Before | ValueState::Within, b'"') => self.state = ValueState::String,
            (ValueState::Within, b'}' | b']') => {
                self.depth -= 1;
                return (self.depth == 0).then_some(at + 1);
            }
            (ValueState::Within, b',') => self.parsed_bytes += ELEMENT_BYTES,
            (ValueState::Within, _) => {}
            // No value begins so: the parser says so.
            (ValueState::Before, b'}' | b']' | b',' | b':') => return Some(at + 1),
            (ValueState::Before, _) => self.state = ValueState::Word,
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of a text that comes in pieces of this size, and what is left.
    fn split(text: &str, piece: usize) -> (Vec<String>, String) {
        let (mut values, mut found, mut came) = (Values::default(), Vec::new(), Vec::new());
        for piece in text.as_bytes().chunks(piece) {
            came.extend_from_slice(piece);
            while let Some(end) = values.end(&came) {
                let value: Vec<u8> = came.drain(..end).collect();
                found.push(String::from_utf8(value).expect("a text").trim().to_owned());
            }
        }
        (found, String::from_utf8(came).expect("a text"))
    }

    #[test]
    fn values_end_where_their_brackets_close() {
        for (text, expected, rest) in [
            ("", &[][..], ""),
            (" \n", &[], " \n"),
            ("{}", &["{}"], ""),
            ("{} x", &["{}"], " x"),
            (
                r#"{"a":{"b":[1,2]}}{"c":1}"#,
                &[r#"{"a":{"b":[1,2]}}"#, r#"{"c":1}"#],
                "",
            ),
            (r#"{"a":"}\"{"}"#, &[r#"{"a":"}\"{"}"#], ""),
            (r#"{"a\\":"\\"} {"#, &[r#"{"a\\":"\\"}"#], " {"),
            ("[{}]\n{}\n", &["[{}]", "{}"], "\n"),
            (r#""x" 5 {}"#, &[r#""x""#, "5", "{}"], ""),
            ("null", &[], "null"),
            ("true{}", &["true", "{}"], ""),
            ("}", &["}"], ""),
            (r#"{"a":"#, &[], r#"{"a":"#),
            ("{]", &["{]"], ""),
        ] {
            for piece in [1, 2, 3, 100] {
                let (found, left) = split(text, piece);
                assert_eq!(
                    (&found[..], left.as_str()),
                    (
                        expected
                            .iter()
                            .map(|value| (*value).to_owned())
                            .collect::<Vec<_>>()
                            .as_slice(),
                        rest
                    ),
                    "{text} by {piece}"
                );
            }
        }
    }

    #[test]
    fn what_a_value_consists_of_is_counted() {
        let mut values = Values::default();
        values.end(br#"{"a":[{},{},{}],"b":",,{["}"#);
        assert_eq!(values.parsed_bytes, 4 * OBJECT_BYTES + 4 * ELEMENT_BYTES);
    }
}
