//! What becomes of a fact that cannot be published: the policy for it, and the dead letter.

use super::batch::{Batch, EncodedRecord, OpenBatch, Record};
use super::route::Headers;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A dead letter that is too large even for its topic has its value cut in half until it fits, but not below this
/// many bytes. Then its key goes if it is longer, and its headers are cut to this length.
const CUT_MIN: usize = 64;

/// A header that we could not do without is never longer.
const HEADER_KEPT: usize = 256;

/// What to do with a fact that cannot be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Stop there, visibly, until somebody acts.
    Halt,
    /// Publish it to the dead-letter topic, and go on once it is stored there.
    DeadLetter,
    /// Count it, log it, go on without it.
    Skip,
}

impl FromStr for Policy {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "halt" => Ok(Self::Halt),
            "dead-letter" => Ok(Self::DeadLetter),
            "skip" => Ok(Self::Skip),
            _ => Err(()),
        }
    }
}

/// Topic names, with `*` for any characters or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPattern(String);

impl TopicPattern {
    /// Any text is a pattern; what no topic can be called matches none.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// True if `topic` is one of these.
    pub fn matches(&self, topic: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = topic.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            match rest.split_once(part) {
                Some((_, after)) => rest = after,
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

/// The policies of a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies {
    /// Where no pattern matches, or the topic cannot be known.
    pub general: Policy,
    /// The first pattern that matches decides.
    pub by_topic: Vec<(TopicPattern, Policy)>,
    /// Where dead letters go. Wanted if one of the policies is [`Policy::DeadLetter`].
    pub dead_letter_topic: Option<Arc<str>>,
}

impl Policies {
    /// Every such fact halts.
    pub const HALT: Self =
        Self { general: Policy::Halt, by_topic: Vec::new(), dead_letter_topic: None };

    /// The policy for a fact that goes to `topic`, as far as that is known.
    pub fn of(&self, topic: Option<&str>) -> Policy {
        // What cannot be stored there can be stored nowhere.
        if topic.is_some() && topic == self.dead_letter_topic.as_deref() {
            return Policy::Halt;
        }
        let mut by_topic = self.by_topic.iter();
        let found = topic.and_then(|topic| by_topic.find(|(pattern, _)| pattern.matches(topic)));
        found.map_or(self.general, |(_, policy)| *policy)
    }
}

/// Why a fact cannot be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Its envelope cannot be read.
    UnreadableEnvelope,
    /// Its topic's name is none that a topic can have.
    InvalidTopic,
    /// Its topic is not there.
    TopicMissing,
    /// We may not write to its topic.
    NotAuthorized,
    /// It is larger than its topic, the broker or the relay takes.
    TooLarge,
    /// The broker takes the topic's other records, and not this one.
    Rejected,
}

impl Cause {
    /// As the `factlib_cause` header and logs have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnreadableEnvelope => "unreadable-envelope",
            Self::InvalidTopic => "invalid-topic",
            Self::TopicMissing => "topic-missing",
            Self::NotAuthorized => "not-authorized",
            Self::TooLarge => "too-large",
            Self::Rejected => "rejected",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A fact that cannot be published, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poison {
    /// Which kind.
    pub cause: Cause,
    /// A sentence that says what to do.
    pub reason: String,
    /// Where it was going, as far as that is known.
    pub topic: Option<String>,
    /// How often it was sent.
    pub attempts: u32,
}

/// Longest reason and topic of a fact that is given up, in bytes: names in them come from whoever emitted it, and
/// they go to log, health and headers.
const WORDS_MAX: usize = 1024;

/// The beginning, if it is too long.
pub(super) fn in_short(mut text: String) -> String {
    if text.len() > WORDS_MAX {
        let end = (0..=WORDS_MAX).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

impl Poison {
    pub(super) fn new(cause: Cause, reason: String, topic: Option<String>, attempts: u32) -> Self {
        Self { cause, reason: in_short(reason), topic: topic.map(in_short), attempts }
    }

    /// Adds what a dead letter says of itself.
    pub(super) fn describe(&self, headers: &mut Headers) {
        headers.push("factlib_cause", self.cause.as_str().as_bytes());
        headers.push("factlib_reason", self.reason.as_bytes());
        if let Some(topic) = &self.topic {
            headers.push("factlib_topic", topic.as_bytes());
        }
        headers.push("factlib_attempts", self.attempts.to_string().as_bytes());
    }
}

/// Says that only the beginning of a value is there.
pub(super) fn describe_cut(headers: &mut Headers, length: u64, sha256: &[u8]) {
    headers.push(LENGTH, length.to_string().as_bytes());
    let hex: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    headers.push("factlib_sha256", hex.as_bytes());
}

/// The length of the whole value, of which a dead letter has only the first part.
const LENGTH: &str = "factlib_length";

/// A record that was refused, with its headers and what [`Poison::describe`] adds.
pub(super) fn dead_letter(record: &EncodedRecord<'_>, poison: &Poison, into: &mut OpenBatch) {
    let mut headers = Headers::from_encoded(record.header_count, record.headers);
    poison.describe(&mut headers);
    into.push(&Record {
        timestamp_ms: record.timestamp_ms,
        key: record.key,
        value: record.value,
        headers: &headers,
    });
}

/// The one record of a batch with half its value; if that is short, without a long key and with short headers; none if
/// there is nothing left to cut.
pub(super) fn cut_in_half(batch: &Batch) -> Option<Batch> {
    let plain = batch.plain()?;
    let record = plain.iter().next()?;
    let (mut key, mut value) = (record.key, record.value);
    let headers = if let Some(long) = value.filter(|value| value.len() > CUT_MIN) {
        value = long.get(..long.len() / 2);
        let mut headers = Headers::from_encoded(record.header_count, record.headers);
        if !record.has_header(LENGTH) {
            describe_cut(&mut headers, long.len() as u64, &Sha256::digest(long));
        }
        headers
    } else {
        let mut headers = Headers::default();
        let mut shorter = key.is_some_and(|key| key.len() > CUT_MIN);
        key = key.filter(|key| key.len() <= CUT_MIN);
        for (name, value) in record.headers() {
            let Ok(name) = std::str::from_utf8(name) else { continue };
            shorter |= name.len() > HEADER_KEPT || value.len() > HEADER_KEPT;
            if name.len() <= HEADER_KEPT {
                headers.push(name, value.get(..HEADER_KEPT).unwrap_or(value));
            }
        }
        shorter.then_some(headers)?
    };
    let mut cut =
        OpenBatch::new(batch.first(), batch.compression()).committed_as(batch.committed());
    cut.push(&Record { timestamp_ms: record.timestamp_ms, key, value, headers: &headers });
    let mut cut = cut.seal();
    // Refused for its size, the longer one is not there, and no copy of it ever will be.
    if let Some((producer, base_sequence)) = batch.stamp() {
        match batch.is_transactional() {
            false => cut.set_stamp(producer, base_sequence),
            true => cut.set_transactional_stamp(producer, base_sequence),
        }
    }
    Some(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_name() {
        let matches = |pattern: &str, topic: &str| TopicPattern::new(pattern).matches(topic);
        for (pattern, topic) in [
            ("orders.order", "orders.order"),
            ("orders.*", "orders.order"),
            ("*", "anything"),
            ("*.audit", "orders.audit"),
            ("o*.a*t", "orders.audit"),
            ("a*a*a", "aaa"),
            ("a*b*c", "a-b-b-c"),
            ("orders*", "orders"),
        ] {
            assert!(matches(pattern, topic), "{pattern} {topic}");
        }
        for (pattern, topic) in [
            ("orders.order", "orders.orders"),
            ("orders.*", "order.order"),
            ("*.audit", "orders.audit2"),
            ("a*a", "a"),
            ("a*b*c", "a-c-b"),
            ("", "orders"),
        ] {
            assert!(!matches(pattern, topic), "{pattern} {topic}");
        }
    }

    #[test]
    fn the_first_pattern_that_matches_decides() {
        let policies = Policies {
            general: Policy::Halt,
            by_topic: vec![
                (TopicPattern::new("orders.audit"), Policy::DeadLetter),
                (TopicPattern::new("orders.*"), Policy::Skip),
                (TopicPattern::new("*"), Policy::Skip),
            ],
            dead_letter_topic: Some(Arc::from("dead")),
        };
        assert_eq!(policies.of(Some("orders.audit")), Policy::DeadLetter);
        assert_eq!(policies.of(Some("orders.order")), Policy::Skip);
        assert_eq!(policies.of(None), Policy::Halt, "no topic");
        assert_eq!(policies.of(Some("dead")), Policy::Halt, "it has nowhere to go");
    }
}
