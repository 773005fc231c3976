use crate::database::url;
use crate::promises::promises;
use crate::{Driver, End, Outcome, Step, insert, outcome, run};
use diesel::result::Error;
use diesel_async::{AsyncConnection as _, AsyncPgConnection, SimpleAsyncConnection as _};
use factlib_emit::{EmitError, Emitted, Emitter, Fact, Lsn, published, wait_lsn};
use std::slice;

promises!(DieselAsync);

struct DieselAsync;

async fn connect(url: &str) -> AsyncPgConnection {
    AsyncPgConnection::establish(url).await.unwrap()
}

fn words(error: Error) -> String {
    match error {
        Error::DatabaseError(_, information) => information.message().to_owned(),
        error => error.to_string(),
    }
}

impl Driver for DieselAsync {
    fn transaction(url: &str, emitter: &Emitter, steps: &[Step], end: End) -> Vec<Outcome> {
        run(async {
            let mut outcomes = Vec::new();
            let mut connection = connect(url).await;
            let ended = connection
                .transaction(async |connection| {
                    for step in steps {
                        let result = match step {
                            Step::Emit(fact) => {
                                emitter.emit(connection, fact).await.map(|emitted| vec![emitted])
                            }
                            Step::EmitMany(facts) => emitter.emit_many(connection, facts).await,
                            Step::Insert(id) => {
                                connection.batch_execute(&insert(id)).await?;
                                Ok(Vec::new())
                            }
                            Step::Undone(fact) => {
                                let mut result = Ok(Vec::new());
                                let undone: Result<(), Error> = connection
                                    .transaction(async |connection| {
                                        let one = slice::from_ref(fact);
                                        result = emitter.emit_many(connection, one).await;
                                        Err(Error::RollbackTransaction)
                                    })
                                    .await;
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
                })
                .await;
            let rolled_back = matches!(ended, Err(EmitError::Database(Error::RollbackTransaction)));
            assert_eq!(rolled_back, end == End::Rollback, "{ended:?}");
            outcomes
        })
    }

    fn autocommit(emitter: &Emitter, fact: &Fact) -> Emitted {
        run(async { emitter.emit(&mut connect(&url()).await, fact).await.unwrap() })
    }

    fn wait_lsn() -> Lsn {
        run(async { wait_lsn(&mut connect(&url()).await).await.unwrap() })
    }

    fn published(lsn: Lsn, slot: &str) -> Result<bool, String> {
        let asked = run(async { published(&mut connect(&url()).await, lsn, slot).await });
        asked.map_err(|error| error.to_string())
    }
}
