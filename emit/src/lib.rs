//! Commits facts with the rows that they are about: [`Fact`] is what is told, [`Emitter`] what tells it in a
//! transaction. The features for drivers, all off by default, are in the README, which is this page if they are on.
#![cfg_attr(
    all(feature = "diesel", feature = "diesel-async", feature = "sqlx", feature = "tokio-postgres"),
    doc = concat!("\n\n", include_str!("../README.md"))
)]

mod driver;
mod emitter;
mod envelope;
mod error;
mod executor;
mod fact;
mod invalid;
mod lsn;
mod published;
mod trace;

pub use crate::emitter::{Emitted, Emitter, MAX_RECORD_BYTES, Message, STATEMENT_BYTES};
pub use crate::error::EmitError;
pub use crate::executor::{BlockingExecutor, Executor, Parameter, Session, Statement};
pub use crate::fact::Fact;
pub use crate::invalid::{Field, InvalidFact};
pub use crate::lsn::{Lsn, ParseLsnError};
pub use crate::published::{published, published_blocking, wait_lsn, wait_lsn_blocking};
