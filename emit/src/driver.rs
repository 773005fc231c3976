//! One file for each driver; no word of theirs stands outside of it.

#[cfg(any(feature = "diesel", feature = "diesel-async"))]
mod diesel;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlx")]
mod sqlx;
#[cfg(feature = "tokio-postgres")]
mod tokio_postgres;
