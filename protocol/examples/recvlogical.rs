//! Prints what a logical slot streams, as pg_recvlogical does, with `std::net` alone.
//!
//! `cargo run -p factlib-protocol --example recvlogical -- 127.0.0.1:5432 me app slot publication [ENDPOS]`
//!
//! What was printed is confirmed; at ENDPOS it ends. Wants `PGPASSWORD`.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a program")]

use std::{
    error::Error,
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use factlib_protocol::{
    Lsn, Timestamp,
    feedback::FeedbackPolicy,
    handshake::{Credentials, Startup},
    pgoutput::{Decoder, Message},
    replication::{quote_identifier, start_logical},
    session::{Event, Now, Session},
};

fn now() -> Now<Instant> {
    let unix = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let clock = Timestamp::from_unix_micros(i64::try_from(unix.as_micros()).unwrap_or(i64::MAX));
    Now { at: Instant::now(), clock }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, user, database, slot, publication, rest @ ..] = &args[..] else {
        return Err("usage: recvlogical ADDRESS USER DATABASE SLOT PUBLICATION [ENDPOS]".into());
    };
    let endpos = rest.first().map_or(Ok(Lsn(u64::MAX)), |endpos| endpos.parse())?;
    let publication = quote_identifier(publication);
    let options =
        [("proto_version", "1"), ("publication_names", &publication), ("messages", "true")];
    let start = start_logical(slot, Lsn::INVALID, &options)?;

    let mut socket = TcpStream::connect(address)?;
    let mut session = Session::new(64 << 20, FeedbackPolicy::default());
    let params = [("replication", "database"), ("application_name", "recvlogical")];
    let startup = Startup { user, database: Some(database), params: &params, ..Startup::default() };
    let password = std::env::var("PGPASSWORD").unwrap_or_default();
    let credentials = Credentials { password: Some(password.as_bytes()), ..Credentials::default() };
    let mut nonce = [0; 18];
    getrandom::fill(&mut nonce)?;
    session.log_in(startup, credentials, BASE64_STANDARD.encode(nonce))?;

    let (mut decoder, mut open, mut end) = (Decoder::default(), false, Lsn::INVALID);
    let (mut told, mut buffer) = (false, vec![0; 64 << 10]);
    loop {
        while let Some(event) = session.poll(now())? {
            match event {
                Event::LoggedIn => session.start_replication(&start, now())?,
                Event::Data(data) => match decoder.decode(data.data)? {
                    Message::Begin(_) => open = true,
                    Message::Commit(commit) => (open, end) = (false, commit.end_lsn),
                    Message::Message(message) => {
                        println!("{}", message.content.escape_ascii());
                        if !message.transactional {
                            end = message.lsn;
                        }
                    }
                    other => println!("{other:?}"),
                },
                // All that was sent is printed: the server may forget what was for others.
                Event::Keepalive { keepalive, .. } if !open => end = keepalive.wal_end,
                Event::Refused(fields) => return Err(fields.to_error().into()),
                Event::Finished => return Ok(()),
                _ => {}
            }
            session.confirm(end);
        }
        if end >= endpos && !told {
            session.tell(now());
            told = true;
        } else if told && session.feedback().is_some_and(|feedback| feedback.is_confirmed(end)) {
            session.terminate();
            return Ok(socket.write_all(session.send_buffer())?);
        }
        socket.write_all(session.send_buffer())?;
        session.send_buffer().clear();
        let wait = session.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        socket.set_read_timeout(wait.map(|wait| wait.max(Duration::from_millis(1))))?;
        match socket.read(&mut buffer) {
            Ok(0) => return Err("the server closed the connection".into()),
            Ok(len) => {
                session.receive_buffer().extend_from_slice(buffer.get(..len).unwrap_or_default())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}
