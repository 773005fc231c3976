//! The binary `owlpost`: reads what it was told, does it, says how it ended.

use factlib::audit::{self, Accepted, Audited};
use factlib::check::{self, CheckArgs, Verdict};
use factlib::cli::{Cli, Command};
use factlib::config::Config;
use factlib::exit::ExitCode;
use factlib::http::{self, Health};
use factlib::kafka::Tls;
use factlib::postgres::audit_slot::audit_slot;
use factlib::postgres::identify;
use factlib::relay::gone::{Exit, ExitKind};
use factlib::relay::seeded_bug::Seeded;
use factlib::{run, telemetry};
use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// glibc's allocator costs two to three times as much on the way to Kafka (measured).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    let cli = Cli::from_args();
    let config = match Config::from_raw(&cli.config, |name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(problems) => {
            say(&format!("owlpost: the configuration has problems\n{problems}"));
            return ExitCode::Configuration.into();
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("owlpost: no runtime to be had: {error}"));
            return ExitCode::Internal.into();
        }
    };
    match cli.action() {
        Command::Run => runtime.block_on(relay(&config)),
        Command::Init { audit } => runtime.block_on(init(&config, audit)),
        Command::Check(args) => runtime.block_on(check(&config, &args)),
        Command::Audit { json, accept_repeats, accept_all } => {
            let accepted = Accepted { repeats: accept_repeats, all: accept_all };
            runtime.block_on(audit(&config, json, accepted))
        }
    }
    .into()
}

async fn relay(config: &Config) -> ExitCode {
    let log = telemetry::init(&config.log);
    let tls = match tls(config) {
        Ok(tls) => tls,
        Err(code) => return code,
    };
    if config.kafka.tls.as_ref().is_some_and(|tls| !tls.verify) {
        tracing::warn!("KAFKA_SSL_VERIFICATION=false: anybody may pass for a broker");
    }
    let health = Arc::new(Health::new(&config.slot));
    let served = config.http.map(|address| http::serve(address, Arc::clone(&health))).transpose();
    let _server = match served {
        Ok(server) => server,
        Err(error) => {
            drop(log);
            say(&format!("owlpost: {error}"));
            return ExitCode::Configuration;
        }
    };
    let exit = tokio::select! {
        exit = run::run(config, tls, health, asked_to_stop()) => exit,
        never = audit::look_after(config) => match never {},
    };
    match exit.kind {
        ExitKind::Stopped => tracing::info!(slot = config.slot, "stopped: {}", exit.reason),
        _ => tracing::error!(slot = config.slot, "stopped: {}", exit.reason),
    }
    // Writes what is buffered, so that the sentence below is the last.
    drop(log);
    ended(&exit)
}

async fn init(config: &Config, audit: bool) -> ExitCode {
    let log = telemetry::init(&config.log);
    let result = identify(&run::ask(config, Seeded::default(), None, true)).await;
    drop(log);
    match result {
        Ok(identified) => {
            let (slot, publication) = (&config.slot, &config.publication);
            let line = match identified.created {
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
            match audit {
                true => init_audit(config).await,
                false => ExitCode::Stopped,
            }
        }
        Err(gone) => ended(&gone.into()),
    }
}

async fn init_audit(config: &Config) -> ExitCode {
    match audit::prepare(config).await {
        Ok(point) => {
            let _ = writeln!(
                std::io::stdout(),
                "slot {} is ready: `owlpost audit` looks at what was confirmed from {point} on",
                audit_slot(&config.slot)
            );
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
    let audited = audit::audit(config, tls, accepted).await;
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

fn tls(config: &Config) -> Result<Option<Tls>, ExitCode> {
    config.kafka.tls.as_ref().map(Tls::load).transpose().map_err(|error| {
        say(&format!("owlpost: {error}"));
        ExitCode::Configuration
    })
}

fn ended(exit: &Exit) -> ExitCode {
    let code = match exit.kind {
        ExitKind::Stopped => return ExitCode::Stopped,
        ExitKind::Deadline => ExitCode::Unconfirmed,
        ExitKind::Unreachable => ExitCode::Unreachable,
        ExitKind::Slot => ExitCode::Slot,
        ExitKind::OtherCluster => ExitCode::History,
        ExitKind::OtherKafka => ExitCode::KafkaCluster,
        ExitKind::Publication => ExitCode::Publication,
        ExitKind::Unsuitable => ExitCode::Server,
    };
    say(&format!("owlpost: {}", exit.reason));
    code
}

/// One sentence to standard error. If nobody reads it, there is nobody to tell.
fn say(sentence: &str) {
    let _ = writeln!(std::io::stderr(), "{sentence}");
}

async fn asked_to_stop() {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "signals cannot be heard: only SIGKILL stops this process");
            std::future::pending().await
        }
    }
}
