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
}
