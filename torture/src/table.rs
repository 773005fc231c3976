//! What was done, how often, and what was seen.

use crate::arguments::Arguments;
use crate::stage::{RSS_MAX, Stage, lock};
use crate::transactions::Tally;
use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

/// Prints the table, writes it where it was asked for, and says whether everything held.
pub(crate) fn print(stage: &Stage<'_>, arguments: &Arguments, server: &str) -> bool {
    let table = table(stage, arguments, server);
    println!("\n{table}");
    if let Some(file) = &arguments.table {
        std::fs::write(file, &table).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
    let looked_at = stage.board.tallies().values().all(|tally| tally.evaluations > 0);
    let holds = stage.board.violations() == 0;
    holds && looked_at && !stage.board.has_failed()
}

fn table(stage: &Stage<'_>, arguments: &Arguments, server: &str) -> String {
    let judge = stage.judge();
    let kafka = std::env::var("KAFKA_VERSION");
    let kafka = kafka.unwrap_or_else(|_| testkit::versions::KAFKA.to_owned());
    let minutes = stage.board.elapsed().as_secs_f64() / 60.0;
    let commits = lock(&stage.traffic).commits();
    let storms = stage.board.storms_from();
    let calm = |at: &Instant| storms.is_none_or(|storms| *at < storms);
    let before = p99(commits.iter().filter(|(at, _)| calm(at)));
    let since = p99(commits.iter().filter(|(at, _)| !calm(at)));
    let (rounds, strict) = stage.board.rounds();
    let mut table = String::from("| what | how much |\n|---|---|\n");
    let bug = arguments.bug.as_ref().map(|bug| format!(" with the defect {bug}"));
    let rows = [
        ("command", format!("`{}`", arguments.command(server))),
        ("seed", arguments.seed.to_string()),
        ("relay", format!("{}{}", version(arguments), bug.unwrap_or_default())),
        ("servers", format!("PostgreSQL {server}, Apache Kafka {kafka} (3 brokers)")),
        ("minutes", format!("{minutes:.1}")),
        ("facts committed", judge.facts.to_string()),
        ("their transactions", judge.transactions.to_string()),
        ("records in Kafka", judge.records().to_string()),
        ("repeats", judge.repeats().to_string()),
        ("longest stall without a fault", seconds(lock(&stage.stall).longest)),
        (
            "peak RSS of a relay",
            format!("{} MiB of {}", stage.fleet.peak_rss() >> 20, RSS_MAX >> 20),
        ),
        (
            "COMMIT of the application, p99",
            format!("{before} before the first storm, {since} since"),
        ),
        ("rounds", format!("{rounds}, in {strict} of them nothing might be repeated")),
    ];
    for (name, value) in rows {
        let _ = writeln!(table, "| {name} | {value} |");
    }
    if stage.delivery.is_exactly_once() {
        let Tally { committed, aborted, records } = stage.tally();
        let unseen = records.saturating_sub(judge.records());
        let _ = writeln!(table, "| Kafka transactions committed | {committed} |");
        let _ = writeln!(table, "| and aborted, at least | {aborted} |");
        let _ =
            writeln!(table, "| records that no consumer of committed records sees | {unseen} |");
        for (what, times) in stage.board.sightings() {
            let _ = writeln!(table, "| {what} | {times} |");
        }
    }
    table.push_str("\n| fault | times |\n|---|---|\n");
    let counts = stage.board.counts();
    for (kind, count) in &counts {
        let _ = writeln!(table, "| {kind} | {count} |");
    }
    let _ = writeln!(table, "| all | {} |", counts.values().sum::<usize>());
    table.push_str("\n| invariant | evaluated | violated |\n|---|---|---|\n");
    for (invariant, tally) in stage.board.tallies() {
        let _ = writeln!(
            table,
            "| {} | {} | {} |",
            invariant.title(),
            tally.evaluations,
            tally.violations
        );
    }
    table
}

/// Of a hundred COMMITs, how long the slowest but one took.
fn p99<'c>(commits: impl Iterator<Item = &'c (Instant, Duration)>) -> String {
    let mut lengths: Vec<Duration> = commits.map(|(_, took)| *took).collect();
    lengths.sort_unstable();
    let p99 = lengths.get(lengths.len() * 99 / 100).copied().unwrap_or_default();
    format!("{:.1} ms", p99.as_secs_f64() * 1000.0)
}

fn seconds(length: Duration) -> String {
    format!("{:.1} s", length.as_secs_f64())
}

fn version(arguments: &Arguments) -> String {
    let output = Command::new(&arguments.relay).arg("--version").output();
    output.map_or_else(
        |e| e.to_string(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
