//! Record batches as a broker hands them out: the headers that say which fact a record is.
//!
//! <https://kafka.apache.org/documentation/#recordbatch>

use super::fetch::Aborted;
use crate::relay::batch::EncodedRecord;
use crate::relay::compression::Compression;
use crate::relay::route::{POSITION, SOURCE};
use std::borrow::Cow;
use std::collections::HashSet;

/// From the base offset to the number of records.
const HEADER_LEN: usize = 61;
/// Base offset and length, which the length does not count.
const PREFIX_LEN: usize = 12;
/// The checksum covers everything from here to the end.
const ATTRIBUTES: usize = 21;
/// Bit of the attributes: records of a transaction of Kafka's.
const TRANSACTIONAL: i16 = 0x10;
/// Bit of the attributes: no records of anybody, but the marks of a transaction of Kafka's.
const CONTROL: i16 = 0x20;
/// A marker's key: a version, and this, if the transaction was aborted.
const ABORT: [u8; 2] = [0, 0];
/// A batch that is larger than this once it is unpacked is not read: by default a broker takes none over 1 MiB
/// packed, and packed facts are a tenth at best.
const UNPACKED_MAX: usize = 256 * 1024 * 1024;

/// A record that is in Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    /// Where in its partition.
    pub offset: i64,
    /// Create or append time, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// The header `factlib_position`.
    pub position: Option<&'a [u8]>,
    /// The header `factlib_source`.
    pub source: Option<&'a [u8]>,
    record: EncodedRecord<'a>,
}

impl<'a> Found<'a> {
    /// Its key.
    pub fn key(&self) -> Option<&'a [u8]> {
        self.record.key
    }

    /// Its value; none is a tombstone.
    pub fn value(&self) -> Option<&'a [u8]> {
        self.record.value
    }

    /// Names and values of its headers.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.record.headers()
    }
}

/// Calls `each` with every record of the batches in `bytes`. The last one may be cut off, as brokers do; the
/// offset behind the last that is whole, none if there is none.
///
/// # Errors
///
/// A sentence, if the bytes are no record batches of magic 2 or are packed in a way that cannot be read.
pub fn records(bytes: &[u8], mut each: impl FnMut(Found<'_>)) -> Result<Option<i64>, String> {
    encoded_records(bytes, UNPACKED_MAX, |_, found, _| each(found))
}

/// The same without what is in one of these transactions: those that were aborted.
pub(super) fn committed_records(
    bytes: &[u8],
    aborted: Vec<Aborted>,
    mut each: impl FnMut(Found<'_>),
) -> Result<Option<i64>, String> {
    let mut aborted = AbortedTransactions::new(aborted);
    let is_seen = |batch: &Batch<'_>| !aborted.have(batch);
    batches(bytes, UNPACKED_MAX, is_seen, &mut |_, found, _: &EncodedRecord<'_>| each(found))
}

/// Which batches are in a transaction that was aborted, as they come one after the other (KIP-98): those of its producer
/// from its first offset up to the marker at its end.
#[derive(Debug)]
struct AbortedTransactions {
    /// Those that begin later, the next one last.
    ahead: Vec<Aborted>,
    /// Producers that are in one.
    open: HashSet<i64>,
}

impl AbortedTransactions {
    fn new(mut aborted: Vec<Aborted>) -> Self {
        aborted.sort_unstable_by_key(|it| std::cmp::Reverse(it.first_offset));
        Self { ahead: aborted, open: HashSet::new() }
    }

    fn have(&mut self, batch: &Batch<'_>) -> bool {
        while let Some(begun) = self.ahead.pop_if(|it| it.first_offset < batch.next) {
            self.open.insert(begun.producer_id);
        }
        if batch.is_abort_marker() {
            self.open.remove(&batch.producer_id);
        }
        batch.attributes & TRANSACTIONAL != 0 && self.open.contains(&batch.producer_id)
    }
}

/// Whose a batch of records is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Anybody,
    /// A transaction of Kafka's, which may have been aborted.
    Transaction,
}

/// The same with the records themselves, of batches that are not larger than `unpacked_max` once they are
/// unpacked.
pub(super) fn encoded_records(
    bytes: &[u8],
    unpacked_max: usize,
    mut each: impl FnMut(Of, Found<'_>, &EncodedRecord<'_>),
) -> Result<Option<i64>, String> {
    batches(bytes, unpacked_max, |_| true, &mut each)
}

/// Of each batch that is whole and is to be seen, the records.
fn batches(
    bytes: &[u8],
    unpacked_max: usize,
    mut is_seen: impl FnMut(&Batch<'_>) -> bool,
    each: &mut impl FnMut(Of, Found<'_>, &EncodedRecord<'_>),
) -> Result<Option<i64>, String> {
    let mut rest = bytes;
    let mut next = None;
    while let Some(head) = rest.first_chunk::<PREFIX_LEN>() {
        let mut fields = Fields(head);
        let (base_offset, len) = (fields.int64()?, fields.int32()?);
        let len = usize::try_from(len).map_err(|_| "a batch of negative length".to_owned())?;
        let Some((batch, after)) = rest.split_at_checked(PREFIX_LEN + len) else { break };
        let batch = Batch::read(batch, base_offset)?;
        next = Some(batch.next);
        if is_seen(&batch) {
            batch.records(unpacked_max, each)?;
        }
        rest = after;
    }
    Ok(next)
}

/// One whole batch.
#[derive(Debug)]
struct Batch<'a> {
    base_offset: i64,
    /// The offset behind it.
    next: i64,
    attributes: i16,
    base_timestamp: i64,
    producer_id: i64,
    count: i32,
    /// Its records, as they are packed.
    packed: &'a [u8],
}

impl<'a> Batch<'a> {
    fn read(batch: &'a [u8], base_offset: i64) -> Result<Self, String> {
        let header = batch.get(PREFIX_LEN..HEADER_LEN).ok_or("a batch shorter than its header")?;
        let mut fields = Fields(header);
        let _leader_epoch = fields.int32()?;
        let magic = fields.int8()?;
        if magic != 2 {
            return Err(format!("a batch of magic {magic}, not 2"));
        }
        let crc = fields.int32()?;
        let covered = batch.get(ATTRIBUTES..).unwrap_or_default();
        if crc32c::crc32c(covered) != crc.cast_unsigned() {
            return Err(format!("the batch at offset {base_offset} has a wrong checksum"));
        }
        let attributes = fields.int16()?;
        let next = base_offset.saturating_add(i64::from(fields.int32()?)).saturating_add(1);
        let base_timestamp = fields.int64()?;
        let (_max_timestamp, producer_id) = (fields.int64()?, fields.int64()?);
        let (_producer_epoch, _base_sequence) = (fields.int16()?, fields.int32()?);
        let count = fields.int32()?;
        let packed = batch.get(HEADER_LEN..).unwrap_or_default();
        Ok(Self { base_offset, next, attributes, base_timestamp, producer_id, count, packed })
    }

    /// True if a transaction of its producer's ends here, and was aborted.
    fn is_abort_marker(&self) -> bool {
        if self.attributes & CONTROL == 0 {
            return false;
        }
        let mut packed = self.packed;
        let marker = EncodedRecord::read(&mut packed, self.base_timestamp);
        let key = marker.and_then(|marker| marker.key);
        // Of any version.
        key.is_some_and(|key| key.get(2..4) == Some(&ABORT))
    }

    fn records(
        &self,
        unpacked_max: usize,
        each: &mut impl FnMut(Of, Found<'_>, &EncodedRecord<'_>),
    ) -> Result<(), String> {
        let Self { base_offset, attributes, base_timestamp, count, packed, .. } = *self;
        if attributes & CONTROL != 0 {
            return Ok(());
        }
        let codec = Compression::of_attributes(attributes)
            .ok_or_else(|| format!("the batch at offset {base_offset} is compressed by gzip (the topic's compression.type?), which is not read here"))?;
        let plain = match codec {
            Compression::None => Cow::Borrowed(packed),
            codec => Cow::Owned(codec.unpack(packed, unpacked_max).ok_or_else(|| {
                format!("the batch at offset {base_offset} cannot be unpacked by {codec:?}")
            })?),
        };
        let of = if attributes & TRANSACTIONAL == 0 { Of::Anybody } else { Of::Transaction };
        let mut rest: &[u8] = &plain;
        for _ in 0..count {
            let record =
                EncodedRecord::read(&mut rest, base_timestamp).ok_or("a record cut off")?;
            let offset = base_offset.saturating_add(record.offset_delta);
            let timestamp_ms = record.timestamp_ms;
            let mut found = Found { offset, timestamp_ms, position: None, source: None, record };
            let mut headers = 0;
            for (name, value) in record.headers() {
                headers += 1;
                // The first of a name is ours: those of the fact come behind.
                match name {
                    _ if name == POSITION.as_bytes() => {
                        found.position = found.position.or(Some(value));
                    }
                    _ if name == SOURCE.as_bytes() => found.source = found.source.or(Some(value)),
                    _ => {}
                }
            }
            if headers != record.header_count {
                return Err(format!("the record at offset {offset} has headers cut off"));
            }
            each(of, found, &record);
        }
        Ok(())
    }
}

/// Bytes that are taken from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self.0.split_first_chunk().ok_or("a batch that ends too early")?;
        self.0 = rest;
        Ok(*taken)
    }

    fn int8(&mut self) -> Result<i8, String> {
        self.array().map(i8::from_be_bytes)
    }

    fn int16(&mut self) -> Result<i16, String> {
        self.array().map(i16::from_be_bytes)
    }

    fn int32(&mut self) -> Result<i32, String> {
        self.array().map(i32::from_be_bytes)
    }

    fn int64(&mut self) -> Result<i64, String> {
        self.array().map(i64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::batch::{OpenBatch, Record};
    use crate::relay::kafka::ProducerId;
    use crate::relay::position::{Position, Unit};
    use crate::relay::route::{Headers, Source};
    use factlib_protocol::Lsn;

    const SOURCE_OF_ALL: &str = "7/5";

    fn position(index: u32) -> Position {
        Position { timeline: 1, unit: Unit::transaction(Lsn(0x1234)), index }
    }

    /// As it would be in a partition from `base_offset` on.
    fn batch(base_offset: i64, facts: u32, compression: Compression) -> Vec<u8> {
        let mut open = OpenBatch::new(position(0), compression);
        for index in 0..facts {
            let mut headers = Headers::default();
            headers.fill_unreadable(&Source::new(7, 5), &position(index), Lsn(0x1200));
            let value = vec![b'x'; 300];
            let (key, value) = (Some(&b"key"[..]), (index % 2 == 0).then_some(value.as_slice()));
            open.push(&Record {
                timestamp_ms: 1000 + i64::from(index),
                key,
                value,
                headers: &headers,
            });
        }
        let mut batch = open.seal();
        batch.set_stamp(ProducerId { id: 1, epoch: 0 }, 0);
        let mut bytes = batch.encoded().to_vec();
        bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
        bytes
    }

    /// The same of a producer's transaction.
    fn transactional(base_offset: i64, facts: u32, producer_id: i64) -> Vec<u8> {
        let mut bytes = batch(base_offset, facts, Compression::Lz4);
        stamp(&mut bytes, TRANSACTIONAL, producer_id);
        bytes
    }

    /// How a producer's transaction has ended.
    fn marker(base_offset: i64, producer_id: i64, commit: bool) -> Vec<u8> {
        let mut bytes = batch(base_offset, 1, Compression::None);
        bytes.truncate(HEADER_LEN);
        // Length, attributes, two deltas, key (version 0, the type), value (version 0, coordinator epoch), no headers.
        bytes.extend([0x20, 0, 0, 0, 8, 0, 0, 0, u8::from(commit), 12, 0, 0, 0, 0, 0, 7, 0]);
        let length = i32::try_from(bytes.len() - PREFIX_LEN).unwrap();
        bytes[8..PREFIX_LEN].copy_from_slice(&length.to_be_bytes());
        stamp(&mut bytes, TRANSACTIONAL | CONTROL, producer_id);
        bytes
    }

    fn stamp(batch: &mut [u8], bits: i16, producer_id: i64) {
        batch[ATTRIBUTES + 1] |= u8::try_from(bits).unwrap();
        batch[43..51].copy_from_slice(&producer_id.to_be_bytes());
        let crc = crc32c::crc32c(&batch[ATTRIBUTES..]);
        batch[17..ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
    }

    /// Offsets of what is seen beside these aborted transactions: producer, and first offset.
    fn committed(batches: &[Vec<u8>], aborted: &[(i64, i64)]) -> Vec<i64> {
        let aborted = aborted
            .iter()
            .map(|(producer_id, first_offset)| Aborted {
                producer_id: *producer_id,
                first_offset: *first_offset,
            })
            .collect();
        let mut seen = Vec::new();
        let bytes = batches.concat();
        let next = committed_records(&bytes, aborted, |found| seen.push(found.offset)).unwrap();
        assert_eq!(next, records(&bytes, |_| {}).unwrap());
        seen
    }

    #[test]
    fn of_a_transaction_that_was_aborted_nothing_is_seen() {
        let log = [
            transactional(10, 2, 7),
            batch(12, 1, Compression::None),
            transactional(13, 1, 8),
            transactional(14, 1, 7),
            marker(15, 7, false),
            transactional(16, 2, 7),
            marker(18, 8, true),
            marker(19, 7, true),
        ];
        assert_eq!(committed(&log, &[(7, 10)]), [12, 13, 16, 17]);
        assert_eq!(committed(&log, &[]), [10, 11, 12, 13, 14, 16, 17]);
        // It had begun before what is handed out.
        assert_eq!(committed(&log[1..], &[(7, 10)]), [12, 13, 16, 17]);
        assert_eq!(committed(&log[..2], &[(7, 10)]), [12], "its end is not handed out yet");
    }

    #[test]
    fn aborted_transactions_of_several_producers_may_overlap_and_follow_each_other() {
        let log = [
            transactional(0, 1, 7),
            transactional(1, 1, 8),
            marker(2, 7, false),
            transactional(3, 1, 7),
            transactional(4, 1, 8),
            marker(5, 8, false),
            marker(6, 7, false),
            transactional(7, 1, 8),
            transactional(8, 1, 7),
            marker(9, 8, true),
            marker(10, 7, false),
        ];
        // In any order.
        assert_eq!(committed(&log, &[(7, 3), (7, 8), (8, 1), (7, 0)]), [7]);
        assert_eq!(committed(&log, &[(7, 3), (8, 1)]), [0, 7, 8]);
    }

    type Seen = (i64, i64, String, String);

    fn read(bytes: &[u8]) -> Result<(Option<i64>, Vec<Seen>), String> {
        let mut seen = Vec::new();
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into();
        let next = records(bytes, |found| {
            seen.push((found.offset, found.timestamp_ms, text(found.position), text(found.source)));
        })?;
        Ok((next, seen))
    }

    #[test]
    fn what_we_write_is_read_back_whatever_it_is_packed_with() {
        for codec in
            [Compression::None, Compression::Snappy, Compression::Lz4, Compression::Zstd(3)]
        {
            let bytes = [batch(10, 3, codec), batch(20, 1, codec)].concat();
            let (next, seen) = read(&bytes).unwrap();
            assert_eq!(next, Some(21));
            let expected: Vec<Seen> = [(10, 0), (11, 1), (12, 2), (20, 0)]
                .map(|(offset, index)| {
                    let position = position(index).to_string();
                    (offset, 1000 + i64::from(index), position, SOURCE_OF_ALL.to_owned())
                })
                .into();
            assert_eq!(seen, expected, "{codec:?}");
        }
    }

    #[test]
    fn a_batch_that_is_cut_off_is_left_for_the_next_time() {
        let first = batch(10, 3, Compression::None);
        let bytes = [first.clone(), batch(13, 2, Compression::None)].concat();
        for len in 0..bytes.len() {
            let (next, seen) = read(&bytes[..len]).unwrap();
            let whole = len >= first.len();
            assert_eq!(
                (next, seen.len()),
                (whole.then_some(13), if whole { 3 } else { 0 }),
                "{len}"
            );
        }
    }

    #[test]
    fn bytes_that_are_no_batches_are_refused_and_never_panic() {
        let good = batch(10, 3, Compression::Lz4);
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                // The checksum does not cover the first 21 bytes; whatever is said of those, it is said.
                let _ = read(&bytes);
                if at >= ATTRIBUTES && value != good[at] {
                    assert!(read(&bytes).unwrap_err().contains("checksum"), "{at}");
                }
                // With a checksum that is right, too.
                let crc = crc32c::crc32c(&bytes[ATTRIBUTES..]);
                bytes[17..21].copy_from_slice(&crc.to_be_bytes());
                let _ = read(&bytes);
            }
        }
    }
}
