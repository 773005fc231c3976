//! What follows from a cluster, without one.

use super::*;
use crate::config::RawConfig;
use crate::relay::error_code;
use crate::relay::kafka::{Broker, PartitionMetadata, TopicMetadata};

fn config(settings: impl FnOnce(&mut RawConfig)) -> Config {
    let mut raw = RawConfig {
        src_service_name: Some("orders".to_owned()),
        master_database_url: Some("postgres://owlpost@db/app".to_owned()),
        kafka_brokers: Some("kafka".to_owned()),
        ..RawConfig::default()
    };
    settings(&mut raw);
    Config::from_raw(&raw, |_| None).unwrap()
}

fn described(name: &str, error: i16, replicas: &[(usize, usize)]) -> TopicDescription {
    let partition = |index| PartitionMetadata { index, leader: Some(1) };
    let partitions = (0..i32::try_from(replicas.len()).unwrap()).map(partition).collect();
    TopicDescription {
        topic: TopicMetadata { name: name.to_owned(), id: None, error, partitions },
        is_internal: false,
        replicas: replicas.to_vec(),
        operations: None,
    }
}

fn view(topics: Vec<TopicDescription>, configs: &[(&str, &[(&str, &str)])]) -> View {
    let brokers = vec![Broker { id: 1, host: "kafka".to_owned(), port: 9092 }];
    let configs = configs.iter().map(|(topic, configs)| TopicConfigs {
        topic: (*topic).to_owned(),
        configs: Ok(configs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()),
    });
    View {
        cluster: ClusterDescription { cluster_id: Some("c".to_owned()), brokers, topics },
        unlisted: None,
        configs: Ok(configs.collect()),
        created: Vec::new(),
        reached: Vec::new(),
    }
}

/// What is said beside that the cluster is there.
fn said(config: &Config, view: &View) -> Vec<(Verdict, String)> {
    let checks = judge(config, view, None);
    checks.iter().skip(1).map(|check| (check.verdict, check.to_string())).collect()
}

/// One topic with 3 replicas that is set like this.
#[track_caller]
fn of_topic(config: &Config, configs: &[(&str, &str)], expected: Verdict, words: &str) {
    let view = view(vec![described("orders.order", 0, &[(3, 3)])], &[("orders.order", configs)]);
    let said = said(config, &view);
    let [(verdict, sentence)] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!(*verdict, expected, "{sentence}");
    assert!(sentence.contains(words), "{sentence}");
}

#[test]
fn each_configuration_that_can_lose_or_stop_facts_is_named() {
    let plain = config(|_| {});
    let keyless = config(|raw| raw.key_template = Some("{null}".to_owned()));
    let publish = config(|raw| raw.kafka_timestamp = Some("publish".to_owned()));
    let (ok, warning, failure) = (Verdict::Ok, Verdict::Warning, Verdict::Failure);
    let sound = [
        ("min.insync.replicas", "2"),
        ("unclean.leader.election.enable", "false"),
        ("retention.ms", "604800000"),
        ("max.message.bytes", "1048588"),
        ("message.timestamp.type", "CreateTime"),
        ("message.timestamp.before.max.ms", "9223372036854775807"),
        ("message.timestamp.after.max.ms", "3600000"),
        ("cleanup.policy", "delete"),
    ];
    let but = |name: &'static str, value: &'static str| {
        let mut configs = sound.to_vec();
        configs.retain(|(known, _)| *known != name);
        configs.push((name, value));
        configs
    };
    of_topic(&plain, &sound, ok, "1 partition, 3 replicas, min.insync.replicas 2");
    for (name, value, verdict, words) in [
        ("min.insync.replicas", "1", warning, "set min.insync.replicas=2"),
        ("min.insync.replicas", "4", failure, "wants 4 replicas in sync and has 3"),
        ("unclean.leader.election.enable", "true", warning, "what it lacks is lost"),
        ("retention.ms", "3600000", warning, "deletes facts 1h after their commit"),
        ("retention.ms", "-1", ok, "3 replicas"),
        ("max.message.bytes", "1000", warning, "takes 1000 bytes at once"),
        ("message.timestamp.before.max.ms", "1000", failure, "at the slightest delay"),
        ("message.timestamp.before.max.ms", "86400000", warning, "after an outage"),
        ("message.timestamp.after.max.ms", "1000", warning, "1s ahead of the broker's clock"),
        ("cleanup.policy", "compact", ok, "3 replicas"),
    ] {
        let configs = but(name, value);
        of_topic(&plain, &configs, verdict, words);
    }
    of_topic(&keyless, &but("cleanup.policy", "compact,delete"), failure, "records without a key");
    of_topic(&publish, &but("message.timestamp.before.max.ms", "1000"), ok, "3 replicas");
    let mut stamped = but("message.timestamp.before.max.ms", "1000");
    stamped.retain(|(name, _)| *name != "message.timestamp.type");
    stamped.push(("message.timestamp.type", "LogAppendTime"));
    of_topic(&plain, &stamped, ok, "3 replicas");
}

/// Before Apache Kafka 3.6 there is one limit for both sides.
#[test]
fn the_limit_of_older_brokers_is_known_by_its_name() {
    let configs: &[(&str, &str)] =
        &[("min.insync.replicas", "2"), ("message.timestamp.difference.max.ms", "1000")];
    let view = view(vec![described("orders.order", 0, &[(3, 3)])], &[("orders.order", configs)]);
    let said = said(&config(|_| {}), &view);
    assert_eq!((said[0].0, said[1].0), (Verdict::Failure, Verdict::Warning), "{said:?}");
    assert!(said[0].1.contains("raise message.timestamp.difference.max.ms"), "{said:?}");
    assert_eq!(said.len(), 2, "{said:?}");
}

#[test]
fn replicas_that_are_away_and_partitions_without_a_leader_are_named() {
    let plain = config(|_| {});
    let configs: [(&str, &[(&str, &str)]); 1] = [("orders.order", &[("min.insync.replicas", "2")])];
    let mut leaderless = described("orders.order", 0, &[(3, 3), (3, 1)]);
    leaderless.topic.partitions[1].leader = None;
    let said = said(&plain, &view(vec![leaderless], &configs));
    assert!(said[0].1.contains("partition 1 of topic orders.order has no leader"), "{said:?}");
    assert!(said[1].1.contains("wants 2 replicas in sync and has 1 of 3 now"), "{said:?}");
    assert!(said.iter().all(|(verdict, _)| *verdict == Verdict::Failure), "{said:?}");
}

#[test]
fn the_policy_says_how_bad_a_missing_topic_is() {
    let fixed = |policy: &str, letters: bool| {
        config(|raw| {
            raw.topic_template = Some("facts".to_owned());
            raw.poison_policy = Some(policy.to_owned());
            raw.dead_letter_topic = letters.then(|| "letters".to_owned());
        })
    };
    let missing = |name: &str| described(name, UNKNOWN_TOPIC_OR_PARTITION, &[]);
    for (policy, verdict, words) in [
        ("halt", Verdict::Failure, "a fact for it halts the relay"),
        ("skip", Verdict::Warning, "its facts are skipped"),
        ("dead-letter", Verdict::Warning, "its facts become dead letters"),
    ] {
        let letters = policy == "dead-letter";
        let topics = [missing("facts")].into_iter().chain(letters.then(|| missing("letters")));
        let said = said(&fixed(policy, letters), &view(topics.collect(), &[]));
        assert!(said[0].0 == verdict && said[0].1.contains(words), "{said:?}");
        if letters {
            assert_eq!(said[1].0, Verdict::Failure, "{said:?}");
            assert!(said[1].1.contains("the first dead letter halts the relay"), "{said:?}");
        }
    }
}

#[test]
fn a_topic_that_is_to_be_created_is_asked_for_before() {
    let creating = config(|raw| raw.kafka_create_topics = Some("true".to_owned()));
    let refusal = CreateRefusal {
        error: error_code::INVALID_REPLICATION_FACTOR,
        message: Some("there is 1 broker".to_owned()),
    };
    let exists = CreateRefusal { error: error_code::TOPIC_ALREADY_EXISTS, message: None };
    for (answer, verdict, words) in [
        (Ok(Ok(())), Verdict::Ok, "may be created"),
        (Err(Unanswered("gone".to_owned())), Verdict::Warning, "is not known: gone"),
        (Ok(Err(exists)), Verdict::Ok, "has just been created"),
        (Ok(Err(refusal)), Verdict::Failure, "(INVALID_REPLICATION_FACTOR, there is 1 broker)"),
    ] {
        let view = View {
            created: vec![("orders.owlpost_check".to_owned(), answer)],
            ..view(Vec::new(), &[])
        };
        let said = said(&creating, &view);
        assert!(said[0].0 == verdict && said[0].1.contains(words), "{said:?}");
    }
}

#[test]
fn what_could_not_be_asked_is_said_and_nothing_is_made_of_it() {
    let cause = || Unanswered("the answer is too large".to_owned());
    let view = View { unlisted: Some(cause()), configs: Err(cause()), ..view(Vec::new(), &[]) };
    let said = said(&config(|_| {}), &view);
    let [configs, topics] = said.as_slice() else { panic!("{said:?}") };
    assert!(configs.1.contains("were not looked at: the answer is too large"), "{said:?}");
    assert!(topics.1.contains("cannot be listed: the answer is too large"), "{said:?}");
    assert!(said.iter().all(|(verdict, _)| *verdict == Verdict::Warning), "{said:?}");
}

#[test]
fn a_topic_that_is_wanted_by_name_is_not_taken_for_one_of_a_pattern() {
    let config = config(|raw| {
        raw.poison_policy = Some("dead-letter".to_owned());
        raw.dead_letter_topic = Some("orders.dead".to_owned());
    });
    let configs: &[(&str, &str)] = &[("min.insync.replicas", "2"), ("cleanup.policy", "compact")];
    let view = view(
        vec![described("orders.dead", 0, &[(3, 3)]), described("orders.order", 0, &[(3, 3)])],
        &[("orders.dead", configs), ("orders.order", configs)],
    );
    let said = said(&config, &view);
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(said[0].0, Verdict::Ok, "{said:?}");
    assert!(
        said[1].1.contains("topic orders.dead is compacted, and refuses dead letters"),
        "{said:?}"
    );
}

#[test]
fn an_address_that_is_advertised_and_does_not_work_is_worse_than_one_that_was_given() {
    let reached = |who: &str| (who.to_owned(), Err(Unanswered("cannot connect".to_owned())));
    let view = View {
        reached: vec![
            reached("broker kafka:9092"),
            reached("broker 1, advertised as elsewhere:9092"),
            ("broker 2, advertised as kafka:9093".to_owned(), Ok(())),
        ],
        ..view(vec![described("orders.order", 0, &[(3, 3)])], &[])
    };
    let said = said(&config(|_| {}), &view);
    assert_eq!((said[0].0, said[1].0), (Verdict::Warning, Verdict::Failure), "{said:?}");
    assert!(said[1].1.contains("set advertised.listeners"), "{said:?}");
    assert_eq!(said.len(), 3, "{said:?}");
}
