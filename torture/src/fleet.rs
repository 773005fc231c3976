//! The relays: one that should always run, now and then a second beside it.

use crate::board::Board;
use crate::invariant::Invariant;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
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

/// What the slot is called.
pub(crate) const SLOT: &str = "factlib_slot";

/// All relays of a run.
#[derive(Debug)]
pub(crate) struct Fleet {
    command: owlpost::Command,
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
    /// Where the relays' logs are gathered.
    pub(crate) log: PathBuf,
}

impl Fleet {
    pub(crate) fn new(setting: &Setting<'_>) -> Self {
        let url = format!(
            "postgres://postgres@{}/{}",
            setting.postgres.address(),
            testkit::postgres::DATABASE
        );
        let mut command = Owlpost::command(setting.binary)
            .env("SRC_SERVICE_NAME", setting.prefix)
            .env("WAL_PREFIX", setting.prefix)
            .env("MASTER_DATABASE_URL", url)
            .env("KAFKA_BROKERS", setting.kafka.proxied_bootstrap())
            .env("LOG_FORMAT", "human");
        for (name, value) in SETTINGS {
            command = command.env(name, value);
        }
        if let Some(bug) = setting.bug {
            command = command.env("OWLPOST_SEEDED_BUG", bug);
        }
        let log =
            File::create(&setting.log).unwrap_or_else(|e| panic!("{}: {e}", setting.log.display()));
        Self {
            command,
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
        let relay = Arc::new(self.command.clone().spawn());
        self.locked().push(Member { relay: Arc::clone(&relay), frozen: false });
        relay
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
    fn keep_log(&self, relay: &Owlpost, how: &str) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(log, "{}===== relay {} {how} =====", relay.log_text(), relay.pid());
    }

    pub(crate) fn kill(&self, relay: &Arc<Owlpost>) {
        self.remove(relay);
        relay.kill9();
        self.keep_log(relay, "was killed");
    }

    /// Asks it to stop, as an operator would: its exit code, and whether that was in time.
    pub(crate) fn stop(&self, relay: &Arc<Owlpost>, board: &Board) -> Option<i32> {
        self.remove(relay);
        relay.signal(Signal::SIGTERM);
        let code = self.wait_exit(relay, SHUTDOWN_TIMEOUT + Duration::from_secs(7));
        let words = || format!("on SIGTERM the relay ended with {code:?}, not 0 or 7 in time");
        board.check(Invariant::Loud, matches!(code, Some(0 | 7)), words);
        if code.is_none() {
            relay.kill9();
        }
        self.keep_log(relay, &format!("was stopped: {code:?}"));
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
    pub(crate) fn bury(&self, relay: &Owlpost, how: &str) {
        self.keep_log(relay, how);
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
            board.check(Invariant::Loud, false, || {
                format!("a relay ended by itself with {status}:\n{}", last.join("\n"))
            });
            self.keep_log(&relay, "ended by itself");
            board.allow_repeats();
            self.start();
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
