//! What a failpoint does, as gofail spells it: terms with `->` between them, of which the first that
//! its conditions allow is carried out each time.
//!
//! ```text
//! panic                        ends the process; panic("why") says why
//! sleep(100), sleep("1m5s")    holds the thread up, milliseconds or a Go duration
//! print                        a line in the log
//! off, return, return(1)       nothing; etcd's own have no value to return either
//! 3*off->1*panic               a count: three times nothing, then once a panic
//! 50.0%sleep(10)               a chance, with a point in it; several conditions have to agree
//! ```
//!
//! gofail takes some texts that it then misreads, does nothing for, or fails at when the place is
//! reached: `sleep`, `sleep("soon")`, `5*`, `sleep(1`, escapes in texts. They are refused here. So is
//! `break`, which would start a debugger.

use std::time::Duration;

use crate::config::duration;
use crate::env::Rng;

/// What is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    Print,
    Sleep(Duration),
    /// With what it says, which may be nothing.
    Panic(String),
}

/// When a term is carried out.
#[derive(Clone, Debug, PartialEq)]
enum When {
    /// So often yet.
    Times(u64),
    /// With this probability.
    Chance(f64),
}

impl When {
    fn allows(&mut self, rng: &dyn Rng) -> bool {
        match self {
            Self::Times(left) => {
                let any = *left > 0;
                *left = left.saturating_sub(1);
                any
            }
            // As many bits as the number can hold.
            Self::Chance(chance) => (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64 <= *chance,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Term {
    when: Vec<When>,
    effect: Effect,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Terms {
    text: String,
    chain: Vec<Term>,
    executed: u64,
}

impl Terms {
    /// None for what is no terms.
    pub fn parse(text: &str) -> Option<Self> {
        let mut chain = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (term, behind) = take_term(rest)?;
            chain.push(term);
            rest = match behind {
                // gofail, too, lets an arrow end them.
                "" => behind,
                _ => behind.strip_prefix("->")?,
            };
        }
        (!chain.is_empty()).then(|| Self {
            text: text.to_owned(),
            chain,
            executed: 0,
        })
    }

    /// As they were given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How often one was carried out.
    pub fn executed(&self) -> u64 {
        self.executed
    }

    /// What is to be carried out now, if anything.
    pub fn next(&mut self, rng: &dyn Rng) -> Option<Effect> {
        let effect = self.chain.iter_mut().find_map(|term| {
            let allowed = term.when.iter_mut().all(|when| when.allows(rng));
            allowed.then(|| term.effect.clone())
        })?;
        self.executed += 1;
        Some(effect)
    }
}

fn take_term(text: &str) -> Option<(Term, &str)> {
    let mut rest = text;
    let mut when = Vec::new();
    while rest.starts_with(|first: char| first.is_ascii_digit()) {
        let (one, behind) = take_when(rest)?;
        when.push(one);
        rest = behind;
    }
    let (effect, rest) = take_effect(rest)?;
    Some((Term { when, effect }, rest))
}

/// `5*` or `50.0%`.
fn take_when(text: &str) -> Option<(When, &str)> {
    let digits = |from: usize| {
        let digits = text[from..].bytes().take_while(u8::is_ascii_digit);
        from + digits.count()
    };
    let whole = digits(0);
    if text[whole..].starts_with('.') {
        let end = digits(whole + 1);
        let percent: f64 = text[..end].parse().ok()?;
        let rest = text[end..].strip_prefix('%')?;
        return Some((When::Chance(percent / 100.0), rest));
    }
    let times = text[..whole].parse().ok()?;
    let rest = text[whole..].strip_prefix('*')?;
    Some((When::Times(times), rest))
}

/// What is in the brackets behind an action.
#[derive(Clone, Copy)]
enum Given<'a> {
    Nothing,
    Text(&'a str),
    Number(i64),
    Flag(bool),
}

fn take_effect(text: &str) -> Option<(Effect, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_lowercase())
        .unwrap_or(text.len());
    let (action, rest) = text.split_at(end);
    let (given, rest) = take_given(rest)?;
    let effect = match (action, given) {
        ("off" | "return", _) => Effect::Nothing,
        ("print", _) => Effect::Print,
        ("panic", Given::Nothing) => Effect::Panic(String::new()),
        ("panic", Given::Text(text)) => Effect::Panic(text.to_owned()),
        ("panic", Given::Number(number)) => Effect::Panic(number.to_string()),
        ("panic", Given::Flag(flag)) => Effect::Panic(flag.to_string()),
        ("sleep", Given::Number(ms)) => Effect::Sleep(Duration::from_millis(not_negative(ms))),
        ("sleep", Given::Text(text)) => {
            let ns = duration::parse_ns(text).ok()?;
            Effect::Sleep(Duration::from_nanos(not_negative(ns)))
        }
        _ => return None,
    };
    Some((effect, rest))
}

/// As in Go, one does not sleep for less than nothing.
fn not_negative(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn take_given(text: &str) -> Option<(Given<'_>, &str)> {
    let Some(within) = text.strip_prefix('(') else {
        return Some((Given::Nothing, text));
    };
    for quote in ['"', '`'] {
        if let Some(within) = within.strip_prefix(quote) {
            let (text, rest) = within.split_once(quote)?;
            let escapes = quote == '"' && text.contains('\\');
            let rest = rest.strip_prefix(')').filter(|_| !escapes)?;
            return Some((Given::Text(text), rest));
        }
    }
    let (word, rest) = within.split_once(')')?;
    let given = match word {
        "" => Given::Nothing,
        "true" => Given::Flag(true),
        "false" => Given::Flag(false),
        _ => {
            let number: i64 = word.parse().ok()?;
            // Other spellings are what gofail misreads.
            Given::Number(Some(number).filter(|number| number.to_string() == word)?)
        }
    };
    Some((given, rest))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Draws these, and then begins anew.
    struct Drawn(&'static [u64], AtomicUsize);

    impl Drawn {
        fn of(numbers: &'static [u64]) -> Self {
            Self(numbers, AtomicUsize::new(0))
        }
    }

    impl Rng for Drawn {
        fn next_u64(&self) -> u64 {
            self.0[self.1.fetch_add(1, Ordering::Relaxed) % self.0.len()]
        }
    }

    fn panic(text: &str) -> Effect {
        Effect::Panic(text.to_owned())
    }

    fn sleep(ms: u64) -> Effect {
        Effect::Sleep(Duration::from_millis(ms))
    }

    /// What happens at so many visits in a row.
    fn visits(terms: &mut Terms, count: usize, rng: &dyn Rng) -> Vec<Option<Effect>> {
        (0..count).map(|_| terms.next(rng)).collect()
    }

    #[test]
    fn actions_are_read() {
        for (text, expected) in [
            ("off", Effect::Nothing),
            ("return", Effect::Nothing),
            ("return(\"x\")", Effect::Nothing),
            ("return(-3)", Effect::Nothing),
            ("print", Effect::Print),
            ("print()", Effect::Print),
            ("panic", panic("")),
            ("panic()", panic("")),
            ("panic(\"a (b)\")", panic("a (b)")),
            ("panic(`a \"b\" \\`)", panic("a \"b\" \\")),
            ("panic(17)", panic("17")),
            ("panic(true)", panic("true")),
            ("sleep(100)", sleep(100)),
            ("sleep(0)", sleep(0)),
            ("sleep(-5)", sleep(0)),
            ("sleep(\"10ms\")", sleep(10)),
            ("sleep(\"1m0.5s\")", sleep(60_500)),
            ("sleep(\"-1s\")", sleep(0)),
            ("panic->", panic("")),
        ] {
            let mut terms = Terms::parse(text).expect(text);
            let got = visits(&mut terms, 2, &Drawn::of(&[0]));
            assert_eq!(got, [Some(expected.clone()), Some(expected)], "{text}");
            assert_eq!((terms.text(), terms.executed()), (text, 2));
        }
    }

    #[test]
    fn what_gofail_refuses_or_misreads_is_refused() {
        for text in [
            "",
            "->",
            "panik",
            "Panic",
            "panic ",
            " panic",
            "panic\n",
            "panicoff",
            "panic-off",
            "panic->->off",
            "panic;off",
            "5",
            "5*",
            "*panic",
            "-1*panic",
            "50%sleep(10)",
            "5.0*panic",
            "5panic",
            "18446744073709551616*off",
            "(3)",
            "sleep",
            "sleep()",
            "sleep(true)",
            "sleep(\"soon\")",
            "sleep(\"5\")",
            "sleep(1.5)",
            "sleep(007)",
            "sleep(+5)",
            "sleep(1",
            "sleep(1x)",
            "sleep(\"1s\"",
            "sleep(\"1s)",
            "panic(\"a\\n\")",
            "panic(x)",
            "break",
        ] {
            assert!(Terms::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn the_first_that_is_allowed_is_carried_out() {
        let mut terms = Terms::parse("2*off->1*sleep(7)->2*1*panic->print").expect("terms");
        assert_eq!(
            visits(&mut terms, 6, &Drawn::of(&[0])),
            [
                Some(Effect::Nothing),
                Some(Effect::Nothing),
                Some(sleep(7)),
                Some(panic("")),
                Some(Effect::Print),
                Some(Effect::Print),
            ]
        );
        assert_eq!(terms.executed(), 6);
    }

    #[test]
    fn terms_that_are_used_up_do_nothing_and_do_not_count() {
        let mut terms = Terms::parse("1*panic").expect("terms");
        let got = visits(&mut terms, 3, &Drawn::of(&[0]));
        assert_eq!(got, [Some(panic("")), None, None]);
        assert_eq!(terms.executed(), 1);
    }

    #[test]
    fn a_chance_is_drawn_at_each_visit() {
        let (low, high) = (u64::MAX / 4 - 1, u64::MAX / 4 * 3);
        for (text, expected) in [
            ("50.0%print", [true, false, true, false]),
            ("50.%print", [true, false, true, false]),
            ("80.5%print", [true, true, true, true]),
            ("0.0%print", [false, false, false, false]),
            // The count is used up where the chance fails, if it stands before it.
            ("2*50.0%print", [true, false, false, false]),
            ("50.0%2*print", [true, false, true, false]),
        ] {
            let drawn: &'static [u64] = Box::leak(Box::new([low, high]));
            let mut terms = Terms::parse(text).expect(text);
            let got = visits(&mut terms, 4, &Drawn::of(drawn));
            let got: Vec<bool> = got.iter().map(Option::is_some).collect();
            assert_eq!(got, expected, "{text}");
        }
    }
}
