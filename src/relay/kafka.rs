//! What the engine and a Kafka driver say to each other: plain data, no sockets.
//!
//! The engine decides everything (which broker, which batch, when again); a driver sends a
//! [`Request`] and reports an [`Answer`], one for each request, in any order.

use super::batch::Fingerprint;
use super::error_code;
use super::position::Position;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// A broker's node id, as Metadata responses give it.
pub type BrokerId = i32;

/// One broker of the cluster, from a Metadata response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Node id.
    pub id: BrokerId,
    /// The advertised host name or address (an IPv6 literal carries no brackets).
    pub host: String,
    /// The advertised port.
    pub port: u16,
}

/// One partition of a topic, from a Metadata response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// Partition index, from 0.
    pub index: i32,
    /// The leader, or none while an election is under way or it is not among the live brokers.
    pub leader: Option<BrokerId>,
}

/// One topic of a Metadata response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMetadata {
    /// Topic name as it was asked for.
    pub name: String,
    /// Its id, where the broker tells (KIP-516): another one under the same name is another topic, which was
    /// made after the first was deleted.
    pub id: Option<Uuid>,
    /// Kafka's error code for this topic; 0 is none.
    pub error: i16,
    /// All partitions, in any order. Empty if `error` is not 0.
    pub partitions: Vec<PartitionMetadata>,
}

/// A Metadata response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// The cluster's id, where the broker tells.
    pub cluster_id: Option<String>,
    /// All live brokers.
    pub brokers: Vec<Broker>,
    /// The topics asked for, each once, in any order.
    pub topics: Vec<TopicMetadata>,
}

/// Identity of an idempotent producer (KIP-98).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerId {
    /// Producer id, from 0.
    pub id: i64,
    /// Producer epoch, from 0.
    pub epoch: i16,
}

/// What a topic that is created is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTopic {
    /// How many partitions; none is the cluster's `num.partitions`.
    pub partitions: Option<i32>,
    /// How many replicas each has; none is the cluster's `default.replication.factor`.
    pub replication_factor: Option<i16>,
    /// Names and values of its configuration, where it differs from the cluster's.
    pub configs: Vec<(String, String)>,
}

/// Why a topic was not created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateRefusal {
    /// Kafka's error code.
    pub error: i16,
    /// The broker's own words, if it has some.
    pub message: Option<String>,
}

impl fmt::Display for CreateRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(error_code::name(self.error))?;
        self.message.iter().try_for_each(|message| write!(f, ", {message}"))
    }
}

/// One encoded record batch on its way to one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionBatch {
    /// Topic name.
    pub topic: Arc<str>,
    /// The topic's id, if it is known: a broker that can be told it (KIP-516, Apache Kafka 4.1) does not put the
    /// batch into another topic of the same name.
    pub topic_id: Option<Uuid>,
    /// Partition index.
    pub partition: i32,
    /// The batch's base sequence: which of the partition's batches it is.
    pub base_sequence: i32,
    /// A whole record batch (magic 2), checksum included; sent as it is.
    pub batch: Bytes,
}

/// What a coordinator coordinates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CoordinatorOf {
    /// The transactions of a transactional id.
    Transactions,
    /// A consumer group.
    Group,
}

/// Who asks for something of a transaction (KIP-98).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// The transactional id's coordinator, which is asked, and no other broker.
    pub coordinator: BrokerId,
    /// The transactional id.
    pub id: Arc<str>,
    /// The producer, as the coordinator named it last.
    pub producer: ProducerId,
}

/// Where a relay's position is kept: an offset of a consumer group, whose metadata is the position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionPlace {
    /// The consumer group.
    pub group: Arc<str>,
    /// A topic that is there. Of it partition 0 is meant.
    pub topic: Arc<str>,
}

/// What is kept there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPosition {
    /// The offset, from 0.
    pub offset: i64,
    /// The text beside it; brokers take 4,096 bytes by default (`offset.metadata.max.bytes`).
    pub metadata: String,
}

/// Which requests the transactions of a cluster are made of (KIP-890), by its finalised feature `transaction.version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionVersion {
    /// Partitions and groups are added by requests of their own, and an epoch has many transactions: Produce up to 11,
    /// TxnOffsetCommit up to 4, EndTxn up to 4.
    Explicit,
    /// From `transaction.version` 2 on. Partitions and groups are added by what is written to them, and each EndTxn
    /// answers with the next epoch: Produce 12, TxnOffsetCommit 5, EndTxn 5. What is late is of an old epoch, and
    /// refused.
    EpochPerTransaction,
}

/// What the engine asks of the driver. Every request is answered once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Metadata for exactly these topics, never creating one (`allow_auto_topic_creation = false`),
    /// from any broker that answers: those known first, then the bootstrap list again.
    Metadata {
        /// Topic names; empty asks for brokers only.
        topics: Vec<Arc<str>>,
    },
    /// InitProducerId without a transactional id, from any broker.
    InitProducerId,
    /// FindCoordinator, from any broker.
    FindCoordinator {
        /// Of what.
        of: CoordinatorOf,
        /// The transactional id, or the group's.
        key: Arc<str>,
    },
    /// InitProducerId with a transactional id: fences whoever has it, and ends what is open with it.
    InitTransactions {
        /// The transactional id's coordinator.
        coordinator: BrokerId,
        /// The transactional id.
        id: Arc<str>,
        /// How long a transaction may be open before the coordinator ends it.
        timeout: Duration,
        /// Who we are, if we have been somebody: then it is refused where somebody else has come since (KIP-360).
        producer: Option<ProducerId>,
    },
    /// AddPartitionsToTxn. Only with [`TransactionVersion::Explicit`].
    AddPartitions {
        /// The transaction.
        transaction: Transaction,
        /// The partitions, in order of their topics, each once. At least one.
        partitions: Vec<(Arc<str>, i32)>,
    },
    /// AddOffsetsToTxn. Only with [`TransactionVersion::Explicit`].
    AddOffsets {
        /// The transaction.
        transaction: Transaction,
        /// The group of which an offset will be committed.
        group: Arc<str>,
    },
    /// TxnOffsetCommit: the position becomes that of the group when the transaction is committed.
    CommitPosition {
        /// The group's coordinator.
        coordinator: BrokerId,
        /// The transactional id.
        id: Arc<str>,
        /// The producer.
        producer: ProducerId,
        /// Which requests.
        version: TransactionVersion,
        /// Where it is kept.
        place: PositionPlace,
        /// What is kept.
        position: StoredPosition,
    },
    /// EndTxn.
    EndTransaction {
        /// The transaction.
        transaction: Transaction,
        /// Which requests.
        version: TransactionVersion,
        /// Whether what was produced counts.
        commit: bool,
    },
    /// OffsetFetch that answers only when no transaction is pending on it (`require_stable`, version 7).
    FetchPosition {
        /// The group's coordinator.
        coordinator: BrokerId,
        /// Where it is kept.
        place: PositionPlace,
    },
    /// CreateTopics for these topics, from any broker.
    CreateTopics {
        /// Their names, each once, and what they are to be like. At least one.
        topics: Vec<(Arc<str>, NewTopic)>,
    },
    /// Produce with acks = all, one request for all these partitions, which this broker leads. The
    /// same topic may occur several times, the same partition only once; of one partition several
    /// requests may be under way.
    ///
    /// Requests to one broker go out in the order given. When a connection is lost, all that was
    /// sent on it or waits behind is reported unanswered, and nothing is sent to that broker for a
    /// moment: a repetition can go first. The answer comes within the request time-out, counted
    /// from when the request is handed over, and no byte of it leaves later.
    Produce {
        /// The leader to send to.
        broker: BrokerId,
        /// The transactional id, and which requests, if the batches are of a transaction.
        transaction: Option<(Arc<str>, TransactionVersion)>,
        /// The batches. At least one.
        batches: Vec<PartitionBatch>,
    },
    /// Read back what a partition has between two offsets, by a connection of its own, so that no Produce waits
    /// for it.
    Tail {
        /// The broker to ask, and no other.
        broker: BrokerId,
        /// Topic name.
        topic: Arc<str>,
        /// Partition index.
        partition: i32,
        /// The first offset.
        from: i64,
        /// The offset behind the last.
        to: i64,
        /// Value of the `factlib_source` header of the records that are looked for.
        source: Arc<str>,
    },
}

impl Request {
    /// Its answer, if it has none: nothing was done.
    pub fn unanswered(self, cause: Unanswered) -> Answer {
        match self {
            Self::Metadata { .. } => Answer::Metadata(Err(cause)),
            Self::InitProducerId => Answer::ProducerId(Err(cause)),
            Self::FindCoordinator { of, .. } => Answer::Coordinator { of, answer: Err(cause) },
            Self::InitTransactions { .. } => Answer::TransactionsReady(Err(cause)),
            Self::AddPartitions { .. } => Answer::PartitionsAdded(Err(cause)),
            Self::AddOffsets { .. } => Answer::OffsetsAdded(Err(cause)),
            Self::CommitPosition { .. } => Answer::PositionCommitted(Err(cause)),
            Self::EndTransaction { .. } => Answer::TransactionEnded(Err(cause)),
            Self::FetchPosition { .. } => Answer::Position(Err(cause)),
            Self::CreateTopics { topics } => Answer::TopicsCreated {
                topics: topics.into_iter().map(|(topic, _)| topic).collect(),
                answer: Err(cause),
            },
            Self::Produce { broker, batches, .. } => {
                Answer::ProduceUnanswered { broker, batches, sent: false, cause }
            }
            Self::Tail { topic, partition, from, .. } => {
                Answer::Tail { topic, partition, from, answer: Err(cause) }
            }
        }
    }
}

/// A record that a partition has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredRecord {
    /// Where the fact stands in delivery order.
    pub position: Position,
    /// What it is.
    pub fingerprint: Fingerprint,
}

/// What a partition has between two offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// The first offset that is there: larger than the one asked for if older records are deleted.
    pub first: i64,
    /// The records of the source that was asked for, without those of Kafka's transactions.
    pub records: Vec<StoredRecord>,
    /// Another source of which there are records.
    pub other: Option<String>,
}

/// What a broker said of one partition of a Produce request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionAnswer {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition index.
    pub partition: i32,
    /// Base sequence of the batch, as in the request.
    pub base_sequence: i32,
    /// Kafka's error code; 0 is none.
    pub error: i16,
    /// Offset of the batch's first record where the broker gave one, else -1.
    pub base_offset: i64,
}

/// What the driver reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Request::Metadata`]. The driver has taken the broker addresses for later requests.
    Metadata(Result<Metadata, Unanswered>),
    /// To [`Request::InitProducerId`]: the identity, or Kafka's error code.
    ProducerId(Result<Result<ProducerId, i16>, Unanswered>),
    /// To [`Request::FindCoordinator`]: which broker it is, or Kafka's error code. The driver has taken its address
    /// for later requests.
    Coordinator {
        /// Of what.
        of: CoordinatorOf,
        /// The broker.
        answer: Coordinated<BrokerId>,
    },
    /// To [`Request::InitTransactions`]: who we are, and of which requests the cluster's transactions are made.
    TransactionsReady(Coordinated<(ProducerId, TransactionVersion)>),
    /// To [`Request::AddPartitions`]: an error code for each of them, in their order.
    PartitionsAdded(Result<Vec<i16>, Unanswered>),
    /// To [`Request::AddOffsets`].
    OffsetsAdded(Coordinated<()>),
    /// To [`Request::CommitPosition`].
    PositionCommitted(Coordinated<()>),
    /// To [`Request::EndTransaction`]: with [`TransactionVersion::EpochPerTransaction`], who we are from now on.
    TransactionEnded(Coordinated<Option<ProducerId>>),
    /// To [`Request::FetchPosition`]: what is kept there, if anything is.
    Position(Coordinated<Option<StoredPosition>>),
    /// To [`Request::CreateTopics`].
    TopicsCreated {
        /// Their names, as in the request.
        topics: Vec<Arc<str>>,
        /// For each of them, in that order, nothing, or why not.
        answer: Result<Vec<Result<(), CreateRefusal>>, Unanswered>,
    },
    /// To [`Request::Produce`], answered: an entry for each partition of the request.
    Produced {
        /// The broker asked.
        broker: BrokerId,
        /// One for each batch of the request, in any order.
        partitions: Vec<PartitionAnswer>,
        /// How long the broker wants to be left alone (KIP-219: the batches *were* handled).
        throttle: Duration,
    },
    /// To [`Request::Produce`], not answered: cannot connect, connection lost, time-out, nonsense.
    /// Each batch may or may not have been appended, unless `sent` is false.
    ProduceUnanswered {
        /// The broker asked.
        broker: BrokerId,
        /// The batches of the request.
        batches: Vec<PartitionBatch>,
        /// False only if no byte of the request can have left this machine.
        sent: bool,
        /// Why.
        cause: Unanswered,
    },
    /// To [`Request::Tail`].
    Tail {
        /// Topic name.
        topic: Arc<str>,
        /// Partition index.
        partition: i32,
        /// The first offset that was asked for.
        from: i64,
        /// What is there, or why that is not known.
        answer: Result<Tail, Unanswered>,
    },
}

/// What a coordinator says: an answer, or Kafka's error code; or nothing, and then it may have done it.
pub type Coordinated<T> = Result<Result<T, i16>, Unanswered>;

/// Why a request has no answer; one sentence for a log line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unanswered(pub String);
