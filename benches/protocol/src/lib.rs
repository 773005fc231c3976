//! What the benchmark calls its results and where it keeps them: the table finds them by these names.

/// Where criterion writes its estimates.
pub const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/criterion");

/// What is measured, in the order of the table.
pub const SHAPES: [&str; 8] = [MESSAGE, PIECE, ROW_8, ROW_100, FRAMES, HEADERS, SCRAM, STATUS];

/// From the socket's bytes: frame, header, message, and its prefix compared.
pub const MESSAGE: &str = "logical message of 300 B";
/// The same, but the frame is off.
pub const PIECE: &str = "the same from its CopyData's payload";
pub const ROW_8: &str = "row of 8 columns of 24 B";
pub const ROW_100: &str = "row of 100 columns of 24 B";
/// 64 KiB of them.
pub const FRAMES: &str = "frame of 351 B";
/// Where a rival reads the header only, and its caller does the rest.
pub const HEADERS: &str = "the same, cut by the caller";
pub const SCRAM: &str = "SCRAM exchange of 4096 rounds";
pub const STATUS: &str = "status update, encoded";

/// Who is measured, in the order of the table.
pub const OURS: &str = "factlib-protocol";
pub const PGWIRE: &str = "pgwire-replication";
pub const WALSTREAM: &str = "pg_walstream";
pub const POSTGRES: &str = "postgres-protocol";
pub const MEMCPY: &str = "memcpy";

/// What has to be known to read the table.
pub const NOTES: &str = "\
Medians of one run: ns an item, and in brackets GiB/s of the bytes in which the items are. `-`: the crate
has no public function for it. What only borrows does not touch all bytes, so that it can be faster than
memcpy. A logical message is framed for pg_walstream by postgres-protocol, whose frames are like its own;
pgwire-replication goes no further than the header, because what it does with the message is private.
\"Cut by the caller\": postgres-protocol's `Header::parse`, which gives a length without a limit, beside our
`Frame::decode`. pgwire-replication's status update has one position for all three.";
