//! Of `make bench-drain`.

use super::plot::{self, Group};
use crate::bars::ratios;
use crate::drain::{Case, Contender, PG_RECVLOGICAL, RAW_READER, TO_KAFKA, TO_KAFKA_ONCE, TO_NULL};
use crate::memory::mib;
use crate::run::Run;
use crate::spread::{Spread, cell};
use crate::stage::Outcome;
use std::fmt::Write as _;
use std::path::Path;

/// All cases, a table each, and where the time of owlpost goes; the plot has the benchmark's name.
pub fn tables(cases: &[Case], name: &str) -> String {
    let mut text = format!("![thousand facts a second, by case](performance/{name}.svg)\n\n");
    for case in cases {
        let _ = writeln!(text, "{}:\n", heading(case));
        text.push_str(&table(case));
        text.push('\n');
    }
    text.push_str("Where owlpost's time goes, medians:\n\n");
    text.push_str(&times(cases));
    text.push_str(&syscalls(cases));
    text
}

/// The cases that have other relays in them.
pub fn peers(cases: &[Case]) -> String {
    let with = cases.iter().filter(|case| case.has_peers());
    with.map(|case| format!("{}:\n\n{}", heading(case), table(case))).collect::<Vec<_>>().join("\n")
}

fn heading(case: &Case) -> String {
    let Case { name, shape, codec, .. } = case;
    let partitions = if shape.partitions == 1 { "partition" } else { "partitions" };
    let rounds = case.contenders.first().map_or(0, |contender| contender.rounds.len());
    format!(
        "**{name}**: {} facts of {} B, {} per transaction, {} {partitions}, compression {codec}, {rounds} rounds",
        shape.facts, shape.payload, shape.per_transaction, shape.partitions,
    )
}

fn table(case: &Case) -> String {
    let mut text = String::from(
        "| | 1000 facts/s | MB/s | CPU us/fact | of it system | walsender us/fact | broker us/fact | peak RSS MiB | / raw reader | / pg_recvlogical |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let facts = case.shape.facts as f64;
    for contender in &case.contenders {
        let of = |value: &dyn Fn(&Outcome) -> f64, digits| {
            cell(contender.rounds.iter().map(value), digits)
        };
        let broker = contender.rounds.iter().filter_map(|o| Some(o.broker?.cpu_us() / facts));
        let beside = |name| {
            let other = case.contender(name)?;
            Some(cell(ratios(contender, other, |outcome| 1.0 / outcome.seconds), 2))
        };
        let ratio = |name| beside(name).unwrap_or_else(|| "-".to_owned());
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            contender.name,
            of(&|o| facts / o.seconds / 1e3, 0),
            of(&|o| facts * case.envelope_bytes as f64 / o.seconds / 1e6, 0),
            of(&|o| o.reader.cpu_us() / facts, 2),
            of(&|o| o.reader.system_us / facts, 2),
            of(&|o| o.walsender.cpu_us() / facts, 2),
            cell(broker, 1),
            of(&|o| mib(o.peak_rss), 1),
            ratio(RAW_READER),
            ratio(PG_RECVLOGICAL),
        );
    }
    text
}

/// Shares are of the time that the relay streamed; its threads together can have more than all of it.
fn times(cases: &[Case]) -> String {
    let mut text = String::from(
        "| | on a processor | ready, without one | waiting | waits per 1000 facts | facts per batch | batches per request | records checked |\n|---|---|---|---|---|---|---|---|\n",
    );
    for case in cases {
        for contender in
            [TO_NULL, TO_KAFKA, TO_KAFKA_ONCE].iter().filter_map(|name| case.contender(name))
        {
            let facts = case.shape.facts as f64;
            let median = |value: &dyn Fn(&Outcome) -> Option<f64>| {
                Spread::of(contender.rounds.iter().filter_map(value)).map(|spread| spread.median)
            };
            let share = |value: &dyn Fn(&Outcome) -> f64| {
                let share = median(&|o| Some(value(o) / (o.whole_seconds * 1e6) * 100.0));
                share.map_or_else(|| "-".to_owned(), |share| format!("{share:.0} %"))
            };
            let number = |value: Option<f64>, digits: usize| {
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
            };
            let checked = contender.rounds.iter().filter_map(|o| o.checked).sum::<usize>();
            let _ = writeln!(
                text,
                "| {}, {} | {} | {} | {} | {} | {} | {} | {checked} |",
                case.name,
                contender.name.trim_start_matches("owlpost "),
                share(&|o| o.reader.cpu_us()),
                share(&|o| o.reader.queued_us),
                share(&|o| {
                    (o.whole_seconds * 1e6 - o.reader.cpu_us() - o.reader.queued_us).max(0.0)
                }),
                number(median(&|o| Some(o.reader.waits as f64 / facts * 1e3)), 2),
                number(median(&|o| o.counted.map(|c| facts / c.batches)), 0),
                number(median(&|o| o.counted.map(|c| c.batches / c.requests.max(1.0))), 1),
            );
        }
    }
    text
}

fn syscalls(cases: &[Case]) -> String {
    let counted = cases.iter().filter(|case| !case.syscalls.is_empty());
    let lines: Vec<String> = counted
        .map(|case| {
            let facts = case.shape.facts as f64;
            let of = |name: &str| case.syscalls.iter().find(|(call, _)| call == name);
            let per_read = of("recvfrom").map_or_else(
                || "-".to_owned(),
                |(_, reads)| format!("{:.0}", facts / *reads as f64),
            );
            let all: Vec<String> = case
                .syscalls
                .iter()
                .map(|(call, count)| format!("{call} {:.2}", *count as f64 / facts * 1e3))
                .collect();
            format!("| {} | {per_read} | {} |", case.name, all.join(", "))
        })
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    format!(
        "\nCalls of the kernel, in the round that warms up, to the null broker (reads of the stream and of answers \
         together):\n\n| | facts per read | calls per 1000 facts |\n|---|---|---|\n{}\n",
        lines.join("\n")
    )
}

/// The base case, for the README.
pub fn in_short(run: &Run, cases: &[Case]) -> String {
    let Some(case) = cases.iter().find(|case| case.name == "base") else { return String::new() };
    let facts = case.shape.facts as f64;
    let mut text = format!(
        "{}, {} cores ({}). {} facts of {} B, {} per transaction, {} partitions, medians (smallest..largest) of {} rounds:\n\n\
         | | 1000 facts/s | CPU us/fact | peak RSS MiB | of the raw reader |\n|---|---|---|---|---|\n",
        run.date,
        run.cores,
        run.processor,
        case.shape.facts,
        case.shape.payload,
        case.shape.per_transaction,
        case.shape.partitions,
        case.contenders.first().map_or(0, |contender| contender.rounds.len()),
    );
    for contender in &case.contenders {
        let of = |value: &dyn Fn(&Outcome) -> f64, digits| {
            cell(contender.rounds.iter().map(value), digits)
        };
        let raw = case.contender(RAW_READER);
        let ratio = raw.map(|raw| cell(ratios(contender, raw, |o| 1.0 / o.seconds), 2));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            contender.name,
            of(&|o| facts / o.seconds / 1e3, 0),
            of(&|o| o.reader.cpu_us() / facts, 2),
            of(&|o| mib(o.peak_rss), 1),
            ratio.unwrap_or_else(|| "-".to_owned()),
        );
    }
    text
}

pub fn plots(cases: &[Case], name: &str, folder: &Path) {
    let Some(first) = cases.first() else { return };
    let names: Vec<String> = first.contenders.iter().map(|c| c.name.clone()).collect();
    let speed = |case: &Case, contender: &Contender| {
        let facts = case.shape.facts as f64;
        Spread::of(contender.rounds.iter().map(|o| facts / o.seconds / 1e3))
    };
    let group = |case: &Case| {
        let bars = names.iter().map(|name| speed(case, case.contender(name)?)).collect();
        Group { name: case.name.replace("one fact per transaction", "one per tx"), bars }
    };
    let groups: Vec<_> = cases.iter().map(group).collect();
    plot::bars(
        &folder.join(format!("{name}.svg")),
        "Draining a backlog: median, smallest to largest",
        "1000 facts/s",
        &names,
        &groups,
    );
}
