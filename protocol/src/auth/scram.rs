//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS: both sides prove that they know the password, and neither shows
//! it. PLUS proves too that both see the same certificate, so that nobody stands between them.
//!
//! [RFC 5802](https://www.rfc-editor.org/rfc/rfc5802), [RFC 7677](https://www.rfc-editor.org/rfc/rfc7677),
//! <https://www.postgresql.org/docs/current/sasl-authentication.html>
//!
//! ```text
//!  ClientFirst ──── client-first-message ───▶
//!       │     ◀──── server-first-message ────  nonce, salt, iterations
//!  ClientFinal ──── client-final-message ───▶  our proof
//!       │     ◀──── server-final-message ────  theirs
//!  ServerVerified
//! ```
//!
//! Each step consumes the one before it, so that none can be left out or repeated.

use alloc::{borrow::ToOwned, format, string::String, vec::Vec};
use core::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// The name on the wire of the mechanism without channel binding.
pub const MECHANISM: &str = "SCRAM-SHA-256";

/// The name of the one with channel binding.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// The most rounds of hashing that a server may ask for.
///
/// The server picks the number and we do the work: without a limit it could keep us hashing for an
/// hour. PostgreSQL's default is 4,096 and the highest advice in use is 600,000; a million take 0.2
/// to 0.3 seconds.
pub const ITERATIONS_MAX: u32 = 1_000_000;

/// The longest word that a server may give for its refusal, in bytes; RFC 5802's have up to 37. Nobody has
/// proven anything when it comes, and it ends up in a log.
const SERVER_ERROR_LEN_MAX: usize = 64;

/// What the client says of channel binding: the gs2-cbind-flag of RFC 5802.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Binding<'a> {
    /// `n`: the client does not bind.
    #[default]
    None,
    /// `y`: the client would, and believes that the server cannot. A server that can refuses this: then
    /// somebody in between has taken PLUS off its list.
    NotOffered,
    /// `p=tls-server-end-point`: the hash of the server's certificate. Only for [`MECHANISM_PLUS`].
    ServerEndPoint(&'a [u8]),
}

impl Binding<'_> {
    /// No other identity than the user's follows the flag.
    const fn gs2_header(&self) -> &'static str {
        match self {
            Self::None => "n,,",
            Self::NotOffered => "y,,",
            Self::ServerEndPoint(_) => "p=tls-server-end-point,,",
        }
    }
}

/// The client's first message has been made; the server's is awaited.
pub struct ClientFirst {
    password: Vec<u8>,
    nonce: String,
    mechanism: &'static str,
    gs2_header: &'static str,
    /// cbind-input: the header, and the channel's data behind it.
    binding: Vec<u8>,
    message: String,
}

/// The client's proof has been made; the server's is awaited.
pub struct ClientFinal {
    server_key: HmacSha256,
    auth_message: String,
    message: String,
    iterations: u32,
    bound: bool,
}

/// The server knows the password too. Only [`ClientFinal::server_final`] makes one.
#[derive(Debug)]
#[must_use]
pub struct ServerVerified(());

impl ClientFirst {
    /// Starts an exchange without channel binding: see [`bound`](Self::bound).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn new(password: &[u8], nonce: &str) -> Result<Self, ScramError> {
        Self::bound(password, nonce, Binding::None)
    }

    /// Starts an exchange.
    ///
    /// `password` is prepared by SASLprep (RFC 4013), or as it is if that refuses it; for ASCII the two
    /// are the same. `nonce` must be random, new for every exchange, and 18 bytes or more before it was
    /// made printable.
    ///
    /// # Errors
    ///
    /// [`ScramError::ClientNonce`] if the nonce is empty or not made of printable ASCII without commas.
    pub fn bound(password: &[u8], nonce: &str, binding: Binding<'_>) -> Result<Self, ScramError> {
        // printable = %x21-2B / %x2D-7E
        if nonce.is_empty() || !nonce.bytes().all(|c| c.is_ascii_graphic() && c != b',') {
            return Err(ScramError::ClientNonce);
        }
        let gs2_header = binding.gs2_header();
        let (mechanism, data) = match binding {
            Binding::ServerEndPoint(hash) => (MECHANISM_PLUS, hash),
            Binding::None | Binding::NotOffered => (MECHANISM, &[][..]),
        };
        Ok(Self {
            password: password.to_owned(),
            nonce: nonce.to_owned(),
            mechanism,
            gs2_header,
            binding: [gs2_header.as_bytes(), data].concat(),
            // The user name is empty: the server takes the one of the start-up message.
            message: format!("{gs2_header}n=,r={nonce}"),
        })
    }

    /// [`MECHANISM`], or [`MECHANISM_PLUS`] if the exchange is bound to a channel.
    #[must_use]
    pub const fn mechanism(&self) -> &'static str {
        self.mechanism
    }

    /// The client-first-message, to be sent with the [mechanism](Self::mechanism).
    #[must_use]
    pub fn message(&self) -> &[u8] {
        self.message.as_bytes()
    }

    /// Takes the server-first-message and does the hashing, which takes a microsecond or less an
    /// iteration.
    ///
    /// # Errors
    ///
    /// If the message is malformed, repeats another nonce than ours, or asks for too much work.
    pub fn server_first(self, data: &[u8]) -> Result<ClientFinal, ScramError> {
        let server_first = text(data, "server-first-message")?;
        let mut attributes = server_first.split(',');
        let mut attribute = |name, field| {
            let attribute = attributes.next().ok_or(ScramError::Malformed(field))?;
            value(attribute, name).ok_or(ScramError::Malformed(field))
        };
        let nonce = attribute("r=", "nonce")?;
        let salt = attribute("s=", "salt")?;
        let iterations = attribute("i=", "iteration count")?;

        // "The client MUST verify that the initial part of the nonce used in subsequent messages is the
        // same as the nonce it initially specified."
        if !nonce.starts_with(&self.nonce) {
            return Err(ScramError::ServerNonce);
        }
        let salt = BASE64_STANDARD.decode(salt).map_err(|_| ScramError::Malformed("salt"))?;
        let iterations = read_iterations(iterations)?;

        let salted_password = salt_password(&self.password, &salt, iterations);
        let client_key = hmac(&salted_password).chain_update(b"Client Key").finalize().into_bytes();
        let server_key = hmac(&salted_password).chain_update(b"Server Key").finalize().into_bytes();

        let client_first_bare = self.message.strip_prefix(self.gs2_header).unwrap_or_default();
        let binding = BASE64_STANDARD.encode(&self.binding);
        let without_proof = format!("c={binding},r={nonce}");
        let auth_message = format!("{client_first_bare},{server_first},{without_proof}");

        let stored_key = Sha256::digest(client_key);
        let signature = hmac(&stored_key).chain_update(&auth_message).finalize().into_bytes();
        let proof: Vec<u8> =
            client_key.iter().zip(signature).map(|(key, signature)| key ^ signature).collect();
        let message = format!("{without_proof},p={}", BASE64_STANDARD.encode(proof));
        Ok(ClientFinal {
            server_key: hmac(&server_key),
            auth_message,
            message,
            iterations,
            bound: self.mechanism == MECHANISM_PLUS,
        })
    }
}

impl ClientFinal {
    /// The client-final-message.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        self.message.as_bytes()
    }

    /// How many rounds the server asked for. Fewer than 4,096 are less than RFC 7677 wants, and worth a
    /// warning.
    #[must_use]
    pub const fn iterations(&self) -> u32 {
        self.iterations
    }

    /// Whether the proofs hold only on this channel.
    #[must_use]
    pub const fn is_bound(&self) -> bool {
        self.bound
    }

    /// Takes the server-final-message and checks the server's proof, in constant time.
    ///
    /// # Errors
    ///
    /// If the server refuses, or does not know the password.
    pub fn server_final(self, data: &[u8]) -> Result<ServerVerified, ScramError> {
        let server_final = text(data, "server-final-message")?;
        let first = server_final.split(',').next().unwrap_or_default();
        if let Some(error) = value(first, "e=") {
            let is_word = error.bytes().all(|c| c.is_ascii_graphic());
            return Err(match error.len() {
                1..=SERVER_ERROR_LEN_MAX if is_word => ScramError::Server(error.to_owned()),
                _ => ScramError::Malformed("refusal"),
            });
        }
        let signature = value(first, "v=").ok_or(ScramError::Malformed("server signature"))?;
        let signature = BASE64_STANDARD
            .decode(signature)
            .map_err(|_| ScramError::Malformed("server signature"))?;
        match self.server_key.chain_update(&self.auth_message).verify_slice(&signature) {
            Ok(()) => Ok(ServerVerified(())),
            Err(_) => Err(ScramError::ServerSignature),
        }
    }
}

// Both hold secrets.
impl fmt::Debug for ClientFirst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientFirst").finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientFinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientFinal").finish_non_exhaustive()
    }
}

type HmacSha256 = Hmac<Sha256>;

#[expect(clippy::expect_used, reason = "HMAC is defined for keys of any length")]
fn hmac(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// `Hi()` of RFC 5802: PBKDF2 of one block.
fn salt_password(password: &[u8], salt: &[u8], iterations: u32) -> [u8; 32] {
    let keyed = hmac(password);
    let mut block =
        keyed.clone().chain_update(salt).chain_update(1u32.to_be_bytes()).finalize().into_bytes();
    let mut salted: [u8; 32] = block.into();
    for _ in 1..iterations {
        block = keyed.clone().chain_update(block).finalize().into_bytes();
        salted.iter_mut().zip(block).for_each(|(salted, byte)| *salted ^= byte);
    }
    salted
}

fn text<'a>(data: &'a [u8], message: &'static str) -> Result<&'a str, ScramError> {
    core::str::from_utf8(data).map_err(|_| ScramError::Malformed(message))
}

fn value<'a>(attribute: &'a str, name: &str) -> Option<&'a str> {
    attribute.strip_prefix(name)
}

fn read_iterations(digits: &str) -> Result<u32, ScramError> {
    if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return Err(ScramError::Malformed("iteration count"));
    }
    match digits.parse() {
        Ok(0) => Err(ScramError::Malformed("iteration count")),
        Ok(iterations @ 1..=ITERATIONS_MAX) => Ok(iterations),
        // More, or more than a number can be.
        _ => Err(ScramError::TooManyIterations),
    }
}

/// Why an exchange failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScramError {
    /// The nonce that the caller drew cannot be sent.
    ClientNonce,
    /// A message of the server, or this part of it, cannot be read.
    Malformed(&'static str),
    /// The server answered to another nonce: this is not the exchange we began.
    ServerNonce,
    /// The server asks for more than [`ITERATIONS_MAX`] rounds of hashing.
    TooManyIterations,
    /// The server refuses, with this word of RFC 5802.
    Server(String),
    /// The server does not know the password: it is not the one it claims to be.
    ServerSignature,
}

impl fmt::Display for ScramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientNonce => f.write_str("the nonce must be printable ASCII without commas"),
            Self::Malformed(field) => write!(f, "the server's {field} is malformed"),
            Self::ServerNonce => f.write_str("the server's nonce does not begin with ours"),
            Self::TooManyIterations => {
                write!(f, "the server asks for more than {ITERATIONS_MAX} rounds of hashing")
            }
            Self::Server(error) => write!(f, "the server refuses: {error}"),
            Self::ServerSignature => f.write_str(
                "the server could not prove that it knows the password; it may be an impostor: check host and TLS",
            ),
        }
    }
}

impl core::error::Error for ScramError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677, section 3, whose user has a name.
    #[test]
    fn the_example_of_the_rfc_is_repeated() {
        let mut first = ClientFirst::new(b"pencil", "rOprNGfwEbeRWgbNEkqO").unwrap();
        assert_eq!(first.message(), b"n,,n=,r=rOprNGfwEbeRWgbNEkqO");
        first.message = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO".into();

        let server_first = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let last = first.server_first(server_first).unwrap();
        assert_eq!(
            last.message(),
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(last.iterations(), 4096);
        let _verified =
            last.server_final(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap();
    }

    /// No RFC has an example of PLUS. The proof was computed apart from this code, with Python's hashlib
    /// and hmac; that servers agree is tested against real ones.
    #[test]
    fn the_header_and_the_certificate_go_into_the_proof() {
        let message = |binding| {
            let first = ClientFirst::bound(b"pencil", "rOprNGfwEbeRWgbNEkqO", binding).unwrap();
            let begun = (first.mechanism(), String::from_utf8(first.message().to_vec()).unwrap());
            let server_first = b"r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1";
            let last = first.server_first(server_first).unwrap();
            (begun, String::from_utf8(last.message().to_vec()).unwrap())
        };
        assert_eq!(
            message(Binding::ServerEndPoint(&[0xab; 32])),
            (
                (MECHANISM_PLUS, "p=tls-server-end-point,,n=,r=rOprNGfwEbeRWgbNEkqO".into()),
                PLUS.into()
            )
        );
        assert_eq!(
            message(Binding::NotOffered),
            ((MECHANISM, "y,,n=,r=rOprNGfwEbeRWgbNEkqO".into()), NOT_OFFERED.into())
        );
    }

    const PLUS: &str = "c=cD10bHMtc2VydmVyLWVuZC1wb2ludCwsq6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=,r=rOprNGfwEbeRWgbNEkqOx,p=wMj3r8EehztfR4lYFJbvuPhJv3aDOnkVH3/iI/CzzzA=";
    const NOT_OFFERED: &str =
        "c=eSws,r=rOprNGfwEbeRWgbNEkqOx,p=+K9fRrXbzsKtpLdDlFrnwIMad0q3N5UgU2uVzBcd2nk=";

    #[test]
    fn a_nonce_that_would_break_the_message_is_refused() {
        for nonce in ["", "a,b", "a b", "é", "a\0"] {
            assert_eq!(
                ClientFirst::new(b"", nonce).unwrap_err(),
                ScramError::ClientNonce,
                "{nonce:?}"
            );
        }
    }
}
