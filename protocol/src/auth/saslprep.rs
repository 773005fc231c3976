//! Passwords in the form that SCRAM hashes: SASLprep, [RFC 4013](https://www.rfc-editor.org/rfc/rfc4013).

use alloc::borrow::Cow;

/// Prepares a password for SCRAM as PostgreSQL does: what is not UTF-8, holds what SASLprep prohibits, or
/// would be empty, stays as it is. What was prepared already does not change.
#[must_use]
pub fn saslprep(password: &[u8]) -> Cow<'_, [u8]> {
    let prepared = core::str::from_utf8(password).ok().map(stringprep::saslprep);
    match prepared {
        Some(Ok(Cow::Owned(prepared))) if !prepared.is_empty() => Cow::Owned(prepared.into_bytes()),
        _ => Cow::Borrowed(password),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4013, section 3, and what `pg_saslprep` adds to it.
    #[test]
    fn passwords_are_prepared_as_the_server_prepares_them() {
        for (password, prepared) in [
            (&b"I\xc2\xadX"[..], &b"IX"[..]),
            (b"user", b"user"),
            (b"USER", b"USER"),
            ("\u{aa}".as_bytes(), b"a"),
            ("\u{2168}".as_bytes(), b"IX"),
            ("a\u{a0}b".as_bytes(), b"a b"),
            // Prohibited: a control character, a right-to-left one without its like at the end, one that
            // Unicode 3.2 does not have.
            (b"a\x07", b"a\x07"),
            ("\u{2168}\u{7f}".as_bytes(), "\u{2168}\u{7f}".as_bytes()),
            ("\u{627}1".as_bytes(), "\u{627}1".as_bytes()),
            ("\u{2168}\u{1f989}".as_bytes(), "\u{2168}\u{1f989}".as_bytes()),
            // Nothing would be left of it.
            ("\u{ad}".as_bytes(), "\u{ad}".as_bytes()),
            (b"", b""),
            // Latin-1.
            (b"gr\xfcn", b"gr\xfcn"),
        ] {
            assert_eq!(*saslprep(password), *prepared, "{password:x?}");
            assert_eq!(*saslprep(prepared), *prepared, "{password:x?}");
        }
    }
}
