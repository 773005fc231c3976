//! The primitive types of Kafka's protocol, as they stand on the wire.
//!
//! <https://kafka.apache.org/protocol#protocol_types>. The flexible versions of a message (KIP-482) have compact
//! lengths and tagged fields, of which none is written here, and those that nobody wants are read past.

use rskafka::protocol::api_version::ApiVersion;
use rskafka::protocol::primitives::Int16;
use rskafka::protocol::traits::{ReadError, WriteError};
use std::io::Cursor;
use std::time::Duration;
use uuid::Uuid;

pub(super) const fn version(v: i16) -> ApiVersion {
    ApiVersion(Int16(v))
}

pub(super) fn millis(d: Duration) -> i32 {
    i32::try_from(d.as_millis()).unwrap_or(i32::MAX)
}

pub(super) fn int16(n: usize) -> Result<[u8; 2], WriteError> {
    Ok(i16::try_from(n)?.to_be_bytes())
}

pub(super) fn int32(n: usize) -> Result<[u8; 4], WriteError> {
    Ok(i32::try_from(n)?.to_be_bytes())
}

/// The length of a compact array or text that is not there.
pub(super) const COMPACT_NULL: u8 = 0;

/// STRING.
pub(super) fn put_string(out: &mut Vec<u8>, text: &str) -> Result<(), WriteError> {
    out.extend(int16(text.len())?);
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// No tagged field.
pub(super) const NO_TAGS: u8 = 0;

/// UNSIGNED_VARINT; the lengths of compact types are one more than what they count.
pub(super) fn put_compact_len(out: &mut Vec<u8>, n: usize) -> Result<(), WriteError> {
    let mut rest = u32::try_from(n)?.saturating_add(1);
    loop {
        let [low, ..] = rest.to_le_bytes();
        rest >>= 7;
        if rest == 0 {
            out.push(low & 0x7f);
            return Ok(());
        }
        out.push(low | 0x80);
    }
}

/// COMPACT_STRING.
pub(super) fn put_compact_string(out: &mut Vec<u8>, text: &str) -> Result<(), WriteError> {
    put_compact_len(out, text.len())?;
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// How long [`put_compact_len`] makes it.
pub(super) const fn compact_len_len(n: usize) -> usize {
    let bits = usize::BITS - (n + 1).leading_zeros();
    bits.div_ceil(7) as usize
}

pub(super) fn malformed(what: String) -> ReadError {
    ReadError::Malformed(what.into())
}

/// Reads a response's body from where the header ended, and leaves the reader behind it.
pub(super) fn read_body<T>(
    reader: &mut Cursor<Vec<u8>>,
    read: impl FnOnce(&mut Body<'_>) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    read_version(reader, false, read)
}

/// The same, for one that may be of a `flexible` version.
pub(super) fn read_version<T>(
    reader: &mut Cursor<Vec<u8>>,
    flexible: bool,
    read: impl FnOnce(&mut Body<'_>) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    let start = usize::try_from(reader.position())?;
    let bytes = reader.get_ref().get(start..).unwrap_or_default();
    let mut body = Body { rest: bytes, flexible };
    let value = read(&mut body)?;
    let end = start + (bytes.len() - body.rest.len());
    reader.set_position(end as u64);
    Ok(value)
}

#[derive(Clone)]
pub(super) struct Body<'a> {
    rest: &'a [u8],
    /// Lengths are compact, and there are tagged fields.
    flexible: bool,
}

impl<'a> Body<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let (head, rest) =
            self.rest.split_first_chunk().ok_or_else(|| malformed("ended early".to_owned()))?;
        self.rest = rest;
        Ok(*head)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ReadError> {
        let (head, rest) =
            self.rest.split_at_checked(len).ok_or_else(|| malformed("ended early".to_owned()))?;
        self.rest = rest;
        Ok(head)
    }

    fn unsigned_varint(&mut self) -> Result<u32, ReadError> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array()?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && bits > 0x0f {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("a number of more than 32 bits".to_owned()))
    }

    pub(super) fn boolean(&mut self) -> Result<bool, ReadError> {
        self.array().map(|[byte]| byte != 0)
    }

    pub(super) fn uuid(&mut self) -> Result<Uuid, ReadError> {
        self.array().map(Uuid::from_bytes)
    }

    /// The tagged fields, of which none is wanted, at the end of each structure of a flexible version.
    pub(super) fn tags(&mut self) -> Result<(), ReadError> {
        self.tagged(|_, _| Ok(()))
    }

    /// The tagged fields, each with its tag.
    pub(super) fn tagged(
        &mut self,
        mut each: impl FnMut(u32, &mut Self) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        if self.flexible {
            for _ in 0..self.unsigned_varint()? {
                let tag = self.unsigned_varint()?;
                let len = self.unsigned_varint()?;
                let rest = self.take(usize::try_from(len)?)?;
                each(tag, &mut Self { rest, flexible: true })?;
            }
        }
        Ok(())
    }

    pub(super) fn int8(&mut self) -> Result<i8, ReadError> {
        self.array().map(i8::from_be_bytes)
    }

    pub(super) fn int16(&mut self) -> Result<i16, ReadError> {
        self.array().map(i16::from_be_bytes)
    }

    pub(super) fn int32(&mut self) -> Result<i32, ReadError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn int64(&mut self) -> Result<i64, ReadError> {
        self.array().map(i64::from_be_bytes)
    }

    /// An array's length; null is empty.
    pub(super) fn count(&mut self) -> Result<i32, ReadError> {
        if self.flexible {
            return Ok(i32::try_from(self.unsigned_varint()?.saturating_sub(1))?);
        }
        match self.int32()? {
            n if n < -1 => Err(malformed(format!("an array of length {n}"))),
            n => Ok(n),
        }
    }

    pub(super) fn string(&mut self) -> Result<&'a str, ReadError> {
        self.nullable_string()?.ok_or_else(|| malformed("null where text is wanted".to_owned()))
    }

    /// Null is empty.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], ReadError> {
        let len = match self.int32()? {
            -1 => 0,
            len => usize::try_from(len)?,
        };
        self.take(len)
    }

    pub(super) fn nullable_string(&mut self) -> Result<Option<&'a str>, ReadError> {
        let len = if self.flexible {
            match self.unsigned_varint()? {
                0 => return Ok(None),
                len => usize::try_from(len - 1)?,
            }
        } else {
            match self.int16()? {
                -1 => return Ok(None),
                len => usize::try_from(len)?,
            }
        };
        let head = self.take(len)?;
        std::str::from_utf8(head).map(Some).map_err(|e| ReadError::Malformed(Box::new(e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_lengths_are_read_as_they_are_written() {
        for n in [0, 1, 126, 127, 128, 16_382, 16_383, 2_097_151, 268_435_455, 2_000_000_000] {
            let mut out = vec![];
            put_compact_len(&mut out, n).unwrap();
            assert_eq!(out.len(), compact_len_len(n), "{n}");
            let len = out.len() as u64;
            let mut reader = Cursor::new(out);
            let read = read_version(&mut reader, true, |r| r.count()).unwrap();
            assert_eq!((usize::try_from(read).unwrap(), reader.position()), (n, len));
        }
    }

    #[test]
    fn a_number_that_does_not_end_is_refused() {
        for bytes in [&[0x80; 5][..], &[0x80; 3], &[0xff, 0xff, 0xff, 0xff, 0x1f], &[]] {
            let mut reader = Cursor::new(bytes.to_vec());
            assert!(read_version(&mut reader, true, |r| r.count()).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn tagged_fields_are_read_past() {
        let mut reader = Cursor::new(vec![2, 0, 1, 7, 200, 1, 2, 7, 7, 42]);
        let read = read_version(&mut reader, true, |r| {
            r.tags()?;
            r.boolean()
        });
        assert!(read.unwrap());
        assert_eq!(reader.position(), 10);
    }
}
