//! `owlpost emit`: one fact, or many, in one transaction.

use super::{print, refused, say, unwritten};
use crate::config::Config;
use crate::exit::ExitCode;
use crate::postgres::Queries;
use crate::relay::fact::Fact;
use crate::relay::gone::Gone;
use crate::relay::route::TOPIC_LEN_MAX;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use factlib_protocol::Lsn;
use factlib_protocol::replication::quote_literal;
use serde::Serialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::time::Duration;
use uuid::Uuid;

/// All of standard input is checked before anything is sent, so that it is all in memory.
const STDIN_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// So much SQL goes to the server at once: many facts share a round trip.
const QUERY_BYTES: usize = 1024 * 1024;

/// A query of [`QUERY_BYTES`] takes milliseconds, one with a large payload or a COMMIT that waits for standbys more.
const ANSWER_MAX: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Every fact is checked with the relay's own decoder, and its topic's name by Kafka's rules, before the
first is sent; then all are emitted in one transaction: all or none. Printed are, for each, its id and
the LSN of its message (for tracing, and the record's header LSN), and after COMMIT the LSN to give to
`owlpost wait`. Any role that may log in may emit; it needs no REPLICATION. Applications emit inside of
their own transactions, see `owlpost --help`: this is for trials, tests and repairs.

--payload is any JSON; what is none becomes a JSON string. --payload-file passes on a file that is JSON
as it is, others as payload_base64. With --stdin each line is one envelope as a JSON object:
{\"id\":\"1\",\"aggregate_type\":\"order\",\"aggregate_id\":\"42\",\"event_type\":\"paid\",\"payload\":{\"cents\":1999}}
Without an id there the relay makes one of the fact's position.

Examples:
  owlpost emit --aggregate-type order --aggregate-id 42 --event-type paid --payload '{\"cents\": 1999}'
  owlpost emit --aggregate-type order --aggregate-id 42 --metadata tenant=a --payload hello --json
  echo '{\"aggregate_type\":\"order\",\"aggregate_id\":\"42\"}' | owlpost emit --stdin
";

/// What to emit.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Emit {
    /// The prefix of the messages [default: the first of WAL_PREFIX, or SRC_SERVICE_NAME]
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// What kind of thing the fact is about; the topic is made from it
    #[arg(long, value_name = "TEXT", required_unless_present = "stdin")]
    aggregate_type: Option<String>,
    /// Which one: the record's key
    #[arg(long, value_name = "TEXT", default_value = "")]
    aggregate_id: String,
    /// What happened
    #[arg(long, value_name = "TEXT", default_value = "")]
    event_type: String,
    /// The payload: any JSON, or else text
    #[arg(long, value_name = "JSON|TEXT", group = "of_payload")]
    payload: Option<String>,
    /// The payload is in this file
    #[arg(long, value_name = "FILE", group = "of_payload")]
    payload_file: Option<PathBuf>,
    /// The payload's bytes in base64
    #[arg(long, value_name = "BASE64", group = "of_payload")]
    payload_base64: Option<String>,
    /// The fact's id, by which consumers recognise it [default: a UUIDv7]
    #[arg(long, value_name = "TEXT")]
    id: Option<String>,
    /// An entry of the fact's metadata; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = entry)]
    metadata: Vec<(String, String)>,
    /// A fact that may be larger as a Kafka record is refused: the topics' max.message.bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1_048_576)]
    max_record_bytes: usize,
    /// Many facts: one JSON object a line from standard input
    #[arg(long, conflicts_with_all = ["aggregate_type", "aggregate_id", "event_type", "of_payload", "id", "metadata"])]
    stdin: bool,
    /// One JSON object: facts (id, lsn) and wait_lsn
    #[arg(long)]
    json: bool,
}

fn entry(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// The envelope, as the relay reads it.
#[derive(Serialize)]
struct Envelope<'a> {
    id: &'a str,
    aggregate_type: &'a str,
    aggregate_id: &'a str,
    event_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, &'a str>,
}

/// What was emitted.
#[derive(Serialize)]
struct Emitted {
    facts: Vec<EmittedFact>,
    wait_lsn: String,
}

#[derive(Serialize)]
struct EmittedFact {
    /// None where the relay will make one.
    id: Option<String>,
    lsn: String,
}

/// Emits.
pub async fn emit(config: &Config, arguments: &Emit) -> ExitCode {
    let prefix = match prefix(config, arguments) {
        Ok(prefix) => prefix,
        Err(sentence) => return wrong(&sentence),
    };
    let contents = match contents(arguments) {
        Ok(contents) => contents,
        Err(sentence) => return wrong(&sentence),
    };
    let mut ids = Vec::with_capacity(contents.len());
    for (place, content) in &contents {
        match check(config, prefix, content, arguments.max_record_bytes) {
            Ok(id) => ids.push(id),
            Err(what) => return wrong(&format!("{place}{what}; nothing was emitted")),
        }
    }
    if contents.is_empty() {
        return wrong("standard input has no fact; nothing was emitted");
    }
    let (lsns, wait) = match send(config, prefix, &contents).await {
        Ok(sent) => sent,
        Err(gone) => return refused(gone),
    };
    let facts: Vec<EmittedFact> = ids
        .into_iter()
        .zip(&lsns)
        .map(|(id, lsn)| EmittedFact { id, lsn: lsn.to_string() })
        .collect();
    let emitted = Emitted { facts, wait_lsn: wait.to_string() };
    let printed = match arguments.json {
        // Only a map with keys that are no strings cannot be written.
        true => print(&serde_json::to_string(&emitted).unwrap_or_default()),
        false => print(&words(&emitted)),
    };
    printed.map_or_else(|error| unwritten(&error), |()| ExitCode::Stopped)
}

fn wrong(sentence: &str) -> ExitCode {
    say(&format!("owlpost: {sentence}"));
    ExitCode::Configuration
}

fn words(emitted: &Emitted) -> String {
    let mut words = String::new();
    for EmittedFact { id, lsn } in &emitted.facts {
        // Writing to a String cannot fail.
        let _ = writeln!(words, "{} {lsn}", id.as_deref().unwrap_or("-"));
    }
    let Emitted { facts, wait_lsn } = emitted;
    let _ = write!(
        words,
        "committed {} facts; `owlpost wait --lsn {wait_lsn}` returns when they are published",
        facts.len()
    );
    words
}

fn prefix<'a>(config: &'a Config, arguments: &'a Emit) -> Result<&'a str, String> {
    let prefix = arguments.prefix.as_deref().or(config.prefixes.first().map(String::as_str));
    let Some(prefix) = prefix else {
        return Err("no prefix: give --prefix, SRC_SERVICE_NAME or WAL_PREFIX".to_owned());
    };
    if !config.prefixes.is_empty() && !config.prefixes.iter().any(|known| known == prefix) {
        say(&format!(
            "owlpost: prefix {prefix} is none of WAL_PREFIX ({}): a relay with these settings passes it over",
            config.prefixes.join(",")
        ));
    }
    Ok(prefix)
}

/// Each envelope, and what to call its place in an error.
fn contents(arguments: &Emit) -> Result<Vec<(String, Vec<u8>)>, String> {
    if !arguments.stdin {
        return Ok(vec![(String::new(), envelope(arguments)?)]);
    }
    let mut input = Vec::new();
    let read = io::stdin().lock().take(STDIN_BYTES_MAX + 1).read_to_end(&mut input);
    read.map_err(|error| format!("standard input cannot be read: {error}"))?;
    if input.len() as u64 > STDIN_BYTES_MAX {
        let mib = STDIN_BYTES_MAX / 1024 / 1024;
        return Err(format!("standard input has more than {mib} MiB: emit it in parts"));
    }
    let lines = input.split(|byte| *byte == b'\n').enumerate();
    let lines = lines.map(|(at, line)| (at + 1, line.trim_ascii()));
    Ok(lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| (format!("line {number}: "), line.to_vec()))
        .collect())
}

fn envelope(arguments: &Emit) -> Result<Vec<u8>, String> {
    let (mut payload, mut payload_base64) = (None, arguments.payload_base64.clone());
    if let Some(text) = &arguments.payload {
        // Neither a JSON value nor a JSON string can fail to be one.
        payload = json(text).or_else(|| json(&serde_json::to_string(text).unwrap_or_default()));
    }
    if let Some(file) = &arguments.payload_file {
        let bytes = std::fs::read(file)
            .map_err(|error| format!("--payload-file {}: {error}", file.display()))?;
        payload = std::str::from_utf8(&bytes).ok().and_then(json);
        if payload.is_none() {
            payload_base64 = Some(STANDARD.encode(&bytes));
        }
    }
    let id = match &arguments.id {
        Some(id) => Cow::Borrowed(id.as_str()),
        None => Cow::Owned(Uuid::now_v7().to_string()),
    };
    let metadata = arguments.metadata.iter();
    let envelope = Envelope {
        id: &id,
        aggregate_type: arguments.aggregate_type.as_deref().unwrap_or_default(),
        aggregate_id: &arguments.aggregate_id,
        event_type: &arguments.event_type,
        payload,
        payload_base64,
        metadata: metadata.map(|(key, value)| (key.as_str(), value.as_str())).collect(),
    };
    serde_json::to_vec(&envelope).map_err(|error| error.to_string())
}

fn json(text: &str) -> Option<Box<RawValue>> {
    RawValue::from_string(text.trim().to_owned()).ok()
}

/// What the relay would say of it; its id, if it has one.
fn check(
    config: &Config,
    prefix: &str,
    content: &[u8],
    record_bytes_max: usize,
) -> Result<Option<String>, String> {
    if content.first() != Some(&b'{') {
        return Err("not a JSON object".to_owned());
    }
    let max = config.limits.frame_max_bytes;
    // What stands around it in a frame: lengths, positions, the prefix.
    if content.len() + prefix.len() + 64 > max {
        return Err(format!(
            "{} bytes, more than the relay takes (FRAME_MAX_BYTES, {max})",
            content.len()
        ));
    }
    let fact = Fact::decode(content).map_err(|error| error.to_string())?;
    let mut topic = String::new();
    if !config.naming.name_topic(prefix, &fact, &mut topic) {
        return Err(format!(
            "{topic:?} cannot be a topic's name; use a-z A-Z 0-9 . _ -, at most {TOPIC_LEN_MAX} of them"
        ));
    }
    // As factlib.emit counts: key and headers repeat what is in the envelope, but for the payload.
    let payload = fact.payload.bytes().map_or(0, <[u8]>::len);
    let record = (2 * content.len()).saturating_sub(payload) + 1024;
    if record > record_bytes_max {
        return Err(format!(
            "fact of {record} bytes as a Kafka record, more than --max-record-bytes ({record_bytes_max})"
        ));
    }
    Ok(Some(fact.id.into_owned()).filter(|id| !id.is_empty()))
}

/// Emits all of them in one transaction: where each is, and what to wait for.
async fn send(
    config: &Config,
    prefix: &str,
    contents: &[(String, Vec<u8>)],
) -> Result<(Vec<Lsn>, Lsn), Gone> {
    let mut queries = Queries::connect(&config.postgres, ANSWER_MAX).await?;
    let prefix = quote_literal(prefix);
    let mut lsns = Vec::with_capacity(contents.len());
    let mut sql = "BEGIN;".to_owned();
    for (at, (_, content)) in contents.iter().enumerate() {
        // Hexadecimal through decode(): whatever the session's settings of escapes are, it means the same.
        let _ = write!(sql, "SELECT pg_logical_emit_message(true,{prefix},decode('");
        sql.reserve(content.len() * 2);
        for byte in content {
            let _ = write!(sql, "{byte:02x}");
        }
        sql.push_str("','hex'));");
        if sql.len() >= QUERY_BYTES || at + 1 == contents.len() {
            lsns.extend(positions(&queries.query(&sql).await?));
            sql = String::new();
        }
    }
    if lsns.len() != contents.len() {
        let reason = "PostgreSQL did not say where each fact is; the transaction was not committed";
        return Err(Gone::Lost(reason.to_owned()));
    }
    queries.query("COMMIT").await.map_err(uncertain)?;
    // In a statement of its own: it lies behind the commit record.
    let rows = queries.query("SELECT pg_current_wal_insert_lsn()").await?;
    let wait = positions(&rows).next();
    let wait = wait.ok_or_else(|| {
        Gone::Lost(
            "the facts are committed, but PostgreSQL does not say where its log ends".to_owned(),
        )
    })?;
    Ok((lsns, wait))
}

fn uncertain(gone: Gone) -> Gone {
    match gone {
        Gone::Lost(reason) => Gone::Lost(format!(
            "{reason}; whether the facts were committed is not known: look for their ids before emitting them again"
        )),
        gone => gone,
    }
}

fn positions(rows: &[crate::postgres::Row]) -> impl Iterator<Item = Lsn> {
    rows.iter().filter_map(|row| row.first()?.as_deref()?.parse().ok())
}
