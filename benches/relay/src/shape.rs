//! What is emitted, and how: facts that can be told from their number alone, so that each can be checked where it
//! arrives.

use postgres::Client;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use testkit::envelope::OutboxEvent;
use testkit::{Lsn, Postgres, Record};

/// The prefix whose messages are facts.
pub const PREFIX: &str = "bench";

/// That of the others.
const FOREIGN: &str = "another";

/// Aggregates that the facts are about, in turns.
pub const AGGREGATES: usize = 1000;

/// What a backlog is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct Shape {
    #[arg(long)]
    pub facts: usize,
    /// Messages in a transaction, those of another prefix included.
    #[arg(long, default_value_t = 100)]
    pub per_transaction: usize,
    /// Bytes of payload, in an envelope of some 70 bytes more.
    #[arg(long, default_value_t = 256)]
    pub payload: usize,
    #[arg(long, default_value_t = 4)]
    pub partitions: usize,
    #[arg(long, default_value_t = 1)]
    pub topics: usize,
    /// Of a hundred messages so many have another prefix, and no envelope that is read.
    #[arg(long, default_value_t = 0)]
    pub foreign_percent: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            facts: 0,
            per_transaction: 100,
            payload: 256,
            partitions: 4,
            topics: 1,
            foreign_percent: 0,
        }
    }
}

impl Shape {
    /// The same with fewer facts, where they would be more than so many bytes.
    pub fn at_most(self, bytes: usize) -> Self {
        let facts = self.facts.min(bytes / self.payload.max(1)).max(1);
        Self { facts, ..self }
    }

    /// All messages, those of another prefix included.
    pub fn messages(&self) -> usize {
        self.facts * 100 / (100 - self.foreign_percent)
    }

    /// Bytes of one envelope.
    pub fn envelope_bytes(&self) -> usize {
        self.envelope(self.facts / 2).len()
    }

    /// The topics that facts go to.
    pub fn topic_names(&self) -> impl Iterator<Item = String> {
        let types = (0..self.topics).map(aggregate_type);
        types.map(|aggregate_type| format!("{PREFIX}.{aggregate_type}"))
    }

    /// The envelope of a fact.
    pub fn envelope(&self, number: usize) -> Vec<u8> {
        let event = OutboxEvent {
            id: format!("{ID_HEAD}{number:012x}"),
            aggregate_type: aggregate_type(number % self.topics.max(1)),
            aggregate_id: (number % AGGREGATES).to_string(),
            event_type: "order_created".to_owned(),
            payload: text(number, self.payload).into_bytes(),
            created_at: 1_700_000_000_000,
            ..OutboxEvent::default()
        };
        event.to_bytes()
    }

    /// Which fact a message is, if it is one. They are spread evenly: a message is a fact where their share passes a
    /// whole number.
    fn fact_of(&self, message: usize) -> Option<usize> {
        let own = 100 - self.foreign_percent;
        let before = message * own / 100;
        ((message + 1) * own / 100 > before).then_some(before)
    }

    /// Emits everything: the place of a message behind it all, to which all before is flushed.
    pub fn emit(&self, postgres: &Postgres) -> Lsn {
        self.emit_some(postgres, 0..self.messages())
    }

    /// The same for some of the messages.
    pub fn emit_some(&self, postgres: &Postgres, messages: Range<usize>) -> Lsn {
        let mut client = postgres.client();
        client.batch_execute("SET synchronous_commit = off").unwrap();
        let mut emitter = Emitter::new(&mut client);
        for begin in messages.clone().step_by(self.per_transaction) {
            let end = messages.end.min(begin + self.per_transaction);
            let message = |message| match self.fact_of(message) {
                Some(number) => (true, self.envelope(number)),
                None => (false, self.envelope(message)),
            };
            emitter.emit((begin..end).map(message).collect());
        }
        let end = postgres.ask(&format!("SELECT pg_logical_emit_message(false, '{END}', '')"));
        // Decoding reads what is flushed.
        let _ = postgres.ask("SELECT pg_switch_wal()");
        end.parse().expect("a position")
    }
}

/// The prefix of the message behind all others.
const END: &str = "end";

/// A prepared statement that emits one transaction.
pub struct Emitter<'a> {
    client: &'a mut Client,
    statement: postgres::Statement,
}

impl<'a> Emitter<'a> {
    pub fn new(client: &'a mut Client) -> Self {
        let sql = format!(
            "SELECT count(pg_logical_emit_message(true, CASE WHEN f THEN '{PREFIX}' ELSE '{FOREIGN}' END, c)) \
             FROM unnest($1::bool[], $2::bytea[]) AS m(f, c)"
        );
        let statement = client.prepare(&sql).unwrap();
        Self { client, statement }
    }

    /// Contents, and whether each is a fact.
    pub fn emit(&mut self, messages: Vec<(bool, Vec<u8>)>) {
        let (facts, contents): (Vec<bool>, Vec<Vec<u8>>) = messages.into_iter().unzip();
        self.client.execute(&self.statement, &[&facts, &contents]).unwrap();
    }
}

/// An id is this and the fact's number.
const ID_HEAD: &str = "00000000-0000-4000-8000-";

/// The number of a fact, by its id.
pub fn number_of(id: &str) -> Option<usize> {
    usize::from_str_radix(id.strip_prefix(ID_HEAD)?, 16).ok()
}

/// The number of the fact in a record.
pub fn number_in(record: &Record) -> Option<usize> {
    number_of(record.header("event_id")?)
}

fn aggregate_type(topic: usize) -> String {
    format!("order{topic}")
}

/// Like JSON: codecs have something to find, and not everything is the same.
fn text(number: usize, len: usize) -> String {
    use std::fmt::Write as _;
    let mut text = format!("{{\"number\":{number},\"items\":[");
    text.reserve(len + 64);
    let mut state = number as u64;
    while text.len() < len {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let _ = write!(text, "{{\"sku\":{},\"n\":1}},", state >> 44);
    }
    text.truncate(len);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_known_by_its_id() {
        let shape = Shape { facts: 10, topics: 3, ..Shape::default() };
        let event = OutboxEvent::from_bytes(&shape.envelope(7)).unwrap();
        assert_eq!(number_of(&event.id), Some(7));
        assert_eq!((event.aggregate_type.as_str(), event.payload.len()), ("order1", 256));
        assert_eq!(number_of("0198c5a0-0000-4000-8000-000000000007"), None);
        assert_eq!(
            shape.topic_names().collect::<Vec<_>>(),
            ["bench.order0", "bench.order1", "bench.order2"]
        );
    }

    #[test]
    fn large_facts_are_fewer() {
        let shape = Shape { facts: 1000, payload: 1024, ..Shape::default() };
        assert_eq!(shape.at_most(100 * 1024).facts, 100);
        assert_eq!(shape.at_most(usize::MAX).facts, 1000);
        assert_eq!(shape.at_most(10).facts, 1);
    }

    #[test]
    fn among_messages_of_others_there_are_as_many_facts() {
        for foreign_percent in [0, 50, 90, 99] {
            let shape = Shape { facts: 1000, foreign_percent, ..Shape::default() };
            let facts: Vec<usize> =
                (0..shape.messages()).filter_map(|message| shape.fact_of(message)).collect();
            assert!(facts.iter().copied().eq(0..1000), "{foreign_percent} %");
        }
    }
}
