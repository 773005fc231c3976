//! `owlpost check`: everything that a relay needs, looked at end to end, with what to do about what is wrong.
//!
//! It logs in as the relay would and asks; it makes and changes nothing, unless a canary is asked for, or transactions
//! are: of these it aborts one of its own, which leaves nothing to be seen. What the relay would end with is said in
//! the same words, because the same functions decide.
//!
//! ```text
//!  health port ─┐
//!  PostgreSQL ──┼─▶ what was found ──▶ what follows from it (pure) ──▶ report
//!  Kafka ───────┘
//! ```

mod canary;
mod health;
mod kafka;
mod postgres;
mod report;
mod transactions;

pub use report::{Check, Report, Verdict};

use crate::config::Config;
use crate::kafka::{Admin, Tls};
use crate::postgres::survey::{self, Survey};
use crate::relay::seeded_bug::Seeded;
use crate::relay::{Delivery, transactional_id};
use crate::run;
use canary::Canary;
use clap::Args;
use health::Running;
use std::time::SystemTime;

/// What may be asked of `owlpost check`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args)]
pub struct CheckArgs {
    /// One JSON object a line: name, verdict (ok, warning, failure), seen, remedy
    #[arg(long)]
    pub json: bool,
    /// Emit one fact and wait until it is in Kafka, for at most 30 seconds
    ///
    /// It takes a relay that runs and a topic that is there: by default prefix.owlpost_canary, by
    /// the first prefix; another aggregate type may be given. Consumers of that topic see a record
    /// with the key "canary", the event type "canary" and a random id, and should ignore it
    #[arg(
        long,
        value_name = "AGGREGATE_TYPE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "owlpost_canary"
    )]
    pub canary: Option<String>,
}

/// Looks at everything.
///
/// # Cancel safety
///
/// Dropping the future closes all connections. A canary may have been emitted.
pub async fn check(config: &Config, tls: Option<Tls>, args: &CheckArgs) -> Report {
    let remarks = config.remarks.iter();
    let mut checks: Vec<Check> =
        remarks.map(|remark| Check::warning(remark.setting, &remark.sentence)).collect();
    let running = health::look(config, &mut checks).await;
    let survey = postgres(config, running.as_ref(), &mut checks).await;
    let canary = args.canary.as_deref().map(|aggregate_type| Canary::new(config, aggregate_type));
    let canary = match canary.transpose() {
        Ok(canary) => canary,
        Err(check) => {
            checks.push(check);
            None
        }
    };
    let topic = canary.as_ref().map(|canary| canary.topic.as_str());
    let mut admin = Admin::new(run::kafka_config(config, tls.clone()));
    let mut has_position_topic = None;
    let is_there = match kafka::look(config, &mut admin, topic).await {
        Ok(view) => {
            checks.extend(kafka::judge(config, &view, topic));
            if let Delivery::ExactlyOnce(settings) = &config.delivery {
                has_position_topic = Some(view.has(&settings.position_topic));
            }
            topic.is_some_and(|topic| view.has(topic) && !kafka::stands_in_the_way(&checks, topic))
        }
        Err(cause) => {
            checks.push(kafka::unreached(&cause));
            false
        }
    };
    if let (Delivery::ExactlyOnce(settings), Some(has_topic)) =
        (&config.delivery, has_position_topic)
    {
        checks.push(match &survey {
            None => transactions::nameless(),
            Some(Survey { identity, .. }) => {
                let id = transactional_id(identity.system, identity.database, &config.slot);
                transactions::check(config, settings, &id, has_topic, tls.clone()).await
            }
        });
    }
    if let Some(canary) = canary {
        let is_read = survey.and_then(|survey| survey.slot?.column("active_pid")).is_some();
        checks.push(match (&running, is_read, is_there) {
            (Some(Running { ready: false, state, .. }), ..) => canary::not_ready(state),
            (_, false, _) => canary::no_relay(&config.slot),
            (_, true, false) => canary::not_sent(&canary.topic),
            (_, true, true) => canary.fly(config, tls).await,
        });
    }
    Report(checks)
}

async fn postgres(
    config: &Config,
    running: Option<&Running>,
    checks: &mut Vec<Check>,
) -> Option<Survey> {
    let ask = run::ask(config, Seeded::default(), None, false);
    let surveyed = survey::survey(&ask).await;
    let survey = match surveyed {
        Ok(survey) => {
            checks.extend(postgres::judge(config, &ask, &survey, running, unix_seconds()));
            Some(survey)
        }
        Err(gone) => {
            checks.push(postgres::unreached(&gone));
            None
        }
    };
    if config.postgres.hosts.len() > 1 {
        checks.extend(postgres::hosts(&survey::hosts(&config.postgres, &config.slot).await));
    }
    survey
}

#[expect(clippy::disallowed_methods, reason = "to be compared with the server's clock")]
fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
