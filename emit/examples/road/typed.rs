//! What the README's table has people type, in a program of each driver. `tests/it/clients.rs` holds the table to this
//! file, and runs it.

use crate::url;
use diesel::Connection as _;
use diesel_async::AsyncConnection as _;
use factlib_emit::{EmitError, Emitter, Fact};

fn emitter() -> Emitter {
    Emitter::new("typed")
}

pub(crate) async fn tokio_postgres_client() -> tokio_postgres::Client {
    let connected = tokio_postgres::connect(&url(), tokio_postgres::NoTls).await;
    let (client, connection) = connected.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) async fn sqlx() -> Result<(), EmitError<sqlx::Error>> {
    let emitter = emitter();
    let pool = sqlx::PgPool::connect(&url()).await?;
    let card = r#"{"by": "card"}"#;
    let mut tx = pool.begin().await?;
    emitter.emit(&mut tx, &Fact::new("order", "42", "paid").payload(card)).await?;
    Ok(tx.commit().await?)
}

pub(crate) async fn tokio_postgres() -> Result<(), EmitError<tokio_postgres::Error>> {
    let emitter = emitter();
    let mut client = tokio_postgres_client().await;
    let card = r#"{"by": "card"}"#;
    let mut tx = client.transaction().await?;
    emitter.emit(&mut tx, &Fact::new("order", "42", "paid").payload(card)).await?;
    Ok(tx.commit().await?)
}

pub(crate) async fn diesel_async() -> Result<(), EmitError<diesel::result::Error>> {
    let emitter = emitter();
    let connected = diesel_async::AsyncPgConnection::establish(&url()).await;
    let mut connection = connected.unwrap();
    let card = r#"{"by": "card"}"#;
    connection
        .transaction(async |connection| {
            emitter.emit(connection, &Fact::new("order", "42", "paid").payload(card)).await?;
            Ok(())
        })
        .await
}

pub(crate) fn diesel() -> Result<(), EmitError<diesel::result::Error>> {
    let emitter = emitter();
    let mut connection = diesel::PgConnection::establish(&url()).unwrap();
    let card = r#"{"by": "card"}"#;
    connection.transaction(|connection| {
        emitter.emit_blocking(connection, &Fact::new("order", "42", "paid").payload(card))?;
        Ok(())
    })
}
