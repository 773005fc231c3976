//! `factlib.emit` and its company: facts from SQL, on a real server.

use crate::commands::Shell;
use crate::support::{PATIENCE, count, lsn, read, relay, stop, wait_confirmed};
use postgres::error::SqlState;
use postgres::{Client, NoTls};
use std::collections::HashSet;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::SystemTime;
use testkit::envelope::OutboxEvent;
use testkit::{Kafka, Lsn, Postgres, wait};

pub(crate) const SQL: &str = include_str!("../../sql/factlib.sql");
const REMOVE: &str = include_str!("../../sql/remove.sql");

/// Installs the functions, or installs them again.
#[track_caller]
pub(crate) fn install(client: &mut Client) {
    client.batch_execute(SQL).unwrap_or_else(|error| panic!("{error:?}"));
}

/// The superuser in another database.
pub(crate) fn client(postgres: &Postgres, database: &str) -> Client {
    session(postgres, "postgres", database)
}

fn session(postgres: &Postgres, role: &str, database: &str) -> Client {
    let mut config = postgres::Config::new();
    config.host_path(postgres.socket_dir()).port(postgres.port()).user(role).dbname(database);
    config.connect(NoTls).unwrap()
}

fn server() -> (Postgres, Client) {
    let postgres = Postgres::builder().start();
    let mut client = postgres.client();
    install(&mut client);
    (postgres, client)
}

/// A message in the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Emitted {
    pub(crate) prefix: String,
    pub(crate) content: Vec<u8>,
    pub(crate) transactional: bool,
}

impl Emitted {
    fn event(&self) -> OutboxEvent {
        OutboxEvent::from_bytes(&self.content).unwrap()
    }
}

/// Reads what is emitted and committed from now on, through a slot of its own.
pub(crate) struct Reading {
    slot: String,
}

/// Begins to read this database.
pub(crate) fn emitted(client: &mut Client) -> Reading {
    let slot: String =
        client.query_one("SELECT 'reads_' || current_database()", &[]).unwrap().get(0);
    client.batch_execute("CREATE PUBLICATION reads").unwrap();
    let make = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')::text";
    client.query_one(make, &[&slot]).unwrap();
    Reading { slot }
}

impl Reading {
    /// What was emitted since the last time.
    #[track_caller]
    pub(crate) fn all(&self, client: &mut Client) -> Vec<Emitted> {
        let query = "SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
                'proto_version', '1', 'publication_names', 'reads', 'messages', 'true')";
        let rows = client.query(query, &[&self.slot]).unwrap();
        let data: Vec<Vec<u8>> = rows.iter().map(|row| row.get(0)).collect();
        // 'M', flags, LSN, prefix and its NUL, length, content.
        let messages = data.into_iter().filter(|data| data.first() == Some(&b'M'));
        messages
            .map(|data| {
                let (head, rest) = data.split_at(10);
                let end = rest.iter().position(|byte| *byte == 0).unwrap();
                Emitted {
                    prefix: String::from_utf8(rest[..end].to_vec()).unwrap(),
                    content: rest[end + 5..].to_vec(),
                    transactional: head[1] == 1,
                }
            })
            .collect()
    }

    /// The one that was emitted since the last time.
    #[track_caller]
    pub(crate) fn one(&self, client: &mut Client) -> Emitted {
        let mut all = self.all(client);
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }
}

/// What the server says against it: SQLSTATE and sentence.
#[track_caller]
fn refused(client: &mut Client, sql: &str) -> (SqlState, String) {
    let error = client.batch_execute(sql).expect_err(sql);
    let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
    (error.code().clone(), error.message().to_owned())
}

#[track_caller]
fn refuses(client: &mut Client, sql: &str, code: &SqlState, sentence: &str) {
    assert_eq!(refused(client, sql), (code.clone(), sentence.to_owned()), "{sql}");
}

#[test]
fn each_refusal_has_its_own_sentence_and_leaves_nothing_in_the_log() {
    let (_postgres, mut client) = server();
    let reading = emitted(&mut client);
    let (x100, x101) = ("x".repeat(100), "x".repeat(101));
    let letters = "cannot be part of a topic's name: only letters, digits, '.', '_' and '-' can";
    let wanted = "metadata must be a JSON object of strings, numbers and booleans";
    let emit = |arguments: &str| format!("SELECT factlib.emit({arguments})");
    let with_metadata = |metadata: &str| emit(&format!("'o', '1', 'e', '', '{metadata}', 'p'"));
    let cases = [
        (emit("'o', '1', 'e', ''"), "prefix is empty: pass it, or set factlib.prefix".to_owned()),
        (
            emit("'o', '1', 'e', '', prefix => ''"),
            "prefix is empty: pass it, or set factlib.prefix".to_owned(),
        ),
        (emit("'o', '1', 'e', '', prefix => 'a b'"), format!("prefix \"a b\" {letters}")),
        (emit("'o', '1', 'e', '', prefix => E'a\\n'"), format!("prefix \"a\n\" {letters}")),
        (emit("'a/b', '1', 'e', '', prefix => 'p'"), format!("aggregate_type \"a/b\" {letters}")),
        (
            emit("'\u{e4}', '1', 'e', '', prefix => 'p'"),
            format!("aggregate_type \"\u{e4}\" {letters}"),
        ),
        (
            emit(&format!("'{x101}!', '1', 'e', '', prefix => 'p'")),
            format!("aggregate_type \"{x100}\" {letters}"),
        ),
        (emit("'', '1', 'e', '', prefix => 'p'"), "aggregate_type is empty".to_owned()),
        (emit("NULL, '1', 'e', '', prefix => 'p'"), "aggregate_type is empty".to_owned()),
        (emit("'o', '', 'e', '', prefix => 'p'"), "aggregate_id is empty".to_owned()),
        (emit("'o', NULL, 'e', '', prefix => 'p'"), "aggregate_id is empty".to_owned()),
        (emit("'o', '1', '', '', prefix => 'p'"), "event_type is empty".to_owned()),
        (emit("'o', '1', NULL, '', prefix => 'p'"), "event_type is empty".to_owned()),
        (
            emit(&format!("'{x100}{x100}', '1', 'e', '', prefix => '{}'", "p".repeat(99))),
            format!(
                "topic \"{}.\" has 300 characters, and Kafka takes at most 249",
                "p".repeat(99)
            ),
        ),
        (
            emit("'o', '1', 'e', '', prefix => 'p', created_at => 'infinity'"),
            "created_at is out of range: a time before the year 294247 is wanted".to_owned(),
        ),
        (with_metadata("[1]"), format!("{wanted}: it is an array")),
        (with_metadata("\"a\""), format!("{wanted}: it is a string")),
        (with_metadata("1"), format!("{wanted}: it is a number")),
        (with_metadata("true"), format!("{wanted}: it is a boolean")),
        (with_metadata("null"), format!("{wanted}: it is null")),
        (
            with_metadata(r#"{"b": null, "a": 1, "aa": {}}"#),
            format!("{wanted}: key \"aa\" is an object"),
        ),
        (with_metadata(r#"{"c": [], "a": 1}"#), format!("{wanted}: key \"c\" is an array")),
        (with_metadata(r#"{"c": null}"#), format!("{wanted}: key \"c\" is null")),
        (
            with_metadata(&format!(r#"{{"{x101}": null}}"#)),
            format!("{wanted}: key \"{x100}\" is null"),
        ),
        (
            "SELECT factlib.emit_envelope('a b', 'x')".to_owned(),
            format!("prefix \"a b\" {letters}"),
        ),
        (
            "SELECT factlib.emit_envelope(NULL, 'x')".to_owned(),
            "prefix is empty: pass it, or set factlib.prefix".to_owned(),
        ),
        ("SELECT factlib.emit_envelope('p', '')".to_owned(), "envelope is empty".to_owned()),
        ("SELECT factlib.emit_envelope('p', NULL)".to_owned(), "envelope is empty".to_owned()),
        (
            format!(
                "SET factlib.max_record_bytes = '1MB'; {}",
                emit("'o', '1', 'e', '', prefix => 'p'")
            ),
            "factlib.max_record_bytes is \"1MB\": a number of bytes is wanted".to_owned(),
        ),
    ];
    for (sql, sentence) in cases {
        refuses(&mut client, &sql, &SqlState::INVALID_PARAMETER_VALUE, &sentence);
    }
    // The id counts twice and so do the names; 1024 are for what is not in the envelope.
    let large = "'o', '1', 'e', repeat('x', 100), prefix => 'p', id => 'i'";
    let sentence = |of: &str| {
        format!("{of} bytes as a Kafka record, more than factlib.max_record_bytes (100)")
    };
    client.batch_execute("SET factlib.max_record_bytes = 100").unwrap();
    let (code, found) = refused(&mut client, &emit(large));
    assert_eq!(code, SqlState::PROGRAM_LIMIT_EXCEEDED);
    // Fields 1 to 4 of three bytes each, field 5 of 102, field 6 of nine: 123 bytes.
    assert_eq!(found, sentence("fact of 1170"));
    let envelope = "SELECT factlib.emit_envelope('p', decode(repeat('00', 100), 'hex'))";
    refuses(&mut client, envelope, &SqlState::PROGRAM_LIMIT_EXCEEDED, &sentence("fact of 1124"));
    assert_eq!(reading.all(&mut client), []);
}

#[test]
fn of_several_faults_the_first_in_the_order_of_the_contract_is_named() {
    let (_postgres, mut client) = server();
    client.batch_execute("SELECT factlib.guard(true); SET factlib.max_record_bytes = 1").unwrap();
    let faulty = |prefix: &str, kind: &str, id: &str, event: &str, metadata: &str| {
        format!("SELECT factlib.emit('{kind}', '{id}', '{event}', 'x', '{metadata}', '{prefix}')")
    };
    let long = "t".repeat(250);
    for (sql, begin) in [
        (faulty("", "a b", "", "", "1"), "prefix is empty"),
        (faulty("p p", "a b", "", "", "1"), "prefix \"p p\""),
        (faulty("p", "a b", "", "", "1"), "aggregate_type \"a b\""),
        (faulty("p", "", "", "", "1"), "aggregate_type is empty"),
        (faulty("p", &long, "", "", "1"), "aggregate_id is empty"),
        (faulty("p", &long, "1", "", "1"), "event_type is empty"),
        (faulty("p", &long, "1", "e", "1"), "topic \"p.ttt"),
        (faulty("p", "a", "1", "e", "1"), "metadata must be"),
        (faulty("p", "a", "1", "e", "{}"), "role \"postgres\" may not emit with prefix \"p\""),
    ] {
        let (_, sentence) = refused(&mut client, &sql);
        assert!(sentence.starts_with(begin), "{sentence} for {sql}");
    }
    client.batch_execute("INSERT INTO factlib.prefix_grant VALUES ('postgres', 'p')").unwrap();
    let (_, sentence) = refused(&mut client, &faulty("p", "a", "1", "e", "{}"));
    assert!(sentence.starts_with("fact of "), "{sentence}");
}

#[test]
fn nothing_of_a_rolled_back_transaction_or_savepoint_is_in_the_log() {
    let (_postgres, mut client) = server();
    let reading = emitted(&mut client);
    let emit =
        |id: &str| format!("SELECT factlib.emit('order', '{id}', 'paid', '', prefix => 'p')");
    let script = format!(
        "BEGIN; {}; ROLLBACK;
         BEGIN; {}; SAVEPOINT s; {}; ROLLBACK TO s; {}; COMMIT;",
        emit("rolled back"),
        emit("kept"),
        emit("rolled back to the savepoint"),
        emit("kept, too")
    );
    client.batch_execute(&script).unwrap();
    let facts = reading.all(&mut client);
    let ids: Vec<_> = facts.iter().map(|fact| fact.event().aggregate_id).collect();
    assert_eq!(ids, ["kept", "kept, too"]);
}

#[test]
fn a_fact_of_a_prepared_transaction_is_published_once_at_commit_prepared_and_never_if_it_is_rolled_back()
 {
    let (postgres, mut client) = server();
    let kafka = Kafka::shared();
    kafka.create_topic("twophase.order", 1, &[]);
    let relay = relay("twophase", &postgres, kafka).spawn();
    relay.wait_ready();
    client.batch_execute("CREATE TABLE orders (id text)").unwrap();
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let emit = |client: &mut Client, id: &str| -> String {
        let sql = "SELECT (factlib.emit('order', $1, 'paid', '', prefix => 'twophase')).lsn::text";
        client.query_one(sql, &[&id]).unwrap().get(0)
    };
    let mut lsns = Vec::new();
    for name in ["kept", "dropped"] {
        let begin = format!(
            "BEGIN; INSERT INTO orders VALUES ('{name}'); SET LOCAL factlib.traceparent = '{traceparent}'"
        );
        client.batch_execute(&begin).unwrap();
        lsns.push(emit(&mut client, name));
        client.batch_execute(&format!("PREPARE TRANSACTION '{name}'")).unwrap();
    }
    // Somebody else's fact, committed behind them, is confirmed: they are not passed over for that.
    emit(&mut client, "before");
    wait_confirmed(&relay, &postgres, PATIENCE);
    assert_eq!(count(kafka, "twophase.order"), 1);
    let mut other = postgres.client();
    other.batch_execute("COMMIT PREPARED 'kept'").unwrap();
    other.batch_execute("ROLLBACK PREPARED 'dropped'").unwrap();
    emit(&mut client, "after");
    wait_confirmed(&relay, &postgres, PATIENCE);
    stop(&relay);
    let records = kafka.read_topic("twophase.order");
    let keys: Vec<_> = records.iter().map(|r| r.key.clone().unwrap()).collect();
    assert_eq!(keys, [b"before".to_vec(), b"kept".to_vec(), b"after".to_vec()]);
    let kept = &records[1];
    assert_eq!(kept.header("LSN"), Some(lsns[0].as_str()));
    assert_eq!(kept.header("traceparent"), Some(traceparent));
    assert_eq!(records[2].header("traceparent"), None, "it was the transaction's");
    assert_eq!(postgres.ask("SELECT string_agg(id, ',') FROM orders"), "kept");
}

#[test]
fn ids_are_uuids_of_version_7_that_rise() {
    let (_postgres, mut client) = server();
    let query = "SELECT (factlib.emit('order', g::text, 'paid', '', prefix => 'p')).id FROM generate_series(1, 5000) g";
    let before = millis(SystemTime::now());
    let mut ids: Vec<String> = Vec::new();
    for _ in 0..2 {
        ids.extend(client.query(query, &[]).unwrap().iter().map(|row| row.get::<_, String>(0)));
    }
    let after = millis(SystemTime::now());
    assert!(ids.is_sorted_by(|a, b| a < b), "within a session they rise");
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 10_000);
    for id in &ids {
        let uuid: uuid::Uuid = id.parse().unwrap();
        assert_eq!(id, &uuid.hyphenated().to_string());
        assert_eq!(uuid.get_version_num(), 7, "{id}");
        assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122, "{id}");
        let time = u128::from_be_bytes(*uuid.as_bytes()) >> 80;
        assert!((before..=after).contains(&time), "{before} <= {time} <= {after}");
    }
    // The bits behind the time are not the same in all.
    let random: HashSet<_> = ids.iter().map(|id| &id[19..]).collect();
    assert_eq!(random.len(), 10_000);
}

fn millis(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()
}

#[test]
fn what_is_not_given_is_taken_from_the_clock_and_the_settings() {
    let (postgres, mut client) = server();
    let reading = emitted(&mut client);
    client
        .batch_execute(
            "ALTER DATABASE app SET factlib.prefix = 'of-database'; CREATE ROLE app LOGIN;
        CREATE ROLE other LOGIN; ALTER ROLE app SET factlib.prefix = 'of-role'",
        )
        .unwrap();
    let plain = "SELECT factlib.emit('order', '1', 'paid', '')";
    let before = millis(SystemTime::now());
    session(&postgres, "other", "app").batch_execute(plain).unwrap();
    let after = millis(SystemTime::now());
    let fact = reading.one(&mut client);
    assert_eq!(fact.prefix, "of-database");
    let created = u128::try_from(fact.event().created_at).unwrap() / 1000;
    assert!((before..=after).contains(&created), "{before} <= {created} <= {after}");
    assert_eq!(fact.event().trace_info, None);

    let mut app = session(&postgres, "app", "app");
    let script = format!(
        "{plain};
         BEGIN; SET LOCAL factlib.prefix = 'of-transaction'; SET LOCAL factlib.max_record_bytes = 100000; {plain}; COMMIT;
         {plain}; SELECT factlib.emit('order', '1', 'paid', '', prefix => 'given');
         SELECT factlib.emit_envelope(NULL, 'as it is')"
    );
    app.batch_execute(&script).unwrap();
    let facts = reading.all(&mut client);
    let prefixes: Vec<_> = facts.iter().map(|fact| fact.prefix.as_str()).collect();
    assert_eq!(prefixes, ["of-role", "of-transaction", "of-role", "given", "of-role"]);
    assert_eq!(facts[4].content, b"as it is");

    // What a transaction had set is an empty text afterwards, and empty is not set.
    client.batch_execute("BEGIN; SET LOCAL factlib.prefix = 'p'; COMMIT").unwrap();
    assert_eq!(
        client
            .query_one("SELECT current_setting('factlib.prefix', true)", &[])
            .unwrap()
            .get::<_, &str>(0),
        ""
    );
    refuses(
        &mut client,
        plain,
        &SqlState::INVALID_PARAMETER_VALUE,
        "prefix is empty: pass it, or set factlib.prefix",
    );
}

#[test]
fn a_payload_of_each_type_is_taken_without_a_cast() {
    let (_postgres, mut client) = server();
    let reading = emitted(&mut client);
    client.batch_execute("SET factlib.prefix = 'p'; CREATE TABLE v (v varchar(9)); INSERT INTO v VALUES ('varchar')").unwrap();
    for (payload, bytes) in [
        ("'{\"a\":1}'", "{\"a\":1}"),
        ("'{\"a\":1}'::text", "{\"a\":1}"),
        ("'{\"a\":1}'::jsonb", "{\"a\": 1}"),
        ("'{\"a\":1}'::json", "{\"a\":1}"),
        ("jsonb_build_object('a', 1)", "{\"a\": 1}"),
        ("json_build_object('a', 1)", "{\"a\" : 1}"),
        ("'\\x6869'::bytea", "hi"),
        ("(SELECT v FROM v)", "varchar"),
        ("NULL", ""),
        ("NULL::jsonb", ""),
    ] {
        client
            .batch_execute(&format!("SELECT factlib.emit('order', '1', 'paid', {payload})"))
            .unwrap();
        assert_eq!(reading.one(&mut client).event().payload, bytes.as_bytes(), "{payload}");
    }
    // From PL/pgSQL, by name, and as a row.
    client.batch_execute("DO $$
        DECLARE made factlib.emitted;
        BEGIN
            PERFORM factlib.emit('order', '1', 'paid', 'x', id => 'a');
            made := factlib.emit(event_type => 'paid', payload => NULL::text, aggregate_id => '2', aggregate_type => 'order', metadata => NULL, id => 'b');
            IF made.id <> 'b' OR made.lsn IS NULL THEN RAISE EXCEPTION '%', made; END IF;
            SELECT * INTO made FROM factlib.emit('order', '3', 'paid', '{}'::jsonb, '{\"a\": 1}');
            IF length(made.id) <> 36 THEN RAISE EXCEPTION '%', made; END IF;
        END $$").unwrap();
    let facts: Vec<_> = reading.all(&mut client).iter().map(Emitted::event).collect();
    let ids: Vec<_> = facts.iter().map(|fact| fact.aggregate_id.as_str()).collect();
    assert_eq!(ids, ["1", "2", "3"]);
    assert_eq!(facts[2].metadata.get("a").map(String::as_str), Some("1"));
}

#[test]
fn the_lsn_is_the_one_of_the_message() {
    let (_postgres, mut client) = server();
    let reading = emitted(&mut client);
    let row = client
        .query_one(
            "SELECT id, lsn::text FROM factlib.emit('order', '1', 'paid', '', prefix => 'p')",
            &[],
        )
        .unwrap();
    let (id, given): (String, String) = (row.get(0), row.get(1));
    let query = "SELECT data FROM pg_logical_slot_peek_binary_changes('reads_app', NULL, NULL,
        'proto_version', '1', 'publication_names', 'reads', 'messages', 'true')";
    let data: Vec<Vec<u8>> =
        client.query(query, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    let message = data.iter().find(|data| data[0] == b'M').unwrap();
    let in_log = Lsn(u64::from_be_bytes(message[2..10].try_into().unwrap()));
    assert_eq!(given.parse::<Lsn>().unwrap(), in_log);
    assert_eq!(reading.one(&mut client).event().id, id);
}

/// Under some collations every text of only such letters equals the empty one, and none has regular expressions.
#[test]
fn texts_of_any_collation_are_taken() {
    let (postgres, mut client) = server();
    let reading = emitted(&mut client);
    let icu = "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false)";
    if client.batch_execute(icu).is_err() {
        crate::support::skipped_with(&postgres, "this PostgreSQL was built without ICU");
        return;
    }
    client
        .batch_execute(
            "CREATE TABLE named (a text COLLATE loose, b text COLLATE \"C\", p text COLLATE loose);
        INSERT INTO named VALUES ('order', E'\\u200b', 'p');
        SELECT factlib.emit(a, a, a, a, '{\"a\": 1}', p, a) FROM named;
        SELECT factlib.emit(a, b, b || 'x', b, '{\"a\": 1}', p, b) FROM named;
        SELECT factlib.emit_envelope(p, 'x') FROM named",
        )
        .unwrap();
    let facts = reading.all(&mut client);
    assert_eq!(facts.len(), 3);
    assert_eq!(facts[1].event().aggregate_id, "\u{200b}");
}

#[test]
fn how_a_session_reads_strings_changes_nothing() {
    let (postgres, mut client) = server();
    let reading = emitted(&mut client);
    let emit = "SELECT set_config('factlib.traceparent', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', false),
            set_config('factlib.tracestate', 'a=b', false);
        SELECT factlib.emit('order', repeat('k', 200), 'paid', repeat('x', 20000), '{\"a\": \"b\"}', 'p', 'id',
            created_at => '2026-01-01 00:00:00+00');
        SELECT factlib.emit('order', '1', 'paid', 'x', NULL, 'p', 'id', created_at => '0044-03-15 00:00:00+00 BC')";
    client.batch_execute(emit).unwrap();
    drop(client);
    let mut client = self::client(&postgres, testkit::postgres::DATABASE);
    let off = "SET standard_conforming_strings = off; SET escape_string_warning = off; SET bytea_output = 'escape'";
    client.batch_execute(off).unwrap();
    install(&mut client);
    client.batch_execute(emit).unwrap();
    let envelopes: Vec<Vec<u8>> =
        reading.all(&mut client).into_iter().map(|fact| fact.content).collect();
    assert_eq!(envelopes.len(), 4);
    assert_eq!(envelopes[..2], envelopes[2..]);
}

/// Everything that a function could mistake for its own.
const HIJACK: &str = "
    CREATE SCHEMA evil AUTHORIZATION app;
    GRANT ALL ON SCHEMA evil TO app;
    CREATE FUNCTION evil.seize() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'seized by %', current_user; END $$;
    CREATE FUNCTION evil.cat(bytea, bytea) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea WHERE evil.seize()';
    CREATE FUNCTION evil.cat(text, text) RETURNS text LANGUAGE sql AS 'SELECT NULL::text WHERE evil.seize()';
    CREATE FUNCTION evil.same(text, text) RETURNS bool LANGUAGE sql AS 'SELECT evil.seize()';
    CREATE FUNCTION evil.same(int, int) RETURNS bool LANGUAGE sql AS 'SELECT evil.seize()';
    CREATE FUNCTION evil.same(bigint, bigint) RETURNS bool LANGUAGE sql AS 'SELECT evil.seize()';
    CREATE FUNCTION evil.same(jsonb, jsonb) RETURNS bool LANGUAGE sql AS 'SELECT evil.seize()';
    CREATE FUNCTION evil.same(pg_lsn, pg_lsn) RETURNS bool LANGUAGE sql AS 'SELECT evil.seize()';
    CREATE FUNCTION evil.same(name, name) RETURNS bool LANGUAGE sql AS 'SELECT evil.seize()';
    CREATE FUNCTION evil.convert_to(text, name) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea WHERE evil.seize()';
    CREATE FUNCTION evil.octet_length(text) RETURNS int LANGUAGE sql AS 'SELECT 1 WHERE evil.seize()';
    CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz WHERE evil.seize()';
    CREATE FUNCTION evil.current_setting(text, bool) RETURNS text LANGUAGE sql AS 'SELECT NULL::text WHERE evil.seize()';
    CREATE FUNCTION evil.format(text, text) RETURNS text LANGUAGE sql AS 'SELECT NULL::text WHERE evil.seize()';
    CREATE FUNCTION evil.pg_logical_emit_message(bool, text, bytea) RETURNS pg_lsn LANGUAGE sql AS 'SELECT NULL::pg_lsn WHERE evil.seize()';
    CREATE OPERATOR evil.|| (FUNCTION = evil.cat, LEFTARG = bytea, RIGHTARG = bytea);
    CREATE OPERATOR evil.|| (FUNCTION = evil.cat, LEFTARG = text, RIGHTARG = text);
    CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = text, RIGHTARG = text);
    CREATE OPERATOR evil.<> (FUNCTION = evil.same, LEFTARG = text, RIGHTARG = text);
    CREATE OPERATOR evil.~ (FUNCTION = evil.same, LEFTARG = text, RIGHTARG = text);
    CREATE OPERATOR evil.!~ (FUNCTION = evil.same, LEFTARG = text, RIGHTARG = text);
    CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = int, RIGHTARG = int);
    CREATE OPERATOR evil.< (FUNCTION = evil.same, LEFTARG = int, RIGHTARG = int);
    CREATE OPERATOR evil.> (FUNCTION = evil.same, LEFTARG = int, RIGHTARG = int);
    CREATE OPERATOR evil.> (FUNCTION = evil.same, LEFTARG = bigint, RIGHTARG = bigint);
    CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = jsonb, RIGHTARG = jsonb);
    CREATE OPERATOR evil.>= (FUNCTION = evil.same, LEFTARG = pg_lsn, RIGHTARG = pg_lsn);
    CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = name, RIGHTARG = name);
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA evil TO PUBLIC;";

#[test]
fn a_search_path_puts_nothing_in_the_place_of_what_the_functions_call() {
    let (postgres, mut client) = server();
    let reading = emitted(&mut client);
    client.batch_execute("CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE app TO app").unwrap();
    client.batch_execute(HIJACK).unwrap();
    for guard in [false, true] {
        client
            .batch_execute(&format!(
                "SELECT factlib.guard({guard});
            DELETE FROM factlib.prefix_grant; INSERT INTO factlib.prefix_grant VALUES ('app', 'p')"
            ))
            .unwrap();
        let mut app = session(&postgres, "app", "app");
        app.batch_execute("SET search_path = evil, pg_catalog; CREATE TEMP TABLE bytea (a int);
            CREATE TEMP TABLE int8 (a int); CREATE TEMP TABLE text (a int); CREATE TEMP TABLE pg_roles (a int);
            CREATE TEMP TABLE pg_replication_slots (a int)").unwrap();
        let (code, _) = refused(&mut app, "SELECT 'a'::pg_catalog.text || 'b'::pg_catalog.text");
        assert_eq!(code, SqlState::RAISE_EXCEPTION, "the trap is set");
        let (key, long) = ("k".repeat(200), "v".repeat(20_000));
        let script = format!(
            "SET factlib.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
             SET factlib.tracestate = 'a=1'; SET factlib.max_record_bytes = 1000000;
             SELECT factlib.emit('order', '1', 'paid', '', '{{}}', 'p');
             SELECT factlib.emit('order', '{key}', 'paid', '{{\"a\": 1}}'::pg_catalog.jsonb, '{{\"b\": 1, \"a\": \"{long}\"}}', 'p',
                created_at => '1960-01-01');
             SELECT factlib.emit_envelope('p', 'x')"
        );
        app.batch_execute(&script).unwrap_or_else(|error| panic!("{error:?}"));
        for faulty in [
            "'', '1', 'e', ''",
            "'o', '1', 'e', '', '[]', 'p'",
            "'o', '1', 'e', '', '{\"a\": null}', 'p'",
            "'o', '1', 'e', '', '{}', 'p', created_at => '-infinity'",
        ] {
            let (code, sentence) = refused(&mut app, &format!("SELECT factlib.emit({faulty})"));
            assert_eq!(code, SqlState::INVALID_PARAMETER_VALUE, "{sentence}");
        }
        let large =
            "SET factlib.max_record_bytes = 10; SELECT factlib.emit('o', '1', 'e', '', '{}', 'p')";
        assert_eq!(refused(&mut app, large).0, SqlState::PROGRAM_LIMIT_EXCEEDED);
        let published = "SELECT factlib.published('0/1', 'reads_app')";
        app.batch_execute(published).unwrap();
        assert_eq!(reading.all(&mut client).len(), 3);
    }
}

#[test]
fn the_guard_lets_roles_emit_with_their_own_prefixes_and_no_others() {
    let (postgres, mut client) = server();
    let reading = emitted(&mut client);
    let signature = match postgres.major() {
        14..=16 => "pg_logical_emit_message(boolean, text, bytea)",
        _ => "pg_logical_emit_message(boolean, text, bytea, boolean)",
    };
    client
        .batch_execute(&format!(
            "CREATE ROLE orders_team; CREATE ROLE orders LOGIN IN ROLE orders_team; CREATE ROLE billing LOGIN;
             CREATE ROLE gone;
             INSERT INTO factlib.prefix_grant
             VALUES ('orders_team', 'orders'), ('billing', 'billing'), ('gone', 'billing');
             DROP ROLE gone;
             REVOKE EXECUTE ON FUNCTION {signature} FROM PUBLIC"
        ))
        .unwrap();
    let emit = |prefix: &str| {
        format!("SELECT factlib.emit('order', '1', 'paid', '', prefix => '{prefix}')")
    };
    let envelope = |prefix: &str| format!("SELECT factlib.emit_envelope('{prefix}', 'x')");
    client.batch_execute("SELECT factlib.guard(true)").unwrap();
    assert!(client.query_one("SELECT factlib.guard()", &[]).unwrap().get::<_, bool>(0));
    // A second run of the file, which is how it is upgraded, leaves it on.
    install(&mut client);
    let mut orders = session(&postgres, "orders", "app");
    orders.batch_execute(&format!("{}; {}", emit("orders"), envelope("orders"))).unwrap();
    for sql in [emit("billing"), envelope("billing"), emit("payments")] {
        let prefix = if sql.contains("payments") { "payments" } else { "billing" };
        let sentence = format!("role \"orders\" may not emit with prefix \"{prefix}\"");
        refuses(&mut orders, &sql, &SqlState::INSUFFICIENT_PRIVILEGE, &sentence);
    }
    // Who it is does not change with SET ROLE, and who owns nothing changes nothing.
    for sql in [
        "SELECT factlib.guard(false)",
        "INSERT INTO factlib.prefix_grant VALUES ('orders', 'billing')",
    ] {
        assert_eq!(refused(&mut orders, sql).0, SqlState::INSUFFICIENT_PRIVILEGE);
    }
    let mut billing = session(&postgres, "billing", "app");
    billing.batch_execute(&emit("billing")).unwrap();
    assert_eq!(reading.all(&mut client).len(), 3);

    let bare = "SELECT pg_logical_emit_message(true, 'billing', '\\x7b'::bytea)";
    assert_eq!(refused(&mut orders, bare).0, SqlState::INSUFFICIENT_PRIVILEGE, "no way around");

    client.batch_execute("SELECT factlib.guard(false)").unwrap();
    // Off: also in a session that has the functions' plans. The right to the bare function is wanted then.
    assert_eq!(refused(&mut orders, &emit("billing")).0, SqlState::INSUFFICIENT_PRIVILEGE);
    client.batch_execute(&format!("GRANT EXECUTE ON FUNCTION {signature} TO PUBLIC")).unwrap();
    orders.batch_execute(&emit("billing")).unwrap();
    client.batch_execute("SELECT factlib.guard(true)").unwrap();
    assert_eq!(refused(&mut orders, &emit("billing")).0, SqlState::INSUFFICIENT_PRIVILEGE);
    assert_eq!(reading.all(&mut client).len(), 1);
}

#[test]
fn a_second_run_replaces_an_older_version_and_leaves_grants_alone() {
    let (postgres, mut client) = server();
    let version = |client: &mut Client| {
        client.query_one("SELECT factlib.version()", &[]).unwrap().get::<_, String>(0)
    };
    client.batch_execute("CREATE ROLE app LOGIN; CREATE ROLE other LOGIN; GRANT SELECT ON factlib.prefix_grant TO app;
        REVOKE EXECUTE ON FUNCTION factlib.emit_envelope(text, bytea) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION factlib.emit_envelope(text, bytea) TO app;
        INSERT INTO factlib.prefix_grant VALUES ('app', 'p');
        CREATE OR REPLACE FUNCTION factlib.version() RETURNS text LANGUAGE sql AS 'SELECT ''0.9.0''';
        CREATE OR REPLACE FUNCTION factlib._is_empty(envelope bytea) RETURNS boolean LANGUAGE sql AS 'SELECT true';
        CREATE VIEW depends AS SELECT (factlib.emit('order', '1', 'paid', '', prefix => 'p')).id").unwrap();
    assert_eq!(version(&mut client), "0.9.0");
    install(&mut client);
    assert_eq!(version(&mut client), "1.0.0");
    let envelope = "SELECT factlib.emit_envelope('p', 'x')";
    session(&postgres, "app", "app").batch_execute(envelope).unwrap();
    assert_eq!(
        refused(&mut session(&postgres, "other", "app"), envelope).0,
        SqlState::INSUFFICIENT_PRIVILEGE
    );
    assert_eq!(client.query("SELECT * FROM factlib.prefix_grant", &[]).unwrap().len(), 1);
    assert_eq!(client.query("SELECT * FROM depends", &[]).unwrap().len(), 1);
}

#[test]
fn a_role_with_create_on_the_database_installs_and_no_other_role_does() {
    let postgres = Postgres::builder().start();
    let mut client = postgres.client();
    client
        .batch_execute(
            "CREATE ROLE dba LOGIN; CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE app TO dba;
        ALTER DEFAULT PRIVILEGES FOR ROLE dba REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
        )
        .unwrap();
    let mut app = session(&postgres, "app", "app");
    assert_eq!(
        refused(&mut app, SQL),
        (SqlState::INSUFFICIENT_PRIVILEGE, "permission denied for database app".to_owned())
    );
    app.batch_execute("ROLLBACK").unwrap();
    let mut dba = session(&postgres, "dba", "app");
    for _ in 0..2 {
        install(&mut dba);
        app.batch_execute("SELECT factlib.emit('order', '1', 'paid', '{}', '{\"a\": 1}', 'p')")
            .unwrap();
    }
    let sentence = "schema factlib belongs to role \"dba\", and only that role may install into it";
    refuses(&mut client, SQL, &SqlState::INSUFFICIENT_PRIVILEGE, sentence);
    client.batch_execute("ROLLBACK").unwrap();
    dba.batch_execute("SELECT factlib.guard(true)").unwrap();
}

#[test]
fn every_function_says_what_it_is_for_and_an_application_needs_five() {
    let (_postgres, mut client) = server();
    let names =
        "SELECT DISTINCT proname::text FROM pg_proc WHERE pronamespace = 'factlib'::regnamespace
        AND proname NOT LIKE '\\_%' ORDER BY 1";
    let names: Vec<String> =
        client.query(names, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(names, ["emit", "emit_envelope", "guard", "published", "version"]);
    let silent =
        "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'factlib'::regnamespace
        AND proname NOT LIKE '\\_%' AND obj_description(oid, 'pg_proc') IS NULL";
    let silent: Vec<String> =
        client.query(silent, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(silent, Vec::<String>::new());
}

#[test]
fn it_is_removed_whole_and_not_from_under_what_depends_on_it() {
    let (_postgres, mut client) = server();
    client.batch_execute("CREATE VIEW depends AS SELECT (factlib.emit('order', '1', 'paid', '', prefix => 'p')).id").unwrap();
    assert_eq!(refused(&mut client, REMOVE).0, SqlState::DEPENDENT_OBJECTS_STILL_EXIST);
    client.batch_execute("ROLLBACK; SELECT factlib.version(); DROP VIEW depends").unwrap();
    client.batch_execute(REMOVE).unwrap();
    // Once more is no mistake.
    client.batch_execute(REMOVE).unwrap();
    assert!(
        client.query("SELECT FROM pg_namespace WHERE nspname = 'factlib'", &[]).unwrap().is_empty()
    );
    install(&mut client);
}

#[test]
fn published_says_when_a_commit_is_in_kafka() {
    let (postgres, mut client) = server();
    let kafka = Kafka::shared();
    kafka.create_topic("waits.order", 1, &[]);
    refuses(
        &mut client,
        "SELECT factlib.published('0/1')",
        &SqlState::UNDEFINED_OBJECT,
        "this database has no logical replication slot \"factlib_slot\"",
    );
    client.batch_execute("SELECT pg_create_physical_replication_slot('physical')").unwrap();
    refuses(
        &mut client,
        "SELECT factlib.published('0/1', 'physical')",
        &SqlState::UNDEFINED_OBJECT,
        "this database has no logical replication slot \"physical\"",
    );
    let relay = relay("waits", &postgres, kafka);
    let first = relay.clone().spawn();
    first.wait_ready();
    stop(&first);
    client
        .batch_execute("SELECT factlib.emit('order', '1', 'paid', '', prefix => 'waits')")
        .unwrap();
    let position = lsn(&postgres, "SELECT pg_current_wal_insert_lsn()");
    let query = format!("SELECT factlib.published('{position}')");
    assert_eq!(postgres.ask(&query), "f");
    let second = relay.spawn();
    wait::until("the fact to be published", PATIENCE, || postgres.ask(&query) == "t");
    assert_eq!(count(kafka, "waits.order"), 1);
    stop(&second);
    // Up to the very position, and not to the next.
    for (beyond, answer) in [(0, "t"), (1, "f")] {
        let query = format!(
            "SELECT factlib.published(confirmed_flush_lsn + {beyond}) FROM pg_replication_slots
             WHERE slot_name = 'factlib_slot'"
        );
        assert_eq!(postgres.ask(&query), answer);
    }
}

/// Symptom: where the commit's record ended with its page, the position read behind it was never confirmed while the
/// server was idle.
#[test]
fn a_position_behind_a_header_of_the_log_stands_for_the_end_of_the_page_before() {
    let (postgres, _client) = server();
    for (position, end) in [
        ("0/2000028", "0/2000000"),
        ("0/2002018", "0/2002000"),
        ("0/2002028", "0/2002028"),
        ("0/2000018", "0/2000018"),
        ("0/2002017", "0/2002017"),
        ("3/2000000", "3/2000000"),
    ] {
        let query = format!("SELECT factlib._end_before('{position}', 8192, 16777216)");
        assert_eq!(postgres.ask(&query), end, "{position}");
    }
}

/// The bound counts key and headers at their longest: whatever a fact is made of, Kafka takes it.
#[test]
fn kafka_with_its_own_limit_takes_the_largest_facts_and_one_byte_more_is_refused() {
    const LIMIT: i64 = 1_048_576;
    let (postgres, mut client) = server();
    let kafka = Kafka::shared();
    kafka.create_topic("limit.order", 1, &[]);
    let relay = relay("limit", &postgres, kafka).env("METADATA_HEADERS", "true").spawn();
    relay.wait_ready();
    client
        .batch_execute(
            "SET factlib.prefix = 'limit';
        SET factlib.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'",
        )
        .unwrap();
    // In each, $1 characters of one thing.
    let shapes = [
        "'1', 'paid', repeat('x', $1)",
        "repeat('x', $1), 'paid', 'x'",
        "'1', repeat('x', $1), 'x'",
        "'1', 'paid', 'x', id => repeat('x', $1)",
        "'1', 'paid', 'x', jsonb_build_object('k', repeat('x', $1))",
        "'1', 'paid', 'x', (SELECT jsonb_object_agg('k' || i, 'v') FROM generate_series(1, $1 / 16) i)",
        "'1', 'paid', 'x', (SELECT jsonb_object_agg(lpad(i::text, 7, '0'), '') FROM generate_series(1, $1 / 16) i)",
    ];
    let mut taken = 0;
    for shape in shapes {
        let emit = |size: i64| {
            format!("SELECT factlib.emit('order', {})", shape.replace("$1", &size.to_string()))
        };
        // The largest that is taken, by halving; what is tried is rolled back.
        let (mut fits, mut refused_at) = (LIMIT / 4, LIMIT + 1);
        while refused_at - fits > 1 {
            let size = (fits + refused_at) / 2;
            match client.batch_execute(&format!("BEGIN; {}; ROLLBACK", emit(size))) {
                Ok(()) => fits = size,
                Err(error) => {
                    let code = error.code().cloned();
                    assert_eq!(code, Some(SqlState::PROGRAM_LIMIT_EXCEEDED), "{error:?}");
                    client.batch_execute("ROLLBACK").unwrap();
                    refused_at = size;
                }
            }
        }
        let (_, sentence) = refused(&mut client, &emit(refused_at));
        let bytes = sentence.split(' ').nth(2).and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
        // Steps of some shapes are longer than a byte.
        assert!((LIMIT + 1..LIMIT + 64).contains(&bytes), "{sentence}");
        client.batch_execute(&emit(fits)).unwrap();
        taken += 1;
        wait_confirmed(&relay, &postgres, PATIENCE);
        assert_eq!(count(kafka, "limit.order"), taken, "{shape}: {}", relay.log_text());
    }
    stop(&relay);
}

/// A commit is in the log, and read from it, before others see its rows; with a synchronous standby that does not
/// answer, for as long as that takes.
#[test]
fn a_fact_may_be_consumed_before_its_row_is_visible_to_another_session() {
    let (postgres, mut client) = server();
    let kafka = Kafka::shared();
    kafka.create_topic("early.order", 1, &[]);
    let relay = relay("early", &postgres, kafka).spawn();
    relay.wait_ready();
    client.batch_execute("CREATE TABLE orders (id int PRIMARY KEY, paid bool)").unwrap();
    client.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'never_comes'").unwrap();
    postgres.reload();
    let writer = std::thread::spawn({
        let mut writer = postgres.client();
        move || {
            writer.batch_execute(
                "BEGIN; INSERT INTO orders VALUES (42, true);
                SELECT factlib.emit('order', '42', 'paid', '', prefix => 'early'); COMMIT",
            )
        }
    });
    let records = read(&relay, kafka, "early.order", 1);
    assert_eq!(records.len(), 1);
    let visible = "SELECT count(*) FROM orders WHERE id = 42";
    assert_eq!(postgres.ask(visible), "0", "the fact was consumed, the row is not there yet");
    assert!(!writer.is_finished());
    // The document's remedy: whoever needs the row reads with the writer's lock, and waits.
    let mut reader = postgres.client();
    reader.batch_execute("SET lock_timeout = '200ms'").unwrap();
    let locked = reader.batch_execute("INSERT INTO orders VALUES (42, true)").unwrap_err();
    assert_eq!(locked.code(), Some(&SqlState::LOCK_NOT_AVAILABLE));
    client.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").unwrap();
    postgres.reload();
    writer.join().unwrap().unwrap();
    assert_eq!(postgres.ask(visible), "1");
    stop(&relay);
}

#[test]
fn init_installs_the_functions_before_the_slot_and_says_which_version_was_there() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    let shell = Shell::new("orders", &postgres, kafka);
    let said = shell.run("owlpost init --with-sql").ended(0);
    let lines: Vec<_> = said.out.lines().collect();
    assert_eq!(lines[0], "factlib.emit and its company are in database app, version 1.0.0");
    assert!(lines[1].starts_with("slot factlib_slot and publication facts are ready"), "{said:?}");
    postgres
        .client()
        .batch_execute("SELECT factlib.emit('order', '1', 'paid', '', prefix => 'orders')")
        .unwrap();

    let again = "owlpost init --sql-only --json";
    let said = shell
        .clone()
        .without("SRC_SERVICE_NAME")
        .without("KAFKA_BROKERS")
        .run(again)
        .ended(0)
        .json();
    let same = serde_json::json!({"sql_functions": "1.0.0", "before": "1.0.0", "database": "app"});
    assert_eq!(said, same);
    let check = |shell: &Shell| {
        let said = shell.run("owlpost check --json");
        let found =
            said.out.lines().find(|line| line.contains("SQL functions")).unwrap_or_default();
        serde_json::from_str::<serde_json::Value>(found).unwrap()
    };
    assert_eq!(check(&shell)["seen"], "version 1.0.0");

    let comment = |version: &str| {
        let comment = format!("COMMENT ON SCHEMA factlib IS 'factlib {version}: as it was'");
        postgres.client().batch_execute(&comment).unwrap();
    };
    comment("0.9.0");
    let checked = check(&shell);
    assert_eq!(
        (&checked["verdict"], &checked["remedy"]),
        (&"warning".into(), &"run `owlpost init --sql-only`".into())
    );
    let said = shell.run("owlpost init --sql-only").ended(0);
    assert_eq!(
        said.out,
        "the SQL functions in database app are of version 1.0.0 now; they were of 0.9.0\n"
    );
    comment("1.10.0");
    let said = shell.run("owlpost init --sql-only").ended(0);
    assert_eq!(
        said.out,
        "the SQL functions in database app are of version 1.10.0, newer than 1.0.0 of this owlpost, and stay\n"
    );

    let said = Shell::empty().run("owlpost init --print-sql").ended(0);
    assert_eq!(said.out, SQL);
}

#[test]
fn init_says_which_right_is_missing_for_the_functions_and_makes_nothing() {
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::shared());
    postgres.client().batch_execute("CREATE ROLE app LOGIN REPLICATION; CREATE ROLE dba LOGIN; GRANT CREATE ON DATABASE app TO dba").unwrap();
    let shell = Shell::new("orders", &postgres, kafka);
    let of = |role: &str| {
        shell
            .clone()
            .env("MASTER_DATABASE_URL", &postgres.url().replace("postgres@", &format!("{role}@")))
    };
    let said = of("app").run("owlpost init --with-sql").ended(8);
    let sentence = "permission denied for database app (SQLSTATE 42501); the SQL functions were not installed; GRANT CREATE ON DATABASE app TO app, or let a role that has it run `owlpost init --sql-only`";
    assert!(said.err.contains(sentence), "{said:?}");
    assert_eq!(postgres.ask("SELECT count(*) FROM pg_replication_slots"), "0");
    // A DBA needs no REPLICATION for it.
    of("dba").run("owlpost init --sql-only").ended(0);
    let said = of("app").run("owlpost init --sql-only").ended(8);
    assert!(
        said.err.contains("belongs to role \"dba\"") && said.err.contains("as that role"),
        "{said:?}"
    );
}

/// The block of the document, as a superuser would run it.
fn revoke(client: &mut Client) {
    let document = include_str!("../../docs/emitting.md");
    let block = document.split("```sql\n").find(|block| block.contains("REVOKE EXECUTE")).unwrap();
    client.batch_execute(block.split("```").next().unwrap()).unwrap();
}

#[test]
fn with_the_bare_function_revoked_only_the_guarded_functions_emit() {
    let (postgres, mut client) = server();
    client
        .batch_execute(
            "CREATE ROLE owner LOGIN; CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE app TO owner;
             DROP SCHEMA factlib CASCADE",
        )
        .unwrap();
    let mut owner = session(&postgres, "owner", "app");
    install(&mut owner);
    let grant =
        "INSERT INTO factlib.prefix_grant VALUES ('app', 'orders'); SELECT factlib.guard(true)";
    owner.batch_execute(grant).unwrap();
    revoke(&mut client);
    let mut app = session(&postgres, "app", "app");
    app.batch_execute("SELECT factlib.emit('order', '1', 'paid', '', prefix => 'orders')").unwrap();
    for content in ["'x'", "'x'::bytea"] {
        let bare = format!("SELECT pg_logical_emit_message(true, 'orders', {content})");
        assert_eq!(refused(&mut app, &bare).0, SqlState::INSUFFICIENT_PRIVILEGE);
    }
}

/// What the document says of dumps: tried with the only pg_dump that is here, of 15.
#[test]
fn a_dump_with_the_bare_function_revoked_restores_into_17_but_for_that() {
    let old = Postgres::builder().major(15).start();
    if !Path::new("/usr/lib/postgresql/15/bin/pg_dump").exists() {
        crate::support::skipped("pg_dump of PostgreSQL 15 is not installed");
        return;
    }
    let set_up = "CREATE ROLE app LOGIN";
    let mut client = old.client();
    install(&mut client);
    client.batch_execute(set_up).unwrap();
    client
        .batch_execute(
            "INSERT INTO factlib.prefix_grant VALUES ('app', 'orders'); SELECT factlib.guard(true)",
        )
        .unwrap();
    revoke(&mut client);
    let run = |program: &str, server: &Postgres, dump: Option<&[u8]>| {
        let mut command = old.command(program);
        command.arg("-h").arg(server.socket_dir()).args([
            "-p",
            &server.port().to_string(),
            "-U",
            "postgres",
        ]);
        if program == "psql" {
            command.args(["-X", "-q"]);
        }
        command
            .args(["-d", "app"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(dump.unwrap_or_default()).unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output
    };
    let dump = run("pg_dump", &old, None).stdout;
    for (major, errors) in [(15, 0), (16, 0), (17, 2), (18, 2)] {
        let new = Postgres::builder().major(major).start();
        new.client().batch_execute(set_up).unwrap();
        let restored = run("psql", &new, Some(&dump));
        let said = String::from_utf8_lossy(&restored.stderr).into_owned();
        let missing =
            said.matches("function pg_catalog.pg_logical_emit_message(boolean, text,").count();
        assert_eq!((said.matches("ERROR").count(), missing), (errors, errors), "{major}: {said}");
        let mut app = session(&new, "app", "app");
        let emit = |prefix: &str| {
            format!(
                "SELECT factlib.emit('order', '1', 'paid', '', '{{\"a\": 1}}', prefix => '{prefix}')"
            )
        };
        app.batch_execute(&emit("orders")).unwrap();
        assert_eq!(refused(&mut app, &emit("billing")).0, SqlState::INSUFFICIENT_PRIVILEGE);
        let bare = "SELECT pg_logical_emit_message(true, 'billing', 'x')";
        assert_eq!(
            app.batch_execute(bare).is_ok(),
            errors > 0,
            "{major}: open again, until it is revoked once more"
        );
        revoke(&mut new.client());
        assert_eq!(refused(&mut app, bare).0, SqlState::INSUFFICIENT_PRIVILEGE);
        app.batch_execute(&emit("orders")).unwrap();
        install(&mut new.client());
    }
}
