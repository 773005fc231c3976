//! Of `make bench-memory`.

use super::plot::{self, Line, Scale};
use crate::memory::{Memory, Situation, mib};
use std::fmt::Write as _;
use std::path::Path;

pub fn table(memory: &Memory) -> String {
    let mut text =
        String::from("| situation | | found MiB | bound MiB | |\n|---|---|---|---|---|\n");
    for situation in &memory.situations {
        let Situation { name, found, what, bound, .. } = situation;
        let verdict = if situation.met() { "met" } else { "**missed**" };
        let _ = writeln!(
            text,
            "| {name} | {what} | {:.1} | {:.1} | {verdict} |",
            mib(*found),
            mib(*bound)
        );
    }
    for (name, _) in with_series(memory) {
        let _ = writeln!(text, "\n![resident memory: {}](performance/{})", name.name, file(name));
    }
    text
}

fn with_series(memory: &Memory) -> impl Iterator<Item = (&Situation, &str)> {
    let axis = |situation: &Situation| match situation.name.as_str() {
        "reconnects" => "reconnects",
        _ => "seconds",
    };
    let series = memory.situations.iter().filter(|situation| situation.series.len() > 1);
    series.map(move |situation| (situation, axis(situation)))
}

fn file(situation: &Situation) -> String {
    format!("memory-{}.svg", situation.name.replace([' ', ','], "-").replace("--", "-"))
}

pub fn plot(memory: &Memory, folder: &Path) {
    for (situation, axis) in with_series(memory) {
        let points = situation.series.iter().map(|(x, bytes)| (*x, mib(*bytes))).collect();
        plot::lines(
            &folder.join(file(situation)),
            &format!("Resident memory: {}", situation.name),
            axis,
            "MiB",
            Scale::Even,
            &[Line { name: "owlpost".to_owned(), points }],
        );
    }
}
