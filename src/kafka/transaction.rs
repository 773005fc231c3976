//! The requests of transactions, and of the position that is committed with them (KIP-98): what only a coordinator
//! answers.
//!
//! Of each the versions are asked for that fit the cluster's `transaction.version` (KIP-890), which a broker tells as
//! one of its finalised features (KIP-584).

use super::Owes;
use super::dial::Stream;
use super::fail_point::Step;
use super::group::OffsetFetchRequest;
use super::message::InitProducerIdResponse;
use super::primitive::{
    Body, COMPACT_NULL, NO_TAGS, malformed, millis, put_compact_len, put_compact_string,
    read_version, version,
};
use crate::relay::kafka::{
    Answer, PositionPlace, ProducerId, StoredPosition, Transaction, TransactionVersion,
};
use rskafka::messenger::{Messenger, RequestError};
use rskafka::protocol::api_key::ApiKey;
use rskafka::protocol::api_version::{ApiVersion, ApiVersionRange};
use rskafka::protocol::messages::{
    ReadVersionedError, ReadVersionedType, RequestBody, WriteVersionedError, WriteVersionedType,
};
use rskafka::protocol::traits::ReadError;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

/// What is asked of a coordinator.
#[derive(Debug)]
pub(super) enum Question {
    Initialise(InitTransactionsRequest),
    AddPartitions(AddPartitionsRequest),
    AddOffsets(AddOffsetsRequest),
    CommitPosition(Commit, TransactionVersion),
    End(End, TransactionVersion),
    FetchPosition(PositionPlace),
}

impl Question {
    /// False for what may be asked when the slot may be another relay's: what changes nothing, and what undoes.
    pub(super) fn needs_lease(&self) -> bool {
        match self {
            Self::Initialise(_)
            | Self::AddPartitions(_)
            | Self::AddOffsets(_)
            | Self::CommitPosition(..) => true,
            Self::End(end, _) => end.commit,
            Self::FetchPosition(_) => false,
        }
    }

    pub(super) fn step(&self) -> Step {
        match self {
            Self::Initialise(InitTransactionsRequest { producer: None, .. }) => Step::Initialising,
            Self::Initialise(_) => Step::NextEpoch,
            Self::AddPartitions(_) => Step::AddingPartitions,
            Self::AddOffsets(_) => Step::AddingOffsets,
            Self::CommitPosition(..) => Step::Positioning,
            Self::End(End { commit: true, .. }, _) => Step::Ending,
            Self::End(..) => Step::Aborting,
            Self::FetchPosition(_) => Step::Reading,
        }
    }

    /// How many requests are written for it.
    pub(super) fn requests(&self) -> u64 {
        match self {
            Self::Initialise(_) => 2,
            _ => 1,
        }
    }

    /// What is said where it stays unanswered.
    pub(super) fn owes(&self) -> Owes {
        Owes::Coordinated(match self {
            Self::Initialise(_) => |cause| Answer::TransactionsReady(Err(cause)),
            Self::AddPartitions(_) => |cause| Answer::PartitionsAdded(Err(cause)),
            Self::AddOffsets(_) => |cause| Answer::OffsetsAdded(Err(cause)),
            Self::CommitPosition(..) => |cause| Answer::PositionCommitted(Err(cause)),
            Self::End(..) => |cause| Answer::TransactionEnded(Err(cause)),
            Self::FetchPosition(_) => |cause| Answer::Position(Err(cause)),
        })
    }

    /// Asks, and waits. Before it is dropped unfinished the connection must be cut.
    pub(super) async fn ask(&self, messenger: &Messenger<Stream>) -> Result<Answer, RequestError> {
        use TransactionVersion::{EpochPerTransaction, Explicit};
        Ok(match self {
            Self::Initialise(request) => {
                let (version, producer) = futures_util::try_join!(
                    messenger.request(FeaturesRequest),
                    messenger.request(request)
                )?;
                Answer::TransactionsReady(Ok(producer.0.map(|producer| (producer, version.0))))
            }
            Self::AddPartitions(request) => {
                let added = messenger.request(request).await?;
                let errors = added.errors(&request.partitions);
                Answer::PartitionsAdded(Ok(errors.map_err(malformed)?))
            }
            Self::AddOffsets(request) => {
                Answer::OffsetsAdded(Ok(messenger.request(request).await?.0))
            }
            Self::CommitPosition(commit, version) => {
                let committed = match version {
                    Explicit => messenger.request(CommitRequest::<3, 4>(commit)).await,
                    EpochPerTransaction => messenger.request(CommitRequest::<5, 5>(commit)).await,
                };
                Answer::PositionCommitted(Ok(committed?.0))
            }
            Self::End(end, version) => {
                let ended = match version {
                    Explicit => messenger.request(EndRequest::<3, 4>(end)).await,
                    EpochPerTransaction => messenger.request(EndRequest::<5, 5>(end)).await,
                };
                Answer::TransactionEnded(Ok(ended?.0))
            }
            Self::FetchPosition(PositionPlace { group, topic }) => {
                let (group, topic) = (Arc::clone(group), Arc::clone(topic));
                let request = OffsetFetchRequest {
                    group,
                    topic,
                    partitions: vec![POSITION_PARTITION],
                    require_stable: true,
                };
                let kept = messenger.request(request).await?.0;
                Answer::Position(Ok(kept.map(|kept| {
                    kept.into_iter()
                        .map(|kept| StoredPosition { offset: kept.offset, metadata: kept.metadata })
                        .next()
                })))
            }
        })
    }
}

/// The one of its topic.
pub(super) const POSITION_PARTITION: i32 = 0;

fn put_producer(out: &mut Vec<u8>, producer: ProducerId) {
    out.extend(producer.id.to_be_bytes());
    out.extend(producer.epoch.to_be_bytes());
}

/// Nothing, or Kafka's error code.
fn refused(code: i16) -> Result<(), i16> {
    match code {
        0 => Ok(()),
        code => Err(code),
    }
}

/// ApiVersions, version 3: the first in which a broker tells the finalised features of its cluster. Of what else it
/// tells the messenger has asked.
#[derive(Debug)]
struct FeaturesRequest;

impl RequestBody for FeaturesRequest {
    type ResponseBody = FeaturesResponse;
    const API_KEY: ApiKey = ApiKey::ApiVersions;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(3), version(3));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(3);
    // The header of this response has none in any version: who asks does not know yet what the broker knows.
    const FIRST_TAGGED_FIELD_IN_RESPONSE_VERSION: ApiVersion = version(i16::MAX);
}

impl WriteVersionedType<Vec<u8>> for FeaturesRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        put_compact_string(out, env!("CARGO_PKG_NAME"))?;
        put_compact_string(out, env!("CARGO_PKG_VERSION"))?;
        out.push(NO_TAGS);
        Ok(())
    }
}

/// Of which requests the transactions of the cluster are made.
#[derive(Debug)]
struct FeaturesResponse(TransactionVersion);

/// The tag of the finalised features.
const FINALISED: u32 = 2;

impl ReadVersionedType<Cursor<Vec<u8>>> for FeaturesResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_version(reader, true, |r| {
            match r.int16()? {
                0 => {}
                code => return Err(malformed(format!("error {code} for its versions"))),
            }
            for _ in 0..r.count()? {
                let (_api, _first, _last) = (r.int16()?, r.int16()?, r.int16()?);
                r.tags()?;
            }
            let _throttle = r.int32()?;
            // A cluster that does not have the feature says nothing of it.
            let mut version = 0;
            r.tagged(|tag, r| {
                if tag == FINALISED {
                    for _ in 0..r.count()? {
                        let name = r.string()?;
                        let (last, _first) = (r.int16()?, r.int16()?);
                        r.tags()?;
                        if name == "transaction.version" {
                            version = last;
                        }
                    }
                }
                Ok(())
            })?;
            Ok(Self(match version >= 2 {
                true => TransactionVersion::EpochPerTransaction,
                false => TransactionVersion::Explicit,
            }))
        })?)
    }
}

/// InitProducerId with a transactional id, versions 4 and 5: 3 is the first that takes who we are (KIP-360), 4 the first
/// that says PRODUCER_FENCED where it is meant, 5 may say TRANSACTION_ABORTABLE.
#[derive(Debug)]
pub(super) struct InitTransactionsRequest {
    pub(super) id: Arc<str>,
    pub(super) timeout: Duration,
    pub(super) producer: Option<ProducerId>,
}

impl RequestBody for InitTransactionsRequest {
    type ResponseBody = InitProducerIdResponse;
    const API_KEY: ApiKey = ApiKey::InitProducerId;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(4), version(5));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(2);
}

impl WriteVersionedType<Vec<u8>> for InitTransactionsRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        put_compact_string(out, &self.id)?;
        out.extend(millis(self.timeout).to_be_bytes());
        put_producer(out, self.producer.unwrap_or(ProducerId { id: -1, epoch: -1 }));
        out.push(NO_TAGS);
        Ok(())
    }
}

/// AddPartitionsToTxn, version 3: 4 and 5 are the brokers' among themselves.
#[derive(Debug)]
pub(super) struct AddPartitionsRequest {
    pub(super) transaction: Transaction,
    /// In order of their topics.
    pub(super) partitions: Vec<(Arc<str>, i32)>,
}

impl RequestBody for AddPartitionsRequest {
    type ResponseBody = AddPartitionsResponse;
    const API_KEY: ApiKey = ApiKey::AddPartitionsToTxn;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(3), version(3));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(3);
}

impl WriteVersionedType<Vec<u8>> for AddPartitionsRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        put_compact_string(out, &self.transaction.id)?;
        put_producer(out, self.transaction.producer);
        let by_topic = || self.partitions.chunk_by(|a, b| a.0 == b.0);
        put_compact_len(out, by_topic().count())?;
        for partitions in by_topic() {
            put_compact_string(out, partitions.first().map_or("", |(topic, _)| topic))?;
            put_compact_len(out, partitions.len())?;
            for (_, partition) in partitions {
                out.extend(partition.to_be_bytes());
            }
            out.push(NO_TAGS);
        }
        out.push(NO_TAGS);
        Ok(())
    }
}

/// Its answer: topics, partitions and error codes, not yet compared with the request.
#[derive(Debug)]
pub(super) struct AddPartitionsResponse(Vec<(String, i32, i16)>);

impl ReadVersionedType<Cursor<Vec<u8>>> for AddPartitionsResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_version(reader, true, |r| {
            let _throttle = r.int32()?;
            Ok(Self(read_partitions(r)?))
        })?)
    }
}

/// The partitions of an answer, each with an error code, and the end of the answer.
fn read_partitions(r: &mut Body<'_>) -> Result<Vec<(String, i32, i16)>, ReadError> {
    let mut partitions = Vec::new();
    for _ in 0..r.count()? {
        let topic = r.string()?;
        for _ in 0..r.count()? {
            partitions.push((topic.to_owned(), r.int32()?, r.int16()?));
            r.tags()?;
        }
        r.tags()?;
    }
    r.tags()?;
    Ok(partitions)
}

impl AddPartitionsResponse {
    /// The error code of each of these, in their order; a sentence if these are not what was answered for.
    fn errors(&self, asked: &[(Arc<str>, i32)]) -> Result<Vec<i16>, String> {
        let Self(answered) = self;
        if answered.len() != asked.len() {
            let (answered, asked) = (answered.len(), asked.len());
            return Err(format!("answered for {answered} partitions where {asked} were asked for"));
        }
        let error = |(topic, partition): &(Arc<str>, i32)| {
            let said = answered.iter().find(|(t, p, _)| **t == **topic && p == partition);
            said.map(|(_, _, error)| *error)
                .ok_or_else(|| format!("did not answer for {topic}[{partition}]"))
        };
        asked.iter().map(error).collect()
    }
}

/// AddOffsetsToTxn, versions 3 and 4: the same, but that 4 may say TRANSACTION_ABORTABLE.
#[derive(Debug)]
pub(super) struct AddOffsetsRequest {
    pub(super) transaction: Transaction,
    pub(super) group: Arc<str>,
}

impl RequestBody for AddOffsetsRequest {
    type ResponseBody = AddOffsetsResponse;
    const API_KEY: ApiKey = ApiKey::AddOffsetsToTxn;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(3), version(4));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(3);
}

impl WriteVersionedType<Vec<u8>> for AddOffsetsRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        put_compact_string(out, &self.transaction.id)?;
        put_producer(out, self.transaction.producer);
        put_compact_string(out, &self.group)?;
        out.push(NO_TAGS);
        Ok(())
    }
}

/// Its answer.
#[derive(Debug)]
pub(super) struct AddOffsetsResponse(Result<(), i16>);

impl ReadVersionedType<Cursor<Vec<u8>>> for AddOffsetsResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_version(reader, true, |r| {
            let _throttle = r.int32()?;
            let error = r.int16()?;
            r.tags()?;
            Ok(Self(refused(error)))
        })?)
    }
}

/// What a TxnOffsetCommit says.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) id: Arc<str>,
    pub(super) producer: ProducerId,
    pub(super) place: PositionPlace,
    pub(super) position: StoredPosition,
}

/// TxnOffsetCommit, versions 3 and 4, or 5, with which the group is added to the transaction.
#[derive(Debug)]
struct CommitRequest<'a, const FIRST: i16, const LAST: i16>(&'a Commit);

impl<const FIRST: i16, const LAST: i16> RequestBody for CommitRequest<'_, FIRST, LAST> {
    type ResponseBody = CommitResponse;
    const API_KEY: ApiKey = ApiKey::TxnOffsetCommit;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(FIRST), version(LAST));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(3);
}

impl<const FIRST: i16, const LAST: i16> WriteVersionedType<Vec<u8>>
    for CommitRequest<'_, FIRST, LAST>
{
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        let Commit { id, producer, place, position } = self.0;
        put_compact_string(out, id)?;
        put_compact_string(out, &place.group)?;
        put_producer(out, *producer);
        // No generation, no member, no instance: the group has none.
        out.extend((-1_i32).to_be_bytes());
        put_compact_string(out, "")?;
        out.push(COMPACT_NULL);
        put_compact_len(out, 1)?;
        put_compact_string(out, &place.topic)?;
        put_compact_len(out, 1)?;
        out.extend(POSITION_PARTITION.to_be_bytes());
        out.extend(position.offset.to_be_bytes());
        // No leader epoch.
        out.extend((-1_i32).to_be_bytes());
        put_compact_string(out, &position.metadata)?;
        out.extend([NO_TAGS; 3]);
        Ok(())
    }
}

/// Its answer.
#[derive(Debug)]
struct CommitResponse(Result<(), i16>);

impl ReadVersionedType<Cursor<Vec<u8>>> for CommitResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_version(reader, true, |r| {
            let _throttle = r.int32()?;
            match *read_partitions(r)? {
                [(_, POSITION_PARTITION, error)] => Ok(Self(refused(error))),
                ref others => {
                    let n = others.len();
                    Err(malformed(format!("answered for {n} partitions where one was asked for")))
                }
            }
        })?)
    }
}

/// What an EndTxn says.
#[derive(Debug)]
pub(super) struct End {
    pub(super) transaction: Transaction,
    pub(super) commit: bool,
}

/// EndTxn, versions 3 and 4, or 5, which is answered with the next producer epoch.
#[derive(Debug)]
struct EndRequest<'a, const FIRST: i16, const LAST: i16>(&'a End);

impl<const FIRST: i16, const LAST: i16> RequestBody for EndRequest<'_, FIRST, LAST> {
    type ResponseBody = EndResponse;
    const API_KEY: ApiKey = ApiKey::EndTxn;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(FIRST), version(LAST));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(3);
}

impl<const FIRST: i16, const LAST: i16> WriteVersionedType<Vec<u8>>
    for EndRequest<'_, FIRST, LAST>
{
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        let End { transaction, commit } = self.0;
        put_compact_string(out, &transaction.id)?;
        put_producer(out, transaction.producer);
        out.extend([u8::from(*commit), NO_TAGS]);
        Ok(())
    }
}

/// Its answer: from version 5 on who we are from now on.
#[derive(Debug)]
struct EndResponse(Result<Option<ProducerId>, i16>);

impl ReadVersionedType<Cursor<Vec<u8>>> for EndResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        version: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_version(reader, true, |r| {
            let _throttle = r.int32()?;
            let error = r.int16()?;
            let producer = match version >= self::version(5) {
                true => Some(ProducerId { id: r.int64()?, epoch: r.int16()? }),
                false => None,
            };
            r.tags()?;
            match (error, producer) {
                (0, Some(producer)) if producer.id < 0 || producer.epoch < 0 => {
                    Err(malformed(format!("no error, yet {producer:?}")))
                }
                (0, producer) => Ok(Self(Ok(producer))),
                (code, _) => Ok(Self(Err(code))),
            }
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    const PRODUCER: ProducerId = ProducerId { id: 0x0102, epoch: 3 };

    fn transaction() -> Transaction {
        Transaction { coordinator: 1, id: Arc::from("id"), producer: PRODUCER }
    }

    fn place() -> PositionPlace {
        PositionPlace { group: Arc::from("group"), topic: Arc::from("topic") }
    }

    #[track_caller]
    fn written(request: &impl WriteVersionedType<Vec<u8>>, v: i16) -> Vec<u8> {
        let mut out = Vec::new();
        request.write_versioned(&mut out, version(v)).unwrap();
        out
    }

    /// Reads it whole; every shorter one is refused.
    #[track_caller]
    fn read<T: ReadVersionedType<Cursor<Vec<u8>>> + Debug>(body: &[u8], v: i16) -> T {
        for end in 0..body.len() {
            let mut cut = Cursor::new(body[..end].to_vec());
            let read = T::read_versioned(&mut cut, version(v));
            assert!(read.is_err(), "{end} of {} bytes: {read:?}", body.len());
        }
        let mut reader = Cursor::new(body.to_vec());
        let read = T::read_versioned(&mut reader, version(v)).unwrap();
        assert_eq!(reader.position(), body.len() as u64);
        read
    }

    const BYTES_OF_PRODUCER: [u8; 10] = [0, 0, 0, 0, 0, 0, 1, 2, 0, 3];

    #[test]
    fn who_begins_with_a_transactional_id_says_who_it_was() {
        let (id, timeout) = (Arc::from("id"), Duration::from_millis(0x0102_0304));
        let mut request = InitTransactionsRequest { id, timeout, producer: None };
        let head: &[u8] = &[3, b'i', b'd', 1, 2, 3, 4];
        assert_eq!(written(&request, 5), [head, &[255; 10], &[0]].concat());
        request.producer = Some(PRODUCER);
        assert_eq!(written(&request, 4), [head, &BYTES_OF_PRODUCER, &[0]].concat());
        let answer = [&[0; 6], &BYTES_OF_PRODUCER[..], &[0]].concat();
        assert_eq!(read::<InitProducerIdResponse>(&answer, 5).0, Ok(PRODUCER));
        let fenced = [&[0, 0, 0, 0, 0, 90], &[255; 10][..], &[0]].concat();
        assert_eq!(read::<InitProducerIdResponse>(&fenced, 4).0, Err(90));
    }

    #[test]
    fn partitions_are_added_by_topic() {
        let partitions = [("t", 0), ("t", 2), ("u", 1)];
        let partitions = partitions.map(|(topic, partition)| (Arc::from(topic), partition)).into();
        let request = AddPartitionsRequest { transaction: transaction(), partitions };
        let t: &[u8] = &[2, b't', 3, 0, 0, 0, 0, 0, 0, 0, 2, 0];
        let u: &[u8] = &[2, b'u', 2, 0, 0, 0, 1, 0];
        let expected = [&[3, b'i', b'd'], &BYTES_OF_PRODUCER[..], &[3], t, u, &[0]].concat();
        assert_eq!(written(&request, 3), expected);

        let u: &[u8] = &[2, b'u', 2, 0, 0, 0, 1, 0, 51, 0, 0];
        let t: &[u8] = &[2, b't', 3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 29, 0, 0];
        let answer = [&[0, 0, 0, 0, 3], u, t, &[0]].concat();
        let answer = read::<AddPartitionsResponse>(&answer, 3);
        assert_eq!(answer.errors(&request.partitions), Ok(vec![29, 0, 51]));
        let (first, rest) = request.partitions.split_first().unwrap();
        assert!(answer.errors(rest).unwrap_err().contains("3 partitions where 2"));
        let others = [&[(Arc::from("v"), 9)], std::slice::from_ref(first), &rest[..1]].concat();
        assert_eq!(answer.errors(&others), Err("did not answer for v[9]".to_owned()));
    }

    #[test]
    fn a_group_is_added_to_a_transaction() {
        let request = AddOffsetsRequest { transaction: transaction(), group: place().group };
        let expected = [&[3, b'i', b'd'], &BYTES_OF_PRODUCER[..], b"\x06group\0"].concat();
        assert_eq!(written(&request, 4), expected);
        assert_eq!(read::<AddOffsetsResponse>(&[0; 7], 4).0, Ok(()));
        assert_eq!(read::<AddOffsetsResponse>(&[0, 0, 0, 0, 0, 51, 0], 3).0, Err(51));
    }

    #[test]
    fn a_position_is_committed_as_an_offset_of_no_member() {
        let position = StoredPosition { offset: 0x0a0b, metadata: "text".to_owned() };
        let commit = Commit { id: Arc::from("id"), producer: PRODUCER, place: place(), position };
        let expected = [
            b"\x03id\x06group",
            &BYTES_OF_PRODUCER[..],
            // generation, member, instance
            &[255, 255, 255, 255, 1, 0],
            b"\x02\x06topic\x02\0\0\0\0",
            &[0, 0, 0, 0, 0, 0, 10, 11, 255, 255, 255, 255],
            b"\x05text\0\0\0",
        ]
        .concat();
        assert_eq!(written(&CommitRequest::<3, 4>(&commit), 3), expected);
        assert_eq!(written(&CommitRequest::<5, 5>(&commit), 5), expected);
        let answer = |partition, error| {
            [&[0, 0, 0, 0, 2], &b"\x06topic\x02"[..], &[0, 0, 0, partition, 0, error, 0, 0, 0]]
                .concat()
        };
        assert_eq!(read::<CommitResponse>(&answer(0, 0), 5).0, Ok(()));
        assert_eq!(read::<CommitResponse>(&answer(0, 47), 3).0, Err(47));
        let mut of_another = Cursor::new(answer(1, 0));
        assert!(CommitResponse::read_versioned(&mut of_another, version(5)).is_err());
    }

    #[test]
    fn the_end_of_a_transaction_may_name_the_next_epoch() {
        let mut end = End { transaction: transaction(), commit: true };
        let head = [&[3, b'i', b'd'], &BYTES_OF_PRODUCER[..]].concat();
        assert_eq!(written(&EndRequest::<5, 5>(&end), 5), [&head[..], &[1, 0]].concat());
        end.commit = false;
        assert_eq!(written(&EndRequest::<3, 4>(&end), 3), [&head[..], &[0, 0]].concat());
        assert_eq!(read::<EndResponse>(&[0; 7], 4).0, Ok(None));
        let answer = [&[0; 6], &BYTES_OF_PRODUCER[..], &[0]].concat();
        assert_eq!(read::<EndResponse>(&answer, 5).0, Ok(Some(PRODUCER)));
        let refused = [&[0, 0, 0, 0, 0, 48], &[255; 10][..], &[0]].concat();
        assert_eq!(read::<EndResponse>(&refused, 5).0, Err(48));
        let nobody = [&[0; 6], &[255; 10][..], &[0]].concat();
        let nobody = EndResponse::read_versioned(&mut Cursor::new(nobody), version(5));
        assert!(nobody.is_err(), "no error, and no producer: {nobody:?}");
    }

    #[test]
    fn a_position_is_asked_for_behind_what_transactions_have_in_hand() {
        use super::super::group::{Committed, OffsetFetchResponse};
        let PositionPlace { group, topic } = place();
        let request =
            OffsetFetchRequest { group, topic, partitions: vec![0], require_stable: true };
        let expected = b"\x06group\x02\x06topic\x02\0\0\0\0\0\x01\0";
        assert_eq!(written(&request, 7), expected);
        let of_partition = |offset: i64, metadata: &[u8], error| {
            let offset = offset.to_be_bytes();
            [
                &b"\0\0\0\0\x02\x06topic\x02\0\0\0\0"[..],
                &offset,
                &[255; 4],
                metadata,
                &[0, error, 0, 0, 0, 0, 0],
            ]
            .concat()
        };
        let metadata = "text".to_owned();
        let kept = Committed { partition: 0, offset: 77, metadata };
        let answer = of_partition(77, b"\x05text", 0);
        assert_eq!(read::<OffsetFetchResponse>(&answer, 7).0, Ok(vec![kept]));
        assert_eq!(read::<OffsetFetchResponse>(&of_partition(-1, &[1], 0), 7).0, Ok(vec![]));
        assert_eq!(read::<OffsetFetchResponse>(&of_partition(-1, &[0], 88), 7).0, Err(88));
        // Of the group, without a topic.
        assert_eq!(read::<OffsetFetchResponse>(&[0, 0, 0, 0, 1, 0, 16, 0], 7).0, Err(16));
    }

    #[test]
    fn the_clusters_features_say_of_which_requests_transactions_are_made() {
        let finalised = |version: u8| {
            // supported, epoch, finalised, of which another than ours
            let features: &[&[u8]] = &[
                &[3],
                &[0, 1, 1],
                &[1, 8, 0, 0, 0, 0, 0, 0, 0, 9],
                &[2, 48, 3],
                b"\x11metadata.version\0\x1d\0\x1d\0",
                b"\x14transaction.version\0",
                &[version, 0, 1, 0],
            ];
            [&[0, 0, 2, 0, 18, 0, 0, 0, 4, 0, 0, 0, 0, 0], &features.concat()[..]].concat()
        };
        use TransactionVersion::{EpochPerTransaction, Explicit};
        for (level, expected) in [(1, Explicit), (2, EpochPerTransaction), (3, EpochPerTransaction)]
        {
            assert_eq!(read::<FeaturesResponse>(&finalised(level), 3).0, expected);
        }
        assert_eq!(read::<FeaturesResponse>(&[0, 0, 1, 0, 0, 0, 0, 0], 3).0, Explicit);
    }

    /// From Apache Kafka 4.3.1, in the order of the protocol.
    #[test]
    fn what_a_real_broker_has_answered_is_read() {
        use super::super::group::{Committed, FindCoordinatorResponse, OffsetFetchResponse};
        let bytes = |hex: &str| -> Vec<u8> {
            let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
            digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
        };
        let mut features = include_str!("tests/features.hex").lines().map(bytes);
        for expected in [TransactionVersion::EpochPerTransaction, TransactionVersion::Explicit] {
            assert_eq!(read::<FeaturesResponse>(&features.next().unwrap(), 3).0, expected);
        }

        let none = "00000000000f002154686520636f6f7264696e61746f72206973206e6f7420617661696c61626c652e\
                    ffffffff0000ffffffff";
        assert_eq!(read::<FindCoordinatorResponse>(&bytes(none), 1).0, Err(15));
        let found = bytes("00000000000000044e4f4e450000000100093132372e302e302e31000057c0");
        let address = "127.0.0.1:22464".parse().unwrap();
        assert_eq!(read::<FindCoordinatorResponse>(&found, 1).0, Ok((1, address)));

        let producer = |epoch| ProducerId { id: 0, epoch };
        let ours = bytes("0000000000000000000000000000000400");
        assert_eq!(read::<InitProducerIdResponse>(&ours, 5).0, Ok(producer(4)));
        let busy = bytes("000000000033ffffffffffffffffffff00");
        assert_eq!(read::<InitProducerIdResponse>(&busy, 5).0, Err(51));

        let asked = [(Arc::from("explore.facts"), 0)];
        let added = |error: u8| {
            bytes(&format!("00000000020e6578706c6f72652e6661637473020000000000{error:02x}000000"))
        };
        for error in [0, 51, 90] {
            let answer = read::<AddPartitionsResponse>(&added(error), 3);
            assert_eq!(answer.errors(&asked), Ok(vec![i16::from(error)]));
            let of_group = bytes(&format!("0000000000{error:02x}00"));
            assert_eq!(read::<AddOffsetsResponse>(&of_group, 4).0, refused(error.into()));
        }

        let topic = "0000000002116578706c6f72652e706f736974696f6e0200000000";
        let committed = |error: u8| bytes(&format!("{topic}00{error:02x}000000"));
        for error in [0, 47, 51, 120] {
            assert_eq!(read::<CommitResponse>(&committed(error), 5).0, refused(error.into()));
        }

        assert_eq!(read::<EndResponse>(&bytes("00000000005a00"), 4).0, Err(90));
        let next = bytes("0000000000000000000000000000000300");
        assert_eq!(read::<EndResponse>(&next, 5).0, Ok(Some(producer(3))));
        assert_eq!(read::<EndResponse>(&busy, 5).0, Err(51));

        let pending = bytes(&format!("{topic}ffffffffffffffffffffffff0100580000000000"));
        assert_eq!(read::<OffsetFetchResponse>(&pending, 7).0, Err(88));
        let kept = bytes(&format!("{topic}00000000000003eaffffffff086174203130303200000000000000"));
        let metadata = "at 1002".to_owned();
        let expected = Committed { partition: 0, offset: 1002, metadata };
        assert_eq!(read::<OffsetFetchResponse>(&kept, 7).0, Ok(vec![expected]));
    }
}
