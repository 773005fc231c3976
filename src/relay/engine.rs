//! The machine itself: its state, its connection to PostgreSQL, what follows from the time, the stop.

use super::backoff::Jitter;
use super::event::{End, Event, Halted};
use super::exactly_once::Groups;
use super::exchange::{Delivery, Identity, Input, Now, Output, Reading, Settings};
use super::gone::{Exit, ExitKind, Gone, another_cluster, another_history};
use super::gulp::Gulp;
use super::ledger::Ledger;
use super::oversize::Oversize;
use super::position::{Histories, Position, Timelines, Unit};
use super::producer::{self, Producer};
use super::route::{Headers, Source};
use super::seeded_bug::{Seeded, SeededBug};
use super::session::Session;
use super::tally::Tally;
use bytes::BytesMut;
use factlib_protocol::{Lsn, Timestamp, frontend};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long the server may send on after our CopyDone.
const COPY_DONE_PATIENCE: Duration = Duration::from_secs(1);

/// How long between two attempts to take a slot that another session has: short, because the wait
/// is what a take-over costs.
pub(super) const SLOT_IN_USE_RETRY: Duration = Duration::from_secs(1);

/// How far behind its commit a transaction is sent when we are behind. Both clocks are the server's.
pub(super) const BEHIND_MICROS: i64 = 20_000;

/// While we are behind, batches that could still grow are sent at most this often: small requests cost
/// the broker and us more per fact, and on a machine shared with PostgreSQL its walsender, too.
const SWEEP_INTERVAL: Duration = Duration::from_millis(10);

/// The server is told without delay when so large a share of the window is confirmed and not told: what is
/// not told is repeated after a crash, and on the way to a fast Kafka much more than a window can be settled
/// while an advance waits for company. Reading leaves the same share free, for what the server was told and
/// has not read when the relay dies.
pub(super) const UNTOLD_SHARE: usize = 4;

#[derive(Debug)]
pub(super) enum Link {
    Away { until: Instant },
    Connecting,
    Starting,
    Streaming(Box<Session>),
    Closed,
}

/// Why the frame at the front of the buffer cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stuck {
    /// The topic cannot take facts before an answer of the cluster.
    Topic,
    /// How far the facts are in Kafka is not known yet.
    Position,
    /// It needs somebody's hand.
    Halted,
}

/// So many prefixes of others are named in the log. A database has a handful of services.
pub(super) const FOREIGN_NAMED_MAX: usize = 16;

/// Of those so many bytes are kept and told.
pub(super) const FOREIGN_SHOWN_MAX: usize = 200;

/// What became of a frame.
pub(super) enum Flow {
    Taken,
    /// It stays where it is and is tried again.
    Stuck(Stuck),
}

#[derive(Debug)]
pub(super) struct Stopping {
    pub(super) deadline: Instant,
    /// Units are still taken: the current transaction is read to its Commit.
    pub(super) taking: bool,
    /// When the last status and CopyDone were sent in this session.
    pub(super) ended_at: Option<Instant>,
    /// What that status told.
    pub(super) last_told: Lsn,
    /// What is not settled is not waited for.
    pub(super) gives_up: bool,
}

/// The relay. See the module's documentation for how to drive it.
#[derive(Debug)]
pub struct Relay {
    pub(super) settings: Settings,
    pub(super) started: Option<Instant>,
    pub(super) jitter: Jitter,
    pub(super) link: Link,
    pub(super) attempts: u32,
    pub(super) away_cause: Option<String>,
    pub(super) slot_in_use: Option<String>,
    pub(super) identified: bool,
    pub(super) system: Option<u64>,
    pub(super) timelines: Timelines,
    /// Where the last START_REPLICATION asked to start.
    pub(super) start: Lsn,
    pub(super) source: Source,
    pub(super) ledger: Ledger,
    pub(super) producer: Producer,
    pub(super) receive: BytesMut,
    /// The socket had nothing more when it was read last.
    pub(super) drained: bool,
    /// What the last reads say of the next one.
    pub(super) gulp: Gulp,
    /// By its own clock the server sends what was committed a while ago.
    pub(super) lagging: bool,
    /// When batches that could still grow are sent although we are behind.
    pub(super) sweep_at: Option<Instant>,
    pub(super) full: bool,
    pub(super) stuck: Option<Stuck>,
    /// What was enqueued when topics were asked for that are needed later.
    pub(super) foreseen: Option<Option<Position>>,
    /// Since when the socket is unread, and how much of the window waited for Kafka then.
    pub(super) paused: Option<(Instant, u64)>,
    pub(super) halted: Option<Halted>,
    /// Why reading was given up last, until something moves again.
    pub(super) stalled: Option<String>,
    /// The flush LSN that the server knows, as far as we know.
    pub(super) told: Lsn,
    /// How far this timeline was read in earlier sessions.
    pub(super) read_to: Lsn,
    /// Where the slot stood at the first contact, if the server's log had not reached it: nothing that is committed
    /// before it is ever sent, but the server's keepalives speak of it.
    pub(super) ahead: Lsn,
    /// Where the server's WAL ended when it was asked last: who has not read so far is behind.
    pub(super) wal_flushed: Lsn,
    /// When the unit was committed that was begun and not read to its end.
    pub(super) open_since: Option<Timestamp>,
    /// How far the server's clock is ahead of ours, in microseconds.
    pub(super) server_ahead: i64,
    /// Bytes that were ever read from the server.
    pub(super) received_bytes: u64,
    /// Facts that were read, by kind.
    pub(super) tally: Tally,
    /// The newest unit that was read to its end in this session.
    pub(super) ended: Option<Unit>,
    /// The newest fact that was given to the producer. Nothing is read past a fact that was not, so
    /// one position does for all partitions.
    pub(super) enqueued: Option<Position>,
    /// A message that is over the limit and being read past.
    pub(super) oversize: Option<Oversize>,
    /// Prefixes of others that were named already.
    pub(super) foreign: Vec<Box<[u8]>>,
    /// Facts go in Kafka transactions.
    pub(super) groups: Option<Box<Groups>>,
    /// Facts cannot be enqueued before the position in Kafka is known.
    pub(super) waits_for_position: bool,
    /// The transaction that is being read goes in several, and this is the number of the one that is gathering.
    pub(super) part: Option<u32>,
    pub(super) stopping: Option<Stopping>,
    pub(super) exited: bool,
    pub(super) headers: Headers,
    pub(super) topic: String,
    pub(super) key: String,
    pub(super) outputs: VecDeque<Output>,
    pub(super) events: VecDeque<Event>,
    pub(super) seeded: Seeded,
}

impl Relay {
    /// A relay that has not begun. The first [`Relay::handle`] begins.
    pub fn new(settings: Settings) -> Self {
        let seed = settings.seed;
        let groups = Groups::new(&settings).map(Box::new);
        let transactions = match &settings.delivery {
            Delivery::AtLeastOnce => None,
            Delivery::ExactlyOnce(exactly_once) => Some(producer::TransactionSettings {
                position_topic: exactly_once.position_topic.clone(),
                position_topic_like: exactly_once.position_topic_like.clone(),
                timeout: exactly_once.timeout,
            }),
        };
        let mut ledger = Ledger::default();
        if groups.is_some() {
            ledger.follow_positions();
        }
        let producer = producer::Settings {
            backoff_max: settings.backoff_max,
            metadata_age_max: settings.metadata_age_max,
            batch_bytes: settings.batch_bytes,
            batch_records: settings.batch_records,
            in_flight: settings.in_flight_per_partition,
            keeps_order: settings.keeps_order,
            compression: settings.compression,
            policies: settings.policies.clone(),
            create_topics: settings.create_topics.clone(),
            skip_stored: settings.skip_stored,
            transactions,
        };
        Self {
            started: None,
            jitter: Jitter::new(seed),
            link: Link::Closed,
            attempts: 0,
            away_cause: None,
            slot_in_use: None,
            identified: false,
            system: None,
            timelines: Timelines::new(0, Vec::new()),
            start: Lsn::INVALID,
            source: Source::new(0, 0),
            ledger,
            producer: Producer::new(producer, Jitter::new(seed.wrapping_add(1))),
            receive: BytesMut::new(),
            drained: true,
            gulp: Gulp::default(),
            lagging: false,
            sweep_at: None,
            full: false,
            stuck: None,
            foreseen: None,
            paused: None,
            halted: None,
            stalled: None,
            told: Lsn::INVALID,
            read_to: Lsn::INVALID,
            ahead: Lsn::INVALID,
            wal_flushed: Lsn::INVALID,
            open_since: None,
            server_ahead: 0,
            received_bytes: 0,
            tally: Tally::default(),
            ended: None,
            enqueued: None,
            oversize: None,
            foreign: Vec::new(),
            waits_for_position: groups.is_some(),
            groups,
            part: None,
            stopping: None,
            exited: false,
            headers: Headers::default(),
            topic: String::new(),
            key: String::new(),
            outputs: VecDeque::new(),
            events: VecDeque::new(),
            settings,
            seeded: Seeded::default(),
        }
    }

    /// Breaks the relay deliberately, for a test that must go red.
    pub fn seed_bug(&mut self, seeded: Seeded) {
        self.seeded = seeded;
        self.ledger.seeded = seeded;
        self.producer.seed_bug(seeded);
    }

    /// Where bytes from PostgreSQL go. Whole messages are taken from its front.
    pub fn receive_buffer(&mut self) -> &mut BytesMut {
        &mut self.receive
    }

    /// How to read from PostgreSQL now.
    pub fn reading(&self) -> Reading {
        match self.link {
            Link::Streaming(_) if self.is_paused() => Reading::Paused,
            // What there was no room for is of the same gulp.
            Link::Streaming(_) if self.drained && self.is_behind() => {
                Reading::Gather(self.gulp.gather())
            }
            Link::Streaming(_) => Reading::Now,
            _ => Reading::Paused,
        }
    }

    /// Takes one input and brings the relay up to `now`.
    pub fn handle(&mut self, now: Now, input: Input) {
        if self.exited {
            return;
        }
        if self.started.is_none() {
            self.started = Some(now.at);
            self.link = Link::Connecting;
            self.outputs.push_back(Output::Connect { known_system: self.system });
            self.producer.begin(now.at);
        }
        match input {
            Input::Identified(identity) => self.identified(now, identity),
            Input::Streaming { asked_at } => self.streaming(now, asked_at),
            Input::Received { bytes, drained } => {
                self.received_bytes = self.received_bytes.saturating_add(bytes as u64);
                self.drained = drained;
                self.gulp.received(bytes, drained, self.lagging);
            }
            Input::PostgresGone(gone) => self.gone(now, gone),
            Input::Kafka(answer) => {
                let unsettled = self.producer.unsettled_facts();
                self.producer.handle(now.at, answer, &mut self.ledger, &mut self.events);
                if let Some((known, found)) = self.producer.other_cluster() {
                    let reason = format!(
                        "this is another Kafka cluster: its id is {found}, that of the facts so far {known}; \
                         check KAFKA_BROKERS, and restart if the change was meant: facts that are not \
                         confirmed then go to the new cluster"
                    );
                    return self.exit(ExitKind::OtherKafka, reason);
                }
                // The answer may be what the topic waits for: it is known, or empty.
                if self.stuck == Some(Stuck::Topic) {
                    self.stuck = None;
                }
                if self.producer.unsettled_facts() < unsettled {
                    self.stalled = None;
                }
                if self.groups.is_some() {
                    self.transactions_answered(now);
                }
            }
            Input::Timeout => {}
            Input::Stop => self.stop(now),
            Input::GiveUp => {
                if let Some(stopping) = &mut self.stopping {
                    stopping.gives_up = true;
                }
            }
        }
        self.step(now);
    }

    /// What to do next, until none.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(event) = self.events.pop_front() {
            return Some(Output::Event(event));
        }
        self.outputs.pop_front()
    }

    /// When to say [`Input::Timeout`], if nothing else happens before.
    pub fn deadline(&self) -> Option<Instant> {
        if self.exited {
            return None;
        }
        let link = match &self.link {
            Link::Away { until } => [Some(*until), None, None],
            Link::Streaming(session) => [
                session.feedback.due(self.ledger.flush()).filter(|_| self.copy_ended().is_none()),
                Some(session.lease_until(self.settings.lease)),
                self.paused.map(|(since, _)| since + self.settings.stall_timeout),
            ],
            _ => [None; 3],
        };
        let stop = self.stopping.as_ref().map(|stopping| stopping.deadline);
        let copy_done = self.copy_ended().map(|at| at + COPY_DONE_PATIENCE);
        let startup = self.startup_deadline();
        let produce = matches!(self.link, Link::Streaming(_));
        let sweep = self.sweep_at.filter(|_| produce);
        let groups = self.groups.as_ref().and_then(|groups| groups.wake());
        let others = [self.producer.deadline(produce), stop, copy_done, startup, sweep, groups];
        link.into_iter().chain(others).flatten().min()
    }

    pub(super) fn startup_deadline(&self) -> Option<Instant> {
        let reached = self.identified && self.producer.reached();
        Some(self.started? + self.settings.startup_timeout.filter(|_| !reached)?)
    }

    /// Until when the slot is surely ours, while it is: a driver that was stopped for a while must not
    /// publish after that.
    pub fn lease(&self) -> Option<Instant> {
        match &self.link {
            Link::Streaming(session) => Some(session.lease_until(self.settings.lease)),
            _ => None,
        }
    }

    fn is_behind(&self) -> bool {
        self.gulp.is_behind() || self.lagging
    }

    pub(super) fn is_paused(&self) -> bool {
        self.full || self.stuck.is_some()
    }

    // ---- the connection to PostgreSQL ----

    pub(super) fn identified(&mut self, now: Now, identity: Identity) {
        self.identified = true;
        let Identity { system, timeline, wal_flushed, history, database, confirmed_flush } =
            identity;
        if let Some(known) = self.system.filter(|known| *known != system) {
            return self.exit(ExitKind::OtherCluster, another_cluster(system, known));
        }
        let timelines = Timelines::new(timeline, history);
        if self.system.is_some()
            && let Histories::Part { timeline, end, is_fork: true } =
                self.timelines.beside(&timelines)
        {
            let reason = another_history(&self.timelines, &timelines, timeline, end);
            return self
                .exit(ExitKind::OtherCluster, format!("the server has another history: {reason}"));
        }
        self.wal_flushed = wal_flushed;
        let flush = self.ledger.flush();
        let read_to = Some(flush.max(self.read_to)).filter(|read_to| *read_to > self.ahead);
        let mut start = flush;
        if self.system.is_some() && self.timelines.current() != timeline {
            self.events
                .push_back(Event::TimelineChanged { from: self.timelines.current(), to: timeline });
            // LSNs are used again after a promotion: nothing of the old timeline may be compared.
            self.forget_held(now, false);
            (self.read_to, self.ahead) = (Lsn::INVALID, Lsn::INVALID);
            self.look_ahead(confirmed_flush, wal_flushed);
            if !self.seeded.is(SeededBug::OldLsnAfterFailover) {
                start = Lsn::INVALID;
            }
        } else if let Some(read_to) = read_to.filter(|read_to| wal_flushed < *read_to) {
            // Only what is flushed is ever sent, so no crash that keeps its promises does this. LSNs
            // would be used again, and a new fact taken for one that was enqueued.
            let reason = format!(
                "the server's WAL ends at {wal_flushed}, before {read_to}, which was read already: its history \
                 went back (a restored backup, or fsync switched off?); facts may be missing or different"
            );
            return self.exit(ExitKind::OtherCluster, reason);
        } else if self.system.is_some() && confirmed_flush > flush && flush != Lsn::INVALID {
            self.events.push_back(Event::SlotMoved { from: flush, to: confirmed_flush });
            if !self.slot_was_moved(now) {
                return;
            }
        } else if self.system.is_none() {
            self.look_ahead(confirmed_flush, wal_flushed);
        }
        if self.ledger.flush() == Lsn::INVALID {
            // A server that crashes forgets what it was told since the last checkpoint, also what another
            // process of ours told it. A start position of our own then keeps it from coming again.
            self.ledger.confirmed_before(confirmed_flush.min(wal_flushed));
        }
        self.told = confirmed_flush.min(self.ledger.flush());
        self.system = Some(system);
        self.timelines = timelines;
        self.source = Source::new(system, database);
        self.producer.set_source(self.source.as_str());
        self.slot_stands(now, system, database, confirmed_flush);
        if self.exited || matches!(self.link, Link::Away { .. }) {
            return;
        }
        self.link = Link::Starting;
        self.start = start;
        self.outputs.push_back(Output::StartReplication { start });
    }

    /// Notes and tells that the slot stands where the log is not yet.
    fn look_ahead(&mut self, confirmed: Lsn, wal_end: Lsn) {
        if confirmed > wal_end {
            self.ahead = confirmed;
            self.events.push_back(Event::SlotAhead { confirmed, wal_end });
        }
    }

    /// True until the server has sent, or passed over, more than the place where the slot stood ahead of the log:
    /// what is committed before it is lost.
    pub(super) fn is_ahead(&self, received: Lsn) -> bool {
        self.ahead != Lsn::INVALID && received.max(self.read_to) <= self.ahead
    }

    pub(super) fn streaming(&mut self, now: Now, asked_at: Instant) {
        let interval = match self.seeded.is(SeededBug::NoStatusTimer) {
            true => Duration::MAX,
            false => self.settings.status_interval,
        };
        let mut session = Session::new(asked_at, interval, self.ledger.flush());
        let mut out = BytesMut::new();
        session.feedback.status(now.at, now.clock, self.ledger.flush(), true, &mut out);
        self.outputs.push_back(Output::Send(out));
        self.ledger.told();
        self.link = Link::Streaming(Box::new(session));
        let (start, timeline) = (self.start, self.timelines.current());
        self.events.push_back(Event::Streaming { start, timeline });
        self.away_cause = None;
        self.slot_in_use = None;
        self.stuck = None;
        self.drained = true;
        self.gulp = Gulp::default();
        self.lagging = false;
        self.sweep_at = None;
        self.slot_taken(now);
    }

    pub(super) fn gone(&mut self, now: Now, gone: Gone) {
        self.disconnected(now);
        let waits = self.slot_in_use.take().is_some();
        let (end, delay, cause) = match gone {
            Gone::Terminal(kind, reason) => return self.exit(kind, reason),
            Gone::Refused(kind, reason) if !self.identified => return self.exit(kind, reason),
            Gone::SlotInUse(cause) => {
                if !waits {
                    let delay = SLOT_IN_USE_RETRY;
                    self.events.push_back(Event::SlotInUse { cause: cause.clone(), delay });
                }
                self.attempts = self.attempts.saturating_add(1);
                self.slot_lost(now);
                self.postgres_away(now);
                self.slot_in_use = Some(cause.clone());
                self.link = Link::Away { until: now.at + SLOT_IN_USE_RETRY };
                return;
            }
            // Somebody must do something on the server; asking fast would only fill its log.
            Gone::Refused(_, cause) => (End::Refused, self.settings.backoff_max, cause),
            Gone::Lost(cause) => {
                self.attempts = self.attempts.saturating_add(1);
                (End::Lost, self.jitter.delay(self.attempts, self.settings.backoff_max), cause)
            }
        };
        self.away(now, end, delay, cause);
    }

    pub(super) fn away(&mut self, now: Now, end: End, delay: Duration, cause: String) {
        self.link = Link::Away { until: now.at + delay };
        if end != End::Stalled {
            self.postgres_away(now);
        }
        self.away_cause = Some(cause.clone());
        self.events.push_back(Event::Away { end, cause, delay });
    }

    pub(super) fn hang_up(&mut self, now: Now, end: End, delay: Duration, cause: String) {
        self.outputs.push_back(Output::Hangup);
        self.disconnected(now);
        self.away(now, end, delay, cause);
    }

    pub(super) fn disconnected(&mut self, now: Now) {
        if let Link::Streaming(session) = &self.link {
            // A slot that cannot be decoded any further breaks every stream soon after it has begun.
            let lasted = now.at >= session.begun + self.settings.backoff_max;
            if lasted || self.ledger.flush() > session.begun_at {
                self.attempts = 0;
            }
            let told = session.feedback.told();
            // What was said into a connection that is dead may not have been heard.
            if session.feedback.is_confirmed(told) {
                self.told = told;
            }
            self.read_to = self.read_to.max(session.feedback.received());
        }
        if let Some(enqueued) = self.enqueued {
            self.read_to = self.read_to.max(enqueued.unit.lsn);
        }
        if let Some(stopping) = &mut self.stopping {
            stopping.ended_at = None;
        }
        self.ended = None;
        self.unread(now);
        self.ledger.disconnected();
        self.receive = BytesMut::new();
        self.oversize = None;
        self.stuck = None;
        self.paused = None;
        self.drained = true;
        self.gulp = Gulp::default();
        self.lagging = false;
        self.sweep_at = None;
    }

    pub(super) fn exit(&mut self, kind: ExitKind, reason: String) {
        // Consumers of committed records wait for the end of what is open. Another cluster has nothing of ours, and who
        // is fenced has nothing open.
        if !matches!(kind, ExitKind::Fenced | ExitKind::OtherKafka)
            && let Some(request) = self.producer.give_up_transaction()
        {
            self.outputs.push_back(Output::Kafka(request));
        }
        if !matches!(self.link, Link::Closed) {
            self.outputs.push_back(Output::Hangup);
        }
        self.link = Link::Closed;
        self.exited = true;
        self.outputs.push_back(Output::Exit(Exit { kind, reason }));
    }

    // ---- what follows from the state and the time ----

    pub(super) fn step(&mut self, now: Now) {
        if self.exited {
            return;
        }
        if let Some(stopping) = &mut self.stopping
            && self.stuck == Some(Stuck::Halted)
        {
            // It will not be read on to its Commit; what is behind it must be read past, unseen, for
            // the answer to the last status.
            stopping.taking = false;
            self.stuck = None;
        }
        if self.groups.is_some() {
            self.look_after_groups(now);
        }
        loop {
            self.read(now);
            self.look_after_session(now);
            // What the server was told just now may make room.
            if !self.full {
                break;
            }
            self.measure();
            if self.full {
                break;
            }
        }
        if let Link::Away { until } = self.link
            && until <= now.at
        {
            self.link = Link::Connecting;
            self.outputs.push_back(Output::Connect { known_system: self.system });
        }
        if self.groups.is_some() && !self.exited {
            self.gather(now);
        }
        self.finish(now);
        if self.startup_deadline().is_some_and(|deadline| deadline <= now.at) && !self.exited {
            let reason = match (self.identified, &self.away_cause, self.producer.unreached()) {
                (false, Some(cause), _) => cause.clone(),
                (false, None, _) => "PostgreSQL did not answer in time".to_owned(),
                (true, _, Some(cause)) => format!("no Kafka broker answers: {cause}"),
                (true, _, None) => "no Kafka broker answered in time".to_owned(),
            };
            return self.exit(ExitKind::Unreachable, reason);
        }
        if self.exited {
            return;
        }
        let produce = self.lease().is_some_and(|until| now.at < until);
        // A batch that could still grow is sent when nothing more is to be read right now.
        let at_rest = self.drained && !self.is_behind();
        let mut flush = at_rest || self.is_paused() || self.stopping.is_some();
        if !flush {
            flush = *self.sweep_at.get_or_insert(now.at + SWEEP_INTERVAL) <= now.at;
        }
        if flush || !self.producer.has_waiting() {
            self.sweep_at = None;
        }
        while let Some(request) = self.producer.poll(now.at, produce, flush) {
            self.outputs.push_back(Output::Kafka(request));
        }
        while let Some(event) = self.producer.poll_event() {
            self.events.push_back(event);
        }
        if self.groups.is_some() {
            self.plan_groups(now);
        }
    }

    pub(super) fn look_after_session(&mut self, now: Now) {
        let flush = self.ledger.flush();
        let held = self.held();
        if let Some(halted) = self.halted.take_if(|halted| flush > halted.position.unit.lsn) {
            // Nothing is confirmed past it by us.
            self.events.push_back(Event::PassedOver { position: halted.position });
            self.stalled = None;
        }
        let (paused, copy_ended) = (self.is_paused(), self.copy_ended());
        let Link::Streaming(session) = &mut self.link else { return };
        if now.at >= session.lease_until(self.settings.lease) {
            let lease = self.settings.lease;
            let cause = format!("PostgreSQL has not answered for {lease:?}");
            return self.hang_up(now, End::Silent, Duration::ZERO, cause);
        }
        if copy_ended.is_some_and(|at| now.at >= at + COPY_DONE_PATIENCE) {
            // In the middle of a large transaction it would send the rest first. Or it hears nothing of what
            // we say, and the answers were to nothing: only the slot's own position tells.
            let told = self.told;
            let cause = "the last status is not read yet; asking where the slot stands".to_owned();
            self.hang_up(now, End::Asking, Duration::ZERO, cause);
            self.told = told;
            return;
        }
        if copy_ended.is_some() {
            self.paused = None;
            // The server reads nothing behind CopyDone.
            return;
        }
        if !paused || self.seeded.is(SeededBug::NoHangUp) {
            self.paused = None;
        } else {
            let (since, before) = *self.paused.get_or_insert((now.at, held));
            if now.at >= since + self.settings.stall_timeout {
                // A Kafka that is slow but moves needs the slot, because nothing is produced
                // without it; one that does not move is only asked now and then.
                let moves = held < before && self.stuck.is_none();
                let delay = if moves { Duration::ZERO } else { self.settings.backoff_max };
                let cause = match (&self.halted, self.producer.blocked()) {
                    (Some(halted), _) => halted.reason.clone(),
                    (None, Some(blocked)) => Self::blocked_words(&blocked),
                    (None, None) => self
                        .producer
                        .not_created()
                        .or_else(|| self.producer.transaction_trouble())
                        .unwrap_or_else(|| "Kafka does not take what was read".to_owned()),
                };
                self.stalled = Some(cause.clone()).filter(|_| !moves);
                return self.hang_up(now, End::Stalled, delay, cause);
            }
        }
        if self.ledger.untold() >= (self.settings.in_flight_bytes_max / UNTOLD_SHARE) as u64 {
            session.feedback.hurry();
        }
        let mut out = BytesMut::new();
        session.feedback.poll(now.at, now.clock, flush, &mut out);
        if !out.is_empty() {
            self.outputs.push_back(Output::Send(out));
            self.ledger.told();
        }
    }

    // ---- stopping ----

    pub(super) fn stop(&mut self, now: Now) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Stopping {
            deadline: now.at + self.settings.stop_timeout,
            taking: true,
            ended_at: None,
            last_told: Lsn::INVALID,
            gives_up: false,
        });
        let unsettled = self.producer.unsettled_facts();
        self.events.push_back(Event::Stopping { unsettled });
    }

    /// True while the newest unit of which facts were enqueued is not confirmed and, in this session,
    /// not read to its end: stopping now would repeat them.
    pub(super) fn is_unfinished(&self) -> bool {
        let Some(Position { unit, .. }) = self.enqueued else { return false };
        !unit.lies_before(self.ledger.flush()) && self.ended.is_none_or(|ended| ended < unit)
    }

    /// When we said CopyDone in this session, if we did.
    pub(super) fn copy_ended(&self) -> Option<Instant> {
        self.stopping.as_ref()?.ended_at
    }

    /// Whether units are still taken although the relay is stopping; once not, never again.
    pub(super) fn still_takes(&mut self) -> bool {
        let unfinished = self.is_unfinished();
        self.stopping.as_mut().is_some_and(|stopping| {
            stopping.taking = stopping.taking && unfinished;
            stopping.taking
        })
    }

    /// Leaves as soon as everything that was read is settled and confirmed.
    pub(super) fn finish(&mut self, now: Now) {
        let unfinished = self.is_unfinished();
        let Some(stopping) = &mut self.stopping else { return };
        // A position without facts that is committed behind the last status is not told any more.
        let flush = match stopping.ended_at {
            Some(_) => stopping.last_told,
            None => self.ledger.flush(),
        };
        // Before the position is known there is nothing to confirm.
        let is_told = self.told == flush || flush == Lsn::INVALID;
        let unsettled = self.producer.unsettled_facts();
        // What is given up is as good as never read. Where that is nothing, the end of the transaction may be all that
        // is missing, and without it what is settled of it would come again.
        let (waits, unfinished) = match stopping.gives_up {
            true => (false, unfinished && unsettled == 0),
            false => (unsettled > 0, unfinished),
        };
        if now.at >= stopping.deadline {
            let reason = format!(
                "the stop deadline has passed with {unsettled} facts not acknowledged by Kafka or not \
                 confirmed to PostgreSQL; they stay in the slot and will be delivered again"
            );
            return self.exit(ExitKind::Deadline, reason);
        }
        match &mut self.link {
            Link::Streaming(session) => {
                stopping.taking = stopping.taking && unfinished;
                if stopping.taking || waits {
                    return;
                }
                let mut out = BytesMut::new();
                if is_told {
                    frontend::terminate(&mut out);
                    self.outputs.push_back(Output::Send(out));
                    self.confirmed(unfinished);
                } else if stopping.ended_at.is_none() {
                    // A keepalive may have been sent before the status was heard. CopyDone is answered
                    // behind it, and never otherwise.
                    stopping.ended_at = Some(now.at);
                    stopping.last_told = flush;
                    session.feedback.status(now.at, now.clock, flush, false, &mut out);
                    frontend::copy_done(&mut out);
                    self.outputs.push_back(Output::Send(out));
                }
            }
            Link::Starting if !waits && !unfinished && is_told => {
                self.confirmed(unfinished);
            }
            // Nothing of ours waits for a confirmation. What was answered before the connection was lost
            // counts as known here, because there may be nobody to ask any more.
            _ if !self.identified || (!waits && !unfinished && is_told) => {
                if unsettled > 0 {
                    return self.gave_up(unsettled);
                }
                let reason = if !self.identified {
                    "PostgreSQL had not been reached, and nothing was read".to_owned()
                } else if let Some(cause) = &self.slot_in_use {
                    format!("nothing of ours waits; the slot is another session's: {cause}")
                } else {
                    format!(
                        "everything that was read is in Kafka, and was confirmed ({flush}) before PostgreSQL \
                         was lost; if it crashed, it may deliver facts again"
                    )
                };
                self.exit(ExitKind::Stopped, reason);
            }
            // Connected again before the deadline, it can still confirm.
            _ => {}
        }
    }

    /// See [`Input::GiveUp`].
    fn gave_up(&mut self, unsettled: usize) {
        let reason = format!(
            "confirmed up to {}; {unsettled} facts that were read are not settled; they stay in the slot and \
             will be delivered again",
            self.ledger.flush()
        );
        self.exit(ExitKind::Deadline, reason);
    }

    /// The server knows all that is settled.
    fn confirmed(&mut self, unfinished: bool) {
        let flush = self.ledger.flush();
        let unsettled = self.producer.unsettled_facts();
        if unsettled > 0 {
            return self.gave_up(unsettled);
        }
        if unfinished {
            let reason = format!(
                "confirmed up to {flush}; a transaction was read only in part, and its facts that are in \
                 Kafka already will be delivered again"
            );
            return self.exit(ExitKind::Deadline, reason);
        }
        let reason = match &self.halted {
            None => format!("everything that was read is in Kafka and confirmed ({flush})"),
            Some(halted) => format!(
                "everything before position {} is in Kafka and confirmed ({flush}); the fact there halts \
                 the relay and stays in the slot: {}",
                halted.position, halted.reason
            ),
        };
        self.exit(ExitKind::Stopped, reason);
    }
}
