//! One request, as small as it gets.

use crate::error::{Context as _, Error, Result};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Status and body.
pub(crate) fn get(port: u16, path: &str, limit: Duration) -> Result<(u16, String)> {
    request(port, "GET", path, None, limit)
}

/// Status and body of the answer to this JSON.
pub(crate) fn post(port: u16, path: &str, json: &str, limit: Duration) -> Result<(u16, String)> {
    request(port, "POST", path, Some(json), limit)
}

fn request(
    port: u16,
    method: &str,
    path: &str,
    json: Option<&str>,
    limit: Duration,
) -> Result<(u16, String)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let body = json.map_or_else(String::new, |json| {
        format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}", json.len())
    });
    let body = if body.is_empty() { "\r\n" } else { &body };
    let asked = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{body}"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = asked().context(format_args!("{method} http://{address}{path}"))?;
    parse(&String::from_utf8_lossy(&answer))
        .ok_or_else(|| Error(format!("{method} http://{address}{path}: not an HTTP answer")))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let chunked = head
        .lines()
        .any(|line| line.to_ascii_lowercase().replace(' ', "") == "transfer-encoding:chunked");
    let body = if chunked { unchunk(body)? } else { body.to_owned() };
    Some((status, body))
}

fn unchunk(mut body: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.push_str(rest.get(..size)?);
        body = rest.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn answers_are_read_whole() {
        let plain = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(parse(plain), Some((503, "{}".to_owned())));
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert_eq!(parse(chunked), Some((200, "abc".to_owned())));
        assert_eq!(parse("nonsense"), None);
    }
}
