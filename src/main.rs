//! The binary `owlpost`: reads what it was told, does it, says how it ended.

use factlib::audit::{self, Accepted, Audited};
use factlib::check::{self, CheckArgs, Verdict};
use factlib::cli::{Cli, Command};
use factlib::command::{asked_to_stop, ended, say, tls};
use factlib::config::{self, Config};
use factlib::exit::ExitCode;
use factlib::http::{self, Health, Port};
use factlib::postgres::audit_slot::audit_slot;
use factlib::postgres::{accept_gap, identify};
use factlib::progress::Work;
use factlib::relay::gone::ExitKind;
use factlib::relay::seeded_bug::Seeded;
use factlib::{command, run, slot_watch, telemetry};
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::Arc;

/// glibc's allocator costs two to three times as much on the way to Kafka (measured).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    let cli = Cli::from_args();
    let action = cli.action();
    let env = |name: &str| std::env::var(name).ok();
    let unread = Path::new(config::DOTENV).is_file().then(config::dotenv);
    let mut config = match Config::for_command(&cli.config, action.needs(), env) {
        Ok(config) => config,
        Err(problems) => {
            let unread = unread.map_or_else(String::new, |unread| format!("\n{unread}"));
            say(&format!("owlpost: the configuration has problems\n{problems}{unread}"));
            return ExitCode::Configuration.into();
        }
    };
    config.remarks.extend(unread);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("owlpost: no runtime to be had: {error}"));
            return ExitCode::Internal.into();
        }
    };
    runtime.block_on(act(&config, &action)).into()
}

async fn act(config: &Config, action: &Command) -> ExitCode {
    match action {
        Command::Run => Box::pin(relay(config)).await,
        Command::Init { accept_gap: true, json, .. } => init_with_gap(config, *json).await,
        Command::Init { audit, json, functions, .. } => {
            match functions.see_to(config, *json).await {
                Err(code) => code,
                Ok(()) if functions.are_all() => ExitCode::Stopped,
                Ok(()) => init(config, *audit, *json).await,
            }
        }
        Command::Check(arguments) => check(config, arguments).await,
        Command::Audit { json, accept_repeats, accept_all } => {
            let accepted = Accepted { repeats: *accept_repeats, all: *accept_all };
            audit(config, *json, accepted).await
        }
        Command::Drain(arguments) => command::drain::drain(config, arguments).await,
        Command::Wait(arguments) => command::wait::wait(config, arguments).await,
        Command::Status(arguments) => command::status::status(config, arguments).await,
        Command::Tail(arguments) => command::tail::tail(config, arguments).await,
        Command::Emit(arguments) => command::emit::emit(config, arguments).await,
        Command::Redrive(arguments) => command::redrive::redrive(config, arguments).await,
        Command::Completions(arguments) => command::completions::completions(arguments),
        Command::Man(arguments) => command::man::man(arguments),
    }
}

async fn relay(config: &Config) -> ExitCode {
    let log = telemetry::init(&config.log);
    let tls = match tls(config) {
        Ok(tls) => tls,
        Err(code) => return code,
    };
    for remark in &config.remarks {
        tracing::warn!("{remark}");
    }
    if config.kafka.tls.as_ref().is_some_and(|tls| !tls.verify) {
        tracing::warn!("KAFKA_SSL_VERIFICATION=false: anybody may pass for a broker");
    }
    let health = Arc::new(Health::new(&config.slot));
    health.count_dropped(log.dropped());
    let ports =
        [(config.http, Port::Health { page: config.status_page }), (config.metrics, Port::Metrics)];
    let served = ports.into_iter().filter_map(|(address, port)| {
        address.map(|address| http::serve(address, port, Arc::clone(&health)))
    });
    let _servers: Vec<_> = match served.collect() {
        Ok(servers) => servers,
        Err(error) => {
            drop(log);
            say(&format!("owlpost: {error}"));
            return ExitCode::Configuration;
        }
    };
    let _slot_watch = match slot_watch::start(config, Arc::clone(&health)) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, "no thread for asking about the slot: its metrics are absent");
            None
        }
    };
    let bar = command::bar(&log, false, run::catching_up(Arc::clone(&health), None));
    let exit = tokio::select! {
        exit = run::run(config, tls, Arc::clone(&health), asked_to_stop()) => exit,
        never = audit::look_after(config) => match never {},
    };
    drop(bar);
    match exit.kind {
        ExitKind::Stopped => tracing::info!(slot = config.slot, "stopped: {}", exit.reason),
        _ => tracing::error!(slot = config.slot, "stopped: {}", exit.reason),
    }
    let failed = !matches!(exit.kind, ExitKind::Stopped | ExitKind::Deadline);
    // At the start whoever started it is there to read; later a probe and a scrape must have their turn.
    if failed && health.streams() > 0 && !config.failure_linger.is_zero() {
        let linger = config.failure_linger;
        tracing::info!(slot = config.slot, ?linger, "health says so until the process ends");
        tokio::select! {
            () = tokio::time::sleep(linger) => {}
            () = asked_to_stop() => {}
        }
    }
    // Writes what is buffered, so that the sentence below is the last.
    drop(log);
    ended(&exit)
}

/// Makes a slot that is lost anew.
async fn init_with_gap(config: &Config, json: bool) -> ExitCode {
    let log = telemetry::init(&config.log);
    let result = accept_gap(&run::ask(config, Seeded::default(), None, false)).await;
    drop(log);
    let accepted = match result {
        Ok(accepted) => accepted,
        Err(gone) => return ended(&gone.into()),
    };
    let (slot, publication) = (&config.slot, &config.publication);
    let (from, to) = (accepted.gap.from, accepted.to);
    let line = if json {
        serde_json::json!({
            "slot": slot,
            "publication": publication,
            "created": true,
            "lsn": to.to_string(),
            "gap": {
                "from": from.to_string(),
                "from_is_exact": accepted.gap.exact,
                "to": to.to_string(),
            },
        })
        .to_string()
    } else {
        let begin = match accepted.gap.exact {
            true => "the last confirmed position".to_owned(),
            false => format!(
                "where slot {slot} once began, because nothing says how far it was confirmed: much of this is \
                 probably in Kafka"
            ),
        };
        format!(
            "slot {slot} was made anew; gap from {from} ({begin}) to {to}: facts committed there are not in \
             Kafka unless they were before, and this relay will not publish them; those from {to} on it will"
        )
    };
    let _ = writeln!(std::io::stdout(), "{line}");
    ExitCode::Stopped
}

async fn init(config: &Config, audit: bool, json: bool) -> ExitCode {
    let log = telemetry::init(&config.log);
    let result = identify(&run::ask(config, Seeded::default(), None, true)).await;
    drop(log);
    match result {
        Ok(identified) => {
            let (slot, publication) = (&config.slot, &config.publication);
            let line = match identified.created {
                created if json => serde_json::json!({
                    "slot": slot,
                    "publication": publication,
                    "created": created.is_some(),
                    "lsn": created.unwrap_or(identified.identity.confirmed_flush).to_string(),
                })
                .to_string(),
                Some(point) => format!(
                    "slot {slot} and publication {publication} are ready; consistent point {point}: \
                     facts committed from there on will be published"
                ),
                None => format!(
                    "slot {slot} and publication {publication} were there already, confirmed up to {}, \
                     for the prefixes {}",
                    identified.identity.confirmed_flush,
                    config.prefixes.join(", ")
                ),
            };
            // Nobody reads it: that is no reason to fail.
            let _ = writeln!(std::io::stdout(), "{line}");
            // An audit slot is a copy, which cannot be made of a slot that this session has made and holds.
            drop(identified);
            if let Err(code) = command::position_topic::see_to(config, json).await {
                return code;
            }
            match audit {
                true => init_audit(config, json).await,
                false => ExitCode::Stopped,
            }
        }
        Err(gone) => ended(&gone.into()),
    }
}

async fn init_audit(config: &Config, json: bool) -> ExitCode {
    match audit::prepare(config).await {
        Ok(point) => {
            let slot = audit_slot(&config.slot);
            let line = match json {
                true => {
                    serde_json::json!({ "audit_slot": slot, "lsn": point.to_string() }).to_string()
                }
                false => format!(
                    "slot {slot} is ready: `owlpost audit` looks at what was confirmed from {point} on"
                ),
            };
            let _ = writeln!(std::io::stdout(), "{line}");
            ExitCode::Stopped
        }
        Err(exit) => ended(&exit),
    }
}

async fn check(config: &Config, args: &CheckArgs) -> ExitCode {
    let log = telemetry::init(&config.log);
    let tls = match tls(config) {
        Ok(tls) => tls,
        Err(code) => return code,
    };
    let report = check::check(config, tls, args).await;
    drop(log);
    let mut out = std::io::stdout();
    let text = match args.json {
        true => report.json(),
        false => report.human(out.is_terminal() && !telemetry::no_color()),
    };
    // Nobody reads it: the exit code tells.
    let _ = out.write_all(text.as_bytes());
    match report.count(Verdict::Failure) {
        0 => ExitCode::Stopped,
        _ => ExitCode::Preflight,
    }
}

async fn audit(config: &Config, json: bool, accepted: Accepted) -> ExitCode {
    let log = telemetry::init(&config.log);
    let tls = match tls(config) {
        Ok(tls) => tls,
        Err(code) => return code,
    };
    let work = Work::default();
    let bar = command::bar(&log, json, work.look());
    let audited = audit::audit(config, tls, accepted, &work).await;
    drop(bar);
    drop(log);
    let Audited { from, until, outcome, is_well } = match audited {
        Ok(audited) => audited,
        Err(exit) => return ended(&exit),
    };
    let mut out = std::io::stdout().lock();
    for finding in &outcome.findings {
        let _ = match json {
            true => writeln!(out, "{}", finding.json()),
            false => writeln!(out, "{finding}"),
        };
    }
    let _ = match json {
        true => writeln!(
            out,
            "{}",
            serde_json::json!({
                "from": from.to_string(),
                "until": until.to_string(),
                "facts": outcome.facts,
                "findings": outcome.findings.len(),
                "dead_letters": outcome.dead_letters,
                "skipped": outcome.skipped,
            })
        ),
        false => writeln!(out, "from {from} to {until}: {}", outcome.summary()),
    };
    if is_well { ExitCode::Stopped } else { ExitCode::Findings }
}
