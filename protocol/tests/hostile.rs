//! A peer that lies: cut short, made longer, changed anywhere, or made of nothing but chance.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

mod fixtures;

use bytes::BytesMut;
use factlib_protocol::{
    DecodeError, EncodeError, Fault, Frame, backend, frontend,
    pgoutput::{Columns, Decoder, Message, Tuple},
    replication,
};
use proptest::prelude::*;

/// Decodes, walks all there is, and says it again: whatever is accepted must be what was sent.
fn pgoutput(decoder: &Decoder, data: &[u8]) -> Result<(), DecodeError> {
    let message = decoder.clone().decode(data)?;
    match message {
        Message::Insert(insert) => walk(insert.new),
        Message::Update(update) => {
            walk(update.new);
            update.old.iter().for_each(|old| walk(old.tuple()));
        }
        Message::Delete(delete) => walk(delete.old.tuple()),
        Message::Relation(relation) => {
            assert_eq!(relation.columns.iter().count(), relation.columns.len())
        }
        Message::Truncate(truncate) => {
            assert_eq!(truncate.relations.iter().count(), truncate.relations.len());
        }
        _ => {}
    }
    let mut out = BytesMut::new();
    message.encode(&mut out).unwrap();
    assert_eq!(out[..], *data);
    Ok(())
}

fn walk(tuple: Tuple<'_>) {
    assert_eq!(tuple.values().count(), tuple.len());
}

/// The same for a message of the server, and for what a `CopyData` holds.
fn server(tag: u8, body: &[u8]) -> Result<(), DecodeError> {
    let message = backend::Message::decode(Frame { tag, body })?;
    match message {
        backend::Message::DataRow(row) => assert_eq!(row.columns().count(), row.len()),
        backend::Message::RowDescription(row) => assert_eq!(row.fields().count(), row.len()),
        backend::Message::ErrorResponse(fields) | backend::Message::NoticeResponse(fields) => {
            let kept = fields.to_error();
            assert_eq!(kept.code.as_str().len(), kept.code.to_string().len());
        }
        backend::Message::Authentication(backend::Authentication::Sasl(mechanisms)) => {
            mechanisms.iter().for_each(|mechanism| assert!(!mechanism.is_empty()));
        }
        backend::Message::CopyData(payload) => {
            if let replication::Message::XLogData(piece) = replication::Message::decode(payload)? {
                pgoutput(&Decoder::default(), piece.data)?;
            }
        }
        _ => {}
    }
    let mut out = BytesMut::new();
    message.encode(&mut out).unwrap();
    assert_eq!(out[5..], *body);
    Ok(())
}

/// The same for a message of a client.
fn client(tag: u8, body: &[u8]) -> Result<(), DecodeError> {
    let message = frontend::Message::decode(Frame { tag, body })?;
    match message {
        frontend::Message::Bind(bind) => assert_eq!(bind.values.iter().count(), bind.values.len()),
        frontend::Message::Password(body) => {
            let _ = (body.password(), body.sasl_initial_response());
        }
        frontend::Message::CopyData(payload) => {
            let message = replication::StandbyMessage::decode(payload)?;
            let mut out = BytesMut::new();
            message.encode(&mut out);
            assert_eq!(out[5..], *payload);
        }
        _ => {}
    }
    let mut out = BytesMut::new();
    message.encode(&mut out).unwrap();
    assert_eq!(out[5..], *body);
    Ok(())
}

/// The same for the first message, which says how long it is.
fn first(buf: &[u8]) -> Result<(), DecodeError> {
    let Some((message, len)) = frontend::FirstMessage::decode(buf, 10_000)? else { return Ok(()) };
    if let frontend::FirstMessage::StartupMessage(startup) = message {
        assert!(startup.params().all(|(name, _)| startup.param(name).is_some()));
    }
    let mut out = BytesMut::new();
    message.encode(&mut out).unwrap();
    assert_eq!(out[..], buf[..len]);
    Ok(())
}

/// One of each that no recording has.
fn extended_messages() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut add = |write: &dyn Fn(&mut BytesMut) -> Result<(), EncodeError>| {
        let mut out = BytesMut::new();
        write(&mut out).unwrap();
        all.push(out.to_vec());
    };
    add(&|out| frontend::parse("s", "SELECT $1", &[25, 0], out));
    add(&|out| frontend::bind("p", "s", &[0, 1], &[Some(b"owl"), None], &[1], out));
    add(&|out| frontend::describe(frontend::Target::Statement, "s", out));
    add(&|out| frontend::close(frontend::Target::Portal, "p", out));
    add(&|out| frontend::execute("p", 7, out));
    add(&|out| frontend::function_call(7, &[1], &[Some(b"owl"), None], 1, out));
    add(&|out| frontend::copy_fail("tired", out));
    all
}

fn parts(message: &[u8]) -> (u8, &[u8]) {
    let frame = Frame::decode(message, usize::MAX).unwrap().unwrap();
    (frame.tag, frame.body)
}

#[test]
fn every_prefix_is_truncated_and_one_byte_more_is_trailing() {
    let fault = |result: Result<(), DecodeError>| result.map_err(|error| error.fault);
    for (decoder, data) in fixtures::messages() {
        for cut in 0..data.len() {
            assert_eq!(fault(pgoutput(&decoder, &data[..cut])), Err(Fault::Truncated), "{cut}");
        }
        let longer = [&data[..], &[0]].concat();
        assert_eq!(fault(pgoutput(&decoder, &longer)), Err(Fault::Trailing));
    }
    for message in fixtures::server_messages() {
        let (tag, body) = parts(&message);
        // What ends where the frame ends cannot be cut short by itself.
        let open = match (tag, body) {
            (b'R', [_, _, _, 11 | 12, ..]) => 4,
            (b'K', _) => 8,
            _ => body.len(),
        };
        for cut in 0..open {
            assert_eq!(
                fault(server(tag, &body[..cut])),
                Err(Fault::Truncated),
                "{} {cut}",
                char::from(tag)
            );
        }
        let longer = [body, &[0]].concat();
        match (tag, open == body.len()) {
            (b'K', _) | (_, false) => assert_eq!(fault(server(tag, &longer)), Ok(())),
            (_, true) => {
                assert_eq!(fault(server(tag, &longer)), Err(Fault::Trailing), "{}", char::from(tag))
            }
        }
    }
}

#[test]
fn what_a_client_says_is_cut_short_or_made_longer_in_vain() {
    let fault = |result: Result<(), DecodeError>| result.map_err(|error| error.fault);
    for message in fixtures::client_messages().into_iter().chain(extended_messages()) {
        let (tag, body) = parts(&message);
        // What a `p` holds is the business of whoever asked.
        if tag == b'p' {
            continue;
        }
        for cut in 0..body.len() {
            assert_eq!(fault(client(tag, &body[..cut])), Err(Fault::Truncated), "{message:?}");
        }
        let longer = [body, &[0]].concat();
        assert_eq!(fault(client(tag, &longer)), Err(Fault::Trailing), "{message:?}");
    }
}

#[test]
fn no_byte_of_a_client_in_any_place_causes_a_panic_or_is_misread() {
    let mut refused = 0;
    for mut message in fixtures::client_messages().into_iter().chain(extended_messages()) {
        for at in 5..message.len() {
            let before = message[at];
            for byte in 0..=255 {
                message[at] = byte;
                let (tag, body) = parts(&message);
                refused += u32::from(client(tag, body).is_err());
            }
            message[at] = before;
        }
    }
    for mut message in fixtures::first_messages() {
        for at in 0..message.len() {
            let before = message[at];
            for byte in 0..=255 {
                message[at] = byte;
                refused += u32::from(first(&message).is_err());
            }
            message[at] = before;
        }
    }
    assert!(refused > 10_000, "{refused}");
}

/// All of them: 256 values at every place of every message, but for the insides of long texts.
#[test]
fn no_byte_in_any_place_causes_a_panic_or_is_misread() {
    let mut refused = 0;
    for (decoder, mut message) in fixtures::messages() {
        // Said again a hundred thousand times, a megabyte takes long and teaches nothing.
        if message.len() > 10_000 {
            continue;
        }
        for at in fixtures::places(message.len()) {
            let before = message[at];
            for byte in 0..=255 {
                message[at] = byte;
                refused += u32::from(pgoutput(&decoder, &message).is_err());
            }
            message[at] = before;
        }
    }
    for mut message in fixtures::server_messages() {
        for at in 5..message.len() {
            let before = message[at];
            for byte in 0..=255 {
                message[at] = byte;
                let (tag, body) = parts(&message);
                refused += u32::from(server(tag, body).is_err());
            }
            message[at] = before;
        }
    }
    assert!(refused > 100_000, "{refused}");
}

#[test]
fn lengths_that_cannot_be_are_refused_as_such() {
    let pgoutput = |data: &[u8]| pgoutput(&Decoder::default(), data).unwrap_err();
    let server = |tag, body: &[u8]| server(tag, body).unwrap_err();
    for (error, field, fault) in [
        (pgoutput(b"M\0\0\0\0\0\0\0\0\0p\0\xff\xff\xff\xff"), "Message.length", Fault::Length(-1)),
        (
            pgoutput(b"M\0\0\0\0\0\0\0\0\0p\0\x80\0\0\0"),
            "Message.length",
            Fault::Length(i32::MIN.into()),
        ),
        (pgoutput(b"M\0\0\0\0\0\0\0\0\0p\0\x7f\xff\xff\xff"), "Message.content", Fault::Truncated),
        (pgoutput(b"I\0\0\0\0N\xff\xff"), "Tuple.columns", Fault::Length(-1)),
        (pgoutput(b"I\0\0\0\0N\x7f\xff"), "Tuple.value.kind", Fault::Truncated),
        (pgoutput(b"I\0\0\0\0N\0\x01t\xff\xff\xff\xfe"), "Tuple.value.length", Fault::Length(-2)),
        (pgoutput(b"I\0\0\0\0N\0\x01b\x7f\xff\xff\xff"), "Tuple.value", Fault::Truncated),
        (pgoutput(b"R\0\0\0\0\0\0d\x80\0"), "Relation.columns", Fault::Length(-32768)),
        (pgoutput(b"R\0\0\0\0\0\0d\x7f\xff"), "Relation.column.flags", Fault::Truncated),
        (pgoutput(b"T\xff\xff\xff\xff\0"), "Truncate.relations", Fault::Length(-1)),
        (pgoutput(b"T\x7f\xff\xff\xff\0"), "Truncate.relation", Fault::Truncated),
        (server(b't', b"\xff\xff"), "ParameterDescription.parameter", Fault::Truncated),
        (server(b'V', b"\xff\xff\xff\xfe"), "FunctionCallResponse.length", Fault::Length(-2)),
        (server(b'D', b"\xff\xff"), "DataRow.columns", Fault::Length(-1)),
        (server(b'D', b"\0\x01\xff\xff\xff\xfe"), "DataRow.column.length", Fault::Length(-2)),
        (server(b'D', b"\0\x01\x7f\xff\xff\xff"), "DataRow.column.value", Fault::Truncated),
        (server(b'T', b"\x80\0"), "RowDescription.fields", Fault::Length(-32768)),
        (server(b'W', b"\0\xff\xff"), "CopyResponse.columns", Fault::Length(-1)),
        (server(b'W', b"\0\x7f\xff"), "CopyResponse.column_formats", Fault::Truncated),
        (
            server(b'v', b"\0\x03\0\0\xff\xff\xff\xff"),
            "NegotiateProtocolVersion.options",
            Fault::Length(-1),
        ),
        (
            server(b'v', b"\0\x03\0\0\x7f\xff\xff\xff"),
            "NegotiateProtocolVersion.option",
            Fault::Truncated,
        ),
        (server(b'K', &[0; 4 + 257]), "BackendKeyData.secret_key", Fault::Length(257)),
        (server(b'!', b""), "Frame.tag", Fault::Tag(b'!')),
        (pgoutput(b"S\0\0\0\0\0"), "StreamStart", Fault::OutOfPlace),
        (pgoutput(b"C\x01"), "Commit.flags", Fault::Tag(1)),
        (pgoutput(b"M\x02"), "Message.flags", Fault::Tag(2)),
        (pgoutput(b"U\0\0\0\0K\0\0K"), "Update.marker", Fault::Tag(b'K')),
        (pgoutput(b"D\0\0\0\0N"), "Delete.marker", Fault::Tag(b'N')),
        (pgoutput(b"T\0\0\0\0\x04"), "Truncate.options", Fault::Tag(4)),
    ] {
        assert_eq!((error.field, error.fault), (field, fault));
    }
}

#[test]
fn a_key_of_protocol_3_2_is_taken_whole() {
    assert_eq!(server(b'K', &[7; 4 + 32]), Ok(()));
    assert_eq!(server(b'K', &[7; 4 + 256]), Ok(()));
}

proptest! {
    #[test]
    fn chance_is_survived(tag in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = server(tag, &body);
        let _ = pgoutput(&Decoder::default(), &[&[tag][..], &body].concat());
        let _ = client(tag, &body);
        let _ = first(&[&[0, 0, 0, 40, 0, 3, 0, 0][..], &body].concat());
        let _ = replication::StandbyMessage::decode(&body);
        let _ = replication::timeline_switches(&body);
        let _ = Tuple::decode(&body).map(walk);
        let _ = Columns::decode(&body).map(|columns| columns.iter().count());
        let _ = backend::Strings::new(&body).map(|strings| strings.iter().count());
    }

    /// However a stream is cut, the same frames come out of it, and nothing is left over.
    #[test]
    fn frames_do_not_depend_on_how_they_arrive(cuts in prop::collection::vec(1usize..40, 1..20)) {
        let sent = fixtures::server_messages();
        let stream = sent.concat();
        let (mut arrived, mut at, mut received) = (0, 0, Vec::new());
        let mut cuts = cuts.iter().cycle();
        while arrived < stream.len() {
            arrived = (arrived + cuts.next().unwrap()).min(stream.len());
            while let Some(frame) = Frame::decode(&stream[at..arrived], 30_000).unwrap() {
                let len = frame.encoded_len();
                prop_assert_eq!(Frame::encoded_len_of(&stream[at..arrived], 30_000), Ok(Some(len)));
                received.push(stream[at..at + len].to_vec());
                at += len;
            }
        }
        prop_assert_eq!(at, stream.len());
        prop_assert_eq!(received, sent);
    }
}
