//! What a fact costs in allocations on its way through the engine: none. Batches, requests and answers cost some.

#![allow(
    unreachable_pub,
    dead_code,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    missing_debug_implementations,
    reason = "shared with the benchmark of the hot path, which is a workspace of its own"
)]

#[path = "../benches/hot-path/src/engine.rs"]
mod engine;
#[path = "../benches/hot-path/src/stream.rs"]
mod stream;

use allocation_counter::measure;
use engine::{Engine, GULP};
use factlib::relay::compression::Compression;
use stream::{PREFIX, Shape, Walsender};

/// A batch is a buffer, an entry of the ledger, a request, an answer and what is said of it.
const PER_BATCH: u64 = 8;

/// A gulp may move the receive buffer, and may be followed by a status.
const PER_GULP: u64 = 4;

#[track_caller]
fn allocates_by_the_batch(shape: Shape) {
    let mut walsender = Walsender::default();
    let mut engine = Engine::streaming(PREFIX, Compression::None);
    // Twice: topics are known, buffers have their size.
    for _ in 0..2 {
        engine.feed(&walsender.stream(shape));
    }
    let stream = walsender.stream(shape);
    let before = engine.batches;
    let allocations = measure(|| engine.feed(&stream)).count_total;
    let (batches, gulps) = (engine.batches - before, stream.len().div_ceil(GULP));
    let most = batches as u64 * PER_BATCH + gulps as u64 * PER_GULP;
    assert!(batches > 0 && most < shape.facts as u64 / 10, "{batches} batches are not a stream");
    assert!(allocations <= most, "{allocations} allocations, {batches} batches, {gulps} gulps");
}

const SHAPE: Shape =
    Shape { facts: 20_000, per_transaction: 100, payload: 256, foreign_percent: 0 };

#[test]
fn a_fact_of_a_large_transaction_allocates_nothing() {
    allocates_by_the_batch(SHAPE);
}

#[test]
fn a_fact_of_its_own_transaction_allocates_nothing() {
    allocates_by_the_batch(Shape { per_transaction: 1, ..SHAPE });
}

#[test]
fn a_message_of_another_prefix_allocates_nothing() {
    allocates_by_the_batch(Shape { foreign_percent: 90, ..SHAPE });
}
