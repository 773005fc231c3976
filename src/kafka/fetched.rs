//! Record batches as a broker hands them out: the headers that say which fact a record is.
//!
//! <https://kafka.apache.org/documentation/#recordbatch>

use crate::relay::batch::EncodedRecord;
use crate::relay::compression::Compression;
use crate::relay::route::{POSITION, SOURCE};
use std::borrow::Cow;

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
    let mut rest = bytes;
    let mut next = None;
    while let Some(head) = rest.first_chunk::<PREFIX_LEN>() {
        let mut fields = Fields(head);
        let (base_offset, len) = (fields.int64()?, fields.int32()?);
        let len = usize::try_from(len).map_err(|_| "a batch of negative length".to_owned())?;
        let Some((batch, after)) = rest.split_at_checked(PREFIX_LEN + len) else { break };
        next = Some(batch_records(batch, base_offset, unpacked_max, &mut each)?);
        rest = after;
    }
    Ok(next)
}

/// One whole batch; the offset behind it.
fn batch_records(
    batch: &[u8],
    base_offset: i64,
    unpacked_max: usize,
    each: &mut impl FnMut(Of, Found<'_>, &EncodedRecord<'_>),
) -> Result<i64, String> {
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
    let (_max_timestamp, _producer_id) = (fields.int64()?, fields.int64()?);
    let (_producer_epoch, _base_sequence) = (fields.int16()?, fields.int32()?);
    let count = fields.int32()?;
    if attributes & CONTROL != 0 {
        return Ok(next);
    }
    let packed = batch.get(HEADER_LEN..).unwrap_or_default();
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
        let record = EncodedRecord::read(&mut rest, base_timestamp).ok_or("a record cut off")?;
        let offset = base_offset.saturating_add(record.offset_delta);
        let timestamp_ms = record.timestamp_ms;
        let mut found = Found { offset, timestamp_ms, position: None, source: None, record };
        let mut headers = 0;
        for (name, value) in record.headers() {
            headers += 1;
            // The first of a name is ours: those of the fact come behind.
            match name {
                _ if name == POSITION.as_bytes() => found.position = found.position.or(Some(value)),
                _ if name == SOURCE.as_bytes() => found.source = found.source.or(Some(value)),
                _ => {}
            }
        }
        if headers != record.header_count {
            return Err(format!("the record at offset {offset} has headers cut off"));
        }
        each(of, found, &record);
    }
    Ok(next)
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
