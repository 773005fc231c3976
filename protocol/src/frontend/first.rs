//! The first message of a connection, which has no tag.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html#PROTOCOL-MESSAGE-FORMATS-STARTUPMESSAGE>

use bytes::{BufMut, BytesMut};

use super::{CANCEL_REQUEST, GSSENC_REQUEST, SSL_REQUEST, request};
use crate::{
    backend::secret_key,
    error::{DecodeError, EncodeError, Fault},
    reader::Reader,
    writer,
};

/// The longest first message, in bytes with its length, that a PostgreSQL server reads:
/// `MAX_STARTUP_PACKET_LENGTH` does not count the length.
pub const STARTUP_LEN_MAX: usize = 4 + 10_000;

/// What a client says before anything else, and again after the answer to a request for encryption.
///
/// ```text
///  length: 4 bytes, signed, big    version or        parameters
///  endian, counts itself           request code      or key
/// ┌───────────────────────────────┬─────────────────┬────────────┐
/// │               4               │        4        │    ...     │
/// └───────────────────────────────┴─────────────────┴────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FirstMessage<'a> {
    /// A session is wanted.
    StartupMessage(StartupMessage<'a>),
    /// TLS is wanted: to be answered with one byte, `S` or `N`.
    SslRequest,
    /// Encryption by GSSAPI is wanted: to be answered with one byte, `G` or `N`.
    GssEncRequest,
    /// Another session shall be interrupted; there is no answer.
    CancelRequest {
        /// The process that serves it.
        process_id: u32,
        /// What the server gave it: 4 to 256 bytes.
        secret_key: &'a [u8],
    },
}

/// Which session is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartupMessage<'a> {
    /// The protocol, with the major version in the upper 16 bits: always 3.
    pub version: u32,
    params: &'a [u8],
}

impl<'a> FirstMessage<'a> {
    /// The message at the start of `buf` and how many bytes of it that takes up, or `None` if not all of
    /// it is there yet.
    ///
    /// `len_max`, in bytes with the length, is required because the length comes from the peer; see
    /// [`STARTUP_LEN_MAX`].
    ///
    /// # Errors
    ///
    /// [`Fault::Length`] or [`Fault::TooLong`] as soon as the length is there, and [`Fault::Malformed`] as
    /// soon as it is none of the requests and of no version 3; or if a field is cut off or left over.
    pub fn decode(buf: &'a [u8], len_max: usize) -> Result<Option<(Self, usize)>, DecodeError> {
        let Some((length, rest)) = buf.split_first_chunk() else { return Ok(None) };
        let length = i32::from_be_bytes(*length);
        let fault = |fault| Err(DecodeError::new("StartupMessage.length", fault));
        // The length counts itself and there is a code behind it.
        let Some(len) = usize::try_from(length).ok().filter(|len| *len >= 8) else {
            return fault(Fault::Length(length.into()));
        };
        if len > len_max {
            return fault(Fault::TooLong(length.into()));
        }
        if let Some(code) = rest.first_chunk() {
            let code = u32::from_be_bytes(*code);
            if code >> 16 != 3 && ![CANCEL_REQUEST, SSL_REQUEST, GSSENC_REQUEST].contains(&code) {
                return Err(DecodeError::new("StartupMessage.version", Fault::Malformed));
            }
        }
        let Some(body) = rest.get(..len - 4) else { return Ok(None) };
        Reader::all(body, "StartupMessage", Self::read).map(|message| Some((message, len)))
    }

    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(match r.u32("StartupMessage.version")? {
            SSL_REQUEST => Self::SslRequest,
            GSSENC_REQUEST => Self::GssEncRequest,
            CANCEL_REQUEST => Self::CancelRequest {
                process_id: r.u32("CancelRequest.process_id")?,
                secret_key: secret_key(r, "CancelRequest.secret_key")?,
            },
            version => {
                let params = r.scan(|r| {
                    while !r.starts_with(0) {
                        r.str("StartupMessage.parameter")?;
                        r.cstr("StartupMessage.value")?;
                    }
                    Ok(())
                })?;
                r.u8("StartupMessage.end")?;
                Self::StartupMessage(StartupMessage { version, params })
            }
        })
    }

    /// Appends the whole message.
    ///
    /// # Errors
    ///
    /// If it is longer than 2 GiB.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        match *self {
            Self::StartupMessage(StartupMessage { version, params }) => {
                writer::message(None, "StartupMessage", out, |out| {
                    out.put_u32(version);
                    out.put_slice(params);
                    out.put_u8(0);
                    Ok(())
                })
            }
            Self::SslRequest => {
                request(SSL_REQUEST, out);
                Ok(())
            }
            Self::GssEncRequest => {
                request(GSSENC_REQUEST, out);
                Ok(())
            }
            Self::CancelRequest { process_id, secret_key } => {
                writer::message(None, "CancelRequest", out, |out| {
                    out.put_u32(CANCEL_REQUEST);
                    out.put_u32(process_id);
                    out.put_slice(secret_key);
                    Ok(())
                })
            }
        }
    }
}

impl<'a> StartupMessage<'a> {
    /// Names and values, in the order they were sent. Values are bytes: nobody has said yet in which
    /// encoding they are.
    pub fn params(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + Clone + use<'a> {
        let mut r = Reader::new(self.params);
        core::iter::from_fn(move || {
            if r.is_empty() {
                return None;
            }
            let pair = r
                .str("StartupMessage.parameter")
                .and_then(|name| r.cstr("StartupMessage.value").map(|value| (name, value)));
            debug_assert!(pair.is_ok(), "the parameters were scanned when they were decoded");
            pair.ok()
        })
    }

    /// The value of a parameter, such as `user`; of several, the last, as in PostgreSQL.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&'a [u8]> {
        self.params().filter(|(known, _)| *known == name).last().map(|(_, value)| value)
    }
}
