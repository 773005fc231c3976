use crate::database::url;
use crate::promises::promises;
use crate::{Driver, End, Outcome, Step, insert, outcome, run};
use factlib_emit::{Emitted, Emitter, Fact, Lsn, Session, published, wait_lsn};
use std::slice;
use tokio_postgres::{Client, Error, NoTls};

promises!(TokioPostgres);

struct TokioPostgres;

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn words(error: Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

impl Driver for TokioPostgres {
    fn transaction(url: &str, emitter: &Emitter, steps: &[Step], end: End) -> Vec<Outcome> {
        run(async {
            let mut client = connect(url).await;
            let mut transaction = client.transaction().await.unwrap();
            let mut outcomes = Vec::new();
            for step in steps {
                let result = match step {
                    Step::Emit(fact) => emitter.emit(&mut transaction, fact).await.map(|e| vec![e]),
                    Step::EmitMany(facts) => emitter.emit_many(&mut transaction, facts).await,
                    Step::Insert(id) => {
                        transaction.batch_execute(&insert(id)).await.unwrap();
                        Ok(Vec::new())
                    }
                    Step::Undone(fact) => {
                        let mut savepoint = transaction.savepoint("undone").await.unwrap();
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
fn a_transaction_that_is_shared_will_do() {
    run(async {
        let mut client = connect(&url()).await;
        let transaction = client.transaction().await.unwrap();
        let (one, other) = (&transaction, &transaction);
        let emitter = Emitter::new("shared");
        let fact = Fact::new("order", "1", "created");
        let first = emitter.emit(&mut Session(one), &fact).await.unwrap();
        let second = emitter.emit(&mut Session(other), &fact).await.unwrap();
        assert!(first.lsn < second.lsn);
    });
}
