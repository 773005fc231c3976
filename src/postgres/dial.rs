//! From a configured host to a connected socket.

use crate::config::{Host, PostgresConfig};
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};

/// Receive buffer asked of the kernel: while we are behind, one large read takes what gathered. The
/// kernel caps it at `net.core.rmem_max`.
const RECEIVE_BUFFER_BYTES: u32 = 4 * 1024 * 1024;

/// A connected socket. TLS will be another variant: everything above reads and writes only.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
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
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// The name is not known: not a matter of waiting, as a rule.
    #[error("host {host} is not known: {source}")]
    Name {
        /// As it was configured.
        host: String,
        source: io::Error,
    },
    #[error("cannot connect to PostgreSQL at {address}: {source}")]
    Connect { address: String, source: io::Error },
}

/// Connects to `host`, trying all of its addresses in order. Names are looked up every time, so that
/// a failover by DNS is followed.
pub(super) async fn dial(host: &Host, config: &PostgresConfig) -> Result<Stream, DialError> {
    let address = host.to_string();
    let connect = |source| DialError::Connect { address: address.clone(), source };
    let Host::Tcp { host: name, addr, port } = host else {
        let path = host.socket_path().unwrap_or_default();
        return UnixStream::connect(path).await.map(Stream::Unix).map_err(connect);
    };
    let addresses: Vec<SocketAddr> = match addr {
        Some(addr) => vec![SocketAddr::new(*addr, *port)],
        None => {
            let found = lookup_host((name.as_str(), *port)).await;
            found.map_err(|source| DialError::Name { host: name.clone(), source })?.collect()
        }
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match dial_address(address, config).await {
            Ok(stream) => return Ok(Stream::Tcp(stream)),
            Err(error) => last = error,
        }
    }
    Err(connect(last))
}

async fn dial_address(address: SocketAddr, config: &PostgresConfig) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Before connecting: the window scale is agreed upon in the handshake.
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    let options = SockRef::from(&stream);
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
