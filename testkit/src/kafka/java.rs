//! Kafka's own Java programs: the foreign oracle for what we write.

use super::{Kafka, Record};
use crate::error::{Context as _, Error, Result};
use crate::process;
use crate::provision;
use crate::scratch;
use crate::versions;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::process::{Command, Output};
use std::sync::Arc;

const PARTITIONS: &str = include_str!("Partitions.java");
const LOG: &str = include_str!("Log.java");

impl Kafka {
    /// One of Kafka's Java programs with these arguments, not yet started.
    ///
    /// # Panics
    ///
    /// When Kafka is not installed, which a running broker excludes.
    #[must_use]
    pub fn java_command(&self, main_class: &str, arguments: &[&str]) -> Command {
        let mut command = provision::kafka(versions::KAFKA).expect("Kafka is installed").command();
        command.arg("-Xmx256m").arg(main_class).args(arguments);
        command
    }

    /// Runs one of Kafka's Java programs to its end.
    ///
    /// ```no_run
    /// # let kafka = testkit::Kafka::shared();
    /// let printed = kafka.java("org.apache.kafka.tools.consumer.ConsoleConsumer", &[
    ///     "--bootstrap-server", &kafka.bootstrap(), "--topic", "orders.order", "--from-beginning",
    ///     "--max-messages", "1", "--timeout-ms", "10000",
    ///     "--formatter-property", "print.key=true", "--formatter-property", "print.headers=true",
    /// ]);
    /// ```
    ///
    /// # Panics
    ///
    /// When it ends with another exit code than 0.
    #[track_caller]
    pub fn java(&self, main_class: &str, arguments: &[&str]) -> Output {
        process::run(main_class, &mut self.java_command(main_class, arguments))
            .unwrap_or_else(|e| panic!("{e}"))
    }
}

impl Kafka {
    /// What [`read_topic`](Self::read_topic) reads, read by Kafka's own consumer.
    ///
    /// # Panics
    ///
    /// When Java does not run.
    #[must_use]
    #[track_caller]
    pub fn read_topic_by_java(&self, topic: &str) -> Vec<Record> {
        self.read_by_java(topic, "read_uncommitted")
    }

    /// Of it, what a consumer of committed records sees: up to the oldest transaction that is open, and nothing of
    /// those that were aborted.
    ///
    /// # Panics
    ///
    /// When Java does not run.
    #[must_use]
    #[track_caller]
    pub fn read_committed_by_java(&self, topic: &str) -> Vec<Record> {
        self.read_by_java(topic, "read_committed")
    }

    #[track_caller]
    fn read_by_java(&self, topic: &str, isolation: &str) -> Vec<Record> {
        let read = || {
            let folder = scratch::folder("java")?;
            let source = folder.join("Log.java");
            fs::write(&source, LOG).context(source.display())?;
            let mut command = provision::kafka(versions::KAFKA)?.command();
            command.arg("-Xmx512m").arg(&source).arg(self.bootstrap()).args([topic, isolation]);
            let output = process::run("Kafka's consumer", &mut command)?;
            scratch::remove(&folder)?;
            let topic: Arc<str> = Arc::from(topic);
            let record =
                |line| record(&topic, line).ok_or_else(|| Error(format!("no record: {line}")));
            String::from_utf8_lossy(&output.stdout).lines().map(record).collect::<Result<Vec<_>>>()
        };
        let mut records = read().unwrap_or_else(|e| panic!("reading {topic} by Java: {e}"));
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }
}

/// A line of `Log.java`.
fn record(topic: &Arc<str>, line: &str) -> Option<Record> {
    let mut words = line.split(' ');
    let mut word = || words.next();
    Some(Record {
        topic: Arc::clone(topic),
        partition: word()?.parse().ok()?,
        offset: word()?.parse().ok()?,
        timestamp_ms: word()?.parse().ok()?,
        key: bytes(word()?)?,
        value: bytes(word()?)?,
        headers: words
            .map(|header| {
                let (name, value) = header.split_once('=')?;
                Some((String::from_utf8(bytes(name)??).ok()?, bytes(value)?.unwrap_or_default()))
            })
            .collect::<Option<_>>()?,
    })
}

/// Bytes in hex behind an `x`, or a dash for null.
fn bytes(word: &str) -> Option<Option<Vec<u8>>> {
    let Some(hex) = word.strip_prefix('x') else { return (word == "-").then_some(None) };
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    (0..hex.len()).step_by(2).map(byte).collect::<Option<_>>().map(Some)
}

/// The partition that the Java producer would choose for each key, among `partitions`.
///
/// # Panics
///
/// When Java does not run.
#[must_use]
#[track_caller]
pub fn java_partitions(keys: &[impl AsRef<[u8]>], partitions: usize) -> Vec<i32> {
    ask(keys, partitions).unwrap_or_else(|e| panic!("asking Java for partitions: {e}"))
}

fn ask(keys: &[impl AsRef<[u8]>], partitions: usize) -> Result<Vec<i32>> {
    let folder = scratch::folder("java")?;
    let source = folder.join("Partitions.java");
    fs::write(&source, PARTITIONS).context(source.display())?;
    let mut lines = String::new();
    for key in keys {
        for byte in key.as_ref() {
            let _ = write!(lines, "{byte:02x}");
        }
        lines.push('\n');
    }
    let input = folder.join("keys");
    fs::write(&input, lines).context(input.display())?;
    let mut command = provision::kafka(versions::KAFKA)?.command();
    command.arg(&source).arg(partitions.to_string());
    let output = command
        .stdin(File::open(&input).context(input.display())?)
        .output()
        .context("cannot start java")?;
    scratch::remove(&folder)?;
    if !output.status.success() {
        return Err(Error(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let answers: Vec<i32> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()
        .context("not a number")?;
    if answers.len() == keys.len() {
        Ok(answers)
    } else {
        Err(Error(format!("{} answers to {} keys", answers.len(), keys.len())))
    }
}
