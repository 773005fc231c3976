//! The relay engine: a pure state machine from (input, now) to outputs.
//!
//! It decides everything (what may be confirmed, what is sent where and again, when to hang up, when
//! to stop) and touches nothing: no socket, no clock, no randomness, no task. A driver carries
//! inputs in and outputs out; a simulation is another driver.
//!
//! ```text
//!            ┌────────── connect ◀──────────────────────────────┐ back-off
//!            ▼                                                  │
//!  Away ─▶ Connecting ─identified─▶ Starting ─CopyBoth─▶ Streaming ─▶ lost · stalled · lease over
//!                │                     │                    │
//!                └── refused for good ─┴──▶ Exit ◀── stop ──┘
//! ```
//!
//! The rules of use: after every [`Relay::handle`], take every [`Relay::poll_output`] until none;
//! call [`Relay::handle`] with [`Input::Timeout`] no later than [`Relay::deadline`]; append what was
//! read from PostgreSQL to [`Relay::receive_buffer`] and then say [`Input::Received`]; read as
//! [`Relay::reading`] says.

pub mod backoff;
pub mod batch;
pub mod error_code;
pub mod event;
pub mod fact;
pub mod gone;
pub mod kafka;
pub mod ledger;
pub mod policy;
pub mod position;
pub mod producer;
pub mod route;
#[cfg(feature = "seeded-bugs")]
pub mod seeded_bug;
mod session;

use backoff::Jitter;
use batch::Record;
use bytes::{Buf as _, BytesMut};
use event::{Event, Halted};
use fact::Fact;
use factlib_protocol::replication::XLogData;
use factlib_protocol::{DecodeError, Fault, Frame, Lsn, Timestamp};
use factlib_protocol::{backend, frontend, pgoutput, replication};
use gone::{Exit, ExitKind, Gone};
use kafka::{Answer, Request};
use ledger::Ledger;
use position::{Position, Timelines, Unit};
use producer::{Blocked, Producer, Route};
use route::{Headers, Source};
use session::{Keepalive, Session, Status, Transaction};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long between two attempts to take a slot that another session has: short, because the wait
/// is what a take-over costs.
const SLOT_IN_USE_RETRY: Duration = Duration::from_secs(1);

/// How long data may gather in the socket while we are behind: both sides save their wake-ups, and
/// the walsender's own work per fact falls to less than half (measured).
const GATHER: Duration = Duration::from_millis(2);

/// A read of at least this many bytes means that we are behind.
const GATHER_FROM_BYTES: usize = 32 * 1024;

/// The server is told at the latest when so large a share of the window is settled and not told: what
/// a crash repeats is the window, and this.
const UNTOLD_SHARE: usize = 4;

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For deadlines.
    pub at: Instant,
    /// For what others read: the status' clock, record timestamps where asked for.
    pub clock: Timestamp,
}

/// What the engine needs to know beforehand.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The prefixes whose messages are facts of ours.
    pub prefixes: Vec<String>,
    /// Publish the payload alone instead of the envelope.
    pub value_is_payload: bool,
    /// Stamp records with the time of publishing instead of the commit's.
    pub timestamp_is_publish: bool,
    /// Make headers of the event's metadata.
    pub metadata_headers: bool,
    /// Encoded bytes that may be unsettled before reading pauses.
    pub in_flight_bytes_max: usize,
    /// The largest message accepted from PostgreSQL, in bytes of body.
    pub frame_bytes_max: usize,
    /// How long the socket may stay unread before we hang up.
    pub stall_timeout: Duration,
    /// How long after a ping was sent its answer lets us produce.
    pub lease: Duration,
    /// Longest time between two pings.
    pub status_interval: Duration,
    /// How long a stop may take.
    pub stop_timeout: Duration,
    /// Largest delay between attempts.
    pub backoff_max: Duration,
    /// How long the first contact with PostgreSQL and Kafka may take; none is for ever.
    pub startup_timeout: Option<Duration>,
    /// Seed of the jitter.
    pub seed: u64,
}

/// Who the server is and where the slot stands: asked before every START_REPLICATION.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// IDENTIFY_SYSTEM: `systemid`.
    pub system: u64,
    /// IDENTIFY_SYSTEM: `timeline`.
    pub timeline: u32,
    /// IDENTIFY_SYSTEM: `xlogpos`, the end of the flushed WAL.
    pub wal_flushed: Lsn,
    /// TIMELINE_HISTORY of `timeline`: ended timelines, oldest first, and where each ended.
    pub history: Vec<(u32, Lsn)>,
    /// OID of the database.
    pub database: u32,
    /// The slot's `confirmed_flush_lsn`.
    pub confirmed_flush: Lsn,
}

/// Everything that can happen to the relay.
#[derive(Debug)]
pub enum Input {
    /// Logged in; IDENTIFY_SYSTEM answered; slot and publication are there and belong together.
    Identified(Identity),
    /// START_REPLICATION, sent at this moment, was answered with CopyBothResponse.
    Streaming {
        /// When it was sent: the lease counts from there.
        asked_at: Instant,
    },
    /// So many bytes were appended to [`Relay::receive_buffer`].
    Received {
        /// Number of bytes.
        bytes: usize,
        /// True if the socket has nothing more at this moment.
        drained: bool,
    },
    /// The connection to PostgreSQL is closed, or there was none to be had.
    PostgresGone(Gone),
    /// A Kafka request is answered.
    Kafka(Answer),
    /// [`Relay::deadline`] has come.
    Timeout,
    /// Finish: read on to the current Commit, settle, confirm, leave.
    Stop,
}

/// What the driver must do.
#[derive(Debug)]
pub enum Output {
    /// Connect to PostgreSQL, log in, identify; answer with [`Input::Identified`] or
    /// [`Input::PostgresGone`].
    Connect,
    /// Send START_REPLICATION; answer with [`Input::Streaming`] or [`Input::PostgresGone`].
    StartReplication {
        /// Where to start; 0/0 is the slot's own position.
        start: Lsn,
    },
    /// Send these bytes to PostgreSQL, in order.
    Send(BytesMut),
    /// Close the connection to PostgreSQL, after what was to be sent as far as that does not block.
    /// Not answered.
    Hangup,
    /// Send this to Kafka; answer with [`Input::Kafka`].
    Kafka(Request),
    /// Tell.
    Event(Event),
    /// The end. Nothing comes after it.
    Exit(Exit),
}

/// How to read from PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// As soon as there is something.
    Now,
    /// Let data gather for this long, then read as much as there is.
    Gather(Duration),
    /// Not at all.
    Paused,
}

/// What the relay is doing, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not connected to PostgreSQL, for this reason.
    Connecting(Option<String>),
    /// Another session has the slot.
    WaitingForSlot(String),
    /// Facts flow, or would.
    Streaming,
    /// A fact or a partition stops everything until somebody acts.
    Halted(Halted),
    /// Kafka does not take what was read, for this reason.
    Stalled(String),
    /// Finishing.
    Stopping,
}

/// Where the relay stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What it is doing.
    pub state: State,
    /// Highest position read in this session.
    pub received: Lsn,
    /// What may be forgotten by the server.
    pub confirmed: Lsn,
    /// Encoded bytes without an acknowledgement.
    pub unsettled_bytes: usize,
    /// Facts without an acknowledgement.
    pub unsettled_facts: usize,
    /// The partition that has been in trouble for longest.
    pub blocked: Option<Blocked>,
    /// True once a broker has answered.
    pub kafka_reached: bool,
}

#[derive(Debug)]
enum Link {
    Away { until: Instant },
    Connecting,
    Starting,
    Streaming(Session),
    Closed,
}

/// Why the frame at the front of the buffer cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stuck {
    /// The cluster has been asked for the topic.
    Topic,
    /// It needs somebody's hand.
    Halted,
}

/// What became of a frame.
enum Flow {
    Taken,
    /// It stays where it is and is tried again.
    Stuck(Stuck),
}

#[derive(Debug)]
struct Stopping {
    deadline: Instant,
    /// Units are still taken: the current transaction is read to its Commit.
    taking: bool,
    final_status: bool,
}

/// The relay. See the module's documentation for how to drive it.
#[derive(Debug)]
pub struct Relay {
    settings: Settings,
    started: Option<Instant>,
    jitter: Jitter,
    link: Link,
    attempts: u32,
    away_cause: Option<String>,
    slot_in_use: Option<String>,
    identified: bool,
    system: Option<u64>,
    timelines: Timelines,
    /// Where the last START_REPLICATION asked to start.
    start: Lsn,
    source: Source,
    ledger: Ledger,
    producer: Producer,
    receive: BytesMut,
    /// The socket had nothing more when it was read last.
    drained: bool,
    behind: bool,
    full: bool,
    stuck: Option<Stuck>,
    /// Since when the socket is unread, and how many bytes were unsettled then.
    paused: Option<(Instant, usize)>,
    halted: Option<Halted>,
    /// Why reading was given up last, until something moves again.
    stalled: Option<String>,
    /// The flush LSN that the server knows, as far as we know.
    told: Lsn,
    /// The newest fact that was given to the producer. Nothing is read past a fact that was not, so
    /// one position does for all partitions.
    enqueued: Option<Position>,
    stopping: Option<Stopping>,
    exited: bool,
    headers: Headers,
    topic: String,
    scratch: String,
    outputs: VecDeque<Output>,
    events: VecDeque<Event>,
    #[cfg(feature = "seeded-bugs")]
    bug: Option<seeded_bug::SeededBug>,
}

impl Relay {
    /// A relay that has not begun. The first [`Relay::handle`] begins.
    pub fn new(settings: Settings) -> Self {
        let seed = settings.seed;
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
            ledger: Ledger::default(),
            producer: Producer::new(settings.backoff_max, Jitter::new(seed.wrapping_add(1))),
            receive: BytesMut::new(),
            drained: true,
            behind: false,
            full: false,
            stuck: None,
            paused: None,
            halted: None,
            stalled: None,
            told: Lsn::INVALID,
            enqueued: None,
            stopping: None,
            exited: false,
            headers: Headers::default(),
            topic: String::new(),
            scratch: String::new(),
            outputs: VecDeque::new(),
            events: VecDeque::new(),
            settings,
            #[cfg(feature = "seeded-bugs")]
            bug: None,
        }
    }

    /// Breaks the relay deliberately, for a test that must go red.
    #[cfg(feature = "seeded-bugs")]
    pub fn seed_bug(&mut self, bug: seeded_bug::SeededBug) {
        self.bug = Some(bug);
    }

    /// Where bytes from PostgreSQL go. Whole messages are taken from its front.
    pub fn receive_buffer(&mut self) -> &mut BytesMut {
        &mut self.receive
    }

    /// How to read from PostgreSQL now.
    pub fn reading(&self) -> Reading {
        match self.link {
            Link::Streaming(_) if self.is_paused() => Reading::Paused,
            Link::Streaming(_) if self.behind => Reading::Gather(GATHER),
            Link::Streaming(_) => Reading::Now,
            _ => Reading::Paused,
        }
    }

    /// Where the relay stands at `now`.
    pub fn standing(&self, now: Instant) -> Standing {
        let blocked = self.producer.blocked();
        let state = if self.stopping.is_some() {
            State::Stopping
        } else if let Some(halted) = &self.halted {
            State::Halted(halted.clone())
        } else if let Some(blocked) = blocked.as_ref().filter(|blocked| blocked.halted) {
            State::Halted(Halted {
                position: blocked.position,
                lsn: blocked.position.unit.lsn,
                topic: Some(blocked.topic.to_string()),
                reason: format!("partition {}: {}", blocked.partition, blocked.reason),
            })
        } else {
            match (&self.link, &self.slot_in_use) {
                (_, Some(cause)) => State::WaitingForSlot(cause.clone()),
                _ if self.stalled.is_some() => {
                    State::Stalled(self.stalled.clone().unwrap_or_default())
                }
                (Link::Streaming(_), _) => match &blocked {
                    // A retry or two is nothing to report; longer than a stall may last is.
                    Some(blocked) if now >= blocked.since + self.settings.stall_timeout => {
                        State::Stalled(Self::blocked_words(blocked))
                    }
                    _ => State::Streaming,
                },
                _ => State::Connecting(self.away_cause.clone()),
            }
        };
        let received = match &self.link {
            Link::Streaming(session) => session.received(),
            _ => Lsn::INVALID,
        };
        Standing {
            state,
            received,
            confirmed: self.ledger.flush(),
            unsettled_bytes: self.producer.unsettled_bytes(),
            unsettled_facts: self.producer.unsettled_facts(),
            blocked,
            kafka_reached: self.producer.reached(),
        }
    }

    fn blocked_words(blocked: &Blocked) -> String {
        let Blocked { partition, topic, reason, .. } = blocked;
        format!("partition {partition} of topic {topic} does not take what was read: {reason}")
    }

    /// Takes one input and brings the relay up to `now`.
    pub fn handle(&mut self, now: Now, input: Input) {
        if self.exited {
            return;
        }
        if self.started.is_none() {
            self.started = Some(now.at);
            self.link = Link::Connecting;
            self.outputs.push_back(Output::Connect);
        }
        match input {
            Input::Identified(identity) => self.identified(identity),
            Input::Streaming { asked_at } => self.streaming(now, asked_at),
            Input::Received { bytes, drained } => {
                self.drained = drained;
                self.behind = bytes >= GATHER_FROM_BYTES;
            }
            Input::PostgresGone(gone) => self.gone(now, gone),
            Input::Kafka(answer) => {
                let metadata = matches!(answer, Answer::Metadata(_));
                let unsettled = self.producer.unsettled_facts();
                let bytes = self.producer.unsettled_bytes();
                self.producer.handle(now.at, answer, &mut self.ledger, &mut self.events);
                if let Link::Streaming(session) = &mut self.link {
                    session.settled(bytes.saturating_sub(self.producer.unsettled_bytes()));
                }
                if metadata && self.stuck == Some(Stuck::Topic) {
                    self.stuck = None;
                }
                if self.producer.unsettled_facts() < unsettled {
                    self.stalled = None;
                }
            }
            Input::Timeout => {}
            Input::Stop => self.stop(now),
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
                session.status_due(self.ledger.flush(), self.settings.status_interval),
                Some(session.lease_until(self.settings.lease)),
                self.paused.map(|(since, _)| since + self.settings.stall_timeout),
            ],
            _ => [None; 3],
        };
        let stop = self.stopping.as_ref().map(|stopping| stopping.deadline);
        let startup = self.startup_deadline();
        let produce = matches!(self.link, Link::Streaming(_));
        let others = [self.producer.deadline(produce), stop, startup];
        link.into_iter().chain(others).flatten().min()
    }

    fn startup_deadline(&self) -> Option<Instant> {
        let reached = self.identified && self.producer.reached();
        Some(self.started? + self.settings.startup_timeout.filter(|_| !reached)?)
    }

    fn is_paused(&self) -> bool {
        self.full || self.stuck.is_some()
    }

    // ---- the connection to PostgreSQL ----

    fn identified(&mut self, identity: Identity) {
        self.identified = true;
        let Identity { system, timeline, wal_flushed, history, database, confirmed_flush } =
            identity;
        if let Some(known) = self.system.filter(|known| *known != system) {
            let reason = format!(
                "this is another cluster: its system id is {system}, that of the facts so far {known}; \
                 a restored or upgraded cluster needs a new slot and `owlpost init`"
            );
            return self.exit(ExitKind::OtherCluster, reason);
        }
        let flush = self.ledger.flush();
        let mut start = flush;
        if self.system.is_some() && self.timelines.current() != timeline {
            self.events
                .push_back(Event::TimelineChanged { from: self.timelines.current(), to: timeline });
            // LSNs are used again after a promotion: nothing of the old timeline may be compared.
            self.ledger.timeline_changed();
            self.producer.timeline_changed();
            self.enqueued = None;
            start = Lsn::INVALID;
        } else if wal_flushed < flush {
            let reason = format!(
                "the server's WAL ends at {wal_flushed}, before {flush}, which is confirmed already: \
                 its history went back (a restored backup?); facts may be missing or different"
            );
            return self.exit(ExitKind::OtherCluster, reason);
        } else if self.system.is_some() && confirmed_flush > flush && flush != Lsn::INVALID {
            self.events.push_back(Event::SlotMoved { from: flush, to: confirmed_flush });
        }
        self.system = Some(system);
        self.timelines = Timelines::new(timeline, history);
        self.source = Source::new(system, database);
        self.link = Link::Starting;
        self.start = start;
        self.outputs.push_back(Output::StartReplication { start });
    }

    fn streaming(&mut self, now: Now, asked_at: Instant) {
        let mut session = Session::new(asked_at, self.settings.in_flight_bytes_max / UNTOLD_SHARE);
        let mut out = BytesMut::new();
        session.status(&self.status(now), true, &mut out);
        self.outputs.push_back(Output::Send(out));
        self.link = Link::Streaming(session);
        let (start, timeline) = (self.start, self.timelines.current());
        self.events.push_back(Event::Streaming { start, timeline });
        self.attempts = 0;
        self.away_cause = None;
        self.slot_in_use = None;
        self.stuck = None;
        self.drained = true;
        self.behind = false;
    }

    fn status(&self, now: Now) -> Status {
        Status { at: now.at, clock: now.clock, flush: self.ledger.flush() }
    }

    fn gone(&mut self, now: Now, gone: Gone) {
        self.disconnected();
        self.slot_in_use = None;
        let (delay, cause) = match gone {
            Gone::Terminal(kind, reason) => return self.exit(kind, reason),
            Gone::Refused(reason) if !self.identified => {
                return self.exit(ExitKind::Unreachable, reason);
            }
            Gone::SlotInUse(cause) => {
                if self.attempts == 0 {
                    let delay = SLOT_IN_USE_RETRY;
                    self.events.push_back(Event::SlotInUse { cause: cause.clone(), delay });
                }
                self.attempts = self.attempts.saturating_add(1);
                self.slot_in_use = Some(cause.clone());
                self.link = Link::Away { until: now.at + SLOT_IN_USE_RETRY };
                return;
            }
            // Somebody must do something on the server; asking fast would only fill its log.
            Gone::Refused(cause) => (self.settings.backoff_max, cause),
            Gone::Lost(cause) => {
                self.attempts = self.attempts.saturating_add(1);
                (self.jitter.delay(self.attempts, self.settings.backoff_max), cause)
            }
        };
        self.away(now, delay, cause);
    }

    fn away(&mut self, now: Now, delay: Duration, cause: String) {
        self.link = Link::Away { until: now.at + delay };
        self.away_cause = Some(cause.clone());
        self.events.push_back(Event::Away { cause, delay });
    }

    fn hang_up(&mut self, now: Now, delay: Duration, cause: String) {
        self.outputs.push_back(Output::Hangup);
        self.disconnected();
        self.away(now, delay, cause);
    }

    fn disconnected(&mut self) {
        if let Link::Streaming(session) = &self.link {
            self.told = session.told();
        }
        self.ledger.disconnected();
        self.receive = BytesMut::new();
        self.stuck = None;
        self.paused = None;
        self.drained = true;
        self.behind = false;
    }

    fn exit(&mut self, kind: ExitKind, reason: String) {
        if !matches!(self.link, Link::Closed) {
            self.outputs.push_back(Output::Hangup);
        }
        self.link = Link::Closed;
        self.exited = true;
        self.outputs.push_back(Output::Exit(Exit { kind, reason }));
    }

    // ---- one step: everything that follows from the state and the time ----

    fn step(&mut self, now: Now) {
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
        self.read(now);
        self.look_after_session(now);
        if let Link::Away { until } = self.link
            && until <= now.at
        {
            self.link = Link::Connecting;
            self.outputs.push_back(Output::Connect);
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
        let produce = match &self.link {
            Link::Streaming(session) => now.at < session.lease_until(self.settings.lease),
            _ => false,
        };
        // A batch that could still grow is sent when nothing more is to be read right now.
        let flush = self.drained || self.is_paused() || self.stopping.is_some();
        while let Some(request) = self.producer.poll(now.at, produce, flush) {
            self.outputs.push_back(Output::Kafka(request));
        }
    }

    /// Takes whole frames from the buffer, until it has none or reading must pause.
    fn read(&mut self, now: Now) {
        self.measure();
        let buffer = std::mem::take(&mut self.receive);
        let mut rest: &[u8] = &buffer;
        let mut failed = None;
        while matches!(self.link, Link::Streaming(_)) && !self.is_paused() {
            let frame = match Frame::decode(rest, self.settings.frame_bytes_max) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            };
            let len = frame.encoded_len();
            match self.frame(now, frame) {
                Ok(Flow::Taken) => rest = rest.get(len..).unwrap_or_default(),
                Ok(Flow::Stuck(stuck)) => self.stuck = Some(stuck),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            self.measure();
        }
        let taken = buffer.len() - rest.len();
        if let Some(error) = failed {
            self.undecodable(now, error);
        }
        if matches!(self.link, Link::Streaming(_)) {
            self.receive = buffer;
            self.receive.advance(taken);
        }
    }

    /// Reading pauses at the bound and goes on when a quarter of it is free.
    fn measure(&mut self) {
        let max = self.settings.in_flight_bytes_max;
        let bytes = self.producer.unsettled_bytes();
        self.full = bytes >= max || (self.full && bytes > max / 4 * 3);
    }

    fn undecodable(&mut self, now: Now, error: DecodeError) {
        let mut cause = format!("what PostgreSQL sent cannot be read: {error}");
        if let Fault::TooLong(length) = error.fault {
            cause = format!(
                "a message of {length} bytes is over FRAME_MAX_BYTES ({}); raise it and restart",
                self.settings.frame_bytes_max
            );
            if let Link::Streaming(session) = &self.link
                && let Some(transaction) = &session.transaction
            {
                let position = self.position(transaction.unit, transaction.next_index);
                self.halt(position, position.unit.lsn, None, cause);
                self.stuck = Some(Stuck::Halted);
                return;
            }
        }
        self.hang_up(now, self.settings.backoff_max, cause);
    }

    fn look_after_session(&mut self, now: Now) {
        let status = self.status(now);
        let paused = self.is_paused();
        let Link::Streaming(session) = &mut self.link else { return };
        if now.at >= session.lease_until(self.settings.lease) {
            let lease = self.settings.lease;
            let cause = format!("PostgreSQL has not answered for {lease:?}");
            return self.hang_up(now, Duration::ZERO, cause);
        }
        if !paused {
            self.paused = None;
        } else {
            let unsettled = self.producer.unsettled_bytes();
            let (since, before) = *self.paused.get_or_insert((now.at, unsettled));
            if now.at >= since + self.settings.stall_timeout {
                // A Kafka that is slow but moves needs the slot, because nothing is produced
                // without it; one that does not move is only asked now and then.
                let moves = unsettled < before && self.stuck.is_none();
                let delay = if moves { Duration::ZERO } else { self.settings.backoff_max };
                let cause = match (&self.halted, self.producer.blocked()) {
                    (Some(halted), _) => halted.reason.clone(),
                    (None, Some(blocked)) => Self::blocked_words(&blocked),
                    (None, None) => "Kafka does not take what was read".to_owned(),
                };
                self.stalled = Some(cause.clone()).filter(|_| !moves);
                return self.hang_up(now, delay, cause);
            }
        }
        let mut out = BytesMut::new();
        session.status_if_due(&status, self.settings.status_interval, &mut out);
        if !out.is_empty() {
            self.outputs.push_back(Output::Send(out));
        }
    }

    // ---- the stream ----

    fn frame(&mut self, now: Now, frame: Frame<'_>) -> Result<Flow, DecodeError> {
        match backend::Message::decode(frame)? {
            // Of no length, it says nothing; the manual does not forbid it.
            backend::Message::CopyData([]) => {}
            backend::Message::CopyData(payload) => match replication::Message::decode(payload)? {
                replication::Message::XLogData(data) => return self.xlog_data(now, &data),
                replication::Message::PrimaryKeepalive(keepalive) => {
                    let Link::Streaming(session) = &mut self.link else { return Ok(Flow::Taken) };
                    let found = session.keepalive(now.at, &keepalive);
                    // While units are dropped because we are stopping, walEnd covers facts that
                    // nobody has.
                    if self.stopping.as_ref().is_none_or(|stopping| stopping.taking) {
                        self.ledger.keepalive(keepalive.wal_end);
                    }
                    if found == Keepalive::ServerStopping {
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
                self.outputs.push_back(Output::Hangup);
                self.gone(now, Gone::Lost("the server ended the stream".to_owned()));
            }
            // A NoticeResponse (18 warns of a missing publication in the stream) or a
            // ParameterStatus can come at any time.
            _ => {}
        }
        Ok(Flow::Taken)
    }

    fn xlog_data(&mut self, now: Now, data: &XLogData<'_>) -> Result<Flow, DecodeError> {
        let Link::Streaming(session) = &mut self.link else { return Ok(Flow::Taken) };
        session.data();
        let taking = self.stopping.as_ref().is_none_or(|stopping| stopping.taking);
        if !taking {
            return Ok(Flow::Taken);
        }
        match session.decoder.decode(data.data)? {
            pgoutput::Message::Message(message) => {
                return self.message(now, &message, data.server_clock);
            }
            pgoutput::Message::Begin(begin) => {
                let unit = Unit::transaction(begin.final_lsn);
                let open = session.transaction.is_some();
                if open || !Self::is_next(session, unit) {
                    return Ok(self.out_of_order(now, unit));
                }
                session.transaction = Some(Transaction {
                    unit,
                    commit_timestamp: begin.commit_timestamp,
                    next_index: 0,
                });
                self.ledger.begin(unit);
            }
            pgoutput::Message::Commit(commit) => {
                session.receive(commit.end_lsn);
                let unit = Unit::transaction(commit.commit_lsn);
                let open = session.transaction.take().map(|transaction| transaction.unit);
                if open != Some(unit) {
                    return Ok(self.out_of_order(now, unit));
                }
                self.end(unit, commit.end_lsn);
                if let Some(stopping) = &mut self.stopping {
                    stopping.taking = false;
                }
            }
            // Rows of tables that somebody added to the publication.
            _ => {}
        }
        Ok(Flow::Taken)
    }

    fn end(&mut self, unit: Unit, end: Lsn) {
        self.ledger.end(unit, end);
        #[cfg(feature = "seeded-bugs")]
        if self.bug == Some(seeded_bug::SeededBug::ConfirmOnRead) {
            self.ledger.confirm_on_read(end);
        }
    }

    fn is_next(session: &mut Session, unit: Unit) -> bool {
        session.last_unit.replace(unit).is_none_or(|last| last < unit)
    }

    /// Everything here rests on the order of the stream; without it nothing may be confirmed.
    fn out_of_order(&mut self, now: Now, unit: Unit) -> Flow {
        let cause = format!("the stream is out of order at {}", unit.lsn);
        self.hang_up(now, self.settings.backoff_max, cause);
        Flow::Taken
    }

    fn position(&self, unit: Unit, index: u32) -> Position {
        Position { timeline: self.timelines.of(unit), unit, index }
    }

    fn message(
        &mut self,
        now: Now,
        message: &pgoutput::LogicalMessage<'_>,
        server_clock: Timestamp,
    ) -> Result<Flow, DecodeError> {
        let Link::Streaming(session) = &mut self.link else { return Ok(Flow::Taken) };
        let transaction = session.transaction.as_mut().filter(|_| message.transactional);
        let (unit, index, written) = match &transaction {
            Some(transaction) => {
                (transaction.unit, transaction.next_index, transaction.commit_timestamp)
            }
            None => (Unit::message(message.lsn), 0, server_clock),
        };
        let alone = transaction.is_none();
        if alone && session.last_unit.is_some_and(|last| last >= unit) {
            return Ok(self.out_of_order(now, unit));
        }
        let ours = self.settings.prefixes.iter().any(|prefix| prefix.as_bytes() == message.prefix);
        if ours {
            let position = self.position(unit, index);
            // After a reconnect what was enqueued comes again; it is on its way, or there.
            if self.enqueued.is_none_or(|enqueued| enqueued < position) {
                let timestamp =
                    if self.settings.timestamp_is_publish { now.clock } else { written };
                if alone {
                    self.ledger.begin(unit);
                }
                if let Flow::Stuck(stuck) = self.publish(now, message, position, timestamp) {
                    return Ok(Flow::Stuck(stuck));
                }
            }
        }
        if let Link::Streaming(session) = &mut self.link {
            if let Some(transaction) = &mut session.transaction
                && !alone
            {
                transaction.next_index = index.saturating_add(1);
            }
            if alone {
                session.last_unit = Some(unit);
                session.receive(message.lsn);
                self.end(unit, message.lsn);
            }
        }
        Ok(Flow::Taken)
    }

    /// Gives a fact to the producer, or says why it cannot be.
    fn publish(
        &mut self,
        now: Now,
        message: &pgoutput::LogicalMessage<'_>,
        position: Position,
        timestamp: Timestamp,
    ) -> Flow {
        let lsn = message.lsn;
        let fact = match Fact::decode(message.content) {
            Ok(fact) => fact,
            Err(error) => {
                let reason = format!(
                    "unreadable envelope: {error}; it was emitted with another format or to another \
                     prefix's owner"
                );
                return self.halt(position, lsn, None, reason);
            }
        };
        self.topic.clear();
        // Prefixes come from the configuration, so this one is UTF-8.
        self.topic.push_str(std::str::from_utf8(message.prefix).unwrap_or_default());
        self.topic.push('.');
        self.topic.push_str(&fact.aggregate_type);
        if !route::is_topic(&self.topic) {
            let topic = self.topic.clone();
            let reason = format!(
                "{topic:?} cannot be a topic's name: only letters, digits, '.', '_' and '-', at most \
                 {} of them",
                route::TOPIC_LEN_MAX
            );
            return self.halt(position, lsn, Some(topic), reason);
        }
        let (topic, partitions) = match self.producer.route(now.at, &self.topic) {
            Route::Ready(topic, partitions) => (topic, partitions),
            Route::Asked => return Flow::Stuck(Stuck::Topic),
            Route::Missing(code) => {
                let topic = self.topic.clone();
                let reason = format!(
                    "topic {topic} cannot be used ({}): create it, or allow this client to describe \
                     and write to it",
                    error_code::name(code)
                );
                return self.halt(position, lsn, Some(topic), reason);
            }
        };
        let key = fact.aggregate_id.as_bytes();
        self.headers.fill(
            &fact,
            &self.source,
            &position,
            lsn,
            self.settings.metadata_headers,
            &mut self.scratch,
        );
        let value = match self.settings.value_is_payload {
            false => Some(message.content),
            true => fact.payload.bytes(),
        };
        let record =
            Record { timestamp_ms: timestamp.unix_millis(), key, value, headers: &self.headers };
        let partition = route::partition(key, partitions);
        self.producer.push(topic, partition, position, &record, &mut self.ledger);
        self.enqueued = Some(position);
        self.stalled = None;
        if self.halted.take().is_some() {
            self.events.push_back(Event::Resumed { position });
        }
        Flow::Taken
    }

    fn halt(
        &mut self,
        position: Position,
        lsn: Lsn,
        topic: Option<String>,
        reason: String,
    ) -> Flow {
        let halted = Halted { position, lsn, topic, reason };
        if self.halted.as_ref() != Some(&halted) {
            self.events.push_back(Event::Halted(halted.clone()));
            self.halted = Some(halted);
        }
        Flow::Stuck(Stuck::Halted)
    }

    // ---- stopping ----

    fn stop(&mut self, now: Now) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Stopping {
            deadline: now.at + self.settings.stop_timeout,
            taking: true,
            final_status: false,
        });
        let unsettled = self.producer.unsettled_facts();
        self.events.push_back(Event::Stopping { unsettled });
    }

    /// Leaves as soon as everything that was read is settled and confirmed.
    fn finish(&mut self, now: Now) {
        let status = self.status(now);
        let Some(stopping) = &mut self.stopping else { return };
        let unsettled = self.producer.unsettled_facts();
        if now.at >= stopping.deadline {
            let reason = format!(
                "the stop deadline has passed with {unsettled} facts not acknowledged by Kafka or not \
                 confirmed to PostgreSQL; they stay in the slot and will be delivered again"
            );
            return self.exit(ExitKind::Deadline, reason);
        }
        match &mut self.link {
            Link::Streaming(session) => {
                stopping.taking = stopping.taking && session.transaction.is_some();
                if stopping.taking || unsettled > 0 {
                    return;
                }
                if !stopping.final_status {
                    stopping.final_status = true;
                    let mut out = BytesMut::new();
                    session.status(&status, true, &mut out);
                    self.outputs.push_back(Output::Send(out));
                } else if session.is_confirmed(status.flush) {
                    let mut out = BytesMut::new();
                    frontend::terminate(&mut out);
                    self.outputs.push_back(Output::Send(out));
                    let flush = status.flush;
                    let reason =
                        format!("everything that was read is in Kafka and confirmed ({flush})");
                    self.exit(ExitKind::Stopped, reason);
                }
            }
            // Nothing of ours waits for a confirmation.
            _ if !self.identified
                || (unsettled == 0
                    && (self.slot_in_use.is_some() || self.told == status.flush)) =>
            {
                let flush = status.flush;
                let reason =
                    format!("everything that was read is in Kafka and confirmed ({flush})");
                self.exit(ExitKind::Stopped, reason);
            }
            // Connected again before the deadline, it can still confirm.
            _ => {}
        }
    }
}
