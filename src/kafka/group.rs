//! What a consumer group remembers of partitions: FindCoordinator, OffsetFetch and OffsetCommit, as somebody who is
//! no member of it asks.

use super::Address;
use super::primitive::{
    Body, NO_TAGS, int32, malformed, put_compact_len, put_compact_string, put_string, read_body,
    read_version, version,
};
use crate::relay::kafka::{BrokerId, CoordinatorOf};
use rskafka::protocol::api_key::ApiKey;
use rskafka::protocol::api_version::{ApiVersion, ApiVersionRange};
use rskafka::protocol::messages::{
    ReadVersionedError, ReadVersionedType, RequestBody, WriteVersionedError, WriteVersionedType,
};
use rskafka::protocol::traits::ReadError;
use std::io::Cursor;
use std::sync::Arc;

/// No generation, no member: the group must have none.
const NO_GENERATION: i32 = -1;

/// How long it is remembered, in milliseconds: ten years. By default a broker forgets it after a week without
/// members (`offsets.retention.minutes`).
const RETENTION_MS: i64 = 10 * 365 * 24 * 60 * 60 * 1000;

/// FindCoordinator, version 1: the first that knows of transactions; later ones say nothing we need.
#[derive(Debug)]
pub(super) struct FindCoordinatorRequest {
    pub(super) of: CoordinatorOf,
    /// The transactional id, or the group's.
    pub(super) key: Arc<str>,
}

/// Its answer: which broker it is and where, or Kafka's error code.
#[derive(Debug)]
pub(super) struct FindCoordinatorResponse(pub(super) Result<(BrokerId, Address), i16>);

impl RequestBody for FindCoordinatorRequest {
    type ResponseBody = FindCoordinatorResponse;
    const API_KEY: ApiKey = ApiKey::FindCoordinator;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(1), version(1));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(3);
}

impl WriteVersionedType<Vec<u8>> for FindCoordinatorRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        put_string(out, &self.key)?;
        out.push(match self.of {
            CoordinatorOf::Group => 0,
            CoordinatorOf::Transactions => 1,
        });
        Ok(())
    }
}

impl ReadVersionedType<Cursor<Vec<u8>>> for FindCoordinatorResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_body(reader, |r| {
            let _throttle = r.int32()?;
            let error = r.int16()?;
            let (_message, node) = (r.nullable_string()?, r.int32()?);
            let host = r.string()?.to_owned();
            let port = r.int32()?;
            match error {
                0 => Ok(Self(Ok((node, Address { host, port: u16::try_from(port)? })))),
                code => Ok(Self(Err(code))),
            }
        })?)
    }
}

/// What is remembered of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Its index.
    pub partition: i32,
    /// The next offset to be looked at.
    pub offset: i64,
    /// A short text beside it; brokers take 4,096 bytes by default (`offset.metadata.max.bytes`).
    pub metadata: String,
}

/// OffsetFetch, version 7: the first that can wait for transactions, and the last of one group.
#[derive(Debug, Clone)]
pub(super) struct OffsetFetchRequest {
    pub(super) group: Arc<str>,
    pub(super) topic: Arc<str>,
    pub(super) partitions: Vec<i32>,
    /// What a transaction has in hand is not answered with what was before it, but refused until it has ended
    /// (UNSTABLE_OFFSET_COMMIT, KIP-447).
    pub(super) require_stable: bool,
}

/// Its answer: what is remembered of those partitions of which something is; or the first error code.
#[derive(Debug)]
pub(super) struct OffsetFetchResponse(pub(super) Result<Vec<Committed>, i16>);

impl RequestBody for OffsetFetchRequest {
    type ResponseBody = OffsetFetchResponse;
    const API_KEY: ApiKey = ApiKey::OffsetFetch;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(7), version(7));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(6);
}

impl WriteVersionedType<Vec<u8>> for OffsetFetchRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        put_compact_string(out, &self.group)?;
        put_compact_len(out, 1)?;
        put_compact_string(out, &self.topic)?;
        put_compact_len(out, self.partitions.len())?;
        for partition in &self.partitions {
            out.extend(partition.to_be_bytes());
        }
        out.extend([NO_TAGS, u8::from(self.require_stable), NO_TAGS]);
        Ok(())
    }
}

impl ReadVersionedType<Cursor<Vec<u8>>> for OffsetFetchResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_version(reader, true, |r| {
            let _throttle = r.int32()?;
            let mut committed = Vec::new();
            let mut refused = None;
            for _ in 0..r.count()? {
                let _topic = r.string()?;
                for _ in 0..r.count()? {
                    let (partition, offset, _epoch) = (r.int32()?, r.int64()?, r.int32()?);
                    let metadata = r.nullable_string()?.unwrap_or_default().to_owned();
                    match r.int16()? {
                        0 if offset >= 0 => {
                            committed.push(Committed { partition, offset, metadata });
                        }
                        // Of this one nothing is remembered.
                        0 => {}
                        code => refused = refused.or(Some(code)),
                    }
                    r.tags()?;
                }
                r.tags()?;
            }
            // Of the group itself: then there is no topic.
            match r.int16()? {
                0 => {}
                code => refused = Some(code),
            }
            r.tags()?;
            Ok(Self(refused.map_or(Ok(committed), Err)))
        })?)
    }
}

/// OffsetCommit, version 2: the last in which it may be said how long that is to be remembered is 4, the oldest that
/// Kafka 4 knows is this.
#[derive(Debug)]
pub(super) struct OffsetCommitRequest {
    pub(super) group: &'static str,
    pub(super) topic: Arc<str>,
    pub(super) committed: Committed,
}

/// Its answer: Kafka's error code.
#[derive(Debug)]
pub(super) struct OffsetCommitResponse(pub(super) i16);

impl RequestBody for OffsetCommitRequest {
    type ResponseBody = OffsetCommitResponse;
    const API_KEY: ApiKey = ApiKey::OffsetCommit;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(2), version(2));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(8);
}

impl WriteVersionedType<Vec<u8>> for OffsetCommitRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        put_string(out, self.group)?;
        out.extend(NO_GENERATION.to_be_bytes());
        put_string(out, "")?;
        out.extend(RETENTION_MS.to_be_bytes());
        out.extend(int32(1)?);
        put_string(out, &self.topic)?;
        out.extend(int32(1)?);
        out.extend(self.committed.partition.to_be_bytes());
        out.extend(self.committed.offset.to_be_bytes());
        put_string(out, &self.committed.metadata)?;
        Ok(())
    }
}

impl ReadVersionedType<Cursor<Vec<u8>>> for OffsetCommitResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_body(reader, |r| {
            let mut error = 0;
            one_topic(r, |r| {
                let (_partition, code) = (r.int32()?, r.int16()?);
                error = code;
                Ok(())
            })?;
            Ok(Self(error))
        })?)
    }
}

/// The partitions of the one topic that was asked for.
fn one_topic(
    r: &mut Body<'_>,
    mut each: impl FnMut(&mut Body<'_>) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    match r.count()? {
        1 => {}
        n => return Err(malformed(format!("an answer for {n} topics where one was asked for"))),
    }
    r.string()?;
    for _ in 0..r.count()? {
        each(r)?;
    }
    Ok(())
}
