//! What cannot be published, and what each policy makes of it, on a real Kafka: one fact for each cause,
//! with a good one behind it.

use crate::support::{
    PATIENCE, SLOT, confirmed, emit, number, relay, state, stop, wait_confirmed, wait_state,
};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use testkit::kafka::Record;
use testkit::{Kafka, Postgres, owlpost};

const CAUSES: [&str; 7] = [
    "unreadable-envelope",
    "invalid-topic",
    "topic-missing",
    "not-authorized",
    "too-large",
    "frame-too-large",
    "rejected",
];

/// A content that cannot be published for this cause.
fn poison(cause: &str) -> Vec<u8> {
    let fact = |aggregate_type: &str, payload: usize| {
        let payload = "p".repeat(payload);
        format!(
            r#"{{"id":"{cause}","aggregate_type":"{aggregate_type}","aggregate_id":"k","payload":"{payload}"}}"#
        )
        .into_bytes()
    };
    match cause {
        "unreadable-envelope" => b"junk".to_vec(),
        "invalid-topic" => fact("no topic!", 10),
        "topic-missing" => fact("missing", 10),
        "not-authorized" => fact("secret", 10),
        "too-large" => fact("small", 5000),
        // FRAME_MAX_BYTES is 64 KiB.
        "frame-too-large" => fact("order", 100_000),
        // Of a topic that takes nothing that is older than a millisecond.
        "rejected" => fact("strict", 10),
        other => panic!("{other}"),
    }
}

struct Scene {
    prefix: &'static str,
    postgres: Postgres,
    kafka: Kafka,
}

impl Scene {
    fn start(prefix: &'static str) -> Self {
        let kafka = Kafka::builder()
            .setting(
                "authorizer.class.name",
                "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            )
            .setting("allow.everyone.if.no.acl.found", "true")
            .start();
        let topic = |name: &str| format!("{prefix}.{name}");
        kafka.create_topic(&topic("order"), 1, &[]);
        kafka.create_topic(&topic("dead"), 1, &[("max.message.bytes", "60000")]);
        kafka.create_topic(&topic("small"), 1, &[("max.message.bytes", "2000")]);
        kafka.create_topic(&topic("strict"), 1, &[("message.timestamp.before.max.ms", "1")]);
        kafka.create_topic(&topic("secret"), 1, &[]);
        let (brokers, secret) = (kafka.bootstrap(), topic("secret"));
        for (principal, operation) in [("--allow-principal", "All"), ("--deny-principal", "Write")]
        {
            let arguments = [
                "--bootstrap-server",
                &brokers,
                "--add",
                "--topic",
                &secret,
                principal,
                "User:ANONYMOUS",
                "--operation",
                operation,
            ];
            kafka.java("org.apache.kafka.tools.AclCommand", &arguments);
        }
        let scene = Self { prefix, postgres: Postgres::builder().start(), kafka };
        let init = scene.relay().arg("init").spawn();
        assert_eq!(init.wait_exit(PATIENCE).code(), Some(0), "{}", init.log_text());
        scene
    }

    fn relay(&self) -> owlpost::Command {
        relay(self.prefix, &self.postgres, &self.kafka).env("FRAME_MAX_BYTES", "64KiB")
    }

    /// A fact for this cause, and a good one behind it.
    fn emit(&self, cause: &str) {
        emit(&self.postgres, true, self.prefix, &poison(cause));
        let good = format!(r#"{{"id":"{cause}","aggregate_type":"order","aggregate_id":"k"}}"#);
        emit(&self.postgres, true, self.prefix, good.as_bytes());
    }

    fn read(&self, topic: &str) -> Vec<Record> {
        self.kafka.read_topic(&format!("{}.{topic}", self.prefix))
    }

    /// Every good fact is there once, in order, and nothing else.
    fn assert_good(&self) {
        let records = self.read("order");
        let ids: Vec<_> = records.iter().map(|record| record.header("event_id").unwrap()).collect();
        assert_eq!(ids, CAUSES);
        for topic in ["secret", "small", "strict"] {
            assert!(self.read(topic).is_empty(), "{topic}");
        }
    }
}

#[test]
fn what_cannot_be_published_is_skipped_if_the_policy_says_so() {
    let scene = Scene::start("skipping");
    CAUSES.iter().for_each(|cause| scene.emit(cause));
    let relay = scene.relay().env("POISON_POLICY", "skip").spawn();
    wait_confirmed(&relay, &scene.postgres, PATIENCE);
    scene.assert_good();
    assert_eq!(number(&relay, "skipped"), 7);
    assert_eq!((number(&relay, "published"), number(&relay, "dead_lettered")), (7, 0));
    assert_eq!(state(&relay), "streaming");
    let log = relay.log_text();
    assert_eq!(log.matches("skipped: facts that cannot be published are not in Kafka").count(), 7);
    for cause in CAUSES {
        let cause = cause.strip_prefix("frame-").unwrap_or(cause);
        assert!(log.contains(cause), "{cause}: {log}");
    }
    stop(&relay);
}

#[test]
fn what_cannot_be_published_becomes_a_dead_letter_if_the_policy_says_so() {
    let scene = Scene::start("burying");
    CAUSES.iter().for_each(|cause| scene.emit(cause));
    let relay = scene
        .relay()
        .env("POISON_POLICY", "dead-letter")
        .env("DEAD_LETTER_TOPIC", "burying.dead")
        .spawn();
    wait_confirmed(&relay, &scene.postgres, PATIENCE);
    scene.assert_good();
    assert_eq!((number(&relay, "skipped"), number(&relay, "dead_lettered")), (0, 7));
    assert_eq!(state(&relay), "streaming");
    stop(&relay);

    let letters = scene.read("dead");
    let mut found = BTreeMap::new();
    for letter in &letters {
        let cause = letter.header("factlib_cause").unwrap();
        let cut = letter.header("factlib_length").is_some();
        let cause = if cut { format!("frame-{cause}") } else { cause.to_owned() };
        assert!(letter.header("factlib_position").is_some() && letter.header("LSN").is_some());
        assert!(!letter.header("factlib_reason").unwrap().is_empty());
        found.insert(cause, letter);
    }
    assert_eq!((letters.len(), found.len()), (7, 7), "{found:?}");
    for cause in CAUSES {
        let letter = found[cause];
        let (value, emitted) = (letter.value.as_ref().unwrap(), poison(cause));
        if cause == "frame-too-large" {
            assert!(emitted.starts_with(value) && value.len() > 20_000, "{}", value.len());
            assert_eq!(letter.header("factlib_length").unwrap(), emitted.len().to_string());
            let digest = Sha256::digest(&emitted);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(letter.header("factlib_sha256").unwrap(), hex);
        } else {
            assert_eq!(value[..], emitted[..], "{cause}");
        }
        let readable = !matches!(cause, "unreadable-envelope" | "frame-too-large");
        let (key, id) = (readable.then_some(&b"k"[..]), readable.then_some(cause));
        assert_eq!(letter.key.as_deref(), key, "{cause}");
        assert!(id.is_none_or(|id| letter.header("event_id") == Some(id)));
        let topic = match cause {
            "invalid-topic" => Some("burying.no topic!"),
            "topic-missing" => Some("burying.missing"),
            "not-authorized" => Some("burying.secret"),
            "too-large" => Some("burying.small"),
            "rejected" => Some("burying.strict"),
            _ => None,
        };
        assert_eq!(letter.header("factlib_topic"), topic, "{cause}");
    }
}

#[test]
fn what_cannot_be_published_halts_and_is_kept_unless_a_policy_says_otherwise() {
    let scene = Scene::start("halting");
    for (nth, cause) in CAUSES.into_iter().enumerate() {
        let before = confirmed(&scene.postgres);
        scene.emit(cause);
        let relay = scene.relay().spawn();
        wait_state(&relay, "halted");
        let health = relay.health();
        let reason = health["blocked"]["reason"].as_str().unwrap().to_owned();
        let word = match cause {
            "unreadable-envelope" => "envelope",
            "invalid-topic" => "no topic!",
            "topic-missing" => "halting.missing cannot be used (UNKNOWN_TOPIC_OR_PARTITION)",
            "not-authorized" => "TOPIC_AUTHORIZATION_FAILED",
            "too-large" => "MESSAGE_TOO_LARGE: one record of",
            "frame-too-large" => "FRAME_MAX_BYTES",
            _ => "INVALID_TIMESTAMP",
        };
        assert!(reason.contains(word), "{cause}: {reason}");
        assert!(!relay.is_ready());
        relay.wait_for_log("halted", PATIENCE);
        assert_eq!(confirmed(&scene.postgres), before, "{cause}");
        // Only Kafka knows of these, so that the other topics go on.
        let goes_on = matches!(cause, "not-authorized" | "too-large" | "rejected");
        if goes_on {
            relay.wait_until("the good fact", PATIENCE, || scene.read("order").len() > nth);
        }
        relay.kill9();

        // An operator gives it up.
        let advance = format!(
            "SELECT pg_replication_slot_advance('{SLOT}', pg_current_wal_insert_lsn())::text"
        );
        let at_last = || scene.postgres.try_client().unwrap().query_one(&advance, &[]).is_ok();
        testkit::wait::until("the slot to be free", PATIENCE, at_last);
        if !goes_on {
            let good = format!(r#"{{"id":"{cause}","aggregate_type":"order","aggregate_id":"k"}}"#);
            emit(&scene.postgres, true, scene.prefix, good.as_bytes());
            let relay = scene.relay().spawn();
            wait_confirmed(&relay, &scene.postgres, PATIENCE);
            stop(&relay);
        }
    }
    scene.assert_good();
}
