//! Of `make bench-growth`.

use super::plot::{self, Line, Scale};
use crate::growth::{Growth, Point, Rows, Series};
use crate::memory::mib;
use crate::spread::{Spread, cell};
use crate::stage::Outcome;
use std::fmt::Write as _;
use std::path::Path;

pub fn tables(growth: &Growth) -> String {
    let mut text = String::new();
    for series in &growth.series {
        let _ = writeln!(
            text,
            "![CPU a fact, by {}](performance/{})\n\n\
             | {} | facts | 1000 facts/s | MB/s | CPU us/fact | walsender us/fact | CPU us/message | facts per batch | peak RSS MiB |\n|---|---|---|---|---|---|---|---|---|",
            series.name,
            file(series),
            series.name,
        );
        series.points.iter().for_each(|point| text.push_str(&row(point)));
        text.push('\n');
    }
    if !growth.rows.is_empty() {
        text.push_str(
            "| MB of WAL a second, aimed at | written | 1000 facts/s | CPU us/fact | walsender us/fact | mean commit to acknowledgement ms | behind at the end, s | peak RSS MiB |\n|---|---|---|---|---|---|---|---|\n",
        );
        growth.rows.iter().for_each(|rows| text.push_str(&traffic(rows)));
    }
    text
}

fn row(point: &Point) -> String {
    let (facts, messages) = (point.shape.facts as f64, point.shape.messages() as f64);
    let of = |value: &dyn Fn(&Outcome) -> f64, digits| cell(point.rounds.iter().map(value), digits);
    let batches = point.rounds.iter().filter_map(|outcome| outcome.counted);
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
        point.label,
        point.shape.facts,
        of(&|o| facts / o.seconds / 1e3, 1),
        of(&|o| facts * point.envelope_bytes as f64 / o.seconds / 1e6, 0),
        of(&|o| o.reader.cpu_us() / facts, 2),
        of(&|o| o.walsender.cpu_us() / facts, 2),
        of(&|o| o.reader.cpu_us() / messages, 2),
        cell(batches.map(|counted| facts / counted.batches), 0),
        of(&|o| mib(o.peak_rss), 1),
    )
}

fn traffic(rows: &Rows) -> String {
    let facts = rows.facts as f64;
    format!(
        "| {} | {:.0} | {:.2} | {:.1} | {:.1} | {:.2} | {:.2} | {:.1} |\n",
        rows.aim,
        rows.written,
        facts / rows.seconds / 1e3,
        rows.relay.cpu_us() / facts,
        rows.walsender.cpu_us() / facts,
        rows.commit_to_ack_mean_us / 1e3,
        rows.behind_seconds,
        mib(rows.peak_rss),
    )
}

fn file(series: &Series) -> String {
    format!("growth-{}.svg", series.name.replace(' ', "-"))
}

pub fn plots(growth: &Growth, folder: &Path) {
    for series in &growth.series {
        let line = |name: &str, value: &dyn Fn(&Outcome, f64) -> f64| {
            let median = |point: &Point| {
                let facts = point.shape.facts as f64;
                let values = point.rounds.iter().map(|outcome| value(outcome, facts));
                // Nothing of other prefixes is 0, which a logarithm does not have.
                Some((point.x.max(1.0), Spread::of(values)?.median))
            };
            let points = series.points.iter().filter_map(median).collect();
            Line { name: name.to_owned(), points }
        };
        plot::lines(
            &folder.join(file(series)),
            &format!("What a fact costs, by {}", series.name),
            &series.name,
            "us of CPU a fact",
            Scale::Factors,
            &[
                line("owlpost", &|outcome, facts| outcome.reader.cpu_us() / facts),
                line("walsender", &|outcome, facts| outcome.walsender.cpu_us() / facts),
            ],
        );
    }
}
