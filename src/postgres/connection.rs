//! A logged-in replication connection: queries first, then the stream.

use super::dial::{DialError, Stream, dial};
use super::identify::ANSWER_MAX;
use crate::config::{Host, PostgresConfig, TargetSessionAttrs};
use crate::relay::Reading;
use bytes::{Buf as _, BytesMut};
use factlib_protocol::backend::ServerError;
use factlib_protocol::feedback::FeedbackPolicy;
use factlib_protocol::handshake::{Credentials, HandshakeError, Startup};
use factlib_protocol::session::{Event, Now, Session, SessionError};
use factlib_protocol::{DecodeError, Timestamp};
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// The session ends for us when the stream begins: the engine takes that apart itself. Before it, no
/// clock matters.
const NO_CLOCK: Now<Duration> = Now { at: Duration::ZERO, clock: Timestamp(0) };

/// How long the end of a stream may take; it takes a round trip.
const PARTING_MAX: Duration = Duration::from_secs(1);

/// How much is asked of the socket at once while streaming.
const READ_BYTES: usize = 1024 * 1024;

/// Room below which the receive buffer is made larger again.
const READ_BYTES_MIN: usize = 128 * 1024;

/// Why there is no connection, or no answer on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
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
    Io(#[from] io::Error),
    /// The server closed the connection.
    #[error("PostgreSQL closed the connection")]
    Closed,
    /// The server let us in and then said nothing.
    #[error("PostgreSQL let us in and has not answered since")]
    Silent,
    /// Logging in failed.
    #[error("{0}")]
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
    fn is_the_same_everywhere(&self) -> bool {
        match self {
            Self::Login(HandshakeError::Server(error)) => error.code.class() == "28",
            Self::Login(_) => true,
            _ => false,
        }
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

/// One row of an answer: the text of each column, or NULL.
pub(super) type Row = Vec<Option<String>>;

/// A connection to a walsender, logged in.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    /// Until the stream begins.
    session: Session<Duration>,
    /// What came behind the stream's beginning.
    received: BytesMut,
    /// While streaming, what is to be sent.
    send: BytesMut,
}

/// What [`Connection::turn`] did.
#[derive(Debug)]
pub enum Turn {
    /// So many bytes came; whether that was all there was at the moment.
    Received {
        /// Number of bytes.
        bytes: usize,
        /// The socket has nothing more right now.
        drained: bool,
    },
    /// The connection ended.
    Ended(Failure),
}

impl Connection {
    /// Connects to the first host that lets us in as `config` says, for logical replication.
    ///
    /// # Errors
    ///
    /// The failure at the last host tried. A refused password is not tried at the next host: it
    /// would be the same, as libpq reasons.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the socket.
    pub async fn connect(config: &PostgresConfig) -> Result<Self, Failure> {
        let mut last = Failure::Closed;
        for host in &config.hosts {
            let attempt = Self::connect_to(host, config);
            let result = match config.connect_timeout {
                Some(limit) => timeout(limit, attempt)
                    .await
                    .unwrap_or_else(|_| Err(Failure::TimedOut { host: host.to_string() })),
                None => attempt.await,
            };
            match result {
                Err(failure) if failure.is_the_same_everywhere() => return Err(failure),
                Err(failure) => last = failure,
                Ok(connection) => return Ok(connection),
            }
        }
        Err(last)
    }

    async fn connect_to(host: &Host, config: &PostgresConfig) -> Result<Self, Failure> {
        let stream = dial(host, config).await?;
        let mut connection = Self {
            stream,
            session: Session::new(0, FeedbackPolicy::default()),
            received: BytesMut::new(),
            send: BytesMut::new(),
        };
        connection.log_in(config).await?;
        let session = connection.session.about();
        // Servers from 14 on report both at log-in.
        let is_on = |name| session.parameter(name) == Some("on");
        let standby = is_on("in_hot_standby");
        let will_do = match config.target_session_attrs {
            TargetSessionAttrs::Any => true,
            TargetSessionAttrs::Primary => !standby,
            TargetSessionAttrs::ReadWrite => !standby && !is_on("default_transaction_read_only"),
        };
        match will_do {
            true => Ok(connection),
            false => Err(Failure::Unwanted { host: host.to_string(), standby }),
        }
    }

    async fn log_in(&mut self, config: &PostgresConfig) -> Result<(), Failure> {
        let mut parameters = vec![
            ("replication", "database"),
            ("application_name", config.application_name.as_str()),
            ("client_encoding", "UTF8"),
        ];
        if let Some(options) = &config.options {
            parameters.push(("options", options));
        }
        let credentials = Credentials {
            password: config.password.as_ref().map(|password| password.expose().as_bytes()),
            allow: config.auth,
            ..Credentials::default()
        };
        let startup = Startup {
            user: &config.user,
            database: Some(&config.database),
            params: &parameters,
            ..Startup::default()
        };
        self.session.log_in(startup, credentials, nonce()?)?;
        self.until(|event| matches!(event, Event::LoggedIn).then_some(())).await
    }

    /// Sends a simple query and collects its rows. Only before the stream.
    pub(super) async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Failure> {
        self.session.query(sql)?;
        let mut rows = Vec::new();
        let mut refused = None;
        let ended = self
            .until(|event| match event {
                Event::Row(row) => {
                    let text = |column: Option<&[u8]>| {
                        column.map(|text| String::from_utf8_lossy(text).into_owned())
                    };
                    rows.push(row.columns().map(text).collect());
                    None
                }
                Event::Refused(fields) => {
                    refused = Some(fields.to_error());
                    None
                }
                Event::Finished => Some(()),
                _ => None,
            })
            .await;
        // A server that ends the session says why, and then nothing more.
        match refused {
            Some(error) => Err(Failure::Server(error)),
            None => ended.map(|()| rows),
        }
    }

    /// Sends START_REPLICATION and waits for CopyBothResponse. What came behind it stays in the
    /// buffer for [`Connection::take_received`].
    ///
    /// # Errors
    ///
    /// What the server says, [`Failure::Server`]; or the connection's end.
    pub async fn start_replication(&mut self, command: &str) -> Result<(), Failure> {
        let started = self.started(command);
        timeout(ANSWER_MAX, started).await.unwrap_or(Err(Failure::Silent))
    }

    async fn started(&mut self, command: &str) -> Result<(), Failure> {
        self.session.start_replication(command, NO_CLOCK)?;
        self.until(|event| match event {
            Event::Started => Some(Ok(())),
            Event::Refused(fields) => Some(Err(Failure::Server(fields.to_error()))),
            Event::Finished => Some(Err(Failure::Answer { command: "START_REPLICATION" })),
            _ => None,
        })
        .await??;
        let over = Session::new(0, FeedbackPolicy::default());
        (self.received, self.send) = std::mem::replace(&mut self.session, over).into_buffers();
        Ok(())
    }

    /// Moves bytes until `found` finds in an event what it waits for.
    async fn until<T>(
        &mut self,
        mut found: impl FnMut(Event<'_>) -> Option<T>,
    ) -> Result<T, Failure> {
        loop {
            while let Some(event) = self.session.poll(NO_CLOCK)? {
                if let Some(found) = found(event) {
                    return Ok(found);
                }
            }
            self.stream.write_all_buf(self.session.send_buffer()).await?;
            if self.stream.read_buf(self.session.receive_buffer()).await? == 0 {
                return Err(Failure::Closed);
            }
        }
    }

    /// Moves what was received behind CopyBothResponse to `into`.
    pub fn take_received(&mut self, into: &mut BytesMut) -> usize {
        let received = std::mem::take(&mut self.received);
        into.extend_from_slice(&received);
        received.len()
    }

    /// Queues bytes for the server; [`Connection::turn`] sends them.
    pub fn send(&mut self, bytes: &[u8]) {
        self.send.extend_from_slice(bytes);
    }

    /// Sends what is queued and, unless reading is paused, waits for data and appends it to `into`.
    /// Returns when data came or the connection ended; only sends while paused, and then never
    /// returns by itself unless the connection ends.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is lost if the future is dropped.
    pub async fn turn(&mut self, reading: Reading, into: &mut BytesMut) -> Turn {
        poll_fn(|cx| {
            while !self.send.is_empty() {
                match Pin::new(&mut self.stream).poll_write(cx, &self.send) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Turn::Ended(Failure::Closed)),
                    Poll::Ready(Ok(sent)) => self.send.advance(sent),
                    Poll::Ready(Err(error)) => return Poll::Ready(Turn::Ended(error.into())),
                    Poll::Pending => break,
                }
            }
            if reading != Reading::Now {
                return Poll::Pending;
            }
            if into.capacity() - into.len() < READ_BYTES_MIN {
                into.reserve(READ_BYTES);
            }
            let room = into.capacity() - into.len();
            let read = std::pin::pin!(self.stream.read_buf(into));
            read.poll(cx).map(|result| match result {
                Ok(0) => Turn::Ended(Failure::Closed),
                Ok(bytes) => Turn::Received { bytes, drained: bytes < room },
                Err(error) => Turn::Ended(error.into()),
            })
        })
        .await
    }

    /// Closes at the end of a stream that was ended in good order: sends what is queued, and reads to
    /// the server's own end. Closing with data unread would reset the connection, and the last status
    /// could be lost with it.
    pub async fn part(mut self) {
        let parting = async {
            self.stream.write_all_buf(&mut self.send).await.ok()?;
            self.stream.shutdown().await.ok()?;
            let mut unread = BytesMut::with_capacity(64 * 1024);
            while self.stream.read_buf(&mut unread).await.ok()? > 0 {
                unread.clear();
            }
            Some(())
        };
        // Whatever goes wrong now, the status was answered, or the facts come again.
        let _ = timeout(PARTING_MAX, parting).await;
    }

    /// Closes, after sending what is queued as far as that does not block.
    pub fn hang_up(mut self) {
        use std::task::{Context, Waker};
        let mut cx = Context::from_waker(Waker::noop());
        while !self.send.is_empty() {
            match Pin::new(&mut self.stream).poll_write(&mut cx, &self.send) {
                Poll::Ready(Ok(sent)) if sent > 0 => self.send.advance(sent),
                _ => return,
            }
        }
    }
}

/// 18 random bytes in base64, as libpq.
fn nonce() -> Result<String, Failure> {
    use base64::Engine as _;
    let mut bytes = [0_u8; 18];
    getrandom::fill(&mut bytes).map_err(|error| Failure::Random(error.to_string()))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}
