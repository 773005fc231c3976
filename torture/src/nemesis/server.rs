//! What is done to PostgreSQL.

use crate::fleet::SLOT;
use crate::invariant::Invariant;
use crate::judge::wait_for;
use crate::stage::Stage;
use std::thread;
use std::time::{Duration, Instant};
use testkit::process::Signal;
use testkit::rng::Rng;
use testkit::{Mode, oracle};

/// How long a fast stop may take.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Bytes that may still have to be sent when a stop is timed: it waits until they are.
const BACKLOG_MAX: i64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Terminate,
    Fast,
    Immediate,
    Kill,
    Backend,
    Checkpoints,
}

pub(super) const ALL: &[Fault] = &[
    Fault::Terminate,
    Fault::Fast,
    Fault::Immediate,
    Fault::Kill,
    Fault::Backend,
    Fault::Checkpoints,
];

pub(super) fn act(stage: &Stage<'_>, fault: Fault, rng: &mut Rng) {
    let down = Duration::from_millis(rng.between(0..=2000) as u64);
    match fault {
        Fault::Terminate => terminate(stage, rng.between(1..=5)),
        Fault::Fast => fast(stage, down),
        Fault::Immediate => restart(stage, "PostgreSQL immediate stop", down, || {
            stage.postgres.stop(Mode::Immediate);
        }),
        Fault::Kill => restart(stage, "PostgreSQL SIGKILL", down, || stage.postgres.kill9()),
        Fault::Backend => backend(stage),
        Fault::Checkpoints => checkpoints(stage, rng.between(10..=40)),
    }
}

/// Ends the relay's session, some times in a row.
fn terminate(stage: &Stage<'_>, times: usize) {
    let _server = stage.keep_server();
    let _fault = stage.board.fault("walsender terminated", &format!("{times} times"));
    for _ in 0..times {
        end_session(stage);
        thread::sleep(Duration::from_millis(400));
    }
}

/// Ends the session that has the slot, so that another relay may take it. PostgreSQL must run and go on running.
pub(crate) fn end_session(stage: &Stage<'_>) {
    let mut client = stage.postgres.client();
    if let Some(pid) = oracle::slot(&mut client, SLOT).and_then(|slot| slot.active_pid) {
        let _ = client.execute("SELECT pg_terminate_backend($1)", &[&pid]);
    }
}

/// A fast stop, which is timed where nothing has to be sent before it.
fn fast(stage: &Stage<'_>, down: Duration) {
    let _server = stage.take_server();
    let _fault = stage.board.fault("PostgreSQL fast stop", "");
    let backlog = "SELECT coalesce(max(pg_current_wal_lsn() - sent_lsn), 0)::bigint::text
        FROM pg_stat_replication";
    let backlog: i64 = stage.postgres.ask(backlog).parse().expect("a number");
    let begun = Instant::now();
    stage.postgres.signal(Signal::SIGINT);
    let stopped =
        wait_for("a fast stop", Duration::from_secs(90), || stage.postgres.pid().is_none());
    let took = begun.elapsed();
    stage.board.say(&format!("  it took {:.1} s with {backlog} B to send", took.as_secs_f64()));
    if backlog <= BACKLOG_MAX {
        // The server waits for a relay that is frozen until its time is over, and each time anew.
        let frozen = stage.board.begun("relay SIGSTOP").filter(|frozen| *frozen > begun);
        let since = frozen.map_or(took, |frozen| took.saturating_sub(frozen - begun));
        stage.board.check(Invariant::Citizen, since <= STOP_MAX, || {
            format!("a fast stop took {took:?} with {backlog} B to send")
        });
    }
    if !stopped {
        stage.board.check(Invariant::Citizen, false, || "a fast stop does not end".to_owned());
        stage.postgres.stop(Mode::Immediate);
    }
    thread::sleep(down);
    stage.postgres.start_again();
    stage.revived();
}

fn restart(stage: &Stage<'_>, kind: &'static str, down: Duration, stop: impl FnOnce()) {
    let _server = stage.take_server();
    let _fault = stage.board.fault(kind, &format!("away for {:.1} s", down.as_secs_f64()));
    stop();
    thread::sleep(down);
    stage.postgres.start_again();
    stage.revived();
}

/// One backend is killed, which has the server end all and recover by itself.
fn backend(stage: &Stage<'_>) {
    let _server = stage.take_server();
    let _fault = stage.board.fault("PostgreSQL backend SIGKILL", "");
    let resets = || stage.postgres.log_text().matches("reinitializing").count();
    let before = resets();
    let mut client = stage.postgres.client();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).map_or(0, |row| row.get(0));
    testkit::process::kill_pid(pid.unsigned_abs());
    // It takes connections until it has noticed.
    wait_for("the server to end all", Duration::from_secs(60), || resets() > before);
    wait_for("PostgreSQL to recover", Duration::from_secs(60), || {
        stage.postgres.try_client().is_ok()
    });
    stage.revived();
}

/// One checkpoint after the other.
fn checkpoints(stage: &Stage<'_>, times: usize) {
    let _server = stage.keep_server();
    let _fault = stage.board.fault("CHECKPOINT storm", &format!("{times} of them"));
    for _ in 0..times {
        stage.checkpoint();
        thread::sleep(Duration::from_millis(50));
    }
}
