//! `hot-path count PART`: one run of a part, for callgrind. `hot-path table`: all parts, with allocations.

use hot_path::parts::{PARTS, part};
use std::process::ExitCode;
use std::time::Instant;

/// Runs of a part in the table; the fastest counts.
const RUNS: usize = 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["list"] => PARTS.iter().for_each(|(name, _)| println!("{name}")),
        ["count", name] => {
            let Some(mut part) = part(name) else {
                eprintln!("no part is called {name}");
                return ExitCode::FAILURE;
            };
            let input = part.input();
            part.measured(&input);
        }
        ["table"] => table(),
        _ => {
            eprintln!("hot-path list | count PART | table");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn table() {
    println!("| part | ns a fact | MB/s | allocations a fact | bytes allocated a fact |");
    println!("|---|---|---|---|---|");
    for (name, make) in PARTS {
        let mut part = make(name);
        let mut fastest = f64::INFINITY;
        for _ in 0..RUNS {
            let input = part.input();
            let begun = Instant::now();
            part.measured(&input);
            fastest = fastest.min(begun.elapsed().as_secs_f64());
        }
        let input = part.input();
        let allocated = allocation_counter::measure(|| part.measured(&input));
        let facts = part.facts as f64;
        println!(
            "| {} | {:.1} | {} | {:.4} | {:.0} |",
            part.name,
            fastest * 1e9 / facts,
            match part.bytes {
                0 => "-".to_owned(),
                bytes => format!("{:.0}", bytes as f64 / fastest / 1e6),
            },
            allocated.count_total as f64 / facts,
            allocated.bytes_total as f64 / facts,
        );
    }
}
