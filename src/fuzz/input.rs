//! Bytes as a script: each takes what it needs, and what is missing at the end reads as zero. So
//! every input means something, and a small change of one means something close by.

/// What is left of an input.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `count` bytes, or as many as there are.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    pub fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub fn u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        let taken = self.bytes(8);
        bytes[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(bytes)
    }

    /// Bytes behind their length.
    pub fn block(&mut self) -> &'a [u8] {
        let count = self.u16();
        self.bytes(count.into())
    }

    /// A number: most often one near `near`, now and then one of those at which sums overflow.
    pub fn number(&mut self, near: u64) -> u64 {
        match self.u8() {
            0..0xc0 if near == 0 => self.u8().into(),
            0..0x80 => near,
            0x80..0xa0 => near.wrapping_add(1),
            0xa0..0xb0 => near.wrapping_sub(1),
            0xb0..0xc8 => near.wrapping_add(u64::from(self.u8())),
            0xc8..0xe0 => near.wrapping_sub(u64::from(self.u8())),
            0xe0..0xe8 => u64::from(self.u8()),
            0xe8..0xec => u64::MAX - u64::from(self.u8()),
            0xec..0xf0 => (1 << 63) - u64::from(self.u8()),
            0xf0..0xf4 => (1 << 62) - u64::from(self.u8()),
            _ => self.u64(),
        }
    }
}

/// Writes such scripts.
#[derive(Default)]
pub struct Script(pub Vec<u8>);

impl Script {
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub fn all(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn block(self, bytes: &[u8]) -> Self {
        let count = u16::try_from(bytes.len()).expect("a small block");
        self.all(&count.to_le_bytes()).all(bytes)
    }

    /// A number that [`Input::number`] reads as it is, whatever it is near to.
    pub fn number(self, value: u64) -> Self {
        self.u8(0xff).all(&value.to_le_bytes())
    }
}
