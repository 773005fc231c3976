//! A dead letter, and whether it can go back. Pure.

use crate::command::record::Record;
use crate::relay::fact::Fact;
use crate::relay::poison::TopicPattern;
use crate::relay::route::{POSITION, is_topic};
use std::sync::Arc;

pub(super) const TOPIC: &str = "factlib_topic";
pub(super) const CAUSE: &str = "factlib_cause";
const ATTEMPTS: &str = "factlib_attempts";
const LENGTH: &str = "factlib_length";

/// What a dead letter says of itself, and what is not true of it any more.
const OF_DEAD_LETTERS: [&str; 5] = [TOPIC, CAUSE, ATTEMPTS, "factlib_reason", POSITION];

/// The header with the position that a letter had.
pub(super) const REDRIVE: &str = "factlib_redrive";

/// Which letters are asked for.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) topic: Option<TopicPattern>,
    pub(super) cause: Option<String>,
    pub(super) since_ms: Option<i64>,
}

/// A letter as it goes back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Back {
    pub(super) topic: Arc<str>,
    pub(super) timestamp_ms: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<(String, Vec<u8>)>,
}

/// What becomes of a letter.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was not asked for.
    Filtered,
    /// It cannot go back.
    Left(String),
    Redrive(Back),
}

impl Record {
    /// What becomes of it as a dead letter. `value_is_payload`: the topics have payloads, and not envelopes.
    pub(super) fn verdict(&self, filter: &Filter, value_is_payload: bool) -> Verdict {
        let text = |name| self.header(name).map(String::from_utf8_lossy);
        let (topic, cause) = (text(TOPIC), text(CAUSE));
        let wanted = filter.since_ms.is_none_or(|since| self.timestamp_ms >= since)
            && filter.cause.as_deref().is_none_or(|wanted| cause.as_deref() == Some(wanted))
            && filter
                .topic
                .as_ref()
                .is_none_or(|wanted| topic.as_deref().is_some_and(|topic| wanted.matches(topic)));
        if !wanted {
            return Verdict::Filtered;
        }
        let left = |reason: &str| Verdict::Left(reason.to_owned());
        if cause.is_none() {
            return left("it is no dead letter: it has no header factlib_cause");
        }
        if self.header(LENGTH).is_some() {
            return left("only its first part was kept, because it was too large");
        }
        let Some(topic) = topic else {
            return left("no topic is known: its envelope could not be read");
        };
        if !is_topic(&topic) {
            return left("its topic's name is none that a topic can have");
        }
        let mut value = self.value.clone();
        // What was sent has the value that it was to have; what never was, the envelope.
        if value_is_payload && self.header(ATTEMPTS) == Some(b"0") {
            match Fact::decode(self.value.as_deref().unwrap_or_default()) {
                Ok(fact) => value = fact.payload.bytes().map(<[u8]>::to_vec),
                Err(error) => {
                    return Verdict::Left(format!("its envelope cannot be read: {error}"));
                }
            }
        }
        let mut headers = Vec::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            let Ok(name) = std::str::from_utf8(name) else {
                return left("a header's name is not UTF-8");
            };
            if !OF_DEAD_LETTERS.contains(&name) {
                headers.push((name.to_owned(), value.clone()));
            }
        }
        let position = self.header(POSITION).unwrap_or_default();
        headers.push((REDRIVE.to_owned(), position.to_vec()));
        let (timestamp_ms, key) = (self.timestamp_ms, self.key.clone());
        Verdict::Redrive(Back { topic: Arc::from(&*topic), timestamp_ms, key, value, headers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Filter = Filter { topic: None, cause: None, since_ms: None };

    fn letter(headers: &[(&str, &str)], value: &str) -> Record {
        let header =
            |(name, value): &(&str, &str)| (name.as_bytes().into(), value.as_bytes().into());
        Record {
            offset: 3,
            timestamp_ms: 1000,
            key: Some(b"k".to_vec()),
            value: Some(value.as_bytes().into()),
            headers: headers.iter().map(header).collect(),
        }
    }

    const DEAD: [(&str, &str); 7] = [
        ("event_id", "7"),
        (POSITION, "00000001.0000000000000064.1.00000000"),
        ("factlib_source", "1/2"),
        (CAUSE, "topic-missing"),
        ("factlib_reason", "create it"),
        (TOPIC, "orders.order"),
        (ATTEMPTS, "0"),
    ];

    #[test]
    fn a_letter_goes_back_without_what_made_it_one() {
        let Verdict::Redrive(back) = letter(&DEAD, "v").verdict(&ALL, false) else { panic!() };
        let headers: Vec<(&str, &[u8])> =
            back.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        assert_eq!(
            headers,
            [
                ("event_id", &b"7"[..]),
                ("factlib_source", b"1/2"),
                (REDRIVE, b"00000001.0000000000000064.1.00000000")
            ]
        );
        assert_eq!((&*back.topic, back.timestamp_ms), ("orders.order", 1000));
        assert_eq!(
            (back.key.as_deref(), back.value.as_deref()),
            (Some(&b"k"[..]), Some(&b"v"[..]))
        );
    }

    #[test]
    fn where_topics_have_payloads_an_envelope_that_was_never_sent_is_opened() {
        let envelope = r#"{"aggregate_type":"order","payload":{"a":1}}"#;
        let value = |headers: &[(&str, &str)]| match letter(headers, envelope).verdict(&ALL, true) {
            Verdict::Redrive(back) => back.value.unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(value(&DEAD), br#"{"a":1}"#);
        let mut sent = DEAD;
        sent[6] = (ATTEMPTS, "2");
        assert_eq!(value(&sent), envelope.as_bytes(), "it was what the topic has");
        assert!(matches!(letter(&DEAD, "junk").verdict(&ALL, true), Verdict::Left(_)));
    }

    #[test]
    fn what_cannot_go_back_is_left_with_the_reason() {
        let cut = [&DEAD[..], &[(LENGTH, "99")]].concat();
        let invalid = [&[(TOPIC, "no topic!")], &DEAD[..]].concat();
        let cases: [(&[(&str, &str)], &str); 4] = [
            (&cut, "first part"),
            (&DEAD[..4], "no topic is known"),
            (&invalid, "name is none"),
            (&DEAD[..3], "no dead letter"),
        ];
        for (headers, words) in cases {
            let Verdict::Left(reason) = letter(headers, "v").verdict(&ALL, false) else { panic!() };
            assert!(reason.contains(words), "{reason}");
        }
    }

    #[test]
    fn only_what_is_asked_for_is_looked_at() {
        let is_wanted =
            |filter: Filter| letter(&DEAD, "v").verdict(&filter, false) != Verdict::Filtered;
        assert!(is_wanted(Filter { topic: Some(TopicPattern::new("orders.*")), ..ALL }));
        assert!(!is_wanted(Filter { topic: Some(TopicPattern::new("billing.*")), ..ALL }));
        assert!(is_wanted(Filter { cause: Some("topic-missing".to_owned()), ..ALL }));
        assert!(!is_wanted(Filter { cause: Some("rejected".to_owned()), ..ALL }));
        assert!(is_wanted(Filter { since_ms: Some(1000), ..ALL }));
        assert!(!is_wanted(Filter { since_ms: Some(1001), ..ALL }));
    }
}
