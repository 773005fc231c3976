//! Tables and plots of the documentation, from the runs that are kept beside them.

mod drain;
mod growth;
mod latency;
mod memory;
mod plot;

use crate::bars;
use crate::run::{self, Measured, Run};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The folder with the runs, which the plots are written to.
    #[arg(long, default_value = "docs/performance")]
    results: PathBuf,
    /// The documents whose blocks are made anew: what stands between `<!-- NAME -->` and `<!-- /NAME -->`.
    #[arg(long, default_values_os_t = [PathBuf::from("docs/performance.md"), PathBuf::from("README.md")])]
    document: Vec<PathBuf>,
}

const BENCHMARKS: [&str; 6] =
    ["drain", "latency", "growth", "memory", "drain-exactly-once", "latency-exactly-once"];

/// Writes what there are runs for, and prints the bars.
pub fn run(arguments: &Arguments) {
    let blocks = blocks(&arguments.results);
    for document in &arguments.document {
        let before =
            fs::read_to_string(document).unwrap_or_else(|e| panic!("{}: {e}", document.display()));
        let after = blocks.iter().fold(before, |text, (name, block)| replaced(&text, name, block));
        fs::write(document, after).unwrap_or_else(|e| panic!("{}: {e}", document.display()));
    }
    println!("{}", blocks.last().map_or("", |(_, bars)| bars));
}

/// Writes all tables and plots of a folder's runs beside them.
pub fn beside(folder: &Path) {
    let blocks = blocks(folder);
    let sections = blocks.iter().map(|(name, block)| format!("# {name}\n\n{block}\n"));
    // There the plots are in a folder beside the page; here they are where it is.
    let page = sections.collect::<Vec<_>>().join("\n").replace("](performance/", "](");
    let file = folder.join("tables.md");
    fs::write(&file, page).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    println!("tables and plots of all runs there: {}", file.display());
}

/// A name and a text each, the bars last; and the plots.
fn blocks(results: &Path) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut all = Vec::new();
    for name in BENCHMARKS {
        let runs = run::load(results, name);
        if let Some((run, peers)) = runs.iter().rev().find_map(peers) {
            blocks.push(("peers".to_owned(), format!("{}\n\n{peers}", intro(run, 1))));
        }
        // Runs of different hours are not put together: tables are of one, the last that has most of what there is.
        let most = |run: &&Run| (run.measured.parts(), run.measured.rounds());
        if let Some(run) = runs.iter().max_by_key(most) {
            let intro = intro(run, runs.len());
            let tables = match &run.measured {
                Measured::Drain(cases) => {
                    if !run.measured.is_once() {
                        blocks.push(("drain in short".to_owned(), drain::in_short(run, cases)));
                    }
                    drain::plots(cases, name, results);
                    drain::tables(cases, name)
                }
                Measured::Latency(latency) => {
                    if !run.measured.is_once() {
                        let short = latency::in_short(run, latency);
                        blocks.push(("latency in short".to_owned(), short));
                    }
                    latency::plot(latency, name, results);
                    latency::tables(latency, name)
                }
                Measured::Growth(growth) => {
                    growth::plots(growth, results);
                    growth::tables(growth)
                }
                Measured::Memory(memory) => {
                    memory::plot(memory, results);
                    memory::table(memory)
                }
            };
            blocks.push((name.to_owned(), format!("{intro}\n\n{tables}")));
        }
        all.extend(runs);
    }
    blocks.push(("bars".to_owned(), bars::table(&bars::of(&all))));
    blocks
}

/// The run with other relays in it, and its tables.
fn peers(run: &Run) -> Option<(&Run, String)> {
    let Measured::Drain(cases) = &run.measured else { return None };
    Some((run, drain::peers(cases))).filter(|(_, tables)| !tables.is_empty())
}

fn intro(run: &Run, runs: usize) -> String {
    let Run { date, cores, processor, kernel, postgres, kafka, load_before, load_after, .. } = run;
    let which = match runs {
        1 => "The only run".to_owned(),
        runs => format!("The most complete one of {runs} runs"),
    };
    format!(
        "{which}: {date}, {cores} cores ({processor}, Linux {kernel}) shared by everything; PostgreSQL {postgres}, \
         Apache Kafka {kafka}; load average {load_before:.1} before, {load_after:.1} after."
    )
}

/// The text with the block made anew, if it has one of that name.
fn replaced(text: &str, name: &str, block: &str) -> String {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let Some((before, rest)) = text.split_once(&begin) else { return text.to_owned() };
    let Some((_, after)) = rest.split_once(&end) else { return text.to_owned() };
    format!("{before}{begin}\n{}\n\n{end}{after}", block.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_made_anew_and_nothing_else() {
        let text = "a\n<!-- drain -->\nold\n<!-- /drain -->\nb\n<!-- bars -->\nx\n<!-- /bars -->\n";
        let after = replaced(text, "drain", "| new |\n");
        assert_eq!(
            after,
            "a\n<!-- drain -->\n\n| new |\n\n<!-- /drain -->\nb\n<!-- bars -->\nx\n<!-- /bars -->\n"
        );
        assert_eq!(replaced(&after, "drain", "| new |"), after);
        assert_eq!(replaced(text, "latency", "x"), text);
    }
}
