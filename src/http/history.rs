//! The last minutes, in rings of fixed size.

use crate::metrics::View;
use serde::Serialize;
use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};
use tracing::Level;

/// How far apart samples are.
pub(super) const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);

/// Ten minutes of them.
pub(super) const SAMPLES_MAX: usize = 300;

/// So many events are kept.
const NEWS_MAX: usize = 50;

/// A longer sentence ends in an ellipsis: brokers and servers write their own.
const SENTENCE_CHARS_MAX: usize = 500;

/// What was measured at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    at: Instant,
    published: u64,
    lag_seconds: f64,
    lag_bytes: u64,
}

/// The last ten minutes.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
}

impl History {
    /// True if it is time for the next sample.
    pub(super) fn is_due(&self, at: Instant) -> bool {
        let last = self.samples.back().map(|sample| sample.at);
        last.is_none_or(|last| at >= last + SAMPLE_INTERVAL)
    }

    pub(super) fn add(&mut self, at: Instant, published: u64, view: &View) {
        if self.samples.len() > SAMPLES_MAX {
            self.samples.pop_front();
        }
        let (lag_seconds, lag_bytes) = (view.lag_seconds(), view.lag_bytes());
        self.samples.push_back(Sample { at, published, lag_seconds, lag_bytes });
    }

    /// Facts a second, oldest first.
    pub(super) fn throughput(&self) -> Vec<f64> {
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        pairs.map(|(before, after)| rate(before, after)).collect()
    }

    /// Facts a second over the last ten seconds or so.
    pub(super) fn rate(&self) -> f64 {
        let last = self.samples.len().saturating_sub(1);
        let first = last.saturating_sub(5);
        match (self.samples.get(first), self.samples.get(last)) {
            (Some(first), Some(last)) => rate(first, last),
            _ => 0.0,
        }
    }

    pub(super) fn lag_seconds(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.lag_seconds).collect()
    }

    pub(super) fn lag_bytes(&self) -> Vec<u64> {
        self.samples.iter().map(|sample| sample.lag_bytes).collect()
    }
}

fn rate(from: &Sample, to: &Sample) -> f64 {
    let elapsed = to.at.saturating_duration_since(from.at).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let facts = to.published.saturating_sub(from.published) as f64;
    if elapsed > 0.0 { facts / elapsed } else { 0.0 }
}

/// What happened last, newest first.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(super) struct News {
    events: VecDeque<Told>,
}

/// One thing that happened.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Told {
    #[serde(serialize_with = "super::health::rfc3339")]
    pub(super) at: SystemTime,
    /// info, warn or error.
    pub(super) level: &'static str,
    pub(super) sentence: String,
    /// How often it was said in a row.
    pub(super) times: u32,
}

impl News {
    pub(super) fn add(&mut self, at: SystemTime, level: Level, mut sentence: String) {
        if let Some((end, _)) = sentence.char_indices().nth(SENTENCE_CHARS_MAX) {
            sentence.truncate(end);
            sentence.push('…');
        }
        if let Some(last) = self.events.front_mut()
            && last.sentence == sentence
        {
            last.at = at;
            last.times = last.times.saturating_add(1);
            return;
        }
        let level = match level {
            Level::ERROR => "error",
            Level::WARN => "warn",
            _ => "info",
        };
        self.events.truncate(NEWS_MAX - 1);
        self.events.push_front(Told { at, level, sentence, times: 1 });
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Told> {
        self.events.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_and_memory_is_bounded() {
        let mut history = History::default();
        let health = super::super::Health::new("factlib_slot");
        #[expect(clippy::disallowed_methods, reason = "a test")]
        let start = Instant::now();
        assert_eq!((history.rate(), history.throughput().len()), (0.0, 0));
        for step in 0..2000_u32 {
            let at = start + SAMPLE_INTERVAL * step;
            assert!(history.is_due(at));
            history.add(at, u64::from(step) * 200, &health.view());
            assert!(!history.is_due(at + SAMPLE_INTERVAL / 2));
        }
        assert_eq!(history.throughput(), vec![100.0; SAMPLES_MAX]);
        assert_eq!(history.lag_seconds().len(), SAMPLES_MAX + 1);
        assert!((history.rate() - 100.0).abs() < 1e-9);
    }

    #[test]
    fn news_are_the_newest_and_a_repetition_takes_no_room() {
        let mut news = News::default();
        for number in 0..1000 {
            for _ in 0..2 {
                news.add(SystemTime::UNIX_EPOCH, Level::WARN, format!("event {number}"));
            }
        }
        assert_eq!(news.iter().count(), NEWS_MAX);
        let newest = news.iter().next().unwrap();
        assert_eq!((&*newest.sentence, newest.times, newest.level), ("event 999", 2, "warn"));
        news.add(SystemTime::UNIX_EPOCH, Level::INFO, "ü".repeat(10_000));
        assert_eq!(news.iter().next().unwrap().sentence.chars().count(), SENTENCE_CHARS_MAX + 1);
    }
}
