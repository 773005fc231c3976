//! The protocol crate's session with a real server, from the question for TLS to a stream and back.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

use factlib_protocol::feedback::FeedbackPolicy;
use factlib_protocol::handshake::{Credentials, Startup};
use factlib_protocol::replication::start_logical;
use factlib_protocol::session::{Event, Now, Session};
use factlib_protocol::tls::Answer;
use factlib_protocol::{Lsn, Timestamp};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use testkit::Postgres;

/// How often a stream is ended: where it went wrong, it did in every second or third.
const STREAMS: usize = 20;

fn now() -> Now<Instant> {
    Now { at: Instant::now(), clock: Timestamp(0) }
}

struct Client {
    socket: TcpStream,
    session: Session<Instant>,
}

impl Client {
    fn connect(postgres: &Postgres) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", postgres.port())).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { socket, session: Session::new(1 << 20, FeedbackPolicy::default()) }
    }

    fn log_in(&mut self) {
        let params = [("replication", "database")];
        let (user, database) = ("postgres", Some("app"));
        let startup = Startup { user, database, params: &params, ..Startup::default() };
        self.session.log_in(startup, Credentials::default(), "nonce".into()).unwrap();
        self.until(|event| matches!(event, Event::LoggedIn).then_some(()));
    }

    fn until<T>(&mut self, mut found: impl FnMut(Event<'_>) -> Option<T>) -> T {
        let mut piece = [0; 8192];
        loop {
            while let Some(event) = self.session.poll(now()).unwrap() {
                if let Some(found) = found(event) {
                    return found;
                }
            }
            self.socket.write_all(self.session.send_buffer()).unwrap();
            self.session.send_buffer().clear();
            let room = self.session.read_max().min(piece.len());
            let len = self.socket.read(&mut piece[..room]).unwrap();
            assert!(len > 0, "the server hung up");
            self.session.receive_buffer().extend_from_slice(&piece[..len]);
        }
    }
}

/// A server with a slot, and the command that streams it.
fn streamable() -> (Postgres, String) {
    let postgres = Postgres::builder().start();
    let mut sql = postgres.client();
    sql.batch_execute("CREATE PUBLICATION p").unwrap();
    let slot = "SELECT pg_create_logical_replication_slot('s', 'pgoutput')";
    sql.batch_execute(slot).unwrap();
    let options = [("proto_version", "1"), ("publication_names", "p"), ("messages", "true")];
    (postgres, start_logical("s", Lsn::INVALID, &options).unwrap())
}

/// Symptom: "the server sent CopyData while waiting for the end of a stream".
#[test]
fn a_stream_that_is_ended_leaves_a_session_that_takes_queries() {
    let (postgres, start) = streamable();
    let mut sql = postgres.client();
    for round in 0..STREAMS {
        let mut client = Client::connect(&postgres);
        client.log_in();
        client.session.start_replication(&start, now()).unwrap();
        client.until(|event| matches!(event, Event::Started).then_some(()));
        if round % 2 == 0 {
            sql.batch_execute("SELECT pg_logical_emit_message(true, 'p', 'on its way')").unwrap();
        }
        client.session.end_stream().unwrap();
        client.until(|event| matches!(event, Event::Finished).then_some(()));
        client.session.query("SHOW server_version_num").unwrap();
        let version = client.until(|event| match event {
            Event::Row(row) => row.columns().next().flatten().map(<[u8]>::to_vec),
            _ => None,
        });
        assert!(version.starts_with(postgres.major().to_string().as_bytes()));
        client.until(|event| matches!(event, Event::Finished).then_some(()));
    }
}

/// What `Session::end_stream` says of servers. Where this fails, a server has learned better.
#[test]
fn a_walsender_ends_the_second_logical_stream_of_a_session_as_soon_as_it_begins() {
    let (postgres, start) = streamable();
    let mut client = Client::connect(&postgres);
    client.log_in();
    for _ in 0..2 {
        client.session.start_replication(&start, now()).unwrap();
        client.until(|event| matches!(event, Event::Started).then_some(()));
        // Only the first would go on.
        client.session.end_stream().unwrap();
        client.until(|event| matches!(event, Event::Finished).then_some(()));
    }
    client.session.start_replication(&start, now()).unwrap();
    client.until(|event| matches!(event, Event::Started).then_some(()));
    let ended = client.until(|event| match event {
        Event::Completed(tag) => Some(tag.to_owned()),
        _ => None,
    });
    assert_eq!(ended, "COPY 0");
}

#[test]
fn a_server_without_tls_says_so_in_one_byte_and_lets_us_in() {
    let postgres = Postgres::builder().start();
    let mut client = Client::connect(&postgres);
    client.session.request_tls().unwrap();
    let answer = client.until(|event| match event {
        Event::TlsAnswered(answer) => Some(answer),
        _ => None,
    });
    assert_eq!(answer, Answer::Plaintext);
    client.log_in();
}
