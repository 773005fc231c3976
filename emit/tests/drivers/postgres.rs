use crate::database::url;
use crate::promises::promises;
use crate::{Driver, End, Outcome, Step, insert, outcome};
use factlib_emit::{Emitted, Emitter, Fact, Lsn, Session, published_blocking, wait_lsn_blocking};
use postgres::{Client, Error, NoTls};
use std::cell::RefCell;
use std::slice;

promises!(Postgres);

struct Postgres;

fn connect(url: &str) -> Client {
    Client::connect(url, NoTls).unwrap()
}

fn words(error: Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

impl Driver for Postgres {
    fn transaction(url: &str, emitter: &Emitter, steps: &[Step], end: End) -> Vec<Outcome> {
        let mut client = connect(url);
        let mut transaction = client.transaction().unwrap();
        let mut outcomes = Vec::new();
        for step in steps {
            let result = match step {
                Step::Emit(fact) => {
                    emitter.emit_blocking(&mut transaction, fact).map(|emitted| vec![emitted])
                }
                Step::EmitMany(facts) => emitter.emit_many_blocking(&mut transaction, facts),
                Step::Insert(id) => {
                    transaction.batch_execute(&insert(id)).unwrap();
                    Ok(Vec::new())
                }
                Step::Undone(fact) => {
                    let mut savepoint = transaction.savepoint("undone").unwrap();
                    let result = emitter.emit_many_blocking(&mut savepoint, slice::from_ref(fact));
                    savepoint.rollback().unwrap();
                    result
                }
            };
            outcomes.push(outcome(result, words));
        }
        match end {
            End::Commit => transaction.commit().unwrap(),
            End::Rollback => transaction.rollback().unwrap(),
        }
        outcomes
    }

    fn autocommit(emitter: &Emitter, fact: &Fact) -> Emitted {
        emitter.emit_blocking(&mut Session(&mut connect(&url())), fact).unwrap()
    }

    fn wait_lsn() -> Lsn {
        wait_lsn_blocking(&mut Session(&mut connect(&url()))).unwrap()
    }

    fn published(lsn: Lsn, slot: &str) -> Result<bool, String> {
        published_blocking(&mut Session(&mut connect(&url())), lsn, slot)
            .map_err(|error| error.to_string())
    }
}

/// Symptom: on an idle server a position behind a page's header is confirmed only once something else is written.
#[test]
fn what_ends_with_its_page_of_the_log_is_published_with_it() {
    let server = testkit::Postgres::builder().setting("autovacuum", "off").start();
    let client = RefCell::new(server.client());
    let ask = |sql: &str| client.borrow_mut().query_one(sql, &[]).unwrap().get::<_, String>(0);
    let slot = |function: &str| {
        let sql = "(SELECT count(*) FROM pg_logical_slot_get_binary_changes('slot', NULL, NULL,
                       'proto_version', '1', 'publication_names', 'facts', 'messages', 'true'))";
        ask(&format!("SELECT {}::text", function.replace("READ", sql)))
    };
    client.borrow_mut().batch_execute("CREATE PUBLICATION facts").unwrap();
    slot("pg_create_logical_replication_slot('slot', 'pgoutput')");
    let written = || {
        let lsn: Lsn = ask("SELECT pg_current_wal_insert_lsn()::text").parse().unwrap();
        usize::try_from(lsn.get()).unwrap()
    };
    // A transaction with a payload of so many bytes; so many it takes in the log.
    let emit = |bytes: usize| {
        let fact = Fact::new("order", "1", "created").payload(vec![0; bytes]);
        let before = written();
        let emitter = Emitter::new("orders");
        emitter.emit_blocking(&mut Session(&mut *client.borrow_mut()), &fact).unwrap();
        written() - before
    };
    let room = || 8192 - written() % 8192;
    let asked = (0..100).find_map(|_| {
        if room() < 4000 {
            emit(4000);
            return None;
        }
        let taken = emit(1000);
        emit(1000 + room() - taken);
        let behind = written();
        if ![24, 40].contains(&(behind % 8192)) {
            return None;
        }
        slot("READ");
        let wait = wait_lsn_blocking(&mut Session(&mut *client.borrow_mut())).unwrap();
        let lsns = [0, 1].map(|more| Lsn::from(u64::try_from(behind).unwrap() + more));
        let asked = [wait, lsns[0], lsns[1]].map(|lsn| {
            published_blocking(&mut Session(&mut *client.borrow_mut()), lsn, "slot").unwrap()
        });
        // Now and then the server writes by itself.
        (written() == behind).then_some((wait.get() % 8192, asked))
    });
    assert_eq!(asked, Some((0, [true, true, false])));
}
