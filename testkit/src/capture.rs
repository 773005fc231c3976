//! Golden bytes: what each version of the server makes of one script, for the protocol crate's tests.
//!
//! `protocol/tests/fixtures/capture.sql` is run on every major. Then, for each set of options, the same
//! slot is read twice: by the SQL function that peeks into it, and over the network. Both must have said
//! the same, message for message and byte for byte, or there is no capture. Written down is a line a
//! message: the position and the transaction that the function files it under, the position in the header
//! over the network, and the message, in hexadecimal with long repetitions told in words:
//! `4d01(78*1048576)00`.
//!
//! Last, over the network alone, a transaction is rolled back while it is told: the one message that
//! servers do not tell of afterwards, because they know by then.

use crate::error::{Context as _, Error, Result};
use crate::{Postgres, Stream};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A stream to capture.
struct Options {
    /// Of the file, and with underscores of the slot.
    name: &'static str,
    /// The first major that has them.
    from: u32,
    options: &'static [(&'static str, &'static str)],
}

const STREAMS: [Options; 6] = [
    stream("v1", 14, &[("proto_version", "1")]),
    stream("v1-binary", 14, &[("proto_version", "1"), ("binary", "true")]),
    stream("v2-streaming", 14, &[("proto_version", "2"), ("streaming", "on")]),
    stream("v3-two-phase", 15, &[("proto_version", "3"), TWO_PHASE]),
    stream("v3-both", 15, &[("proto_version", "3"), ("streaming", "on"), TWO_PHASE]),
    stream("v4-parallel", 16, &[("proto_version", "4"), ("streaming", "parallel")]),
];

/// The slot must be made for it, too.
const TWO_PHASE: (&str, &str) = ("two_phase", "on");

const fn stream(
    name: &'static str,
    from: u32,
    options: &'static [(&'static str, &'static str)],
) -> Options {
    Options { name, from, options }
}

/// Rolled back while it is told.
const ABORTED: [&str; 6] = [
    "BEGIN",
    "INSERT INTO parts SELECT n, repeat('u', 1000) FROM generate_series(301, 400) n",
    "SAVEPOINT s",
    "SELECT pg_logical_emit_message(true, 'orders', 'behind the savepoint')",
    "INSERT INTO parts SELECT n, repeat('v', 1000) FROM generate_series(401, 500) n",
    "ROLLBACK",
];

/// A run of one byte this long or longer is told in words.
const RUN_MIN: usize = 24;

/// After so long without data everything that was written has been told.
const QUIET: Duration = Duration::from_secs(1);

/// Captures from every major, into folders of `fixtures`.
///
/// # Errors
///
/// When a server cannot be had, refuses a statement, or says two things on two roads.
pub fn capture(fixtures: &Path, mut say: impl FnMut(&str)) -> Result<()> {
    let script = fs::read_to_string(fixtures.join("capture.sql")).context("capture.sql")?;
    for (major, _) in crate::versions::POSTGRES_PACKAGE_VERSIONS {
        let postgres = Postgres::builder()
            .major(major)
            .setting("logical_decoding_work_mem", "64kB")
            .setting("timezone", "UTC")
            .try_start()?;
        let streams: Vec<_> = STREAMS.iter().filter(|stream| stream.from <= major).collect();
        let mut client = postgres.try_client().context("connecting")?;
        for statement in statements(&script, major) {
            if statement == "slots" {
                for Options { name, options, .. } in &streams {
                    let (slot, two_phase) = (slot(name), options.contains(&TWO_PHASE));
                    let make = format!(
                        "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput', false, {two_phase})"
                    );
                    run(&mut client, &make)?;
                }
            } else {
                run(&mut client, &statement)?;
            }
        }
        let folder = fixtures.join(format!("pg{major}"));
        fs::create_dir_all(&folder).context(folder.display())?;
        let mut open = Vec::new();
        for Options { name, options, .. } in streams {
            let filed = peek(&mut client, &slot(name), options)?;
            let mut stream = Stream::start(&postgres, &slot(name), &all_options(options))?;
            let mut lines = String::new();
            for (lsn, xid, data) in &filed {
                let (header, over_network) = stream.message()?;
                if over_network != *data {
                    return Err(Error(format!("{major} {name}: two roads, two messages at {lsn}")));
                }
                let _ = writeln!(lines, "{lsn}|{xid}|{header}|{}", tell(data));
            }
            write(&folder.join(format!("{name}.txt")), &lines)?;
            say(&format!("PostgreSQL {major}, {name}: {} messages", filed.len()));
            if options.iter().any(|(option, _)| *option == "streaming") {
                open.push((*name, stream, String::new()));
            }
        }
        abort(&mut client, &mut open)?;
        for (name, _, lines) in open {
            write(&folder.join(format!("{name}-aborted.txt")), &lines)?;
        }
    }
    Ok(())
}

fn run(client: &mut postgres::Client, sql: &str) -> Result<()> {
    let said =
        |e: postgres::Error| e.as_db_error().map_or_else(|| e.to_string(), ToString::to_string);
    client.simple_query(sql).map(drop).map_err(|e| Error(format!("{sql}: {}", said(e))))
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).context(file.display())
}

fn slot(stream: &str) -> String {
    stream.replace('-', "_")
}

/// The statements for this version; `slots` stands where the slots are to be made.
fn statements(script: &str, major: u32) -> Vec<String> {
    let (mut statements, mut statement, mut from) = (Vec::new(), String::new(), 0);
    for line in script.lines() {
        if let Some(version) = line.strip_prefix("-- from ") {
            from = version.parse().unwrap_or(u32::MAX);
        } else if line == "-- slots" {
            statements.push("slots".to_owned());
        } else if !line.starts_with("--") {
            statement.push_str(line);
            if line.ends_with(';') {
                if major >= from {
                    statements.push(std::mem::take(&mut statement));
                }
                statement.clear();
                from = 0;
            }
        }
    }
    statements
}

fn all_options<'a>(options: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [options, &[("publication_names", "p"), ("messages", "true")]].concat()
}

/// What the SQL function says: position, transaction, message.
fn peek(
    client: &mut postgres::Client,
    slot: &str,
    options: &[(&str, &str)],
) -> Result<Vec<(String, String, Vec<u8>)>> {
    // Two-phase commit is the slot's; the function has no such option.
    let options = all_options(options);
    let options = options.iter().filter(|(name, _)| *name != "two_phase");
    let options: Vec<_> = options.map(|(name, value)| format!("'{name}', '{value}'")).collect();
    let query = format!(
        "SELECT lsn::text, xid::text, data FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL, {})",
        options.join(", ")
    );
    let rows = client.query(&query, &[]).context(&query)?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// A transaction is rolled back while it is told, in all streams.
fn abort(client: &mut postgres::Client, streams: &mut [(&str, Stream, String)]) -> Result<()> {
    for sql in ABORTED {
        run(client, sql)?;
        // The walsender tells of what is written out, which an open transaction's log need not be.
        run(client, "SELECT pg_switch_wal()")?;
        if !sql.starts_with("INSERT") && sql != "ROLLBACK" {
            continue;
        }
        for (_, stream, lines) in &mut *streams {
            // A block at least; as many as there are in what was written.
            let mut told = stream.message().map(Some)?;
            while let Some((header, data)) = told {
                let _ = writeln!(lines, "{header}|{}", tell(&data));
                told = stream.message_within(QUIET)?;
            }
        }
    }
    Ok(())
}

/// Hexadecimal, with long repetitions of one byte in words.
fn tell(data: &[u8]) -> String {
    let mut told = String::new();
    for run in data.chunk_by(|a, b| a == b) {
        if run.len() >= RUN_MIN {
            let _ = write!(told, "({:02x}*{})", run[0], run.len());
        } else {
            run.iter().for_each(|byte| {
                let _ = write!(told, "{byte:02x}");
            });
        }
    }
    told
}
