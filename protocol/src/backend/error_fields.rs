//! What a server says when something went wrong, or might interest somebody.

use alloc::{borrow::Cow, string::String};
use core::fmt;

use bytes::{BufMut, BytesMut};

use super::SqlState;
use crate::{
    error::{DecodeError, EncodeError},
    reader::Reader,
    writer,
};

/// What an `ErrorResponse` or a `NoticeResponse` says, field by field.
///
/// A server that has not yet learned the client's encoding writes in its own, so no text here is taken
/// for UTF-8: an error must never be lost because of its spelling.
///
/// <https://www.postgresql.org/docs/current/protocol-error-fields.html>
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorFields<'a>(pub(super) &'a [u8]);

impl<'a> ErrorFields<'a> {
    pub(super) fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let fields = r.scan(|r| {
            while !r.starts_with(0) {
                r.u8("ErrorResponse.field.code")?;
                r.cstr("ErrorResponse.field.value")?;
            }
            Ok(())
        })?;
        r.u8("ErrorResponse.end")?;
        Ok(Self(fields))
    }

    /// All fields in the order they were sent: what each is, and its text.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &'a [u8])> + Clone + use<'a> {
        let mut r = Reader::new(self.0);
        core::iter::from_fn(move || {
            let code = r.u8("ErrorResponse.field.code").ok()?;
            let value = r.cstr("ErrorResponse.field.value");
            debug_assert!(value.is_ok(), "the fields were scanned when they were decoded");
            Some((code, value.ok()?))
        })
    }

    /// The text of one field, such as `b'C'` for the SQLSTATE.
    #[must_use]
    pub fn field(&self, code: u8) -> Option<&'a [u8]> {
        self.iter().find(|(found, _)| *found == code).map(|(_, value)| value)
    }

    /// `ERROR`, `FATAL`, `PANIC`, `WARNING` and so on, not translated if the server says it so (9.6 and
    /// later do).
    #[must_use]
    pub fn severity(&self) -> Cow<'a, str> {
        self.text(b'V').or_else(|| self.text(b'S')).unwrap_or_default()
    }

    /// The SQLSTATE, or [`SqlState::UNKNOWN`] if the server sent none.
    #[must_use]
    pub fn code(&self) -> SqlState {
        self.field(b'C').and_then(|code| code.try_into().ok()).map_or(SqlState::UNKNOWN, SqlState)
    }

    /// What happened, in one line. What is not UTF-8 in it is replaced.
    #[must_use]
    pub fn message(&self) -> Cow<'a, str> {
        self.text(b'M').unwrap_or_default()
    }

    /// More about it.
    #[must_use]
    pub fn detail(&self) -> Option<Cow<'a, str>> {
        self.text(b'D')
    }

    /// What could be done about it.
    #[must_use]
    pub fn hint(&self) -> Option<Cow<'a, str>> {
        self.text(b'H')
    }

    /// Where in the query's text it is wrong: the number of the character, from 1.
    #[must_use]
    pub fn position(&self) -> Option<u32> {
        self.number(b'P')
    }

    /// The stack of calls and commands that led to it, the innermost first; the manual's "where".
    #[must_use]
    pub fn context(&self) -> Option<Cow<'a, str>> {
        self.text(b'W')
    }

    /// The schema of what it is about.
    #[must_use]
    pub fn schema(&self) -> Option<Cow<'a, str>> {
        self.text(b's')
    }

    /// The table that it is about.
    #[must_use]
    pub fn table(&self) -> Option<Cow<'a, str>> {
        self.text(b't')
    }

    /// The column that it is about.
    #[must_use]
    pub fn column(&self) -> Option<Cow<'a, str>> {
        self.text(b'c')
    }

    /// The constraint that it is about, or the index behind it.
    #[must_use]
    pub fn constraint(&self) -> Option<Cow<'a, str>> {
        self.text(b'n')
    }

    /// The file of the server's source that reports it.
    #[must_use]
    pub fn file(&self) -> Option<Cow<'a, str>> {
        self.text(b'F')
    }

    /// The line in that file.
    #[must_use]
    pub fn line(&self) -> Option<u32> {
        self.number(b'L')
    }

    /// The function in that file.
    #[must_use]
    pub fn routine(&self) -> Option<Cow<'a, str>> {
        self.text(b'R')
    }

    fn number(&self, code: u8) -> Option<u32> {
        core::str::from_utf8(self.field(code)?).ok()?.parse().ok()
    }

    fn text(&self, code: u8) -> Option<Cow<'a, str>> {
        self.field(code).map(String::from_utf8_lossy)
    }

    /// The fields that matter after the frame is gone.
    #[must_use]
    pub fn to_error(&self) -> ServerError {
        ServerError {
            severity: self.severity().into_owned(),
            code: self.code(),
            message: self.message().into_owned(),
            detail: self.detail().map(Cow::into_owned),
            hint: self.hint().map(Cow::into_owned),
        }
    }

    /// Appends a whole `ErrorResponse` with these fields, for a server made of this crate.
    ///
    /// # Errors
    ///
    /// If a text holds a zero byte.
    pub fn encode(fields: &[(u8, &[u8])], out: &mut BytesMut) -> Result<(), EncodeError> {
        Self::encode_as(b'E', fields, out)
    }

    /// The same for a `NoticeResponse`.
    ///
    /// # Errors
    ///
    /// If a text holds a zero byte.
    pub fn encode_notice(fields: &[(u8, &[u8])], out: &mut BytesMut) -> Result<(), EncodeError> {
        Self::encode_as(b'N', fields, out)
    }

    fn encode_as(tag: u8, fields: &[(u8, &[u8])], out: &mut BytesMut) -> Result<(), EncodeError> {
        writer::message(Some(tag), "ErrorResponse", out, |out| {
            for (code, value) in fields {
                if *code == 0 {
                    return Err(EncodeError::Nul { field: "ErrorResponse.field.code" });
                }
                out.put_u8(*code);
                writer::cstr(value, "ErrorResponse.field.value", out)?;
            }
            out.put_u8(0);
            Ok(())
        })
    }
}

/// An error of the server, kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`: whether the session goes on, ends, or takes the server with it.
    pub severity: String,
    /// What kind of error it is: the only part to decide by.
    pub code: SqlState,
    /// What happened, in one line, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What could be done about it.
    pub hint: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, "; detail: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl core::error::Error for ServerError {}
