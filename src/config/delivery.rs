//! `DELIVERY`, and what only `exactly-once` has.

use super::{Limits, MINUTE, Problems, RawConfig, choice, duration, ms, set};
use crate::relay::kafka::NewTopic;
use crate::relay::poison::Policies;
use crate::relay::route::is_topic;
use crate::relay::{Delivery, ExactlyOnce, LargeTransactions};
use std::sync::Arc;
use std::time::Duration;

/// More are no use: the costs of a transaction are spread over so many that they cannot be seen any more, and a
/// consumer of committed records waits for them all.
const FACTS_MAX: usize = 100_000;

/// A broker's `transaction.max.timeout.ms`, by default: it refuses a longer one.
const TIMEOUT_MAX: Duration = Duration::from_secs(15 * 60);

/// The settings that have no meaning without it, and whether they are set.
fn own(raw: &RawConfig) -> [(&'static str, bool); 5] {
    [
        ("TRANSACTION_INTERVAL", &raw.transaction_interval),
        ("TRANSACTION_TIMEOUT", &raw.transaction_timeout),
        ("LARGE_TRANSACTIONS", &raw.large_transactions),
        ("POSITION_TOPIC", &raw.position_topic),
        ("FENCED_POLICY", &raw.fenced_policy),
    ]
    .map(|(setting, raw)| (setting, set(raw).is_some()))
}

pub(super) fn read(
    raw: &RawConfig,
    slot: &str,
    limits: &Limits,
    policies: &Policies,
    create_topics: Option<&NewTopic>,
    skip_stored: bool,
    p: &mut Problems,
) -> Delivery {
    let before = p.len();
    let exactly_once =
        choice(p, "DELIVERY", &raw.delivery, ("at-least-once", false), &[("exactly-once", true)]);
    let is_word = p.len() == before;
    let read = ExactlyOnce {
        slot: slot.to_owned(),
        position_topic: Arc::from(set(&raw.position_topic).unwrap_or("owlpost.position")),
        position_topic_like: NewTopic {
            partitions: Some(1),
            replication_factor: create_topics.and_then(|like| like.replication_factor),
            configs: Vec::new(),
        },
        timeout: duration(
            p,
            "TRANSACTION_TIMEOUT",
            &raw.transaction_timeout,
            MINUTE,
            ms(1000)..=TIMEOUT_MAX,
        ),
        interval: duration(
            p,
            "TRANSACTION_INTERVAL",
            &raw.transaction_interval,
            ms(50),
            ms(1)..=ms(10_000),
        ),
        // So that the next one gathers while this one ends.
        bytes_max: limits.in_flight_bytes / 2,
        facts_max: FACTS_MAX,
        large: choice(
            p,
            "LARGE_TRANSACTIONS",
            &raw.large_transactions,
            ("split", LargeTransactions::Split),
            &[("halt", LargeTransactions::Halt)],
        ),
        standby: choice(
            p,
            "FENCED_POLICY",
            &raw.fenced_policy,
            ("exit", false),
            &[("standby", true)],
        ),
    };
    if !is_topic(&read.position_topic) {
        let topic = &read.position_topic;
        p.add(
            "POSITION_TOPIC",
            format!("{topic:?} cannot be a topic's name; use a-z A-Z 0-9 . _ -"),
        );
    }
    if !exactly_once {
        for (setting, _) in own(raw).into_iter().filter(|(_, given)| *given && is_word) {
            let words = "has no effect without DELIVERY=exactly-once; set that, or remove this";
            p.add(setting, words);
        }
        return Delivery::AtLeastOnce;
    }
    check(&read, limits, policies, skip_stored, p);
    Delivery::ExactlyOnce(read)
}

/// What does not go together.
fn check(
    read: &ExactlyOnce,
    limits: &Limits,
    policies: &Policies,
    skip_stored: bool,
    p: &mut Problems,
) {
    let show = humantime::format_duration;
    let ExactlyOnce { timeout, interval, position_topic, .. } = read;
    if *interval * 2 >= *timeout {
        // What is read for longer than half of it is taken for too large.
        p.add(
            "TRANSACTION_INTERVAL",
            format!(
                "{} is not shorter than half of TRANSACTION_TIMEOUT ({}); lower it",
                show(*interval),
                show(*timeout)
            ),
        );
    }
    if *timeout <= limits.request {
        p.add(
            "TRANSACTION_TIMEOUT",
            format!(
                "{} is not longer than REQUEST_TIMEOUT ({}): one slow answer would end a \
                 transaction; raise it",
                show(*timeout),
                show(limits.request)
            ),
        );
    }
    if policies.dead_letter_topic.as_ref() == Some(position_topic) {
        p.add(
            "POSITION_TOPIC",
            "is DEAD_LETTER_TOPIC, too: who deletes that would delete the position; choose another",
        );
    }
    if skip_stored {
        p.add(
            "SKIP_STORED",
            "has no place with DELIVERY=exactly-once, which repeats nothing; remove it",
        );
    }
}
