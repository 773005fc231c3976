//! What the fuzz targets do with their input, as plain functions: `cargo fuzz` calls them on a nightly
//! toolchain, and `tests/replay.rs` on a stable one. Each asserts more than the absence of a panic.
//!
//! ```text
//! cargo +nightly fuzz run pgoutput
//! cargo test --manifest-path fuzz/Cargo.toml --no-default-features
//! ```

use bytes::BytesMut;
use factlib_protocol::{
    Frame, backend,
    handshake::{AuthMethods, BODY_LEN_MAX, Credentials, Handshake, Progress, Startup},
    pgoutput::{Decoder, Message},
    replication,
};

/// The parts are the whole; however many bytes have come, the same frames are seen; and a message that
/// is understood says the same when it is said again.
pub fn frame(data: &[u8]) {
    let (mut rest, mut sum) = (data, 0);
    while let Ok(Some(frame)) = Frame::decode(rest, BODY_LEN_MAX) {
        let len = frame.encoded_len();
        assert_eq!(Frame::encoded_len_of(&rest[..5], BODY_LEN_MAX), Ok(Some(len)));
        assert_eq!(Frame::decode(&rest[..len], BODY_LEN_MAX), Ok(Some(frame)));
        assert_eq!(Frame::decode(&rest[..len - 1], BODY_LEN_MAX), Ok(None));
        if let Ok(message) = backend::Message::decode(frame) {
            let mut out = BytesMut::new();
            message.encode(&mut out).expect("what was read can be said");
            let again = Frame::decode(&out, BODY_LEN_MAX).unwrap().unwrap();
            assert_eq!(backend::Message::decode(again), Ok(message));
            walk(message);
        }
        sum += len;
        rest = &rest[len..];
    }
    assert_eq!(sum + rest.len(), data.len());
}

fn walk(message: backend::Message<'_>) {
    match message {
        backend::Message::DataRow(row) => assert_eq!(row.columns().count(), row.len()),
        backend::Message::RowDescription(row) => assert_eq!(row.fields().count(), row.len()),
        backend::Message::ErrorResponse(fields) | backend::Message::NoticeResponse(fields) => {
            assert!(fields.iter().all(|(code, _)| code != 0 && fields.field(code).is_some()));
            assert!(!fields.to_error().to_string().is_empty());
        }
        backend::Message::CopyData(payload) => {
            if let Ok(message) = replication::Message::decode(payload) {
                let mut out = BytesMut::new();
                message.encode(&mut out).expect("what was read can be said");
                assert_eq!(out[5..], *payload);
            }
        }
        _ => {}
    }
}

/// What is understood can be walked, and is the same bytes when it is said again.
pub fn pgoutput(data: &[u8]) {
    let Ok(message) = Decoder::default().decode(data) else { return };
    match message {
        Message::Insert(insert) => assert_eq!(insert.new.values().count(), insert.new.len()),
        Message::Update(update) => {
            let old = update.old.map(|old| old.tuple());
            for row in old.iter().chain([&update.new]) {
                assert_eq!(row.values().count(), row.len());
            }
        }
        Message::Delete(delete) => {
            assert_eq!(delete.old.tuple().values().count(), delete.old.tuple().len());
        }
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
    assert_eq!(Decoder::default().decode(&out), Ok(message));
}

/// A server that does not know the password is never believed, and a login that has failed stays failed.
pub fn handshake(data: &[u8]) {
    let startup = Startup { user: "owl", database: None, params: &[] };
    let allow = AuthMethods { trust: false, cleartext: false, md5: false, scram: true };
    let mut out = BytesMut::new();
    let credentials = Credentials { password: Some(b"pencil"), allow };
    let mut handshake = Handshake::start(startup, credentials, "nonce".into(), &mut out).unwrap();
    let (mut rest, mut failed) = (data, false);
    while let Ok(Some(frame)) = Frame::decode(rest, BODY_LEN_MAX) {
        rest = &rest[frame.encoded_len()..];
        let Ok(message) = backend::Message::decode(frame) else { break };
        // The server chooses how long this takes; below 100,000 rounds it is short enough to fuzz by.
        if let backend::Message::Authentication(backend::Authentication::SaslContinue(text)) =
            message
            && text.windows(6).any(|digits| digits.iter().all(u8::is_ascii_digit))
        {
            break;
        }
        match handshake.handle(message, &mut out) {
            Ok(progress) => {
                assert!(!failed, "a failed login goes on");
                assert_eq!(progress, Progress::Waiting, "an impostor is believed");
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                failed = true;
            }
        }
        assert!(!out.windows(6).any(|bytes| bytes == b"pencil"), "the password is shown");
    }
}
