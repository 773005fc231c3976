//! A foreign oracle: what our decoder reads of pgoutput over the network, told in the words of
//! `test_decoding`, is what that plugin says of the same transactions.

use factlib_protocol::pgoutput::{
    Decoder, LogicalMessage, Message, OldTuple, ProtoVersion, Relation, Relations, Streaming,
    Tuple, Value,
};
use std::collections::{BTreeMap, HashMap};
use testkit::rng::Rng;
use testkit::{Postgres, Stream};

const TRANSACTIONS: usize = 120;

/// The prefix of the message that ends a workload.
const END: &str = "the end";

const SET_UP: [&str; 11] = [
    "CREATE TABLE by_key (id int PRIMARY KEY, name text, big text, price numeric, done bool)",
    "ALTER TABLE by_key ALTER COLUMN big SET STORAGE EXTERNAL",
    "CREATE TABLE by_full (a bigint, b varchar(40), c timestamptz, d bytea, gone int, e float8)",
    "ALTER TABLE by_full REPLICA IDENTITY FULL",
    "ALTER TABLE by_full DROP COLUMN gone",
    "CREATE TYPE mood AS ENUM ('calm', 'alert')",
    "CREATE TABLE \"By Index\" (x smallint NOT NULL, \"Y\" mood NOT NULL, z int[], w bit(3), v oid)",
    "CREATE UNIQUE INDEX by_index ON \"By Index\" (x)",
    "ALTER TABLE \"By Index\" REPLICA IDENTITY USING INDEX by_index",
    "CREATE PUBLICATION everything FOR ALL TABLES",
    "SELECT pg_create_logical_replication_slot('foreign', 'test_decoding'), \
            pg_create_logical_replication_slot('ours', 'pgoutput')",
];

/// A value as SQL, now and then NULL, with everything that wants quoting.
fn text(rng: &mut Rng) -> String {
    let words = ["", "owl", "it''s", "a\\b", "\"q\"", "é—ß", "line\nbreak", "{1,2}", "null"];
    match rng.below(words.len() + 1) {
        0 => "NULL".to_owned(),
        at => format!("'{}{}'", words[at - 1], rng.below(100)),
    }
}

fn number(rng: &mut Rng) -> String {
    match rng.below(4) {
        0 => "NULL".to_owned(),
        1 => format!("{}.{:02}", rng.below(1000), rng.below(100)),
        2 => format!("-{}", rng.below(100_000)),
        _ => rng.below(10).to_string(),
    }
}

/// One statement on one of the tables.
fn statement(rng: &mut Rng, messages: bool) -> String {
    let id = rng.below(12);
    match rng.below(if messages { 14 } else { 12 }) {
        0 | 1 => {
            // Long enough to be kept outside the row, so that an update can leave it unchanged.
            let big = if rng.percent(30) { "repeat('b', 3000)".to_owned() } else { text(rng) };
            format!(
                "INSERT INTO by_key VALUES ({id}, {}, {big}, {}, {}) ON CONFLICT DO NOTHING",
                text(rng),
                number(rng),
                ["true", "false", "NULL"][rng.below(3)]
            )
        }
        2 => format!("UPDATE by_key SET name = {} WHERE id = {id}", text(rng)),
        3 => format!(
            "UPDATE by_key SET id = {} WHERE id = {id} AND NOT EXISTS (SELECT FROM by_key WHERE id = {0})",
            rng.below(12)
        ),
        4 => format!("DELETE FROM by_key WHERE id = {id}"),
        5 | 6 => format!(
            "INSERT INTO by_full VALUES ({id}, {}, '2024-02-29 12:34:56.789+00', '\\x00ff27', {})",
            text(rng),
            number(rng)
        ),
        7 => format!("UPDATE by_full SET b = {} WHERE a = {id}", text(rng)),
        8 => format!("DELETE FROM by_full WHERE a = {id}"),
        9 => format!(
            "INSERT INTO \"By Index\" VALUES ({id}, '{}', '{{1,NULL,{id}}}', B'1{}0', {id}) ON CONFLICT DO NOTHING",
            ["calm", "alert"][rng.below(2)],
            rng.below(2)
        ),
        10 => format!("UPDATE \"By Index\" SET z = NULL, v = 7 WHERE x = {id}"),
        11 => match rng.below(6) {
            0 => "TRUNCATE by_full, \"By Index\" RESTART IDENTITY".to_owned(),
            1 => "TRUNCATE by_full CASCADE".to_owned(),
            _ => format!("DELETE FROM \"By Index\" WHERE x = {id}"),
        },
        _ => format!(
            "SELECT pg_logical_emit_message({}, 'prefix {id}', coalesce({}, ''))",
            rng.percent(70),
            text(rng)
        ),
    }
}

/// Transactions with savepoints; some of both are rolled back.
fn workload(postgres: &Postgres, seed: u64, messages: bool) {
    let (mut client, mut rng) = (postgres.client(), Rng::new(seed));
    for _ in 0..TRANSACTIONS {
        let mut sql = String::from("BEGIN;");
        for _ in 0..rng.between(1..=6) {
            let statement = statement(&mut rng, messages);
            if rng.percent(30) {
                let end = if rng.percent(50) { "ROLLBACK TO" } else { "RELEASE" };
                sql += &format!("SAVEPOINT s; {statement}; {end} s;");
            } else {
                sql += &format!("{statement};");
            }
        }
        sql += if rng.percent(15) { "ROLLBACK" } else { "COMMIT" };
        client.batch_execute(&sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

fn servers(settings: &[(&str, &str)]) -> Postgres {
    let builder = settings
        .iter()
        .fold(Postgres::builder(), |builder, (name, value)| builder.setting(name, value));
    let postgres = builder.start();
    let mut client = postgres.client();
    SET_UP.iter().for_each(|sql| drop(client.simple_query(sql).unwrap()));
    postgres
}

/// What test_decoding says, transaction by transaction.
fn foreign(postgres: &Postgres) -> Vec<Vec<String>> {
    let query = "SELECT data FROM pg_logical_slot_get_changes('foreign', NULL, NULL, \
                 'include-xids', '0')";
    let rows = postgres.client().query(query, &[]).unwrap();
    let mut told = Vec::new();
    let mut open: Option<Vec<String>> = None;
    for line in rows.iter().map(|row| row.get::<_, String>(0)) {
        match (line.as_str(), &mut open) {
            ("BEGIN", _) => open = Some(Vec::new()),
            // In some nothing was done that it tells of.
            ("COMMIT", _) => told.extend(open.take().filter(|changes| !changes.is_empty())),
            (_, Some(open)) => open.push(line),
            (_, None) => told.push(vec![line]),
        }
    }
    told
}

/// Starts to read what pgoutput tells, with these options.
fn ours(postgres: &Postgres, options: &[(&str, &str)]) -> Stream {
    let options = [options, &[("publication_names", "everything"), ("messages", "true")]].concat();
    Stream::start(postgres, "ours", &options).unwrap()
}

/// What comes, up to a message of which this is true.
fn until(stream: &mut Stream, mut last: impl FnMut(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while !messages.last().is_some_and(|data: &Vec<u8>| last(data)) {
        messages.push(stream.message().unwrap().1);
    }
    messages
}

/// Ends a workload with a transaction that both plugins tell of, and gives what comes, with that.
fn rest(postgres: &Postgres, stream: &mut Stream) -> Vec<Vec<u8>> {
    let end = format!("SELECT pg_logical_emit_message(true, '{END}', '')");
    postgres.client().batch_execute(&end).unwrap();
    let mut ended = false;
    until(stream, |data| {
        ended |= data[0] == b'M' && data.windows(END.len()).any(|piece| piece == END.as_bytes());
        ended && data[0] == b'C'
    })
}

/// Tells pgoutput's messages in the words of test_decoding.
struct Teller {
    relations: Relations,
    types: HashMap<u32, String>,
}

impl Teller {
    fn new(postgres: &Postgres) -> Self {
        let rows = postgres.client().query("SELECT oid, format_type(oid, NULL) FROM pg_type", &[]);
        let types = rows.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
        Self { relations: Relations::new(100), types }
    }

    fn table(&self, id: u32) -> String {
        let relation = self.relations.get(id).unwrap();
        let plain = |name: &str| name.bytes().all(|c| matches!(c, b'a'..=b'z' | b'_'));
        let quote = |name: &str| if plain(name) { name.into() } else { format!("\"{name}\"") };
        format!("{}.{}", quote(&relation.namespace), quote(&relation.name))
    }

    fn row(&self, id: u32, row: Tuple<'_>, old: bool) -> String {
        let relation = self.relations.get(id).unwrap();
        assert_eq!(relation.columns.len(), row.len());
        let mut told = String::new();
        for (column, value) in relation.columns.iter().zip(row.values()) {
            let value = match value {
                Value::Null if old => continue,
                Value::Null => "null".to_owned(),
                Value::UnchangedToast => "unchanged-toast-datum".to_owned(),
                Value::Text(text) => {
                    let text = std::str::from_utf8(text).unwrap();
                    match self.types[&column.type_oid].as_str() {
                        "smallint" | "integer" | "bigint" | "oid" | "double precision"
                        | "numeric" => text.to_owned(),
                        "boolean" => if text == "t" { "true" } else { "false" }.to_owned(),
                        "bit" => format!("B'{text}'"),
                        _ => format!("'{}'", text.replace('\'', "''")),
                    }
                }
                Value::Binary(_) => panic!("text was asked for"),
            };
            let name = match column.name.as_str() {
                "Y" => "\"Y\"",
                name => name,
            };
            told += &format!(" {name}[{}]:{value}", self.types[&column.type_oid]);
        }
        told
    }

    fn message(message: &LogicalMessage<'_>) -> String {
        format!(
            "message: transactional: {} prefix: {}, sz: {} content:{}",
            u8::from(message.transactional),
            String::from_utf8_lossy(message.prefix),
            message.content.len(),
            String::from_utf8_lossy(message.content)
        )
    }

    fn describe(&mut self, relation: &Relation<'_>) {
        self.relations.insert(relation).unwrap();
    }

    /// A change; nothing for what only describes.
    fn change(&mut self, message: &Message<'_>) -> Option<String> {
        Some(match message {
            Message::Relation(relation) => {
                self.describe(relation);
                return None;
            }
            Message::Type(_) => return None,
            Message::Message(message) => Self::message(message),
            Message::Insert(insert) => format!(
                "table {}: INSERT:{}",
                self.table(insert.relation),
                self.row(insert.relation, insert.new, false)
            ),
            Message::Update(update) => {
                let new = self.row(update.relation, update.new, false);
                let table = self.table(update.relation);
                match update.old {
                    Some(old) => {
                        let old = self.row(update.relation, old.tuple(), true);
                        format!("table {table}: UPDATE: old-key:{old} new-tuple:{new}")
                    }
                    None => format!("table {table}: UPDATE:{new}"),
                }
            }
            Message::Delete(delete) => {
                let full = matches!(delete.old, OldTuple::Full(_));
                let row = self.row(delete.relation, delete.old.tuple(), true);
                assert!(full || !row.is_empty());
                format!("table {}: DELETE:{row}", self.table(delete.relation))
            }
            Message::Truncate(truncate) => {
                let tables: Vec<_> = truncate.relations.iter().map(|id| self.table(id)).collect();
                let flags = match (truncate.restart_identity, truncate.cascade) {
                    (false, false) => " (no-flags)",
                    (true, false) => " restart_seqs",
                    (false, true) => " cascade",
                    (true, true) => " restart_seqs cascade",
                };
                format!("table {}: TRUNCATE:{flags}", tables.join(", "))
            }
            other => panic!("{other:?} is no change"),
        })
    }
}

#[track_caller]
fn assert_same(ours: &[Vec<String>], foreign: &[Vec<String>]) {
    for (at, (ours, foreign)) in ours.iter().zip(foreign).enumerate() {
        assert_eq!(ours, foreign, "transaction {at}");
    }
    assert_eq!(ours.len(), foreign.len());
    assert!(foreign.len() > TRANSACTIONS / 3, "the workload did something");
}

#[test]
fn whole_transactions_are_told_as_test_decoding_tells_them() {
    let postgres = servers(&[]);
    let (mut teller, mut decoder) = (Teller::new(&postgres), Decoder::default());
    let mut stream = ours(&postgres, &[("proto_version", "1")]);
    for seed in 1..=3 {
        workload(&postgres, seed, true);
        let (mut told, mut open) = (Vec::new(), None);
        for data in rest(&postgres, &mut stream) {
            match decoder.decode(&data).unwrap() {
                Message::Begin(_) => open = Some(Vec::new()),
                Message::Commit(_) => {
                    // 14 tells of transactions in which nothing happened, too.
                    told.extend(open.take().filter(|changes| !changes.is_empty()));
                }
                message => match (teller.change(&message), &mut open) {
                    (Some(change), Some(open)) => open.push(change),
                    (Some(change), None) => told.push(vec![change]),
                    (None, _) => {}
                },
            }
        }
        assert_same(&told, &foreign(&postgres));
    }
}

/// Blocks of open transactions, put together by what their rows and aborts say. Without messages: in
/// a streamed block those carry the number of the whole transaction, so that one of a savepoint
/// that was rolled back cannot be told from a good one.
#[test]
fn streamed_transactions_come_together_as_test_decoding_tells_them() {
    let postgres = servers(&[("logical_decoding_work_mem", "64kB")]);
    let mut client = postgres.client();
    let mut decoder = Decoder::new(ProtoVersion::V2, Streaming::On);
    let mut teller = Teller::new(&postgres);
    let mut stream = ours(&postgres, &[("proto_version", "2"), ("streaming", "on")]);
    let (mut block, mut blocks, mut rolled_back) = (0, 0, 0);
    for seed in 4..=6 {
        workload(&postgres, seed, false);
        // Larger than the server keeps in memory, with a part that is rolled back.
        let large = |from: usize| {
            format!(
                "INSERT INTO by_key SELECT n, repeat('n', 900), NULL, n, true \
                 FROM generate_series({from}, {}) n",
                from + 99
            )
        };
        let (first, second, third) = (large(1000), large(2000), large(3000));
        let sql = format!(
            "BEGIN; {first}; SAVEPOINT s; {second}; ROLLBACK TO s; {third}; COMMIT; \
             DELETE FROM by_key WHERE id >= 1000"
        );
        client.batch_execute(&sql).unwrap();

        // One more is rolled back while it is told, for which its log must have been written out.
        let mut open = client.transaction().unwrap();
        open.batch_execute(&first).unwrap();
        let xid: String = open.query_one("SELECT txid_current()::text", &[]).unwrap().get(0);
        let xid = xid.parse::<u32>().unwrap().to_be_bytes();
        open.batch_execute("SELECT pg_switch_wal()").unwrap();
        let mut messages = until(&mut stream, |data| data[0] == b'S' && data[1..5] == xid);
        open.rollback().unwrap();
        messages.extend(rest(&postgres, &mut stream));

        let (mut told, mut open) = (Vec::new(), None);
        // By transaction, each change with the part that it belongs to.
        let mut streamed: BTreeMap<u32, Vec<(u32, String)>> = BTreeMap::new();
        for data in messages {
            match decoder.decode(&data).unwrap() {
                Message::Begin(_) => open = Some(Vec::new()),
                Message::Commit(_) => {
                    told.extend(open.take().filter(|changes: &Vec<_>| !changes.is_empty()));
                }
                Message::StreamStart(start) => {
                    let known = streamed.contains_key(&start.xid);
                    assert_eq!(known, !start.first_segment);
                    streamed.entry(start.xid).or_default();
                    (block, blocks) = (start.xid, blocks + 1);
                }
                Message::StreamStop => {}
                Message::StreamAbort(abort) if abort.xid == abort.subxid => {
                    streamed.remove(&abort.xid);
                    rolled_back += 1;
                }
                Message::StreamAbort(abort) => {
                    let changes = streamed.get_mut(&abort.xid).unwrap();
                    changes.retain(|(part, _)| *part != abort.subxid);
                }
                Message::StreamCommit(commit) => {
                    let changes = streamed.remove(&commit.xid).unwrap();
                    told.push(changes.into_iter().map(|(_, change)| change).collect());
                }
                message => {
                    let part = match message {
                        Message::Insert(insert) => insert.xid,
                        Message::Update(update) => update.xid,
                        Message::Delete(delete) => delete.xid,
                        Message::Truncate(truncate) => truncate.xid,
                        Message::Relation(relation) => relation.xid,
                        Message::Type(kind) => kind.xid,
                        _ => None,
                    };
                    let Some(change) = teller.change(&message) else { continue };
                    match (part, &mut open) {
                        (Some(part), _) => streamed.get_mut(&block).unwrap().push((part, change)),
                        (None, Some(open)) => open.push(change),
                        (None, None) => told.push(vec![change]),
                    }
                }
            }
        }
        assert!(streamed.is_empty());
        assert_same(&told, &foreign(&postgres));
    }
    assert!(blocks > 9, "{blocks} blocks");
    assert_eq!(rolled_back, 3);
}
