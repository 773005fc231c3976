//! The ceiling: takes a slot's stream in gulps, walks its frames and throws them away.
//!
//! One thread, blocking reads. While it naps between two reads, data gathers in the socket and neither side wakes for
//! each message. It does no more than it must to be served: it answers keepalives that ask for it, so that the server
//! does not hang up on it, and confirms nothing. It ends behind the commit of the last fact.

use crate::proc::Usage;
use bytes::{Buf as _, BytesMut};
use factlib_protocol::backend::Message;
use factlib_protocol::handshake::{BODY_LEN_MAX, Credentials, Handshake, Progress, Startup};
use factlib_protocol::replication::{self, StandbyStatusUpdate, start_logical};
use factlib_protocol::{Frame, Lsn, Timestamp, frontend};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

/// What one read may bring.
const GULP: usize = 1024 * 1024;

/// The naps and the receive buffer with which a walsender was seen fastest, 541 to 583 thousand facts a second in every
/// round: the window closes again and again, and messages that wait for it to open are joined. With 4 MiB and 2 ms each
/// message was a segment of its own, and a fact cost the walsender 4.3 us instead of 1.75.
pub const NAP_US: u64 = 500;
/// See [`NAP_US`].
pub const RECEIVE_BUFFER: usize = 256 * 1024;

const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What to read, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct RawReader {
    #[arg(long)]
    pub port: u16,
    #[arg(long)]
    pub database: String,
    #[arg(long)]
    pub slot: String,
    #[arg(long)]
    pub publication: String,
    /// Logical messages after whose commit it ends.
    #[arg(long)]
    pub messages: usize,
    /// Microseconds between two reads.
    #[arg(long, default_value_t = NAP_US)]
    pub nap_us: u64,
    /// Receive buffer asked of the kernel, in bytes, which caps it at net.core.rmem_max; 0 leaves it to the kernel.
    #[arg(long, default_value_t = RECEIVE_BUFFER)]
    pub receive_buffer: usize,
}

/// What was read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// pgoutput's `Message` messages.
    pub messages: usize,
    pub bytes: usize,
    pub reads: usize,
    /// Seconds from the server's yes to the last commit.
    pub seconds: f64,
    /// What this process had used by then.
    pub usage: Usage,
}

impl RawReader {
    /// Reads to the end; each logical message is shown as it is framed, with what pgoutput says of it.
    pub fn run(&self, mut show: impl FnMut(&[u8])) -> io::Result<Seen> {
        let (mut socket, mut buffer) = self.connect()?;
        let options = [
            ("proto_version", "1"),
            ("publication_names", self.publication.as_str()),
            ("messages", "true"),
        ];
        let start = start_logical(&self.slot, Lsn::INVALID, &options).map_err(other)?;
        ask(&mut socket, &start)?;
        wait_for(&mut socket, &mut buffer, |message| {
            matches!(message, Message::CopyBothResponse { .. })
        })?;
        let begun = Instant::now();
        let nap = Duration::from_micros(self.nap_us);
        // Read into where it is walked: no copy but that of the frame which is cut off at the end.
        let mut filled = buffer.len();
        let mut full = true;
        let mut buffer = Vec::from(buffer);
        let mut seen = Seen::default();
        loop {
            let (taken, end) = self.walk(&mut socket, &buffer[..filled], &mut seen, &mut show)?;
            if end {
                break;
            }
            // A full gulp says that there is more.
            if !full && !nap.is_zero() {
                std::thread::sleep(nap);
            }
            buffer.copy_within(taken..filled, 0);
            filled -= taken;
            buffer.resize(buffer.len().max(filled + GULP), 0);
            let gulp = &mut buffer[filled..filled + GULP];
            let bytes = socket.read(gulp)?;
            if bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += bytes;
            seen.bytes += bytes;
            seen.reads += 1;
            full = bytes == GULP;
        }
        seen.seconds = begun.elapsed().as_secs_f64();
        seen.usage = Usage::of(std::process::id()).unwrap_or_default();
        Ok(seen)
    }

    /// Takes the whole frames: how many bytes those are, and whether the last commit was among them.
    fn walk(
        &self,
        socket: &mut TcpStream,
        bytes: &[u8],
        seen: &mut Seen,
        show: &mut impl FnMut(&[u8]),
    ) -> io::Result<(usize, bool)> {
        let mut rest = bytes;
        let mut end = false;
        while !end && let Some(frame) = Frame::decode(rest, FRAME_BYTES_MAX).map_err(other)? {
            rest = &rest[frame.encoded_len()..];
            if frame.tag != b'd' {
                return Err(other(format!("the stream ended with {:?}", frame.tag)));
            }
            match replication::Message::decode(frame.body).map_err(other)? {
                replication::Message::XLogData(data) => match data.data.first() {
                    Some(b'M') => {
                        seen.messages += 1;
                        show(data.data);
                    }
                    Some(b'C') => end = seen.messages >= self.messages,
                    _ => {}
                },
                replication::Message::PrimaryKeepalive(keepalive) if keepalive.reply_requested => {
                    answer(socket, keepalive.wal_end)?;
                }
                _ => {}
            }
        }
        Ok((bytes.len() - rest.len(), end))
    }

    fn connect(&self) -> io::Result<(TcpStream, BytesMut)> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if self.receive_buffer > 0 {
            socket.set_recv_buffer_size(self.receive_buffer)?;
        }
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)).into())?;
        let mut socket = TcpStream::from(socket);
        socket.set_nodelay(true)?;

        let mut out = BytesMut::new();
        let params = [("replication", "database"), ("application_name", "raw-reader")];
        let startup = Startup {
            user: "postgres",
            database: Some(&self.database),
            params: &params,
            ..Startup::default()
        };
        let credentials = Credentials::default();
        let mut handshake =
            Handshake::start(startup, credentials, String::new(), &mut out).map_err(other)?;
        socket.write_all(&out)?;
        let mut buffer = BytesMut::new();
        wait_for(&mut socket, &mut buffer, |message| {
            // The server trusts everybody on loopback, so there is nothing to send.
            handshake.handle(message, &mut BytesMut::new()).is_ok_and(|at| at == Progress::Ready)
        })?;
        Ok((socket, buffer))
    }
}

fn ask(socket: &mut TcpStream, command: &str) -> io::Result<()> {
    let mut out = BytesMut::new();
    frontend::query(command, &mut out).map_err(other)?;
    socket.write_all(&out)
}

/// Reads up to the message that is `wanted`, and not a byte of what follows it from the buffer.
fn wait_for(
    socket: &mut TcpStream,
    buffer: &mut BytesMut,
    mut wanted: impl FnMut(Message<'_>) -> bool,
) -> io::Result<()> {
    let mut chunk = [0; 4096];
    loop {
        while let Some(frame) = Frame::decode(buffer, BODY_LEN_MAX).map_err(other)? {
            let len = frame.encoded_len();
            let message = Message::decode(frame).map_err(other)?;
            if let Message::ErrorResponse(fields) = &message {
                return Err(other(fields.to_error()));
            }
            let found = wanted(message);
            buffer.advance(len);
            if found {
                return Ok(());
            }
        }
        let bytes = socket.read(&mut chunk)?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.extend_from_slice(&chunk[..bytes]);
    }
}

/// Nothing is confirmed: the slot stays where it is.
fn answer(socket: &mut TcpStream, write: Lsn) -> io::Result<()> {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let clock = Timestamp::from_unix_micros(i64::try_from(unix.as_micros()).unwrap_or(i64::MAX));
    let (flush, apply) = (Lsn::INVALID, Lsn::INVALID);
    let mut out = BytesMut::new();
    StandbyStatusUpdate { write, flush, apply, clock, reply_requested: false }.encode(&mut out);
    socket.write_all(&out)
}

fn other(error: impl ToString) -> io::Error {
    io::Error::other(error.to_string())
}
