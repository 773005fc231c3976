//! Killing the relay loses nothing.
