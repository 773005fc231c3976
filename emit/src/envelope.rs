//! The envelope: protobuf's wire format, written by hand because it is nine fields.
//!
//! ```text
//! OutboxEvent { string id=1; string aggregate_type=2; string aggregate_id=3; string event_type=4;
//!               bytes payload=5; int64 created_at=6; map<string,string> metadata=7;
//!               optional TraceInfo trace_info=8 }
//! TraceInfo   { string trace_id=1; string span_id=2; map<string,string> metadata=3 }
//! ```
//!
//! Fields in the order of their numbers, default values left out, entries of a map by their keys' bytes: one
//! fact has one encoding, here and in `factlib.emit`.
//!
//! Wire format: <https://protobuf.dev/programming-guides/encoding/>.

/// A message that is being written.
#[derive(Debug, Default)]
pub(crate) struct Protobuf(Vec<u8>);

impl Protobuf {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// A `string` or `bytes` field.
    pub(crate) fn bytes(&mut self, number: u8, value: &[u8]) {
        if !value.is_empty() {
            self.length_delimited(number, value);
        }
    }

    /// An `int64` field.
    pub(crate) fn int64(&mut self, number: u8, value: i64) {
        if value != 0 {
            // Field numbers of this message are below 16: a tag is one byte.
            self.0.push(number << 3);
            self.varint(value.cast_unsigned());
        }
    }

    /// A message within the message; there, even if it is empty.
    pub(crate) fn message(&mut self, number: u8, value: &Self) {
        self.length_delimited(number, &value.0);
    }

    /// An entry of a `map<string, string>`.
    pub(crate) fn entry(&mut self, number: u8, key: &str, value: &str) {
        let mut entry = Self::with_capacity(key.len() + value.len() + 8);
        entry.bytes(1, key.as_bytes());
        entry.bytes(2, value.as_bytes());
        self.message(number, &entry);
    }

    fn length_delimited(&mut self, number: u8, value: &[u8]) {
        self.0.push(number << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push((value & 0x7f) as u8);
    }
}
