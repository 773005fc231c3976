//! From a connected socket to a session that waits for queries, without the socket.
//!
//! <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP>
//!
//! ```text
//!           ┌──────────────────────────── AuthenticationOk (trust) ───────────────────────────┐
//!           │                                                                                 ▼
//!  start ─▶ Asking ── cleartext, md5 ──▶ PasswordSent ───────── AuthenticationOk ──────▶ Authenticated
//!           │                                                                                 ▲  │
//!           └─ SASL ▶ ScramFirst ─ SASLContinue ▶ ScramFinal ─ SASLFinal ▶ ServerVerified ─ Ok ┘  │
//!                                                                               ReadyForQuery    ▼
//!           ErrorResponse, or anything that no arrow shows: Failed                             Ready
//! ```
//!
//! `NoticeResponse` and `ParameterStatus` may come anywhere and change nothing. `NegotiateProtocolVersion`
//! may come once, while asking.

use alloc::{borrow::ToOwned, string::String, vec::Vec};
use core::{fmt, mem};

use bytes::BytesMut;

use crate::{
    auth::{
        channel_binding::{Channel, ChannelBinding},
        md5_password,
        scram::{self, Binding, ClientFinal, ClientFirst, ScramError, ServerVerified},
    },
    backend::{Authentication, Message, ServerError, Strings},
    error::EncodeError,
    frontend,
};

#[doc(no_inline)]
pub use crate::auth::{AuthMethod, AuthMethods};

/// The longest body, in bytes, that a server has reason to send during a handshake, for
/// [`Frame::decode`](crate::Frame::decode). It is libpq's limit for an error message; whoever is at the
/// other end has not proven anything yet, and must not choose how much we buffer.
pub const BODY_LEN_MAX: usize = 30_000;

/// A server reports 15 or so settings; more distinct ones than this are an attack on our memory.
const PARAMETERS_MAX: usize = 100;

/// The longest of them are a few kilobytes, such as a `search_path`; all of them together are kept up to so
/// many bytes.
const PARAMETERS_LEN_MAX: usize = 256 * 1024;

/// A server offers one to three SASL mechanisms; no more than this many are shown in an error.
const MECHANISMS_SHOWN_MAX: usize = 5;

/// The longest name from a server that has proven nothing, in bytes, that is shown in an error. SASL's
/// have up to 20, options' a few more.
const NAME_SHOWN_MAX: usize = 64;

/// The protocol to ask for.
///
/// Each version includes the one before. PostgreSQL before 18 answers a request for 3.2 with 3.0; some
/// poolers and proxies end the connection instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum ProtocolVersion {
    /// What every server since 7.4 speaks.
    #[default]
    V3_0,
    /// From PostgreSQL 18 on: [keys for cancelling](BackendKey) that cannot be guessed.
    V3_2,
}

impl ProtocolVersion {
    /// As it stands on the wire, with the major version in the upper 16 bits.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::V3_0 => frontend::PROTOCOL_3_0,
            Self::V3_2 => frontend::PROTOCOL_3_2,
        }
    }
}

/// Who wants which session.
#[derive(Debug, Clone, Copy, Default)]
pub struct Startup<'a> {
    /// The role.
    pub user: &'a str,
    /// The database; the role's name if there is none.
    pub database: Option<&'a str>,
    /// Settings for the session, such as `("replication", "database")`.
    pub params: &'a [(&'a str, &'a str)],
    /// The protocol to ask for; [`Session::protocol`] is what the server agreed to.
    pub protocol: ProtocolVersion,
}

/// What the client is able and willing to show.
///
/// By default: no password, trust and SCRAM, and a binding where one is possible; on a socket without TLS.
#[derive(Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// The password. With the feature `saslprep` it is prepared (RFC 4013) where SCRAM needs it; without,
    /// the caller must have done that. For ASCII there is nothing to prepare.
    pub password: Option<&'a [u8]>,
    /// The methods that the server may choose from.
    pub allow: AuthMethods,
    /// Whether the log-in must be bound to the TLS connection.
    pub channel_binding: ChannelBinding,
    /// What carries the session.
    pub channel: Channel<'a>,
}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("allow", &self.allow)
            .field("channel_binding", &self.channel_binding)
            .finish_non_exhaustive()
    }
}

/// How far a handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Send what is in the buffer, if anything, and hand in the next message.
    Waiting,
    /// The server waits for a query.
    Ready,
}

/// What the server said about the session while it was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Session {
    /// Settings and their values, in the order first reported. What is not UTF-8 is replaced.
    pub parameters: Vec<(String, String)>,
    /// For cancel requests; a server need not send one.
    pub backend_key: Option<BackendKey>,
    /// How many rounds of hashing SCRAM took, if it was used. Fewer than 4,096 are worth a warning.
    pub scram_iterations: Option<u32>,
    /// Whether both sides have proven that they see the same certificate.
    pub channel_bound: bool,
    /// The protocol that the session is in.
    pub protocol: ProtocolVersion,
}

/// What a [cancel request](frontend::cancel_request) must present.
#[derive(Clone, PartialEq, Eq)]
pub struct BackendKey {
    /// The process that serves the session.
    pub process_id: u32,
    /// Whoever knows it can interrupt the session. 4 bytes from PostgreSQL in protocol 3.0, 32 in 3.2, and
    /// up to 256 from others.
    pub secret_key: Vec<u8>,
}

impl Session {
    /// The value of a setting, such as `server_version`.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl fmt::Debug for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendKey").field("process_id", &self.process_id).finish_non_exhaustive()
    }
}

/// The machine: messages of the server in, bytes for the server out.
///
/// Hand in every message in the order it came. After an error it accepts nothing more; the connection
/// must be closed.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    session: Session,
}

enum State {
    /// The start-up message is out; the server says how it wants to be convinced.
    Asking(Secrets),
    /// A password is out; the server says whether it is the right one.
    PasswordSent,
    ScramFirst(ClientFirst),
    ScramFinal(ClientFinal),
    ServerVerified(ServerVerified),
    /// The server is satisfied; it tells about the session.
    Authenticated,
    Ready,
    Failed,
}

struct Secrets {
    user: String,
    password: Option<Vec<u8>>,
    allow: AuthMethods,
    nonce: String,
    channel_binding: ChannelBinding,
    tls: bool,
    server_end_point: Option<Vec<u8>>,
    negotiated: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl State {
    const fn name(&self) -> &'static str {
        match self {
            Self::Asking(_) => "waiting for the authentication method",
            Self::PasswordSent => "waiting for the verdict on the password",
            Self::ScramFirst(_) => "waiting for the SCRAM challenge",
            Self::ScramFinal(_) => "waiting for the server's SCRAM proof",
            Self::ServerVerified(_) => "waiting for the end of SCRAM",
            Self::Authenticated => "waiting for the session",
            Self::Ready => "done",
            Self::Failed => "failed",
        }
    }
}

impl Handshake {
    /// Appends the start-up message to `out`. On an encrypted connection, that is after TLS is up.
    ///
    /// `nonce` is for SCRAM: see [`ClientFirst::new`]. It is used once; draw another for another
    /// handshake.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Encode`] if a name or value holds a zero byte, and [`HandshakeError::Unbound`] if
    /// a binding is required that this connection cannot have. Nothing has been sent.
    pub fn start(
        startup: Startup<'_>,
        credentials: Credentials<'_>,
        nonce: String,
        out: &mut BytesMut,
    ) -> Result<Self, HandshakeError> {
        let Startup { user, database, params, protocol } = startup;
        let Credentials { password, allow, channel_binding, channel } = credentials;
        let (tls, server_end_point) = match channel {
            Channel::Plain => (false, None),
            Channel::Tls { server_end_point } => (true, server_end_point.map(<[u8]>::to_owned)),
        };
        if channel_binding == ChannelBinding::Require && server_end_point.is_none() {
            let why = if tls { Unbound::NoHash } else { Unbound::NoTls };
            return Err(HandshakeError::Unbound(why));
        }
        let database = database.map(|name| ("database", name));
        let who = core::iter::once(("user", user)).chain(database);
        frontend::startup_at(protocol.number(), who.chain(params.iter().copied()), out)?;
        let secrets = Secrets {
            user: user.to_owned(),
            password: password.map(<[u8]>::to_owned),
            allow,
            nonce,
            channel_binding,
            tls,
            server_end_point,
            negotiated: false,
        };
        let session = Session { protocol, ..Session::default() };
        Ok(Self { state: State::Asking(secrets), session })
    }

    /// Takes one message of the server and appends the answer, if there is one, to `out`.
    ///
    /// One step of SCRAM hashes as often as the server asks for, up to [`scram::ITERATIONS_MAX`] times:
    /// about a millisecond at PostgreSQL's default.
    ///
    /// # Errors
    ///
    /// If the server refuses, misbehaves, or asks for what is not allowed.
    pub fn handle(
        &mut self,
        message: Message<'_>,
        out: &mut BytesMut,
    ) -> Result<Progress, HandshakeError> {
        // Whatever fails below leaves `Failed` behind.
        let state = mem::replace(&mut self.state, State::Failed);
        self.state = match (state, message) {
            (State::Failed, message) => return Err(unexpected(&State::Failed, &message)),
            (_, Message::ErrorResponse(fields)) => {
                return Err(HandshakeError::Server(fields.to_error()));
            }
            (state, Message::NoticeResponse(_)) => state,
            (state, Message::ParameterStatus { name, value }) => {
                self.session.set_parameter(name, value)?;
                state
            }
            (
                State::Asking(secrets),
                Message::NegotiateProtocolVersion { version, unrecognized },
            ) if !secrets.negotiated => {
                self.session.protocol = agree(self.session.protocol, version, unrecognized)?;
                State::Asking(Secrets { negotiated: true, ..secrets })
            }

            (State::Asking(secrets), Message::Authentication(step)) => secrets.answer(step, out)?,
            (State::PasswordSent, Message::Authentication(Authentication::Ok)) => {
                State::Authenticated
            }
            (
                State::ScramFirst(step),
                Message::Authentication(Authentication::SaslContinue(data)),
            ) => {
                let step = step.server_first(data)?;
                frontend::sasl_response(step.message(), out)?;
                self.session.scram_iterations = Some(step.iterations());
                State::ScramFinal(step)
            }
            (State::ScramFinal(step), Message::Authentication(Authentication::SaslFinal(data))) => {
                let bound = step.is_bound();
                let verified = step.server_final(data)?;
                self.session.channel_bound = bound;
                State::ServerVerified(verified)
            }
            (State::ServerVerified(_), Message::Authentication(Authentication::Ok)) => {
                State::Authenticated
            }
            // A server without the password would like us to believe it all the same.
            (
                State::ScramFirst(_) | State::ScramFinal(_),
                Message::Authentication(Authentication::Ok),
            ) => {
                return Err(HandshakeError::ProofSkipped);
            }

            (State::Authenticated, Message::BackendKeyData { process_id, secret_key }) => {
                self.session.backend_key =
                    Some(BackendKey { process_id, secret_key: secret_key.to_owned() });
                State::Authenticated
            }
            (State::Authenticated, Message::ReadyForQuery(_)) => State::Ready,
            (state, message) => return Err(unexpected(&state, &message)),
        };
        Ok(if matches!(self.state, State::Ready) { Progress::Ready } else { Progress::Waiting })
    }

    /// What the server said about the session: all of it after [`Progress::Ready`].
    #[must_use]
    pub fn into_session(self) -> Session {
        self.session
    }
}

impl Secrets {
    /// Gives the server what it asks for, if it may have it.
    fn answer(self, step: Authentication<'_>, out: &mut BytesMut) -> Result<State, HandshakeError> {
        let (method, allowed) = match step {
            Authentication::Ok => (AuthMethod::Trust, self.allow.trust),
            Authentication::CleartextPassword => (AuthMethod::Cleartext, self.allow.cleartext),
            Authentication::Md5Password { .. } => (AuthMethod::Md5, self.allow.md5),
            Authentication::Sasl(_) => (AuthMethod::Scram, self.allow.scram),
            Authentication::Other { code, .. } => {
                return Err(HandshakeError::MethodUnknown { code });
            }
            Authentication::SaslContinue(_) | Authentication::SaslFinal(_) => {
                return Err(HandshakeError::Unexpected {
                    message: "SASL data",
                    state: "waiting for the authentication method",
                });
            }
        };
        if !allowed {
            return Err(HandshakeError::MethodRefused { method });
        }
        if method != AuthMethod::Scram && self.channel_binding == ChannelBinding::Require {
            return Err(HandshakeError::Unbound(Unbound::Method(method)));
        }
        let password = || self.password.as_deref().ok_or(HandshakeError::PasswordNeeded { method });
        match step {
            Authentication::CleartextPassword => {
                frontend::password(password()?, out)?;
                Ok(State::PasswordSent)
            }
            Authentication::Md5Password { salt } => {
                let answer = md5_password(self.user.as_bytes(), password()?, salt);
                frontend::password(answer.as_bytes(), out)?;
                Ok(State::PasswordSent)
            }
            Authentication::Sasl(mechanisms) => {
                let binding = self.binding(mechanisms)?;
                let password = password()?;
                // The server's copy was prepared when it was stored; md5 and cleartext take it as it is.
                #[cfg(feature = "saslprep")]
                let password = &*crate::auth::saslprep(password);
                let first = ClientFirst::bound(password, &self.nonce, binding)?;
                frontend::sasl_initial_response(first.mechanism(), first.message(), out)?;
                Ok(State::ScramFirst(first))
            }
            _ => Ok(State::Authenticated),
        }
    }

    /// What to say of channel binding to a server that offers these mechanisms.
    fn binding(&self, mechanisms: Strings<'_>) -> Result<Binding<'_>, HandshakeError> {
        let offers = |mechanism| mechanisms.iter().any(|offered| offered == mechanism);
        // It cannot be: a server offers PLUS only over TLS. Somebody in between has taken TLS away.
        if offers(scram::MECHANISM_PLUS) && !self.tls {
            return Err(HandshakeError::PlusWithoutTls);
        }
        let end_point = self.server_end_point.as_deref();
        let binding = match end_point.filter(|_| self.channel_binding != ChannelBinding::Disable) {
            Some(hash) if offers(scram::MECHANISM_PLUS) => Binding::ServerEndPoint(hash),
            Some(_) => Binding::NotOffered,
            // Never `y`, although there is TLS: a server that offers PLUS refuses it.
            None => Binding::None,
        };
        match binding {
            Binding::ServerEndPoint(_) => Ok(binding),
            _ if !offers(scram::MECHANISM) => {
                Err(HandshakeError::MechanismsUnknown { offered: names(mechanisms) })
            }
            _ if self.channel_binding == ChannelBinding::Require => {
                Err(HandshakeError::Unbound(Unbound::Method(AuthMethod::Scram)))
            }
            _ => Ok(binding),
        }
    }
}

/// The protocol of a session for which `asked` was asked and this was the answer.
fn agree(
    asked: ProtocolVersion,
    version: u32,
    unrecognized: Strings<'_>,
) -> Result<ProtocolVersion, HandshakeError> {
    // None is ever asked for, unless by the caller's own parameters, which then are to go.
    if let Some(option) = unrecognized.iter().next() {
        let option = option.chars().filter(char::is_ascii_graphic).take(NAME_SHOWN_MAX).collect();
        return Err(HandshakeError::OptionUnknown { option });
    }
    // Below 3.0 is another protocol, 3.1 never was, and an answer that changes nothing need not be.
    let agreed = [ProtocolVersion::V3_0, ProtocolVersion::V3_2];
    let agreed = agreed.into_iter().find(|known| known.number() == version && *known < asked);
    agreed.ok_or(HandshakeError::ProtocolVersion { version, asked })
}

/// The mechanisms as an error may show them: few, and as RFC 4422 spells them, whatever they are.
fn names(mechanisms: Strings<'_>) -> String {
    let is_name = |name: &&str| {
        name.len() <= NAME_SHOWN_MAX && name.bytes().all(|c| c.is_ascii_graphic() && c != b',')
    };
    let names: Vec<_> = mechanisms.iter().filter(is_name).take(MECHANISMS_SHOWN_MAX).collect();
    names.join(", ")
}

impl Session {
    pub(crate) fn set_parameter(&mut self, name: &str, value: &[u8]) -> Result<(), HandshakeError> {
        // What is not UTF-8 grows threefold when it is replaced.
        if value.len() > PARAMETERS_LEN_MAX {
            return Err(HandshakeError::TooManyParameters);
        }
        let value = String::from_utf8_lossy(value);
        let others = self.parameters.iter().filter(|(known, _)| known != name);
        let len: usize = others.map(|(name, value)| name.len() + value.len()).sum();
        if len.saturating_add(name.len()).saturating_add(value.len()) > PARAMETERS_LEN_MAX {
            return Err(HandshakeError::TooManyParameters);
        }
        let value = value.into_owned();
        if let Some((_, known)) = self.parameters.iter_mut().find(|(known, _)| known == name) {
            *known = value;
        } else if self.parameters.len() < PARAMETERS_MAX {
            self.parameters.push((name.to_owned(), value));
        } else {
            return Err(HandshakeError::TooManyParameters);
        }
        Ok(())
    }
}

fn unexpected(state: &State, message: &Message<'_>) -> HandshakeError {
    HandshakeError::Unexpected { message: message.name(), state: state.name() }
}

/// Why a session could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The server says no, and why.
    Server(ServerError),
    /// The server asks for a method that is not among the [allowed](AuthMethods).
    MethodRefused {
        /// What it asks for.
        method: AuthMethod,
    },
    /// The server asks for a method that this crate does not have.
    MethodUnknown {
        /// Its number on the wire.
        code: u32,
    },
    /// The server offers no SASL mechanism that this crate has.
    MechanismsUnknown {
        /// What it offers: the first few that are names.
        offered: String,
    },
    /// The server asks for a password and there is none.
    PasswordNeeded {
        /// The method that needs it.
        method: AuthMethod,
    },
    /// SCRAM failed.
    Scram(ScramError),
    /// The server ended SCRAM without proving that it knows the password.
    ProofSkipped,
    /// The log-in would not be bound to its TLS connection, and must be.
    Unbound(Unbound),
    /// The server offers SCRAM-SHA-256-PLUS and there is no TLS.
    PlusWithoutTls,
    /// The server answers with a version of the protocol that it cannot mean.
    ProtocolVersion {
        /// Its answer, with the major version in the upper 16 bits.
        version: u32,
        /// What it was asked for.
        asked: ProtocolVersion,
    },
    /// The server does not know a protocol option.
    OptionUnknown {
        /// The option's name, its first 64 printable characters.
        option: String,
    },
    /// The server reports more or longer settings than any real one has.
    TooManyParameters,
    /// The server sent what has no place here.
    Unexpected {
        /// What it sent.
        message: &'static str,
        /// What the handshake was doing.
        state: &'static str,
    },
    /// A name or a password cannot be sent.
    Encode(EncodeError),
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(error) => write!(f, "the server refused the session: {error}"),
            Self::MethodRefused { method: AuthMethod::Trust } => f.write_str(
                "the server asks for no authentication, which is not allowed here: \
                 change pg_hba.conf or allow the method none",
            ),
            Self::MethodRefused { method: method @ (AuthMethod::Cleartext | AuthMethod::Md5) } => {
                write!(
                    f,
                    "the server asks for the password by the method {method}, which shows it to whoever listens: \
                 let pg_hba.conf say scram-sha-256, use verified TLS, or allow the method"
                )
            }
            Self::MethodRefused { method } => {
                write!(
                    f,
                    "the server asks for the method {method}, which is not allowed here: allow it"
                )
            }
            Self::MethodUnknown { code } => write!(
                f,
                "the server asks for authentication method {code}, which is not supported: \
                 let pg_hba.conf say scram-sha-256"
            ),
            Self::MechanismsUnknown { offered } => write!(
                f,
                "the server offers only SASL mechanisms that are not supported ({offered}): \
                 let pg_hba.conf say scram-sha-256"
            ),
            Self::PasswordNeeded { method } => {
                write!(
                    f,
                    "the server asks for a password (method {method}) and none was given: set one"
                )
            }
            Self::Scram(_) => f.write_str("SCRAM authentication failed"),
            Self::ProofSkipped => f.write_str(
                "the server ended authentication without proving that it knows the password; \
                 it may be an impostor: check host and TLS",
            ),
            Self::Unbound(unbound) => write!(f, "channel binding is required, and {unbound}"),
            Self::PlusWithoutTls => f.write_str(
                "the server offers SCRAM-SHA-256-PLUS, which it does only over TLS, and this connection has \
                 none; somebody may be in between: check host and TLS",
            ),
            Self::ProtocolVersion { version, asked } => write!(
                f,
                "the server was asked for protocol {} and answers {}.{}, which it cannot mean: is this PostgreSQL?",
                match asked {
                    ProtocolVersion::V3_0 => "3.0",
                    ProtocolVersion::V3_2 => "3.2",
                },
                version >> 16,
                version & 0xffff
            ),
            Self::OptionUnknown { option } => {
                write!(f, "the server does not know the protocol option {option}: do not ask for it")
            }
            Self::TooManyParameters => {
                write!(
                    f,
                    "the server reports more than {PARAMETERS_MAX} settings, or more than \
                     {PARAMETERS_LEN_MAX} bytes of them: is this PostgreSQL?"
                )
            }
            Self::Unexpected { message, state } => {
                write!(f, "the server sent {message} while {state}: is this PostgreSQL?")
            }
            Self::Encode(_) => f.write_str("the login cannot be sent"),
        }
    }
}

/// Why a log-in would not be bound to its TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unbound {
    /// The connection has no TLS.
    NoTls,
    /// No hash is defined for the server's certificate.
    NoHash,
    /// The server chooses this method; if it is SCRAM, it does not offer SCRAM-SHA-256-PLUS.
    Method(AuthMethod),
}

impl fmt::Display for Unbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTls => f.write_str("this connection has no TLS: let sslmode require it"),
            Self::NoHash => f.write_str(
                "no hash is defined for the server's certificate (Ed25519 and Ed448 have none): \
                 give it one with ECDSA or RSA",
            ),
            Self::Method(AuthMethod::Scram) => f.write_str(
                "the server does not offer SCRAM-SHA-256-PLUS; somebody may be in between: check host and TLS",
            ),
            Self::Method(method) => write!(
                f,
                "the server asks for the method {method}, which has none: let pg_hba.conf say scram-sha-256"
            ),
        }
    }
}

impl core::error::Error for HandshakeError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Scram(error) => Some(error),
            Self::Encode(error) => Some(error),
            // A server's error is in the text: it is the point of the message.
            _ => None,
        }
    }
}

impl From<ScramError> for HandshakeError {
    fn from(error: ScramError) -> Self {
        Self::Scram(error)
    }
}

impl From<EncodeError> for HandshakeError {
    fn from(error: EncodeError) -> Self {
        Self::Encode(error)
    }
}
