use crate::database::url;
use crate::promises::promises;
use crate::{Driver, End, Outcome, Step, insert, outcome, run};
use factlib_emit::{EmitError, Emitted, Emitter, Fact, Lsn, Session, published, wait_lsn};
use sqlx::{Acquire as _, Error, PgConnection, PgPool};
use std::slice;

promises!(Sqlx);

struct Sqlx;

async fn connect(url: &str) -> PgPool {
    PgPool::connect(url).await.unwrap()
}

fn words(error: Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |e| e.message().to_owned())
}

/// As applications write it: whose transaction it is, the caller knows.
async fn emit_one(
    connection: &mut PgConnection,
    emitter: &Emitter,
    fact: &Fact,
) -> Result<Vec<Emitted>, EmitError<Error>> {
    Ok(vec![emitter.emit(connection, fact).await?])
}

impl Driver for Sqlx {
    fn transaction(url: &str, emitter: &Emitter, steps: &[Step], end: End) -> Vec<Outcome> {
        run(async {
            let mut transaction = connect(url).await.begin().await.unwrap();
            let mut outcomes = Vec::new();
            for step in steps {
                let result = match step {
                    Step::Emit(fact) => emit_one(&mut transaction, emitter, fact).await,
                    Step::EmitMany(facts) => emitter.emit_many(&mut transaction, facts).await,
                    Step::Insert(id) => {
                        sqlx::raw_sql(&insert(id)).execute(&mut *transaction).await.unwrap();
                        Ok(Vec::new())
                    }
                    Step::Undone(fact) => {
                        let mut savepoint = transaction.begin().await.unwrap();
                        let result = emitter.emit_many(&mut savepoint, slice::from_ref(fact)).await;
                        savepoint.rollback().await.unwrap();
                        result
                    }
                };
                outcomes.push(outcome(result, words));
            }
            match end {
                End::Commit => transaction.commit().await.unwrap(),
                End::Rollback => transaction.rollback().await.unwrap(),
            }
            outcomes
        })
    }

    fn autocommit(emitter: &Emitter, fact: &Fact) -> Emitted {
        run(async { emitter.emit(&mut Session(&connect(&url()).await), fact).await.unwrap() })
    }

    fn wait_lsn() -> Lsn {
        run(async { wait_lsn(&mut Session(&connect(&url()).await)).await.unwrap() })
    }

    fn published(lsn: Lsn, slot: &str) -> Result<bool, String> {
        let asked = run(async { published(&mut Session(&connect(&url()).await), lsn, slot).await });
        asked.map_err(|error| error.to_string())
    }
}

#[test]
fn a_task_may_emit() {
    let emit = async {
        let mut transaction = connect(&url()).await.begin().await.unwrap();
        let fact = Fact::new("order", "1", "created");
        Emitter::new("spawned").emit(&mut transaction, &fact).await.unwrap();
        Emitter::new("spawned").emit(&mut *transaction, &fact).await.unwrap();
    };
    // Which must be Send for it.
    run(async { tokio::spawn(emit).await.unwrap() });
}
