//! Decoding costs no memory: neither what is right nor what is wrong makes it allocate.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

mod fixtures;

use allocation_counter::measure;
use bytes::BytesMut;
use factlib_protocol::{
    Frame, Lsn, Timestamp, backend, frontend,
    pgoutput::{Decoder, Message},
    replication::{self, StandbyStatusUpdate},
};

/// Decodes what it can and walks all of it; returns something that depends on it.
fn decode(stream: &[u8]) -> usize {
    let (mut rest, mut seen) = (stream, 0);
    while let Ok(Some(frame)) = Frame::decode(rest, 1 << 20) {
        rest = &rest[frame.encoded_len()..];
        seen += match backend::Message::decode(frame) {
            Ok(backend::Message::CopyData(payload)) => {
                match replication::Message::decode(payload) {
                    Ok(replication::Message::XLogData(piece)) => {
                        pgoutput(&mut Decoder::default(), piece.data)
                    }
                    other => usize::from(other.is_ok()),
                }
            }
            Ok(backend::Message::DataRow(row)) => row.columns().flatten().map(<[u8]>::len).sum(),
            Ok(backend::Message::RowDescription(row)) => {
                row.fields().map(|field| field.name.len()).sum()
            }
            Ok(backend::Message::ErrorResponse(fields)) => fields.code().as_str().len(),
            other => usize::from(other.is_ok()),
        };
    }
    seen
}

fn pgoutput(decoder: &mut Decoder, data: &[u8]) -> usize {
    match decoder.decode(data) {
        Ok(Message::Message(message)) => message.prefix.len() + message.content.len(),
        Ok(Message::Insert(insert)) => insert.new.values().count(),
        Ok(Message::Update(update)) => {
            update.new.values().count() + update.old.map_or(0, |old| old.tuple().values().count())
        }
        Ok(Message::Delete(delete)) => delete.old.tuple().values().count(),
        Ok(Message::Relation(relation)) => relation.columns.iter().count(),
        Ok(Message::Truncate(truncate)) => truncate.relations.iter().count(),
        other => usize::from(other.is_ok()),
    }
}

#[track_caller]
fn allocates_nothing(run: impl FnOnce()) {
    let allocations = measure(run);
    assert_eq!(allocations.count_total, 0, "{allocations:?}");
}

#[test]
fn allocations_are_counted() {
    let allocations = measure(|| drop(std::hint::black_box(vec![0u8; 100])));
    assert_eq!((allocations.count_total, allocations.bytes_total), (1, 100));
}

#[test]
fn what_the_server_sends_is_decoded_without_allocating() {
    let stream = fixtures::server_messages().concat();
    let mut messages = fixtures::messages();
    let mut seen = 0;
    allocates_nothing(|| {
        seen = decode(&stream)
            + messages.iter_mut().map(|(decoder, data)| pgoutput(decoder, data)).sum::<usize>()
    });
    assert!(seen > 1000);
}

#[test]
fn what_a_client_sends_is_decoded_without_allocating() {
    let mut out = BytesMut::new();
    frontend::parse("s", "SELECT $1", &[25], &mut out).unwrap();
    frontend::bind("p", "s", &[0], &[Some(b"owl"), None], &[], &mut out).unwrap();
    out.extend_from_slice(&fixtures::client_messages().concat());
    let first = fixtures::first_messages();
    let mut seen = 0;
    allocates_nothing(|| {
        let mut rest = &out[..];
        while let Ok(Some(frame)) = Frame::decode(rest, 1 << 20) {
            rest = &rest[frame.encoded_len()..];
            seen += match frontend::Message::decode(frame) {
                Ok(frontend::Message::Bind(bind)) => bind.values.iter().count(),
                Ok(frontend::Message::Parse(parse)) => parse.types.iter().count(),
                other => usize::from(other.is_ok()),
            };
        }
        for first in &first {
            if let Ok(Some((frontend::FirstMessage::StartupMessage(startup), _))) =
                frontend::FirstMessage::decode(first, 1 << 20)
            {
                seen += startup.params().count();
            }
        }
    });
    assert!(seen > 30, "{seen}");
}

#[test]
fn what_a_liar_sends_is_refused_without_allocating() {
    let mut messages = fixtures::messages();
    let mut server = fixtures::server_messages();
    allocates_nothing(|| {
        for (decoder, message) in &mut messages {
            for at in fixtures::places(message.len()) {
                for byte in [0, 1, 0x7f, 0x80, 0xff] {
                    let before = std::mem::replace(&mut message[at], byte);
                    pgoutput(&mut decoder.clone(), message);
                    message[at] = before;
                }
                pgoutput(&mut decoder.clone(), &message[..at]);
            }
        }
        for message in &mut server {
            for at in 5..message.len() {
                for byte in [0, 1, 0x7f, 0x80, 0xff] {
                    let before = std::mem::replace(&mut message[at], byte);
                    decode(message);
                    message[at] = before;
                }
            }
        }
    });
}

#[test]
fn a_status_update_fits_into_the_room_it_asks_for() {
    let mut out = BytesMut::with_capacity(StandbyStatusUpdate::ENCODED_LEN);
    let lsn = Lsn(u64::MAX);
    let status = StandbyStatusUpdate {
        write: lsn,
        flush: lsn,
        apply: lsn,
        clock: Timestamp(-1),
        reply_requested: true,
    };
    allocates_nothing(|| status.encode(&mut out));
}
