//! The relay engine against a model PostgreSQL and a model Kafka, or handlers in its place, under faults drawn from a
//! seed.
//!
//! No sockets, no runtime, no sleeping: a scheduler picks what happens next, time jumps to deadlines,
//! and what is promised is checked at every step. `SIMULATE_SEED=n` replays one seed with a trace;
//! `SIMULATE_SEEDS=n` runs more of them, `SIMULATE_FROM=n` others.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test")]
#![expect(clippy::print_stderr, reason = "a trace of the seed that is replayed, and the counts")]
#![expect(clippy::disallowed_methods, reason = "the start of a clock that only jumps")]

#[cfg(feature = "seeded-bugs")]
mod bugs;
mod cluster;
mod handlers;
#[path = "../model/mod.rs"]
mod model;
mod server;
mod transactions;
mod truth;
mod world;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use world::{Counts, World};

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs a seed's whole story; what was seen how often.
fn run(seed: u64, trace: bool, exactly_once: bool) -> Counts {
    let mut world = World::new(seed, trace, exactly_once);
    world.tell();
    world.counts
}

/// Every seed, on two threads.
fn campaign(seeds: std::ops::Range<u64>, exactly_once: bool) -> Counts {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let mut counts = Counts::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return counts;
            }
            let found = std::panic::catch_unwind(|| run(seed, false, exactly_once)).unwrap_or_else(
                |cause| {
                    next.store(seeds.end, Ordering::Relaxed);
                    eprintln!("seed {seed} failed; replay it with SIMULATE_SEED={seed}");
                    std::panic::resume_unwind(cause)
                },
            );
            add(&mut counts, found);
        }
    };
    thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut counts = work();
        let other = other.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause));
        add(&mut counts, other);
        counts
    })
}

fn add(counts: &mut Counts, more: Counts) {
    for (what, count) in more {
        *counts.entry(what).or_default() += count;
    }
}

/// As many seeds as by default, or as the environment says; what must have happened at least once.
fn simulate(seeds: u64, exactly_once: bool, wanted: &[&str]) {
    if let Some(seed) = from_environment("SIMULATE_SEED") {
        let counts = run(seed, true, exactly_once);
        eprintln!("{counts:#?}");
        return;
    }
    let seeds = from_environment("SIMULATE_SEEDS").unwrap_or(seeds);
    let from = from_environment("SIMULATE_FROM").unwrap_or(0);
    let counts = campaign(from..from + seeds, exactly_once);
    let table: BTreeMap<_, _> = counts.iter().collect();
    eprintln!("{seeds} seeds: {table:#?}");
    let never: Vec<_> = wanted.iter().filter(|what| !counts.contains_key(**what)).collect();
    assert!(seeds < 1000 || never.is_empty(), "never happened: {never:?}");
}

#[test]
fn nothing_is_lost_reordered_or_confirmed_too_early_whatever_happens() {
    let wanted = [world::WANTED, world::WANTED_OF_HANDLERS].concat();
    simulate(10_000, false, &wanted);
}

#[test]
fn consumers_of_committed_records_see_every_fact_once_whatever_happens() {
    let wanted: Vec<_> = world::WANTED
        .iter()
        .filter(|what| !world::NOT_IN_TRANSACTIONS.contains(*what))
        .chain(world::WANTED_IN_TRANSACTIONS)
        .copied()
        .collect();
    simulate(3000, true, &wanted);
}
