//! A cursor over a fixed buffer, for encoding without allocation. Not a growing buffer: it says when it is full.

use std::error::Error;
use std::fmt;

/// The output buffer is too small for what was to be written. What is in it then is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the output buffer is too small for the head")
    }
}

impl Error for Full {}

/// Writes into a slice from its start.
pub(super) struct Writer<'o> {
    out: &'o mut [u8],
    len: usize,
}

impl<'o> Writer<'o> {
    pub(super) fn new(out: &'o mut [u8]) -> Self {
        Self { out, len: 0 }
    }

    /// How much has been written.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), Full> {
        let end = self.len + bytes.len();
        self.out.get_mut(self.len..end).ok_or(Full)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// One field line.
    pub(super) fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Full> {
        self.put(name)?;
        self.put(b": ")?;
        self.put(value)?;
        self.put(b"\r\n")
    }

    /// In decimal digits.
    pub(super) fn number(&mut self, number: u64) -> Result<(), Full> {
        let len = number.checked_ilog10().map_or(1, |exponent| exponent as usize + 1);
        let end = self.len + len;
        let mut rest = number;
        for digit in self.out.get_mut(self.len..end).ok_or(Full)?.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.len = end;
        Ok(())
    }
}

impl fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes()).map_err(|Full| fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 9, 10, 1234567890, u64::MAX] {
            let mut out = [0; 20];
            let mut writer = Writer::new(&mut out);
            writer.number(number).unwrap();
            let len = writer.len();
            assert_eq!(str::from_utf8(&out[..len]).unwrap(), number.to_string());
        }
    }

    #[test]
    fn a_full_buffer_says_so() {
        let mut out = [0; 3];
        let mut writer = Writer::new(&mut out);
        assert_eq!(writer.put(b"abc"), Ok(()));
        assert_eq!(writer.put(b"d"), Err(Full));
        assert_eq!(writer.put(b""), Ok(()));
    }
}
