//! What only Kafka transactions can meet, done while nothing else is, so that each of it happens in every run.

use crate::fleet::{FENCED, FENCED_RELAYS, fenced, health, wait_streaming};
use crate::invariant::Invariant;
use crate::judge::wait_for;
use crate::nemesis::end_session;
use crate::stage::Stage;
use crate::transactions::{COORDINATED, GROUPS};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use testkit::process::Signal;
use testkit::proxy::Way;
use testkit::{Owlpost, Proxy};

/// How long a relay may take to stream when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// Of a relay that is to be overtaken: so that it does not let go by itself.
const LEASE: Duration = Duration::from_secs(40);

/// What a relay says whose transactional id is its own.
const HAS_ID: &str = "transactions are ours";

/// How often something is tried that a coincidence can prevent.
const ATTEMPTS: usize = 5;

/// The word for relays whose transaction was ended by time.
pub(crate) const EXPIRED: &str = "Kafka transactions expired";

/// Faults that each run has, beside what is seen to come of them.
const REQUIRED: [&str; 5] =
    [RIVALS, COORDINATOR_MOVED, GROUP_MOVED, COORDINATOR_KILLED, GROUP_STOPPED];
pub(crate) const RIVALS: &str = "rivals at random";
pub(crate) const COORDINATOR_MOVED: &str = "coordinator of transactions moved";
pub(crate) const GROUP_MOVED: &str = "coordinator of the position moved";
pub(crate) const COORDINATOR_KILLED: &str = "coordinator of transactions SIGKILL";
pub(crate) const GROUP_STOPPED: &str = "coordinator of the position stopped";

pub(crate) fn perform(stage: &Stage<'_>) {
    let until = |what: &str, scene: &dyn Fn() -> bool| {
        let done = (0..ATTEMPTS).any(|_| stage.board.has_failed() || scene());
        if !done {
            stage.board.fail(&format!("{what}: not once in {ATTEMPTS} attempts"));
        }
    };
    // While the next one is being let in, the one before may come in again: whatever it does then, nothing is seen twice.
    overtaken_behind_its_back(stage, Wakes::InTheMiddle);
    until("a relay that is fenced", &|| overtaken_behind_its_back(stage, Wakes::TooLate));
    until("a Kafka transaction that expires", &|| expired(stage));
}

/// When a relay wakes up whose slot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wakes {
    /// The next one streams, and its transactional id is not its own yet, most likely.
    InTheMiddle,
    /// It is.
    TooLate,
}

/// The server ends the session of a relay that hears nothing of it, and gives the slot to the next one. The first wakes up
/// in the middle of its transaction, sure of its lease. Whether it was fenced.
fn overtaken_behind_its_back(stage: &Stage<'_>, wakes: Wakes) -> bool {
    let _fault = stage.board.fault("slot taken behind a relay's back", "");
    let own = Proxy::to(&format!("127.0.0.1:{}", stage.postgres.port()));
    while let Some(relay) = stage.fleet.first() {
        stage.fleet.stop(&relay, &stage.board);
    }
    let doomed = stage.fleet.start_apart(&own, LEASE);
    let begun = wait_streaming(&doomed, PATIENCE);
    stage.board.check(Invariant::Progress, begun, || "a relay does not stream".to_owned());
    let next = stage.fleet.start();
    let waits = || health(&next).is_some_and(|health| health.state == "waiting_for_slot");
    wait_for("a relay that stands by", PATIENCE, waits);
    let is_open = freeze_in_transaction(stage, &doomed);
    own.set_both(Way { held: true, ..Way::default() });
    end_session(stage);
    let took = wait_streaming(&next, PATIENCE);
    stage.board.check(Invariant::Progress, took, || "the next relay does not stream".to_owned());
    let limit = match wakes {
        Wakes::InTheMiddle => Duration::from_secs(3),
        Wakes::TooLate => {
            let has_id = || next.log_text().contains(HAS_ID);
            wait_for("the next relay to have the transactional id", PATIENCE, has_id);
            LEASE
        }
    };
    doomed.signal(Signal::SIGCONT);
    let notices = wait_for("a relay to be fenced", limit, || fenced(&doomed) > 0);
    own.heal();
    if notices {
        shuns(stage, &doomed);
    }
    if doomed.is_running() {
        stage.fleet.stop(&doomed, &stage.board);
    } else {
        stage.fleet.bury(&doomed, "was fenced", &stage.board);
    }
    stage.board.say(&format!("  a transaction was open: {is_open}; the relay noticed: {notices}"));
    notices
}

/// A relay that was fenced ends with its exit code, or stands by.
fn shuns(stage: &Stage<'_>, relay: &Owlpost) {
    let streams = || health(relay).is_some_and(|health| health.state == "streaming");
    match stage.fleet.wait_exit(relay, Duration::from_secs(3)) {
        Some(code) => stage.board.check(Invariant::Fenced, code == FENCED, || {
            format!("a relay that was fenced ended with {code}, not with {FENCED}")
        }),
        None => stage.board.check(Invariant::Fenced, !streams(), || {
            "a relay that was fenced says that it streams".to_owned()
        }),
    }
}

/// The only relay sleeps for longer than its Kafka transaction may be open. Whether that was what ended it.
fn expired(stage: &Stage<'_>) -> bool {
    let Some(relay) = stage.fleet.first() else { return false };
    wait_streaming(&relay, PATIENCE);
    let _fault = stage.board.fault("transaction expired in SIGSTOP", "");
    let done = expire(stage, &relay);
    let streams = wait_streaming(&relay, PATIENCE);
    stage.board.check(Invariant::Progress, streams, || "a relay does not wake up".to_owned());
    done
}

/// The same, while other things are done. The relay is alone.
pub(crate) fn expire(stage: &Stage<'_>, relay: &Arc<Owlpost>) -> bool {
    let is_open = freeze_in_transaction(stage, relay);
    let before = stage.tally().aborted;
    stage.look_whole();
    let done = is_open && stage.tally().aborted > before;
    stage.board.seen(EXPIRED, usize::from(done));
    stage.fleet.freeze(relay, false);
    done
}

/// Stops the relay's process in the middle of a Kafka transaction, or at last anywhere. Whether one is open.
fn freeze_in_transaction(stage: &Stage<'_>, relay: &Arc<Owlpost>) -> bool {
    let open = wait_for("a Kafka transaction to be open", Duration::from_secs(10), || {
        stage.fleet.freeze(relay, true);
        // What was on its way is there by then.
        thread::sleep(Duration::from_millis(50));
        let open = stage.is_open() == Some(true);
        if !open {
            stage.fleet.freeze(relay, false);
        }
        open
    });
    stage.fleet.freeze(relay, true);
    open
}

/// A run in which something was never done proves nothing about it.
pub(crate) fn look_for_what_was_never_done(stage: &Stage<'_>) {
    if !stage.delivery.is_exactly_once() {
        return;
    }
    let tally = stage.tally();
    let (faults, seen) = (stage.board.counts(), stage.board.sightings());
    let mut counts = vec![
        ("Kafka transactions committed", tally.committed),
        ("Kafka transactions aborted", tally.aborted),
    ];
    counts.extend([FENCED_RELAYS, EXPIRED].map(|it| (it, seen.get(it).copied().unwrap_or(0))));
    counts.extend(REQUIRED.map(|it| (it, faults.get(it).copied().unwrap_or(0))));
    for (what, _) in counts.into_iter().filter(|(_, times)| *times == 0) {
        stage.board.fail(&format!("{what}: none in the whole run"));
    }
}

/// What the coordinators keep, and the relay's position.
pub(crate) fn inner_topics() -> [&'static str; 3] {
    [COORDINATED, GROUPS, "owlpost.position"]
}
