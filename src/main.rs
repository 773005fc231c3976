//! The binary `owlpost`: reads what it was told, does it, says how it ended.

use factlib::cli::{Cli, Command};
use factlib::config::Config;
use factlib::exit::ExitCode;
use factlib::http::{self, Health};
use factlib::kafka::Tls;
use factlib::postgres::identify;
use factlib::relay::gone::{Exit, ExitKind, Gone};
use factlib::relay::seeded_bug::Seeded;
use factlib::{run, telemetry};
use std::io::Write as _;
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
        Command::Init => runtime.block_on(init(&config)),
    }
    .into()
}

async fn relay(config: &Config) -> ExitCode {
    let log = telemetry::init(&config.log);
    let tls = match config.kafka.tls.as_ref().map(Tls::load).transpose() {
        Ok(tls) => tls,
        Err(error) => {
            drop(log);
            say(&format!("owlpost: {error}"));
            return ExitCode::Configuration;
        }
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
    let exit = run::run(config, tls, health, asked_to_stop()).await;
    match exit.kind {
        ExitKind::Stopped => tracing::info!(slot = config.slot, "stopped: {}", exit.reason),
        _ => tracing::error!(slot = config.slot, "stopped: {}", exit.reason),
    }
    // Writes what is buffered, so that the sentence below is the last.
    drop(log);
    ended(&exit)
}

async fn init(config: &Config) -> ExitCode {
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
            ExitCode::Stopped
        }
        Err(gone) => {
            let (kind, reason) = match gone {
                Gone::Terminal(kind, reason) | Gone::Refused(kind, reason) => (kind, reason),
                Gone::Lost(reason) | Gone::SlotInUse(reason) => (ExitKind::Unreachable, reason),
            };
            ended(&Exit { kind, reason })
        }
    }
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
