//! The Kafka side: what there is, and what follows from it.

#[cfg(test)]
mod tests;
mod topic;

use super::report::{Check, Verdict};
use crate::config::Config;
use crate::kafka::{Address, Admin, ClusterDescription, Sasl, TopicConfigs, TopicDescription};
use crate::relay::Delivery;
use crate::relay::error_code::UNKNOWN_TOPIC_OR_PARTITION;
use crate::relay::kafka::{CreateRefusal, NewTopic, Unanswered};
use crate::relay::poison::{Policy, TopicPattern};
use crate::relay::policy::{self, CreateVerdict};
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::sync::Arc;

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

/// What stands for the parts of a topic's name that only a fact knows, where a whole name is needed.
const ANY: &str = "owlpost_check";

/// What the relay, or a canary, needs a topic for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    Facts,
    DeadLetters,
    Position,
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
    let position = match &config.delivery {
        Delivery::AtLeastOnce => None,
        Delivery::ExactlyOnce(settings) => Some(Wanted {
            pattern: settings.position_topic.to_string(),
            purpose: Purpose::Position,
        }),
    };
    facts.chain(dead_letters).chain(canary).chain(position).collect()
}

/// What the relay would create it like, if it would.
fn like<'a>(config: &'a Config, wanted: &Wanted) -> Option<&'a NewTopic> {
    match (&config.delivery, wanted.purpose) {
        (Delivery::ExactlyOnce(settings), Purpose::Position) => Some(&settings.position_topic_like),
        _ => config.create_topics.as_ref(),
    }
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
    for wanted in &wanted {
        if let Some(new) = like(config, wanted)
            && !topics.iter().any(|topic| wanted.matches(topic))
        {
            let topic: Arc<str> = Arc::from(wanted.pattern.replace('*', ANY));
            created.push((topic.to_string(), admin.could_create(&topic, new).await));
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
            let of_topic = topic::judge(config, view, wanted, description);
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
        (Purpose::Position, _) => "without it nothing is published",
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
        // A relay that runs was faster than the question.
        Some((_, Ok(Err(refusal))))
            if policy::create_topics(refusal.error) == CreateVerdict::Created =>
        {
            Check::ok(name, "has just been created")
        }
        Some((_, Err(cause))) => {
            let sentence = format!(
                "topic {made} is not there, and whether it can be created is not known: {cause}; try again"
            );
            Check::warning(name, &sentence)
        }
        Some((_, Ok(Err(refusal)))) => {
            let sentence = format!(
                "topic {made} cannot be created ({refusal}), and {becomes}; create it, or correct {}what this client \
                 may do",
                match wanted.purpose {
                    Purpose::Position => "",
                    _ => "KAFKA_CREATE_TOPICS or ",
                }
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
