//! Of `make bench-latency`.

use super::plot::{self, Line, Scale};
use crate::latency::{CaughtUp, Latency, Leg, Rate, Round};
use crate::memory::mib;
use crate::run::Run;
use crate::spread::{Spread, cell};
use std::fmt::Write as _;
use std::path::Path;

const QUANTILES: [(usize, &str); 4] = [(500, "p50"), (990, "p99"), (999, "p99.9"), (1000, "max")];

type Road = (&'static str, fn(&Round) -> Option<&Leg>);

const FLOOR: Road = ("floor: produced by the application", |round| Some(&round.floor));

/// The last two are owlpost's, where they were measured.
const ROADS: [Road; 4] = [
    FLOOR,
    ("walsender: a reader of the stream", |round| Some(&round.walsender)),
    OWLPOSTS[0],
    OWLPOSTS[1],
];

const OWLPOSTS: [Road; 2] = [
    ("owlpost", |round| round.relay.as_ref()),
    ("owlpost, exactly once", |round| round.once.as_ref()),
];

/// The plot has the benchmark's name.
pub fn tables(latency: &Latency, name: &str) -> String {
    let mut text = format!(
        "![commit to consumer, by quantile](performance/{name}.svg)\n\nMilliseconds from COMMIT's return, medians (smallest..largest) of the rounds:\n\n\
         | facts/s | road to | p50 | p99 | p99.9 | max |\n|---|---|---|---|---|---|\n"
    );
    for rate in &latency.rates {
        for (name, leg) in ROADS {
            let legs = || rate.rounds.iter().filter_map(leg);
            if legs().next().is_none() {
                continue;
            }
            let cells = QUANTILES.map(|(per_mille, _)| {
                cell(legs().map(|leg| leg.receipt.micros(per_mille) / 1e3), 2)
            });
            let _ = writeln!(text, "| {} | receipt; {name} | {} |", rate.rate, cells.join(" | "));
        }
        let acknowledged = QUANTILES.map(|(per_mille, _)| {
            let quantiles = rate.rounds.iter().filter_map(|r| r.floor.acknowledged.as_ref());
            cell(quantiles.map(|quantiles| quantiles.micros(per_mille) / 1e3), 2)
        });
        let _ = writeln!(
            text,
            "| {} | acknowledgement; floor | {} |",
            rate.rate,
            acknowledged.join(" | ")
        );
    }
    text.push_str(
        "\nowlpost while caught up:\n\n| facts/s | committed | mean commit to acknowledgement ms, by its metric | CPU us/fact | walsender us/fact | facts per batch | waits per fact | peak RSS MiB |\n|---|---|---|---|---|---|---|---|\n",
    );
    for rate in &latency.rates {
        for road in OWLPOSTS {
            text.push_str(&caught_up(rate, road));
        }
    }
    let idle = &latency.idle;
    let _ = writeln!(
        text,
        "\nIdle for {:.0} s: {:.3} % of a processor, {:.1} MiB resident, {:.1} waits a second.",
        idle.seconds,
        idle.usage.cpu_us() / idle.seconds / 1e4,
        mib(idle.rss),
        idle.usage.waits as f64 / idle.seconds,
    );
    text
}

/// At each rate, for the README.
pub fn in_short(run: &Run, latency: &Latency) -> String {
    let mut text = format!(
        "{}, {} cores ({}). Milliseconds from COMMIT's return to a consumer, medians (smallest..largest) of {} rounds:\n\n\
         | facts/s | | p50 | p99 | CPU of the relay, us/fact |\n|---|---|---|---|---|\n",
        run.date,
        run.cores,
        run.processor,
        run.measured.rounds(),
    );
    for rate in &latency.rates {
        for (name, leg) in [FLOOR, OWLPOSTS[0]] {
            let legs = || rate.rounds.iter().filter_map(leg);
            let quantile =
                |per_mille| cell(legs().map(|leg| leg.receipt.micros(per_mille) / 1e3), 2);
            let relays = legs().filter_map(|leg| leg.relay.as_ref());
            let cpu = cell(relays.map(CaughtUp::cpu_us_a_fact), 0);
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {cpu} |",
                rate.rate,
                name.strip_prefix("floor: ").unwrap_or(name),
                quantile(500),
                quantile(990),
            );
        }
    }
    text
}

fn caught_up(rate: &Rate, (name, leg): Road) -> String {
    let legs = || rate.rounds.iter().filter_map(leg);
    let relays = || legs().filter_map(|leg| leg.relay.as_ref());
    if legs().next().is_none() {
        return String::new();
    }
    let how = name.strip_prefix("owlpost").unwrap_or_default();
    format!(
        "| {} in transactions of {}{how} | {} | {} | {} | {} | {} | {} | {} |\n",
        rate.rate,
        rate.per_transaction,
        cell(legs().map(|leg| leg.pace), 0),
        cell(relays().map(|relay| relay.commit_to_ack_mean_us / 1e3), 2),
        cell(relays().map(CaughtUp::cpu_us_a_fact), 1),
        cell(relays().map(|relay| relay.walsender.cpu_us() / relay.facts as f64), 1),
        cell(relays().map(|relay| relay.facts as f64 / relay.batches), 1),
        cell(relays().map(|relay| relay.usage.waits as f64 / relay.facts as f64), 2),
        cell(relays().map(|relay| mib(relay.peak_rss)), 1),
    )
}

/// One over the part of facts that take longer, on the axis; so that the tail has room.
pub fn plot(latency: &Latency, file: &str, folder: &Path) {
    let mut lines = Vec::new();
    for rate in &latency.rates {
        for (name, leg) in [FLOOR, OWLPOSTS[0], OWLPOSTS[1]] {
            let point = |per_mille: usize| {
                let legs = rate.rounds.iter().filter_map(leg);
                let spread = Spread::of(legs.map(|leg| leg.receipt.micros(per_mille) / 1e3))?;
                Some((1000.0 / (1000 - per_mille) as f64, spread.median))
            };
            let points: Vec<_> = [500, 900, 950, 990, 999].into_iter().filter_map(point).collect();
            if points.is_empty() {
                continue;
            }
            let name = name.split(':').next().unwrap_or(name);
            lines.push(Line { name: format!("{name}, {} facts/s", rate.rate), points });
        }
    }
    plot::lines(
        &folder.join(format!("{file}.svg")),
        "From COMMIT's return to a consumer",
        "one fact of so many takes longer (2 is p50, 100 is p99, 1k is p99.9)",
        "ms",
        Scale::Factors,
        &lines,
    );
}
