//! An order service: each order is a row and a fact, in one transaction. `shipping.rs` acts on the facts; `make example`
//! runs both.
//!
//! ```sh
//! DATABASE_URL=postgres://app@localhost/app LISTEN=127.0.0.1:8080 orders
//! curl -d '{"item":"book","cents":1999,"card":"visa"}' -H 'content-type: application/json' localhost:8080/orders
//! ```
#![expect(clippy::print_stderr, reason = "an example has no log")]

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use factlib_emit::{EmitError, Emitter, Fact};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::signal::unix::{SignalKind, signal};

/// What every request needs: cheap to clone.
#[derive(Clone)]
struct Shop {
    pool: PgPool,
    emitter: Emitter,
}

#[derive(Deserialize)]
struct Order {
    item: String,
    cents: i64,
    card: String,
}

/// What others are told of an order. That is a contract, and not the row.
#[derive(Serialize)]
struct Placed<'a> {
    item: &'a str,
    cents: i64,
}

#[derive(Serialize)]
struct Accepted {
    order: i64,
    fact: String,
}

enum Failure {
    Declined,
    Emit(EmitError<sqlx::Error>),
}

impl From<EmitError<sqlx::Error>> for Failure {
    fn from(error: EmitError<sqlx::Error>) -> Self {
        Self::Emit(error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Emit(EmitError::Database(error))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Declined => (StatusCode::PAYMENT_REQUIRED, "declined").into_response(),
            // Found before anything was sent: what the caller wants cannot be told to others.
            Self::Emit(EmitError::Invalid(invalid)) => {
                (StatusCode::UNPROCESSABLE_ENTITY, invalid.to_string()).into_response()
            }
            Self::Emit(error) => {
                eprintln!("an order failed: {error}");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

async fn place(
    State(shop): State<Shop>,
    Json(order): Json<Order>,
) -> Result<(StatusCode, Json<Accepted>), Failure> {
    let mut tx = shop.pool.begin().await?;
    let id: i64 =
        sqlx::query_scalar("INSERT INTO orders (item, cents) VALUES ($1, $2) RETURNING id")
            .bind(&order.item)
            .bind(order.cents)
            .fetch_one(&mut *tx)
            .await?;
    let placed = Placed { item: &order.item, cents: order.cents };
    let fact = Fact::new("order", id.to_string(), "placed");
    let fact = fact.json(&placed).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let emitted = shop.emitter.emit(&mut tx, &fact).await?;
    if order.card == "declined" {
        // Without a commit there was neither a row nor a fact.
        return Err(Failure::Declined);
    }
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(Accepted { order: id, fact: emitted.id })))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    let table = "CREATE TABLE IF NOT EXISTS orders (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item text NOT NULL, cents bigint NOT NULL)";
    sqlx::raw_sql(table).execute(&pool).await?;
    let shop = Shop { pool, emitter: Emitter::new("orders") };
    let app = Router::new().route("/orders", post(place)).with_state(shop);
    let listener = tokio::net::TcpListener::bind(std::env::var("LISTEN")?).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        terminate.recv().await;
    };
    Ok(axum::serve(listener, app).with_graceful_shutdown(stop).await?)
}
