//! What factlib's relay in Go read from its environment and we do not, so that nobody who takes its deployment over
//! believes that it still does something.

use super::Problem;

/// Variables that mean nothing here, and what to use instead, behind the last semicolon.
const WITHOUT_MEANING: &[(&str, &str)] = &[
    (
        "DGN",
        "chose the format of factlib's log lines, and does nothing here; use LOG_FORMAT (human or json)",
    ),
    (
        "PGSSLPASSWORD",
        "is pgx's and none of libpq's, and does nothing here; take the pass phrase off the key",
    ),
    (
        "GOMEMLIMIT",
        "is for programs in Go, and does nothing here; use IN_FLIGHT_BYTES, which bounds memory",
    ),
    ("GOGC", "is for programs in Go, and does nothing here; remove it"),
    (
        "GOMAXPROCS",
        "is for programs in Go, and does nothing here; remove it: one thread does the work",
    ),
];

/// Levels above the highest of ours.
const LOG_LEVELS: [&str; 3] = ["dpanic", "panic", "fatal"];

/// The file that it read beside the environment.
pub const DOTENV: &str = ".env";

/// What is set without meaning anything.
pub(super) fn without_meaning(env: impl Fn(&str) -> Option<String>) -> Vec<Problem> {
    let is_set = |name: &str| env(name).is_some_and(|value| !value.trim().is_empty());
    let found = WITHOUT_MEANING.iter().filter(|(name, _)| is_set(name));
    found.map(|(setting, sentence)| Problem { setting, sentence: (*sentence).to_owned() }).collect()
}

/// True for a level that only its logger knew.
pub(super) fn is_log_level(level: &str) -> bool {
    LOG_LEVELS.iter().any(|known| level.eq_ignore_ascii_case(known))
}

/// What to say where there is a file [`DOTENV`] in the working directory.
pub fn dotenv() -> Problem {
    Problem {
        setting: DOTENV,
        sentence: "a file of that name is here, and is not read, although factlib's relay read it; set the variables \
                   (`set -a; . ./.env; set +a` in a shell, EnvironmentFile= in systemd, env_file: in a compose file)"
            .to_owned(),
    }
}
