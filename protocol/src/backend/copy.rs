//! How the data of a copy is written.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>

use bytes::{BufMut, BytesMut};

use super::Formats;
use crate::{
    error::{DecodeError, EncodeError},
    reader::Reader,
    writer,
};

/// The formats of a copy. The default, text in no columns, is what the server says before replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyFormats<'a> {
    /// Whether the copy as a whole is binary; else it is lines of text.
    pub binary: bool,
    /// The format of each column.
    pub columns: Formats<'a>,
}

impl<'a> CopyFormats<'a> {
    pub(super) fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let binary = r.bool("CopyResponse.format")?;
        let count = r.count16("CopyResponse.columns")?;
        Ok(Self { binary, columns: Formats::read(r, count, "CopyResponse.column_formats")? })
    }

    pub(super) fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_u8(self.binary.into());
        out.put_i16(writer::len16(self.columns.iter().len(), "CopyResponse.columns")?);
        out.put_slice(self.columns.as_bytes());
        Ok(())
    }
}
