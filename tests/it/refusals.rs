//! What cannot be published or started says so.
