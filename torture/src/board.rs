//! What everybody writes down: faults, evaluations, violations.

use crate::arguments::Delivery;
use crate::invariant::Invariant;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many violations of one invariant are told in words.
const TOLD: usize = 20;

/// Shared by all threads of a run.
#[derive(Debug)]
pub(crate) struct Board {
    begun: Instant,
    delivery: Delivery,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Faults that are not healed, by number.
    active: BTreeMap<u64, &'static str>,
    next: u64,
    counts: BTreeMap<&'static str, usize>,
    /// What was seen to come of faults.
    sightings: BTreeMap<&'static str, usize>,
    /// When each kind of fault began last.
    begun: BTreeMap<&'static str, Instant>,
    healed: Instant,
    tallies: BTreeMap<Invariant, Tally>,
    /// Whether the relay's process lived through everything since the round began, so that nothing may be
    /// repeated.
    strict: bool,
    /// Rounds that are over, and how many of them were strict to their end.
    rounds: (usize, usize),
    /// When the first storm began.
    storms_from: Option<Instant>,
    failed: bool,
}

/// How often an invariant was looked at, and what was found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) evaluations: usize,
    pub(crate) violations: usize,
}

/// A fault that lasts until this is dropped.
#[derive(Debug)]
pub(crate) struct Fault<'b> {
    board: &'b Board,
    number: u64,
}

impl Board {
    pub(crate) fn new(delivery: Delivery) -> Self {
        let begun = Instant::now();
        let state = State {
            active: BTreeMap::new(),
            next: 0,
            counts: BTreeMap::new(),
            sightings: BTreeMap::new(),
            begun: BTreeMap::new(),
            healed: begun,
            tallies: Invariant::of(delivery).map(|it| (it, Tally::default())).collect(),
            strict: true,
            rounds: (0, 0),
            storms_from: None,
            failed: false,
        };
        Self { begun, delivery, state: Mutex::new(state) }
    }

    /// How the relays deliver.
    pub(crate) fn delivery(&self) -> Delivery {
        self.delivery
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One line for whoever watches.
    pub(crate) fn say(&self, line: &str) {
        println!("{:7.1} s  {line}", self.begun.elapsed().as_secs_f64());
    }

    /// Writes down that a fault begins.
    pub(crate) fn fault(&self, kind: &'static str, detail: &str) -> Fault<'_> {
        self.say(&format!("{kind}{}{detail}", if detail.is_empty() { "" } else { ": " }));
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        *state.counts.entry(kind).or_default() += 1;
        state.begun.insert(kind, Instant::now());
        state.active.insert(number, kind);
        Fault { board: self, number }
    }

    /// Since when there has been no fault; `None` while there is one.
    pub(crate) fn quiet_since(&self) -> Option<Instant> {
        let state = self.state();
        state.active.is_empty().then_some(state.healed)
    }

    /// When a kind of fault began last.
    pub(crate) fn begun(&self, kind: &str) -> Option<Instant> {
        self.state().begun.get(kind).copied()
    }

    /// How often each kind of fault was done.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, usize> {
        self.state().counts.clone()
    }

    /// This was seen to come of a fault so many times.
    pub(crate) fn seen(&self, what: &'static str, times: usize) {
        *self.state().sightings.entry(what).or_default() += times;
    }

    /// What was seen to come of faults, and how often.
    pub(crate) fn sightings(&self) -> BTreeMap<&'static str, usize> {
        self.state().sightings.clone()
    }

    /// One evaluation of an invariant; the words say how it was violated.
    pub(crate) fn check(&self, invariant: Invariant, holds: bool, words: impl FnOnce() -> String) {
        let told = {
            let mut state = self.state();
            let tally = state.tallies.entry(invariant).or_default();
            tally.evaluations += 1;
            tally.violations += usize::from(!holds);
            !holds && tally.violations <= TOLD
        };
        if told {
            self.say(&format!("VIOLATION of {}: {}", invariant.title(), words()));
        }
    }

    pub(crate) fn tallies(&self) -> BTreeMap<Invariant, Tally> {
        self.state().tallies.clone()
    }

    /// How many violations there are.
    pub(crate) fn violations(&self) -> usize {
        self.state().tallies.values().map(|tally| tally.violations).sum()
    }

    /// A new round, in which nothing may be repeated until somebody says so.
    pub(crate) fn begin_round(&self) {
        self.state().strict = true;
    }

    /// The round is over.
    pub(crate) fn end_round(&self) {
        let mut state = self.state();
        state.rounds.0 += 1;
        state.rounds.1 += usize::from(state.strict);
    }

    /// How many rounds there were, and in how many of them nothing might be repeated.
    pub(crate) fn rounds(&self) -> (usize, usize) {
        self.state().rounds
    }

    /// The first storm begins, if it has not.
    pub(crate) fn storms(&self) {
        self.state().storms_from.get_or_insert_with(Instant::now);
    }

    /// When the first storm began.
    pub(crate) fn storms_from(&self) -> Option<Instant> {
        self.state().storms_from
    }

    /// A relay process has ended without having confirmed everything, or another one streams: facts may
    /// come again until the round is over. Not where each comes once.
    pub(crate) fn allow_repeats(&self) {
        self.state().strict = self.delivery.is_exactly_once();
    }

    pub(crate) fn is_strict(&self) -> bool {
        self.state().strict
    }

    /// Something in the harness itself went wrong: everybody stops.
    pub(crate) fn fail(&self, what: &str) {
        self.say(&format!("THE HARNESS FAILED: {what}"));
        self.state().failed = true;
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.state().failed
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        let mut state = self.board.state();
        state.active.remove(&self.number);
        state.healed = Instant::now();
    }
}
