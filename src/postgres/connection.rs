//! A logged-in replication connection: queries first, then the stream.

use super::dial::Stream;
use super::failure::Failure;
use super::identify::ANSWER_MAX;
use super::survey::Transport;
use crate::relay::Reading;
use bytes::{Buf as _, BytesMut};
use factlib_protocol::Timestamp;
use factlib_protocol::feedback::FeedbackPolicy;
use factlib_protocol::session::{Event, Now, Session};
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _};
use tokio::task::coop::has_budget_remaining;
use tokio::time::timeout;

/// The session ends for us when the stream begins: the engine takes that apart itself. Before it, no
/// clock matters.
pub(super) const NO_CLOCK: Now<Duration> = Now { at: Duration::ZERO, clock: Timestamp(0) };

/// How long the end of a stream may take; it takes a round trip.
const PARTING_MAX: Duration = Duration::from_secs(1);

/// How much is asked of the socket at once while streaming.
const READ_BYTES: usize = 640 * 1024;

/// Room below which the receive buffer is made larger again: what the kernel has of a near server is read at once.
const READ_BYTES_MIN: usize = 576 * 1024;

/// One row of an answer: the text of each column, or NULL.
pub type Row = Vec<Option<String>>;

/// A connection, logged in: to a walsender, if it is not said otherwise.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    /// Until the stream begins.
    pub(super) session: Session<Duration>,
    /// What came behind the stream's beginning.
    received: BytesMut,
    /// While streaming, what is to be sent.
    send: BytesMut,
    /// What was written may still be in the buffers of TLS.
    unflushed: bool,
}

/// What [`Connection::turn`] did.
#[derive(Debug)]
pub enum Turn {
    /// So many bytes came; whether that was all there was at the moment.
    Received {
        /// Number of bytes.
        bytes: usize,
        /// There is nothing more right now, neither in the socket nor in the buffers of TLS.
        drained: bool,
    },
    /// The connection ended.
    Ended(Failure),
}

impl Connection {
    /// On a socket on which nothing was said yet but what `session` has.
    pub(super) fn new(stream: Stream, session: Session<Duration>) -> Self {
        let (received, send) = (BytesMut::new(), BytesMut::new());
        Self { stream, session, received, send, unflushed: false }
    }

    /// What its bytes go through. Only before the stream.
    pub(super) fn transport(&self) -> Transport {
        match &self.stream {
            Stream::Clear(socket) if socket.is_unix() => Transport::UnixSocket,
            Stream::Clear(_) => Transport::Clear,
            Stream::Tls(stream) => Transport::Tls {
                version: stream.get_ref().1.protocol_version().and_then(|version| version.as_str()),
                channel_bound: self.session.about().channel_bound,
            },
        }
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
    pub(super) async fn until<T>(
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
            self.stream.flush().await?;
            if self.stream.read_buf(self.session.receive_buffer()).await? == 0 {
                return Err(Failure::Closed);
            }
        }
    }

    /// Moves what was received behind CopyBothResponse to `into`: how many bytes, and whether TLS holds none
    /// that came after them.
    pub fn take_received(&mut self, into: &mut BytesMut) -> (usize, bool) {
        let received = std::mem::take(&mut self.received);
        into.extend_from_slice(&received);
        (received.len(), !self.stream.holds_more())
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
            if let Poll::Ready(failure) = self.poll_send(cx) {
                return Poll::Ready(Turn::Ended(failure));
            }
            if reading != Reading::Now {
                // What is left to write waits for the socket.
                if self.send.is_empty() && !self.unflushed {
                    self.stream.unwatch();
                }
                return Poll::Pending;
            }
            if into.capacity() - into.len() < READ_BYTES_MIN {
                into.reserve(READ_BYTES);
            }
            self.poll_receive(cx, into)
        })
        .await
    }

    /// Sends what is queued, as far as that does not block; ready if the connection ended.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        while !self.send.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.send) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Failure::Closed),
                Poll::Ready(Ok(sent)) => {
                    self.send.advance(sent);
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
                Poll::Pending => break,
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }

    /// Reads until there is nothing more, or no room. A socket gives all it has at once, TLS a record at a
    /// time, and what it has decrypted waits in its own buffer: only if it has no more to give there is none.
    fn poll_receive(&mut self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<Turn> {
        let mut bytes = 0;
        loop {
            let room = into.capacity() - into.len();
            if room == 0 {
                return Poll::Ready(Turn::Received { bytes, drained: false });
            }
            let read = std::pin::pin!(self.stream.read_buf(into));
            match read.poll(cx) {
                Poll::Ready(Ok(read)) if read > 0 => {
                    bytes += read;
                    if !self.stream.is_tls() {
                        return Poll::Ready(Turn::Received { bytes, drained: read < room });
                    }
                }
                Poll::Pending if bytes == 0 => return Poll::Pending,
                // The runtime also says so to let others run; then there may be more.
                Poll::Pending => {
                    let drained = has_budget_remaining();
                    return Poll::Ready(Turn::Received { bytes, drained });
                }
                // The end comes again at the next turn.
                Poll::Ready(_) if bytes > 0 => {
                    return Poll::Ready(Turn::Received { bytes, drained: true });
                }
                Poll::Ready(Ok(_)) => return Poll::Ready(Turn::Ended(Failure::Closed)),
                Poll::Ready(Err(error)) => return Poll::Ready(Turn::Ended(error.into())),
            }
        }
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
        // Whether it went wrong matters to nobody any more.
        let _ = self.poll_send(&mut Context::from_waker(Waker::noop()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::socket::Socket;
    use crate::tls::{Anybody, certificates, private_key};
    use rustls::crypto::ring;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ServerConfig};
    use std::sync::Arc;
    use testkit::certificates::Authority;
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::{TlsAcceptor, TlsConnector, server};

    /// Both ends of a connection under TLS.
    async fn pair() -> (Connection, server::TlsStream<TcpStream>) {
        let authority = Authority::new();
        let files = authority.issue("server", &["localhost"]);
        let chain = certificates(&files.certificate).unwrap();
        let key = private_key(&files.key).unwrap();
        let provider = Arc::new(ring::default_provider());
        let theirs = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let ours = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_no_client_auth();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = Socket::from(socket);
        let name = ServerName::try_from("localhost").unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let (ours, theirs) = tokio::join!(
            TlsConnector::from(Arc::new(ours)).connect(name, socket),
            TlsAcceptor::from(Arc::new(theirs)).accept(accepted)
        );
        let stream = Stream::Tls(Box::new(ours.unwrap()));
        let session = Session::new(0, FeedbackPolicy::default());
        (Connection::new(stream, session), theirs.unwrap())
    }

    #[tokio::test]
    async fn under_tls_nothing_is_called_drained_while_some_of_it_waits_to_be_read() {
        let (mut connection, mut server) = pair().await;
        // More than the room of one turn, and than the runtime lets one task read at once.
        let sent: Vec<u8> = (0..1_500_000_u32).map(|number| (number % 251) as u8).collect();
        let mut into = BytesMut::new();
        for _ in 0..3 {
            into.clear();
            let sending = async {
                server.write_all(&sent).await.unwrap();
                server.flush().await.unwrap();
            };
            let receiving = async {
                let mut turns = 0;
                while into.len() < sent.len() {
                    let Turn::Received { bytes, drained } =
                        connection.turn(Reading::Now, &mut into).await
                    else {
                        panic!("it ended");
                    };
                    assert!(bytes > 0);
                    turns += 1;
                    assert!(!(drained && connection.stream.holds_more()));
                }
                turns
            };
            let ((), turns) = tokio::join!(sending, receiving);
            assert!(into == sent);
            // In gulps, and not record by record, of which there are 92.
            assert!(turns < 60, "{turns}");
        }
    }

    #[tokio::test]
    async fn under_tls_a_turn_takes_all_that_is_there_and_says_so() {
        let (mut connection, mut server) = pair().await;
        let mut into = BytesMut::new();
        for len in [1, 5, 16_384, 16_385, 100_000] {
            into.clear();
            server.write_all(&vec![7; len]).await.unwrap();
            server.flush().await.unwrap();
            let turn = connection.turn(Reading::Now, &mut into).await;
            let Turn::Received { bytes, drained } = turn else { panic!("{turn:?}") };
            assert_eq!((bytes, drained, into.len()), (len, true, len));
        }
    }

    #[tokio::test]
    async fn what_tls_has_decrypted_behind_the_beginning_of_the_stream_is_not_forgotten() {
        let (mut connection, mut server) = pair().await;
        let mut into = BytesMut::new();
        // In one record: what is read of it first leaves the rest where no socket tells of it.
        server.write_all(&[7; 10_000]).await.unwrap();
        server.flush().await.unwrap();
        let mut first = [0; 100];
        tokio::io::AsyncReadExt::read_exact(&mut connection.stream, &mut first).await.unwrap();
        connection.received.extend_from_slice(&first);
        assert_eq!(connection.take_received(&mut into), (100, false));
        let turn = connection.turn(Reading::Now, &mut into).await;
        assert!(matches!(turn, Turn::Received { bytes: 9900, drained: true }), "{turn:?}");
        assert_eq!(connection.take_received(&mut into), (0, true));
        assert_eq!(into.len(), 10_000);
    }

    #[tokio::test]
    async fn under_tls_what_is_sent_leaves_without_more_being_sent() {
        let (mut connection, mut server) = pair().await;
        // More than sockets and TLS hold.
        let sent = vec![9; 8_000_000];
        connection.send(&sent);
        let mut received = vec![0; sent.len()];
        let mut into = BytesMut::new();
        tokio::select! {
            turn = connection.turn(Reading::Paused, &mut into) => panic!("{turn:?}"),
            read = tokio::io::AsyncReadExt::read_exact(&mut server, &mut received) => {
                read.unwrap();
            }
        }
        assert!(received == sent);
        assert!(connection.send.is_empty() && !connection.unflushed);
        drop(server);
        let turn = connection.turn(Reading::Now, &mut into).await;
        assert!(matches!(turn, Turn::Ended(Failure::Closed)), "{turn:?}");
    }
}
