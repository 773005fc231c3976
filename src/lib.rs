//! A relay from PostgreSQL to Kafka.

pub mod cli;
pub mod config;
pub mod exit;
pub mod http;
pub mod kafka;
pub mod relay;
pub mod telemetry;
