//! What factlib's emitters wrote and its relay made of it, as recorded, beside what the engine makes of it.

use super::recorded::{EMITTERS, PARTITIONS, PREFIX, Recorded, Recording};
use super::*;
use factlib::relay::fact::{Fact, FactError};
use std::collections::BTreeMap;
use testkit::envelope::OutboxEvent;

/// The stream that the recorded log makes.
fn stream(recording: &Recording) -> Stream {
    let mut stream = Stream::default();
    for unit in recording.facts.chunk_by(|one, next| one.final_lsn() == next.final_lsn()) {
        let (final_lsn, commit_timestamp) = (unit[0].final_lsn(), Timestamp(unit[0].commit_time));
        let begin = pgoutput::Begin { final_lsn, commit_timestamp, xid: 1 };
        stream = stream.put(&pgoutput::Message::Begin(begin));
        for fact in unit {
            stream = stream.content(fact.lsn().0, true, &fact.prefix, &fact.content);
        }
        stream = stream.commit(final_lsn.0);
    }
    stream
}

/// Everything that a relay with these settings publishes of it, by position.
fn publish(
    recording: &Recording,
    settings: Settings,
) -> BTreeMap<String, (PartitionBatch, rskafka::protocol::record::Record)> {
    let mut rig = Rig::new(settings);
    rig.partitions = PARTITIONS;
    rig.answer_metadata();
    rig.answer_producer_id(4000);
    rig.connect(Identity {
        system: recording.system.parse().unwrap(),
        timeline: recording.timeline,
        database: recording.database,
        ..identity()
    });
    rig.receive(&stream(recording).0);
    let mut published = BTreeMap::new();
    // Topics are asked for one after the other, a moment apart.
    let begun = rig.now.at;
    while rig.now.at < begun + SECOND {
        rig.pass(50 * MS);
        if rig.requests.iter().any(|request| matches!(request, Request::Metadata { .. })) {
            rig.answer_metadata();
        }
        while let Some(batches) = rig.produce() {
            rig.answer(&batches, NONE);
            for batch in batches {
                for record in records_of(&batch) {
                    let position = header(&record, "factlib_position").unwrap().to_owned();
                    let twice = published.insert(position.clone(), (batch.clone(), record));
                    assert!(twice.is_none(), "{position}");
                }
            }
        }
    }
    assert!(matches!(rig.standing().state, State::Streaming), "{:?}", rig.standing().state);
    published
}

fn header<'a>(record: &'a rskafka::protocol::record::Record, name: &str) -> Option<&'a str> {
    let found = record.headers.iter().find(|header| header.key == name)?;
    std::str::from_utf8(&found.value).ok()
}

fn skipping() -> Settings {
    Settings {
        prefixes: vec![PREFIX.to_owned()],
        policies: Policies { general: Policy::Skip, ..Policies::HALT },
        ..settings()
    }
}

fn pairs(walk: impl FnOnce(&mut dyn FnMut(&str, &str))) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    walk(&mut |key, value| {
        pairs.insert(key.to_owned(), value.to_owned());
    });
    pairs
}

/// The envelope as its emitter was told to write it, and as prost reads it.
fn assert_told(recorded: &Recorded, event: &OutboxEvent) {
    let (file, told) = (&recorded.file, &recorded.fact);
    assert_eq!(event.id, told.id, "{file}");
    assert_eq!(event.aggregate_type, told.aggregate_type, "{file}");
    assert_eq!(event.aggregate_id, told.aggregate_id, "{file}");
    assert_eq!(event.event_type, told.event_type, "{file}");
    assert_eq!(event.payload.len(), told.payload_len, "{file}");
    assert_eq!(event.created_at, told.created_at, "{file}");
    assert_eq!(event.metadata, told.metadata, "{file}");
    let trace = event.trace_info.as_ref();
    assert_eq!(trace.is_some(), told.trace_info.is_some(), "{file}");
    if let Some((trace, told)) = trace.zip(told.trace_info.as_ref()) {
        assert_eq!((&trace.trace_id, &trace.span_id), (&told.trace_id, &told.span_id), "{file}");
        assert_eq!(trace.metadata, told.metadata, "{file}");
    }
}

#[test]
fn every_fact_of_factlibs_emitters_is_read_as_they_were_told_to_emit_it() {
    for emitter in EMITTERS {
        for recorded in &Recording::of(emitter).facts {
            let (file, told) = (&recorded.file, &recorded.fact);
            assert_told(recorded, &OutboxEvent::from_bytes(&recorded.content).unwrap());
            let fact = match Fact::decode(&recorded.content) {
                Err(FactError::NoAggregateType) if told.aggregate_type.is_empty() => continue,
                fact => fact.unwrap_or_else(|error| panic!("{file}: {error}")),
            };
            let texts = [&fact.id, &fact.aggregate_type, &fact.aggregate_id, &fact.event_type];
            let expected = [&told.id, &told.aggregate_type, &told.aggregate_id, &told.event_type];
            assert_eq!(texts.map(|text| &**text), expected.map(String::as_str), "{file}");
            let payload = fact.payload.bytes().unwrap_or_default();
            assert_eq!(payload.len(), told.payload_len, "{file}");
            let digest: String =
                sha2::Sha256::digest(payload).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digest, told.payload_sha256, "{file}");
            assert_eq!(pairs(|each| fact.metadata(each)), told.metadata, "{file}");
            assert_eq!(fact.trace.is_some(), told.trace_info.is_some(), "{file}");
            if let Some((trace, told)) = fact.trace.zip(told.trace_info.as_ref()) {
                assert_eq!((&*trace.trace_id, &*trace.span_id), (&*told.trace_id, &*told.span_id));
                assert_eq!(pairs(|each| trace.metadata(each)), told.metadata, "{file}");
            }
        }
    }
}

#[test]
fn records_are_those_of_factlibs_relay_but_for_what_is_documented() {
    let mut records = 0;
    for emitter in EMITTERS {
        let recording = Recording::of(emitter);
        let published = publish(&recording, skipping());
        let expected: Vec<&Recorded> =
            recording.facts.iter().filter(|fact| fact.is_published()).collect();
        assert_eq!(published.len(), expected.len());
        for recorded in expected {
            let (batch, record) = &published[&recorded.factlib_position];
            let headers = record.headers.iter();
            let headers: Vec<_> =
                headers.map(|header| (header.key.clone(), header.value.clone())).collect();
            let place = (&*batch.topic, batch.partition);
            let (key, value) = (record.key.as_deref(), record.value.as_deref());
            recorded.assert_record(place, key, value, &headers);
            // What the application was given when it emitted the fact.
            assert_eq!(header(record, "LSN"), Some(&*recorded.lsn().to_string()));
            let source = format!("{}/{}", recording.system, recording.database);
            assert_eq!(header(record, "factlib_source"), Some(&*source));
            assert_eq!(header(record, "event_id"), Some(&*recorded.event_id), "{}", recorded.file);
            records += 1;
        }
    }
    assert!(records >= 27, "{records} records were compared");
}

#[test]
fn a_fact_of_factlibs_python_emitter_has_the_same_id_in_every_delivery() {
    let recording = Recording::of("python");
    assert!(recording.facts.iter().all(|fact| fact.fact.id.is_empty()));
    let ids = |settings| -> Vec<String> {
        let published = publish(&recording, settings);
        let ids = published.values().map(|(_, record)| header(record, "event_id").unwrap());
        ids.map(str::to_owned).collect()
    };
    let first = ids(skipping());
    assert_eq!(first.iter().collect::<HashSet<_>>().len(), first.len(), "{first:?}");
    // Also where another relay published other prefixes.
    let mut both = skipping();
    both.prefixes.push("interop-other".to_owned());
    let second = ids(both);
    assert!(first.iter().all(|id| second.contains(id)));
    assert_eq!(second.len(), first.len() + 1);
}

/// The differences in factlib's own records, so that docs/migrating.md names what there really was.
#[test]
fn factlibs_relay_encoded_anew_made_up_ids_and_added_the_length_to_the_lsn() {
    let (mut anew, mut made_up, mut without_type) = (0, 0, 0);
    for emitter in EMITTERS {
        for recorded in &Recording::of(emitter).facts {
            let Some(record) = &recorded.record else {
                assert_ne!(recorded.prefix, PREFIX);
                continue;
            };
            assert_eq!(record.headers["LSN"], recorded.their_lsn().to_string());
            let mut event = OutboxEvent::from_bytes(&recorded.value).unwrap();
            if recorded.fact.id.is_empty() {
                assert_eq!(event.id, record.headers["event_id"]);
                assert_ne!(event.id, recorded.event_id);
                event.id.clear();
                made_up += 1;
            } else if recorded.value != recorded.content {
                // The entries of maps come in any order.
                anew += 1;
            }
            assert_told(recorded, &event);
            without_type += usize::from(record.topic == "interop.");
            let key = record.key.as_bytes();
            let partitions = u32::try_from(PARTITIONS).unwrap();
            assert_eq!(u32::try_from(record.partition), Ok(partition(key, partitions)));
        }
    }
    assert!(anew > 0 && made_up > 0);
    assert_eq!(without_type, 1);
}

/// Symptom: every fact of an application without tracing had empty headers `trace_id` and `span_id`, which it never
/// had with factlib's relay.
#[test]
fn a_fact_without_a_trace_has_no_headers_of_one() {
    for emitter in EMITTERS {
        let recording = Recording::of(emitter);
        let published = publish(&recording, skipping());
        let mut untraced = 0;
        for recorded in recording.facts.iter().filter(|fact| fact.is_published()) {
            let trace = recorded.fact.trace_info.as_ref();
            let (trace_id, span_id) =
                trace.map_or(("", ""), |trace| (&trace.trace_id, &trace.span_id));
            let (_, record) = &published[&recorded.factlib_position];
            let expected = |id: &str| (!id.is_empty()).then(|| id.to_owned());
            assert_eq!(header(record, "trace_id").map(str::to_owned), expected(trace_id));
            if trace_id.is_empty() {
                assert_eq!(header(record, "span_id").map(str::to_owned), expected(span_id));
            }
            untraced += usize::from(trace_id.is_empty() && span_id.is_empty());
        }
        assert!(untraced > 3, "{untraced} of {emitter}");
    }
}
