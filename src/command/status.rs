//! `owlpost status`: where the slot stands, how far behind it is, and how long it lasts.

use super::along::{self, More, Stretch};
use super::barrier::{Barrier, Log};
use super::printable::printable;
use super::record::Record;
use super::{ANSWER_MAX, asked_to_stop, ended, print, say, unwritten};
use crate::config::Config;
use crate::exit::ExitCode;
use crate::postgres::{Queries, Row, Temporary};
use crate::relay::gone::{Exit, Gone};
use bytesize::ByteSize;
use clap::Args;
use factlib_protocol::Lsn;
use factlib_protocol::replication::quote_literal;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::time::Duration;
use tokio::time::sleep;

/// From a terminal's upper left corner on, nothing else.
const CLEAR: &str = "\x1b[H\x1b[2J";

const EXAMPLES: &str = "\
It asks PostgreSQL, and works whether a relay runs or not; what a relay says of itself is on its health
port. Other sessions' transactions are only seen by roles with pg_read_all_stats.

  behind    log written since the confirmed position, and how long writing so much takes at the present
            rate; it counts everything that is written to the database, not only facts
  answers   how long after the server sent something the relay confirmed it (flush_lag)
  lost in   when max_slot_wal_keep_size will be reached if the log goes on growing at the present rate,
            which is measured for --sample, and confirmations stop
  facts     how many wait, with --facts: they are in the log only, and counting them means to read all of it
            that is behind, through a temporary copy of the slot. It costs the server as much as publishing
            them, and stops after --facts-timeout

The exit code is 0 if the slot is there and can be read, 4 if it is missing or lost, 6 if the
publication is missing.

Examples:
  owlpost status
  owlpost status --json
  owlpost status --facts --sample 100ms
  owlpost status --watch 1s
";

/// What to show.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Status {
    /// One JSON object; with --watch one a line
    #[arg(long)]
    json: bool,
    /// Again and again, so long apart, until stopped
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "2s",
          value_parser = humantime::parse_duration)]
    watch: Option<Duration>,
    /// How long to measure how fast the log grows
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    sample: Duration,
    /// Count the facts that wait
    #[arg(long)]
    facts: bool,
    /// How long to count
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration,
          requires = "facts")]
    facts_timeout: Duration,
}

impl Status {
    /// Whether the prefixes must be known.
    pub fn counts_facts(&self) -> bool {
        self.facts
    }
}

/// What there is to say.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Report {
    slot: String,
    state: State,
    /// Process id and application name of the session that has the slot.
    active_pid: Option<u32>,
    application_name: Option<String>,
    wal_status: Option<String>,
    invalidation_reason: Option<String>,
    publication: String,
    publication_exists: bool,
    publication_comment: Option<String>,
    confirmed_lsn: Option<String>,
    restart_lsn: Option<String>,
    insert_lsn: String,
    lag_bytes: Option<i64>,
    /// What writing them takes at the present rate.
    lag_seconds: Option<f64>,
    answers_seconds: Option<f64>,
    retained_bytes: Option<i64>,
    wal_bytes_per_second: f64,
    /// How much may still be written before the slot is lost; none without `max_slot_wal_keep_size`.
    safe_wal_bytes: Option<i64>,
    max_slot_wal_keep_size: String,
    seconds_until_lost: Option<f64>,
    oldest_transaction: Option<Transaction>,
    /// Whether this role may see the transactions of others.
    sees_all_transactions: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    facts_behind: Option<Facts>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// A relay has it.
    Active,
    /// Nobody has it.
    Inactive,
    Lost,
    Missing,
    /// Of this name, but physical, another database's, or with another output plugin.
    Foreign,
}

/// The oldest transaction that a new slot, and the restart position of ours, waits for.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Transaction {
    /// None for a prepared one.
    pid: Option<u32>,
    user: Option<String>,
    /// The application, or a prepared transaction's name.
    name: Option<String>,
    state: Option<String>,
    age_seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Facts {
    counted: u64,
    /// False if time was over: there are more.
    all: bool,
}

/// Says how it stands.
pub async fn status(config: &Config, arguments: &Status) -> ExitCode {
    let clear = arguments.watch.is_some() && !arguments.json && io::stdout().is_terminal();
    let watched = async {
        loop {
            let report = match report(config, arguments).await {
                Ok(report) => report,
                // Whoever watches a restart wants to see it come back.
                Err(exit) if arguments.watch.is_some() => {
                    say(&format!("owlpost: {}", exit.reason));
                    sleep(arguments.watch.unwrap_or_default()).await;
                    continue;
                }
                Err(exit) => return ended(&exit),
            };
            let shown = match arguments.json {
                // Only a map with keys that are no strings cannot be written.
                true => serde_json::to_string(&report).unwrap_or_default(),
                false => format!("{}{}", if clear { CLEAR } else { "" }, words(&report)),
            };
            if let Err(error) = print(&shown) {
                return unwritten(&error);
            }
            match arguments.watch {
                None => return code(&report),
                Some(pause) => sleep(pause).await,
            }
        }
    };
    tokio::select! {
        code = watched => code,
        () = asked_to_stop(), if arguments.watch.is_some() => ExitCode::Stopped,
    }
}

fn code(report: &Report) -> ExitCode {
    match report.state {
        State::Missing | State::Lost | State::Foreign => ExitCode::Slot,
        _ if !report.publication_exists => ExitCode::Publication,
        State::Active | State::Inactive => ExitCode::Stopped,
    }
}

async fn report(config: &Config, arguments: &Status) -> Result<Report, Exit> {
    let mut queries = Queries::connect(&config.postgres, ANSWER_MAX).await?;
    let before = sample(&mut queries).await?;
    sleep(arguments.sample).await;
    let after = sample(&mut queries).await?;
    let rate = match after.seconds > before.seconds {
        // A server that was restarted from a backup meanwhile has gone back.
        true => (after.bytes - before.bytes).max(0.0) / (after.seconds - before.seconds),
        false => 0.0,
    };
    let mut report = look(&mut queries, config, rate).await?;
    report.oldest_transaction = oldest(&mut queries).await?;
    if arguments.facts && matches!(report.state, State::Active | State::Inactive) {
        let until = Log::ask(&mut queries).await?.wanted(Barrier::Now);
        report.facts_behind = Some(count(config, until, arguments.facts_timeout).await?);
    }
    Ok(report)
}

/// How much log there was, and when, both as the server says.
struct Sample {
    bytes: f64,
    seconds: f64,
}

const INSERT: &str = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END";

async fn sample(queries: &mut Queries) -> Result<Sample, Gone> {
    let sql = format!(
        "SELECT pg_wal_lsn_diff({INSERT}, '0/0')::float8, extract(epoch FROM clock_timestamp())::float8"
    );
    let rows = queries.query(&sql).await?;
    let number = |at| rows.first().and_then(|row| number::<f64>(row, at));
    let (Some(bytes), Some(seconds)) = (number(0), number(1)) else {
        return Err(Gone::Lost("PostgreSQL does not say where its log ends".to_owned()));
    };
    Ok(Sample { bytes, seconds })
}

async fn look(queries: &mut Queries, config: &Config, rate: f64) -> Result<Report, Gone> {
    let (slot, publication) = (quote_literal(&config.slot), quote_literal(&config.publication));
    let sql = format!(
        "SELECT log.lsn, s.slot_name, s.plugin = 'pgoutput' AND s.database = current_database(), \
                s.active, s.active_pid, r.application_name, s.wal_status, \
                to_jsonb(s) ->> 'invalidation_reason', s.confirmed_flush_lsn, s.restart_lsn, \
                pg_wal_lsn_diff(log.lsn, s.confirmed_flush_lsn), \
                pg_wal_lsn_diff(log.lsn, s.restart_lsn), s.safe_wal_size, \
                current_setting('max_slot_wal_keep_size'), extract(epoch FROM r.flush_lag), \
                p.oid, obj_description(p.oid, 'pg_publication'), \
                pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') \
         FROM (SELECT {INSERT} AS lsn) log \
         LEFT JOIN pg_replication_slots s ON s.slot_name = {slot} \
         LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid \
         LEFT JOIN pg_publication p ON p.pubname = {publication}"
    );
    let rows = queries.query(&sql).await?;
    let row = rows.first();
    let row = row.ok_or_else(|| Gone::Lost("PostgreSQL does not say how it stands".to_owned()))?;
    let text = |at| text(row, at);
    let is = |at| text(at).as_deref() == Some("t");
    let state = match (text(1), is(2)) {
        (None, _) => State::Missing,
        (Some(_), false) => State::Foreign,
        _ if text(6).as_deref() == Some("lost") => State::Lost,
        _ if is(3) => State::Active,
        _ => State::Inactive,
    };
    let lag_bytes: Option<i64> = number(row, 10);
    let safe_wal_bytes: Option<i64> = number(row, 12);
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let at_rate =
        |bytes: Option<i64>| bytes.filter(|_| rate > 0.0).map(|bytes| bytes.max(0) as f64 / rate);
    Ok(Report {
        slot: config.slot.clone(),
        state,
        active_pid: number(row, 4),
        application_name: text(5),
        wal_status: text(6),
        invalidation_reason: text(7),
        publication: config.publication.clone(),
        publication_exists: text(15).is_some(),
        publication_comment: text(16),
        confirmed_lsn: text(8),
        restart_lsn: text(9),
        insert_lsn: text(0).unwrap_or_default(),
        lag_bytes,
        lag_seconds: match lag_bytes {
            Some(0) => Some(0.0),
            bytes => at_rate(bytes),
        },
        answers_seconds: number(row, 14),
        retained_bytes: number(row, 11),
        wal_bytes_per_second: rate,
        safe_wal_bytes,
        max_slot_wal_keep_size: text(13).unwrap_or_default(),
        seconds_until_lost: at_rate(safe_wal_bytes),
        oldest_transaction: None,
        sees_all_transactions: is(17),
        facts_behind: None,
    })
}

async fn oldest(queries: &mut Queries) -> Result<Option<Transaction>, Gone> {
    let sql = "SELECT * FROM ( \
                 SELECT pid, usename::text, application_name, state, \
                        extract(epoch FROM clock_timestamp() - xact_start) AS age \
                 FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() \
                 UNION ALL \
                 SELECT NULL, owner::text, gid, 'prepared', \
                        extract(epoch FROM clock_timestamp() - prepared) \
                 FROM pg_prepared_xacts) transaction \
               WHERE age IS NOT NULL ORDER BY age DESC LIMIT 1";
    let rows = queries.query(sql).await?;
    Ok(rows.first().map(|row| Transaction {
        pid: number(row, 0),
        user: text(row, 1),
        name: text(row, 2),
        state: text(row, 3),
        age_seconds: number(row, 4).unwrap_or_default(),
    }))
}

/// Counts what the relay has still to publish.
async fn count(config: &Config, until: Lsn, limit: Duration) -> Result<Facts, Exit> {
    let mut counted = 0;
    let slot = Temporary::CopyOf { slot: config.slot.clone(), from: None };
    let stretch = Stretch { slot, until: Some(until) };
    let each = |_: &str, _: &Record| {
        counted += 1;
        More::Wanted
    };
    let mut over = false;
    let stop = async {
        sleep(limit).await;
        over = true;
    };
    along::read(config, stretch, each, |_| {}, stop).await?;
    Ok(Facts { counted, all: !over })
}

fn text(row: &Row, at: usize) -> Option<String> {
    row.get(at).cloned().flatten()
}

fn number<N: std::str::FromStr>(row: &Row, at: usize) -> Option<N> {
    text(row, at)?.parse().ok()
}

fn bytes(bytes: i64) -> String {
    ByteSize(u64::try_from(bytes).unwrap_or(0)).display().iec().to_string()
}

fn seconds(seconds: f64) -> String {
    // A century is as good as never, and more than a Duration of some rates can hold.
    const CENTURY: f64 = 3_155_760_000.0;
    let mut duration = Duration::from_secs_f64(seconds.clamp(0.0, CENTURY));
    if duration >= Duration::from_secs(10) {
        duration = Duration::from_secs(duration.as_secs());
    } else {
        duration -= Duration::from_nanos(u64::from(duration.subsec_nanos() % 1_000_000));
    }
    humantime::format_duration(duration).to_string()
}

fn words(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |name: &str, words: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<14}{words}");
    };
    let shown = |text: &Option<String>| printable(text.as_deref().unwrap_or("?").as_bytes());
    let slot = &report.slot;
    line(
        "slot",
        match report.state {
            State::Active => format!(
                "{slot}, in use by {} (pid {})",
                shown(&report.application_name),
                report.active_pid.unwrap_or_default()
            ),
            State::Inactive => format!("{slot}, not in use: no relay is connected"),
            State::Lost => format!(
                "{slot}, LOST{}: `owlpost init --accept-gap` makes it anew",
                report
                    .invalidation_reason
                    .as_deref()
                    .map(|r| format!(" ({r})"))
                    .unwrap_or_default()
            ),
            State::Missing => format!("{slot} IS MISSING"),
            State::Foreign => {
                format!("{slot} is NOT OURS: physical, another database's, or of another plugin")
            }
        },
    );
    line(
        "publication",
        match (report.publication_exists, &report.publication_comment) {
            (false, _) => format!("{} IS MISSING", report.publication),
            (true, None) => report.publication.clone(),
            (true, comment) => format!("{} ({})", report.publication, shown(comment)),
        },
    );
    if matches!(report.state, State::Missing | State::Foreign) {
        return out.trim_end().to_owned();
    }
    line("confirmed", format!("{}, of {}", shown(&report.confirmed_lsn), report.insert_lsn));
    let rate = match report.wal_bytes_per_second > 0.0 {
        #[expect(clippy::cast_possible_truncation, reason = "for people")]
        true => format!("{}/s", bytes(report.wal_bytes_per_second as i64)),
        false => "nothing is being written".to_owned(),
    };
    if let Some(lag) = report.lag_bytes {
        let takes = report.lag_seconds.filter(|_| lag > 0);
        let takes = takes.map(|s| format!(", which took {} at this rate", seconds(s)));
        line("behind", format!("{} ({rate}){}", bytes(lag), takes.unwrap_or_default()));
    }
    if let Some(answers) = report.answers_seconds {
        line("answers", format!("after {}", seconds(answers)));
    }
    if let Some(facts) = report.facts_behind {
        let more = if facts.all { "" } else { " and more: time was over" };
        line("facts", format!("{} wait{more}", facts.counted));
    }
    if let Some(retained) = report.retained_bytes {
        let restart = shown(&report.restart_lsn);
        line("kept for it", format!("{} of log, from {restart}", bytes(retained)));
    }
    let keep = &report.max_slot_wal_keep_size;
    line(
        "lost in",
        match (report.safe_wal_bytes, report.seconds_until_lost) {
            _ if report.state == State::Lost => "lost".to_owned(),
            (None, _) => format!("never (max_slot_wal_keep_size = {keep}); the disk fills instead"),
            (Some(safe), Some(left)) => format!(
                "{} at {rate}: {} are left of max_slot_wal_keep_size = {keep}",
                seconds(left),
                bytes(safe)
            ),
            (Some(safe), None) => {
                format!("{} are left of max_slot_wal_keep_size = {keep} ({rate})", bytes(safe))
            }
        },
    );
    line(
        "oldest open",
        match &report.oldest_transaction {
            Some(transaction) => {
                let Transaction { pid, user, name, state, age_seconds } = transaction;
                let pid = pid.map(|pid| format!("pid {pid}, ")).unwrap_or_default();
                format!(
                    "transaction {} old ({pid}{} of {}, {})",
                    seconds(*age_seconds),
                    shown(name),
                    shown(user),
                    shown(state)
                )
            }
            None if report.sees_all_transactions => "no transaction that has written".to_owned(),
            None => "not visible to this role (pg_read_all_stats)".to_owned(),
        },
    );
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            slot: "factlib_slot".to_owned(),
            state: State::Active,
            active_pid: Some(7),
            application_name: Some("owlpost\x1b[2J".to_owned()),
            wal_status: Some("reserved".to_owned()),
            invalidation_reason: None,
            publication: "facts".to_owned(),
            publication_exists: true,
            publication_comment: None,
            confirmed_lsn: Some("0/10".to_owned()),
            restart_lsn: Some("0/8".to_owned()),
            insert_lsn: "0/400010".to_owned(),
            lag_bytes: Some(4 << 20),
            lag_seconds: Some(4.0),
            answers_seconds: Some(0.012_345),
            retained_bytes: Some(5 << 20),
            wal_bytes_per_second: 1048576.0,
            safe_wal_bytes: Some(1 << 30),
            max_slot_wal_keep_size: "2GB".to_owned(),
            seconds_until_lost: Some(1024.4),
            oldest_transaction: None,
            sees_all_transactions: false,
            facts_behind: Some(Facts { counted: 3, all: false }),
        }
    }

    #[test]
    fn what_is_said_has_units_and_nothing_that_a_terminal_obeys() {
        let expected = "\
slot          factlib_slot, in use by owlpost\\u{1b}[2J (pid 7)
publication   facts
confirmed     0/10, of 0/400010
behind        4.0 MiB (1.0 MiB/s), which took 4s at this rate
answers       after 12ms
facts         3 wait and more: time was over
kept for it   5.0 MiB of log, from 0/8
lost in       17m 4s at 1.0 MiB/s: 1.0 GiB are left of max_slot_wal_keep_size = 2GB
oldest open   not visible to this role (pg_read_all_stats)";
        assert_eq!(words(&report()), expected);
    }

    #[test]
    fn the_exit_code_says_whether_the_slot_can_be_read() {
        let of =
            |state, publication_exists| code(&Report { state, publication_exists, ..report() });
        assert_eq!(of(State::Active, true), ExitCode::Stopped);
        assert_eq!(of(State::Inactive, true), ExitCode::Stopped);
        assert_eq!(of(State::Inactive, false), ExitCode::Publication);
        for state in [State::Missing, State::Lost, State::Foreign] {
            assert_eq!(of(state, true), ExitCode::Slot);
        }
    }
}
