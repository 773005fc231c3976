//! What the server says.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>
//!
//! Messages borrow from their [`Frame`]. Lists inside them are checked once, when the message is decoded,
//! and cannot fail afterwards. Names and texts that are in the database's encoding are bytes: in a
//! `SQL_ASCII` database, and before a session has an encoding, they are not always UTF-8.

mod copy;
mod error_fields;
mod list;
mod row;
mod sqlstate;

use bytes::{BufMut, BytesMut};

pub use self::{
    copy::CopyFormats,
    error_fields::{ErrorFields, ServerError},
    list::{Formats, Oids, Strings, Values},
    row::{DataRow, Field, RowDescription},
    sqlstate::{SqlState, class},
};
use crate::{
    error::{DecodeError, EncodeError, Fault},
    frame::Frame,
    reader::Reader,
    writer,
};

/// A message of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message<'a> {
    /// `R`: a step of authentication.
    Authentication(Authentication<'a>),
    /// `K`: what a [cancel request](crate::frontend::cancel_request) must present.
    BackendKeyData {
        /// The process that serves this session.
        process_id: u32,
        /// 4 bytes in protocol 3.0, up to 256 in 3.2.
        secret_key: &'a [u8],
    },
    /// `v`: the server does not speak the version or the options that were asked for.
    NegotiateProtocolVersion {
        /// The newest version that it speaks, with the major version in the upper 16 bits.
        version: u32,
        /// Options it does not know.
        unrecognized: Strings<'a>,
    },
    /// `C`: a command has ended; its tag, such as `SELECT 1`.
    CommandComplete(&'a str),
    /// `W`: from now on both sides send `CopyData`.
    CopyBothResponse(CopyFormats<'a>),
    /// `G`: the server waits for `CopyData`.
    CopyInResponse(CopyFormats<'a>),
    /// `H`: the server is about to send `CopyData`.
    CopyOutResponse(CopyFormats<'a>),
    /// `d`: a piece of a copy; in a replication session, one
    /// [`replication::Message`](crate::replication::Message).
    CopyData(&'a [u8]),
    /// `c`: the copy has ended.
    CopyDone,
    /// `D`: a row of a result.
    DataRow(DataRow<'a>),
    /// `T`: the columns of the rows to come.
    RowDescription(RowDescription<'a>),
    /// `1`: the statement of a `Parse` is ready.
    ParseComplete,
    /// `2`: the portal of a `Bind` is ready.
    BindComplete,
    /// `3`: what a `Close` names is gone.
    CloseComplete,
    /// `n`: what a `Describe` names returns no rows.
    NoData,
    /// `t`: the types of a statement's parameters.
    ParameterDescription(Oids<'a>),
    /// `s`: an `Execute` has given as many rows as it asked for, and there are more.
    PortalSuspended,
    /// `V`: what a function returned, `None` for NULL.
    FunctionCallResponse(Option<&'a [u8]>),
    /// `I`: the query was empty.
    EmptyQueryResponse,
    /// `E`: a command, or the session, has failed.
    ErrorResponse(ErrorFields<'a>),
    /// `N`: something to tell the user.
    NoticeResponse(ErrorFields<'a>),
    /// `S`: the value of a setting, now or from now on.
    ParameterStatus {
        /// The setting's name.
        name: &'a str,
        /// Its value. Bytes, because `session_authorization` is a role's name.
        value: &'a [u8],
    },
    /// `Z`: the server waits for a query.
    ReadyForQuery(TransactionStatus),
    /// `A`: somebody called `NOTIFY`.
    NotificationResponse {
        /// The process that did.
        process_id: u32,
        /// The channel.
        channel: &'a [u8],
        /// The payload, possibly empty.
        payload: &'a [u8],
    },
}

/// A step of authentication, told apart by the number that follows the tag `R`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Authentication<'a> {
    /// 0: the server is satisfied.
    Ok,
    /// 3: the server wants the password as it is.
    CleartextPassword,
    /// 5: the server wants [`md5_password`](crate::auth::md5_password).
    Md5Password {
        /// Chosen anew for every session.
        salt: [u8; 4],
    },
    /// 10: the server offers these SASL mechanisms.
    Sasl(Strings<'a>),
    /// 11: a challenge of the mechanism.
    SaslContinue(&'a [u8]),
    /// 12: the mechanism's last word, which may prove the server.
    SaslFinal(&'a [u8]),
    /// Any other: Kerberos V5 (2), GSSAPI (7, and 8 with its data), SSPI (9), or what later servers
    /// think of.
    Other {
        /// The number.
        code: u32,
        /// What follows it.
        data: &'a [u8],
    },
}

/// What `ReadyForQuery` says about transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionStatus {
    /// `I`: none is open.
    Idle,
    /// `T`: one is open.
    Open,
    /// `E`: one is open and has failed.
    Failed,
}

impl<'a> Message<'a> {
    /// Reads the body of `frame` as its tag says.
    ///
    /// # Errors
    ///
    /// If the tag is none of these, the body is too short or too long for it, or what it says cannot be.
    #[inline]
    pub fn decode(frame: Frame<'a>) -> Result<Self, DecodeError> {
        match frame.tag {
            // The one that matters for speed stands first and apart.
            b'd' => Ok(Self::CopyData(frame.body)),
            tag => Self::decode_other(tag, frame.body),
        }
    }

    fn decode_other(tag: u8, body: &'a [u8]) -> Result<Self, DecodeError> {
        match tag {
            b'R' => {
                Reader::all(body, "Authentication", Authentication::read).map(Self::Authentication)
            }
            b'K' => Reader::all(body, "BackendKeyData", |r| {
                let process_id = r.u32("BackendKeyData.process_id")?;
                let secret_key = secret_key(r, "BackendKeyData.secret_key")?;
                Ok(Self::BackendKeyData { process_id, secret_key })
            }),
            b'v' => Reader::all(body, "NegotiateProtocolVersion", |r| {
                let version = r.u32("NegotiateProtocolVersion.version")?;
                let count = r.len32("NegotiateProtocolVersion.options")?;
                let unrecognized = Strings(r.scan(|r| {
                    // Each takes a byte at least, so that a wrong count ends with the body.
                    (0..count).try_for_each(|_| r.str("NegotiateProtocolVersion.option").map(drop))
                })?);
                Ok(Self::NegotiateProtocolVersion { version, unrecognized })
            }),
            b'C' => Reader::all(body, "CommandComplete", |r| r.str("CommandComplete.tag"))
                .map(Self::CommandComplete),
            b'W' => {
                Reader::all(body, "CopyBothResponse", CopyFormats::read).map(Self::CopyBothResponse)
            }
            b'G' => {
                Reader::all(body, "CopyInResponse", CopyFormats::read).map(Self::CopyInResponse)
            }
            b'H' => {
                Reader::all(body, "CopyOutResponse", CopyFormats::read).map(Self::CopyOutResponse)
            }
            b'c' => Reader::all(body, "CopyDone", |_| Ok(Self::CopyDone)),
            b'D' => Reader::all(body, "DataRow", DataRow::read).map(Self::DataRow),
            b'T' => {
                Reader::all(body, "RowDescription", RowDescription::read).map(Self::RowDescription)
            }
            b'1' => Reader::all(body, "ParseComplete", |_| Ok(Self::ParseComplete)),
            b'2' => Reader::all(body, "BindComplete", |_| Ok(Self::BindComplete)),
            b'3' => Reader::all(body, "CloseComplete", |_| Ok(Self::CloseComplete)),
            b'n' => Reader::all(body, "NoData", |_| Ok(Self::NoData)),
            b't' => Reader::all(body, "ParameterDescription", |r| {
                // Unsigned: a statement takes up to 65,535 parameters.
                let count = r.u16("ParameterDescription.parameters")?;
                Oids::read(r, count, "ParameterDescription.parameter")
            })
            .map(Self::ParameterDescription),
            b's' => Reader::all(body, "PortalSuspended", |_| Ok(Self::PortalSuspended)),
            b'V' => Reader::all(body, "FunctionCallResponse", |r| {
                r.nullable32("FunctionCallResponse.length", "FunctionCallResponse.value")
            })
            .map(Self::FunctionCallResponse),
            b'I' => Reader::all(body, "EmptyQueryResponse", |_| Ok(Self::EmptyQueryResponse)),
            b'E' => Reader::all(body, "ErrorResponse", ErrorFields::read).map(Self::ErrorResponse),
            b'N' => {
                Reader::all(body, "NoticeResponse", ErrorFields::read).map(Self::NoticeResponse)
            }
            b'S' => Reader::all(body, "ParameterStatus", |r| {
                Ok(Self::ParameterStatus {
                    name: r.str("ParameterStatus.name")?,
                    value: r.cstr("ParameterStatus.value")?,
                })
            }),
            b'Z' => Reader::all(body, "ReadyForQuery", |r| match r.u8("ReadyForQuery.status")? {
                b'I' => Ok(Self::ReadyForQuery(TransactionStatus::Idle)),
                b'T' => Ok(Self::ReadyForQuery(TransactionStatus::Open)),
                b'E' => Ok(Self::ReadyForQuery(TransactionStatus::Failed)),
                other => Err(DecodeError::new("ReadyForQuery.status", Fault::Tag(other))),
            }),
            b'A' => Reader::all(body, "NotificationResponse", |r| {
                Ok(Self::NotificationResponse {
                    process_id: r.u32("NotificationResponse.process_id")?,
                    channel: r.cstr("NotificationResponse.channel")?,
                    payload: r.cstr("NotificationResponse.payload")?,
                })
            }),
            other => Err(DecodeError::new("Frame.tag", Fault::Tag(other))),
        }
    }

    /// Appends the whole message, for a server made of this crate.
    ///
    /// # Errors
    ///
    /// If a string holds a zero byte or something is too long.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        writer::message(Some(self.tag()), "backend message", out, |out| {
            match *self {
                Self::Authentication(step) => step.encode(out),
                Self::BackendKeyData { process_id, secret_key } => {
                    out.put_u32(process_id);
                    out.put_slice(secret_key);
                }
                Self::NegotiateProtocolVersion { version, unrecognized } => {
                    out.put_u32(version);
                    let count = unrecognized.iter().count();
                    out.put_i32(writer::len32(count, "NegotiateProtocolVersion.options")?);
                    out.put_slice(unrecognized.0);
                }
                Self::CommandComplete(tag) => {
                    writer::cstr(tag.as_bytes(), "CommandComplete.tag", out)?
                }
                Self::CopyBothResponse(formats)
                | Self::CopyInResponse(formats)
                | Self::CopyOutResponse(formats) => formats.encode(out)?,
                Self::CopyData(payload) => out.put_slice(payload),
                Self::ParseComplete
                | Self::BindComplete
                | Self::CloseComplete
                | Self::NoData
                | Self::PortalSuspended
                | Self::CopyDone
                | Self::EmptyQueryResponse => {}
                Self::ParameterDescription(types) => {
                    let count = types.iter().len();
                    out.put_u16(writer::count16(count, "ParameterDescription.parameters")?);
                    out.put_slice(types.as_bytes());
                }
                Self::FunctionCallResponse(value) => {
                    writer::nullable32(value, "FunctionCallResponse.value", out)?;
                }
                Self::DataRow(row) => row.0.encode(out),
                Self::RowDescription(description) => {
                    out.put_u16(description.count);
                    out.put_slice(description.fields);
                }
                Self::ErrorResponse(fields) | Self::NoticeResponse(fields) => {
                    out.put_slice(fields.0);
                    out.put_u8(0);
                }
                Self::ParameterStatus { name, value } => {
                    writer::cstr(name.as_bytes(), "ParameterStatus.name", out)?;
                    writer::cstr(value, "ParameterStatus.value", out)?;
                }
                Self::ReadyForQuery(status) => out.put_u8(match status {
                    TransactionStatus::Idle => b'I',
                    TransactionStatus::Open => b'T',
                    TransactionStatus::Failed => b'E',
                }),
                Self::NotificationResponse { process_id, channel, payload } => {
                    out.put_u32(process_id);
                    writer::cstr(channel, "NotificationResponse.channel", out)?;
                    writer::cstr(payload, "NotificationResponse.payload", out)?;
                }
            }
            Ok(())
        })
    }

    /// The byte on the wire that says which message this is.
    #[must_use]
    pub const fn tag(&self) -> u8 {
        self.tag_and_name().0
    }

    /// The message's name in the manual.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.tag_and_name().1
    }

    const fn tag_and_name(&self) -> (u8, &'static str) {
        match self {
            Self::Authentication(_) => (b'R', "Authentication"),
            Self::BackendKeyData { .. } => (b'K', "BackendKeyData"),
            Self::NegotiateProtocolVersion { .. } => (b'v', "NegotiateProtocolVersion"),
            Self::CommandComplete(_) => (b'C', "CommandComplete"),
            Self::CopyBothResponse(_) => (b'W', "CopyBothResponse"),
            Self::CopyInResponse(_) => (b'G', "CopyInResponse"),
            Self::CopyOutResponse(_) => (b'H', "CopyOutResponse"),
            Self::CopyData(_) => (b'd', "CopyData"),
            Self::CopyDone => (b'c', "CopyDone"),
            Self::DataRow(_) => (b'D', "DataRow"),
            Self::RowDescription(_) => (b'T', "RowDescription"),
            Self::ParseComplete => (b'1', "ParseComplete"),
            Self::BindComplete => (b'2', "BindComplete"),
            Self::CloseComplete => (b'3', "CloseComplete"),
            Self::NoData => (b'n', "NoData"),
            Self::ParameterDescription(_) => (b't', "ParameterDescription"),
            Self::PortalSuspended => (b's', "PortalSuspended"),
            Self::FunctionCallResponse(_) => (b'V', "FunctionCallResponse"),
            Self::EmptyQueryResponse => (b'I', "EmptyQueryResponse"),
            Self::ErrorResponse(_) => (b'E', "ErrorResponse"),
            Self::NoticeResponse(_) => (b'N', "NoticeResponse"),
            Self::ParameterStatus { .. } => (b'S', "ParameterStatus"),
            Self::ReadyForQuery(_) => (b'Z', "ReadyForQuery"),
            Self::NotificationResponse { .. } => (b'A', "NotificationResponse"),
        }
    }
}

/// PostgreSQL 18 sends 32 bytes; the protocol allows this many.
const SECRET_KEY_LEN_MAX: usize = 256;

/// What a cancel request presents, to the end of the message.
pub(crate) fn secret_key<'a>(
    r: &mut Reader<'a>,
    field: &'static str,
) -> Result<&'a [u8], DecodeError> {
    let secret_key = r.rest();
    let fault = match secret_key.len() {
        0..4 => Fault::Truncated,
        4..=SECRET_KEY_LEN_MAX => return Ok(secret_key),
        len => Fault::Length(i64::try_from(len).unwrap_or(i64::MAX)),
    };
    Err(DecodeError::new(field, fault))
}

impl<'a> Authentication<'a> {
    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(match r.u32("Authentication.code")? {
            0 => Self::Ok,
            3 => Self::CleartextPassword,
            5 => Self::Md5Password { salt: r.array("AuthenticationMD5Password.salt")? },
            10 => {
                let mechanisms = r.scan(|r| {
                    while !r.starts_with(0) {
                        r.str("AuthenticationSASL.mechanism")?;
                    }
                    Ok(())
                })?;
                r.u8("AuthenticationSASL.end")?;
                Self::Sasl(Strings(mechanisms))
            }
            11 => Self::SaslContinue(r.rest()),
            12 => Self::SaslFinal(r.rest()),
            code => Self::Other { code, data: r.rest() },
        })
    }

    fn encode(&self, out: &mut BytesMut) {
        match *self {
            Self::Ok => out.put_u32(0),
            Self::CleartextPassword => out.put_u32(3),
            Self::Md5Password { salt } => {
                out.put_u32(5);
                out.put_slice(&salt);
            }
            Self::Sasl(mechanisms) => {
                out.put_u32(10);
                out.put_slice(mechanisms.0);
                out.put_u8(0);
            }
            Self::SaslContinue(data) => {
                out.put_u32(11);
                out.put_slice(data);
            }
            Self::SaslFinal(data) => {
                out.put_u32(12);
                out.put_slice(data);
            }
            Self::Other { code, data } => {
                out.put_u32(code);
                out.put_slice(data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec, vec::Vec};

    use hex_literal::hex;

    use super::*;

    #[track_caller]
    fn check(tag: u8, body: &[u8], expected: Message<'_>) {
        assert_eq!(Message::decode(Frame { tag, body }), Ok(expected));
        let mut out = BytesMut::new();
        expected.encode(&mut out).unwrap();
        assert_eq!(Frame::decode(&out, 1000), Ok(Some(Frame { tag, body })));
    }

    #[test]
    fn messages_are_as_the_manual_draws_them() {
        check(b'R', &hex!("00000000"), Message::Authentication(Authentication::Ok));
        check(b'R', &hex!("00000003"), Message::Authentication(Authentication::CleartextPassword));
        check(
            b'R',
            &hex!("00000005 01020304"),
            Message::Authentication(Authentication::Md5Password { salt: [1, 2, 3, 4] }),
        );
        let mechanisms = Strings::new(b"A\0BC\0").unwrap();
        assert_eq!(mechanisms.iter().collect::<Vec<_>>(), ["A", "BC"]);
        check(
            b'R',
            &hex!("0000000a 4100 424300 00"),
            Message::Authentication(Authentication::Sasl(mechanisms)),
        );
        check(
            b'R',
            &hex!("0000000b 7200"),
            Message::Authentication(Authentication::SaslContinue(b"r\0")),
        );
        check(b'R', &hex!("0000000c"), Message::Authentication(Authentication::SaslFinal(b"")));
        check(
            b'R',
            &hex!("00000008 ff"),
            Message::Authentication(Authentication::Other { code: 8, data: b"\xff" }),
        );
        check(
            b'K',
            &hex!("00000007 01020304"),
            Message::BackendKeyData { process_id: 7, secret_key: &[1, 2, 3, 4] },
        );
        check(
            b'v',
            &hex!("00030000 00000002 5f70715f2e6100 6200"),
            Message::NegotiateProtocolVersion {
                version: 3 << 16,
                unrecognized: Strings::new(b"_pq_.a\0b\0").unwrap(),
            },
        );
        check(b'C', b"SELECT 1\0", Message::CommandComplete("SELECT 1"));
        check(b'W', &hex!("00 0000"), Message::CopyBothResponse(CopyFormats::default()));
        check(b'G', &hex!("00 0000"), Message::CopyInResponse(CopyFormats::default()));
        check(b'H', &hex!("00 0000"), Message::CopyOutResponse(CopyFormats::default()));
        check(b'd', b"anything", Message::CopyData(b"anything"));
        check(b'c', b"", Message::CopyDone);
        check(b'I', b"", Message::EmptyQueryResponse);
        check(b'1', b"", Message::ParseComplete);
        check(b'2', b"", Message::BindComplete);
        check(b'3', b"", Message::CloseComplete);
        check(b'n', b"", Message::NoData);
        check(b's', b"", Message::PortalSuspended);
        let types = Oids::new(&[0, 0, 0, 25, 0, 0, 0, 0]).unwrap();
        assert_eq!(types.iter().collect::<Vec<_>>(), [25, 0]);
        check(b't', &hex!("0002 00000019 00000000"), Message::ParameterDescription(types));
        check(b'V', &hex!("00000001 ff"), Message::FunctionCallResponse(Some(b"\xff")));
        check(b'V', &hex!("ffffffff"), Message::FunctionCallResponse(None));
        check(
            b'S',
            b"TimeZone\0UTC\0",
            Message::ParameterStatus { name: "TimeZone", value: b"UTC" },
        );
        check(b'Z', b"I", Message::ReadyForQuery(TransactionStatus::Idle));
        check(b'Z', b"T", Message::ReadyForQuery(TransactionStatus::Open));
        check(b'Z', b"E", Message::ReadyForQuery(TransactionStatus::Failed));
        check(
            b'A',
            &hex!("00000007 6300 7000"),
            Message::NotificationResponse { process_id: 7, channel: b"c", payload: b"p" },
        );
    }

    #[test]
    fn formats_of_a_copy_are_kept() {
        let columns = Formats::new(&hex!("0001 0000")).unwrap();
        assert_eq!(columns.iter().collect::<Vec<_>>(), [1, 0]);
        let formats = CopyFormats { binary: true, columns };
        check(b'H', &hex!("01 0002 0001 0000"), Message::CopyOutResponse(formats));
        let fault = |body| Message::decode(Frame { tag: b'H', body }).unwrap_err().fault;
        assert_eq!(fault(&hex!("02 0000")), Fault::Tag(2));
        assert_eq!(fault(&hex!("00 0001 0000 00")), Fault::Trailing);
        assert_eq!(Formats::new(&[0]).unwrap_err().fault, Fault::Truncated);
        assert_eq!(Oids::new(&[0; 5]).unwrap_err().fault, Fault::Truncated);
    }

    #[test]
    fn rows_are_walked_without_failing() {
        let body = hex!("0003 00000002 6869 ffffffff 00000000");
        let Ok(Message::DataRow(row)) = Message::decode(Frame { tag: b'D', body: &body }) else {
            panic!()
        };
        assert_eq!(row.columns().collect::<Vec<_>>(), [Some(&b"hi"[..]), None, Some(b"")]);
        assert_eq!((row.len(), row.is_empty()), (3, false));

        let body = hex!("0001 6100 00000001 0002 00000019 ffff ffffffff 0000");
        let Ok(Message::RowDescription(row)) = Message::decode(Frame { tag: b'T', body: &body })
        else {
            panic!()
        };
        let field = Field {
            name: b"a",
            table: 1,
            attribute: 2,
            type_oid: 25,
            type_len: -1,
            type_modifier: -1,
            format: 0,
        };
        assert_eq!(row.fields().collect::<Vec<_>>(), vec![field]);
    }

    #[test]
    fn an_error_is_never_lost_because_of_its_spelling() {
        let body = b"SFEHLER\0VERROR\0C55006\0MSlot \xbbowl\xab ist aktiv\0DPID 7\0Hwarten\0\0";
        let Ok(Message::ErrorResponse(fields)) = Message::decode(Frame { tag: b'E', body }) else {
            panic!()
        };
        assert_eq!(fields.severity(), "ERROR");
        assert_eq!(fields.code(), SqlState::OBJECT_IN_USE);
        assert_eq!(fields.field(b'D'), Some(&b"PID 7"[..]));
        assert_eq!(fields.field(b'W'), None);
        assert_eq!(
            fields.to_error().to_string(),
            "Slot \u{fffd}owl\u{fffd} ist aktiv (SQLSTATE 55006); detail: PID 7; hint: warten"
        );

        for body in [&b"\0"[..], b"C123\0\0", b"C123456\0\0"] {
            let Ok(Message::NoticeResponse(fields)) = Message::decode(Frame { tag: b'N', body })
            else {
                panic!()
            };
            assert_eq!(fields.code(), SqlState::UNKNOWN);
            assert_eq!(fields.to_error().to_string(), " (SQLSTATE ?????)");
        }
        assert_eq!(SqlState([0xff; 5]).class(), "??");
    }

    #[test]
    fn what_an_error_is_about_can_be_asked_for() {
        let fields: [(u8, &[u8]); 10] = [
            (b'C', b"23505"),
            (b'P', b"12"),
            (b'W', b"PL/pgSQL"),
            (b's', b"public"),
            (b't', b"owls"),
            (b'c', b"id"),
            (b'n', b"owls_pkey"),
            (b'F', b"nbtinsert.c"),
            (b'L', b"666"),
            (b'R', b"_bt_check_unique"),
        ];
        let mut out = BytesMut::new();
        ErrorFields::encode_notice(&fields, &mut out).unwrap();
        let frame = Frame::decode(&out, 1000).unwrap().unwrap();
        let Ok(Message::NoticeResponse(said)) = Message::decode(frame) else { panic!() };
        assert_eq!(said.code().class(), class::INTEGRITY_CONSTRAINT_VIOLATION);
        assert_eq!((said.position(), said.line()), (Some(12), Some(666)));
        let texts = [
            said.context(),
            said.schema(),
            said.table(),
            said.column(),
            said.constraint(),
            said.file(),
            said.routine(),
        ];
        let values = fields.iter().filter(|(code, _)| !b"CPL".contains(code));
        assert!(
            texts.iter().flatten().map(|text| text.as_bytes()).eq(values.map(|(_, text)| *text))
        );
    }

    #[test]
    fn what_cannot_be_said_is_refused_and_leaves_no_trace() {
        let mut out = BytesMut::new();
        assert!(Message::CommandComplete("a\0b").encode(&mut out).is_err());
        assert!(ErrorFields::encode(&[(0, b"")], &mut out).is_err());
        assert!(ErrorFields::encode(&[(b'M', b"\0")], &mut out).is_err());
        assert!(DataRow::encode(&vec![None; 32_768], &mut out).is_err());
        assert!(Strings::new(b"a\0\0").is_err() && Strings::new(b"a").is_err());
        assert!(out.is_empty());
    }
}
