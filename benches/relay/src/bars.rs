//! The bars that the relay is held to, and whether each was met, run by run.

use crate::drain::{Case, Contender, PG_RECVLOGICAL, RAW_READER, TO_KAFKA, TO_KAFKA_ONCE, TO_NULL};
use crate::latency::{Latency, Leg, Rate};
use crate::memory::mib;
use crate::run::{Measured, Run};
use crate::spread::Spread;
use crate::stage::Outcome;
use std::fmt::Write as _;

/// What is wanted of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

impl Wanted {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
            Self::Below(most) => value < most,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!(">= {least}"),
            Self::AtMost(most) => format!("<= {most}"),
            Self::Below(most) => format!("< {most}"),
        }
    }
}

/// A bar with what each run measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    pub name: String,
    pub wanted: Wanted,
    pub values: Vec<f64>,
}

/// So many runs it takes to believe a figure.
const RUNS_MIN: usize = 3;

impl Bar {
    fn verdict(&self) -> String {
        let runs = self.values.len();
        let met = self.values.iter().filter(|value| self.wanted.holds(**value)).count();
        let verdict = match met {
            _ if runs == 0 => return "not measured".to_owned(),
            met if met == runs => "met".to_owned(),
            0 => "**missed**".to_owned(),
            met => format!("**met in {met} of {runs} runs**"),
        };
        match runs {
            RUNS_MIN.. => verdict,
            1 => format!("{verdict}, in one run"),
            _ => format!("{verdict}, in {runs} runs"),
        }
    }
}

/// One bar a line, as a Markdown table.
pub fn table(bars: &[Bar]) -> String {
    let mut text = String::from("| bar | wanted | each run | |\n|---|---|---|---|\n");
    for bar in bars {
        let values: Vec<String> = bar.values.iter().map(|value| format!("{value:.2}")).collect();
        let (wanted, verdict) = (bar.wanted.text(), bar.verdict());
        let _ = writeln!(text, "| {} | {wanted} | {} | {verdict} |", bar.name, values.join(", "));
    }
    text
}

const BASE: &str = "base";
const ALONE: &str = "one fact per transaction";

/// All bars, with the values of these runs of any benchmark.
pub fn of(runs: &[Run]) -> Vec<Bar> {
    // Who is measured beside exactly once delivers at least once as well.
    let mut bars = of_at_least_once(runs);
    let once: Vec<_> = runs.iter().filter(|run| run.measured.is_once()).collect();
    bars.extend(of_exactly_once(&once));
    bars
}

/// Of exactly-once delivery, beside at-least-once of the same rounds.
fn of_exactly_once(runs: &[&Run]) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut bar = |name: &str, wanted, value: &dyn Fn(&Run) -> Option<f64>| {
        let values = runs.iter().copied().filter_map(value).collect();
        bars.push(Bar { name: name.to_owned(), wanted, values });
    };
    let beside = |case: &'static str, value: fn(&Outcome) -> f64| {
        move |run: &Run| {
            let case = case_of(run, case)?;
            ratio(case.contender(TO_KAFKA_ONCE)?, case.contender(TO_KAFKA)?, value)
        }
    };
    let speed = |outcome: &Outcome| 1.0 / outcome.seconds;
    let cpu = |outcome: &Outcome| outcome.reader.cpu_us();
    let least = Wanted::AtLeast(0.85);
    bar("exactly once: drain to Kafka, of at least once", least, &beside(BASE, speed));
    bar("the same, one fact per transaction", least, &beside(ALONE, speed));
    let most = Wanted::AtMost(1.3);
    bar("exactly once: CPU a fact while draining, of at least once's", most, &beside(BASE, cpu));
    bar("the same, one fact per transaction", most, &beside(ALONE, cpu));
    bar("the same, caught up at 1,000 facts/s", most, &|run| {
        let rounds = at_a_thousand(run)?.rounds.iter();
        median(rounds.filter_map(|round| {
            let of = |leg: &Option<Leg>| Some(leg.as_ref()?.relay.as_ref()?.cpu_us_a_fact());
            Some(of(&round.once)? / of(&round.relay)?)
        }))
    });
    bar(
        "exactly once: commit to receipt at 1,000 facts/s, p99 over TRANSACTION_INTERVAL, ms",
        Wanted::AtMost(10.0),
        &|run| {
            let interval = latency_of(run)?.transaction_interval_ms? as f64;
            let rounds = at_a_thousand(run)?.rounds.iter();
            let p99 = rounds.filter_map(|round| Some(round.once.as_ref()?.receipt.micros(990)));
            median(p99.map(|p99| p99 / 1e3 - interval))
        },
    );
    bar("exactly once: peak memory while draining, MiB", Wanted::Below(24.0), &|run| {
        let rounds = &case_of(run, BASE)?.contender(TO_KAFKA_ONCE)?.rounds;
        rounds.iter().map(|outcome| mib(outcome.peak_rss)).max_by(f64::total_cmp)
    });
    bars
}

fn of_at_least_once(runs: &[Run]) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut bar = |name: &str, wanted, value: &dyn Fn(&Run) -> Option<f64>| {
        let values = runs.iter().filter_map(value).collect();
        bars.push(Bar { name: name.to_owned(), wanted, values });
    };
    let speed = |case: &'static str, one: &'static str, other: &'static str| {
        move |run: &Run| {
            let case = case_of(run, case)?;
            ratio(case.contender(one)?, case.contender(other)?, |outcome| 1.0 / outcome.seconds)
        }
    };
    bar(
        "drain to the null broker, of the raw reader",
        Wanted::AtLeast(0.85),
        &speed(BASE, TO_NULL, RAW_READER),
    );
    bar("the same, of pg_recvlogical", Wanted::AtLeast(2.0), &speed(BASE, TO_NULL, PG_RECVLOGICAL));
    bar(
        "drain to Kafka, of the raw reader",
        Wanted::AtLeast(0.5),
        &speed(BASE, TO_KAFKA, RAW_READER),
    );
    bar(
        "one fact per transaction, to Kafka, of the raw reader",
        Wanted::AtLeast(0.85),
        &speed(ALONE, TO_KAFKA, RAW_READER),
    );
    let cpu = |case: &'static str| {
        move |run: &Run| {
            let case = case_of(run, case)?;
            let facts = case.shape.facts as f64;
            let rounds = &case.contender(TO_KAFKA)?.rounds;
            median(rounds.iter().map(|outcome| outcome.reader.cpu_us() / facts))
        }
    };
    bar("CPU a fact while draining to Kafka, us", Wanted::Below(2.0), &cpu(BASE));
    bar("the same, one fact per transaction, us", Wanted::Below(6.0), &cpu(ALONE));
    bar("CPU a fact, caught up at 1,000 facts/s, us", Wanted::Below(60.0), &|run| {
        let rounds = at_a_thousand(run)?.rounds.iter();
        median(
            rounds.filter_map(|round| Some(round.relay.as_ref()?.relay.as_ref()?.cpu_us_a_fact())),
        )
    });
    bar("CPU while idle, %", Wanted::Below(0.1), &|run| {
        let idle = &latency_of(run)?.idle;
        Some(idle.usage.cpu_us() / idle.seconds / 1e4)
    });
    for (name, per_mille, most) in [
        ("commit to receipt at 1,000 facts/s, p50 over the floor's, ms", 500, 0.2),
        ("the same, p99, ms", 990, 2.0),
    ] {
        bar(name, Wanted::Below(most), &|run| {
            let rounds = at_a_thousand(run)?.rounds.iter();
            median(rounds.filter_map(|round| {
                let [relay, floor] =
                    [round.relay.as_ref()?, &round.floor].map(|leg| leg.receipt.micros(per_mille));
                Some((relay - floor) / 1e3)
            }))
        });
    }
    bar("peak memory with a million facts behind, draining, MiB", Wanted::Below(24.0), &|run| {
        let Measured::Growth(growth) = &run.measured else { return None };
        let series = growth.series.iter().find(|series| series.name == "facts behind")?;
        let point = series.points.iter().find(|point| point.shape.facts == 1_000_000)?;
        let peaks = point.rounds.iter().map(|outcome| mib(outcome.peak_rss));
        peaks.max_by(f64::total_cmp)
    });
    for (name, situation, most) in [
        ("the same while Kafka was down, MiB", "Kafka down, then drained", 24.0),
        ("memory while idle, MiB", "idle", 10.0),
    ] {
        bar(name, Wanted::Below(most), &|run| {
            let Measured::Memory(memory) = &run.measured else { return None };
            let found = memory.situations.iter().find(|found| found.name == situation)?;
            Some(mib(found.found))
        });
    }
    let beside = |peer: &'static str, value: fn(&Outcome) -> f64| {
        move |run: &Run| {
            let case = case_of(run, BASE)?;
            let peer = case.contenders.iter().find(|contender| contender.name.starts_with(peer))?;
            ratio(case.contender(TO_KAFKA)?, peer, value)
        }
    };
    for (peer, least) in [("factlib", 8.0), ("Debezium", 10.0)] {
        let name = format!("facts per CPU-second while draining, of {peer}'s");
        let facts_per_cpu = beside(peer, |outcome| 1.0 / outcome.reader.cpu_us());
        bar(&name, Wanted::AtLeast(least), &facts_per_cpu);
    }
    let peak = beside("Debezium", |outcome| outcome.peak_rss as f64);
    bar("peak memory while draining, of Debezium's", Wanted::AtMost(0.05), &peak);
    bars
}

/// One's value over the other's, of the same round, and then the median: whatever else the machine does, it does to all
/// of a round.
pub fn ratio(one: &Contender, other: &Contender, value: impl Fn(&Outcome) -> f64) -> Option<f64> {
    median(ratios(one, other, value))
}

/// The same of each round.
pub fn ratios(
    one: &Contender,
    other: &Contender,
    value: impl Fn(&Outcome) -> f64,
) -> impl Iterator<Item = f64> {
    one.rounds.iter().zip(&other.rounds).map(move |(one, other)| value(one) / value(other))
}

fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    Spread::of(values).map(|spread| spread.median)
}

fn case_of<'a>(run: &'a Run, name: &str) -> Option<&'a Case> {
    let Measured::Drain(cases) = &run.measured else { return None };
    cases.iter().find(|case| case.name == name)
}

fn latency_of(run: &Run) -> Option<&Latency> {
    match &run.measured {
        Measured::Latency(latency) => Some(latency),
        _ => None,
    }
}

fn at_a_thousand(run: &Run) -> Option<&Rate> {
    latency_of(run)?.rates.iter().find(|rate| rate.rate == 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(values: &[f64]) -> Bar {
        Bar { name: "x".to_owned(), wanted: Wanted::AtLeast(0.85), values: values.to_vec() }
    }

    #[test]
    fn a_bar_is_met_where_every_run_meets_it() {
        assert_eq!(bar(&[0.85, 0.9, 1.0]).verdict(), "met");
        assert_eq!(bar(&[0.85, 0.8, 1.0]).verdict(), "**met in 2 of 3 runs**");
        assert_eq!(bar(&[0.1, 0.2, 0.3]).verdict(), "**missed**");
        assert_eq!(bar(&[0.9]).verdict(), "met, in one run");
        assert_eq!(bar(&[]).verdict(), "not measured");
        assert!(Wanted::Below(2.0).holds(1.9) && !Wanted::Below(2.0).holds(2.0));
        assert!(Wanted::AtMost(1.3).holds(1.3) && !Wanted::AtMost(1.3).holds(1.31));
    }

    #[test]
    fn a_ratio_is_that_of_one_round_and_then_the_median() {
        let contender = |seconds: &[f64]| Contender {
            name: String::new(),
            rounds: seconds
                .iter()
                .map(|seconds| Outcome {
                    seconds: *seconds,
                    whole_seconds: *seconds,
                    reader: Default::default(),
                    walsender: Default::default(),
                    broker: None,
                    peak_rss: 0,
                    reads: None,
                    counted: None,
                    checked: None,
                })
                .collect(),
        };
        // A machine that was twice as slow in the second round.
        let (one, other) = (contender(&[1.0, 2.0, 3.0]), contender(&[2.0, 4.0, 3.0]));
        assert_eq!(ratio(&one, &other, |outcome| 1.0 / outcome.seconds), Some(2.0));
    }

    #[test]
    fn bars_without_a_run_are_told_all_the_same() {
        let text = table(&of(&[]));
        assert!(text.contains("drain to Kafka") && text.contains("not measured"));
    }
}
