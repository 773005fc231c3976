//! What is done to the relay's process.

use super::{Scale, length};
use crate::fleet::{self, wait_slot_free, wait_streaming};
use crate::invariant::Invariant;
use crate::judge::wait_for;
use crate::stage::Stage;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use testkit::rng::Rng;
use testkit::{Lsn, Owlpost};

/// How long a relay may take to stream, when other things are wrong, too.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Kill,
    KillAgain,
    Freeze,
    Restart,
    Beside,
    Overtaken,
}

pub(super) const ALL: &[Fault] = &[
    Fault::Kill,
    Fault::KillAgain,
    Fault::Freeze,
    Fault::Restart,
    Fault::Beside,
    Fault::Overtaken,
];

pub(super) fn act(stage: &Stage<'_>, fault: Fault, rng: &mut Rng, scale: Scale, spared: bool) {
    let Some(relay) = stage.fleet.first() else { return };
    match fault {
        _ if spared => match rng.percent(60) {
            true => freeze(stage, &relay, length(rng, scale.frozen)),
            false => restart(stage, &relay, true),
        },
        Fault::Kill | Fault::KillAgain => kill(stage, &relay, rng),
        Fault::Freeze => freeze(stage, &relay, length(rng, scale.frozen)),
        Fault::Restart => restart(stage, &relay, false),
        Fault::Beside => beside(stage, &relay, rng),
        Fault::Overtaken => overtaken(stage, &relay),
    }
}

/// SIGKILL; before the next one starts, everything that is confirmed must be in Kafka.
fn kill(stage: &Stage<'_>, relay: &Arc<Owlpost>, rng: &mut Rng) {
    let _fault = stage.board.fault("relay SIGKILL", "");
    stage.board.allow_repeats();
    stage.fleet.kill(relay);
    {
        let _server = stage.keep_server();
        let freed = wait_slot_free(stage.postgres);
        stage.board.check(Invariant::Citizen, freed.is_some(), || {
            "the slot of a killed relay stays taken".to_owned()
        });
        let confirmed = stage.slot().map(|slot| slot.confirmed);
        let mut judge = stage.judge();
        judge.read_truth(stage.postgres, &crate::stage::lock(&stage.traffic), &stage.board);
        if let Some(confirmed) = confirmed {
            let promised = judge.acknowledged(confirmed, &stage.board);
            let missing = judge.backlog();
            stage.board.say(&format!(
                "  killed with {confirmed} confirmed: {promised} facts are promised, {missing} to come"
            ));
        }
    }
    thread::sleep(Duration::from_millis(rng.between(0..=1500) as u64));
    stage.fleet.start();
}

/// SIGSTOP and, after a while, SIGCONT.
fn freeze(stage: &Stage<'_>, relay: &Arc<Owlpost>, length: Duration) {
    let _fault = stage.board.fault("relay SIGSTOP", &format!("{:.1} s", length.as_secs_f64()));
    stage.fleet.freeze(relay, true);
    thread::sleep(length);
    stage.fleet.freeze(relay, false);
}

/// SIGTERM, and another one in its place. Nothing is repeated if it could finish, unless the server has
/// forgotten in a crash what it was told, and there was no time to tell it again: `patiently` there is.
fn restart(stage: &Stage<'_>, relay: &Arc<Owlpost>, patiently: bool) {
    let _server = stage.keep_server();
    if patiently && !wait_for("the server to be told", PATIENCE / 2, || stage.remembers()) {
        return;
    }
    let _fault = stage.board.fault("relay SIGTERM", "");
    let code = stage.fleet.stop(relay, &stage.board);
    let log = relay.log_text();
    let confirmed = code.filter(|code| *code == 0).and_then(|_| said_to_be_confirmed(&log));
    let known = stage.slot().map(|slot| slot.confirmed);
    let knows = confirmed.is_some() && known >= confirmed;
    let forgot = if knows { "" } else { ", and the server does not know what it was told" };
    stage.board.say(&format!("  it ended with exit code {code:?}{forgot}"));
    if log.contains(CONFIRMED) {
        stage.board.check(Invariant::Repeats, knows, || {
            format!("{confirmed:?} was called confirmed, and the slot stands at {known:?}")
        });
    }
    if !knows {
        stage.board.allow_repeats();
    }
    let next = stage.fleet.start();
    // A relay that first sees the slot behind a crash of the server cannot know how far it had been.
    if !wait_streaming(&next, PATIENCE) {
        stage.board.allow_repeats();
    }
}

/// What a relay says at a stop when the server knows all that is confirmed.
const CONFIRMED: &str = "is in Kafka and confirmed (";

/// The position that a relay had confirmed, by its last words.
fn said_to_be_confirmed(log: &str) -> Option<Lsn> {
    let (_, rest) = log.rsplit_once("confirmed (")?;
    rest.split_once(')')?.0.parse().ok()
}

/// A second relay, and after a while one of the two stops in one way or the other.
fn beside(stage: &Stage<'_>, relay: &Arc<Owlpost>, rng: &mut Rng) {
    let _fault = stage.board.fault("second relay beside", "");
    stage.board.allow_repeats();
    let second = stage.fleet.start();
    thread::sleep(Duration::from_millis(rng.between(1000..=11_000) as u64));
    match rng.below(3) {
        0 => {
            stage.fleet.stop(&second, &stage.board);
        }
        1 => {
            stage.fleet.stop(relay, &stage.board);
        }
        _ => stage.fleet.kill(relay),
    }
}

/// A relay is frozen until the one beside it streams, and wakes up.
fn overtaken(stage: &Stage<'_>, relay: &Arc<Owlpost>) {
    let _fault = stage.board.fault("relay overtaken in SIGSTOP", "");
    stage.board.allow_repeats();
    let second = stage.fleet.start();
    stage.fleet.freeze(relay, true);
    let took = wait_streaming(&second, fleet::WAL_SENDER_TIMEOUT + PATIENCE);
    stage.fleet.freeze(relay, false);
    thread::sleep(Duration::from_secs(2));
    stage.board.say(if took {
        "  the second one streams"
    } else {
        "  the second one does not stream"
    });
    stage.fleet.stop(relay, &stage.board);
}
