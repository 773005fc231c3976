//! What the stream carries: frames of `CopyData`, an `XLogData` in each, a logical message in that.

use std::{
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes, BytesMut};
use criterion::Criterion;
use factlib_protocol::{
    Frame, Lsn, Timestamp, backend, pgoutput,
    replication::{self, XLogData},
};
use factlib_protocol_bench::{FRAMES, HEADERS, MESSAGE, OURS, PGWIRE, PIECE, POSTGRES, WALSTREAM};
use pg_walstream::{LogicalReplicationMessage, LogicalReplicationParser};
use pgwire_replication::protocol::{
    BackendMessage, ReplicationCopyData, framing::MessageReader, parse_copy_data,
};
use postgres_protocol::message::backend::{Header, Message as Postgres};

use crate::{group, keep, measure, memcpy, seen};

const BUFFER_LEN: usize = 64 << 10;
const BODY_LEN_MAX: usize = 64 << 20;
const PREFIX: &str = "orders";

pub(crate) fn messages(c: &mut Criterion) {
    let (stream, payloads) = stream();
    let expected = vec![vec![b'x'; 300]; payloads.len()];
    let mut walstream = LogicalReplicationParser::with_protocol_version(1);
    let mut reader = MessageReader::new();
    assert_eq!(seen(|see| read(&mut stream.clone(), see)), expected);
    assert_eq!(seen(|see| read_walstream(&mut stream.clone(), &mut walstream, see)), expected);
    let ends_alike = |(data, content): (&Vec<u8>, &Vec<u8>)| data.ends_with(content);
    let data = seen(|see| read_pgwire(&stream, &mut reader, see));
    assert!(data.len() == expected.len() && data.iter().zip(&expected).all(ends_alike));

    let mut group = group(c, MESSAGE, payloads.len(), stream.len());
    let refill = |buf: &mut BytesMut| {
        buf.clear();
        buf.extend_from_slice(&stream);
    };
    let mut buf = BytesMut::new();
    measure(&mut group, OURS, &mut buf, refill, |buf| read(buf, &mut keep));
    measure(&mut group, PGWIRE, &mut buf, refill, |buf| read_pgwire(buf, &mut reader, &mut keep));
    measure(&mut group, WALSTREAM, &mut buf, refill, |buf| {
        read_walstream(buf, &mut walstream, &mut keep)
    });
    memcpy(&mut group, &stream);
}

/// In place: nothing is copied or allocated, everything is checked.
fn read(buf: &mut BytesMut, see: &mut (impl FnMut(&[u8]) + ?Sized)) {
    let mut decoder = pgoutput::Decoder::default();
    let mut rest = &buf[..];
    while let Some(frame) = Frame::decode(rest, BODY_LEN_MAX).unwrap() {
        if let backend::Message::CopyData(payload) = backend::Message::decode(frame).unwrap() {
            read_payload(payload, &mut decoder, see);
        }
        rest = &rest[frame.encoded_len()..];
    }
    let used = buf.len() - rest.len();
    buf.advance(used);
}

fn read_payload(
    payload: &[u8],
    decoder: &mut pgoutput::Decoder,
    see: &mut (impl FnMut(&[u8]) + ?Sized),
) {
    if let replication::Message::XLogData(piece) = replication::Message::decode(payload).unwrap()
        && let pgoutput::Message::Message(fact) = decoder.decode(piece.data).unwrap()
        && fact.prefix == PREFIX.as_bytes()
    {
        black_box((piece.wal_start.0, piece.wal_end.0, piece.server_clock.0));
        black_box((fact.transactional, fact.lsn.0));
        see(fact.content);
    }
}

/// The frame and the header only: what it makes of a logical message (a `String` and a copy of the
/// content) is private. Each frame is copied into a buffer that is allocated and zeroed for it. The
/// `BufReader` that its client has in between, one more copy, is left out.
fn read_pgwire(mut buf: &[u8], reader: &mut MessageReader, see: &mut (impl FnMut(&[u8]) + ?Sized)) {
    ready(async {
        while !buf.is_empty() {
            let BackendMessage { tag, payload } = reader.read(&mut buf).await.unwrap();
            if tag == b'd'
                && let ReplicationCopyData::XLogData {
                    wal_start,
                    wal_end,
                    server_time_micros,
                    data,
                } = parse_copy_data(payload).unwrap()
            {
                black_box((wal_start.0, wal_end.0, server_time_micros));
                see(&data);
            }
        }
    });
}

/// Its own way from the socket needs its connection, and does what is done here with postgres-protocol:
/// one reference-counted `Bytes` for each frame. The header by hand, as there. The prefix is checked to be
/// UTF-8 and copied into a `String`; bytes behind the message, flags and the sign of lengths are not
/// checked.
fn read_walstream(
    buf: &mut BytesMut,
    parser: &mut LogicalReplicationParser,
    see: &mut (impl FnMut(&[u8]) + ?Sized),
) {
    while let Some(message) = Postgres::parse(buf).unwrap() {
        if let Postgres::CopyData(body) = message {
            read_payload_walstream(body.into_bytes(), parser, see);
        }
    }
}

fn read_payload_walstream(
    mut payload: Bytes,
    parser: &mut LogicalReplicationParser,
    see: &mut (impl FnMut(&[u8]) + ?Sized),
) {
    assert!(payload.len() >= 25 && payload[0] == b'w');
    let mut header = &payload[1..25];
    black_box((header.get_u64(), header.get_u64(), header.get_i64()));
    payload.advance(25);
    // By reference: the message is large, and moving it would cost more than reading it.
    let Ok(message) = &parser.parse_wal_message_bytes(payload) else { panic!("not understood") };
    if let LogicalReplicationMessage::Message { flags, lsn, prefix, content } = &message.message
        && prefix == PREFIX
    {
        black_box((flags, lsn));
        see(content);
    }
}

pub(crate) fn pieces(c: &mut Criterion) {
    let (_, payloads) = stream();
    let mut decoder = pgoutput::Decoder::default();
    let mut parser = LogicalReplicationParser::with_protocol_version(1);
    let expected = vec![vec![b'x'; 300]; payloads.len()];
    let ours = seen(|see| {
        payloads.iter().for_each(|payload| read_payload(payload, &mut decoder, see));
    });
    let walstream = seen(|see| {
        payloads
            .iter()
            .for_each(|payload| read_payload_walstream(payload.clone(), &mut parser, see));
    });
    assert_eq!(ours, expected);
    assert_eq!(walstream, expected);

    let bytes = payloads.concat();
    let mut group = group(c, PIECE, payloads.len(), bytes.len());
    let mut input = Vec::new();
    let refill = |input: &mut Vec<Bytes>| input.extend_from_slice(&payloads);
    measure(
        &mut group,
        OURS,
        &mut payloads.clone(),
        |_| (),
        |payloads| {
            payloads.iter().for_each(|payload| read_payload(payload, &mut decoder, &mut keep));
        },
    );
    measure(&mut group, WALSTREAM, &mut input, refill, |input| {
        input.drain(..).for_each(|payload| read_payload_walstream(payload, &mut parser, &mut keep));
    });
    memcpy(&mut group, &bytes);
}

pub(crate) fn frames(c: &mut Criterion) {
    let (stream, payloads) = stream();
    let mut reader = MessageReader::new();
    assert_eq!(seen(|see| split(&mut stream.clone(), see)), payloads);
    assert_eq!(seen(|see| split_pgwire(&stream, &mut reader, see)), payloads);
    assert_eq!(seen(|see| split_postgres(&mut stream.clone(), see)), payloads);
    assert_eq!(seen(|see| split_postgres_header(&mut stream.clone(), see)), payloads);

    let mut group = group(c, FRAMES, payloads.len(), stream.len());
    let refill = |buf: &mut BytesMut| {
        buf.clear();
        buf.extend_from_slice(&stream);
    };
    let mut buf = BytesMut::new();
    measure(&mut group, OURS, &mut buf, refill, |buf| split(buf, &mut keep));
    measure(&mut group, PGWIRE, &mut buf, refill, |buf| split_pgwire(buf, &mut reader, &mut keep));
    measure(&mut group, POSTGRES, &mut buf, refill, |buf| split_postgres(buf, &mut keep));
    memcpy(&mut group, &stream);
    group.finish();

    let mut group = crate::group(c, HEADERS, payloads.len(), stream.len());
    measure(&mut group, OURS, &mut buf, refill, |buf| split(buf, &mut keep));
    measure(&mut group, POSTGRES, &mut buf, refill, |buf| split_postgres_header(buf, &mut keep));
}

/// In place, within a maximum length.
fn split(buf: &mut BytesMut, see: &mut (impl FnMut(&[u8]) + ?Sized)) {
    let mut rest = &buf[..];
    while let Some(frame) = Frame::decode(rest, BODY_LEN_MAX).unwrap() {
        black_box(frame.tag);
        see(frame.body);
        rest = &rest[frame.encoded_len()..];
    }
    let used = buf.len() - rest.len();
    buf.advance(used);
}

/// As in [`read_pgwire`].
fn split_pgwire(
    mut buf: &[u8],
    reader: &mut MessageReader,
    see: &mut (impl FnMut(&[u8]) + ?Sized),
) {
    ready(async {
        while !buf.is_empty() {
            see(&reader.read(&mut buf).await.unwrap().payload);
        }
    });
}

/// As in tokio-postgres, but without its first pass over the headers. No maximum length.
fn split_postgres(buf: &mut BytesMut, see: &mut (impl FnMut(&[u8]) + ?Sized)) {
    while let Some(message) = Postgres::parse(buf).unwrap() {
        if let Postgres::CopyData(body) = message {
            see(body.data());
        }
    }
}

/// Nothing is made of the frame: its caller adds the tag's byte, sees whether all is there, and cuts. No
/// maximum length.
fn split_postgres_header(buf: &mut BytesMut, see: &mut (impl FnMut(&[u8]) + ?Sized)) {
    let mut rest = &buf[..];
    while let Some(header) = Header::parse(rest).unwrap() {
        let Some((frame, after)) = rest.split_at_checked(header.len() as usize + 1) else { break };
        black_box(header.tag());
        see(&frame[5..]);
        rest = after;
    }
    let used = buf.len() - rest.len();
    buf.advance(used);
}

/// The stream's bytes, and the payload of each frame.
fn stream() -> (BytesMut, Vec<Bytes>) {
    let fact = pgoutput::LogicalMessage {
        xid: None,
        transactional: true,
        lsn: Lsn(0x16B_3748),
        prefix: PREFIX.as_bytes(),
        content: &[b'x'; 300],
    };
    let mut data = BytesMut::new();
    pgoutput::Message::Message(fact).encode(&mut data).unwrap();
    let clock = Timestamp::from_unix_micros(1_700_000_000_000_000);
    let piece =
        XLogData { wal_start: fact.lsn, wal_end: fact.lsn, server_clock: clock, data: &data };
    let mut frame = BytesMut::new();
    piece.encode(&mut frame).unwrap();
    let frames = BUFFER_LEN / frame.len();
    let stream = frame.repeat(frames);
    let shared = Bytes::from(stream.clone());
    let payloads =
        (0..frames).map(|at| shared.slice(at * frame.len() + 5..(at + 1) * frame.len())).collect();
    (BytesMut::from(&stream[..]), payloads)
}

/// Runs what never waits, because its bytes are in memory.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("bytes in memory are there at once"),
    }
}
