//! A client's session, from a connected socket to a replication stream and back, without the socket.
//!
//! <https://www.postgresql.org/docs/current/protocol-flow.html>
//!
//! ```text
//!       request_tls                                 query
//!  New ─────────────▶ AskingTls            ┌───────────────▶ Querying ──────┐
//!   │              N │       │ S           │                                │ Finished
//!   │                ▼       ▼             │ start_replication              │
//!   │          Plaintext   Encrypting    Ready ◀────────────────────────────┤
//!   │ log_in       │           │ log_in    ▲ │                              │ Finished
//!   └──────────▶ LoggingIn ◀───┘           │ └─▶ Starting ─▶ Streaming ─▶ Ended
//!                      └───────────────────┘            Started
//!                           LoggedIn
//! ```
//!
//! The driver moves bytes and reads clocks; it decides nothing:
//!
//! 1. what the socket gives is appended to [`Session::receive_buffer`], at most [`Session::read_max`]
//!    bytes of it;
//! 2. [`Session::poll`] is called until it returns `None`;
//! 3. what stands in [`Session::send_buffer`] is written to the socket, and removed from the buffer as far
//!    as it was;
//! 4. it waits for the socket, at most until [`Session::deadline`], and begins anew.
//!
//! A log-in and a question have no deadline of their own: how long a server may take is the driver's to say.
//!
//! While a stream lasts, the server is told how far the client is ([`Session::confirm`]) and that it lives,
//! as [`Feedback`] says. `examples/` holds two drivers of a page each, with threads and with tokio.

use alloc::{boxed::Box, string::String};
use core::{fmt, mem};

use bytes::{Buf, BytesMut};

use crate::{
    backend::{DataRow, ErrorFields, Message, RowDescription},
    error::{DecodeError, EncodeError},
    feedback::{Feedback, FeedbackPolicy, Moment, Revealed},
    frame::Frame,
    frontend,
    handshake::{self, Credentials, Handshake, HandshakeError, Progress, Startup},
    lsn::{Lsn, Timestamp},
    replication::{self, PrimaryKeepalive, XLogData},
    tls::{self, TlsError},
};

/// The longest body of a message, in bytes, between the log-in and the stream: a command's answer, which
/// takes a few kilobytes, or a row of a catalogue.
pub const ANSWER_LEN_MAX: usize = 1 << 20;

/// The clocks, as the driver has just read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now<I> {
    /// A clock that never goes back.
    pub at: I,
    /// What a calendar says; it is sent to the server, which shows it.
    pub clock: Timestamp,
}

/// What happened, borrowed from the session until it is polled again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// What the server answers to [`Session::request_tls`]. Under [`tls::Answer::Tls`], the driver's TLS
    /// library has the socket now, and then the driver [logs in](Session::log_in); under the other, it logs
    /// in as things are, or hangs up.
    TlsAnswered(tls::Answer),
    /// Logged in. [`Session::about`] says what the server said about itself.
    LoggedIn,
    /// The columns of the rows to come.
    Columns(RowDescription<'a>),
    /// A row of a query's result.
    Row(DataRow<'a>),
    /// One command of a query has ended; its tag, such as `SELECT 1`.
    Completed(&'a str),
    /// The server refuses the command. While a query runs, [`Event::Finished`] follows; a stream that
    /// ends so may be followed by the end of the connection instead.
    Refused(ErrorFields<'a>),
    /// The command, or the stream, has ended: the session takes another.
    Finished,
    /// The stream has begun.
    Started,
    /// A piece of the log, or of what an output plugin makes of it.
    Data(XLogData<'a>),
    /// The server lives; if it asks, it is answered. What committed before `wal_end` was sent: if all of it
    /// is safe, and no transaction is being told, so is `wal_end`, and confirming it lets the server
    /// forget what was not for this client. What is still open then is sent when it commits.
    Keepalive {
        /// What it says.
        keepalive: PrimaryKeepalive,
        /// Whether it reveals that the server wants to stop, and waits for what is not confirmed.
        revealed: Revealed,
    },
    /// Something to tell the user.
    Notice(ErrorFields<'a>),
}

/// The session: bytes and moments in, bytes and events out.
///
/// `I` is a moment of the driver's clock; see [`Moment`].
#[derive(Debug)]
pub struct Session<I> {
    state: State<I>,
    receive: BytesMut,
    send: BytesMut,
    /// How much of the receive buffer the last event borrowed: gone at the next poll.
    taken: usize,
    stream_len_max: usize,
    policy: FeedbackPolicy,
    about: handshake::Session,
    flush: Lsn,
}

#[derive(Debug)]
enum State<I> {
    New,
    /// One byte is awaited.
    AskingTls,
    /// The server has no TLS.
    Plaintext,
    /// The driver's TLS library has the socket.
    Encrypting,
    /// In a box, because it is large and soon over.
    LoggingIn(Box<Handshake>),
    Ready,
    Querying,
    Starting {
        asked_at: I,
    },
    Streaming(Feedback<I>),
    /// We have said that the stream ends; what the server sends until it says so too is dropped.
    Ending,
    /// The stream has ended on both sides; the server says how it went.
    Ended,
    /// We have said that the session ends; what the server still sends is dropped.
    Over,
    Failed,
}

impl<I> State<I> {
    const fn name(&self) -> &'static str {
        match self {
            Self::New => "not logged in",
            Self::AskingTls => "asking for TLS",
            Self::Plaintext => "not logged in, and not encrypted",
            Self::Encrypting => "being encrypted",
            Self::LoggingIn(_) => "logging in",
            Self::Ready => "waiting for a command",
            Self::Querying => "running a query",
            Self::Starting { .. } => "starting a stream",
            Self::Streaming(_) => "streaming",
            Self::Ending => "ending a stream",
            Self::Ended => "waiting for the end of a stream",
            Self::Over => "over",
            Self::Failed => "failed",
        }
    }
}

impl<I: Moment> Session<I> {
    /// A session on a socket that was just connected.
    ///
    /// `stream_len_max`, in bytes, is the longest body of a message that is accepted while a stream
    /// lasts: a logical message can have a gigabyte. A longer one ends the session.
    #[must_use]
    pub fn new(stream_len_max: usize, policy: FeedbackPolicy) -> Self {
        Self {
            state: State::New,
            receive: BytesMut::new(),
            send: BytesMut::new(),
            taken: 0,
            stream_len_max,
            policy,
            about: handshake::Session::default(),
            flush: Lsn::INVALID,
        }
    }

    /// How many bytes the driver may take from the socket now. One while the server's answer to
    /// [`Session::request_tls`] is awaited, because what stands behind that is the TLS library's; none until
    /// that library has the socket and the session [logs in](Session::log_in) through it.
    #[must_use]
    pub const fn read_max(&self) -> usize {
        match self.state {
            State::AskingTls => tls::ANSWER_LEN,
            State::Encrypting => 0,
            _ => usize::MAX,
        }
    }

    /// Where to put what the socket gave, at the end.
    pub fn receive_buffer(&mut self) -> &mut BytesMut {
        self.receive.advance(mem::take(&mut self.taken));
        &mut self.receive
    }

    /// What to write to the socket; [`advance`](Buf::advance) it by what was written.
    pub const fn send_buffer(&mut self) -> &mut BytesMut {
        &mut self.send
    }

    /// When to poll again, if nothing comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<I> {
        match &self.state {
            State::Streaming(feedback) => feedback.due(self.flush),
            _ => None,
        }
    }

    /// What happened next, until `None`: then everything that was received has been seen, and what there
    /// is to say stands in the send buffer.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; the session has failed, and so will every call that follows. The connection must
    /// be closed.
    pub fn poll(&mut self, now: Now<I>) -> Result<Option<Event<'_>>, SessionError> {
        self.receive.advance(mem::take(&mut self.taken));
        match self.state {
            State::Failed => return Err(self.not_now("more")),
            State::Over => self.receive.clear(),
            State::AskingTls => return self.poll_tls(),
            // Nobody has taken it from under a key.
            State::Encrypting if !self.receive.is_empty() => {
                self.state = State::Failed;
                return Err(TlsError::Unencrypted.into());
            }
            _ => {}
        }
        let mut rest: &[u8] = &self.receive;
        loop {
            let body_len_max = match self.state {
                State::Streaming(_) | State::Ending | State::Ended => self.stream_len_max,
                State::New | State::Plaintext | State::LoggingIn(_) => handshake::BODY_LEN_MAX,
                _ => ANSWER_LEN_MAX,
            };
            let stepped = match Frame::decode(rest, body_len_max) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    let len = frame.encoded_len();
                    self.taken += len;
                    rest = rest.get(len..).unwrap_or_default();
                    let Self { state, send, about, policy, .. } = self;
                    Message::decode(frame)
                        .map_err(SessionError::from)
                        .and_then(|message| step(state, message, now, send, about, *policy))
                }
                Err(error) => Err(error.into()),
            };
            match stepped {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(error) => {
                    self.state = State::Failed;
                    return Err(error);
                }
            }
        }
        if let State::Streaming(feedback) = &mut self.state {
            feedback.poll(now.at, now.clock, self.flush, &mut self.send);
        }
        Ok(None)
    }

    fn poll_tls(&mut self) -> Result<Option<Event<'_>>, SessionError> {
        match tls::Answer::read(&self.receive) {
            Ok(None) => Ok(None),
            Ok(Some(answer)) => {
                self.receive.clear();
                self.state = match answer {
                    tls::Answer::Tls => State::Encrypting,
                    tls::Answer::Plaintext => State::Plaintext,
                };
                Ok(Some(Event::TlsAnswered(answer)))
            }
            Err(error) => {
                self.state = State::Failed;
                Err(error.into())
            }
        }
    }

    /// Asks for TLS; [`Event::TlsAnswered`] follows. Not where TLS came first
    /// (`sslnegotiation=direct`): see [`tls::check_alpn`].
    ///
    /// # Errors
    ///
    /// If the session has begun.
    pub fn request_tls(&mut self) -> Result<(), SessionError> {
        let State::New = self.state else { return Err(self.not_now("a request for TLS")) };
        frontend::ssl_request(&mut self.send);
        self.state = State::AskingTls;
        Ok(())
    }

    /// Logs in; [`Event::LoggedIn`] follows. For a stream, `startup` must ask for it: with
    /// `("replication", "database")` for a logical one, `("replication", "true")` for a physical one.
    ///
    /// `nonce` is for SCRAM, drawn anew for each log-in: 18 random bytes in base64, say. One that cannot be
    /// sent is found out when the server asks for SCRAM
    /// ([`ScramError::ClientNonce`](crate::auth::scram::ScramError::ClientNonce)).
    ///
    /// # Errors
    ///
    /// If it is logged in already, or a name or value cannot be sent; or if something has come before, which
    /// ends the session.
    pub fn log_in(
        &mut self,
        startup: Startup<'_>,
        credentials: Credentials<'_>,
        nonce: String,
    ) -> Result<(), SessionError> {
        let (State::New | State::Plaintext | State::Encrypting) = self.state else {
            return Err(self.not_now("logging in"));
        };
        // Whatever is there was not sent under a key, nor asked for.
        if !self.receive_buffer().is_empty() {
            self.state = State::Failed;
            return Err(TlsError::Unencrypted.into());
        }
        let handshake = Handshake::start(startup, credentials, nonce, &mut self.send)?;
        self.state = State::LoggingIn(Box::new(handshake));
        Ok(())
    }

    /// What the server said about the session when it was opened, and since.
    #[must_use]
    pub const fn about(&self) -> &handshake::Session {
        &self.about
    }

    /// Runs SQL, or a command of the replication protocol other than `START_REPLICATION`. Its
    /// rows follow as [`Event::Row`], each up to [`ANSWER_LEN_MAX`], and then [`Event::Finished`]. `COPY` and
    /// `BASE_BACKUP` open a copy, which has no place here: it ends the session.
    ///
    /// # Errors
    ///
    /// If another command runs, or the text holds a zero byte; nothing has been sent.
    pub fn query(&mut self, sql: &str) -> Result<(), SessionError> {
        let State::Ready = self.state else { return Err(self.not_now("a query")) };
        frontend::query(sql, &mut self.send)?;
        self.state = State::Querying;
        Ok(())
    }

    /// Starts a stream: [`Event::Started`] follows, or [`Event::Refused`] and [`Event::Finished`].
    ///
    /// # Errors
    ///
    /// If another command runs, or the text holds a zero byte; nothing has been sent.
    pub fn start_replication(&mut self, command: &str, now: Now<I>) -> Result<(), SessionError> {
        let State::Ready = self.state else { return Err(self.not_now("START_REPLICATION")) };
        frontend::query(command, &mut self.send)?;
        self.flush = Lsn::INVALID;
        self.state = State::Starting { asked_at: now.at };
        Ok(())
    }

    /// Everything before `flush` is safe for good, and the server may forget it: for a logical stream the
    /// end of a commit ([`Commit::end_lsn`](crate::pgoutput::Commit::end_lsn)), the position of a
    /// message that is not transactional, or, when all that was sent is safe, a keepalive's `wal_end`.
    /// Never a number that was computed: what is confirmed is never sent again. (For a physical stream it
    /// is computed: where the last piece ends.) While a [streamed block](crate::pgoutput::StreamStart) or a
    /// transaction is told in part, nothing that came with it. A smaller position than before is ignored.
    pub fn confirm(&mut self, flush: Lsn) {
        self.flush = self.flush.max(flush);
    }

    /// Everything up to `lsn` was read, but is not safe yet: what a status says of `write`. A keepalive's
    /// `wal_end` counts by itself.
    pub fn receive(&mut self, lsn: Lsn) {
        if let State::Streaming(feedback) = &mut self.state {
            feedback.receive(lsn);
        }
    }

    /// What is confirmed next is told without waiting for company.
    pub const fn hurry(&mut self) {
        if let State::Streaming(feedback) = &mut self.state {
            feedback.hurry();
        }
    }

    /// How the conversation about the stream stands, while there is one.
    #[must_use]
    pub const fn feedback(&self) -> Option<&Feedback<I>> {
        match &self.state {
            State::Streaming(feedback) => Some(feedback),
            _ => None,
        }
    }

    /// Tells the server now how far the client is, and asks for an answer. With
    /// [`Feedback::is_confirmed`] a client that leaves knows when the server has read it.
    pub fn tell(&mut self, now: Now<I>) {
        if let State::Streaming(feedback) = &mut self.state {
            feedback.status(now.at, now.clock, self.flush, true, &mut self.send);
        }
    }

    /// Ends the stream; [`Event::Finished`] follows, and the session takes queries again. In the middle of a
    /// transaction the server sends the rest of it first, and that is dropped: a client that leaves for
    /// good had better [terminate](Session::terminate).
    ///
    /// For another logical stream, log in anew: a walsender that has ended one remembers that, and ends
    /// the next as soon as it has begun (seen on 14 to 18).
    ///
    /// # Errors
    ///
    /// If there is no stream.
    pub fn end_stream(&mut self) -> Result<(), SessionError> {
        let State::Streaming(_) = self.state else {
            return Err(self.not_now("the end of a stream"));
        };
        frontend::copy_done(&mut self.send);
        self.state = State::Ending;
        Ok(())
    }

    /// Ends the session: write what is in the send buffer, read to the server's end, and close. Closing
    /// with data unread resets the connection, and what was written last may be lost with it.
    ///
    /// Before the log-in there is nothing to end, and after a failure nothing to say.
    pub fn terminate(&mut self) {
        match self.state {
            State::Failed | State::Over => {}
            State::New | State::Plaintext | State::AskingTls | State::Encrypting => {
                self.state = State::Over;
            }
            _ => {
                frontend::terminate(&mut self.send);
                self.state = State::Over;
            }
        }
    }

    /// The session of [`Event::Started`] as who takes the stream apart alone wants it: what came behind
    /// that message, and what is to be sent.
    #[must_use]
    pub fn into_buffers(mut self) -> (BytesMut, BytesMut) {
        self.receive.advance(self.taken);
        (self.receive, self.send)
    }

    fn not_now(&self, call: &'static str) -> SessionError {
        SessionError::NotNow { call, state: self.state.name() }
    }
}

/// What one message leads to.
fn step<'a, I: Moment>(
    state: &mut State<I>,
    message: Message<'a>,
    now: Now<I>,
    send: &mut BytesMut,
    about: &mut handshake::Session,
    policy: FeedbackPolicy,
) -> Result<Option<Event<'a>>, SessionError> {
    // The one that matters for speed stands first and apart.
    if let (State::Streaming(feedback), Message::CopyData(payload)) = (&mut *state, message) {
        return stream(feedback, payload, now.at);
    }
    let before = mem::replace(state, State::Failed);
    let (after, event) = match (before, message) {
        (before @ (State::New | State::Plaintext), message) => {
            return Err(unexpected(&message, &before));
        }
        // Any time, also while logging in.
        (before, Message::NoticeResponse(fields)) => (before, Some(Event::Notice(fields))),
        (State::LoggingIn(mut handshake), message) => match handshake.handle(message, send)? {
            Progress::Waiting => (State::LoggingIn(handshake), None),
            Progress::Ready => {
                *about = handshake.into_session();
                (State::Ready, Some(Event::LoggedIn))
            }
        },
        (before, Message::ParameterStatus { name, value }) => {
            about.set_parameter(name, value)?;
            (before, None)
        }
        (before, Message::NotificationResponse { .. }) => (before, None),

        (State::Streaming(_), Message::CopyDone) => {
            frontend::copy_done(send);
            (State::Ended, None)
        }
        // A server that stops says so without CopyDone.
        (State::Streaming(_) | State::Ending, Message::CommandComplete(tag)) => {
            (State::Ended, Some(Event::Completed(tag)))
        }
        (State::Ending, Message::CopyData(_)) => (State::Ending, None),
        (State::Ending, Message::CopyDone) => (State::Ended, None),
        // A walsender that hears CopyDone while it waits for the log answers at once, and still sends what
        // it was about to: a keepalive, or a message. Seen on 14 to 18 in every second or third stream.
        (State::Ended, Message::CopyData(_)) => (State::Ended, None),

        (State::Starting { asked_at }, Message::CopyBothResponse { .. }) => {
            (State::Streaming(Feedback::new(policy, asked_at)), Some(Event::Started))
        }
        (State::Querying | State::Starting { .. }, Message::ErrorResponse(fields)) => {
            (State::Querying, Some(Event::Refused(fields)))
        }
        (State::Streaming(_) | State::Ending | State::Ended, Message::ErrorResponse(fields)) => {
            (State::Ended, Some(Event::Refused(fields)))
        }
        // Nobody asked: the server is stopping, or somebody ended this session.
        (State::Ready, Message::ErrorResponse(fields)) => {
            (State::Ready, Some(Event::Refused(fields)))
        }

        (before @ (State::Querying | State::Ended), Message::RowDescription(columns)) => {
            (before, Some(Event::Columns(columns)))
        }
        (before @ (State::Querying | State::Ended), Message::DataRow(row)) => {
            (before, Some(Event::Row(row)))
        }
        (before @ (State::Querying | State::Ended), Message::CommandComplete(tag)) => {
            (before, Some(Event::Completed(tag)))
        }
        (State::Querying, Message::EmptyQueryResponse) => (State::Querying, None),
        (State::Querying | State::Ended, Message::ReadyForQuery(_)) => {
            (State::Ready, Some(Event::Finished))
        }
        // A timeline that has ended has nothing to stream: the answer is a row that names the next one.
        (State::Starting { .. }, Message::RowDescription(columns)) => {
            (State::Querying, Some(Event::Columns(columns)))
        }
        (before, message) => return Err(unexpected(&message, &before)),
    };
    *state = after;
    Ok(event)
}

/// What one `CopyData` of the stream leads to.
fn stream<'a, I: Moment>(
    feedback: &mut Feedback<I>,
    payload: &'a [u8],
    now: I,
) -> Result<Option<Event<'a>>, SessionError> {
    if payload.is_empty() {
        // It says nothing; the manual does not forbid it.
        return Ok(None);
    }
    Ok(Some(match replication::Message::decode(payload)? {
        replication::Message::XLogData(data) => {
            feedback.data();
            Event::Data(data)
        }
        replication::Message::PrimaryKeepalive(keepalive) => {
            Event::Keepalive { revealed: feedback.keepalive(now, &keepalive), keepalive }
        }
    }))
}

fn unexpected<I>(message: &Message<'_>, state: &State<I>) -> SessionError {
    SessionError::Unexpected { message: message.name(), state: state.name() }
}

/// Why a session is over, or why it cannot do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionError {
    /// The connection is not encrypted as it was to be.
    Tls(TlsError),
    /// The server could not be logged in to.
    Login(HandshakeError),
    /// What the server sent is not the protocol.
    Decode(DecodeError),
    /// The server sent what has no place here.
    Unexpected {
        /// What it sent.
        message: &'static str,
        /// What the session was doing.
        state: &'static str,
    },
    /// The caller asked for what has no place here. Nothing has changed.
    NotNow {
        /// What it asked for.
        call: &'static str,
        /// What the session is doing.
        state: &'static str,
    },
    /// What the caller asked for cannot be sent. Nothing has changed.
    Encode(EncodeError),
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(error) => error.fmt(f),
            Self::Login(error) => error.fmt(f),
            Self::Decode(error) => write!(f, "what the server sent cannot be read: {error}"),
            Self::Unexpected { message, state } => {
                write!(f, "the server sent {message} while {state}: is this PostgreSQL?")
            }
            Self::NotNow { call, state } => {
                write!(f, "{call} has no place while the session is {state}")
            }
            Self::Encode(error) => write!(f, "the command cannot be sent: {error}"),
        }
    }
}

impl core::error::Error for SessionError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        // The others' texts stand in ours.
        match self {
            Self::Login(error) => error.source(),
            _ => None,
        }
    }
}

impl From<TlsError> for SessionError {
    fn from(error: TlsError) -> Self {
        Self::Tls(error)
    }
}

impl From<HandshakeError> for SessionError {
    fn from(error: HandshakeError) -> Self {
        Self::Login(error)
    }
}

impl From<DecodeError> for SessionError {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

impl From<EncodeError> for SessionError {
    fn from(error: EncodeError) -> Self {
        Self::Encode(error)
    }
}
