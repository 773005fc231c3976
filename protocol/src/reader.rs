//! The only code that takes a peer's bytes apart.

use crate::error::{DecodeError, Fault};

/// The bytes of a message that are still to be read.
///
/// Every read names the field it reads, so that a failure can name it too. There is no cursor and no
/// index: what was read is gone from `rest`.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Reads `bytes` with `read`, which must use all of them.
    #[inline]
    pub(crate) fn all<T>(
        bytes: &'a [u8],
        message: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        let mut r = Self::new(bytes);
        let value = read(&mut r)?;
        if r.rest.is_empty() { Ok(value) } else { Err(DecodeError::new(message, Fault::Trailing)) }
    }

    #[inline]
    pub(crate) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        match self.rest.split_first_chunk::<N>() {
            Some((array, rest)) => {
                self.rest = rest;
                Ok(*array)
            }
            None => Err(DecodeError::new(field, Fault::Truncated)),
        }
    }

    #[inline]
    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        let [byte] = self.array(field)?;
        Ok(byte)
    }

    #[inline]
    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    #[inline]
    pub(crate) fn i16(&mut self, field: &'static str) -> Result<i16, DecodeError> {
        self.array(field).map(i16::from_be_bytes)
    }

    #[inline]
    pub(crate) fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.array(field).map(i32::from_be_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_be_bytes)
    }

    #[inline]
    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.array(field).map(i64::from_be_bytes)
    }

    /// A byte that is 0 or 1.
    #[inline]
    pub(crate) fn bool(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::new(field, Fault::Tag(other))),
        }
    }

    /// A 16-bit count. The wire's type is signed, and a peer can send -1.
    #[inline]
    pub(crate) fn count16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        let count = self.i16(field)?;
        u16::try_from(count).map_err(|_| DecodeError::new(field, Fault::Length(count.into())))
    }

    /// A 32-bit length or count. The wire's type is signed, and a peer can send -1.
    #[inline]
    pub(crate) fn len32(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let len = self.i32(field)?;
        usize::try_from(len).map_err(|_| DecodeError::new(field, Fault::Length(len.into())))
    }

    #[inline]
    pub(crate) fn take(
        &mut self,
        len: usize,
        field: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(len) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(DecodeError::new(field, Fault::Truncated)),
        }
    }

    /// Takes the next byte if it is this one.
    #[inline]
    pub(crate) fn take_tag(&mut self, tag: u8) -> bool {
        match self.rest.split_first() {
            Some((first, rest)) if *first == tag => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// One of these bytes, a 32-bit length and as many bytes, or `None` and nothing taken if anything about
    /// them is otherwise. What that is, and its error, is for the caller to find out.
    #[inline]
    pub(crate) fn take_tagged32<const N: usize>(
        &mut self,
        tags: [u8; N],
    ) -> Option<(u8, &'a [u8])> {
        let (&[tag, a, b, c, d], rest) = self.rest.split_first_chunk()?;
        if !tags.contains(&tag) {
            return None;
        }
        let len = usize::try_from(i32::from_be_bytes([a, b, c, d])).ok()?;
        let (taken, rest) = rest.split_at_checked(len)?;
        self.rest = rest;
        Some((tag, taken))
    }

    /// Bytes behind their 32-bit length, or nothing where that is -1: a value, or NULL.
    #[inline]
    pub(crate) fn nullable32(
        &mut self,
        length: &'static str,
        value: &'static str,
    ) -> Result<Option<&'a [u8]>, DecodeError> {
        match self.i32(length)? {
            -1 => Ok(None),
            len => {
                let len = usize::try_from(len)
                    .map_err(|_| DecodeError::new(length, Fault::Length(len.into())))?;
                self.take(len, value).map(Some)
            }
        }
    }

    /// Everything that is left.
    #[inline]
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Whether the next byte is this one; `false` at the end.
    #[inline]
    pub(crate) fn starts_with(&self, byte: u8) -> bool {
        self.rest.first() == Some(&byte)
    }

    /// A zero-terminated string, without its zero. Its encoding is the server's business.
    #[inline]
    pub(crate) fn cstr(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        // Names are short: for them a plain loop takes half the time of a search word by word.
        match self.rest.iter().position(|byte| *byte == 0) {
            Some(len) => {
                let text = self.take(len, field)?;
                self.rest = self.rest.get(1..).unwrap_or_default();
                Ok(text)
            }
            None => Err(DecodeError::new(field, Fault::Truncated)),
        }
    }

    /// A zero-terminated string that must be UTF-8.
    #[inline]
    pub(crate) fn str(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        core::str::from_utf8(self.cstr(field)?).map_err(|_| DecodeError::new(field, Fault::Utf8))
    }

    /// What `read` used, as one piece: for lists that are checked now and walked later.
    #[inline]
    pub(crate) fn scan(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<(), DecodeError>,
    ) -> Result<&'a [u8], DecodeError> {
        let mut ahead = *self;
        read(&mut ahead)?;
        self.take(self.rest.len() - ahead.rest.len(), "scanned list")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_names_its_field() {
        let mut r = Reader::new(b"ab\0\xff\xff");
        assert_eq!(r.u64("X.long"), Err(DecodeError::new("X.long", Fault::Truncated)));
        assert_eq!(r.cstr("X.name"), Ok(&b"ab"[..]));
        assert_eq!(r.cstr("X.other"), Err(DecodeError::new("X.other", Fault::Truncated)));
        assert_eq!(r.count16("X.count"), Err(DecodeError::new("X.count", Fault::Length(-1))));
        assert!(r.is_empty());
        assert_eq!(
            Reader::new(b"\xff\0").str("X.text"),
            Err(DecodeError::new("X.text", Fault::Utf8))
        );
        assert_eq!(
            Reader::new(b"\x02").bool("X.flag"),
            Err(DecodeError::new("X.flag", Fault::Tag(2)))
        );
    }

    #[test]
    fn what_is_not_whole_is_not_taken() {
        let text = b"t\0\0\0\x02hi!";
        let mut r = Reader::new(text);
        assert_eq!(r.take_tagged32([b'b', b't']), Some((b't', &b"hi"[..])));
        assert!(!r.take_tag(b'?') && r.take_tag(b'!') && !r.take_tag(b'!'));
        for other in
            [&b""[..], &text[..6], b"n\0\0\0\0", b"t\xff\xff\xff\xff", b"t\x7f\xff\xff\xff"]
        {
            let mut r = Reader::new(other);
            assert_eq!(r.take_tagged32([b'b', b't']), None);
            assert_eq!(r.rest(), other);
        }
    }

    #[test]
    fn leftovers_are_an_error() {
        assert_eq!(
            Reader::all(b"abc", "X", |r| r.take(2, "X.two")),
            Err(DecodeError::new("X", Fault::Trailing))
        );
        assert_eq!(Reader::all(b"ab", "X", |r| r.take(2, "X.two")), Ok(&b"ab"[..]));
    }
}
