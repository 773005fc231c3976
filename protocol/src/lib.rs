#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

// A file imports only what stands before it here.
mod error;
mod lsn;
mod reader;
mod writer;

mod frame;

pub mod backend;
pub mod frontend;

pub mod auth;
pub mod handshake;
pub mod tls;

pub mod pgoutput;
pub mod replication;

pub mod feedback;
pub mod session;

pub use error::{DecodeError, EncodeError, Fault};
pub use frame::Frame;
pub use lsn::{Lsn, ParseLsnError, Timestamp};

/// The number of an object in a database: a table, a type.
pub type Oid = u32;

/// The number of a transaction or subtransaction: 32 bits that repeat after four billion.
pub type Xid = u32;
