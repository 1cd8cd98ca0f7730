//! A line of text without a heap. What does not fit is cut off, marked by `~`.

use core::fmt;

/// Up to 240 bytes of UTF-8.
#[derive(Clone, Copy)]
pub(crate) struct Text {
    bytes: [u8; Text::CAPACITY],
    len: usize,
}

impl Text {
    const CAPACITY: usize = 240;

    pub(crate) const fn new() -> Text {
        Text { bytes: [0; Text::CAPACITY], len: 0 }
    }

    pub(crate) fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("?")
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let mut utf8 = [0; 4];
            let encoded = c.encode_utf8(&mut utf8).as_bytes();
            if self.len + encoded.len() >= Text::CAPACITY {
                if self.len < Text::CAPACITY && self.bytes[..self.len].last() != Some(&b'~') {
                    self.bytes[self.len] = b'~';
                    self.len += 1;
                }
                return Ok(());
            }
            self.bytes[self.len..self.len + encoded.len()].copy_from_slice(encoded);
            self.len += encoded.len();
        }
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// As `std`'s `format!`, into a [`Text`].
macro_rules! text {
    ($($arg:tt)*) => {{
        let mut text = $crate::text::Text::new();
        let _ = core::fmt::Write::write_fmt(&mut text, format_args!($($arg)*));
        text
    }};
}
