//! What is restarted, heals.
