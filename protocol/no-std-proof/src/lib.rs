//! `factlib-protocol` in a program without `std` and without libc.
//!
//! If anything pulled `std` in, its panic handler would clash with the one here, and its calls into libc
//! would have nobody to answer them. `check.sh` builds, links and runs it.

#![no_std]

extern crate alloc;

use alloc::{string::String, vec::Vec};
use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    ptr::null_mut,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::BytesMut;
use factlib_protocol::{
    Frame, Lsn, Timestamp, backend,
    feedback::FeedbackPolicy,
    handshake::{BODY_LEN_MAX, Credentials, Handshake, Progress, Startup},
    pgoutput,
    session::{Event, Now, Session},
};

/// A login that was recorded from a real server: `>` is what the client said, `<` the server.
const LOGIN: &str = include_str!("../../tests/fixtures/pg15/login-scram.txt");
const STREAM: &str = include_str!("../../tests/fixtures/pg15/stream.txt");

/// Logs in, reads a stream and confirms it; the number of the step that failed, or 0.
#[unsafe(no_mangle)]
pub extern "C" fn proof() -> i32 {
    if log_in() != Some(()) {
        return 1;
    }
    if read_stream() != Some(Lsn(0x21E_B678)) {
        return 2;
    }
    0
}

fn log_in() -> Option<()> {
    let first = hex(LOGIN.lines().nth(2)?);
    let (_, nonce) = core::str::from_utf8(&first).ok()?.split_once("n,,n=,r=")?;
    let startup = Startup {
        user: "owl",
        database: Some("owl"),
        params: &[("application_name", "owlpost")],
        ..Startup::default()
    };
    let credentials = Credentials { password: Some(b"pencil"), ..Credentials::default() };
    let mut out = BytesMut::new();
    let mut handshake =
        Handshake::start(startup, credentials, String::from(nonce), &mut out).ok()?;
    for line in LOGIN.lines() {
        let message = hex(line);
        if line.starts_with('>') {
            if out.split() != message[..] {
                return None;
            }
            continue;
        }
        let frame = Frame::decode(&message, BODY_LEN_MAX).ok()??;
        let message = backend::Message::decode(frame).ok()?;
        if handshake.handle(message, &mut out).ok()? == Progress::Ready {
            return handshake.into_session().parameter("server_version").map(drop);
        }
    }
    None
}

/// The whole recorded session, through the session machine: it ends with what was confirmed and told.
fn read_stream() -> Option<Lsn> {
    let now = Now { at: Duration::ZERO, clock: Timestamp(0) };
    let mut session: Session<Duration> = Session::new(BODY_LEN_MAX, FeedbackPolicy::default());
    session.request_tls().ok()?;
    session.receive_buffer().extend_from_slice(b"N");
    session.poll(now).ok()??;
    session.send_buffer().clear();

    let first = hex(STREAM.lines().nth(2)?);
    let (_, nonce) = core::str::from_utf8(&first).ok()?.split_once("n,,n=,r=")?;
    let params = [("replication", "database"), ("application_name", "owlpost")];
    let (user, database) = ("owl", Some("owl"));
    let startup = Startup { user, database, params: &params, ..Startup::default() };
    let credentials = Credentials { password: Some(b"pencil"), ..Credentials::default() };
    session.log_in(startup, credentials, String::from(nonce)).ok()?;
    let (mut decoder, mut told) = (pgoutput::Decoder::default(), Lsn::INVALID);
    for line in STREAM.lines() {
        let message = hex(line);
        if line.starts_with('>') {
            session.send_buffer().clear();
            if let Some(command) = message.strip_prefix(b"Q") {
                let command = core::str::from_utf8(command.get(4..command.len() - 1)?).ok()?;
                match command.starts_with("START_REPLICATION") {
                    true => session.start_replication(command, now).ok()?,
                    false => session.query(command).ok()?,
                }
            }
            continue;
        }
        session.receive_buffer().extend_from_slice(&message);
        while let Some(event) = session.poll(now).ok()? {
            if let Event::Data(piece) = event
                && let pgoutput::Message::Commit(commit) = decoder.decode(piece.data).ok()?
            {
                session.confirm(commit.end_lsn);
                session.hurry();
            }
        }
        told = session.feedback().map_or(told, |feedback| feedback.told());
    }
    Some(told)
}

fn hex(line: &str) -> Vec<u8> {
    let digit = |c: &u8| char::from(*c).to_digit(16).unwrap_or_default() as u8;
    line.as_bytes()[2..]
        .as_chunks()
        .0
        .iter()
        .map(|[high, low]| digit(high) << 4 | digit(low))
        .collect()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Hands out one piece after another and takes none back.
struct Arena {
    bytes: UnsafeCell<[u8; LEN]>,
    used: AtomicUsize,
}

const LEN: usize = 1 << 20;

#[global_allocator]
static ARENA: Arena = Arena { bytes: UnsafeCell::new([0; LEN]), used: AtomicUsize::new(0) };

// SAFETY: `used` only grows and is only changed atomically, so that no two pieces overlap.
unsafe impl Sync for Arena {}

// SAFETY: every piece lies inside `bytes`, begins where its layout wants it, and is handed out once.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = self.bytes.get().cast::<u8>();
        let place = |used: usize| {
            let at = (start as usize + used).next_multiple_of(layout.align()) - start as usize;
            Some(at + layout.size()).filter(|end| *end <= LEN)
        };
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, place) {
            Ok(used) => match place(used) {
                // SAFETY: `end` is at most `LEN`, and the piece is not longer than what lies before it.
                Some(end) => unsafe { start.add(end - layout.size()) },
                None => null_mut(),
            },
            Err(_) => null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
