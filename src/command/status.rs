//! `owlpost status`: where the slot stands, how far behind it is, and how long it lasts; and what Kafka has of a relay
//! that delivers exactly once.

mod transactions;

use super::along::{self, More, Stretch};
use super::barrier::{Barrier, Log};
use super::lag::{By, Checkpoint, First, Is, Known, Lag, Look, Looks, Told};
use super::printable::printable;
use super::record::Record;
use super::{ANSWER_MAX, asked_to_stop, ended, nobody_reads, print, say, unwritten};
use crate::config::Config;
use crate::exit::ExitCode;
use crate::http;
use crate::postgres::{Queries, Row, Temporary};
use crate::relay::gone::{Exit, ExitKind, Gone};
use crate::relay::position::Position;
use crate::relay::route::POSITION;
use crate::size;
use clap::Args;
use factlib_protocol::Lsn;
use factlib_protocol::replication::quote_literal;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::time::Duration;
use tokio::time::sleep;
use transactions::{Asking, ExactlyOnce};

/// So long is the first fact looked for without being asked to.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// And if there is none it is not looked for again for so long, in seconds.
const SEARCHED_FOR: f64 = 30.0;

/// From a terminal's upper left corner on, nothing else.
const CLEAR: &str = "\x1b[H\x1b[2J";

const EXAMPLES: &str = "\
It asks PostgreSQL, and works whether a relay runs or not. Any role will do; other sessions' transactions
are only seen by roles with pg_read_all_stats.

  behind       log written since the confirmed position, and how fast it is written: everything that is
               written to the server, not only facts
  oldest fact  how long ago the oldest fact was committed that is not published, and how that is known:
               exactly where nothing is behind, where a relay answers on this machine's WAL_HEALTH_PORT
               and holds facts, or by reading the log. Else at most as long ago as the log was seen to end
               where everything is confirmed by now: at the beginning of --sample, at an earlier look of
               --watch, or at the last checkpoint
  facts        how many wait, with --facts
  answers      how long after the server sent something the relay confirmed it (flush_lag)
  lost in      when max_slot_wal_keep_size will be reached if the log goes on growing at the present rate,
               which is measured for --sample, and confirmations stop

Facts are in the log only. Where nobody has the slot it is read up to the first one, for at most three
seconds, and with --facts up to its end, for --facts-timeout at most: through a temporary copy of the slot,
which takes REPLICATION, one of max_replication_slots and one of max_wal_senders, and with --facts costs
the server as much as publishing them. Where these are not to be had a bound is said, and why.

With DELIVERY=exactly-once, and KAFKA_BROKERS, Kafka is asked as well:

  transactions the relay's transactional id, and what its coordinator says: its state, for how long one has
               been open (by PostgreSQL's clock), its time-out, the producer's id and epoch
  in it        the partitions that are in the open one
  WAITING      nobody has the slot, and what a relay left open holds up consumers of committed records
  position     up to where facts are in Kafka, beside where the slot stands
  GAP          the slot is ahead of the position: a relay does not begin so

The exit code is 0 if the slot is there and can be read, 4 if it is missing, lost or ahead of the position,
6 if the publication is missing, 3 if Kafka was to be asked and did not answer.

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
    /// Age of the oldest fact that is not published.
    lag_seconds: Option<f64>,
    /// Whether that is exact, and how it is known.
    lag_seconds_is: Option<Is>,
    lag_seconds_by: Option<By>,
    /// Why the log was not read for it, where that was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    log_not_read: Option<String>,
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
    /// With `DELIVERY=exactly-once`.
    #[serde(skip_serializing_if = "Option::is_none")]
    exactly_once: Option<ExactlyOnce>,
}

impl Report {
    /// Where the slot stands, if it does.
    fn confirmed(&self) -> Option<Lsn> {
        self.confirmed_lsn.as_deref()?.parse().ok()
    }

    /// The slot stands where the log has not come to yet: facts on the way there are lost.
    fn is_ahead(&self) -> bool {
        self.lag_bytes.is_some_and(|bytes| bytes < 0)
    }
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

/// What a look leaves for the next one.
struct Watch {
    looks: Looks,
    searched: Option<Searched>,
    /// Kafka, where transactions are looked at.
    asking: Option<Asking>,
}

/// The log was read for the first fact.
struct Searched {
    /// From there.
    confirmed: Lsn,
    /// Up to there.
    end: Look,
    /// What was found, or why nothing was.
    found: Result<First, String>,
}

impl Searched {
    /// Whether that is still all that there is to say.
    fn holds(&self, confirmed: Lsn, now: f64) -> bool {
        let is_known = self.found.as_ref().is_ok_and(|first| first.is_known());
        self.confirmed == confirmed && (is_known || now < self.end.seconds + SEARCHED_FOR)
    }
}

/// Says how it stands.
pub async fn status(config: &Config, arguments: &Status) -> ExitCode {
    let clear = arguments.watch.is_some() && !arguments.json && io::stdout().is_terminal();
    let asking = match Asking::new(config) {
        Ok(asking) => asking,
        Err(code) => return code,
    };
    let watched = async {
        let mut watch = Watch { looks: Looks::new(), searched: None, asking };
        loop {
            let report = match report(config, arguments, &mut watch).await {
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
        () = nobody_reads(), if arguments.watch.is_some() => ExitCode::Stopped,
    }
}

fn code(report: &Report) -> ExitCode {
    match report.state {
        State::Missing | State::Lost | State::Foreign => ExitCode::Slot,
        _ if report.exactly_once.as_ref().is_some_and(ExactlyOnce::has_gap) => ExitCode::Slot,
        _ if !report.publication_exists => ExitCode::Publication,
        _ if report.exactly_once.as_ref().is_some_and(ExactlyOnce::is_unreached) => {
            ExitCode::Unreachable
        }
        State::Active | State::Inactive => ExitCode::Stopped,
    }
}

async fn report(config: &Config, arguments: &Status, watch: &mut Watch) -> Result<Report, Exit> {
    let mut queries = Queries::connect(&config.postgres, ANSWER_MAX).await?;
    let before = sample(&mut queries).await?;
    sleep(arguments.sample).await;
    let after = sample(&mut queries).await?;
    let rate = match after.seconds > before.seconds {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        // A server that was restarted from a backup meanwhile has gone back.
        true => after.end.0.saturating_sub(before.end.0) as f64 / (after.seconds - before.seconds),
        false => 0.0,
    };
    watch.looks.add(before);
    watch.looks.add(after);
    let mut report = look(&mut queries, config, rate).await?;
    if let Some(asking) = &mut watch.asking {
        let confirmed = report.confirmed();
        report.exactly_once = Some(asking.look(config, &mut queries, confirmed).await?);
    }
    report.oldest_transaction = oldest(&mut queries).await?;
    if matches!(report.state, State::Active | State::Inactive) {
        measure(config, arguments, &mut queries, watch, &mut report).await?;
    }
    Ok(report)
}

const INSERT: &str = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END";

/// The server's clock, and where the log ends then, or a moment later.
async fn sample(queries: &mut Queries) -> Result<Look, Gone> {
    let rows = queries.query("SELECT extract(epoch FROM clock_timestamp())::float8").await?;
    let seconds = rows.first().and_then(|row| number(row, 0));
    let seconds =
        seconds.ok_or_else(|| Gone::Lost("PostgreSQL does not say what time it is".to_owned()))?;
    let end = Log::ask(queries).await?.wanted(Barrier::Now);
    Ok(Look { end, seconds })
}

/// How far behind it is, in seconds and facts.
async fn measure(
    config: &Config,
    arguments: &Status,
    queries: &mut Queries,
    watch: &mut Watch,
    report: &mut Report,
) -> Result<(), Exit> {
    let Some(confirmed) = report.confirmed() else { return Ok(()) };
    if report.is_ahead() {
        return Ok(());
    }
    let told = relay(config).await;
    let end = sample(queries).await?;
    let mut known = Known {
        confirmed,
        wanted: end.end,
        relay: told.and_then(|told| told.lag(&config.slot, confirmed, end.end)),
        looked: watch.looks.passed(confirmed),
        checkpoint: checkpoint(queries).await?,
        ..Known::default()
    };
    if arguments.facts {
        let (facts, first) = count(config, end.end, arguments.facts_timeout).await?;
        report.facts_behind = Some(facts);
        known.first = first;
    } else if report.state == State::Inactive
        && known.relay.is_none()
        && confirmed < known.wanted
        && report.publication_exists
    {
        let before = watch.searched.take();
        let before = before.filter(|searched| searched.holds(confirmed, end.seconds));
        let searched = match before {
            Some(searched) => searched,
            None => Searched { confirmed, end, found: first(config, end.end).await },
        };
        match &searched.found {
            // Since then there may be one.
            Ok(First::Nothing) if searched.end != end => {
                let at = searched.end.seconds;
                known.looked = Some(known.looked.map_or(at, |looked| looked.max(at)));
            }
            Ok(first) => known.first = Some(*first),
            Err(reason) => report.log_not_read = Some(reason.clone()),
        }
        watch.searched = Some(searched);
    }
    known.now = sample(queries).await?.seconds;
    if let Some(Lag { seconds, is, by }) = known.lag() {
        (report.lag_seconds, report.lag_seconds_is) = (Some(seconds), Some(is));
        report.lag_seconds_by = Some(by);
    }
    Ok(())
}

/// What a relay on this machine says of itself, if one does.
async fn relay(config: &Config) -> Option<Told> {
    // Nobody there, or nobody of ours: the slot tells the rest.
    http::ask(config.http?, "/status.json").await.ok()
}

/// Not every role may ask for it everywhere.
async fn checkpoint(queries: &mut Queries) -> Result<Option<Checkpoint>, Gone> {
    let may = "SELECT has_function_privilege('pg_control_checkpoint()', 'EXECUTE') \
               AND NOT pg_is_in_recovery()";
    let rows = queries.query(may).await?;
    if rows.first().and_then(|row| text(row, 0)).as_deref() != Some("t") {
        return Ok(None);
    }
    let sql =
        "SELECT redo_lsn, extract(epoch FROM checkpoint_time)::float8 FROM pg_control_checkpoint()";
    let rows = queries.query(sql).await?;
    Ok(rows
        .first()
        .and_then(|row| Some(Checkpoint { redo: number(row, 0)?, seconds: number(row, 1)? })))
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
        lag_bytes: number(row, 10),
        lag_seconds: None,
        lag_seconds_is: None,
        lag_seconds_by: None,
        log_not_read: None,
        answers_seconds: number(row, 14),
        retained_bytes: number(row, 11),
        wal_bytes_per_second: rate,
        safe_wal_bytes,
        max_slot_wal_keep_size: text(13).unwrap_or_default(),
        seconds_until_lost: at_rate(safe_wal_bytes),
        oldest_transaction: None,
        sees_all_transactions: is(17),
        facts_behind: None,
        exactly_once: None,
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

/// Counts what the relay has still to publish; and the first of it, if time was not over before.
async fn count(
    config: &Config,
    until: Lsn,
    limit: Duration,
) -> Result<(Facts, Option<First>), Exit> {
    let mut facts = Facts { counted: 0, all: true };
    let mut first = First::Nothing;
    let each = |found: First| {
        facts.counted += 1;
        first = found;
        More::Wanted
    };
    let all = read(config, until, limit, each).await?;
    facts.all = all;
    Ok((facts, Some(first).filter(|first| all || *first != First::Nothing)))
}

/// The first fact that the relay has still to publish.
async fn first(config: &Config, until: Lsn) -> Result<First, String> {
    if config.prefixes.is_empty() {
        return Err("SRC_SERVICE_NAME is not set".to_owned());
    }
    let mut first = First::Nothing;
    let each = |found: First| {
        first = found;
        if found.is_known() { More::Enough } else { More::Wanted }
    };
    let all = read(config, until, LOOK_MAX, each).await.map_err(|exit| exit.reason)?;
    match first {
        First::Nothing if !all => {
            Err(format!("no fact was found in {}", humantime::format_duration(LOOK_MAX)))
        }
        first => Ok(first),
    }
}

/// Reads the log from where the slot stands; false if time was over before the end.
async fn read(
    config: &Config,
    until: Lsn,
    limit: Duration,
    mut each: impl FnMut(First) -> More,
) -> Result<bool, Exit> {
    // Whoever cannot be let in is told at once.
    drop(Queries::connect_to_walsender(&config.postgres, ANSWER_MAX).await?);
    let slot = Temporary::CopyOf { slot: config.slot.clone(), from: None };
    let stretch = Stretch { slot, until: Some(until) };
    let mut first = First::Nothing;
    let each = |_: &str, record: &Record| {
        let position = record.header(POSITION).and_then(Position::from_text);
        if let Some(position) = position {
            first = first.with(position.unit.class, record.timestamp_ms);
        }
        each(first)
    };
    let mut over = false;
    let stop = async {
        sleep(limit).await;
        over = true;
    };
    let mut away = None;
    along::read(config, stretch, each, |cause| away = Some(cause.to_owned()), stop).await?;
    match away {
        // It may have come back, but not far.
        Some(reason) if over && first == First::Nothing => {
            Err(Exit { kind: ExitKind::Unreachable, reason })
        }
        _ => Ok(!over),
    }
}

fn text(row: &Row, at: usize) -> Option<String> {
    row.get(at).cloned().flatten()
}

fn number<N: std::str::FromStr>(row: &Row, at: usize) -> Option<N> {
    text(row, at)?.parse().ok()
}

fn bytes(bytes: i64) -> String {
    size::human(u64::try_from(bytes).unwrap_or(0))
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

/// How long the oldest fact has waited, in words.
fn age(report: &Report) -> String {
    let (Some(age), Some(is), Some(by)) =
        (report.lag_seconds, report.lag_seconds_is, report.lag_seconds_by)
    else {
        let why =
            report.log_not_read.as_deref().map(|why| format!(" ({})", printable(why.as_bytes())));
        return format!("not known{}: --facts reads the log", why.unwrap_or_default());
    };
    let bound = match is {
        Is::Exact => "",
        Is::AtMost => "at most ",
        Is::AtLeast => "at least ",
    };
    let age = seconds(age);
    match by {
        By::Position => "none waits: everything is confirmed".to_owned(),
        By::Log if age == "0s" => "none waits: there is none in the log".to_owned(),
        By::Log => format!("{bound}{age} old, by its commit in the log"),
        By::Relay => format!("{bound}{age} old, says the relay"),
        By::Samples => format!("{bound}{age} old: what was written before is confirmed"),
        By::Checkpoint => {
            format!("{bound}{age} old: what was written before the last checkpoint is confirmed")
        }
    }
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
    let is_free = report.state != State::Active;
    if let Some(exactly_once) = &report.exactly_once {
        transactions::words(exactly_once, is_free, &mut line);
    }
    if matches!(report.state, State::Missing | State::Foreign) {
        return out.trim_end().to_owned();
    }
    line("confirmed", format!("{}, of {}", shown(&report.confirmed_lsn), report.insert_lsn));
    let rate = match report.wal_bytes_per_second > 0.0 {
        #[expect(clippy::cast_possible_truncation, reason = "for people")]
        true => format!("{}/s", bytes(report.wal_bytes_per_second as i64)),
        false => "nothing is being written".to_owned(),
    };
    if let Some(lag) = report.lag_bytes.filter(|lag| *lag < 0) {
        let ahead = bytes(lag.saturating_neg());
        line(
            "AHEAD",
            format!(
                "by {ahead} of what the log has: facts committed before that place will not be published; stop what \
                 emits them, and make the log pass it"
            ),
        );
    } else if let Some(lag) = report.lag_bytes {
        line("behind", format!("{} ({rate})", bytes(lag)));
        if report.state != State::Lost {
            line("oldest fact", age(report));
        }
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
            lag_seconds_is: Some(Is::AtMost),
            lag_seconds_by: Some(By::Samples),
            log_not_read: None,
            answers_seconds: Some(0.012_345),
            retained_bytes: Some(5 << 20),
            wal_bytes_per_second: 1048576.0,
            safe_wal_bytes: Some(1 << 30),
            max_slot_wal_keep_size: "2GB".to_owned(),
            seconds_until_lost: Some(1024.4),
            oldest_transaction: None,
            sees_all_transactions: false,
            facts_behind: Some(Facts { counted: 3, all: false }),
            exactly_once: None,
        }
    }

    #[test]
    fn what_is_said_has_units_and_nothing_that_a_terminal_obeys() {
        let expected = "\
slot          factlib_slot, in use by owlpost\\u{1b}[2J (pid 7)
publication   facts
confirmed     0/10, of 0/400010
behind        4.0 MiB (1.0 MiB/s)
oldest fact   at most 4s old: what was written before is confirmed
answers       after 12ms
facts         3 wait and more: time was over
kept for it   5.0 MiB of log, from 0/8
lost in       17m 4s at 1.0 MiB/s: 1.0 GiB are left of max_slot_wal_keep_size = 2GB
oldest open   not visible to this role (pg_read_all_stats)";
        assert_eq!(words(&report()), expected);
    }

    #[test]
    fn a_slot_that_is_ahead_of_the_log_is_not_said_to_be_well() {
        let said = words(&Report { lag_bytes: Some(-2048), ..report() });
        assert!(said.contains("AHEAD         by 2.0 KiB of what the log has"), "{said}");
        assert!(!said.contains("behind") && !said.contains("oldest fact"), "{said}");
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
