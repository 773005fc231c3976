use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

/// What is to be told to others: that this happened to that thing.
///
/// ```
/// use factlib_emit::Fact;
///
/// let fact = Fact::new("order", "42", "paid")
///     .payload(r#"{"cents":1999}"#)
///     .metadata("tenant", "a");
/// ```
///
/// Nothing is checked before it is emitted, so that a fact can be built in one expression; then it is checked before
/// anything is sent. Texts are UTF-8 and may not hold a NUL, which no text of PostgreSQL can.
#[derive(Clone, PartialEq, Eq)]
pub struct Fact {
    pub(crate) prefix: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) event_type: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) created_at: Option<SystemTime>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) traceparent: Option<String>,
    pub(crate) tracestate: Option<String>,
}

impl Fact {
    /// A fact without a payload.
    ///
    /// `aggregate_type` is what kind of thing it is about and names the topic (`orders.order`), so that it may hold
    /// only letters, digits, `.`, `_` and `-`; `aggregate_id` is which one, and the record's key: all facts of one
    /// thing are in one partition, in the order of their commits; `event_type` is what happened. None may be empty.
    pub fn new(
        aggregate_type: impl Into<String>,
        aggregate_id: impl Into<String>,
        event_type: impl Into<String>,
    ) -> Self {
        Self {
            prefix: None,
            id: None,
            aggregate_type: aggregate_type.into(),
            aggregate_id: aggregate_id.into(),
            event_type: event_type.into(),
            payload: Vec::new(),
            created_at: None,
            metadata: BTreeMap::new(),
            traceparent: None,
            tracestate: None,
        }
    }

    /// The payload: any bytes, or text as its UTF-8. None is the same as none at all, which a relay with
    /// `KAFKA_VALUE=payload` publishes as a null value (a tombstone).
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = payload.into();
        self
    }

    /// The payload as JSON.
    ///
    /// # Errors
    ///
    /// When the value cannot be written as JSON: a map whose keys are no strings, or an error of its own
    /// [`Serialize`](serde::Serialize).
    #[cfg(feature = "json")]
    pub fn json(
        mut self,
        payload: &(impl serde::Serialize + ?Sized),
    ) -> Result<Self, serde_json::Error> {
        self.payload = serde_json::to_vec(payload)?;
        Ok(self)
    }

    /// An entry of the metadata; a second one of the same key replaces the first.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The id by which consumers recognise the fact, instead of a UUIDv7 that is made when it is emitted: for facts
    /// that already have one, and for work that may be done again, where the same fact must have the same id. An empty
    /// one counts as none.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// When it happened, instead of when it is emitted. The envelope has it in microseconds.
    #[must_use]
    pub fn created_at(mut self, created_at: SystemTime) -> Self {
        self.created_at = Some(created_at);
        self
    }

    /// The trace that it belongs to, as the header `traceparent` of W3C Trace Context has it. One that is malformed
    /// is left out: tracing fails nobody's transaction.
    #[must_use]
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.traceparent = Some(traceparent.into());
        self
    }

    /// What else the header `tracestate` says of that trace. Counts only beside a `traceparent`.
    #[must_use]
    pub fn tracestate(mut self, tracestate: impl Into<String>) -> Self {
        self.tracestate = Some(tracestate.into());
        self
    }

    /// Another prefix than the [emitter's](crate::Emitter), that is, usually, another service's name.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }
}

impl fmt::Debug for Fact {
    /// Without what may be anybody's data: the payload is told by its size, metadata by its keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fact")
            .field("prefix", &self.prefix)
            .field("id", &self.id)
            .field("aggregate_type", &self.aggregate_type)
            .field("aggregate_id", &self.aggregate_id)
            .field("event_type", &self.event_type)
            .field("payload", &format_args!("{} bytes", self.payload.len()))
            .field("created_at", &self.created_at)
            .field("metadata", &self.metadata.keys())
            .field("traceparent", &self.traceparent)
            .finish_non_exhaustive()
    }
}
