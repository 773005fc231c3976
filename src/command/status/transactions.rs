//! What `status` shows with `DELIVERY=exactly-once`: the relay's transactional id as its coordinator sees it, and the
//! position that Kafka keeps, beside the slot's.

use super::super::printable::printable;
use super::super::{ANSWER_MAX, tls};
use super::{bytes, number, seconds};
use crate::config::Config;
use crate::exit::ExitCode;
use crate::kafka::{Admin, TransactionDescription};
use crate::postgres::{Queries, identify_cluster};
use crate::relay::error_code::{TRANSACTIONAL_ID_NOT_FOUND, UNSTABLE_OFFSET_COMMIT, name};
use crate::relay::gone::{Gone, another_history};
use crate::relay::kafka::{PositionPlace, StoredPosition, Unanswered};
use crate::relay::policy::transaction_remedy;
use crate::relay::position::Timelines;
use crate::relay::position_record::{PositionRecord, Standing};
use crate::relay::{Delivery, transactional_id};
use crate::run;
use factlib_protocol::Lsn;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// A relay that runs holds its position for milliseconds; one that is dead, until its transaction is ended.
const UNSTABLE_MAX: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// In these one is open, or its end is not known to all of its partitions yet.
const OPEN: [&str; 4] = ["Ongoing", "PrepareCommit", "PrepareAbort", "PrepareEpochFence"];

/// So many partitions are named to people.
const PARTITIONS_SAID: usize = 20;

/// What there is to say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct ExactlyOnce {
    /// None where PostgreSQL does not say which cluster it is.
    transactional_id: Option<String>,
    /// None where the coordinator does not know the id.
    transaction: Option<Transaction>,
    /// Why nothing is said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_not_told: Option<String>,
    /// None where Kafka keeps none.
    position: Option<Position>,
    /// Why nothing is said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    position_not_told: Option<String>,
    /// Kafka was asked, and no broker answered.
    #[serde(skip)]
    is_unreached: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Transaction {
    /// As Kafka has it.
    state: String,
    producer_id: i64,
    producer_epoch: i16,
    timeout_seconds: f64,
    /// How long one has been open, by the clock of PostgreSQL.
    open_seconds: Option<f64>,
    partitions: Vec<Partition>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Partition {
    topic: String,
    partition: i32,
}

/// The position that Kafka keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Position {
    lsn: String,
    /// What stands beside the offset, where it is the relay's.
    timeline: Option<u32>,
    /// The last fact that is there.
    fact: Option<String>,
    /// In how many parts its transaction is there, if not as a whole.
    parts: u32,
    /// False while another one is in a transaction that is open.
    is_settled: bool,
    /// How far it is ahead of the slot; below 0 where the slot is ahead of it. None where they cannot be compared.
    bytes_ahead: Option<i64>,
    /// So much was confirmed to PostgreSQL for which there is no position.
    gap_bytes: Option<u64>,
    /// Why it cannot be compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_compared: Option<String>,
}

impl ExactlyOnce {
    /// The slot is ahead of the position: a relay does not begin so.
    pub(super) fn has_gap(&self) -> bool {
        self.position.as_ref().is_some_and(|position| position.gap_bytes.is_some())
    }

    pub(super) fn is_unreached(&self) -> bool {
        self.is_unreached
    }

    fn unknown(why: String) -> Self {
        Self {
            transactional_id: None,
            transaction: None,
            transaction_not_told: Some(why.clone()),
            position: None,
            position_not_told: Some(why),
            is_unreached: false,
        }
    }
}

/// Who asks, again and again.
#[derive(Debug)]
pub(super) struct Asking {
    admin: Option<Admin>,
    topic: Arc<str>,
}

impl Asking {
    /// None if facts are delivered at least once.
    ///
    /// # Errors
    ///
    /// How the process ends, after saying why: files for TLS cannot be read.
    pub(super) fn new(config: &Config) -> Result<Option<Self>, ExitCode> {
        let Delivery::ExactlyOnce(settings) = &config.delivery else { return Ok(None) };
        let admin = match config.kafka.brokers.is_empty() {
            true => None,
            false => Some(Admin::new(run::kafka_config(config, tls(config)?))),
        };
        Ok(Some(Self { admin, topic: Arc::clone(&settings.position_topic) }))
    }

    /// Looks, after it was seen where the slot stands: no position that is committed stands before a slot of before.
    pub(super) async fn look(
        &mut self,
        config: &Config,
        queries: &mut Queries,
        confirmed: Option<Lsn>,
    ) -> Result<ExactlyOnce, Gone> {
        let server = match server(config, queries).await? {
            Ok(server) => server,
            Err(why) => return Ok(ExactlyOnce::unknown(why)),
        };
        let id: Arc<str> =
            Arc::from(transactional_id(server.system, server.database, &config.slot));
        let Some(admin) = &mut self.admin else {
            let unknown = ExactlyOnce::unknown("KAFKA_BROKERS is not set".to_owned());
            return Ok(ExactlyOnce { transactional_id: Some(id.to_string()), ..unknown });
        };
        let limit = Instant::now() + ANSWER_MAX;
        let late = |_| {
            Err(Unanswered(format!("no answer within {}", humantime::format_duration(ANSWER_MAX))))
        };
        let described = timeout_at(limit, admin.transaction(&id)).await.unwrap_or_else(late);
        let place = PositionPlace { group: Arc::clone(&id), topic: Arc::clone(&self.topic) };
        let kept = match &described {
            // One wait is enough.
            Err(cause) => Err(cause.clone()),
            Ok(_) => timeout_at(limit, kept(admin, &place)).await.unwrap_or_else(|_| {
                Err(Unanswered(format!("no answer of the group's coordinator for {ANSWER_MAX:?}")))
            }),
        };
        // By the same clock as all else.
        let now = super::sample(queries).await?.seconds;
        let is_unreached = described.is_err() || kept.is_err();
        let (transaction, transaction_not_told) = described_as(described, now);
        let (position, position_not_told) = match kept {
            Ok(Ok(None)) => (None, None),
            Ok(Ok(Some((stored, is_settled)))) => {
                (Some(beside(config, &server, confirmed, &stored, is_settled).await), None)
            }
            Ok(Err(code)) => (None, Some(refusal(code))),
            Err(Unanswered(cause)) => (None, Some(cause)),
        };
        Ok(ExactlyOnce {
            transactional_id: Some(id.to_string()),
            transaction,
            transaction_not_told,
            position,
            position_not_told,
            is_unreached,
        })
    }
}

fn refusal(code: i16) -> String {
    format!("{}: {}", name(code), transaction_remedy(code))
}

fn described_as(
    described: Result<Result<TransactionDescription, i16>, Unanswered>,
    now: f64,
) -> (Option<Transaction>, Option<String>) {
    let described = match described {
        Ok(Ok(described)) => described,
        Ok(Err(TRANSACTIONAL_ID_NOT_FOUND)) => return (None, None),
        Ok(Err(code)) => return (None, Some(refusal(code))),
        Err(Unanswered(cause)) => return (None, Some(cause)),
    };
    let TransactionDescription { state, producer, timeout, since_ms, partitions } = described;
    let since_ms = since_ms.filter(|_| OPEN.contains(&state.as_str()));
    #[expect(clippy::cast_precision_loss, reason = "an age")]
    // Clocks may differ.
    let open_seconds = since_ms.map(|since| (now - since as f64 / 1e3).max(0.0));
    let partitions = partitions.into_iter();
    let transaction = Transaction {
        state,
        producer_id: producer.id,
        producer_epoch: producer.epoch,
        timeout_seconds: timeout.as_secs_f64(),
        open_seconds,
        partitions: partitions.map(|(topic, partition)| Partition { topic, partition }).collect(),
    };
    (Some(transaction), None)
}

/// A position, and whether none is in hand.
type Kept = Option<(StoredPosition, bool)>;

/// The position that is committed, also where another one is in a transaction that is not ended.
async fn kept(admin: &mut Admin, place: &PositionPlace) -> Result<Result<Kept, i16>, Unanswered> {
    let until = Instant::now() + UNSTABLE_MAX;
    loop {
        let is_stable = Instant::now() < until;
        match admin.position(place, is_stable).await? {
            Err(UNSTABLE_OFFSET_COMMIT) if is_stable => sleep(PAUSE).await,
            kept => return Ok(kept.map(|kept| kept.map(|kept| (kept, is_stable)))),
        }
    }
}

/// Which server it is, and on which timeline.
struct Server {
    system: u64,
    database: u32,
    timeline: u32,
}

/// A sentence where it does not tell us.
async fn server(config: &Config, queries: &mut Queries) -> Result<Result<Server, String>, Gone> {
    let may = "SELECT has_function_privilege('pg_control_system()', 'EXECUTE') \
                  AND has_function_privilege('pg_control_checkpoint()', 'EXECUTE'), \
               (SELECT oid FROM pg_database WHERE datname = current_database())";
    let rows = queries.query(may).await?;
    let row = rows.first();
    let may = row.and_then(|row| super::text(row, 0)).as_deref() == Some("t");
    let Some(database) = row.and_then(|row| number(row, 1)) else {
        return Err(Gone::Lost("PostgreSQL does not say which database this is".to_owned()));
    };
    if may {
        // The control file has the timeline of the last checkpoint, which may be before a promotion.
        let sql = "SELECT system_identifier, CASE WHEN pg_is_in_recovery() THEN timeline_id \
                   ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint END \
                   FROM pg_control_system(), pg_control_checkpoint()";
        let rows = queries.query(sql).await?;
        let found = rows.first().and_then(|row| Some((number(row, 0)?, number(row, 1)?)));
        let unknown = || Gone::Lost("PostgreSQL does not say which cluster this is".to_owned());
        let (system, timeline) = found.ok_or_else(unknown)?;
        return Ok(Ok(Server { system, database, timeline }));
    }
    Ok(match identify_cluster(&config.postgres).await {
        Ok((system, timelines)) => Ok(Server { system, database, timeline: timelines.current() }),
        Err(gone) => Err(format!(
            "which cluster this is, of which the transactional id is made, is not told to this role: grant it EXECUTE \
             on pg_control_system() and pg_control_checkpoint(), or REPLICATION ({})",
            gone.reason()
        )),
    })
}

/// The position beside the slot.
async fn beside(
    config: &Config,
    server: &Server,
    confirmed: Option<Lsn>,
    stored: &StoredPosition,
    is_settled: bool,
) -> Position {
    let record = PositionRecord::from_stored(stored);
    let timelines = match &record {
        // Two of the same number may be different ones, but for the first.
        Ok(record) if (record.timelines.current(), server.timeline) != (1, 1) => {
            match identify_cluster(&config.postgres).await {
                Ok((_, timelines)) => Ok(timelines),
                // What a role without REPLICATION can be told.
                Err(_) if record.timelines.current() == server.timeline => {
                    Ok(record.timelines.clone())
                }
                Err(gone) => Err(gone.reason().to_owned()),
            }
        }
        _ => Ok(Timelines::new(server.timeline, Vec::new())),
    };
    compared(record, timelines, server.system, confirmed, stored, is_settled)
}

/// The same, once all is known. Pure.
fn compared(
    record: Result<PositionRecord, String>,
    timelines: Result<Timelines, String>,
    system: u64,
    confirmed: Option<Lsn>,
    stored: &StoredPosition,
    is_settled: bool,
) -> Position {
    let mut position = Position {
        lsn: Lsn(stored.offset.cast_unsigned()).to_string(),
        timeline: None,
        fact: None,
        parts: 0,
        is_settled,
        bytes_ahead: None,
        gap_bytes: None,
        not_compared: None,
    };
    let record = match record {
        Ok(record) => record,
        Err(why) => return Position { not_compared: Some(why), ..position },
    };
    position.timeline = Some(record.timelines.current());
    position.fact = record.fact.map(|fact| fact.to_string());
    position.parts = record.parts;
    let timeline = record.timelines.current();
    let why = match (confirmed, timelines) {
        _ if record.system != system => {
            format!("it is of the cluster with system id {}, and this is {system}", record.system)
        }
        (None, _) => "the slot stands nowhere".to_owned(),
        (_, Err(why)) => {
            format!("it is of timeline {timeline}, and the server does not tell its history: {why}")
        }
        (Some(confirmed), Ok(timelines)) => match record.on(&timelines, confirmed) {
            Standing::Comparable => {
                position.bytes_ahead = i64::try_from(record.lsn.0 - confirmed.0).ok();
                return position;
            }
            // What is in hand may close it.
            Standing::Gap { from, bytes } => {
                position.gap_bytes = Some(bytes).filter(|_| is_settled);
                if from == record.lsn {
                    position.bytes_ahead = i64::try_from(bytes).ok().map(i64::wrapping_neg);
                    return position;
                }
                format!(
                    "it is of a part of timeline {timeline} that the server does not have, behind {from}"
                )
            }
            Standing::Forked { timeline: last, end } => {
                let words = another_history(&record.timelines, &timelines, last, end);
                format!("the server has another history, and a relay does not begin so: {words}")
            }
            Standing::BeyondTheSwitch { end, .. } => format!(
                "it is of a part of timeline {timeline} that the server does not have, behind {end}: facts of the \
                 common part are not produced again, and reading starts where the slot stands"
            ),
            Standing::ElsewhereInHistory => format!(
                "it is of timeline {timeline}, on which the server has never been: reading starts where the slot stands"
            ),
        },
    };
    Position { not_compared: Some(why), ..position }
}

/// What is said to people, by the names of the lines. `is_free`: nobody has the slot.
pub(super) fn words(it: &ExactlyOnce, is_free: bool, line: &mut impl FnMut(&str, String)) {
    let id = it.transactional_id.as_deref().map_or_else(
        || "?".to_owned(),
        |id| {
            // The slot's name is in it.
            printable(id.as_bytes())
        },
    );
    line(
        "transactions",
        match (&it.transaction, &it.transaction_not_told) {
            (_, Some(why)) => format!("{id}: not told ({})", printable(why.as_bytes())),
            (None, None) => format!("{id}: unknown to Kafka, so no relay has begun with it"),
            (Some(transaction), None) => format!("{id}: {}", state(transaction)),
        },
    );
    if let Some(transaction) = &it.transaction {
        if !transaction.partitions.is_empty() {
            line("in it", partitions(&transaction.partitions));
        }
        if let Some(open) = transaction.open_seconds.filter(|_| is_free) {
            let left = seconds((transaction.timeout_seconds - open).max(0.0));
            line(
                "WAITING",
                format!(
                    "no relay has the slot: consumers of committed records wait in these partitions until one begins, or \
                     for {left} more"
                ),
            );
        }
    }
    line(
        "position",
        match (&it.position, &it.position_not_told) {
            (_, Some(why)) => format!("not told ({})", printable(why.as_bytes())),
            (None, None) => "Kafka keeps none: a relay begins where the slot stands".to_owned(),
            (Some(position), None) => place(position),
        },
    );
    if let Some(gap) = it.position.as_ref().and_then(|position| position.gap_bytes) {
        line(
            "GAP",
            format!(
                "the slot is {} beyond the position: what was committed between is in neither, unless it was published \
                 with DELIVERY=at-least-once; a relay does not begin so, until the position is forgotten \
                 (kafka-consumer-groups --delete --group {id})",
                bytes(i64::try_from(gap).unwrap_or(i64::MAX))
            ),
        );
    }
}

fn state(transaction: &Transaction) -> String {
    let Transaction { state, producer_id, producer_epoch, timeout_seconds, open_seconds, .. } =
        transaction;
    let open = open_seconds.map(|open| format!(" for {}", seconds(open))).unwrap_or_default();
    format!(
        "{}{open}, time-out {}, producer {producer_id}, epoch {producer_epoch}",
        printable(state.as_bytes()),
        seconds(*timeout_seconds)
    )
}

fn partitions(partitions: &[Partition]) -> String {
    let said = partitions.get(..PARTITIONS_SAID).unwrap_or(partitions);
    let by_topic = said.chunk_by(|a, b| a.topic == b.topic).map(|of_one| {
        let topic = of_one.first().map_or("", |first| first.topic.as_str());
        let indices: Vec<_> = of_one.iter().map(|one| one.partition.to_string()).collect();
        format!("{} {}", printable(topic.as_bytes()), indices.join(", "))
    });
    let mut words = by_topic.collect::<Vec<_>>().join("; ");
    let more = partitions.len() - said.len();
    if more > 0 {
        words.push_str(&format!(" and {more} more"));
    }
    words
}

fn place(position: &Position) -> String {
    let Position { lsn, parts, is_settled, bytes_ahead, not_compared, .. } = position;
    let mut words = lsn.clone();
    match (bytes_ahead, not_compared) {
        (Some(0), _) => words.push_str(", where the slot stands"),
        (Some(ahead), _) if *ahead > 0 => {
            words.push_str(&format!(", {} ahead of the slot", bytes(*ahead)));
        }
        (Some(behind), _) => {
            let behind = bytes(behind.saturating_neg());
            words.push_str(&format!(", {behind} behind the slot"));
        }
        (None, Some(why)) => words.push_str(&format!("; {}", printable(why.as_bytes()))),
        (None, None) => {}
    }
    if *parts > 0 {
        words.push_str(&format!("; {parts} parts of the transaction behind it are there"));
    }
    if !is_settled {
        words.push_str("; another one is in a transaction that is not ended");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::kafka::ProducerId;
    use crate::relay::position::{self as relay, Unit};

    fn record(lsn: u64) -> PositionRecord {
        PositionRecord {
            system: 7,
            timelines: Timelines::new(1, Vec::new()),
            lsn: Lsn(lsn),
            fact: None,
            parts: 0,
        }
    }

    fn at(record: PositionRecord, confirmed: u64, is_settled: bool) -> Position {
        let timelines = Ok(Timelines::new(1, Vec::new()));
        let stored = record.to_stored();
        compared(Ok(record), timelines, 7, Some(Lsn(confirmed)), &stored, is_settled)
    }

    fn report() -> ExactlyOnce {
        let description = TransactionDescription {
            state: "Ongoing".to_owned(),
            producer: ProducerId { id: 4000, epoch: 7 },
            timeout: Duration::from_secs(60),
            since_ms: Some(1_000_000),
            partitions: vec![("a".to_owned(), 0), ("a".to_owned(), 3), ("b\x1b".to_owned(), 1)],
        };
        let (transaction, transaction_not_told) = described_as(Ok(Ok(description)), 1012.5);
        ExactlyOnce {
            transactional_id: Some("owlpost-7-5-s".to_owned()),
            transaction,
            transaction_not_told,
            position: Some(at(record(0x3000), 0x2000, true)),
            position_not_told: None,
            is_unreached: false,
        }
    }

    fn said(report: &ExactlyOnce, is_free: bool) -> String {
        let mut out = String::new();
        words(report, is_free, &mut |name, words| out.push_str(&format!("{name}: {words}\n")));
        out
    }

    #[test]
    fn an_open_transaction_and_the_position_are_said_with_units() {
        let expected = "\
transactions: owlpost-7-5-s: Ongoing for 12s, time-out 1m, producer 4000, epoch 7
in it: a 0, 3; b\\u{1b} 1
position: 0/3000, 4.0 KiB ahead of the slot
";
        assert_eq!(said(&report(), false), expected);
        let waiting = said(&report(), true);
        assert!(
            waiting.contains("WAITING: no relay has the slot: ") && waiting.contains("47s more")
        );
        let many = (0..30).map(|partition| Partition { topic: "t".to_owned(), partition });
        let said = partitions(&many.collect::<Vec<_>>());
        assert!(said.starts_with("t 0, 1, ") && said.ends_with(", 19 and 10 more"), "{said}");
    }

    #[test]
    fn a_slot_ahead_of_the_position_is_a_gap_unless_another_one_is_in_hand() {
        let gap = at(record(0x2000), 0x3000, true);
        assert_eq!((gap.gap_bytes, gap.bytes_ahead), (Some(0x1000), Some(-0x1000)));
        let report = ExactlyOnce { position: Some(gap), ..report() };
        assert!(report.has_gap());
        let words = said(&report, false);
        let expected = "GAP: the slot is 4.0 KiB beyond the position";
        assert!(words.contains(expected) && words.contains("--group owlpost-7-5-s"), "{words}");
        let in_hand = at(record(0x2000), 0x3000, false);
        assert_eq!(in_hand.gap_bytes, None);
        assert!(place(&in_hand).contains("another one is in a transaction"));
        assert_eq!(place(&at(record(0x2000), 0x2000, true)), "0/2000, where the slot stands");
    }

    #[test]
    fn what_cannot_be_compared_says_why() {
        let stored = record(0x2000).to_stored();
        let confirmed = Some(Lsn(0x3000));
        let same = || Ok(Timelines::new(1, Vec::new()));
        let why = |record, timelines, system, confirmed| {
            let found = compared(record, timelines, system, confirmed, &stored, true);
            assert_eq!((found.gap_bytes, found.bytes_ahead), (None, None));
            place(&found)
        };
        let unit = Unit::transaction(Lsn(0x1ff0));
        let of_another = PositionRecord {
            timelines: Timelines::new(3, vec![(1, Lsn(0x1000))]),
            fact: Some(relay::Position { timeline: 3, unit, index: 0 }),
            ..record(0x2000)
        };
        let later = || Ok(Timelines::new(3, vec![(1, Lsn(0x1000))]));
        for (found, words) in [
            (why(Ok(record(0x2000)), same(), 8, confirmed), "system id 7, and this is 8"),
            (why(Ok(record(0x2000)), same(), 7, None), "the slot stands nowhere"),
            (why(Ok(record(0x2000)), Err("no".to_owned()), 7, confirmed), "its history: no"),
            (why(Err("by hand".to_owned()), same(), 7, confirmed), "0/2000; by hand"),
            (
                why(Ok(record(0x2000)), later(), 7, Some(Lsn(0x1000))),
                "timeline 1 that the server does not",
            ),
            (why(Ok(of_another), same(), 7, confirmed), "an old primary that is still up"),
            (
                why(Ok(record(0x2000)), Ok(Timelines::new(3, Vec::new())), 7, confirmed),
                "on which the server has never been",
            ),
        ] {
            assert!(found.contains(words), "{words}: {found}");
        }
    }

    #[test]
    fn what_kafka_does_not_say_is_not_taken_for_nothing() {
        let why = || "broker 1: silence".to_owned();
        let silent = ExactlyOnce {
            transaction: None,
            transaction_not_told: Some(why()),
            position: None,
            position_not_told: Some(why()),
            ..report()
        };
        let words = said(&silent, true);
        assert_eq!(words.matches("not told (broker 1: silence)").count(), 2, "{words}");
        let nothing = ExactlyOnce { transaction_not_told: None, position_not_told: None, ..silent };
        let words = said(&nothing, true);
        assert!(
            words.contains("unknown to Kafka") && words.contains("Kafka keeps none"),
            "{words}"
        );
        let (none, why) = described_as(Ok(Err(TRANSACTIONAL_ID_NOT_FOUND)), 0.0);
        assert_eq!((none, why), (None, None));
        let (none, why) = described_as(Ok(Err(53)), 0.0);
        assert!(none.is_none() && why.unwrap().contains("Write and Describe"));
    }
}
