//! Facts as JSON lines on standard input, emitted each in one transaction, by the driver that is named; or what the
//! README has people type. Driven by `tests/it/clients.rs`.
//!
//! ```sh
//! road emit sqlx commit      # DATABASE_URL, MAX_RECORD_BYTES
//! road type sqlx
//! ```
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test program"
)]

mod typed;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use diesel::result::Error as DieselError;
use diesel::{Connection as _, PgConnection};
use diesel_async::{AsyncConnection as _, AsyncPgConnection};
use factlib_emit::{
    EmitError, Emitted, Emitter, Fact, InvalidFact, Lsn, Session, wait_lsn, wait_lsn_blocking,
};
use serde_json::{Value, json};
use sqlx::PgPool;
use std::error::Error;
use std::io::BufRead as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What was emitted, and the position that was read behind the end of its transaction; or why not.
type Said = Result<(Emitted, Lsn), Refused>;

/// SQLSTATE and sentence.
struct Refused(String, String);

impl Refused {
    /// As the function in the server would refuse it.
    fn here(invalid: &InvalidFact) -> Self {
        Self(invalid.sqlstate().to_owned(), invalid.to_string())
    }
}

/// Only what is no fact may be refused here; the rest ends the program.
fn refused<E: Error>(error: EmitError<E>) -> Refused {
    match error {
        EmitError::Invalid(invalid) => Refused::here(&invalid),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn url() -> String {
    std::env::var("DATABASE_URL").expect("DATABASE_URL")
}

fn emitter() -> Emitter {
    let emitter = Emitter::new("");
    match std::env::var("MAX_RECORD_BYTES") {
        Ok(bytes) => emitter.max_record_bytes(bytes.parse().expect("MAX_RECORD_BYTES")),
        Err(_) => emitter,
    }
}

/// `2026-11-29T20:15:00.123456+00:00`.
fn time(text: &str) -> SystemTime {
    let numbers: Vec<i64> = text
        .trim_end_matches("+00:00")
        .split(['-', 'T', ':', '.'])
        .map(|number| number.parse().expect("a time"))
        .collect();
    let [year, month, day, hour, minute, second, micros] = numbers[..].try_into().expect("a time");
    // The calendar repeats every 400 years, of 146,097 days; a year that begins in March ends with the leap day.
    let year = if month > 2 { year } else { year - 1 };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let century = year.rem_euclid(400);
    let days = year.div_euclid(400) * 146_097 + century * 365 + century / 4 - century / 100
        + of_year
        - 719_468;
    let micros = (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + micros;
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

fn fact(line: &Value) -> Fact {
    let text = |name: &str| line[name].as_str();
    let required = |name: &str| text(name).expect("a text");
    let mut fact =
        Fact::new(required("aggregate_type"), required("aggregate_id"), required("event_type"));
    let payload = &line["payload"];
    fact = match (&payload["bytes"], &payload["text"], payload.get("json")) {
        (Value::String(bytes), ..) => fact.payload(BASE64.decode(bytes).unwrap()),
        (_, Value::String(text), _) => fact.payload(text.as_str()),
        (.., Some(value)) => fact.json(value).unwrap(),
        _ => fact,
    };
    for (key, value) in line["metadata"].as_object().into_iter().flatten() {
        fact = fact.metadata(key, value.as_str().expect("metadata is text"));
    }
    fact = text("prefix").into_iter().fold(fact, Fact::prefix);
    fact = text("id").into_iter().fold(fact, Fact::id);
    fact = text("traceparent").into_iter().fold(fact, Fact::traceparent);
    fact = text("tracestate").into_iter().fold(fact, Fact::tracestate);
    text("created_at").map(time).into_iter().fold(fact, Fact::created_at)
}

fn say(said: Said) {
    let said = match said {
        Ok((Emitted { id, lsn }, wait)) => {
            json!({"id": id, "lsn": lsn.to_string(), "wait": wait.to_string()})
        }
        Err(Refused(sqlstate, message)) => json!({"sqlstate": sqlstate, "message": message}),
    };
    println!("{said}");
}

fn facts() -> impl Iterator<Item = Fact> {
    let lines = std::io::stdin().lock().lines();
    lines.map(|line| fact(&serde_json::from_str(&line.unwrap()).unwrap()))
}

async fn by_sqlx(commit: bool) {
    let pool = PgPool::connect(&url()).await.unwrap();
    let emitter = emitter();
    for fact in facts() {
        let emit = async {
            let mut tx = pool.begin().await.unwrap();
            let emitted = emitter.emit(&mut tx, &fact).await.map_err(refused)?;
            if commit {
                tx.commit().await.unwrap()
            } else {
                tx.rollback().await.unwrap()
            }
            Ok((emitted, wait_lsn(&mut Session(&pool)).await.unwrap()))
        };
        say(emit.await);
    }
}

async fn by_tokio_postgres(commit: bool) {
    let mut client = typed::tokio_postgres_client().await;
    let emitter = emitter();
    for fact in facts() {
        let emit = async {
            let mut tx = client.transaction().await.unwrap();
            let emitted = emitter.emit(&mut tx, &fact).await.map_err(refused)?;
            if commit {
                tx.commit().await.unwrap()
            } else {
                tx.rollback().await.unwrap()
            }
            Ok((emitted, wait_lsn(&mut Session(&client)).await.unwrap()))
        };
        say(emit.await);
    }
}

fn by_postgres(commit: bool) {
    let mut client = postgres::Client::connect(&url(), postgres::NoTls).unwrap();
    let emitter = emitter();
    for fact in facts() {
        let mut emit = || {
            let mut tx = client.transaction().unwrap();
            let emitted = emitter.emit_blocking(&mut tx, &fact).map_err(refused)?;
            if commit {
                tx.commit().unwrap()
            } else {
                tx.rollback().unwrap()
            }
            Ok((emitted, wait_lsn_blocking(&mut Session(&mut client)).unwrap()))
        };
        say(emit());
    }
}

/// What a closure of diesel's transactions returns, by which it commits or rolls back.
fn ended(commit: bool) -> Result<(), EmitError<DieselError>> {
    if commit { Ok(()) } else { Err(EmitError::Database(DieselError::RollbackTransaction)) }
}

/// What became of a transaction of diesel's.
fn told(
    emitted: Option<Emitted>,
    ended: Result<(), EmitError<DieselError>>,
) -> Result<Emitted, Refused> {
    match (emitted, ended) {
        (Some(emitted), Ok(()) | Err(EmitError::Database(DieselError::RollbackTransaction))) => {
            Ok(emitted)
        }
        (_, ended) => Err(refused(ended.expect_err("nothing was emitted"))),
    }
}

fn by_diesel(commit: bool) {
    let mut connection = PgConnection::establish(&url()).unwrap();
    let emitter = emitter();
    for fact in facts() {
        let mut emitted = None;
        let done = connection.transaction(|connection| {
            emitted = Some(emitter.emit_blocking(connection, &fact)?);
            ended(commit)
        });
        say(told(emitted, done)
            .map(|emitted| (emitted, wait_lsn_blocking(&mut connection).unwrap())));
    }
}

async fn by_diesel_async(commit: bool) {
    let mut connection = AsyncPgConnection::establish(&url()).await.unwrap();
    let emitter = emitter();
    for fact in facts() {
        let mut emitted = None;
        let done = connection
            .transaction(async |connection| {
                emitted = Some(emitter.emit(connection, &fact).await?);
                ended(commit)
            })
            .await;
        let said = match told(emitted, done) {
            Ok(emitted) => Ok((emitted, wait_lsn(&mut connection).await.unwrap())),
            Err(refused) => Err(refused),
        };
        say(said);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // `postgres` brings a runtime of its own, which cannot run in this one.
    let alone = |road: fn(bool), commit| tokio::task::spawn_blocking(move || road(commit));
    match arguments[..] {
        ["emit", driver, mode] => {
            let commit = mode == "commit";
            match driver {
                "sqlx" => by_sqlx(commit).await,
                "tokio-postgres" => by_tokio_postgres(commit).await,
                "postgres" => alone(by_postgres, commit).await.unwrap(),
                "diesel" => alone(by_diesel, commit).await.unwrap(),
                "diesel-async" => by_diesel_async(commit).await,
                other => panic!("no driver {other}"),
            }
        }
        ["type", driver] => match driver {
            "sqlx" => typed::sqlx().await.unwrap(),
            "tokio-postgres" => typed::tokio_postgres().await.unwrap(),
            "diesel-async" => typed::diesel_async().await.unwrap(),
            "diesel" => typed::diesel().unwrap(),
            other => panic!("no driver {other}"),
        },
        _ => panic!("emit DRIVER commit|rollback, or type DRIVER: {arguments:?}"),
    }
}
