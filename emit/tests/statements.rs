//! What goes to a driver, and what is made of its answers, with a driver that is none.

use factlib_emit::{
    BlockingExecutor, EmitError, Emitter, Executor, Fact, Lsn, Parameter, STATEMENT_BYTES,
    Statement, published_blocking, wait_lsn_blocking,
};
use std::convert::Infallible;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Answers a position for each message, or what it was told to.
#[derive(Default)]
struct Driver {
    answer: Option<Vec<Option<String>>>,
    /// Of each statement: the text, and how many envelopes of how many bytes.
    asked: Vec<(&'static str, usize, usize)>,
    emitted: usize,
}

impl BlockingExecutor for Driver {
    type Error = Infallible;

    fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Option<String>>, Infallible> {
        let (count, bytes) = match statement.parameters[..] {
            [Parameter::TextArray(prefixes), Parameter::ByteaArray(all)] => {
                assert_eq!(prefixes.len(), all.len());
                (all.len(), all.iter().map(|bytes| bytes.len()).sum())
            }
            [Parameter::Text(_), Parameter::Bytea(bytes)] => (1, bytes.len()),
            _ => (0, 0),
        };
        self.asked.push((statement.sql, count, bytes));
        let first = self.emitted + 1;
        self.emitted += count;
        let positions = (first..first + count).map(|n| Some(format!("0/{n:X}")));
        Ok(self.answer.clone().unwrap_or_else(|| positions.collect()))
    }
}

impl Executor for Driver {
    type Error = Infallible;

    async fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Option<String>>, Infallible> {
        BlockingExecutor::run(self, statement)
    }
}

/// Of a future that waits for nothing.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

fn facts(count: usize, bytes: usize) -> Vec<Fact> {
    let fact = |n: usize| Fact::new("order", n.to_string(), "created").payload(vec![0; bytes]);
    (0..count).map(fact).collect()
}

#[test]
fn ten_thousand_facts_take_one_statement() {
    let (mut driver, emitter) = (Driver::default(), Emitter::new("orders"));
    let emitted = emitter.emit_many_blocking(&mut driver, &facts(10_000, 100)).unwrap();
    assert_eq!((driver.asked.len(), emitted.len()), (1, 10_000));
    let emitted = now(emitter.emit_many(&mut driver, &facts(10_000, 100))).unwrap();
    assert_eq!((driver.asked.len(), emitted.len()), (2, 10_000));
}

#[test]
fn what_is_too_much_for_one_statement_takes_several_in_order() {
    let (mut driver, emitter) = (Driver::default(), Emitter::new("orders"));
    let facts = facts(50, 1_000_000);
    let blocking = emitter.emit_many_blocking(&mut driver, &facts).unwrap();
    let statements = driver.asked.len();
    assert_eq!(statements, 4);
    let awaited = now(emitter.emit_many(&mut driver, &facts)).unwrap();
    assert_eq!(driver.asked.len(), 2 * statements);
    for (_, count, bytes) in &driver.asked {
        assert!(*count > 0 && *bytes <= STATEMENT_BYTES, "{count} of {bytes}");
    }
    let lsns = blocking.iter().chain(&awaited).map(|emitted| emitted.lsn);
    assert!(lsns.eq((1..=100).map(Lsn::from)));
}

#[test]
fn one_that_is_larger_than_a_statement_should_be_goes_alone() {
    let mut driver = Driver::default();
    let emitter = Emitter::new("orders").max_record_bytes(usize::MAX);
    let mut facts = facts(2, 1);
    facts.insert(1, Fact::new("order", "1", "created").payload(vec![0; STATEMENT_BYTES]));
    emitter.emit_many_blocking(&mut driver, &facts).unwrap();
    let counts: Vec<usize> = driver.asked.iter().map(|(_, count, _)| *count).collect();
    assert_eq!(counts, [1, 1, 1]);
}

#[test]
fn without_a_fact_nothing_is_asked() {
    let (mut driver, emitter) = (Driver::default(), Emitter::new("orders"));
    assert_eq!(emitter.emit_many_blocking(&mut driver, &[]).unwrap(), []);
    assert_eq!(now(emitter.emit_many(&mut driver, &[])).unwrap(), []);
    assert_eq!(driver.asked, []);
}

#[test]
fn one_that_is_not_valid_keeps_all_from_being_sent() {
    let (mut driver, emitter) = (Driver::default(), Emitter::new("orders"));
    let mut facts = facts(20, 1_000_000);
    facts.push(Fact::new("order", "", "created"));
    let refused = emitter.emit_many_blocking(&mut driver, &facts).unwrap_err();
    assert_eq!(refused.to_string(), "fact 20: aggregate_id is empty");
    let refused = emitter.emit_blocking(&mut driver, &facts[20]).unwrap_err();
    assert_eq!(refused.to_string(), "aggregate_id is empty");
    assert_eq!(driver.asked, []);
}

#[test]
fn each_way_into_the_server_has_its_function() {
    let mut driver = Driver::default();
    let emitter = Emitter::new("orders");
    for emitter in [emitter.clone(), emitter.through_function()] {
        emitter.emit_blocking(&mut driver, &facts(1, 1)[0]).unwrap();
        emitter.emit_many_blocking(&mut driver, &facts(2, 1)).unwrap();
    }
    let functions = driver.asked.iter().map(|(sql, ..)| sql.contains("factlib.emit_envelope("));
    assert!(functions.eq([false, false, true, true]), "{:?}", driver.asked);
}

#[test]
fn an_answer_that_no_server_gives_is_an_error() {
    let emitter = Emitter::new("orders");
    let text = |text: &str| Some(text.to_owned());
    for answer in [vec![], vec![None], vec![text("1")], vec![text("0/1"), text("0/2")]] {
        let mut driver = Driver { answer: Some(answer.clone()), ..Driver::default() };
        let one = emitter.emit_blocking(&mut driver, &facts(1, 1)[0]);
        let awaited = now(emitter.emit(&mut driver, &facts(1, 1)[0]));
        let many = emitter.emit_many_blocking(&mut driver, &facts(3, 1));
        let wait = wait_lsn_blocking(&mut driver);
        assert!(matches!(one, Err(EmitError::Answer(_))), "{answer:?}");
        assert!(matches!(awaited, Err(EmitError::Answer(_))), "{answer:?}");
        assert!(matches!(many, Err(EmitError::Answer(_))), "{answer:?}");
        assert!(matches!(wait, Err(EmitError::Answer(_))), "{answer:?}");
    }
    let mut driver = Driver { answer: Some(vec![text("t")]), ..Driver::default() };
    let published = published_blocking(&mut driver, Lsn::from(1), "slot");
    assert!(matches!(published, Err(EmitError::Answer(_))), "{published:?}");
}

#[test]
fn an_emitter_is_shared_between_threads_and_what_it_returns_is_sent() {
    fn shared<T: Clone + Send + Sync + 'static>(_: &T) {}
    fn sent<T: Send>(_: &T) {}
    let emitter = Emitter::new("orders");
    shared(&emitter);
    let (mut driver, facts) = (Driver::default(), facts(1, 1));
    sent(&emitter.emit_many(&mut driver, &facts));
}
