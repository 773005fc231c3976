//! Handlers in process, against real servers: every fact at least once, in order per aggregate.

use crate::support::{PATIENCE, drop_slots, emit, lsn, truth};
use factlib::subscribe::{
    Builder, DeadLetter, Delivery, Error, ErrorPolicy, RawConfig, Standing, State, Stopped,
    Subscriber, Unreadable, UnreadablePolicy,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use testkit::envelope::{OutboxEvent, TraceInfo};
use testkit::oracle::Commits;
use testkit::owlpost::Usage;
use testkit::process::Signal;
use testkit::workload::{Truth, Workload};
use testkit::{Lsn, Mode, Owlpost, Postgres, wait};
use tokio::sync::{Notify, Semaphore, watch};

/// The subscriber's.
const SLOT: &str = "billing_facts";

/// A subscriber in a thread of its own.
struct Running {
    stop: Arc<Notify>,
    standing: watch::Receiver<Standing>,
    thread: JoinHandle<Result<Stopped, Error>>,
}

impl Running {
    fn start(builder: Builder) -> Self {
        let subscriber = builder.build().unwrap();
        let standing = subscriber.standing();
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(subscriber.run(async move { stopped.notified().await }))
        });
        Self { stop, standing, thread }
    }

    fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    #[track_caller]
    fn wait(&self, what: &str, mut condition: impl FnMut(&Standing) -> bool) {
        wait::until(what, PATIENCE, || {
            assert!(!self.thread.is_finished(), "{what}: it has ended");
            condition(&self.standing())
        });
    }

    #[track_caller]
    fn wait_streaming(&self) {
        self.wait("the subscriber to stream", |standing| standing.state == State::Streaming);
    }

    /// Waits until everything that is committed by now is confirmed to the server.
    #[track_caller]
    fn wait_confirmed(&self, postgres: &Postgres) {
        let written = lsn(postgres, "SELECT pg_current_wal_flush_lsn()");
        self.wait("everything to be confirmed", |_| confirmed(postgres) >= written);
    }

    fn ask_to_stop(&self) {
        self.stop.notify_one();
    }

    #[track_caller]
    fn end(self) -> Result<Stopped, Error> {
        wait::until("the subscriber to end", PATIENCE, || self.thread.is_finished());
        self.thread.join().unwrap()
    }

    #[track_caller]
    fn stop(self) -> Stopped {
        self.ask_to_stop();
        self.end().unwrap()
    }
}

fn confirmed(postgres: &Postgres) -> Lsn {
    let query =
        format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
    lsn(postgres, &query)
}

/// To the prefix `orders`, with pauses that suit a test.
fn builder(postgres: &Postgres) -> Builder {
    let settings = RawConfig {
        master_database_url: Some(postgres.url()),
        stall_timeout: Some("500ms".to_owned()),
        backoff_max: Some("1s".to_owned()),
        ..RawConfig::default()
    };
    Subscriber::from_settings(settings)
        .slot(SLOT)
        .create_if_missing(true)
        .prefix("orders")
        .on_error(
            ErrorPolicy::retry().pauses(Duration::from_millis(20), Duration::from_millis(200)),
        )
}

fn times(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

/// What handlers were called with.
#[derive(Debug, Clone, Default)]
struct Seen(Arc<Mutex<Vec<Delivery>>>);

impl Seen {
    fn add(&self, fact: &Delivery) {
        self.0.lock().unwrap().push(fact.clone());
    }

    fn all(&self) -> Vec<Delivery> {
        self.0.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn event_types(&self) -> Vec<String> {
        self.all().iter().map(|fact| fact.event_type().to_owned()).collect()
    }

    fn of(&self, aggregate_id: &str) -> Vec<String> {
        let facts = self.all();
        let facts = facts.iter().filter(|fact| fact.aggregate_id() == aggregate_id);
        facts.map(|fact| fact.event_type().to_owned()).collect()
    }
}

fn event(aggregate_id: &str, event_type: &str) -> OutboxEvent {
    OutboxEvent {
        id: String::new(),
        aggregate_type: "order".to_owned(),
        aggregate_id: aggregate_id.to_owned(),
        event_type: event_type.to_owned(),
        ..OutboxEvent::default()
    }
}

fn emit_event(postgres: &Postgres, aggregate_id: &str, event_type: &str) {
    emit(postgres, true, "orders", &event(aggregate_id, event_type).to_bytes());
}

/// A line of what was handled: id, aggregate, position.
type Line = (String, String, String);

fn lines(seen: &Seen) -> Vec<Line> {
    let line = |fact: &Delivery| {
        (fact.id().to_owned(), fact.aggregate_id().to_owned(), fact.position().to_string())
    };
    seen.all().iter().map(line).collect()
}

/// Everything that was committed was handled, in order per aggregate, and nothing else; how many calls were
/// repeats.
#[track_caller]
fn judge(truth: &[Truth], handled: &[Line]) -> usize {
    let mut positions: HashMap<&str, &str> = HashMap::new();
    let mut firsts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut highest: HashMap<&str, &str> = HashMap::new();
    let mut repeats = 0;
    for (id, aggregate, position) in handled {
        if let Some(before) = positions.insert(id, position) {
            assert_eq!(before, position, "a repeat of {id} has another position");
            repeats += 1;
            continue;
        }
        let before = highest.insert(aggregate, position);
        assert!(
            before.is_none_or(|before| before < position.as_str()),
            "{aggregate} at {position}"
        );
        firsts.entry(aggregate).or_default().push(id);
    }
    let mut expected: BTreeMap<&str, Vec<(i64, &str)>> = BTreeMap::new();
    for fact in truth {
        expected.entry(&fact.aggregate_id).or_default().push((fact.key_seq, &fact.fact_id));
    }
    let expected: BTreeMap<&str, Vec<&str>> = expected
        .into_iter()
        .map(|(aggregate, mut facts)| {
            facts.sort_unstable();
            (aggregate, facts.into_iter().map(|(_, id)| id).collect())
        })
        .collect();
    assert_eq!(firsts, expected);
    repeats
}

#[test]
fn the_judge_finds_what_is_missing_swapped_or_unknown() {
    let truth: Vec<Truth> = (1..=4)
        .map(|n| Truth {
            fact_id: format!("f{n}"),
            aggregate_type: "order".to_owned(),
            aggregate_id: if n < 4 { "a" } else { "b" }.to_owned(),
            event_type: String::new(),
            key_seq: n,
            content: Vec::new(),
            xid: 1,
            lsn: Lsn(1),
        })
        .collect();
    let line = |n: u32| {
        let aggregate = if n == 4 { "b" } else { "a" };
        (format!("f{n}"), aggregate.to_owned(), format!("position {n}"))
    };
    let judged = |order: &[u32]| {
        let handled: Vec<Line> = order.iter().copied().map(line).collect();
        std::panic::catch_unwind(|| judge(&truth, &handled)).ok()
    };
    assert_eq!(judged(&[1, 2, 4, 3]), Some(0), "aggregates overtake each other");
    assert_eq!(judged(&[1, 4, 2, 1, 2, 3]), Some(2));
    for wrong in [&[1, 2, 3][..], &[2, 1, 3, 4], &[1, 3, 2, 3, 4], &[1, 2, 3, 4, 5]] {
        assert_eq!(judged(wrong), None, "{wrong:?}");
    }
}

#[test]
fn every_fact_is_handled_once_in_order_and_none_again_after_a_clean_stop() {
    let postgres = Postgres::builder().start();
    let seen = Seen::default();
    let subscriber = || {
        let seen = seen.clone();
        builder(&postgres).handler(move |fact: Delivery| {
            let seen = seen.clone();
            async move {
                tokio::task::yield_now().await;
                seen.add(&fact);
                Ok(())
            }
        })
    };
    let first = Running::start(subscriber());
    first.wait_streaming();
    let workload = Workload { facts: 3000, aggregates: 50, ..Workload::new("orders", 1) };
    workload.run(&postgres);
    first.wait_confirmed(&postgres);
    let stopped = first.stop();
    assert_eq!((stopped.left, stopped.cut_off), (0, 0));
    assert!(stopped.confirmed.0 <= confirmed(&postgres).0);

    Workload { facts: 1000, aggregates: 50, ..Workload::new("orders", 2) }.run(&postgres);
    let second = Running::start(subscriber());
    second.wait_confirmed(&postgres);
    second.stop();
    assert_eq!(judge(&truth(&postgres), &lines(&seen)), 0, "no repeats");
}

#[test]
fn a_delivery_has_what_was_emitted_and_says_the_same_when_it_comes_again() {
    let postgres = Postgres::builder().start();
    let seen = Seen::default();
    let subscriber = |takes: bool| {
        let seen = seen.clone();
        builder(&postgres).prefix("other").on_error(ErrorPolicy::halt_after(times(2))).handler(
            move |fact: Delivery| {
                seen.add(&fact);
                async move { if takes { Ok(()) } else { Err("not now".into()) } }
            },
        )
    };
    let first = Running::start(subscriber(false));
    first.wait_streaming();
    let pair = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let fact = OutboxEvent {
        payload: b"\x00card".to_vec(),
        created_at: 1_700_000_000_000_001,
        metadata: pair("tenant", "7"),
        trace_info: Some(TraceInfo {
            trace_id: "t1".to_owned(),
            span_id: "s1".to_owned(),
            metadata: pair("traceparent", "00-t1-s1-01"),
        }),
        ..event("42", "paid")
    };
    let at = emit(&postgres, true, "other", &fact.to_bytes());
    let Err(Error::Halted(halted)) = first.end() else { panic!("not halted") };
    assert_eq!((halted.attempts, halted.error.as_str()), (2, "not now"));
    assert_eq!((halted.lsn.0, halted.aggregate.aggregate_id.as_str()), (at.0, "42"));

    let second = Running::start(subscriber(true));
    second.wait_confirmed(&postgres);
    second.stop();
    let all = seen.all();
    assert_eq!(all.iter().map(Delivery::attempt).collect::<Vec<_>>(), [1, 2, 1]);
    for fact in &all {
        let aggregate = (fact.prefix(), fact.aggregate_type(), fact.aggregate_id());
        assert_eq!(aggregate, ("other", "order", "42"));
        assert_eq!((fact.event_type(), fact.payload()), ("paid", Some(&b"\x00card"[..])));
        assert_eq!(fact.metadata().collect::<Vec<_>>(), [("tenant", "7")]);
        assert_eq!((fact.trace_id(), fact.span_id()), (Some("t1"), Some("s1")));
        assert_eq!(fact.traceparent(), Some("00-t1-s1-01"));
        assert_eq!(fact.created_at(), Some(1_700_000_000_000_001));
        assert_eq!(fact.lsn().0, at.0);
        let age = fact.committed_at().elapsed().unwrap();
        assert!(age < PATIENCE, "{age:?}");
        assert_eq!((fact.id(), fact.position()), (all[0].id(), all[0].position()));
    }
    assert_eq!(all[0].id().len(), 36, "a UUID, where none was emitted: {}", all[0].id());
}

#[test]
fn a_fact_that_fails_holds_up_its_aggregate_and_no_other() {
    let postgres = Postgres::builder().start();
    let seen = Seen::default();
    let works = Arc::new(Semaphore::new(0));
    let subscriber = Running::start({
        let (seen, works) = (seen.clone(), Arc::clone(&works));
        builder(&postgres).handler(move |fact: Delivery| {
            let (seen, works) = (seen.clone(), Arc::clone(&works));
            async move {
                if fact.aggregate_id() == "bad" && works.available_permits() == 0 {
                    return Err("out of order".into());
                }
                seen.add(&fact);
                Ok(())
            }
        })
    });
    subscriber.wait_streaming();
    let before = confirmed(&postgres);
    emit_event(&postgres, "bad", "1");
    emit_event(&postgres, "bad", "2");
    for n in 1..=200 {
        emit_event(&postgres, &format!("good {}", n % 7), &n.to_string());
    }
    subscriber.wait("the others to be handled", |_| seen.count() == 200);
    subscriber.wait("it to be told", |standing| {
        let blocked = standing.blocked.first();
        let is_told = blocked.is_some_and(|blocked| blocked.attempts > 2 && blocked.facts == 2);
        is_told && standing.waiting == 2
    });
    let standing = subscriber.standing();
    let blocked = &standing.blocked[0];
    assert_eq!(blocked.aggregate.as_ref().unwrap().aggregate_id, "bad");
    assert_eq!((blocked.error.as_str(), standing.blocked_count), ("out of order", 1));
    assert!(seen.of("bad").is_empty());
    let kept = confirmed(&postgres);
    assert!(standing.lag.is_some(), "{standing:?}");
    works.add_permits(1);
    subscriber.wait_confirmed(&postgres);
    assert!(before <= kept && kept < confirmed(&postgres));
    assert_eq!(seen.of("bad"), ["1", "2"]);
    subscriber.stop();
    assert_eq!(seen.count(), 202, "nothing twice");
}

#[test]
fn handlers_that_panic_fail_or_hang_are_called_again_and_lose_nothing() {
    let postgres = Postgres::builder().start();
    let seen = Seen::default();
    let subscriber = Running::start({
        let seen = seen.clone();
        builder(&postgres).handler_timeout(Duration::from_millis(300)).handler(
            move |fact: Delivery| {
                let seen = seen.clone();
                // As unlike each other as the bytes of an id, and the same at each call.
                let dice =
                    fact.id().bytes().fold(0_u32, |sum, byte| sum * 31 % 1009 + u32::from(byte));
                let troubled = fact.attempt() <= dice % 3;
                assert!(!(troubled && dice % 5 == 0), "in the closure itself");
                async move {
                    match dice % 11 {
                        0 if troubled => panic!("in the future"),
                        1..=4 if troubled => return Err("an error".into()),
                        5 if troubled => std::future::pending::<()>().await,
                        _ => tokio::time::sleep(Duration::from_millis(u64::from(dice % 3))).await,
                    }
                    seen.add(&fact);
                    Ok(())
                }
            },
        )
    });
    subscriber.wait_streaming();
    Workload { facts: 600, aggregates: 40, ..Workload::new("orders", 3) }.run(&postgres);
    subscriber.wait_confirmed(&postgres);
    assert!(subscriber.standing().failures > 100, "{:?}", subscriber.standing());
    subscriber.stop();
    assert_eq!(judge(&truth(&postgres), &lines(&seen)), 0);
}

#[test]
fn a_dead_letter_is_confirmed_only_once_its_callback_has_taken_it() {
    let postgres = Postgres::builder().start();
    let (seen, letters) = (Seen::default(), Arc::new(Mutex::new(Vec::new())));
    let works = Arc::new(Semaphore::new(0));
    let subscriber = Running::start({
        let (seen, letters, works) = (seen.clone(), Arc::clone(&letters), Arc::clone(&works));
        let policy = ErrorPolicy::dead_letter_after(times(3), move |letter: DeadLetter| {
            let (letters, works) = (Arc::clone(&letters), Arc::clone(&works));
            async move {
                if works.available_permits() == 0 {
                    return Err("no room for letters".into());
                }
                letters.lock().unwrap().push(letter);
                Ok(())
            }
        });
        let pauses = (Duration::from_millis(5), Duration::from_millis(50));
        builder(&postgres).on_error(policy.pauses(pauses.0, pauses.1)).handler(
            move |fact: Delivery| {
                let seen = seen.clone();
                async move {
                    assert_ne!(fact.event_type(), "poison", "that again");
                    seen.add(&fact);
                    Ok(())
                }
            },
        )
    });
    subscriber.wait_streaming();
    for event_type in ["before", "poison", "after"] {
        emit_event(&postgres, "a", event_type);
    }
    let written = lsn(&postgres, "SELECT pg_current_wal_flush_lsn()");
    subscriber.wait("the callback to fail a few times", |standing| standing.failures > 6);
    assert_eq!(seen.event_types(), ["before"]);
    assert!(confirmed(&postgres) < written);
    works.add_permits(1);
    subscriber.wait_confirmed(&postgres);
    assert_eq!(seen.event_types(), ["before", "after"]);
    assert_eq!(subscriber.standing().dead_letters, 1);
    subscriber.stop();
    let letters = letters.lock().unwrap();
    let [letter] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!((letter.delivery.event_type(), letter.attempts), ("poison", 3));
    assert!(letter.error.contains("no room") || letter.error.contains("that again"), "{letter:?}");
}

#[test]
fn a_halt_ends_with_the_error_and_keeps_the_fact_in_the_slot() {
    let postgres = Postgres::builder().start();
    let seen = Seen::default();
    let subscriber = |halts: bool| {
        let seen = seen.clone();
        builder(&postgres).on_error(ErrorPolicy::halt_after(times(1))).handler(
            move |fact: Delivery| {
                let seen = seen.clone();
                async move {
                    if halts && fact.event_type() == "2" {
                        return Err(std::io::Error::other("disk full").into());
                    }
                    seen.add(&fact);
                    Ok(())
                }
            },
        )
    };
    let first = Running::start(subscriber(true));
    first.wait_streaming();
    for event_type in ["1", "2", "3"] {
        emit_event(&postgres, "a", event_type);
    }
    let error = first.end().unwrap_err();
    let words = error.to_string();
    assert!(words.contains("disk full") && words.contains("orders order a"), "{words}");
    let Error::Halted(halted) = error else { panic!("{error:?}") };
    assert!(confirmed(&postgres).0 <= halted.position.unit.lsn.0, "the fact is kept");
    let second = Running::start(subscriber(false));
    second.wait_confirmed(&postgres);
    second.stop();
    assert_eq!(seen.of("a"), ["1", "2", "3"]);
}

#[test]
fn what_is_no_fact_halts_is_skipped_or_goes_to_its_callback() {
    let postgres = Postgres::builder().start();
    let seen = Seen::default();
    let subscriber = |policy: UnreadablePolicy| {
        let seen = seen.clone();
        builder(&postgres).on_unreadable(policy).handler(move |fact: Delivery| {
            seen.add(&fact);
            async { Ok(()) }
        })
    };
    let first = Running::start(subscriber(UnreadablePolicy::halt()));
    first.wait_streaming();
    emit_event(&postgres, "a", "1");
    let at = emit(&postgres, true, "orders", b"{\"junk\":");
    emit_event(&postgres, "a", "2");
    let Err(Error::Unreadable { lsn, reason, .. }) = first.end() else { panic!("not halted") };
    assert_eq!(lsn.0, at.0);
    assert!(reason.contains("not a JSON envelope"), "{reason}");
    assert_eq!(seen.event_types(), ["1"]);

    let letters = Arc::new(Mutex::new(Vec::<Unreadable>::new()));
    let kept = Arc::clone(&letters);
    let second = Running::start(subscriber(UnreadablePolicy::dead_letter(move |letter| {
        let kept = Arc::clone(&kept);
        async move {
            if letter.attempt == 1 {
                return Err("not yet".into());
            }
            kept.lock().unwrap().push(letter);
            Ok(())
        }
    })));
    second.wait_confirmed(&postgres);
    second.stop();
    let letters = letters.lock().unwrap();
    let [letter] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!(
        (&letter.content[..], letter.lsn.0, letter.whole_length),
        (&b"{\"junk\":"[..], at.0, None)
    );
    assert_eq!(seen.event_types(), ["1", "2"], "what was handled before it is confirmed");

    let third = Running::start(subscriber(UnreadablePolicy::skip()));
    third.wait_streaming();
    emit(&postgres, true, "orders", b"\xff");
    emit_event(&postgres, "a", "3");
    third.wait_confirmed(&postgres);
    assert_eq!(third.standing().skipped, 1);
    third.stop();
    assert_eq!(seen.event_types(), ["1", "2", "3"]);
}

#[test]
fn of_a_message_that_is_too_large_the_callback_has_the_first_part() {
    let postgres = Postgres::builder().start();
    let (seen, letters) = (Seen::default(), Arc::new(Mutex::new(Vec::<Unreadable>::new())));
    let kept = Arc::clone(&letters);
    let settings = RawConfig {
        master_database_url: Some(postgres.url()),
        frame_max_bytes: Some("64KiB".to_owned()),
        ..RawConfig::default()
    };
    let handled = seen.clone();
    let subscriber = Subscriber::from_settings(settings)
        .slot(SLOT)
        .create_if_missing(true)
        .prefix("orders")
        .on_unreadable(UnreadablePolicy::dead_letter(move |letter| {
            kept.lock().unwrap().push(letter);
            async { Ok(()) }
        }))
        .handler(move |fact: Delivery| {
            handled.add(&fact);
            async { Ok(()) }
        });
    let subscriber = Running::start(subscriber);
    subscriber.wait_streaming();
    let large = OutboxEvent { payload: vec![7; 200_000], ..event("a", "large") }.to_bytes();
    let at = emit(&postgres, true, "orders", &large);
    emit_event(&postgres, "a", "after");
    subscriber.wait_confirmed(&postgres);
    subscriber.stop();
    assert_eq!(seen.event_types(), ["after"]);
    let letters = letters.lock().unwrap();
    let [letter] = letters.as_slice() else { panic!("{} letters", letters.len()) };
    assert_eq!((letter.lsn.0, letter.whole_length), (at.0, Some(large.len() as u64)));
    assert!(!letter.content.is_empty() && large.starts_with(&letter.content));
}

#[test]
fn each_type_has_its_handler_and_what_has_none_is_passed_over() {
    let postgres = Postgres::builder().start();
    let (orders, parcels) = (Seen::default(), Seen::default());
    let to = |seen: &Seen| {
        let seen = seen.clone();
        move |fact: Delivery| {
            seen.add(&fact);
            async { Ok(()) }
        }
    };
    let subscriber =
        Running::start(builder(&postgres).on("order", to(&orders)).on("parcel", to(&parcels)));
    subscriber.wait_streaming();
    // More types than there could be topics, and names that no topic could have.
    let mut facts = String::from("BEGIN;");
    for n in 0..5000 {
        facts += &format!(
            r#"SELECT pg_logical_emit_message(true, 'orders', '{{"aggregate_type":"type {n} / ü"}}');"#
        );
    }
    postgres.client().batch_execute(&(facts + "COMMIT")).unwrap();
    emit_event(&postgres, "a", "1");
    emit(
        &postgres,
        true,
        "orders",
        br#"{"aggregate_type":"parcel","aggregate_id":"a","payload":7}"#,
    );
    emit(&postgres, false, "orders", br#"{"aggregate_type":"parcel","aggregate_id":"b"}"#);
    emit(&postgres, true, "another", b"whatever");
    subscriber.wait_confirmed(&postgres);
    assert_eq!(subscriber.standing().passed_over, 5000);
    subscriber.stop();
    assert_eq!(orders.event_types(), ["1"]);
    let parcels = parcels.all();
    let found: Vec<_> = parcels.iter().map(|fact| (fact.aggregate_id(), fact.payload())).collect();
    assert_eq!(found, [("a", Some(&b"7"[..])), ("b", None)]);
}

/// A handler that is let through once for each permit, and what it was called with.
fn gated(postgres: &Postgres, gate: &Arc<Semaphore>, called: &Seen, handled: &Seen) -> Builder {
    let (gate, called, handled) = (Arc::clone(gate), called.clone(), handled.clone());
    builder(postgres).handler(move |fact: Delivery| {
        let (gate, handled) = (Arc::clone(&gate), handled.clone());
        called.add(&fact);
        async move {
            gate.acquire().await?.forget();
            handled.add(&fact);
            Ok(())
        }
    })
}

#[test]
fn a_slow_handler_is_called_once_whatever_becomes_of_the_connection() {
    let postgres = Postgres::builder().start();
    let (gate, called, handled) = (Arc::new(Semaphore::new(0)), Seen::default(), Seen::default());
    let subscriber = Running::start(gated(&postgres, &gate, &called, &handled));
    subscriber.wait_streaming();
    for n in ["1", "2"] {
        emit_event(&postgres, "a", n);
    }
    subscriber.wait("the handler to be called", |_| called.count() == 1);
    for _ in 0..3 {
        let walsender = || {
            postgres.ask(
                "SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots WHERE slot_name = 'billing_facts'",
            )
        };
        let before = walsender();
        let _ = postgres.ask(&format!("SELECT pg_terminate_backend({before})"));
        subscriber
            .wait("another walsender", |_| !["0", before.as_str()].contains(&walsender().as_str()));
    }
    postgres.restart(Mode::Fast);
    subscriber.wait_streaming();
    postgres.kill9();
    postgres.start_again();
    subscriber.wait("the slot to be taken again", |standing| {
        standing.state == State::Streaming
            && postgres.ask("SELECT count(*) FROM pg_replication_slots WHERE active") == "1"
    });
    assert_eq!(called.count(), 1, "it is under way all the time");
    gate.add_permits(1);
    subscriber.wait("the next one", |_| called.count() == 2);
    gate.add_permits(1);
    subscriber.wait_confirmed(&postgres);
    subscriber.stop();
    assert_eq!(handled.of("a"), ["1", "2"]);
    assert_eq!(called.count(), 2);
}

#[test]
fn no_handler_is_called_without_the_slot() {
    let postgres = Postgres::builder().start();
    let (gate, called, handled) = (Arc::new(Semaphore::new(0)), Seen::default(), Seen::default());
    let subscriber = Running::start(gated(&postgres, &gate, &called, &handled));
    subscriber.wait_streaming();
    for n in ["1", "2", "3"] {
        emit_event(&postgres, "a", n);
    }
    subscriber.wait("all to be read", |standing| standing.waiting == 3 && called.count() == 1);
    postgres.stop(Mode::Fast);
    subscriber.wait("it to be noticed", |standing| matches!(standing.state, State::Connecting(_)));
    gate.add_permits(3);
    subscriber.wait("what was under way to end", |standing| {
        standing.handled == 1 && standing.running == 0
    });
    // As long as the lease would have been, and a little more.
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(called.count(), 1, "nothing is begun while somebody else may have the slot");
    postgres.start_again();
    subscriber.wait_confirmed(&postgres);
    subscriber.stop();
    assert_eq!(handled.of("a"), ["1", "2", "3"]);
    assert_eq!(called.count(), 3);
}

#[test]
fn a_stop_begins_nothing_waits_for_what_is_under_way_and_confirms_it() {
    let postgres = Postgres::builder().start();
    let (gate, called, handled) = (Arc::new(Semaphore::new(0)), Seen::default(), Seen::default());
    let start = || {
        let one = NonZeroUsize::MIN;
        Running::start(gated(&postgres, &gate, &called, &handled).concurrency(one))
    };
    let first = start();
    first.wait_streaming();
    for n in ["1", "2", "3"] {
        emit_event(&postgres, n, n);
    }
    first.wait("all to be read", |standing| standing.waiting == 3 && called.count() == 1);
    first.ask_to_stop();
    first.wait("it to stop", |standing| standing.state == State::Stopping);
    gate.add_permits(3);
    let stopped = first.end().unwrap();
    assert_eq!((stopped.left, stopped.cut_off), (2, 0));
    assert_eq!(handled.event_types(), ["1"]);
    let second = start();
    second.wait_confirmed(&postgres);
    second.stop();
    assert_eq!(handled.event_types(), ["1", "2", "3"], "what was under way does not come again");
}

#[test]
fn a_stop_does_not_wait_beyond_its_deadline() {
    let postgres = Postgres::builder().start();
    let (gate, called, handled) = (Arc::new(Semaphore::new(0)), Seen::default(), Seen::default());
    let gated = || gated(&postgres, &gate, &called, &handled);
    let first = Running::start(gated().stop_timeout(Duration::from_millis(700)));
    first.wait_streaming();
    emit_event(&postgres, "a", "1");
    first.wait("the handler to be called", |_| called.count() == 1);
    let begun = Instant::now();
    let stopped = first.stop();
    assert!(begun.elapsed() >= Duration::from_millis(700));
    assert_eq!((stopped.left, stopped.cut_off), (1, 1));
    gate.add_permits(1);
    let second = Running::start(gated());
    second.wait_confirmed(&postgres);
    second.stop();
    assert_eq!((handled.of("a"), called.count()), (vec!["1".to_owned()], 2));
}

#[test]
fn of_two_processes_one_has_the_slot_and_the_other_goes_on_after_it() {
    let postgres = Postgres::builder().start();
    let seen = [Seen::default(), Seen::default()];
    let start = |seen: &Seen| {
        let seen = seen.clone();
        Running::start(builder(&postgres).handler(move |fact: Delivery| {
            seen.add(&fact);
            async { Ok(()) }
        }))
    };
    let first = start(&seen[0]);
    first.wait_streaming();
    let second = start(&seen[1]);
    second.wait("it to wait", |standing| matches!(standing.state, State::WaitingForSlot(_)));
    for n in 0..50 {
        emit_event(&postgres, "a", &n.to_string());
    }
    first.wait_confirmed(&postgres);
    assert_eq!(seen[1].count(), 0);
    second.wait("it to have waited for a while", |standing| {
        standing.state_for >= Duration::from_secs(2)
    });
    first.stop();
    second.wait_streaming();
    assert!(second.standing().state_for < Duration::from_secs(2), "it begins anew with the state");
    emit_event(&postgres, "a", "last");
    second.wait_confirmed(&postgres);
    second.stop();
    assert_eq!((seen[0].count(), seen[1].event_types()), (50, vec!["last".to_owned()]));
}

#[test]
fn what_is_missing_or_lost_ends_it_with_what_to_do() {
    let postgres = Postgres::builder().start();
    let quiet = || builder(&postgres).handler(|_| async { Ok(()) });
    let error = Running::start(quiet().create_if_missing(false)).end().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("slot billing_facts and publication billing_facts are not there"),
        "{error}"
    );
    let subscriber = Running::start(quiet());
    subscriber.wait_streaming();
    subscriber.stop();
    drop_slots(&postgres);
    let error = Running::start(quiet()).end().unwrap_err();
    assert!(error.to_string().contains("accept that gap"), "{error}");
    postgres.stop(Mode::Fast);
    let error = Running::start(quiet().startup_timeout(Duration::from_secs(1))).end().unwrap_err();
    assert!(matches!(error, Error::Server { .. }), "{error:?}");
}

#[test]
fn what_ends_it_is_said_in_the_words_of_the_builder_and_without_kafka() {
    let postgres = Postgres::builder().start();
    let quiet = || builder(&postgres).handler(|_| async { Ok(()) });
    let at = |url: String| {
        let builder = Subscriber::builder(&url).slot(SLOT).prefix("orders");
        let builder = builder.startup_timeout(Duration::from_secs(1)).create_if_missing(true);
        builder.handler(|_| async { Ok(()) })
    };
    let made = Running::start(quiet().prefix("carts"));
    made.wait_streaming();
    made.stop();
    emit(&postgres, true, "orders", b"junk");
    postgres.client().batch_execute("CREATE DATABASE other").unwrap();
    let small = RawConfig {
        master_database_url: Some(postgres.url()),
        frame_max_bytes: Some("64KiB".to_owned()),
        ..RawConfig::default()
    };
    let small = Subscriber::from_settings(small).slot(SLOT).prefix("orders").prefix("carts");
    let small = small.on_unreadable(UnreadablePolicy::halt()).handler(|_| async { Ok(()) });
    let url = postgres.url();
    let (base, _) = url.rsplit_once('/').unwrap();
    let mut said = Vec::new();
    let mut ends = |builder: Builder, with: &str| {
        let error = Running::start(builder).end().unwrap_err().to_string();
        assert!(error.contains(with), "{with}: {error}");
        said.push(error);
    };
    ends(quiet(), "correct prefix");
    ends(at(format!("{base}/none")), "database in the URL");
    ends(at(format!("{base}/other")), "choose another slot");
    ends(at("postgres://app@127.0.0.1:1/app".to_owned()), "port in the URL");
    ends(quiet().prefix("carts"), "see Builder::on_unreadable");
    let advance = "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) FROM pg_replication_slots";
    postgres.client().batch_execute(advance).unwrap();
    emit(&postgres, true, "orders", &vec![b'x'; 100_000]);
    ends(small, "RawConfig::frame_max_bytes");
    drop_slots(&postgres);
    ends(quiet().prefix("carts"), "not delivered; to accept that gap");
    for error in said {
        let settings = error.split(|c: char| !c.is_ascii_uppercase() && c != '_');
        let settings: Vec<_> =
            settings.filter(|word| word.len() > 4 && word.contains('_')).collect();
        assert!(settings.is_empty() && !error.contains("Kafka"), "{error}");
    }
}

/// The first block of Rust in this document that has this in it, without spaces and remarks.
fn shown(document: &str, with: &str) -> String {
    let blocks =
        document.split("```rust\n").skip(1).map(|block| block.split("```").next().unwrap());
    bare(blocks.into_iter().find(|block| block.contains(with)).unwrap())
}

fn bare(code: &str) -> String {
    let lines = code.lines().map(|line| line.split("// ").next().unwrap());
    lines.flat_map(str::chars).filter(|c| !c.is_whitespace()).collect()
}

/// The documents' own lines; nothing runs them.
mod documented {
    use super::{DeadLetter, Future, NonZeroU32};
    use factlib::subscribe::{Delivery, ErrorPolicy, HandlerError, Subscriber};

    type Ended = Result<(), Box<dyn std::error::Error>>;

    #[expect(dead_code, reason = "it is enough that it compiles")]
    async fn readme<K, A>(
        attempts: NonZeroU32,
        keep: K,
        shutdown: impl Future<Output = ()>,
    ) -> Ended
    where
        K: Fn(DeadLetter) -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        async fn bill(_: &Delivery) -> Result<(), HandlerError> {
            Ok(())
        }
        let subscriber = Subscriber::builder("postgres://billing@db/app")
            .slot("billing_facts")
            .prefix("orders")
            .on("order", |fact: Delivery| async move { bill(&fact).await })
            .on_error(ErrorPolicy::dead_letter_after(attempts, keep))
            .build()?;
        subscriber.run(shutdown).await?;
        Ok(())
    }

    #[expect(dead_code, reason = "it is enough that it compiles")]
    #[expect(clippy::print_stdout, reason = "so does the page")]
    async fn page(shutdown: impl Future<Output = ()>) -> Ended {
        let subscriber = Subscriber::builder("postgres://billing@db/app?sslmode=verify-full")
            .slot("billing_facts")
            .create_if_missing(true)
            .prefix("orders")
            .handler(|fact: Delivery| async move {
                println!("{} {} {}", fact.aggregate_type(), fact.aggregate_id(), fact.event_type());
                Ok(())
            })
            .build()?;
        subscriber.run(shutdown).await?;
        Ok(())
    }
}

#[test]
fn what_the_documents_show_of_a_subscriber_compiles() {
    let compiled = bare(include_str!("subscriber.rs"));
    let readme = shown(include_str!("../../README.md"), "Subscriber::builder");
    let page = shown(include_str!("../../docs/subscribing.md"), "Subscriber::builder");
    let page = page.strip_prefix("usefactlib::subscribe::{Delivery,Subscriber};").unwrap();
    for block in [&*readme, page] {
        // rustfmt may put a comma behind the last argument of a call.
        let same = |code: &str| code.replace(",)", ")");
        assert!(same(&compiled).contains(&same(block)), "{block}");
    }
}

/// `examples/subscriber.rs`, which prints what it handles.
fn example(postgres: &Postgres) -> testkit::owlpost::Command {
    let tests = std::env::current_exe().unwrap();
    let program: PathBuf = tests.ancestors().nth(2).unwrap().join("examples/subscriber");
    assert!(program.exists(), "{program:?} is built by `cargo test --workspace`");
    Owlpost::command(program)
        .env("MASTER_DATABASE_URL", postgres.url())
        .env("PREFIX", "orders")
        .env("SLOT", SLOT)
}

/// What an example has printed, without a line that was cut off.
fn printed(process: &Owlpost) -> Vec<Line> {
    let text = process.stdout();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let line = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let mut word = || words.next().unwrap();
        let (position, id, aggregate) = (word(), word(), word());
        (id, aggregate, position)
    };
    whole.lines().map(line).collect()
}

#[test]
fn killed_again_and_again_with_its_server_it_loses_nothing() {
    let postgres = Postgres::builder().start();
    let start = || example(&postgres).env("PAUSE_MS", 3).spawn();
    let slot_is_taken = || {
        let query = "SELECT count(*) FROM pg_replication_slots WHERE active";
        postgres.try_client().is_ok() && postgres.ask(query) == "1"
    };
    // Before the first fact, so that every transaction is known.
    let mut commits = Commits::watch(&mut postgres.client(), "oracle");
    let mut handled = Vec::new();
    let mut current = start();
    current.wait_until("the slot to be made", PATIENCE, slot_is_taken);
    let workload = Workload { facts: 6000, aggregates: 60, ..Workload::new("orders", 4) };
    let writers = workload.start(&postgres);
    let mut promised_most = 0;
    for round in 1..=6_usize {
        writers.wait_for(round * 700, PATIENCE);
        let before = confirmed(&postgres);
        current.wait_until("facts to be handled and confirmed", PATIENCE, || {
            printed(&current).len() > 200 && confirmed(&postgres) > before
        });
        if round % 3 == 0 {
            postgres.kill9();
            postgres.start_again();
            current.wait_until("the slot to be taken again", PATIENCE, slot_is_taken);
        } else if round % 3 == 1 {
            let _ = postgres.ask(
                "SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE active",
            );
        }
        current.kill9();
        handled.extend(printed(&current));
        // The sharpest form, before a restart can hide it: what the server may forget has been handled.
        let told = confirmed(&postgres);
        let truth = truth(&postgres);
        commits.read(&mut postgres.client());
        let promised = commits.at_or_below(told, &truth);
        let ids: HashSet<&str> = handled.iter().map(|(id, ..)| id.as_str()).collect();
        let missing = promised.iter().filter(|fact| !ids.contains(fact.fact_id.as_str()));
        assert_eq!(missing.count(), 0, "of {} that are confirmed at {told}", promised.len());
        promised_most = promised_most.max(promised.len());
        current = start();
    }
    assert!(promised_most > 100, "{promised_most} facts were confirmed before a kill");
    writers.wait();
    let written = lsn(&postgres, "SELECT pg_current_wal_flush_lsn()");
    current.wait_until("everything to be confirmed", PATIENCE, || confirmed(&postgres) >= written);
    let status = current.stop(PATIENCE);
    assert_eq!(status.code(), Some(0), "{}", current.stderr());
    handled.extend(printed(&current));
    let repeats = judge(&truth(&postgres), &handled);
    assert!(repeats < 6000, "{repeats} repeats after 6 kills");
}

#[test]
fn a_million_facts_behind_slow_handlers_take_no_more_memory_and_do_not_hold_up_the_server() {
    let postgres = Postgres::builder().start();
    // The first makes the slot.
    let first = example(&postgres).spawn();
    first.wait_for_log("streaming", PATIENCE);
    first.kill9();
    // Small ones, of many aggregates: what is kept of each weighs most then.
    let emitted = "SELECT count(pg_logical_emit_message(true, 'orders', format(
        '{\"aggregate_type\":\"order\",\"aggregate_id\":\"%s\",\"event_type\":\"e\"}', n)))
        FROM generate_series(1, 250000) AS n";
    for _ in 0..4 {
        assert_eq!(postgres.ask(emitted), "250000");
    }
    let slow = example(&postgres).env("PAUSE_MS", 3_600_000).spawn();
    slow.wait_for_log("hung up, so that PostgreSQL need not wait", PATIENCE);
    let taken = "SELECT count(*) FROM pg_replication_slots WHERE active";
    slow.wait_until("the slot to be given back", PATIENCE, || postgres.ask(taken) == "0");
    slow.wait_until("the slot to be taken again", PATIENCE, || postgres.ask(taken) == "1");
    let peak = Usage::of(slow.pid()).unwrap().peak_rss;
    println!("{:.1} MiB", peak as f64 / f64::from(1 << 20));
    assert!(peak < 64 << 20, "{} MiB", peak >> 20);
    assert!(printed(&slow).is_empty());
    let stopped = postgres.stop(Mode::Fast);
    assert!(stopped < Duration::from_secs(10), "{stopped:?}");
    assert!(slow.is_running());
}

#[test]
fn a_failover_goes_on_with_the_new_primary_and_keeps_the_order() {
    // Before 17 a standby has no slots.
    let primary = Postgres::builder().major(18).start();
    let standby = primary.standby();
    let (one, other) = (primary.port(), standby.port());
    let settings = RawConfig {
        master_database_url: Some(format!(
            "postgres://postgres@127.0.0.1:{one},127.0.0.1:{other}/app"
        )),
        replication_slot_failover: Some("true".to_owned()),
        backoff_max: Some("1s".to_owned()),
        ..RawConfig::default()
    };
    let (seen, gate) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let handler = {
        let (seen, gate) = (seen.clone(), Arc::clone(&gate));
        move |fact: Delivery| {
            let (seen, gate) = (seen.clone(), Arc::clone(&gate));
            async move {
                if fact.aggregate_id() == "held" {
                    drop(gate.acquire().await?);
                }
                seen.add(&fact);
                Ok(())
            }
        }
    };
    let subscriber = Subscriber::from_settings(settings)
        .slot(SLOT)
        .create_if_missing(true)
        .prefix("orders")
        .handler(handler);
    let subscriber = Running::start(subscriber);
    subscriber.wait_streaming();
    Workload { facts: 500, aggregates: 30, ..Workload::new("orders", 6) }.run(&primary);
    subscriber.wait_confirmed(&primary);
    let slot = format!(
        "SELECT coalesce(max(confirmed_flush_lsn), '0/0') FROM pg_replication_slots
         WHERE slot_name = '{SLOT}' AND NOT temporary"
    );
    subscriber.wait("the slot on the standby", |_| lsn(&standby, &slot) >= lsn(&primary, &slot));
    // Under way while the primary goes.
    for n in ["1", "2"] {
        emit_event(&primary, "held", n);
    }
    subscriber.wait("the handler to be called", |standing| standing.waiting == 2);
    Workload { facts: 200, aggregates: 30, ..Workload::new("orders", 7) }.run(&primary);
    standby.wait_replayed(lsn(&primary, "SELECT pg_current_wal_flush_lsn()"));
    primary.kill9();
    standby.promote();
    Workload { facts: 500, aggregates: 30, ..Workload::new("orders", 8) }.run(&standby);
    emit_event(&standby, "held", "3");
    let written = || lines(&seen).iter().map(|(id, ..)| id.clone()).collect::<HashSet<_>>();
    let expected = truth(&standby).len();
    subscriber.wait("all others to be handled", |_| written().len() == expected);
    gate.add_permits(1);
    subscriber.wait_confirmed(&standby);
    subscriber.stop();
    let mut others = lines(&seen);
    others.retain(|(_, aggregate, _)| aggregate != "held");
    judge(&truth(&standby), &others);
    let timelines: HashSet<&str> = others.iter().map(|(_, _, position)| &position[..8]).collect();
    assert_eq!(timelines, HashSet::from(["00000001", "00000002"]));
    let mut told = HashSet::new();
    let mut events = seen.of("held");
    events.retain(|event| told.insert(event.clone()));
    assert_eq!(events, ["1", "2", "3"], "first occurrences are in order");
}

#[test]
fn a_process_that_was_asleep_begins_nothing_once_another_has_the_slot() {
    let postgres = Postgres::builder().start();
    let first = example(&postgres).env("PAUSE_MS", 50).env("CONCURRENCY", 1).spawn();
    first.wait_for_log("streaming", PATIENCE);
    let workload = Workload { facts: 400, noise: false, ..Workload::new("orders", 5) };
    workload.run(&postgres);
    first.wait_until("some to be handled", PATIENCE, || printed(&first).len() > 5);
    first.signal(Signal::SIGSTOP);
    let second = example(&postgres).spawn();
    let written = lsn(&postgres, "SELECT pg_current_wal_flush_lsn()");
    second.wait_until("the other one to do it all", PATIENCE, || confirmed(&postgres) >= written);
    let before = printed(&first);
    first.signal(Signal::SIGCONT);
    first.wait_for_log("waiting for the slot", PATIENCE);
    // Long enough for twenty, if it began them.
    std::thread::sleep(Duration::from_secs(1));
    let after = printed(&first);
    assert!(after.len() <= before.len() + 1, "what was under way, and no more: {after:?}");
    second.kill9();
    // In the order of time, but for the one that was under way.
    let handled = [before, printed(&second)].concat();
    judge(&truth(&postgres), &handled);
}
