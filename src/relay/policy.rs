//! What an answer leads to: one table for Kafka's error codes.
//!
//! Java's retriable set and what each code says about the append were read from
//! `org.apache.kafka.common.protocol.Errors` and the broker's produce path.

use super::error_code::*;

/// What a broker's answer for one batch leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// All in-sync replicas have the batch.
    Stored,
    /// The partition is elsewhere, or will be: ask for metadata, then send the same batch. It may
    /// have been appended where it was.
    Moved,
    /// Send the same batch again after a delay. It may have been appended.
    Retry,
    /// The broker does not know this sequence. What is not stored is encoded anew under the producer's
    /// next epoch, which is the one case in which the broker cannot recognise a repeat (KIP-360).
    NewEpoch,
    /// The same, under a new producer id: this one's epoch is over.
    NewProducerId,
    /// Not appended, and never will be as it is: divided if it has several records.
    TooLarge,
    /// Not appended because of some of its records: divided until they are found.
    RecordRefused,
    /// Not appended, and nothing is to this topic before somebody changes something.
    TopicRefused,
    /// Not appended, and no retry helps before somebody changes something about this client or the
    /// cluster: the partition stops here, visibly, and the batch is tried again slowly.
    ClientRefused,
    /// Only of a batch in a transaction, which is over: it is ended, and its facts go again in another one.
    Recover,
}

impl Verdict {
    /// True if a batch that was answered so may have been appended.
    pub fn is_ambiguous(self) -> bool {
        matches!(self, Self::Moved | Self::Retry)
    }
}

/// What the error code of a topic in a Metadata answer leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TopicVerdict {
    /// It is there.
    Known,
    /// Nothing is known of it yet: asked for again soon.
    Retry,
    /// We cannot use it before somebody creates it or lets us.
    Missing,
}

/// What the error code of an InitProducerId answer leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InitVerdict {
    /// We have an identity.
    Given,
    /// Asked for again soon.
    Retry,
    /// Asked for again slowly: somebody must change something.
    Refused,
}

/// What the error code of a CreateTopics answer leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CreateVerdict {
    /// It is there, or will be in a moment; somebody else may have been faster.
    Created,
    /// Asked for again soon.
    Retry,
    /// It will not be there before somebody changes something.
    Refused,
}

/// What an answer to one of the requests that a transaction is made of leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransactionVerdict {
    /// It is done.
    Done,
    /// What was before it is not over yet, which takes milliseconds: the same again.
    Soon,
    /// The same again after a delay.
    Again,
    /// Another broker coordinates: it is looked for, and then asked the same.
    Elsewhere,
    /// It is not known what became of the transaction, or it is over: see [`crate::relay::producer`].
    Recover,
    /// Somebody else has the transactional id.
    Fenced,
    /// The same again, slowly: somebody must change something.
    Refused,
}

/// The four verdicts on one code.
#[derive(Debug, Clone, Copy)]
struct Row {
    produce: Verdict,
    topic_metadata: TopicVerdict,
    init_producer_id: InitVerdict,
    create_topics: CreateVerdict,
}

/// Each code with its verdict in an answer to Produce, for a topic in an answer to Metadata, in an
/// answer to InitProducerId, and for a topic in an answer to CreateTopics.
///
/// `Alien` is what no broker answers to that request: tried again for ever, like a code that is younger
/// than this table, because giving up would lose facts.
macro_rules! table {
    (@produce Alien) => { Verdict::Retry };
    (@produce $verdict:ident) => { Verdict::$verdict };
    (@topic_metadata Alien) => { TopicVerdict::Retry };
    (@topic_metadata $verdict:ident) => { TopicVerdict::$verdict };
    (@init_producer_id Alien) => { InitVerdict::Retry };
    (@init_producer_id $verdict:ident) => { InitVerdict::$verdict };
    (@create_topics Alien) => { CreateVerdict::Retry };
    (@create_topics $verdict:ident) => { CreateVerdict::$verdict };
    ($($code:ident: $produce:tt, $topic_metadata:tt, $init_producer_id:tt, $create_topics:tt;)*) => {
        fn row(code: i16) -> Option<Row> {
            match code {
                $($code => Some(Row {
                    produce: table!(@produce $produce),
                    topic_metadata: table!(@topic_metadata $topic_metadata),
                    init_producer_id: table!(@init_producer_id $init_producer_id),
                    create_topics: table!(@create_topics $create_topics),
                }),)*
                _ => None,
            }
        }
    };
}

// DUPLICATE_SEQUENCE_NUMBER: the broker has the batch, but no longer knows its offset.
// NETWORK_EXCEPTION, REQUEST_TIMED_OUT and NOT_ENOUGH_REPLICAS_AFTER_APPEND come after the append.
// NOT_LEADER_OR_FOLLOWER, UNKNOWN_TOPIC_OR_PARTITION and KAFKA_STORAGE_ERROR may: a request that waits
// for replicas is answered so when the leader changes, or the topic is deleted.
// COORDINATOR_LOAD_IN_PROGRESS is what InitProducerId gets just after a broker's start.
// UNKNOWN_TOPIC_OR_PARTITION in metadata is also what a topic gets that was created a moment ago; it is
// asked for again, so that is no more than a delay.
table! {
    UNKNOWN_SERVER_ERROR: Retry, Retry, Retry, Retry;
    NONE: Stored, Known, Given, Created;
    OFFSET_OUT_OF_RANGE: Alien, Alien, Alien, Alien;
    CORRUPT_MESSAGE: Retry, Alien, Alien, Alien;
    UNKNOWN_TOPIC_OR_PARTITION: Moved, Missing, Alien, Alien;
    INVALID_FETCH_SIZE: Alien, Alien, Alien, Alien;
    LEADER_NOT_AVAILABLE: Moved, Retry, Alien, Alien;
    NOT_LEADER_OR_FOLLOWER: Moved, Alien, Alien, Alien;
    REQUEST_TIMED_OUT: Retry, Retry, Retry, Retry;
    BROKER_NOT_AVAILABLE: Retry, Retry, Retry, Retry;
    REPLICA_NOT_AVAILABLE: Moved, Retry, Alien, Alien;
    MESSAGE_TOO_LARGE: TooLarge, Alien, Alien, Alien;
    STALE_CONTROLLER_EPOCH: Alien, Alien, Alien, Alien;
    OFFSET_METADATA_TOO_LARGE: Alien, Alien, Alien, Alien;
    NETWORK_EXCEPTION: Moved, Retry, Retry, Retry;
    COORDINATOR_LOAD_IN_PROGRESS: Retry, Retry, Retry, Retry;
    COORDINATOR_NOT_AVAILABLE: Retry, Alien, Retry, Alien;
    NOT_COORDINATOR: Retry, Alien, Retry, Alien;
    INVALID_TOPIC_EXCEPTION: TopicRefused, Missing, Alien, Refused;
    RECORD_LIST_TOO_LARGE: TooLarge, Alien, Alien, Alien;
    NOT_ENOUGH_REPLICAS: Retry, Alien, Alien, Alien;
    NOT_ENOUGH_REPLICAS_AFTER_APPEND: Retry, Alien, Alien, Alien;
    INVALID_REQUIRED_ACKS: ClientRefused, Alien, Alien, Alien;
    ILLEGAL_GENERATION: Alien, Alien, Alien, Alien;
    INCONSISTENT_GROUP_PROTOCOL: Alien, Alien, Alien, Alien;
    INVALID_GROUP_ID: Alien, Alien, Alien, Alien;
    UNKNOWN_MEMBER_ID: Alien, Alien, Alien, Alien;
    INVALID_SESSION_TIMEOUT: Alien, Alien, Alien, Alien;
    REBALANCE_IN_PROGRESS: Alien, Alien, Alien, Alien;
    INVALID_COMMIT_OFFSET_SIZE: Alien, Alien, Alien, Alien;
    TOPIC_AUTHORIZATION_FAILED: TopicRefused, Missing, Alien, Refused;
    GROUP_AUTHORIZATION_FAILED: Alien, Alien, Alien, Alien;
    CLUSTER_AUTHORIZATION_FAILED: ClientRefused, Missing, Refused, Refused;
    INVALID_TIMESTAMP: RecordRefused, Alien, Alien, Alien;
    UNSUPPORTED_SASL_MECHANISM: ClientRefused, Retry, Refused, Refused;
    ILLEGAL_SASL_STATE: ClientRefused, Retry, Refused, Refused;
    UNSUPPORTED_VERSION: ClientRefused, Retry, Refused, Refused;
    TOPIC_ALREADY_EXISTS: Alien, Alien, Alien, Created;
    INVALID_PARTITIONS: Alien, Alien, Alien, Refused;
    INVALID_REPLICATION_FACTOR: Alien, Alien, Alien, Refused;
    INVALID_REPLICA_ASSIGNMENT: Alien, Alien, Alien, Refused;
    INVALID_CONFIG: Alien, Alien, Alien, Refused;
    NOT_CONTROLLER: Retry, Alien, Retry, Retry;
    INVALID_REQUEST: ClientRefused, Retry, Refused, Refused;
    UNSUPPORTED_FOR_MESSAGE_FORMAT: TopicRefused, Alien, Alien, Alien;
    POLICY_VIOLATION: TopicRefused, Alien, Alien, Refused;
    OUT_OF_ORDER_SEQUENCE_NUMBER: NewEpoch, Alien, Alien, Alien;
    DUPLICATE_SEQUENCE_NUMBER: Stored, Alien, Alien, Alien;
    INVALID_PRODUCER_EPOCH: NewProducerId, Alien, Retry, Alien;
    INVALID_TXN_STATE: ClientRefused, Alien, Alien, Alien;
    INVALID_PRODUCER_ID_MAPPING: ClientRefused, Alien, Refused, Alien;
    INVALID_TRANSACTION_TIMEOUT: Alien, Alien, Refused, Alien;
    CONCURRENT_TRANSACTIONS: Retry, Alien, Retry, Alien;
    TRANSACTION_COORDINATOR_FENCED: Retry, Alien, Alien, Alien;
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED: ClientRefused, Alien, Refused, Alien;
    SECURITY_DISABLED: ClientRefused, Alien, Refused, Refused;
    OPERATION_NOT_ATTEMPTED: Alien, Alien, Alien, Alien;
    KAFKA_STORAGE_ERROR: Moved, Retry, Alien, Retry;
    LOG_DIR_NOT_FOUND: Alien, Alien, Alien, Alien;
    SASL_AUTHENTICATION_FAILED: Retry, Retry, Refused, Retry;
    UNKNOWN_PRODUCER_ID: NewEpoch, Alien, Alien, Alien;
    REASSIGNMENT_IN_PROGRESS: Alien, Alien, Alien, Retry;
    DELEGATION_TOKEN_AUTH_DISABLED: Alien, Alien, Alien, Alien;
    DELEGATION_TOKEN_NOT_FOUND: Alien, Alien, Alien, Alien;
    DELEGATION_TOKEN_OWNER_MISMATCH: Alien, Alien, Alien, Alien;
    DELEGATION_TOKEN_REQUEST_NOT_ALLOWED: Alien, Alien, Alien, Alien;
    DELEGATION_TOKEN_AUTHORIZATION_FAILED: Alien, Alien, Alien, Alien;
    DELEGATION_TOKEN_EXPIRED: Alien, Alien, Alien, Alien;
    INVALID_PRINCIPAL_TYPE: Alien, Alien, Retry, Alien;
    NON_EMPTY_GROUP: Alien, Alien, Alien, Alien;
    GROUP_ID_NOT_FOUND: Alien, Alien, Alien, Alien;
    FETCH_SESSION_ID_NOT_FOUND: Alien, Alien, Alien, Alien;
    INVALID_FETCH_SESSION_EPOCH: Alien, Alien, Alien, Alien;
    LISTENER_NOT_FOUND: Moved, Retry, Alien, Alien;
    TOPIC_DELETION_DISABLED: Alien, Alien, Alien, Alien;
    FENCED_LEADER_EPOCH: Moved, Alien, Alien, Alien;
    UNKNOWN_LEADER_EPOCH: Moved, Alien, Alien, Alien;
    UNSUPPORTED_COMPRESSION_TYPE: ClientRefused, Alien, Alien, Alien;
    STALE_BROKER_EPOCH: Alien, Alien, Alien, Alien;
    OFFSET_NOT_AVAILABLE: Retry, Alien, Alien, Alien;
    MEMBER_ID_REQUIRED: Alien, Alien, Alien, Alien;
    PREFERRED_LEADER_NOT_AVAILABLE: Alien, Alien, Alien, Alien;
    GROUP_MAX_SIZE_REACHED: Alien, Alien, Alien, Alien;
    FENCED_INSTANCE_ID: Alien, Alien, Alien, Alien;
    ELIGIBLE_LEADERS_NOT_AVAILABLE: Alien, Alien, Alien, Alien;
    ELECTION_NOT_NEEDED: Alien, Alien, Alien, Alien;
    NO_REASSIGNMENT_IN_PROGRESS: Alien, Alien, Alien, Alien;
    GROUP_SUBSCRIBED_TO_TOPIC: Alien, Alien, Alien, Alien;
    INVALID_RECORD: RecordRefused, Alien, Alien, Alien;
    UNSTABLE_OFFSET_COMMIT: Alien, Alien, Alien, Alien;
    THROTTLING_QUOTA_EXCEEDED: Retry, Retry, Retry, Retry;
    PRODUCER_FENCED: NewProducerId, Alien, Retry, Alien;
    RESOURCE_NOT_FOUND: Alien, Alien, Alien, Alien;
    DUPLICATE_RESOURCE: Alien, Alien, Alien, Alien;
    UNACCEPTABLE_CREDENTIAL: Alien, Alien, Alien, Alien;
    INCONSISTENT_VOTER_SET: Alien, Alien, Alien, Alien;
    INVALID_UPDATE_VERSION: Alien, Alien, Alien, Alien;
    FEATURE_UPDATE_FAILED: Alien, Alien, Alien, Alien;
    PRINCIPAL_DESERIALIZATION_FAILURE: Alien, Alien, Alien, Alien;
    SNAPSHOT_NOT_FOUND: Alien, Alien, Alien, Alien;
    POSITION_OUT_OF_RANGE: Alien, Alien, Alien, Alien;
    UNKNOWN_TOPIC_ID: Moved, Missing, Alien, Alien;
    DUPLICATE_BROKER_REGISTRATION: Alien, Alien, Alien, Alien;
    BROKER_ID_NOT_REGISTERED: Alien, Alien, Alien, Alien;
    INCONSISTENT_TOPIC_ID: Moved, Alien, Alien, Alien;
    INCONSISTENT_CLUSTER_ID: Alien, Alien, Alien, Alien;
    TRANSACTIONAL_ID_NOT_FOUND: Alien, Alien, Alien, Alien;
    FETCH_SESSION_TOPIC_ID_ERROR: Alien, Alien, Alien, Alien;
    INELIGIBLE_REPLICA: Alien, Alien, Alien, Alien;
    NEW_LEADER_ELECTED: Moved, Alien, Alien, Alien;
    OFFSET_MOVED_TO_TIERED_STORAGE: Alien, Alien, Alien, Alien;
    FENCED_MEMBER_EPOCH: Alien, Alien, Alien, Alien;
    UNRELEASED_INSTANCE_ID: Alien, Alien, Alien, Alien;
    UNSUPPORTED_ASSIGNOR: Alien, Alien, Alien, Alien;
    STALE_MEMBER_EPOCH: Alien, Alien, Alien, Alien;
    MISMATCHED_ENDPOINT_TYPE: Alien, Alien, Alien, Alien;
    UNSUPPORTED_ENDPOINT_TYPE: Alien, Alien, Alien, Alien;
    UNKNOWN_CONTROLLER_ID: Alien, Alien, Alien, Alien;
    UNKNOWN_SUBSCRIPTION_ID: Alien, Alien, Alien, Alien;
    TELEMETRY_TOO_LARGE: Alien, Alien, Alien, Alien;
    INVALID_REGISTRATION: Alien, Alien, Alien, Alien;
    TRANSACTION_ABORTABLE: ClientRefused, Alien, Alien, Alien;
    INVALID_RECORD_STATE: Alien, Alien, Alien, Alien;
    SHARE_SESSION_NOT_FOUND: Alien, Alien, Alien, Alien;
    INVALID_SHARE_SESSION_EPOCH: Alien, Alien, Alien, Alien;
    FENCED_STATE_EPOCH: Alien, Alien, Alien, Alien;
    INVALID_VOTER_KEY: Alien, Alien, Alien, Alien;
    DUPLICATE_VOTER: Alien, Alien, Alien, Alien;
    VOTER_NOT_FOUND: Alien, Alien, Alien, Alien;
    INVALID_REGULAR_EXPRESSION: Alien, Alien, Alien, Alien;
    REBOOTSTRAP_REQUIRED: Retry, Retry, Retry, Retry;
    STREAMS_INVALID_TOPOLOGY: Alien, Alien, Alien, Alien;
    STREAMS_INVALID_TOPOLOGY_EPOCH: Alien, Alien, Alien, Alien;
    STREAMS_TOPOLOGY_FENCED: Alien, Alien, Alien, Alien;
    SHARE_SESSION_LIMIT_REACHED: Alien, Alien, Alien, Alien;
}

/// What the error codes of the requests of a transaction lead to, as read in `TransactionCoordinator`,
/// `GroupCoordinatorService` and `KafkaApis` of Apache Kafka 3.7 to 4.3.
///
/// A code that none of them answers is tried again for ever, like one that is younger than this table. Where the
/// answer leaves open whether something was done, what is done twice without harm is done again (finding a
/// coordinator, adding a partition), and the rest ends the transaction.
macro_rules! transaction_table {
    ($($code:ident: $find:ident, $init:ident, $partitions:ident, $offsets:ident, $position:ident, $end:ident, $abort:ident, $fetch:ident;)*) => {
        fn transaction_row(code: i16) -> Option<[TransactionVerdict; 8]> {
            use TransactionVerdict::{Again, Done, Elsewhere, Fenced, Recover, Refused, Soon};
            match code {
                $($code => Some([$find, $init, $partitions, $offsets, $position, $end, $abort, $fetch]),)*
                _ => None,
            }
        }

        /// The codes that the table has.
        #[cfg(test)]
        const IN_TRANSACTION_TABLE: &[i16] = &[$($code,)*];
    };
}

// FindCoordinator, InitProducerId, AddPartitionsToTxn, AddOffsetsToTxn, TxnOffsetCommit, EndTxn that commits, EndTxn that
// aborts on the way back (where Recover is that there is nothing to abort any more), OffsetFetch.
//
// PRODUCER_FENCED and INVALID_PRODUCER_EPOCH are also what the coordinator answers after it has ended a transaction
// that was open for too long: what that means is for who knows the time, and whether a request of ours may have come
// late. Where an abort is answered so, InitProducerId with our own id would be, too, and must not be asked: of a
// transaction that is open the coordinator does not look whose epoch it is asked for, and would fence its owner.
// COORDINATOR_NOT_AVAILABLE is what it makes of a write to its own log that failed or may have; asked again it
// says what became of it.
// UNKNOWN_TOPIC_OR_PARTITION is what brokers answer that have not heard of a topic yet; metadata tell the rest.
transaction_table! {
    UNKNOWN_SERVER_ERROR: Again, Again, Again, Again, Recover, Recover, Again, Again;
    NONE: Done, Done, Done, Done, Done, Done, Done, Done;
    UNKNOWN_TOPIC_OR_PARTITION: Again, Again, Again, Again, Again, Again, Again, Again;
    LEADER_NOT_AVAILABLE: Again, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere;
    NOT_LEADER_OR_FOLLOWER: Again, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere;
    REQUEST_TIMED_OUT: Again, Again, Again, Again, Recover, Recover, Again, Again;
    BROKER_NOT_AVAILABLE: Again, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere;
    OFFSET_METADATA_TOO_LARGE: Again, Again, Again, Again, Refused, Again, Again, Again;
    NETWORK_EXCEPTION: Again, Elsewhere, Elsewhere, Elsewhere, Recover, Recover, Elsewhere, Elsewhere;
    COORDINATOR_LOAD_IN_PROGRESS: Again, Again, Again, Again, Again, Again, Again, Again;
    COORDINATOR_NOT_AVAILABLE: Again, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere;
    NOT_COORDINATOR: Again, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere;
    INVALID_TOPIC_EXCEPTION: Again, Again, Refused, Again, Refused, Again, Again, Refused;
    ILLEGAL_GENERATION: Again, Again, Again, Again, Refused, Again, Again, Again;
    INVALID_GROUP_ID: Refused, Again, Again, Refused, Refused, Again, Again, Refused;
    UNKNOWN_MEMBER_ID: Again, Again, Again, Again, Refused, Again, Again, Refused;
    REBALANCE_IN_PROGRESS: Again, Again, Again, Again, Again, Again, Again, Again;
    INVALID_COMMIT_OFFSET_SIZE: Again, Again, Again, Again, Refused, Again, Again, Again;
    TOPIC_AUTHORIZATION_FAILED: Again, Again, Refused, Again, Refused, Again, Again, Refused;
    GROUP_AUTHORIZATION_FAILED: Refused, Again, Again, Refused, Refused, Again, Again, Refused;
    CLUSTER_AUTHORIZATION_FAILED: Refused, Refused, Refused, Refused, Refused, Refused, Refused, Refused;
    UNSUPPORTED_SASL_MECHANISM: Refused, Refused, Refused, Refused, Refused, Refused, Refused, Refused;
    ILLEGAL_SASL_STATE: Refused, Refused, Refused, Refused, Refused, Refused, Refused, Refused;
    UNSUPPORTED_VERSION: Refused, Refused, Refused, Refused, Refused, Refused, Refused, Refused;
    INVALID_REQUEST: Refused, Refused, Refused, Refused, Refused, Refused, Refused, Refused;
    UNSUPPORTED_FOR_MESSAGE_FORMAT: Again, Again, Again, Again, Refused, Again, Again, Again;
    INVALID_PRODUCER_EPOCH: Again, Fenced, Recover, Recover, Recover, Recover, Recover, Again;
    INVALID_TXN_STATE: Again, Again, Recover, Recover, Recover, Recover, Recover, Again;
    INVALID_PRODUCER_ID_MAPPING: Again, Fenced, Recover, Recover, Recover, Recover, Recover, Again;
    INVALID_TRANSACTION_TIMEOUT: Again, Refused, Again, Again, Again, Again, Again, Again;
    CONCURRENT_TRANSACTIONS: Again, Soon, Soon, Soon, Soon, Soon, Soon, Soon;
    TRANSACTION_COORDINATOR_FENCED: Again, Elsewhere, Elsewhere, Elsewhere, Recover, Elsewhere, Elsewhere, Again;
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED: Refused, Refused, Refused, Refused, Refused, Refused, Refused, Again;
    SECURITY_DISABLED: Refused, Refused, Refused, Refused, Refused, Refused, Refused, Refused;
    OPERATION_NOT_ATTEMPTED: Again, Again, Again, Again, Again, Again, Again, Again;
    KAFKA_STORAGE_ERROR: Again, Again, Again, Again, Recover, Recover, Again, Again;
    UNKNOWN_PRODUCER_ID: Again, Again, Recover, Recover, Recover, Recover, Recover, Again;
    FENCED_INSTANCE_ID: Again, Again, Again, Again, Refused, Again, Again, Again;
    UNSTABLE_OFFSET_COMMIT: Again, Again, Again, Again, Soon, Again, Again, Soon;
    THROTTLING_QUOTA_EXCEEDED: Again, Again, Again, Again, Again, Again, Again, Again;
    PRODUCER_FENCED: Again, Fenced, Recover, Recover, Recover, Recover, Fenced, Again;
    TRANSACTIONAL_ID_NOT_FOUND: Again, Again, Recover, Recover, Recover, Recover, Recover, Again;
    FENCED_MEMBER_EPOCH: Again, Again, Again, Again, Refused, Again, Again, Refused;
    STALE_MEMBER_EPOCH: Again, Again, Again, Again, Refused, Again, Again, Refused;
    TRANSACTION_ABORTABLE: Again, Soon, Recover, Recover, Recover, Recover, Again, Again;
    REBOOTSTRAP_REQUIRED: Again, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere, Elsewhere;
}

/// The requests that a transaction is made of, beside Produce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransactionRequest {
    /// FindCoordinator.
    FindCoordinator,
    /// InitProducerId with a transactional id.
    InitProducerId,
    /// AddPartitionsToTxn, for one of the partitions.
    AddPartitions,
    /// AddOffsetsToTxn.
    AddOffsets,
    /// TxnOffsetCommit.
    CommitPosition,
    /// EndTxn that commits.
    EndTransaction,
    /// EndTxn that aborts what may be open.
    AbortTransaction,
    /// OffsetFetch.
    FetchPosition,
}

/// The verdict on an error code of such an answer.
pub fn transaction(request: TransactionRequest, code: i16) -> TransactionVerdict {
    let verdict = transaction_row(code).and_then(|row| row.get(request as usize).copied());
    verdict.unwrap_or(TransactionVerdict::Again)
}

/// What helps where one of these requests is refused, as far as the code tells.
pub fn transaction_remedy(code: i16) -> &'static str {
    match code {
        TRANSACTIONAL_ID_AUTHORIZATION_FAILED => {
            "give this client the operations Write and Describe on the transactional id"
        }
        GROUP_AUTHORIZATION_FAILED => "give this client the operation Read on the consumer group",
        TOPIC_AUTHORIZATION_FAILED => "give this client the operation Read on POSITION_TOPIC",
        INVALID_TRANSACTION_TIMEOUT => {
            "TRANSACTION_TIMEOUT is over the brokers' transaction.max.timeout.ms: lower the one or raise the other"
        }
        OFFSET_METADATA_TOO_LARGE => "raise the brokers' offset.metadata.max.bytes",
        UNKNOWN_MEMBER_ID | ILLEGAL_GENERATION | FENCED_INSTANCE_ID | FENCED_MEMBER_EPOCH
        | STALE_MEMBER_EPOCH => {
            "a consumer is a member of the group that keeps the relay's position: stop it"
        }
        UNSUPPORTED_VERSION | INVALID_REQUEST => {
            "the brokers cannot do what DELIVERY=exactly-once needs: they must be of version 3.7 or later"
        }
        _ => "see the brokers' log; DELIVERY=at-least-once needs none of this",
    }
}

/// The verdict on a Produce answer's error code, for a batch in a transaction.
///
/// Sequences and epochs are the coordinator's there, so what costs a batch its place in them ends the transaction.
pub fn produce_in_transaction(code: i16) -> Verdict {
    match code {
        OUT_OF_ORDER_SEQUENCE_NUMBER
        | INVALID_PRODUCER_EPOCH
        | INVALID_TXN_STATE
        | INVALID_PRODUCER_ID_MAPPING
        | TRANSACTION_COORDINATOR_FENCED
        | UNKNOWN_PRODUCER_ID
        | PRODUCER_FENCED
        | TRANSACTIONAL_ID_NOT_FOUND
        | TRANSACTION_ABORTABLE => Verdict::Recover,
        _ => produce(code),
    }
}

/// The verdict on a Produce answer's error code.
pub fn produce(code: i16) -> Verdict {
    row(code).map_or(Verdict::Retry, |row| row.produce)
}

/// The verdict on a topic's error code in a Metadata answer.
pub fn topic_metadata(code: i16) -> TopicVerdict {
    row(code).map_or(TopicVerdict::Retry, |row| row.topic_metadata)
}

/// The verdict on an InitProducerId answer's error code.
pub fn init_producer_id(code: i16) -> InitVerdict {
    row(code).map_or(InitVerdict::Retry, |row| row.init_producer_id)
}

/// The verdict on a topic's error code in a CreateTopics answer.
pub fn create_topics(code: i16) -> CreateVerdict {
    row(code).map_or(CreateVerdict::Retry, |row| row.create_topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_protocol_has_a_row() {
        let missing: Vec<_> = ALL.iter().filter(|code| row(**code).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn only_what_is_stored_counts_as_stored() {
        let stored: Vec<i16> =
            (i16::MIN..=i16::MAX).filter(|code| produce(*code) == Verdict::Stored).collect();
        assert_eq!(stored, [NONE, DUPLICATE_SEQUENCE_NUMBER]);
    }

    #[test]
    fn an_unknown_code_is_neither_a_success_nor_final() {
        for code in [-2, 134, 999] {
            assert_eq!(produce(code), Verdict::Retry);
            assert_eq!(topic_metadata(code), TopicVerdict::Retry);
            assert_eq!(init_producer_id(code), InitVerdict::Retry);
            assert_eq!(create_topics(code), CreateVerdict::Retry);
        }
    }

    #[test]
    fn what_may_have_been_appended_goes_again_as_it_is() {
        let ambiguous = [
            UNKNOWN_SERVER_ERROR,
            UNKNOWN_TOPIC_OR_PARTITION,
            NOT_LEADER_OR_FOLLOWER,
            REQUEST_TIMED_OUT,
            NETWORK_EXCEPTION,
            NOT_ENOUGH_REPLICAS_AFTER_APPEND,
            KAFKA_STORAGE_ERROR,
        ];
        for code in ambiguous {
            assert!(produce(code).is_ambiguous(), "{}", name(code));
        }
    }

    #[test]
    fn what_java_retries_is_retried() {
        // The subclasses of RetriableException that Errors has codes for, and that a broker answers to a
        // Produce.
        for code in [2, 3, 5, 6, 7, 9, 13, 14, 15, 16, 19, 20, 56, 72, 74, 75, 78, 89, 100, 103] {
            assert!(matches!(produce(code), Verdict::Retry | Verdict::Moved), "{}", name(code));
        }
    }

    const REQUESTS: [TransactionRequest; 8] = [
        TransactionRequest::FindCoordinator,
        TransactionRequest::InitProducerId,
        TransactionRequest::AddPartitions,
        TransactionRequest::AddOffsets,
        TransactionRequest::CommitPosition,
        TransactionRequest::EndTransaction,
        TransactionRequest::AbortTransaction,
        TransactionRequest::FetchPosition,
    ];

    #[test]
    fn nothing_of_a_transaction_is_done_but_what_is_said_to_be() {
        for request in REQUESTS {
            let done: Vec<i16> = (i16::MIN..=i16::MAX)
                .filter(|code| transaction(request, *code) == TransactionVerdict::Done)
                .collect();
            assert_eq!(done, [NONE], "{request:?}");
        }
        assert!(IN_TRANSACTION_TABLE.is_sorted());
    }

    #[test]
    fn only_the_answers_to_our_own_id_and_to_an_abort_say_that_we_are_fenced() {
        for code in ALL {
            for request in REQUESTS {
                let fenced = transaction(request, *code) == TransactionVerdict::Fenced;
                let aborts = request == TransactionRequest::AbortTransaction;
                let may = request == TransactionRequest::InitProducerId
                    || (aborts && *code == PRODUCER_FENCED);
                assert!(!fenced || may, "{}", name(*code));
            }
        }
        for code in [INVALID_PRODUCER_EPOCH, PRODUCER_FENCED] {
            assert_eq!(produce_in_transaction(code), Verdict::Recover);
        }
    }

    /// Done or not, it cannot be done again: a late copy would end another transaction, or move the position back.
    #[test]
    fn what_may_have_ended_a_transaction_is_not_repeated_but_looked_up() {
        for code in
            [UNKNOWN_SERVER_ERROR, REQUEST_TIMED_OUT, NETWORK_EXCEPTION, KAFKA_STORAGE_ERROR]
        {
            for request in [TransactionRequest::CommitPosition, TransactionRequest::EndTransaction]
            {
                assert_eq!(
                    transaction(request, code),
                    TransactionVerdict::Recover,
                    "{}",
                    name(code)
                );
            }
        }
    }

    /// Before version 2 of transactions, who asks for the next epoch while one is open fences itself.
    #[test]
    fn nothing_is_open_any_more_only_where_the_coordinator_knows_that() {
        let over: Vec<i16> = ALL
            .iter()
            .copied()
            .filter(|code| {
                transaction(TransactionRequest::AbortTransaction, *code)
                    == TransactionVerdict::Recover
            })
            .collect();
        let known = [
            INVALID_PRODUCER_EPOCH,
            INVALID_TXN_STATE,
            INVALID_PRODUCER_ID_MAPPING,
            UNKNOWN_PRODUCER_ID,
            TRANSACTIONAL_ID_NOT_FOUND,
        ];
        assert_eq!(over, known);
    }

    #[test]
    fn in_a_transaction_no_sequence_begins_anew_by_itself() {
        for code in ALL {
            let verdict = produce_in_transaction(*code);
            let anew = matches!(verdict, Verdict::NewEpoch | Verdict::NewProducerId);
            assert!(!anew, "{}", name(*code));
            assert!(verdict == Verdict::Recover || verdict == produce(*code));
        }
    }
}
