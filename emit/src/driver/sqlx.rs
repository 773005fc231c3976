use crate::executor::{Executor, Parameter, Session, Statement};
use sqlx::postgres::{PgConnection, PgPool, Postgres};
use sqlx::{Error, Transaction};

impl Executor for Transaction<'_, Postgres> {
    type Error = Error;

    async fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Option<String>>, Error> {
        run(&mut **self, statement).await
    }
}

/// What functions take that do not care whose transaction it is: `&mut *transaction`.
impl Executor for PgConnection {
    type Error = Error;

    async fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Option<String>>, Error> {
        run(self, statement).await
    }
}

/// `Session(&pool)`: each statement on any of its connections, in autocommit.
impl Executor for Session<&PgPool> {
    type Error = Error;

    async fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Option<String>>, Error> {
        run(self.0, statement).await
    }
}

async fn run<'e>(
    executor: impl sqlx::Executor<'e, Database = Postgres>,
    statement: &Statement<'_>,
) -> Result<Vec<Option<String>>, Error> {
    let mut query = sqlx::query_scalar(statement.sql);
    for parameter in &statement.parameters {
        query = match *parameter {
            Parameter::Text(text) => query.bind(text),
            Parameter::Bytea(bytes) => query.bind(bytes),
            Parameter::TextArray(texts) => query.bind(texts),
            Parameter::ByteaArray(all) => query.bind(all),
        };
    }
    query.fetch_all(executor).await
}
