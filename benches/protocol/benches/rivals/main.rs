//! factlib-protocol beside its rivals, on the same bytes in the same run: `make bench`.
//!
//! Each is used as its authors use it where speed counts. Before anything is timed, all must see the same
//! in the same bytes. The cost of putting the input where a rival wants it (a `BytesMut`, a `Bytes` for
//! each message) is not measured for anybody; that of taking messages out of it is, because it is paid
//! for every message. What a rival has no public function for is not measured, and the table says so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark: real time, and it stops where it stands"
)]

mod copy_data;
mod rows;
mod scram;
mod status;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{
    BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// One shape, of which an iteration handles this many items in this many bytes.
fn group<'a>(c: &'a mut Criterion, shape: &str, items: usize, bytes: usize) -> Group<'a> {
    let mut group = c.benchmark_group(shape);
    // Iterations are short or long, but alike: a sample need not be a straight line of counts.
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::ElementsAndBytes { elements: items as u64, bytes: bytes as u64 });
    group
}

/// Measures `work`, but not the `refill` before each round of it.
fn measure<T>(
    group: &mut Group<'_>,
    who: &str,
    input: &mut T,
    mut refill: impl FnMut(&mut T),
    mut work: impl FnMut(&mut T),
) {
    group.bench_function(who, |b| {
        b.iter_custom(|rounds| {
            let mut taken = Duration::ZERO;
            for _ in 0..rounds {
                refill(input);
                let started = Instant::now();
                work(black_box(input));
                taken += started.elapsed();
            }
            taken
        });
    });
}

/// What somebody sees in an input, to be compared with what others see.
fn seen(work: impl FnOnce(&mut dyn FnMut(&[u8]))) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    work(&mut |bytes| seen.push(bytes.to_vec()));
    seen
}

/// What is done with what was seen while the clock runs: nothing that can be left out.
fn keep(bytes: &[u8]) {
    black_box(bytes);
}

fn memcpy(group: &mut Group<'_>, bytes: &[u8]) {
    let mut copy = vec![0; bytes.len()];
    group.bench_function(factlib_protocol_bench::MEMCPY, |b| {
        b.iter(|| {
            copy.copy_from_slice(black_box(bytes));
            black_box(&mut copy);
        });
    });
}

criterion_group! {
    name = rivals;
    config = Criterion::default()
        .output_directory(factlib_protocol_bench::RESULTS.as_ref())
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .sample_size(50)
        .without_plots();
    targets = copy_data::messages, copy_data::pieces, rows::rows, copy_data::frames, scram::exchange, status::encode
}
criterion_main!(rivals);
