//! The relay engine: a pure state machine.

pub mod kafka;
