//! The binary against real servers: each test has a PostgreSQL cluster of its own, and topics of its
//! own in a Kafka that all share, unless it stops that Kafka.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test")]
#![expect(clippy::disallowed_methods, reason = "tests live in real time")]

mod alerts;
mod audit;
mod bars;
mod behind;
mod check;
mod clients;
mod cluster;
mod commands;
mod committed;
mod compression;
mod crash;
mod delivery;
mod documents;
mod emit_sql;
mod envelopes;
mod exactly_once;
mod exactly_once_away;
mod exactly_once_faults;
mod exactly_once_fight;
mod exactly_once_kills;
mod exactly_once_read;
mod examples;
mod failover;
mod heal;
mod idle;
mod interop;
mod lag;
mod metrics;
mod misconfigured;
mod oracle;
mod page;
mod poison;
mod postgres_security;
#[path = "../recorded/mod.rs"]
#[expect(dead_code, reason = "the engine's tests use the rest")]
mod recorded;
mod refusals;
mod security;
mod sequences;
mod sessions;
mod subscriber;
mod support;
mod tail;
mod takeover;
mod topics;
mod transactions;
mod typed;
