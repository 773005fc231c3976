//! Everything that applications do to a database, at once, for as long as it is wanted.
//!
//! Where [`Workload`](crate::workload::Workload) writes so many facts, this writes until it is told to
//! stop, survives whatever happens to the server, and knows every way in which a fact can come about or
//! not: savepoints, roll-backs, two-phase commit, transactions that stay open, that are huge, or whose
//! facts are nearly a megabyte, messages outside of transactions, and much that is none of the relay's
//! business.
//!
//! Every transactional fact is emitted and written down by one statement, so the table holds exactly the
//! facts that were committed, also where the answer to a COMMIT was lost. Of the content there is only a
//! digest.

mod writer;

pub use self::writer::Running;

use crate::Postgres;
use crate::envelope::{OutboxEvent, TraceInfo};
use crate::lsn::Lsn;
use crate::rng::Rng;
use postgres::Client;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};

/// The database that is busy beside the one with the facts.
pub const OTHER_DATABASE: &str = "busy";

/// The payload that leaves room for the envelope and the headers within what Kafka takes.
const PAYLOAD_MAX: usize = 900_000;

/// The largest payload of a fact that is like most are.
const PAYLOAD_USUAL: usize = 2000;

/// What to write. Change the fields you care about.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// The same seed, the same facts, though not at the same time.
    pub seed: u64,
    /// The messages' prefix.
    pub prefix: String,
    /// Each aggregate has one of these types.
    pub aggregate_types: Vec<String>,
    /// How many aggregates the quick transactions share.
    pub aggregates: usize,
    /// How many connections write quick transactions, some two in a second each.
    pub writers: usize,
    /// How many write transactions that stay open or prepared for seconds.
    pub slow_writers: usize,
    /// How many facts a huge transaction has.
    pub huge: usize,
    /// How many seconds pass between two of those.
    pub huge_interval: u64,
}

/// Somebody who writes, and with that a range of aggregates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Quick,
    Slow,
    Huge,
    Loose,
}

impl Role {
    fn key(self, number: usize) -> String {
        let name = match self {
            Self::Quick => "aggregate",
            Self::Slow => "slow",
            Self::Huge => "huge",
            Self::Loose => "loose",
        };
        format!("{name}-{number}")
    }
}

/// A fact as it was emitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emitted {
    /// The envelope's id.
    pub fact_id: String,
    /// The envelope's aggregate type.
    pub aggregate_type: String,
    /// The envelope's aggregate id.
    pub aggregate_id: String,
    /// The envelope's event type.
    pub event_type: String,
    /// The [`digest`] of the envelope's bytes.
    pub digest: u64,
}

/// A transactional fact that was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// What was emitted.
    pub emitted: Emitted,
    /// 1, 2, 3, … within the aggregate, in the order of commits.
    pub key_seq: i64,
    /// The transaction.
    pub xid: u64,
    /// What `pg_logical_emit_message` returned.
    pub lsn: Lsn,
}

/// A fact outside of any transaction: there whatever becomes of the transaction around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loose {
    /// What was emitted, or was about to be.
    pub emitted: Emitted,
    /// What `pg_logical_emit_message` returned, if it did.
    pub lsn: Option<Lsn>,
    /// Whether it survives a crash for certain: something behind it was flushed since.
    pub durable: bool,
}

/// A number that tells contents apart. Stable within one build, and no secret.
#[must_use]
pub fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

impl Traffic {
    /// Some five hundred facts in a second.
    #[must_use]
    pub fn new(prefix: &str, seed: u64) -> Self {
        Self {
            seed,
            prefix: prefix.to_owned(),
            aggregate_types: vec!["order".to_owned()],
            aggregates: 300,
            writers: 8,
            slow_writers: 2,
            huge: 10_000,
            huge_interval: 45,
        }
    }

    /// The keys that facts can have.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let range = |role: Role| (0..self.range(role)).map(move |number| role.key(number));
        let all = [Role::Quick, Role::Slow, Role::Huge, Role::Loose];
        all.into_iter().flat_map(range).collect()
    }

    /// How many aggregates a role has.
    fn range(&self, role: Role) -> usize {
        match role {
            Role::Quick => self.aggregates,
            Role::Slow => 40,
            Role::Huge | Role::Loose => 20,
        }
    }

    /// The type of an aggregate, whoever writes to it.
    fn aggregate_type(&self, number: usize) -> &str {
        &self.aggregate_types[number % self.aggregate_types.len()]
    }

    /// Makes the tables, the aggregates' rows and the other database.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    #[track_caller]
    pub fn install(&self, postgres: &Postgres) {
        let mut client = postgres.client();
        let made = client.batch_execute(
            "CREATE TABLE aggregates (id text PRIMARY KEY, seq bigint NOT NULL);
             CREATE TABLE rows (id bigserial PRIMARY KEY, note text NOT NULL);
             CREATE TABLE truth (
                 fact_id text NOT NULL, aggregate_type text NOT NULL, aggregate_id text NOT NULL,
                 event_type text NOT NULL, key_seq bigint NOT NULL, digest bigint NOT NULL,
                 xid bigint NOT NULL, lsn pg_lsn NOT NULL);
             CREATE INDEX ON truth (xid);",
        );
        made.unwrap_or_else(|e| panic!("making the tables: {e}"));
        let rows = "INSERT INTO aggregates SELECT unnest($1::text[]), 0";
        client
            .execute(rows, &[&self.keys()])
            .unwrap_or_else(|e| panic!("making the aggregates: {e}"));
        client
            .batch_execute(&format!("CREATE DATABASE {OTHER_DATABASE}"))
            .unwrap_or_else(|e| panic!("making another database: {e}"));
    }

    /// A fact about an aggregate of this role.
    fn event(&self, rng: &mut Rng, role: Role, number: usize, payload: usize) -> OutboxEvent {
        let mut bytes = vec![0; payload];
        rng.fill(&mut bytes);
        let trace_info = rng.percent(50).then(|| TraceInfo {
            trace_id: format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64()),
            span_id: format!("{:016x}", rng.next_u64()),
            metadata: BTreeMap::new(),
        });
        OutboxEvent {
            id: format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64()),
            aggregate_type: self.aggregate_type(number).to_owned(),
            aggregate_id: role.key(number),
            event_type: ["created", "changed", "Gelöscht"][rng.below(3)].to_owned(),
            payload: bytes,
            created_at: 1_700_000_000_000 + rng.below(1_000_000) as i64,
            metadata: BTreeMap::from([("tenant".to_owned(), format!("t{}", rng.below(10)))]),
            trace_info,
        }
    }
}

impl Emitted {
    fn of(event: &OutboxEvent, content: &[u8]) -> Self {
        Self {
            fact_id: event.id.clone(),
            aggregate_type: event.aggregate_type.clone(),
            aggregate_id: event.aggregate_id.clone(),
            event_type: event.event_type.clone(),
            digest: digest(content),
        }
    }
}

/// A length between 0 and `max`: as often below a thousand as between a thousand and a million.
fn log_uniform(rng: &mut Rng, max: usize) -> usize {
    let share = rng.below(1 << 30) as f64 / f64::from(1 << 30);
    ((max as f64 + 1.0).powf(share) - 1.0) as usize
}

/// The facts of these transactions, of those that were committed.
///
/// # Errors
///
/// When the table cannot be read.
pub fn committed(client: &mut Client, xids: &[u64]) -> Result<Vec<Committed>, postgres::Error> {
    let query = "SELECT fact_id, aggregate_type, aggregate_id, event_type, key_seq, digest, xid,
        lsn::text FROM truth WHERE xid = ANY($1)";
    let xids: Vec<i64> = xids.iter().map(|xid| xid.cast_signed()).collect();
    let fact = |row: &postgres::Row| Committed {
        emitted: Emitted {
            fact_id: row.get(0),
            aggregate_type: row.get(1),
            aggregate_id: row.get(2),
            event_type: row.get(3),
            digest: row.get::<_, i64>(5).cast_unsigned(),
        },
        key_seq: row.get(4),
        xid: row.get::<_, i64>(6).cast_unsigned(),
        lsn: row.get::<_, &str>(7).parse().expect("a log position"),
    };
    Ok(client.query(query, &[&xids])?.iter().map(fact).collect())
}

/// How many facts were committed.
///
/// # Errors
///
/// When the table cannot be read.
pub fn count(client: &mut Client) -> Result<usize, postgres::Error> {
    let row = client.query_one("SELECT count(*) FROM truth", &[])?;
    Ok(row.get::<_, i64>(0) as usize)
}

#[cfg(test)]
mod tests {
    use super::{PAYLOAD_MAX, log_uniform};
    use crate::rng::Rng;

    #[test]
    fn lengths_are_of_every_magnitude() {
        let mut rng = Rng::new(1);
        let lengths: Vec<usize> = (0..10_000).map(|_| log_uniform(&mut rng, PAYLOAD_MAX)).collect();
        assert!(lengths.iter().all(|length| *length <= PAYLOAD_MAX));
        assert!(lengths.contains(&0));
        for magnitude in [10, 1000, 100_000] {
            let of_it =
                lengths.iter().filter(|length| (magnitude..10 * magnitude).contains(*length));
            let of_it = of_it.count();
            assert!(
                (1000..2500).contains(&of_it),
                "{of_it} between {magnitude} and ten times that"
            );
        }
    }
}
