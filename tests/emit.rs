//! What applications emit, as the relay reads and publishes it.

#![expect(clippy::unwrap_used, reason = "a test")]

use base64::Engine as _;
use factlib::emit::{Emitter, Fact, InvalidFact};
use factlib::relay::batch::{OpenBatch, Record};
use factlib::relay::compression::Compression;
use factlib::relay::fact;
use factlib::relay::position::{Position, Unit};
use factlib::relay::route::{Headers, Source, is_topic};
use factlib_protocol::Lsn;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn text(characters: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    vec(any::<char>().prop_filter("NUL", |c| *c != '\0'), characters)
        .prop_map(|characters| characters.into_iter().collect())
}

proptest! {
    #[test]
    fn a_fact_is_read_as_it_was_emitted_and_its_record_is_no_larger_than_said(
        topic in ("[A-Za-z0-9._-]{1,124}", "[A-Za-z0-9._-]{1,124}"),
        texts in (text(1..60), text(1..60), text(1..60)),
        payload in vec(any::<u8>(), 0..300),
        metadata in btree_map(text(0..30), text(0..30), 0..9),
        tracestate in text(0..60),
    ) {
        let (prefix, aggregate_type) = topic;
        let (id, aggregate_id, event_type) = texts;
        let mut emitted = Fact::new(&*aggregate_type, &*aggregate_id, &*event_type)
            .payload(&*payload)
            .traceparent(TRACE)
            .tracestate(&*tracestate);
        for (key, value) in &metadata {
            emitted = emitted.metadata(&**key, &**value);
        }
        let emitter = Emitter::new(&*prefix);
        let message = emitter.encode(&emitted, &id, UNIX_EPOCH).unwrap();

        let read = fact::Fact::decode(&message.content).unwrap();
        prop_assert_eq!(&*read.id, &*id);
        prop_assert_eq!(&*read.aggregate_type, &*aggregate_type);
        prop_assert_eq!(&*read.aggregate_id, &*aggregate_id);
        prop_assert_eq!(&*read.event_type, &*event_type);
        prop_assert_eq!(read.payload.bytes().unwrap_or_default(), &*payload);
        let mut entries = Vec::new();
        read.metadata(|key, value| entries.push((key.to_owned(), value.to_owned())));
        prop_assert!(entries.into_iter().eq(metadata));
        let trace = read.trace.as_ref().unwrap();
        prop_assert_eq!(&*trace.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
        prop_assert_eq!(&*trace.span_id, "00f067aa0ba902b7");
        let mut entries = Vec::new();
        trace.metadata(|key, value| entries.push((key.to_owned(), value.to_owned())));
        let tracestate = Some(("tracestate".to_owned(), tracestate));
        let tracestate = tracestate.filter(|(_, state)| !state.is_empty());
        let wanted = std::iter::once(("traceparent".to_owned(), TRACE.to_owned()));
        prop_assert!(entries.into_iter().eq(wanted.chain(tracestate)));
        let topic = format!("{prefix}.{aggregate_type}");
        prop_assert!(is_topic(&topic));

        // With everything that can be asked for in its headers, and at positions of full length.
        let unit = Unit::transaction(Lsn(u64::MAX));
        let position = Position { timeline: u32::MAX, unit, index: u32::MAX };
        let source = Source::new(u64::MAX, u32::MAX);
        let mut headers = Headers::default();
        let lsn = Lsn(u64::MAX);
        headers.fill(&read, &source, &position, lsn, true);
        let mut batch = OpenBatch::new(position, Compression::None);
        batch.push(&Record {
            timestamp_ms: i64::MAX,
            key: Some(aggregate_id.as_bytes()),
            value: Some(&message.content),
            headers: &headers,
        });
        let record = batch.seal().encoded().len();
        let refused = emitter.max_record_bytes(0).encode(&emitted, &id, UNIX_EPOCH);
        let Err(InvalidFact::TooLarge { bytes, .. }) = refused else { panic!("{refused:?}") };
        prop_assert!(record <= bytes, "{record} bytes, and {bytes} were said");
    }
}

/// A case of `cases.json`, as its README says.
fn fact(case: &Value) -> Fact {
    let text = |name: &str| case[name].as_str().unwrap();
    let payload = &case["payload"];
    let payload = if let Some(text) = payload["text"].as_str().or(payload["json"].as_str()) {
        text.as_bytes().to_vec()
    } else if let Some(text) = payload["base64"].as_str() {
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    } else if let Some(text) = payload["repeat"].as_str() {
        text.repeat(usize::try_from(payload["times"].as_u64().unwrap()).unwrap()).into_bytes()
    } else {
        assert!(payload.is_null(), "{payload}");
        Vec::new()
    };
    let created_at = case["created_at"].as_i64().unwrap();
    let distance = Duration::from_micros(created_at.unsigned_abs());
    let created_at = if created_at < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
    let fact = Fact::new(text("aggregate_type"), text("aggregate_id"), text("event_type"))
        .id(text("id"))
        .payload(payload)
        .created_at(created_at)
        .traceparent(text("traceparent"))
        .tracestate(text("tracestate"));
    case["metadata"].as_object().unwrap().iter().fold(fact, |fact, (key, value)| {
        fact.metadata(key, value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    })
}

#[test]
fn the_golden_envelopes_are_written_byte_for_byte() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/envelopes");
    let cases = std::fs::read_to_string(folder.join("cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
    let emitter = Emitter::new("golden").max_record_bytes(8_388_608);
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let content = emitter.encode(&fact(case), "", UNIX_EPOCH).unwrap().content;
        assert_eq!(Some(content.len() as u64), case["bytes"].as_u64(), "{name}");
        let hash: String = Sha256::digest(&content).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(Some(&*hash), case["sha256"].as_str(), "{name}");
    }
    assert!(cases.len() > 40, "only {} cases", cases.len());
}
