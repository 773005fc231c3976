//! `KAFKA_CREATE_TOPICS`: what missing topics are created like.

use super::{Problems, RawConfig, set};
use crate::relay::kafka::NewTopic;

const SETTING: &str = "KAFKA_CREATE_TOPICS";

/// Far above what one topic of any cluster has; a slip of the finger must not take the cluster down.
const PARTITIONS_MAX: i32 = 10_000;

/// `true`, or `name=value` pairs as kafka-configs takes them: a value with commas in square brackets.
pub(super) fn read(raw: &RawConfig, p: &mut Problems) -> Option<NewTopic> {
    let text = set(&raw.kafka_create_topics)?;
    let mut new = NewTopic { partitions: None, replication_factor: None, configs: Vec::new() };
    match text.to_ascii_lowercase().as_str() {
        "false" | "0" | "no" | "off" => return None,
        "true" | "1" | "yes" | "on" => return Some(new),
        _ => {}
    }
    let mut rest = text;
    while !rest.is_empty() {
        let (pair, behind) = split(rest);
        rest = behind;
        match pair.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
            Some((name, value)) if !name.is_empty() => take(&mut new, name, unbracketed(value), p),
            _ => p.add(
                SETTING,
                format!(
                    "{:?}: write true, false, or name=value with partitions, replication-factor or a \
                     topic's configuration",
                    pair.trim()
                ),
            ),
        }
    }
    Some(new)
}

fn take(new: &mut NewTopic, name: &str, value: &str, p: &mut Problems) {
    match name {
        "partitions" => match value.parse().ok().filter(|n| (1..=PARTITIONS_MAX).contains(n)) {
            Some(partitions) => new.partitions = Some(partitions),
            None => p.add(
                SETTING,
                format!("partitions={value} is not a number from 1 to {PARTITIONS_MAX}"),
            ),
        },
        "replication-factor" => match value.parse().ok().filter(|n: &i16| *n >= 1) {
            Some(factor) => new.replication_factor = Some(factor),
            None => p.add(
                SETTING,
                format!("replication-factor={value} is not a number from 1 to {}", i16::MAX),
            ),
        },
        _ if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) => {
            p.add(SETTING, format!("{name:?} is no name of a topic's configuration"));
        }
        _ if value.contains(['[', ']']) => {
            p.add(SETTING, format!("{name}={value:?}: a bracket has no other; write name=[a,b]"));
        }
        // The broker knows which there are.
        _ if new.configs.iter().any(|(known, _)| known == name) => {
            p.add(SETTING, format!("{name} is given twice; remove one"));
        }
        _ => new.configs.push((name.to_owned(), value.to_owned())),
    }
}

/// Up to the first comma that is in no brackets, and what is behind it.
fn split(text: &str) -> (&str, &str) {
    let mut inside = false;
    let comma = text.find(|c| {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            _ => {}
        }
        c == ',' && !inside
    });
    comma.and_then(|at| Some((text.get(..at)?, text.get(at + 1..)?))).unwrap_or((text, ""))
}

fn unbracketed(value: &str) -> &str {
    value.strip_prefix('[').and_then(|value| value.strip_suffix(']')).unwrap_or(value)
}
