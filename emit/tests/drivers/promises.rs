//! What holds for every driver.

use crate::database::{Slot, orders, server, url};
use crate::turns::Counter;
use crate::{Driver, End, Step};
use factlib_emit::{Emitter, Fact, Lsn};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The tests of one driver.
macro_rules! promises {
    ($driver:ty) => {
        mod promised {
            use super::*;
            use $crate::promises as promise;

            #[test]
            fn a_commit_publishes_the_fact_as_it_was_given() {
                promise::a_commit_publishes_the_fact_as_it_was_given::<$driver>(module_path!());
            }

            #[test]
            fn a_rollback_publishes_nothing() {
                promise::a_rollback_publishes_nothing::<$driver>(module_path!());
            }

            #[test]
            fn a_savepoint_that_is_rolled_back_takes_its_facts_along() {
                promise::a_savepoint_that_is_rolled_back_takes_its_facts_along::<$driver>(
                    module_path!(),
                );
            }

            #[test]
            fn ten_thousand_facts_keep_their_order() {
                promise::ten_thousand_facts_keep_their_order::<$driver>(module_path!());
            }

            #[test]
            fn what_is_not_valid_sends_nothing_and_ends_nothing() {
                promise::what_is_not_valid_sends_nothing_and_ends_nothing::<$driver>(
                    module_path!(),
                );
            }

            #[test]
            fn what_the_server_refuses_is_said_in_its_words() {
                promise::what_the_server_refuses_is_said_in_its_words::<$driver>(module_path!());
            }

            #[test]
            fn by_the_function_the_same_bytes_arrive() {
                promise::by_the_function_the_same_bytes_arrive::<$driver>(module_path!());
            }

            #[test]
            fn in_autocommit_a_fact_commits_by_itself() {
                promise::in_autocommit_a_fact_commits_by_itself::<$driver>(module_path!());
            }

            #[test]
            fn a_call_takes_as_many_round_trips_as_the_readme_says() {
                promise::a_call_takes_as_many_round_trips_as_the_readme_says::<$driver>(
                    module_path!(),
                );
            }

            #[test]
            fn whether_it_is_published_can_be_asked() {
                promise::whether_it_is_published_can_be_asked::<$driver>(module_path!());
            }
        }
    };
}
pub(crate) use promises;

/// A slot's name, of the driver's module and the promise: both are letters and `_`, and it has room for 63.
fn name(module: &str, promise: &str) -> String {
    let driver = module.split("::").nth(1).unwrap();
    format!("{driver}_{promise}")
}

fn order(id: &str) -> Fact {
    Fact::new("order", id, "created")
}

pub(crate) fn a_commit_publishes_the_fact_as_it_was_given<D: Driver>(module: &str) {
    let slot = Slot::new(&name(module, "commit"));
    let emitter = Emitter::new(name(module, "commit"));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fact = Fact::new("order", "42", "paid")
        .json(&serde_json::json!({"cents": 1999}))
        .unwrap()
        .metadata("tenant", "ä")
        .created_at(UNIX_EPOCH + Duration::from_micros(1_795_475_898_934_567))
        .traceparent(trace)
        .tracestate("a=b");
    let before = SystemTime::now();
    let row: &'static str = name(module, "commit").leak();
    let steps = [Step::Insert(row), Step::Emit(fact), Step::Emit(order("43"))];
    let outcomes = D::transaction(&url(), &emitter, &steps, End::Commit);

    let told = slot.told();
    assert_eq!((told.len(), orders(row)), (2, 1), "{outcomes:?}");
    let emitted = outcomes[1].as_ref().unwrap();
    assert!(told[0].transactional);
    assert_eq!(told[0].lsn, emitted[0].lsn.to_string());
    let event = told[0].event();
    assert_eq!(event.id, emitted[0].id);
    assert_eq!((&*event.aggregate_type, &*event.aggregate_id), ("order", "42"));
    assert_eq!((&*event.event_type, &*event.payload), ("paid", &br#"{"cents":1999}"#[..]));
    assert_eq!(event.created_at, 1_795_475_898_934_567);
    assert_eq!(event.metadata.into_iter().collect::<Vec<_>>(), [("tenant".into(), "ä".into())]);
    let found = event.trace_info.unwrap();
    assert_eq!(found.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(found.span_id, "00f067aa0ba902b7");
    assert_eq!((&*found.metadata["traceparent"], &*found.metadata["tracestate"]), (trace, "a=b"));

    // What it is not given it makes: an id that rises, and the time.
    let other = told[1].event();
    assert!(other.id > event.id && other.id.as_bytes()[14] == b'7', "{} {}", event.id, other.id);
    let made = UNIX_EPOCH + Duration::from_micros(other.created_at.try_into().unwrap());
    assert!(before - Duration::from_micros(1) <= made && made <= SystemTime::now());
}

pub(crate) fn a_rollback_publishes_nothing<D: Driver>(module: &str) {
    let slot = Slot::new(&name(module, "rollback"));
    let emitter = Emitter::new(name(module, "rollback"));
    let steps = [Step::Emit(order("1")), Step::EmitMany(vec![order("2"), order("3")])];
    let outcomes = D::transaction(&url(), &emitter, &steps, End::Rollback);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    D::transaction(&url(), &emitter, &[Step::Emit(order("4"))], End::Commit);
    let told: Vec<String> = slot.told().iter().map(|told| told.event().aggregate_id).collect();
    assert_eq!(told, ["4"]);
}

pub(crate) fn a_savepoint_that_is_rolled_back_takes_its_facts_along<D: Driver>(module: &str) {
    let slot = Slot::new(&name(module, "savepoint"));
    let emitter = Emitter::new(name(module, "savepoint"));
    let steps = [Step::Emit(order("1")), Step::Undone(order("2")), Step::Emit(order("3"))];
    let outcomes = D::transaction(&url(), &emitter, &steps, End::Commit);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let told: Vec<String> = slot.told().iter().map(|told| told.event().aggregate_id).collect();
    assert_eq!(told, ["1", "3"]);
}

pub(crate) fn ten_thousand_facts_keep_their_order<D: Driver>(module: &str) {
    let slot = Slot::new(&name(module, "many"));
    let emitter = Emitter::new(name(module, "many"));
    let facts: Vec<Fact> = (0..10_000).map(|n| order(&n.to_string()).payload("x")).collect();
    let steps = [Step::EmitMany(Vec::new()), Step::EmitMany(facts), Step::Emit(order("10000"))];
    let outcomes = D::transaction(&url(), &emitter, &steps, End::Commit);
    assert_eq!(outcomes[0], Ok(Vec::new()));
    let emitted = outcomes.into_iter().flat_map(Result::unwrap);
    let told = slot.told();
    let found = told.iter().map(|told| (told.lsn.clone(), told.event()));
    let mut pairs = emitted.zip(found).enumerate();
    assert!(pairs.all(|(n, (emitted, (lsn, event)))| {
        event.aggregate_id == n.to_string()
            && event.id == emitted.id
            && lsn == emitted.lsn.to_string()
    }));
    assert_eq!(told.len(), 10_001);
    assert!(told.windows(2).all(|pair| pair[0].event().id < pair[1].event().id));
}

pub(crate) fn what_is_not_valid_sends_nothing_and_ends_nothing<D: Driver>(module: &str) {
    let slot = Slot::new(&name(module, "invalid"));
    let emitter = Emitter::new(name(module, "invalid"));
    let steps = [
        Step::Emit(order("")),
        Step::EmitMany(vec![order("1"), Fact::new("an order", "2", "created")]),
        Step::Emit(order("3")),
    ];
    let outcomes = D::transaction(&url(), &emitter, &steps, End::Commit);
    assert_eq!(outcomes[0], Err("aggregate_id is empty".to_owned()));
    let among = "fact 1: aggregate_type \"an order\" cannot be part of a topic's name: only letters, \
                 digits, '.', '_' and '-' can";
    assert_eq!(outcomes[1], Err(among.to_owned()));
    let told: Vec<String> = slot.told().iter().map(|told| told.event().aggregate_id).collect();
    assert_eq!(told, ["3"]);
}

pub(crate) fn what_the_server_refuses_is_said_in_its_words<D: Driver>(module: &str) {
    let slot = Slot::new(&name(module, "refused"));
    // More than the server's own limit, which counts what it cannot look into once.
    let emitter = Emitter::new(name(module, "refused")).max_record_bytes(1 << 30);
    let emitter = emitter.through_function();
    let large = order("1").payload(vec![0; 1 << 20]);
    let content = emitter.encode(&large, &"x".repeat(36), SystemTime::now()).unwrap().content;
    let steps = [Step::Emit(order("0")), Step::Emit(large), Step::Emit(order("2"))];
    let outcomes = D::transaction(&url(), &emitter, &steps, End::Commit);
    let sentence = format!(
        "fact of {} bytes as a Kafka record, more than factlib.max_record_bytes (1048576)",
        content.len() + 1024
    );
    assert_eq!(outcomes[1], Err(sentence));
    let aborted = "current transaction is aborted, commands ignored until end of transaction block";
    assert_eq!(outcomes[2], Err(aborted.to_owned()));
    assert_eq!(slot.told(), []);
}

pub(crate) fn by_the_function_the_same_bytes_arrive<D: Driver>(module: &str) {
    let slot = Slot::new(&name(module, "function"));
    let emitter = Emitter::new(name(module, "function"));
    let facts: Vec<Fact> = (0..3)
        .map(|n: u8| order(&n.to_string()).payload(vec![n, 0, 255]))
        .map(|fact| fact.id("seven").created_at(UNIX_EPOCH))
        .collect();
    let steps = [Step::Emit(facts[0].clone()), Step::EmitMany(facts[1..].to_vec())];
    D::transaction(&url(), &emitter, &steps, End::Commit);
    let by_message = slot.told();
    let outcomes = D::transaction(&url(), &emitter.clone().through_function(), &steps, End::Commit);
    let by_function = slot.told();
    assert_eq!(by_message.len(), 3);
    assert!(by_message.iter().zip(&by_function).all(|(one, other)| one.content == other.content));
    let lsns = outcomes.into_iter().flat_map(Result::unwrap).map(|emitted| emitted.lsn.to_string());
    assert!(lsns.eq(by_function.iter().map(|told| told.lsn.clone())));
}

pub(crate) fn in_autocommit_a_fact_commits_by_itself<D: Driver>(module: &str) {
    let slot = Slot::new(&name(module, "autocommit"));
    let emitted = D::autocommit(&Emitter::new(name(module, "autocommit")), &order("1"));
    let told = slot.told();
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].event().id, &*told[0].lsn), (emitted.id, &*emitted.lsn.to_string()));
}

pub(crate) fn whether_it_is_published_can_be_asked<D: Driver>(module: &str) {
    let name = name(module, "published");
    let slot = Slot::new(&name);
    let steps = [Step::Emit(order("1"))];
    let outcomes = D::transaction(&url(), &Emitter::new(&*name), &steps, End::Commit);
    let lsn = D::wait_lsn();
    assert!(lsn > outcomes[0].as_ref().unwrap()[0].lsn);
    assert_eq!(D::published(lsn, &name), Ok(false));
    // A slot moves to the end of what it has told; then there is more to tell.
    slot.told();
    D::transaction(&url(), &Emitter::new(&*name), &steps, End::Commit);
    slot.told();
    assert_eq!(D::published(lsn, &name), Ok(true));
    // Up to the very position that is confirmed.
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name =";
    let confirmed: Lsn = server().ask(&format!("{confirmed} '{name}'")).parse().unwrap();
    assert_eq!(D::published(confirmed, &name), Ok(true));
    assert_eq!(D::published(Lsn::from(confirmed.get() + 1), &name), Ok(false));
    let none = "this database has no logical replication slot \"nobodys\"";
    assert_eq!(D::published(lsn, "nobodys"), Err(none.to_owned()));
}

/// The columns of the README's table of drivers: how many round trips the first call in a session takes, and each after it.
fn said(feature: &str) -> (usize, usize) {
    let readme = include_str!("../../README.md");
    let row = readme.lines().find(|line| line.starts_with(&format!("| `{feature}`"))).unwrap();
    let mut cells = row.trim_end_matches(" |").rsplit(" | ");
    let (later, first) = (cells.next().unwrap(), cells.next().unwrap());
    (first.parse().unwrap(), later.parse().unwrap())
}

pub(crate) fn a_call_takes_as_many_round_trips_as_the_readme_says<D: Driver>(module: &str) {
    let counter = Counter::new(server().port());
    let url = url().replace(&server().port().to_string(), &counter.port().to_string());
    let emitter = Emitter::new("counted");
    let turns = |calls: &[Step]| {
        let before = counter.turns();
        let outcomes = D::transaction(&url, &emitter, calls, End::Commit);
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        counter.turns() - before
    };
    let one = || Step::Emit(order("1"));
    let many = || Step::EmitMany((0..10_000).map(|n: i32| order(&n.to_string())).collect());
    let none = turns(&[]);
    let feature = module.split("::").nth(1).unwrap().replace('_', "-");
    for call in [&one as &dyn Fn() -> Step, &many] {
        let first = turns(&[call()]) - none;
        let second = turns(&[call(), call()]) - none - first;
        assert_eq!((first, second), said(&feature), "{feature}");
    }
}
