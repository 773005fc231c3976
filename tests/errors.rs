//! `docs/errors.md` says what there is: no code, state or cause more or less.

#![expect(clippy::expect_used, reason = "a test")]

use factlib::exit::ExitCode;
use factlib::http::State;
use factlib::relay::poison::Cause;

const PAGE: &str = include_str!("../docs/errors.md");

/// The first two columns of the table below this heading; each row must say what to do, too.
#[track_caller]
fn table(heading: &str) -> Vec<(String, String)> {
    let (_, section) = PAGE.split_once(&format!("\n## {heading}\n")).expect("a heading");
    let section = section.split("\n## ").next().expect("a section");
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let columns: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, happened, remedy] = columns.as_slice() else { panic!("{row}") };
        assert!(!remedy.is_empty(), "{row}");
        (name.trim_matches('`').to_owned(), (*happened).to_owned())
    })
    .collect()
}

fn names(heading: &str) -> Vec<String> {
    table(heading).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn every_exit_code_stands_there_with_its_meaning() {
    let codes = ExitCode::ALL.iter();
    let codes: Vec<_> =
        codes.map(|code| (code.number().to_string(), code.meaning().to_owned())).collect();
    assert_eq!(table("Exit codes"), codes);
}

#[test]
fn every_state_stands_there() {
    let states = [
        State::Starting,
        State::Connecting,
        State::WaitingForSlot,
        State::Streaming,
        State::Stalled,
        State::Halted,
        State::Stopping,
        State::Failed,
    ];
    for state in states {
        // Another one that is added must be added above, too.
        match state {
            State::Starting | State::Connecting | State::WaitingForSlot | State::Streaming => {}
            State::Stalled | State::Halted | State::Stopping | State::Failed => {}
        }
    }
    let word = |state: State| {
        serde_json::to_value(state).ok().and_then(|word| word.as_str().map(str::to_owned))
    };
    let words: Vec<_> = states.into_iter().filter_map(word).collect();
    assert_eq!(names("States of a relay that runs"), words);
}

#[test]
fn every_cause_stands_there() {
    let causes = [
        Cause::UnreadableEnvelope,
        Cause::InvalidTopic,
        Cause::TopicMissing,
        Cause::NotAuthorized,
        Cause::TooLarge,
        Cause::Rejected,
    ];
    for cause in causes {
        // Another one that is added must be added above, too.
        match cause {
            Cause::UnreadableEnvelope | Cause::InvalidTopic | Cause::TopicMissing => {}
            Cause::NotAuthorized | Cause::TooLarge | Cause::Rejected => {}
        }
    }
    assert_eq!(names("Facts that cannot be published"), causes.map(Cause::as_str));
}
