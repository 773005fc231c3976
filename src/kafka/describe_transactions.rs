//! DescribeTransactions, version 0: what a coordinator says of a transactional id (KIP-664). The only version of Kafka
//! 3.7; 1 asks the same.
//!
//! <https://kafka.apache.org/protocol#The_Messages_DescribeTransactions>

use super::primitive::{
    NO_TAGS, malformed, put_compact_len, put_compact_string, read_version, version,
};
use crate::relay::kafka::ProducerId;
use rskafka::protocol::api_key::ApiKey;
use rskafka::protocol::api_version::{ApiVersion, ApiVersionRange};
use rskafka::protocol::messages::{
    ReadVersionedError, ReadVersionedType, RequestBody, WriteVersionedError, WriteVersionedType,
};
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

/// What a coordinator says of a transactional id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionDescription {
    /// As Kafka has it: Empty, Ongoing, PrepareCommit, PrepareAbort, CompleteCommit, CompleteAbort, Dead,
    /// PrepareEpochFence.
    pub state: String,
    /// Who has it.
    pub producer: ProducerId,
    /// How long a transaction may be open before the coordinator ends it.
    pub timeout: Duration,
    /// When the last one was begun, in milliseconds since 1970, by the coordinator's clock.
    pub since_ms: Option<i64>,
    /// What is in it: topics and partitions, as far as we may describe them, in order.
    pub partitions: Vec<(String, i32)>,
}

/// Of one transactional id.
#[derive(Debug)]
pub(super) struct DescribeTransactionsRequest {
    pub(super) id: Arc<str>,
}

impl RequestBody for DescribeTransactionsRequest {
    type ResponseBody = DescribeTransactionsResponse;
    const API_KEY: ApiKey = ApiKey::DescribeTransactions;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(0), version(0));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(0);
}

impl WriteVersionedType<Vec<u8>> for DescribeTransactionsRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        put_compact_len(out, 1)?;
        put_compact_string(out, &self.id)?;
        out.push(NO_TAGS);
        Ok(())
    }
}

/// What a coordinator said to a [`DescribeTransactionsRequest`], or Kafka's error code.
#[derive(Debug)]
pub(super) struct DescribeTransactionsResponse(pub(super) Result<TransactionDescription, i16>);

impl ReadVersionedType<Cursor<Vec<u8>>> for DescribeTransactionsResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_version(reader, true, |r| {
            let _throttle = r.int32()?;
            match r.count()? {
                1 => {}
                n => {
                    return Err(malformed(format!(
                        "answered for {n} transactional ids where one was asked for"
                    )));
                }
            }
            let (error, _id) = (r.int16()?, r.string()?);
            let (state, timeout) = (r.string()?.to_owned(), r.int32()?);
            let since = r.int64()?;
            let producer = ProducerId { id: r.int64()?, epoch: r.int16()? };
            // Never an allocation from a length the broker claims.
            let mut partitions = Vec::new();
            for _ in 0..r.count()? {
                let topic = r.string()?;
                for _ in 0..r.count()? {
                    partitions.push((topic.to_owned(), r.int32()?));
                }
                r.tags()?;
            }
            r.tags()?;
            r.tags()?;
            if error != 0 {
                return Ok(Self(Err(error)));
            }
            partitions.sort_unstable();
            Ok(Self(Ok(TransactionDescription {
                state,
                producer,
                timeout: Duration::from_millis(timeout.try_into().unwrap_or(0)),
                // Below 0 where none was begun.
                since_ms: Some(since).filter(|since| *since >= 0),
                partitions,
            })))
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads it whole; every shorter one is refused.
    #[track_caller]
    fn read(body: &[u8]) -> Result<TransactionDescription, i16> {
        for end in 0..body.len() {
            let mut cut = Cursor::new(body[..end].to_vec());
            let read = DescribeTransactionsResponse::read_versioned(&mut cut, version(0));
            assert!(read.is_err(), "{end} of {} bytes: {read:?}", body.len());
        }
        let mut reader = Cursor::new(body.to_vec());
        let read = DescribeTransactionsResponse::read_versioned(&mut reader, version(0)).unwrap();
        assert_eq!(reader.position(), body.len() as u64);
        read.0
    }

    #[test]
    fn one_transactional_id_is_asked_for() {
        let request = DescribeTransactionsRequest { id: Arc::from("id") };
        let mut out = Vec::new();
        request.write_versioned(&mut out, version(0)).unwrap();
        assert_eq!(out, [2, 3, b'i', b'd', 0]);
    }

    #[test]
    fn partitions_stand_in_order_and_what_is_claimed_is_not_believed() {
        let head: &[u8] = &[0, 0, 0, 0, 2, 0, 0, 3, b'i', b'd'];
        let state: &[u8] = b"\x08Ongoing\0\0\xea\x60";
        let numbers = [&[0; 7][..], &[9], &[0; 7], &[5], &[0, 3]].concat();
        let u: &[u8] = &[2, b'u', 2, 0, 0, 0, 7, 0];
        let t: &[u8] = &[2, b't', 3, 0, 0, 0, 2, 0, 0, 0, 0, 0];
        let answer = [head, state, &numbers, &[3], u, t, &[0, 0]].concat();
        let found = read(&answer).unwrap();
        let expected = [("t", 0), ("t", 2), ("u", 7)];
        assert_eq!(found.partitions, expected.map(|(topic, p)| (topic.to_owned(), p)));
        assert_eq!((found.state.as_str(), found.since_ms), ("Ongoing", Some(9)));
        assert_eq!(found.producer, ProducerId { id: 5, epoch: 3 });
        assert_eq!(found.timeout, Duration::from_secs(60));
        // Two billion topics in no bytes.
        let claims = [head, state, &numbers, &[0xff, 0xff, 0xff, 0xff, 0x07]].concat();
        let claimed =
            DescribeTransactionsResponse::read_versioned(&mut Cursor::new(claims), version(0));
        assert!(claimed.is_err());
        let of_none = vec![0, 0, 0, 0, 1, 0];
        let none =
            DescribeTransactionsResponse::read_versioned(&mut Cursor::new(of_none), version(0));
        assert!(none.unwrap_err().to_string().contains("0 transactional ids"));
    }

    /// From Apache Kafka 4.3.1: while facts are gathered, once they are committed, and of an id that nobody has.
    #[test]
    fn what_a_real_coordinator_has_answered_is_read() {
        let bytes = |hex: &str| -> Vec<u8> {
            let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
            digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
        };
        let open = "000000000200002f6f776c706f73742d373731333934313831333034303635393038312d31333537322d6661\
            63746c69625f736c6f74084f6e676f696e670000ea60000001a22cc054f000000000000000000001020e6578\
            706c6f72652e66616374730200000000000000";
        let expected = TransactionDescription {
            state: "Ongoing".to_owned(),
            producer: ProducerId { id: 0, epoch: 1 },
            timeout: Duration::from_secs(60),
            since_ms: Some(1_796_047_131_888),
            partitions: vec![("explore.facts".to_owned(), 0)],
        };
        assert_eq!(read(&bytes(open)), Ok(expected.clone()));
        let committed = "000000000200002f6f776c706f73742d373731333934313831333034303635393038312d31333537322d6661\
            63746c69625f736c6f740f436f6d706c657465436f6d6d69740000ea60000001a22cc07bad00000000000000\
            000003010000";
        let expected = TransactionDescription {
            state: "CompleteCommit".to_owned(),
            producer: ProducerId { id: 0, epoch: 3 },
            since_ms: Some(1_796_047_141_805),
            partitions: Vec::new(),
            ..expected
        };
        assert_eq!(read(&bytes(committed)), Ok(expected));
        let unknown =
            "00000000020069076e6f626f64790100000000000000000000000000000000000000000000010000";
        assert_eq!(read(&bytes(unknown)), Err(105), "TRANSACTIONAL_ID_NOT_FOUND");
    }
}
