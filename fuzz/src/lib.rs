//! What the fuzz targets do with their input, as plain functions: libFuzzer calls them (`make fuzz`), and
//! so does an ordinary test with what was found worth keeping (`tests/fuzz_replay.rs`). Each asserts more
//! than the absence of a panic.

use std::time::Duration;

use bytes::BytesMut;
use factlib::{
    config::{Config, RawConfig},
    kafka::records,
    relay::fact::{Fact, Payload, created_at},
};
use factlib_protocol::{
    Frame, Lsn, Timestamp,
    auth::{
        channel_binding::{Channel, EndPointHash},
        scram::ClientFirst,
    },
    backend,
    feedback::FeedbackPolicy,
    frontend::{self, FirstMessage, STARTUP_LEN_MAX},
    handshake::{AuthMethods, BODY_LEN_MAX, Credentials, Startup},
    pgoutput::{Decoder, Message, ProtoVersion, Streaming, Tuple},
    replication::{self, StandbyStatusUpdate},
    session::{Event, Now, Session},
};

/// The parts are the whole, and however many bytes have come, the same frames are seen.
pub fn frame(data: &[u8]) {
    let (mut rest, mut sum) = (data, 0);
    while let Ok(Some(frame)) = Frame::decode(rest, BODY_LEN_MAX) {
        let len = frame.encoded_len();
        assert_eq!(Frame::encoded_len_of(&rest[..5], BODY_LEN_MAX), Ok(Some(len)));
        assert_eq!(Frame::decode(&rest[..len], BODY_LEN_MAX), Ok(Some(frame)));
        assert_eq!(Frame::decode(&rest[..len - 1], BODY_LEN_MAX), Ok(None));
        let mut out = BytesMut::new();
        frame.encode(&mut out).expect("what was read can be said");
        assert_eq!(out[..], rest[..len]);
        sum += len;
        rest = &rest[len..];
    }
    assert_eq!(sum + rest.len(), data.len());
}

/// A message of the server that is understood says the same when it is said again.
pub fn backend(data: &[u8]) {
    let Some((&tag, body)) = data.split_first() else { return };
    let Ok(message) = backend::Message::decode(Frame { tag, body }) else { return };
    let mut out = BytesMut::new();
    message.encode(&mut out).expect("what was read can be said");
    let again = Frame::decode(&out, usize::MAX).unwrap().expect("a whole frame");
    assert_eq!((again.tag, again.encoded_len()), (tag, out.len()));
    assert_eq!(backend::Message::decode(again), Ok(message));
    match message {
        backend::Message::DataRow(row) => assert_eq!(row.columns().count(), row.len()),
        backend::Message::RowDescription(row) => assert_eq!(row.fields().count(), row.len()),
        backend::Message::ErrorResponse(fields) | backend::Message::NoticeResponse(fields) => {
            assert!(fields.iter().all(|(code, _)| code != 0 && fields.field(code).is_some()));
            assert!(!fields.to_error().to_string().is_empty());
        }
        _ => {}
    }
}

/// The same for a message of a client, first with its tag and then as the untagged one that opens a
/// connection.
pub fn frontend(data: &[u8]) {
    let Some((&tag, body)) = data.split_first() else { return };
    if let Ok(message) = frontend::Message::decode(Frame { tag, body }) {
        let mut out = BytesMut::new();
        message.encode(&mut out).expect("what was read can be said");
        let again = Frame::decode(&out, usize::MAX).unwrap().expect("a whole frame");
        assert_eq!((again.tag, again.body), (tag, body));
    }
    if let Ok(Some((message, len))) = FirstMessage::decode(data, STARTUP_LEN_MAX) {
        let mut out = BytesMut::new();
        message.encode(&mut out).expect("what was read can be said");
        assert_eq!(out[..], data[..len]);
        assert_eq!(FirstMessage::decode(&data[..len - 1], STARTUP_LEN_MAX), Ok(None));
    }
}

/// What the two sides say inside `CopyData`, and a history of timelines.
pub fn replication(data: &[u8]) {
    if let Ok(message) = replication::Message::decode(data) {
        let mut out = BytesMut::new();
        message.encode(&mut out).expect("what was read can be said");
        assert_eq!(out[5..], *data);
    }
    if let Ok(message) = replication::StandbyMessage::decode(data) {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        assert_eq!(out[5..], *data);
    }
    if let Ok(switches) = replication::timeline_switches(data) {
        assert!(switches.is_sorted_by(|a, b| a.timeline < b.timeline));
    }
}

/// A stream of messages: the first byte says which options it was started with, then each message stands
/// behind its length. What is understood can be walked, and is the same bytes when it is said again.
pub fn pgoutput(data: &[u8]) {
    let Some((&options, mut rest)) = data.split_first() else { return };
    let versions = [ProtoVersion::V1, ProtoVersion::V2, ProtoVersion::V3, ProtoVersion::V4];
    let streamings = [Streaming::Off, Streaming::On, Streaming::Parallel, Streaming::On];
    let version = versions[usize::from(options & 3)];
    let streaming = streamings[usize::from(options >> 2 & 3)];
    let mut decoder = Decoder::new(version, streaming);
    while let Some((&[high, low], after)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes([high, low])).min(after.len());
        let (message, after) = after.split_at(len);
        rest = after;
        one_of_pgoutput(&mut decoder, message);
    }
}

fn one_of_pgoutput(decoder: &mut Decoder, data: &[u8]) {
    let before = decoder.clone();
    let Ok(message) = decoder.decode(data) else {
        // A refused message leaves the decoder as it was: the next is read as if it had not come.
        assert_eq!(format!("{decoder:?}"), format!("{before:?}"));
        return;
    };
    let row = |row: Tuple<'_>| assert_eq!(row.values().count(), row.len());
    match message {
        Message::Insert(insert) => row(insert.new),
        Message::Update(update) => {
            row(update.new);
            if let Some(old) = update.old {
                row(old.tuple());
            }
        }
        Message::Delete(delete) => row(delete.old.tuple()),
        Message::Relation(relation) => {
            assert_eq!(relation.columns.iter().count(), relation.columns.len());
        }
        Message::Truncate(truncate) => {
            assert_eq!(truncate.relations.iter().count(), truncate.relations.len());
        }
        _ => {}
    }
    let mut out = BytesMut::new();
    message.encode(&mut out).expect("what was read can be said");
    assert_eq!(out[..], *data);
    assert_eq!(before.clone().decode(&out), Ok(message));
    // Cut off, or with one byte more, it is another message or none.
    assert_ne!(before.clone().decode(&data[..data.len() - 1]), Ok(message));
    out.extend_from_slice(b"\0");
    assert!(before.clone().decode(&out).ok() != Some(message));
}

/// A server that does not know the password never proves that it does, whatever it says.
pub fn scram(data: &[u8]) {
    let first = ClientFirst::new(b"pencil", "nonce").unwrap();
    let (server_first, server_final) = match data.iter().position(|byte| *byte == 0) {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &b""[..]),
    };
    if asks_for_long(server_first) {
        return;
    }
    if let Ok(last) = first.server_first(server_first) {
        let said = last.message().to_vec();
        assert!(said.starts_with(b"c=biws,r=nonce") && !said.windows(6).any(|at| at == b"pencil"));
        assert!(last.server_final(server_final).is_err(), "an impostor is believed");
    }
}

/// The server chooses how long the hashing takes; below 10,000 rounds it is short enough to fuzz by.
fn asks_for_long(data: &[u8]) -> bool {
    data.windows(5).any(|digits| digits.iter().all(u8::is_ascii_digit))
}

/// The hash that a certificate asks for is one that there is, and is found without reading past its end.
pub fn certificate(data: &[u8]) {
    let Some(hash) = EndPointHash::of_certificate(data) else { return };
    assert!([28, 32, 48, 64].contains(&hash.digest(data).len()));
    // What stands behind a certificate is not part of it.
    let longer = [data, b"\0"].concat();
    let shorter = &data[..data.len() - 1];
    assert_eq!(EndPointHash::of_certificate(&longer), None);
    assert_eq!(EndPointHash::of_certificate(shorter), None);
}

/// A whole session with a server that says anything: what happens does not depend on how its bytes are
/// cut, what is told to it was confirmed, and a password is never shown. The first byte says how they are
/// cut, whether trust is allowed, and whether TLS carries them.
pub fn session(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else { return };
    if asks_for_long(bytes) {
        return;
    }
    let whole = live(how, bytes, bytes.len().max(1));
    let cut = live(how, bytes, usize::from(how >> 2) + 1);
    assert_eq!(whole, cut);
}

/// What happened and what was said, in words.
fn live(how: u8, bytes: &[u8], piece: usize) -> (Vec<String>, BytesMut) {
    let (trust, encrypted) = (how & 1 != 0, how & 2 != 0);
    let hash = [7; 32];
    let channel =
        if encrypted { Channel::Tls { server_end_point: Some(&hash) } } else { Channel::Plain };
    let now = Now { at: Duration::ZERO, clock: Timestamp(0) };
    let mut session: Session<Duration> = Session::new(1 << 16, FeedbackPolicy::default());
    let params = [("replication", "database")];
    let startup = Startup { user: "owl", database: None, params: &params, ..Startup::default() };
    let allow = AuthMethods { trust, scram: true, ..AuthMethods::default() };
    let password = Some(&b"pencil"[..]);
    let credentials = Credentials { password, allow, channel, ..Credentials::default() };
    session.log_in(startup, credentials, "nonce".into()).unwrap();
    // The start-up message is the only one without a tag.
    let mut said = session.send_buffer().split();
    let (mut told, mut confirmed, mut started) = (Vec::new(), Lsn(0), false);
    for piece in bytes.chunks(piece) {
        session.receive_buffer().extend_from_slice(piece);
        let mut failed = false;
        loop {
            let event = match session.poll(now) {
                Ok(None) => break,
                Ok(Some(event)) => event,
                Err(error) => {
                    told.push(error.to_string());
                    assert!(session.poll(now).is_err(), "a session that has failed goes on");
                    failed = true;
                    break;
                }
            };
            told.push(format!("{event:?}"));
            match event {
                Event::LoggedIn => {
                    assert!(trust, "an impostor is believed");
                    session.query("IDENTIFY_SYSTEM").unwrap();
                }
                Event::Finished if !started => {
                    started = true;
                    session.start_replication("START_REPLICATION", now).unwrap();
                }
                Event::Finished => session.query("IDENTIFY_SYSTEM").unwrap(),
                Event::Keepalive { keepalive, .. } => {
                    confirmed = confirmed.max(keepalive.wal_end);
                    session.confirm(keepalive.wal_end);
                }
                _ => {}
            }
        }
        // Statuses are sent when everything that came has been seen, and so depend on how it is cut.
        let mut sent = session.send_buffer().split();
        while let Ok(Some(frame)) = Frame::decode(&sent, usize::MAX) {
            let len = frame.encoded_len();
            match (frame.tag, StandbyStatusUpdate::decode(frame.body)) {
                (b'd', status) => assert!(status.unwrap().flush <= confirmed),
                _ => said.extend_from_slice(&sent[..len]),
            }
            let _ = sent.split_to(len);
        }
        if failed {
            break;
        }
    }
    assert!(!said.windows(6).any(|bytes| bytes == b"pencil"), "the password is shown");
    (told, said)
}

/// An envelope that is read can be used: its type is never empty, and what is borrowed is part of it.
pub fn envelope(data: &[u8]) {
    let _ = created_at(data);
    let Ok(fact) = Fact::decode(data) else { return };
    assert!(!fact.aggregate_type.is_empty());
    assert!(fact.payload.bytes().is_none_or(|payload| !payload.is_empty()));
    if let Payload::Borrowed(payload) = fact.payload {
        assert!(data.windows(payload.len()).any(|window| window == payload));
    }
    let (mut pairs, mut again) = (0, 0);
    fact.metadata(|_, _| pairs += 1);
    fact.metadata(|_, _| again += 1);
    if let Some(trace) = &fact.trace {
        trace.metadata(|_, _| pairs += 1);
        trace.metadata(|_, _| again += 1);
    }
    assert_eq!(pairs, again);
}

/// What a broker hands out is read or refused, whatever a batch with a right checksum and length says inside.
pub fn record_batch(data: &[u8]) {
    let mut batch = data.to_vec();
    if let (Some(len), Some(covered)) = (batch.len().checked_sub(12), batch.get(21..)) {
        let (len, crc) = (u32::try_from(len).unwrap(), crc32c::crc32c(covered));
        batch[8..12].copy_from_slice(&len.to_be_bytes());
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
    }
    for bytes in [data, &batch] {
        let mut found = 0;
        let read = records(bytes, |record| {
            found += 1;
            assert!(record.position.is_none_or(|position| position.len() < 256 << 20));
        });
        assert!(found == 0 || bytes.len() > 61, "records out of nothing");
        // What is read is read the same again.
        assert_eq!(read, records(bytes, |_| ()));
    }
}

/// A connection URL is accepted or refused; neither shows the password, however badly it is quoted.
pub fn url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    const SECRET: &str = "Xq7Vzd9w";
    if text.contains(SECRET) || text.contains("://") {
        return;
    }
    let (before, after) = text.split_once(' ').unwrap_or((text, ""));
    let raw = RawConfig {
        src_service_name: Some("orders".into()),
        kafka_brokers: Some("kafka".into()),
        master_database_url: Some(format!("postgres://{before}:{SECRET}@{after}")),
        ..RawConfig::default()
    };
    let shown = match Config::from_raw(&raw, |_| None) {
        Ok(config) => format!("{config:?}"),
        Err(problems) => problems.to_string(),
    };
    // Before a colon, or behind the @, it is not a password.
    if !before.contains([':', '@', '/', '?', '#']) {
        assert!(!shown.contains(SECRET), "{shown}");
    }
}
