//! What a client says: one function a message, each of which appends to the caller's buffer.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>
//!
//! A string with a zero byte inside is refused, because the server would read what follows it as the
//! next field. A refused message leaves the buffer as it was.

use bytes::{BufMut, BytesMut};

use crate::{error::EncodeError, writer};

/// Protocol 3.0. Later minor versions add nothing that replication needs, and old servers and proxies
/// stumble over them.
pub(crate) const PROTOCOL_VERSION: u32 = 3 << 16;
/// Numbers in the place of a version that ask for something else.
const CANCEL_REQUEST: u32 = 1234 << 16 | 5678;
const SSL_REQUEST: u32 = 1234 << 16 | 5679;

/// Opens a session: `user` is required; `database`, `replication` and any setting may follow.
///
/// # Errors
///
/// If a name is empty, or a name or value holds a zero byte.
pub fn startup<'a>(
    params: impl IntoIterator<Item = (&'a str, &'a str)>,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    writer::message(None, "StartupMessage", out, |out| {
        out.put_u32(PROTOCOL_VERSION);
        for (name, value) in params {
            // An empty name is the end of the list.
            if name.is_empty() {
                return Err(EncodeError::Empty { field: "StartupMessage.parameter" });
            }
            writer::cstr(name.as_bytes(), "StartupMessage.parameter", out)?;
            writer::cstr(value.as_bytes(), "StartupMessage.value", out)?;
        }
        out.put_u8(0);
        Ok(())
    })
}

/// Asks for TLS. The server answers with one byte, `S` or `N`: read that one and no more, because what
/// stands behind it was not sent under the key.
pub fn ssl_request(out: &mut BytesMut) {
    out.put_u32(8);
    out.put_u32(SSL_REQUEST);
}

/// Asks the server, in a connection of its own, to interrupt another session.
///
/// # Errors
///
/// If the key is longer than 2 GiB.
pub fn cancel_request(
    process_id: u32,
    secret_key: &[u8],
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    writer::message(None, "CancelRequest", out, |out| {
        out.put_u32(CANCEL_REQUEST);
        out.put_u32(process_id);
        out.put_slice(secret_key);
        Ok(())
    })
}

/// `Q`: runs statements, or one command of the replication protocol.
///
/// # Errors
///
/// If the text holds a zero byte.
pub fn query(sql: &str, out: &mut BytesMut) -> Result<(), EncodeError> {
    writer::message(Some(b'Q'), "Query", out, |out| writer::cstr(sql.as_bytes(), "Query.sql", out))
}

/// `p`: a password, as it is or as [`md5_password`](crate::auth::md5_password) makes it.
///
/// # Errors
///
/// If it holds a zero byte.
pub fn password(password: &[u8], out: &mut BytesMut) -> Result<(), EncodeError> {
    writer::message(Some(b'p'), "PasswordMessage", out, |out| {
        writer::cstr(password, "PasswordMessage.password", out)
    })
}

/// `p`: chooses a SASL mechanism and says its first words.
///
/// # Errors
///
/// If the mechanism's name holds a zero byte.
pub fn sasl_initial_response(
    mechanism: &str,
    data: &[u8],
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    writer::message(Some(b'p'), "SASLInitialResponse", out, |out| {
        writer::cstr(mechanism.as_bytes(), "SASLInitialResponse.mechanism", out)?;
        writer::bytes32(data, "SASLInitialResponse.data", out)
    })
}

/// `p`: answers a SASL challenge.
///
/// # Errors
///
/// If the answer is longer than 2 GiB.
pub fn sasl_response(data: &[u8], out: &mut BytesMut) -> Result<(), EncodeError> {
    writer::message(Some(b'p'), "SASLResponse", out, |out| {
        out.put_slice(data);
        Ok(())
    })
}

/// `d`: a piece of a copy.
///
/// # Errors
///
/// If it is longer than 2 GiB.
pub fn copy_data(payload: &[u8], out: &mut BytesMut) -> Result<(), EncodeError> {
    writer::message(Some(b'd'), "CopyData", out, |out| {
        out.put_slice(payload);
        Ok(())
    })
}

/// `c`: this side of the copy has ended.
pub fn copy_done(out: &mut BytesMut) {
    out.put_u8(b'c');
    out.put_u32(4);
}

/// `f`: this side gives the copy up.
///
/// # Errors
///
/// If the reason holds a zero byte.
pub fn copy_fail(reason: &str, out: &mut BytesMut) -> Result<(), EncodeError> {
    writer::message(Some(b'f'), "CopyFail", out, |out| {
        writer::cstr(reason.as_bytes(), "CopyFail.reason", out)
    })
}

/// `X`: ends the session.
pub fn terminate(out: &mut BytesMut) {
    out.put_u8(b'X');
    out.put_u32(4);
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;

    #[track_caller]
    fn check(write: impl FnOnce(&mut BytesMut) -> Result<(), EncodeError>, expected: &[u8]) {
        let mut out = BytesMut::from(&b"before"[..]);
        write(&mut out).unwrap();
        assert_eq!(out[..6], *b"before");
        assert_eq!(out[6..], *expected);
    }

    #[test]
    fn messages_are_as_the_manual_draws_them() {
        check(
            |out| startup([("user", "me"), ("replication", "database")], out),
            b"\x00\x00\x00\x26\x00\x03\x00\x00user\0me\0replication\0database\0\0",
        );
        check(
            |out| {
                ssl_request(out);
                Ok(())
            },
            &hex!("00000008 04d2162f"),
        );
        check(
            |out| cancel_request(7, &hex!("01020304"), out),
            &hex!("00000010 04d2162e 00000007 01020304"),
        );
        check(|out| query("SELECT", out), b"Q\0\0\0\x0bSELECT\0");
        check(|out| password(b"x", out), &hex!("70 00000006 78 00"));
        check(
            |out| sasl_initial_response("A", b"bc", out),
            &hex!("70 0000000c 41 00 00000002 6263"),
        );
        check(|out| sasl_response(b"bc", out), &hex!("70 00000006 6263"));
        check(|out| copy_data(b"\0\xff", out), &hex!("64 00000006 00ff"));
        check(
            |out| {
                copy_done(out);
                Ok(())
            },
            &hex!("63 00000004"),
        );
        check(|out| copy_fail("no", out), &hex!("66 00000007 6e6f 00"));
        check(
            |out| {
                terminate(out);
                Ok(())
            },
            &hex!("58 00000004"),
        );
    }

    #[test]
    fn a_zero_byte_is_refused_and_leaves_no_trace() {
        let mut out = BytesMut::new();
        assert_eq!(query("a\0b", &mut out), Err(EncodeError::Nul { field: "Query.sql" }));
        assert!(startup([("user", "a\0b")], &mut out).is_err());
        assert!(startup([("", "b")], &mut out).is_err());
        assert!(password(b"\0", &mut out).is_err());
        assert!(sasl_initial_response("\0", b"", &mut out).is_err());
        assert!(copy_fail("\0", &mut out).is_err());
        assert!(out.is_empty());
    }
}
