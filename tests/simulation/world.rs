//! The scheduler: relays, a server, a cluster, and what happens to them.

use crate::cluster::{BROKERS, Cluster, DEAD, FACTS, Fault, LATE, POSITION};
use crate::handlers::{Desk, Handled};
use crate::model::Dice;
use crate::server::{Ended, Said, Server, halts};
use crate::transactions::{Coordinator, Decided, Member};
use crate::truth::{Nature, Truth};
use factlib::relay::compression::Compression;
use factlib::relay::error_code::*;
use factlib::relay::event::{End, Event, GivenUp};
use factlib::relay::gone::{ExitKind, Gone};
use factlib::relay::kafka::{
    Answer, Broker, CoordinatorOf, CreateRefusal, Metadata, NewTopic, PartitionAnswer,
    PartitionBatch, PartitionMetadata, ProducerId, Request, TopicMetadata, TransactionVersion,
    Unanswered,
};
use factlib::relay::poison::{Policies, Policy};
use factlib::relay::position::{Class, Position};
use factlib::relay::template::{Field, Naming, Template};
use factlib::relay::{
    Delivery, ExactlyOnce, Identity, Input, LargeTransactions, Now, Output, Reading, Relay,
    Settings, State,
};
use factlib_protocol::replication::StandbyStatusUpdate;
use factlib_protocol::{Frame, Lsn, Timestamp};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

pub(crate) type Counts = HashMap<&'static str, usize>;

const STALL_TIMEOUT: Duration = Duration::from_secs(3);
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(20);
const LEASE: Duration = Duration::from_secs(10);

/// A server that can be stopped is stopped within this; the shutdown of a cluster waits for it.
const STOP_MAX: Duration = Duration::from_secs(10);

/// So many facts, faults and restarts every story has.
const FACTS_MIN: usize = 200;
const FAULTS_MIN: usize = 5;

/// What the campaign must have seen: every fault, every event of the engine, every way to end, and the
/// changes between the states that health shows.
pub(crate) const WANTED: &[&str] = &[
    // Faults.
    "answer lost after the append",
    "CopyDone",
    "black hole both ways",
    "black hole from the server",
    "black hole to the server",
    "connection lost",
    "connection refused",
    "coordinator is loading",
    "failover",
    "failover to a standby that lags",
    "fast stop",
    "kill -9",
    "late arrival",
    "leader moved",
    "leader moved, and did not have all",
    "log-in refused",
    "metadata is stale",
    "not all partitions are heard of",
    "no metadata",
    "no right to an identity",
    "producer forgotten",
    "producers forgotten",
    "producer id is over",
    "request delayed",
    "request lost",
    "restart",
    "server crash",
    "server is busy",
    "slot advanced by hand",
    "slot in use",
    "split brain: both relays connected",
    "tail cannot be read",
    "take-over",
    "throttled",
    "topic deleted",
    "topic grown",
    "topic made",
    "topic made anew",
    "topic made again",
    // Answers.
    "INVALID_PRODUCER_EPOCH",
    "KAFKA_STORAGE_ERROR",
    "MESSAGE_TOO_LARGE",
    "UNKNOWN_TOPIC_ID",
    "NETWORK_EXCEPTION",
    "NOT_ENOUGH_REPLICAS",
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
    "NOT_LEADER_OR_FOLLOWER",
    "OUT_OF_ORDER_SEQUENCE_NUMBER",
    "REQUEST_TIMED_OUT",
    "UNKNOWN_PRODUCER_ID",
    "UNKNOWN_TOPIC_OR_PARTITION",
    // The workload.
    "commit",
    "COMMIT PREPARED",
    "message outside of transactions",
    "ROLLBACK",
    "ROLLBACK PREPARED",
    "ROLLBACK TO SAVEPOINT",
    // Events.
    "event: AlreadyStored",
    "event: Away",
    "event: Foreign",
    "event: GivenUp dead-letter",
    "event: GivenUp skip",
    "event: Halted",
    "event: KafkaReached",
    "event: KafkaUnreachable",
    "event: NoProducerId",
    "event: PartitionBlocked",
    "event: PartitionRecovered",
    "event: PartitionsChanged",
    "event: PassedOver",
    "event: ProducerId",
    "event: Resumed",
    "event: SequencesLost",
    "event: ServerStopping",
    "event: Settled",
    "event: NotStored",
    "event: SlotInUse",
    "event: SlotMoved",
    "event: Stopping",
    "event: Streaming",
    "event: TailRead",
    "event: TailUnread",
    "event: Throttled",
    "event: TimelineChanged",
    "event: TopicCreated",
    "event: TopicMadeAnew",
    "event: TopicNotCreated",
    // Ends.
    "exit: Deadline",
    "exit: OtherCluster",
    "exit: OtherKafka",
    "exit: Publication",
    "exit: Slot",
    "exit: Stopped",
    "exit: Unreachable",
    // Changes of state.
    "connecting -> streaming",
    "connecting -> waiting for slot",
    "halted -> connecting",
    "halted -> streaming",
    "stalled -> streaming",
    "streaming -> connecting",
    "streaming -> halted",
    "streaming -> stalled",
    "streaming -> stopping",
    "waiting for slot -> connecting",
    "waiting for slot -> streaming",
];

/// Of these, what does not happen in transactions: nobody needs to read back what is stored, and sequences begin
/// anew with their coordinator's epochs.
pub(crate) const NOT_IN_TRANSACTIONS: &[&str] = &[
    "coordinator is loading",
    "no right to an identity",
    "tail cannot be read",
    "event: AlreadyStored",
    "event: NoProducerId",
    "event: ProducerId",
    "event: SequencesLost",
    "event: TailRead",
    "event: TailUnread",
];

/// What must happen besides where handlers stand in the place of Kafka, which is where there are no transactions.
pub(crate) const WANTED_OF_HANDLERS: &[&str] = &[
    "a handler fails",
    "given up with facts left",
    "given up with no fact left",
    "handled",
    "handled while the slot was another's",
    "handlers die",
];

/// What must happen in transactions besides.
pub(crate) const WANTED_IN_TRANSACTIONS: &[&str] = &[
    // Faults.
    "coordinator loads",
    "coordinator moved",
    "coordinator refuses",
    "coordinator's answer lost",
    "coordinator's request delayed",
    "coordinator's request lost",
    "group's offset expired",
    "markers are late",
    "late request to a coordinator",
    "topic of the position is missing",
    "transaction expired",
    "transaction is to be aborted",
    "transactional id expired",
    "started again behind a gap",
    "started again after it was fenced",
    // Both ways that transactions are made of.
    "explicit transactions",
    "an epoch per transaction",
    // Answers.
    "CONCURRENT_TRANSACTIONS",
    "INVALID_TXN_STATE",
    "NOT_COORDINATOR",
    "PRODUCER_FENCED",
    "TRANSACTION_ABORTABLE",
    "UNSTABLE_OFFSET_COMMIT",
    // Ends of transactions.
    "committed",
    "aborted",
    "an idle position",
    "a position in another one's place",
    // Events.
    "event: Fenced",
    "event: PositionMissing",
    "event: PositionPassed",
    "event: PositionRead",
    "event: TransactionAborted",
    "event: TransactionCommitted",
    "event: TransactionSplit",
    "event: Transactional",
    "event: TransactionsRecovered",
    "event: TransactionsRefused",
    "exit: Fenced",
    // Where transactions stand.
    "transactions: initialising",
    "transactions: reading",
    "transactions: idle",
    "transactions: producing",
    "transactions: closing",
    "transactions: ending",
    "transactions: recovering",
];

/// What kind of story a seed tells.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Nothing happens that may repeat facts: then none is.
    gentle: bool,
    fails_over: bool,
    relays: usize,
    policy: Policy,
    grows: bool,
    creates: bool,
    /// Brokers are told topics' ids.
    topic_ids: bool,
    skips: bool,
    compression: Compression,
    /// Handlers stand in the place of Kafka.
    handlers: bool,
    act: u64,
    /// Facts go in transactions, of this kind.
    transactions: Option<TransactionVersion>,
    standby: bool,
}

impl Plan {
    fn new(seed: u64, exactly_once: bool) -> Self {
        let version = match (seed / 5).is_multiple_of(2) {
            true => TransactionVersion::Explicit,
            false => TransactionVersion::EpochPerTransaction,
        };
        let kind = seed % 4;
        let policy = [Policy::Halt, Policy::Skip, Policy::DeadLetter][(seed / 4 % 3) as usize];
        let handlers = (seed / 9).is_multiple_of(5) && !exactly_once;
        Self {
            gentle: kind == 0,
            fails_over: kind == 2,
            relays: if kind == 3 { 2 } else { 1 },
            policy,
            grows: (seed / 12).is_multiple_of(2) && !handlers,
            creates: (seed / 24).is_multiple_of(3) && !handlers,
            topic_ids: (seed / 72).is_multiple_of(2),
            skips: (seed / 8).is_multiple_of(2) && !handlers,
            compression: match seed.is_multiple_of(7) && !handlers {
                true => Compression::Lz4,
                false => Compression::None,
            },
            handlers,
            act: seed / 4 % 9,
            transactions: exactly_once.then_some(version),
            standby: (seed / 3).is_multiple_of(2),
        }
    }
}

/// A connection between a relay and its walsender.
#[derive(Debug, Default)]
struct Connection {
    to_relay: VecDeque<u8>,
    /// What the relay says is lost on the way.
    deaf: bool,
    /// What the server says is lost on the way.
    mute: bool,
}

#[derive(Debug)]
struct Process {
    relay: Relay,
    connection: Option<Connection>,
    connecting: bool,
    starting: Option<Lsn>,
    requests: VecDeque<Request>,
    /// The fact that stops it.
    halted: Option<Position>,
    /// It has hung up because somebody else may publish.
    fenced: bool,
    /// Since when the socket is unread.
    paused: Option<Instant>,
    state: &'static str,
    exit: Option<ExitKind>,
    identified: bool,
    /// The server has dropped its session, which it cannot see for as long as its lease.
    unaware_until: Option<Instant>,
    /// Once the server did not hear it, which it could not see.
    was_unheard: bool,
    /// Topics of which it was told all partitions.
    knows: BTreeSet<String>,
    /// Where its handlers are called, if it has any.
    desk: Desk,
}

impl Process {
    fn new(settings: Settings) -> Self {
        Self {
            relay: Relay::new(settings),
            connection: None,
            connecting: false,
            starting: None,
            requests: VecDeque::new(),
            halted: None,
            fenced: false,
            paused: None,
            state: "connecting",
            exit: None,
            identified: false,
            unaware_until: None,
            was_unheard: false,
            knows: BTreeSet::new(),
            desk: Desk::default(),
        }
    }

    fn disconnected(&mut self) {
        self.connection = None;
        self.connecting = false;
        self.starting = None;
        self.paused = None;
    }
}

pub(crate) struct World {
    seed: u64,
    plan: Plan,
    dice: Dice,
    trace: bool,
    now: Instant,
    begun: Instant,
    server: Server,
    cluster: Cluster,
    pub(crate) truth: Truth,
    processes: Vec<Process>,
    /// Batches of connections that are gone, which may still arrive, with the broker they were sent to.
    late: VecDeque<(usize, Vec<PartitionBatch>)>,
    handled: Handled,
    /// The same of what coordinators were asked.
    late_requests: VecDeque<Request>,
    /// Who ends is started again, as a supervisor does.
    supervised: bool,
    /// The furthest that somebody has moved the slot.
    by_hand: u64,
    /// The restart at which nothing may be wrong is at hand.
    position_checked: i64,
    next_producer: i64,
    faults: bool,
    fault_count: usize,
    restarts: usize,
    /// The server refuses everybody.
    unreachable: bool,
    /// Who had the slot last.
    last_holder: usize,
    pub(crate) counts: Counts,
    #[cfg(feature = "seeded-bugs")]
    pub(crate) seeded: factlib::relay::seeded_bug::Seeded,
}

fn settings(seed: u64, plan: Plan) -> Settings {
    let dead_letter_topic = (plan.policy == Policy::DeadLetter).then(|| DEAD.into());
    let new = NewTopic { partitions: Some(1), replication_factor: None, configs: Vec::new() };
    Settings {
        prefixes: vec!["sim".to_owned()],
        naming: match plan.handlers {
            // As a subscriber has it.
            true => Naming {
                topic: Template::parse(FACTS, Field::OF_TOPICS).unwrap(),
                key: Some(Template::parse("{prefix}", Field::OF_KEYS).unwrap()),
                prefixes: Vec::new(),
            },
            false => Naming::default(),
        },
        value_is_payload: false,
        timestamp_is_publish: false,
        metadata_headers: false,
        in_flight_bytes_max: 4000,
        frame_bytes_max: 1024 * 1024,
        stall_timeout: STALL_TIMEOUT,
        lease: LEASE,
        status_interval: Duration::from_secs(5),
        stop_timeout: Duration::from_secs(10),
        backoff_max: Duration::from_secs(5),
        metadata_age_max: Duration::from_secs(5),
        // Of two or three facts, and of as many as there are.
        batch_bytes: if seed.is_multiple_of(2) { 700 } else { 393_216 },
        batch_records: if plan.handlers { 1 } else { 10_000 },
        compression: plan.compression,
        policies: Policies { general: plan.policy, by_topic: Vec::new(), dead_letter_topic },
        create_topics: plan.creates.then_some(new),
        skip_stored: plan.skips,
        in_flight_per_partition: 1 + usize::try_from(seed / 2 % 5).unwrap(),
        keeps_order: plan.handlers,
        startup_timeout: None,
        delivery: match plan.transactions {
            None => Delivery::AtLeastOnce,
            Some(_) => Delivery::ExactlyOnce(ExactlyOnce {
                slot: "factlib_slot".to_owned(),
                position_topic: POSITION.into(),
                position_topic_like: NewTopic {
                    partitions: Some(1),
                    replication_factor: None,
                    configs: Vec::new(),
                },
                timeout: TRANSACTION_TIMEOUT,
                interval: Duration::from_millis(50),
                bytes_max: 2000,
                facts_max: 1000,
                large: LargeTransactions::Split,
                standby: plan.standby,
            }),
        },
        seed,
    }
}

impl World {
    pub(crate) fn new(seed: u64, trace: bool, exactly_once: bool) -> Self {
        let (plan, mut dice, now) = (Plan::new(seed, exactly_once), Dice(seed), Instant::now());
        let absent: &[&str] = if plan.creates { &[LATE, DEAD] } else { &[LATE] };
        let mut cluster = Cluster::new(&mut dice, absent, plan.topic_ids);
        if let Some(version) = plan.transactions {
            cluster.coordinates(Coordinator::new(version));
        }
        let process = |nth: u64| Process::new(settings(seed + nth * 1000, plan));
        Self {
            seed,
            plan,
            trace,
            now,
            begun: now,
            server: Server::new(now),
            cluster,
            truth: Truth { trace, exactly_once, ..Truth::default() },
            processes: (0..plan.relays as u64).map(process).collect(),
            late: VecDeque::new(),
            handled: Handled::default(),
            late_requests: VecDeque::new(),
            supervised: exactly_once,
            by_hand: 1000,
            position_checked: 0,
            next_producer: 0,
            faults: true,
            fault_count: 0,
            restarts: 0,
            unreachable: false,
            last_holder: 0,
            counts: Counts::new(),
            dice,
            #[cfg(feature = "seeded-bugs")]
            seeded: factlib::relay::seeded_bug::Seeded::default(),
        }
    }

    fn saw(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
        if self.trace {
            eprintln!("{:?} {what}", self.now - self.begun);
        }
    }

    fn fault(&mut self, what: &'static str) {
        self.fault_count += 1;
        self.saw(what);
    }

    /// From here on facts may be stored twice.
    fn excuse(&mut self, why: &'static str) {
        assert!(!self.plan.gentle || self.truth.exactly_once, "{why}, in a gentle story");
        self.truth.excuse.get_or_insert(why);
    }

    fn start_process(&mut self, at: usize) {
        let (handled, truth) = (&mut self.handled, &mut self.truth);
        self.processes[at].desk.die(&mut self.dice, handled, truth);
        let settings = settings(self.dice.next(), self.plan);
        self.processes[at] = Process::new(settings);
        #[cfg(feature = "seeded-bugs")]
        self.processes[at].relay.seed_bug(self.seeded);
        self.input(at, Input::Timeout);
    }

    // ---- the relay's side ----

    fn input(&mut self, at: usize, input: Input) {
        let elapsed = i64::try_from((self.now - self.begun).as_micros()).unwrap();
        // Two machines, two clocks.
        let now = Now { at: self.now, clock: Timestamp(elapsed + 3_000_000) };
        self.processes[at].relay.handle(now, input);
        let (mut told, mut for_nothing) = (false, false);
        while let Some(output) = self.processes[at].relay.poll_output() {
            if self.processes[at].exit.is_some() {
                assert!(matches!(output, Output::Event(_)), "{output:?} after the end");
            }
            match output {
                Output::Connect { .. } => self.processes[at].connecting = true,
                Output::StartReplication { start } => self.processes[at].starting = Some(start),
                Output::Send(bytes) => self.said(at, &bytes),
                Output::Hangup => {
                    for_nothing |= self.is_well(at);
                    self.hung_up(at);
                }
                Output::Kafka(request) => self.asked(at, request),
                Output::Event(event) => {
                    told = true;
                    self.event(at, event);
                }
                Output::Exit(exit) => {
                    if self.trace {
                        eprintln!("  {exit:?}");
                    }
                    self.saw(exit_name(exit.kind));
                    self.hung_up(at);
                    self.processes[at].exit = Some(exit.kind);
                }
            }
        }
        let exit = self.processes[at].exit;
        let fenced = std::mem::take(&mut self.processes[at].fenced);
        assert!(
            !for_nothing || exit.is_some() || fenced,
            "relay {at} hangs up, and nothing is wrong"
        );
        if told {
            self.state(at);
        }
        if self.truth.exactly_once {
            self.transactions_of(at);
        }
        self.check_stall(at);
    }

    fn state(&mut self, at: usize) {
        let state = match self.processes[at].relay.standing(self.now).state {
            State::Connecting(_) => "connecting",
            State::WaitingForSlot(_) => "waiting for slot",
            State::Streaming => "streaming",
            State::Halted(_) => "halted",
            State::Stalled(_) => "stalled",
            State::Stopping => "stopping",
        };
        let before = std::mem::replace(&mut self.processes[at].state, state);
        if before != state {
            let change = WANTED.iter().find(|wanted| {
                wanted.split_once(" -> ").is_some_and(|change| change == (before, state))
            });
            self.saw(change.copied().unwrap_or("another change of state"));
        }
    }

    fn event(&mut self, at: usize, event: Event) {
        if self.trace {
            eprintln!("  {at}: {event:?}");
        }
        self.saw(event_name(&event));
        match event {
            Event::Stopping { .. } => self.processes[at].desk.stop(),
            Event::TimelineChanged { .. } => self.processes[at].desk.begin_anew(),
            Event::Halted(halted) => self.processes[at].halted = Some(halted.position),
            Event::Resumed { .. } | Event::PassedOver { .. } => self.processes[at].halted = None,
            Event::SequencesLost { facts, .. } if facts > 0 => self.excuse("sequences lost"),
            Event::Away { end: End::Fenced, .. } => self.processes[at].fenced = true,
            Event::TransactionSplit { position: Position { unit, .. }, .. } => {
                self.truth.split.insert((unit.lsn.0, unit.class == Class::Message));
            }
            Event::TransactionCommitted { facts: 0, .. } => self.saw("an idle position"),
            Event::PositionLost { .. } => assert!(self.truth.position_lost, "the position is lost"),
            Event::GivenUp(GivenUp { policy: Policy::Skip, position, facts, .. }) => {
                assert_eq!(facts, 1, "several facts are skipped at once");
                let Position { unit, index, .. } = position;
                let alone = unit.class == Class::Message;
                let mut units = self.server.wal.iter();
                // One that a failover has undone may be skipped, too.
                let unit = units.find(|found| found.is_at(unit.lsn.0, alone));
                if let Some(id) = unit.and_then(|unit| unit.fact_at(index))
                    && halts(self.truth.fact(id).nature)
                {
                    self.truth.skipped(id);
                }
            }
            _ => {}
        }
    }

    /// The connection works, the server listens, and the relay has read what it said.
    fn is_well(&self, at: usize) -> bool {
        let process = &self.processes[at];
        let read = |c: &Connection| !c.deaf && !c.mute && c.to_relay.is_empty();
        process.paused.is_none()
            && process.connection.as_ref().is_some_and(read)
            && self.server.listens_to(at, self.now)
    }

    /// The relay has closed its connection.
    fn hung_up(&mut self, at: usize) {
        let lost = self.processes[at].connection.as_ref().is_some_and(|c| c.deaf);
        self.processes[at].disconnected();
        // The end of the connection is lost on the way like everything else.
        if !lost {
            let more = self.server.closed(self.now, at);
            self.confirmed(more);
        }
    }

    /// The relay loses its connection, and sees so.
    fn cut(&mut self, at: usize, cause: &str) {
        let process = &mut self.processes[at];
        if process.connection.is_none() && process.starting.is_none() {
            return;
        }
        process.disconnected();
        self.input(at, Input::PostgresGone(Gone::Lost(cause.to_owned())));
    }

    /// The relay has written to its walsender.
    fn said(&mut self, at: usize, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(frame) = Frame::decode(rest, 100).unwrap() {
            rest = &rest[frame.encoded_len()..];
            let said = match frame.tag {
                b'c' => Said::CopyDone,
                b'd' => {
                    let status = StandbyStatusUpdate::decode(frame.body).unwrap();
                    let (write, flush) = (status.write.0, status.flush.0);
                    Said::Status { write, flush, reply: status.reply_requested }
                }
                _ => continue,
            };
            let heard = self.processes[at].connection.as_ref().is_some_and(|c| !c.deaf);
            if heard && self.server.session.as_ref().is_some_and(|s| s.process == at) {
                if matches!(said, Said::CopyDone) {
                    self.saw("CopyDone");
                    if self.dice.percent(50) {
                        // The transaction that is being sent comes to its end first.
                        self.server.send_next(self.now, &self.truth);
                    }
                }
                let more = self.server.hear(self.now, said);
                self.confirmed(more);
            }
        }
        self.flow();
    }

    fn confirmed(&mut self, more: bool) {
        if more {
            self.truth.check_promise(&self.server, self.server.confirmed);
            if let Some(coordinator) = &self.cluster.coordinator {
                let known = u64::try_from(coordinator.highest).unwrap().max(self.by_hand);
                let confirmed = self.server.confirmed;
                assert!(
                    confirmed <= known,
                    "{confirmed} is confirmed, and the position is {known}"
                );
            }
            if self.dice.percent(10) {
                self.server.checkpoint();
            }
        }
    }

    /// What the walsender wrote is on its way.
    fn flow(&mut self) {
        let Some(session) = &mut self.server.session else { return };
        let bytes = session.outgoing.split();
        if let Some(connection) = &mut self.processes[session.process].connection
            && !connection.mute
        {
            connection.to_relay.extend(bytes);
        }
    }

    fn asked(&mut self, at: usize, request: Request) {
        let publishes = matches!(
            request,
            Request::Produce { .. }
                | Request::CommitPosition { .. }
                | Request::InitTransactions { .. }
                | Request::EndTransaction { commit: true, .. }
        );
        if publishes {
            // Whoever has the slot is the only one who publishes.
            let holder = self.server.session.as_ref().map(|session| session.process);
            let excused = self.processes[at].unaware_until.is_some_and(|until| self.now < until);
            assert!(
                excused || holder.is_none_or(|holder| holder == at),
                "relay {at} produces, and the slot is relay {holder:?}'s"
            );
        }
        if self.trace {
            eprintln!(
                "  {at} asks: {}",
                format!("{request:?}").chars().take(150).collect::<String>()
            );
        }
        match request {
            // They are in the same process: nothing lies between.
            Request::Produce { broker, batches, .. } if self.plan.handlers => {
                for batch in &batches {
                    self.processes[at].desk.take(broker, batch, &mut self.truth);
                }
            }
            request => self.processes[at].requests.push_back(request),
        }
    }

    // ---- handlers in the place of Kafka ----

    /// A handler is called, one ends, or what is asked of Kafka is answered.
    fn handle(&mut self, at: usize) {
        if self.processes[at].exit.is_some() {
            return;
        }
        if let Some(request) = self.processes[at].requests.pop_front() {
            let answer = match request {
                Request::Metadata { topics } => Answer::Metadata(Ok(Metadata {
                    cluster_id: None,
                    brokers: vec![Broker { id: 0, host: String::new(), port: 0 }],
                    topics: topics.iter().map(|topic| the_one_partition_of(topic)).collect(),
                })),
                Request::InitProducerId => {
                    Answer::ProducerId(Ok(Ok(ProducerId { id: 0, epoch: 0 })))
                }
                other => panic!("handlers are asked for {other:?}"),
            };
            return self.input(at, Input::Kafka(answer));
        }
        let lease = self.processes[at].relay.lease();
        let may_begin = lease.is_some_and(|until| self.now < until);
        let holder = self.server.session.as_ref().map(|session| session.process);
        let is_ours = holder.is_none_or(|holder| holder == at);
        let process = &mut self.processes[at];
        if may_begin && self.dice.percent(60) && process.desk.begin(&mut self.dice) {
            let excused = process.unaware_until.is_some_and(|until| self.now < until);
            assert!(
                is_ours || excused,
                "relay {at} calls a handler, and the slot is relay {holder:?}'s"
            );
            return;
        }
        if process.desk.is_quiet() && !std::mem::replace(&mut process.desk.gave_up, true) {
            self.saw(match self.processes[at].desk.is_empty() {
                true => "given up with no fact left",
                false => "given up with facts left",
            });
            return self.input(at, Input::GiveUp);
        }
        let fails = self.faults && self.dice.percent(20);
        let (handled, truth) = (&mut self.handled, &mut self.truth);
        match process.desk.end(&mut self.dice, fails, handled, truth) {
            Some(answer) => {
                self.saw(match is_ours {
                    true => "handled",
                    false => "handled while the slot was another's",
                });
                self.input(at, Input::Kafka(answer));
            }
            None if fails => self.saw("a handler fails"),
            None => {}
        }
    }

    // ---- the server's side ----

    fn connect(&mut self, at: usize) {
        if self.server.stopping.is_some() || self.unreachable {
            if self.processes[at].connecting || self.processes[at].starting.is_some() {
                self.processes[at].disconnected();
                self.input(at, Input::PostgresGone(Gone::Lost("it is shutting down".to_owned())));
            }
            return;
        }
        if let Some(start) = self.processes[at].starting.take() {
            if self.server.session.is_some() || (self.faults && self.dice.percent(5)) {
                self.fault("slot in use");
                self.processes[at].disconnected();
                let cause = Gone::SlotInUse("PID 7".to_owned());
                return self.input(at, Input::PostgresGone(cause));
            }
            if std::mem::replace(&mut self.last_holder, at) != at {
                self.excuse("another relay had the slot");
            }
            self.server.start(self.now, at, start.0);
            self.processes[at].connection = Some(Connection::default());
            let others = self.processes.iter().enumerate();
            if others.clone().any(|(other, process)| other != at && process.connection.is_some()) {
                self.saw("split brain: both relays connected");
            }
            let asked_at = self.now;
            return self.input(at, Input::Streaming { asked_at });
        }
        if !std::mem::take(&mut self.processes[at].connecting) {
            return;
        }
        if self.faults && self.dice.percent(20) {
            self.fault("connection refused");
            let cause = Gone::Lost("refused".to_owned());
            return self.input(at, Input::PostgresGone(cause));
        }
        if self.faults && self.processes[at].identified && self.dice.percent(3) {
            self.fault("log-in refused");
            let cause = Gone::Refused(ExitKind::Unreachable, "a new password".to_owned());
            return self.input(at, Input::PostgresGone(cause));
        }
        let new = !std::mem::replace(&mut self.processes[at].identified, true);
        if new && self.server.has_forgotten() {
            self.truth.excuse.get_or_insert("the server forgot what only another process knows");
        }
        let identity = Identity {
            system: self.server.system,
            timeline: self.server.timeline,
            wal_flushed: Lsn(self.server.flushed()),
            history: self.server.history.clone(),
            database: 5,
            confirmed_flush: Lsn(self.server.confirmed),
        };
        self.input(at, Input::Identified(identity));
    }

    /// The relay reads some of what has come, cut anywhere.
    fn deliver(&mut self, at: usize) {
        let process = &mut self.processes[at];
        if process.relay.reading() == Reading::Paused {
            return;
        }
        let Some(connection) = &mut process.connection else { return };
        if connection.to_relay.is_empty() {
            return;
        }
        let bytes = 1 + self.dice.below(connection.to_relay.len().min(3000));
        let mut left = bytes;
        while left > 0 {
            let (chunk, _) = connection.to_relay.as_slices();
            let len = chunk.len().min(left);
            process.relay.receive_buffer().extend_from_slice(&chunk[..len]);
            connection.to_relay.drain(..len);
            left -= len;
        }
        let drained = connection.to_relay.is_empty();
        self.input(at, Input::Received { bytes, drained });
    }

    fn tick(&mut self) {
        let (more, ended) = self.server.tick(self.now);
        self.confirmed(more);
        self.flow();
        match ended {
            None => {}
            Some(Ended::TimedOut(at)) => {
                let connection = self.processes[at].connection.as_ref();
                let (deaf, mute) = connection.map_or((true, true), |c| (c.deaf, c.mute));
                assert!(deaf || mute, "the server gave up a relay that it could hear");
                self.saw("take-over");
                if !mute {
                    self.cut(at, "terminating walsender process due to replication timeout");
                }
            }
            Some(Ended::Stopped(at, since)) => {
                let took = self.now - since;
                assert!(took <= STOP_MAX, "stopping the server took {took:?}");
                self.cut(at, "the server ended the stream");
                self.stopped();
            }
        }
        if self.server.session.is_none() && self.server.stopping.is_some() {
            self.stopped();
        }
    }

    /// The server is down, and up again.
    fn stopped(&mut self) {
        self.server.stopping = None;
        if self.dice.percent(50) {
            // Before version 17 the slot's position is not saved at a shutdown.
            self.server.checkpoint();
        }
        self.server.crash(&mut self.truth);
        self.cut_all();
    }

    // ---- applications ----

    fn new_fact(&mut self) -> Option<u32> {
        if self.dice.percent(15) {
            return None;
        }
        let (key, halts) = (self.dice.below(7), self.plan.policy == Policy::Halt);
        let (topic, nature) = match self.dice.below(200) {
            0 | 1 if !halts => (FACTS, Nature::Junk),
            2 | 3 if !halts && !self.plan.handlers => (FACTS, Nature::Large),
            4 if halts && self.faults && self.dice.percent(30) => (FACTS, Nature::Junk),
            5 | 6 if halts => (LATE, Nature::Good),
            _ => (FACTS, Nature::Good),
        };
        Some(self.truth.new_fact(topic, key, nature))
    }

    fn application(&mut self) {
        if self.server.stopping.is_some() {
            return;
        }
        if self.server.open() == 0 || (self.server.open() < 4 && self.dice.percent(30)) {
            let transaction = self.server.begin();
            let count = if self.dice.percent(3) { 40 } else { self.dice.below(4) };
            for _ in 0..count {
                let fact = self.new_fact();
                self.server.emit(transaction, fact);
            }
            return;
        }
        let transaction = self.dice.below(self.server.open());
        match self.dice.below(100) {
            0..25 => {
                let fact = self.new_fact();
                self.server.emit(transaction, fact);
            }
            25..33 => {
                self.saw("ROLLBACK TO SAVEPOINT");
                let kept = self.dice.below(3);
                self.server.roll_back_to(transaction, kept, &mut self.truth);
            }
            33..40 => {
                self.saw("ROLLBACK");
                self.server.abort(transaction, &mut self.truth);
            }
            40..44 => self.server.prepare(transaction),
            44..50 => {
                let commit = self.dice.percent(70);
                self.saw(if commit { "COMMIT PREPARED" } else { "ROLLBACK PREPARED" });
                self.server.finish_prepared(self.now, commit, &mut self.truth);
            }
            50..56 => {
                if let Some(fact) = self.new_fact() {
                    self.saw("message outside of transactions");
                    self.server.emit_alone(self.now, fact, &mut self.truth);
                }
            }
            56..60 => self.server.write_others(8 + self.dice.next() % 5000),
            _ => {
                self.saw("commit");
                self.server.commit(self.now, transaction, &mut self.truth);
            }
        }
    }

    // ---- Kafka's side ----

    fn serve(&mut self, at: usize) {
        if self.plan.handlers {
            return self.handle(at);
        }
        // Requests to different brokers overtake each other; those to one do not.
        let requests = &self.processes[at].requests;
        if requests.is_empty() {
            return;
        }
        let nth = self.dice.below(requests.len());
        let to = |request: &Request| match request {
            Request::Produce { broker, .. } => Some(*broker),
            _ => None,
        };
        if requests.iter().all(is_coordinators) && self.faults && self.dice.percent(20) {
            // Brokers take their time.
            return;
        }
        let wanted = to(&requests[nth]);
        let nth = requests.iter().position(|request| to(request) == wanted).unwrap();
        let Some(request) = self.processes[at].requests.remove(nth) else { return };
        match request {
            Request::Metadata { topics } => self.metadata(at, &topics),
            Request::InitProducerId => {
                let answer = if self.faults && self.dice.percent(20) {
                    self.fault("coordinator is loading");
                    Err(COORDINATOR_LOAD_IN_PROGRESS)
                } else if self.faults && self.dice.percent(5) {
                    self.fault("no right to an identity");
                    Err(CLUSTER_AUTHORIZATION_FAILED)
                } else {
                    self.next_producer += 1;
                    Ok(ProducerId { id: self.next_producer, epoch: 0 })
                };
                self.input(at, Input::Kafka(Answer::ProducerId(Ok(answer))));
            }
            Request::CreateTopics { topics } => {
                let topics: Vec<_> = topics.into_iter().map(|(topic, _)| topic).collect();
                let mut answers = Vec::new();
                for topic in &topics {
                    let refused = self.faults && self.dice.percent(30);
                    let there = &mut self.cluster.topic(topic).there;
                    let error = match (refused, *there) {
                        (true, _) => THROTTLING_QUOTA_EXCEEDED,
                        (false, true) => TOPIC_ALREADY_EXISTS,
                        (false, false) => NONE,
                    };
                    *there |= !refused;
                    answers.push(match error {
                        NONE => Ok(()),
                        error => Err(CreateRefusal { error, message: None }),
                    });
                }
                let answer = Answer::TopicsCreated { topics, answer: Ok(answers) };
                self.input(at, Input::Kafka(answer));
            }
            Request::Produce { broker, batches, .. } => self.produce(at, broker, batches),
            request @ (Request::FindCoordinator { .. }
            | Request::InitTransactions { .. }
            | Request::AddPartitions { .. }
            | Request::AddOffsets { .. }
            | Request::CommitPosition { .. }
            | Request::EndTransaction { .. }
            | Request::FetchPosition { .. }) => self.coordinate(at, request),
            Request::Tail { broker, topic, partition, from, to, source } => {
                let deleted = match self.faults && self.dice.percent(10) {
                    true => i64::try_from(self.dice.below(30)).unwrap(),
                    false => 0,
                };
                let broker = usize::try_from(broker).unwrap();
                let place = (&*topic, partition);
                let found = self.cluster.tail(broker, place, (from, to), deleted, &source);
                let mut answer = found.map_err(|error| Unanswered(name(error).to_owned()));
                if self.faults && self.dice.percent(10) {
                    self.fault("tail cannot be read");
                    answer = Err(Unanswered("silence".to_owned()));
                } else if self.faults && self.dice.percent(20) {
                    // Now it is not there any more, unless all replicas had it.
                    let at = usize::try_from(partition).unwrap();
                    let (dice, truth) = (&mut self.dice, &mut self.truth);
                    if self.cluster.move_leader_of(dice, &topic, at, truth) {
                        self.fault("leader moved behind a tail, and did not have all");
                    }
                }
                let answer = Answer::Tail { topic, partition, from, answer };
                self.input(at, Input::Kafka(answer));
            }
        }
    }

    fn metadata(&mut self, at: usize, topics: &[std::sync::Arc<str>]) {
        if self.faults && self.dice.percent(20) {
            self.fault("no metadata");
            let cause = Unanswered("silence".to_owned());
            return self.input(at, Input::Kafka(Answer::Metadata(Err(cause))));
        }
        let mut found = Vec::new();
        for name in topics {
            let there = self.cluster.topic(name).there;
            let mut partitions = Vec::new();
            let mut leaders = self.cluster.leaders(name);
            // At the first contact nobody can tell that there are more.
            let knows = there && !self.processes[at].knows.insert(name.to_string());
            if self.faults && knows && self.dice.percent(5) {
                self.fault("not all partitions are heard of");
                leaders.truncate(1 + self.dice.below(leaders.len()));
                self.cluster.topic(name).had(leaders.len());
            }
            for (index, mut leader) in leaders.into_iter().enumerate().filter(|_| there) {
                let dice = self.dice.below(100);
                if self.faults && dice < 5 {
                    self.fault("metadata is stale");
                    leader = self.dice.below(BROKERS);
                }
                let known = !self.faults || dice < 95;
                let leader = known.then(|| i32::try_from(leader).unwrap());
                let index = i32::try_from(index).unwrap();
                partitions.push(PartitionMetadata { index, leader });
            }
            let error = if there { NONE } else { UNKNOWN_TOPIC_OR_PARTITION };
            let topic = self.cluster.topic(name);
            let former = topic.former_id.filter(|_| self.faults && self.dice.percent(10));
            let id = former.or(topic.id).filter(|_| there);
            found.push(TopicMetadata { name: name.to_string(), id, error, partitions });
        }
        let broker = |id| Broker { id, host: "kafka".to_owned(), port: 9092 };
        let brokers = (0..i32::try_from(BROKERS).unwrap()).map(broker).collect();
        let cluster_id = Some(self.cluster.id.to_owned());
        let metadata = Metadata { cluster_id, brokers, topics: found };
        self.input(at, Input::Kafka(Answer::Metadata(Ok(metadata))));
    }

    fn produce(&mut self, at: usize, broker: i32, batches: Vec<PartitionBatch>) {
        let to = usize::try_from(broker).unwrap();
        if self.faults && self.dice.percent(10) {
            // With the connection goes everything that is on it.
            let mut lost = vec![batches];
            self.processes[at].requests.retain(|request| match request {
                Request::Produce { broker: other, batches, .. } if *other == broker => {
                    lost.push(batches.clone());
                    false
                }
                _ => true,
            });
            let fate = self.dice.below(3);
            match fate {
                0 => self.fault("answer lost after the append"),
                1 => self.fault("request lost"),
                _ => self.fault("request delayed"),
            }
            for (nth, batches) in lost.iter().enumerate() {
                match fate {
                    0 if nth == 0 => {
                        for batch in batches {
                            self.cluster.arrive(to, batch, Fault::None, self.now, &mut self.truth);
                        }
                    }
                    0 | 1 => {}
                    _ => self.late.push_back((to, batches.clone())),
                }
            }
            for batches in lost {
                let cause = Unanswered("reset".to_owned());
                let sent = true;
                let answer = Answer::ProduceUnanswered { broker, batches, sent, cause };
                self.input(at, Input::Kafka(answer));
            }
            return;
        }
        let mut partitions = Vec::new();
        for batch in &batches {
            let fault = match self.dice.below(200) {
                _ if !self.faults => Fault::None,
                0..6 => Fault::Before(NOT_ENOUGH_REPLICAS),
                6..12 => Fault::After(NOT_ENOUGH_REPLICAS_AFTER_APPEND),
                12..14 => Fault::After(REQUEST_TIMED_OUT),
                14..16 => Fault::After(NETWORK_EXCEPTION),
                16..18 => Fault::After(KAFKA_STORAGE_ERROR),
                22..24 if self.truth.exactly_once => {
                    self.fault("transaction is to be aborted");
                    Fault::Before(TRANSACTION_ABORTABLE)
                }
                18..20 if !self.plan.gentle => {
                    self.fault("producer forgotten");
                    Fault::Before(UNKNOWN_PRODUCER_ID)
                }
                20..22 if !self.plan.gentle => {
                    self.fault("producer id is over");
                    Fault::Before(INVALID_PRODUCER_EPOCH)
                }
                _ => Fault::None,
            };
            let (error, base_offset) =
                self.cluster.arrive(to, batch, fault, self.now, &mut self.truth);
            if error != NONE {
                self.fault(name(error));
            }
            let PartitionBatch { topic, partition, base_sequence, .. } = batch.clone();
            partitions.push(PartitionAnswer {
                topic,
                partition,
                base_sequence,
                error,
                base_offset,
            });
        }
        let throttle = match self.dice.below(100) {
            0..4 if self.faults => {
                self.fault("throttled");
                Duration::from_millis(200 + self.dice.next() % 2000)
            }
            _ => Duration::ZERO,
        };
        self.input(at, Input::Kafka(Answer::Produced { broker, partitions, throttle }));
    }

    /// What was on a connection that is gone comes after all.
    fn late(&mut self) {
        if let Some((broker, batches)) = self.late.pop_front() {
            self.saw("late arrival");
            for batch in &batches {
                // Nobody hears whether the replicas have it.
                let fault = match self.faults && self.dice.percent(50) {
                    true => Fault::After(REQUEST_TIMED_OUT),
                    false => Fault::None,
                };
                self.cluster.arrive(broker, batch, fault, self.now, &mut self.truth);
            }
        }
        if let Some(request) = self.late_requests.pop_front() {
            self.saw("late request to a coordinator");
            self.coordinator_does(request);
        }
    }

    // ---- coordinators ----

    /// What is seen of a relay's transactions from outside.
    fn transactions_of(&mut self, at: usize) {
        let state = self.processes[at].relay.standing(self.now).transaction.unwrap();
        let name = format!("transactions: {}", state.as_str());
        if let Some(wanted) = WANTED_IN_TRANSACTIONS.iter().find(|wanted| **wanted == name) {
            *self.counts.entry(wanted).or_default() += 1;
        }
    }

    fn coordinator(&mut self) -> &mut Coordinator {
        self.cluster.coordinator.as_mut().unwrap()
    }

    /// A marker is written, if one is to be.
    fn markers(&mut self) {
        let now = self.now;
        let Some(coordinator) = &mut self.cluster.coordinator else { return };
        let expired = coordinator.expire(now);
        let marker = coordinator.next_marker();
        if let Some(marker) = marker {
            self.cluster.marked(&marker);
            let coordinator = self.coordinator();
            let offset = coordinator.offset.as_ref().map(|stored| stored.offset);
            if marker.member == Member::Offsets
                && let Some(offset) = offset
            {
                self.check_position(offset);
            }
        }
        if expired {
            self.fault("transaction expired");
        }
    }

    /// A position can be read: all that is before it must be there.
    fn check_position(&mut self, offset: i64) {
        if offset < self.position_checked {
            self.saw("a position in another one's place");
        }
        self.position_checked = offset;
        if self.server.timeline == 1 {
            let offset = u64::try_from(offset).unwrap();
            self.truth.check_position(&self.server, offset);
        }
    }

    fn coordinate(&mut self, at: usize, request: Request) {
        let unanswered = |request: Request| request.unanswered(Unanswered("reset".to_owned()));
        if !self.faults {
            let answer = self.coordinator_does(request);
            return self.input(at, Input::Kafka(answer));
        }
        let answer = match self.dice.below(200) {
            0..6 => {
                self.fault("coordinator's request lost");
                unanswered(request)
            }
            6..12 => {
                self.fault("coordinator's answer lost");
                self.coordinator_does(request.clone());
                unanswered(request)
            }
            12..18 => {
                self.fault("coordinator's request delayed");
                self.late_requests.push_back(request.clone());
                unanswered(request)
            }
            18..26 => {
                self.fault("coordinator loads");
                refused(&request, COORDINATOR_LOAD_IN_PROGRESS)
            }
            26..29 => {
                self.fault("coordinator moved");
                let (dice, other) = (self.dice.below(2), self.dice.below(BROKERS));
                self.coordinator().brokers[dice] = other;
                self.coordinator_does(request)
            }
            29..30 => {
                self.fault("coordinator refuses");
                refused(&request, CLUSTER_AUTHORIZATION_FAILED)
            }
            30..32 => {
                self.fault("transaction is to be aborted");
                refused(&request, TRANSACTION_ABORTABLE)
            }
            _ => self.coordinator_does(request),
        };
        self.input(at, Input::Kafka(answer));
    }

    /// Does what a coordinator is asked.
    fn coordinator_does(&mut self, request: Request) -> Answer {
        let now = self.now;
        if let Some((of, broker)) = asked_of(&request) {
            let brokers = self.coordinator().brokers;
            let is = brokers[usize::from(of == CoordinatorOf::Group)];
            if i32::try_from(is).unwrap() != broker {
                self.saw("NOT_COORDINATOR");
                return refused(&request, NOT_COORDINATOR);
            }
        }
        let there: BTreeSet<String> = self
            .cluster
            .topics
            .iter()
            .filter(|(_, topic)| topic.there)
            .map(|(name, _)| (*name).to_owned())
            .collect();
        let coordinator = self.coordinator();
        let version = coordinator.version;
        let mut decided = Decided::Nothing;
        let answer = match request {
            Request::FindCoordinator { of, .. } => {
                let broker = coordinator.brokers[usize::from(of == CoordinatorOf::Group)];
                let answer = Ok(Ok(i32::try_from(broker).unwrap()));
                Answer::Coordinator { of, answer }
            }
            Request::InitTransactions { timeout, producer, .. } => {
                let (answer, what) = coordinator.init(timeout, producer);
                decided = what;
                Answer::TransactionsReady(Ok(answer.map(|producer| (producer, version))))
            }
            Request::AddPartitions { transaction, partitions } => {
                let missing = |name: &str| !there.contains(name);
                let refuses = partitions.iter().any(|(topic, _)| missing(topic));
                let codes = partitions.iter().map(|(topic, partition)| {
                    let member = Member::Partition(topic.to_string(), *partition);
                    match (missing(topic), refuses) {
                        (true, _) => UNKNOWN_TOPIC_OR_PARTITION,
                        (false, true) => OPERATION_NOT_ATTEMPTED,
                        (false, false) => coordinator.add(now, transaction.producer, member),
                    }
                });
                Answer::PartitionsAdded(Ok(codes.collect()))
            }
            Request::AddOffsets { transaction, .. } => {
                let code = coordinator.add(now, transaction.producer, Member::Offsets);
                Answer::OffsetsAdded(Ok(done(code)))
            }
            Request::CommitPosition { producer, position, .. } => {
                let code = match there.contains(POSITION) {
                    true => coordinator.commit_position(now, producer, position),
                    false => UNKNOWN_TOPIC_OR_PARTITION,
                };
                Answer::PositionCommitted(Ok(done(code)))
            }
            Request::EndTransaction { transaction, commit, .. } => {
                let (answer, what) = coordinator.end(transaction.producer, commit);
                decided = what;
                Answer::TransactionEnded(Ok(answer))
            }
            Request::FetchPosition { .. } => Answer::Position(Ok(coordinator.fetch())),
            _ => panic!("not a coordinator's"),
        };
        if let Some(code) = code_of(&answer) {
            self.saw(name(code));
        }
        self.saw(match version {
            TransactionVersion::Explicit => "explicit transactions",
            TransactionVersion::EpochPerTransaction => "an epoch per transaction",
        });
        match decided {
            Decided::Nothing => {}
            Decided::Aborted => self.saw("aborted"),
            Decided::Committed(members, producer) => {
                self.saw("committed");
                let highest = self.coordinator().highest;
                self.server.was_handed_on(u64::try_from(highest).unwrap());
                self.cluster.decided(&members, producer, &mut self.truth);
                self.truth.check_whole(&self.server);
            }
        }
        // Those who are in a hurry find the markers missing.
        for _ in 0..self.dice.below(4) {
            self.markers();
        }
        if self.cluster.coordinator.as_ref().is_some_and(Coordinator::is_open) {
            self.saw("markers are late");
        }
        answer
    }

    /// A supervisor starts again who has ended, and an operator has done what it said.
    fn revive(&mut self) {
        if !self.supervised {
            return;
        }
        for at in 0..self.processes.len() {
            match self.processes[at].exit {
                Some(ExitKind::Slot) => {
                    self.saw("started again behind a gap");
                    assert!(
                        self.by_hand > 1000 || self.truth.position_lost,
                        "a gap, and nobody made it"
                    );
                    self.coordinator().offset = None;
                    self.truth.position_lost = true;
                }
                Some(ExitKind::Fenced) => self.saw("started again after it was fenced"),
                _ => continue,
            }
            self.start_process(at);
        }
    }

    // ---- the story ----

    fn step(&mut self) {
        self.revive();
        if self.truth.exactly_once && self.dice.percent(10) {
            self.markers();
        }
        let at = self.dice.below(self.processes.len());
        match self.dice.below(1000) {
            0..200 => {
                self.application();
                self.server.idle(self.now);
                self.flow();
            }
            200..300 => {
                self.server.send_next(self.now, &self.truth);
                self.flow();
            }
            300..520 => self.deliver(at),
            520..680 => self.serve(at),
            680..760 => self.connect(at),
            760..780 => {
                let reply = self.dice.percent(50);
                self.server.keepalive(self.now, reply);
                self.flow();
            }
            780..785 => self.server.checkpoint(),
            785..795 => self.late(),
            795..830 if self.faults => self.misfortune(at),
            _ => self.pass(),
        }
    }

    fn misfortune(&mut self, at: usize) {
        match self.dice.below(100) {
            0..20 if self.processes[at].connection.is_some() => {
                self.fault("connection lost");
                self.server.hung_up(at);
                self.cut(at, "reset");
            }
            20..35 => {
                let ways = self.dice.below(3);
                if let Some(connection) = &mut self.processes[at].connection {
                    connection.deaf |= ways != 1;
                    connection.mute |= ways != 0;
                    let unheard = connection.deaf && !connection.mute;
                    if connection.mute {
                        connection.to_relay.clear();
                    }
                    self.processes[at].was_unheard |= unheard;
                    self.fault(match ways {
                        0 => "black hole to the server",
                        1 => "black hole from the server",
                        _ => "black hole both ways",
                    });
                }
            }
            35..42 => {
                self.fault("server crash");
                self.server.crash(&mut self.truth);
                self.cut_all();
            }
            42..47 => {
                let dark = self.processes.iter().filter_map(|process| process.connection.as_ref());
                if dark.clone().all(|connection| !connection.deaf && !connection.mute) {
                    self.fault("fast stop");
                    self.server.stopping = Some(None);
                }
            }
            47..52 if self.server.stopping.is_none() => {
                self.fault("server is busy");
                let long = Duration::from_secs(1 + self.dice.next() % 25);
                self.server.busy(self.now + long);
            }
            52..67 if !self.plan.handlers => {
                let topic = [FACTS, FACTS, LATE, DEAD][self.dice.below(4)];
                let lost = self.cluster.move_leader(&mut self.dice, topic, &mut self.truth);
                self.fault(match lost {
                    true => "leader moved, and did not have all",
                    false => "leader moved",
                });
            }
            67..70 if self.plan.grows && self.cluster.leaders(FACTS).len() < 8 => {
                self.fault("topic grown");
                self.truth.grown = true;
                self.cluster.grow(FACTS);
            }
            70..74 if self.plan.policy == Policy::Halt && !self.plan.handlers => {
                let there = &mut self.cluster.topic(FACTS).there;
                *there = !*there;
                let there = *there;
                self.fault(if there { "topic made again" } else { "topic deleted" });
                // Brokers that are not told which topic is meant take for the new one what is on its way to the
                // old one, in whatever order.
                if there && self.plan.topic_ids && self.dice.percent(50) {
                    self.fault("topic made anew");
                    self.cluster.make_anew(FACTS, &mut self.truth);
                }
            }
            74..78 => self.repair(),
            78..86 if !self.plan.gentle => self.kill(at),
            86..90 if self.plan.gentle && self.server.stopping.is_none() => self.restart(at),
            90..91 if !self.plan.gentle && !self.plan.handlers => self.long_silence(),
            93..97 if self.plan.fails_over => self.fail_over(),
            97..100 if self.truth.exactly_once && self.dice.percent(20) => self.expire(),
            _ => {}
        }
    }

    /// What Kafka keeps of transactions goes, as what nobody uses for days does, or what somebody deletes.
    fn expire(&mut self) {
        match self.dice.below(3) {
            0 if self.coordinator().forget() => self.fault("transactional id expired"),
            1 if !self.plan.gentle && self.coordinator().offset.take().is_some() => {
                self.fault("group's offset expired");
                self.truth.position_lost = true;
            }
            2 if !self.plan.gentle && std::mem::take(&mut self.cluster.topic(POSITION).there) => {
                self.fault("topic of the position is missing");
                self.coordinator().offset = None;
                self.truth.position_lost = true;
            }
            _ => {}
        }
    }

    /// Nobody produces for so long that the brokers forget who did.
    fn long_silence(&mut self) {
        let silent = |world: &Self| {
            let mut processes = world.processes.iter();
            world.late.is_empty()
                && !processes.any(|process| process.requests.iter().any(is_produce))
        };
        let begun = self.now;
        while silent(self) && self.now < begun + Duration::from_secs(70) {
            self.markers();
            self.pass();
        }
        if silent(self) {
            self.fault("producers forgotten");
            self.excuse("producers forgotten");
            self.cluster.forget();
        }
    }

    fn cut_all(&mut self) {
        for at in 0..self.processes.len() {
            let mute = self.processes[at].connection.as_ref().is_some_and(|c| c.mute);
            if mute {
                self.processes[at].unaware_until = Some(self.now + LEASE);
            } else {
                self.cut(at, "terminating connection");
            }
        }
    }

    fn fail_over(&mut self) {
        self.excuse("failover");
        let high = self.server.flushed();
        // Behind its primary, or even behind what is confirmed.
        let lags = [0, 600, high - self.server.confirmed + 600];
        let end = high.saturating_sub(self.dice.next() % (lags[self.dice.below(3)] + 1));
        // A standby has followed to the timeline that it leaves.
        let end = end.max(self.server.history.last().map_or(1000, |(_, switch)| switch.0));
        self.server.promote(end, &mut self.truth);
        if let Some(coordinator) = &self.cluster.coordinator {
            self.server.was_handed_on(u64::try_from(coordinator.highest).unwrap());
        }
        self.fault(if end < high { "failover to a standby that lags" } else { "failover" });
        self.cut_all();
        // Applications may find the new primary before the relay does.
        for _ in 0..self.dice.below(12) {
            self.application();
        }
    }

    /// SIGKILL, and a new process. What was on its way to Kafka may still arrive.
    fn kill(&mut self, at: usize) {
        self.fault("kill -9");
        self.restarts += 1;
        self.excuse("kill -9");
        let lost = self.processes[at].connection.as_ref().is_some_and(|c| c.deaf);
        if !lost {
            self.server.hung_up(at);
        }
        for request in std::mem::take(&mut self.processes[at].requests) {
            let is_late =
                (is_produce(&request) || is_coordinators(&request)) && self.dice.percent(50);
            match request {
                Request::Produce { broker, batches, .. } if is_late => {
                    self.late.push_back((usize::try_from(broker).unwrap(), batches));
                }
                request if is_late => self.late_requests.push_back(request),
                _ => {}
            }
        }
        if !self.processes[at].desk.is_empty() {
            self.saw("handlers die");
        }
        // What is promised must hold before anything is repaired.
        self.truth.check_promise(&self.server, self.server.confirmed);
        self.start_process(at);
    }

    /// SIGTERM, and a new process, with nothing wrong in between: then nothing is repeated.
    fn restart(&mut self, at: usize) {
        let late = !self.late.is_empty() || !self.late_requests.is_empty();
        if late || self.processes[at].halted.is_some() || self.processes[at].exit.is_some() {
            return;
        }
        let faults = std::mem::replace(&mut self.faults, false);
        self.repair();
        self.cluster.topic(FACTS).there = true;
        let lost = self.processes[at].connection.is_none();
        self.input(at, Input::Stop);
        for _ in 0..20_000 {
            if self.processes[at].exit.is_some() {
                break;
            }
            if self.dice.percent(20) {
                self.server.write_others(100);
                self.server.idle(self.now);
                self.flow();
            }
            self.calm_step(Duration::from_millis(5));
        }
        self.faults = faults;
        // A black hole may outlast the deadline.
        let exit = self.processes[at].exit;
        assert!(matches!(exit, Some(ExitKind::Stopped | ExitKind::Deadline)), "{exit:?}");
        if exit == Some(ExitKind::Deadline) {
            self.truth.excuse.get_or_insert("the stop's deadline passed");
        } else if self.processes[at].was_unheard && lost {
            // With no server to ask, what it said on its own cannot be told from an answer to what it did
            // not hear.
            self.truth
                .excuse
                .get_or_insert("stopped while away from a server that had not heard it");
        }
        self.restarts += 1;
        self.saw("restart");
        self.server.hung_up(at);
        self.start_process(at);
    }

    /// Somebody does what the relay's log says.
    fn repair(&mut self) {
        if self.plan.policy == Policy::Halt && !self.cluster.topic(LATE).there {
            self.saw("topic made");
            self.cluster.topic(LATE).there = true;
        }
        for at in 0..self.processes.len() {
            let Some(position) = self.processes[at].halted else { continue };
            let mut units = self.server.wal.iter();
            let alone = position.unit.class == Class::Message;
            let unit = units.find(|unit| unit.is_at(position.unit.lsn.0, alone));
            let junk = unit.and_then(|unit| unit.fact_at(position.index));
            let junk = junk.is_some_and(|id| halts(self.truth.facts[id as usize].nature));
            if junk && self.server.advance_past(position.unit.lsn.0, alone, &mut self.truth) {
                self.saw("slot advanced by hand");
                self.by_hand = self.by_hand.max(self.server.confirmed);
            }
        }
    }

    fn pass(&mut self) {
        let nap = Duration::from_millis(1 + self.dice.next() % 400);
        self.pass_for(nap);
    }

    fn pass_for(&mut self, nap: Duration) {
        let deadlines = self.processes.iter().filter_map(|process| process.relay.deadline());
        let next = deadlines.min().unwrap_or(self.now + nap);
        // A timer is never late by much. Whoever is in a hurry is served at once.
        let jump = nap >= Duration::from_millis(10) && self.dice.percent(50);
        self.now = match jump {
            true => self.now.max(next).min(self.now + Duration::from_secs(1)),
            false => self.now + nap.min(next.saturating_duration_since(self.now)),
        };
        for at in 0..self.processes.len() {
            self.input(at, Input::Timeout);
            let deadline = self.processes[at].relay.deadline();
            let late = deadline.is_some_and(|deadline| deadline <= self.now);
            assert!(!late, "relay {at} wants to be called again at once");
        }
        self.tick();
    }

    /// The database is not held up: a socket that stays unread is given up.
    fn check_stall(&mut self, at: usize) {
        let process = &mut self.processes[at];
        let unread = process.connection.is_some() && process.relay.reading() == Reading::Paused;
        if !unread {
            process.paused = None;
            return;
        }
        let since = *process.paused.get_or_insert(self.now);
        let long = self.now - since;
        assert!(long <= STALL_TIMEOUT + Duration::from_secs(2), "unread for {long:?}");
    }

    fn calm_step(&mut self, nap: Duration) {
        self.revive();
        self.markers();
        let at = self.dice.below(self.processes.len());
        match self.dice.below(10) {
            0..2 => {
                self.server.send_next(self.now, &self.truth);
                self.flow();
            }
            2..5 => self.deliver(at),
            5..7 => self.serve(at),
            7 => self.connect(at),
            _ => {
                self.serve_coordinators();
                self.pass_for(nap);
            }
        }
    }

    /// A transaction is a dozen questions one after the other; between two naps all of them are answered.
    fn serve_coordinators(&mut self) {
        for at in 0..self.processes.len() {
            for _ in 0..20 {
                let requests = &mut self.processes[at].requests;
                let Some(nth) = requests.iter().position(is_coordinators) else { break };
                let Some(request) = requests.remove(nth) else { break };
                self.coordinate(at, request);
                self.markers();
            }
        }
    }

    /// No more faults: everything must arrive and be confirmed, what nobody waits for included.
    fn heal(&mut self) {
        self.faults = false;
        while !self.late.is_empty() || !self.late_requests.is_empty() {
            self.late();
        }
        self.cluster.topic(FACTS).there = true;
        for transaction in (0..self.server.open()).rev() {
            self.server.commit(self.now, transaction, &mut self.truth);
        }
        self.server.write_others(5000);
        for _ in 0..30_000 {
            if self.server.is_done() && self.server.stopping.is_none() {
                break;
            }
            self.repair();
            self.calm_step(Duration::from_millis(300));
        }
        let (confirmed, flushed) = (self.server.confirmed, self.server.flushed());
        assert!(self.server.is_done(), "{confirmed} of {flushed} confirmed: no progress");
        assert!(self.processes.iter().all(|process| process.exit.is_none()));
        self.truth.check_all(&self.server);
        if self.truth.exactly_once {
            self.truth.check_whole(&self.server);
        }
    }

    /// The whole story of a seed.
    pub(crate) fn tell(&mut self) {
        for at in 0..self.processes.len() {
            #[cfg(feature = "seeded-bugs")]
            self.processes[at].relay.seed_bug(self.seeded);
            self.input(at, Input::Timeout);
        }
        for _ in 0..20_000 {
            let told = self.truth.facts.len() >= FACTS_MIN
                && self.fault_count >= FAULTS_MIN
                && self.restarts > 0;
            if told {
                break;
            }
            self.step();
        }
        assert!(self.truth.facts.len() >= FACTS_MIN, "a short story");
        if self.restarts == 0 {
            match self.plan.gentle {
                true => self.restart(0),
                false => self.kill(0),
            }
        }
        assert!(self.fault_count >= FAULTS_MIN && self.restarts > 0, "a story without faults");
        self.heal();
        self.stop_and_start();
        self.supervised = false;
        self.last_act();
    }

    /// A clean stop and a new process: nothing comes twice.
    fn stop_and_start(&mut self) {
        // Those who wait for the slot end first.
        self.processes.truncate(1);
        self.server.session.take_if(|session| session.process != 0);
        if self.truth.exactly_once {
            // One that was fenced finds out, and begins anew.
            self.heal();
        }
        self.settle_down();
        for _ in 0..30 {
            self.application();
        }
        self.input(0, Input::Stop);
        for _ in 0..20_000 {
            if self.processes[0].exit.is_some() {
                break;
            }
            // Without faults an answer takes less time than a deadline.
            self.calm_step(Duration::from_millis(5));
        }
        let exit = self.processes[0].exit;
        // What handlers had done behind a fact that none was called for comes again.
        let left = self.plan.handlers && exit == Some(ExitKind::Deadline);
        assert!(left || exit == Some(ExitKind::Stopped), "{exit:?}");
        if self.truth.exactly_once {
            for _ in 0..100 {
                self.markers();
            }
            assert_eq!(self.cluster.pending(), 0, "consumers wait for what nobody ends");
        }
        let before = self.truth.repeats;
        if left {
            self.truth.excuse.get_or_insert("a stop left facts");
        }
        self.start_process(0);
        self.heal();
        assert!(left || self.truth.repeats == before, "a clean restart repeated something");
    }

    /// Until the slot is ours, and nothing waits from when it was before.
    fn settle_down(&mut self) {
        for _ in 0..20_000 {
            let standing = self.processes[0].relay.standing(self.now);
            if self.server.session.is_some() && standing.unsettled_facts == 0 {
                return;
            }
            self.calm_step(Duration::from_millis(100));
        }
        panic!("nobody takes the slot");
    }

    /// What no relay can repair: it ends, says which end it is, and touches nothing.
    fn last_act(&mut self) {
        let confirmed = self.server.confirmed;
        let lost = |world: &mut Self| {
            world.server.hung_up(0);
            world.cut(0, "reset");
        };
        let expected = match self.plan.act {
            0 => {
                lost(self);
                let cause = "slot factlib_slot does not exist".to_owned();
                self.input(0, Input::PostgresGone(Gone::Terminal(ExitKind::Slot, cause)));
                ExitKind::Slot
            }
            1 => {
                lost(self);
                let cause = "the publication was dropped".to_owned();
                self.input(0, Input::PostgresGone(Gone::Terminal(ExitKind::Publication, cause)));
                ExitKind::Publication
            }
            2 => {
                self.server.restore();
                self.cut(0, "reset");
                ExitKind::OtherCluster
            }
            3 => {
                self.server.system = 8;
                lost(self);
                ExitKind::OtherCluster
            }
            4 if !self.plan.handlers => {
                self.cluster.id = "another";
                ExitKind::OtherKafka
            }
            5 => {
                // One that is new, and finds nobody.
                let mut settings = settings(self.seed, self.plan);
                settings.startup_timeout = Some(Duration::from_secs(30));
                self.server.hung_up(0);
                self.processes[0] = Process::new(settings);
                self.unreachable = true;
                self.input(0, Input::Timeout);
                ExitKind::Unreachable
            }
            6 => {
                // Kafka says nothing until the deadline.
                let transaction = self.server.begin();
                for _ in 0..3 {
                    let fact = self.truth.new_fact(FACTS, 1, Nature::Good);
                    self.server.emit(transaction, Some(fact));
                }
                self.server.commit(self.now, transaction, &mut self.truth);
                for _ in 0..20_000 {
                    if self.is_produced() {
                        break;
                    }
                    self.calm_step_without_produce();
                }
                self.input(0, Input::Stop);
                for _ in 0..20_000 {
                    if self.processes[0].exit.is_some() {
                        break;
                    }
                    self.calm_step_without_produce();
                }
                ExitKind::Deadline
            }
            _ => return,
        };
        for _ in 0..20_000 {
            if self.processes[0].exit.is_some() {
                break;
            }
            self.calm_step(Duration::from_millis(300));
        }
        assert_eq!(self.processes[0].exit, Some(expected));
        // While it waits for Kafka it may confirm what is before.
        let same = self.server.confirmed == confirmed || expected == ExitKind::Deadline;
        assert!(same, "confirmed with the last breath");
        self.truth.check_promise(&self.server, self.server.confirmed);
        self.input(0, Input::Timeout);
    }

    /// Something was produced that is not answered.
    fn is_produced(&self) -> bool {
        self.processes[0].requests.iter().any(is_produce) || !self.processes[0].desk.is_empty()
    }

    fn calm_step_without_produce(&mut self) {
        let at_produce = self.is_produced();
        match self.dice.below(10) {
            0..2 => {
                self.server.send_next(self.now, &self.truth);
                self.flow();
            }
            2..5 => self.deliver(0),
            5..7 if !at_produce => self.serve(0),
            7 => self.connect(0),
            _ => self.pass_for(Duration::from_millis(300)),
        }
    }
}

fn the_one_partition_of(topic: &str) -> TopicMetadata {
    let partitions = vec![PartitionMetadata { index: 0, leader: Some(0) }];
    TopicMetadata { name: topic.to_owned(), id: None, error: NONE, partitions }
}

fn is_coordinators(request: &Request) -> bool {
    asked_of(request).is_some() || matches!(request, Request::FindCoordinator { .. })
}

/// Whom of the coordinators, and as which broker.
fn asked_of(request: &Request) -> Option<(CoordinatorOf, i32)> {
    let transactions = CoordinatorOf::Transactions;
    match request {
        Request::InitTransactions { coordinator, .. } => Some((transactions, *coordinator)),
        Request::AddPartitions { transaction, .. }
        | Request::AddOffsets { transaction, .. }
        | Request::EndTransaction { transaction, .. } => {
            Some((transactions, transaction.coordinator))
        }
        Request::CommitPosition { coordinator, .. }
        | Request::FetchPosition { coordinator, .. } => Some((CoordinatorOf::Group, *coordinator)),
        _ => None,
    }
}

fn done(code: i16) -> Result<(), i16> {
    if code == NONE { Ok(()) } else { Err(code) }
}

/// The answer with this error code.
fn refused(request: &Request, code: i16) -> Answer {
    match request {
        Request::FindCoordinator { of, .. } => {
            Answer::Coordinator { of: *of, answer: Ok(Err(code)) }
        }
        Request::InitTransactions { .. } => Answer::TransactionsReady(Ok(Err(code))),
        Request::AddPartitions { partitions, .. } => {
            Answer::PartitionsAdded(Ok(vec![code; partitions.len()]))
        }
        Request::AddOffsets { .. } => Answer::OffsetsAdded(Ok(Err(code))),
        Request::CommitPosition { .. } => Answer::PositionCommitted(Ok(Err(code))),
        Request::EndTransaction { .. } => Answer::TransactionEnded(Ok(Err(code))),
        Request::FetchPosition { .. } => Answer::Position(Ok(Err(code))),
        other => panic!("{other:?} is not a coordinator's"),
    }
}

fn code_of(answer: &Answer) -> Option<i16> {
    match answer {
        Answer::Coordinator { answer: Ok(Err(code)), .. }
        | Answer::TransactionsReady(Ok(Err(code)))
        | Answer::OffsetsAdded(Ok(Err(code)))
        | Answer::PositionCommitted(Ok(Err(code)))
        | Answer::TransactionEnded(Ok(Err(code)))
        | Answer::Position(Ok(Err(code))) => Some(*code),
        Answer::PartitionsAdded(Ok(codes)) => codes.iter().copied().find(|code| *code != NONE),
        _ => None,
    }
}

fn is_produce(request: &Request) -> bool {
    matches!(request, Request::Produce { .. })
}

fn exit_name(kind: ExitKind) -> &'static str {
    match kind {
        ExitKind::Stopped => "exit: Stopped",
        ExitKind::Deadline => "exit: Deadline",
        ExitKind::Unreachable => "exit: Unreachable",
        ExitKind::Slot => "exit: Slot",
        ExitKind::OtherCluster => "exit: OtherCluster",
        ExitKind::OtherKafka => "exit: OtherKafka",
        ExitKind::Publication => "exit: Publication",
        ExitKind::Unsuitable => "exit: Unsuitable",
        ExitKind::Fenced => "exit: Fenced",
    }
}

fn event_name(event: &Event) -> &'static str {
    match event {
        Event::Streaming { .. } => "event: Streaming",
        Event::Away { .. } => "event: Away",
        Event::SlotInUse { .. } => "event: SlotInUse",
        Event::SlotMoved { .. } => "event: SlotMoved",
        Event::TimelineChanged { .. } => "event: TimelineChanged",
        Event::ServerStopping { .. } => "event: ServerStopping",
        Event::Halted(_) => "event: Halted",
        Event::Foreign { .. } => "event: Foreign",
        Event::PassedOver { .. } => "event: PassedOver",
        Event::Resumed { .. } => "event: Resumed",
        Event::KafkaReached { .. } => "event: KafkaReached",
        Event::KafkaUnreachable { .. } => "event: KafkaUnreachable",
        Event::ProducerId { .. } => "event: ProducerId",
        Event::NoProducerId { .. } => "event: NoProducerId",
        Event::TopicCreated { .. } => "event: TopicCreated",
        Event::SlotAhead { .. } => "event: SlotAhead",
        Event::TopicMadeAnew { .. } => "event: TopicMadeAnew",
        Event::TopicNotCreated { .. } => "event: TopicNotCreated",
        Event::PartitionBlocked { .. } => "event: PartitionBlocked",
        Event::PartitionRecovered { .. } => "event: PartitionRecovered",
        Event::PartitionsChanged { .. } => "event: PartitionsChanged",
        Event::SequencesLost { .. } => "event: SequencesLost",
        Event::GivenUp(given_up) if given_up.policy == Policy::Skip => "event: GivenUp skip",
        Event::GivenUp(_) => "event: GivenUp dead-letter",
        Event::AlreadyStored { .. } => "event: AlreadyStored",
        Event::TailRead { .. } => "event: TailRead",
        Event::TailUnread { .. } => "event: TailUnread",
        Event::Throttled { .. } => "event: Throttled",
        Event::Settled { .. } => "event: Settled",
        Event::NotStored { .. } => "event: NotStored",
        Event::Stopping { .. } => "event: Stopping",
        Event::Fenced { .. } => "event: Fenced",
        Event::PositionLost { .. } => "event: PositionLost",
        Event::PositionMissing { .. } => "event: PositionMissing",
        Event::PositionPassed { .. } => "event: PositionPassed",
        Event::PositionRead { .. } => "event: PositionRead",
        Event::TransactionAborted { .. } => "event: TransactionAborted",
        Event::TransactionCommitted { .. } => "event: TransactionCommitted",
        Event::TransactionsRecovered { .. } => "event: TransactionsRecovered",
        Event::TransactionSplit { .. } => "event: TransactionSplit",
        Event::Transactional { .. } => "event: Transactional",
        Event::TransactionsRefused { .. } => "event: TransactionsRefused",
        other => panic!("an event without a name here: {other:?}"),
    }
}
