use std::fmt;

/// Why a fact is not emitted: found before anything is sent.
///
/// The sentences, their order and the [SQLSTATE](Self::sqlstate) are those of the SQL function `factlib.emit`; texts
/// are cut to 100 characters in them. The rules are Kafka's for a topic's name, and what no relay could publish.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidFact {
    /// Neither the fact nor its emitter has a prefix.
    #[error("prefix is empty: pass it, or set factlib.prefix")]
    NoPrefix,
    /// A part of the topic's name has a character that no topic's name may have.
    #[error(
        "{field} \"{value:.100}\" cannot be part of a topic's name: only letters, digits, '.', '_' and '-' can"
    )]
    NotInTopic {
        /// Which part.
        field: Field,
        /// What it is.
        value: String,
    },
    /// A field that must say something says nothing.
    #[error("{0} is empty")]
    Empty(Field),
    /// The topic's name is longer than Kafka takes.
    #[error("topic \"{0:.100}\" has {len} characters, and Kafka takes at most {TOPIC_MAX}", len = .0.len())]
    TopicTooLong(String),
    /// A text has a NUL, which no text of PostgreSQL can hold.
    #[error("{0} has a NUL byte, which no text in PostgreSQL can hold")]
    NulByte(Field),
    /// The time does not fit into 64 bits of microseconds.
    #[error("created_at is out of range: a time before the year 294247 is wanted")]
    CreatedAt,
    /// A record of this fact could be larger than the broker takes.
    #[error("fact of {bytes} bytes as a Kafka record, more than factlib.max_record_bytes ({max})")]
    TooLarge {
        /// The most that the record could have: its key and headers repeat what is in its value.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
}

impl InvalidFact {
    /// The SQLSTATE with which the SQL function would refuse the same fact: `54000` (program_limit_exceeded) if it is
    /// too large, `22021` (character_not_in_repertoire) if a text has a NUL, which already the server's parser
    /// refuses, else `22023` (invalid_parameter_value).
    #[must_use]
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "54000",
            Self::NulByte(_) => "22021",
            _ => "22023",
        }
    }
}

/// A field of a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "their names are all there is to say")]
pub enum Field {
    Prefix,
    Id,
    AggregateType,
    AggregateId,
    EventType,
    Metadata,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefix => "prefix",
            Self::Id => "id",
            Self::AggregateType => "aggregate_type",
            Self::AggregateId => "aggregate_id",
            Self::EventType => "event_type",
            Self::Metadata => "metadata",
        })
    }
}

/// The longest name of a topic, by Kafka's rules.
pub(crate) const TOPIC_MAX: usize = 249;
