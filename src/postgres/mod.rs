//! PostgreSQL over TCP or a Unix socket: the thin driver around `factlib_protocol`.
//!
//! It dials, logs in, asks and carries bytes. What is confirmed, where reading starts and when to
//! hang up is the engine's.

pub mod audit_slot;
mod connection;
mod dial;
mod identify;
mod setup;
mod synchronous;

pub use connection::{Connection, Failure, Turn};
pub use identify::{Ask, Identified, identify};
pub use setup::{Found, FoundPublication, FoundSlot, Names, Plan, plan, set_up};
