//! A relay from PostgreSQL to Kafka.

pub mod relay;
