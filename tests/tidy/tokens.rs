//! Reads Rust far enough for the rules: identifiers and punctuation with their lines, without
//! comments and literals, each with the inline modules around it and whether it is test code.

/// One identifier or one character of punctuation; `::` is one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub text: &'a str,
    /// From 1.
    pub line: usize,
}

impl Token<'_> {
    pub fn is_ident(&self) -> bool {
        self.text
            .starts_with(|first: char| first == '_' || first.is_alphabetic())
    }
}

/// Splits a text into tokens.
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let (length, keep) = next(rest, first);
        let (token, tail) = rest.split_at(length);
        if keep {
            found.push(Token { text: token, line });
        }
        line += token.matches('\n').count();
        rest = tail;
    }
    found
}

/// The length of what comes first, and whether it is a token.
fn next(rest: &str, first: char) -> (usize, bool) {
    if let Some(length) = comment(rest).or_else(|| literal(rest)) {
        return (length, false);
    }
    let is_word = |c: char| c == '_' || c.is_alphanumeric();
    if is_word(first) {
        let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        // A number is no name.
        return (length, !first.is_ascii_digit());
    }
    if rest.starts_with("::") {
        return (2, true);
    }
    (first.len_utf8(), !first.is_whitespace())
}

fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with("/*") {
        return None;
    }
    let mut depth = 0usize;
    let mut at = 0;
    while at < rest.len() {
        let tail = &rest.as_bytes()[at..];
        if tail.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += 1;
        }
    }
    Some(rest.len())
}

fn literal(rest: &str) -> Option<usize> {
    let unprefixed = rest.trim_start_matches(['b', 'c', 'r']);
    let prefix = rest.len() - unprefixed.len();
    let raw = rest[..prefix].contains('r');
    if prefix > 2 {
        return None;
    }
    let hashes = unprefixed.len() - unprefixed.trim_start_matches('#').len();
    if raw && unprefixed[hashes..].starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        let body = prefix + hashes + 1;
        return Some(
            rest[body..]
                .find(&end)
                .map_or(rest.len(), |at| body + at + end.len()),
        );
    }
    if unprefixed.starts_with('"') {
        return Some(prefix + quoted(unprefixed, '"'));
    }
    let mut chars = unprefixed.char_indices();
    if chars.next()?.1 != '\'' {
        return None;
    }
    let second = chars.next()?.1;
    let third = chars.next()?.1;
    // A quote that neither an escape nor one character with a quote follows begins a lifetime.
    (second == '\\' || third == '\'').then(|| prefix + quoted(unprefixed, '\''))
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// A token and where it stands.
#[derive(Clone, Debug)]
pub struct Placed<'a> {
    pub token: Token<'a>,
    /// The inline modules around it, outermost first.
    pub modules: Vec<&'a str>,
    /// True below `#[cfg(test)]`.
    pub in_test: bool,
}

/// The tokens of a text with their places.
pub fn placed(text: &str) -> Vec<Placed<'_>> {
    struct Block<'a> {
        module: Option<&'a str>,
        in_test: bool,
    }
    let tokens = tokens(text);
    let mut blocks: Vec<Block<'_>> = Vec::new();
    let mut found = Vec::with_capacity(tokens.len());
    let mut test_item = false;
    let mut parentheses = 0usize;
    for (at, token) in tokens.iter().enumerate() {
        let outside_is_test = blocks.last().is_some_and(|block| block.in_test);
        let texts = |from: usize, count: usize| tokens.get(from..from + count).unwrap_or_default();
        match token.text {
            "#" => {
                let wanted = ["#", "[", "cfg", "(", "test", ")", "]"];
                if texts(at, 7).iter().map(|token| token.text).eq(wanted) {
                    test_item = true;
                }
            }
            "(" | "[" => parentheses += 1,
            ")" | "]" => parentheses = parentheses.saturating_sub(1),
            ";" if parentheses == 0 => test_item = false,
            "{" => {
                let module = at
                    .checked_sub(2)
                    .filter(|before| tokens[*before].text == "mod")
                    .map(|_| tokens[at - 1].text);
                blocks.push(Block {
                    module,
                    in_test: outside_is_test || test_item,
                });
                test_item = false;
            }
            _ => {}
        }
        found.push(Placed {
            token: *token,
            modules: blocks.iter().filter_map(|block| block.module).collect(),
            in_test: test_item || blocks.last().is_some_and(|block| block.in_test),
        });
        if token.text == "}" {
            blocks.pop();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        tokens(text).iter().map(|token| token.text).collect()
    }

    #[test]
    fn comments_and_literals_are_left_out() {
        assert_eq!(
            texts("a /* b /* c */ d */ e // f\n::g"),
            ["a", "e", "::", "g"]
        );
        assert_eq!(
            texts(r###"x("a\"b", b"c", r"\", r#"d"e"#, 'f', b'\'', '\u{1}')"###),
            ["x", "(", ",", ",", ",", ",", ",", ",", ")"]
        );
        assert_eq!(
            texts("'a: &'b str 1u64 bc"),
            ["'", "a", ":", "&", "'", "b", "str", "bc"]
        );
        assert_eq!(texts("r#type \"open"), ["r", "#", "type"]);
        let lines: Vec<usize> = tokens("a\n\"\n\n\" b").iter().map(|t| t.line).collect();
        assert_eq!(lines, [1, 4]);
    }

    #[test]
    fn places_are_known() {
        let text = "mod a { x mod b { y } } #[cfg(test)] mod t { z } \
                    #[cfg(test)] use u; v #[cfg(test)] fn f(g: [u8; 2]) { h } w";
        let place = |name: &str| {
            let found = placed(text);
            let one = found.iter().find(|one| one.token.text == name);
            let one = one.expect("is in the text");
            (one.modules.join("::"), one.in_test)
        };
        assert_eq!(place("x"), ("a".to_owned(), false));
        assert_eq!(place("y"), ("a::b".to_owned(), false));
        assert_eq!(place("z"), ("t".to_owned(), true));
        assert_eq!(place("u"), (String::new(), true));
        assert_eq!(place("v"), (String::new(), false));
        assert_eq!(place("h"), (String::new(), true));
        assert_eq!(place("w"), (String::new(), false));
    }
}
