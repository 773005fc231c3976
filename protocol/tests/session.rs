//! A whole session, played against what a real server said, and against servers that say other things.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

mod fixtures;

use std::time::Duration;

use bytes::{Buf, BytesMut};
use factlib_protocol::{
    Frame, Lsn, Timestamp,
    backend::{ErrorFields, Message, TransactionStatus},
    feedback::{FeedbackPolicy, Revealed},
    handshake::{Credentials, Startup},
    pgoutput::{self, Decoder},
    replication::{
        PrimaryKeepalive, StandbyStatusUpdate, XLogData, identify_system, start_logical,
    },
    session::{ANSWER_LEN_MAX, Event, Now, Session, SessionError},
    tls::{Answer, TlsError},
};
use fixtures::Speaker;

const START: Duration = Duration::from_secs(60);

const fn at(millis: u64) -> Now<Duration> {
    Now { at: Duration::from_millis(60_000 + millis), clock: Timestamp(5) }
}

/// Not the limit of any other phase.
const STREAM_LEN_MAX: usize = 3 << 20;

fn new() -> Session<Duration> {
    Session::new(STREAM_LEN_MAX, FeedbackPolicy::default())
}

fn log_in(session: &mut Session<Duration>, nonce: &str) {
    let params = [("replication", "database"), ("application_name", "owlpost")];
    let startup =
        Startup { user: "owl", database: Some("owl"), params: &params, ..Startup::default() };
    let credentials = Credentials { password: Some(b"pencil"), ..Credentials::default() };
    session.log_in(startup, credentials, nonce.into()).unwrap();
}

/// Hands in what the server says, in pieces of `piece` bytes, and tells in words what happened.
fn hear(
    session: &mut Session<Duration>,
    bytes: &[u8],
    piece: usize,
    now: Now<Duration>,
) -> Result<Vec<String>, SessionError> {
    let mut told = Vec::new();
    for piece in bytes.chunks(piece) {
        session.receive_buffer().extend_from_slice(piece);
        while let Some(event) = session.poll(now)? {
            told.push(tell(event));
        }
    }
    Ok(told)
}

fn tell(event: Event<'_>) -> String {
    match event {
        Event::Columns(columns) => format!("{} columns", columns.len()),
        Event::Row(row) => row
            .columns()
            .map(|value| value.map_or("NULL".into(), |text| text.escape_ascii().to_string()))
            .collect::<Vec<_>>()
            .join(" | "),
        Event::Completed(tag) => format!("completed {tag}"),
        Event::Refused(fields) => format!("refused {}", fields.code()),
        Event::Notice(fields) => format!("notice {}", fields.message()),
        Event::Data(data) => match Decoder::default().decode(data.data).unwrap() {
            pgoutput::Message::Begin(_) => "Begin".into(),
            pgoutput::Message::Commit(commit) => format!("Commit {}", commit.end_lsn),
            pgoutput::Message::Message(fact) => fact.content.escape_ascii().to_string(),
            other => format!("{other:?}"),
        },
        Event::Keepalive { keepalive, revealed: Revealed::Alive } => {
            format!("keepalive {}", keepalive.wal_end)
        }
        Event::Keepalive { revealed: Revealed::ServerStopping, .. } => "the server stops".into(),
        other => format!("{other:?}"),
    }
}

fn said(session: &mut Session<Duration>) -> BytesMut {
    session.send_buffer().split()
}

fn statuses(mut bytes: BytesMut) -> Vec<StandbyStatusUpdate> {
    let mut found = Vec::new();
    while let Some(frame) = Frame::decode(&bytes, 100).unwrap() {
        assert_eq!(frame.tag, b'd');
        found.push(StandbyStatusUpdate::decode(frame.body).unwrap());
        let len = frame.encoded_len();
        bytes.advance(len);
    }
    assert!(bytes.is_empty());
    found
}

/// pg_recvlogical's session with a real server, in which it made the commands and we the rest.
#[test]
fn a_recorded_session_is_held_as_pg_recvlogical_held_it() {
    let recorded = fixtures::session(fixtures::STREAM);
    let client = |message: &[u8]| message.to_vec();
    for piece in [1, 7, 4096] {
        let mut session = new();
        let nonce = recorded[2].1.split(|byte| *byte == b'=').next_back().unwrap().to_vec();
        log_in(&mut session, std::str::from_utf8(&nonce).unwrap());
        let mut told = Vec::new();
        for (speaker, message) in &recorded {
            match (speaker, message[0]) {
                (Speaker::Server, _) => {
                    told.extend(hear(&mut session, message, piece, at(0)).unwrap())
                }
                (Speaker::Client, b'Q') => {
                    let command = std::str::from_utf8(&message[5..message.len() - 1]).unwrap();
                    match command.starts_with("START_REPLICATION") {
                        true => session.start_replication(command, at(0)).unwrap(),
                        false => session.query(command).unwrap(),
                    }
                    assert_eq!(said(&mut session), client(message));
                }
                // What it told the server is its own affair; ours is below.
                (Speaker::Client, b'd') => {}
                (Speaker::Client, b'c') => {
                    assert_eq!(statuses(said(&mut session)).len(), 1);
                    session.end_stream().unwrap();
                    assert_eq!(said(&mut session), client(message));
                }
                (Speaker::Client, b'X') => {
                    session.terminate();
                    assert_eq!(said(&mut session), client(message));
                }
                (Speaker::Client, _) => assert_eq!(said(&mut session), client(message)),
            }
        }
        assert_eq!(
            told,
            [
                "LoggedIn",
                "1 columns",
                "",
                "completed SELECT 1",
                "Finished",
                "1 columns",
                "0700",
                "completed SHOW",
                "Finished",
                "4 columns",
                "7711509843797492267 | 1 | 0/21EB6B8 | owl",
                "completed IDENTIFY_SYSTEM",
                "Finished",
                "Started",
                "keepalive 0/21EB5C8",
                "Begin",
                "one",
                "two",
                "Commit 0/21EB678",
                "three",
                "keepalive 0/21EB6B8",
                "completed COPY 0",
                "completed START_REPLICATION",
                "Finished",
            ]
        );
        assert_eq!(
            session.about().parameter("server_version").map(|text| &text[..5]),
            Some("15.18")
        );
    }
}

/// A session that streams, and has told the server so and been answered.
fn streaming() -> Session<Duration> {
    let mut session = ready();
    session.start_replication(&start_logical("s", Lsn::INVALID, &[]).unwrap(), at(0)).unwrap();
    said(&mut session);
    assert_eq!(hear(&mut session, b"W\0\0\0\x07\0\0\0", 8, at(0)).unwrap(), ["Started"]);
    let [status] = statuses(said(&mut session)).try_into().unwrap();
    assert!(status.reply_requested && status.flush == Lsn::INVALID);
    assert_eq!(hear(&mut session, &keepalive(8, false), 100, at(0)).unwrap(), ["keepalive 0/8"]);
    assert!(session.feedback().unwrap().is_confirmed(Lsn::INVALID));
    session
}

fn ready() -> Session<Duration> {
    let mut session = new();
    log_in(&mut session, "nonce");
    said(&mut session);
    assert_eq!(
        hear(&mut session, b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I", 5, at(0)).unwrap(),
        ["LoggedIn"]
    );
    session
}

fn keepalive(wal_end: u64, reply_requested: bool) -> BytesMut {
    let mut out = BytesMut::new();
    PrimaryKeepalive { wal_end: Lsn(wal_end), server_clock: Timestamp(0), reply_requested }
        .encode(&mut out);
    out
}

fn refusal() -> BytesMut {
    let mut out = BytesMut::new();
    ErrorFields::encode(&[(b'S', b"ERROR"), (b'C', b"55006"), (b'M', b"busy")], &mut out).unwrap();
    out
}

fn finished() -> BytesMut {
    let mut out = BytesMut::new();
    Message::ReadyForQuery(TransactionStatus::Idle).encode(&mut out).unwrap();
    out
}

#[test]
fn what_is_confirmed_is_told_and_nothing_else() {
    let mut session = streaming();
    session.confirm(Lsn(7));
    assert_eq!(session.deadline(), Some(START + Duration::from_millis(250)));
    assert_eq!(session.poll(at(249)), Ok(None));
    assert!(said(&mut session).is_empty());
    assert_eq!(session.poll(at(250)), Ok(None));
    let [status] = statuses(said(&mut session)).try_into().unwrap();
    assert_eq!((status.write, status.flush, status.clock), (Lsn(8), Lsn(7), Timestamp(5)));
    // Less than before would take a promise back.
    session.confirm(Lsn(3));
    assert_eq!(session.poll(at(1000)), Ok(None));
    assert!(said(&mut session).is_empty());
    assert_eq!(session.poll(at(6000)), Ok(None));
    let [status] = statuses(said(&mut session)).try_into().unwrap();
    assert_eq!(status.flush, Lsn(7));
}

#[test]
fn a_question_of_the_server_is_answered_in_the_same_turn() {
    let mut session = streaming();
    assert_eq!(hear(&mut session, &keepalive(8, true), 100, at(10)).unwrap(), ["keepalive 0/8"]);
    assert_eq!(statuses(said(&mut session)).len(), 1);
    assert_eq!(hear(&mut session, &keepalive(8, true), 100, at(11)).unwrap(), ["the server stops"]);
}

#[test]
fn a_client_that_leaves_knows_when_it_was_understood() {
    let mut session = streaming();
    session.confirm(Lsn(8));
    session.tell(at(1));
    assert!(statuses(said(&mut session))[0].reply_requested);
    assert!(!session.feedback().unwrap().is_confirmed(Lsn(8)));
    hear(&mut session, &keepalive(8, false), 100, at(2)).unwrap();
    assert!(session.feedback().unwrap().is_confirmed(Lsn(8)));
}

#[test]
fn a_refused_stream_leaves_the_session_usable() {
    let mut session = ready();
    session.start_replication("START_REPLICATION", at(0)).unwrap();
    assert_eq!(hear(&mut session, &refusal(), 3, at(0)).unwrap(), ["refused 55006"]);
    assert_eq!(hear(&mut session, &finished(), 3, at(0)).unwrap(), ["Finished"]);
    session.query(identify_system()).unwrap();
}

#[test]
fn a_stream_that_the_server_ends_is_ended_on_both_sides() {
    // A timeline that has ended: CopyDone, then a row that names the next one.
    let mut session = streaming();
    assert!(hear(&mut session, b"c\0\0\0\x04", 5, at(0)).unwrap().is_empty());
    assert_eq!(said(&mut session), b"c\0\0\0\x04"[..]);
    let row = b"D\0\0\0\x0b\0\x01\0\0\0\x012";
    assert_eq!(hear(&mut session, row, 5, at(0)).unwrap(), ["2"]);
    assert_eq!(hear(&mut session, &finished(), 5, at(0)).unwrap(), ["Finished"]);
    assert!(session.feedback().is_none() && session.deadline().is_none());

    // A server that stops: no CopyDone, and then the end of the connection.
    let mut session = streaming();
    assert_eq!(hear(&mut session, b"C\0\0\0\x0bCOPY 0\0", 5, at(0)).unwrap(), ["completed COPY 0"]);
    assert!(said(&mut session).is_empty());

    let mut session = streaming();
    assert_eq!(hear(&mut session, &refusal(), 5, at(0)).unwrap(), ["refused 55006"]);
    assert_eq!(hear(&mut session, &finished(), 5, at(0)).unwrap(), ["Finished"]);
}

#[test]
fn what_comes_after_the_end_was_asked_for_is_dropped() {
    let mut session = streaming();
    session.end_stream().unwrap();
    let (wal_start, wal_end, server_clock) = (Lsn(9), Lsn(9), Timestamp(0));
    let mut late = BytesMut::new();
    XLogData { wal_start, wal_end, server_clock, data: b"not even pgoutput" }
        .encode(&mut late)
        .unwrap();
    assert!(hear(&mut session, &late, 100, at(0)).unwrap().is_empty());
    assert!(hear(&mut session, b"c\0\0\0\x04", 5, at(0)).unwrap().is_empty());
    // Seen on 14 to 18, in every second or third stream that a client ends.
    assert!(hear(&mut session, &late, 100, at(0)).unwrap().is_empty());
    assert_eq!(hear(&mut session, &finished(), 5, at(0)).unwrap(), ["Finished"]);
}

#[test]
fn no_copy_data_is_dropped_where_there_was_no_stream() {
    let mut session = ready();
    session.start_replication("START_REPLICATION", at(0)).unwrap();
    assert_eq!(hear(&mut session, &refusal(), 100, at(0)).unwrap(), ["refused 55006"]);
    assert!(hear(&mut session, &keepalive(9, false), 100, at(0)).is_err());
}

fn asking_tls() -> Session<Duration> {
    let mut session = new();
    assert_eq!(session.read_max(), usize::MAX);
    session.request_tls().unwrap();
    assert_eq!(said(&mut session), b"\0\0\0\x08\x04\xd2\x16\x2f"[..]);
    assert_eq!(session.read_max(), 1);
    assert_eq!(session.poll(at(0)), Ok(None));
    session
}

#[test]
fn a_session_is_encrypted_before_anything_is_said_in_it() {
    let mut session = asking_tls();
    session.receive_buffer().extend_from_slice(b"S");
    assert_eq!(session.poll(at(0)), Ok(Some(Event::TlsAnswered(Answer::Tls))));
    assert_eq!(session.poll(at(0)), Ok(None));
    assert_eq!(session.read_max(), 0);
    log_in(&mut session, "nonce");
    assert_eq!(session.read_max(), usize::MAX);
    assert!(said(&mut session).ends_with(b"owlpost\0\0"));
    assert_eq!(
        hear(&mut session, b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I", 5, at(0)).unwrap(),
        ["LoggedIn"]
    );
}

#[test]
fn a_server_without_tls_leaves_it_to_the_driver_to_go_on() {
    let mut session = asking_tls();
    session.receive_buffer().extend_from_slice(b"N");
    assert_eq!(session.poll(at(0)), Ok(Some(Event::TlsAnswered(Answer::Plaintext))));
    // It will not have learned it in the meantime.
    assert!(session.request_tls().is_err());
    log_in(&mut session, "nonce");
}

#[test]
fn what_comes_around_the_answer_without_a_key_ends_the_session() {
    let attack = |session: &mut Session<Duration>, bytes: &[u8]| {
        session.receive_buffer().extend_from_slice(bytes);
        let error = session.poll(at(0)).unwrap_err();
        assert!(session.poll(at(0)).is_err());
        error
    };
    let unencrypted = SessionError::Tls(TlsError::Unencrypted);
    assert_eq!(attack(&mut asking_tls(), b"SR"), unencrypted);
    assert_eq!(attack(&mut asking_tls(), b"EMsecret"), SessionError::Tls(TlsError::Refused));
    let mut session = asking_tls();
    session.receive_buffer().extend_from_slice(b"S");
    assert!(session.poll(at(0)).is_ok());
    assert_eq!(attack(&mut session, b"R"), unencrypted);
    // A driver that does not look before it logs in is not fooled either.
    let mut session = asking_tls();
    session.receive_buffer().extend_from_slice(b"S");
    assert!(session.poll(at(0)).is_ok());
    session.receive_buffer().extend_from_slice(b"R");
    let startup = Startup { user: "owl", ..Startup::default() };
    assert_eq!(session.log_in(startup, Credentials::default(), "n".into()), Err(unencrypted));
    assert!(said(&mut session).is_empty() && session.poll(at(0)).is_err());
}

#[test]
fn notices_and_settings_come_at_any_time() {
    let mut session = streaming();
    let mut out = BytesMut::new();
    let fields = [(b'S', &b"WARNING"[..]), (b'M', b"skipped")];
    ErrorFields::encode(&fields, &mut out).unwrap();
    out[0] = b'N';
    Message::ParameterStatus { name: "TimeZone", value: b"Mars" }.encode(&mut out).unwrap();
    assert_eq!(hear(&mut session, &out, 9, at(0)).unwrap(), ["notice skipped"]);
    assert_eq!(session.about().parameter("TimeZone"), Some("Mars"));
}

#[test]
fn a_notice_while_logging_in_is_told() {
    let mut session = new();
    log_in(&mut session, "nonce");
    let mut out = BytesMut::new();
    ErrorFields::encode_notice(&[(b'M', b"no collation version")], &mut out).unwrap();
    out.extend_from_slice(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I");
    assert_eq!(
        hear(&mut session, &out, 7, at(0)).unwrap(),
        ["notice no collation version", "LoggedIn"]
    );
}

#[test]
fn a_notification_changes_nothing_and_an_end_while_idle_is_told() {
    let mut session = ready();
    let mut out = BytesMut::new();
    let notification = Message::NotificationResponse { process_id: 1, channel: b"c", payload: b"" };
    notification.encode(&mut out).unwrap();
    assert_eq!(hear(&mut session, &out, 100, at(0)).unwrap(), [""; 0]);
    out.clear();
    let fields = [(b'S', &b"FATAL"[..]), (b'C', b"57P01"), (b'M', b"ended by the administrator")];
    ErrorFields::encode(&fields, &mut out).unwrap();
    assert_eq!(hear(&mut session, &out, 100, at(0)).unwrap(), ["refused 57P01"]);
}

#[test]
fn a_timeline_that_has_ended_answers_with_the_next_one() {
    let mut session = ready();
    session.start_replication("START_REPLICATION", at(0)).unwrap();
    let answer = b"T\0\0\0\x06\0\0D\0\0\0\x0b\0\x01\0\0\0\x012C\0\0\0\x06x\0Z\0\0\0\x05I";
    assert_eq!(
        hear(&mut session, answer, 5, at(0)).unwrap(),
        ["0 columns", "2", "completed x", "Finished"]
    );
}

#[test]
fn a_new_stream_begins_without_the_promises_of_the_last() {
    let mut session = streaming();
    session.confirm(Lsn(7));
    session.end_stream().unwrap();
    hear(&mut session, b"c\0\0\0\x04Z\0\0\0\x05I", 5, at(10)).unwrap();
    said(&mut session);
    session.start_replication("START_REPLICATION", at(20)).unwrap();
    said(&mut session);
    hear(&mut session, b"W\0\0\0\x07\0\0\0", 8, at(500)).unwrap();
    let [status] = statuses(said(&mut session)).try_into().unwrap();
    assert_eq!(status.flush, Lsn::INVALID);
    // CopyBothResponse answers what was asked then.
    assert_eq!(session.feedback().unwrap().alive_since(), at(20).at);
}

#[test]
fn what_is_read_but_not_safe_is_told_as_written() {
    let mut session = streaming();
    session.receive(Lsn(50));
    session.confirm(Lsn(9));
    session.hurry();
    assert_eq!(session.poll(at(1)), Ok(None));
    let [status] = statuses(said(&mut session)).try_into().unwrap();
    assert_eq!((status.write, status.flush), (Lsn(50), Lsn(9)));
}

#[test]
fn a_session_is_ended_once_and_only_if_there_is_one() {
    let mut session = new();
    session.terminate();
    assert!(said(&mut session).is_empty());
    let mut session = ready();
    session.terminate();
    session.terminate();
    assert_eq!(said(&mut session), b"X\0\0\0\x04"[..]);
    let mut session = ready();
    assert!(hear(&mut session, b"?\0\0\0\x04", 5, at(0)).is_err());
    session.terminate();
    assert!(said(&mut session).is_empty() && session.poll(at(0)).is_err());
}

#[test]
fn a_server_does_not_decide_how_much_of_its_settings_is_kept() {
    let mut session = streaming();
    let mut out = BytesMut::new();
    for name in 'a'..='z' {
        let name = name.to_string();
        Message::ParameterStatus { name: &name, value: &[0xff; 10_000] }.encode(&mut out).unwrap();
    }
    let error = hear(&mut session, &out, 5000, at(0)).unwrap_err();
    assert!(error.to_string().contains("262144 bytes"), "{error}");
    let kept: usize = session.about().parameters.iter().map(|(_, value)| value.len()).sum();
    assert!(kept <= 256 * 1024);
}

#[test]
fn what_has_no_place_is_refused_before_it_is_sent() {
    let mut session = new();
    let not_now = |call, state| Err(SessionError::NotNow { call, state });
    assert_eq!(session.query("select 1"), not_now("a query", "not logged in"));
    assert_eq!(session.end_stream(), not_now("the end of a stream", "not logged in"));
    let mut session = streaming();
    assert_eq!(session.query("select 1"), not_now("a query", "streaming"));
    assert_eq!(session.start_replication("x", at(0)), not_now("START_REPLICATION", "streaming"));
    assert!(said(&mut session).is_empty());
    let mut session = ready();
    assert!(session.query("a\0b").is_err());
    session.query("select 1").unwrap();
}

#[test]
fn a_session_that_has_failed_stays_failed() {
    let mut session = streaming();
    let error = hear(&mut session, b"d\0\0\0\x05?", 6, at(0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "what the server sent cannot be read: unknown byte 0x3f ('?') for CopyData.tag"
    );
    let over = SessionError::NotNow { call: "more", state: "failed" };
    assert_eq!(hear(&mut session, &keepalive(9, true), 100, at(0)), Err(over));
    assert_eq!(session.deadline(), None);

    let mut session = ready();
    let error = hear(&mut session, b"W\0\0\0\x07\0\0\0", 8, at(0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server sent CopyBothResponse while waiting for a command: is this PostgreSQL?"
    );
}

/// Found by the fuzzer: while it was failing for its length, the frame was waited for.
#[test]
fn a_message_that_was_too_long_is_not_waited_for_afterwards() {
    let mut session = new();
    log_in(&mut session, "nonce");
    session.receive_buffer().extend_from_slice(b":\0\0\xab\xe7");
    assert!(session.poll(at(0)).is_err());
    assert!(session.poll(at(0)).is_err());
}

#[test]
fn what_comes_after_the_session_was_ended_is_dropped() {
    let mut session = streaming();
    session.terminate();
    assert_eq!(said(&mut session), b"X\0\0\0\x04"[..]);
    assert!(hear(&mut session, &keepalive(9, true), 100, at(0)).unwrap().is_empty());
    assert!(session.receive_buffer().is_empty() && said(&mut session).is_empty());
}

#[test]
fn every_phase_has_a_longest_message() {
    let frame = |len: usize| [&b"D"[..], &u32::try_from(len + 4).unwrap().to_be_bytes()].concat();
    let too_long = |session: &mut Session<Duration>, len| {
        hear(session, &frame(len), 100, at(0)).unwrap_err().to_string()
    };
    let mut session = new();
    log_in(&mut session, "nonce");
    assert!(too_long(&mut session, 30_001).contains("over the accepted maximum"));
    let mut session = ready();
    session.query("select 1").unwrap();
    assert_eq!(hear(&mut session, &frame(ANSWER_LEN_MAX), 100, at(0)).unwrap(), [""; 0]);
    let mut session = ready();
    session.query("select 1").unwrap();
    assert!(too_long(&mut session, ANSWER_LEN_MAX + 1).contains("over the accepted maximum"));
    for end in [false, true] {
        let mut session = streaming();
        if end {
            session.end_stream().unwrap();
        }
        assert_eq!(hear(&mut session, &frame(STREAM_LEN_MAX), 100, at(0)).unwrap(), [""; 0]);
        let mut session = streaming();
        assert!(too_long(&mut session, STREAM_LEN_MAX + 1).contains("over the accepted maximum"));
    }
}

#[test]
fn a_stream_is_handed_over_with_what_came_behind_its_start() {
    let mut session = ready();
    session.start_replication("START_REPLICATION", at(0)).unwrap();
    said(&mut session);
    let behind = keepalive(9, false);
    session.receive_buffer().extend_from_slice(b"W\0\0\0\x07\0\0\0");
    session.receive_buffer().extend_from_slice(&behind);
    assert_eq!(session.poll(at(0)), Ok(Some(Event::Started)));
    let (received, send) = session.into_buffers();
    assert_eq!(received, behind);
    assert!(send.is_empty());
}
