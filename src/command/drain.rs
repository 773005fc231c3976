//! `owlpost drain`: publishes up to a position, confirms it, and stops.

use super::barrier::{Barrier, Log};
use super::{ANSWER_MAX, asked_to_stop, bar, ended, print, refused, say, tls, unwritten};
use crate::config::Config;
use crate::exit::ExitCode;
use crate::http::Health;
use crate::postgres::Queries;
use crate::relay::gone::ExitKind;
use crate::{run, telemetry};
use clap::Args;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

const EXAMPLES: &str = "\
For upgrades: stop what emits facts, stop the relay, drain, and all that was committed is in Kafka.
Once the confirmed position has reached the LSN it stops as `run` does at SIGTERM: what it has read
by then is published and confirmed, too, so that facts behind the LSN may be. It makes neither slot
nor publication, and opens no health port. While a relay runs, that one has the slot, and this
command waits for it until the time is over: `owlpost wait` is what you want then.

Examples:
  owlpost drain --until now                everything that is committed by now
  owlpost drain --until 0/16B3748 --timeout 5m --json
";

/// Up to where.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Drain {
    /// The position, as PostgreSQL writes it, or `now`: pg_current_wal_insert_lsn() at the beginning
    #[arg(long, value_name = "LSN|now")]
    until: Barrier,
    /// How long; then it stops, too, and the exit code is 12 [default: as long as it takes]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// One JSON object: until, reached
    #[arg(long)]
    json: bool,
}

/// Drains.
pub async fn drain(config: &Config, arguments: &Drain) -> ExitCode {
    let asked = async {
        let mut queries = Queries::connect(&config.postgres, ANSWER_MAX).await?;
        Log::ask(&mut queries).await
    };
    let end = match asked.await {
        Ok(end) => end,
        Err(gone) => return refused(gone),
    };
    let until = end.wanted(arguments.until);
    let log = telemetry::init(&config.log);
    if until > end.insert {
        tracing::warn!(
            lsn = %until,
            end = %end.insert,
            "the server's log ends before that: this goes on until so much was written; is it the right cluster?"
        );
    }
    let tls = match tls(config) {
        Ok(tls) => tls,
        Err(code) => return code,
    };
    let over = async {
        match arguments.timeout {
            Some(limit) => sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let stop = async {
        tokio::select! {
            () = asked_to_stop() => {}
            () = over => {}
        }
    };
    let health = Arc::new(Health::new(&config.slot));
    let bar = bar(&log, arguments.json, run::catching_up(Arc::clone(&health), Some(until)));
    let (exit, reached) = run::drain(config, tls, health, until, stop).await;
    drop(bar);
    let reached = reached && exit.kind == ExitKind::Stopped;
    drop(log);
    let printed = match arguments.json {
        true => print(
            &serde_json::json!({ "until": until.to_string(), "reached": reached }).to_string(),
        ),
        false if reached => print(&format!("published and confirmed up to {until}")),
        false => Ok(()),
    };
    match (exit.kind, reached) {
        (ExitKind::Stopped, true) => {
            printed.map_or_else(|error| unwritten(&error), |()| ExitCode::Stopped)
        }
        (ExitKind::Stopped | ExitKind::Deadline, false) => {
            say(&format!("owlpost: stopped before {until} was confirmed: {}", exit.reason));
            ExitCode::NotReached
        }
        _ => ended(&exit),
    }
}
