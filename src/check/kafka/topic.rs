//! What follows from one topic. Pure.

use super::{Purpose, View, Wanted};
use crate::check::report::Check;
use crate::config::{Config, RecordTimestamp};
use crate::kafka::TopicDescription;
use crate::relay::error_code::{self, TOPIC_AUTHORIZATION_FAILED, name as error_name};
use std::collections::BTreeMap;
use std::time::Duration;

/// Facts are older than this when they arrive after an outage of a week.
const OUTAGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Facts are older than this when they arrive after a restart of anything.
const RESTART: Duration = Duration::from_secs(60);

/// What is deleted sooner is gone before consumers are back from an outage of theirs.
const RETENTION_SHORT: Duration = Duration::from_secs(24 * 3600);

/// One that is there, or of which the broker says why not.
pub(super) fn judge(
    config: &Config,
    view: &View,
    wanted: &Wanted,
    description: &TopicDescription,
) -> Vec<Check> {
    let topic = &description.topic.name;
    let name = format!("topic {topic}");
    match description.topic.error {
        error_code::NONE => {}
        TOPIC_AUTHORIZATION_FAILED => {
            let sentence = format!(
                "this client may not describe topic {topic} (TOPIC_AUTHORIZATION_FAILED); allow it to describe and \
                 to write to it"
            );
            return vec![Check::failure(name, &sentence)];
        }
        error => {
            let sentence = format!(
                "the cluster says {} of topic {topic}; look at its brokers",
                error_name(error)
            );
            return vec![Check::failure(name, &sentence)];
        }
    }
    let mut found = Findings { name: &name, checks: Vec::new() };
    if wanted.purpose == Purpose::Position {
        // How it keeps records does not matter, because it has none.
        if description.operations.is_some_and(|operations| !operations.read()) {
            found.fail(format!(
                "this client may not keep a position for topic {topic}; allow it READ"
            ));
        } else {
            let seen = "is there for the position, and stays empty";
            found.checks.push(Check::ok(&*name, seen));
        }
        return found.checks;
    }
    rights(wanted, description, &mut found);
    let configs = view.configs.iter().flatten().find(|configs| configs.topic == *topic);
    let configs = match configs.map(|configs| &configs.configs) {
        Some(Ok(configs)) => Some(configs),
        Some(Err(TOPIC_AUTHORIZATION_FAILED)) => {
            found.warn(format!(
                "the configuration of topic {topic} is not shown to this client, and was not looked at; allow it to \
                 describe configurations (DESCRIBE_CONFIGS)"
            ));
            None
        }
        Some(Err(error)) => {
            found.warn(format!(
                "the configuration of topic {topic} was not looked at ({}); try again",
                error_name(*error)
            ));
            None
        }
        None => None,
    };
    let configs = configs.map(Configs);
    copies(description, configs, &mut found);
    if let Some(configs) = configs {
        retention(config, wanted, topic, configs, &mut found);
        timestamps(config, topic, configs, &mut found);
        sizes(config, topic, configs, &mut found);
    }
    let Findings { mut checks, .. } = found;
    if checks.is_empty() {
        let of = |key: &str| configs.and_then(|configs| configs.text(key)).unwrap_or("unknown");
        let counted = |n: usize, what: &str| match n {
            1 => format!("1 {what}"),
            n => format!("{n} {what}s"),
        };
        let seen = format!(
            "{}, {}, min.insync.replicas {}",
            counted(description.topic.partitions.len(), "partition"),
            counted(copies_of(description).0, "replica"),
            of("min.insync.replicas"),
        );
        checks.push(Check::ok(name, seen));
    }
    checks
}

/// What is wrong with one topic.
struct Findings<'a> {
    name: &'a str,
    checks: Vec<Check>,
}

impl Findings<'_> {
    fn fail(&mut self, sentence: String) {
        self.checks.push(Check::failure(self.name, &sentence));
    }

    fn warn(&mut self, sentence: String) {
        self.checks.push(Check::warning(self.name, &sentence));
    }
}

/// How a topic is set.
#[derive(Debug, Clone, Copy)]
struct Configs<'a>(&'a BTreeMap<String, String>);

impl<'a> Configs<'a> {
    fn text(self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// Of milliseconds; none if there is no such limit.
    fn duration(self, name: &str) -> Option<Duration> {
        self.number(name).map(Duration::from_millis)
    }

    fn is_compacted(self) -> bool {
        self.text("cleanup.policy").is_some_and(|policy| policy.split(',').any(|p| p == "compact"))
    }
}

fn rights(wanted: &Wanted, description: &TopicDescription, found: &mut Findings<'_>) {
    let Some(operations) = description.operations else { return };
    let topic = &description.topic.name;
    if !operations.write() {
        found.fail(format!("this client may not write to topic {topic}; allow it WRITE"));
    }
    if wanted.purpose == Purpose::Canary && !operations.read() {
        found.fail(format!(
            "this client may not read topic {topic}, where the canary is looked for; allow it READ"
        ));
    }
}

/// How many copies each partition is to have, and how many have all: the fewest of the topic.
fn copies_of(description: &TopicDescription) -> (usize, usize) {
    let fewest = |of: fn(&(usize, usize)) -> usize| description.replicas.iter().map(of).min();
    (fewest(|(all, _)| *all).unwrap_or(0), fewest(|(_, in_sync)| *in_sync).unwrap_or(0))
}

fn copies(description: &TopicDescription, configs: Option<Configs<'_>>, found: &mut Findings<'_>) {
    let topic = &description.topic.name;
    let (replicas, in_sync) = copies_of(description);
    let without = description.topic.partitions.iter().find(|p| p.leader.is_none());
    if let Some(partition) = without {
        found.fail(format!(
            "partition {} of topic {topic} has no leader; start the brokers that have it",
            partition.index
        ));
    }
    let wanted = configs.and_then(|configs| configs.number("min.insync.replicas"));
    let wanted = wanted.and_then(|n| usize::try_from(n).ok());
    match wanted {
        Some(wanted) if wanted > replicas => found.fail(format!(
            "topic {topic} wants {wanted} replicas in sync and has {replicas}, so that nothing can be published \
             (NOT_ENOUGH_REPLICAS); lower min.insync.replicas, or give it more replicas"
        )),
        Some(wanted) if wanted > in_sync => found.fail(format!(
            "topic {topic} wants {wanted} replicas in sync and has {in_sync} of {replicas} now, so that nothing can \
             be published (NOT_ENOUGH_REPLICAS); start the brokers that are away"
        )),
        _ if replicas == 1 => found.warn(format!(
            "topic {topic} has 1 replica, and is lost with its broker's disk; give it 3, and \
             min.insync.replicas=2"
        )),
        Some(1) => found.warn(format!(
            "topic {topic} takes facts that only 1 of its {replicas} replicas has; set min.insync.replicas=2"
        )),
        _ => {}
    }
    let unclean = configs.and_then(|configs| configs.text("unclean.leader.election.enable"));
    if unclean == Some("true") {
        found.warn(format!(
            "a replica of topic {topic} that lags may become its leader, and what it lacks is lost; set \
             unclean.leader.election.enable=false"
        ));
    }
}

fn retention(
    config: &Config,
    wanted: &Wanted,
    topic: &str,
    configs: Configs<'_>,
    found: &mut Findings<'_>,
) {
    if configs.is_compacted() && wanted.purpose == Purpose::DeadLetters {
        found.fail(format!(
            "topic {topic} is compacted, and refuses dead letters that have no key; set cleanup.policy=delete"
        ));
    } else if configs.is_compacted() && config.naming.key.is_none() {
        found.fail(format!(
            "topic {topic} is compacted, and refuses records without a key; set cleanup.policy=delete, or another \
             KEY_TEMPLATE"
        ));
    }
    let deletes = configs.text("cleanup.policy").is_none_or(|policy| policy.contains("delete"));
    if let Some(kept) = configs.duration("retention.ms").filter(|_| deletes)
        && kept < RETENTION_SHORT
    {
        let from = match config.records.timestamp {
            RecordTimestamp::Commit => "their commit, be they published or not",
            RecordTimestamp::Publish => "they were published",
        };
        found.warn(format!(
            "topic {topic} deletes facts {} after {from}; raise retention.ms",
            humantime::format_duration(kept)
        ));
    }
}

/// Brokers compare the time of a record with their own clock, unless they stamp it with that.
fn timestamps(config: &Config, topic: &str, configs: Configs<'_>, found: &mut Findings<'_>) {
    if configs.text("message.timestamp.type") == Some("LogAppendTime") {
        return;
    }
    let either = "message.timestamp.difference.max.ms";
    let before = ["message.timestamp.before.max.ms", either];
    let after = ["message.timestamp.after.max.ms", either];
    let limit = |names: [&'static str; 2]| {
        let limits = names.into_iter().filter_map(|name| Some((configs.duration(name)?, name)));
        limits.min()
    };
    let show = humantime::format_duration;
    let is_commit = config.records.timestamp == RecordTimestamp::Commit;
    if let Some((limit, name)) = limit(before).filter(|(limit, _)| is_commit && *limit < OUTAGE) {
        let sentence = format!(
            "topic {topic} refuses facts that were committed more than {} ago (INVALID_TIMESTAMP), which halts the \
             relay {}; raise {name}, or set KAFKA_TIMESTAMP=publish",
            show(limit),
            if limit < RESTART { "at the slightest delay" } else { "after an outage" },
        );
        match limit < RESTART {
            true => found.fail(sentence),
            false => found.warn(sentence),
        }
    }
    if let Some((limit, name)) = limit(after).filter(|(limit, _)| *limit < RESTART) {
        found.warn(format!(
            "topic {topic} refuses facts whose time is {} ahead of the broker's clock; raise {name}",
            show(limit)
        ));
    }
}

fn sizes(config: &Config, topic: &str, configs: Configs<'_>, found: &mut Findings<'_>) {
    let (Some(max), batch) =
        (configs.number("max.message.bytes"), config.limits.batch_bytes as u64)
    else {
        return;
    };
    if max < batch {
        found.warn(format!(
            "topic {topic} takes {max} bytes at once and BATCH_BYTES is {batch}, so that batches are refused and \
             divided, and a fact beyond it halts the relay; raise max.message.bytes, or lower BATCH_BYTES"
        ));
    }
}
