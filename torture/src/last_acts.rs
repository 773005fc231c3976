//! Faults that end a relay for good: each must do so with its exit code, soon, and nothing may be made
//! anew.

use crate::board::Board;
use crate::fleet::{SLOT, wait_streaming};
use crate::invariant::Invariant;
use crate::judge::wait_for;
use crate::stage::Stage;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use testkit::{Owlpost, Postgres, oracle};

/// How soon it must end.
const END_MAX: Duration = Duration::from_secs(10);

/// How long a relay may take to stream when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// Exit codes, see `owlpost --help`.
const SLOT_LOST: i32 = 4;
const OTHER_CLUSTER: i32 = 5;

pub(crate) fn perform(stage: &Stage<'_>) {
    if stage.board.has_failed() {
        return;
    }
    another_cluster(stage);
    log_limit(stage);
    slot_dropped(stage);
}

/// The address leads to another cluster.
fn another_cluster(stage: &Stage<'_>) {
    let Some(relay) = stage.fleet.first() else { return };
    let other = Postgres::builder().own_identifier().start();
    let _fault = stage.board.fault("another cluster at the address", "");
    let before = slots(stage.postgres);
    stage.fleet.release(&relay);
    stage.proxy.lead_to(&format!("127.0.0.1:{}", other.port()));
    stage.proxy.reset();
    ends(stage, &relay, OTHER_CLUSTER, "another cluster answers");
    let untouched = slots(&other).is_empty() && slots(stage.postgres) == before;
    stage.board.check(Invariant::Loud, untouched, || "slots were made or dropped".to_owned());
    stage.proxy.lead_to(&format!("127.0.0.1:{}", stage.postgres.port()));
    stage.board.allow_repeats();
    let next = stage.fleet.start();
    let streams = wait_streaming(&next, PATIENCE);
    stage.board.check(Invariant::Progress, streams, || "no relay streams afterwards".to_owned());
}

/// A frozen relay, and more log than the server keeps for it.
fn log_limit(stage: &Stage<'_>) {
    let Some(relay) = stage.fleet.first() else { return };
    let _fault = stage.board.fault("max_slot_wal_keep_size exceeded", "");
    let mut client = stage.postgres.client();
    for statement in ["ALTER SYSTEM SET max_slot_wal_keep_size = '32MB'", "SELECT pg_reload_conf()"]
    {
        client.batch_execute(statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
    }
    let before = slots(stage.postgres);
    stage.fleet.freeze(&relay, true);
    let lost = wait_for("the slot to be lost", Duration::from_secs(60), || {
        let much = "SELECT count(pg_logical_emit_message(false, 'elsewhere', repeat('w', 100000)))
            FROM generate_series(1, 200)";
        client.execute(much, &[]).unwrap_or_else(|e| panic!("writing much: {e}"));
        client.execute("SELECT pg_switch_wal()", &[]).unwrap_or_else(|e| panic!("{e}"));
        stage.checkpoint();
        let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1";
        client
            .query_one(status, &[&SLOT])
            .is_ok_and(|row| row.get::<_, Option<&str>>(0) == Some("lost"))
    });
    assert!(lost, "the slot is not lost");
    stage.fleet.release(&relay);
    stage.fleet.thaw(&relay);
    ends(stage, &relay, SLOT_LOST, "the slot is lost");
    let same = slots(stage.postgres) == before;
    stage.board.check(Invariant::Loud, same, || "slots were made or dropped".to_owned());
}

/// The slot is gone when a relay starts.
fn slot_dropped(stage: &Stage<'_>) {
    let _fault = stage.board.fault("slot dropped", "");
    let mut client = stage.postgres.client();
    let free =
        || oracle::slot(&mut stage.postgres.client(), SLOT).is_some_and(|s| s.active_pid.is_none());
    assert!(wait_for("the slot to be free", PATIENCE, free), "the slot is taken");
    client
        .execute("SELECT pg_drop_replication_slot($1)", &[&SLOT])
        .unwrap_or_else(|e| panic!("dropping the slot: {e}"));
    let before = slots(stage.postgres);
    let relay = stage.fleet.start();
    stage.fleet.release(&relay);
    ends(stage, &relay, SLOT_LOST, "the slot was dropped");
    let same = slots(stage.postgres) == before;
    stage.board.check(Invariant::Loud, same, || "slots were made or dropped".to_owned());
}

/// The relay ends in time with that code.
fn ends(stage: &Stage<'_>, relay: &Arc<Owlpost>, code: i32, why: &str) {
    let begun = Instant::now();
    let ended = stage.fleet.wait_exit(relay, END_MAX);
    say(&stage.board, ended, begun.elapsed());
    stage.board.check(Invariant::Loud, ended == Some(code), || {
        format!("{why}: the relay ended with {ended:?} in {END_MAX:?}, not with {code}")
    });
    if ended.is_none() {
        relay.kill9();
    }
    stage.fleet.bury(relay, &format!("ended with {ended:?}: {why}"), &stage.board);
    thread::sleep(Duration::from_millis(100));
}

fn say(board: &Board, code: Option<i32>, took: Duration) {
    board.say(&format!("  the relay ended with {code:?} after {:.1} s", took.as_secs_f64()));
}

/// The slots there are.
fn slots(postgres: &Postgres) -> Vec<String> {
    let query = "SELECT slot_name::text FROM pg_replication_slots ORDER BY 1";
    let rows = postgres.client().query(query, &[]);
    rows.unwrap_or_else(|e| panic!("listing slots: {e}")).iter().map(|row| row.get(0)).collect()
}
