//! From a configured host to a connected socket, and what is read and written through.

use super::socket::Socket;
use crate::config::{Host, PostgresConfig};
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};
use tokio_rustls::client::TlsStream;

/// The least receive buffer that is asked of the kernel, which makes it twice as large and fills half a MiB into it. While we
/// are behind it should be filled in the few milliseconds that data may gather, see [`crate::relay::Reading::Gather`]. What is
/// in it was sent before the server heard what it is told now, so that a crash repeats it.
const RECEIVE_BUFFER_BYTES_MIN: u32 = 256 * 1024;

/// The most; the kernel caps it at `net.core.rmem_max`, too.
const RECEIVE_BUFFER_BYTES_MAX: u32 = 4 * 1024 * 1024;

/// Bytes a second that must fit through the window, however far away the server is.
const RECEIVED_PER_SECOND: u64 = 256 * 1024 * 1024;

/// A connected socket, with or without TLS on top: everything above reads and writes only.
#[derive(Debug)]
pub(super) enum Stream {
    Clear(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    /// True if what is read comes in records, and some of it may be here already.
    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// True if bytes are here that were decrypted and not read.
    pub(super) fn holds_more(&mut self) -> bool {
        match self {
            Self::Tls(stream) => {
                let (_, session) = stream.get_mut();
                // What is wrong with the session is found by the next who reads.
                session.process_new_packets().is_ok_and(|state| state.plaintext_bytes_to_read() > 0)
            }
            Self::Clear(_) => false,
        }
    }

    /// Nobody is woken by what comes until it is read or written again.
    pub(super) fn unwatch(&mut self) {
        match self {
            Self::Clear(socket) => socket.unwatch(),
            Self::Tls(stream) => stream.get_mut().0.unwatch(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// The name is not known: not a matter of waiting, as a rule.
    #[error("host {host} is not known: {source}; check it in MASTER_DATABASE_URL")]
    Name {
        /// As it was configured.
        host: String,
        source: io::Error,
    },
    #[error(
        "cannot connect to PostgreSQL at {address}: {source}; check host and port in MASTER_DATABASE_URL, and \
         that the server runs and listens there"
    )]
    Connect { address: String, source: io::Error },
}

/// The addresses of a host over TCP. Names are looked up every time, so that a failover by DNS is followed.
pub(super) async fn addresses(host: &Host) -> Result<Vec<SocketAddr>, DialError> {
    match host {
        Host::Unix { .. } => Ok(Vec::new()),
        Host::Tcp { addr: Some(addr), port, .. } => Ok(vec![SocketAddr::new(*addr, *port)]),
        Host::Tcp { host, addr: None, port } => match lookup_host((host.as_str(), *port)).await {
            Ok(found) => Ok(found.collect()),
            Err(source) => Err(DialError::Name { host: host.clone(), source }),
        },
    }
}

/// Connects to one address of `host`.
pub(super) async fn dial(
    host: &Host,
    address: SocketAddr,
    config: &PostgresConfig,
) -> Result<Socket, DialError> {
    let connected = dial_address(address, config).await;
    connected
        .map(Socket::from)
        .map_err(|source| DialError::Connect { address: host.to_string(), source })
}

/// Connects to the Unix socket of `host`.
pub(super) async fn dial_socket(host: &Host) -> Result<Socket, DialError> {
    let connected = UnixStream::connect(host.socket_path().unwrap_or_default()).await;
    connected
        .map(Socket::from)
        .map_err(|source| DialError::Connect { address: host.to_string(), source })
}

async fn dial_address(address: SocketAddr, config: &PostgresConfig) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let begun = now();
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    let options = SockRef::from(&stream);
    options.set_recv_buffer_size(receive_buffer_bytes(begun.elapsed()) as usize)?;
    if let Some(keepalives) = config.keepalives {
        let mut keepalive = TcpKeepalive::new();
        if let Some(idle) = keepalives.idle {
            keepalive = keepalive.with_time(idle);
        }
        if let Some(interval) = keepalives.interval {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(count) = keepalives.count {
            keepalive = keepalive.with_retries(count);
        }
        options.set_tcp_keepalive(&keepalive)?;
    }
    let timeout = config.tcp_user_timeout.filter(|timeout| *timeout > Duration::ZERO);
    options.set_tcp_user_timeout(timeout)?;
    Ok(stream)
}

/// What a window must hold that is renewed once in a `round_trip`. The handshake takes one, or more on a busy machine;
/// it agrees on a window scale for the largest buffer that the kernel gives, so that this may come after it.
fn receive_buffer_bytes(round_trip: Duration) -> u32 {
    let bytes = u128::from(RECEIVED_PER_SECOND) * round_trip.as_micros() / 1_000_000;
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    bytes.clamp(RECEIVE_BUFFER_BYTES_MIN, RECEIVE_BUFFER_BYTES_MAX)
}

#[expect(clippy::disallowed_methods, reason = "how far away the server is")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_further_away_gets_a_larger_window() {
        assert_eq!(receive_buffer_bytes(Duration::from_micros(50)), 256 * 1024);
        assert_eq!(receive_buffer_bytes(Duration::from_millis(4)), 1_073_741);
        assert_eq!(receive_buffer_bytes(Duration::from_millis(80)), 4 * 1024 * 1024);
        assert_eq!(receive_buffer_bytes(Duration::MAX), 4 * 1024 * 1024);
    }
}
