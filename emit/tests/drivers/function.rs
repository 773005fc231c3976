//! One contract by two roads: what this crate makes is what the SQL function `factlib.emit` makes.

use crate::database::{Slot, install, server};
use factlib_emit::{EmitError, Emitter, Fact, InvalidFact};
use postgres::{Client, NoTls};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use testkit::Postgres;

/// The arguments of the SQL function.
#[derive(Debug, Clone)]
struct Given {
    prefix: String,
    aggregate_type: String,
    aggregate_id: String,
    event_type: String,
    payload: Vec<u8>,
    metadata: Vec<(String, String)>,
    id: String,
    /// Microseconds.
    created_at: i64,
    traceparent: String,
    tracestate: String,
}

impl Given {
    fn fact(&self) -> Fact {
        let fact = Fact::new(&*self.aggregate_type, &*self.aggregate_id, &*self.event_type)
            .prefix(&*self.prefix)
            .payload(&*self.payload)
            .id(&*self.id)
            .created_at(time(self.created_at))
            .traceparent(&*self.traceparent)
            .tracestate(&*self.tracestate);
        self.metadata.iter().fold(fact, |fact, (key, value)| fact.metadata(&**key, &**value))
    }

    /// The function's sentence and SQLSTATE, if it refuses.
    fn emit(&self, client: &mut Client) -> Result<(), (String, String)> {
        let sql = "SELECT set_config('factlib.traceparent', $1, false),
                          set_config('factlib.tracestate', $2, false)";
        client.execute(sql, &[&self.traceparent, &self.tracestate]).unwrap();
        let metadata = self.metadata.iter().cloned().map(|(key, value)| (key, value.into()));
        let metadata = serde_json::Value::Object(metadata.collect()).to_string();
        let sql = "SELECT factlib.emit($1, $2, $3, $4::bytea, $5::text::jsonb, $6, $7,
                       timestamptz '1970-01-01 00:00:00+00' + $8::bigint / 1000000 * interval '1 second'
                           + $8::bigint % 1000000 * interval '1 microsecond')::text";
        let emitted = client.query(
            sql,
            &[
                &self.aggregate_type,
                &self.aggregate_id,
                &self.event_type,
                &self.payload,
                &metadata,
                &self.prefix,
                &self.id,
                &self.created_at,
            ],
        );
        emitted.map(drop).map_err(|error| {
            let error = error.as_db_error().unwrap();
            (error.message().to_owned(), error.code().code().to_owned())
        })
    }
}

fn time(microseconds: i64) -> SystemTime {
    let distance = Duration::from_micros(microseconds.unsigned_abs());
    if microseconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

/// No text in PostgreSQL has a NUL.
fn text(characters: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    let character = any::<char>().prop_filter("NUL", |c| *c != '\0');
    let likely = prop_oneof![9 => character, 1 => Just('"'), 1 => Just('ä')];
    vec(likely, characters).prop_map(|characters| characters.into_iter().collect())
}

fn traceparent() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}",
        Just(format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32))),
        Just("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01".to_owned()),
        "[0-9]{2}-[0-9a-fA-F]{31,33}-[0-9a-f]{16}-[0-9a-f]{2}(-[0-9]{2}|\n)?",
    ]
}

fn given(prefix: &str) -> impl Strategy<Value = Given> {
    let payload = prop_oneof![
        8 => vec(any::<u8>(), 0..300),
        // Where a length takes one more byte.
        1 => prop_oneof![Just(127), Just(128), Just(16_383), Just(16_384)].prop_map(|n| vec![7; n]),
    ];
    let created_at = prop_oneof![
        Just(0),
        -62_135_596_800_000_000..4_000_000_000_000_000_i64,
        1_600_000_000_000_000..1_900_000_000_000_000_i64,
    ];
    let prefix = prefix.to_owned();
    let texts = (text(1..40), text(1..40), text(1..40));
    let metadata = btree_map(text(0..12), text(0..12), 0..5);
    ("[A-Za-z0-9._-]{1,40}", texts, payload, metadata, created_at, traceparent(), text(0..20))
        .prop_map(
            move |(
                aggregate_type,
                texts,
                payload,
                metadata,
                created_at,
                traceparent,
                tracestate,
            )| {
                let (aggregate_id, event_type, id) = texts;
                let (prefix, metadata) = (prefix.clone(), metadata.into_iter().collect());
                Given {
                    prefix,
                    aggregate_type,
                    aggregate_id,
                    event_type,
                    payload,
                    metadata,
                    id,
                    created_at,
                    traceparent,
                    tracestate,
                }
            },
        )
}

#[test]
fn a_fact_has_the_bytes_that_the_sql_function_gives_it() {
    let slot = Slot::new("equal_bytes");
    let client = RefCell::new(server().client());
    let emitter = Emitter::new("");
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    runner
        .run(&given("equal_bytes"), |given| {
            let message = emitter.encode(&given.fact(), "", UNIX_EPOCH).unwrap();
            given.emit(&mut client.borrow_mut()).unwrap();
            let told = slot.told();
            prop_assert_eq!(told.len(), 1);
            prop_assert_eq!(&told[0].content, &message.content);
            Ok(())
        })
        .unwrap();
}

/// What may be wrong, alone and with everything else.
fn wrong() -> impl Strategy<Value = Given> {
    let topic = || {
        prop_oneof![
            4 => Just("order".to_owned()),
            1 => Just(String::new()),
            1 => Just("an order".to_owned()),
            1 => Just("ö\"\n".to_owned()),
            1 => Just("x".repeat(130)),
            1 => Just("ß".repeat(101)),
        ]
    };
    let word = || prop_oneof![3 => Just("x".to_owned()), 1 => Just(String::new())];
    let bytes = prop_oneof![2 => Just(0), 1 => 1_040_000..1_060_000_usize];
    (topic(), topic(), word(), word(), bytes).prop_map(
        |(prefix, aggregate_type, aggregate_id, event_type, bytes)| Given {
            prefix,
            aggregate_type,
            aggregate_id,
            event_type,
            payload: vec![0; bytes],
            metadata: Vec::new(),
            id: "an id".to_owned(),
            created_at: 1_600_000_000_000_000,
            traceparent: String::new(),
            tracestate: String::new(),
        },
    )
}

#[test]
fn a_fact_is_refused_with_the_sentence_of_the_sql_function() {
    let client = RefCell::new(server().client());
    let emitter = Emitter::new("");
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    runner
        .run(&wrong(), |given| {
            let ours = emitter.encode(&given.fact(), "", UNIX_EPOCH);
            let ours = ours.map(drop).map_err(|e| (e.to_string(), e.sqlstate().to_owned()));
            prop_assert_eq!(ours, given.emit(&mut client.borrow_mut()));
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_fact_at_the_limit_passes_by_both_roads() {
    let mut client = server().client();
    let emitter = Emitter::new("");
    let mut given = Given {
        prefix: "limit".to_owned(),
        aggregate_type: "order".to_owned(),
        aggregate_id: "1".to_owned(),
        event_type: "created".to_owned(),
        payload: vec![0; 1_000_000],
        metadata: Vec::new(),
        id: "an id".to_owned(),
        created_at: 1_600_000_000_000_000,
        traceparent: String::new(),
        tracestate: String::new(),
    };
    let content = emitter.encode(&given.fact(), "", UNIX_EPOCH).unwrap().content;
    let record = 2 * content.len() - given.payload.len() + 1024;
    given.payload.resize(given.payload.len() + (1 << 20) - record, 0);
    assert!(emitter.encode(&given.fact(), "", UNIX_EPOCH).is_ok());
    given.emit(&mut client).unwrap();
    given.payload.push(0);
    let refused = InvalidFact::TooLarge { bytes: (1 << 20) + 1, max: 1 << 20 };
    assert_eq!(emitter.encode(&given.fact(), "", UNIX_EPOCH), Err(refused.clone()));
    assert_eq!(given.emit(&mut client), Err((refused.to_string(), "54000".to_owned())));
}

#[test]
fn a_role_without_the_bare_function_emits_by_ours_with_its_own_prefix_only() {
    // What is revoked is revoked for every database of a server.
    let server = Postgres::builder().start();
    install(&server);
    let revoke = if server.major() < 17 {
        "REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, bytea) FROM PUBLIC"
    } else {
        "REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, bytea, boolean) FROM PUBLIC"
    };
    let mut superuser = server.client();
    superuser.batch_execute(revoke).unwrap();
    superuser.batch_execute("CREATE ROLE app LOGIN; SELECT factlib.guard(true)").unwrap();
    superuser.batch_execute("INSERT INTO factlib.prefix_grant VALUES ('app', 'orders')").unwrap();

    let mut client = Client::connect(&server.url_as("app", ""), NoTls).unwrap();
    let fact = Fact::new("order", "1", "created");
    let mut emit = |emitter: Emitter| {
        let mut transaction = client.transaction().unwrap();
        let emitted = emitter.emit_blocking(&mut transaction, &fact).map_err(|error| match error {
            EmitError::Database(error) => error.as_db_error().unwrap().message().to_owned(),
            error => error.to_string(),
        });
        emitted.map(|_| transaction.commit().unwrap())
    };
    let denied = "permission denied for function pg_logical_emit_message";
    assert_eq!(emit(Emitter::new("orders")), Err(denied.to_owned()));
    assert_eq!(emit(Emitter::new("orders").through_function()), Ok(()));
    let denied = "role \"app\" may not emit with prefix \"payments\"";
    assert_eq!(emit(Emitter::new("payments").through_function()), Err(denied.to_owned()));
}
