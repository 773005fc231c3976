use crate::database::url;
use crate::promises::promises;
use crate::{Driver, End, Outcome, Step, insert, outcome};
use diesel::connection::SimpleConnection as _;
use diesel::result::Error;
use diesel::{Connection as _, PgConnection};
use factlib_emit::{EmitError, Emitted, Emitter, Fact, Lsn, published_blocking, wait_lsn_blocking};
use std::slice;

promises!(Diesel);

struct Diesel;

fn connect(url: &str) -> PgConnection {
    PgConnection::establish(url).unwrap()
}

fn words(error: Error) -> String {
    match error {
        Error::DatabaseError(_, information) => information.message().to_owned(),
        error => error.to_string(),
    }
}

impl Driver for Diesel {
    fn transaction(url: &str, emitter: &Emitter, steps: &[Step], end: End) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        let ended = connect(url).transaction(|connection| {
            for step in steps {
                let result = match step {
                    Step::Emit(fact) => emitter.emit_blocking(connection, fact).map(|e| vec![e]),
                    Step::EmitMany(facts) => emitter.emit_many_blocking(connection, facts),
                    Step::Insert(id) => {
                        // The driver's error becomes the crate's.
                        connection.batch_execute(&insert(id))?;
                        Ok(Vec::new())
                    }
                    Step::Undone(fact) => {
                        let mut result = Ok(Vec::new());
                        let undone: Result<(), Error> = connection.transaction(|connection| {
                            result = emitter.emit_many_blocking(connection, slice::from_ref(fact));
                            Err(Error::RollbackTransaction)
                        });
                        assert_eq!(undone, Err(Error::RollbackTransaction));
                        result
                    }
                };
                outcomes.push(outcome(result, words));
            }
            match end {
                End::Commit => Ok(()),
                End::Rollback => Err(EmitError::Database(Error::RollbackTransaction)),
            }
        });
        let rolled_back = matches!(ended, Err(EmitError::Database(Error::RollbackTransaction)));
        assert_eq!(rolled_back, end == End::Rollback, "{ended:?}");
        outcomes
    }

    fn autocommit(emitter: &Emitter, fact: &Fact) -> Emitted {
        emitter.emit_blocking(&mut connect(&url()), fact).unwrap()
    }

    fn wait_lsn() -> Lsn {
        wait_lsn_blocking(&mut connect(&url())).unwrap()
    }

    fn published(lsn: Lsn, slot: &str) -> Result<bool, String> {
        published_blocking(&mut connect(&url()), lsn, slot).map_err(|error| error.to_string())
    }
}
