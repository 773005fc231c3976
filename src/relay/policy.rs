//! What an answer leads to: one table for Kafka's error codes.
//!
//! Java's retriable set and what each code says about the append were read from
//! `org.apache.kafka.common.protocol.Errors` and the broker's produce path.

/// What a broker's answer for one batch leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All in-sync replicas have the batch.
    Stored,
    /// The partition is elsewhere, or will be: ask for metadata, then send the same batch. It may
    /// have been appended where it was.
    Moved,
    /// Send the same batch again after a delay. It may have been appended.
    Retry,
    /// The broker does not know this producer, or not this sequence. The batch is encoded anew under
    /// a new producer id, which is the one case in which the broker cannot recognise a repeat.
    NewProducer,
    /// Not appended, and never will be as it is: divided if it has several records.
    TooLarge,
    /// Not appended, and no retry helps before somebody changes something: the partition stops here,
    /// visibly, and the batch is tried again slowly.
    Refused,
}

/// The verdict on a Produce answer's error code.
pub fn produce(code: i16) -> Verdict {
    match code {
        // DUPLICATE_SEQUENCE_NUMBER: the broker has it, but no longer knows its offset.
        0 | 46 => Verdict::Stored,
        // UNKNOWN_TOPIC_OR_PARTITION, LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER,
        // REPLICA_NOT_AVAILABLE, KAFKA_STORAGE_ERROR, LISTENER_NOT_FOUND, FENCED_LEADER_EPOCH,
        // UNKNOWN_LEADER_EPOCH, UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID.
        3 | 5 | 6 | 9 | 56 | 72 | 74 | 75 | 100 | 103 => Verdict::Moved,
        // OUT_OF_ORDER_SEQUENCE_NUMBER, INVALID_PRODUCER_EPOCH, UNKNOWN_PRODUCER_ID,
        // PRODUCER_FENCED.
        45 | 47 | 59 | 90 => Verdict::NewProducer,
        // MESSAGE_TOO_LARGE, RECORD_LIST_TOO_LARGE.
        10 | 18 => Verdict::TooLarge,
        // INVALID_TOPIC_EXCEPTION, INVALID_REQUIRED_ACKS, TOPIC_AUTHORIZATION_FAILED,
        // CLUSTER_AUTHORIZATION_FAILED, INVALID_TIMESTAMP, UNSUPPORTED_FOR_MESSAGE_FORMAT,
        // POLICY_VIOLATION, UNSUPPORTED_COMPRESSION_TYPE, INVALID_RECORD.
        17 | 21 | 29 | 31 | 32 | 43 | 44 | 76 | 87 => Verdict::Refused,
        // Everything else, known or not, is tried again for ever: giving up would lose facts.
        _ => Verdict::Retry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_code_is_never_a_success_and_never_final() {
        for code in (-1..=200).filter(|code| ![0, 46].contains(code)) {
            assert_ne!(produce(code), Verdict::Stored, "{code}");
        }
        assert_eq!(produce(-1), Verdict::Retry);
        assert_eq!(produce(999), Verdict::Retry);
    }

    #[test]
    fn errors_after_the_append_are_retried_and_not_refused() {
        // REQUEST_TIMED_OUT, NOT_ENOUGH_REPLICAS, NOT_ENOUGH_REPLICAS_AFTER_APPEND.
        for code in [7, 19, 20] {
            assert_eq!(produce(code), Verdict::Retry);
        }
    }
}
