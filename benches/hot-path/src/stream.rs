//! What a walsender sends: transactions of facts, as bytes.

use bytes::BytesMut;
use factlib_protocol::replication::XLogData;
use factlib_protocol::{Lsn, Timestamp, pgoutput};

/// The prefix whose messages are facts.
pub const PREFIX: &str = "bench";

/// Aggregates that the facts are about, in turns.
const AGGREGATES: usize = 1000;

/// What a stream is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Number of messages.
    pub facts: usize,
    /// Messages in each transaction.
    pub per_transaction: usize,
    /// Bytes of payload.
    pub payload: usize,
    /// Of a hundred messages so many have another prefix.
    pub foreign_percent: usize,
}

/// Writes streams, one behind the other in the log.
#[derive(Debug)]
pub struct Walsender {
    lsn: u64,
    number: usize,
}

impl Default for Walsender {
    fn default() -> Self {
        Self { lsn: 0x0100_0000, number: 0 }
    }
}

impl Walsender {
    /// The next transactions.
    pub fn stream(&mut self, shape: Shape) -> BytesMut {
        let mut out = BytesMut::new();
        let mut left = shape.facts;
        while left > 0 {
            let facts = shape.per_transaction.min(left);
            left -= facts;
            self.transaction(shape, facts, &mut out);
        }
        out
    }

    fn transaction(&mut self, shape: Shape, facts: usize, out: &mut BytesMut) {
        // A message takes about as much of the log as of the stream, and the commit record 48 bytes.
        let step = shape.payload as u64 + 200;
        let commit_lsn = Lsn(self.lsn + step * (facts as u64 + 1));
        let commit_timestamp = Timestamp(0);
        let begin = pgoutput::Begin { final_lsn: commit_lsn, commit_timestamp, xid: 700 };
        self.put(&pgoutput::Message::Begin(begin), out);
        for _ in 0..facts {
            self.lsn += step;
            self.number += 1;
            let foreign = self.number % 100 < shape.foreign_percent;
            let message = pgoutput::LogicalMessage {
                xid: None,
                transactional: true,
                lsn: Lsn(self.lsn),
                prefix: if foreign { b"another" } else { PREFIX.as_bytes() },
                content: &envelope(self.number, shape.payload),
            };
            self.put(&pgoutput::Message::Message(message), out);
        }
        let end_lsn = Lsn(commit_lsn.0 + 48);
        let commit = pgoutput::Commit { commit_lsn, end_lsn, commit_timestamp };
        self.put(&pgoutput::Message::Commit(commit), out);
        self.lsn = end_lsn.0;
    }

    fn put(&self, message: &pgoutput::Message<'_>, out: &mut BytesMut) {
        let mut data = BytesMut::new();
        message.encode(&mut data).expect("a message of ours");
        let at = Lsn(self.lsn);
        let data = XLogData { wal_start: at, wal_end: at, server_clock: Timestamp(0), data: &data };
        data.encode(out).expect("shorter than a frame may be");
    }
}

/// The protobuf envelope of a fact, with a payload that is like JSON.
pub fn envelope(number: usize, payload: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload + 128);
    let id = format!("0d5c6d3e-1f7a-4f0c-9f64-{number:012x}");
    let aggregate_id = (number % AGGREGATES).to_string();
    for (field, bytes) in [
        (1, id.as_bytes()),
        (2, b"order".as_slice()),
        (3, aggregate_id.as_bytes()),
        (4, b"order_created".as_slice()),
        (5, text(number, payload).as_bytes()),
    ] {
        out.push(field << 3 | 2);
        let mut len = bytes.len();
        while len >= 0x80 {
            out.push(len as u8 | 0x80);
            len >>= 7;
        }
        out.push(len as u8);
        out.extend_from_slice(bytes);
    }
    out
}

fn text(number: usize, len: usize) -> String {
    let mut text = format!("{{\"number\":{number},\"items\":[");
    let mut state = number as u64;
    while text.len() < len {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(&format!("{{\"sku\":{},\"n\":1}},", state >> 44));
    }
    text.truncate(len);
    text
}
