//! What `/metrics` answers, read by the rules: OpenMetrics 1.0, or Prometheus' text format 0.0.4.
//!
//! Stricter than scrapers are: what a rule says "must" or "should" to is an error here.

use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A scrape that keeps the rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Scrape {
    families: BTreeMap<String, Family>,
}

/// The samples of one name.
#[derive(Debug, Clone, PartialEq)]
struct Family {
    kind: String,
    help: Option<String>,
    samples: Vec<Sample>,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Which rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    OpenMetrics,
    Prometheus,
}

impl Scrape {
    /// Reads OpenMetrics text.
    ///
    /// # Errors
    ///
    /// The line and the rule that it breaks.
    pub fn openmetrics(text: &str) -> Result<Self, String> {
        let body =
            text.strip_suffix("# EOF\n").ok_or("it does not end with # EOF and a newline")?;
        if body.contains("# EOF") {
            return Err("something comes behind # EOF".to_owned());
        }
        Self::read(body, Rules::OpenMetrics)
    }

    /// Reads Prometheus' text format.
    ///
    /// # Errors
    ///
    /// The line and the rule that it breaks.
    pub fn prometheus(text: &str) -> Result<Self, String> {
        if !text.ends_with('\n') {
            return Err("it does not end with a newline".to_owned());
        }
        Self::read(text, Rules::Prometheus)
    }

    /// The value of one series; none if it is not there.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: BTreeMap<String, String> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let samples = self.families.values().flat_map(|family| &family.samples);
        samples.filter(|s| s.name == name && s.labels == wanted).map(|s| s.value).next()
    }

    /// The sum of all series of a name.
    #[must_use]
    pub fn sum(&self, name: &str) -> f64 {
        let samples = self.families.values().flat_map(|family| &family.samples);
        samples.filter(|sample| sample.name == name).map(|sample| sample.value).sum()
    }

    /// The different values that a label has in any series.
    #[must_use]
    pub fn label_values(&self, label: &str) -> BTreeSet<&str> {
        let samples = self.families.values().flat_map(|family| &family.samples);
        samples.filter_map(|sample| sample.labels.get(label).map(String::as_str)).collect()
    }

    /// How many series there are.
    #[must_use]
    pub fn series(&self) -> usize {
        self.families.values().map(|family| family.samples.len()).sum()
    }

    /// The names of all metrics, as their TYPE lines have them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.families.keys().map(String::as_str)
    }

    fn read(text: &str, rules: Rules) -> Result<Self, String> {
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut open: Option<String> = None;
        let mut seen = HashSet::new();
        for line in text.lines() {
            let broken = |rule: &str| format!("{rule}: {line}");
            if let Some(meta) = line.strip_prefix("# ") {
                let (word, rest) = meta.split_once(' ').ok_or_else(|| broken("no word"))?;
                let (name, rest) = rest.split_once(' ').ok_or_else(|| broken("no name"))?;
                if !is_name(name, true) {
                    return Err(broken("no name for a metric"));
                }
                let known = open.as_deref() == Some(name);
                if !known && families.contains_key(name) {
                    return Err(broken("a metric comes in two places"));
                }
                let family = families.entry(name.to_owned()).or_insert_with(|| Family {
                    kind: String::new(),
                    help: None,
                    samples: Vec::new(),
                });
                if !family.samples.is_empty() {
                    return Err(broken("it comes behind its samples"));
                }
                match word {
                    "TYPE" if family.kind.is_empty() => {
                        let kinds: &[&str] = match rules {
                            Rules::OpenMetrics => &["counter", "gauge", "histogram", "info"],
                            Rules::Prometheus => &["counter", "gauge", "histogram"],
                        };
                        if !kinds.contains(&rest) {
                            return Err(broken("no type that we have"));
                        }
                        rest.clone_into(&mut family.kind);
                    }
                    "HELP" if family.help.is_none() => {
                        unescape(rest, rules == Rules::OpenMetrics).map_err(|e| broken(&e))?;
                        family.help = Some(rest.to_owned());
                    }
                    "UNIT" if rules == Rules::OpenMetrics => {
                        if !name.ends_with(&format!("_{rest}")) {
                            return Err(broken("the name does not end with the unit"));
                        }
                    }
                    _ => return Err(broken("twice, or no word that has a meaning")),
                }
                open = Some(name.to_owned());
                continue;
            }
            let sample = sample(line).map_err(|rule| broken(&rule))?;
            let family = open.as_ref().and_then(|name| Some((name, families.get_mut(name)?)));
            let Some((name, family)) = family else {
                return Err(broken("a sample without a TYPE"));
            };
            let suffixes: &[&str] = match (&*family.kind, rules) {
                ("", _) => return Err(broken("a sample without a TYPE")),
                ("counter", Rules::OpenMetrics) => &["_total"],
                ("info", _) => &["_info"],
                ("histogram", _) => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            let suffix = sample.name.strip_prefix(name.as_str());
            if !suffix.is_some_and(|suffix| suffixes.contains(&suffix)) {
                return Err(broken("a sample of another metric, or with another suffix"));
            }
            if family.kind == "counter" && (rules == Rules::Prometheus && !name.ends_with("_total"))
            {
                return Err(broken("a counter that is not called _total"));
            }
            let counts = matches!(&*family.kind, "counter" | "histogram");
            if counts && (sample.value.is_nan() || sample.value < 0.0) {
                return Err(broken("a counter below 0"));
            }
            if !seen.insert((sample.name.clone(), sample.labels.clone())) {
                return Err(broken("a series twice"));
            }
            family.samples.push(sample);
        }
        for (name, family) in &families {
            if family.help.is_none() || family.kind.is_empty() {
                return Err(format!("{name} has no HELP or no TYPE"));
            }
            if family.kind == "histogram" {
                histogram(family).map_err(|rule| format!("{name}: {rule}"))?;
            }
        }
        Ok(Self { families })
    }
}

fn is_name(name: &str, colons: bool) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_' || (colons && c == ':');
    name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit())
}

/// What stands between quotes, or in a HELP line where quotes need no escape.
fn unescape(text: &str, quotes: bool) -> Result<String, String> {
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => plain.push('\n'),
                Some('\\') => plain.push('\\'),
                Some('"') if quotes => plain.push('"'),
                other => return Err(format!("an escape that is none: {other:?}")),
            },
            c => plain.push(c),
        }
    }
    Ok(plain)
}

fn sample(line: &str) -> Result<Sample, String> {
    let at = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(at);
    if !is_name(name, true) {
        return Err("no name for a metric".to_owned());
    }
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (key, value) = rest.split_once("=\"").ok_or("a label without a value")?;
            if !is_name(key, false) || key.starts_with("__") {
                return Err(format!("no name for a label: {key}"));
            }
            let mut escaped = false;
            let end = value.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            let (value, after) = value.split_at(end.ok_or("a quote without another")?);
            if labels.insert(key.to_owned(), unescape(value, true)?).is_some() {
                return Err(format!("the label {key} twice"));
            }
            rest = after.strip_prefix('"').unwrap_or_default();
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            rest = rest.strip_prefix(',').ok_or("labels without a comma between them")?;
        }
    }
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    if value.contains(' ') {
        return Err("more than a value".to_owned());
    }
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        value => value.parse().map_err(|_| format!("{value} is no number"))?,
    };
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// Buckets rise, the last is +Inf and has all, and each has its sum and its count.
fn histogram(family: &Family) -> Result<(), String> {
    #[derive(Default)]
    struct One {
        buckets: Vec<(f64, f64)>,
        sum: Option<f64>,
        count: Option<f64>,
    }
    let mut by_labels: BTreeMap<BTreeMap<String, String>, One> = BTreeMap::new();
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le");
        let one = by_labels.entry(labels).or_default();
        match bound {
            Some(bound) => {
                let bound = match &*bound {
                    "+Inf" => f64::INFINITY,
                    bound => bound.parse().map_err(|_| format!("le={bound:?}"))?,
                };
                one.buckets.push((bound, sample.value));
            }
            None if sample.name.ends_with("_sum") => one.sum = Some(sample.value),
            None => one.count = Some(sample.value),
        }
    }
    for (labels, one) in by_labels {
        let rises = one.buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1);
        let last = one.buckets.last().copied();
        let complete =
            last.is_some_and(|(bound, all)| bound.is_infinite() && Some(all) == one.count);
        if !rises || !complete || one.sum.is_none() {
            return Err(format!("{labels:?}: its buckets, its sum or its count are not right"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Scrape;

    const GOOD: &str = "# HELP a Some.\n# TYPE a counter\na_total{x=\"q\\\"\\\\\\n\"} 1\na_total{x=\"\"} 2\n\
                        # HELP b_seconds More.\n# TYPE b_seconds histogram\n# UNIT b_seconds seconds\n\
                        b_seconds_sum 3.5\nb_seconds_count 2\nb_seconds_bucket{le=\"1.0\"} 1\n\
                        b_seconds_bucket{le=\"+Inf\"} 2\n# EOF\n";

    #[test]
    fn what_keeps_the_rules_is_read() {
        let scrape = Scrape::openmetrics(GOOD).unwrap();
        assert_eq!(scrape.value("a_total", &[("x", "q\"\\\n")]), Some(1.0));
        assert_eq!(scrape.value("a_total", &[]), None);
        assert_eq!((scrape.sum("a_total"), scrape.series()), (3.0, 6));
        assert_eq!(scrape.value("b_seconds_bucket", &[("le", "+Inf")]), Some(2.0));
        let older = "# HELP a_total S\n# TYPE a_total counter\na_total 1\n";
        assert_eq!(Scrape::prometheus(older).unwrap().sum("a_total"), 1.0);
    }

    #[test]
    fn each_broken_rule_is_noticed() {
        for (good, bad) in [
            ("# EOF\n", ""),
            ("# EOF\n", "# EOF\n# EOF\n"),
            ("a_total{x=\"\"} 2", "a_total{x=\"q\\\"\\\\\\n\"} 2"),
            ("a_total{x=\"\"} 2", "a{x=\"\"} 2"),
            ("a_total{x=\"\"} 2", "c_total{x=\"\"} 2"),
            ("a_total{x=\"\"} 2", "a_total{x=\"\",x=\"\"} 2"),
            ("a_total{x=\"\"} 2", "a_total{x=\"\\q\"} 2"),
            ("a_total{x=\"\"} 2", "a_total{9=\"\"} 2"),
            ("a_total{x=\"\"} 2", "a_total{x=\"\"} two"),
            ("a_total{x=\"\"} 2", "a_total{x=\"\"} -2"),
            ("# TYPE a counter\n", ""),
            ("# HELP a Some.\n", ""),
            ("# TYPE a counter", "# TYPE a number"),
            ("# UNIT b_seconds seconds", "# UNIT b_seconds bytes"),
            ("b_seconds_count 2", "b_seconds_count 3"),
            ("b_seconds_sum 3.5\n", ""),
            ("{le=\"1.0\"} 1", "{le=\"1.0\"} 3"),
            ("b_seconds_bucket{le=\"+Inf\"} 2\n", ""),
            ("# EOF\n", "# HELP a Again.\n# EOF\n"),
        ] {
            assert!(GOOD.contains(good), "{good}");
            let text = GOOD.replacen(good, bad, 1);
            assert!(Scrape::openmetrics(&text).is_err(), "{bad} passed in {text}");
        }
    }
}
