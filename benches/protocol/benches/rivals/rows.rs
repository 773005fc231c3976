//! Rows: `Insert`, decoded and walked to the last value.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::Criterion;
use factlib_protocol::pgoutput::{Decoder, Insert, Message, Tuple, Value};
use factlib_protocol_bench::{OURS, ROW_8, ROW_100, WALSTREAM};
use pg_walstream::{LogicalReplicationMessage, LogicalReplicationParser};

use crate::{group, keep, measure, memcpy, seen};

const BUFFER_LEN: usize = 64 << 10;

pub(crate) fn rows(c: &mut Criterion) {
    for (shape, columns) in [(ROW_8, 8), (ROW_100, 100)] {
        let rows = inserts(columns);
        let mut decoder = Decoder::default();
        let mut parser = LogicalReplicationParser::with_protocol_version(1);
        let expected = vec![b"twenty-four bytes of it.".to_vec(); columns];
        assert_eq!(seen(|see| walk(&rows[0], &mut decoder, see)), expected);
        assert_eq!(seen(|see| walk_walstream(rows[0].clone(), &mut parser, see)), expected);

        let bytes = rows.concat();
        let mut group = group(c, shape, rows.len(), bytes.len());
        let mut input = Vec::new();
        let refill = |input: &mut Vec<Bytes>| input.extend_from_slice(&rows);
        measure(
            &mut group,
            OURS,
            &mut rows.clone(),
            |_| (),
            |rows| {
                rows.iter().for_each(|row| walk(row, &mut decoder, &mut keep));
            },
        );
        measure(&mut group, WALSTREAM, &mut input, refill, |input| {
            input.drain(..).for_each(|row| walk_walstream(row, &mut parser, &mut keep));
        });
        memcpy(&mut group, &bytes);
    }
}

/// Scanned once and walked once; borrowed.
fn walk(data: &[u8], decoder: &mut Decoder, see: &mut (impl FnMut(&[u8]) + ?Sized)) {
    if let Message::Insert(insert) = decoder.decode(data).unwrap() {
        black_box(insert.relation);
        for value in insert.new.values() {
            match value {
                Value::Text(value) | Value::Binary(value) => see(value),
                Value::Null | Value::UnchangedToast => {}
            }
        }
    }
}

/// A reference-counted `Bytes` for each value, and beyond 16 columns an allocation for all of them. Bytes
/// behind the row and the sign of counts and lengths are not checked.
fn walk_walstream(
    data: Bytes,
    parser: &mut LogicalReplicationParser,
    see: &mut (impl FnMut(&[u8]) + ?Sized),
) {
    // By reference: the message is large, and moving it would cost more than reading it.
    let Ok(message) = &parser.parse_wal_message_bytes(data) else { panic!("not understood") };
    if let LogicalReplicationMessage::Insert { relation_id, tuple } = &message.message {
        black_box(relation_id);
        for column in &tuple.columns {
            if column.is_text() || column.is_binary() {
                see(column.as_bytes());
            }
        }
    }
}

fn inserts(columns: usize) -> Vec<Bytes> {
    let values = vec![Value::Text(b"twenty-four bytes of it."); columns];
    let mut row = BytesMut::new();
    Tuple::encode(&values, &mut row).unwrap();
    let insert = Insert { xid: None, relation: 16_385, new: Tuple::decode(&row).unwrap() };
    let mut data = BytesMut::new();
    Message::Insert(insert).encode(&mut data).unwrap();
    let shared = Bytes::from(data.repeat(BUFFER_LEN / data.len()));
    (0..shared.len()).step_by(data.len()).map(|at| shared.slice(at..at + data.len())).collect()
}
