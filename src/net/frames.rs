//! Where frames of HTTP/2 begin in a byte stream (RFC 9113, section 4.1).

pub const PREFACE_BYTES: usize = 24;
pub const HEADER_BYTES: usize = 9;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const PING: u8 = 6;
pub const CONTINUATION: u8 = 9;

/// ACK of a ping, END_STREAM of data and headers.
pub const ACK_OR_END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITY: u8 = 0x20;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Bytes behind the header.
    pub len: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl Frame {
    pub fn parse(header: [u8; HEADER_BYTES]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = header;
        Self {
            len: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        }
    }

    /// The frame that `bytes` begin with; none where its header is not there as a whole.
    pub fn first(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(|header| Self::parse(*header))
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let [_, l0, l1, l2] = (self.len as u32).to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind, self.flags, s0, s1, s2, s3]
    }
}

/// Finds frames in a byte stream that comes in pieces.
#[derive(Default)]
pub struct Frames {
    /// Bytes to pass over before the next header.
    skip: usize,
    header: [u8; HEADER_BYTES],
    filled: usize,
}

impl Frames {
    /// True between two frames.
    pub fn at_boundary(&self) -> bool {
        self.skip == 0 && self.filled == 0
    }

    pub fn feed(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = (HEADER_BYTES - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + wanted].copy_from_slice(&bytes[..wanted]);
            self.filled += wanted;
            bytes = &bytes[wanted..];
            if self.filled < HEADER_BYTES {
                continue;
            }
            self.filled = 0;
            let frame = Frame::parse(self.header);
            self.skip = frame.len;
            seen(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_in_any_pieces() {
        let frames = [
            (PING, 0, 0, 8),
            (HEADERS, END_HEADERS, 3, 20),
            (DATA, ACK_OR_END_STREAM, 0x7fff_fffe, 0),
        ]
        .map(|(kind, flags, stream, len)| Frame {
            len,
            kind,
            flags,
            stream,
        });
        let bytes: Vec<u8> = frames
            .iter()
            .flat_map(|frame| [&frame.header()[..], &vec![0xff; frame.len]].concat())
            .collect();
        for piece in 1..=bytes.len() {
            let mut finder = Frames::default();
            let mut found = Vec::new();
            for chunk in bytes.chunks(piece) {
                finder.feed(chunk, |frame| found.push(frame));
            }
            assert_eq!(found, frames, "pieces of {piece}");
            assert!(finder.at_boundary());
        }
        assert_eq!(Frame::first(&bytes), Some(frames[0]));
        assert_eq!(Frame::first(&bytes[..8]), None);
    }
}
