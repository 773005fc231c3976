//! The relays: one that should always run, now and then a second beside it.

use crate::arguments::Delivery;
use crate::board::Board;
use crate::invariant::Invariant;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use testkit::process::Signal;
use testkit::{Kafka, Owlpost, Postgres, Proxy, owlpost, wait};

/// The relay's settings: shorter than the defaults, so that more happens in a minute.
pub(crate) const LEASE: Duration = Duration::from_secs(4);
pub(crate) const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(6);
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);
const SETTINGS: [(&str, &str); 9] = [
    ("LEASE", "4s"),
    ("WAL_SENDER_TIMEOUT", "6s"),
    ("REQUEST_TIMEOUT", "5s"),
    ("SHUTDOWN_TIMEOUT", "8s"),
    ("STALL_TIMEOUT", "2s"),
    ("STATUS_INTERVAL", "1s"),
    ("BACKOFF_MAX", "2s"),
    // Whoever is started while a server is away waits for it.
    ("STARTUP_TIMEOUT", "0s"),
    ("METADATA_MAX_AGE", "5s"),
];
/// And those of Kafka transactions: a relay that is away for longer than most faults last has lost its own.
const OF_TRANSACTIONS: [(&str, &str); 3] = [
    ("DELIVERY", "exactly-once"),
    ("TRANSACTION_INTERVAL", "200ms"),
    ("TRANSACTION_TIMEOUT", "8s"),
];

/// The exit code of a relay whose transactional id another has taken.
pub(crate) const FENCED: i32 = 14;

/// And what it says then, as a standby or at its end.
const STANDS_BY: &str = "this one waits for the slot as its standby";
const ENDS_FENCED: &str = "nothing more is published here";

/// The word for such relays in the table.
pub(crate) const FENCED_RELAYS: &str = "relays fenced";

/// What was on its way when a fault was healed may come so much later, and fence whoever is there.
const LATE: Duration = Duration::from_secs(15);

/// What the slot is called.
pub(crate) const SLOT: &str = "factlib_slot";

/// All relays of a run.
#[derive(Debug)]
pub(crate) struct Fleet {
    command: owlpost::Command,
    delivery: Delivery,
    started: AtomicUsize,
    members: Mutex<Vec<Member>>,
    log: Mutex<File>,
    peak_rss: Mutex<u64>,
}

/// A relay that was started.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) relay: Arc<Owlpost>,
    /// Stopped by SIGSTOP: it answers nothing.
    pub(crate) frozen: bool,
}

/// What a relay says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) state: String,
    pub(crate) published: u64,
}

/// How a relay is to be started.
#[derive(Debug)]
pub(crate) struct Setting<'s> {
    pub(crate) binary: &'s Path,
    pub(crate) prefix: &'s str,
    pub(crate) postgres: &'s Proxy,
    pub(crate) kafka: &'s Kafka,
    pub(crate) bug: Option<&'s str>,
    pub(crate) delivery: Delivery,
    /// Where the relays' logs are gathered.
    pub(crate) log: PathBuf,
}

impl Fleet {
    pub(crate) fn new(setting: &Setting<'_>) -> Self {
        let mut command = Owlpost::command(setting.binary)
            .env("SRC_SERVICE_NAME", setting.prefix)
            .env("WAL_PREFIX", setting.prefix)
            .env("MASTER_DATABASE_URL", url(setting.postgres))
            .env("KAFKA_BROKERS", setting.kafka.proxied_bootstrap())
            .env("LOG_FORMAT", "human");
        let of_transactions = OF_TRANSACTIONS.iter().filter(|_| setting.delivery.is_exactly_once());
        for (name, value) in SETTINGS.iter().chain(of_transactions) {
            command = command.env(name, value);
        }
        if let Some(bug) = setting.bug {
            command = command.env("OWLPOST_SEEDED_BUG", bug);
        }
        let log =
            File::create(&setting.log).unwrap_or_else(|e| panic!("{}: {e}", setting.log.display()));
        Self {
            command,
            delivery: setting.delivery,
            started: AtomicUsize::new(0),
            members: Mutex::default(),
            log: Mutex::new(log),
            peak_rss: Mutex::default(),
        }
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn members(&self) -> Vec<Member> {
        self.locked().clone()
    }

    /// The relay that was started first.
    pub(crate) fn first(&self) -> Option<Arc<Owlpost>> {
        self.locked().first().map(|member| Arc::clone(&member.relay))
    }

    pub(crate) fn start(&self) -> Arc<Owlpost> {
        let relay = Arc::new(self.next().spawn());
        self.locked().push(Member { relay: Arc::clone(&relay), frozen: false });
        relay
    }

    /// One that has a way of its own to PostgreSQL, is patient, and is not looked after.
    pub(crate) fn start_apart(&self, postgres: &Proxy, lease: Duration) -> Arc<Owlpost> {
        let command = self.next().env("MASTER_DATABASE_URL", url(postgres));
        let seconds = |length: Duration| format!("{}s", length.as_secs());
        let command = command.env("LEASE", seconds(lease));
        Arc::new(command.env("WAL_SENDER_TIMEOUT", seconds(lease + Duration::from_secs(5))).spawn())
    }

    /// What starts the next relay. Every second one stands by where another has taken its place, and the others end.
    fn next(&self) -> owlpost::Command {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        match self.delivery {
            Delivery::AtLeastOnce => self.command.clone(),
            Delivery::ExactlyOnce => {
                self.command.clone().env("FENCED_POLICY", ["exit", "standby"][number % 2])
            }
        }
    }

    /// Runs a command of the relay's binary to its end: exit code and what it said.
    pub(crate) fn run(&self, arguments: &[&str], limit: Duration) -> (Option<i32>, String) {
        let command = arguments.iter().fold(self.command.clone(), |command, one| command.arg(one));
        let process = command.spawn();
        let code = self.wait_exit(&process, limit);
        (code, format!("{}{}", process.stdout(), process.stderr()))
    }

    /// No longer expected to run.
    fn remove(&self, relay: &Arc<Owlpost>) {
        self.note_usage(relay);
        self.locked().retain(|member| !Arc::ptr_eq(&member.relay, relay));
    }

    /// Keeps what it has said.
    fn keep_log(&self, relay: &Owlpost, how: &str, board: &Board) {
        if self.delivery.is_exactly_once() {
            board.seen(FENCED_RELAYS, fenced(relay));
        }
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(log, "{}===== relay {} {how} =====", relay.log_text(), relay.pid());
    }

    pub(crate) fn kill(&self, relay: &Arc<Owlpost>, board: &Board) {
        self.remove(relay);
        relay.kill9();
        self.keep_log(relay, "was killed", board);
    }

    /// Asks it to stop, as an operator would: its exit code, and whether that was in time.
    pub(crate) fn stop(&self, relay: &Arc<Owlpost>, board: &Board) -> Option<i32> {
        self.remove(relay);
        relay.signal(Signal::SIGTERM);
        let code = self.wait_exit(relay, SHUTDOWN_TIMEOUT + Duration::from_secs(7));
        let words = || format!("on SIGTERM the relay ended with {code:?}, not 0 or 7 in time");
        let is_fenced = code == Some(FENCED) && self.delivery.is_exactly_once();
        board.check(Invariant::Loud, matches!(code, Some(0 | 7)) || is_fenced, words);
        if code.is_none() {
            relay.kill9();
        }
        self.keep_log(relay, &format!("was stopped: {code:?}"), board);
        code
    }

    /// The exit code, or `None` if there is none in time.
    pub(crate) fn wait_exit(&self, relay: &Owlpost, limit: Duration) -> Option<i32> {
        wait::poll("the relay to end", limit, || (!relay.is_running()).then_some(())).ok()?;
        relay.wait_exit(limit).code()
    }

    /// No longer looked after: the caller expects it to end by itself.
    pub(crate) fn release(&self, relay: &Arc<Owlpost>) {
        self.remove(relay);
    }

    /// Keeps the log of a relay that was released and has ended.
    pub(crate) fn bury(&self, relay: &Owlpost, how: &str, board: &Board) {
        self.keep_log(relay, how, board);
    }

    /// Wakes up a frozen relay that is no longer looked after.
    pub(crate) fn thaw(&self, relay: &Owlpost) {
        relay.signal(Signal::SIGCONT);
    }

    pub(crate) fn freeze(&self, relay: &Arc<Owlpost>, frozen: bool) {
        let mut members = self.locked();
        let member = members.iter_mut().find(|member| Arc::ptr_eq(&member.relay, relay));
        if let Some(member) = member {
            member.frozen = frozen;
        }
        relay.signal(if frozen { Signal::SIGSTOP } else { Signal::SIGCONT });
    }

    /// Relays that have ended although nobody told them to; each is replaced by a new one.
    pub(crate) fn look_after(&self, board: &Board) {
        for Member { relay, .. } in self.members() {
            self.note_usage(&relay);
            if relay.is_running() || !self.locked().iter().any(|m| Arc::ptr_eq(&m.relay, &relay)) {
                continue;
            }
            self.remove(&relay);
            let status = relay.wait_exit(Duration::from_secs(1));
            let log = relay.log_text();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            let others = self.members().len();
            // By another one, or by what one that is gone had sent.
            let was_rivalled =
                others > 0 || board.quiet_since().is_none_or(|since| since.elapsed() < LATE);
            let is_fenced = status.code() == Some(FENCED) && self.delivery.is_exactly_once();
            board.check(Invariant::Loud, is_fenced && was_rivalled, || {
                format!("a relay ended by itself with {status}:\n{}", last.join("\n"))
            });
            self.keep_log(&relay, "ended by itself", board);
            board.allow_repeats();
            if others == 0 || !is_fenced {
                self.start();
            }
        }
    }

    fn note_usage(&self, relay: &Owlpost) {
        if let Some(usage) = relay.usage() {
            let mut peak = self.peak_rss.lock().unwrap_or_else(PoisonError::into_inner);
            *peak = usage.peak_rss.max(*peak);
        }
    }

    /// The most resident memory that any relay has had, in bytes.
    pub(crate) fn peak_rss(&self) -> u64 {
        *self.peak_rss.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// `None` where it does not answer.
    pub(crate) fn health(&self) -> Option<Health> {
        if self.frozen {
            return None;
        }
        health(&self.relay)
    }

    /// How many files and sockets it has open.
    pub(crate) fn descriptors(&self) -> Option<usize> {
        let folder = format!("/proc/{}/fd", self.relay.pid());
        Some(std::fs::read_dir(folder).ok()?.count())
    }
}

/// The database behind a proxy.
fn url(postgres: &Proxy) -> String {
    format!("postgres://postgres@{}/{}", postgres.address(), testkit::postgres::DATABASE)
}

/// How often a relay says that another one has its transactional id.
pub(crate) fn fenced(relay: &Owlpost) -> usize {
    let log = relay.log_text();
    let times = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    // The last words are said twice: in the log, and as the reason of the end.
    times(STANDS_BY) + times(ENDS_FENCED).min(1)
}

pub(crate) fn health(relay: &Owlpost) -> Option<Health> {
    let health = relay.try_health()?;
    let state = health["state"].as_str()?.to_owned();
    Some(Health { state, published: health["published"].as_u64()? })
}

/// Waits until a relay says that it streams.
pub(crate) fn wait_streaming(relay: &Owlpost, limit: Duration) -> bool {
    let streams = || health(relay).is_some_and(|health| health.state == "streaming");
    wait::poll("a relay that streams", limit, || streams().then_some(())).is_ok()
}

/// How long the walsender of a relay that is gone keeps the slot; `None` if longer than it may.
pub(crate) fn wait_slot_free(postgres: &Postgres) -> Option<Duration> {
    let begun = Instant::now();
    let mut client = postgres.client();
    let limit = WAL_SENDER_TIMEOUT + Duration::from_secs(10);
    wait::poll("the slot to be free", limit, || {
        let slot = testkit::oracle::slot(&mut client, SLOT)?;
        slot.active_pid.is_none().then(|| begun.elapsed())
    })
    .ok()
}
