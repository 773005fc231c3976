use crate::executor::{Executor, Parameter, Session, Statement};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, GenericClient, Transaction};

impl Executor for Transaction<'_> {
    type Error = Error;

    async fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Option<String>>, Error> {
        run(self, statement).await
    }
}

impl Executor for Session<&Client> {
    type Error = Error;

    async fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Option<String>>, Error> {
        run(self.0, statement).await
    }
}

/// A transaction that is shared.
impl Executor for Session<&Transaction<'_>> {
    type Error = Error;

    async fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Option<String>>, Error> {
        run(self.0, statement).await
    }
}

async fn run<C: GenericClient + Sync>(
    client: &C,
    statement: &Statement<'_>,
) -> Result<Vec<Option<String>>, Error> {
    let parameters: Vec<(&(dyn ToSql + Sync), Type)> = statement
        .parameters
        .iter()
        .map(|parameter| match parameter {
            Parameter::Text(text) => (text as &(dyn ToSql + Sync), Type::TEXT),
            Parameter::Bytea(bytes) => (bytes as _, Type::BYTEA),
            Parameter::TextArray(texts) => (texts as _, Type::TEXT_ARRAY),
            Parameter::ByteaArray(all) => (all as _, Type::BYTEA_ARRAY),
        })
        .collect();
    // With the types said nothing is prepared first: one round trip, and no trouble with poolers.
    let rows = client.query_typed(statement.sql, &parameters).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}
