//! Time of each part; `hot-path table` has allocations beside it.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hot_path::parts::PARTS;

fn parts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hot path");
    for (name, make) in PARTS {
        let mut part = make(name);
        group.throughput(Throughput::Elements(part.facts as u64));
        // Inputs go on from each other, so that they must be used in the order in which they are made.
        group.bench_function(name, |bencher| {
            let part = std::cell::RefCell::new(&mut part);
            bencher.iter_batched_ref(
                || part.borrow_mut().input(),
                |input| part.borrow_mut().measured(input),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, parts);
criterion_main!(benches);
