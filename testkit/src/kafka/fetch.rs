//! Fetch, through rskafka's messages but for the markers of transactions, which it takes for something else.

use rskafka::protocol::api_key::ApiKey;
use rskafka::protocol::api_version::{ApiVersion, ApiVersionRange};
use rskafka::protocol::error::Error as ApiError;
use rskafka::protocol::messages::{
    FetchRequest, ReadVersionedError, ReadVersionedType, RequestBody, WriteVersionedError,
    WriteVersionedType,
};
use rskafka::protocol::primitives::{Int16, Int32, Int64, NullableBytes, String_};
use rskafka::protocol::record::RecordBatch;
use rskafka::protocol::traits::{ReadError, ReadType};
use std::io::Cursor;

/// The request, as rskafka writes it.
#[derive(Debug)]
pub(super) struct Fetch(pub(super) FetchRequest);

impl RequestBody for Fetch {
    type ResponseBody = Fetched;
    const API_KEY: ApiKey = ApiKey::Fetch;
    const API_VERSION_RANGE: ApiVersionRange = FetchRequest::API_VERSION_RANGE;
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion =
        FetchRequest::FIRST_TAGGED_FIELD_IN_REQUEST_VERSION;
}

impl WriteVersionedType<Vec<u8>> for Fetch {
    fn write_versioned(
        &self,
        out: &mut Vec<u8>,
        version: ApiVersion,
    ) -> Result<(), WriteVersionedError> {
        self.0.write_versioned(out, version)
    }
}

/// What a broker hands out, by partition.
#[derive(Debug)]
pub(super) struct Fetched(pub(super) Vec<FetchedPartition>);

#[derive(Debug)]
pub(super) struct FetchedPartition {
    pub(super) index: i32,
    pub(super) error: Option<ApiError>,
    /// Producer and first offset of each aborted transaction.
    pub(super) aborted: Vec<(i64, i64)>,
    pub(super) batches: Vec<Batch>,
}

#[derive(Debug)]
pub(super) enum Batch {
    Records(RecordBatch),
    Marker(Marker),
}

/// The end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) offset: i64,
    pub(super) producer: i64,
    pub(super) is_abort: bool,
}

impl ReadVersionedType<Cursor<Vec<u8>>> for Fetched {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        let _throttle = Int32::read(reader)?;
        let mut partitions = Vec::new();
        for _ in 0..Int32::read(reader)?.0 {
            let _topic = String_::read(reader)?;
            for _ in 0..Int32::read(reader)?.0 {
                let index = Int32::read(reader)?.0;
                let error = ApiError::new(Int16::read(reader)?.0);
                let _watermark_and_stable = (Int64::read(reader)?, Int64::read(reader)?);
                let mut aborted = Vec::new();
                // Null is -1.
                for _ in 0..Int32::read(reader)?.0 {
                    aborted.push((Int64::read(reader)?.0, Int64::read(reader)?.0));
                }
                let bytes = NullableBytes::read(reader)?.0.unwrap_or_default();
                let batches = batches(&bytes)?;
                partitions.push(FetchedPartition { index, error, aborted, batches });
            }
        }
        Ok(Self(partitions))
    }
}

/// In front of what counts in `batchLength`: the base offset and itself.
const LENGTH_ENDS: usize = 12;

const ATTRIBUTES: usize = 21;
const CONTROL: u8 = 0x20;
const PRODUCER: usize = 43;
const RECORDS: usize = 61;

/// Whole ones; a broker may cut off the last.
fn batches(mut bytes: &[u8]) -> Result<Vec<Batch>, ReadError> {
    let mut batches = Vec::new();
    while let Some(length) = bytes.get(8..LENGTH_ENDS) {
        let length = Int32::read(&mut &*length)?.0;
        let len = LENGTH_ENDS + usize::try_from(length)?;
        let Some((batch, rest)) = bytes.split_at_checked(len) else { break };
        bytes = rest;
        let is_marker = batch.get(ATTRIBUTES + 1).is_some_and(|low| low & CONTROL != 0);
        batches.push(match is_marker {
            true => Batch::Marker(marker(batch)?),
            false => Batch::Records(RecordBatch::read(&mut &*batch)?),
        });
    }
    Ok(batches)
}

/// Its one record has a key of two numbers: a version, and 0 for an abort or 1 for a commit.
fn marker(batch: &[u8]) -> Result<Marker, ReadError> {
    let at = |at: usize| batch.get(at..).unwrap_or_default();
    let offset = Int64::read(&mut at(0))?.0;
    let producer = Int64::read(&mut at(PRODUCER))?.0;
    // Length, attributes, the deltas of time and offset, the key's length: of a byte each, but the first.
    let record = at(RECORDS);
    let length_bytes = record.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
    let key = record.get(length_bytes + 4..).unwrap_or_default();
    let (_version, end) =
        (Int16::read(&mut &*key)?.0, Int16::read(&mut key.get(2..).unwrap_or_default())?.0);
    match end {
        0 | 1 => Ok(Marker { offset, producer, is_abort: end == 0 }),
        other => Err(ReadError::Malformed(format!("a marker of type {other}").into())),
    }
}
