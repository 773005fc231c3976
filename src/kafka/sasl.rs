//! Who we are, to the broker: SASL PLAIN, SCRAM and OAUTHBEARER (KIP-43, KIP-84, KIP-152, KIP-255).
//!
//! The exchange is rsasl's, which rskafka brings along; here are Kafka's requests around it, the limits, and
//! how long the broker lets us stay (KIP-368), which rskafka's own code throws away.

use super::dial::describe;
use super::message::SaslAuthenticateRequest;
use crate::config::Secret;
use rsasl::config::SASLConfig;
use rsasl::prelude::{Mechname, SASLClient, SessionError};
use rskafka::messenger::{Messenger, RequestError};
use rskafka::protocol::error::Error as Code;
use rskafka::protocol::messages::SaslHandshakeRequest;
use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// How many rounds of hashing a broker may ask for. It picks the number and we do the work, while nothing
/// else is done: without a limit it could keep us hashing for an hour. Kafka's default is 4,096, and it allows
/// up to 16,384. Fewer than 4,096 is for somebody in between who would guess the password from our proof (RFC
/// 7677, section 4); Java's client refuses it, too.
const ITERATIONS: RangeInclusive<u32> = 4096..=100_000;

/// No honest message of a broker is longer.
const CHALLENGE_LEN_MAX: usize = 4096;

/// How much of a broker's text is shown, in characters.
const SHOWN_MAX: usize = 300;

/// How it is shown that we know the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// By telling it.
    Plain,
    /// By a proof, and the broker proves that it knows it, too.
    ScramSha256,
    /// The same with a longer hash.
    ScramSha512,
}

impl Mechanism {
    /// As Kafka's `sasl.mechanism` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A user of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sasl {
    /// Somebody with a password.
    Password {
        /// The mechanism, which the listener must offer.
        mechanism: Mechanism,
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// The bearer of a token (OAUTHBEARER: RFC 7628, KIP-255).
    Token {
        /// The file with the token, which is read again for each connection: whoever renews the token
        /// replaces the file.
        file: PathBuf,
    },
}

/// As Kafka's `sasl.mechanism` has it.
const OAUTHBEARER: &str = "OAUTHBEARER";

/// No honest token is longer: a broker takes no message of log-in over 512 KiB (`sasl.server.max.receive.size`).
const TOKEN_LEN_MAX: usize = 500 * 1024;

/// Logs in; how long the broker lets this connection live, if it says.
///
/// Errors are one sentence, without the address and without a secret.
pub(super) async fn authenticate<RW>(
    messenger: &Messenger<RW>,
    sasl: &Sasl,
) -> Result<Option<Duration>, String>
where
    RW: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mechanism, username, password) = match sasl {
        Sasl::Password { mechanism, username, password } => (mechanism, username, password),
        Sasl::Token { file } => return bear(messenger, file).await,
    };
    let faulty = |what: &dyn fmt::Display| format!("log-in by {mechanism}: {what}");
    let refused = |said: &str| {
        let said = shown(said, password);
        format!(
            "the broker does not let user {username:?} in by {mechanism}: {said}; check \
             KAFKA_USERNAME, KAFKA_PASSWORD and KAFKA_SASL_MECHANISM"
        )
    };
    handshake(messenger, mechanism.name(), password).await?;
    let config = SASLConfig::with_credentials(None, username.clone(), password.expose().to_owned())
        .map_err(|e| faulty(&e))?;
    let name = Mechname::parse(mechanism.name().as_bytes()).map_err(|e| faulty(&e))?;
    let mut session = SASLClient::new(config).start_suggested(&[name]).map_err(|e| faulty(&e))?;
    let mut challenge: Option<Vec<u8>> = None;
    let mut lifetime = None;
    loop {
        if let Some(challenge) = challenge.as_deref().filter(|_| *mechanism != Mechanism::Plain) {
            if let Some(error) = challenge.strip_prefix(b"e=") {
                return Err(refused(&String::from_utf8_lossy(error)));
            }
            check(challenge).map_err(|fault| faulty(&fault))?;
        }
        let mut response = Cursor::new(Vec::new());
        let state = session.step(challenge.as_deref(), &mut response).map_err(|e| match e {
            SessionError::MutualAuthenticationFailed => {
                faulty(&"the broker could not prove that it knows the password")
            }
            SessionError::MechanismError(e) => faulty(&e),
            e => faulty(&e),
        })?;
        if state.has_sent_message() {
            let reply = say(messenger, mechanism.name(), response.into_inner()).await?;
            let reply = reply.map_err(|said| refused(&said))?;
            lifetime = reply.lifetime;
            challenge = Some(reply.bytes);
        }
        if state.is_finished() {
            return Ok(lifetime);
        }
        if !state.has_sent_message() {
            return Err(faulty(&"the broker has not finished"));
        }
    }
}

/// Logs in by the token in this file.
async fn bear<RW>(messenger: &Messenger<RW>, file: &Path) -> Result<Option<Duration>, String>
where
    RW: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let named = |what: &dyn fmt::Display| {
        format!("KAFKA_SASL_OAUTHBEARER_TOKEN_FILE {}: {what}", file.display())
    };
    let token = read_token(file.to_owned()).await.map_err(|e| named(&e))?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if token.expose().is_empty() || token.expose().len() > TOKEN_LEN_MAX {
        return Err(named(&"a token has from 1 to 512,000 characters"));
    }
    if !token.expose().bytes().all(is_token) {
        // RFC 6750, section 2.1.
        return Err(named(&"a token has letters, digits, and -._~+/= only"));
    }
    handshake(messenger, OAUTHBEARER, &token).await?;
    let first = format!("n,,\x01auth=Bearer {}\x01\x01", token.expose());
    let refused = |said: &str| {
        let said = shown(said, &token);
        format!(
            "the broker does not take our token: {said}; check KAFKA_SASL_OAUTHBEARER_TOKEN_FILE {}",
            file.display()
        )
    };
    let reply = say(messenger, OAUTHBEARER, first.into_bytes()).await?;
    let reply = reply.map_err(|said| refused(&said))?;
    if reply.bytes.is_empty() {
        return Ok(reply.lifetime);
    }
    // Why not, as JSON. The broker waits for one byte before it says that it has failed (RFC 7628, section 3.2.3).
    let why = String::from_utf8_lossy(&reply.bytes).into_owned();
    drop(say(messenger, OAUTHBEARER, vec![1]).await);
    Err(refused(&why))
}

/// The file's text without the white space around it. A pipe that nobody writes to holds nobody up but us, and we
/// have a deadline; one without an end is not read to it.
async fn read_token(file: PathBuf) -> io::Result<Secret> {
    let read = move || {
        let mut text = String::new();
        File::open(file)?.take(TOKEN_LEN_MAX as u64 + 2).read_to_string(&mut text)?;
        Ok(Secret::new(text.trim()))
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// Tells the broker what comes.
async fn handshake<RW>(
    messenger: &Messenger<RW>,
    mechanism: &str,
    secret: &Secret,
) -> Result<(), String>
where
    RW: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = SaslHandshakeRequest::new(mechanism);
    let offer = messenger.request(request).await.map_err(|e| lost(mechanism, &e))?;
    let Some(error) = offer.error_code else { return Ok(()) };
    let names: Vec<_> =
        offer.mechanisms.0.unwrap_or_default().into_iter().map(|name| name.0).collect();
    Err(match error {
        Code::UnsupportedSaslMechanism if !names.is_empty() => format!(
            "the listener does not offer {mechanism}, but {}; set KAFKA_SASL_MECHANISM",
            shown(&names.join(", "), secret)
        ),
        error => format!("log-in by {mechanism}: {error}; set KAFKA_SASL_MECHANISM"),
    })
}

/// What a broker answers to a message of ours that it takes.
struct Reply {
    bytes: Vec<u8>,
    /// How long the connection may live from now on.
    lifetime: Option<Duration>,
}

/// Sends one message. Inside is what the broker says if it refuses us, outside what has become of the
/// connection.
async fn say<RW>(
    messenger: &Messenger<RW>,
    mechanism: &str,
    message: Vec<u8>,
) -> Result<Result<Reply, String>, String>
where
    RW: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = SaslAuthenticateRequest(message);
    let answer = messenger.request(request).await.map_err(|e| lost(mechanism, &e))?;
    if let Some(error) = answer.error_code {
        let said = answer.error_message.0.filter(|said| !said.is_empty());
        return Ok(Err(said.unwrap_or_else(|| error.to_string())));
    }
    let lifetime = answer.session_lifetime_ms.and_then(|ms| u64::try_from(ms.0).ok());
    let lifetime = lifetime.filter(|ms| *ms > 0).map(Duration::from_millis);
    Ok(Ok(Reply { bytes: answer.auth_bytes.0, lifetime }))
}

fn lost(mechanism: &str, error: &RequestError) -> String {
    let hint = "does this listener want SASL, and this mechanism?";
    format!("log-in by {mechanism}: {} ({hint})", describe(error))
}

/// A broker's text as it may be logged: on one line, not endless, and without our secret, which an honest
/// broker knows and any other may have been told.
fn shown(said: &str, secret: &Secret) -> String {
    if said.contains(secret.expose()) {
        return "(a text with the password in it)".to_owned();
    }
    let mut shown: String =
        said.chars().take(SHOWN_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if shown.len() < said.len() {
        shown.push_str("...");
    }
    shown
}

/// Whether a SCRAM message of the broker's has the form it must have. rsasl looks at the first two bytes of
/// each part without looking whether they are there, and hashes as often as it is told.
fn check(challenge: &[u8]) -> Result<(), &'static str> {
    if challenge.len() > CHALLENGE_LEN_MAX {
        return Err("the broker's message is too long");
    }
    let text = std::str::from_utf8(challenge).map_err(|_| "the broker's message is not text")?;
    let parts: Vec<&str> = text.split(',').collect();
    let is_attribute =
        |part: &&str| matches!(part.as_bytes(), [name, b'=', ..] if name.is_ascii_alphabetic());
    if !parts.iter().all(is_attribute) {
        return Err("the broker's message is not one of SCRAM");
    }
    match parts.as_slice() {
        [first, ..] if first.starts_with("v=") || first.starts_with("e=") => Ok(()),
        [_, _, iterations, ..] => match iterations.strip_prefix("i=").map(str::parse) {
            _ if !matches!(parts.get(1), Some(salt) if salt.len() > 2 && salt.starts_with("s=")) => {
                Err("the broker's message has no salt")
            }
            Some(Ok(iterations)) if ITERATIONS.contains(&iterations) => Ok(()),
            Some(_) => Err("the broker's iteration count is not a number from 4096 to 100000"),
            None => Err("the broker's message has no iteration count"),
        },
        _ => Err("the broker's message is incomplete"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_would_make_us_panic_or_hash_for_ever_are_refused() {
        for honest in ["r=abc,s=c2FsdA==,i=4096", "v=c2ln", "e=other-error", "r=a,s=b,i=100000,x=y"]
        {
            assert_eq!(check(honest.as_bytes()), Ok(()), "{honest}");
        }
        for wrong in [
            "",
            "r",
            "r=abc",
            "r=abc,s",
            "r=abc,s=",
            "r=abc,s=c2FsdA==,i",
            "r=abc,s=c2FsdA==,i=",
            "r=abc,s=c2FsdA==,i=0",
            "r=abc,s=c2FsdA==,i=-1",
            "r=abc,s=c2FsdA==,i=4095",
            "r=abc,s=c2FsdA==,i=100001",
            "r=abc,s=,i=4096",
            "r=abc,i=4096,s=c2FsdA==",
            "r=abc,s=c2FsdA==,i=99999999999",
            "r=abc,s=c2FsdA==,x=1",
            ",,,",
            "v",
        ] {
            assert!(check(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(check(&[b'r'; 5000]).is_err());
        assert!(check(b"r=\xff,s=a,i=1").is_err());
    }
}
