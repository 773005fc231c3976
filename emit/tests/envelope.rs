//! The envelope and the checks, beside somebody else's protobuf library.
#![expect(clippy::unwrap_used, reason = "a test")]

use factlib_emit::{Emitter, Fact, Field, InvalidFact};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use testkit::envelope::{OutboxEvent, TraceInfo};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn emitter() -> Emitter {
    Emitter::new("orders")
}

fn order() -> Fact {
    Fact::new("order", "42", "paid")
}

fn encode(fact: &Fact) -> Result<Vec<u8>, InvalidFact> {
    emitter().encode(fact, "an id", UNIX_EPOCH).map(|message| message.content)
}

fn event(fact: &Fact) -> OutboxEvent {
    OutboxEvent::from_bytes(&encode(fact).unwrap()).unwrap()
}

fn time(microseconds: i64) -> SystemTime {
    let distance = Duration::from_micros(microseconds.unsigned_abs());
    if microseconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

fn trace_info(tracestate: Option<&str>) -> TraceInfo {
    let mut metadata = vec![("traceparent".to_owned(), TRACE.to_owned())];
    metadata.extend(tracestate.map(|state| ("tracestate".to_owned(), state.to_owned())));
    TraceInfo {
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
        span_id: "00f067aa0ba902b7".to_owned(),
        metadata: metadata.into_iter().collect(),
    }
}

fn text() -> impl Strategy<Value = String> {
    vec(any::<char>().prop_filter("NUL", |c| *c != '\0'), 1..200)
        .prop_map(|characters| characters.into_iter().collect())
}

proptest! {
    #[test]
    fn the_bytes_are_those_of_a_protobuf_library(
        texts in (text(), text(), text()),
        payload in prop_oneof![vec(any::<u8>(), 0..300), vec(any::<u8>(), 16_380..16_390)],
        created_at in -210_866_803_200_000_000..9_223_371_244_800_000_000_i64,
        metadata in btree_map("\\PC{0,9}", "\\PC{0,200}", 0..4),
        traced in any::<bool>(),
        tracestate in proptest::option::of("[a-z]{1,9}=[a-z]{1,9}"),
    ) {
        let (id, aggregate_id, event_type) = texts;
        let mut fact = Fact::new("order", &*aggregate_id, &*event_type)
            .id(&*id)
            .payload(&*payload)
            .created_at(time(created_at));
        for (key, value) in &metadata {
            fact = fact.metadata(&**key, &**value);
        }
        if traced {
            fact = fact.traceparent(TRACE);
        }
        if let Some(tracestate) = &tracestate {
            fact = fact.tracestate(&**tracestate);
        }
        let event = OutboxEvent {
            id,
            aggregate_type: "order".to_owned(),
            aggregate_id,
            event_type,
            payload,
            created_at,
            metadata,
            trace_info: traced.then(|| trace_info(tracestate.as_deref())),
        };
        prop_assert_eq!(encode(&fact).unwrap(), event.to_bytes());
    }
}

#[test]
fn what_a_fact_has_itself_counts_and_not_what_would_be_drawn() {
    let at = UNIX_EPOCH + Duration::from_micros(7);
    let drawn = emitter().encode(&order().id(""), "drawn", at).unwrap();
    assert_eq!((&*drawn.prefix, &*drawn.id), ("orders", "drawn"));
    let event = OutboxEvent::from_bytes(&drawn.content).unwrap();
    assert_eq!((&*event.id, event.created_at), ("drawn", 7));

    let own = order().id("own").created_at(UNIX_EPOCH).prefix("payments");
    let own = emitter().encode(&own, "drawn", at).unwrap();
    assert_eq!((&*own.prefix, &*own.id), ("payments", "own"));
    let event = OutboxEvent::from_bytes(&own.content).unwrap();
    assert_eq!((&*event.id, event.created_at), ("own", 0));
}

const MICROSECOND: Duration = Duration::from_micros(1);

#[test]
fn a_time_is_rounded_down_and_one_that_postgresql_does_not_have_refused() {
    let created_at = |time| event(&order().created_at(time)).created_at;
    assert_eq!(created_at(UNIX_EPOCH + Duration::from_nanos(1999)), 1);
    assert_eq!(created_at(UNIX_EPOCH - Duration::from_nanos(1)), -1);
    assert_eq!(created_at(UNIX_EPOCH - Duration::from_nanos(1001)), -2);
    // As `extract(epoch FROM ...)` has 294247-01-01 00:00:00+00 and 4714-11-24 00:00:00+00 BC.
    let end = UNIX_EPOCH + Duration::from_secs(9_223_371_244_800);
    let begin = UNIX_EPOCH - Duration::from_secs(210_866_803_200);
    assert_eq!(created_at(end - MICROSECOND), 9_223_371_244_799_999_999);
    assert_eq!(created_at(begin), -210_866_803_200_000_000);
    for time in [end, begin - MICROSECOND, UNIX_EPOCH + Duration::from_secs(1 << 60)] {
        assert_eq!(encode(&order().created_at(time)), Err(InvalidFact::CreatedAt));
    }
}

#[test]
fn a_trace_that_is_malformed_is_left_out() {
    assert_eq!(event(&order().traceparent(TRACE)).trace_info, Some(trace_info(None)));
    let state = order().traceparent(TRACE).tracestate("a=b");
    assert_eq!(event(&state).trace_info, Some(trace_info(Some("a=b"))));
    for state in ["", "a\0b"] {
        let fact = order().traceparent(TRACE).tracestate(state);
        assert_eq!(event(&fact).trace_info, Some(trace_info(None)), "{state:?}");
    }
    for malformed in [
        "",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
        "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n",
    ] {
        assert_eq!(event(&order().traceparent(malformed)).trace_info, None, "{malformed}");
    }
    assert_eq!(event(&order().tracestate("a=b")).trace_info, None);
}

#[test]
fn each_thing_that_is_wrong_has_its_sentence() {
    let topic = "cannot be part of a topic's name: only letters, digits, '.', '_' and '-' can";
    let nul = "has a NUL byte, which no text in PostgreSQL can hold";
    let long = "x".repeat(245);
    for (fact, sentence) in [
        (order().prefix(""), "prefix is empty: pass it, or set factlib.prefix".to_owned()),
        (order().prefix("a b"), format!("prefix \"a b\" {topic}")),
        (Fact::new("ä", "1", "e"), format!("aggregate_type \"ä\" {topic}")),
        (
            Fact::new("ä".repeat(101), "1", "e"),
            format!("aggregate_type \"{}\" {topic}", "ä".repeat(100)),
        ),
        (Fact::new("", "1", "e"), "aggregate_type is empty".to_owned()),
        (Fact::new("order", "", "e"), "aggregate_id is empty".to_owned()),
        (Fact::new("order", "1", ""), "event_type is empty".to_owned()),
        (
            Fact::new(&*long, "1", "e"),
            format!(
                "topic \"orders.{}\" has 252 characters, and Kafka takes at most 249",
                "x".repeat(93)
            ),
        ),
        (order().id("\0"), format!("id {nul}")),
        (Fact::new("order", "\0", "e"), format!("aggregate_id {nul}")),
        (Fact::new("order", "1", "\0"), format!("event_type {nul}")),
        (order().metadata("\0", ""), format!("metadata {nul}")),
        (order().metadata("", "\0"), format!("metadata {nul}")),
    ] {
        let refused = encode(&fact).unwrap_err();
        assert_eq!(refused.to_string(), sentence);
        let nul = matches!(refused, InvalidFact::NulByte(_));
        assert_eq!(refused.sqlstate(), if nul { "22021" } else { "22023" });
    }
    assert!(encode(&Fact::new("x".repeat(242), "1", "e")).is_ok());
}

#[test]
fn the_first_thing_that_is_wrong_is_said() {
    let wrong = Fact::new("a b", "", "").metadata("\0", "").payload(vec![0; 2_000_000]);
    let field = |fact| match encode(&fact) {
        Err(InvalidFact::NotInTopic { field, .. } | InvalidFact::Empty(field)) => Some(field),
        _ => None,
    };
    assert_eq!(encode(&wrong.clone().prefix("")), Err(InvalidFact::NoPrefix));
    assert_eq!(field(wrong.clone().prefix("a b")), Some(Field::Prefix));
    assert_eq!(field(wrong), Some(Field::AggregateType));
    assert_eq!(field(Fact::new("", "", "")), Some(Field::AggregateType));
    assert_eq!(field(Fact::new("x".repeat(250), "", "")), Some(Field::AggregateId));
    let large = order().metadata("\0", "").payload(vec![0; 2_000_000]);
    assert_eq!(encode(&large), Err(InvalidFact::NulByte(Field::Metadata)));
}

#[test]
fn a_record_may_be_as_large_as_the_limit_and_no_larger() {
    let fact = order().payload(vec![0; 1000]);
    let content = encode(&fact).unwrap();
    let bytes = 2 * content.len() - 1000 + 1024;
    let at = |max| emitter().max_record_bytes(max).encode(&fact, "an id", UNIX_EPOCH);
    assert!(at(bytes).is_ok());
    let refused = at(bytes - 1).unwrap_err();
    assert_eq!(refused, InvalidFact::TooLarge { bytes, max: bytes - 1 });
    assert_eq!(refused.sqlstate(), "54000");
    let sentence = format!(
        "fact of {bytes} bytes as a Kafka record, more than factlib.max_record_bytes ({})",
        bytes - 1
    );
    assert_eq!(refused.to_string(), sentence);
}

#[test]
fn what_is_printed_of_a_fact_has_nobodys_data() {
    let printed = format!("{:?}", order().payload("secret").metadata("card", "4111"));
    assert!(printed.contains("6 bytes") && printed.contains("card"), "{printed}");
    assert!(!printed.contains("secret") && !printed.contains("4111"), "{printed}");
}
