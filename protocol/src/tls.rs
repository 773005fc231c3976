//! How a connection comes to be encrypted, without a TLS library.
//!
//! <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL>
//!
//! ```text
//!  postgres (usual)   ssl_request ──▶ 1 byte: S ──▶ TLS ──────────────────▶ StartupMessage
//!                                     1 byte: N ─────── if policy allows ─▶ StartupMessage
//!  direct (17+)       TLS with ALPN "postgresql" ──▶ check_alpn ──────────▶ StartupMessage
//! ```
//!
//! How many bytes a driver may ask the socket for: [`ANSWER_LEN`] after
//! [`ssl_request`](crate::frontend::ssl_request), any number in all other states. What arrives under TLS
//! goes into an empty buffer.

use core::fmt;

/// The answer to [`ssl_request`](crate::frontend::ssl_request), in bytes. The driver must not read more at
/// once: what stands behind it was not sent under the key, and belongs to the TLS library or to nobody.
pub const ANSWER_LEN: usize = 1;

/// The protocol's name for ALPN ([RFC 7301](https://www.rfc-editor.org/rfc/rfc7301)). Direct TLS requires
/// it; after `ssl_request`, servers before 17 ignore it.
pub const ALPN: &[u8] = b"postgresql";

/// What a server answers to [`ssl_request`](crate::frontend::ssl_request).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// `S`: the TLS handshake comes next, and then the start-up message.
    Tls,
    /// `N`: there is no TLS. Whoever goes on, with the start-up message on the same socket, goes on in
    /// clear text: only where nothing more than `sslmode=prefer` was asked for.
    Plaintext,
}

impl Answer {
    /// Reads everything that came since `ssl_request` was sent: `None` is not yet.
    ///
    /// # Errors
    ///
    /// If it is not exactly `S` or `N`. The connection must be closed.
    pub const fn read(received: &[u8]) -> Result<Option<Self>, TlsError> {
        match received {
            [] => Ok(None),
            [b'S'] => Ok(Some(Self::Tls)),
            [b'N'] => Ok(Some(Self::Plaintext)),
            // Anybody on the way can have written the text of this error (CVE-2024-10977).
            [b'E', ..] => Err(TlsError::Refused),
            // Buffered, it would be taken for what came under the key (CVE-2021-23222).
            [b'S' | b'N', ..] => Err(TlsError::Unencrypted),
            [byte, ..] => Err(TlsError::Answer(*byte)),
        }
    }
}

/// Checks what ALPN selected in a direct TLS connection. Without it, the bytes of one protocol could be
/// played to a server of another (ALPACA).
///
/// # Errors
///
/// If it is not [`ALPN`]. The connection must be closed, not tried again in another way.
pub fn check_alpn(selected: Option<&[u8]>) -> Result<(), TlsError> {
    match selected {
        Some(ALPN) => Ok(()),
        _ => Err(TlsError::Alpn),
    }
}

/// Why a connection is not encrypted and cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsError {
    /// The server answers with an error. What it says is not shown, because anybody could have said it.
    Refused,
    /// The server answers with this byte.
    Answer(u8),
    /// Something follows the answer, without encryption.
    Unencrypted,
    /// ALPN did not select the protocol.
    Alpn,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str(
                "the server answers the request for TLS with an error: its log says which",
            ),
            Self::Answer(byte) => write!(
                f,
                "the server answers the request for TLS with byte 0x{byte:02x} ('{}'): is this PostgreSQL?",
                byte.escape_ascii()
            ),
            Self::Unencrypted => f.write_str(
                "unencrypted data follows the answer to the request for TLS; somebody may be in between: \
                 check the network",
            ),
            Self::Alpn => f.write_str(
                "the server did not select the protocol postgresql (ALPN): direct TLS needs PostgreSQL 17 \
                 or later",
            ),
        }
    }
}

impl core::error::Error for TlsError {}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec};

    use super::*;

    #[test]
    fn the_answer_is_one_byte() {
        assert_eq!(Answer::read(b""), Ok(None));
        assert_eq!(Answer::read(b"S"), Ok(Some(Answer::Tls)));
        assert_eq!(Answer::read(b"N"), Ok(Some(Answer::Plaintext)));
        assert_eq!(ANSWER_LEN, b"S".len());
    }

    #[test]
    fn whatever_stands_behind_the_answer_is_an_attack() {
        for first in [b'S', b'N'] {
            for next in 0..=255 {
                assert_eq!(Answer::read(&[first, next]), Err(TlsError::Unencrypted));
            }
            assert_eq!(Answer::read(&vec![first; 10_000]), Err(TlsError::Unencrypted));
        }
    }

    #[test]
    fn the_text_of_an_error_is_not_shown() {
        for len in 1..12 {
            let error = Answer::read(&b"E\0\0\0\x0fMsecret\0\0"[..len]).unwrap_err();
            assert_eq!(error, TlsError::Refused);
            assert!(!error.to_string().contains("secret") && !error.to_string().contains('E'));
        }
    }

    #[test]
    fn any_other_byte_is_named() {
        for byte in (0..=255).filter(|byte| !b"SNE".contains(byte)) {
            assert_eq!(Answer::read(&[byte]), Err(TlsError::Answer(byte)));
            assert_eq!(Answer::read(&[byte, b'S']), Err(TlsError::Answer(byte)));
        }
        assert_eq!(
            TlsError::Answer(b'H').to_string(),
            "the server answers the request for TLS with byte 0x48 ('H'): is this PostgreSQL?"
        );
    }

    #[test]
    fn direct_tls_without_alpn_is_refused() {
        assert_eq!(check_alpn(Some(b"postgresql")), Ok(()));
        for selected in [None, Some(&b""[..]), Some(b"http/1.1"), Some(b"postgresql2")] {
            assert_eq!(check_alpn(selected), Err(TlsError::Alpn));
        }
        assert!(TlsError::Alpn.to_string().contains("PostgreSQL 17"));
    }
}
