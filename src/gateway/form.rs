//! A form, and a header that says by which method it is meant (`X-HTTP-Method-Override`), as
//! grpc-gateway takes them.
//!
//! No path of etcd's has a method but POST, so any other leads to a refusal. POST itself stays, but
//! its body was read as the form: the message of the call is empty. A form that is none is refused
//! before its path is looked at, in the words of Go's library. It is read as it comes, and kept
//! nowhere.

use bytes::Buf;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, Method};
use tonic::Status;

use super::body::{Failed, Reader};
use crate::proto::text::quoted;

const OVERRIDE: HeaderName = HeaderName::from_static("x-http-method-override");
const FORM: &str = "application/x-www-form-urlencoded";
/// Go's limits of a form.
const MAX_BYTES: usize = 10 << 20;
const MAX_PARAMETERS: usize = 10_000;

/// Whether the method of such a request stands in a header, and if so whether it is POST.
pub fn overridden(method: &Method, headers: &HeaderMap) -> Option<bool> {
    let is_form = headers.get(CONTENT_TYPE).is_some_and(|kind| kind == FORM);
    let other = headers.get(OVERRIDE).filter(|other| !other.is_empty())?;
    (method == Method::POST && is_form).then(|| other.as_bytes().eq_ignore_ascii_case(b"post"))
}

/// Reads a form to its end.
pub async fn read<B>(mut body: Reader<B>, query: &str) -> Result<(), Status>
where
    B: http_body::Body<Data: Buf> + Unpin,
{
    let mut form = FormCheck::default();
    loop {
        match body.read().await {
            Ok(Some(data)) => form.take(&data),
            Ok(None) => break,
            Err(Failed::Refused(status)) => return Err(status),
            Err(Failed::Gone) => return Err(Status::cancelled("the client has gone")),
        }
        if form.size_bytes > MAX_BYTES {
            return Err(Status::invalid_argument("http: POST too large"));
        }
    }
    let mut asked = FormCheck::default();
    asked.take(query.as_bytes());
    let complaint = form.complaint().or_else(|| asked.complaint());
    complaint.map_or(Ok(()), |text| Err(Status::invalid_argument(text)))
}

/// What has come of a form, as far as that says whether it is one.
#[derive(Default)]
struct FormCheck {
    size_bytes: usize,
    separators: usize,
    has_semicolon: bool,
    in_value: bool,
    /// An escape that has begun, `%` and what follows it.
    begun: Vec<u8>,
    /// The first one that is none.
    broken: Option<Vec<u8>>,
}

impl FormCheck {
    fn take(&mut self, text: &[u8]) {
        self.size_bytes += text.len();
        for byte in text {
            let is_name_end = *byte == b'=' && !self.in_value;
            match byte {
                b'&' => self.separators += 1,
                b';' => self.has_semicolon = true,
                _ => {}
            }
            if *byte == b'&' || is_name_end {
                self.in_value = is_name_end;
                self.end_part();
            } else if self.broken.is_none() && (*byte == b'%' || !self.begun.is_empty()) {
                self.begun.push(*byte);
                if let [_, high, low] = self.begun[..] {
                    match high.is_ascii_hexdigit() && low.is_ascii_hexdigit() {
                        true => self.begun.clear(),
                        false => self.end_part(),
                    }
                }
            }
        }
    }

    /// What has begun stays as it is.
    fn end_part(&mut self) {
        let begun = std::mem::take(&mut self.begun);
        if !begun.is_empty() {
            self.broken.get_or_insert(begun);
        }
    }

    /// What is wrong with it, now that it has ended.
    fn complaint(mut self) -> Option<String> {
        self.end_part();
        if self.separators >= MAX_PARAMETERS {
            return Some("number of URL query parameters exceeded limit".to_owned());
        }
        if self.has_semicolon {
            return Some("invalid semicolon separator in query".to_owned());
        }
        let broken = self.broken?;
        Some(format!("invalid URL escape {}", quoted(&broken)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::metadata::tests::headers;
    use super::*;

    #[test]
    fn a_header_overrides_the_method_of_a_form() {
        let kind = ("content-type", FORM);
        for (lines, expected) in [
            (&[kind][..], None),
            (&[("x-http-method-override", "GET")], None),
            (&[kind, ("x-http-method-override", "")], None),
            (&[kind, ("x-http-method-override", "GET")], Some(false)),
            (&[kind, ("x-http-method-override", "pOST")], Some(true)),
        ] {
            assert_eq!(overridden(&Method::POST, &headers(lines)), expected);
            assert_eq!(overridden(&Method::PUT, &headers(lines)), None);
        }
    }

    #[test]
    fn what_is_no_form_is_said_however_it_comes() {
        for (text, expected) in [
            ("", None),
            (r#"{"key":"YQ=="}"#, None),
            ("a=%41&b=+%2b", None),
            ("a=1;b", Some("invalid semicolon separator in query")),
            ("%zz&a;b", Some("invalid semicolon separator in query")),
            ("a=%&b", Some(r#"invalid URL escape "%""#)),
            ("%4=1&%zz", Some(r#"invalid URL escape "%4""#)),
            ("a=%4=&%zz", Some(r#"invalid URL escape "%4=""#)),
            ("a=%g4444", Some(r#"invalid URL escape "%g4""#)),
            ("%\"é", Some("invalid URL escape \"%\\\"\\xc3\"")),
            ("%41%4", Some(r#"invalid URL escape "%4""#)),
        ] {
            for piece_bytes in 1..=text.len().max(1) {
                let mut form = FormCheck::default();
                text.as_bytes()
                    .chunks(piece_bytes)
                    .for_each(|piece| form.take(piece));
                assert_eq!(form.complaint().as_deref(), expected, "{text}");
            }
        }
    }
}
