//! Record batches (magic 2), encoded once, straight from borrowed fields.
//!
//! <https://kafka.apache.org/documentation/#recordbatch>

use super::compression::Compression;
use super::kafka::ProducerId;
use super::position::{Position, Unit};
use super::route::{Headers, POSITION};
use bytes::Bytes;
use factlib_protocol::Timestamp;
use sha2::{Digest as _, Sha256};
use std::borrow::Cow;

/// A batch of several records is never encoded larger than this many bytes. Kafka's default limit
/// (`message.max.bytes`) is 1,048,588; a single record may be larger, where its topic allows it.
pub const BATCH_BYTES_MAX: usize = 900_000;

/// By default a batch of this many bytes is closed. From about 256 KiB on a larger batch costs a broker
/// and us no less per record, and the live records leave the processor's cache.
pub const BATCH_BYTES_FULL: usize = 384 * 1024;

/// A longer record is not tried: by default a broker closes the connection over a request of more than 100 MiB
/// (`socket.request.max.bytes`), which looks like a fault of the network and would be repeated for ever.
const RECORD_BYTES_MAX: usize = 100 * 1024 * 1024 - 64 * 1024;

/// What a batch reserves when nothing is known of its partition: twelve thousand partitions with a fact or two each
/// must not take 4 KiB for each.
const BATCH_BYTES_MIN: usize = 1024;

const HEADER_LEN: usize = 61;
/// The checksum covers everything from here to the end.
const ATTRIBUTES: usize = 21;
/// The bit of the attributes' second byte that says that a batch is of a transaction.
const TRANSACTIONAL: u8 = 0x10;

/// Stands for a record's key, value and headers: no two that differ have the same. Not for its timestamp, which
/// may be the time of publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    fn of(hash: Sha256) -> Self {
        let mut fingerprint = [0; 16];
        fingerprint.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
        Self(fingerprint)
    }
}

/// One record as it will be in Kafka.
#[derive(Debug)]
pub struct Record<'a> {
    /// Create time in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Key: the aggregate id. None only for a dead letter whose envelope cannot be read.
    pub key: Option<&'a [u8]>,
    /// Value, or none for a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers.
    pub headers: &'a Headers,
}

/// The part of a record that does not depend on its place in a batch.
impl Record<'_> {
    /// False if no broker with its defaults would read a request with it.
    pub(super) fn fits_a_request(&self) -> bool {
        self.body_len(0, 0) <= RECORD_BYTES_MAX
    }

    /// What [`EncodedRecord::fingerprint`] gives once it is in a batch.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        let mut number = Vec::with_capacity(10);
        let lengths = [self.key, self.value];
        for part in lengths {
            number.clear();
            match part {
                Some(part) => write_len(&mut number, part.len()),
                None => write_varint(&mut number, -1),
            }
            hash.update(&number);
            hash.update(part.unwrap_or_default());
        }
        number.clear();
        write_varint(&mut number, i64::from(self.headers.count()));
        hash.update(&number);
        hash.update(self.headers.encoded());
        Fingerprint::of(hash)
    }

    /// How many bytes more its value could have.
    pub(super) fn room_in_a_request(&self) -> usize {
        RECORD_BYTES_MAX.saturating_sub(self.body_len(0, 0))
    }

    fn body_len(&self, timestamp_delta: i64, offset_delta: i64) -> usize {
        1 + varint_len(timestamp_delta)
            + varint_len(offset_delta)
            + bytes_len(self.key)
            + bytes_len(self.value)
            + varint_len(i64::from(self.headers.count()))
            + self.headers.encoded().len()
    }
}

/// When a batch's first and last fact were committed, by the server's clock: what delays are counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The first.
    pub first: Timestamp,
    /// The last.
    pub last: Timestamp,
}

/// A batch that is still growing.
#[derive(Debug)]
pub struct OpenBatch {
    encoded: Vec<u8>,
    records: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    first: Position,
    compression: Compression,
    committed: Option<Committed>,
}

impl OpenBatch {
    /// An empty batch whose first record will be the fact at `first`.
    pub fn new(first: Position, compression: Compression) -> Self {
        Self::with_capacity(first, compression, 0)
    }

    /// The same, with room for about as many bytes, so that it need not be moved while it grows.
    pub fn with_capacity(first: Position, compression: Compression, bytes: usize) -> Self {
        let bytes = bytes + bytes / 16;
        let mut encoded = Vec::with_capacity(bytes.clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX));
        encoded.resize(HEADER_LEN, 0);
        let (base_timestamp, max_timestamp) = (0, i64::MIN);
        Self {
            encoded,
            records: 0,
            base_timestamp,
            max_timestamp,
            first,
            compression,
            committed: None,
        }
    }

    /// The facts are those of a batch that was committed then.
    pub(super) fn committed_as(self, committed: Option<Committed>) -> Self {
        Self { committed, ..self }
    }

    /// The record that is pushed next was committed then.
    pub(super) fn committed_at(&mut self, at: Timestamp) {
        let first = self.committed.map_or(at, |committed| committed.first);
        self.committed = Some(Committed { first, last: at });
    }

    /// When its facts were committed, as far as it is known.
    pub(super) fn committed(&self) -> Option<Committed> {
        self.committed
    }

    /// Encoded bytes so far, the batch's header included, before compression.
    pub fn encoded_len(&self) -> usize {
        self.encoded.len()
    }

    /// The unit of the first record.
    pub fn first_unit(&self) -> Unit {
        self.first.unit
    }

    /// Number of records so far.
    pub fn records(&self) -> i32 {
        self.records
    }

    /// True if `record` may be added without making a batch of several records larger than `max` bytes,
    /// or than [`BATCH_BYTES_MAX`].
    pub fn has_room_for(&self, record: &Record<'_>, max: usize) -> bool {
        // Length, time and offset deltas take at most 5 + 10 + 5 bytes.
        let len = self.encoded.len() + record.body_len(0, 0) + 20;
        self.records == 0 || len <= max.min(BATCH_BYTES_MAX)
    }

    /// Appends `record`: the one copy between the receive buffer and the socket to Kafka.
    pub fn push(&mut self, record: &Record<'_>) {
        if self.records == 0 {
            self.base_timestamp = record.timestamp_ms;
        }
        self.max_timestamp = self.max_timestamp.max(record.timestamp_ms);
        let timestamp_delta = record.timestamp_ms - self.base_timestamp;
        let offset_delta = i64::from(self.records);
        let len = record.body_len(timestamp_delta, offset_delta);
        let out = &mut self.encoded;
        out.reserve(len + 5);
        write_len(out, len);
        out.push(0);
        write_varint(out, timestamp_delta);
        write_varint(out, offset_delta);
        write_bytes(out, record.key);
        write_bytes(out, record.value);
        write_varint(out, i64::from(record.headers.count()));
        out.extend_from_slice(record.headers.encoded());
        self.records += 1;
    }

    /// Closes the batch: no record is added any more, and they are compressed if that makes them smaller.
    pub fn seal(self) -> Batch {
        let Self {
            mut encoded,
            records,
            base_timestamp,
            max_timestamp,
            first,
            mut compression,
            committed,
        } = self;
        let plain_len = encoded.len();
        let mut compressed = Vec::new();
        let plain = encoded.get(HEADER_LEN..).unwrap_or_default();
        if compression != Compression::None {
            compressed.resize(HEADER_LEN, 0);
            if compression.compress(plain, &mut compressed) {
                encoded = compressed;
            } else {
                compression = Compression::None;
            }
        }
        // A realloc costs less than the memory only if there is much of it.
        if encoded.capacity() - encoded.len() > encoded.len() / 4 {
            encoded.shrink_to_fit();
        }
        // A frame is far smaller than 2 GiB, and so is everything made from it.
        let batch_length = i32::try_from(encoded.len() - 12).unwrap_or(i32::MAX);
        let mut header = Writer(&mut encoded);
        header.put(0_i64.to_be_bytes()); // base offset: the broker's to give
        header.put(batch_length.to_be_bytes());
        header.put((-1_i32).to_be_bytes()); // partition leader epoch: the broker's
        header.put([2]); // magic
        header.put([0; 4]); // checksum, when stamped
        header.put(compression.attributes().to_be_bytes()); // and create time
        header.put((records - 1).to_be_bytes()); // last offset delta
        header.put(base_timestamp.to_be_bytes());
        header.put(max_timestamp.to_be_bytes());
        header.put((-1_i64).to_be_bytes()); // producer id, when stamped
        header.put((-1_i16).to_be_bytes());
        header.put((-1_i32).to_be_bytes());
        header.put(records.to_be_bytes());
        let encoded = Bytes::from(encoded);
        Batch { encoded, plain_len, records, first, compression, committed, stamp: None }
    }
}

/// Overwrites the front of a buffer, field by field.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        if let Some((field, rest)) = std::mem::take(&mut self.0).split_first_chunk_mut() {
            *field = bytes;
            self.0 = rest;
        }
    }
}

/// A closed batch: the same bytes until it is settled, however often they are sent.
#[derive(Debug, Clone)]
pub struct Batch {
    encoded: Bytes,
    plain_len: usize,
    records: i32,
    first: Position,
    compression: Compression,
    committed: Option<Committed>,
    stamp: Option<(ProducerId, i32)>,
}

impl Batch {
    /// Encoded length in bytes, before compression: what the window counts.
    pub fn plain_len(&self) -> usize {
        self.plain_len
    }

    /// Number of records.
    pub fn records(&self) -> i32 {
        self.records
    }

    /// Position of the first record.
    pub fn first(&self) -> Position {
        self.first
    }

    /// The producer and base sequence that the batch carries, once it was ready to be sent.
    pub fn stamp(&self) -> Option<(ProducerId, i32)> {
        self.stamp
    }

    /// True if the stamp is of a transaction.
    pub(super) fn is_transactional(&self) -> bool {
        self.encoded.get(ATTRIBUTES + 1).is_some_and(|bits| bits & TRANSACTIONAL != 0)
    }

    /// True if no fact of it stands behind `last`.
    pub(super) fn lies_within(&self, last: Option<Position>) -> bool {
        if Some(self.first) > last {
            return false;
        }
        let is_within = |record: EncodedRecord<'_>| record.position() <= last;
        self.plain().is_none_or(|plain| plain.iter().all(is_within))
    }

    /// The bytes to send.
    pub fn encoded(&self) -> Bytes {
        self.encoded.clone()
    }

    /// Writes producer id, epoch and base sequence, which lie under the checksum. After it the batch
    /// is recognised by the broker as the same one; under another stamp it would be another.
    pub fn set_stamp(&mut self, producer: ProducerId, base_sequence: i32) {
        self.write_stamp(producer, base_sequence, false);
    }

    /// The same for a batch of a transaction: consumers of committed records do not see it before that has ended.
    pub fn set_transactional_stamp(&mut self, producer: ProducerId, base_sequence: i32) {
        self.write_stamp(producer, base_sequence, true);
    }

    fn write_stamp(&mut self, producer: ProducerId, base_sequence: i32, transactional: bool) {
        let encoded = std::mem::take(&mut self.encoded);
        let mut encoded = encoded.try_into_mut().unwrap_or_else(|shared| shared.as_ref().into());
        if let Some([_, attributes, ..]) = encoded.get_mut(ATTRIBUTES..) {
            *attributes = match transactional {
                true => *attributes | TRANSACTIONAL,
                false => *attributes & !TRANSACTIONAL,
            };
        }
        if let Some(fields) = encoded.get_mut(43..) {
            let mut fields = Writer(fields);
            fields.put(producer.id.to_be_bytes());
            fields.put(producer.epoch.to_be_bytes());
            fields.put(base_sequence.to_be_bytes());
        }
        let checksum = crc32c::crc32c(encoded.get(ATTRIBUTES..).unwrap_or_default());
        if let Some(field) = encoded.get_mut(17..) {
            Writer(field).put(checksum.to_be_bytes());
        }
        self.encoded = encoded.freeze();
        self.stamp = Some((producer, base_sequence));
    }

    /// Forgets the stamp: the batch will be sent under another.
    pub fn clear_stamp(&mut self) {
        self.stamp = None;
    }

    /// Divides a batch that is too large for its topic into two of about half the records each,
    /// unstamped; gives it back if it has only one record.
    #[expect(clippy::result_large_err, reason = "it is rare, and given back whole")]
    pub fn split(self) -> Result<[Self; 2], Self> {
        let half = self.records / 2;
        if half == 0 {
            return Err(self);
        }
        let Some(parts) = self.split_at(half) else { return Err(self) };
        Ok(parts)
    }

    /// The records, not compressed. None only if what we compressed cannot be read back.
    pub(super) fn plain(&self) -> Option<PlainRecords<'_>> {
        let base = self.encoded.get(27..35)?.try_into().ok()?;
        let records = self.encoded.get(HEADER_LEN..)?;
        let bytes = match self.compression {
            Compression::None => Cow::Borrowed(records),
            codec => Cow::Owned(codec.decompress(records, self.plain_len - HEADER_LEN)?),
        };
        Some(PlainRecords { bytes, count: self.records, base_timestamp: i64::from_be_bytes(base) })
    }

    /// When its facts were committed, as far as it is known.
    pub fn committed(&self) -> Option<Committed> {
        self.committed
    }

    /// The batch without the records that `keep` does not want, unstamped; none if that is all of them.
    pub(super) fn retain(self, mut keep: impl FnMut(&EncodedRecord<'_>) -> bool) -> Option<Self> {
        let mut kept = OpenBatch::new(self.first, self.compression).committed_as(self.committed);
        // What cannot be read is kept as it is.
        let Some(plain) = self.plain() else { return Some(self) };
        let mut records = 0;
        for record in plain.iter() {
            records += 1;
            if keep(&record) {
                if kept.records == 0 {
                    kept.first = record.position().unwrap_or(self.first);
                }
                kept.push_encoded(&record);
            }
        }
        drop(plain);
        if records != self.records || kept.records == records {
            return Some(self);
        }
        (kept.records > 0).then(|| kept.seal())
    }

    /// The codec, or none where that did not make it smaller.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    fn split_at(&self, half: i32) -> Option<[Self; 2]> {
        let plain = self.plain()?;
        let empty = || OpenBatch::new(self.first, self.compression).committed_as(self.committed);
        let mut parts = [empty(), empty()];
        for record in plain.iter() {
            let [first, second] = &mut parts;
            if first.records < half {
                first.push_encoded(&record);
            } else {
                if second.records == 0 {
                    // Errors name it.
                    second.first = record.position().unwrap_or(self.first);
                }
                second.push_encoded(&record);
            }
        }
        let complete = parts.iter().map(|part| part.records).sum::<i32>() == self.records;
        complete.then(|| parts.map(OpenBatch::seal))
    }
}

/// The records of a batch, as they are encoded.
#[derive(Debug)]
pub(super) struct PlainRecords<'a> {
    bytes: Cow<'a, [u8]>,
    count: i32,
    base_timestamp: i64,
}

impl PlainRecords<'_> {
    pub(super) fn iter(&self) -> impl Iterator<Item = EncodedRecord<'_>> {
        let mut rest: &[u8] = &self.bytes;
        (0..self.count).map_while(move |_| EncodedRecord::read(&mut rest, self.base_timestamp))
    }
}

impl OpenBatch {
    /// Appends a record as it is encoded in another batch.
    fn push_encoded(&mut self, record: &EncodedRecord<'_>) {
        if self.records == 0 {
            self.base_timestamp = record.timestamp_ms;
        }
        self.max_timestamp = self.max_timestamp.max(record.timestamp_ms);
        let timestamp_delta = record.timestamp_ms - self.base_timestamp;
        let offset_delta = i64::from(self.records);
        let rest = record.encoded;
        let out = &mut self.encoded;
        write_len(out, 1 + varint_len(timestamp_delta) + varint_len(offset_delta) + rest.len());
        out.push(0);
        write_varint(out, timestamp_delta);
        write_varint(out, offset_delta);
        out.extend_from_slice(rest);
        self.records += 1;
    }
}

/// A record in a batch, borrowed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EncodedRecord<'a> {
    pub(crate) timestamp_ms: i64,
    /// How far behind the batch's base offset it is.
    pub(crate) offset_delta: i64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) header_count: u32,
    /// See [`Headers::encoded`].
    pub(super) headers: &'a [u8],
    /// Everything that does not depend on the batch: key, value and headers.
    encoded: &'a [u8],
}

impl<'a> EncodedRecord<'a> {
    /// The next of a batch's records; none if the bytes end too early. They may be anybody's.
    pub(crate) fn read(from: &mut &'a [u8], base_timestamp: i64) -> Option<Self> {
        let len = usize::try_from(read_varint(from)?).ok()?;
        let (record, after) = from.split_at_checked(len)?;
        *from = after;
        let mut record = record.get(1..)?;
        let timestamp_ms = base_timestamp.saturating_add(read_varint(&mut record)?);
        let offset_delta = read_varint(&mut record)?;
        let encoded = record;
        let key = read_bytes(&mut record)?;
        let value = read_bytes(&mut record)?;
        let header_count = u32::try_from(read_varint(&mut record)?).ok()?;
        let headers = record;
        Some(Self { timestamp_ms, offset_delta, key, value, header_count, headers, encoded })
    }

    /// What it is, wherever it is.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        hash.update(self.encoded);
        Fingerprint::of(hash)
    }

    /// Names and values of its headers: fewer than `header_count`, if the bytes end too early.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut rest = self.headers;
        (0..self.header_count).map_while(move |_| {
            let (name, value) = (read_bytes(&mut rest)?, read_bytes(&mut rest)?);
            Some((name.unwrap_or_default(), value.unwrap_or_default()))
        })
    }

    /// The value of the first header of this name.
    fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().find_map(|(key, value)| (key == name.as_bytes()).then_some(value))
    }

    pub(super) fn has_header(&self, name: &str) -> bool {
        self.header(name).is_some()
    }

    /// Where the fact stands in delivery order.
    pub(super) fn position(&self) -> Option<Position> {
        Position::from_text(self.header(POSITION)?)
    }
}

fn read_bytes<'a>(from: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let len = read_varint(from)?;
    if len < 0 {
        return Some(None);
    }
    let (bytes, rest) = from.split_at_checked(usize::try_from(len).ok()?)?;
    *from = rest;
    Some(Some(bytes))
}

/// Appends `value` as a zigzag varint, as records are made of.
fn write_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push((rest & 0x7f) as u8);
}

fn write_len(out: &mut Vec<u8>, len: usize) {
    write_varint(out, i64::try_from(len).unwrap_or(i64::MAX));
}

/// Appends length and bytes; none is length -1.
pub(super) fn write_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => write_varint(out, -1),
        Some(bytes) => {
            write_len(out, bytes.len());
            out.extend_from_slice(bytes);
        }
    }
}

fn bytes_len(bytes: Option<&[u8]>) -> usize {
    bytes
        .map_or(1, |bytes| varint_len(i64::try_from(bytes.len()).unwrap_or(i64::MAX)) + bytes.len())
}

fn varint_len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

fn zigzag(value: i64) -> u64 {
    (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned()
}

fn read_varint(from: &mut &[u8]) -> Option<i64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    None
}

/// The base sequence of the batch after one of `records` records: sequences count from 0 to
/// `i32::MAX` and start over (`DefaultRecordBatch.incrementSequence`).
pub fn sequence_after(base: i32, records: i32) -> i32 {
    base.checked_add(records).unwrap_or_else(|| records - (i32::MAX - base) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::fact::Fact;
    use crate::relay::route::Source;
    use factlib_protocol::Lsn;
    use proptest::prelude::*;
    use rskafka::protocol::record::{ControlBatchOrRecords, RecordBatch};
    use rskafka::protocol::traits::ReadType;

    fn position(index: u32) -> Position {
        Position { timeline: 1, unit: Unit::transaction(Lsn(0x151_7030)), index }
    }

    fn headers(index: u32) -> Headers {
        let fact = br#"{"aggregate_type":"order","event_type":"created","id":"7"}"#;
        let fact = Fact::decode(fact).unwrap();
        let mut headers = Headers::default();
        let source = Source::new(1, 2);
        headers.fill(&fact, &source, &position(index), Lsn(9), false);
        headers
    }

    fn records(batch: &Batch) -> Vec<rskafka::protocol::record::Record> {
        let bytes = batch.encoded();
        let decoded = RecordBatch::read(&mut std::io::Cursor::new(&bytes)).unwrap();
        match decoded.records {
            ControlBatchOrRecords::Records(records) => records,
            ControlBatchOrRecords::ControlBatch(_) => panic!("not a control batch"),
        }
    }

    const PRODUCER: ProducerId = ProducerId { id: 4000, epoch: 3 };

    #[test]
    fn a_record_is_the_same_wherever_it_is_and_whenever_it_was_published() {
        let headers = [headers(0), headers(1)];
        let parts = [None, Some(&b""[..]), Some(&b"a"[..]), Some(&b"ab"[..])];
        let mut fingerprints = std::collections::HashSet::new();
        let mut count = 0;
        for (key, value, headers) in parts
            .iter()
            .flat_map(|key| parts.iter().map(move |value| (*key, *value)))
            .flat_map(|(key, value)| headers.iter().map(move |headers| (key, value, headers)))
        {
            let record = |timestamp_ms| Record { timestamp_ms, key, value, headers };
            let fingerprint = record(0).fingerprint();
            let mut open = OpenBatch::new(position(0), Compression::None);
            (0..3).for_each(|times| open.push(&record(1000 * times)));
            let batch = open.seal();
            for stored in batch.plain().unwrap().iter() {
                assert_eq!(stored.fingerprint(), fingerprint);
            }
            fingerprints.insert(fingerprint);
            count += 1;
        }
        assert_eq!(fingerprints.len(), count);
    }

    #[test]
    fn records_that_are_not_wanted_any_more_leave_a_batch() {
        for codec in [Compression::None, Compression::Lz4] {
            let batch = || {
                let mut open = OpenBatch::new(position(0), codec);
                for index in 0..6 {
                    let (headers, timestamp_ms) = (headers(index), 1000 + i64::from(index));
                    let value = Some(&[b'x'; 100][..]);
                    open.push(&Record { timestamp_ms, key: None, value, headers: &headers });
                }
                open.seal()
            };
            let at = |record: &EncodedRecord<'_>| record.position().unwrap();
            assert!(batch().retain(|_| false).is_none());
            let whole = batch().retain(|_| true).unwrap();
            assert_eq!(whole.encoded(), batch().encoded());
            let mut kept = batch().retain(|record| at(record).index % 2 == 1).unwrap();
            assert_eq!((kept.records(), kept.first()), (3, position(1)));
            assert!(kept.plain_len() < batch().plain_len());
            kept.set_stamp(PRODUCER, 0);
            let plain = kept.plain().unwrap();
            let found: Vec<_> = plain.iter().map(|one| (at(&one), one.timestamp_ms)).collect();
            let expected = [1, 3, 5].map(|index| (position(index), 1000 + i64::from(index)));
            assert_eq!(found, expected);
        }
    }

    proptest! {
        /// rskafka's own decoder, which checks the checksum, is the judge.
        #[test]
        fn another_decoder_reads_what_was_written(
            facts in proptest::collection::vec(
                (0..4_000_000_000_000_i64, proptest::collection::vec(any::<u8>(), 0..40),
                 proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300))), 1..40),
            split in any::<bool>(),
        ) {
            let mut open = OpenBatch::new(position(0), Compression::None);
            for (index, (timestamp_ms, key, value)) in facts.iter().enumerate() {
                let headers = headers(u32::try_from(index).unwrap());
                let record = Record { timestamp_ms: *timestamp_ms, key: Some(key), value: value.as_deref(), headers: &headers };
                prop_assert!(open.has_room_for(&record, usize::MAX));
                open.push(&record);
            }
            let batch = open.seal();
            let mut batches = if split { batch.split().map_or_else(|one| vec![one], Vec::from) } else { vec![batch] };
            let mut found = Vec::new();
            let mut sequence = 100;
            for batch in &mut batches {
                batch.set_stamp(PRODUCER, sequence);
                sequence = sequence_after(sequence, batch.records());
                let bytes = batch.encoded();
                let decoded = RecordBatch::read(&mut std::io::Cursor::new(&bytes)).unwrap();
                prop_assert_eq!(decoded.producer_id, 4000);
                prop_assert_eq!(decoded.producer_epoch, 3);
                prop_assert_eq!(decoded.last_offset_delta + 1, batch.records());
                prop_assert_eq!(i32::try_from(records(batch).len()).unwrap(), batch.records());
                let first = records(batch).remove(0);
                let at = first.headers.iter().find(|header| header.key == POSITION).unwrap();
                prop_assert_eq!(&at.value, &batch.first().text());
                prop_assert_eq!(Position::from_text(&at.value), Some(batch.first()));
                for (index, record) in records(batch).into_iter().enumerate() {
                    prop_assert_eq!(record.offset_delta, i32::try_from(index).unwrap());
                    found.push((decoded.first_timestamp + record.timestamp_delta, record));
                }
            }
            prop_assert_eq!(found.len(), facts.len());
            for (index, ((timestamp, record), fact)) in found.into_iter().zip(facts).enumerate() {
                prop_assert_eq!(timestamp, fact.0);
                prop_assert_eq!(record.key.unwrap_or_default(), fact.1);
                prop_assert_eq!(record.value, fact.2);
                let at = record.headers.iter().find(|header| header.key == "factlib_position").unwrap();
                prop_assert_eq!(&at.value, &position(u32::try_from(index).unwrap()).text());
            }
        }
    }

    #[test]
    fn a_stamped_batch_keeps_its_bytes() {
        let mut open = OpenBatch::new(position(0), Compression::None);
        let headers = headers(0);
        open.push(&Record { timestamp_ms: 5, key: Some(b"k"), value: None, headers: &headers });
        let mut batch = open.seal();
        batch.set_stamp(PRODUCER, 7);
        let first = batch.encoded();
        batch.set_stamp(PRODUCER, 7);
        assert_eq!(first, batch.encoded());
        batch.set_stamp(ProducerId { id: 1, epoch: 0 }, 0);
        assert_ne!(first, batch.encoded());
        assert_eq!(records(&batch).len(), 1);
    }

    #[test]
    fn a_batch_of_a_transaction_differs_by_a_bit_and_the_checksum() {
        let mut open = OpenBatch::new(position(0), Compression::Lz4);
        let (headers, value) = (headers(0), [b'x'; 500]);
        let key = Some(&b"k"[..]);
        open.push(&Record { timestamp_ms: 5, key, value: Some(&value), headers: &headers });
        let mut batch = open.seal();
        batch.set_stamp(PRODUCER, 7);
        let plain = batch.encoded();
        batch.set_transactional_stamp(PRODUCER, 7);
        assert_eq!(batch.stamp(), Some((PRODUCER, 7)));
        let transactional = batch.encoded();
        let decoded = RecordBatch::read(&mut std::io::Cursor::new(&transactional)).unwrap();
        assert!(decoded.is_transactional);
        let differs = |at: &usize| plain[*at] != transactional[*at];
        let others = (0..plain.len()).filter(differs).filter(|at| !(17..21).contains(at));
        assert_eq!(others.collect::<Vec<_>>(), [22]);
        assert_eq!(plain[22] | 0x10, transactional[22]);
        batch.set_stamp(PRODUCER, 7);
        assert_eq!(batch.encoded(), plain);
    }

    #[test]
    fn a_batch_of_several_records_stays_below_the_brokers_default_limit() {
        let mut open = OpenBatch::new(position(0), Compression::None);
        let headers = headers(0);
        let value = vec![7; 200_000];
        let record =
            Record { timestamp_ms: 5, key: Some(b"k"), value: Some(&value), headers: &headers };
        while open.has_room_for(&record, usize::MAX) {
            open.push(&record);
        }
        assert!(
            (700_000..=BATCH_BYTES_MAX).contains(&open.encoded_len()),
            "{}",
            open.encoded_len()
        );
    }

    #[test]
    fn a_record_larger_than_any_batch_is_alone_in_its_own() {
        let mut open = OpenBatch::new(position(0), Compression::None);
        let headers = headers(0);
        let value = vec![7; 2_000_000];
        let record =
            Record { timestamp_ms: 5, key: Some(b"k"), value: Some(&value), headers: &headers };
        assert!(open.has_room_for(&record, usize::MAX));
        open.push(&record);
        assert!(!open.has_room_for(&record, usize::MAX));
        assert!(open.seal().split().is_err());
    }

    #[test]
    fn sequences_start_over_after_the_largest() {
        assert_eq!(sequence_after(0, 5), 5);
        assert_eq!(sequence_after(i32::MAX - 1, 1), i32::MAX);
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX - 1, 5), 3);
    }

    #[test]
    fn varints_have_the_length_that_is_reckoned() {
        for value in [0, -1, 1, 63, 64, -64, -65, 8191, 8192, i64::MAX, i64::MIN, 1 << 55] {
            let mut out = Vec::new();
            write_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
            assert_eq!(read_varint(&mut &out[..]), Some(value));
        }
    }
}
