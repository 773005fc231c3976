//! A relay from PostgreSQL to Kafka.

pub mod cli;
pub mod config;
pub mod exit;
pub mod http;
pub mod kafka;
pub mod postgres;
pub mod relay;
mod report;
pub mod run;
pub mod telemetry;
