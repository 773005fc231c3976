//! Produce, by topics' names and by their ids.
//!
//! rskafka's Produce encodes every record from structs at every attempt; ours copies a finished
//! batch once, into the buffer that goes to the socket.
//!
//! A name is not enough: what is on its way when somebody deletes a topic and makes another of the same name would
//! go into the new one, and of several batches the later ones alone. A broker that is told the id refuses them all
//! (KIP-516; Apache Kafka from 4.1 on).
//!
//! In a transaction the version says more than its encoding: from 12 on a batch adds its partition to the transaction
//! (KIP-890), which up to 11 a request of its own has done before.

use super::dial::Stream;
use super::primitive::{
    Body, COMPACT_NULL, NO_TAGS, compact_len_len, int32, millis, put_compact_len,
    put_compact_string, put_string, read_version, version,
};
use crate::relay::kafka::{PartitionAnswer, PartitionBatch, TransactionVersion};
use rskafka::messenger::{Messenger, RequestError};
use rskafka::protocol::api_key::ApiKey;
use rskafka::protocol::api_version::{ApiVersion, ApiVersionRange};
use rskafka::protocol::messages::{
    ReadVersionedError, ReadVersionedType, RequestBody, WriteVersionedError, WriteVersionedType,
};
use rskafka::protocol::traits::ReadError;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// What is to be produced, by whichever Produce the broker knows. By itself it is that of versions 3 to 7, without a
/// transaction: 3 is the first with record batches (magic 2), later ones than 7 say nothing we need, and 9 changes the
/// whole encoding.
#[derive(Debug, Clone)]
pub(super) struct ProduceRequest {
    /// The transactional id, and which requests.
    pub(super) transaction: Option<(Arc<str>, TransactionVersion)>,
    /// Sorted by topic and partition, see [`sort`].
    pub(super) batches: Arc<Vec<PartitionBatch>>,
    /// How long the broker may wait for its replicas.
    pub(super) timeout: Duration,
}

/// Produce, from version 9 on; from 13 on it names topics by their ids.
#[derive(Debug)]
struct FlexibleProduceRequest<'a, const FIRST: i16, const LAST: i16>(&'a ProduceRequest);

impl ProduceRequest {
    /// By the topics' ids, or by their names if they are not known, or not to the broker.
    pub(super) async fn ask(
        &self,
        messenger: &Messenger<Stream>,
    ) -> Result<ProduceResponse, RequestError> {
        let version = self.transaction.as_ref().map(|(_, version)| *version);
        if version == Some(TransactionVersion::Explicit) {
            return messenger.request(FlexibleProduceRequest::<9, 11>(self)).await;
        }
        if self.batches.iter().all(|batch| batch.topic_id.is_some()) {
            match messenger.request(FlexibleProduceRequest::<BY_ID, BY_ID>(self)).await {
                // Nothing was sent.
                Err(RequestError::NoVersionMatch { .. }) => {}
                answer => return answer,
            }
        }
        match version {
            None => messenger.request(self).await,
            Some(_) => messenger.request(FlexibleProduceRequest::<12, 12>(self)).await,
        }
    }

    fn transactional_id(&self) -> Option<&str> {
        self.transaction.as_ref().map(|(id, _)| &**id)
    }
}

/// Brings batches into the order in which a [`ProduceRequest`] groups them.
pub(super) fn sort(batches: &mut [PartitionBatch]) {
    batches.sort_unstable_by(|a, b| by_partition(a, &b.topic, b.partition));
}

fn by_partition(batch: &PartitionBatch, topic: &str, partition: i32) -> Ordering {
    (*batch.topic).cmp(topic).then(batch.partition.cmp(&partition))
}

/// Why these batches, sorted, cannot be one request; none if they can.
pub(super) fn fault(request: &ProduceRequest) -> Option<String> {
    let batches = &*request.batches;
    if batches.is_empty() {
        return Some("a produce request without a batch".to_owned());
    }
    if let Some(b) = batches.iter().find(|b| i16::try_from(b.topic.len()).is_err()) {
        return Some(format!("a topic name of {} bytes", b.topic.len()));
    }
    let pairs = || {
        batches.windows(2).filter_map(|pair| match pair {
            [a, b] if a.topic == b.topic => Some((a, b)),
            _ => None,
        })
    };
    if let Some((_, b)) = pairs().find(|(a, b)| a.partition == b.partition) {
        return Some(format!("{}[{}] twice in one produce request", b.topic, b.partition));
    }
    if let Some((a, _)) = pairs().find(|(a, b)| a.topic_id != b.topic_id) {
        return Some(format!("two topics named {} in one produce request", a.topic));
    }
    let longest = [false, true].map(|by_id| encoded_len_flexible(request, by_id));
    if longest.into_iter().chain([encoded_len(batches)]).any(|len| i32::try_from(len).is_err()) {
        return Some("a produce request of more than 2 GiB".to_owned());
    }
    None
}

/// transactional id, acks, timeout, number of topics
const HEAD_LEN: usize = 2 + 2 + 4 + 4;
/// length of the name, number of partitions
const TOPIC_LEN: usize = 2 + 4;
/// index, length of the batch
const PARTITION_LEN: usize = 4 + 4;

fn encoded_len(batches: &[PartitionBatch]) -> usize {
    let topics: usize =
        by_topic(batches).map(|topic| TOPIC_LEN + topic.first().map_or(0, |b| b.topic.len())).sum();
    let partitions: usize = batches.iter().map(|b| PARTITION_LEN + b.batch.len()).sum();
    HEAD_LEN + topics + partitions
}

/// The same of a flexible version.
fn encoded_len_flexible(request: &ProduceRequest, by_id: bool) -> usize {
    let batches = &request.batches;
    let compact = |len: usize| compact_len_len(len) + len;
    // acks, timeout, tags
    let head = request.transactional_id().map_or(1, |id| compact(id.len())) + 2 + 4 + 1;
    let name = |topic: &[PartitionBatch]| match topic.first() {
        Some(batch) if !by_id => compact(batch.topic.len()),
        _ => 16,
    };
    let topics: usize =
        by_topic(batches).map(|topic| name(topic) + compact_len_len(topic.len()) + 1).sum();
    // index, tags
    let partition = |b: &PartitionBatch| 4 + compact(b.batch.len()) + 1;
    let partitions: usize = batches.iter().map(partition).sum();
    head + compact_len_len(by_topic(batches).count()) + topics + partitions
}

fn by_topic(batches: &[PartitionBatch]) -> impl Iterator<Item = &[PartitionBatch]> {
    batches.chunk_by(|a, b| a.topic == b.topic)
}

impl RequestBody for ProduceRequest {
    type ResponseBody = ProduceResponse;
    const API_KEY: ApiKey = ApiKey::Produce;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(3), version(7));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = FLEXIBLE;
}

impl<const FIRST: i16, const LAST: i16> RequestBody for FlexibleProduceRequest<'_, FIRST, LAST> {
    type ResponseBody = ProduceResponse;
    const API_KEY: ApiKey = ApiKey::Produce;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(FIRST), version(LAST));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = FLEXIBLE;
}

/// The first version with compact lengths and tagged fields.
const FLEXIBLE: ApiVersion = version(9);
/// The first version in which topics have ids and no names.
const BY_ID: i16 = 13;

/// Acknowledged by all replicas in sync.
const ACKS_ALL: i16 = -1;

impl WriteVersionedType<Vec<u8>> for ProduceRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        // One allocation and one copy of each batch, however many there are.
        out.reserve_exact(encoded_len(&self.batches));
        // No transactional id.
        out.extend((-1_i16).to_be_bytes());
        out.extend(ACKS_ALL.to_be_bytes());
        out.extend(millis(self.timeout).to_be_bytes());
        out.extend(int32(by_topic(&self.batches).count())?);
        for topic in by_topic(&self.batches) {
            let name = topic.first().map_or("", |batch| &*batch.topic);
            put_string(out, name)?;
            out.extend(int32(topic.len())?);
            for batch in topic {
                out.extend(batch.partition.to_be_bytes());
                out.extend(int32(batch.batch.len())?);
                out.extend_from_slice(&batch.batch);
            }
        }
        Ok(())
    }
}

impl<const FIRST: i16, const LAST: i16> WriteVersionedType<Vec<u8>>
    for FlexibleProduceRequest<'_, FIRST, LAST>
{
    fn write_versioned(
        &self,
        out: &mut Vec<u8>,
        version: ApiVersion,
    ) -> Result<(), WriteVersionedError> {
        let request = self.0;
        let by_id = version >= self::version(BY_ID);
        out.reserve_exact(encoded_len_flexible(request, by_id));
        match request.transactional_id() {
            None => out.push(COMPACT_NULL),
            Some(id) => put_compact_string(out, id)?,
        }
        out.extend(ACKS_ALL.to_be_bytes());
        out.extend(millis(request.timeout).to_be_bytes());
        put_compact_len(out, by_topic(&request.batches).count())?;
        for topic in by_topic(&request.batches) {
            let first = topic.first();
            if by_id {
                let id = first.and_then(|batch| batch.topic_id).unwrap_or_default();
                out.extend(id.into_bytes());
            } else {
                put_compact_string(out, first.map_or("", |batch| &*batch.topic))?;
            }
            put_compact_len(out, topic.len())?;
            for batch in topic {
                out.extend(batch.partition.to_be_bytes());
                put_compact_len(out, batch.batch.len())?;
                out.extend_from_slice(&batch.batch);
                out.push(NO_TAGS);
            }
            out.push(NO_TAGS);
        }
        out.push(NO_TAGS);
        Ok(())
    }
}

/// What a broker said to a Produce, not yet compared with it.
#[derive(Debug)]
pub(super) struct ProduceResponse {
    partitions: Vec<(Topic, PartitionResponse)>,
    pub(super) throttle: Duration,
}

/// How an answer names a topic.
#[derive(Debug, Clone)]
enum Topic {
    Name(Arc<str>),
    Id(Uuid),
}

/// One partition of a Produce response. What else there is (the log's first offset, the time of appending, which
/// records are at fault, who leads the partition now) is read past: nothing here depends on it.
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
        Ok(read_version(reader, version >= FLEXIBLE, |r| {
            // Never an allocation from a length the broker claims: the vector grows as entries are
            // read, and each takes bytes that have arrived.
            let mut partitions = Vec::new();
            for _ in 0..r.count()? {
                let topic = match version >= self::version(BY_ID) {
                    true => Topic::Id(r.uuid()?),
                    false => Topic::Name(Arc::from(r.string()?)),
                };
                for _ in 0..r.count()? {
                    partitions.push((topic.clone(), PartitionResponse::read(r, version)?));
                }
                r.tags()?;
            }
            let throttle = Duration::from_millis(u64::try_from(r.int32()?).unwrap_or(0));
            r.tags()?;
            Ok(Self { partitions, throttle })
        })?)
    }
}

impl PartitionResponse {
    fn read(r: &mut Body<'_>, version: ApiVersion) -> Result<Self, ReadError> {
        let (index, error, base_offset) = (r.int32()?, r.int16()?, r.int64()?);
        let _log_append_time = r.int64()?;
        if version >= self::version(5) {
            let _log_start_offset = r.int64()?;
        }
        if version >= self::version(8) {
            for _ in 0..r.count()? {
                let (_record, _message) = (r.int32()?, r.nullable_string()?);
                r.tags()?;
            }
            let _message = r.nullable_string()?;
        }
        r.tags()?;
        Ok(Self { index, error, base_offset })
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
        let names: HashMap<Uuid, &Arc<str>> = by_topic(batches)
            .filter_map(|topic| topic.first().and_then(|b| Some((b.topic_id?, &b.topic))))
            .collect();
        for (topic, said) in self.partitions {
            let name = match &topic {
                Topic::Name(name) => name,
                Topic::Id(id) => *names
                    .get(id)
                    .ok_or_else(|| format!("answered for a topic with id {id}, not asked for"))?,
            };
            let slot = batches
                .binary_search_by(|b| by_partition(b, name, said.index))
                .ok()
                .and_then(|at| answers.get_mut(at));
            match slot {
                Some((answered @ false, answer)) => {
                    *answered = true;
                    answer.error = said.error;
                    answer.base_offset = said.base_offset;
                }
                Some(_) => return Err(format!("answered for {name}[{}] twice", said.index)),
                None => {
                    return Err(format!("answered for {name}[{}], not asked for", said.index));
                }
            }
        }
        if let Some((_, a)) = answers.iter().find(|(answered, _)| !answered) {
            return Err(format!("did not answer for {}[{}]", a.topic, a.partition));
        }
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const ID: Uuid = Uuid::from_bytes([9; 16]);

    fn batch(topic: &str, partition: i32, batch: &'static [u8]) -> PartitionBatch {
        PartitionBatch {
            topic: Arc::from(topic),
            topic_id: Some(ID).filter(|_| topic == "t"),
            partition,
            base_sequence: 3,
            batch: Bytes::from_static(batch),
        }
    }

    fn request(
        batches: Vec<PartitionBatch>,
        transaction: Option<(&str, TransactionVersion)>,
    ) -> ProduceRequest {
        let transaction = transaction.map(|(id, version)| (Arc::from(id), version));
        let (batches, timeout) = (Arc::new(batches), Duration::from_millis(0x0102_0304));
        ProduceRequest { transaction, batches, timeout }
    }

    #[test]
    fn a_produce_request_is_encoded_in_one_allocation() {
        let mut batches = vec![batch("b", 1, b"xyz"), batch("a", 2, b"!"), batch("b", 0, b"")];
        sort(&mut batches);
        let request = request(batches, None);
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
    fn a_produce_request_by_id_is_encoded_in_one_allocation() {
        let long: &'static [u8] = &[7; 200];
        let request = request(vec![batch("t", 0, b"xyz"), batch("t", 2, long)], None);
        let mut out = Vec::new();
        let by_id = FlexibleProduceRequest::<BY_ID, BY_ID>(&request);
        by_id.write_versioned(&mut out, version(BY_ID)).unwrap();
        let expected: &[&[u8]] = &[
            &[0, 255, 255, 1, 2, 3, 4, 2],
            &[9; 16],
            &[3],
            &[0, 0, 0, 0, 4, b'x', b'y', b'z', 0],
            &[0, 0, 0, 2, 201, 1],
            long,
            &[0],
            &[0, 0],
        ];
        assert_eq!(out, expected.concat());
        assert_eq!(encoded_len_flexible(&request, true), out.len());
    }

    #[test]
    fn a_produce_request_of_a_transaction_is_encoded_in_one_allocation() {
        let batches = vec![batch("t", 0, b"xyz"), batch("u", 2, b"!")];
        let request = request(batches, Some(("relay", TransactionVersion::EpochPerTransaction)));
        let head: &[u8] = &[6, b'r', b'e', b'l', b'a', b'y', 255, 255, 1, 2, 3, 4, 3];
        let t: &[u8] = &[2, 0, 0, 0, 0, 4, b'x', b'y', b'z', 0, 0];
        let u: &[u8] = &[2, 0, 0, 0, 2, 2, b'!', 0, 0, 0];
        let by_name = [head, &[2, b't'], t, &[2, b'u'], u].concat();
        let by_id = [head, &[9; 16], t, &[0; 16], u].concat();
        let cases = [(9, &by_name), (11, &by_name), (12, &by_name), (13, &by_id)];
        for (v, expected) in cases {
            let mut out = Vec::new();
            let flexible = FlexibleProduceRequest::<9, 13>(&request);
            flexible.write_versioned(&mut out, version(v)).unwrap();
            assert_eq!(out, *expected, "version {v}");
            assert_eq!(encoded_len_flexible(&request, v == 13), out.len());
        }
    }

    /// The request is the last block of bytes there, with a gap for the batch, which is the one before it.
    #[test]
    fn the_request_in_how_it_works_is_the_one_that_is_sent() {
        let document = include_str!("../../docs/how-it-works.md");
        let [batch, [before, after]] =
            ["```hex\n00 00 00 00 00 00 00 00", "```hex\n00   "].map(|start| {
                let at = document.find(start).unwrap() + "```hex\n".len();
                let block = document.get(at..).unwrap().split("```").next().unwrap();
                let (before, after) = block.split_once("...").unwrap_or((block, ""));
                [before, after].map(|lines| {
                    let digits = lines.lines().filter_map(|line| line.split("  ").next());
                    let pairs = digits.flat_map(|digits| digits.split(' '));
                    let pairs = pairs.filter(|pair| !pair.is_empty());
                    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect::<Vec<u8>>()
                })
            });
        let [batch, _] = batch;
        let id = Uuid::from_slice(before.get(8..24).unwrap()).unwrap();
        let expected = [before, batch.clone(), after].concat();
        let batches = vec![PartitionBatch {
            topic: Arc::from("orders.order"),
            topic_id: Some(id),
            partition: 4,
            base_sequence: 0,
            batch: Bytes::from(batch),
        }];
        let request = ProduceRequest { timeout: Duration::from_secs(8), ..request(batches, None) };
        let mut out = Vec::new();
        let by_id = FlexibleProduceRequest::<BY_ID, BY_ID>(&request);
        by_id.write_versioned(&mut out, version(BY_ID)).unwrap();
        assert_eq!(out, expected);
    }

    /// A response for partition 5 of topic `t`, behind a header.
    fn response(v: i16) -> Vec<u8> {
        let mut body = b"header".to_vec();
        let (one, tags) = if v >= 9 { (vec![2], vec![0]) } else { (vec![0, 0, 0, 1], vec![]) };
        body.extend(&one);
        match v {
            13.. => body.extend([9; 16]),
            9.. => body.extend([2, b't']),
            _ => body.extend([0, 1, b't']),
        }
        body.extend(&one);
        body.extend([0, 0, 0, 5, 0, 45]);
        body.extend(77_i64.to_be_bytes());
        body.extend((-1_i64).to_be_bytes());
        if v >= 5 {
            body.extend(0_i64.to_be_bytes());
        }
        if v >= 8 {
            body.extend(&one);
            body.extend([0, 0, 0, 3]);
            let none: &[u8] = if v >= 9 { &[0] } else { &[255, 255] };
            body.extend(none);
            body.extend(&tags);
            body.extend(if v >= 9 { &[3][..] } else { &[0, 2] });
            body.extend(b"no");
        }
        // Tag 0 of a partition is its leader; of the whole, where brokers are.
        body.extend(tags.iter().flat_map(|_| [1, 0, 2, 7, 7]));
        body.extend(&tags);
        body.extend(1234_i32.to_be_bytes());
        body.extend(&tags);
        body
    }

    #[test]
    fn a_produce_response_is_read_in_every_version() {
        for v in (3..=7).chain(9..=13) {
            let body = response(v);
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
    fn an_answer_for_a_topic_with_another_id_is_none() {
        let mut body = response(13);
        body.get_mut(6 + 1..6 + 17).unwrap().fill(8);
        let mut reader = Cursor::new(body);
        reader.set_position(6);
        let response = ProduceResponse::read_versioned(&mut reader, version(BY_ID)).unwrap();
        let answers = response.answers(&[batch("t", 5, b"x")]);
        assert!(answers.as_ref().is_err_and(|what| what.contains("not asked for")), "{answers:?}");
    }

    #[test]
    fn two_topics_of_one_name_are_not_one_request() {
        let mut batches = vec![batch("t", 0, b"x"), batch("t", 1, b"x")];
        assert_eq!(fault(&request(batches.clone(), None)), None);
        batches[1].topic_id = None;
        assert!(fault(&request(batches, None)).unwrap().contains("two topics named t"));
    }
}
