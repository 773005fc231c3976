use crate::executor::{BlockingExecutor, Parameter, Session, Statement};
use postgres::types::{ToSql, Type};
use postgres::{Client, Error, GenericClient, Transaction};

impl BlockingExecutor for Transaction<'_> {
    type Error = Error;

    fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Option<String>>, Error> {
        run(self, statement)
    }
}

impl BlockingExecutor for Session<&mut Client> {
    type Error = Error;

    fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Option<String>>, Error> {
        run(self.0, statement)
    }
}

fn run<C: GenericClient>(
    client: &mut C,
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
    let rows = client.query_typed(statement.sql, &parameters)?;
    rows.iter().map(|row| row.try_get(0)).collect()
}
