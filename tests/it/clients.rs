//! The crate for Rust and clients in other languages: facts arrive the same by every road, errors and limits are the same, and their
//! consumers tell repeats. `scripts/clients` builds them.

use crate::commands::Shell;
use crate::emit_sql::{emitted, install};
use crate::examples::example;
use crate::support::{PATIENCE, count, relay, skipped, stop, wait_confirmed};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};
use testkit::envelope::OutboxEvent;
use testkit::{Kafka, Lsn, Postgres, Record};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    Rust,
    Python,
    Go,
    TypeScript,
    Java,
}

/// The first time that no fact can have.
const FAR: &str = "294247-01-01T00:00:00.000000+00:00";

/// Every way in which a client emits, by its test program's word for it.
const ROADS: [(Language, &str); 19] = [
    (Language::Rust, "sqlx"),
    (Language::Rust, "tokio-postgres"),
    (Language::Rust, "postgres"),
    (Language::Rust, "diesel"),
    (Language::Rust, "diesel-async"),
    (Language::Python, "psycopg"),
    (Language::Python, "psycopg2"),
    (Language::Python, "sqlalchemy"),
    (Language::Python, "django"),
    (Language::Python, "psycopg_async"),
    (Language::Python, "asyncpg"),
    (Language::Python, "sqlalchemy_async"),
    (Language::Go, "pgx"),
    (Language::Go, "sql"),
    (Language::TypeScript, "pg"),
    (Language::TypeScript, "postgres"),
    (Language::TypeScript, "drizzle"),
    (Language::TypeScript, "knex"),
    (Language::Java, "jdbc"),
];

pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

impl Language {
    fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Python => "python",
            Self::Go => "go",
            Self::TypeScript => "typescript",
            Self::Java => "java",
        }
    }

    /// Whether its client is built. Without its toolchain it is not, which is a failure in CI.
    pub(crate) fn is_ready(self) -> bool {
        static SAID: OnceLock<String> = OnceLock::new();
        let said = SAID.get_or_init(|| {
            let output = Command::new(path("scripts/clients")).output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let said = text(&output.stdout);
            assert!(output.status.success(), "{said}{}", text(&output.stderr));
            said.lines().filter(|line| line.contains("missing")).for_each(skipped);
            said
        });
        said.lines().any(|line| line == format!("{} ready", self.name()))
    }

    /// Whether its metadata are texts and nothing else.
    fn has_types(self) -> bool {
        matches!(self, Self::Rust | Self::Java | Self::Go)
    }

    /// Whether there are values of its types that say this. A `datetime` of Python ends with the year 9999.
    fn can_say(self, fact: &Value) -> bool {
        let texts = |metadata: &Value| {
            metadata.as_object().is_some_and(|metadata| metadata.values().all(Value::is_string))
        };
        match self {
            Self::Python => fact["created_at"] != FAR,
            _ if self.has_types() => fact.get("metadata").is_none_or(texts),
            _ => true,
        }
    }

    /// The test program of its client.
    fn program(self) -> Command {
        let mut command = limited(120);
        match self {
            Self::Rust => command.arg(example("road")),
            Self::Python => command
                .arg(path("target/clients/python/bin/python"))
                .arg(path("clients/python/tests/road.py")),
            Self::Go => command.arg(path("target/clients/go/road")),
            Self::TypeScript => {
                command.arg("node").arg(path("clients/typescript/dist/test/road.js"))
            }
            Self::Java => command.args(["java", "-cp", &java_classes(), "dev.factlib.Road"]),
        };
        command
    }
}

/// What is to be run follows: it ends after so many seconds, whatever it does.
fn limited(seconds: u32) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &seconds.to_string()]);
    command
}

fn java_classes() -> String {
    let target = path("clients/java/target");
    let target = target.display();
    format!("{target}/classes:{target}/test-classes:{target}/lib/*")
}

/// A program with its servers, fed with lines; the lines that it prints.
#[track_caller]
fn run(command: &mut Command, postgres: &Postgres, lines: &[Value]) -> Vec<Value> {
    let jdbc = format!("jdbc:postgresql://127.0.0.1:{}/app?user=postgres", postgres.port());
    command.env("DATABASE_URL", postgres.url()).env("JDBC_URL", jdbc);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    // From a thread: the program may print before it has read all.
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    writer.join().unwrap().unwrap();
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The road without a client. What it answers is what all must answer.
fn emit_by_sql(postgres: &Postgres, commit: bool, facts: &[Value]) -> Vec<Value> {
    let mut client = postgres.client();
    let emit = |fact: &Value| {
        let mut transaction = client.transaction().unwrap();
        for name in ["traceparent", "tracestate"] {
            let setting = format!("SELECT set_config('factlib.{name}', $1, true)");
            let value = fact[name].as_str().unwrap_or_default();
            transaction.execute(&setting, &[&value]).unwrap();
        }
        let payload = &fact["payload"];
        let (bytes, kind) = match (&payload["bytes"], &payload["text"], payload.get("json")) {
            (Value::String(text), ..) => (Some(BASE64.decode(text).unwrap()), ""),
            (_, Value::String(text), _) => (Some(text.clone().into_bytes()), ""),
            (.., Some(value)) => (Some(value.to_string().into_bytes()), "::jsonb"),
            _ => (None, ""),
        };
        let content = match kind {
            "" => "$4::bytea",
            _ => "convert_from($4::bytea, 'UTF8')::jsonb",
        };
        let statement = format!(
            "SELECT id, lsn::text FROM factlib.emit($1, $2, $3, {content}, $5::text::jsonb, $6, $7, \
             $8::text::timestamptz)"
        );
        let text = |name: &str| fact[name].as_str().map(str::to_owned);
        let metadata = fact.get("metadata").map_or("{}".to_owned(), Value::to_string);
        let parameters: [&(dyn postgres::types::ToSql + Sync); 8] = [
            &text("aggregate_type"),
            &text("aggregate_id"),
            &text("event_type"),
            &bytes,
            &metadata,
            &text("prefix"),
            &text("id"),
            &text("created_at"),
        ];
        match transaction.query_one(&statement, &parameters) {
            Ok(row) => {
                if commit {
                    transaction.commit().unwrap();
                }
                json!({"id": row.get::<_, String>(0), "lsn": row.get::<_, String>(1)})
            }
            Err(error) => {
                let error = error.as_db_error().unwrap_or_else(|| panic!("{error}: {fact}"));
                json!({"sqlstate": error.code().code(), "message": error.message()})
            }
        }
    };
    facts.iter().map(emit).collect()
}

/// Text without the one character that PostgreSQL cannot hold.
fn text(length: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    let character = prop_oneof![any::<char>(), "[ -~]".prop_map(|s| s.chars().next().unwrap())];
    let character = character.prop_map(|c| if c == '\0' { '0' } else { c });
    proptest::collection::vec(character, length).prop_map(String::from_iter)
}

/// JSON that every language writes with the same numbers.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-(1_i64 << 53) + 1..1 << 53).prop_map(Value::from),
        (-1_000_000_i32..1_000_000).prop_map(|n| Value::from(f64::from(n) + 0.5)),
        text(0..10).prop_map(Value::from),
    ];
    let nested = leaf.prop_recursive(3, 20, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(text(0..6), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    nested.prop_map(|value| if value.is_object() { value } else { json!([value]) })
}

fn time(microseconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_micros(microseconds);
    humantime::format_rfc3339_micros(time).to_string().replace('Z', "+00:00")
}

/// A fact whose envelope is determined: it has an id and a time.
fn fact() -> impl Strategy<Value = Value> {
    let payload = prop_oneof![
        Just(json!({})),
        proptest::collection::vec(any::<u8>(), 0..300)
            .prop_map(|bytes| json!({"bytes": BASE64.encode(bytes)})),
        text(0..200).prop_map(|text| json!({"text": text})),
        json_value().prop_map(|value| json!({"json": value})),
    ];
    let trace = prop_oneof![
        Just(json!({})),
        "00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]".prop_map(|given| json!({"traceparent": given})),
        ("00-[0-9a-f]{32}-[0-9a-f]{16}-01", "[a-z]{1,8}=[a-z0-9]{1,8}")
            .prop_map(|(parent, state)| json!({"traceparent": parent, "tracestate": state})),
        text(1..60).prop_map(|malformed| json!({"traceparent": malformed})),
    ];
    (
        "[A-Za-z0-9._-]{1,30}",
        text(1..40),
        text(1..40),
        payload,
        proptest::collection::btree_map(text(0..12), text(0..200), 0..5),
        text(1..40),
        prop_oneof![Just(0), 0..7_000_000_000_000_000_u64],
        trace,
    )
        .prop_map(
            |(aggregate_type, aggregate_id, event_type, payload, metadata, id, at, trace)| {
                let mut fact = json!({
                    "aggregate_type": aggregate_type, "aggregate_id": aggregate_id,
                    "event_type": event_type, "payload": payload, "id": id, "created_at": time(at),
                });
                let members = fact.as_object_mut().unwrap();
                if !metadata.is_empty() {
                    members.insert("metadata".to_owned(), json!(metadata));
                }
                members.extend(trace.as_object().unwrap().clone());
                fact
            },
        )
}

fn is_trace(traceparent: &str) -> bool {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let hex = |text: &str, length| {
        text.len() == length
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let zero = |text: &str| text.bytes().all(|b| b == b'0');
    matches!(parts.as_slice(), ["00", trace, span, flags]
        if hex(trace, 32) && hex(span, 16) && hex(flags, 2) && !zero(trace) && !zero(span))
}

/// That the envelope says what the fact does.
#[track_caller]
fn says(event: &OutboxEvent, fact: &Value) {
    let texts = [
        (&event.id, "id"),
        (&event.aggregate_type, "aggregate_type"),
        (&event.aggregate_id, "aggregate_id"),
        (&event.event_type, "event_type"),
    ];
    for (found, name) in texts {
        assert_eq!(Some(found.as_str()), fact[name].as_str(), "{name} of {fact}");
    }
    let payload = &fact["payload"];
    match (payload["bytes"].as_str(), payload["text"].as_str(), payload.get("json")) {
        (Some(bytes), ..) => assert_eq!(event.payload, BASE64.decode(bytes).unwrap(), "{fact}"),
        (_, Some(text), _) => assert_eq!(event.payload, text.as_bytes(), "{fact}"),
        (.., Some(value)) => {
            let found: Value = serde_json::from_slice(&event.payload).unwrap();
            assert_eq!(&found, value, "{fact}");
        }
        _ => assert!(event.payload.is_empty(), "{fact}"),
    }
    let at = u64::try_from(event.created_at).unwrap();
    assert_eq!(Some(time(at).as_str()), fact["created_at"].as_str(), "{fact}");
    let metadata: BTreeMap<String, String> =
        serde_json::from_value(fact.get("metadata").cloned().unwrap_or(json!({}))).unwrap();
    assert_eq!(event.metadata, metadata, "{fact}");
    let trace = fact["traceparent"].as_str().filter(|given| is_trace(given));
    assert_eq!(event.trace_info.is_some(), trace.is_some(), "{fact}");
    if let (Some(info), Some(given)) = (&event.trace_info, trace) {
        assert_eq!(
            (info.trace_id.as_str(), info.span_id.as_str()),
            (&given[3..35], &given[36..52])
        );
        assert_eq!(info.metadata["traceparent"], given);
        let state = info.metadata.get("tracestate").map(String::as_str);
        assert_eq!(state, fact["tracestate"].as_str(), "{fact}");
    }
}

/// Facts that are refused, with what the function says of each, or how that begins.
fn refused() -> Vec<(Value, &'static str, &'static str)> {
    let good =
        json!({"aggregate_type": "order", "aggregate_id": "1", "event_type": "e", "prefix": "p"});
    let with = |name: &str, value: Value| {
        let mut fact = good.clone();
        fact[name] = value;
        fact
    };
    let large = json!({"bytes": BASE64.encode(vec![7; 1_100_000])});
    let wanted = "metadata must be a JSON object of strings, numbers and booleans";
    vec![
        (with("prefix", json!("")), "22023", "prefix is empty: pass it, or set factlib.prefix"),
        (with("prefix", json!("a b")), "22023", "prefix \"a b\" cannot be part of a topic's name"),
        (with("aggregate_type", json!("ä")), "22023", "aggregate_type \"ä\" cannot be part of"),
        (with("aggregate_type", json!("")), "22023", "aggregate_type is empty"),
        (with("aggregate_id", json!("")), "22023", "aggregate_id is empty"),
        (with("event_type", json!("")), "22023", "event_type is empty"),
        (with("aggregate_type", json!("t".repeat(298))), "22023", "topic \"p.ttt"),
        (with("payload", large), "54000", "fact of 1101"),
        (with("created_at", json!(FAR)), "22023", "created_at is out of range: a time before the"),
        (with("metadata", json!({"a": "b", "k": {}})), "22023", wanted),
        (with("metadata", json!({"k": null})), "22023", wanted),
        (with("metadata", json!(["k"])), "22023", wanted),
    ]
}

/// Facts with a NUL in a text, which PostgreSQL has not: its parser says so, or that of JSON, or the driver.
fn with_nul() -> Vec<Value> {
    let with = |name: &str, value: Value| {
        let mut fact = json!({"aggregate_type": "order", "aggregate_id": "1", "event_type": "e", "prefix": "p"});
        fact[name] = value;
        fact
    };
    vec![
        with("aggregate_id", json!("a\0b")),
        with("event_type", json!("\0")),
        with("id", json!("a\0")),
        with("metadata", json!({"k": "a\0"})),
        with("metadata", json!({"a\0": "v"})),
    ]
}

#[track_caller]
fn is_refused_for_nul(answer: &Value) {
    // Drivers that look at it themselves have no SQLSTATE.
    let known = ["22021", "22P05"].map(Value::from);
    let message = answer["message"].as_str().unwrap_or_default();
    let says = ["0x00", "NUL", "unsupported Unicode escape sequence"];
    assert!(
        (answer["sqlstate"].is_null() || known.contains(&answer["sqlstate"]))
            && says.iter().any(|words| message.contains(words)),
        "{answer}"
    );
}

fn prefix(language: Language, adapter: &str) -> String {
    format!("road-{}-{adapter}", language.name())
}

fn with_prefix(facts: &[Value], prefix: &str) -> Vec<Value> {
    let mut facts = facts.to_vec();
    facts.iter_mut().for_each(|fact| fact["prefix"] = prefix.into());
    facts
}

fn values(records: &[Record]) -> Vec<&[u8]> {
    records.iter().map(|record| record.value.as_deref().unwrap_or_default()).collect()
}

/// That what was emitted without an id and a time has both.
#[track_caller]
fn is_complete(event: &OutboxEvent, since: i64) {
    let id = uuid::Uuid::parse_str(&event.id).unwrap();
    assert_eq!(id.get_version_num(), 7, "{id}");
    assert!(event.created_at >= since, "{} is before {since}", event.created_at);
    assert!(event.created_at < since + 600_000_000, "{} is not now", event.created_at);
}

#[test]
fn facts_arrive_the_same_by_every_road_and_are_refused_in_the_same_words() {
    let roads: Vec<_> = ROADS.into_iter().filter(|(language, _)| language.is_ready()).collect();
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let mut client = postgres.client();
    install(&mut client);
    let mut prefixes = vec!["road-sql".to_owned()];
    prefixes.extend(roads.iter().map(|&(language, adapter)| prefix(language, adapter)));
    prefixes.iter().for_each(|prefix| kafka.create_topic(prefix, 1, &[]));
    let relay = relay("road-sql", &postgres, kafka)
        .env("WAL_PREFIX", prefixes.join(","))
        .env("TOPIC_TEMPLATE", "{prefix}")
        .spawn();
    relay.wait_ready();

    let mut runner = TestRunner::default();
    let facts = proptest::collection::vec(fact(), 40).new_tree(&mut runner).unwrap().current();
    let unnamed = json!({"aggregate_type": "order", "aggregate_id": "1", "event_type": "unnamed"});
    let (refused, with_nul) = (refused(), with_nul());
    let since: i64 = postgres
        .ask("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        .parse()
        .unwrap();

    let said = emit_by_sql(&postgres, true, &with_prefix(&facts, "road-sql"));
    for (answer, fact) in said.iter().zip(&facts) {
        assert_eq!(answer["id"], fact["id"], "{answer}");
    }
    let bad: Vec<Value> = refused.iter().map(|(fact, ..)| fact.clone()).collect();
    let no = emit_by_sql(&postgres, true, &bad);
    for (answer, (_, sqlstate, begins)) in no.iter().zip(&refused) {
        assert_eq!(answer["sqlstate"], *sqlstate, "{answer}");
        let message = answer["message"].as_str().unwrap_or_else(|| panic!("{answer}: {begins}"));
        assert!(message.starts_with(begins), "{message}: {begins}");
    }
    emit_by_sql(&postgres, true, &with_nul).iter().for_each(is_refused_for_nul);

    for &(language, adapter) in &roads {
        let prefix = prefix(language, adapter);
        let program = |mode: &str| {
            let mut program = language.program();
            program.args(["emit", adapter, mode]);
            program
        };
        let mut lines = with_prefix(&facts, &prefix);
        lines.push(unnamed.clone());
        lines.last_mut().unwrap()["prefix"] = prefix.as_str().into();
        let undone = run(&mut program("rollback"), &postgres, &lines);
        assert!(undone.iter().all(|line| line["lsn"].is_string()), "{prefix}: {undone:?}");
        let sayable = bad.iter().zip(&no).filter(|(fact, _)| language.can_say(fact));
        let (bad, no): (Vec<Value>, Vec<Value>) =
            sayable.map(|(a, b)| (a.clone(), b.clone())).unzip();
        lines.extend(bad);
        lines.extend_from_slice(&with_nul);
        let said = run(&mut program("commit"), &postgres, &lines);
        assert_eq!(said.len(), lines.len(), "{prefix}");
        let (refused, nul) = said[facts.len() + 1..].split_at(no.len());
        assert_eq!(refused, no, "{prefix}");
        nul.iter().for_each(is_refused_for_nul);

        relay.wait_until("the road's facts", PATIENCE, || count(kafka, &prefix) > facts.len());
        let records = kafka.read_topic(&prefix);
        assert_eq!(records.len(), facts.len() + 1, "{prefix}: what was rolled back was published");
        for ((record, answer), line) in records.iter().zip(&said).zip(&lines) {
            let id = line["id"].as_str().or(answer["id"].as_str());
            assert_eq!(record.header("event_id"), id, "{prefix}");
            assert_eq!(record.header("LSN"), answer["lsn"].as_str(), "{prefix}");
            assert_eq!(record.key.as_deref(), line["aggregate_id"].as_str().map(str::as_bytes));
            let lsn = |name: &str| answer[name].as_str().unwrap().parse::<Lsn>().unwrap();
            assert!(lsn("wait") > lsn("lsn"), "{answer}");
        }
        let last = records.last().unwrap().value.as_deref().unwrap();
        is_complete(&OutboxEvent::from_bytes(last).unwrap(), since);
    }
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let by_sql = kafka.read_topic("road-sql");
    assert_eq!(by_sql.len(), facts.len());
    for (value, fact) in values(&by_sql).into_iter().zip(&facts) {
        says(&OutboxEvent::from_bytes(value).unwrap(), fact);
    }
    for &(language, adapter) in &roads {
        let prefix = prefix(language, adapter);
        let records = kafka.read_topic(&prefix);
        let (here, there) = (values(&records), values(&by_sql));
        for ((one, other), fact) in here.iter().zip(&there).zip(&facts) {
            if language == Language::Rust && fact["payload"].get("json").is_some() {
                // As serde writes it, to the byte, and not as `jsonb` does, which by the other roads reads it and
                // writes it anew. The crate could do that only by a parser of its own for what the application's types
                // have just written: that sorts members, writes out exponents, and has no \u0000. So it leaves them as
                // they are, and what `jsonb` makes of them is what arrives by the other roads.
                let event = OutboxEvent::from_bytes(one).unwrap();
                let json = fact["payload"]["json"].to_string();
                assert_eq!(event.payload, json.as_bytes(), "{prefix}: {fact}");
                let statement = "SELECT convert_to($1::text::jsonb::text, 'UTF8')";
                let payload = client.query_one(statement, &[&json]).unwrap().get(0);
                assert_eq!(&OutboxEvent { payload, ..event }.to_bytes(), other, "{prefix}: {fact}");
            } else {
                assert_eq!(one, other, "{prefix}: {fact}");
            }
        }
    }
}

/// A golden case as a line for the test programs.
fn line_of(case: &Value, postgres: &Postgres, typed: bool) -> Value {
    let payload = &case["payload"];
    let payload = match (&payload["json"], &payload["base64"], &payload["repeat"]) {
        // A null is no payload in most languages; as JSON it can be given as text.
        (Value::String(json), ..) if json == "null" => json!({"text": json}),
        (Value::String(json), ..) => json!({"json": serde_json::from_str::<Value>(json).unwrap()}),
        (_, Value::String(base64), _) => json!({"bytes": base64}),
        (.., Value::String(repeated)) => {
            let times = usize::try_from(payload["times"].as_u64().unwrap()).unwrap();
            json!({"text": repeated.repeat(times)})
        }
        _ => payload.clone(),
    };
    let at = case["created_at"].as_i64().unwrap();
    let at = (at.div_euclid(86_400_000_000), at.rem_euclid(86_400_000_000));
    let at = postgres.ask(&format!(
        "SELECT to_char(timestamp 'epoch' + interval '{} days {} microseconds',
                        'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"')",
        at.0, at.1
    ));
    let mut metadata = case["metadata"].clone();
    if typed {
        for (_, value) in metadata.as_object_mut().unwrap() {
            *value = value.as_str().map_or_else(|| value.to_string(), str::to_owned).into();
        }
    }
    let mut line = case.clone();
    let members = line.as_object_mut().unwrap();
    for name in ["name", "bytes", "sha256", "payload"] {
        members.remove(name);
    }
    members.retain(|name, value| !name.starts_with("trace") || *value != "");
    members.insert("created_at".to_owned(), at.into());
    members.insert("metadata".to_owned(), metadata);
    if payload.is_object() {
        members.insert("payload".to_owned(), payload);
    }
    line
}

#[test]
fn the_golden_envelopes_are_written_by_every_road() {
    let folder = path("tests/it/fixtures/envelopes");
    let cases = std::fs::read_to_string(folder.join("cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
    let postgres = Postgres::builder().start();
    let mut client = postgres.client();
    install(&mut client);
    let settings = "ALTER DATABASE app SET factlib.prefix = 'golden';
        ALTER DATABASE app SET factlib.max_record_bytes = 8388608";
    client.batch_execute(settings).unwrap();
    let reading = emitted(&mut client);
    for (language, adapter) in ROADS.into_iter().filter(|(language, _)| language.is_ready()) {
        // The first instant of the year 1 is Go's word for no time.
        let can = |case: &&Value| {
            language != Language::Go || case["name"] != "created-at-long-before-1970"
        };
        let cases: Vec<_> = cases.iter().filter(can).collect();
        let typed = language.has_types();
        let mut lines: Vec<_> = cases.iter().map(|case| line_of(case, &postgres, typed)).collect();
        let mut program = language.program();
        if language == Language::Rust {
            // It asks the server for no setting, and writes JSON as serde does.
            program.env("MAX_RECORD_BYTES", "8388608");
            for (line, case) in lines.iter_mut().zip(&cases) {
                line["prefix"] = "golden".into();
                if let Value::String(json) = &case["payload"]["json"] {
                    line["payload"] = json!({"text": json});
                }
            }
        }
        let said = run(program.args(["emit", adapter, "commit"]), &postgres, &lines);
        let refused: Vec<_> = said.iter().filter(|line| line["lsn"].is_null()).collect();
        assert!(refused.is_empty(), "{adapter}: {refused:?}");
        let written = reading.all(&mut client);
        assert_eq!(written.len(), cases.len(), "{adapter}");
        for (message, case) in written.iter().zip(cases) {
            let hash: String =
                Sha256::digest(&message.content).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(case["sha256"], hash, "{adapter}: {}", case["name"]);
        }
    }
}

/// What the clients' consumers print of such records.
fn printed(records: &[&Record]) -> Vec<Value> {
    let print = |record: &&Record| {
        let event = OutboxEvent::from_bytes(record.value.as_deref().unwrap()).unwrap();
        let trace = event.trace_info.unwrap_or_default();
        json!({
            "partition": record.partition, "id": event.id, "aggregate_type": event.aggregate_type,
            "aggregate_id": event.aggregate_id, "event_type": event.event_type,
            "payload": BASE64.encode(event.payload), "created_at": event.created_at,
            "metadata": event.metadata, "trace_id": trace.trace_id, "span_id": trace.span_id,
            "trace_metadata": trace.metadata,
        })
    };
    records.iter().map(print).collect()
}

/// What the consumer in Go prints of a topic of so many records, by partition, as far as the others do.
fn printed_by_go(bootstrap: &str, topic: &str, records: usize, postgres: &Postgres) -> Vec<Value> {
    let mut consumer = limited(120);
    consumer.arg(path("target/clients/go/facts"));
    consumer.args(["-brokers", bootstrap, "-records", &records.to_string(), topic]);
    let mut said = run(&mut consumer, postgres, &[]);
    for line in &mut said {
        let members = line.as_object_mut().unwrap();
        for more in ["topic", "offset", "position", "source", "key"] {
            assert!(members.remove(more).is_some(), "{more}: {members:?}");
        }
        // What is not there is null in Go.
        for (name, empty) in
            [("payload", json!("")), ("metadata", json!({})), ("trace_metadata", json!({}))]
        {
            if members[name].is_null() {
                members.insert(name.to_owned(), empty);
            }
        }
    }
    said.sort_by_key(|line| line["partition"].as_i64());
    said
}

#[test]
fn a_consumer_in_each_language_works_on_each_fact_once() {
    let languages = [Language::Python, Language::Go, Language::TypeScript, Language::Java];
    let languages: Vec<_> = languages.into_iter().filter(|language| language.is_ready()).collect();
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    install(&mut postgres.client());
    for topic in ["eachonce.order", "eachonce.dead"] {
        kafka.create_topic(topic, 3, &[]);
    }
    let command = |slot: &str| {
        relay("eachonce", &postgres, kafka)
            .env("REPLICATION_SLOT_NAME", format!("{slot}_slot"))
            .env("PUBLICATION_NAME", format!("{slot}_facts"))
            .env("POISON_POLICY", "dead-letter")
            .env("DEAD_LETTER_TOPIC", "eachonce.dead")
    };
    let mut runner = TestRunner::default();
    let emit = |aggregate_type: &str, facts: &mut Vec<Value>| {
        for fact in facts.iter_mut() {
            fact["aggregate_type"] = aggregate_type.into();
            fact["prefix"] = "eachonce".into();
        }
        let said = emit_by_sql(&postgres, true, facts);
        assert!(said.iter().all(|line| line["lsn"].is_string()), "{said:?}");
    };
    let mut some =
        |n: usize| proptest::collection::vec(fact(), n).new_tree(&mut runner).unwrap().current();

    // Facts that are redriven twice, because somebody wants it so.
    let first = command("first").spawn();
    first.wait_ready();
    emit("late", &mut some(3));
    first.wait_until("dead letters", PATIENCE, || count(kafka, "eachonce.dead") == 3);
    kafka.create_topic("eachonce.late", 3, &[]);
    let shell = Shell::empty()
        .env("KAFKA_BROKERS", &kafka.bootstrap())
        .env("DEAD_LETTER_TOPIC", "eachonce.dead");
    shell.run("owlpost redrive --yes").ended(0);
    shell.run("owlpost redrive --yes --again").ended(0);
    assert_eq!(count(kafka, "eachonce.late"), 6);

    // A slot of another relay, which does not know what the first one published: all of it comes again.
    let init = command("second").arg("init").spawn();
    assert_eq!(init.wait_exit(PATIENCE).code(), Some(0), "{}", init.log_text());
    emit("order", &mut some(50));
    first.wait_until("the facts", PATIENCE, || count(kafka, "eachonce.order") == 50);
    stop(&first);
    let second = command("second").spawn();
    second.wait_until("the facts again", PATIENCE, || count(kafka, "eachonce.order") == 100);
    emit("order", &mut some(20));
    second.wait_until("the facts behind them", PATIENCE, || count(kafka, "eachonce.order") == 120);
    stop(&second);

    for (topic, facts) in [("eachonce.order", 70), ("eachonce.late", 3)] {
        let records = kafka.read_topic(topic);
        let mut seen = std::collections::HashSet::new();
        let place = |r: &Record| {
            r.header("factlib_position").or(r.header("factlib_redrive")).unwrap().to_owned()
        };
        let once: Vec<&Record> = records.iter().filter(|r| seen.insert(place(r))).collect();
        assert_eq!(once.len(), facts);
        let expected = printed(&once);
        for &language in &languages {
            if language == Language::Go {
                // Its rule is that of positions alone, which redriven dead letters have not.
                let worked_on = match topic {
                    "eachonce.late" => records.iter().collect(),
                    _ => once.clone(),
                };
                let said = printed_by_go(&kafka.bootstrap(), topic, records.len(), &postgres);
                assert_eq!(said, printed(&worked_on), "go in {topic}");
                continue;
            }
            let mut consumer = language.program();
            consumer.args(["consume", &kafka.bootstrap(), topic]);
            let mut said = run(&mut consumer, &postgres, &[]);
            // Partitions may be read in turns; within each it is the order of the topic.
            said.sort_by_key(|line| line["partition"].as_i64());
            assert_eq!(said, expected, "{} in {topic}", language.name());
        }
    }
}

/// The fact of each line of the README's table.
fn cells() -> Vec<(String, String)> {
    let readme = include_str!("../../README.md");
    let table = readme.split("| with | type, in the transaction").nth(1).unwrap();
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cell = |line: &str| {
        let (with, rest) = line.trim_start_matches("| ").split_once(" | `").unwrap();
        // A link is its text.
        let with = match with.strip_prefix('[').and_then(|link| link.split_once(']')) {
            Some((text, rest)) => format!("{text}{}", rest.split_once(')').unwrap().1),
            None => with.to_owned(),
        };
        (with, rest.strip_suffix("` |").unwrap().to_owned())
    };
    lines.map(cell).collect()
}

/// A file with a line of the README in its place, in which it stands as `LINE`.
fn around(line: &str, file: &Path, text: &str) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, text.replace("LINE", line)).unwrap();
}

/// Programs whose transaction has this line in it.
fn programs(with: &str, line: &str, folder: &Path) -> Vec<Command> {
    let mut files = 0;
    let mut python = |text: &str| {
        files += 1;
        let file = folder.join(format!("line{files}.py"));
        around(line, &file, text);
        let mut command = limited(120);
        command.arg(path("target/clients/python/bin/python")).arg(file);
        command
    };
    // These are compiled with the crate's other examples; the line is a line of theirs.
    let rust = |drivers: &[&str]| {
        let source = std::fs::read_to_string(path("emit/examples/road/typed.rs")).unwrap();
        let program = |driver: &&str| {
            let name = format!(" fn {}() ", driver.replace('-', "_"));
            let body = source.split(&name).nth(1).unwrap().split("\n}\n").next().unwrap();
            assert!(body.contains(&format!("    {line};\n")), "{with}: {line}: {body}");
            let mut command = Language::Rust.program();
            command.args(["type", driver]);
            command
        };
        drivers.iter().map(program).collect()
    };
    match with {
        "Rust, sqlx or tokio-postgres" => rust(&["sqlx", "tokio-postgres"]),
        "Rust, diesel-async" => rust(&["diesel-async"]),
        "Rust, diesel" => rust(&["diesel"]),
        "Python, psycopg or psycopg2" => ["psycopg", "psycopg2"]
            .map(|driver| {
                python(&format!(
                    "import os, {driver}\nfrom factlib import emit\n\
                     with {driver}.connect(os.environ['DATABASE_URL']) as connection:\n    LINE\n"
                ))
            })
            .into(),
        "Python, SQLAlchemy" => vec![python(
            "import os\nfrom factlib import emit\nfrom sqlalchemy import create_engine\n\
             from sqlalchemy.orm import Session\n\
             url = os.environ['DATABASE_URL'].replace('postgres://', 'postgresql+psycopg://')\n\
             with Session(create_engine(url)) as session, session.begin():\n    LINE\n",
        )],
        "Python, Django" => vec![python(
            "import os\nfrom urllib.parse import urlsplit\nfrom factlib import emit\n\
             from django.conf import settings\nurl = urlsplit(os.environ['DATABASE_URL'])\n\
             settings.configure(DATABASES={'default': {'ENGINE': 'django.db.backends.postgresql',\n\
             'NAME': 'app', 'USER': 'postgres', 'HOST': url.hostname, 'PORT': url.port}})\n\
             from django.db import connection, transaction\n\
             with transaction.atomic():\n    LINE\n",
        )],
        "Python, asyncpg or psycopg" => ["asyncpg.connect", "psycopg.AsyncConnection.connect"]
            .map(|connect| {
                python(&format!(
                    "import asyncio, asyncpg, os, psycopg\nfrom factlib import emit_async\n\
                     async def main():\n    \
                     connection = await {connect}(os.environ['DATABASE_URL'])\n    \
                     async with connection.transaction():\n        LINE\n    \
                     await connection.close()\nasyncio.run(main())\n"
                ))
            })
            .into(),
        "Go, pgx" | "Go, database/sql" => {
            let pgx = with == "Go, pgx";
            let (open, import, begin, end) = match pgx {
                true => (
                    "pgx.Connect(ctx, url)",
                    r#""github.com/jackc/pgx/v5""#,
                    "Begin(ctx)",
                    "Commit(ctx)",
                ),
                false => (
                    r#"sql.Open("pgx", url)"#,
                    "\"database/sql\"\n_ \"github.com/jackc/pgx/v5/stdlib\"",
                    "BeginTx(ctx, nil)",
                    "Commit()",
                ),
            };
            let file = folder.join(if pgx { "pgx.go" } else { "sql.go" });
            around(
                line,
                &file,
                &format!(
                    "package main\nimport (\"context\"\n\"os\"\n{import}\n\
                     \"factlib.dev/clients/go/emit\")\n\
                     func must[T any](value T, err error) T {{ if err != nil {{ panic(err) }}; return value }}\n\
                     func main() {{\nctx, url := context.Background(), os.Getenv(\"DATABASE_URL\")\n\
                     card := map[string]string{{\"by\": \"card\"}}\n\
                     tx := must(must({open}).{begin})\nmust(LINE)\nmust(0, tx.{end})\n}}\n"
                ),
            );
            // A package of the client's module that is there only for the compiler.
            let overlay = file.with_extension("json");
            let place = path("clients/go/emit/line/main.go");
            let replace = json!({"Replace": {place.to_str().unwrap(): file}});
            std::fs::write(&overlay, replace.to_string()).unwrap();
            let mut command = limited(300);
            command.args(["go", "run", "-C"]).arg(path("clients/go")).arg("-overlay").arg(overlay);
            command.arg("./emit/line");
            vec![command]
        }
        "TypeScript, pg" => {
            // Inside of the package, which imports itself by its name.
            let file = path("clients/typescript/dist/test/line.mjs");
            around(
                line,
                &file,
                "import pg from 'pg';\nimport { emit } from 'factlib';\n\
                 const client = new pg.Client(process.env.DATABASE_URL);\nawait client.connect();\n\
                 await client.query('BEGIN');\nLINE;\nawait client.query('COMMIT');\n\
                 await client.end();\n",
            );
            let mut command = limited(120);
            command.arg("node").arg(file);
            vec![command]
        }
        "Java, JDBC" => {
            let file = folder.join("Line.java");
            around(
                line,
                &file,
                "import dev.factlib.*;\nimport java.sql.*;\nclass Line {\n\
                 public static void main(String[] arguments) throws SQLException {\n\
                 try (Connection connection = DriverManager.getConnection(System.getenv(\"JDBC_URL\"))) {\n\
                 connection.setAutoCommit(false);\nLINE;\nconnection.commit();\n}}}\n",
            );
            let mut command = limited(120);
            command.args(["java", "-cp", &java_classes()]).arg(file);
            vec![command]
        }
        _ => panic!("nobody here knows how to run a line with {with}: {line}"),
    }
}

#[test]
fn what_the_readme_says_to_type_emits_a_fact() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let mut client = postgres.client();
    install(&mut client);
    client.batch_execute("ALTER DATABASE app SET factlib.prefix = 'typed'").unwrap();
    kafka.create_topic("typed.order", 1, &[]);
    let relay = relay("typed", &postgres, kafka).spawn();
    relay.wait_ready();
    let folder = tempfile::tempdir().unwrap();
    let cells = cells();
    assert_eq!(cells.len(), 12, "{cells:?}");
    let mut facts = 0;
    for (with, line) in &cells {
        let language = match with.split(',').next().unwrap() {
            "SQL" => {
                postgres.client().batch_execute(line).unwrap();
                facts += 1;
                continue;
            }
            "Rust" => Language::Rust,
            "Python" => Language::Python,
            "Go" => Language::Go,
            "TypeScript" => Language::TypeScript,
            "Java" => Language::Java,
            other => panic!("there is no client for {other}"),
        };
        if language.is_ready() {
            for mut program in programs(with, line, folder.path()) {
                assert_eq!(run(&mut program, &postgres, &[]), [] as [Value; 0], "{with}");
                facts += 1;
            }
        }
    }
    relay.wait_until("the facts", PATIENCE, || count(kafka, "typed.order") >= facts);
    stop(&relay);
    let records = kafka.read_topic("typed.order");
    assert_eq!(records.len(), facts);
    for record in &records {
        let event = OutboxEvent::from_bytes(record.value.as_deref().unwrap()).unwrap();
        assert_eq!((event.aggregate_id.as_str(), event.event_type.as_str()), ("42", "paid"));
        assert_eq!(event.payload, br#"{"by": "card"}"#);
    }
}

/// The first block of this kind in the page of a client.
fn block(page: &str, kind: &str) -> String {
    let page = std::fs::read_to_string(path(page)).unwrap();
    let block = page.split(&format!("```{kind}\n")).nth(1).unwrap();
    block.split("\n```").next().unwrap().to_owned()
}

/// Pages whose lines for a shell the test below types.
const TYPED: [&str; 3] =
    ["clients/python/README.md", "clients/typescript/README.md", "clients/go/emit/README.md"];

/// Lines of the others, and why they are not typed.
const NOT_TYPED: [(&str, &str); 4] = [
    (
        "mvn -f clients/java install -DskipTests",
        "leaves the client in the home of whoever runs it; `scripts/clients` says `mvn package`",
    ),
    ("cd clients/go", "is where `tests/it/interop.rs` is for the next one"),
    (
        "go run ./consumer/cmd/facts -brokers localhost:9092 orders.order    # each fact once, as a line of JSON",
        "`tests/it/interop.rs` builds it and runs it against its own brokers",
    ),
    (
        "protoc -I proto --go_out=clients/go --go_opt=module=factlib.dev/clients/go outbox_event.proto",
        "protoc is not here; `the_go_module_passes_its_own_tests` runs what it made",
    ),
];

#[test]
fn every_line_for_a_shell_in_the_pages_of_the_clients_is_typed_or_it_is_said_why_not() {
    let mut pages = vec!["clients/go/emit/README.md".to_owned()];
    for folder in std::fs::read_dir(path("clients")).unwrap() {
        pages.push(format!("clients/{}/README.md", folder.unwrap().file_name().display()));
    }
    assert!(pages.len() == 5 && TYPED.iter().all(|page| pages.iter().any(|p| p == page)));
    let mut lines = Vec::new();
    for page in pages.iter().filter(|page| !TYPED.contains(&page.as_str())) {
        let text = std::fs::read_to_string(path(page)).unwrap();
        let blocks =
            text.split("```sh\n").skip(1).map(|block| block.split("\n```").next().unwrap());
        lines.extend(blocks.flat_map(str::lines).map(str::to_owned));
    }
    lines.sort();
    let mut known = NOT_TYPED.map(|(line, _)| line);
    known.sort();
    assert_eq!(lines, known);
}

/// A line of `sh`, typed in this folder; what it prints on standard output.
#[track_caller]
fn typed(folder: &Path, variables: &[(&str, &str)], line: &str) -> String {
    let mut command = limited(300);
    command.args(["sh", "-ec", line]).current_dir(folder).envs(variables.iter().copied());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}{complained}");
    said
}

/// Somebody has this repository in `factlib`, and an application beside it, and types what the page of a client says;
/// then the client is there for a program with the page's code in it.
#[test]
fn what_the_pages_of_the_clients_say_installs_them_and_emits_a_fact() {
    let postgres = Postgres::builder().start();
    let mut client = postgres.client();
    install(&mut client);
    client.batch_execute("CREATE TABLE orders (id int, paid bool)").unwrap();
    let reading = emitted(&mut client);
    let home = tempfile::tempdir().unwrap();
    let [clone, app] = ["factlib", "app"].map(|name| home.path().join(name));
    [&clone, &app].iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
    let built = "--exclude=node_modules --exclude=dist --exclude=target --exclude=__pycache__";
    let copy = format!("tar -c {built} clients | tar -x -C {}", clone.display());
    typed(&path(""), &[], &copy);
    let jdbc = format!("jdbc:postgresql://127.0.0.1:{}/app?user=postgres", postgres.port());
    let url = postgres.url();
    let servers = [("DATABASE_URL", &*url), ("JDBC_URL", &*jdbc)];
    // Each prints the position to wait for.
    let emits = |line: &str| {
        let said = typed(&app, &servers, line);
        assert!(said.trim().parse::<Lsn>().is_ok(), "{line}: {said}");
    };
    let write = |name: &str, text: &str| std::fs::write(app.join(name), text).unwrap();
    let mut emitters = 0;

    if Language::Python.is_ready() {
        let page = "clients/python/README.md";
        let venv = home.path().join("venv");
        let tests = path("target/clients/python");
        // The drivers are those of the tests; the client is what is installed here.
        let packages =
            typed(&app, &[], &format!("ls -d {}/lib/python*/site-packages", tests.display()));
        typed(&app, &[], &format!("python3 -m venv {}", venv.display()));
        typed(&clone, &[], &format!("PATH={}/bin:$PATH; {}", venv.display(), block(page, "sh")));
        let program = format!(
            "import os, sys\nsys.path.append({:?})\nimport factlib, psycopg\n\
             assert factlib.__file__.startswith({:?}), factlib.__file__\n\
             connection = psycopg.connect(os.environ['DATABASE_URL'], autocommit=True)\n{}\n",
            packages.trim(),
            venv.display().to_string(),
            block(page, "python")
        );
        write("app.py", &program);
        emits(&format!("{}/bin/python app.py", venv.display()));
        emitters += 1;
    }
    if Language::TypeScript.is_ready() {
        let page = "clients/typescript/README.md";
        write("package.json", r#"{"type": "module"}"#);
        let lines = block(page, "sh");
        let (build, add) = lines.split_once('\n').unwrap();
        typed(&clone, &[], build);
        // The page's folder is that of the repository.
        typed(&app, &[], &format!("{} pg", add.replace("./clients", "../factlib/clients")));
        let program = format!(
            "import pg from 'pg';\nconst client = new pg.Client(process.env.DATABASE_URL);\n\
             await client.connect();\n{}\nawait client.end();\n",
            block(page, "ts")
        );
        write("app.js", &program);
        emits("node app.js");
        emitters += 1;
    }
    if Language::Go.is_ready() {
        let page = "clients/go/emit/README.md";
        let program = format!(
            "package main\nimport (\"context\"\n\"fmt\"\n\"os\"\n\"github.com/jackc/pgx/v5\"\n\
             \"factlib.dev/clients/go/emit\")\nfunc main() {{\nctx := context.Background()\n\
             connection, err := pgx.Connect(ctx, os.Getenv(\"DATABASE_URL\"))\n\
             if err != nil {{ panic(err) }}\n{}\n\
             if err != nil || emitted.ID == \"\" {{ panic(err) }}\nfmt.Println(lsn)\n}}\n",
            block(page, "go")
        );
        write("main.go", &program);
        typed(&app, &[], &format!("go mod init example.com/app\n{}", block(page, "sh")));
        emits("go run .");
        emitters += 1;
    }
    if Language::Java.is_ready() {
        let page = "clients/java/README.md";
        // Not typed: it would leave the client in the home of whoever runs this. `scripts/clients` says `mvn package`.
        assert_eq!(block(page, "sh"), "mvn -f clients/java install -DskipTests");
        let code = block(page, "java");
        let (imports, body) = code.split_once("\n\n").unwrap();
        let program = format!(
            "import java.sql.*;\n{imports}\nclass App {{\n\
             public static void main(String[] arguments) throws Exception {{\n\
             try (Connection connection = DriverManager.getConnection(System.getenv(\"JDBC_URL\"));\n\
             Statement statement = connection.createStatement()) {{\n{body}\n}}}}}}\n"
        );
        write("App.java", &program);
        emits(&format!("java -cp '{}' App.java", java_classes()));
        emitters += 1;
    }
    let facts = reading.all(&mut client);
    assert_eq!(facts.len(), emitters);
    for fact in facts {
        let event = OutboxEvent::from_bytes(&fact.content).unwrap();
        assert_eq!((fact.prefix.as_str(), event.aggregate_id.as_str()), ("orders", "42"));
        assert_eq!(event.payload, br#"{"by": "card"}"#);
    }
}

/// Ends with the test, however that ends.
struct Shop(std::process::Child);

impl Drop for Shop {
    fn drop(&mut self) {
        // `timeout` hands it on, and waits.
        testkit::process::signal_pid(self.0.id(), testkit::process::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
fn the_shop_pays_an_order_and_tells_it_or_does_neither() {
    if !Language::Python.is_ready() {
        return;
    }
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let mut client = postgres.client();
    install(&mut client);
    client.batch_execute("ALTER DATABASE app SET factlib.prefix = 'shop'").unwrap();
    kafka.create_topic("shop.order", 1, &[]);
    let relay = relay("shop", &postgres, kafka).spawn();
    relay.wait_ready();

    // As the README has it.
    let readme = include_str!("../../README.md");
    let command = "python clients/python/examples/django/shop.py";
    assert!(readme.contains(&format!("`{command}`")));
    let port = testkit::port::free();
    let mut shop = limited(300);
    shop.arg(path("target/clients/python/bin/python"));
    shop.arg(path(command.strip_prefix("python ").unwrap())).arg(format!("127.0.0.1:{port}"));
    shop.env("DATABASE_URL", postgres.url()).stdout(Stdio::null()).stderr(Stdio::null());
    let _shop = Shop(shop.spawn().unwrap());
    testkit::wait::until("the shop to open", PATIENCE, || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let pay = |order: u32, card: &str| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = format!("card={card}");
        let length = body.len();
        write!(
            stream,
            "POST /orders/{order}/pay/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().to_owned();
        (status, serde_json::from_str::<Value>(body).unwrap_or_else(|e| panic!("{e}: {answer}")))
    };
    let (status, paid) = pay(42, "visa");
    assert_eq!(status, "200", "{paid}");
    let wait = format!("/wait?lsn={}&timeout=10s", paid["wait"].as_str().unwrap());
    relay.wait_until("the fact to be published", PATIENCE, || {
        relay.get(&wait).is_ok_and(|(status, _)| status == 200)
    });
    assert_eq!(pay(43, "declined"), ("402".to_owned(), json!({"error": "declined"})));
    let (_, last) = pay(44, "visa");
    relay.wait_until("the other fact", PATIENCE, || count(kafka, "shop.order") >= 2);
    stop(&relay);
    let records = kafka.read_topic("shop.order");
    let ids: Vec<_> = records.iter().map(|record| record.header("event_id")).collect();
    assert_eq!(ids, [paid["fact"].as_str(), last["fact"].as_str()]);
    let rows = postgres.ask("SELECT string_agg(id || card, ' ' ORDER BY id) FROM shop_order");
    assert_eq!(rows, "42visa 44visa");
}

/// Symptom: somebody who typed the README's line saw `No module named 'django'` and nothing else.
#[test]
fn without_what_it_needs_the_shop_says_how_to_get_it() {
    if !Language::Python.is_ready() {
        return;
    }
    // Without the packages of any environment.
    let mut shop = limited(60);
    shop.args(["python3", "-I", "-S"]).arg(path("clients/python/examples/django/shop.py"));
    let output = shop.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let install = "pip install ./clients/python django 'psycopg[binary]'";
    assert!(said.contains("django") && said.contains(install), "{said}");
    assert!(!said.contains("Traceback"), "{said}");
}

#[test]
fn one_statement_beside_the_work_tells_a_repeat() {
    let postgres = Postgres::builder().start();
    let document = include_str!("../../docs/clients.md");
    let statement = |with: &str| {
        let block = document.split("```sql\n").find(|block| block.starts_with(with)).unwrap();
        block.split("```").next().unwrap()
    };
    let mut client = postgres.client();
    client.batch_execute(statement("CREATE TABLE")).unwrap();
    let keep = statement("INSERT INTO consumed");
    let position = "00000001.0000000001922b80.1.00000001";
    assert!(keep.contains(position));
    let before = position.replace("b80.1", "b7f.1");
    let after = position.replace(".1.00000001", ".1.00000002");
    let mut rows = |of: &str| client.execute(&keep.replace(position, of), &[]).unwrap();
    assert_eq!(rows(position), 1);
    assert_eq!([rows(position), rows(&before)], [0, 0]);
    assert_eq!([rows(&after), rows(position)], [1, 0]);
}
