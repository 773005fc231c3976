//! A relay from PostgreSQL to Kafka.

pub mod config;
pub mod exit;
pub mod relay;
