//! Facts in Kafka transactions: what goes into one, where the relay begins, and who publishes.
//!
//! A group is what one Kafka transaction holds: whole transactions of PostgreSQL in the order of their delivery, and the
//! position behind them. PostgreSQL is told only what a committed position holds, so at a start the slot stands at
//! it or before; what comes again is known by its position, and not produced again.

use super::engine::{Link, Relay, SLOT_IN_USE_RETRY, Stuck};
use super::event::{AbortReason, End, Event};
use super::exchange::{Delivery, ExactlyOnce, LargeTransactions, Now, Settings, transactional_id};
use super::gone::{ExitKind, another_history};
use super::position::{Position, Unit};
use super::position_record::{PositionRecord, SWITCHES_KEPT, Standing};
use super::seeded_bug::SeededBug;
use crate::size;
use factlib_protocol::Lsn;
use std::time::{Duration, Instant};

/// Where no facts come, the position follows what is read at most this often: whoever waits for a place in the log waits
/// no longer than for the status that tells it, and a transaction a second is nothing to a broker.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// And as soon as so much of the log is behind it: a segment, which the server could do without.
const IDLE_BYTES: u64 = 16 * 1024 * 1024;

/// Where nothing at all is read it is committed again, long before it expires: brokers keep offsets for a week, or as
/// `offsets.retention.minutes` says, which nobody sets to less than a day.
const RENEWAL: Duration = Duration::from_secs(3600);

/// A transaction that is open for such a part of its timeout is ended: the rest is for ending it.
const TIMEOUT_SHARE: u32 = 2;

/// Such a part of the window is one group at most: while it is being committed the next one gathers.
const WINDOW_SHARE: usize = 2;

/// What is gathering.
#[derive(Debug)]
pub(super) struct Groups {
    settings: ExactlyOnce,
    /// The transactional id, which is the consumer group, too.
    id: String,
    bytes_max: usize,
    /// The last fact of what was read as a whole. What was enqueued behind it is part of a transaction that is being
    /// read.
    whole: Option<Position>,
    /// The unit that goes in several transactions, how many of them are closed.
    split: Option<(Unit, u32)>,
    /// When the first fact was enqueued.
    since: Option<Instant>,
    /// It is to be closed at the end of the unit that is being read.
    due: bool,
    /// It is to be closed before anything is read: what was read in part was taken out of it, and comes again.
    is_cut: bool,
    /// The time, where that is asked for unit by unit.
    now: Option<Instant>,
    /// When a position was read or closed last.
    positioned: Option<Instant>,
    /// Where the slot stood when that was asked last.
    slot: Lsn,
    /// Another session had the slot since it was ours.
    slot_lost: bool,
    /// The position because of which the server is asked anew where its log ends.
    asked_because_of: Option<Lsn>,
    /// Since when PostgreSQL is away, if it did not leave because Kafka takes nothing.
    away_since: Option<Instant>,
    /// When something follows from the time alone.
    wake: Option<Instant>,
}

impl Groups {
    pub(super) fn new(settings: &Settings) -> Option<Self> {
        let Delivery::ExactlyOnce(exactly_once) = &settings.delivery else { return None };
        Some(Self {
            bytes_max: exactly_once.bytes_max.min(settings.in_flight_bytes_max / WINDOW_SHARE),
            settings: exactly_once.clone(),
            id: String::new(),
            whole: None,
            split: None,
            since: None,
            due: false,
            is_cut: false,
            now: None,
            positioned: None,
            slot: Lsn::INVALID,
            slot_lost: false,
            asked_because_of: None,
            away_since: None,
            wake: None,
        })
    }

    pub(super) fn wake(&self) -> Option<Instant> {
        self.wake
    }

    /// So many facts and bytes are a group.
    fn is_full(&self, (facts, bytes): (usize, usize)) -> bool {
        bytes >= self.bytes_max || facts >= self.settings.facts_max
    }
}

impl Relay {
    /// The server is known, and where the slot stands.
    pub(super) fn slot_stands(&mut self, now: Now, system: u64, database: u32, confirmed: Lsn) {
        let Some(groups) = &mut self.groups else { return };
        groups.slot = confirmed;
        groups.id = transactional_id(system, database, &groups.settings.slot);
        self.producer.name_transactions(now.at, &groups.id);
        // It may have been read before the connection was lost.
        self.judge(now, true);
    }

    /// PostgreSQL is away, whatever we do.
    pub(super) fn postgres_away(&mut self, now: Now) {
        if let Some(groups) = &mut self.groups {
            groups.away_since.get_or_insert(now.at);
        }
    }

    /// Another session has the slot: what is held here is for it to publish. A relay that stops waits until it is told
    /// whether that is somebody else.
    pub(super) fn slot_lost(&mut self, now: Now) {
        let Some(groups) = &mut self.groups else { return };
        let is_news = !std::mem::replace(&mut groups.slot_lost, true);
        if is_news && self.stopping.is_none() {
            self.forget_held(now, false);
        }
    }

    /// Somebody moved the slot past what is committed here: a relay that knows no transactions, or an operator. What is
    /// held may be published, and where that begins only the position says. False if this is the end.
    pub(super) fn slot_was_moved(&mut self, now: Now) -> bool {
        if self.groups.is_some() && self.stopping.is_some() && self.producer.unsettled_facts() > 0 {
            self.begin_anew(now, "another had the slot, and moved it".to_owned());
            return false;
        }
        self.slot_lost(now);
        true
    }

    /// The slot is ours. Whoever had it meanwhile may have published what is held; who has it now takes the
    /// transactional id, too.
    pub(super) fn slot_taken(&mut self, now: Now) {
        if let Some(groups) = &mut self.groups {
            groups.away_since = None;
        }
        // A relay that stops has no time to read again: it is told whether somebody has come.
        let Some(groups) = self.groups.as_mut().filter(|_| self.stopping.is_none()) else { return };
        if std::mem::take(&mut groups.slot_lost) && self.producer.has_identity() {
            self.forget_held(now, true);
        }
    }

    /// What is held counts no more: it will be read again, as far as it is still there. With `anew` nothing of ours
    /// does.
    pub(super) fn forget_held(&mut self, now: Now, anew: bool) {
        self.ledger.timeline_changed();
        self.producer.timeline_changed();
        self.enqueued = None;
        self.part = None;
        if let Some(groups) = &mut self.groups {
            (groups.whole, groups.split, groups.is_cut) = (None, None, false);
            self.producer.drop_held(now.at, anew, &mut self.ledger, &mut self.events);
            self.waits_for_position = true;
        }
    }

    /// Facts of a unit that was not read to its end leave the group, and come again as a whole.
    pub(super) fn unread(&mut self, now: Now) {
        let Some(groups) = &mut self.groups else { return };
        if self.enqueued == groups.whole {
            return;
        }
        groups.is_cut = true;
        self.enqueued = groups.whole;
        self.producer.cut(now.at, groups.whole, &mut self.ledger, &mut self.events);
    }

    /// An answer of Kafka has come.
    pub(super) fn transactions_answered(&mut self, now: Now) {
        if let Some(cause) = self.producer.fenced().map(str::to_owned) {
            return self.fenced(now, cause);
        }
        if let Some(cause) = self.producer.take_unsure() {
            return self.begin_anew(now, cause);
        }
        self.judge(now, false);
    }

    fn fenced(&mut self, now: Now, cause: String) {
        let Some(groups) = &self.groups else { return };
        if !matches!(self.link, Link::Streaming(_)) {
            // Without the slot that is no news. Who has it again takes the transactional id, too.
            if self.stopping.is_none() {
                self.forget_held(now, true);
            }
            return;
        }
        let waits = groups.settings.standby && self.stopping.is_none();
        self.events.push_back(Event::Fenced { cause: cause.clone(), waits });
        if !waits {
            let reason = format!(
                "{cause}; nothing more is published here, and what was not committed stays in the slot: stop the \
                 other one, or run this one as its standby (FENCED_POLICY=standby)"
            );
            return self.exit(ExitKind::Fenced, reason);
        }
        self.begin_anew(now, cause);
    }

    /// Somebody else may have published what is held: what is in Kafka is to be asked, with the slot.
    fn begin_anew(&mut self, now: Now, cause: String) {
        if self.stopping.is_some() {
            let unsettled = self.producer.unsettled_facts();
            let reason = format!(
                "{cause}; {unsettled} facts that were read are not known to be in Kafka: they stay in the slot, and \
                 those that are not there will be delivered again"
            );
            return self.exit(ExitKind::Deadline, reason);
        }
        if matches!(self.link, Link::Streaming(_) | Link::Starting) {
            self.hang_up(now, End::Fenced, SLOT_IN_USE_RETRY, cause);
        }
        self.forget_held(now, true);
    }

    /// The position that was read is compared with where the slot stands. With `identified` the server has said that
    /// just now.
    fn judge(&mut self, now: Now, identified: bool) {
        let Some(found) = self.producer.found_position() else { return };
        let (Some(groups), Some(system)) = (&self.groups, self.system) else { return };
        let (slot, group) = (groups.slot, &groups.id);
        let topic = &groups.settings.position_topic;
        let forget = format!(
            "delete it (kafka-consumer-groups --delete --group {group}), and the relay begins where the slot stands"
        );
        let record = match found {
            Ok(record) => record,
            Err(why) => {
                let reason = format!(
                    "the position that Kafka keeps for group {group} and topic {topic} cannot be read: {why}; {forget}: \
                     facts that are in Kafka and were not confirmed to PostgreSQL then come twice"
                );
                return self.exit(ExitKind::Slot, reason);
            }
        };
        let mut position = (slot.min(self.wal_flushed), None);
        match record {
            None => self.events.push_back(Event::PositionMissing { slot }),
            Some(record) if record.system != system => {
                let reason = format!(
                    "the position that Kafka keeps for group {group} is of the cluster with system id {}, and this is \
                     {system}; {forget}, if that was meant",
                    record.system
                );
                return self.exit(ExitKind::OtherCluster, reason);
            }
            Some(record) => match record.on(&self.timelines, slot) {
                Standing::Forked { timeline, end } => {
                    let reason = format!(
                        "the position that Kafka keeps for group {group} is {}, and this server has another history \
                         ({}); {forget}, if this is the one to go on with",
                        record.lsn,
                        another_history(&record.timelines, &self.timelines, timeline, end),
                    );
                    return self.exit(ExitKind::OtherCluster, reason);
                }
                Standing::Comparable if record.lsn > self.wal_flushed.max(self.ahead) => {
                    if groups.asked_because_of != Some(record.lsn) {
                        return self.ask_anew(now, record.lsn, identified);
                    }
                    let reason = format!(
                        "the server's WAL ends at {}, before {}, up to which its facts are in Kafka: its history went \
                         back (a restored backup, or fsync switched off?); facts may be missing or different",
                        self.wal_flushed, record.lsn
                    );
                    return self.exit(ExitKind::OtherCluster, reason);
                }
                Standing::Comparable => {
                    let (lsn, fact) = (record.lsn, record.fact);
                    self.events.push_back(Event::PositionRead { lsn, fact });
                    position = (lsn, Some(record));
                }
                Standing::Gap { from, bytes } => {
                    let reason = format!(
                        "the slot stands at {slot}, {} beyond {from}, up to which facts are in Kafka: what was committed \
                         between is in neither, unless it was published with DELIVERY=at-least-once; if it was, or is \
                         to be given up, {forget}",
                        size::human(bytes)
                    );
                    return self.exit(ExitKind::Slot, reason);
                }
                standing => {
                    let (lsn, timeline) = (record.lsn, record.timelines.current());
                    self.events.push_back(Event::PositionPassed { lsn, timeline, slot });
                    if let Standing::BeyondTheSwitch { timeline, end } = standing {
                        let record = record.cut(timeline, end);
                        position = (record.lsn.max(position.0), Some(record));
                    }
                }
            },
        }
        let (lsn, mut record) = position;
        if self.seeded.is(SeededBug::ResumeFromSlot) {
            record = None;
        }
        self.ledger.positioned(lsn);
        self.enqueued = record.as_ref().and_then(|record| record.fact);
        if let Some(groups) = &mut self.groups {
            groups.whole = self.enqueued;
            groups.split = record.and_then(|record| Some((record.split()?, record.parts)));
            groups.positioned = Some(now.at);
        }
        self.set_part();
        self.producer.judged(now.at, &mut self.events);
    }

    /// A position is beyond the end of the log as it was when we asked: another relay may have read further since, and
    /// only then have lost the slot. Who asks again knows.
    fn ask_anew(&mut self, now: Now, position: Lsn, identified: bool) {
        // An answer is on its way, and it will be looked at then.
        if matches!(self.link, Link::Connecting) && !identified {
            return;
        }
        if let Some(groups) = &mut self.groups {
            groups.asked_because_of = Some(position);
        }
        if !matches!(self.link, Link::Away { .. }) {
            let cause = format!(
                "its WAL ended at {}, before {position}, up to which its facts are in Kafka; asking again",
                self.wal_flushed
            );
            self.hang_up(now, End::Asking, Duration::ZERO, cause);
        }
    }

    /// The part of a split unit that facts which come now belong to.
    fn set_part(&mut self) {
        let Some(groups) = &self.groups else { return };
        self.part = groups.split.map(|(_, parts)| parts + 1);
    }

    /// A unit was read to its end.
    pub(super) fn unit_ended(&mut self) {
        let enqueued = self.enqueued;
        let Some(groups) = &mut self.groups else { return };
        groups.whole = enqueued;
        // The one that was split may be behind others that come again.
        if groups.split.is_some_and(|(unit, _)| self.ended.is_some_and(|ended| ended >= unit)) {
            groups.split = None;
            self.part = None;
        }
        let Some(groups) = &self.groups else { return };
        let Some(now) = groups.now else { return };
        let gathered = self.producer.gathered();
        if self.producer.closes() && gathered.0 > 0 && (groups.due || groups.is_full(gathered)) {
            self.close(now);
        }
    }

    /// Before anything is read.
    pub(super) fn look_after_groups(&mut self, now: Now) {
        self.waits_for_position = !self.producer.takes_facts();
        if self.stuck == Some(Stuck::Position) && !self.waits_for_position {
            self.stuck = None;
        }
        let stopping = self.stopping.is_some();
        let (facts, _) = self.producer.gathered();
        let Some(groups) = &mut self.groups else { return };
        groups.now = Some(now.at);
        if facts == 0 {
            groups.since = None;
        }
        let interval = groups.settings.interval;
        groups.due = stopping || groups.since.is_some_and(|since| now.at >= since + interval);
        if groups.is_cut && self.producer.closes() {
            groups.is_cut = false;
            // Where the one before took so long, the beginning of it may be there again.
            if facts > 0 && self.enqueued == groups.whole {
                self.close(now.at);
            }
        }
    }

    /// Until when a Kafka transaction may be open although PostgreSQL is away: without the slot it cannot be
    /// committed, and consumers of committed records wait for its end. What is short they do not notice, and it
    /// saves producing all of it again.
    fn away_until(&self) -> Option<Instant> {
        Some(self.groups.as_ref()?.away_since? + self.settings.stall_timeout)
    }

    /// After what there was is read: closes what is to be closed.
    pub(super) fn gather(&mut self, now: Now) {
        self.look_after_groups(now);
        if self.away_until().is_some_and(|until| now.at >= until) {
            let cause = "PostgreSQL is away, and consumers would wait for it";
            let reason = AbortReason::PostgresAway;
            self.producer.end_transaction(
                now.at,
                reason,
                cause,
                &mut self.ledger,
                &mut self.events,
            );
        }
        if self.stopping.as_ref().is_some_and(|stopping| !stopping.taking) {
            self.unread(now);
        }
        let (facts, bytes) = self.producer.gathered();
        let opened = self.producer.transaction_opened();
        let enqueued = self.enqueued;
        let Some(groups) = &mut self.groups else { return };
        if facts == 0 {
            if self.producer.closes() && self.moves_on(now) {
                self.close(now.at);
            }
            return;
        }
        groups.since.get_or_insert(now.at);
        if !self.producer.closes() {
            return;
        }
        if enqueued == groups.whole {
            if groups.due || groups.is_full((facts, bytes)) {
                self.close(now.at);
            }
            return;
        }
        let share = groups.settings.timeout / TIMEOUT_SHARE;
        let is_old = opened.is_some_and(|opened| now.at >= opened + share);
        let cause = if bytes >= groups.bytes_max {
            format!(
                "its facts are more than {} (see IN_FLIGHT_BYTES)",
                size::human(groups.bytes_max as u64)
            )
        } else if is_old {
            format!("it was being read for longer than half of TRANSACTION_TIMEOUT ({share:?})")
        } else {
            return;
        };
        self.too_large(now, cause);
    }

    /// The unit that is being read does not go into one transaction.
    fn too_large(&mut self, now: Now, cause: String) {
        let (Some(groups), Some(position)) = (&mut self.groups, self.enqueued) else { return };
        match groups.settings.large {
            LargeTransactions::Split => {
                let parts = match groups.split {
                    Some((unit, parts)) if unit == position.unit => parts + 1,
                    _ => 1,
                };
                groups.split = Some((position.unit, parts));
                groups.whole = Some(position);
                self.events.push_back(Event::TransactionSplit { position, part: parts, cause });
                self.set_part();
                self.close(now.at);
            }
            LargeTransactions::Halt => {
                let reason = format!(
                    "the transaction at {} is too large for one Kafka transaction: {cause}; raise that, or let such \
                     go in several (LARGE_TRANSACTIONS=split)",
                    position.unit.lsn
                );
                // Which fact it is depends on how much was read at once.
                let position = Position { index: u32::MAX, ..position };
                if self.stuck != Some(Stuck::Halted) {
                    self.halt(position, position.unit.lsn, None, reason);
                    self.stuck = Some(Stuck::Halted);
                }
            }
        }
    }

    /// True if the position is to follow what was read, or to be renewed.
    fn moves_on(&self, now: Now) -> bool {
        if self.stopping.is_some() || self.lease().is_none_or(|until| now.at >= until) {
            return false;
        }
        let Some(groups) = &self.groups else { return false };
        let (read, flush) = (self.ledger.read(), self.ledger.flush());
        let since = |interval| groups.positioned.is_none_or(|at| now.at >= at + interval);
        let behind = read > flush && (since(IDLE_INTERVAL) || read.0 - flush.0 >= IDLE_BYTES);
        behind || since(RENEWAL)
    }

    /// Ends what is gathering, with the position behind it.
    fn close(&mut self, now: Instant) {
        let Some(system) = self.system else { return };
        // Units before the position come again where the slot stands before it.
        let lsn = self.ledger.read().max(self.ledger.flush());
        let timelines = self.timelines.newest(SWITCHES_KEPT);
        let Some(groups) = &mut self.groups else { return };
        let fact = groups.whole;
        let parts = groups.split.map_or(0, |(_, parts)| parts);
        (groups.since, groups.due, groups.positioned) = (None, false, Some(now));
        self.producer.close_group(now, PositionRecord { system, timelines, lsn, fact, parts });
    }

    /// When something follows from the time alone.
    pub(super) fn plan_groups(&mut self, now: Now) {
        let (facts, _) = self.producer.gathered();
        let streams = self.stopping.is_none() && self.lease().is_some_and(|until| now.at < until);
        let (read, flush) = (self.ledger.read(), self.ledger.flush());
        let (closes, opened) = (self.producer.closes(), self.producer.transaction_opened());
        let away_until = self.away_until().filter(|_| opened.is_some());
        let enqueued = self.enqueued;
        let Some(groups) = &mut self.groups else { return };
        let wake = if !closes {
            None
        } else if facts > 0 && enqueued == groups.whole {
            groups.since.map(|since| since + groups.settings.interval)
        } else if facts > 0 {
            let due = groups.since.map(|since| since + groups.settings.interval);
            let due = due.filter(|_| !groups.due);
            let share = groups.settings.timeout / TIMEOUT_SHARE;
            due.into_iter().chain(opened.map(|opened| opened + share)).min()
        } else if streams {
            let interval = if read > flush { IDLE_INTERVAL } else { RENEWAL };
            groups.positioned.map(|at| at + interval)
        } else {
            None
        };
        groups.wake = wake.into_iter().chain(away_until).filter(|at| *at > now.at).min();
    }
}
