//! One `StandbyStatusUpdate`, as it goes to the socket.

use std::hint::black_box;

use bytes::BytesMut;
use criterion::Criterion;
use factlib_protocol::{Lsn, Timestamp, replication::StandbyStatusUpdate};
use factlib_protocol_bench::{OURS, PGWIRE, STATUS};
use pgwire_replication::protocol::{encode_standby_status_update, framing::write_copy_data};

use crate::{copy_data::ready, group, memcpy};

pub(crate) fn encode(c: &mut Criterion) {
    // pgwire-replication knows one position, which it says three times.
    let (lsn, clock) = (0x16B_3748, 752_000_000_000_000);
    let (mut ours, mut pgwire) = (BytesMut::new(), Vec::new());
    encode_ours(lsn, clock, &mut ours);
    encode_pgwire(lsn, clock, &mut pgwire);
    assert_eq!(ours[..], pgwire);

    let mut group = group(c, STATUS, 1, ours.len());
    let bytes = ours.to_vec();
    group.bench_function(OURS, |b| {
        b.iter(|| {
            ours.clear();
            encode_ours(black_box(lsn), black_box(clock), &mut ours);
            black_box(&ours[..]);
        });
    });
    group.bench_function(PGWIRE, |b| {
        b.iter(|| {
            pgwire.clear();
            encode_pgwire(black_box(lsn), black_box(clock), &mut pgwire);
            black_box(&pgwire[..]);
        });
    });
    memcpy(&mut group, &bytes);
}

fn encode_ours(lsn: u64, clock: i64, out: &mut BytesMut) {
    let (lsn, clock) = (Lsn(lsn), Timestamp(clock));
    StandbyStatusUpdate { write: lsn, flush: lsn, apply: lsn, clock, reply_requested: false }
        .encode(out);
}

/// Allocates the payload, then the frame around it, then writes that to the socket, here a `Vec`.
fn encode_pgwire(lsn: u64, clock: i64, out: &mut Vec<u8>) {
    let payload = encode_standby_status_update(pgwire_replication::Lsn(lsn), clock, false);
    ready(write_copy_data(out, &payload)).unwrap();
}
