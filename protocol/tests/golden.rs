//! What a real server said in recorded sessions is understood, and can be said again byte for byte.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

mod fixtures;

use bytes::BytesMut;
use factlib_protocol::{
    Frame, Lsn, Timestamp, backend, frontend,
    pgoutput::{Decoder, Message},
    replication::{self, StandbyStatusUpdate, TimelineSwitch},
};
use fixtures::Speaker;

#[test]
fn every_message_of_the_server_can_be_said_again_byte_for_byte() {
    for message in fixtures::server_messages() {
        let frame = Frame::decode(&message, 30_000).unwrap().unwrap();
        assert_eq!(frame.encoded_len(), message.len());
        let decoded = backend::Message::decode(frame).unwrap();
        let mut out = BytesMut::new();
        decoded.encode(&mut out).unwrap();
        assert_eq!(out[..], message, "{decoded:?}");
        assert_eq!(decoded.tag(), frame.tag);

        // Built from its parts as well.
        out.clear();
        match decoded {
            backend::Message::DataRow(row) => {
                backend::DataRow::encode(&row.columns().collect::<Vec<_>>(), &mut out).unwrap();
            }
            backend::Message::RowDescription(description) => {
                let fields = description.fields().collect::<Vec<_>>();
                backend::RowDescription::encode(&fields, &mut out).unwrap();
            }
            backend::Message::ErrorResponse(fields) => {
                backend::ErrorFields::encode(&fields.iter().collect::<Vec<_>>(), &mut out).unwrap();
            }
            backend::Message::CopyData(payload) => {
                replication::Message::decode(payload).unwrap().encode(&mut out).unwrap();
            }
            _ => continue,
        }
        assert_eq!(out[..], message, "{decoded:?}");
    }
}

#[test]
fn every_message_of_the_client_can_be_said_again_byte_for_byte() {
    let mut tags = std::collections::BTreeSet::new();
    for message in fixtures::client_messages() {
        let frame = Frame::decode(&message, 30_000).unwrap().unwrap();
        let decoded = frontend::Message::decode(frame).unwrap();
        let mut out = BytesMut::new();
        decoded.encode(&mut out).unwrap();
        assert_eq!(out[..], message, "{decoded:?}");
        assert_eq!(decoded.tag(), frame.tag);
        tags.insert(char::from(frame.tag));
    }
    assert_eq!(tags.iter().collect::<String>(), "QXcdp");
    for message in fixtures::first_messages() {
        let first = frontend::FirstMessage::decode(&message, frontend::STARTUP_LEN_MAX).unwrap();
        let (first, len) = first.unwrap();
        assert_eq!(len, message.len());
        let frontend::FirstMessage::StartupMessage(startup) = first else { panic!("{first:?}") };
        assert_eq!(startup.param("database"), Some(&b"owl"[..]));
        let mut out = BytesMut::new();
        first.encode(&mut out).unwrap();
        assert_eq!(out[..], message, "{first:?}");
    }
}

#[test]
fn the_first_words_of_scram_are_found_in_a_recorded_login() {
    let message = fixtures::session(fixtures::LOGIN_SCRAM).swap_remove(2).1;
    let frame = Frame::decode(&message, 30_000).unwrap().unwrap();
    let frontend::Message::Password(body) = frontend::Message::decode(frame).unwrap() else {
        panic!()
    };
    let said = body.sasl_initial_response().unwrap();
    assert_eq!(said.mechanism, "SCRAM-SHA-256");
    assert!(said.data.unwrap().starts_with(b"n,,n=,r="));
}

#[test]
fn a_stream_is_opened_and_read_as_pg_recvlogical_does() {
    let session = fixtures::session(fixtures::STREAM);
    let said = |speaker| {
        session.iter().filter(move |(who, _)| *who == speaker).map(|(_, message)| &message[..])
    };

    let mut commands = BytesMut::new();
    frontend::query(replication::identify_system(), &mut commands).unwrap();
    let options = [("proto_version", "1"), ("publication_names", "facts"), ("messages", "true")];
    let start = replication::start_logical("recorded", Lsn::INVALID, &options).unwrap();
    frontend::query(&start, &mut commands).unwrap();
    let queries: Vec<&[u8]> = said(Speaker::Client).filter(|message| message[0] == b'Q').collect();
    assert_eq!(queries[queries.len() - 2..].concat(), commands);

    let mut facts = Vec::new();
    for message in said(Speaker::Server) {
        let frame = Frame::decode(message, 30_000).unwrap().unwrap();
        match backend::Message::decode(frame).unwrap() {
            backend::Message::DataRow(row) if row.len() == 4 => {
                let columns: Vec<_> = row.columns().collect();
                assert_eq!(columns[1..], [Some(&b"1"[..]), Some(b"0/21EB6B8"), Some(b"owl")]);
            }
            backend::Message::CopyData(payload) => match replication::Message::decode(payload)
                .unwrap()
            {
                replication::Message::XLogData(piece) => {
                    assert!(piece.server_clock > Timestamp(0) && piece.wal_end == piece.wal_start);
                    if let Message::Message(fact) = Decoder::default().decode(piece.data).unwrap() {
                        assert_eq!(fact.lsn, piece.wal_start);
                        facts.push((fact.lsn.to_string(), fact.content.to_vec()));
                    }
                }
                replication::Message::PrimaryKeepalive(keepalive) => {
                    assert!(!keepalive.reply_requested)
                }
                other => panic!("{other:?}"),
            },
            _ => {}
        }
    }
    // What pg_logical_emit_message returned when this was recorded.
    let expected = [("0/21EB608", "one"), ("0/21EB648", "two"), ("0/21EB6B8", "three")];
    assert_eq!(facts, expected.map(|(lsn, content)| (lsn.to_owned(), content.as_bytes().to_vec())));
}

#[test]
fn status_updates_are_written_as_pg_recvlogical_writes_them() {
    let mut seen = Vec::new();
    for (speaker, message) in fixtures::session(fixtures::STREAM) {
        if speaker == Speaker::Client && message[0] == b'd' {
            let status = StandbyStatusUpdate::decode(&message[5..]).unwrap();
            let mut out = BytesMut::new();
            status.encode(&mut out);
            assert_eq!(out[..], message);
            assert_eq!(out.len(), StandbyStatusUpdate::ENCODED_LEN);
            seen.push((status.write, status.flush, status.apply, status.reply_requested));
        }
    }
    let end = Lsn(0x21E_B6B8);
    let zero = Lsn::INVALID;
    assert_eq!(seen, [(zero, zero, zero, false), (end, end, zero, false)]);
}

#[test]
fn two_promotions_are_read_from_their_history() {
    let switch = |timeline, lsn: &str| TimelineSwitch { timeline, switch: lsn.parse().unwrap() };
    assert_eq!(
        replication::timeline_switches(fixtures::HISTORY),
        Ok(vec![switch(1, "0/222F4E8"), switch(2, "0/222F640")])
    );
}
