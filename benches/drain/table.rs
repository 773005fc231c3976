//! Rounds into medians, spreads and ratios.

use std::fmt::Write as _;
use std::time::Duration;

/// What one reader did in one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    /// From the moment that the server gave it the slot to the end.
    pub(crate) streaming: Duration,
    /// From the start of the process to the end.
    pub(crate) whole: Duration,
    pub(crate) cpu: Duration,
    pub(crate) walsender: Duration,
    pub(crate) broker: Option<Duration>,
    pub(crate) peak_rss: u64,
}

/// All rounds of one reader.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) rounds: Vec<Outcome>,
}

/// The median, the smallest and the largest.
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        };
        Self { median, min: values[0], max: values[values.len() - 1] }
    }

    fn text(&self, digits: usize) -> String {
        let Self { median, min, max } = self;
        format!("{median:.digits$} ({min:.digits$}..{max:.digits$})")
    }
}

/// The rounds as a Markdown table. Ratios are those of one round, and then their median: whatever
/// else the machine does slows all readers of a round.
pub(crate) fn table(facts: usize, columns: &[Column]) -> String {
    let mut text = String::from(
        "| | 1000 facts/s, streaming | 1000 facts/s, whole process | CPU us/fact | walsender us/fact | broker us/fact | peak RSS MiB |",
    );
    let others = columns.get(..columns.len() - 1).unwrap_or_default();
    for other in others {
        let _ = write!(text, " / {} |", other.name);
    }
    let _ = write!(text, "\n|---|{}", "---|".repeat(6 + others.len()));
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let facts = facts as f64;
    let per_fact = |time: Duration| time.as_secs_f64() * 1e6 / facts;
    for column in columns {
        let spread = |of: &dyn Fn(&Outcome) -> f64| Spread::of(column.rounds.iter().map(of));
        let streaming = spread(&|o| facts / o.streaming.as_secs_f64() / 1e3).text(0);
        let whole = spread(&|o| facts / o.whole.as_secs_f64() / 1e3).text(0);
        let cpu = spread(&|o| per_fact(o.cpu)).text(2);
        let walsender = spread(&|o| per_fact(o.walsender)).text(2);
        let broker = match column.rounds.iter().all(|o| o.broker.is_some()) {
            true => spread(&|o| per_fact(o.broker.unwrap_or_default())).text(1),
            false => "-".to_owned(),
        };
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let rss = spread(&|o| o.peak_rss as f64 / 1024.0 / 1024.0).text(1);
        let name = column.name;
        let _ = write!(
            text,
            "\n| {name} | {streaming} | {whole} | {cpu} | {walsender} | {broker} | {rss} |"
        );
        for other in others {
            let rounds = column.rounds.iter().zip(&other.rounds);
            let ratios = rounds
                .map(|(own, other)| other.streaming.as_secs_f64() / own.streaming.as_secs_f64());
            let _ = write!(text, " {} |", Spread::of(ratios).text(2));
        }
    }
    text
}
