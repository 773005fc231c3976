//! A record with its bytes.

use crate::kafka::Found;

/// A record as it is in a topic, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) offset: i64,
    pub(super) timestamp_ms: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Record {
    pub(super) fn of(found: &Found<'_>) -> Self {
        Self {
            offset: found.offset,
            timestamp_ms: found.timestamp_ms,
            key: found.key().map(<[u8]>::to_vec),
            value: found.value().map(<[u8]>::to_vec),
            headers: found.headers().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
        }
    }

    /// The first header of this name: those of the fact come behind ours.
    pub(super) fn header(&self, name: &str) -> Option<&[u8]> {
        let mut headers = self.headers.iter();
        headers.find_map(|(known, value)| (known == name.as_bytes()).then_some(value.as_slice()))
    }

    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let len = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers: usize =
            self.headers.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
        len(&self.key) + len(&self.value) + headers + 128
    }
}
