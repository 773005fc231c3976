//! Where one message ends and the next begins.
//!
//! <https://www.postgresql.org/docs/current/protocol-overview.html#PROTOCOL-MESSAGE-CONCEPTS>

use bytes::BytesMut;

use crate::{
    error::{DecodeError, EncodeError, Fault},
    writer,
};

/// One message of either side: a byte that says which, and its body, borrowed from the receive buffer.
///
/// ```text
///  tag  length: 4 bytes, signed, big endian,  body: length - 4 bytes
///       counts itself but not the tag
/// ┌────┬─────────────────────────────────────┬───────────────────────┐
/// │ 1  │                  4                  │          ...          │
/// └────┴─────────────────────────────────────┴───────────────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The first byte, which says what the body holds.
    pub tag: u8,
    /// Everything after the length.
    pub body: &'a [u8],
}

/// Tag and length: as much as must be there before anything can be said.
const HEADER_LEN: usize = 5;

impl<'a> Frame<'a> {
    /// The frame at the start of `buf`, or `None` if not all of it is there yet.
    ///
    /// `body_len_max`, in bytes, is required because the length comes from the peer: without a limit it
    /// decides how much is buffered.
    ///
    /// # Errors
    ///
    /// As soon as the header is there: [`Fault::Length`] if the length cannot be, [`Fault::TooLong`] if
    /// the body is longer than `body_len_max`.
    #[inline]
    pub fn decode(buf: &'a [u8], body_len_max: usize) -> Result<Option<Self>, DecodeError> {
        let Some(Header { tag, body_len, rest }) = Header::read(buf, body_len_max)? else {
            return Ok(None);
        };
        Ok(rest.get(..body_len).map(|body| Self { tag, body }))
    }

    /// How many bytes of `buf`, there or still to come, belong to the frame at its start; `None` if its
    /// header is not all there yet. What a reader needs to make room for the rest.
    ///
    /// # Errors
    ///
    /// As for [`Frame::decode`].
    #[inline]
    pub fn encoded_len_of(buf: &[u8], body_len_max: usize) -> Result<Option<usize>, DecodeError> {
        let header = Header::read(buf, body_len_max)?;
        Ok(header.map(|header| HEADER_LEN.saturating_add(header.body_len)))
    }

    /// How many bytes of the buffer this frame takes up: what to advance it by.
    #[inline]
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        HEADER_LEN + self.body.len()
    }

    /// Appends the frame.
    ///
    /// # Errors
    ///
    /// If the body is longer than 2 GiB.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        writer::message(Some(self.tag), "Frame.body", out, |out| {
            out.extend_from_slice(self.body);
            Ok(())
        })
    }
}

struct Header<'a> {
    tag: u8,
    body_len: usize,
    /// What of the body, and behind it, is there.
    rest: &'a [u8],
}

impl<'a> Header<'a> {
    #[inline]
    fn read(buf: &'a [u8], body_len_max: usize) -> Result<Option<Self>, DecodeError> {
        let Some((&[tag, a, b, c, d], rest)) = buf.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let len = i32::from_be_bytes([a, b, c, d]);
        // The length counts itself but not the tag.
        let Some(body_len) = usize::try_from(len).ok().and_then(|len| len.checked_sub(4)) else {
            return Err(DecodeError::new("Frame.length", Fault::Length(len.into())));
        };
        if body_len > body_len_max {
            return Err(DecodeError::new("Frame.body", Fault::TooLong(i64::from(len) - 4)));
        }
        Ok(Some(Self { tag, body_len, rest }))
    }
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;

    #[test]
    fn a_frame_is_there_when_all_of_it_is() {
        let buf = hex!("5a 00000005 49  4b 0000");
        for cut in 0..6 {
            assert_eq!(Frame::decode(&buf[..cut], 64), Ok(None), "{cut}");
            let len = if cut < 5 { None } else { Some(6) };
            assert_eq!(Frame::encoded_len_of(&buf[..cut], 64), Ok(len));
        }
        let frame = Frame::decode(&buf, 64).unwrap().unwrap();
        assert_eq!(frame, Frame { tag: b'Z', body: b"I" });
        assert_eq!(frame.encoded_len(), 6);
        let mut out = BytesMut::new();
        frame.encode(&mut out).unwrap();
        assert_eq!(out[..], buf[..6]);
    }

    #[test]
    fn a_bad_length_is_refused_before_its_body_is_waited_for() {
        let fault = |buf: &[u8]| Frame::decode(buf, 8).unwrap_err().fault;
        assert_eq!(fault(&hex!("64 ffffffff")), Fault::Length(-1));
        assert_eq!(fault(&hex!("64 00000000")), Fault::Length(0));
        assert_eq!(fault(&hex!("64 00000003")), Fault::Length(3));
        assert_eq!(fault(&hex!("64 0000000d")), Fault::TooLong(9));
        assert_eq!(fault(&hex!("64 7fffffff")), Fault::TooLong(0x7fff_fffb));
        assert_eq!(Frame::decode(&hex!("64 0000000c"), 8), Ok(None));
        assert_eq!(Frame::encoded_len_of(&hex!("64 7fffffff"), usize::MAX), Ok(Some(0x8000_0000)));
    }
}
