//! A fact's way through the relay, with nothing awaited: what is measured, and on what.

pub mod engine;
pub mod parts;
pub mod stream;
