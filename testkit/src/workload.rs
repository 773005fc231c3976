//! Concurrent writers, and a table that says what they really committed.
//!
//! Every fact is emitted and written down by one statement in one transaction, so the table `truth`
//! holds exactly the facts that were committed, whatever was rolled back, killed or cut off. A fact's
//! number within its aggregate is taken under a lock on the aggregate's row, which is held until the
//! commit, so the numbers are the order of commits too.

use crate::Postgres;
use crate::envelope::{OutboxEvent, TraceInfo};
use crate::lsn::Lsn;
use crate::rng::Rng;
use crate::wait;
use postgres::Client;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Facts that one statement emits at most.
const STATEMENT: usize = 500;

/// What to write. Change the fields you care about.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The same seed, the same facts. Runs against one database need different ones.
    pub seed: u64,
    /// The messages' prefix.
    pub prefix: String,
    /// Each aggregate has one of these types.
    pub aggregate_types: Vec<String>,
    /// How many aggregates the facts are spread over.
    pub aggregates: usize,
    /// How many connections write at once.
    pub writers: usize,
    /// How many facts to commit; what is rolled back comes on top.
    pub facts: usize,
    /// Facts in one transaction.
    pub transaction: RangeInclusive<usize>,
    /// Bytes of payload in one fact.
    pub payload: RangeInclusive<usize>,
    /// Of a hundred transactions, how many are rolled back.
    pub rolled_back_transactions: u32,
    /// Of a hundred savepoints, how many are rolled back.
    pub rolled_back_savepoints: u32,
    /// Whether other prefixes and other tables are written between the facts.
    pub noise: bool,
    /// How long each writer rests after a transaction.
    pub pause: Duration,
}

/// A fact that was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truth {
    /// The envelope's id.
    pub fact_id: String,
    /// The envelope's aggregate type.
    pub aggregate_type: String,
    /// The envelope's aggregate id.
    pub aggregate_id: String,
    /// The envelope's event type.
    pub event_type: String,
    /// 1, 2, 3, … within the aggregate, in the order of commits.
    pub key_seq: i64,
    /// The envelope's bytes.
    pub content: Vec<u8>,
    /// The transaction.
    pub xid: u64,
    /// What `pg_logical_emit_message` returned.
    pub lsn: Lsn,
}

/// What a run has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Facts whose commit was acknowledged.
    pub facts: usize,
    /// Transactions whose commit was acknowledged.
    pub transactions: usize,
    /// From the first statement to the last.
    pub elapsed: Duration,
}

/// Writers at work.
#[derive(Debug)]
pub struct Running {
    writers: Vec<JoinHandle<()>>,
    progress: Arc<Progress>,
    begun: Instant,
}

#[derive(Debug, Default)]
struct Progress {
    stop: AtomicBool,
    facts: AtomicUsize,
    transactions: AtomicUsize,
}

impl Running {
    /// Facts whose commit was acknowledged so far.
    #[must_use]
    pub fn facts(&self) -> usize {
        self.progress.facts.load(Ordering::Relaxed)
    }

    /// Waits until so many facts are committed.
    ///
    /// # Panics
    ///
    /// When that takes longer than `limit`.
    #[track_caller]
    pub fn wait_for(&self, facts: usize, limit: Duration) {
        wait::until(&format!("{facts} facts committed"), limit, || self.facts() >= facts);
    }

    /// Has the writers stop after the transaction at hand.
    ///
    /// # Panics
    ///
    /// When a writer did.
    #[track_caller]
    pub fn stop(self) -> Written {
        self.progress.stop.store(true, Ordering::Relaxed);
        self.wait()
    }

    /// Waits until everything is written.
    ///
    /// # Panics
    ///
    /// When a writer did.
    #[track_caller]
    pub fn wait(self) -> Written {
        for writer in self.writers {
            writer.join().unwrap_or_else(|_| panic!("a writer panicked"));
        }
        Written {
            facts: self.progress.facts.load(Ordering::Relaxed),
            transactions: self.progress.transactions.load(Ordering::Relaxed),
            elapsed: self.begun.elapsed(),
        }
    }
}

impl Workload {
    /// A thousand facts of about 256 bytes, from four writers, with roll-backs and noise.
    #[must_use]
    pub fn new(prefix: &str, seed: u64) -> Self {
        Self {
            seed,
            prefix: prefix.to_owned(),
            aggregate_types: vec!["order".to_owned()],
            aggregates: 1000,
            writers: 4,
            facts: 1000,
            transaction: 0..=50,
            payload: 60..=200,
            rolled_back_transactions: 20,
            rolled_back_savepoints: 10,
            noise: true,
            pause: Duration::ZERO,
        }
    }

    /// The topics that the facts belong in.
    #[must_use]
    pub fn topics(&self) -> Vec<String> {
        self.aggregate_types.iter().map(|kind| format!("{}.{kind}", self.prefix)).collect()
    }

    /// The keys that the facts can have.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        (0..self.aggregates).map(key).collect()
    }

    /// Makes the tables and the aggregates' rows, where they are missing.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    #[track_caller]
    pub fn install(&self, client: &mut Client) {
        let made = client.batch_execute(
            "CREATE TABLE IF NOT EXISTS aggregates (id text PRIMARY KEY, seq bigint NOT NULL);
             CREATE TABLE IF NOT EXISTS noise (id bigserial PRIMARY KEY, note text NOT NULL);
             CREATE TABLE IF NOT EXISTS truth (
                 fact_id text NOT NULL, aggregate_type text NOT NULL, aggregate_id text NOT NULL,
                 event_type text NOT NULL, key_seq bigint NOT NULL, content bytea NOT NULL,
                 xid bigint NOT NULL, lsn pg_lsn NOT NULL);",
        );
        made.unwrap_or_else(|e| panic!("making the workload's tables: {e}"));
        let rows = "INSERT INTO aggregates SELECT unnest($1::text[]), 0 ON CONFLICT DO NOTHING";
        client
            .execute(rows, &[&self.keys()])
            .unwrap_or_else(|e| panic!("making the aggregates: {e}"));
    }

    /// Writes everything and waits for the end.
    ///
    /// # Panics
    ///
    /// When a writer does.
    #[track_caller]
    pub fn run(&self, postgres: &Postgres) -> Written {
        self.start(postgres).wait()
    }

    /// Starts the writers. A server that goes away is waited for, and what the writers were at is
    /// begun anew: whether it had been committed, `truth` says.
    ///
    /// # Panics
    ///
    /// When the tables cannot be made.
    #[must_use]
    #[track_caller]
    pub fn start(&self, postgres: &Postgres) -> Running {
        self.install(&mut postgres.client());
        let progress = Arc::new(Progress::default());
        let begun = Instant::now();
        let writers = (0..self.writers)
            .map(|number| {
                let share =
                    self.facts / self.writers + usize::from(number < self.facts % self.writers);
                let writer = Writer {
                    workload: self.clone(),
                    rng: Rng::new(self.seed.wrapping_mul(1000).wrapping_add(number as u64)),
                    host: postgres.socket_dir().to_owned(),
                    port: postgres.port(),
                };
                let progress = Arc::clone(&progress);
                std::thread::Builder::new()
                    .name(format!("writer {number}"))
                    .spawn(move || writer.write(share, &progress))
                    .expect("a thread")
            })
            .collect();
        Running { writers, progress, begun }
    }

    /// Commits one transaction with exactly so many facts and nothing rolled back.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    #[track_caller]
    pub fn write_transaction(&self, client: &mut Client, facts: usize, seed: u64) {
        self.install(client);
        let plain = Self {
            rolled_back_transactions: 0,
            rolled_back_savepoints: 0,
            noise: false,
            ..self.clone()
        };
        let mut rng = Rng::new(seed);
        let written = plain.transaction(client, &mut rng, facts);
        assert_eq!(written.unwrap_or_else(|e| panic!("writing {facts} facts: {e}")), Some(facts));
    }

    /// One transaction: how many facts it committed, or `None` if it was meant to be rolled back.
    fn transaction(
        &self,
        client: &mut Client,
        rng: &mut Rng,
        facts: usize,
    ) -> Result<Option<usize>, postgres::Error> {
        client.batch_execute("BEGIN")?;
        // Sorted, so that two transactions never wait for each other.
        let mut keys: Vec<String> =
            (0..facts.min(8)).map(|_| key(rng.below(self.aggregates))).collect();
        keys.sort();
        keys.dedup();
        let lock = "SELECT id, seq FROM aggregates WHERE id = ANY($1) ORDER BY id FOR UPDATE";
        let mut numbers = BTreeMap::new();
        for row in client.query(lock, &[&keys])? {
            numbers.insert(row.get::<_, String>(0), row.get::<_, i64>(1));
        }

        let mut left = facts;
        let mut emitted = 0;
        while left > 0 {
            self.noise(client, rng)?;
            let count = rng.between(1..=left).min(STATEMENT);
            left -= count;
            if rng.percent(50) {
                let before = numbers.clone();
                client.batch_execute("SAVEPOINT s")?;
                self.emit(client, rng, &keys, &mut numbers, count)?;
                if rng.percent(self.rolled_back_savepoints) {
                    client.batch_execute("ROLLBACK TO SAVEPOINT s")?;
                    numbers = before;
                    continue;
                }
                client.batch_execute("RELEASE SAVEPOINT s")?;
            } else {
                self.emit(client, rng, &keys, &mut numbers, count)?;
            }
            emitted += count;
        }
        self.noise(client, rng)?;

        let (ids, seqs): (Vec<String>, Vec<i64>) = numbers.into_iter().unzip();
        let update = "UPDATE aggregates a SET seq = s.seq
            FROM unnest($1::text[], $2::bigint[]) AS s(id, seq) WHERE a.id = s.id";
        client.execute(update, &[&ids, &seqs])?;
        if rng.percent(self.rolled_back_transactions) {
            client.batch_execute("ROLLBACK")?;
            return Ok(None);
        }
        client.batch_execute("COMMIT")?;
        Ok(Some(emitted))
    }

    /// Emits facts and writes them down.
    fn emit(
        &self,
        client: &mut Client,
        rng: &mut Rng,
        keys: &[String],
        numbers: &mut BTreeMap<String, i64>,
        count: usize,
    ) -> Result<(), postgres::Error> {
        let mut rows = Rows::default();
        for _ in 0..count {
            let place = rng.below(keys.len());
            let id = &keys[place];
            let number = numbers.get_mut(id).expect("the aggregate's row is there");
            *number += 1;
            let event = self.event(rng, id);
            rows.contents.push(event.to_bytes());
            rows.ids.push(event.id);
            rows.kinds.push(event.aggregate_type);
            rows.keys.push(event.aggregate_id);
            rows.events.push(event.event_type);
            rows.numbers.push(*number);
        }
        let insert = "INSERT INTO truth
            SELECT id, kind, key, event, number, content, pg_current_xact_id()::text::bigint,
                   pg_logical_emit_message(true, $1, content)
            FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bytea[])
                WITH ORDINALITY AS f(id, kind, key, event, number, content, place)
            ORDER BY place";
        let Rows { ids, kinds, keys, events, numbers, contents } = &rows;
        client.execute(insert, &[&self.prefix, ids, kinds, keys, events, numbers, contents])?;
        Ok(())
    }

    fn event(&self, rng: &mut Rng, id: &str) -> OutboxEvent {
        // One type for each aggregate, whatever the writer.
        let number: usize = id.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let mut payload = vec![0; rng.between(self.payload.clone())];
        rng.fill(&mut payload);
        let trace_info = rng.percent(50).then(|| TraceInfo {
            trace_id: format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64()),
            span_id: format!("{:016x}", rng.next_u64()),
            metadata: BTreeMap::new(),
        });
        OutboxEvent {
            id: uuid(rng),
            aggregate_type: self.aggregate_types[number % self.aggregate_types.len()].clone(),
            aggregate_id: id.to_owned(),
            event_type: ["created", "changed", "Gelöscht"][rng.below(3)].to_owned(),
            payload,
            created_at: 1_700_000_000_000 + rng.below(1_000_000) as i64,
            metadata: BTreeMap::from([("tenant".to_owned(), format!("t{}", rng.below(10)))]),
            trace_info,
        }
    }

    /// What the relay must pass over.
    fn noise(&self, client: &mut Client, rng: &mut Rng) -> Result<(), postgres::Error> {
        if !self.noise {
            return Ok(());
        }
        let foreign = "SELECT pg_logical_emit_message($1, $2, $3::bytea)";
        let content = [0_u8, 0xff, b'{'].as_slice();
        match rng.below(6) {
            0 => client.execute(foreign, &[&true, &format!("{}x", self.prefix), &content])?,
            1 => client.execute(foreign, &[&false, &"elsewhere", &content])?,
            2 => client.execute("INSERT INTO noise (note) VALUES (repeat('n', 100))", &[])?,
            _ => 0,
        };
        Ok(())
    }
}

#[derive(Default)]
struct Rows {
    ids: Vec<String>,
    kinds: Vec<String>,
    keys: Vec<String>,
    events: Vec<String>,
    numbers: Vec<i64>,
    contents: Vec<Vec<u8>>,
}

struct Writer {
    workload: Workload,
    rng: Rng,
    host: std::path::PathBuf,
    port: u16,
}

impl Writer {
    fn write(mut self, share: usize, progress: &Progress) {
        let mut left = share;
        let mut connection = None;
        while left > 0 && !progress.stop.load(Ordering::Relaxed) {
            let client = connection.get_or_insert_with(|| self.connect());
            let facts = self.rng.between(self.workload.transaction.clone()).min(left);
            std::thread::sleep(self.workload.pause);
            match self.workload.transaction(client, &mut self.rng, facts) {
                Ok(None) => {}
                Ok(Some(facts)) => {
                    left -= facts;
                    progress.facts.fetch_add(facts, Ordering::Relaxed);
                    progress.transactions.fetch_add(1, Ordering::Relaxed);
                }
                Err(e) if client.is_closed() || e.code().is_some_and(is_shutdown) => {
                    connection = None
                }
                Err(e) => panic!("a writer's transaction: {e} ({:?})", e.as_db_error()),
            }
        }
    }

    fn connect(&self) -> Client {
        wait::poll("a connection for a writer", wait::LIMIT, || {
            postgres::Config::new()
                .host_path(&self.host)
                .port(self.port)
                .user("postgres")
                .dbname(crate::postgres::DATABASE)
                .application_name("workload")
                .connect(postgres::NoTls)
                .ok()
        })
        .unwrap_or_else(|e| panic!("{e}"))
    }
}

/// The server ends sessions: `admin_shutdown`, `crash_shutdown`, `cannot_connect_now`.
fn is_shutdown(code: &postgres::error::SqlState) -> bool {
    matches!(code.code(), "57P01" | "57P02" | "57P03")
}

/// All facts that were committed.
///
/// # Panics
///
/// When the table cannot be read.
#[must_use]
#[track_caller]
pub fn truth(client: &mut Client) -> Vec<Truth> {
    let query = "SELECT fact_id, aggregate_type, aggregate_id, event_type, key_seq, content, xid,
        lsn::text FROM truth";
    let rows = client.query(query, &[]).unwrap_or_else(|e| panic!("reading the truth: {e}"));
    let fact = |row: &postgres::Row| Truth {
        fact_id: row.get(0),
        aggregate_type: row.get(1),
        aggregate_id: row.get(2),
        event_type: row.get(3),
        key_seq: row.get(4),
        content: row.get(5),
        xid: row.get::<_, i64>(6).cast_unsigned(),
        lsn: row.get::<_, &str>(7).parse().expect("a log position"),
    };
    rows.iter().map(fact).collect()
}

fn key(number: usize) -> String {
    format!("aggregate-{number}")
}

/// A random UUID, version 4.
fn uuid(rng: &mut Rng) -> String {
    let (high, low) = (rng.next_u64(), rng.next_u64());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | (low >> 48) & 0x3fff,
        low & 0xffff_ffff_ffff
    )
}
