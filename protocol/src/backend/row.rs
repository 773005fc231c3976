//! The rows of a result, and what their columns are.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>

use bytes::{BufMut, BytesMut};

use super::Values;
use crate::{
    Oid,
    error::{DecodeError, EncodeError},
    reader::Reader,
    writer,
};

/// A row of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataRow<'a>(pub(super) Values<'a>);

impl<'a> DataRow<'a> {
    pub(super) fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let count = r.count16("DataRow.columns")?;
        Values::read(r, count, "DataRow.column.length", "DataRow.column.value").map(Self)
    }

    /// How many columns there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no column, as in the result of `SELECT`.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The values, `None` for NULL. In a simple query they are text in the client's encoding.
    pub fn columns(&self) -> impl Iterator<Item = Option<&'a [u8]>> + Clone + use<'a> {
        self.0.iter()
    }

    /// Appends a whole message with these values, for a server made of this crate.
    ///
    /// # Errors
    ///
    /// If there are more than 32,767, or one is longer than 2 GiB.
    pub fn encode(columns: &[Option<&[u8]>], out: &mut BytesMut) -> Result<(), EncodeError> {
        writer::message(Some(b'D'), "DataRow", out, |out| {
            out.put_i16(writer::len16(columns.len(), "DataRow.columns")?);
            columns.iter().try_for_each(|column| writer::nullable32(*column, "DataRow.column", out))
        })
    }
}

/// The columns of the rows to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowDescription<'a> {
    pub(super) count: u16,
    pub(super) fields: &'a [u8],
}

/// One column of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its name, in the client's encoding.
    pub name: &'a [u8],
    /// The table it comes from, or 0.
    pub table: Oid,
    /// Its number in that table, or 0.
    pub attribute: i16,
    /// The type of its values.
    pub type_oid: Oid,
    /// Their length in bytes; negative if it varies.
    pub type_len: i16,
    /// The type's modifier, such as the precision of a number; -1 for none.
    pub type_modifier: i32,
    /// 0 for text, 1 for binary.
    pub format: i16,
}

impl<'a> RowDescription<'a> {
    pub(super) fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let count = r.count16("RowDescription.fields")?;
        let fields = r.scan(|r| (0..count).try_for_each(|_| Field::read(r).map(drop)))?;
        Ok(Self { count, fields })
    }

    /// How many columns there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is no column.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The columns, from left to right.
    pub fn fields(&self) -> impl Iterator<Item = Field<'a>> + Clone + use<'a> {
        let mut r = Reader::new(self.fields);
        (0..self.count).map_while(move |_| {
            let field = Field::read(&mut r);
            debug_assert!(field.is_ok(), "the fields were scanned when they were decoded");
            field.ok()
        })
    }

    /// Appends a whole message with these columns, for a server made of this crate.
    ///
    /// # Errors
    ///
    /// If there are more than 32,767, or a name holds a zero byte.
    pub fn encode(fields: &[Field<'_>], out: &mut BytesMut) -> Result<(), EncodeError> {
        writer::message(Some(b'T'), "RowDescription", out, |out| {
            out.put_i16(writer::len16(fields.len(), "RowDescription.fields")?);
            fields.iter().try_for_each(|field| {
                writer::cstr(field.name, "RowDescription.field.name", out)?;
                out.put_u32(field.table);
                out.put_i16(field.attribute);
                out.put_u32(field.type_oid);
                out.put_i16(field.type_len);
                out.put_i32(field.type_modifier);
                out.put_i16(field.format);
                Ok(())
            })
        })
    }
}

impl<'a> Field<'a> {
    fn read(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: r.cstr("RowDescription.field.name")?,
            table: r.u32("RowDescription.field.table")?,
            attribute: r.i16("RowDescription.field.attribute")?,
            type_oid: r.u32("RowDescription.field.type_oid")?,
            type_len: r.i16("RowDescription.field.type_len")?,
            type_modifier: r.i32("RowDescription.field.type_modifier")?,
            format: r.i16("RowDescription.field.format")?,
        })
    }
}
