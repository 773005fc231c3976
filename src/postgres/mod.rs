//! PostgreSQL over TCP or a Unix socket: the thin driver around `factlib_protocol`.
//!
//! It dials, logs in, asks and carries bytes. What is confirmed, where reading starts and when to
//! hang up is the engine's.

pub mod audit_slot;
mod connect;
mod connection;
mod dial;
mod failure;
pub mod functions;
mod gap;
mod identify;
mod password;
mod queries;
mod setup;
mod slot_poll;
mod socket;
pub mod survey;
mod synchronous;
mod tls;
mod verifier;

pub use connection::{Connection, Turn};
pub use failure::Failure;
pub use gap::{Accepted, accept_gap};
pub(crate) use identify::dropped_words;
pub use identify::{Ask, Identified, Temporary, identify, identify_cluster};
pub use password::PasswordFailure;
pub use queries::{Queries, Row};
pub use setup::{Found, FoundPublication, FoundSlot, Gap, Names, Plan, plan, set_up};
pub(crate) use setup::{
    computed, not_logical, outdated, plan_of_objects, synchronous, too_old, without_failover,
};
pub use slot_poll::SlotPoll;
pub use tls::TlsFailure;
