//! The way of a fact: from the receive buffer through pgoutput and the envelope to the producer.

use super::batch::Record;
use super::engine::{
    BEHIND_MICROS, FOREIGN_NAMED_MAX, FOREIGN_SHOWN_MAX, Flow, Link, Relay, Stuck, UNTOLD_SHARE,
};
use super::error_code;
use super::event::{End, Event, GivenUp, Halted};
use super::exchange::{Now, Output};
use super::fact::Fact;
use super::gone::{self, Gone};
use super::poison::{self, Cause, Poison, Policy};
use super::position::{Position, Unit};
use super::producer::Route;
use super::route;
use super::seeded_bug::SeededBug;
use super::session::{Session, Transaction};
use bytes::Buf as _;
use factlib_protocol::feedback::Revealed;
use factlib_protocol::replication::XLogData;
use factlib_protocol::{DecodeError, Fault, Frame, Lsn, Timestamp};
use factlib_protocol::{backend, pgoutput, replication};

/// What to do about a topic that is not there for us.
const USABLE: &str = "create it, or allow this client to describe and write to it";

/// A fact that cannot be published, as far as it is known.
pub(super) struct Letter<'a> {
    pub(super) position: Position,
    pub(super) lsn: Lsn,
    pub(super) timestamp: Timestamp,
    /// When it was committed.
    pub(super) committed: Timestamp,
    pub(super) key: Option<&'a [u8]>,
    /// What was emitted, or its first part.
    pub(super) value: &'a [u8],
}

impl Relay {
    /// Takes whole frames from the buffer, until it has none or reading must pause.
    pub(super) fn read(&mut self, now: Now) {
        self.measure();
        let buffer = std::mem::take(&mut self.receive);
        let mut rest: &[u8] = &buffer;
        let mut failed = None;
        while matches!(self.link, Link::Streaming(_)) && !self.is_paused() {
            if self.oversize.is_some() && !self.pass_oversize(now, &mut rest) {
                self.measure();
                break;
            }
            let frame = match Frame::decode(rest, self.settings.frame_bytes_max) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(DecodeError { fault: Fault::TooLong(length), .. }) => {
                    if self.oversize(now, rest, usize::try_from(length).unwrap_or(usize::MAX)) {
                        continue;
                    }
                    break;
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            };
            let len = frame.encoded_len();
            match self.frame(now, frame) {
                Ok(Flow::Taken) => rest = rest.get(len..).unwrap_or_default(),
                Ok(Flow::Stuck(stuck)) => {
                    self.stuck = Some(stuck);
                    if stuck == Stuck::Topic {
                        self.foresee(now.at, rest.get(len..).unwrap_or_default());
                    }
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            self.measure();
        }
        let taken = buffer.len() - rest.len();
        if let Some(error) = failed {
            let cause = format!("what PostgreSQL sent cannot be read: {error}");
            self.hang_up(now, End::Unreadable, self.settings.backoff_max, cause);
        }
        if matches!(self.link, Link::Streaming(_)) {
            self.receive = buffer;
            self.receive.advance(taken);
        }
    }

    /// How much of the window waits for Kafka. Batches of an older timeline are nothing to the ledger, but
    /// they take memory.
    pub(super) fn held(&self) -> u64 {
        self.ledger.held().max(self.producer.unsettled_bytes() as u64)
    }

    /// Reading pauses at the bound and goes on when a quarter of it is free.
    pub(super) fn measure(&mut self) {
        let max = self.settings.in_flight_bytes_max;
        let max = (max - max / UNTOLD_SHARE) as u64;
        let bytes = self.held() + self.ledger.untold();
        self.full = bytes >= max || (self.full && bytes > max / 4 * 3);
    }

    pub(super) fn frame(&mut self, now: Now, frame: Frame<'_>) -> Result<Flow, DecodeError> {
        match backend::Message::decode(frame)? {
            // Of no length, it says nothing; the manual does not forbid it.
            backend::Message::CopyData([]) => {}
            backend::Message::CopyData(payload) => match replication::Message::decode(payload)? {
                replication::Message::XLogData(data) => return self.xlog_data(now, &data),
                replication::Message::PrimaryKeepalive(keepalive) => {
                    let Link::Streaming(session) = &mut self.link else { return Ok(Flow::Taken) };
                    let revealed = session.feedback.keepalive(now.at, &keepalive);
                    if let Some(clock) = session.feedback.server_clock(now.at) {
                        self.server_ahead = clock.0.saturating_sub(now.clock.0);
                    }
                    // While units are dropped because we are stopping, walEnd covers facts that
                    // nobody has.
                    if self.stopping.as_ref().is_none_or(|stopping| stopping.taking) {
                        self.ledger.keepalive(keepalive.wal_end);
                        if self.ledger.is_idle() {
                            self.open_since = None;
                        }
                    }
                    if revealed == Revealed::ServerStopping {
                        let unsettled = self.producer.unsettled_facts();
                        self.events.push_back(Event::ServerStopping { unsettled });
                    }
                }
                // Nothing else is defined for a logical stream.
                _ => {}
            },
            backend::Message::ErrorResponse(fields) => {
                self.outputs.push_back(Output::Hangup);
                let error = fields.to_error();
                self.gone(now, gone::classify(&error));
            }
            backend::Message::CopyDone | backend::Message::CommandComplete(_) => {
                if let Link::Streaming(session) = &self.link {
                    // It does so when it has read what we said last.
                    self.told = session.feedback.told();
                }
                if self.copy_ended().is_some() {
                    return Ok(Flow::Taken);
                }
                self.outputs.push_back(Output::Hangup);
                self.gone(now, Gone::Lost("the server ended the stream".to_owned()));
            }
            // A NoticeResponse (18 warns of a missing publication in the stream) or a
            // ParameterStatus can come at any time.
            _ => {}
        }
        Ok(Flow::Taken)
    }

    pub(super) fn xlog_data(&mut self, now: Now, data: &XLogData<'_>) -> Result<Flow, DecodeError> {
        if self.stopping.is_some() && !self.still_takes() {
            return Ok(Flow::Taken);
        }
        let Link::Streaming(session) = &mut self.link else { return Ok(Flow::Taken) };
        session.feedback.data();
        match session.decoder.decode(data.data)? {
            pgoutput::Message::Message(message) => {
                return self.message(now, &message, data.server_clock);
            }
            pgoutput::Message::Begin(begin) => {
                let unit = Unit::transaction(begin.final_lsn);
                let lag = data.server_clock.0.saturating_sub(begin.commit_timestamp.0);
                self.lagging = lag >= BEHIND_MICROS;
                let open = session.transaction.is_some();
                if open || !Self::is_next(session, unit) {
                    return Ok(self.out_of_order(now, unit));
                }
                session.transaction = Some(Transaction {
                    unit,
                    commit_timestamp: begin.commit_timestamp,
                    next_index: 0,
                });
                self.open_since = Some(begin.commit_timestamp);
                self.ledger.begin(unit);
            }
            pgoutput::Message::Commit(commit) => {
                session.feedback.receive(commit.end_lsn);
                let unit = Unit::transaction(commit.commit_lsn);
                let open = session.transaction.take().map(|transaction| transaction.unit);
                if open != Some(unit) {
                    return Ok(self.out_of_order(now, unit));
                }
                self.end(unit, commit.end_lsn);
                if self.seeded.is(SeededBug::WalStartPlusLength) {
                    self.ledger.keepalive(Lsn(data.wal_start.0 + data.data.len() as u64));
                }
            }
            // Rows of tables that somebody added to the publication.
            _ => {}
        }
        Ok(Flow::Taken)
    }

    pub(super) fn end(&mut self, unit: Unit, end: Lsn) {
        self.ledger.end(unit, end);
        self.ended = Some(unit);
        self.open_since = None;
        if self.groups.is_some() {
            self.unit_ended();
        }
        if self.seeded.is(SeededBug::ConfirmOnRead) {
            self.ledger.confirm_on_read(end);
        }
    }

    pub(super) fn is_next(session: &mut Session, unit: Unit) -> bool {
        session.last_unit.replace(unit).is_none_or(|last| last < unit)
    }

    /// Everything here rests on the order of the stream; without it nothing may be confirmed.
    pub(super) fn out_of_order(&mut self, now: Now, unit: Unit) -> Flow {
        let cause = format!("the stream is out of order at {}", unit.lsn);
        self.hang_up(now, End::Unreadable, self.settings.backoff_max, cause);
        Flow::Taken
    }

    pub(super) fn position(&self, unit: Unit, index: u32) -> Position {
        Position { timeline: self.timelines.of(unit), unit, index }
    }

    pub(super) fn message(
        &mut self,
        now: Now,
        message: &pgoutput::LogicalMessage<'_>,
        server_clock: Timestamp,
    ) -> Result<Flow, DecodeError> {
        let Link::Streaming(session) = &mut self.link else { return Ok(Flow::Taken) };
        if message.transactional != session.transaction.is_some() {
            // A transaction's messages come between its Begin and Commit, others never do.
            return Ok(self.out_of_order(now, Unit::message(message.lsn)));
        }
        let transaction = &session.transaction;
        let (unit, index, written) = match transaction {
            Some(transaction) => {
                (transaction.unit, transaction.next_index, transaction.commit_timestamp)
            }
            None => (Unit::message(message.lsn), 0, server_clock),
        };
        let alone = transaction.is_none();
        if alone && session.last_unit.is_some_and(|last| last >= unit) {
            return Ok(self.out_of_order(now, unit));
        }
        if self.seeded.is(SeededBug::ConfirmBeforeCommit) && !alone && self.ledger.is_settled() {
            self.ledger.confirm_on_read(Lsn(unit.lsn.0 + 1));
        }
        if self.settings.prefixes.iter().any(|prefix| prefix.as_bytes() == message.prefix) {
            if self.waits_for_position {
                return Ok(Flow::Stuck(Stuck::Position));
            }
            let position = self.position(unit, index);
            // After a reconnect what was enqueued comes again; it is on its way, or there.
            if self.enqueued.is_none_or(|enqueued| enqueued < position) {
                if alone {
                    self.ledger.begin(unit);
                    self.open_since = Some(written);
                }
                if let Flow::Stuck(stuck) = self.publish(now, message, position, written) {
                    return Ok(Flow::Stuck(stuck));
                }
            }
        } else {
            self.name_foreign(message.prefix);
        }
        self.message_taken(unit, index, message.lsn);
        Ok(Flow::Taken)
    }

    /// A message, whoever's, was read, and what it asked for is done.
    pub(super) fn message_taken(&mut self, unit: Unit, index: u32, lsn: Lsn) {
        let Link::Streaming(session) = &mut self.link else { return };
        if let Some(transaction) = &mut session.transaction {
            transaction.next_index = index.saturating_add(1);
        } else {
            session.last_unit = Some(unit);
            session.feedback.receive(lsn);
            self.end(unit, lsn);
        }
    }

    /// A prefix that was meant to be ours and is not passes facts over for good: whoever mistyped it can
    /// see so in the log.
    pub(super) fn name_foreign(&mut self, prefix: &[u8]) {
        // Any length, by whoever may connect to the database.
        let prefix = prefix.get(..FOREIGN_SHOWN_MAX).unwrap_or(prefix);
        let named = &mut self.foreign;
        if named.len() < FOREIGN_NAMED_MAX && !named.iter().any(|known| **known == *prefix) {
            named.push(prefix.into());
            let prefix = String::from_utf8_lossy(prefix).into_owned();
            self.events.push_back(Event::Foreign { prefix });
        }
    }

    /// Gives a fact to the producer, or says why it cannot be.
    pub(super) fn publish(
        &mut self,
        now: Now,
        message: &pgoutput::LogicalMessage<'_>,
        position: Position,
        committed: Timestamp,
    ) -> Flow {
        let lsn = message.lsn;
        let timestamp = if self.settings.timestamp_is_publish { now.clock } else { committed };
        let fact = match Fact::decode(message.content) {
            Ok(fact) => fact,
            Err(error) => {
                let reason = format!(
                    "unreadable envelope: {error}: it was emitted in another format, or with a prefix that is \
                     another's; correct the emitter, and see POISON_POLICY"
                );
                self.headers.fill_unreadable(&self.source, &position, lsn);
                let cause = Cause::UnreadableEnvelope;
                let poison = Poison::new(cause, reason, None, 0);
                let value = message.content;
                let letter = Letter { position, lsn, timestamp, committed, key: None, value };
                return self.poisoned(now, &letter, poison);
            }
        };
        // Prefixes come from the configuration, so this one is UTF-8.
        let prefix = std::str::from_utf8(message.prefix).unwrap_or_default();
        let naming = &self.settings.naming;
        let is_topic = naming.name_topic(prefix, &fact, &mut self.topic);
        if let Some(key) = &naming.key {
            key.render(prefix, &fact, &mut self.key);
        }
        let key = naming.key.is_some().then_some(self.key.as_bytes());
        let routed = match is_topic {
            true => match self.producer.route(now.at, &self.topic) {
                Route::Ready(topic, partitions) => Ok((topic, partitions)),
                Route::Wait => return Flow::Stuck(Stuck::Topic),
                Route::Missing(code) => {
                    let (cause, remedy) = match code {
                        error_code::TOPIC_AUTHORIZATION_FAILED => (Cause::NotAuthorized, USABLE),
                        // Of names that differ in nothing else Kafka takes one: they would be one metric.
                        error_code::INVALID_TOPIC_EXCEPTION => (
                            Cause::TopicMissing,
                            "Kafka refuses the name: another topic may differ from it only in '.' and '_'; emit \
                             another aggregate type, or see TOPIC_TEMPLATE",
                        ),
                        _ => (Cause::TopicMissing, USABLE),
                    };
                    let reason = format!(
                        "topic {} cannot be used ({}); {remedy}",
                        self.topic,
                        error_code::name(code)
                    );
                    Err((cause, reason))
                }
            },
            false => {
                let reason = format!(
                    "{:?} cannot be a topic's name: only letters, digits, '.', '_' and '-', at most {} \
                     of them",
                    // It may be of any length.
                    self.topic.chars().take(route::TOPIC_LEN_MAX + 1).collect::<String>(),
                    route::TOPIC_LEN_MAX
                );
                Err((Cause::InvalidTopic, reason))
            }
        };
        self.headers.fill(&fact, &self.source, &position, lsn, self.settings.metadata_headers);
        if let Some(part) = self.part {
            self.headers.push(route::PART, part.to_string().as_bytes());
        }
        let value = match self.settings.value_is_payload {
            false => Some(message.content),
            true => fact.payload.bytes(),
        };
        let too_large = || {
            let reason =
                "larger than a broker takes in one request by default (100 MiB)".to_owned();
            (Cause::TooLarge, reason)
        };
        // The aggregate's id is in the envelope, in the key and in a header.
        let timestamp_ms = 0;
        let fits = Record { timestamp_ms, key, value, headers: &self.headers }.fits_a_request();
        let (topic, partitions) =
            match routed.and_then(|to| fits.then_some(to).ok_or_else(too_large)) {
                Ok(to) => to,
                Err((cause, reason)) => {
                    let poison = Poison::new(cause, reason, Some(self.topic.clone()), 0);
                    let value = message.content;
                    let key = key.map(<[u8]>::to_vec);
                    let key = key.as_deref();
                    let letter = Letter { position, lsn, timestamp, committed, key, value };
                    let flow = self.poisoned(now, &letter, poison);
                    if matches!(flow, Flow::Taken) {
                        self.tally.gave_up(&fact);
                    }
                    return flow;
                }
            };
        let record =
            Record { timestamp_ms: timestamp.unix_millis(), key, value, headers: &self.headers };
        let partition = route::partition(key.unwrap_or_default(), partitions);
        self.producer.push(topic, partition, position, committed, &record, &mut self.ledger);
        self.tally.published(&fact);
        self.done_with(position);
        Flow::Taken
    }

    /// The fact at `position` is on its way, or nothing more is to be done about it.
    fn done_with(&mut self, position: Position) {
        self.enqueued = Some(position);
        self.stalled = None;
        // What stands before it may come again, where it was read in part.
        if self.halted.take_if(|halted| halted.position <= position).is_some() {
            self.events.push_back(Event::Resumed { position });
        }
    }

    /// Does with a fact what the policy says. What is known of it is in `self.headers`.
    pub(super) fn poisoned(&mut self, now: Now, letter: &Letter<'_>, poison: Poison) -> Flow {
        let Letter { position, lsn, timestamp, committed, key, value } = *letter;
        let policy = self.settings.policies.of(poison.topic.as_deref());
        match policy {
            Policy::Halt => return self.halt(position, lsn, poison.topic, poison.reason),
            Policy::Skip => {}
            Policy::DeadLetter => {
                let name = self.settings.policies.dead_letter_topic.as_deref().unwrap_or_default();
                let (topic, partitions) = match self.producer.route(now.at, name) {
                    Route::Ready(topic, partitions) => (topic, partitions),
                    Route::Wait => return Flow::Stuck(Stuck::Topic),
                    Route::Missing(code) => {
                        let reason = format!(
                            "{}; the dead-letter topic {name} cannot be used ({}); create it, or allow \
                             this client to write to it",
                            poison.reason,
                            error_code::name(code)
                        );
                        return self.halt(position, lsn, poison.topic, reason);
                    }
                };
                poison.describe(&mut self.headers);
                let headers = &self.headers;
                let room =
                    Record { timestamp_ms: 0, key, value: None, headers }.room_in_a_request();
                let value = value.get(..value.len().min(room));
                let record = Record { timestamp_ms: timestamp.unix_millis(), key, value, headers };
                let partition = route::partition(key.unwrap_or_default(), partitions);
                self.producer.push(
                    topic,
                    partition,
                    position,
                    committed,
                    &record,
                    &mut self.ledger,
                );
            }
        }
        self.done_with(position);
        let (partition, facts, bytes) = (None, 1, letter.value.len());
        self.events.push_back(Event::GivenUp(GivenUp {
            policy,
            poison,
            partition,
            position,
            facts,
            bytes,
        }));
        Flow::Taken
    }

    pub(super) fn halt(
        &mut self,
        position: Position,
        lsn: Lsn,
        topic: Option<String>,
        reason: String,
    ) -> Flow {
        let (topic, reason) = (topic.map(poison::in_short), poison::in_short(reason));
        let halted = Halted { position, lsn, topic, reason };
        if self.halted.as_ref() != Some(&halted) {
            self.events.push_back(Event::Halted(halted.clone()));
            self.halted = Some(halted);
        }
        Flow::Stuck(Stuck::Halted)
    }
}
