//! The topic of the relay's position: what `owlpost init` does about it, and says.

use super::{ended, print, say, tls, unwritten};
use crate::config::Config;
use crate::exit::ExitCode;
use crate::kafka::Admin;
use crate::relay::error_code::NONE;
use crate::relay::gone::{Exit, ExitKind};
use crate::relay::kafka::Unanswered;
use crate::relay::policy::{CreateVerdict, create_topics};
use crate::relay::{Delivery, ExactlyOnce};
use crate::run;
use std::time::Duration;
use tokio::time::sleep;

/// A cluster that has just begun is asked again, so often.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(500);

/// How it came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Created,
    WasThere,
}

/// Has the topic there, where facts are delivered exactly once, as `run` would.
///
/// # Errors
///
/// How the process ends, after saying why.
pub async fn see_to(config: &Config, json: bool) -> Result<(), ExitCode> {
    let Delivery::ExactlyOnce(settings) = &config.delivery else { return Ok(()) };
    let topic = &settings.position_topic;
    if config.kafka.brokers.is_empty() {
        say(&format!(
            "owlpost: topic {topic} was not looked for, because KAFKA_BROKERS is not set; the relay makes it when it \
             begins"
        ));
        return Ok(());
    }
    let mut admin = Admin::new(run::kafka_config(config, tls(config)?));
    let outcome = match make(&mut admin, settings).await {
        Ok(outcome) => outcome,
        Err(why) => {
            let reason = format!(
                "topic {topic}, for the position of the relay, is not there and was not created: {why}; create it, \
                 with one partition, or let this client do so"
            );
            return Err(ended(&Exit { kind: ExitKind::Unreachable, reason }));
        }
    };
    let line = match (json, outcome) {
        (true, _) => {
            let created = outcome == Outcome::Created;
            serde_json::json!({ "position_topic": **topic, "created": created }).to_string()
        }
        (false, Outcome::Created) => {
            format!("topic {topic} was created, for the position of the relay")
        }
        (false, Outcome::WasThere) => {
            format!("topic {topic}, for the position of the relay, was there already")
        }
    };
    print(&line).map_err(|error| unwritten(&error))
}

async fn make(admin: &mut Admin, settings: &ExactlyOnce) -> Result<Outcome, String> {
    let topic = &settings.position_topic;
    let mut why = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(PAUSE).await;
        }
        let of_it = [std::sync::Arc::clone(topic)];
        let described = admin.describe(Some(&of_it)).await.map_err(|Unanswered(cause)| cause)?;
        // Who may not create topics is refused also where this one is there.
        if described.topics.iter().any(|it| it.topic.name == **topic && it.topic.error == NONE) {
            return Ok(Outcome::WasThere);
        }
        match admin.create(topic, &settings.position_topic_like).await {
            Ok(Ok(())) => return Ok(Outcome::Created),
            Ok(Err(refusal)) => {
                why = refusal.to_string();
                match create_topics(refusal.error) {
                    CreateVerdict::Refused => return Err(why),
                    // Somebody else did, and not every broker knows.
                    CreateVerdict::Created => return Ok(Outcome::WasThere),
                    CreateVerdict::Retry => {}
                }
            }
            Err(Unanswered(cause)) => why = cause,
        }
    }
    Err(why)
}
