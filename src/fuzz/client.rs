//! What a client sends over HTTP/2, before the library sees it.

use crate::net;

use super::Seed;

/// The first byte says in pieces of which size the rest comes.
pub fn frames(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else {
        return;
    };
    let whole = net::mended([bytes]);
    let pieces = bytes.chunks(usize::from(*piece) + 1);
    assert_eq!(net::mended(pieces), whole, "pieces of {piece}");
    // What is mended needs no more of it, and is hardly longer than it was.
    assert_eq!(net::mended([&whole[..]]), whole, "a second time");
    assert!(whole.len() <= bytes.len() * 2);
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len().try_into().expect("a short frame");
    [&[0, 0, len, kind, flags, 0, 0, 0, stream], payload].concat()
}

pub fn frame_seeds() -> Vec<Seed> {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const CONTINUATION: u8 = 9;
    let block = |authority: &[u8]| [b"\x83\x86", authority, b"\x44\x02/a\xbe"].concat();
    let call = |stream, authority: &[u8]| {
        let headers = frame(HEADERS, 4, stream, &block(authority));
        [headers, frame(DATA, 1, stream, &[0; 5])].concat()
    };
    let huffman = b"\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
    let list = b"\x41\x0ba://b:1,c:2";
    let cut = [
        frame(HEADERS, 1, 1, &block(list)[..5]),
        frame(CONTINUATION, 0, 1, &[]),
        frame(CONTINUATION, 4, 1, &block(list)[5..]),
    ];
    let padded = [&[2, 0x80, 0, 0, 0, 1], &block(list)[..], &[0, 0]].concat();
    let connections = [
        ("valid", call(1, b"\x41\x01a")),
        ("huffman", call(1, huffman)),
        ("list", [call(1, list), call(3, &[0xbf])].concat()),
        ("spelled", call(1, b"\x40\x0a:authority\x01#")),
        ("empty-indexed", call(1, &[0x81])),
        ("empty", call(1, b"\x11\x00")),
        (
            "empty-entered",
            [
                call(1, b"\x41\x00"),
                call(3, &[0xbf]),
                call(5, b"\x7f\x00\x01#"),
            ]
            .concat(),
        ),
        ("cut", cut.concat()),
        ("padded", frame(HEADERS, 0x2c, 1, &padded)),
        ("ping", frame(6, 0, 0, &[0; 8])),
    ];
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let seed =
        |(name, frames): (&str, Vec<u8>)| Seed::new(name, [&[6], &preface[..], &frames].concat());
    connections.into_iter().map(seed).collect()
}
