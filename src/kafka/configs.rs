//! DescribeConfigs for topics, versions 1 to 3: Kafka 4 has no 0, and 4 changes the whole encoding for nothing we
//! need.
//!
//! <https://kafka.apache.org/protocol#The_Messages_DescribeConfigs>

use super::primitive::{int32, put_string, read_body, version};
use rskafka::protocol::api_key::ApiKey;
use rskafka::protocol::api_version::{ApiVersion, ApiVersionRange};
use rskafka::protocol::messages::{
    ReadVersionedError, ReadVersionedType, RequestBody, WriteVersionedError, WriteVersionedType,
};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

/// `org.apache.kafka.common.config.ConfigResource.Type`.
const TOPIC: u8 = 2;

/// How a topic is set, where it is not otherwise by default, by the names of
/// [topic configurations](https://kafka.apache.org/documentation/#topicconfigs).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfigs {
    /// The topic.
    pub topic: String,
    /// What was asked for, as far as the broker has it; or Kafka's error code.
    pub configs: Result<BTreeMap<String, String>, i16>,
}

/// These configurations of these topics.
#[derive(Debug)]
pub(super) struct DescribeConfigsRequest {
    pub(super) topics: Vec<Arc<str>>,
    pub(super) names: &'static [&'static str],
}

impl RequestBody for DescribeConfigsRequest {
    type ResponseBody = DescribeConfigsResponse;
    const API_KEY: ApiKey = ApiKey::DescribeConfigs;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(1), version(3));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(4);
}

impl WriteVersionedType<Vec<u8>> for DescribeConfigsRequest {
    fn write_versioned(
        &self,
        out: &mut Vec<u8>,
        version: ApiVersion,
    ) -> Result<(), WriteVersionedError> {
        out.extend(int32(self.topics.len())?);
        for topic in &self.topics {
            out.push(TOPIC);
            put_string(out, topic)?;
            out.extend(int32(self.names.len())?);
            for name in self.names {
                put_string(out, name)?;
            }
        }
        // Not where a value comes from, nor what it is for.
        out.push(0);
        if version >= self::version(3) {
            out.push(0);
        }
        Ok(())
    }
}

/// What a broker said to a [`DescribeConfigsRequest`].
#[derive(Debug)]
pub(super) struct DescribeConfigsResponse(pub(super) Vec<TopicConfigs>);

impl ReadVersionedType<Cursor<Vec<u8>>> for DescribeConfigsResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        version: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_body(reader, |r| {
            let _throttle = r.int32()?;
            // Never an allocation from a length the broker claims.
            let mut topics = Vec::new();
            for _ in 0..r.count()? {
                let error = r.int16()?;
                let _message = r.nullable_string()?;
                let _type = r.int8()?;
                let topic = r.string()?.to_owned();
                let mut configs = BTreeMap::new();
                for _ in 0..r.count()? {
                    let name = r.string()?.to_owned();
                    let value = r.nullable_string()?.map(str::to_owned);
                    let _read_only = r.boolean()?;
                    let _source = r.int8()?;
                    let _is_sensitive = r.boolean()?;
                    for _ in 0..r.count()? {
                        let _synonym = (r.string()?, r.nullable_string()?, r.int8()?);
                    }
                    if version >= self::version(3) {
                        let _type_and_words = (r.int8()?, r.nullable_string()?);
                    }
                    configs.extend(value.map(|value| (name, value)));
                }
                let configs = if error == 0 { Ok(configs) } else { Err(error) };
                topics.push(TopicConfigs { topic, configs });
            }
            Ok(Self(topics))
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        let mut out = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
        out.extend(text.as_bytes());
        out
    }

    #[test]
    fn a_request_names_topics_and_configurations_in_every_version() {
        let request =
            DescribeConfigsRequest { topics: vec![Arc::from("t")], names: &["retention.ms"] };
        let body = [&[0, 0, 0, 1, TOPIC][..], &text("t"), &[0, 0, 0, 1], &text("retention.ms")];
        for (v, end) in [(1, &[0][..]), (2, &[0]), (3, &[0, 0])] {
            let mut out = Vec::new();
            request.write_versioned(&mut out, version(v)).unwrap();
            assert_eq!(out, [&body.concat(), end].concat(), "version {v}");
        }
    }

    #[test]
    fn a_response_is_read_in_every_version_and_never_past_its_end() {
        for v in 1..=3 {
            let mut body = vec![0, 0, 0, 0, 0, 0, 0, 2];
            body.extend([[0, 0].as_slice(), &[255, 255], &[2], &text("t"), &[0, 0, 0, 2]].concat());
            for (name, value) in [("retention.ms", Some("7")), ("secret", None)] {
                body.extend(text(name));
                body.extend(value.map_or_else(|| vec![255, 255], text));
                body.extend([0, 5, 0, 0, 0, 0, 1]);
                body.extend([text("log.retention.ms"), text("8"), vec![4]].concat());
                body.extend(if v >= 3 { vec![5, 255, 255] } else { vec![] });
            }
            body.extend([&[0, 29][..], &text("no"), &[2], &text("u"), &[0, 0, 0, 0]].concat());
            for end in 0..body.len() {
                let mut cut = Cursor::new(body.get(..end).unwrap().to_vec());
                assert!(DescribeConfigsResponse::read_versioned(&mut cut, version(v)).is_err());
            }
            let mut reader = Cursor::new(body.clone());
            let response = DescribeConfigsResponse::read_versioned(&mut reader, version(v));
            assert_eq!(reader.position(), body.len() as u64);
            let configs = BTreeMap::from([("retention.ms".to_owned(), "7".to_owned())]);
            let expected = [
                TopicConfigs { topic: "t".to_owned(), configs: Ok(configs) },
                TopicConfigs { topic: "u".to_owned(), configs: Err(29) },
            ];
            assert_eq!(response.unwrap().0, expected, "version {v}");
        }
    }
}
