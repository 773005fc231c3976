//! Everything that takes part in a run.

use crate::arguments::Delivery;
use crate::board::Board;
use crate::fleet::{Fleet, LEASE, Member, REQUEST_TIMEOUT, SLOT};
use crate::invariant::Invariant;
use crate::judge::{Judge, Stall, wait_for};
use crate::transactions::{Tally, Transactions};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};
use testkit::traffic::Running;
use testkit::{Kafka, Lsn, Postgres, Proxy, oracle};

/// How often everything is looked at.
const TICK: Duration = Duration::from_millis(250);

/// How long after the last fault everything must be in Kafka and confirmed.
const HEALING: Duration = Duration::from_secs(60);

/// How long the log that is kept may take to follow: longer than any transaction stays open.
const FOLLOWING: Duration = Duration::from_secs(45);

/// The largest resident memory of a relay, in bytes.
pub(crate) const RSS_MAX: u64 = 64 << 20;

/// Files and sockets that a relay may have open.
const DESCRIPTORS_MAX: usize = 64;

/// How long CHECKPOINT may take.
pub(crate) const CHECKPOINT_MAX: Duration = Duration::from_secs(5);

/// How long after an answer consumers may wait for what was answered, and after everybody is gone for the end of what was
/// open, while brokers come and go.
const SEEN: Duration = Duration::from_secs(90);

/// Servers, proxies, relays, and who watches.
#[derive(Debug)]
pub(crate) struct Stage<'s> {
    pub(crate) delivery: Delivery,
    pub(crate) postgres: &'s Postgres,
    pub(crate) kafka: &'s Kafka,
    /// Before PostgreSQL.
    pub(crate) proxy: &'s Proxy,
    /// Of the facts.
    pub(crate) topics: Vec<String>,
    /// With exactly-once delivery.
    pub(crate) transactions: Option<Mutex<Transactions>>,
    pub(crate) fleet: Fleet,
    pub(crate) board: Board,
    pub(crate) traffic: Mutex<Running>,
    judge: Mutex<Judge>,
    /// Held for writing by whoever stops PostgreSQL, and for reading by whoever needs it to run.
    server: RwLock<()>,
    /// Where the log stood when PostgreSQL came back last: a slot that stands before it may have gone back
    /// to its last checkpoint.
    revived: Mutex<Lsn>,
    pub(crate) stall: Mutex<Stall>,
    over: AtomicBool,
}

impl<'s> Stage<'s> {
    pub(crate) fn new(
        (postgres, proxy): (&'s Postgres, &'s Proxy),
        (kafka, topics): (&'s Kafka, Vec<String>),
        fleet: Fleet,
        (board, judge): (Board, Judge),
        traffic: Running,
    ) -> Self {
        let delivery = board.delivery();
        let transactions = delivery.is_exactly_once().then(|| Transactions::new(kafka, &topics));
        Self {
            delivery,
            postgres,
            kafka,
            proxy,
            topics,
            transactions: transactions.map(Mutex::new),
            fleet,
            board,
            traffic: Mutex::new(traffic),
            judge: Mutex::new(judge),
            server: RwLock::new(()),
            revived: Mutex::default(),
            stall: Mutex::new(Stall::new()),
            over: AtomicBool::new(false),
        }
    }

    pub(crate) fn judge(&self) -> MutexGuard<'_, Judge> {
        lock(&self.judge)
    }

    pub(crate) fn keep_server(&self) -> RwLockReadGuard<'_, ()> {
        self.server.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_server(&self) -> RwLockWriteGuard<'_, ()> {
        self.server.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread that watches end.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Reads, compares and takes samples until the run is over.
    pub(crate) fn watch(&self) {
        let mut waiting = HashMap::new();
        let mut both_stream = None;
        while !self.over.load(Ordering::Relaxed) && !self.board.has_failed() {
            let begun = Instant::now();
            self.read_truth_if_there();
            {
                let mut judge = self.judge();
                judge.read_some(&self.board);
                lock(&self.stall).look(&judge, &self.board);
            }
            self.fleet.look_after(&self.board);
            self.sample(&mut waiting, &mut both_stream);
            if lock(&self.traffic).is_broken() {
                self.board.fail("a writer has panicked");
            }
            thread::sleep(TICK.saturating_sub(begun.elapsed()));
        }
    }

    fn read_truth_if_there(&self) {
        if let Ok(_server) = self.server.try_read() {
            self.judge().read_truth(self.postgres, &lock(&self.traffic), &self.board);
        }
    }

    /// What relays use and say.
    fn sample(
        &self,
        waiting: &mut HashMap<u32, (Instant, u64)>,
        both_stream: &mut Option<Instant>,
    ) {
        let peak = self.fleet.peak_rss();
        self.board.check(Invariant::Resources, peak <= RSS_MAX, || {
            format!("a relay had {} MiB resident", peak >> 20)
        });
        let members = self.fleet.members();
        for descriptors in members.iter().filter_map(Member::descriptors) {
            self.board.check(Invariant::Resources, descriptors <= DESCRIPTORS_MAX, || {
                format!("a relay has {descriptors} files and sockets open")
            });
        }
        let mut streaming = 0;
        for member in &members {
            let pid = member.relay.pid();
            let Some(health) = member.health() else {
                waiting.remove(&pid);
                continue;
            };
            streaming += usize::from(health.state == "streaming");
            if health.state != "waiting_for_slot" {
                waiting.remove(&pid);
                continue;
            }
            // What was on its way when it lost the slot may still be acknowledged, and is counted then.
            let settled = LEASE + REQUEST_TIMEOUT;
            let (since, published) =
                waiting.entry(pid).or_insert_with(|| (Instant::now(), health.published));
            if since.elapsed() < settled {
                *published = health.published;
                continue;
            }
            self.board.check(Invariant::Single, *published == health.published, || {
                format!(
                    "a relay without the slot has published {published} to {}",
                    health.published
                )
            });
        }
        // Behind a slow link a relay learns at the end of its lease that the slot is another's, and what is on
        // the page may be a second old.
        *both_stream = both_stream.filter(|_| streaming > 1);
        if streaming > 1 {
            both_stream.get_or_insert_with(Instant::now);
        }
        if members.len() > 1 {
            let both = both_stream.map_or(Duration::ZERO, |since| since.elapsed());
            self.board.check(Invariant::Single, both < LEASE + Duration::from_secs(2), || {
                format!("two relays have said for {both:?} that they stream")
            });
        }
    }

    /// After the last fault: waits until everything is in Kafka and confirmed, and closes the round.
    pub(crate) fn calm(&self) {
        let begun = Instant::now();
        let healed = self.lsn("SELECT pg_current_wal_flush_lsn()");
        let drained = wait_for("everything in Kafka and confirmed", HEALING, || {
            let confirmed = self.slot().is_some_and(|slot| slot.confirmed >= healed);
            confirmed && {
                let judge = self.judge();
                judge.missing(healed) == 0
            }
        });
        self.board.check(Invariant::Progress, drained, || {
            let (slot, missing) = (self.slot(), self.judge().missing(healed));
            format!("{HEALING:?} after the last fault {missing} facts before {healed} are missing; {slot:?}")
        });
        let took = begun.elapsed();
        {
            let _server = self.keep_server();
            let mut judge = self.judge();
            judge.read_to_end(&self.board);
            wait_for("what is committed to be visible", HEALING, || {
                judge.read_truth(self.postgres, &lock(&self.traffic), &self.board)
            });
            judge.close_round(healed, &self.board);
        }
        let begun = Instant::now();
        let followed = wait_for("the log that is kept to follow", FOLLOWING, || {
            self.checkpoint();
            thread::sleep(Duration::from_millis(400));
            self.slot().is_some_and(|slot| slot.restart >= healed)
        });
        self.board.check(Invariant::Retained, followed, || {
            format!("{FOLLOWING:?} after {healed} was confirmed: {:?}", self.slot())
        });
        let let_go = begun.elapsed();
        self.audit();
        let judge = self.judge();
        self.board.say(&format!(
            "calm: all in Kafka and confirmed after {:.1} s, WAL let go after {:.1} s; {} facts, {} repeats{}",
            took.as_secs_f64(),
            let_go.as_secs_f64(),
            judge.facts,
            judge.repeats(),
            if self.board.is_strict() { ", of which this round may have none" } else { "" }
        ));
    }

    /// Looks for partitions that are new.
    pub(crate) fn look_again(&self) {
        self.judge().look_again();
        if let Some(transactions) = &self.transactions {
            lock(transactions).look_again();
        }
    }

    /// After a kill and before a restart: whether everything that is confirmed is in Kafka. How many facts that is, and
    /// how many are to come. PostgreSQL must run and go on running.
    pub(crate) fn acknowledged(&self, confirmed: Lsn) -> (usize, usize) {
        self.judge().read_truth(self.postgres, &lock(&self.traffic), &self.board);
        if self.delivery.is_exactly_once() {
            // Markers are written behind the answer.
            wait_for("what is confirmed to be seen", SEEN, || {
                let mut judge = self.judge();
                judge.read_to_end(&self.board);
                judge.missing(confirmed) == 0
            });
        }
        let mut judge = self.judge();
        (judge.acknowledged(confirmed, &self.board), judge.backlog())
    }

    /// Whether a Kafka transaction is open; `None` where a broker does not say, or there are no transactions.
    pub(crate) fn is_open(&self) -> Option<bool> {
        lock(self.transactions.as_ref()?).is_open()
    }

    /// What became of Kafka transactions so far.
    pub(crate) fn tally(&self) -> Tally {
        Tally::of(self.kafka, &self.topics)
    }

    /// Nobody publishes any more: waits until Kafka has ended what was open, and looks whether each transaction of
    /// PostgreSQL is seen as a whole or not at all.
    pub(crate) fn look_whole(&self) {
        let begun = Instant::now();
        let over =
            wait_for("no Kafka transaction to be open", SEEN, || self.is_open() == Some(false));
        self.board.check(Invariant::Progress, over, || {
            format!("{SEEN:?} after nobody was left a Kafka transaction is still open")
        });
        if !over {
            return;
        }
        self.board.say(&format!(
            "  after {:.1} s no Kafka transaction is open",
            begun.elapsed().as_secs_f64()
        ));
        let _server = self.keep_server();
        let mut judge = self.judge();
        judge.read_to_end(&self.board);
        let known = wait_for("what is committed to be visible", HEALING, || {
            judge.read_truth(self.postgres, &lock(&self.traffic), &self.board)
        });
        assert!(known, "what is committed does not become visible");
        judge.look_whole(&self.board);
    }

    /// The relay's own audit, of what the judge has looked at, too.
    fn audit(&self) {
        let _server = self.keep_server();
        let arguments: &[&str] = match self.delivery {
            Delivery::AtLeastOnce => &["audit", "--accept-repeats"],
            Delivery::ExactlyOnce => &["audit"],
        };
        let (code, said) = self.fleet.run(arguments, HEALING);
        self.board.check(Invariant::Audited, code == Some(0), || {
            let last: Vec<&str> = said.lines().rev().take(5).collect();
            format!("the audit ended with {code:?}: {}", last.join(" | "))
        });
    }

    /// One CHECKPOINT, which must not take long.
    pub(crate) fn checkpoint(&self) {
        let Ok(mut client) = self.postgres.try_client() else { return };
        let begun = Instant::now();
        let done = client.batch_execute("CHECKPOINT");
        let took = begun.elapsed();
        if done.is_ok() {
            self.board.check(Invariant::Citizen, took <= CHECKPOINT_MAX, || {
                format!("CHECKPOINT took {took:?}")
            });
        }
    }

    /// PostgreSQL has come back.
    pub(crate) fn revived(&self) {
        *lock(&self.revived) = self.lsn("SELECT pg_current_wal_flush_lsn()");
    }

    /// Whether the server knows again what it was told before it went away.
    pub(crate) fn remembers(&self) -> bool {
        let revived = *lock(&self.revived);
        self.slot().is_some_and(|slot| slot.confirmed >= revived)
    }

    pub(crate) fn slot(&self) -> Option<oracle::Slot> {
        oracle::slot(&mut self.postgres.try_client().ok()?, SLOT)
    }

    pub(crate) fn lsn(&self, query: &str) -> Lsn {
        self.postgres.ask(query).parse().expect("a log position")
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
