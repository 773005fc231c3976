//! Lists inside messages: checked once, and walked without failing.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>

use bytes::{BufMut, BytesMut};

use crate::{
    Oid,
    error::{DecodeError, Fault},
    reader::Reader,
};

/// A list of zero-terminated strings, such as the SASL mechanisms a server offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strings<'a>(pub(super) &'a [u8]);

impl<'a> Strings<'a> {
    /// Takes strings that each end with a zero byte, for an encoder: `b"SCRAM-SHA-256\0"`.
    ///
    /// # Errors
    ///
    /// If one is empty, is not UTF-8 or does not end.
    pub fn new(terminated: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(terminated);
        while !r.is_empty() {
            if r.str("Strings.string")?.is_empty() {
                return Err(DecodeError::new("Strings.string", Fault::Length(0)));
            }
        }
        Ok(Self(terminated))
    }

    /// The strings, in the order they were sent.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> + Clone + use<'a> {
        let mut r = Reader::new(self.0);
        core::iter::from_fn(move || {
            if r.is_empty() {
                return None;
            }
            let string = r.str("Strings.string");
            debug_assert!(string.is_ok(), "the list was scanned when it was decoded");
            string.ok()
        })
    }
}

/// A list of format codes: 0 for text, 1 for binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Formats<'a>(&'a [[u8; 2]]);

impl<'a> Formats<'a> {
    /// Takes codes as they stand on the wire, two bytes each, for an encoder: `b"\0\0\0\x01"`.
    ///
    /// # Errors
    ///
    /// If the last one is cut off.
    pub fn new(big_endian: &'a [u8]) -> Result<Self, DecodeError> {
        chunks(big_endian, "Formats.format").map(Self)
    }

    pub(crate) fn read(
        r: &mut Reader<'a>,
        count: u16,
        field: &'static str,
    ) -> Result<Self, DecodeError> {
        chunks(r.take(usize::from(count) * 2, field)?, field).map(Self)
    }

    /// The codes, in the order they were sent.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = i16> + Clone + use<'a> {
        self.0.iter().map(|code| i16::from_be_bytes(*code))
    }

    pub(crate) const fn as_bytes(&self) -> &'a [u8] {
        self.0.as_flattened()
    }
}

/// A list of types, 0 for one that is left to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Oids<'a>(&'a [[u8; 4]]);

impl<'a> Oids<'a> {
    /// Takes numbers as they stand on the wire, four bytes each, for an encoder: `b"\0\0\0\x19"`.
    ///
    /// # Errors
    ///
    /// If the last one is cut off.
    pub fn new(big_endian: &'a [u8]) -> Result<Self, DecodeError> {
        chunks(big_endian, "Oids.oid").map(Self)
    }

    pub(crate) fn read(
        r: &mut Reader<'a>,
        count: u16,
        field: &'static str,
    ) -> Result<Self, DecodeError> {
        chunks(r.take(usize::from(count) * 4, field)?, field).map(Self)
    }

    /// The numbers, in the order they were sent.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Oid> + Clone + use<'a> {
        self.0.iter().map(|oid| Oid::from_be_bytes(*oid))
    }

    pub(crate) const fn as_bytes(&self) -> &'a [u8] {
        self.0.as_flattened()
    }
}

/// A list of values, some of them NULL: the columns of a row, or the parameters of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Values<'a> {
    count: u16,
    values: &'a [u8],
}

impl<'a> Values<'a> {
    /// Reads `count` values; the names are those of a value's length and of its bytes.
    #[inline]
    pub(crate) fn read(
        r: &mut Reader<'a>,
        count: u16,
        length: &'static str,
        value: &'static str,
    ) -> Result<Self, DecodeError> {
        let values =
            r.scan(|r| (0..count).try_for_each(|_| r.nullable32(length, value).map(drop)))?;
        Ok(Self { count, values })
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The values in the order they were sent, `None` for NULL.
    pub fn iter(&self) -> impl Iterator<Item = Option<&'a [u8]>> + Clone + use<'a> {
        let mut r = Reader::new(self.values);
        (0..self.count).map(move |_| {
            let value = r.nullable32("Values.length", "Values.value");
            debug_assert!(value.is_ok(), "the list was scanned when it was decoded");
            value.ok().flatten()
        })
    }

    /// Count and values as they stand on the wire.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u16(self.count);
        out.put_slice(self.values);
    }
}

fn chunks<'a, const N: usize>(
    bytes: &'a [u8],
    field: &'static str,
) -> Result<&'a [[u8; N]], DecodeError> {
    match bytes.as_chunks() {
        (chunks, []) => Ok(chunks),
        _ => Err(DecodeError::new(field, Fault::Truncated)),
    }
}
