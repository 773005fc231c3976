//! Every message of a client but the first, for whoever hears it.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>

use core::fmt;

use bytes::{BufMut, BytesMut};

use crate::{
    Oid,
    backend::{Formats, Oids, Values},
    error::{DecodeError, EncodeError, Fault},
    frame::Frame,
    reader::Reader,
    writer,
};

/// A message of a client. Names and texts are in the client's encoding, and so bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message<'a> {
    /// `B`: a prepared statement gets its parameters, and becomes a portal.
    Bind(Bind<'a>),
    /// `C`: a statement or a portal is dropped.
    Close {
        /// Which of them.
        target: Target,
        /// Its name, possibly empty.
        name: &'a [u8],
    },
    /// `d`: a piece of a copy; in a replication session, one
    /// [`replication::StandbyMessage`](crate::replication::StandbyMessage).
    CopyData(&'a [u8]),
    /// `c`: the client's side of the copy has ended.
    CopyDone,
    /// `f`: the client gives the copy up, and why.
    CopyFail(&'a [u8]),
    /// `D`: the client asks for the parameters and columns of a statement, or the columns of a portal.
    Describe {
        /// Which of them.
        target: Target,
        /// Its name, possibly empty.
        name: &'a [u8],
    },
    /// `E`: a portal is run.
    Execute {
        /// Its name, possibly empty.
        portal: &'a [u8],
        /// How many rows to stop at; 0 for none.
        rows_max: i32,
    },
    /// `H`: the server shall send what it holds back.
    Flush,
    /// `F`: a function is called by its number.
    FunctionCall(FunctionCall<'a>),
    /// `P`: a statement is prepared.
    Parse(Parse<'a>),
    /// `p`: an answer to the last [`Authentication`](crate::backend::Authentication).
    Password(PasswordMessage<'a>),
    /// `Q`: statements, or a command of the replication protocol.
    Query(&'a [u8]),
    /// `S`: a sequence of extended-query messages has ended.
    Sync,
    /// `X`: the session has ended.
    Terminate,
}

/// What has a name in the extended query protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// `S`: what [`parse`](super::parse) makes.
    Statement,
    /// `P`: what [`bind`](super::bind) makes.
    Portal,
}

/// The parameters of a prepared statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind<'a> {
    /// The portal to make.
    pub portal: &'a [u8],
    /// The statement to make it of.
    pub statement: &'a [u8],
    /// The formats of the parameters: none if all is text, one for all, or one each.
    pub formats: Formats<'a>,
    /// The parameters.
    pub values: Values<'a>,
    /// The formats wanted for the columns of the result, likewise.
    pub result_formats: Formats<'a>,
}

/// A statement to be prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// The name to keep it under, possibly empty.
    pub name: &'a [u8],
    /// The statement.
    pub sql: &'a [u8],
    /// The types of its first parameters.
    pub types: Oids<'a>,
}

/// A call of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionCall<'a> {
    /// The function.
    pub function: Oid,
    /// The formats of the arguments: none if all is text, one for all, or one each.
    pub formats: Formats<'a>,
    /// The arguments.
    pub arguments: Values<'a>,
    /// The format wanted for the result.
    pub result_format: i16,
}

/// The body of a `p`, which is one of four messages: which, only the server's last question tells. As a
/// `SASLResponse` or a `GSSResponse` it is the data, all of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PasswordMessage<'a>(pub &'a [u8]);

/// The choice of a SASL mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaslInitialResponse<'a> {
    /// The mechanism.
    pub mechanism: &'a str,
    /// Its first words, if it has any.
    pub data: Option<&'a [u8]>,
}

/// It may hold a password, and so shows nothing.
impl fmt::Debug for PasswordMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordMessage").finish_non_exhaustive()
    }
}

impl<'a> PasswordMessage<'a> {
    /// Reads it as the answer to a question for a password.
    ///
    /// # Errors
    ///
    /// If it does not end with its only zero byte.
    pub fn password(&self) -> Result<&'a [u8], DecodeError> {
        Reader::all(self.0, "PasswordMessage", |r| r.cstr("PasswordMessage.password"))
    }

    /// Reads it as the answer to an offer of SASL mechanisms.
    ///
    /// # Errors
    ///
    /// If it is too short or too long, or the mechanism is not UTF-8.
    pub fn sasl_initial_response(&self) -> Result<SaslInitialResponse<'a>, DecodeError> {
        Reader::all(self.0, "SASLInitialResponse", |r| {
            let mechanism = r.str("SASLInitialResponse.mechanism")?;
            let data = r.nullable32("SASLInitialResponse.length", "SASLInitialResponse.data")?;
            Ok(SaslInitialResponse { mechanism, data })
        })
    }
}

impl<'a> Message<'a> {
    /// Reads the body of `frame` as its tag says.
    ///
    /// # Errors
    ///
    /// If the tag is none of these, the body is too short or too long for it, or what it says cannot be.
    pub fn decode(frame: Frame<'a>) -> Result<Self, DecodeError> {
        let body = frame.body;
        match frame.tag {
            b'd' => Ok(Self::CopyData(body)),
            b'B' => Reader::all(body, "Bind", |r| {
                Ok(Self::Bind(Bind {
                    portal: r.cstr("Bind.portal")?,
                    statement: r.cstr("Bind.statement")?,
                    formats: formats(r, "Bind.formats")?,
                    values: values(r, "Bind.values", "Bind.value.length", "Bind.value")?,
                    result_formats: formats(r, "Bind.result_formats")?,
                }))
            }),
            b'C' => Reader::all(body, "Close", |r| {
                let target = Target::read(r, "Close.target")?;
                Ok(Self::Close { target, name: r.cstr("Close.name")? })
            }),
            b'c' => Reader::all(body, "CopyDone", |_| Ok(Self::CopyDone)),
            b'f' => {
                Reader::all(body, "CopyFail", |r| r.cstr("CopyFail.reason")).map(Self::CopyFail)
            }
            b'D' => Reader::all(body, "Describe", |r| {
                let target = Target::read(r, "Describe.target")?;
                Ok(Self::Describe { target, name: r.cstr("Describe.name")? })
            }),
            b'E' => Reader::all(body, "Execute", |r| {
                let portal = r.cstr("Execute.portal")?;
                Ok(Self::Execute { portal, rows_max: r.i32("Execute.rows_max")? })
            }),
            b'H' => Reader::all(body, "Flush", |_| Ok(Self::Flush)),
            b'F' => Reader::all(body, "FunctionCall", |r| {
                Ok(Self::FunctionCall(FunctionCall {
                    function: r.u32("FunctionCall.function")?,
                    formats: formats(r, "FunctionCall.formats")?,
                    arguments: values(
                        r,
                        "FunctionCall.arguments",
                        "FunctionCall.argument.length",
                        "FunctionCall.argument",
                    )?,
                    result_format: r.i16("FunctionCall.result_format")?,
                }))
            }),
            b'P' => Reader::all(body, "Parse", |r| {
                let (name, sql) = (r.cstr("Parse.name")?, r.cstr("Parse.sql")?);
                let count = r.u16("Parse.types")?;
                Ok(Self::Parse(Parse { name, sql, types: Oids::read(r, count, "Parse.types")? }))
            }),
            b'p' => Ok(Self::Password(PasswordMessage(body))),
            b'Q' => Reader::all(body, "Query", |r| r.cstr("Query.sql")).map(Self::Query),
            b'S' => Reader::all(body, "Sync", |_| Ok(Self::Sync)),
            b'X' => Reader::all(body, "Terminate", |_| Ok(Self::Terminate)),
            other => Err(DecodeError::new("Frame.tag", Fault::Tag(other))),
        }
    }

    /// Appends the whole message.
    ///
    /// # Errors
    ///
    /// If a string holds a zero byte or something is too long.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        writer::message(Some(self.tag()), "frontend message", out, |out| {
            match *self {
                Self::Bind(bind) => {
                    writer::cstr(bind.portal, "Bind.portal", out)?;
                    writer::cstr(bind.statement, "Bind.statement", out)?;
                    put_formats(bind.formats, "Bind.formats", out)?;
                    bind.values.encode(out);
                    put_formats(bind.result_formats, "Bind.result_formats", out)?;
                }
                Self::Close { target, name } => {
                    out.put_u8(target.code());
                    writer::cstr(name, "Close.name", out)?;
                }
                Self::CopyData(data) | Self::Password(PasswordMessage(data)) => out.put_slice(data),
                Self::CopyDone | Self::Flush | Self::Sync | Self::Terminate => {}
                Self::CopyFail(reason) => writer::cstr(reason, "CopyFail.reason", out)?,
                Self::Describe { target, name } => {
                    out.put_u8(target.code());
                    writer::cstr(name, "Describe.name", out)?;
                }
                Self::Execute { portal, rows_max } => {
                    writer::cstr(portal, "Execute.portal", out)?;
                    out.put_i32(rows_max);
                }
                Self::FunctionCall(call) => {
                    out.put_u32(call.function);
                    put_formats(call.formats, "FunctionCall.formats", out)?;
                    call.arguments.encode(out);
                    out.put_i16(call.result_format);
                }
                Self::Parse(parse) => {
                    writer::cstr(parse.name, "Parse.name", out)?;
                    writer::cstr(parse.sql, "Parse.sql", out)?;
                    out.put_u16(writer::count16(parse.types.iter().len(), "Parse.types")?);
                    out.put_slice(parse.types.as_bytes());
                }
                Self::Query(sql) => writer::cstr(sql, "Query.sql", out)?,
            }
            Ok(())
        })
    }

    /// The byte on the wire that says which message this is.
    #[must_use]
    pub const fn tag(&self) -> u8 {
        match self {
            Self::Bind(_) => b'B',
            Self::Close { .. } => b'C',
            Self::CopyData(_) => b'd',
            Self::CopyDone => b'c',
            Self::CopyFail(_) => b'f',
            Self::Describe { .. } => b'D',
            Self::Execute { .. } => b'E',
            Self::Flush => b'H',
            Self::FunctionCall(_) => b'F',
            Self::Parse(_) => b'P',
            Self::Password(_) => b'p',
            Self::Query(_) => b'Q',
            Self::Sync => b'S',
            Self::Terminate => b'X',
        }
    }
}

impl Target {
    const fn code(self) -> u8 {
        match self {
            Self::Statement => b'S',
            Self::Portal => b'P',
        }
    }

    fn read(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        match r.u8(field)? {
            b'S' => Ok(Self::Statement),
            b'P' => Ok(Self::Portal),
            other => Err(DecodeError::new(field, Fault::Tag(other))),
        }
    }
}

fn formats<'a>(r: &mut Reader<'a>, field: &'static str) -> Result<Formats<'a>, DecodeError> {
    let count = r.u16(field)?;
    Formats::read(r, count, field)
}

fn put_formats(
    formats: Formats<'_>,
    field: &'static str,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    out.put_u16(writer::count16(formats.iter().len(), field)?);
    out.put_slice(formats.as_bytes());
    Ok(())
}

fn values<'a>(
    r: &mut Reader<'a>,
    field: &'static str,
    length: &'static str,
    value: &'static str,
) -> Result<Values<'a>, DecodeError> {
    let count = r.u16(field)?;
    Values::read(r, count, length, value)
}
