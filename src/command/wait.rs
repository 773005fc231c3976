//! `owlpost wait`: returns when everything up to a position is in Kafka and confirmed.

use super::barrier::{Barrier, Log, confirmed};
use super::{ANSWER_MAX, asked_to_stop, print, refused, say, unwritten};
use crate::config::Config;
use crate::exit::ExitCode;
use crate::postgres::Queries;
use crate::relay::gone::{ExitKind, Gone};
use clap::Args;
use factlib_protocol::Lsn;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Between two looks at the slot: at first, and at most.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(250);

const EXAMPLES: &str = "\
Which position: read pg_current_wal_insert_lsn() after COMMIT, in the same session or a later one.
What pg_logical_emit_message returned is the wrong one: that is where the message lies, and the
commit lies behind it. Until the commit the relay does not even know of the fact, and another
transaction's commit in between may move the confirmed position past the message. `owlpost emit`
prints the right one.

A relay must be running: this command publishes nothing. It asks the slot, for which any role will do. The
relay itself answers over HTTP, up to ten seconds at a time: 200 once everything is in Kafka (the slot
follows within seconds), 504 if not in time, 503 while a fact halts it.

Examples:
  owlpost wait --lsn now                           everything that is committed by now
  owlpost wait --lsn 0/16B3748 --timeout 5m --json
  curl -s 'localhost:3001/wait?lsn=0/16B3748&timeout=10s'
";

/// What to wait for.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Wait {
    /// The position, as PostgreSQL writes it, or `now`: pg_current_wal_insert_lsn() at the beginning
    #[arg(long, value_name = "LSN|now")]
    lsn: Barrier,
    /// How long; then, or when it is told to stop, the exit code is 12
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// One JSON object: lsn, confirmed, reached
    #[arg(long)]
    json: bool,
}

/// How it came out.
struct Outcome {
    /// What was waited for.
    lsn: Lsn,
    /// The last that the server said.
    confirmed: Lsn,
    /// Where the log ended at the beginning.
    insert: Lsn,
    reached: bool,
    /// Somebody wanted no more of it.
    stopped: bool,
}

/// Waits.
pub async fn wait(config: &Config, arguments: &Wait) -> ExitCode {
    let outcome = match waited(config, arguments).await {
        Ok(outcome) => outcome,
        Err(gone) => return refused(gone),
    };
    let Outcome { lsn, confirmed, insert, reached, stopped } = outcome;
    let printed = match arguments.json {
        true => print(
            &serde_json::json!({
                "lsn": lsn.to_string(),
                "confirmed": confirmed.to_string(),
                "reached": reached,
            })
            .to_string(),
        ),
        false if reached => print(&format!("confirmed up to {confirmed}, {lsn} and all before it")),
        false => Ok(()),
    };
    if !reached {
        let after = match stopped {
            true => "stopped:".to_owned(),
            false => format!("after {}", humantime::format_duration(arguments.timeout)),
        };
        let beyond = match lsn > insert {
            true => format!(
                "; this server's log ended at {insert} when we began: is it the right cluster, and the right LSN?"
            ),
            false => String::new(),
        };
        say(&format!(
            "owlpost: {after} slot {} is confirmed up to {confirmed}, not to {lsn}; `owlpost status` says \
             whether a relay is running{beyond}",
            config.slot
        ));
        return ExitCode::NotReached;
    }
    printed.map_or_else(|error| unwritten(&error), |()| ExitCode::Stopped)
}

async fn waited(config: &Config, arguments: &Wait) -> Result<Outcome, Gone> {
    let deadline = Instant::now() + arguments.timeout;
    let mut queries = Queries::connect(&config.postgres, ANSWER_MAX).await?;
    let log = Log::ask(&mut queries).await?;
    let ahead = confirmed(&mut queries, &config.slot).await?;
    if ahead > log.insert {
        return Err(Gone::Terminal(
            ExitKind::Slot,
            format!(
                "slot {} is confirmed up to {ahead}, and this server's log ends at {}: facts committed before that \
                 place are lost; stop what emits them, and make the log pass it",
                config.slot, log.insert
            ),
        ));
    }
    let wanted = log.wanted(arguments.lsn);
    let lsn = match arguments.lsn {
        Barrier::At(lsn) => lsn,
        Barrier::Now => log.insert,
    };
    let mut last = confirmed(&mut queries, &config.slot).await?;
    let mut pause = PAUSE;
    let mut stop = pin!(asked_to_stop());
    while last < wanted {
        let over = Instant::now() + pause >= deadline;
        let stopped = !over && {
            tokio::select! {
                () = &mut stop => true,
                () = sleep(pause) => false,
            }
        };
        if over || stopped {
            let insert = log.insert;
            return Ok(Outcome { lsn, confirmed: last, insert, reached: false, stopped });
        }
        pause = (pause * 2).min(PAUSE_MAX);
        match confirmed(&mut queries, &config.slot).await {
            Ok(confirmed) => last = confirmed,
            // A server that is restarted meanwhile is no answer yet.
            Err(Gone::Lost(_)) => {
                let connected = Queries::connect(&config.postgres, ANSWER_MAX);
                if let Ok(Ok(again)) = timeout_at(deadline, connected).await {
                    queries = again;
                }
            }
            Err(gone) => return Err(gone),
        }
    }
    Ok(Outcome { lsn, confirmed: last, insert: log.insert, reached: true, stopped: false })
}
