//! A fact that goes all the way: through the log, the relay and Kafka, and back.

use super::report::Check;
use crate::config::Config;
use crate::kafka::{Consumer, Tls};
use crate::postgres::survey;
use crate::relay::fact::Fact;
use crate::relay::route::TOPIC_LEN_MAX;
use crate::run;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

const NAME: &str = "canary";

/// A relay that is caught up takes milliseconds.
const WITHIN: Duration = Duration::from_secs(30);

/// How often Kafka is looked at.
const PAUSE: Duration = Duration::from_millis(100);

/// The fact, and where it goes.
#[derive(Debug)]
pub(super) struct Canary {
    id: Uuid,
    prefix: String,
    content: String,
    pub(super) topic: String,
}

impl Canary {
    /// One of this aggregate type, of the first prefix.
    pub(super) fn new(config: &Config, aggregate_type: &str) -> Result<Self, Check> {
        let mut bytes = [0; 16];
        if let Err(error) = getrandom::fill(&mut bytes) {
            return Err(Check::failure(NAME, &format!("no random bytes for its id: {error}")));
        }
        let id = uuid::Builder::from_random_bytes(bytes).into_uuid();
        let prefix = config.prefixes.first().cloned().unwrap_or_default();
        let content = serde_json::json!({
            "id": id.to_string(),
            "aggregate_type": aggregate_type,
            "aggregate_id": "canary",
            "event_type": "canary",
            "payload": { "emitted_by": "owlpost check --canary" },
        });
        let content = content.to_string();
        let mut topic = String::new();
        let fact = Fact::decode(content.as_bytes());
        let fact = fact.map_err(|error| Check::failure(NAME, &format!("{error}")))?;
        if !config.naming.name_topic(&prefix, &fact, &mut topic) {
            let sentence = format!(
                "{topic:?} cannot be a topic's name; use a-z A-Z 0-9 . _ -, at most {TOPIC_LEN_MAX} of them"
            );
            return Err(Check::failure(NAME, &sentence));
        }
        Ok(Self { id, prefix, content, topic })
    }

    /// Emits it, and waits until it is in Kafka.
    pub(super) async fn fly(self, config: &Config, tls: Option<Tls>) -> Check {
        match self.flight(config, tls).await {
            Ok(seen) => Check::ok(NAME, seen),
            Err(sentence) => Check::failure(NAME, &sentence),
        }
    }

    async fn flight(self, config: &Config, tls: Option<Tls>) -> Result<String, String> {
        let topic: Arc<str> = Arc::from(self.topic.as_str());
        let mut consumer = Consumer::new(run::kafka_config(config, tls), run::isolation(config));
        let mut ends = Vec::new();
        for partition in consumer.partitions(&topic).await.map_err(|cause| cause.0)? {
            let end = consumer.end(&topic, partition).await.map_err(|cause| cause.0)?;
            ends.push((partition, end));
        }
        let emitted = survey::emit(&config.postgres, &self.prefix, &self.content).await;
        let lsn = emitted.map_err(|gone| gone.reason().to_owned())?;
        let begun = Instant::now();
        let id = self.id.hyphenated().to_string();
        while begun.elapsed() < WITHIN {
            sleep(PAUSE).await;
            for (partition, next) in &mut ends {
                let end = consumer.end(&topic, *partition).await.map_err(|cause| cause.0)?;
                let mut seen = None;
                let each = |found: crate::kafka::Found<'_>| {
                    let header = (&b"event_id"[..], id.as_bytes());
                    if found.headers().any(|found| found == header) {
                        seen = Some(found.offset);
                    }
                };
                let read = consumer.read_between(&topic, *partition, *next, end, each).await;
                read.map_err(|cause| cause.0)?;
                *next = end.max(*next);
                if let Some(offset) = seen {
                    return Ok(format!(
                        "the fact at {lsn} is in Kafka after {} ms: topic {topic}, partition {partition}, offset \
                         {offset}",
                        begun.elapsed().as_millis()
                    ));
                }
            }
        }
        Err(format!(
            "the fact at {lsn} is not in topic {topic} after {} s; ask /health of the relay what holds it up",
            WITHIN.as_secs()
        ))
    }
}

/// Without a relay it would only wait in the log.
pub(super) fn no_relay(slot: &str) -> Check {
    Check::failure(
        NAME,
        &format!(
            "not emitted, because no relay reads slot {slot}; start one, or leave --canary out"
        ),
    )
}

/// It would wait behind what holds the relay up.
pub(super) fn not_ready(state: &str) -> Check {
    Check::failure(NAME, &format!("not emitted, because the relay is {state}; see to that first"))
}

/// It would halt the relay, or nobody would see it arrive.
pub(super) fn not_sent(topic: &str) -> Check {
    Check::failure(
        NAME,
        &format!(
            "not emitted, because topic {topic} does not take it; see to what is said of that topic"
        ),
    )
}
