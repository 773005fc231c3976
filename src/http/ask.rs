//! The other side of the port: what a relay on this machine says of itself.

use serde::de::DeserializeOwned;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A relay answers in milliseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// What a relay says of itself is a kilobyte, and with the last ten minutes some ten.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;

/// The JSON at `path` of the port that a relay with this setting would open.
///
/// # Errors
///
/// If nobody answers there within three seconds, or nobody who says that.
///
/// # Cancel safety
///
/// Dropping the future closes the connection.
pub(crate) async fn ask<T: DeserializeOwned>(address: SocketAddr, path: &str) -> io::Result<T> {
    let answer = timeout(ANSWER_WITHIN, answer(address, path)).await??;
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let body = body.and_then(|end| answer.get(end + 4..)).unwrap_or_default();
    Ok(serde_json::from_slice(body)?)
}

async fn answer(address: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let mut stream = TcpStream::connect(SocketAddr::new(host, address.port())).await?;
    let request = format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}
