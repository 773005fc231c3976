//! The relay engine: a pure state machine from (input, now) to outputs.
//!
//! It decides everything (what may be confirmed, what is sent where and again, when to hang up, when
//! to stop) and touches nothing: no socket, no clock, no randomness, no task. A driver carries
//! inputs in and outputs out; a simulation is another driver.
//!
//! ```text
//!            ┌────────── connect ◀──────────────────────────────┐ back-off
//!            ▼                                                  │
//!  Away ─▶ Connecting ─identified─▶ Starting ─CopyBoth─▶ Streaming ─▶ lost · stalled · lease over
//!                │                     │                    │
//!                └── refused for good ─┴──▶ Exit ◀── stop ──┘
//! ```
//!
//! The rules of use: after every [`Relay::handle`], take every [`Relay::poll_output`] until none;
//! call [`Relay::handle`] with [`Input::Timeout`] no later than [`Relay::deadline`]; append what was
//! read from PostgreSQL to [`Relay::receive_buffer`] and then say [`Input::Received`]; read as
//! [`Relay::reading`] says.

pub mod backoff;
pub mod batch;
pub mod compression;
mod engine;
pub mod error_code;
pub mod event;
mod exactly_once;
mod exchange;
pub mod fact;
mod foresee;
pub mod gone;
mod gulp;
pub mod kafka;
pub mod ledger;
mod oversize;
pub mod pages;
pub mod poison;
pub mod policy;
pub mod position;
pub mod position_record;
pub mod producer;
pub mod route;
pub mod seeded_bug;
mod session;
mod standing;
mod stream;
mod tally;
pub mod template;

pub use engine::Relay;
pub use exchange::{
    Delivery, ExactlyOnce, Identity, Input, LargeTransactions, Now, Output, Reading, Settings,
    transactional_id,
};
pub use standing::{BLOCKED_LISTED_MAX, Standing, State};
pub use tally::{KINDS_MAX, Kind};
