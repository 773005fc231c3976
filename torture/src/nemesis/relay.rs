//! What is done to the relay's process.

use super::{Scale, length, server};
use crate::fleet::{self, wait_slot_free, wait_streaming};
use crate::invariant::Invariant;
use crate::judge::wait_for;
use crate::scenes::{self, RIVALS};
use crate::stage::Stage;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
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
    Rivals,
    Abandoned,
    Expired,
}

pub(super) const ALL: &[Fault] = &[
    Fault::Kill,
    Fault::KillAgain,
    Fault::Freeze,
    Fault::Restart,
    Fault::Beside,
    Fault::Overtaken,
];

/// What has a meaning with Kafka transactions only.
pub(super) const OF_TRANSACTIONS: &[Fault] = &[Fault::Rivals, Fault::Abandoned, Fault::Expired];

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
        Fault::Rivals => rivals(stage, rng),
        Fault::Abandoned => abandoned(stage),
        Fault::Expired => expired(stage),
    }
}

/// SIGKILL; before the next one starts, everything that is confirmed must be in Kafka.
fn kill(stage: &Stage<'_>, relay: &Arc<Owlpost>, rng: &mut Rng) {
    let _fault = stage.board.fault("relay SIGKILL", "");
    stage.board.allow_repeats();
    stage.fleet.kill(relay, &stage.board);
    {
        let _server = stage.keep_server();
        let freed = wait_slot_free(stage.postgres);
        stage.board.check(Invariant::Citizen, freed.is_some(), || {
            "the slot of a killed relay stays taken".to_owned()
        });
        let confirmed = stage.slot().map(|slot| slot.confirmed);
        if let Some(confirmed) = confirmed {
            let (promised, missing) = stage.acknowledged(confirmed);
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
        _ => stage.fleet.kill(relay, &stage.board),
    }
}

/// Two relays for the same slot are started, killed, frozen, woken up and robbed of it as it comes.
fn rivals(stage: &Stage<'_>, rng: &mut Rng) {
    let end = Instant::now() + Duration::from_millis(rng.between(8000..=14_000) as u64);
    let _fault = stage.board.fault(RIVALS, "");
    stage.board.allow_repeats();
    while Instant::now() < end && !stage.board.has_failed() {
        let members = stage.fleet.members();
        let Some(one) = members.get(rng.below(2)) else {
            stage.fleet.start();
            continue;
        };
        match rng.below(10) {
            // For long enough now and then for the server to give the slot to the other.
            0..6 => stage.fleet.freeze(&one.relay, !one.frozen),
            6..8 => stage.fleet.kill(&one.relay, &stage.board),
            8 => {
                let _server = stage.keep_server();
                server::end_session(stage);
            }
            _ => {}
        }
        thread::sleep(Duration::from_millis(rng.between(100..=2500) as u64));
    }
    for member in stage.fleet.members().iter().filter(|member| member.frozen) {
        stage.fleet.freeze(&member.relay, false);
    }
    // Who was asleep wakes up beside the other.
    thread::sleep(Duration::from_secs(1));
    alone(stage);
}

/// Of several relays one is left.
fn alone(stage: &Stage<'_>) -> Arc<Owlpost> {
    let mut members = stage.fleet.members();
    let left = members.pop().map_or_else(|| stage.fleet.start(), |member| member.relay);
    for member in members {
        stage.fleet.stop(&member.relay, &stage.board);
    }
    left
}

/// SIGKILL, and nobody comes before the time of what was open is over.
fn abandoned(stage: &Stage<'_>) {
    let relay = alone(stage);
    let _fault = stage.board.fault("relay SIGKILL, nobody comes", "");
    stage.fleet.kill(&relay, &stage.board);
    stage.look_whole();
    stage.fleet.start();
}

/// SIGSTOP in the middle of a Kafka transaction, until its time is over.
fn expired(stage: &Stage<'_>) {
    let relay = alone(stage);
    let _fault = stage.board.fault("relay SIGSTOP until its transaction is over", "");
    scenes::expire(stage, &relay);
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
