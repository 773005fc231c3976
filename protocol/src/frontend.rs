//! What a client says: one function a message, each of which appends to the caller's buffer; and for a
//! server, a proxy or a test, [`Message`] and [`FirstMessage`], which read what a client said.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>
//!
//! A string with a zero byte inside is refused, because the server would read what follows it as the
//! next field. A refused message leaves the buffer as it was.

mod first;
mod message;

use bytes::{BufMut, BytesMut};

pub use self::{
    first::{FirstMessage, STARTUP_LEN_MAX, StartupMessage},
    message::{Bind, FunctionCall, Message, Parse, PasswordMessage, SaslInitialResponse, Target},
};
use crate::{Oid, error::EncodeError, writer};

/// Protocol 3.0, which every server since 7.4 speaks.
pub const PROTOCOL_3_0: u32 = 3 << 16;
/// Protocol 3.2, which PostgreSQL 18 and later speak: keys of up to 256 bytes for [`cancel_request`].
pub const PROTOCOL_3_2: u32 = 3 << 16 | 2;
/// Numbers in the place of a version that ask for something else.
const CANCEL_REQUEST: u32 = 1234 << 16 | 5678;
const SSL_REQUEST: u32 = 1234 << 16 | 5679;
const GSSENC_REQUEST: u32 = 1234 << 16 | 5680;

/// Opens a session in protocol 3.0: `user` is required; `database`, `replication` and any setting may
/// follow.
///
/// # Errors
///
/// If a name is empty, or a name or value holds a zero byte.
pub fn startup<'a>(
    params: impl IntoIterator<Item = (&'a str, &'a str)>,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    startup_at(PROTOCOL_3_0, params, out)
}

/// Opens a session in a protocol such as [`PROTOCOL_3_2`]. A server that does not speak it answers with
/// [`NegotiateProtocolVersion`](crate::backend::Message::NegotiateProtocolVersion).
///
/// # Errors
///
/// If a name is empty, or a name or value holds a zero byte.
pub fn startup_at<'a>(
    version: u32,
    params: impl IntoIterator<Item = (&'a str, &'a str)>,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    writer::message(None, "StartupMessage", out, |out| {
        out.put_u32(version);
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
    request(SSL_REQUEST, out);
}

/// Asks for encryption by GSSAPI. The server answers as to [`ssl_request`], with `G` or `N`.
pub fn gssenc_request(out: &mut BytesMut) {
    request(GSSENC_REQUEST, out);
}

fn request(code: u32, out: &mut BytesMut) {
    out.put_u32(8);
    out.put_u32(code);
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
    FirstMessage::CancelRequest { process_id, secret_key }.encode(out)
}

/// `Q`: runs statements, or one command of the replication protocol.
///
/// # Errors
///
/// If the text holds a zero byte.
pub fn query(sql: &str, out: &mut BytesMut) -> Result<(), EncodeError> {
    Message::Query(sql.as_bytes()).encode(out)
}

/// `P`: prepares a statement under a name, or without one for the next [`bind`] only. `types` are those of
/// its parameters, as far as the server shall not find them out by itself.
///
/// # Errors
///
/// If a text holds a zero byte, or there are more than 65,535 types.
pub fn parse(name: &str, sql: &str, types: &[Oid], out: &mut BytesMut) -> Result<(), EncodeError> {
    writer::message(Some(b'P'), "Parse", out, |out| {
        writer::cstr(name.as_bytes(), "Parse.name", out)?;
        writer::cstr(sql.as_bytes(), "Parse.sql", out)?;
        out.put_u16(writer::count16(types.len(), "Parse.types")?);
        types.iter().for_each(|oid| out.put_u32(*oid));
        Ok(())
    })
}

/// `B`: gives a prepared statement its parameters, and makes a portal of it.
///
/// Formats are 0 for text and 1 for binary: none if all is text, one for all, or one each. Values are
/// `None` for NULL.
///
/// # Errors
///
/// If a name holds a zero byte, there are more than 65,535 of anything, or a value is longer than 2 GiB.
pub fn bind(
    portal: &str,
    statement: &str,
    formats: &[i16],
    values: &[Option<&[u8]>],
    result_formats: &[i16],
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    writer::message(Some(b'B'), "Bind", out, |out| {
        writer::cstr(portal.as_bytes(), "Bind.portal", out)?;
        writer::cstr(statement.as_bytes(), "Bind.statement", out)?;
        put_formats(formats, "Bind.formats", out)?;
        put_values(values, "Bind.values", out)?;
        put_formats(result_formats, "Bind.result_formats", out)
    })
}

/// `D`: asks for the parameters and columns of a statement, or the columns of a portal.
///
/// # Errors
///
/// If the name holds a zero byte.
pub fn describe(target: Target, name: &str, out: &mut BytesMut) -> Result<(), EncodeError> {
    Message::Describe { target, name: name.as_bytes() }.encode(out)
}

/// `C`: drops a statement or a portal.
///
/// # Errors
///
/// If the name holds a zero byte.
pub fn close(target: Target, name: &str, out: &mut BytesMut) -> Result<(), EncodeError> {
    Message::Close { target, name: name.as_bytes() }.encode(out)
}

/// `E`: runs a portal until it has given `rows_max` rows, or to its end if that is 0.
///
/// # Errors
///
/// If the name holds a zero byte.
pub fn execute(portal: &str, rows_max: i32, out: &mut BytesMut) -> Result<(), EncodeError> {
    Message::Execute { portal: portal.as_bytes(), rows_max }.encode(out)
}

/// `H`: the server shall send what it holds back.
pub fn flush(out: &mut BytesMut) {
    bare(b'H', out);
}

/// `S`: ends a sequence of extended-query messages; after an error, the place where the server listens
/// again.
pub fn sync(out: &mut BytesMut) {
    bare(b'S', out);
}

/// `F`: calls a function by its number, as old libraries do for large objects. Formats and values are as
/// for [`bind`].
///
/// # Errors
///
/// If there are more than 65,535 arguments, or one is longer than 2 GiB.
pub fn function_call(
    function: Oid,
    formats: &[i16],
    arguments: &[Option<&[u8]>],
    result_format: i16,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    writer::message(Some(b'F'), "FunctionCall", out, |out| {
        out.put_u32(function);
        put_formats(formats, "FunctionCall.formats", out)?;
        put_values(arguments, "FunctionCall.arguments", out)?;
        out.put_i16(result_format);
        Ok(())
    })
}

fn put_formats(
    formats: &[i16],
    field: &'static str,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    out.put_u16(writer::count16(formats.len(), field)?);
    formats.iter().for_each(|format| out.put_i16(*format));
    Ok(())
}

fn put_values(
    values: &[Option<&[u8]>],
    field: &'static str,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    out.put_u16(writer::count16(values.len(), field)?);
    values.iter().try_for_each(|value| writer::nullable32(*value, field, out))
}

/// A message that is nothing but its tag.
fn bare(tag: u8, out: &mut BytesMut) {
    out.put_u8(tag);
    out.put_u32(4);
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

/// `p`: answers a SASL challenge, or one of GSSAPI or SSPI.
///
/// # Errors
///
/// If the answer is longer than 2 GiB.
pub fn sasl_response(data: &[u8], out: &mut BytesMut) -> Result<(), EncodeError> {
    Message::Password(PasswordMessage(data)).encode(out)
}

/// `d`: a piece of a copy.
///
/// # Errors
///
/// If it is longer than 2 GiB.
pub fn copy_data(payload: &[u8], out: &mut BytesMut) -> Result<(), EncodeError> {
    Message::CopyData(payload).encode(out)
}

/// `c`: this side of the copy has ended.
pub fn copy_done(out: &mut BytesMut) {
    bare(b'c', out);
}

/// `f`: this side gives the copy up.
///
/// # Errors
///
/// If the reason holds a zero byte.
pub fn copy_fail(reason: &str, out: &mut BytesMut) -> Result<(), EncodeError> {
    Message::CopyFail(reason.as_bytes()).encode(out)
}

/// `X`: ends the session.
pub fn terminate(out: &mut BytesMut) {
    bare(b'X', out);
}

#[cfg(test)]
mod tests {
    use alloc::{format, vec};

    use hex_literal::hex;

    use super::*;
    use crate::{Fault, Frame, backend::Oids};

    /// What is written is as drawn, and read as what was said.
    #[track_caller]
    fn check(
        write: impl FnOnce(&mut BytesMut) -> Result<(), EncodeError>,
        expected: &[u8],
        message: Message<'_>,
    ) {
        let mut out = BytesMut::from(&b"before"[..]);
        write(&mut out).unwrap();
        assert_eq!(out[..6], *b"before");
        assert_eq!(out[6..], *expected);
        let frame = Frame::decode(expected, 1000).unwrap().unwrap();
        assert_eq!(Message::decode(frame), Ok(message));
        out.clear();
        message.encode(&mut out).unwrap();
        assert_eq!(out[..], *expected);
    }

    #[track_caller]
    fn check_bare(write: impl FnOnce(&mut BytesMut), expected: &[u8], message: Message<'_>) {
        let write = |out: &mut BytesMut| {
            write(out);
            Ok(())
        };
        check(write, expected, message);
    }

    #[track_caller]
    fn check_first(write: impl FnOnce(&mut BytesMut), expected: &[u8]) -> FirstMessage<'_> {
        let mut out = BytesMut::from(&b"before"[..]);
        write(&mut out);
        assert_eq!(out[6..], *expected);
        for cut in 0..expected.len() {
            assert_eq!(FirstMessage::decode(&expected[..cut], 1000), Ok(None), "{cut}");
        }
        let (message, len) = FirstMessage::decode(expected, 1000).unwrap().unwrap();
        assert_eq!(len, expected.len());
        out.clear();
        message.encode(&mut out).unwrap();
        assert_eq!(out[..], *expected);
        message
    }

    #[test]
    fn first_messages_are_as_the_manual_draws_them() {
        let first = check_first(
            |out| startup([("user", "me"), ("replication", "database")], out).unwrap(),
            b"\x00\x00\x00\x26\x00\x03\x00\x00user\0me\0replication\0database\0\0",
        );
        let FirstMessage::StartupMessage(startup) = first else { panic!("{first:?}") };
        assert_eq!(startup.version, PROTOCOL_3_0);
        let params = [("user", &b"me"[..]), ("replication", b"database")];
        assert!(startup.params().eq(params));
        assert_eq!((startup.param("user"), startup.param("users")), (Some(&b"me"[..]), None));
        let mut twice = BytesMut::new();
        super::startup([("user", "me"), ("user", "you")], &mut twice).unwrap();
        let Ok(Some((FirstMessage::StartupMessage(twice), _))) = FirstMessage::decode(&twice, 100)
        else {
            panic!("{twice:?}")
        };
        assert_eq!(twice.param("user"), Some(&b"you"[..]));
        check_first(
            |out| startup_at(PROTOCOL_3_2, [], out).unwrap(),
            &hex!("00000009 00030002 00"),
        );
        let ssl = check_first(ssl_request, &hex!("00000008 04d2162f"));
        assert_eq!(ssl, FirstMessage::SslRequest);
        let gss = check_first(gssenc_request, &hex!("00000008 04d21630"));
        assert_eq!(gss, FirstMessage::GssEncRequest);
        let cancel = check_first(
            |out| cancel_request(7, &hex!("01020304"), out).unwrap(),
            &hex!("00000010 04d2162e 00000007 01020304"),
        );
        let secret_key = &[1, 2, 3, 4];
        assert_eq!(cancel, FirstMessage::CancelRequest { process_id: 7, secret_key });
    }

    #[test]
    fn a_first_message_that_cannot_be_is_refused_before_it_is_waited_for() {
        let error = |buf: &[u8]| FirstMessage::decode(buf, 100).unwrap_err();
        for (buf, field, fault) in [
            (&hex!("ffffffff")[..], "StartupMessage.length", Fault::Length(-1)),
            (&hex!("00000007"), "StartupMessage.length", Fault::Length(7)),
            (&hex!("00000065"), "StartupMessage.length", Fault::TooLong(101)),
            // Another protocol, such as TLS or HTTP, in whose place a length stands.
            (&hex!("00000064 00020000"), "StartupMessage.version", Fault::Malformed),
            (&hex!("00000009 04d2162f 00"), "StartupMessage", Fault::Trailing),
            (&hex!("0000000a 00030000 0000"), "StartupMessage", Fault::Trailing),
            (&hex!("00000008 00030000"), "StartupMessage.parameter", Fault::Truncated),
            (&hex!("0000000b 00030000 610000"), "StartupMessage.parameter", Fault::Truncated),
            (&hex!("0000000a 00030000 6100"), "StartupMessage.value", Fault::Truncated),
            (&hex!("0000000b 00030000 ff0000"), "StartupMessage.parameter", Fault::Utf8),
            (
                &hex!("0000000f 04d2162e 00000007 010203"),
                "CancelRequest.secret_key",
                Fault::Truncated,
            ),
        ] {
            let error = error(buf);
            assert_eq!((error.field, error.fault), (field, fault));
        }
        assert_eq!(FirstMessage::decode(&hex!("00000064"), 100), Ok(None));
        let mut out = BytesMut::new();
        cancel_request(7, &[0; 256], &mut out).unwrap();
        assert!(FirstMessage::decode(&out, 1000).is_ok());
        out.clear();
        cancel_request(7, &[0; 257], &mut out).unwrap();
        assert_eq!(FirstMessage::decode(&out, 1000).unwrap_err().fault, Fault::Length(257));
    }

    #[test]
    fn messages_are_as_the_manual_draws_them() {
        check(|out| query("SELECT", out), b"Q\0\0\0\x0bSELECT\0", Message::Query(b"SELECT"));
        check(
            |out| copy_data(b"\0\xff", out),
            &hex!("64 00000006 00ff"),
            Message::CopyData(b"\0\xff"),
        );
        check_bare(copy_done, &hex!("63 00000004"), Message::CopyDone);
        check(|out| copy_fail("no", out), &hex!("66 00000007 6e6f 00"), Message::CopyFail(b"no"));
        check_bare(terminate, &hex!("58 00000004"), Message::Terminate);
        check_bare(flush, &hex!("48 00000004"), Message::Flush);
        check_bare(sync, &hex!("53 00000004"), Message::Sync);
        let types = Oids::new(&[0, 0, 0, 25]).unwrap();
        check(
            |out| parse("s", "x", &[25], out),
            &hex!("50 0000000e 7300 7800 0001 00000019"),
            Message::Parse(Parse { name: b"s", sql: b"x", types }),
        );
        check(
            |out| describe(Target::Statement, "s", out),
            &hex!("44 00000007 53 7300"),
            Message::Describe { target: Target::Statement, name: b"s" },
        );
        check(
            |out| close(Target::Portal, "p", out),
            &hex!("43 00000007 50 7000"),
            Message::Close { target: Target::Portal, name: b"p" },
        );
        check(
            |out| execute("p", 10, out),
            &hex!("45 0000000a 7000 0000000a"),
            Message::Execute { portal: b"p", rows_max: 10 },
        );
    }

    #[test]
    fn parameters_are_walked_without_failing() {
        let mut out = BytesMut::new();
        bind("p", "s", &[0, 1], &[Some(b"x"), None], &[1], &mut out).unwrap();
        let expected =
            hex!("42 0000001d 7000 7300 0002 0000 0001 0002 00000001 78 ffffffff 0001 0001");
        assert_eq!(out[..], expected);
        let frame = Frame::decode(&out, 1000).unwrap().unwrap();
        let Message::Bind(bind) = Message::decode(frame).unwrap() else { panic!() };
        assert_eq!((bind.portal, bind.statement), (&b"p"[..], &b"s"[..]));
        assert!(bind.formats.iter().eq([0, 1]) && bind.result_formats.iter().eq([1]));
        assert!(bind.values.iter().eq([Some(&b"x"[..]), None]));
        assert_eq!((bind.values.len(), bind.values.is_empty()), (2, false));

        let mut out = BytesMut::new();
        function_call(1, &[1], &[Some(b"x")], 0, &mut out).unwrap();
        assert_eq!(out[..], hex!("46 00000015 00000001 0001 0001 0001 00000001 78 0000"));
        let frame = Frame::decode(&out, 1000).unwrap().unwrap();
        let Message::FunctionCall(call) = Message::decode(frame).unwrap() else { panic!() };
        assert_eq!((call.function, call.result_format), (1, 0));
        assert!(call.formats.iter().eq([1]) && call.arguments.iter().eq([Some(&b"x"[..])]));
    }

    #[test]
    fn a_p_is_what_the_servers_question_makes_it() {
        let body = PasswordMessage(b"x\0");
        check(|out| password(b"x", out), &hex!("70 00000006 78 00"), Message::Password(body));
        assert_eq!(body.password(), Ok(&b"x"[..]));
        assert_eq!(body.sasl_initial_response().unwrap_err().fault, Fault::Truncated);

        let body = PasswordMessage(&hex!("41 00 00000002 6263"));
        check(
            |out| sasl_initial_response("A", b"bc", out),
            &hex!("70 0000000c 41 00 00000002 6263"),
            Message::Password(body),
        );
        let said = SaslInitialResponse { mechanism: "A", data: Some(b"bc") };
        assert_eq!(body.sasl_initial_response(), Ok(said));
        assert_eq!(body.password().unwrap_err().fault, Fault::Trailing);
        let silent = PasswordMessage(&hex!("41 00 ffffffff")).sasl_initial_response();
        assert_eq!(silent, Ok(SaslInitialResponse { mechanism: "A", data: None }));

        check(
            |out| sasl_response(b"bc", out),
            &hex!("70 00000006 6263"),
            Message::Password(PasswordMessage(b"bc")),
        );
    }

    #[test]
    fn a_password_is_not_shown() {
        let shown = format!("{:?}", Message::Password(PasswordMessage(b"owl\0")));
        assert_eq!(shown, "Password(PasswordMessage { .. })");
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
        assert!(parse("", "\0", &[], &mut out).is_err());
        assert!(bind("", "\0", &[], &[], &[], &mut out).is_err());
        assert!(bind("", "", &[], &vec![None; 65_536], &[], &mut out).is_err());
        assert!(describe(Target::Portal, "\0", &mut out).is_err());
        assert!(execute("\0", 0, &mut out).is_err());
        assert!(out.is_empty());
    }
}
