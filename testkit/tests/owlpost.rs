//! The wrapper around the relay, with a shell in the relay's place.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;
use testkit::Owlpost;
use testkit::process::Signal;

const LIMIT: Duration = Duration::from_secs(20);

fn shell(script: &str) -> testkit::owlpost::Command {
    Owlpost::command("/bin/sh").arg("-c").arg(script)
}

#[test]
fn the_environment_is_what_was_set_and_no_more() {
    let relay = shell("env; echo done").env("WAL_PREFIX", "a").env("WAL_PREFIX", "b").spawn();
    relay.wait_for_log("done", LIMIT);
    let said = relay.stdout();
    assert!(said.contains("WAL_PREFIX=b\n") && !said.contains("WAL_PREFIX=a"), "{said}");
    assert!(said.contains(&format!("WAL_HEALTH_PORT={}\n", relay.health_port())), "{said}");
    assert!(!said.contains("CARGO") && !said.contains("HOME="), "{said}");
}

#[test]
fn signals_ends_and_usage_are_seen() {
    let script = "trap 'echo asked >&2; exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let relay = shell(script).spawn();
    relay.wait_for_log("up", LIMIT);
    assert!(!relay.is_ready());
    relay.signal(Signal::SIGSTOP);
    relay.signal(Signal::SIGCONT);
    let usage = relay.usage().unwrap();
    assert!(usage.rss > 100_000 && usage.peak_rss >= usage.rss, "{usage:?}");
    assert_eq!(relay.stop(LIMIT).code(), Some(7));
    assert_eq!(relay.stderr(), "asked\n");
    assert_eq!(relay.usage(), None);
}

#[test]
#[should_panic(expected = "the relay ended with exit code 3\nsorry")]
fn waiting_for_one_that_ended_quotes_what_it_said() {
    shell("echo sorry; exit 3").spawn().wait_ready();
}
