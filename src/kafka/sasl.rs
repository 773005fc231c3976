//! Who we are, to the broker: SASL PLAIN and SCRAM (KIP-43, KIP-84, KIP-152).
//!
//! The exchange is rsasl's, which rskafka brings along; here are Kafka's requests around it, the limits, and
//! how long the broker lets us stay (KIP-368), which rskafka's own code throws away.

use super::dial::describe;
use crate::config::Secret;
use rsasl::config::SASLConfig;
use rsasl::prelude::{Mechname, SASLClient};
use rskafka::messenger::Messenger;
use rskafka::protocol::messages::{SaslAuthenticateRequest, SaslHandshakeRequest};
use std::fmt;
use std::io::Cursor;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// The most rounds of hashing that a broker may ask for. It picks the number and we do the work: without a
/// limit it could keep us hashing for an hour. Kafka's default is 4,096, and it allows up to 16,384.
const ITERATIONS_MAX: u32 = 1_000_000;

/// No honest message of a broker is longer.
const CHALLENGE_LEN_MAX: usize = 4096;

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
pub struct Sasl {
    /// The mechanism, which the listener must offer.
    pub mechanism: Mechanism,
    /// The user.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// Logs in; how long the broker lets this connection live, if it says.
///
/// Errors are one sentence, without the address.
pub(super) async fn authenticate<RW>(
    messenger: &Messenger<RW>,
    sasl: &Sasl,
) -> Result<Option<Duration>, String>
where
    RW: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Sasl { mechanism, username, password } = sasl;
    let lost = |e| {
        let hint = "does this listener want SASL, and this mechanism?";
        format!("log-in by {mechanism}: {} ({hint})", describe(&e))
    };
    let offered =
        messenger.request(SaslHandshakeRequest::new(mechanism.name())).await.map_err(lost)?;
    if let Some(error) = offered.error_code {
        let names: Vec<_> =
            offered.mechanisms.0.unwrap_or_default().into_iter().map(|name| name.0).collect();
        return Err(match names.as_slice() {
            [] => format!("log-in by {mechanism}: {error}: set KAFKA_SASL_MECHANISM"),
            names => format!(
                "the listener does not offer {mechanism}, but {}: set KAFKA_SASL_MECHANISM",
                names.join(", ")
            ),
        });
    }
    let internal = |what: &dyn fmt::Display| format!("log-in by {mechanism}: {what}");
    let config = SASLConfig::with_credentials(None, username.clone(), password.expose().to_owned())
        .map_err(|e| internal(&e))?;
    let name = Mechname::parse(mechanism.name().as_bytes()).map_err(|e| internal(&e))?;
    let mut session = SASLClient::new(config).start_suggested(&[name]).map_err(|e| internal(&e))?;
    let mut challenge: Option<Vec<u8>> = None;
    let mut lifetime = None;
    loop {
        if let Some(challenge) = challenge.as_deref().filter(|_| *mechanism != Mechanism::Plain) {
            check(challenge).map_err(|fault| internal(&fault))?;
        }
        let mut response = Cursor::new(Vec::new());
        // A wrong proof of the broker's ends here.
        let state = session.step(challenge.as_deref(), &mut response).map_err(|e| {
            internal(&format_args!("the broker could not prove that it knows the password: {e}"))
        })?;
        if state.has_sent_message() {
            let request = SaslAuthenticateRequest::new(response.into_inner());
            let answer = messenger.request(request).await.map_err(lost)?;
            if let Some(error) = answer.error_code {
                let said = answer.error_message.0.unwrap_or_else(|| error.to_string());
                return Err(format!(
                    "the broker does not let user {username:?} in by {mechanism}: {said}; check \
                     KAFKA_USERNAME, KAFKA_PASSWORD and KAFKA_SASL_MECHANISM"
                ));
            }
            lifetime = answer.session_lifetime_ms.and_then(|ms| u64::try_from(ms.0).ok());
            challenge = Some(answer.auth_bytes.0);
        }
        if state.is_finished() {
            return Ok(lifetime.filter(|ms| *ms > 0).map(Duration::from_millis));
        }
        if !state.has_sent_message() {
            return Err(internal(&"the broker has not finished"));
        }
    }
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
        [_, _, iterations, ..] => match iterations.strip_prefix("i=").map(str::parse::<u32>) {
            Some(Ok(1..=ITERATIONS_MAX)) => Ok(()),
            Some(_) => Err("the broker asks for too many iterations, or for none"),
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
        for honest in ["r=abc,s=c2FsdA==,i=4096", "v=c2ln", "e=other-error", "r=a,s=b,i=1,x=y"] {
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
            "r=abc,s=c2FsdA==,i=1000001",
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
