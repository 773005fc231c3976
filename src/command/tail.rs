//! `owlpost tail`: facts to the terminal as they are committed, without Kafka.

use super::along::{self, More, NOWHERE, Stretch};
use super::barrier::{Log, confirmed};
use super::printable::printable;
use super::record::Record;
use super::{ANSWER_MAX, asked_to_stop, colours, ended, nobody_reads, refused, say, unwritten};
use crate::config::Config;
use crate::exit::ExitCode;
use crate::postgres::{Queries, Temporary};
use crate::relay::fact::Fact;
use crate::relay::gone::{ExitKind, Gone};
use crate::telemetry;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};
use factlib_protocol::Lsn;
use factlib_protocol::replication::quote_literal;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

const EXAMPLES: &str = "\
It reads through a slot of its own that ends with it: what the relay publishes and confirms is not
touched, and no Kafka is needed. Facts begin with those committed from now on; with --from or --slot,
where a slot stands: a temporary copy of it is read, the slot itself stays. A slot of its own can only
begin once all transactions that are open have ended, and holds back log and one of
max_replication_slots and max_wal_senders meanwhile.
Facts are shown as they would be published: topic, key, headers. Those that cannot be, with the reason.
After a lost connection it goes on, and without --from or --slot what was committed meanwhile is
not shown, which it says. When nobody reads its output any more it ends, with 0.

Formats: pretty is for people (payloads are escaped, so that they cannot command your terminal);
json has one object a line; raw the envelopes as they were emitted, each followed by a line's end.

Examples:
  owlpost tail --limit 1
  owlpost tail --format json --from 0/16B3748 --limit 10
  owlpost tail --slot factlib_slot --limit 1   the first that the relay has still to publish
  owlpost tail --format raw --limit 1 | head -1
";

/// What to show.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Tail {
    /// Begin with what is committed after this position, which must not be before that of the slot
    #[arg(long, value_name = "LSN")]
    from: Option<Lsn>,
    /// Begin where this slot stands [default with --from: REPLICATION_SLOT_NAME]
    #[arg(long, value_name = "NAME")]
    slot: Option<String>,
    /// How a fact looks
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    format: Format,
    /// End after so many facts
    #[arg(long, value_name = "NUMBER")]
    limit: Option<u64>,
}

/// How a fact looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Pretty,
    /// One object a line
    Json,
    /// The envelopes
    Raw,
}

/// Shows facts until told to stop, or until there were enough, or nobody reads them.
pub async fn tail(config: &Config, arguments: &Tail) -> ExitCode {
    let log = telemetry::init(&config.log);
    let slot = match look(config, arguments).await {
        Ok(slot) => slot,
        Err(gone) => {
            drop(log);
            return refused(gone);
        }
    };
    let gap = matches!(slot, Temporary::Fresh);
    let colours = colours();
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    let mut failed = None;
    let each = |topic: &str, found: &Record| {
        if left == 0 {
            return More::Enough;
        }
        left -= 1;
        let shown = match arguments.format {
            Format::Pretty => pretty(topic, found, colours).into_bytes(),
            // Only a map with keys that are no strings cannot be written.
            Format::Json => serde_json::to_vec(&line(topic, found)).unwrap_or_default(),
            Format::Raw => found.value.clone().unwrap_or_default(),
        };
        let mut out = io::stdout().lock();
        let written =
            out.write_all(&shown).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
        if let Err(error) = written {
            failed = Some(error);
            return More::Enough;
        }
        if left == 0 { More::Enough } else { More::Wanted }
    };
    let away = |cause: &str| {
        let missed = match gap {
            true => "; what is committed until there is a new slot is not shown",
            false => "",
        };
        say(&format!("owlpost: not connected: {cause}{missed}"));
    };
    let stretch = Stretch { slot, until: None };
    let read = match arguments.limit {
        Some(0) => Ok(()),
        _ => {
            let stop = async {
                tokio::select! {
                    () = asked_to_stop() => {}
                    () = nobody_reads() => {}
                }
            };
            along::read(config, stretch, each, away, stop).await
        }
    };
    drop(log);
    match (failed, read) {
        (Some(error), _) => unwritten(&error),
        (None, Ok(())) => ExitCode::Stopped,
        (None, Err(exit)) => ended(&exit),
    }
}

/// What there is to read from. Said in words for this command: those of the relay speak of what is lost.
async fn look(config: &Config, arguments: &Tail) -> Result<Temporary, Gone> {
    let mut queries = Queries::connect_to_walsender(&config.postgres, ANSWER_MAX).await?;
    let publication = &config.publication;
    let sql = format!("SELECT FROM pg_publication WHERE pubname = {}", quote_literal(publication));
    if queries.query(&sql).await?.is_empty() {
        let reason = format!(
            "publication {publication} is not there, and nothing can be decoded without one: check \
             PUBLICATION_NAME; `owlpost init` makes it"
        );
        return Err(Gone::Terminal(ExitKind::Publication, reason));
    }
    if arguments.slot.is_none() && arguments.from.is_none() {
        return Ok(Temporary::Fresh);
    }
    let slot = arguments.slot.clone().unwrap_or_else(|| config.slot.clone());
    let at = confirmed(&mut queries, &slot).await?;
    if let Some(from) = arguments.from {
        if from < at {
            let reason = format!(
                "slot {slot} stands at {at}, and what lies before cannot be decoded any more: {from} is too \
                 early; an audit's slot may reach further back (--slot)"
            );
            return Err(Gone::Terminal(ExitKind::Slot, reason));
        }
        let end = Log::ask(&mut queries).await?.insert;
        if from > end {
            let reason =
                format!("this server's log ends at {end}, before {from}: is it the right cluster?");
            return Err(Gone::Terminal(ExitKind::Slot, reason));
        }
    }
    Ok(Temporary::CopyOf { slot, from: arguments.from })
}

/// A fact in a few lines.
fn pretty(topic: &str, found: &Record, colours: bool) -> String {
    let (bold, dim, end) = if colours { ("\x1b[1m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
    let header = |name: &str| found.header(name).map(printable).unwrap_or_default();
    let time = time(found.timestamp_ms);
    let (lsn, id) = (header("LSN"), header("event_id"));
    let value = found.value.as_deref().unwrap_or_default();
    let Some(fact) = fact(topic, value) else {
        let (cause, reason) = (header("factlib_cause"), header("factlib_reason"));
        let value = printable(value);
        return format!(
            "{dim}{time}{end} {bold}cannot be published{end} ({cause}): {reason}  {dim}{lsn} {id}{end}\n    {value}"
        );
    };
    let key = found.key.as_deref().map(printable).unwrap_or_default();
    let event = printable(fact.event_type.as_bytes());
    let payload = fact.payload.bytes().map(printable).unwrap_or_else(|| "(no payload)".to_owned());
    format!(
        "{dim}{time}{end} {bold}{topic}{end} {key} {bold}{event}{end}  {dim}{lsn} {id}{end}\n    {payload}"
    )
}

/// The fact, if it can be published.
fn fact<'a>(topic: &str, value: &'a [u8]) -> Option<Fact<'a>> {
    if topic == NOWHERE { None } else { Fact::decode(value).ok() }
}

/// A fact as one JSON object. What was emitted as JSON is passed on as it is: numbers keep all their digits.
#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    members: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
}

fn line(topic: &str, found: &Record) -> Line {
    let text = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes));
    let header = |name: &str| found.header(name).map(text);
    let mut headers = Map::new();
    for (name, value) in &found.headers {
        headers.entry(String::from_utf8_lossy(name)).or_insert_with(|| text(value));
    }
    let value = found.value.as_deref().unwrap_or_default();
    let mut members = Map::new();
    let mut add = |name: &str, value: Value| {
        members.insert(name.to_owned(), value);
    };
    add("committed_at", time(found.timestamp_ms).into());
    add("lsn", header("LSN").into());
    add("position", header("factlib_position").into());
    add("event_id", header("event_id").into());
    add("headers", headers.into());
    let Some(fact) = fact(topic, value) else {
        add("cause", header("factlib_cause").into());
        add("reason", header("factlib_reason").into());
        add("content_base64", STANDARD.encode(value).into());
        return Line { members, payload: None };
    };
    add("topic", topic.into());
    add("key", found.key.as_deref().map(text).into());
    add("aggregate_type", fact.aggregate_type.as_ref().into());
    add("aggregate_id", fact.aggregate_id.as_ref().into());
    add("event_type", fact.event_type.as_ref().into());
    let mut metadata = Map::new();
    fact.metadata(|key, value| {
        metadata.insert(key.to_owned(), value.into());
    });
    add("metadata", metadata.into());
    let payload = fact.payload.bytes().unwrap_or(b"null");
    let json = std::str::from_utf8(payload).ok().and_then(|text| {
        // Only between its parts may JSON have a line's end.
        RawValue::from_string(text.replace(['\n', '\r'], " ")).ok()
    });
    if json.is_none() {
        add("payload_base64", STANDARD.encode(payload).into());
    }
    Line { members, payload: json }
}

fn time(timestamp_ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(timestamp_ms).unwrap_or(0));
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + since).to_string()
}
