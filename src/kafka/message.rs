//! The small requests: InitProducerId, CreateTopics, SaslAuthenticate.
//!
//! <https://kafka.apache.org/protocol#protocol_messages>

use super::primitive::{int32, malformed, millis, put_string, read_body, read_version, version};
use crate::relay::kafka::{CreateRefusal, NewTopic, ProducerId};
use rskafka::protocol::api_key::ApiKey;
use rskafka::protocol::api_version::{ApiVersion, ApiVersionRange};
use rskafka::protocol::messages::{
    ReadVersionedError, ReadVersionedType, RequestBody, SaslAuthenticateResponse,
    WriteVersionedError, WriteVersionedType,
};
use std::collections::HashMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

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

/// The identity, or Kafka's error code, without or with a transactional id.
#[derive(Debug)]
pub(super) struct InitProducerIdResponse(pub(super) Result<ProducerId, i16>);

impl ReadVersionedType<Cursor<Vec<u8>>> for InitProducerIdResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        version: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        let flexible = version >= InitProducerIdRequest::FIRST_TAGGED_FIELD_IN_REQUEST_VERSION;
        Ok(read_version(reader, flexible, |r| {
            let _throttle = r.int32()?;
            let error = r.int16()?;
            let producer = ProducerId { id: r.int64()?, epoch: r.int16()? };
            r.tags()?;
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

/// CreateTopics, version 4: the first in which a broker fills in numbers that are not given (KIP-464). Later ones
/// change the whole encoding.
#[derive(Debug)]
pub(super) struct CreateTopicsRequest {
    pub(super) topics: Arc<Vec<(Arc<str>, NewTopic)>>,
    /// How long the broker may wait until it is done.
    pub(super) timeout: Duration,
    /// Only to see whether it could be.
    pub(super) validate_only: bool,
}

impl RequestBody for CreateTopicsRequest {
    type ResponseBody = CreateTopicsResponse;
    const API_KEY: ApiKey = ApiKey::CreateTopics;
    const API_VERSION_RANGE: ApiVersionRange = ApiVersionRange::new(version(4), version(4));
    const FIRST_TAGGED_FIELD_IN_REQUEST_VERSION: ApiVersion = version(5);
}

impl WriteVersionedType<Vec<u8>> for CreateTopicsRequest {
    fn write_versioned(&self, out: &mut Vec<u8>, _: ApiVersion) -> Result<(), WriteVersionedError> {
        out.extend(int32(self.topics.len())?);
        for (topic, NewTopic { partitions, replication_factor, configs }) in &*self.topics {
            put_string(out, topic)?;
            out.extend(partitions.unwrap_or(-1).to_be_bytes());
            out.extend(replication_factor.unwrap_or(-1).to_be_bytes());
            // No assignment of replicas to brokers.
            out.extend(int32(0)?);
            out.extend(int32(configs.len())?);
            for (name, value) in configs {
                put_string(out, name)?;
                put_string(out, value)?;
            }
        }
        out.extend(millis(self.timeout).to_be_bytes());
        out.push(u8::from(self.validate_only));
        Ok(())
    }
}

/// What a broker said to a [`CreateTopicsRequest`], not yet compared with the request.
#[derive(Debug)]
pub(super) struct CreateTopicsResponse(HashMap<String, Result<(), CreateRefusal>>);

impl ReadVersionedType<Cursor<Vec<u8>>> for CreateTopicsResponse {
    fn read_versioned(
        reader: &mut Cursor<Vec<u8>>,
        _: ApiVersion,
    ) -> Result<Self, ReadVersionedError> {
        Ok(read_body(reader, |r| {
            let _throttle = r.int32()?;
            let mut topics = HashMap::new();
            for _ in 0..r.count()? {
                let topic = r.string()?.to_owned();
                let error = r.int16()?;
                let message = r.nullable_string()?.map(str::to_owned);
                let answer =
                    if error == 0 { Ok(()) } else { Err(CreateRefusal { error, message }) };
                topics.insert(topic, answer);
            }
            Ok(Self(topics))
        })?)
    }
}

impl CreateTopicsResponse {
    /// What was said of each of these topics, in their order; a sentence if nothing was of one of them.
    pub(super) fn answers(
        mut self,
        topics: &[(Arc<str>, NewTopic)],
    ) -> Result<Vec<Result<(), CreateRefusal>>, String> {
        let mut answer = |(topic, _): &(Arc<str>, NewTopic)| {
            let answer = self.0.remove(&**topic);
            answer.ok_or_else(|| format!("did not answer for topic {topic}"))
        };
        topics.iter().map(&mut answer).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_that_cannot_be_is_refused() {
        let mut body = vec![0; 4 + 2];
        body.extend((-1_i64).to_be_bytes());
        body.extend(0_i16.to_be_bytes());
        let read = InitProducerIdResponse::read_versioned(&mut Cursor::new(body), version(1));
        assert!(read.is_err());
    }
}
