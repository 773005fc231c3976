//! Metadata, versions 4 to 12: from 4 on a client can forbid that topics are created by asking, from 10 on topics
//! have ids (KIP-516), and 13 adds nothing we need.

use super::primitive::{
    COMPACT_NULL, NO_TAGS, int16, int32, put_compact_len, read_version, version,
};
use crate::relay::kafka::{Broker, Metadata, PartitionMetadata, TopicMetadata};
use rskafka::protocol::api_key::ApiKey;
use rskafka::protocol::api_version::{ApiVersion, ApiVersionRange};
use rskafka::protocol::messages::{
    ReadVersionedError, ReadVersionedType, RequestBody, WriteVersionedError, WriteVersionedType,
};
use rskafka::protocol::traits::ReadError;
use std::collections::HashSet;
use std::io::Cursor;
use std::sync::Arc;
use uuid::Uuid;

/// What is asked of topics.
#[derive(Debug)]
pub(super) struct MetadataRequest {
    /// Exactly these; an empty list asks for none. Without a list it is every topic that we may describe.
    topics: Option<Vec<Arc<str>>>,
    /// What we may do with each, too: a broker has to go through all its ACLs for that.
    authorized_operations: bool,
}

impl MetadataRequest {
    /// Where these topics are.
    pub(super) fn of(topics: Vec<Arc<str>>) -> Self {
        Self { topics: Some(topics), authorized_operations: false }
    }

    /// Everything about these topics, or about all.
    pub(super) fn describe(topics: Option<Vec<Arc<str>>>) -> Self {
        Self { topics, authorized_operations: true }
    }
}

/// The first version with compact lengths and tagged fields.
const FLEXIBLE: ApiVersion = version(9);

impl RequestBody for MetadataRequest {
    type ResponseBody = MetadataResponse;
    const API_KEY: ApiKey = ApiKey::Metadata;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(4), version(12));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = FLEXIBLE;
}

impl WriteVersionedType<Vec<u8>> for MetadataRequest {
    fn write_versioned(
        &self,
        out: &mut Vec<u8>,
        version: ApiVersion,
    ) -> Result<(), WriteVersionedError> {
        let flexible = version >= FLEXIBLE;
        match (&self.topics, flexible) {
            (Some(topics), true) => put_compact_len(out, topics.len())?,
            (Some(topics), false) => out.extend(int32(topics.len())?),
            (None, true) => out.push(COMPACT_NULL),
            (None, false) => out.extend((-1_i32).to_be_bytes()),
        }
        for topic in self.topics.iter().flatten() {
            if version >= self::version(10) {
                // Asked for by name.
                out.extend(Uuid::nil().into_bytes());
            }
            match flexible {
                true => put_compact_len(out, topic.len())?,
                false => out.extend(int16(topic.len())?),
            }
            out.extend(topic.as_bytes());
            out.extend(flexible.then_some(NO_TAGS));
        }
        // Topics are not created by asking for them.
        out.push(0);
        if (self::version(8)..=self::version(10)).contains(&version) {
            // Not what we may do in the cluster.
            out.push(0);
        }
        if version >= self::version(8) {
            out.push(u8::from(self.authorized_operations));
        }
        out.extend(flexible.then_some(NO_TAGS));
        Ok(())
    }
}

/// What a broker said to a [`MetadataRequest`], not yet compared with the request.
#[derive(Debug)]
pub(super) struct MetadataResponse {
    brokers: Vec<(i32, String, i32)>,
    cluster_id: Option<String>,
    topics: Vec<TopicDescription>,
}

/// A topic as a broker describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDescription {
    /// What the relay wants to know, too.
    pub topic: TopicMetadata,
    /// One of Kafka's own.
    pub is_internal: bool,
    /// The copies of each partition, in the order of the partitions: how many there are to be, and how many are in
    /// sync.
    pub replicas: Vec<(usize, usize)>,
    /// What we may do with it, if the broker told.
    pub operations: Option<Operations>,
}

/// What a client may do with a topic: a bit for each
/// [operation](https://kafka.apache.org/documentation/#operations_resources_and_protocols).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operations(i32);

impl Operations {
    /// What a broker says that was not asked.
    const UNKNOWN: i32 = i32::MIN;

    /// True if it may write.
    pub fn write(self) -> bool {
        self.has(4)
    }

    /// True if it may read, which an audit and a canary need.
    pub fn read(self) -> bool {
        self.has(3)
    }

    /// True if it may see the configuration.
    pub fn describe_configs(self) -> bool {
        self.has(10)
    }

    /// By `org.apache.kafka.common.acl.AclOperation`.
    fn has(self, operation: u8) -> bool {
        self.0 & (1 << operation) != 0
    }
}

/// What a broker says of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDescription {
    /// The cluster's id, where the broker tells.
    pub cluster_id: Option<String>,
    /// All live brokers, as they are advertised to clients of this listener.
    pub brokers: Vec<Broker>,
    /// The topics asked for.
    pub topics: Vec<TopicDescription>,
}

impl ReadVersionedType<Cursor<Vec<u8>>> for MetadataResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        version: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_version(reader, version >= FLEXIBLE, |r| {
            let _throttle = r.int32()?;
            // Never an allocation from a length the broker claims: the vectors grow as entries are read.
            let mut brokers = Vec::new();
            for _ in 0..r.count()? {
                brokers.push((r.int32()?, r.string()?.to_owned(), r.int32()?));
                let _rack = r.nullable_string()?;
                r.tags()?;
            }
            let cluster_id = r.nullable_string()?.map(str::to_owned);
            let _controller_id = r.int32()?;
            let mut topics = Vec::new();
            for _ in 0..r.count()? {
                let error = r.int16()?;
                let name = r.string()?.to_owned();
                let id = match version >= self::version(10) {
                    true => Some(r.uuid()?).filter(|id| !id.is_nil()),
                    false => None,
                };
                let is_internal = r.boolean()?;
                let mut partitions = Vec::new();
                let mut replicas = Vec::new();
                for _ in 0..r.count()? {
                    let _error = r.int16()?;
                    let (index, leader) = (r.int32()?, r.int32()?);
                    if version >= self::version(7) {
                        let _leader_epoch = r.int32()?;
                    }
                    let mut nodes = || -> Result<usize, ReadError> {
                        let count = r.count()?;
                        for _ in 0..count {
                            r.int32()?;
                        }
                        Ok(usize::try_from(count).unwrap_or(0))
                    };
                    replicas.push((nodes()?, nodes()?));
                    if version >= self::version(5) {
                        let _offline = nodes()?;
                    }
                    r.tags()?;
                    // -1 while there is none.
                    let leader = Some(leader).filter(|leader| *leader >= 0);
                    partitions.push(PartitionMetadata { index, leader });
                }
                let operations = match version >= self::version(8) {
                    true => r.int32()?,
                    false => Operations::UNKNOWN,
                };
                let told = operations != Operations::UNKNOWN;
                r.tags()?;
                topics.push(TopicDescription {
                    topic: TopicMetadata { name, id, error, partitions },
                    is_internal,
                    replicas,
                    operations: told.then_some(Operations(operations)),
                });
            }
            if (self::version(8)..=self::version(10)).contains(&version) {
                let _cluster_authorized_operations = r.int32()?;
            }
            r.tags()?;
            Ok(Self { brokers, cluster_id, topics })
        })?)
    }
}

impl MetadataResponse {
    /// What the engine wants to know; a sentence if it makes no sense.
    pub(super) fn answer(self, asked: &[Arc<str>]) -> Result<Metadata, String> {
        let ClusterDescription { cluster_id, brokers, topics: found } = self.describe()?;
        let mut missing: HashSet<&str> = asked.iter().map(|name| &**name).collect();
        let mut topics = Vec::with_capacity(missing.len());
        for TopicDescription { topic, .. } in found {
            if missing.remove(topic.name.as_str()) {
                topics.push(topic);
            }
        }
        if let Some(name) = missing.iter().next() {
            return Err(format!("did not answer for topic {name}"));
        }
        Ok(Metadata { cluster_id, brokers, topics })
    }

    /// All that it says; a sentence if it makes no sense.
    pub(super) fn describe(mut self) -> Result<ClusterDescription, String> {
        // A broker that has just started may know nobody yet, not even itself.
        if self.brokers.is_empty() {
            return Err("knows of no broker yet".to_owned());
        }
        let mut brokers = Vec::with_capacity(self.brokers.len());
        for (id, host, port) in self.brokers {
            let Some(port) = u16::try_from(port).ok().filter(|port| *port != 0) else {
                return Err(format!("names port {port} for broker {id}"));
            };
            brokers.push(Broker { id, host, port });
        }
        for TopicDescription { topic, .. } in &mut self.topics {
            if topic.error != 0 {
                topic.partitions.clear();
            }
            for partition in &mut topic.partitions {
                // One that is not among the live brokers cannot be reached.
                let lives = |id: &i32| brokers.iter().any(|broker| broker.id == *id);
                partition.leader = partition.leader.filter(lives);
            }
        }
        Ok(ClusterDescription { cluster_id: self.cluster_id, brokers, topics: self.topics })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As brokers of each version write it, behind a header: topic `t`, whose partition 1 is led by broker 3.
    fn response(v: i16) -> Vec<u8> {
        let flexible = v >= 9;
        let tags: &[u8] = if flexible { &[0] } else { &[] };
        let count = |n: u8| if flexible { vec![n + 1] } else { vec![0, 0, 0, n] };
        let text = |text: &str| {
            let len = u8::try_from(text.len()).unwrap();
            let mut out = if flexible { vec![len + 1] } else { vec![0, len] };
            out.extend(text.as_bytes());
            out
        };
        let null: &[u8] = if flexible { &[0] } else { &[255, 255] };
        let mut body = b"header".to_vec();
        body.extend([0; 4]);
        body.extend(count(1));
        body.extend([0, 0, 0, 3]);
        body.extend(text("kafka"));
        body.extend([0, 0, 35, 132]);
        body.extend(null);
        body.extend(tags);
        body.extend(text("cluster"));
        body.extend([0, 0, 0, 3]);
        body.extend(count(1));
        body.extend([0, 0]);
        body.extend(text("t"));
        if v >= 10 {
            body.extend([9; 16]);
        }
        body.push(0);
        body.extend(count(1));
        body.extend([0, 0, 0, 0, 0, 1, 0, 0, 0, 3]);
        if v >= 7 {
            body.extend([0, 0, 0, 8]);
        }
        for _ in 0..if v >= 5 { 3 } else { 2 } {
            body.extend(count(1));
            body.extend([0, 0, 0, 3]);
        }
        body.extend(tags);
        if v >= 8 {
            // WRITE and DESCRIBE.
            body.extend([0, 0, 1, 16]);
        }
        body.extend(tags);
        if (8..=10).contains(&v) {
            body.extend([128, 0, 0, 0]);
        }
        body.extend(tags);
        body
    }

    #[test]
    fn a_metadata_response_is_read_in_every_version() {
        let asked = [Arc::from("t")];
        for v in 4..=12 {
            let body = response(v);
            for end in 6..body.len() {
                let mut cut = Cursor::new(body.get(..end).unwrap().to_vec());
                cut.set_position(6);
                assert!(MetadataResponse::read_versioned(&mut cut, version(v)).is_err());
            }
            let mut reader = Cursor::new(body.clone());
            reader.set_position(6);
            let response = MetadataResponse::read_versioned(&mut reader, version(v)).unwrap();
            assert_eq!(reader.position(), body.len() as u64);
            let described = response.topics.first().unwrap();
            assert_eq!((described.is_internal, &*described.replicas), (false, &[(1, 1)][..]));
            let operations = described.operations;
            let may = |operation: fn(Operations) -> bool| operations.is_some_and(operation);
            assert_eq!((may(Operations::write), may(Operations::read)), (v >= 8, false));
            let topic = TopicMetadata {
                name: "t".to_owned(),
                id: Some(Uuid::from_bytes([9; 16])).filter(|_| v >= 10),
                error: 0,
                partitions: vec![PartitionMetadata { index: 1, leader: Some(3) }],
            };
            let brokers = vec![Broker { id: 3, host: "kafka".to_owned(), port: 9092 }];
            let cluster_id = Some("cluster".to_owned());
            let expected = Metadata { cluster_id, brokers, topics: vec![topic] };
            assert_eq!(response.answer(&asked), Ok(expected), "version {v}");
        }
    }

    #[test]
    fn a_metadata_request_asks_for_these_topics_in_every_version() {
        let request = MetadataRequest::of(vec![Arc::from("t")]);
        let all = MetadataRequest::describe(None);
        let id = [0; 16];
        let cases: [(i16, &[&[u8]]); 4] = [
            (4, &[&[0, 0, 0, 1, 0, 1, b't', 0]]),
            (8, &[&[0, 0, 0, 1, 0, 1, b't', 0, 0, 0]]),
            (10, &[&[2], &id, &[2, b't', 0, 0, 0, 0, 0]]),
            (12, &[&[2], &id, &[2, b't', 0, 0, 0, 0]]),
        ];
        for (v, expected) in cases {
            let mut out = Vec::new();
            request.write_versioned(&mut out, version(v)).unwrap();
            assert_eq!(out, expected.concat(), "version {v}");
        }
        let cases: [(i16, &[u8]); 4] = [
            (4, &[255, 255, 255, 255, 0]),
            (8, &[255, 255, 255, 255, 0, 0, 1]),
            (10, &[0, 0, 0, 1, 0]),
            (12, &[0, 0, 1, 0]),
        ];
        for (v, expected) in cases {
            let mut out = Vec::new();
            all.write_versioned(&mut out, version(v)).unwrap();
            assert_eq!(out, expected, "version {v}");
        }
    }
}
