//! What was found, for people and for programs.

use crate::relay::gone::remedy;
use serde::Serialize;
use std::fmt::{self, Write as _};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The relay works with it, and somebody may be sorry one day.
    Warning,
    /// The relay does not start, or stops at the first fact.
    Failure,
}

impl Verdict {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }

    /// Green, yellow, red.
    const fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Warning => "\x1b[33m",
            Self::Failure => "\x1b[1;31m",
        }
    }
}

/// What was seen stands in a column, but for names that are longer than this: a topic's may have 249 characters, and
/// all the other lines would be as long.
const NAME_COLUMN_MAX: usize = 40;

const NO_COLOUR: &str = "\x1b[0m";

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, in a few words.
    pub name: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// What to do about it. None if nothing is to be done, or if `seen` says that, too.
    pub remedy: Option<String>,
}

impl Check {
    /// As it should be.
    pub fn ok(name: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Ok, seen: seen.into(), remedy: None }
    }

    /// Worth a look. The sentence has the remedy behind its last semicolon.
    pub fn warning(name: impl Into<String>, sentence: &str) -> Self {
        Self::with_remedy(name.into(), Verdict::Warning, sentence)
    }

    /// Not working. The sentence has the remedy behind its last semicolon.
    pub fn failure(name: impl Into<String>, sentence: &str) -> Self {
        Self::with_remedy(name.into(), Verdict::Failure, sentence)
    }

    /// A failure, if there is a sentence about it.
    pub fn unless(
        failure: Option<String>,
        name: &'static str,
        seen: impl FnOnce() -> String,
    ) -> Self {
        match failure {
            Some(sentence) => Self::failure(name, &sentence),
            None => Self::ok(name, seen()),
        }
    }

    fn with_remedy(name: String, verdict: Verdict, sentence: &str) -> Self {
        let (seen, remedy) = remedy(sentence);
        Self { name, verdict, seen: seen.to_owned(), remedy: remedy.map(str::to_owned) }
    }
}

impl fmt::Display for Check {
    /// What was seen and the remedy, in one line, whatever a server has written into it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_plain(f, &self.seen)?;
        if let Some(remedy) = &self.remedy {
            f.write_str("; ")?;
            write_plain(f, remedy)?;
        }
        Ok(())
    }
}

/// A server's text must not move the cursor or recolour the terminal.
fn write_plain(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| f.write_char(if c.is_control() { ' ' } else { c }))
}

/// All that was looked at, in the order in which it was.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report(pub Vec<Check>);

impl Report {
    /// How many ended so.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().filter(|check| check.verdict == verdict).count()
    }

    /// One line each, and one that sums up.
    pub fn human(&self, colour: bool) -> String {
        let lengths = self.0.iter().map(|check| check.name.chars().count());
        let width = lengths.filter(|length| *length <= NAME_COLUMN_MAX).max().unwrap_or(0);
        let paint = |verdict: Verdict, text: &str| match colour {
            true => format!("{}{text}{NO_COLOUR}", verdict.colour()),
            false => text.to_owned(),
        };
        let mut out = String::new();
        for check in &self.0 {
            let mark = paint(check.verdict, &format!("{:7}", check.verdict.word()));
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{mark}  {:width$}  {check}", check.name);
        }
        let counts: Vec<String> = [Verdict::Ok, Verdict::Warning, Verdict::Failure]
            .into_iter()
            .map(|verdict| {
                let (count, mut word) = (self.count(verdict), verdict.word().to_owned());
                if count != 1 && verdict != Verdict::Ok {
                    word.push('s');
                }
                let text = format!("{count} {word}");
                if count > 0 { paint(verdict, &text) } else { text }
            })
            .collect();
        let _ = writeln!(out, "{}", counts.join(", "));
        out
    }

    /// One JSON object a line.
    pub fn json(&self) -> String {
        let mut out = String::new();
        for check in &self.0 {
            let _ = writeln!(out, "{}", serde_json::to_string(check).unwrap_or_default());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report(vec![
            Check::ok("wal_level", "logical"),
            Check::warning("clock", "an hour ahead; set it"),
            Check::failure("slot factlib_slot", "lost: \x1b[2Jgone; drop it; run `owlpost init`"),
        ])
    }

    #[test]
    fn people_read_aligned_lines_and_a_summary_without_a_servers_control_characters() {
        let expected = "\
ok       wal_level          logical
warning  clock              an hour ahead; set it
failure  slot factlib_slot  lost:  [2Jgone; drop it; run `owlpost init`
1 ok, 1 warning, 1 failure
";
        assert_eq!(report().human(false), expected);
        let coloured = report().human(true);
        assert!(coloured.contains("\x1b[1;31mfailure\x1b[0m  slot factlib_slot"), "{coloured}");
        assert!(!coloured.contains("\x1b[2J"), "{coloured}");
        assert!(Report::default().human(true).ends_with("0 ok, 0 warnings, 0 failures\n"));
    }

    #[test]
    fn a_long_name_moves_no_other_line_to_the_right() {
        let long = "t".repeat(NAME_COLUMN_MAX + 1);
        let report = Report(vec![Check::ok("wal_level", "logical"), Check::ok(&long, "there")]);
        let expected = format!("ok       wal_level  logical\nok       {long}  there\n");
        assert!(report.human(false).starts_with(&expected), "{}", report.human(false));
    }

    #[test]
    fn programs_read_one_object_a_line_with_the_remedy_by_itself() {
        let json = report().json();
        let lines: Vec<serde_json::Value> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let expected = serde_json::json!([
            {"name": "wal_level", "verdict": "ok", "seen": "logical", "remedy": null},
            {"name": "clock", "verdict": "warning", "seen": "an hour ahead", "remedy": "set it"},
            {
                "name": "slot factlib_slot",
                "verdict": "failure",
                "seen": "lost: \u{1b}[2Jgone; drop it",
                "remedy": "run `owlpost init`"
            },
        ]);
        assert_eq!(serde_json::Value::from(lines), expected);
    }
}
