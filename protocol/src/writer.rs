//! The only code that puts lengths and terminators into a buffer.

use bytes::{BufMut, BytesMut};

use crate::error::EncodeError;

/// Appends what `body` writes, behind a length that counts itself, and `tag` in front of both unless it
/// is the one message that has none. A failure leaves `out` as it was.
#[inline]
pub(crate) fn message(
    tag: Option<u8>,
    field: &'static str,
    out: &mut BytesMut,
    body: impl FnOnce(&mut BytesMut) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    all_or_nothing(out, |out| {
        if let Some(tag) = tag {
            out.put_u8(tag);
        }
        let start = out.len();
        out.put_i32(0);
        body(out)?;
        let len = len32(out.len() - start, field)?;
        if let Some(slot) = out.get_mut(start..start + 4) {
            slot.copy_from_slice(&len.to_be_bytes());
        }
        Ok(())
    })
}

/// Takes back what `write` appended if it fails.
#[inline]
pub(crate) fn all_or_nothing(
    out: &mut BytesMut,
    write: impl FnOnce(&mut BytesMut) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    let before = out.len();
    let written = write(out);
    if written.is_err() {
        out.truncate(before);
    }
    written
}

/// Appends a zero-terminated string.
#[inline]
pub(crate) fn cstr(
    text: &[u8],
    field: &'static str,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    if text.contains(&0) {
        return Err(EncodeError::Nul { field });
    }
    out.put_slice(text);
    out.put_u8(0);
    Ok(())
}

/// Appends bytes behind their 32-bit length, which does not count itself.
#[inline]
pub(crate) fn bytes32(
    bytes: &[u8],
    field: &'static str,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    out.put_i32(len32(bytes.len(), field)?);
    out.put_slice(bytes);
    Ok(())
}

/// Appends a value as [`bytes32`] does, or -1 for NULL.
#[inline]
pub(crate) fn nullable32(
    value: Option<&[u8]>,
    field: &'static str,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    match value {
        Some(value) => bytes32(value, field, out),
        None => {
            out.put_i32(-1);
            Ok(())
        }
    }
}

#[inline]
pub(crate) fn len32(len: usize, field: &'static str) -> Result<i32, EncodeError> {
    i32::try_from(len).map_err(|_| EncodeError::TooLong { field, len })
}

#[inline]
pub(crate) fn len16(len: usize, field: &'static str) -> Result<i16, EncodeError> {
    i16::try_from(len).map_err(|_| EncodeError::TooLong { field, len })
}

/// A 16-bit count that the wire takes as unsigned.
#[inline]
pub(crate) fn count16(len: usize, field: &'static str) -> Result<u16, EncodeError> {
    u16::try_from(len).map_err(|_| EncodeError::TooLong { field, len })
}
