//! A stream over the network, message by message, with nothing of it decoded.

use crate::Postgres;
use crate::error::{Context as _, Error, Result};
use factlib_protocol::feedback::FeedbackPolicy;
use factlib_protocol::handshake::{Credentials, Startup};
use factlib_protocol::replication::start_logical;
use factlib_protocol::session::{Event, Now, Session};
use factlib_protocol::{Lsn, Timestamp};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How long a server that was asked may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What a slot tells, from where it stands. Nothing is confirmed.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    session: Session<Instant>,
}

impl Stream {
    /// Logs in and starts to read the slot, with these options of its plugin.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn start(postgres: &Postgres, slot: &str, options: &[(&str, &str)]) -> Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", postgres.port())).context("connecting")?;
        let mut stream = Self { socket, session: Session::new(1 << 26, FeedbackPolicy::default()) };
        let params = [("replication", "database"), ("client_encoding", "UTF8")];
        let startup = Startup {
            user: "postgres",
            database: Some(crate::postgres::DATABASE),
            params: &params,
            ..Startup::default()
        };
        let credentials = Credentials::default();
        stream.session.log_in(startup, credentials, String::new()).context("logging in")?;
        let logged_in = |event: Event<'_>| matches!(event, Event::LoggedIn).then_some(());
        stream.until(SILENCE_MAX, logged_in)?.ok_or_else(silent)?;
        let command = start_logical(slot, Lsn::INVALID, options).context(slot)?;
        stream.session.start_replication(&command, now()).context(&command)?;
        let started = |event: Event<'_>| matches!(event, Event::Started).then_some(());
        stream.until(SILENCE_MAX, started)?.ok_or_else(silent)?;
        Ok(stream)
    }

    /// Tells the server that everything before this place may be forgotten, whether it was sent or not.
    ///
    /// # Errors
    ///
    /// When the server ends the stream.
    pub fn confirm(&mut self, flush: crate::Lsn) -> Result<()> {
        self.session.confirm(Lsn(flush.0));
        self.session.tell(now());
        self.socket.write_all(self.session.send_buffer()).context("sending")?;
        self.session.send_buffer().clear();
        Ok(())
    }

    /// The next message: the position in its header, and its bytes.
    ///
    /// # Errors
    ///
    /// When none comes for half a minute, or the server ends the stream.
    pub fn message(&mut self) -> Result<(Lsn, Vec<u8>)> {
        self.message_within(SILENCE_MAX)?.ok_or_else(silent)
    }

    /// The same, or nothing if none comes within this time.
    ///
    /// # Errors
    ///
    /// When the server ends the stream.
    pub fn message_within(&mut self, limit: Duration) -> Result<Option<(Lsn, Vec<u8>)>> {
        self.until(limit, |event| match event {
            Event::Data(data) => Some((data.wal_start, data.data.to_vec())),
            _ => None,
        })
    }

    fn until<T>(
        &mut self,
        limit: Duration,
        mut found: impl FnMut(Event<'_>) -> Option<T>,
    ) -> Result<Option<T>> {
        let begun = Instant::now();
        let mut chunk = [0; 65_536];
        while begun.elapsed() < limit {
            while let Some(event) = self.session.poll(now()).context("the stream")? {
                if let Event::Refused(fields) = event {
                    return Err(Error::new(fields.to_error().to_string()));
                }
                if let Some(found) = found(event) {
                    return Ok(Some(found));
                }
            }
            self.socket.write_all(self.session.send_buffer()).context("sending")?;
            self.session.send_buffer().clear();
            self.socket.set_read_timeout(Some(Duration::from_millis(500))).context("a timeout")?;
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(Error::new("the server closed the connection")),
                Ok(len) => self.session.receive_buffer().extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(Error::new(error.to_string())),
            }
        }
        Ok(None)
    }
}

fn silent() -> Error {
    Error::new("the server has nothing more to say")
}

fn now() -> Now<Instant> {
    Now { at: Instant::now(), clock: Timestamp(0) }
}
