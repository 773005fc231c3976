//! The envelope as other emitters write it, encoded by somebody else's protobuf library.

use prost::Message as _;
use std::collections::BTreeMap;

/// `OutboxEvent`: one fact.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OutboxEvent {
    /// The fact's id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Names the topic, together with the prefix.
    #[prost(string, tag = "2")]
    pub aggregate_type: String,
    /// The record's key.
    #[prost(string, tag = "3")]
    pub aggregate_id: String,
    /// What happened.
    #[prost(string, tag = "4")]
    pub event_type: String,
    /// The application's bytes.
    #[prost(bytes = "vec", tag = "5")]
    pub payload: Vec<u8>,
    /// Emitters disagree on its unit.
    #[prost(int64, tag = "6")]
    pub created_at: i64,
    /// The application's own pairs.
    #[prost(btree_map = "string, string", tag = "7")]
    pub metadata: BTreeMap<String, String>,
    /// Where the fact comes from.
    #[prost(message, optional, tag = "8")]
    pub trace_info: Option<TraceInfo>,
}

/// The trace of the request that made the fact.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TraceInfo {
    /// 32 hex digits.
    #[prost(string, tag = "1")]
    pub trace_id: String,
    /// 16 hex digits.
    #[prost(string, tag = "2")]
    pub span_id: String,
    /// Becomes headers.
    #[prost(btree_map = "string, string", tag = "3")]
    pub metadata: BTreeMap<String, String>,
}

impl OutboxEvent {
    /// The bytes that `pg_logical_emit_message` is given.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads such bytes.
    ///
    /// # Errors
    ///
    /// When they are not an envelope.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        Self::decode(bytes)
    }
}
