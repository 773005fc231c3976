//! Who writes.

use super::{
    Emitted, Loose, OTHER_DATABASE, PAYLOAD_MAX, PAYLOAD_USUAL, Role, Traffic, log_uniform,
};
use crate::Postgres;
use crate::lsn::Lsn;
use crate::postgres::DATABASE;
use crate::rng::Rng;
use postgres::{Client, Error};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Facts that one statement emits at most.
const STATEMENT: usize = 500;

/// Between two attempts to reach a server that is away.
const NAP: Duration = Duration::from_millis(50);

/// Writers at work.
#[derive(Debug)]
pub struct Running {
    writers: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    address: Address,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    transactions: AtomicUsize,
    loose: Mutex<Vec<Loose>>,
    /// When a quick transaction was committed, and how long its COMMIT took.
    commits: Mutex<Vec<(Instant, Duration)>>,
}

#[derive(Debug, Clone)]
struct Address {
    host: PathBuf,
    port: u16,
}

impl Traffic {
    /// Starts everybody who writes; [`install`](Self::install) comes first. A server that goes away is
    /// waited for.
    #[must_use]
    pub fn start(&self, postgres: &Postgres) -> Running {
        let shared = Arc::new(Shared::default());
        let address = Address { host: postgres.socket_dir().to_owned(), port: postgres.port() };
        let mut roles = vec![Role::Quick; self.writers];
        roles.extend(vec![Role::Slow; self.slow_writers]);
        roles.extend([Role::Huge, Role::Loose]);
        let mut writers = Vec::new();
        for (number, role) in roles.into_iter().enumerate() {
            let writer = Writer {
                traffic: self.clone(),
                role,
                number,
                prepared: 0,
                rng: Rng::new(self.seed.wrapping_mul(1000).wrapping_add(number as u64)),
                address: address.clone(),
                shared: Arc::clone(&shared),
                unflushed: Vec::new(),
            };
            writers.push(spawn(&format!("{role:?} {number}"), move || writer.write()));
        }
        for (database, number) in [(DATABASE, 500), (OTHER_DATABASE, 501)] {
            let rng = Rng::new(self.seed.wrapping_mul(1000).wrapping_add(number));
            let (address, shared) = (address.clone(), Arc::clone(&shared));
            writers.push(spawn(database, move || unrelated(&address, &shared, rng, database)));
        }
        Running { writers, shared, address }
    }
}

fn spawn(name: &str, job: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new().name(name.to_owned()).spawn(job).expect("a thread")
}

impl Running {
    /// Transactions with facts whose commit was acknowledged so far.
    #[must_use]
    pub fn transactions(&self) -> usize {
        self.shared.transactions.load(Ordering::Relaxed)
    }

    /// The messages outside of transactions from this number on, in the order in which they were about
    /// to be emitted.
    #[must_use]
    pub fn loose(&self, from: usize) -> Vec<Loose> {
        lock(&self.shared.loose).get(from..).unwrap_or_default().to_vec()
    }

    /// When quick transactions were committed, and how long each COMMIT took.
    #[must_use]
    pub fn commits(&self) -> Vec<(Instant, Duration)> {
        lock(&self.shared.commits).clone()
    }

    /// Whether a writer has panicked.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        !self.shared.stop.load(Ordering::Relaxed)
            && self.writers.iter().any(JoinHandle::is_finished)
    }

    /// Has everybody finish what they are at, and leaves nothing prepared.
    ///
    /// # Panics
    ///
    /// When a writer did.
    #[track_caller]
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            writer.join().unwrap_or_else(|_| panic!("a writer panicked"));
        }
        let mut client = self.address.connect(DATABASE).expect("a connection for who cleans up");
        resolve(&mut client, "", &mut Rng::new(0)).expect("nothing to stay prepared");
    }
}

impl Address {
    fn connect(&self, database: &str) -> Result<Client, Error> {
        postgres::Config::new()
            .host_path(&self.host)
            .port(self.port)
            .user("postgres")
            .dbname(database)
            .application_name("traffic")
            .connect(postgres::NoTls)
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sleeps, unless it is over.
    fn pause(&self, length: Duration) {
        let end = Instant::now() + length;
        while !self.is_over() && Instant::now() < end {
            thread::sleep((end - Instant::now()).min(NAP));
        }
    }
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Commit,
    Rollback,
    /// Prepared, and after a while committed or rolled back.
    Prepare(bool, Duration),
}

struct Writer {
    traffic: Traffic,
    role: Role,
    number: usize,
    /// How many transactions were prepared.
    prepared: usize,
    rng: Rng,
    address: Address,
    shared: Arc<Shared>,
    /// Messages outside of transactions that a crash may still undo.
    unflushed: Vec<usize>,
}

impl Writer {
    fn write(mut self) {
        let mut connection = None;
        while !self.shared.is_over() {
            let client = match connection.take() {
                Some(client) => connection.insert(client),
                None => match self.connect() {
                    Ok(client) => connection.insert(client),
                    // Whatever the reason: there are servers that are killed here.
                    Err(_) => {
                        self.shared.pause(NAP);
                        continue;
                    }
                },
            };
            match self.turn(client) {
                Ok(()) => {}
                Err(e) if is_gone(client, &e) => {
                    connection = None;
                    self.unflushed.clear();
                }
                Err(e) => panic!("a {:?} writer: {e} ({:?})", self.role, e.as_db_error()),
            }
        }
    }

    fn connect(&mut self) -> Result<Client, Error> {
        let mut client = self.address.connect(DATABASE)?;
        // What it had prepared when the connection broke.
        resolve(&mut client, &self.gid(""), &mut self.rng)?;
        Ok(client)
    }

    fn gid(&self, which: &str) -> String {
        format!("traffic-{}-{which}", self.number)
    }

    /// One transaction or so, and the pause behind it.
    fn turn(&mut self, client: &mut Client) -> Result<(), Error> {
        let rng = &mut self.rng;
        match self.role {
            Role::Quick => {
                let (facts, payload) = match rng.percent(10) {
                    true => (rng.between(1..=3), PAYLOAD_MAX),
                    false => (rng.between(0..=50), PAYLOAD_USUAL),
                };
                let end = if rng.percent(30) { End::Rollback } else { End::Commit };
                let pause = Duration::from_millis(rng.between(0..=800) as u64);
                self.transaction(client, facts, payload, Duration::ZERO, end)?;
                self.shared.pause(pause);
            }
            Role::Slow => {
                let facts = rng.between(1..=50);
                let open = Duration::from_millis(rng.between(0..=4000) as u64);
                let end = match rng.below(10) {
                    0..4 => End::Commit,
                    4 => End::Rollback,
                    choice => End::Prepare(choice < 8, open),
                };
                self.transaction(client, facts, PAYLOAD_USUAL, open, end)?;
            }
            Role::Huge => {
                let facts = self.traffic.huge;
                self.transaction(client, facts, 200, Duration::ZERO, End::Commit)?;
                self.shared.pause(Duration::from_secs(self.traffic.huge_interval));
            }
            Role::Loose => {
                let pause = Duration::from_millis(rng.between(0..=600) as u64);
                self.loose(client)?;
                self.transaction(client, 1, PAYLOAD_USUAL, Duration::ZERO, End::Commit)?;
                self.shared.pause(pause);
            }
        }
        Ok(())
    }

    fn transaction(
        &mut self,
        client: &mut Client,
        facts: usize,
        payload: usize,
        open: Duration,
        end: End,
    ) -> Result<(), Error> {
        client.batch_execute("BEGIN")?;
        let range = self.traffic.range(self.role);
        // Sorted by name, so that two transactions never wait for each other.
        let mut keys: Vec<(String, usize)> = (0..facts.min(8))
            .map(|_| self.rng.below(range))
            .map(|number| (self.role.key(number), number))
            .collect();
        keys.sort();
        keys.dedup();
        let names: Vec<&str> = keys.iter().map(|(name, _)| name.as_str()).collect();
        let lock = "SELECT id, seq FROM aggregates WHERE id = ANY($1) ORDER BY id FOR UPDATE";
        let mut seqs = BTreeMap::new();
        for row in client.query(lock, &[&names])? {
            seqs.insert(row.get::<_, String>(0), row.get::<_, i64>(1));
        }

        let mut left = facts;
        let mut emitted = 0;
        while left > 0 {
            self.noise(client)?;
            let count = self.rng.between(1..=left).min(STATEMENT);
            left -= count;
            if self.rng.percent(50) {
                let before = seqs.clone();
                client.batch_execute("SAVEPOINT s")?;
                self.emit(client, &keys, &mut seqs, count, payload)?;
                if self.rng.percent(20) {
                    client.batch_execute("ROLLBACK TO SAVEPOINT s")?;
                    seqs = before;
                    continue;
                }
                client.batch_execute("RELEASE SAVEPOINT s")?;
            } else {
                self.emit(client, &keys, &mut seqs, count, payload)?;
            }
            emitted += count;
            if !open.is_zero() {
                self.shared.pause(open / 2);
            }
        }
        let (ids, seqs): (Vec<String>, Vec<i64>) = seqs.into_iter().unzip();
        let update = "UPDATE aggregates a SET seq = s.seq
            FROM unnest($1::text[], $2::bigint[]) AS s(id, seq) WHERE a.id = s.id";
        client.execute(update, &[&ids, &seqs])?;
        self.end(client, end, emitted)
    }

    fn end(&mut self, client: &mut Client, end: End, emitted: usize) -> Result<(), Error> {
        let committed = match end {
            End::Rollback => {
                client.batch_execute("ROLLBACK")?;
                false
            }
            End::Commit => {
                let begun = Instant::now();
                client.batch_execute("COMMIT")?;
                if self.role == Role::Quick {
                    lock(&self.shared.commits).push((begun, begun.elapsed()));
                }
                emitted > 0
            }
            End::Prepare(commits, after) => {
                self.prepared += 1;
                let gid = self.gid(&self.prepared.to_string());
                client.batch_execute(&format!("PREPARE TRANSACTION '{gid}'"))?;
                self.shared.pause(after);
                let verb = if commits { "COMMIT" } else { "ROLLBACK" };
                client.batch_execute(&format!("{verb} PREPARED '{gid}'"))?;
                commits && emitted > 0
            }
        };
        if committed {
            self.shared.transactions.fetch_add(1, Ordering::Relaxed);
            // Its commit record lies behind them and was flushed.
            let mut loose = lock(&self.shared.loose);
            self.unflushed.drain(..).for_each(|number| loose[number].durable = true);
        }
        Ok(())
    }

    /// Emits facts and writes them down.
    fn emit(
        &mut self,
        client: &mut Client,
        keys: &[(String, usize)],
        seqs: &mut BTreeMap<String, i64>,
        count: usize,
        payload: usize,
    ) -> Result<(), Error> {
        let mut rows = Rows::default();
        for _ in 0..count {
            let (name, number) = &keys[self.rng.below(keys.len())];
            let seq = seqs.get_mut(name).expect("the aggregate's row is there");
            *seq += 1;
            let length = log_uniform(&mut self.rng, payload);
            let event = self.traffic.event(&mut self.rng, self.role, *number, length);
            let content = event.to_bytes();
            let fact = Emitted::of(&event, &content);
            rows.contents.push(content);
            rows.ids.push(fact.fact_id);
            rows.kinds.push(fact.aggregate_type);
            rows.keys.push(fact.aggregate_id);
            rows.events.push(fact.event_type);
            rows.digests.push(fact.digest.cast_signed());
            rows.seqs.push(*seq);
        }
        let insert = "INSERT INTO truth
            SELECT id, kind, key, event, seq, digest, pg_current_xact_id()::text::bigint,
                   pg_logical_emit_message(true, $1, content)
            FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
                        $8::bytea[])
                WITH ORDINALITY AS f(id, kind, key, event, seq, digest, content, place)
            ORDER BY place";
        let Rows { ids, kinds, keys, events, seqs, digests, contents } = &rows;
        let prefix = &self.traffic.prefix;
        client.execute(insert, &[prefix, ids, kinds, keys, events, seqs, digests, contents])?;
        Ok(())
    }

    /// Emits a fact outside of any transaction, also where there is one around it.
    fn loose(&mut self, client: &mut Client) -> Result<(), Error> {
        let number = self.rng.below(self.traffic.range(Role::Loose));
        let length = log_uniform(&mut self.rng, PAYLOAD_USUAL);
        let event = self.traffic.event(&mut self.rng, Role::Loose, number, length);
        let content = event.to_bytes();
        let emitted = Emitted::of(&event, &content);
        let place = {
            let mut loose = lock(&self.shared.loose);
            loose.push(Loose { emitted, lsn: None, durable: false });
            loose.len() - 1
        };
        let emit = "SELECT pg_logical_emit_message(false, $1, $2::bytea)::text";
        let row = client.query_one(emit, &[&self.traffic.prefix, &content])?;
        let lsn: Lsn = row.get::<_, &str>(0).parse().expect("a log position");
        lock(&self.shared.loose)[place].lsn = Some(lsn);
        self.unflushed.push(place);
        Ok(())
    }

    /// What comes between facts: most of it is nothing to the relay.
    fn noise(&mut self, client: &mut Client) -> Result<(), Error> {
        let foreign = "SELECT pg_logical_emit_message($1, $2, $3::bytea)";
        let content = [0_u8, 0xff, b'{'].as_slice();
        match self.rng.below(10) {
            0 => {
                client.execute(foreign, &[&true, &format!("{}x", self.traffic.prefix), &content])?
            }
            1 => client.execute(foreign, &[&false, &"elsewhere", &content])?,
            2 => client.execute(foreign, &[&self.rng.percent(50), &"", &content])?,
            3 => client.execute("INSERT INTO rows (note) VALUES (repeat('n', 100))", &[])?,
            4 => {
                self.loose(client)?;
                0
            }
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
    seqs: Vec<i64>,
    digests: Vec<i64>,
    contents: Vec<Vec<u8>>,
}

/// Ends transactions that were left prepared, one way or the other.
fn resolve(client: &mut Client, begin: &str, rng: &mut Rng) -> Result<(), Error> {
    let query = "SELECT gid FROM pg_prepared_xacts WHERE starts_with(gid, $1)";
    for row in client.query(query, &[&begin])? {
        let verb = if rng.percent(50) { "COMMIT" } else { "ROLLBACK" };
        client.batch_execute(&format!("{verb} PREPARED '{}'", row.get::<_, &str>(0)))?;
    }
    Ok(())
}

/// Writes rows, makes, changes and drops tables, and now and then does much at once.
fn unrelated(address: &Address, shared: &Shared, mut rng: Rng, database: &str) {
    let mut connection = None;
    while !shared.is_over() {
        let client: &mut Client = match connection.take() {
            Some(client) => connection.insert(client),
            None => match address.connect(database) {
                Ok(client) => connection.insert(client),
                Err(_) => {
                    shared.pause(NAP);
                    continue;
                }
            },
        };
        let done = match rng.below(20) {
            0 => client.batch_execute(
                "CREATE TABLE IF NOT EXISTS churn (id int PRIMARY KEY, note text);
                 INSERT INTO churn SELECT n, repeat('c', 50) FROM generate_series(1, 200) n;
                 ALTER TABLE churn ADD COLUMN more int DEFAULT 7;
                 UPDATE churn SET more = id; TRUNCATE churn; DROP TABLE churn",
            ),
            1 => client.batch_execute(
                "BEGIN; CREATE TABLE never (id int); INSERT INTO never SELECT generate_series(1, 50);
                 ROLLBACK",
            ),
            2 => client.batch_execute(
                "CREATE TABLE IF NOT EXISTS bulk (id int, note text);
                 INSERT INTO bulk SELECT n, repeat('b', 100) FROM generate_series(1, 2000) n;
                 DELETE FROM bulk WHERE id % 2 = 0; TRUNCATE bulk",
            ),
            _ => client.batch_execute(
                "CREATE TABLE IF NOT EXISTS lines (id bigserial PRIMARY KEY, note text);
                 INSERT INTO lines (note) SELECT repeat('l', 200) FROM generate_series(1, 20)",
            ),
        };
        match done {
            Ok(()) => shared.pause(Duration::from_millis(rng.between(0..=300) as u64)),
            Err(e) if is_gone(client, &e) => connection = None,
            Err(e) => panic!("unrelated statements: {e} ({:?})", e.as_db_error()),
        }
    }
}

/// Whether the server has ended the session: `admin_shutdown`, `crash_shutdown`,
/// `cannot_connect_now`.
fn is_gone(client: &Client, error: &Error) -> bool {
    let shutdown = |code: &str| matches!(code, "57P01" | "57P02" | "57P03");
    client.is_closed()
        || error.is_closed()
        || error.code().is_some_and(|code| shutdown(code.code()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
