//! Real servers for tests, the demo and the benchmarks.
//!
//! Nothing here is published and nothing here is used by the relay. What judges the relay must not
//! share its code, so everything speaks through somebody else's: the `postgres` crate, rskafka's
//! messages, Kafka's own Java tools, `prost` for the envelope.
//!
//! ```no_run
//! use testkit::{Kafka, Owlpost, Postgres};
//!
//! let postgres = Postgres::builder().start();
//! let kafka = Kafka::shared();
//! kafka.create_topic("orders.order", 4, &[]);
//! let relay = Owlpost::command("target/debug/owlpost")
//!     .servers(&postgres, kafka)
//!     .env("WAL_PREFIX", "orders")
//!     .spawn();
//! relay.wait_ready();
//! let workload = testkit::workload::Workload::new("orders", 1);
//! workload.run(&postgres);
//! let truth = testkit::workload::truth(&mut postgres.client());
//! let mut reader = kafka.reader("orders.order");
//! reader.read_until("the facts", testkit::wait::LIMIT, |records| records.len() >= truth.len());
//! testkit::checker::Checker::new(&truth).check(reader.records()).assert_clean();
//! ```
//!
//! - A server dies with the process that started it, also when that is killed with SIGKILL, and its
//!   directory goes with it ([`process`], [`scratch`]).
//! - Waiting means polling for the real condition, with a limit ([`wait`]). A failed start or a limit
//!   passed is a panic that quotes the server's log: this is a test tool.
//! - Everything here blocks. In an async test, call it from `spawn_blocking` or a plain thread.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test tool stops where it stands: a panic with a location is the report"
)]
#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

pub mod capture;
pub mod certificates;
pub mod checker;
pub mod demo;
pub mod envelope;
mod error;
pub mod example;
pub mod footprint;
mod http;
pub mod kafka;
mod lsn;
pub mod oracle;
pub mod owlpost;
pub mod port;
pub mod postgres;
pub mod process;
pub mod provision;
pub mod proxy;
pub mod rng;
pub mod scrape;
pub mod scratch;
mod stream;
pub mod traffic;
pub mod versions;
pub mod wait;
pub mod workload;

pub use crate::error::{Error, Result};
pub use crate::kafka::{Batch, Follower, Kafka, Reader, Record, java_partitions};
pub use crate::lsn::Lsn;
pub use crate::owlpost::Owlpost;
pub use crate::postgres::{Mode, Postgres};
pub use crate::proxy::Proxy;
pub use crate::scrape::Scrape;
pub use crate::stream::Stream;
