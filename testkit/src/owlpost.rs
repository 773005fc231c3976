//! The relay as a process: what a user runs, seen from outside.

use crate::error::{Context as _, Error, Result};
use crate::kafka::read_log;
use crate::process::{self, Process, Signal};
use crate::{Kafka, Postgres, Scrape, http, port, scratch, wait};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// How long an answer on the health port may take.
const HEALTH_LIMIT: Duration = Duration::from_secs(5);

/// A relay to be started. Its environment holds what is set here and nothing else.
#[derive(Debug, Clone)]
pub struct Command {
    binary: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// A running relay. Dropping it kills it.
#[derive(Debug)]
pub struct Owlpost {
    process: Process,
    folder: PathBuf,
    health_port: u16,
    metrics_port: u16,
}

/// What a process has used, from `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// User and system time, in steps of 10 ms.
    pub cpu: Duration,
    /// Resident memory now, in bytes.
    pub rss: u64,
    /// The most resident memory there ever was, in bytes.
    pub peak_rss: u64,
}

impl Usage {
    /// Of any running process.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let bytes = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(
                line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()? * 1024,
            )
        };
        Some(Self { cpu: process::stat(pid)?.cpu, rss: bytes("VmRSS")?, peak_rss: bytes("VmHWM")? })
    }
}

impl Command {
    /// A command-line argument.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// An environment variable; the last value of a name counts.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Whom to relay from and to, as the superuser.
    #[must_use]
    pub fn servers(self, postgres: &Postgres, kafka: &Kafka) -> Self {
        self.env("MASTER_DATABASE_URL", postgres.url()).env("KAFKA_BROKERS", kafka.bootstrap())
    }

    fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.environment.iter().find(|(known, _)| known == name)?;
        Some(value)
    }

    /// Starts it, with a free health port and metrics port where none is set, and without lingering when it fails.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    #[track_caller]
    pub fn spawn(self) -> Owlpost {
        self.try_spawn().unwrap_or_else(|e| panic!("{e}"))
    }

    /// Starts it, with a free health port and metrics port where none is set.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn try_spawn(mut self) -> Result<Owlpost> {
        for name in ["WAL_HEALTH_PORT", "METRICS_PORT"] {
            if self.get(name).is_none() {
                self = self.env(name, port::free());
            }
        }
        // Most tests wait for the end and not for what health says before it.
        if self.get("FAILURE_LINGER").is_none() {
            self = self.env("FAILURE_LINGER", "0s");
        }
        let port = |name| self.get(name).and_then(|port| port.parse().ok()).unwrap_or(0);
        let (health_port, metrics_port) = (port("WAL_HEALTH_PORT"), port("METRICS_PORT"));
        let binary = self.binary.canonicalize().context(self.binary.display())?;
        let folder = scratch::folder("owlpost")?;
        let output = |name: &str| {
            let file = folder.join(name);
            File::create(&file).context(file.display())
        };
        let mut command = process::guarded(&binary, None);
        command.args(&self.arguments).env_clear().envs(self.environment);
        command.stdout(output("stdout")?).stderr(output("stderr")?);
        let process = Process::spawn("owlpost", command)?;
        Ok(Owlpost { process, folder, health_port, metrics_port })
    }
}

impl Owlpost {
    /// The relay in this file. In a test of the root crate that is `env!("CARGO_BIN_EXE_owlpost")`.
    #[must_use]
    pub fn command(binary: impl AsRef<Path>) -> Command {
        Command {
            binary: binary.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The port of `/livez`, `/readyz` and `/health`.
    #[must_use]
    pub fn health_port(&self) -> u16 {
        self.health_port
    }

    /// What it has written to standard output.
    #[must_use]
    pub fn stdout(&self) -> String {
        read_log(&self.folder.join("stdout"))
    }

    /// What it has written to standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        read_log(&self.folder.join("stderr"))
    }

    /// Both, standard error last.
    #[must_use]
    pub fn log_text(&self) -> String {
        self.stdout() + &self.stderr()
    }

    /// Waits until it has written `text`.
    ///
    /// # Panics
    ///
    /// When it has not within `limit`, or has ended without.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str, limit: Duration) {
        self.wait_until(&format!("the relay to log {text:?}"), limit, || {
            self.log_text().contains(text)
        });
    }

    /// Waits until `/readyz` says yes.
    ///
    /// # Panics
    ///
    /// When it has not within [`wait::LIMIT`], or has ended.
    #[track_caller]
    pub fn wait_ready(&self) {
        self.wait_until("the relay to be ready", wait::LIMIT, || self.is_ready());
    }

    /// As [`wait_ready`](Self::wait_ready).
    ///
    /// # Errors
    ///
    /// Where that panics.
    pub fn try_wait_ready(&self) -> Result<()> {
        self.watch("the relay to be ready", wait::LIMIT, || self.is_ready())
    }

    /// Waits until `condition` holds.
    ///
    /// # Panics
    ///
    /// When it does not within `limit`, or the relay has ended.
    #[track_caller]
    pub fn wait_until(&self, what: &str, limit: Duration, condition: impl FnMut() -> bool) {
        self.watch(what, limit, condition).unwrap_or_else(|e| panic!("{e}"));
    }

    fn watch(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut() -> bool,
    ) -> Result<()> {
        let said = || process::last_lines(&self.log_text(), 30);
        wait::poll(what, limit, || {
            // In this order: what it did last counts also when it has ended since.
            let ended = self.process.ended();
            match (condition(), ended) {
                (true, _) => Some(Ok(())),
                (false, Some(status)) => Some(Err(Error(format!(
                    "{what}: the relay ended with {}\n{}",
                    process::describe(status),
                    said()
                )))),
                (false, None) => None,
            }
        })
        .unwrap_or_else(|e| Err(Error(format!("{e}\n{}", said()))))
    }

    /// Whether `/readyz` says yes.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.get("/readyz").is_ok_and(|(status, _)| status == 200)
    }

    /// Status and body of a GET on the health port.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        http::get(self.health_port, path, HEALTH_LIMIT)
    }

    /// What the metrics port says.
    ///
    /// # Errors
    ///
    /// When there is no answer, or one that breaks the rules of its format.
    pub fn scrape(&self) -> Result<Scrape> {
        let (_, text) = http::get(self.metrics_port, "/metrics", HEALTH_LIMIT)?;
        Scrape::prometheus(&text).map_err(Error)
    }

    /// The port of `/metrics`.
    #[must_use]
    pub fn metrics_port(&self) -> u16 {
        self.metrics_port
    }

    /// What `/health` says.
    ///
    /// # Panics
    ///
    /// When it answers no JSON.
    #[must_use]
    #[track_caller]
    pub fn health(&self) -> serde_json::Value {
        let (_, body) = self.get("/health").unwrap_or_else(|e| panic!("{e}\n{}", self.stderr()));
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("/health: {e}: {body}"))
    }

    /// What `/health` says, if it answers.
    #[must_use]
    pub fn try_health(&self) -> Option<serde_json::Value> {
        let (_, body) = self.get("/health").ok()?;
        serde_json::from_str(&body).ok()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Kills it and waits until it is gone.
    pub fn kill9(&self) {
        self.process.kill();
    }

    /// Asks it to stop and waits for its end.
    ///
    /// # Panics
    ///
    /// When it has not ended within `limit`.
    #[track_caller]
    pub fn stop(&self, limit: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_exit(limit)
    }

    /// Waits for its end; `code()` is none if a signal ended it.
    ///
    /// # Panics
    ///
    /// When it has not ended within `limit`.
    #[track_caller]
    pub fn wait_exit(&self, limit: Duration) -> ExitStatus {
        self.process.wait("the relay to end", limit).unwrap_or_else(|e| {
            panic!("{e}\n{}", process::last_lines(&self.log_text(), 30));
        })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.ended().is_none()
    }

    /// What it has used so far; `None` when it has ended.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        Usage::of(self.pid())
    }

    /// Where its health port answers.
    #[must_use]
    pub fn health_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.health_port))
    }
}

impl Drop for Owlpost {
    fn drop(&mut self) {
        self.process.kill();
        let _ = scratch::remove(&self.folder);
    }
}
