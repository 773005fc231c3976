//! How a client proves that it knows a password.
//!
//! <https://www.postgresql.org/docs/current/auth-password.html>

pub mod channel_binding;
mod methods;
#[cfg(feature = "saslprep")]
mod saslprep;
pub mod scram;

pub use methods::{AuthMethod, AuthMethods, RequireAuthError};
#[cfg(feature = "saslprep")]
pub use saslprep::saslprep;

use alloc::string::String;
use core::fmt::Write;

use md5::{Digest, Md5};

/// The answer to `AuthenticationMD5Password`: `md5` and 32 hexadecimal digits.
///
/// Whoever has read the server's stored password can compute it too, and the 4 bytes of salt repeat
/// soon: better than the password in the clear, and no more than that.
#[must_use]
pub fn md5_password(user: &[u8], password: &[u8], salt: [u8; 4]) -> String {
    let stored = hex(&Md5::new().chain_update(password).chain_update(user).finalize());
    let answer = hex(&Md5::new().chain_update(stored).chain_update(salt).finalize());
    String::from("md5") + &answer
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;

    #[test]
    fn md5_is_as_the_server_computes_it() {
        // printf '%s\x2a\x3d\x8f\xe0' "$(printf secretowl | md5sum | cut -c-32)" | md5sum
        assert_eq!(
            md5_password(b"owl", b"secret", hex!("2a 3d 8f e0")),
            "md5556665b10996dddfff4b05fcf16d19a9"
        );
    }
}
