//! What can be wrong with a peer's bytes, and with what a caller asks to be encoded.

use core::fmt;

/// A peer's bytes do not follow the protocol.
///
/// Small, `Copy` and without heap memory, so that the way of a good message costs nothing. A session
/// that meets one must end: after it, nobody knows where the next message begins or what the lost one
/// said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeError {
    /// The field that could not be read, as `Message.field` in the manual's words.
    pub field: &'static str,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The bytes end inside the field.
    Truncated,
    /// Bytes are left over after the last field.
    Trailing,
    /// A length or count that the protocol does not allow, as it was sent.
    Length(i64),
    /// A length, in bytes, that the protocol allows and the caller's maximum does not.
    TooLong(i64),
    /// A tag, flag or marker byte that means nothing here.
    Tag(u8),
    /// Text that must be UTF-8 and is not.
    Utf8,
    /// Text that does not have the form it must have.
    Malformed,
    /// A message that is known, but not here: of a later version than was asked for, or on the wrong
    /// side of the borders of a streamed block.
    OutOfPlace,
}

impl DecodeError {
    pub(crate) const fn new(field: &'static str, fault: Fault) -> Self {
        Self { field, fault }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field;
        match self.fault {
            Fault::Truncated => write!(f, "message ended inside {field}"),
            Fault::Trailing => write!(f, "bytes left over after {field}"),
            Fault::Length(n) => write!(f, "invalid length {n} for {field}"),
            Fault::TooLong(n) => write!(f, "{field} of {n} bytes is over the accepted maximum"),
            Fault::Tag(byte) => {
                write!(f, "unknown byte 0x{byte:02x} ('{}') for {field}", byte.escape_ascii())
            }
            Fault::Utf8 => write!(f, "{field} is not UTF-8"),
            Fault::Malformed => write!(f, "{field} is malformed"),
            Fault::OutOfPlace => write!(f, "{field} has no place here"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// A message cannot be written as asked. The buffer is left as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// A zero byte inside a zero-terminated string: what follows it would be read as the next field.
    Nul {
        /// The field that holds it.
        field: &'static str,
    },
    /// Nothing where something must be: an empty name would end the list it is in.
    Empty {
        /// The field that is empty.
        field: &'static str,
    },
    /// More than the field's length on the wire can say.
    TooLong {
        /// The field.
        field: &'static str,
        /// Its length in bytes, or its number of entries.
        len: usize,
    },
    /// A `"` inside a name in a replication command: what SQL doubles is a syntax error there.
    Quote {
        /// What the name is of.
        field: &'static str,
    },
    /// Something that the server's version does not have.
    Version {
        /// What it is.
        what: &'static str,
        /// The first major version that has it.
        since: u32,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nul { field } => {
                write!(f, "{field} holds a zero byte, which ends it on the wire")
            }
            Self::Empty { field } => write!(f, "{field} is empty"),
            Self::TooLong { field, len } => write!(f, "{field} is too long to be sent ({len})"),
            Self::Quote { field } => {
                write!(f, "{field} holds a double quote, which no replication command can say")
            }
            Self::Version { what, since } => write!(f, "{what} needs PostgreSQL {since} or later"),
        }
    }
}

impl core::error::Error for EncodeError {}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn errors_read_as_sentences() {
        let said = |fault| DecodeError::new("Relation.column.name", fault).to_string();
        assert_eq!(said(Fault::Truncated), "message ended inside Relation.column.name");
        assert_eq!(said(Fault::Trailing), "bytes left over after Relation.column.name");
        assert_eq!(said(Fault::Length(-1)), "invalid length -1 for Relation.column.name");
        assert_eq!(said(Fault::Tag(0)), "unknown byte 0x00 ('\\x00') for Relation.column.name");
        assert_eq!(
            EncodeError::Nul { field: "Query.sql" }.to_string(),
            "Query.sql holds a zero byte, which ends it on the wire"
        );
        assert_eq!(
            EncodeError::Quote { field: "slot" }.to_string(),
            "slot holds a double quote, which no replication command can say"
        );
        assert_eq!(
            EncodeError::Version { what: "failover of a slot", since: 17 }.to_string(),
            "failover of a slot needs PostgreSQL 17 or later"
        );
    }
}
