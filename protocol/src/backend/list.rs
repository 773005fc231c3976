//! Lists inside messages: checked once, and walked without failing.

use crate::{
    error::{DecodeError, Fault},
    reader::Reader,
};

/// A list of zero-terminated strings, such as the SASL mechanisms a server offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strings<'a>(pub(super) &'a [u8]);

impl<'a> Strings<'a> {
    /// Takes strings that each end with a zero byte, for an encoder: `b"SCRAM-SHA-256\0"`.
    ///
    /// # Errors
    ///
    /// If one is empty, is not UTF-8 or does not end.
    pub fn new(terminated: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(terminated);
        while !r.is_empty() {
            if r.str("Strings.string")?.is_empty() {
                return Err(DecodeError::new("Strings.string", Fault::Length(0)));
            }
        }
        Ok(Self(terminated))
    }

    /// The strings, in the order they were sent.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> + Clone + use<'a> {
        let mut r = Reader::new(self.0);
        core::iter::from_fn(move || {
            if r.is_empty() {
                return None;
            }
            let string = r.str("Strings.string");
            debug_assert!(string.is_ok(), "the list was scanned when it was decoded");
            string.ok()
        })
    }
}
