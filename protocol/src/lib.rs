//! PostgreSQL protocols without I/O.
