//! What the shipped binary takes, against its bars: its size, how long it needs to stream, what it uses when there is
//! nothing to do.

use crate::error::{Context as _, Error, Result};
use crate::owlpost::Usage;
use crate::workload::Workload;
use crate::{Kafka, Owlpost, Postgres, wait};
use std::path::Path;
use std::time::{Duration, Instant};

/// The largest file, in bytes.
const SIZE_MAX: u64 = 10 << 20;

/// From the start of the process to facts that flow.
const START_MAX: Duration = Duration::from_millis(100);

/// Processor time while idle, in thousandths of the time that passed.
const IDLE_PER_MILLE_MAX: f64 = 1.0;

/// Resident memory while idle that we aim at, in bytes.
const IDLE_RSS_AIM: u64 = 10 << 20;

/// What it may have. 2 to 3 MiB are its own; the rest is the binary and libc, around whose used pages the kernel maps
/// others: how many depends on how the file came into its cache.
const IDLE_RSS_MAX: u64 = 12 << 20;

/// How often it is started.
const STARTS: usize = 7;

/// How long it is watched while idle.
const IDLE: Duration = Duration::from_secs(20);

const LIMIT: Duration = Duration::from_secs(30);

/// What only a relay built for tests listens to: it is broken on purpose, or kills itself.
const FOR_TESTS: [&str; 2] = ["OWLPOST_SEEDED_BUG", "OWLPOST_FAIL_POINT"];

/// True for a binary that tests can break, which must not ship.
///
/// # Errors
///
/// When it cannot be read.
pub fn is_for_tests(binary: &Path) -> Result<bool> {
    let code = std::fs::read(binary).context(binary.display())?;
    let has = |word: &str| code.windows(word.len()).any(|bytes| bytes == word.as_bytes());
    Ok(FOR_TESTS.into_iter().any(has))
}

/// Measures a binary and says what was found.
///
/// # Errors
///
/// When a bar is missed, or the relay does not come up.
pub fn measure(binary: &Path, mut say: impl FnMut(&str)) -> Result<()> {
    if is_for_tests(binary)? {
        return Err(Error::new(format!("{}: built with seeded-bugs", binary.display())));
    }
    let size = std::fs::metadata(binary).context(binary.display())?.len();
    let (postgres, kafka) = (Postgres::builder().start(), Kafka::builder().start());
    kafka.create_topic("footprint.order", 4, &[]);
    let relay = || {
        let relay = Owlpost::command(binary).servers(&postgres, &kafka);
        relay.arg("run").env("SRC_SERVICE_NAME", "footprint")
    };
    let mut starts = Vec::new();
    let ready = |relay: &Owlpost| {
        let begun = Instant::now();
        while !relay.is_ready() {
            if begun.elapsed() > LIMIT {
                return Err(Error::new(format!("the relay is not ready within {LIMIT:?}")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    for nth in 0..=STARTS {
        let begun = Instant::now();
        let relay = relay().try_spawn()?;
        ready(&relay)?;
        // The first one makes publication and slot.
        if nth > 0 {
            starts.push(begun.elapsed());
        }
        relay.stop(LIMIT);
    }
    starts.sort_unstable();
    let start = starts[starts.len() / 2];

    let relay = relay().try_spawn()?;
    ready(&relay)?;
    Workload { facts: 1000, ..Workload::new("footprint", 1) }.run(&postgres);
    wait::until("the facts to be in Kafka", LIMIT, || {
        kafka.end_offsets("footprint.order").values().sum::<i64>() == 1000
    });
    let usage = || Usage::of(relay.pid()).ok_or_else(|| Error::new("the relay has ended"));
    let (begun, before) = (Instant::now(), usage()?);
    std::thread::sleep(IDLE);
    let after = usage()?;
    let busy = (after.cpu - before.cpu).as_secs_f64() / begun.elapsed().as_secs_f64() * 1000.0;
    relay.stop(LIMIT);

    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (size_max, idle_max) = (mib(SIZE_MAX), IDLE_PER_MILLE_MAX / 10.0);
    let (start, start_max) = (start.as_secs_f64() * 1e3, START_MAX.as_secs_f64() * 1e3);
    // Found, aimed at, and what it may be.
    let rows = [
        ("binary", mib(size), size_max, size_max, "MiB"),
        ("start to streaming, median", start, start_max, start_max, "ms"),
        ("idle processor time", busy / 10.0, idle_max, idle_max, "%"),
        ("idle resident memory", mib(after.rss), mib(IDLE_RSS_AIM), mib(IDLE_RSS_MAX), "MiB"),
    ];
    let mut missed = Vec::new();
    for (what, found, aim, bar, unit) in rows {
        let verdict = match found {
            found if found <= aim => "ok".to_owned(),
            found if found <= bar => format!("MISSED, and within {bar:.2}"),
            _ => "MISSED".to_owned(),
        };
        say(&format!("{what:28} {found:8.2} {unit:4} of {aim:6.2}  {verdict}"));
        if found > bar {
            missed.push(what);
        }
    }
    match missed.as_slice() {
        [] => Ok(()),
        missed => Err(Error::new(format!("over the bar: {}", missed.join(", ")))),
    }
}
