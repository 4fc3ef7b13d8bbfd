//! What the headers of a call take: a client may send 16 MiB of them, or a few bytes that name
//! thousands of headers it sent before. They are there before their call is, so a call with more
//! than there is room for is refused.

use http::HeaderMap;

use super::arriving::Source;
use crate::budget::Held;
use crate::error::Error;

/// Up to this size they are not counted: an open call counts as much in any case
/// (`budget::streams`). Those of usual clients, with a token, have 1 to 3 KiB.
const FREE_BYTES: usize = 6 << 10;
/// What each header takes beside its name and value: 100 of them with 100 bytes each take 41 kB.
const HEADER_BYTES: usize = 256;

/// Room for the headers of a call, where they are large.
///
/// # Errors
/// There is none.
pub fn room(source: &Source, headers: &HeaderMap) -> Result<Option<Held>, Error> {
    match size_bytes(headers) {
        ..=FREE_BYTES => Ok(None),
        bytes => match source.of_connection.try_take(bytes) {
            Some(held) => Ok(Some(held)),
            None => Err(Error::Overloaded),
        },
    }
}

fn size_bytes(headers: &HeaderMap) -> usize {
    let sizes = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + HEADER_BYTES);
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderValue;

    use super::*;
    use crate::budget::Requests;
    use crate::env::SystemClock;

    #[test]
    fn large_headers_are_counted_and_refused_where_there_is_no_room() {
        let requests = Requests::new(0, 1 << 20);
        let unread = requests.unread().connection();
        let source = Source {
            of_connection: requests.of_connection(unread),
            clock: Arc::new(SystemClock::default()),
            max_message_bytes: 1 << 20,
        };
        let mut headers = HeaderMap::new();
        for at in 0..12 {
            let name: http::HeaderName = format!("usual-header-{at}").parse().expect("a name");
            headers.insert(name, HeaderValue::from_static("with a usual value"));
        }
        assert!(matches!(room(&source, &headers), Ok(None)));
        headers.clear();
        let large = "v".repeat(1 << 20);
        headers.insert("a", large.parse().expect("a value"));
        // Of four MiB one connection has three eighths.
        let first = room(&source, &headers).expect("room").expect("counted");
        assert_eq!(requests.share().used_bytes(), (1 << 20) + 1 + HEADER_BYTES);
        assert_eq!(room(&source, &headers).err(), Some(Error::Overloaded));
        drop(first);
        assert!(matches!(room(&source, &headers), Ok(Some(_))));
    }
}
