//! Criterion's estimates as one Markdown table: what `make bench` ends with.

use std::{error::Error, fs, path::Path, process::ExitCode};

use factlib_protocol_bench::{MEMCPY, NOTES, OURS, PGWIRE, POSTGRES, RESULTS, SHAPES, WALSTREAM};
use serde_json::Value;

/// One measurement: the median of an iteration, and what an iteration handles.
struct Estimate {
    shape: String,
    who: String,
    ns_per_item: f64,
    /// `None` where bytes are not what counts.
    gib_per_second: Option<f64>,
}

fn main() -> ExitCode {
    match estimates() {
        Ok(estimates) if !estimates.is_empty() => {
            println!("{}\n\n{NOTES}", table(&estimates));
            ExitCode::SUCCESS
        }
        Ok(_) => {
            eprintln!("no estimates in {RESULTS}: run `make bench` first");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("cannot read the estimates in {RESULTS}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn table(estimates: &[Estimate]) -> String {
    let mut text = format!(
        "| | {OURS} | {PGWIRE} | {WALSTREAM} | {POSTGRES} | {MEMCPY} | beside the fastest rival |\n|---|---|---|---|---|---|---|"
    );
    for shape in SHAPES {
        let of = |who| estimates.iter().find(|e| e.shape == shape && e.who == who);
        // Left out by a filter on the command line.
        let Some(ours) = of(OURS) else { continue };
        let rivals = [PGWIRE, WALSTREAM, POSTGRES].map(of);
        let fastest = rivals.iter().flatten().map(|e| e.ns_per_item).reduce(f64::min);
        let ahead = fastest.map_or_else(
            || "-".to_owned(),
            |ns| format!("{:.2} times as fast", ns / ours.ns_per_item),
        );
        text += &format!("\n| {shape} | **{}** |", cell(Some(ours)));
        for rival in rivals.into_iter().chain([of(MEMCPY)]) {
            text += &format!(" {} |", cell(rival));
        }
        text += &format!(" {ahead} |");
    }
    text
}

fn cell(estimate: Option<&Estimate>) -> String {
    let Some(Estimate { ns_per_item: ns, gib_per_second, .. }) = estimate else {
        return "-".to_owned();
    };
    let digits = if *ns < 100.0 { 1 } else { 0 };
    match gib_per_second {
        Some(gib) => format!("{ns:.digits$} ({gib:.1})"),
        None => format!("{ns:.digits$}"),
    }
}

fn estimates() -> Result<Vec<Estimate>, Box<dyn Error>> {
    let mut estimates = Vec::new();
    for shape in fs::read_dir(RESULTS)? {
        // Beside a folder for each shape lies one of criterion's own reports.
        for who in fs::read_dir(shape?.path())? {
            let run = who?.path().join("new");
            if run.join("benchmark.json").exists() {
                estimates.push(estimate(&run)?);
            }
        }
    }
    Ok(estimates)
}

fn estimate(run: &Path) -> Result<Estimate, Box<dyn Error>> {
    let read = |file| -> Result<Value, Box<dyn Error>> {
        Ok(serde_json::from_slice(&fs::read(run.join(file))?)?)
    };
    let (what, time) = (read("benchmark.json")?, read("estimates.json")?);
    let text = |name: &str| what[name].as_str().map(str::to_owned).ok_or("a name is missing");
    let number = |value: &Value| value.as_f64().ok_or("a number is missing");
    let ns = number(&time["median"]["point_estimate"])?;
    let throughput = &what["throughput"]["ElementsAndBytes"];
    let (items, bytes) = (number(&throughput["elements"])?, number(&throughput["bytes"])?);
    Ok(Estimate {
        shape: text("group_id")?,
        who: text("function_id")?,
        ns_per_item: ns / items,
        gib_per_second: (bytes > 0.0).then(|| bytes / ns * 1e9 / f64::from(1 << 30)),
    })
}
