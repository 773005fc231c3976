//! The Kafka side: what there is, and what follows from it.

#[cfg(test)]
mod tests;

use super::report::{Check, Verdict};
use crate::config::{Config, RecordTimestamp};
use crate::kafka::{Address, Admin, ClusterDescription, Sasl, TopicConfigs, TopicDescription};
use crate::relay::error_code::{
    self, TOPIC_AUTHORIZATION_FAILED, UNKNOWN_TOPIC_OR_PARTITION, name as error_name,
};
use crate::relay::kafka::{CreateRefusal, Unanswered};
use crate::relay::poison::{Policy, TopicPattern};
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What of a topic's configuration decides whether facts are taken, kept and not lost.
const CONFIGS: &[&str] = &[
    "min.insync.replicas",
    "unclean.leader.election.enable",
    "retention.ms",
    "max.message.bytes",
    "message.timestamp.type",
    "message.timestamp.before.max.ms",
    "message.timestamp.after.max.ms",
    // Before Apache Kafka 3.6, both in one.
    "message.timestamp.difference.max.ms",
    "cleanup.policy",
];

/// A pattern such as `*` can match every topic of a large cluster. So many are looked at.
const TOPICS_MAX: usize = 500;

/// So many brokers are connected to, all at once.
const BROKERS_MAX: usize = 50;

/// Facts are older than this when they arrive after an outage that lasted a weekend.
const OUTAGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Facts are older than this when they arrive after a restart of anything.
const RESTART: Duration = Duration::from_secs(60);

/// What is deleted sooner is gone before consumers are back from an outage of theirs.
const RETENTION_SHORT: Duration = Duration::from_secs(24 * 3600);

/// What stands for the parts of a topic's name that only a fact knows, where a whole name is needed.
const ANY: &str = "owlpost_check";

/// What the relay, or a canary, needs a topic for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    Facts,
    DeadLetters,
    Canary,
}

/// Topics that are wanted: one, or those that match.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    /// `*` stands for any characters.
    pattern: String,
    purpose: Purpose,
}

impl Wanted {
    fn is_one(&self) -> bool {
        !self.pattern.contains('*')
    }

    fn matches(&self, topic: &str) -> bool {
        TopicPattern::new(self.pattern.as_str()).matches(topic)
    }
}

/// Whether a topic could be created: what the cluster answered, if it did.
type Created = Result<Result<(), CreateRefusal>, Unanswered>;

/// A cluster as it was found.
#[derive(Debug)]
pub(super) struct View {
    cluster: ClusterDescription,
    /// Why topics that match a pattern are not known, if they are not.
    unlisted: Option<Unanswered>,
    configs: Result<Vec<TopicConfigs>, Unanswered>,
    /// Topics that are not there, and whether they could be created.
    created: Vec<(String, Created)>,
    /// Who was connected to, and whether it worked.
    reached: Vec<(String, Result<(), Unanswered>)>,
}

impl View {
    /// True if the topic can be used.
    pub(super) fn has(&self, topic: &str) -> bool {
        self.cluster.topics.iter().any(|t| t.topic.name == topic && t.topic.error == 0)
    }
}

/// For the canary: without these it would halt the relay, or never be found.
pub(super) fn stands_in_the_way(checks: &[Check], topic: &str) -> bool {
    let name = format!("topic {topic}");
    checks.iter().any(|check| check.name == name && check.verdict == Verdict::Failure)
}

/// Which topics are wanted, as far as the configuration tells.
fn wanted(config: &Config, canary: Option<&str>) -> BTreeSet<Wanted> {
    let naming = &config.naming;
    let facts = config.prefixes.iter().map(|prefix| Wanted {
        pattern: naming.topic.pattern(naming.prefix(prefix)),
        purpose: Purpose::Facts,
    });
    let dead_letters = config
        .policies
        .dead_letter_topic
        .iter()
        .map(|topic| Wanted { pattern: topic.to_string(), purpose: Purpose::DeadLetters });
    let canary = canary
        .into_iter()
        .map(|topic| Wanted { pattern: topic.to_owned(), purpose: Purpose::Canary });
    facts.chain(dead_letters).chain(canary).collect()
}

/// Asks the cluster for everything that [`judge`] wants to know.
pub(super) async fn look(
    config: &Config,
    admin: &mut Admin,
    canary: Option<&str>,
) -> Result<View, Unanswered> {
    let wanted = wanted(config, canary);
    let ones: Vec<Arc<str>> =
        wanted.iter().filter(|w| w.is_one()).map(|w| Arc::from(w.pattern.as_str())).collect();
    let mut cluster = admin.describe(Some(&ones)).await?;
    let mut unlisted = None;
    if ones.len() < wanted.len() {
        // In a cluster with more partitions than fit into an answer, topics can only be asked for by name.
        let all = admin.describe(None).await.map_or_else(
            |cause| {
                unlisted = Some(cause);
                Vec::new()
            },
            |all| all.topics,
        );
        let known: BTreeSet<String> =
            cluster.topics.iter().map(|topic| topic.topic.name.clone()).collect();
        let is_new = |topic: &TopicDescription| {
            let name = &topic.topic.name;
            !topic.is_internal
                && !known.contains(name)
                && wanted.iter().any(|wanted| wanted.matches(name))
        };
        cluster.topics.extend(all.into_iter().filter(is_new));
    }
    cluster.topics.sort_by(|a, b| a.topic.name.cmp(&b.topic.name));
    let topics: Vec<Arc<str>> = cluster
        .topics
        .iter()
        .filter(|topic| topic.topic.error == 0)
        .map(|topic| Arc::from(topic.topic.name.as_str()))
        .take(TOPICS_MAX)
        .collect();
    let configs = match topics.is_empty() {
        true => Ok(Vec::new()),
        false => admin.configs(&topics, CONFIGS).await,
    };
    let mut created = Vec::new();
    if let Some(new) = &config.create_topics {
        for wanted in &wanted {
            if !topics.iter().any(|topic| wanted.matches(topic)) {
                let topic: Arc<str> = Arc::from(wanted.pattern.replace('*', ANY));
                created.push((topic.to_string(), admin.could_create(&topic, new).await));
            }
        }
    }
    let reached = reach(config, admin, &cluster).await;
    Ok(View { cluster, unlisted, configs, created, reached })
}

/// Connects to every address that the relay may use: those it was given, and those that brokers advertise.
async fn reach(
    config: &Config,
    admin: &Admin,
    cluster: &ClusterDescription,
) -> Vec<(String, Result<(), Unanswered>)> {
    let given = config.kafka.brokers.iter().map(|broker| {
        let address = Address { host: broker.host.clone(), port: broker.port };
        (format!("broker {address}"), address)
    });
    let advertised = cluster.brokers.iter().take(BROKERS_MAX).map(|broker| {
        let address = Address { host: broker.host.clone(), port: broker.port };
        (format!("broker {}, advertised as {address}", broker.id), address)
    });
    let attempts = given.chain(advertised).map(|(who, address)| async move {
        let reached = admin.reach(&address).await;
        (who, reached)
    });
    join_all(attempts).await
}

/// No broker answers.
pub(super) fn unreached(cause: &Unanswered) -> Check {
    Check::failure("Kafka", &format!("no Kafka broker answers: {cause}"))
}

/// Everything about a cluster that has answered. Pure.
pub(super) fn judge(config: &Config, view: &View, canary: Option<&str>) -> Vec<Check> {
    let mut checks = vec![cluster(config, &view.cluster)];
    if config.kafka.tls.as_ref().is_some_and(|tls| !tls.verify) {
        let sentence = "KAFKA_SSL_VERIFICATION=false: anybody may pass for a broker; name its authority's \
             certificate in KAFKA_SSL_CA_LOCATION instead";
        checks.push(Check::warning("TLS to Kafka", sentence));
    }
    for (who, reached) in &view.reached {
        if let Err(cause) = reached {
            checks.push(unreachable(who, cause));
        }
    }
    if let Err(cause) = &view.configs {
        let sentence = format!("configurations of topics were not looked at: {cause}; try again");
        checks.push(Check::warning("topics", &sentence));
    }
    let all = wanted(config, canary);
    for wanted in &all {
        let is_meant = |topic: &&TopicDescription| {
            let name = &topic.topic.name;
            // What is wanted by its name is looked at as that.
            let by_name = || all.iter().any(|other| other.pattern == *name);
            wanted.matches(name) && (wanted.is_one() || !by_name())
        };
        let mut found = view.cluster.topics.iter().filter(is_meant).peekable();
        let is_missing =
            |topic: &&TopicDescription| topic.topic.error == UNKNOWN_TOPIC_OR_PARTITION;
        if found.peek().is_none_or(is_missing) {
            checks.push(missing(config, view, wanted));
            continue;
        }
        for description in found.take(TOPICS_MAX) {
            // A topic with two purposes is found twice.
            let of_topic = topic(config, view, wanted, description);
            checks.extend(
                of_topic.into_iter().filter(|check| !checks.contains(check)).collect::<Vec<_>>(),
            );
        }
    }
    if view.cluster.topics.len() > TOPICS_MAX {
        let sentence = format!(
            "only the first {TOPICS_MAX} of {} that match are looked at; give TOPIC_TEMPLATE or WAL_PREFIX more to \
             tell them by",
            view.cluster.topics.len()
        );
        checks.push(Check::warning("topics", &sentence));
    }
    checks
}

fn cluster(config: &Config, cluster: &ClusterDescription) -> Check {
    let id = cluster.cluster_id.as_deref().unwrap_or("without an id");
    let brokers = match cluster.brokers.len() {
        1 => "1 broker".to_owned(),
        n => format!("{n} brokers"),
    };
    let how = if config.kafka.tls.is_some() { "over TLS" } else { "in clear text" };
    let who = match &config.kafka.sasl {
        None => "without a log-in".to_owned(),
        Some(Sasl::Password { mechanism, username, .. }) => {
            format!("as {username} by {}", mechanism.name())
        }
        Some(Sasl::Token { .. }) => "by OAUTHBEARER".to_owned(),
    };
    Check::ok("Kafka", format!("cluster {id}, {brokers}, {how}, {who}"))
}

/// Facts of partitions that it leads would wait for ever; others go on.
fn unreachable(who: &str, Unanswered(cause): &Unanswered) -> Check {
    match who.contains("advertised") {
        true => Check::failure(
            who,
            &format!(
                "{cause}; set advertised.listeners of the broker to what reaches it from here"
            ),
        ),
        false => {
            Check::warning(who, &format!("{cause}; remove it from KAFKA_BROKERS, or start it"))
        }
    }
}

/// No such topic is there.
fn missing(config: &Config, view: &View, wanted: &Wanted) -> Check {
    let pattern = &wanted.pattern;
    let name = match wanted.is_one() {
        true => format!("topic {pattern}"),
        false => format!("topics {pattern}"),
    };
    let becomes = match (wanted.purpose, config.policies.of(Some(pattern))) {
        (Purpose::DeadLetters, _) => "the first dead letter halts the relay",
        (_, Policy::Halt) => "a fact for it halts the relay",
        (_, Policy::DeadLetter) => "its facts become dead letters",
        (_, Policy::Skip) => "its facts are skipped",
    };
    if let (Some(cause), false) = (&view.unlisted, wanted.is_one()) {
        let sentence = format!("what there is cannot be listed: {cause}; see to each of them");
        return Check::warning(name, &sentence);
    }
    let made = wanted.pattern.replace('*', ANY);
    match view.created.iter().find(|(topic, _)| *topic == made) {
        Some((_, Ok(Ok(())))) => Check::ok(name, "not there yet, and may be created"),
        Some((_, Err(cause))) => {
            let sentence = format!(
                "topic {made} is not there, and whether it can be created is not known: {cause}; try again"
            );
            Check::warning(name, &sentence)
        }
        Some((_, Ok(Err(CreateRefusal { error, message })))) => {
            let said = message.as_ref().map_or_else(String::new, |said| format!(", {said}"));
            let sentence = format!(
                "topic {made} cannot be created ({}{said}), and {becomes}; create it, or correct \
                 KAFKA_CREATE_TOPICS or what this client may do",
                error_name(*error)
            );
            Check::failure(name, &sentence)
        }
        None if !wanted.is_one() => Check::warning(
            name,
            &format!(
                "there is none that this client may describe, and {becomes}; create those that facts are for, or \
                 set KAFKA_CREATE_TOPICS"
            ),
        ),
        None => {
            let sentence = format!(
                "topic {pattern} is not there, and {becomes}; create it, or set KAFKA_CREATE_TOPICS"
            );
            match becomes.ends_with("halts the relay") || wanted.purpose == Purpose::Canary {
                true => Check::failure(name, &sentence),
                false => Check::warning(name, &sentence),
            }
        }
    }
}

/// One that is there, or of which the broker says why not.
fn topic(
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
