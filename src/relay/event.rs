//! What is worth telling: one vocabulary for log, health and metrics.

use super::batch::Committed;
use super::kafka::{BrokerId, TransactionVersion};
use super::poison::{Poison, Policy};
use super::policy::TransactionRequest;
use super::position::Position;
use super::producer::Blocked;
use factlib_protocol::Lsn;
use std::sync::Arc;
use std::time::Duration;

/// A change of state. Plain data: the rim words it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The slot is ours and the stream is open.
    Streaming {
        /// Where START_REPLICATION asked to start; 0/0 is the slot's own position.
        start: Lsn,
        /// The server's timeline.
        timeline: u32,
    },
    /// The connection to PostgreSQL ended; the next attempt is made after `delay`.
    Away {
        /// Which kind of end it was.
        end: End,
        /// Why.
        cause: String,
        /// Until the next attempt.
        delay: Duration,
    },
    /// Another session has the slot; asked again every `delay`.
    SlotInUse {
        /// The server's words, with the other's process id.
        cause: String,
        /// Until the next attempt.
        delay: Duration,
    },
    /// The slot is further than this process left it: another relay had it meanwhile, or somebody
    /// advanced it by hand, in which case facts may be lost.
    SlotMoved {
        /// What this process had confirmed.
        from: Lsn,
        /// Where the slot stands now.
        to: Lsn,
    },
    /// At the first contact, the slot is confirmed up to a place that the server's log has not reached: whoever had
    /// it confirmed what was not there (factlib's relay in Go did). What is committed before that place is not sent
    /// to anybody.
    SlotAhead {
        /// Where the slot stands.
        confirmed: Lsn,
        /// Where the log ends.
        wal_end: Lsn,
    },
    /// The server is on another timeline: a failover. Reading starts at the slot's own position.
    TimelineChanged {
        /// Timeline before.
        from: u32,
        /// Timeline now.
        to: u32,
    },
    /// The server wants to stop; `unsettled` facts are not in Kafka yet and will be read again.
    ServerStopping {
        /// Facts without an acknowledgement.
        unsettled: usize,
    },
    /// A fact stops the relay: it can be neither published nor passed over.
    Halted(Halted),
    /// For the first time since the start, messages with this prefix are passed over. Said of the first few
    /// prefixes only.
    Foreign {
        /// The prefix; what is not UTF-8 is replaced.
        prefix: String,
    },
    /// Somebody moved the slot past the fact that stopped the relay.
    PassedOver {
        /// Its position.
        position: Position,
    },
    /// The fact that stopped the relay went through.
    Resumed {
        /// Its position.
        position: Position,
    },
    /// A broker answered for the first time.
    KafkaReached {
        /// Brokers of the cluster.
        brokers: usize,
    },
    /// No broker answers.
    KafkaUnreachable {
        /// Why.
        cause: String,
    },
    /// The producer's identity.
    ProducerId {
        /// Producer id.
        id: i64,
    },
    /// No producer id is to be had.
    NoProducerId {
        /// The broker's error, or why there was no answer.
        cause: String,
    },
    /// A topic was created.
    TopicCreated {
        /// Topic.
        topic: Arc<str>,
    },
    /// Somebody has deleted a topic and made another of the same name. What was in it is gone; what is not
    /// settled goes to the new one.
    TopicMadeAnew {
        /// Topic.
        topic: Arc<str>,
    },
    /// A topic that is missing was not created.
    TopicNotCreated {
        /// Topic.
        topic: Arc<str>,
        /// The broker's error and words, or why there was no answer.
        cause: String,
    },
    /// A partition does not take its batch; the same batch goes again.
    PartitionBlocked {
        /// Where, what, since when.
        blocked: Blocked,
        /// How often it has been tried.
        attempt: u32,
    },
    /// A partition takes batches again.
    PartitionRecovered {
        /// Topic.
        topic: Arc<str>,
        /// Partition.
        partition: i32,
        /// How long it did not.
        after: Duration,
    },
    /// A topic has another number of partitions than before. As soon as nothing of it is unsettled, new
    /// facts are given to the new number: a key may move to another partition.
    PartitionsChanged {
        /// Topic.
        topic: Arc<str>,
        /// Partitions in use.
        from: usize,
        /// Partitions there are.
        to: usize,
    },
    /// The sequences of a partition begin anew, because the broker does not know them any more or a batch was
    /// given up. What is not stored goes under another epoch, and what was stored of it without our knowing
    /// is repeated.
    SequencesLost {
        /// Topic.
        topic: Arc<str>,
        /// Partition.
        partition: i32,
        /// The broker's error.
        cause: String,
        /// Facts that may be repeated.
        facts: usize,
    },
    /// What a partition had already when this process began is known, as far as it was looked for.
    TailRead {
        /// Topic.
        topic: Arc<str>,
        /// Partition.
        partition: i32,
        /// Facts that are not produced again if they are read again.
        facts: usize,
        /// Another `factlib_source` that writes to the partition.
        other: Option<String>,
    },
    /// What a partition had already could not be read, or not to where it was wanted: it goes on without.
    TailUnread {
        /// Topic.
        topic: Arc<str>,
        /// Partition.
        partition: i32,
        /// Why.
        cause: String,
    },
    /// Facts were read that the partition had already, and were not produced again. Said when no more can come.
    AlreadyStored {
        /// Topic.
        topic: Arc<str>,
        /// Partition.
        partition: i32,
        /// How many.
        facts: usize,
    },
    /// Facts were given up as their policy says.
    GivenUp(GivenUp),
    /// A broker asks to be left alone for a while.
    Throttled {
        /// Node id.
        broker: BrokerId,
        /// How long.
        throttle: Duration,
    },
    /// A batch is settled.
    Settled {
        /// Where it is stored.
        topic: Arc<str>,
        /// Facts in it.
        facts: usize,
        /// Encoded bytes, before compression.
        bytes: usize,
        /// When they were committed, as far as it is known.
        committed: Option<Committed>,
    },
    /// A batch was sent and is not stored, or not known to be. What follows from it comes in other events.
    NotStored {
        /// Where it was going.
        topic: Arc<str>,
        /// The broker's error by its name; NETWORK_EXCEPTION if there was no answer.
        error: &'static str,
        /// Facts in it.
        facts: i32,
    },
    /// The transactional id is ours: whoever had it is fenced.
    Transactional {
        /// The transactional id.
        id: Arc<str>,
        /// The producer id.
        producer: i64,
        /// Of which requests transactions are made.
        version: TransactionVersion,
    },
    /// The position in Kafka was found at the start: facts up to it are not produced again.
    PositionRead {
        /// What PostgreSQL may be told.
        lsn: Lsn,
        /// The last fact that is there.
        fact: Option<Position>,
    },
    /// There is no position in Kafka: a first start in this mode, or it has expired, or somebody has deleted it.
    /// Reading starts where the slot stands.
    PositionMissing {
        /// There.
        slot: Lsn,
    },
    /// The position in Kafka is of a part of another timeline that no server has any more, after a failover: what
    /// Kafka has of the common part is not produced again, and for the rest reading starts where the slot stands.
    PositionPassed {
        /// The position.
        lsn: Lsn,
        /// Its timeline.
        timeline: u32,
        /// Where the slot stands.
        slot: Lsn,
    },
    /// While this relay ran its position was gone, or nothing that it wrote. Facts that were being committed just
    /// then go again, and consumers may see them twice.
    PositionLost {
        /// What was found in its place.
        cause: Option<String>,
    },
    /// A Kafka transaction is committed.
    TransactionCommitted {
        /// Facts in it.
        facts: usize,
        /// Encoded bytes, before compression.
        bytes: usize,
        /// What PostgreSQL may be told.
        position: Lsn,
        /// Where its time went.
        phases: Phases,
    },
    /// A Kafka transaction is not committed, or not known to be. Its facts go again in another one, unless they are
    /// found to be committed.
    TransactionAborted {
        /// Which kind of reason it was.
        reason: AbortReason,
        /// Why.
        cause: String,
    },
    /// What became of the transaction that was given up is known, and transactions go on.
    TransactionsRecovered {
        /// How long it took.
        after: Duration,
    },
    /// A transaction of PostgreSQL is too large for one Kafka transaction, and goes in several. What consumers see of it
    /// is not atomic.
    TransactionSplit {
        /// The last fact of this part.
        position: Position,
        /// Which part it is, from 1.
        part: u32,
        /// Why.
        cause: String,
    },
    /// A request of a transaction is refused until somebody changes something.
    TransactionsRefused {
        /// Which.
        request: TransactionRequest,
        /// Kafka's error by its name.
        error: &'static str,
        /// What helps.
        remedy: &'static str,
    },
    /// Somebody else has the transactional id: nothing is produced any more.
    Fenced {
        /// The broker's error, and what it means.
        cause: String,
        /// True of a standby, which waits for the slot; else the relay ends.
        waits: bool,
    },
    /// Stopping was asked for.
    Stopping {
        /// Facts without an acknowledgement.
        unsettled: usize,
    },
}

/// Facts that cannot be published and do not stop the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    /// [`Policy::Skip`] or [`Policy::DeadLetter`].
    pub policy: Policy,
    /// Why, and where they were going.
    pub poison: Poison,
    /// The partition that they were going to, if it was known.
    pub partition: Option<i32>,
    /// Position of the first.
    pub position: Position,
    /// How many.
    pub facts: usize,
    /// Encoded bytes, before compression; of a fact that was never encoded, what was emitted.
    pub bytes: usize,
}

/// How a connection to PostgreSQL ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// It broke, or there was none to be had.
    Lost,
    /// The server does not want us, for now.
    Refused,
    /// We hung up, because Kafka did not take what was read.
    Stalled,
    /// We hung up, because the server did not answer.
    Silent,
    /// We hung up, because what it sent makes no sense.
    Unreadable,
    /// We hung up, because somebody else may have published what we hold.
    Fenced,
    /// We hung up to ask where the slot stands, because the last status of a stop was not read; or where the log ends,
    /// because the position in Kafka is beyond what it was.
    Asking,
}

impl End {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Lost,
        Self::Refused,
        Self::Stalled,
        Self::Silent,
        Self::Unreadable,
        Self::Fenced,
        Self::Asking,
    ];

    /// As metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::Stalled => "stalled",
            Self::Silent => "silent",
            Self::Unreadable => "unreadable",
            Self::Fenced => "fenced",
            Self::Asking => "asking",
        }
    }
}

/// Where the time of a Kafka transaction that is committed went, by the states that it went through
/// ([`TransactionState`](super::producer::TransactionState)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Phases {
    /// From its begin until nothing was added to it any more; nothing where it was begun after that.
    pub producing: Duration,
    /// From then until all of its facts were stored and the position was in it.
    pub closing: Duration,
    /// From then until it was known to be committed.
    pub ending: Duration,
}

/// Why a Kafka transaction was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AbortReason {
    /// A request of it was not answered.
    Unanswered,
    /// Kafka refused a request or a batch of it: it has ended the transaction, or somebody else has come.
    Refused,
    /// A transaction of PostgreSQL was read in part only: the connection was lost, or a fact halts the relay.
    ReadInPart,
    /// What was read does not count any more: somebody else had the slot, or it is another timeline.
    Dropped,
    /// A batch of it was given up, as the policy says.
    GivenUp,
    /// One of its topics was made anew.
    TopicMadeAnew,
    /// PostgreSQL was away for so long that consumers would have had to wait for it.
    PostgresAway,
    /// Kafka does not take a fact of it until somebody sees to that, for which consumers would have to wait.
    Halted,
}

impl AbortReason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Unanswered,
        Self::Refused,
        Self::ReadInPart,
        Self::Dropped,
        Self::GivenUp,
        Self::TopicMadeAnew,
        Self::PostgresAway,
        Self::Halted,
    ];

    /// As metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unanswered => "unanswered",
            Self::Refused => "refused",
            Self::ReadInPart => "read_in_part",
            Self::Dropped => "dropped",
            Self::GivenUp => "given_up",
            Self::TopicMadeAnew => "topic_made_anew",
            Self::PostgresAway => "postgres_away",
            Self::Halted => "halted",
        }
    }
}

/// A fact that can be neither published nor passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halted {
    /// Position of the fact.
    pub position: Position,
    /// The message LSN, as the application that emitted it was told.
    pub lsn: Lsn,
    /// The topic it was going to, where it could be named.
    pub topic: Option<String>,
    /// Why it cannot be published and what to do.
    pub reason: String,
}
