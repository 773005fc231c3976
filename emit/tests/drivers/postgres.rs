use crate::database::url;
use crate::promises::promises;
use crate::{Driver, End, Outcome, Step, insert, outcome};
use factlib_emit::{Emitted, Emitter, Fact, Lsn, Session, published_blocking, wait_lsn_blocking};
use postgres::{Client, Error, NoTls};
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
