//! That one name means one type: a name that is defined twice makes a reader look up which is meant.
//! Those that there are now may stay, and become no more.

use std::collections::BTreeMap;

use super::source::Source;
use super::tokens::{Placed, placed};

/// Names of several types, and of how many. It is to become shorter.
pub const KNOWN: &[(&str, usize)] = &[
    ("Access", 2),
    ("All", 2),
    ("Answer", 2),
    ("Answers", 2),
    ("Applied", 4),
    ("At", 2),
    ("Attached", 2),
    ("Authorities", 2),
    ("Batch", 2),
    ("Begun", 2),
    ("Beside", 2),
    ("Change", 2),
    ("Checked", 2),
    ("Chunks", 2),
    ("Client", 3),
    ("Clients", 3),
    ("ConfState", 3),
    ("Connection", 4),
    ("Content", 5),
    ("Context", 2),
    ("Counted", 4),
    ("Counting", 2),
    ("Counts", 2),
    ("Credentials", 2),
    ("End", 4),
    ("Ended", 2),
    ("Endpoint", 3),
    ("Entry", 3),
    ("Error", 17),
    ("Event", 2),
    ("Exit", 2),
    ("Export", 2),
    ("Failure", 2),
    ("Family", 2),
    ("Fate", 2),
    ("Field", 2),
    ("Fields", 4),
    ("File", 2),
    ("Files", 2),
    ("Finding", 2),
    ("Found", 4),
    ("Frame", 3),
    ("Frames", 4),
    ("Gateway", 2),
    ("Gathered", 3),
    ("Group", 3),
    ("HashError", 2),
    ("Head", 3),
    ("Health", 3),
    ("Held", 2),
    ("Inbound", 2),
    ("Index", 2),
    ("Input", 2),
    ("Interval", 2),
    ("Joining", 2),
    ("Kept", 2),
    ("Key", 2),
    ("Keys", 2),
    ("Kind", 4),
    ("Known", 5),
    ("Lease", 2),
    ("Limits", 2),
    ("Line", 5),
    ("Link", 3),
    ("Links", 2),
    ("Live", 2),
    ("Local", 2),
    ("Lost", 2),
    ("Member", 2),
    ("Metadata", 2),
    ("Metrics", 2),
    ("Mismatch", 2),
    ("Next", 3),
    ("Node", 3),
    ("OfConnection", 2),
    ("Offered", 2),
    ("Open", 2),
    ("OpenFile", 3),
    ("Operation", 2),
    ("Order", 3),
    ("Origin", 2),
    ("Output", 3),
    ("Owner", 3),
    ("Pace", 2),
    ("Page", 4),
    ("Pages", 2),
    ("Part", 5),
    ("Parts", 4),
    ("Payload", 2),
    ("Pending", 2),
    ("Piece", 2),
    ("Progress", 2),
    ("Random", 2),
    ("Read", 2),
    ("Reader", 4),
    ("Reading", 3),
    ("Record", 4),
    ("Refusal", 3),
    ("Refused", 2),
    ("Remote", 2),
    ("Replay", 2),
    ("Report", 3),
    ("Room", 4),
    ("Round", 2),
    ("Run", 2),
    ("Seen", 2),
    ("SelfSigned", 2),
    ("Sent", 2),
    ("Served", 2),
    ("Services", 2),
    ("Session", 2),
    ("Shape", 4),
    ("Shared", 5),
    ("Shown", 3),
    ("Size", 2),
    ("Sliced", 2),
    ("Sorted", 2),
    ("Source", 3),
    ("Spilled", 2),
    ("Stage", 2),
    ("Stall", 2),
    ("Status", 2),
    ("Step", 2),
    ("Stopped", 2),
    ("Stored", 2),
    ("StoredMember", 2),
    ("Stream", 3),
    ("Taken", 2),
    ("Target", 2),
    ("Task", 2),
    ("Tasks", 2),
    ("Text", 2),
    ("Traces", 2),
    ("Turn", 3),
    ("Txn", 2),
    ("UnderWay", 3),
    ("Unsent", 2),
    ("User", 3),
    ("Value", 2),
    ("Values", 2),
    ("Verified", 2),
    ("Version", 3),
    ("Versions", 2),
    ("Waiter", 2),
    ("Watch", 4),
    ("Whole", 2),
    ("Writer", 2),
    ("Written", 2),
];

/// Names of more types than `known` says, and what `known` allows without need.
pub fn check(sources: &[Source], known: &[(&str, usize)]) -> Vec<String> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        for (name, line) in types(&placed(&source.text)) {
            let place = format!("{}:{line}", source.path);
            places.entry(name.to_owned()).or_default().push(place);
        }
    }
    let allowed = |name: &str| {
        let found = known.iter().find(|(known, _)| *known == name);
        found.map_or(1, |(_, count)| *count)
    };
    let mut findings = Vec::new();
    for (name, places) in &places {
        let (count, most) = (places.len(), allowed(name));
        if count > most {
            let places = places.join(", ");
            findings.push(format!(
                "{name} is the name of {count} types, and may be of {most}: {places}"
            ));
        }
    }
    for (name, most) in known {
        let count = places.get(*name).map_or(0, Vec::len);
        if count < *most || *most < 2 {
            findings.push(format!(
                "tests/tidy/homonyms.rs allows {most} types to be called {name}, and {count} are"
            ));
        }
    }
    findings
}

/// The types that are defined outside of tests, with their lines.
fn types<'a>(tokens: &[Placed<'a>]) -> Vec<(&'a str, usize)> {
    let mut found = Vec::new();
    for pair in tokens.windows(2) {
        let [word, name] = pair else { continue };
        let is_type = matches!(word.token.text, "struct" | "enum" | "trait");
        if is_type && name.token.is_ident() && !word.in_test {
            found.push((name.token.text, word.token.line));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(texts: &[(&str, &str)], known: &[(&str, usize)]) -> Vec<String> {
        let sources = texts.iter().map(|(path, text)| Source {
            path: (*path).to_owned(),
            text: (*text).to_owned(),
        });
        check(&sources.collect::<Vec<_>>(), known)
    }

    #[test]
    fn a_name_of_two_types_is_found() {
        let one = ("src/a.rs", "struct Part;\nenum Whole { Part }");
        let other = ("src/b.rs", "\npub trait Part: Sized {}");
        assert_eq!(findings(&[one], &[]), [""; 0]);
        assert_eq!(
            findings(&[one, other], &[]),
            ["Part is the name of 2 types, and may be of 1: src/a.rs:1, src/b.rs:2"]
        );
        let within = "mod a { struct Part; } mod b { enum Part {} }";
        assert_eq!(findings(&[("src/a.rs", within)], &[]).len(), 1);
        let used = "impl Part { fn f(part: Part) {} } // struct Part";
        assert_eq!(findings(&[one, ("src/b.rs", used)], &[]), [""; 0]);
    }

    #[test]
    fn types_of_tests_do_not_count() {
        let one = ("src/a.rs", "struct Part;");
        let inside = ("src/b.rs", "#[cfg(test)] mod tests { struct Part; }");
        let below = ("src/b/tests/c.rs", "struct Part;");
        assert_eq!(findings(&[one, inside, below], &[]), [""; 0]);
    }

    #[test]
    fn what_is_known_may_not_grow() {
        let text = |count: usize| "mod a { struct Part; }".repeat(count);
        let with = |count| findings(&[("src/a.rs", &text(count))], &[("Part", 2)]);
        assert_eq!(with(2), [""; 0]);
        assert_eq!(with(3).len(), 1);
        // What became less is said, so that the list follows.
        assert_eq!(with(1).len(), 1);
        assert_eq!(findings(&[], &[("Part", 1)]).len(), 1);
    }
}
