//! The requests we send: Produce, InitProducerId, CreateTopics and SaslAuthenticate of our own, Metadata from
//! rskafka.
//!
//! rskafka's Produce encodes every record from structs at every attempt; ours copies a finished
//! batch once, into the buffer that goes to the socket. Formats:
//! <https://kafka.apache.org/protocol#protocol_messages>

use crate::relay::kafka::{
    Broker, CreateRefusal, Metadata, NewTopic, PartitionAnswer, PartitionBatch, PartitionMetadata,
    ProducerId, TopicMetadata,
};
use rskafka::protocol::api_key::ApiKey;
use rskafka::protocol::api_version::{ApiVersion, ApiVersionRange};
use rskafka::protocol::messages::{
    MetadataRequest, MetadataRequestTopic, MetadataResponse, ReadVersionedError, ReadVersionedType,
    RequestBody, SaslAuthenticateResponse, WriteVersionedError, WriteVersionedType,
};
use rskafka::protocol::primitives::{Boolean, Int16, NullableString, String_};
use rskafka::protocol::traits::{ReadError, WriteError};
use std::cmp::Ordering;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

pub(super) const fn version(v: i16) -> ApiVersion {
    ApiVersion(Int16(v))
}

/// Produce, versions 3 to 7: 3 is the first with record batches (magic 2), later ones than 7 say
/// nothing we need, and 9 changes the whole encoding.
#[derive(Debug)]
pub(super) struct ProduceRequest {
    /// Sorted by topic and partition, see [`sort`].
    pub(super) batches: Arc<Vec<PartitionBatch>>,
    /// How long the broker may wait for its replicas.
    pub(super) timeout: Duration,
}

/// Brings batches into the order in which a [`ProduceRequest`] groups them.
pub(super) fn sort(batches: &mut [PartitionBatch]) {
    batches.sort_unstable_by(|a, b| by_partition(a, &b.topic, b.partition));
}

fn by_partition(batch: &PartitionBatch, topic: &str, partition: i32) -> Ordering {
    (*batch.topic).cmp(topic).then(batch.partition.cmp(&partition))
}

/// Why these batches, sorted, cannot be one request; none if they can.
pub(super) fn fault(batches: &[PartitionBatch]) -> Option<String> {
    if batches.is_empty() {
        return Some("a produce request without a batch".to_owned());
    }
    if let Some(b) = batches.iter().find(|b| i16::try_from(b.topic.len()).is_err()) {
        return Some(format!("a topic name of {} bytes", b.topic.len()));
    }
    let twice = batches.windows(2).find_map(|pair| match pair {
        [a, b] if by_partition(a, &b.topic, b.partition) == Ordering::Equal => Some(b),
        _ => None,
    });
    if let Some(b) = twice {
        return Some(format!("{}[{}] twice in one produce request", b.topic, b.partition));
    }
    if i32::try_from(encoded_len(batches)).is_err() {
        return Some("a produce request of more than 2 GiB".to_owned());
    }
    None
}

/// transactional id, acks, timeout, number of topics
const PRODUCE_HEAD_LEN: usize = 2 + 2 + 4 + 4;
/// length of the name, number of partitions
const PRODUCE_TOPIC_LEN: usize = 2 + 4;
/// index, length of the batch
const PRODUCE_PARTITION_LEN: usize = 4 + 4;

fn encoded_len(batches: &[PartitionBatch]) -> usize {
    let topics: usize = by_topic(batches)
        .map(|topic| PRODUCE_TOPIC_LEN + topic.first().map_or(0, |b| b.topic.len()))
        .sum();
    let partitions: usize = batches.iter().map(|b| PRODUCE_PARTITION_LEN + b.batch.len()).sum();
    PRODUCE_HEAD_LEN + topics + partitions
}

fn by_topic(batches: &[PartitionBatch]) -> impl Iterator<Item = &[PartitionBatch]> {
    batches.chunk_by(|a, b| a.topic == b.topic)
}

impl RequestBody for ProduceRequest {
    type ResponseBody = ProduceResponse;
    const API_KEY: ApiKey = ApiKey::Produce;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(3), version(7));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(9);
}

impl WriteVersionedType<Vec<u8>> for ProduceRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        // One allocation and one copy of each batch, however many there are.
        out.reserve_exact(encoded_len(&self.batches));
        // No transactional id.
        out.extend((-1_i16).to_be_bytes());
        // Acknowledged by all replicas in sync.
        out.extend((-1_i16).to_be_bytes());
        out.extend(millis(self.timeout).to_be_bytes());
        out.extend(int32(by_topic(&self.batches).count())?);
        for topic in by_topic(&self.batches) {
            for (nth, batch) in topic.iter().enumerate() {
                if nth == 0 {
                    out.extend(int16(batch.topic.len())?);
                    out.extend_from_slice(batch.topic.as_bytes());
                    out.extend(int32(topic.len())?);
                }
                out.extend(batch.partition.to_be_bytes());
                out.extend(int32(batch.batch.len())?);
                out.extend_from_slice(&batch.batch);
            }
        }
        Ok(())
    }
}

pub(super) fn millis(d: Duration) -> i32 {
    i32::try_from(d.as_millis()).unwrap_or(i32::MAX)
}

pub(super) fn int16(n: usize) -> Result<[u8; 2], WriteError> {
    Ok(i16::try_from(n)?.to_be_bytes())
}

pub(super) fn int32(n: usize) -> Result<[u8; 4], WriteError> {
    Ok(i32::try_from(n)?.to_be_bytes())
}

/// What a broker said to a [`ProduceRequest`], not yet compared with the request.
#[derive(Debug)]
pub(super) struct ProduceResponse {
    partitions: Vec<(Arc<str>, PartitionResponse)>,
    pub(super) throttle: Duration,
}

/// One partition of a Produce response. What versions 5 and 7 add (the log's first offset, the time
/// of appending) is read past: nothing here depends on it.
#[derive(Debug, Clone, Copy)]
struct PartitionResponse {
    index: i32,
    error: i16,
    base_offset: i64,
}

impl ReadVersionedType<Cursor<Vec<u8>>> for ProduceResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        version: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_body(reader, |r| {
            // Never an allocation from a length the broker claims: the vector grows as entries are
            // read, and each takes bytes that have arrived.
            let mut partitions = Vec::new();
            for _ in 0..r.count()? {
                let topic: Arc<str> = Arc::from(r.string()?);
                for _ in 0..r.count()? {
                    let answer = PartitionResponse {
                        index: r.int32()?,
                        error: r.int16()?,
                        base_offset: r.int64()?,
                    };
                    let _log_append_time = r.int64()?;
                    if version >= self::version(5) {
                        let _log_start_offset = r.int64()?;
                    }
                    partitions.push((Arc::clone(&topic), answer));
                }
            }
            let throttle = Duration::from_millis(u64::try_from(r.int32()?).unwrap_or(0));
            Ok(Self { partitions, throttle })
        })?)
    }
}

impl ProduceResponse {
    /// The answers, each under its request's topic; a sentence if they are not exactly those for
    /// `batches` (sorted).
    pub(super) fn answers(
        self,
        batches: &[PartitionBatch],
    ) -> Result<Vec<PartitionAnswer>, String> {
        // The topics' names as the request has them: the strings are shared, not copied.
        let mut answers: Vec<_> = batches
            .iter()
            .map(|b| {
                (
                    false,
                    PartitionAnswer {
                        topic: Arc::clone(&b.topic),
                        partition: b.partition,
                        base_sequence: b.base_sequence,
                        error: 0,
                        base_offset: -1,
                    },
                )
            })
            .collect();
        for (topic, said) in self.partitions {
            let slot = batches
                .binary_search_by(|b| by_partition(b, &topic, said.index))
                .ok()
                .and_then(|at| answers.get_mut(at));
            match slot {
                Some((answered @ false, answer)) => {
                    *answered = true;
                    answer.error = said.error;
                    answer.base_offset = said.base_offset;
                }
                Some(_) => return Err(format!("answered for {topic}[{}] twice", said.index)),
                None => {
                    return Err(format!("answered for {topic}[{}], not asked for", said.index));
                }
            }
        }
        if let Some((_, a)) = answers.iter().find(|(answered, _)| !answered) {
            return Err(format!("did not answer for {}[{}]", a.topic, a.partition));
        }
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }
}

/// InitProducerId, versions 0 and 1 (the same but for the meaning of the throttle time), without a
/// transactional id.
#[derive(Debug)]
pub(super) struct InitProducerIdRequest;

impl RequestBody for InitProducerIdRequest {
    type ResponseBody = InitProducerIdResponse;
    const API_KEY: ApiKey = ApiKey::InitProducerId;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(0), version(1));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(2);
}

impl WriteVersionedType<Vec<u8>> for InitProducerIdRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        out.extend((-1_i16).to_be_bytes());
        // The transaction time-out, without a meaning here; what the Java client sends.
        out.extend(i32::MAX.to_be_bytes());
        Ok(())
    }
}

/// The identity, or Kafka's error code.
#[derive(Debug)]
pub(super) struct InitProducerIdResponse(pub(super) Result<ProducerId, i16>);

impl ReadVersionedType<Cursor<Vec<u8>>> for InitProducerIdResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_body(reader, |r| {
            let _throttle = r.int32()?;
            let error = r.int16()?;
            let producer = ProducerId { id: r.int64()?, epoch: r.int16()? };
            match error {
                0 if producer.id < 0 || producer.epoch < 0 => {
                    Err(malformed(format!("no error, yet {producer:?}")))
                }
                0 => Ok(Self(Ok(producer))),
                code => Ok(Self(Err(code))),
            }
        })?)
    }
}

/// CreateTopics for one topic, version 4: the first in which a broker fills in numbers that are not given
/// (KIP-464). Later ones change the whole encoding.
#[derive(Debug)]
pub(super) struct CreateTopicRequest {
    pub(super) topic: Arc<str>,
    pub(super) new: Arc<NewTopic>,
    /// How long the broker may wait until it is done.
    pub(super) timeout: Duration,
}

impl RequestBody for CreateTopicRequest {
    type ResponseBody = CreateTopicResponse;
    const API_KEY: ApiKey = ApiKey::CreateTopics;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(4), version(4));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(5);
}

impl WriteVersionedType<Vec<u8>> for CreateTopicRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        fn string(out: &mut Vec<u8>, text: &str) -> Result<(), WriteError> {
            out.extend(int16(text.len())?);
            out.extend_from_slice(text.as_bytes());
            Ok(())
        }
        let NewTopic { partitions, replication_factor, configs } = &*self.new;
        out.extend(int32(1)?);
        string(out, &self.topic)?;
        out.extend(partitions.unwrap_or(-1).to_be_bytes());
        out.extend(replication_factor.unwrap_or(-1).to_be_bytes());
        // No assignment of replicas to brokers.
        out.extend(int32(0)?);
        out.extend(int32(configs.len())?);
        for (name, value) in configs {
            string(out, name)?;
            string(out, value)?;
        }
        out.extend(millis(self.timeout).to_be_bytes());
        // Not only to see whether it could be.
        out.push(0);
        Ok(())
    }
}

/// What a broker said to a [`CreateTopicRequest`], not yet compared with the request.
#[derive(Debug)]
pub(super) struct CreateTopicResponse(Vec<(String, Result<(), CreateRefusal>)>);

impl ReadVersionedType<Cursor<Vec<u8>>> for CreateTopicResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_body(reader, |r| {
            let _throttle = r.int32()?;
            let mut topics = Vec::new();
            for _ in 0..r.count()? {
                let topic = r.string()?.to_owned();
                let error = r.int16()?;
                let message = r.nullable_string()?.map(str::to_owned);
                let answer =
                    if error == 0 { Ok(()) } else { Err(CreateRefusal { error, message }) };
                topics.push((topic, answer));
            }
            Ok(Self(topics))
        })?)
    }
}

impl CreateTopicResponse {
    /// The answer; a sentence if it is not one for `topic`.
    pub(super) fn answer(self, topic: &str) -> Result<Result<(), CreateRefusal>, String> {
        let answer = self.0.into_iter().find(|(name, _)| name == topic);
        answer.map(|(_, answer)| answer).ok_or_else(|| format!("did not answer for topic {topic}"))
    }
}

/// SaslAuthenticate, versions 0 and 1: in version 2 rskafka subtracts 1 from the length of the answer's
/// bytes, which a broker may send as 0.
///
/// Without `Debug`, because it holds a password or a token.
pub(super) struct SaslAuthenticateRequest(pub(super) Vec<u8>);

impl RequestBody for SaslAuthenticateRequest {
    type ResponseBody = SaslAuthenticateResponse;
    const API_KEY: ApiKey = ApiKey::SaslAuthenticate;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(0), version(1));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(2);
}

impl WriteVersionedType<Vec<u8>> for SaslAuthenticateRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        out.extend(int32(self.0.len())?);
        out.extend(&self.0);
        Ok(())
    }
}

/// Metadata for exactly these topics.
///
/// An empty list asks for no topic from version 1 on (null would be all of them); forbidding
/// auto-creation needs version 4, so that nothing older is ever spoken.
pub(super) fn metadata_request(topics: &[Arc<str>]) -> MetadataRequest {
    let topics =
        topics.iter().map(|t| MetadataRequestTopic { name: String_(t.to_string()) }).collect();
    MetadataRequest { topics: Some(topics), allow_auto_topic_creation: Some(Boolean(false)) }
}

/// Takes from a response what the engine wants to know; a sentence if it makes no sense.
pub(super) fn metadata(response: MetadataResponse, asked: &[Arc<str>]) -> Result<Metadata, String> {
    // A broker that has just started may know nobody yet, not even itself.
    if response.brokers.is_empty() {
        return Err("knows of no broker yet".to_owned());
    }
    let mut brokers = Vec::with_capacity(response.brokers.len());
    for b in response.brokers {
        let port = u16::try_from(b.port.0).ok().filter(|port| *port != 0);
        let Some(port) = port else {
            return Err(format!("names port {} for broker {}", b.port.0, b.node_id.0));
        };
        brokers.push(Broker { id: b.node_id.0, host: b.host.0, port });
    }
    let mut topics: Vec<TopicMetadata> = Vec::with_capacity(asked.len());
    for t in response.topics {
        let name = t.name.0;
        if !asked.iter().any(|n| **n == *name) || topics.iter().any(|t| t.name == name) {
            continue;
        }
        let error = Int16::from(t.error).0;
        let partitions = if error == 0 { t.partitions } else { Vec::new() };
        let partitions = partitions
            .into_iter()
            .map(|p| PartitionMetadata {
                index: p.partition_index.0,
                // -1 while there is none. One that is not among the live brokers cannot be reached.
                leader: Some(p.leader_id.0).filter(|id| brokers.iter().any(|b| b.id == *id)),
            })
            .collect();
        topics.push(TopicMetadata { name, error, partitions });
    }
    if let Some(name) = asked.iter().find(|name| !topics.iter().any(|t| *t.name == ***name)) {
        return Err(format!("did not answer for topic {name}"));
    }
    let cluster_id = response.cluster_id.and_then(|NullableString(id)| id);
    Ok(Metadata { cluster_id, brokers, topics })
}

pub(super) fn malformed(what: String) -> ReadError {
    ReadError::Malformed(what.into())
}

/// Reads a response's body from where the header ended, and leaves the reader behind it.
pub(super) fn read_body<T>(
    reader: &mut Cursor<Vec<u8>>,
    read: impl FnOnce(&mut Body<'_>) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    let start = usize::try_from(reader.position())?;
    let bytes = reader.get_ref().get(start..).unwrap_or_default();
    let mut body = Body { rest: bytes };
    let value = read(&mut body)?;
    let end = start + (bytes.len() - body.rest.len());
    reader.set_position(end as u64);
    Ok(value)
}

#[derive(Clone)]
pub(super) struct Body<'a> {
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let (head, rest) =
            self.rest.split_first_chunk().ok_or_else(|| malformed("ended early".to_owned()))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn int16(&mut self) -> Result<i16, ReadError> {
        self.array().map(i16::from_be_bytes)
    }

    pub(super) fn int32(&mut self) -> Result<i32, ReadError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn int64(&mut self) -> Result<i64, ReadError> {
        self.array().map(i64::from_be_bytes)
    }

    /// An array's length; null is empty.
    pub(super) fn count(&mut self) -> Result<i32, ReadError> {
        match self.int32()? {
            n if n < -1 => Err(malformed(format!("an array of length {n}"))),
            n => Ok(n),
        }
    }

    pub(super) fn string(&mut self) -> Result<&'a str, ReadError> {
        self.nullable_string()?.ok_or_else(|| malformed("null where text is wanted".to_owned()))
    }

    /// Null is empty.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], ReadError> {
        let len = match self.int32()? {
            -1 => 0,
            len => usize::try_from(len)?,
        };
        let (head, rest) =
            self.rest.split_at_checked(len).ok_or_else(|| malformed("ended early".to_owned()))?;
        self.rest = rest;
        Ok(head)
    }

    fn nullable_string(&mut self) -> Result<Option<&'a str>, ReadError> {
        let len = match self.int16()? {
            -1 => return Ok(None),
            len => usize::try_from(len)?,
        };
        let (head, rest) =
            self.rest.split_at_checked(len).ok_or_else(|| malformed("ended early".to_owned()))?;
        self.rest = rest;
        std::str::from_utf8(head).map(Some).map_err(|e| ReadError::Malformed(Box::new(e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn batch(topic: &str, partition: i32, batch: &'static [u8]) -> PartitionBatch {
        let batch = Bytes::from_static(batch);
        PartitionBatch { topic: Arc::from(topic), partition, base_sequence: 3, batch }
    }

    #[test]
    fn a_produce_request_is_encoded_in_one_allocation() {
        let mut batches = vec![batch("b", 1, b"xyz"), batch("a", 2, b"!"), batch("b", 0, b"")];
        sort(&mut batches);
        let batches = Arc::new(batches);
        let request = ProduceRequest { batches, timeout: Duration::from_millis(0x0102_0304) };
        let mut out = Vec::new();
        request.write_versioned(&mut out, version(7)).unwrap();
        let expected: &[&[u8]] = &[
            &[255, 255, 255, 255, 1, 2, 3, 4],
            &[0, 0, 0, 2],
            &[0, 1, b'a', 0, 0, 0, 1],
            &[0, 0, 0, 2, 0, 0, 0, 1, b'!'],
            &[0, 1, b'b', 0, 0, 0, 2],
            &[0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 1, 0, 0, 0, 3, b'x', b'y', b'z'],
        ];
        assert_eq!(out, expected.concat());
        assert_eq!(encoded_len(&request.batches), out.len());
    }

    #[test]
    fn a_produce_response_is_read_in_every_version() {
        for v in 3..=7 {
            let mut body = b"header".to_vec();
            body.extend([0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1]);
            body.extend([0, 0, 0, 5, 0, 45]);
            body.extend(77_i64.to_be_bytes());
            body.extend((-1_i64).to_be_bytes());
            if v >= 5 {
                body.extend(0_i64.to_be_bytes());
            }
            body.extend(1234_i32.to_be_bytes());
            for end in 6..body.len() {
                let mut cut = Cursor::new(body.get(..end).unwrap().to_vec());
                cut.set_position(6);
                assert!(ProduceResponse::read_versioned(&mut cut, version(v)).is_err());
            }

            let mut reader = Cursor::new(body.clone());
            reader.set_position(6);
            let response = ProduceResponse::read_versioned(&mut reader, version(v)).unwrap();
            assert_eq!(reader.position(), body.len() as u64);
            assert_eq!(response.throttle, Duration::from_millis(1234));
            let answer = PartitionAnswer {
                topic: Arc::from("t"),
                partition: 5,
                base_sequence: 3,
                error: 45,
                base_offset: 77,
            };
            assert_eq!(response.answers(&[batch("t", 5, b"x")]), Ok(vec![answer]));
        }
    }

    #[test]
    fn an_identity_that_cannot_be_is_refused() {
        let mut body = vec![0; 4 + 2];
        body.extend((-1_i64).to_be_bytes());
        body.extend(0_i16.to_be_bytes());
        let read = InitProducerIdResponse::read_versioned(&mut Cursor::new(body), version(1));
        assert!(read.is_err());
    }
}
