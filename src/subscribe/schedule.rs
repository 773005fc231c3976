//! Which delivery may begin, and what its end leads to. Pure.
//!
//! ```text
//!  arrive ─▶ line of its aggregate ──next──▶ running ──ended──▶ settled
//!                    ▲                          │
//!                    │                          │ failed
//!                    ├──────── again, later ◀───┤
//!                    ├── as a dead letter ◀─────┤
//!                                     halt ◀────┘
//! ```
//!
//! A line has the facts of one aggregate, in order, and at most one of them is under way. So a fact that fails holds
//! up its aggregate and no other. Lines wait for their turn in the order in which they became ready.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// Longer than any process lives.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// What a fact arrived with: settled together with the others of it.
pub(super) type Ticket = u64;

/// How deliveries are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    /// So many are under way at once.
    pub(super) concurrency: usize,
    /// After so many failures of its handler a fact is done with as `last` says; none tries for ever.
    pub(super) attempts: Option<NonZeroU32>,
    /// What becomes of it then.
    pub(super) last: Last,
    /// The pause after the first failure; doubled after each.
    pub(super) first_delay: Duration,
    /// The longest pause.
    pub(super) delay_max: Duration,
}

/// What becomes of a fact that its handler does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    /// Nothing is begun any more.
    Halt,
    /// It is a dead letter.
    DeadLetter,
}

/// Who is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The handler.
    Handle,
    /// The callback of dead letters, which is called until it takes the fact.
    DeadLetter,
}

/// A delivery that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start<K, J> {
    pub(super) line: K,
    pub(super) job: J,
    pub(super) step: Step,
    /// Of this step, from 1.
    pub(super) attempt: u32,
    /// How often the handler failed, and what it said last. For dead letters.
    pub(super) failed: Option<(u32, String)>,
}

/// What the end of a delivery led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// The fact is done with, and with it all that arrived with this ticket, if there is one here.
    Done(Option<Ticket>),
    /// It comes again after this pause.
    Again { attempt: u32, delay: Duration },
    /// Next the callback of dead letters is called.
    DeadLetter { attempts: u32 },
    /// Nothing is begun any more.
    Halt { attempts: u32 },
    /// No such delivery is under way.
    Unknown,
}

/// A line whose first fact has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocked<K> {
    pub(super) line: K,
    pub(super) error: String,
    pub(super) since: Instant,
    /// How often it failed.
    pub(super) attempts: u32,
    /// How many facts wait, this one included.
    pub(super) facts: usize,
}

/// What was done since the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    /// Facts that their handlers took.
    pub(super) handled: u64,
    /// Facts that the callback of dead letters took.
    pub(super) dead_letters: u64,
    /// Calls that failed, of either.
    pub(super) failures: u64,
}

#[derive(Debug)]
struct Waiting<J> {
    ticket: Ticket,
    job: J,
    step: Step,
}

#[derive(Debug)]
struct Line<J> {
    /// The first one is the one that is under way, or next.
    jobs: VecDeque<Waiting<J>>,
    /// Failures of the first at this step.
    attempts: u32,
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    error: String,
    since: Instant,
    /// How often the handler failed before the fact became a dead letter.
    handler_attempts: u32,
}

/// The state. `K` names a line, `J` is what is needed to deliver a fact.
#[derive(Debug)]
pub(super) struct Schedule<K, J> {
    rules: Rules,
    lines: HashMap<K, Line<J>>,
    /// Lines whose first fact may be begun.
    ready: VecDeque<K>,
    /// Lines whose first fact is to be begun then.
    due: BTreeMap<(Instant, u64), K>,
    due_count: u64,
    /// What is under way, and since when.
    running: HashMap<K, Instant>,
    troubled: HashSet<K>,
    /// How many facts of a ticket are not done with.
    tickets: HashMap<Ticket, usize>,
    waiting: usize,
    counts: Counts,
    over: bool,
}

impl<K: Clone + Eq + Hash, J: Clone> Schedule<K, J> {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            lines: HashMap::new(),
            ready: VecDeque::new(),
            due: BTreeMap::new(),
            due_count: 0,
            running: HashMap::new(),
            troubled: HashSet::new(),
            tickets: HashMap::new(),
            waiting: 0,
            counts: Counts::default(),
            over: false,
        }
    }

    /// Takes a fact to the end of its line. All facts of a ticket arrive before any of them can end.
    pub(super) fn arrive(&mut self, ticket: Ticket, line: K, step: Step, job: J) {
        *self.tickets.entry(ticket).or_default() += 1;
        self.waiting += 1;
        let waiting = Waiting { ticket, job, step };
        if let Some(known) = self.lines.get_mut(&line) {
            known.jobs.push_back(waiting);
            return;
        }
        let jobs = VecDeque::from([waiting]);
        self.lines.insert(line.clone(), Line { jobs, attempts: 0, trouble: None });
        self.ready.push_back(line);
    }

    /// The next delivery to begin, if one may.
    pub(super) fn next(&mut self, now: Instant) -> Option<Start<K, J>> {
        while let Some(entry) = self.due.first_entry()
            && entry.key().0 <= now
        {
            self.ready.push_back(entry.remove());
        }
        if self.over || self.running.len() >= self.rules.concurrency {
            return None;
        }
        let name = self.ready.pop_front()?;
        let line = self.lines.get(&name)?;
        let first = line.jobs.front()?;
        let (job, step) = (first.job.clone(), first.step);
        let failed =
            line.trouble.as_ref().map(|trouble| (trouble.handler_attempts, trouble.error.clone()));
        let attempt = line.attempts.saturating_add(1);
        self.running.insert(name.clone(), now);
        Some(Start { line: name, job, step, attempt, failed })
    }

    /// The delivery of this line was not begun after all: it is the next one again.
    pub(super) fn put_back(&mut self, name: &K) {
        if self.running.remove(name).is_some() {
            self.ready.push_front(name.clone());
        }
    }

    /// The delivery of this line has ended; the error is a sentence.
    pub(super) fn ended(&mut self, now: Instant, name: &K, answer: Result<(), String>) -> Ended {
        if self.running.remove(name).is_none() {
            return Ended::Unknown;
        }
        match answer {
            Ok(()) => self.done(name),
            Err(error) => self.failed(now, name, error),
        }
    }

    fn done(&mut self, name: &K) -> Ended {
        self.troubled.remove(name);
        let Some(line) = self.lines.get_mut(name) else { return Ended::Unknown };
        let Some(Waiting { ticket, step, .. }) = line.jobs.pop_front() else {
            return Ended::Unknown;
        };
        line.attempts = 0;
        line.trouble = None;
        if line.jobs.is_empty() {
            self.lines.remove(name);
        } else {
            self.ready.push_back(name.clone());
        }
        self.waiting -= 1;
        match step {
            Step::Handle => self.counts.handled += 1,
            Step::DeadLetter => self.counts.dead_letters += 1,
        }
        let Some(left) = self.tickets.get_mut(&ticket) else { return Ended::Done(None) };
        *left -= 1;
        if *left > 0 {
            return Ended::Done(None);
        }
        self.tickets.remove(&ticket);
        Ended::Done(Some(ticket))
    }

    fn failed(&mut self, now: Instant, name: &K, error: String) -> Ended {
        self.counts.failures += 1;
        let rules = self.rules;
        let Some(line) = self.lines.get_mut(name) else { return Ended::Unknown };
        let Some(first) = line.jobs.front_mut() else { return Ended::Unknown };
        line.attempts = line.attempts.saturating_add(1);
        let attempts = line.attempts;
        let before = line.trouble.take();
        let trouble = line.trouble.insert(Trouble {
            error,
            since: before.as_ref().map_or(now, |trouble| trouble.since),
            handler_attempts: before.map_or(0, |trouble| trouble.handler_attempts),
        });
        self.troubled.insert(name.clone());
        if first.step == Step::Handle {
            trouble.handler_attempts = attempts;
            if rules.attempts.is_some_and(|max| attempts >= max.get()) {
                if rules.last == Last::Halt {
                    self.over = true;
                    return Ended::Halt { attempts };
                }
                first.step = Step::DeadLetter;
                line.attempts = 0;
                self.ready.push_back(name.clone());
                return Ended::DeadLetter { attempts };
            }
        }
        let doublings = attempts.saturating_sub(1).min(31);
        let delay = rules.first_delay.saturating_mul(1 << doublings).min(rules.delay_max);
        self.due_count += 1;
        // A pause may be as long as a Duration can be, which no clock reaches.
        let due = now.checked_add(delay).unwrap_or(now + FOR_EVER);
        self.due.insert((due, self.due_count), name.clone());
        Ended::Again { attempt: attempts, delay }
    }

    /// Nothing is begun any more.
    pub(super) fn stop(&mut self) {
        self.over = true;
    }

    /// Nothing is under way, and nothing will be.
    pub(super) fn is_quiet(&self) -> bool {
        self.over && self.running.is_empty()
    }

    /// When [`Schedule::next`] may have something that it has not now, if nothing ends or arrives before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let full = self.over || self.running.len() >= self.rules.concurrency;
        self.due.first_key_value().filter(|_| !full).map(|((at, _), _)| *at)
    }

    /// Facts that are not done with.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Facts that are under way.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// What has been under way for longest, and since when.
    pub(super) fn slowest(&self) -> Option<(&K, Instant)> {
        self.running.iter().map(|(line, since)| (line, *since)).min_by_key(|(_, since)| *since)
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// How many lines are blocked, and the first `max` of them, by how long they have been.
    pub(super) fn blocked(&self, max: usize) -> (usize, Vec<Blocked<K>>) {
        let blocked = self.troubled.iter().filter_map(|name| {
            let line = self.lines.get(name)?;
            let Trouble { error, since, handler_attempts } = line.trouble.as_ref()?;
            let attempts = handler_attempts.saturating_add(match line.jobs.front()?.step {
                Step::Handle => 0,
                Step::DeadLetter => line.attempts,
            });
            let (error, since, facts) = (error.clone(), *since, line.jobs.len());
            Some(Blocked { line: name.clone(), error, since, attempts, facts })
        });
        let mut blocked: Vec<_> = blocked.collect();
        blocked.sort_by_key(|blocked| blocked.since);
        let count = blocked.len();
        blocked.truncate(max);
        (count, blocked)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any moment will do as the first")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    type Facts = Schedule<&'static str, u32>;

    fn rules() -> Rules {
        Rules {
            concurrency: 10,
            attempts: None,
            last: Last::Halt,
            first_delay: 100 * MS,
            delay_max: SECOND,
        }
    }

    fn after(failures: u32, last: Last) -> Rules {
        Rules { attempts: NonZeroU32::new(failures), last, ..rules() }
    }

    /// Facts 1, 2, 3… of these lines, each with a ticket of its own.
    fn schedule(rules: Rules, lines: &[&'static str]) -> Facts {
        let mut facts = Facts::new(rules);
        for (line, n) in lines.iter().zip(1..) {
            facts.arrive(u64::from(n), *line, Step::Handle, n);
        }
        facts
    }

    fn begin(facts: &mut Facts, now: Instant) -> Vec<(&'static str, u32)> {
        std::iter::from_fn(|| facts.next(now)).map(|start| (start.line, start.job)).collect()
    }

    fn oh() -> Result<(), String> {
        Err("oh".to_owned())
    }

    #[test]
    fn an_aggregate_has_one_fact_under_way_and_others_do_not_wait_for_it() {
        let now = Instant::now();
        let mut facts = schedule(rules(), &["a", "a", "b", "a", "b"]);
        assert_eq!(begin(&mut facts, now), [("a", 1), ("b", 3)]);
        assert_eq!(facts.ended(now, &"b", Ok(())), Ended::Done(Some(3)));
        assert_eq!(begin(&mut facts, now), [("b", 5)]);
        assert_eq!(facts.ended(now, &"a", Ok(())), Ended::Done(Some(1)));
        assert_eq!(begin(&mut facts, now), [("a", 2)]);
        assert_eq!((facts.waiting(), facts.running()), (3, 2));
    }

    #[test]
    fn so_many_are_under_way_and_no_more() {
        let now = Instant::now();
        let mut facts = schedule(Rules { concurrency: 2, ..rules() }, &["a", "b", "c", "d"]);
        assert_eq!(begin(&mut facts, now), [("a", 1), ("b", 2)]);
        facts.ended(now, &"b", oh());
        assert_eq!(
            begin(&mut facts, now),
            [("c", 3)],
            "one that waits for its time takes no place"
        );
        facts.ended(now, &"a", Ok(()));
        assert_eq!(begin(&mut facts, now + SECOND), [("d", 4)]);
        facts.ended(now, &"c", Ok(()));
        assert_eq!(begin(&mut facts, now + SECOND), [("b", 2)]);
    }

    #[test]
    fn a_fact_that_fails_comes_again_after_ever_longer_pauses_and_holds_up_only_its_aggregate() {
        let mut now = Instant::now();
        let mut facts = schedule(rules(), &["a", "a", "b"]);
        begin(&mut facts, now);
        let mut delays = Vec::new();
        for attempt in 1..=6 {
            let Ended::Again { attempt: said, delay } = facts.ended(now, &"a", oh()) else {
                panic!("not again")
            };
            assert_eq!(said, attempt);
            delays.push(delay.as_millis());
            assert_eq!(facts.deadline(), Some(now + delay));
            assert_eq!(begin(&mut facts, now + delay - MS), [], "not before its time");
            now += delay;
            let start = facts.next(now).unwrap();
            assert_eq!((start.job, start.attempt), (1, attempt + 1));
        }
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000]);
        let (count, blocked) = facts.blocked(5);
        assert_eq!((count, blocked[0].line, blocked[0].facts), (1, "a", 2));
        assert_eq!((blocked[0].error.as_str(), blocked[0].attempts), ("oh", 6));
        assert_eq!(facts.ended(now, &"b", Ok(())), Ended::Done(Some(3)));
        assert_eq!(facts.ended(now, &"a", Ok(())), Ended::Done(Some(1)));
        assert_eq!(facts.blocked(5).0, 0);
        let next = facts.next(now).unwrap();
        assert_eq!((next.job, next.attempt, next.failed), (2, 1, None), "the next begins anew");
    }

    #[test]
    fn a_dead_letter_is_done_with_only_once_its_callback_takes_it() {
        let mut now = Instant::now();
        let mut facts = schedule(after(2, Last::DeadLetter), &["a", "a"]);
        for _ in 0..2 {
            assert_eq!(facts.next(now).unwrap().step, Step::Handle);
            facts.ended(now, &"a", oh());
            now += 100 * MS;
        }
        for attempt in 1..=3 {
            let start = facts.next(now).unwrap();
            assert_eq!((start.job, start.step, start.attempt), (1, Step::DeadLetter, attempt));
            assert_eq!(start.failed.unwrap().0, 2);
            let ended = facts.ended(now, &"a", Err("no room".to_owned()));
            assert!(matches!(ended, Ended::Again { .. }), "{ended:?}");
            now += SECOND;
        }
        assert_eq!(facts.blocked(1).1[0].attempts, 5);
        facts.next(now).unwrap();
        assert_eq!(facts.ended(now, &"a", Ok(())), Ended::Done(Some(1)));
        let counts = Counts { handled: 0, dead_letters: 1, failures: 5 };
        assert_eq!(facts.counts(), counts);
        let next = facts.next(now).unwrap();
        assert_eq!((next.job, next.step, next.failed), (2, Step::Handle, None));
    }

    #[test]
    fn the_first_call_of_a_dead_letter_is_made_at_once() {
        let now = Instant::now();
        let mut facts = schedule(after(1, Last::DeadLetter), &["a"]);
        begin(&mut facts, now);
        assert_eq!(facts.ended(now, &"a", oh()), Ended::DeadLetter { attempts: 1 });
        let start = facts.next(now).unwrap();
        assert_eq!((start.step, start.failed), (Step::DeadLetter, Some((1, "oh".to_owned()))));
    }

    #[test]
    fn a_halt_begins_nothing_more_and_leaves_the_fact_undone() {
        let now = Instant::now();
        let mut facts = schedule(after(1, Last::Halt), &["a", "b", "b"]);
        begin(&mut facts, now);
        assert_eq!(facts.ended(now, &"a", oh()), Ended::Halt { attempts: 1 });
        assert!(!facts.is_quiet(), "b is under way");
        assert_eq!(facts.ended(now, &"b", Ok(())), Ended::Done(Some(2)));
        assert!(facts.is_quiet());
        assert_eq!(begin(&mut facts, now + SECOND), []);
        assert_eq!((facts.waiting(), facts.deadline()), (2, None));
    }

    #[test]
    fn what_arrives_together_is_settled_together() {
        let now = Instant::now();
        let mut facts = Facts::new(rules());
        for line in ["a", "b", "a"] {
            facts.arrive(7, line, Step::Handle, 0);
        }
        facts.arrive(8, "c", Step::Handle, 0);
        begin(&mut facts, now);
        assert_eq!(facts.ended(now, &"a", Ok(())), Ended::Done(None));
        assert_eq!(facts.ended(now, &"b", Ok(())), Ended::Done(None));
        assert_eq!(facts.ended(now, &"c", Ok(())), Ended::Done(Some(8)));
        begin(&mut facts, now);
        assert_eq!(facts.ended(now, &"a", oh()), Ended::Again { attempt: 1, delay: 100 * MS });
        begin(&mut facts, now + SECOND);
        assert_eq!(facts.ended(now, &"a", Ok(())), Ended::Done(Some(7)));
    }

    #[test]
    fn an_end_that_was_told_already_changes_nothing() {
        let now = Instant::now();
        let mut facts = schedule(rules(), &["a", "a"]);
        begin(&mut facts, now);
        assert_eq!(facts.ended(now, &"a", Ok(())), Ended::Done(Some(1)));
        assert_eq!(facts.ended(now, &"a", Ok(())), Ended::Unknown);
        assert_eq!(facts.ended(now, &"b", Ok(())), Ended::Unknown);
        assert_eq!(facts.waiting(), 1);
    }

    #[test]
    fn what_was_not_begun_after_all_is_the_next_and_was_not_tried() {
        let now = Instant::now();
        let mut facts = schedule(rules(), &["a", "b", "a"]);
        assert_eq!(facts.next(now).unwrap().job, 1);
        facts.put_back(&"a");
        facts.put_back(&"a");
        let again = facts.next(now).unwrap();
        assert_eq!((again.job, again.attempt), (1, 1));
        assert_eq!(begin(&mut facts, now), [("b", 2)]);
        facts.stop();
        facts.put_back(&"b");
        facts.put_back(&"a");
        assert!(facts.is_quiet() && facts.waiting() == 3);
    }

    #[test]
    fn nothing_is_remembered_of_what_is_done() {
        let now = Instant::now();
        let mut facts = schedule(rules(), &["a", "b", "a", "c"]);
        facts.next(now);
        facts.ended(now, &"a", oh());
        for at in 1..10 {
            for (line, _) in begin(&mut facts, now + at * SECOND) {
                facts.ended(now + at * SECOND, &line, Ok(()));
            }
        }
        let Schedule { lines, ready, due, running, troubled, tickets, waiting, .. } = &facts;
        assert!(lines.is_empty() && ready.is_empty() && due.is_empty() && running.is_empty());
        assert!(troubled.is_empty() && tickets.is_empty());
        assert_eq!(*waiting, 0);
    }

    /// What can happen to a subscriber.
    #[derive(Debug, Clone)]
    enum Happens {
        Arrives(usize),
        Begins,
        Ends(usize, bool),
        TimePasses,
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            3 => (0..6_usize).prop_map(Happens::Arrives),
            4 => Just(Happens::Begins),
            4 => (any::<usize>(), prop::bool::weighted(0.6)).prop_map(|(n, ok)| Happens::Ends(n, ok)),
            1 => Just(Happens::TimePasses),
        ]
    }

    proptest! {
        /// Whatever happens: per line in order, one at a time, within the concurrency; nothing is settled that
        /// nobody took, and in the end everything is.
        #[test]
        fn every_fact_is_taken_once_and_in_order(
            steps in prop::collection::vec(happens(), 1..300),
            concurrency in 1..5_usize,
            attempts in 0..4_u32,
        ) {
            const LINES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
            let attempts = NonZeroU32::new(attempts);
            let mut facts =
                Facts::new(Rules { concurrency, attempts, last: Last::DeadLetter, ..rules() });
            let mut now = Instant::now();
            let mut arrived: HashMap<&str, Vec<u32>> = HashMap::new();
            let mut taken: HashMap<&str, Vec<u32>> = HashMap::new();
            let mut under_way: Vec<(&str, u32, Step, u32)> = Vec::new();
            let mut settled = HashSet::new();
            let mut count = 0;
            let drain = std::iter::repeat_n([Happens::TimePasses, Happens::Begins, Happens::Ends(0, true)], 3000);
            for step in steps.into_iter().chain(drain.flatten()) {
                match step {
                    Happens::Arrives(line) => {
                        count += 1;
                        arrived.entry(LINES[line]).or_default().push(count);
                        facts.arrive(u64::from(count), LINES[line], Step::Handle, count);
                    }
                    Happens::Begins => {
                        if let Some(start) = facts.next(now) {
                            prop_assert!(under_way.iter().all(|(line, ..)| *line != start.line));
                            if let (Step::Handle, Some(max)) = (start.step, attempts) {
                                prop_assert!(start.attempt <= max.get());
                            }
                            under_way.push((start.line, start.job, start.step, start.attempt));
                        }
                        prop_assert!(under_way.len() <= concurrency);
                    }
                    Happens::Ends(which, ok) if !under_way.is_empty() => {
                        let (line, fact, ..) = under_way.swap_remove(which % under_way.len());
                        let ended = facts.ended(now, &line, if ok { Ok(()) } else { oh() });
                        let is_done = ended == Ended::Done(Some(u64::from(fact)));
                        prop_assert_eq!(is_done, ok, "{:?}", ended);
                        if ok {
                            prop_assert!(settled.insert(fact));
                            taken.entry(line).or_default().push(fact);
                        }
                    }
                    Happens::Ends(..) => {}
                    Happens::TimePasses => now += SECOND,
                }
            }
            prop_assert_eq!(taken, arrived);
            prop_assert_eq!((facts.waiting(), facts.running()), (0, 0));
        }
    }
}
