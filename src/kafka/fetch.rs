//! The two requests that a [`Consumer`](super::Consumer) sends to a partition's leader: ListOffsets and Fetch.
//!
//! One partition each, so that the answer is that partition's or none.

use super::primitive::{Body, int32, malformed, millis, put_string, read_body, version};
use rskafka::protocol::api_key::ApiKey;
use rskafka::protocol::api_version::{ApiVersion, ApiVersionRange};
use rskafka::protocol::messages::{
    ReadVersionedError, ReadVersionedType, RequestBody, WriteVersionedError, WriteVersionedType,
};
use rskafka::protocol::traits::ReadError;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

/// A consumer, and no replica.
const NO_REPLICA: i32 = -1;

/// Kafka's error code of one partition, and what is said of it.
#[derive(Debug)]
pub(super) struct Partition<T> {
    pub(super) error: i16,
    pub(super) found: T,
}

/// What of a partition is there for whoever reads it (KIP-98).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Everything, also what a transaction of Kafka's has not committed, and what one has aborted.
    Uncommitted,
    /// What is in no transaction, or in one that is committed, up to the first that is open.
    Committed,
}

impl Isolation {
    const fn code(self) -> u8 {
        match self {
            Self::Uncommitted => 0,
            Self::Committed => 1,
        }
    }
}

/// ListOffsets, version 2: the first offset whose record is not older than a timestamp; the first version that can ask
/// for committed ones.
#[derive(Debug)]
pub(super) struct ListOffsetsRequest {
    pub(super) isolation: Isolation,
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) timestamp_ms: i64,
}

impl ListOffsetsRequest {
    /// A timestamp that asks for the end of what consumers can see.
    pub(super) const LATEST: i64 = -1;
    /// A timestamp that asks for the first that is still there.
    pub(super) const EARLIEST: i64 = -2;
}

impl RequestBody for ListOffsetsRequest {
    type ResponseBody = Partition<i64>;
    const API_KEY: ApiKey = ApiKey::ListOffsets;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(2), version(2));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(6);
}

impl WriteVersionedType<Vec<u8>> for ListOffsetsRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        out.extend(NO_REPLICA.to_be_bytes());
        out.push(self.isolation.code());
        put_partition(out, &self.topic, self.partition)?;
        out.extend(self.timestamp_ms.to_be_bytes());
        Ok(())
    }
}

impl ReadVersionedType<Cursor<Vec<u8>>> for Partition<i64> {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_body(reader, |r| {
            let _throttle = r.int32()?;
            expect_partition(r)?;
            let error = r.int16()?;
            let _timestamp = r.int64()?;
            Ok(Self { error, found: r.int64()? })
        })?)
    }
}

/// What was handed out.
#[derive(Debug)]
pub(super) struct Fetched {
    /// Record batches, of which the last may be cut off.
    pub(super) batches: Vec<u8>,
    /// Of which transactions they have something that is not to be seen; none but where committed ones were asked for.
    pub(super) aborted: Vec<Aborted>,
    /// How long the broker wants to be left alone.
    pub(super) throttle: Duration,
}

/// A transaction of Kafka's that was aborted: a broker hands its records out all the same, and says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Aborted {
    /// Whose it was.
    pub(super) producer_id: i64,
    /// Its first record in the partition. It goes up to the marker that says that it was aborted.
    pub(super) first_offset: i64,
}

/// Fetch, version 4: the first with record batches of magic 2, and the oldest of a Kafka 4.
#[derive(Debug)]
pub(super) struct FetchRequest {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// At most so many, but always a whole batch.
    pub(super) bytes: i32,
    /// How long the broker may wait for the first byte.
    pub(super) wait: Duration,
    pub(super) isolation: Isolation,
}

impl RequestBody for FetchRequest {
    type ResponseBody = Partition<Fetched>;
    const API_KEY: ApiKey = ApiKey::Fetch;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(4), version(4));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(12);
}

impl WriteVersionedType<Vec<u8>> for FetchRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        out.extend(NO_REPLICA.to_be_bytes());
        out.extend(millis(self.wait).to_be_bytes());
        // At least one byte.
        out.extend(1_i32.to_be_bytes());
        out.extend(self.bytes.to_be_bytes());
        out.push(self.isolation.code());
        put_partition(out, &self.topic, self.partition)?;
        out.extend(self.offset.to_be_bytes());
        out.extend(self.bytes.to_be_bytes());
        Ok(())
    }
}

impl ReadVersionedType<Cursor<Vec<u8>>> for Partition<Fetched> {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_body(reader, |r| {
            let throttle = Duration::from_millis(u64::try_from(r.int32()?).unwrap_or(0));
            if r.clone().count()? == 0 {
                // A client over its quota gets an empty answer.
                r.count()?;
                let (batches, aborted) = (Vec::new(), Vec::new());
                return Ok(Self { error: 0, found: Fetched { batches, aborted, throttle } });
            }
            expect_partition(r)?;
            let error = r.int16()?;
            let (_high_watermark, _last_stable_offset) = (r.int64()?, r.int64()?);
            let mut aborted = Vec::new();
            for _ in 0..r.count()? {
                let (producer_id, first_offset) = (r.int64()?, r.int64()?);
                aborted.push(Aborted { producer_id, first_offset });
            }
            let batches = r.bytes()?.to_vec();
            Ok(Self { error, found: Fetched { batches, aborted, throttle } })
        })?)
    }
}

/// One topic, one partition.
fn put_partition(out: &mut Vec<u8>, topic: &str, index: i32) -> Result<(), WriteVersionedError> {
    out.extend(1_i32.to_be_bytes());
    put_string(out, topic)?;
    out.extend(int32(1)?);
    out.extend(index.to_be_bytes());
    Ok(())
}

/// One topic, one partition: no other was asked for on this connection's request.
fn expect_partition(r: &mut Body<'_>) -> Result<(), ReadError> {
    let one = |n: i32| match n {
        1 => Ok(()),
        n => Err(malformed(format!("an answer for {n} where one was asked for"))),
    };
    one(r.count()?)?;
    r.string()?;
    one(r.count()?)?;
    r.int32()?;
    Ok(())
}
