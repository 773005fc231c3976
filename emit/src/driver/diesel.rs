use crate::executor::{Parameter, Statement};
use diesel::deserialize::{self, QueryableByName};
use diesel::pg::Pg;
use diesel::query_builder::{BoxedSqlQuery, SqlQuery};
use diesel::row::NamedRow;
use diesel::sql_types::{Array, Bytea, Nullable, Text};

struct Row(Option<String>);

impl QueryableByName<Pg> for Row {
    fn build<'a>(row: &impl NamedRow<'a, Pg>) -> deserialize::Result<Self> {
        NamedRow::get::<Nullable<Text>, _>(row, "value").map(Self)
    }
}

fn query<'a>(statement: &Statement<'a>) -> BoxedSqlQuery<'a, Pg, SqlQuery> {
    let mut query = diesel::sql_query(statement.sql).into_boxed();
    for parameter in &statement.parameters {
        query = match *parameter {
            Parameter::Text(text) => query.bind::<Text, _>(text),
            Parameter::Bytea(bytes) => query.bind::<Bytea, _>(bytes),
            Parameter::TextArray(texts) => query.bind::<Array<Text>, _>(texts),
            Parameter::ByteaArray(all) => query.bind::<Array<Bytea>, _>(all),
        };
    }
    query
}

fn values(rows: Vec<Row>) -> Vec<Option<String>> {
    rows.into_iter().map(|row| row.0).collect()
}

#[cfg(feature = "diesel")]
mod blocking {
    use super::{query, values};
    use crate::executor::{BlockingExecutor, Statement};
    use diesel::result::Error;
    use diesel::{PgConnection, RunQueryDsl as _};

    impl BlockingExecutor for PgConnection {
        type Error = Error;

        fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Option<String>>, Error> {
            query(statement).load(self).map(values)
        }
    }
}

#[cfg(feature = "diesel-async")]
mod asynchronous {
    use super::{query, values};
    use crate::executor::{Executor, Statement};
    use diesel::result::Error;
    use diesel_async::{AsyncPgConnection, RunQueryDsl as _};

    impl Executor for AsyncPgConnection {
        type Error = Error;

        async fn run(&mut self, statement: &Statement<'_>) -> Result<Vec<Option<String>>, Error> {
            query(statement).load(self).await.map(values)
        }
    }
}
