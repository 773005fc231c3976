//! From an address to a connection that speaks Kafka.

use super::Config;
use super::link::{Link, Traffic};
use super::{sasl, tls};
use crate::relay::kafka::Unanswered;
use rskafka::messenger::{Messenger, RequestError, SyncVersionsError};
use rskafka::protocol::frame;
use socket2::{SockRef, Socket, TcpKeepalive};
use std::fmt;
use std::io::{self, IoSlice};
use std::net::{Ipv6Addr, Shutdown};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;

/// The largest response we accept. The largest there can be is a Metadata response: about 50 bytes
/// a partition with three replicas, so this is room for 160,000 partitions. (The messenger
/// allocates a response's claimed length at once, but the pages are touched only as bytes arrive.)
const RESPONSE_LEN_MAX: usize = 8 << 20;

/// Responses are tens of bytes to a few kilobytes; one read takes several.
const READ_BUFFER_LEN: usize = 4 << 10;

/// A path that lost its state (NAT, firewall) is noticed before the next produce runs into it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// What is said of a connection that is lost at the first question: a listener that wants to know who we are tells
/// its versions, and no more.
pub(super) const WANTS_SASL: &str = " (does this listener want KAFKA_USERNAME and KAFKA_PASSWORD?)";

/// A broker's host and port.
///
/// ```
/// use factlib::kafka::Address;
///
/// let address: Address = "[2001:db8::1]:9092".parse()?;
/// assert_eq!((address.host.as_str(), address.port), ("2001:db8::1", 9092));
/// assert_eq!(address.to_string(), "[2001:db8::1]:9092");
/// # Ok::<(), factlib::kafka::InvalidAddress>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port, not 0.
    pub port: u16,
}

/// Not `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address:?} is not host:port (an IPv6 address goes in brackets)")]
pub struct InvalidAddress {
    /// What was given.
    pub address: String,
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let split = || {
            let (host, port) = s.trim().rsplit_once(':')?;
            let host = match host.strip_prefix('[') {
                Some(v6) => v6.strip_suffix(']').filter(|v6| v6.parse::<Ipv6Addr>().is_ok())?,
                None => Some(host).filter(|host| !host.contains([':', '[', ']', '/', ' ']))?,
            };
            // `parse` alone would also take "+9092".
            let digits = port.bytes().all(|b| b.is_ascii_digit());
            let port = port.parse().ok().filter(|port| digits && *port != 0)?;
            Some(Self { host: host.to_owned(), port }).filter(|a| !a.host.is_empty())
        };
        split().ok_or_else(|| InvalidAddress { address: s.to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// What to do about a broker that cannot be connected to.
const UNREACHED: &str = " (does a broker run there, and is KAFKA_BROKERS right?)";

/// What the messenger talks through.
pub(super) type Stream = BufReader<Link<Transport>>;

/// TCP, with or without TLS on top.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connection on which the broker's versions are known, and we are logged in.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) messenger: Arc<Messenger<Stream>>,
    pub(super) traffic: Arc<Traffic>,
    /// When the broker would want us to log in again (KIP-368), less some time for what is on its way.
    pub(super) renew_at: Option<Instant>,
    /// The same socket again, because the messenger owns the stream.
    socket: Socket,
}

impl Connection {
    /// Ends the connection now.
    ///
    /// Dropping the messenger is not enough: it finishes a half-written request in a task of its
    /// own, for as long as that takes. Without the lingering what still waits in the send buffer is
    /// discarded too, so that a request given up on does not arrive after its repetition.
    pub(super) fn cut(&self) {
        // Neither can fail in a way that matters: the socket is already gone then.
        let _ = self.socket.set_linger(Some(Duration::ZERO));
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Connects, asks for the broker's versions and logs in, by `deadline`.
///
/// Cancel safe: dropping it closes what was opened.
pub(super) async fn dial(
    address: &Address,
    config: &Config,
    deadline: Instant,
) -> Result<Connection, Unanswered> {
    let begun = Instant::now();
    let after = |what: &str| {
        let waited = deadline.saturating_duration_since(begun).as_millis();
        Unanswered(format!("{address}: {what} within {waited} ms"))
    };
    let stream = timeout_at(deadline, connect(address, config, deadline))
        .await
        .map_err(|_| after("cannot connect"))?
        .map_err(|e| Unanswered(format!("{address}: cannot connect: {e}{UNREACHED}")))?;
    let socket = SockRef::from(&stream)
        .try_clone()
        .map_err(|e| Unanswered(format!("{address}: cannot clone the socket: {e}")))?;

    let stream = match &config.tls {
        None => Transport::Plain(stream),
        Some(tls) => {
            let shaken = timeout_at(deadline, tls.connect(&address.host, stream)).await;
            let shaken = shaken.map_err(|_| after("connected, but no TLS handshake"))?;
            let stream = shaken.map_err(|e| {
                let cause = tls::describe(&e).unwrap_or_else(|| {
                    format!("no TLS handshake: {e} (does the listener want KAFKA_SSL=false?)")
                });
                Unanswered(format!("{address}: {cause}"))
            })?;
            Transport::Tls(Box::new(stream))
        }
    };

    let traffic = Arc::new(Traffic::default());
    let stream = BufReader::with_capacity(READ_BUFFER_LEN, Link::new(stream, Arc::clone(&traffic)));
    let mut messenger =
        Messenger::new(stream, RESPONSE_LEN_MAX, Arc::from(config.client_id.as_str()));
    let versions = timeout_at(deadline, messenger.sync_versions()).await;
    let messenger = Arc::new(messenger);
    let mut connection = Connection { messenger, traffic, renew_at: None, socket };
    let cause = match versions {
        Ok(Ok(())) => match &config.sasl {
            None => return Ok(connection),
            Some(sasl) => {
                let begun = Instant::now();
                let lifetime =
                    timeout_at(deadline, sasl::authenticate(&connection.messenger, sasl)).await;
                match lifetime {
                    Ok(Ok(lifetime)) => {
                        // As the Java client does, between 85 and 95 % of it.
                        connection.renew_at =
                            lifetime.and_then(|lifetime| begun.checked_add(lifetime / 10 * 9));
                        return Ok(connection);
                    }
                    Ok(Err(what)) => Unanswered(format!("{address}: {what}")),
                    Err(_) => after("connected, but not logged in"),
                }
            }
        },
        Ok(Err(SyncVersionsError::RequestError(e))) => {
            let hint = match config.tls {
                Some(_) => "",
                None => " (does this listener want KAFKA_SSL=true?)",
            };
            Unanswered(format!("{address}: asked for its versions: {}{hint}", describe(&e)))
        }
        Ok(Err(e)) => Unanswered(format!("{address}: asked for its versions: {e}")),
        Err(_) => after("connected, but does not answer like a Kafka broker"),
    };
    connection.cut();
    Err(cause)
}

/// Connects to the first of the host's addresses that accepts.
async fn connect(address: &Address, config: &Config, deadline: Instant) -> io::Result<TcpStream> {
    let resolved: Vec<_> =
        tokio::net::lookup_host((address.host.as_str(), address.port)).await?.collect();
    let mut left = u32::try_from(resolved.len()).unwrap_or(u32::MAX);
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for resolved in resolved {
        // Each gets its share: one that swallows packets must not use up the time of the others.
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        match tokio::time::timeout(share, TcpStream::connect(resolved)).await {
            Ok(Ok(stream)) => {
                set_options(&stream, config)?;
                return Ok(stream);
            }
            Ok(Err(e)) => failure = e,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
        left = left.saturating_sub(1).max(1);
    }
    Err(failure)
}

fn set_options(stream: &TcpStream, config: &Config) -> io::Result<()> {
    // Without it the tail of a request waits 40 ms for the peer's delayed acknowledgement.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL),
    )?;
    // The kernel would go on sending into a dead path for a quarter of an hour.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(config.request_timeout))?;
    #[cfg(not(target_os = "linux"))]
    let _ = config;
    Ok(())
}

/// A messenger's error in one sentence, without the layers it has been through.
pub(super) fn describe(error: &RequestError) -> String {
    let io = |e: &io::Error| match (tls::describe(e), e.kind()) {
        (Some(of_tls), _) => of_tls,
        (None, io::ErrorKind::UnexpectedEof) => "closed the connection".to_owned(),
        (None, _) => format!("connection lost: {e}"),
    };
    match error {
        RequestError::Poisoned(cause) => describe(cause),
        RequestError::IO(e)
        | RequestError::WriteMessageError(frame::WriteError::IO(e))
        | RequestError::ReadFramedMessageError(frame::ReadError::IO(e)) => io(e),
        e => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for (text, host, port) in [
            ("localhost:9092", "localhost", 9092),
            (" kafka-1.example.com:1 ", "kafka-1.example.com", 1),
            ("10.0.0.1:65535", "10.0.0.1", 65535),
            ("[::1]:9092", "::1", 9092),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port));
            assert_eq!(address.to_string(), text.trim());
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            ":",
            "localhost",
            "localhost:",
            ":9092",
            "localhost:0",
            "localhost:65536",
            "a:+1",
            "a:-1",
            "::1:9092",
            "[::1]",
            "[::1:9092",
            "[]:9092",
            "[localhost]:9092",
            "a b:1",
            "kafka://a:1",
            "PLAINTEXT://a:1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }
}
