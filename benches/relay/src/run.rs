//! A run of a benchmark, as it is kept: when, on what, and every number that was measured.

use crate::drain::{Case, TO_KAFKA_ONCE};
use crate::growth::Growth;
use crate::latency::Latency;
use crate::memory::Memory;
use crate::{proc, render};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use testkit::Postgres;

/// What was measured, by the benchmark's name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measured {
    Drain(Vec<Case>),
    Latency(Latency),
    Growth(Growth),
    Memory(Memory),
}

impl Measured {
    /// How many things: a run can be of some of them.
    pub fn parts(&self) -> usize {
        match self {
            Self::Drain(cases) => cases.len(),
            Self::Latency(latency) => latency.rates.len(),
            Self::Growth(growth) => growth.series.len() + usize::from(!growth.rows.is_empty()),
            Self::Memory(memory) => memory.situations.len(),
        }
    }

    /// How often each was measured, where that differs.
    pub fn rounds(&self) -> usize {
        match self {
            Self::Drain(cases) => {
                let first = cases.first().and_then(|case| case.contenders.first());
                first.map_or(0, |contender| contender.rounds.len())
            }
            Self::Latency(latency) => latency.rates.first().map_or(0, |rate| rate.rounds.len()),
            Self::Growth(_) | Self::Memory(_) => 1,
        }
    }

    /// Of exactly-once delivery.
    pub fn is_once(&self) -> bool {
        match self {
            Self::Drain(cases) => cases.iter().any(|case| case.contender(TO_KAFKA_ONCE).is_some()),
            Self::Latency(latency) => latency.transaction_interval_ms.is_some(),
            Self::Growth(_) | Self::Memory(_) => false,
        }
    }

    /// The file, without its ending.
    fn name(&self) -> &'static str {
        match self {
            Self::Drain(_) if self.is_once() => "drain-exactly-once",
            Self::Latency(_) if self.is_once() => "latency-exactly-once",
            Self::Drain(_) => "drain",
            Self::Latency(_) => "latency",
            Self::Growth(_) => "growth",
            Self::Memory(_) => "memory",
        }
    }
}

/// When, and on what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub date: String,
    pub cores: usize,
    pub processor: String,
    pub kernel: String,
    pub postgres: String,
    pub kafka: String,
    /// Load averages of a minute: what else the machine did, and what the benchmark does.
    pub load_before: f64,
    pub load_after: f64,
    pub measured: Measured,
}

/// A run that is under way.
#[derive(Debug)]
pub struct Begun {
    date: String,
    load: f64,
}

impl Run {
    pub fn begin() -> Begun {
        let load = proc::load();
        println!("load average before: {load}");
        Begun { date: chrono::Utc::now().format("%Y-%m-%d").to_string(), load }
    }

    /// Adds it to those of before.
    pub fn save(self, folder: &Path) {
        let file = folder.join(format!("{}.json", self.measured.name()));
        let mut runs = load(folder, self.measured.name());
        runs.push(self);
        let text = serde_json::to_string_pretty(&runs).expect("numbers and texts");
        fs::create_dir_all(folder).and_then(|()| fs::write(&file, text + "\n")).unwrap();
        println!("run {} in {}", runs.len(), file.display());
        render::beside(folder);
    }
}

impl Begun {
    pub fn finish(self, postgres: &Postgres, measured: Measured) -> Run {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let processor = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let server = postgres.ask("SHOW server_version");
        Run {
            date: self.date,
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: processor
                .unwrap_or_default()
                .trim_start_matches([' ', '\t', ':'])
                .to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            postgres: server.split(' ').next().unwrap_or_default().to_owned(),
            kafka: testkit::provision::kafka_version()
                .map_or_else(|e| e.to_string(), str::to_owned),
            load_before: self.load,
            load_after: proc::load(),
            measured,
        }
    }
}

/// The runs of a benchmark so far; none where there are none.
///
/// # Panics
///
/// When the file is there and is something else.
pub fn load(folder: &Path, name: &str) -> Vec<Run> {
    let file = folder.join(format!("{name}.json"));
    match fs::read_to_string(&file) {
        Ok(text) => {
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => panic!("{}: {e}", file.display()),
    }
}
