//! Relays that are broken on purpose: what is promised must catch them, without knowing their names.

use crate::world::World;
use factlib::relay::seeded_bug::{Seeded, SeededBug};
use std::cell::Cell;
use std::panic;

thread_local! {
    /// A panic of this thread is what is looked for.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// So many seeds at most until a defect must be noticed. The rarest needed up to 390.
const SEEDS: u64 = 1000;

/// What only a real server shows: the slot and the options of the stream are made outside of the engine.
/// The torture test catches them.
const NOT_HERE: [SeededBug; 2] = [SeededBug::RecreateSlot, SeededBug::StreamingOn];

/// Those that only transactions can have.
fn in_transactions(bug: SeededBug) -> bool {
    matches!(
        bug,
        SeededBug::PositionBeforeAddOffsets
            | SeededBug::CommitWithFailedBatch
            | SeededBug::ResumeFromSlot
            | SeededBug::NoAbortOnRestart
    )
}

#[test]
fn every_seeded_bug_is_noticed() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !EXPECTED.get() {
            usual(info);
        }
    }));
    let mut missed = Vec::new();
    for bug in SeededBug::ALL.into_iter().filter(|bug| !NOT_HERE.contains(bug)) {
        let caught = (0..SEEDS).find_map(|seed| {
            EXPECTED.set(true);
            let told = panic::catch_unwind(|| {
                let mut world = World::new(seed, false, in_transactions(bug));
                world.seeded = Seeded::with(bug);
                world.tell();
            });
            EXPECTED.set(false);
            let cause = told.err()?;
            let text = cause.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("?");
            Some((seed, text.lines().next().unwrap_or_default().to_owned()))
        });
        match caught {
            Some((seed, text)) => eprintln!("{}: {} seeds: {text}", bug.name(), seed + 1),
            None => missed.push(bug.name()),
        }
    }
    assert!(missed.is_empty(), "not noticed in {SEEDS} seeds: {missed:?}");
}
