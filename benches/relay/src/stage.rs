//! The servers of a benchmark, and what it is to watch a process drain a slot.

use crate::proc::{self, Usage};
use crate::shape::{PREFIX, Shape};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testkit::{Kafka, Lsn, Owlpost, Postgres, owlpost, wait};

pub const PUBLICATION: &str = "facts";

/// How long one drain may take.
pub const LIMIT: Duration = Duration::from_secs(600);

/// What is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Subject {
    /// The relay: the binary as it ships, which make builds.
    #[arg(long, default_value = "target/dist/owlpost", overrides_with = "binary")]
    pub binary: PathBuf,
    /// A setting of the relay, NAME=VALUE; any number of times.
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// The folder that results are added to.
    #[arg(long, default_value = "target/performance")]
    pub out: PathBuf,
}

impl Subject {
    /// How long facts gather in a Kafka transaction, in milliseconds.
    pub fn transaction_interval_ms(&self) -> u64 {
        let mut set = self.set.iter().filter_map(|set| set.strip_prefix("TRANSACTION_INTERVAL="));
        set.next_back().map_or(50, |text| {
            let ms = text.strip_suffix("ms").and_then(|ms| ms.parse().ok());
            let s = || text.strip_suffix('s').and_then(|s| Some(s.parse::<u64>().ok()? * 1000));
            ms.or_else(s).unwrap_or_else(|| panic!("{text}: give TRANSACTION_INTERVAL in ms or s"))
        })
    }
}

/// What the relay promises to consumers while it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Delivery {
    #[default]
    AtLeastOnce,
    /// In Kafka transactions; consumers read committed records.
    ExactlyOnce,
    /// Both in turns, in one run.
    Both,
}

impl Delivery {
    pub fn has_at_least_once(self) -> bool {
        self != Self::ExactlyOnce
    }

    pub fn has_exactly_once(self) -> bool {
        self != Self::AtLeastOnce
    }
}

/// A PostgreSQL with one publication, and the relay to be run.
#[derive(Debug)]
pub struct Stage {
    pub postgres: Postgres,
    binary: PathBuf,
    settings: Vec<(String, String)>,
}

impl Stage {
    /// With room for so many slots.
    pub fn new(subject: &Subject, slots: usize) -> Self {
        let postgres = Postgres::builder()
            .setting("max_replication_slots", &slots.to_string())
            .setting("max_wal_size", "8GB")
            .start();
        postgres.client().batch_execute(&format!("CREATE PUBLICATION {PUBLICATION}")).unwrap();
        let setting = |text: &String| {
            let (name, value) = text.split_once('=').expect("a setting as NAME=VALUE");
            (name.to_owned(), value.to_owned())
        };
        let settings = subject.set.iter().map(setting).collect();
        Self { postgres, binary: subject.binary.clone(), settings }
    }

    pub fn create_slot(&self, slot: &str) {
        self.sql(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    }

    pub fn drop_slot(&self, slot: &str) {
        self.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    }

    fn sql(&self, sql: &str) {
        // A walsender may need a moment to notice that its client has gone.
        wait::until(sql, wait::LIMIT, || self.postgres.client().batch_execute(sql).is_ok());
    }

    /// The relay, not started.
    pub fn relay(&self, slot: &str, bootstrap: &str) -> owlpost::Command {
        let command = Owlpost::command(&self.binary)
            .env("MASTER_DATABASE_URL", self.postgres.url())
            .env("KAFKA_BROKERS", bootstrap)
            .env("WAL_PREFIX", PREFIX)
            .env("REPLICATION_SLOT_NAME", slot)
            .env("PUBLICATION_NAME", PUBLICATION);
        let settings = self.settings.iter();
        settings.fold(command, |command, (name, value)| command.env(name, value))
    }

    /// The same in Kafka transactions.
    pub fn relay_once(&self, slot: &str, bootstrap: &str) -> owlpost::Command {
        self.relay(slot, bootstrap).env("DELIVERY", "exactly-once")
    }

    /// Whether the slot is confirmed there, or at the end of the last commit before it: what lies between is a message
    /// outside of transactions that is none of the relay's.
    pub fn is_confirmed(&self, slot: &str, end: Lsn) -> bool {
        let confirmed = format!(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"
        );
        let target = Lsn(end.0.saturating_sub(END_MESSAGE_BYTES));
        self.postgres.ask(&confirmed).parse::<Lsn>().unwrap() >= target
    }

    /// Waits until the slot is confirmed there, and until the relay has told of so many facts, which it does once a
    /// second. Then ends it, as an operator would.
    pub fn finish(&self, relay: Owlpost, slot: &str, end: Lsn, facts: usize) -> Counted {
        relay.wait_until("the slot to be confirmed", wait::LIMIT, || self.is_confirmed(slot, end));
        relay.wait_until("the relay to count its facts", wait::LIMIT, || {
            Counted::of(&relay).is_some_and(|counted| counted.facts >= facts)
        });
        let counted = Counted::of(&relay).expect("metrics that were there just now");
        let status = relay.stop(wait::LIMIT);
        assert_eq!(status.code(), Some(0), "{}", relay.log_text());
        counted
    }

    /// Starts a reader and watches the walsender that serves it, until `end` says when it was done.
    pub fn watch<T: Sync>(
        &self,
        slot: &str,
        start: impl FnOnce() -> T,
        pid: impl Fn(&T) -> u32,
        end: impl FnOnce(&T) -> Instant,
    ) -> (Watched, T) {
        let mut client = self.postgres.client();
        let active = format!(
            "SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = '{slot}'"
        );
        let active = client.prepare(&active).unwrap();
        let done = AtomicBool::new(false);
        let begun = Instant::now();
        let reader = start();
        let reader_pid = pid(&reader);
        let watch = || {
            let mut walsender = 0_i32;
            while walsender == 0 && !done.load(Ordering::Relaxed) {
                walsender = client.query_one(&active, &[]).unwrap().get(0);
                std::thread::sleep(Duration::from_micros(200));
            }
            let streaming = (walsender != 0).then(Instant::now);
            let (mut usage, mut peak_rss) = (Usage::default(), 0);
            loop {
                let last = done.load(Ordering::Relaxed);
                usage = Usage::of(walsender.cast_unsigned()).unwrap_or(usage);
                peak_rss = proc::peak_rss(reader_pid).unwrap_or(peak_rss);
                if last {
                    return (streaming, usage, peak_rss);
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        };
        let (ended, (streaming, walsender, peak_rss)) = std::thread::scope(|scope| {
            let watch = scope.spawn(watch);
            let over = Over(&done);
            let ended = end(&reader);
            drop(over);
            (ended, watch.join().unwrap())
        });
        // A drain that was over before it was seen to begin counts from the start of the process.
        let from = streaming.filter(|streaming| *streaming < ended).unwrap_or(begun);
        let watched = Watched {
            seconds: (ended - from).as_secs_f64(),
            whole_seconds: (ended - begun).as_secs_f64(),
            walsender,
            peak_rss,
        };
        (watched, reader)
    }
}

/// Ends the watch, also where what is watched has failed.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// More than the record of the message at the end takes of the log, with what a page's head may add.
const END_MESSAGE_BYTES: u64 = 128;

/// What was seen of a reader from outside.
#[derive(Debug, Clone, Copy)]
pub struct Watched {
    /// From the moment that the server gave it the slot, to the end.
    pub seconds: f64,
    /// From the start of the process, to the end.
    pub whole_seconds: f64,
    pub walsender: Usage,
    pub peak_rss: u64,
}

/// What the relay counts itself, by its metrics.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// Published.
    pub facts: usize,
    /// Of the replication stream.
    pub received_bytes: f64,
    pub batches: f64,
    /// Answered Produce requests.
    pub requests: f64,
    /// Seconds from commit to acknowledgement, of all facts together.
    pub commit_to_ack: f64,
}

impl Counted {
    pub fn of(relay: &Owlpost) -> Option<Self> {
        let scrape = relay.scrape().ok()?;
        let produce = [("api", "Produce")];
        Some(Self {
            facts: scrape.sum("owlpost_facts_total") as usize,
            received_bytes: scrape.sum("owlpost_received_bytes_total"),
            batches: scrape.sum("owlpost_batch_records_count"),
            requests: scrape.value("owlpost_kafka_request_seconds_count", &produce).unwrap_or(0.0),
            commit_to_ack: scrape.sum("owlpost_commit_to_ack_seconds_sum"),
        })
    }
}

/// What one reader did with one backlog.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// From the moment that the server gave it the slot, to the end.
    pub seconds: f64,
    /// From the start of the process, to the end.
    pub whole_seconds: f64,
    pub reader: Usage,
    pub walsender: Usage,
    pub broker: Option<Usage>,
    /// Of the reader, in bytes.
    pub peak_rss: u64,
    /// Reads of the socket, where the reader counts them.
    pub reads: Option<usize>,
    pub counted: Option<Counted>,
    /// Records that were checked where they arrived: each fact once, in order, to the byte.
    pub checked: Option<usize>,
}

impl Outcome {
    pub fn new(watched: Watched, reader: Usage) -> Self {
        Self {
            seconds: watched.seconds,
            whole_seconds: watched.whole_seconds,
            reader,
            walsender: watched.walsender,
            broker: None,
            peak_rss: watched.peak_rss,
            reads: None,
            counted: None,
            checked: None,
        }
    }
}

/// Creates all topics of a shape.
pub fn create_topics(kafka: &Kafka, shape: &Shape) {
    shape.topic_names().for_each(|topic| kafka.create_topic(&topic, shape.partitions, &[]));
}
