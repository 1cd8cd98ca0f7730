//! What the fuzzer gives: bytes, read as the values of a small program. Past the end there are zeros, so that every input is one.

/// See the module.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Input(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        array[..N.min(self.0.len())].copy_from_slice(self.bytes(N));
        array
    }

    /// Up to that many bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        first
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let number = if limit <= 256 { usize::from(self.u8()) } else { self.u32() as usize };
        number % limit
    }

    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// A number of which small ones, powers of two and those at limits need few bytes.
    pub fn value(&mut self) -> u64 {
        match self.u8() {
            0 => self.u8().into(),
            1 => self.u16().into(),
            2 => self.u32().into(),
            3 => self.u64(),
            4 => 1 << (self.u8() % 64),
            5 => (1u64 << (self.u8() % 64)) - 1,
            6 => u64::MAX - u64::from(self.u8()),
            7 => !(1u64 << (self.u8() % 64)),
            8 => u64::from(self.u8()) << 12,
            9 => u64::from(self.u16()) << 12,
            small => u64::from(small - 10),
        }
    }
}
