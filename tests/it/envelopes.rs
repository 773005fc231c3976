//! The envelope that `factlib.emit` writes: the golden ones, and those of random facts.

use crate::emit_sql::{Emitted, emitted, install};
use postgres::Client;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use testkit::Postgres;
use testkit::envelope::{OutboxEvent, TraceInfo};

/// Larger envelopes are held to their hash.
const FILE_BYTES_MAX: usize = 64 * 1024;

/// Larger than any case.
const ROOM: &str =
    "SET factlib.max_record_bytes = 8388608; SET factlib.prefix = 'golden'; SET TimeZone = 'UTC'";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/envelopes").join(name)
}

/// A case of `cases.json`.
struct Case(Map<String, Value>);

impl Case {
    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap()
    }

    fn created_at(&self) -> i64 {
        self.0["created_at"].as_i64().unwrap()
    }

    fn metadata(&self) -> String {
        self.0["metadata"].to_string()
    }

    fn payload(&self) -> Payload {
        let payload = &self.0["payload"];
        let text = |name: &str| payload[name].as_str().map(str::to_owned);
        if payload.is_null() {
            return Payload::Absent;
        }
        let repeated = || {
            let times = usize::try_from(payload["times"].as_u64()?).ok()?;
            Some(Payload::Text(payload["repeat"].as_str()?.repeat(times)))
        };
        let payload = text("text").map(Payload::Text).or_else(|| text("json").map(Payload::Json));
        let payload = payload.or_else(|| {
            use base64::Engine as _;
            let decoded = base64::engine::general_purpose::STANDARD.decode(text("base64")?);
            Some(Payload::Bytes(decoded.unwrap()))
        });
        payload.or_else(repeated).unwrap()
    }

    /// Encoded by somebody else's library.
    fn golden(&self) -> Vec<u8> {
        let metadata = self.0["metadata"].as_object().unwrap().iter();
        let words = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        OutboxEvent {
            id: self.text("id").to_owned(),
            aggregate_type: self.text("aggregate_type").to_owned(),
            aggregate_id: self.text("aggregate_id").to_owned(),
            event_type: self.text("event_type").to_owned(),
            payload: self.payload().bytes().unwrap_or_default(),
            created_at: self.created_at(),
            metadata: metadata.map(|(key, value)| (key.clone(), words(value))).collect(),
            trace_info: trace(self.text("traceparent"), self.text("tracestate")),
        }
        .to_bytes()
    }
}

/// What becomes of a trace context. Only the well-formed one of the cases is known here.
fn trace(traceparent: &str, tracestate: &str) -> Option<TraceInfo> {
    const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut metadata = BTreeMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    if !tracestate.is_empty() {
        metadata.insert("tracestate".to_owned(), tracestate.to_owned());
    }
    (traceparent == TRACEPARENT).then(|| TraceInfo {
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
        span_id: "00f067aa0ba902b7".to_owned(),
        metadata,
    })
}

#[derive(Debug, Clone)]
enum Payload {
    Absent,
    Text(String),
    /// The text that `jsonb` writes.
    Json(String),
    Bytes(Vec<u8>),
}

impl Payload {
    fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Absent => None,
            Self::Text(text) | Self::Json(text) => Some(text.clone().into_bytes()),
            Self::Bytes(bytes) => Some(bytes.clone()),
        }
    }
}

/// A fact, given to the function as an application would; the envelope's bytes in the log.
#[derive(Debug)]
struct Given<'a> {
    names: [&'a str; 3],
    payload: Payload,
    metadata: &'a str,
    id: &'a str,
    created_at: i64,
    trace: [&'a str; 2],
}

impl Given<'_> {
    /// In a transaction with this trace context.
    fn emit(&self, client: &mut Client) -> Result<(), postgres::Error> {
        let [aggregate_type, aggregate_id, event_type] = self.names;
        let kind = match self.payload {
            Payload::Absent | Payload::Bytes(_) => "bytea",
            Payload::Text(_) => "text",
            Payload::Json(_) => "text::jsonb",
        };
        let (bytes, text) = match &self.payload {
            Payload::Absent => (None, None),
            Payload::Bytes(bytes) => (Some(bytes.as_slice()), None),
            Payload::Text(text) | Payload::Json(text) => (None, Some(text.as_str())),
        };
        let payload: &(dyn postgres::types::ToSql + Sync) =
            if kind == "bytea" { &bytes } else { &text };
        let mut transaction = client.transaction()?;
        let set = "SELECT set_config('factlib.traceparent', $1, true), set_config('factlib.tracestate', $2, true)";
        transaction.execute(set, &[&self.trace[0], &self.trace[1]])?;
        let query = format!(
            "SELECT id, lsn::text FROM factlib.emit($1, $2, $3, $4::{kind}, $5::text::jsonb, id => $6,
                created_at => 'epoch'::timestamptz + $7::text::interval)"
        );
        // PostgreSQL 14 reads no larger number of microseconds.
        let day = 86_400_000_000;
        let (days, micros) = (self.created_at.div_euclid(day), self.created_at.rem_euclid(day));
        let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
        let since_1970 = format!("{days} days {seconds} seconds {micros} microseconds");
        let row = transaction.query_one(
            &query,
            &[
                &aggregate_type,
                &aggregate_id,
                &event_type,
                payload,
                &self.metadata,
                &self.id,
                &since_1970,
            ],
        )?;
        assert_eq!(row.get::<_, String>(0), self.id);
        transaction.commit()
    }
}

fn cases() -> Vec<Case> {
    let json = std::fs::read_to_string(file("cases.json")).unwrap();
    serde_json::from_str::<Vec<Map<String, Value>>>(&json).unwrap().into_iter().map(Case).collect()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_golden_envelopes_are_what_another_protobuf_library_writes() {
    let mut cases = cases();
    if std::env::var_os("WRITE_ENVELOPES").is_some() {
        for case in &mut cases {
            let golden = case.golden();
            if golden.len() <= FILE_BYTES_MAX {
                std::fs::write(file(&format!("{}.bin", case.text("name"))), &golden).unwrap();
            }
            case.0.insert("bytes".to_owned(), golden.len().into());
            case.0.insert("sha256".to_owned(), hash(&golden).into());
        }
        let lines: Vec<_> =
            cases.iter().map(|case| Value::from(case.0.clone()).to_string()).collect();
        std::fs::write(file("cases.json"), format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
    }
    for case in &cases {
        let (name, golden) = (case.text("name"), case.golden());
        assert_eq!(case.0["bytes"].as_u64(), u64::try_from(golden.len()).ok(), "{name}");
        assert_eq!(case.text("sha256"), hash(&golden), "{name}");
        let stored = std::fs::read(file(&format!("{name}.bin"))).ok();
        assert_eq!(stored, (golden.len() <= FILE_BYTES_MAX).then_some(golden), "{name}");
    }
    let files = std::fs::read_dir(file("")).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "bin")).count();
    let large =
        cases.iter().filter(|case| case.0["bytes"].as_u64() > u64::try_from(FILE_BYTES_MAX).ok());
    assert_eq!(files + large.count(), cases.len(), "a file of no case");
}

fn golden_on(postgres: &Postgres, database: &str) {
    let mut client = crate::emit_sql::client(postgres, database);
    install(&mut client);
    let read = emitted(&mut client);
    client.batch_execute(ROOM).unwrap();
    let latin1 = database == "latin1";
    let mut compared = 0;
    for case in cases() {
        let given = Given {
            names: ["aggregate_type", "aggregate_id", "event_type"].map(|name| case.text(name)),
            payload: case.payload(),
            metadata: &case.metadata(),
            id: case.text("id"),
            created_at: case.created_at(),
            trace: ["traceparent", "tracestate"].map(|name| case.text(name)),
        };
        let name = case.text("name");
        match given.emit(&mut client) {
            Err(error) if latin1 && name == "unicode" => {
                assert_eq!(error.code().unwrap().code(), "22P05", "no such letters in Latin-1");
                continue;
            }
            taken => taken.unwrap_or_else(|error| panic!("{name}: {error:?}")),
        }
        let Emitted { prefix, content, transactional } = read.one(&mut client);
        assert_eq!((prefix.as_str(), transactional), ("golden", true));
        assert!(content == case.golden(), "{name}: {content:x?} is not {:x?}", case.golden());
        compared += 1;
    }
    assert!(compared > 35, "only {compared} cases");
}

#[test]
fn the_function_writes_the_golden_envelopes_byte_for_byte() {
    golden_on(&Postgres::builder().start(), "app");
}

#[test]
fn the_function_writes_the_same_bytes_in_a_database_of_another_encoding() {
    let postgres = Postgres::builder().start();
    let make =
        "CREATE DATABASE latin1 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    postgres.client().batch_execute(make).unwrap();
    golden_on(&postgres, "latin1");
}

/// Text that PostgreSQL can hold: no NUL.
fn text(max: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop_oneof![4 => any::<char>(), 2 => prop::char::range('a', 'z'), 1 => Just('ü')],
        1..=max,
    )
    .prop_map(|letters| letters.into_iter().map(|c| if c == '\0' { '0' } else { c }).collect())
}

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        Just(Payload::Absent),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Payload::Bytes),
        text(200).prop_map(Payload::Text),
        text(200).prop_map(|text| Payload::Json(Value::from(text.as_str()).to_string())),
        (16_000_usize..17_000).prop_map(|len| Payload::Bytes(vec![7; len])),
    ]
}

#[test]
fn random_facts_come_back_as_they_were_given() {
    let postgres = Postgres::builder().start();
    let mut client = postgres.client();
    install(&mut client);
    let read = emitted(&mut client);
    client.batch_execute(ROOM).unwrap();
    let facts = (
        ("[A-Za-z0-9._-]{1,40}", text(200), text(150), text(200)),
        payload(),
        prop::collection::btree_map(text(20), text(200), 0..5),
        -62_000_000_000_000_000_i64..253_402_300_799_999_999,
        prop::option::of((
            "[0-9a-f]{31}1",
            "[0-9a-f]{15}1",
            "[0-9a-f]{2}",
            prop::option::of("[ -~]{1,20}"),
        )),
    );
    let mut runner =
        TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let client = std::cell::RefCell::new(client);
    let ran =
        runner.run(&facts, |((kind, key, event, id), payload, metadata, created_at, trace)| {
            let client = &mut *client.borrow_mut();
            let traceparent = trace.as_ref().map(|(t, s, flags, _)| format!("00-{t}-{s}-{flags}"));
            let tracestate =
                trace.as_ref().and_then(|(.., state)| state.clone()).unwrap_or_default();
            let json = serde_json::to_string(&metadata).unwrap();
            let given = Given {
                names: [&kind, &key, &event],
                payload: payload.clone(),
                metadata: &json,
                id: &id,
                created_at,
                trace: [traceparent.as_deref().unwrap_or_default(), &tracestate],
            };
            given.emit(client).unwrap_or_else(|error| panic!("{error:?}: {given:?}"));
            let content = read.one(client).content;
            // By another library, and by the relay's own reader.
            let found = OutboxEvent::from_bytes(&content).unwrap();
            let trace_info = trace.map(|(trace_id, span_id, ..)| {
                let traceparent = ("traceparent".to_owned(), traceparent.clone().unwrap());
                let mut metadata = BTreeMap::from([traceparent]);
                if !tracestate.is_empty() {
                    metadata.insert("tracestate".to_owned(), tracestate.clone());
                }
                TraceInfo { trace_id, span_id, metadata }
            });
            let expected = OutboxEvent {
                id,
                aggregate_type: kind,
                aggregate_id: key,
                event_type: event,
                payload: payload.bytes().unwrap_or_default(),
                created_at,
                metadata,
                trace_info,
            };
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(&content, &expected.to_bytes(), "the one encoding");
            let fact = factlib::relay::fact::Fact::decode(&content).unwrap();
            prop_assert_eq!(&*fact.id, &expected.id);
            prop_assert_eq!(&*fact.aggregate_type, &expected.aggregate_type);
            prop_assert_eq!(&*fact.aggregate_id, &expected.aggregate_id);
            prop_assert_eq!(&*fact.event_type, &expected.event_type);
            prop_assert_eq!(fact.payload.bytes().unwrap_or_default(), &expected.payload);
            let mut metadata = BTreeMap::new();
            fact.metadata(|key, value| {
                metadata.insert(key.to_owned(), value.to_owned());
            });
            prop_assert_eq!(metadata, expected.metadata);
            let trace_id = expected.trace_info.map(|trace| trace.trace_id);
            prop_assert_eq!(fact.trace.map(|trace| trace.trace_id.into_owned()), trace_id);
            Ok(())
        });
    ran.unwrap();
}
