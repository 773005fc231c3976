//! Why there is no connection, or no answer on it.

use super::dial::DialError;
use super::password::PasswordFailure;
use super::tls::{self, TlsFailure};
use crate::relay::gone::log_in_advice;
use factlib_protocol::DecodeError;
use factlib_protocol::backend::{ServerError, SqlState};
use factlib_protocol::handshake::HandshakeError;
use factlib_protocol::session::SessionError;
use std::io;

/// Why there is no connection, or no answer on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// There is no password to log in with.
    #[error("{0}")]
    Password(#[from] PasswordFailure),
    /// A name that is not known.
    #[error("{0}")]
    UnknownHost(String),
    /// No socket.
    #[error("{0}")]
    Dial(String),
    /// Dialling and logging in took longer than `connect_timeout`.
    #[error("{host} did not let us in within connect_timeout")]
    TimedOut {
        /// Host and port.
        host: String,
    },
    /// The connection is not under TLS.
    #[error("{host}: {failure}")]
    Tls {
        /// Host and port.
        host: String,
        /// Why not.
        failure: TlsFailure,
    },
    /// Neither with TLS nor without, as `sslmode` allows both.
    #[error("over TLS: {tls}; in clear text: {clear}")]
    Neither {
        /// With TLS.
        tls: Box<Self>,
        /// Without.
        clear: Box<Self>,
    },
    /// The log-in was refused, and what we log in with is read again at the next attempt.
    #[error("{0}")]
    Renewable(Box<Self>),
    /// The server is not of the kind that `target_session_attrs` asks for.
    #[error("{host} is {}, which target_session_attrs does not want", if *standby { "a standby" } else { "read-only" })]
    Unwanted {
        /// Host and port.
        host: String,
        /// It is a standby; else its sessions are read-only.
        standby: bool,
    },
    /// The connection broke.
    #[error("the connection to PostgreSQL broke: {0}")]
    Io(io::Error),
    /// The other side of TLS does not go on.
    #[error("the connection to PostgreSQL ended: {0}")]
    Alert(String),
    /// The server closed the connection.
    #[error("PostgreSQL closed the connection")]
    Closed,
    /// The server let us in and then said nothing.
    #[error("PostgreSQL let us in and has not answered since")]
    Silent,
    /// Logging in failed.
    #[error("{}", of_login(.0))]
    Login(HandshakeError),
    /// The server refused a command.
    #[error("{0}")]
    Server(ServerError),
    /// What came is not the protocol.
    #[error("what PostgreSQL sent cannot be read: {0}")]
    Protocol(DecodeError),
    /// What came, or what we asked for, has no place.
    #[error("{0}")]
    Session(SessionError),
    /// An answer of another kind than the command has.
    #[error("PostgreSQL answered {command} in a way that is not understood")]
    Answer {
        /// The command.
        command: &'static str,
    },
    /// There is no randomness for the nonce of SCRAM.
    #[error("no random bytes for the log-in: {0}")]
    Random(String),
}

impl Failure {
    /// True for a log-in that no other host would take either: a wrong password, or a method that we
    /// refuse. A server that is starting, stopping or full says nothing of the others.
    pub(super) fn is_the_same_everywhere(&self) -> bool {
        match self {
            Self::Login(HandshakeError::Server(error)) => error.code.class() == "28",
            Self::Login(_) | Self::Random(_) => true,
            Self::Neither { tls, clear } => {
                tls.is_the_same_everywhere() && clear.is_the_same_everywhere()
            }
            _ => false,
        }
    }

    /// True if another address of the same host may do: nobody has answered for the server yet.
    pub(super) fn is_of_the_address(&self) -> bool {
        match self {
            Self::Dial(_) | Self::TimedOut { .. } | Self::Tls { .. } | Self::Io(_) => true,
            Self::Alert(_) | Self::Closed => true,
            Self::Neither { tls, clear } => tls.is_of_the_address() || clear.is_of_the_address(),
            _ => false,
        }
    }

    /// True if the server, the database or the role has as many sessions as it may.
    pub(super) fn is_for_want_of_room(&self) -> bool {
        match self {
            Self::Login(HandshakeError::Server(error)) => {
                error.code == SqlState::TOO_MANY_CONNECTIONS
            }
            Self::Neither { tls, clear } => {
                tls.is_for_want_of_room() || clear.is_for_want_of_room()
            }
            _ => false,
        }
    }

    /// True if it may let us in as an ordinary session: what is missing is a walsender, or REPLICATION.
    pub(super) fn is_of_walsenders(&self) -> bool {
        match self {
            Self::Login(HandshakeError::Server(error)) => {
                let code = error.code;
                code == SqlState::TOO_MANY_CONNECTIONS || code == SqlState::INSUFFICIENT_PRIVILEGE
            }
            Self::Neither { tls, clear } => tls.is_of_walsenders() || clear.is_of_walsenders(),
            _ => false,
        }
    }

    /// True if the server does not let us in for who we are, or for how we come: what `pg_hba.conf` and the
    /// password decide.
    pub(super) fn is_refused_log_in(&self) -> bool {
        match self {
            Self::Login(HandshakeError::Server(error)) => error.code.class() == "28",
            Self::Neither { tls, clear } => tls.is_refused_log_in() || clear.is_refused_log_in(),
            _ => false,
        }
    }
}

/// With what to do about it, if the server says enough for that.
fn of_login(error: &HandshakeError) -> String {
    match error {
        HandshakeError::Server(refusal) => format!("{error}{}", log_in_advice(refusal)),
        _ => error.to_string(),
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Login(error) => Self::Login(error),
            SessionError::Decode(error) => Self::Protocol(error),
            other => Self::Session(other),
        }
    }
}

impl From<DialError> for Failure {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Name { .. } => Self::UnknownHost(error.to_string()),
            DialError::Connect { .. } => Self::Dial(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // In TLS 1.3 a server that does not take our certificate says so after the handshake.
        match tls::describe(&error) {
            Some(words) => Self::Alert(words),
            // A server that ends under TLS does not always say goodbye.
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            None => Self::Io(error),
        }
    }
}
