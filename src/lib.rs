//! A relay from PostgreSQL's write-ahead log to Kafka: the library under the binary `owlpost`.
//!
//! [`relay`] decides and touches nothing; [`postgres`], [`kafka`] and [`run`] touch the world and decide
//! nothing. `ARCHITECTURE.md` in the repository has the map.

pub mod audit;
pub mod check;
pub mod cli;
pub mod command;
pub mod config;
pub mod exit;
pub mod http;
pub mod kafka;
pub mod metrics;
pub mod postgres;
pub mod progress;
pub mod relay;
mod report;
pub mod run;
mod size;
pub mod slot_watch;
pub mod subscribe;
pub mod telemetry;
mod tls;

pub use factlib_emit as emit;
