//! What factlib's programs wrote, as it was recorded: tests/it/fixtures/factlib/README.md says how.

use factlib_protocol::Lsn;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The emitters whose facts were recorded.
pub(crate) const EMITTERS: [&str; 2] = ["go", "python"];

/// The prefix that the recorded relay published.
pub(crate) const PREFIX: &str = "interop";

/// How many partitions the topics had.
pub(crate) const PARTITIONS: i32 = 3;

/// What one emitter wrote.
#[derive(Debug, Deserialize)]
pub(crate) struct Recording {
    pub(crate) system: String,
    pub(crate) database: u32,
    pub(crate) timeline: u32,
    pub(crate) facts: Vec<Recorded>,
}

/// A fact in the log, what its emitter was told to emit, and what factlib's relay made of it.
#[derive(Debug, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) file: String,
    pub(crate) prefix: String,
    lsn: String,
    final_lsn: String,
    pub(crate) commit_time: i64,
    pub(crate) fact: Told,
    pub(crate) factlib_position: String,
    /// The emitter's id, or the one that follows from the position, made by Python's uuid5.
    pub(crate) event_id: String,
    pub(crate) record: Option<Written>,
    /// The content of the message.
    #[serde(skip)]
    pub(crate) content: Vec<u8>,
    /// The value of factlib's record.
    #[serde(skip)]
    pub(crate) value: Vec<u8>,
}

/// What the emitter was told.
#[derive(Debug, Deserialize)]
pub(crate) struct Told {
    pub(crate) id: String,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) event_type: String,
    pub(crate) payload_len: usize,
    pub(crate) payload_sha256: String,
    pub(crate) created_at: i64,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) trace_info: Option<ToldTrace>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ToldTrace {
    pub(crate) trace_id: String,
    pub(crate) span_id: String,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// A record of factlib's relay.
#[derive(Debug, Deserialize)]
pub(crate) struct Written {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) key: String,
    pub(crate) headers: BTreeMap<String, String>,
    /// The file that has the value.
    value: String,
}

impl Recording {
    /// Reads what `emitter` wrote.
    pub(crate) fn of(emitter: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/it/fixtures/factlib")
            .join(emitter);
        let text = std::fs::read_to_string(folder.join("facts.json")).unwrap();
        let mut recording: Self = serde_json::from_str(&text).unwrap();
        for fact in &mut recording.facts {
            fact.content = std::fs::read(folder.join(format!("{}.bin", fact.file))).unwrap();
            if let Some(record) = &fact.record {
                fact.value = std::fs::read(folder.join(&record.value)).unwrap();
            }
        }
        recording
    }
}

impl Recorded {
    pub(crate) fn lsn(&self) -> Lsn {
        self.lsn.parse().unwrap()
    }

    pub(crate) fn final_lsn(&self) -> Lsn {
        self.final_lsn.parse().unwrap()
    }

    /// True if owlpost publishes it: factlib's relay also published facts without an aggregate type, to the topic
    /// `interop.`.
    pub(crate) fn is_published(&self) -> bool {
        self.prefix == PREFIX && !self.fact.aggregate_type.is_empty()
    }

    /// Holds a record of ours to factlib's of the same fact: the same topic, key, partition, value and headers, but
    /// for the differences that docs/migrating.md names, each of which is asserted here.
    pub(crate) fn assert_record(
        &self,
        (topic, partition): (&str, i32),
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(String, Vec<u8>)],
    ) {
        let file = &self.file;
        let theirs = self.record.as_ref().unwrap();
        assert_eq!((topic, partition), (theirs.topic.as_str(), theirs.partition), "{file}");
        assert_eq!(key, Some(theirs.key.as_bytes()), "{file}");
        assert!(value == Some(&self.content[..]), "{file}: not the value that was emitted");

        let ours: BTreeMap<&str, &str> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), std::str::from_utf8(value).unwrap()))
            .collect();
        assert_eq!(ours.len(), headers.len(), "{file}: a header is there twice");
        for (name, value) in &theirs.headers {
            let expected = match name.as_str() {
                // Theirs is new in each delivery.
                "event_id" if self.fact.id.is_empty() => continue,
                // Checked against the message below.
                "LSN" => continue,
                _ => value,
            };
            assert_eq!(ours.get(name.as_str()), Some(&expected.as_str()), "{file}: {name}");
        }
        let more: Vec<&str> =
            ours.keys().copied().filter(|name| !theirs.headers.contains_key(*name)).collect();
        // Theirs leaves the metadata of a trace out if the trace has no id.
        let mut expected = vec!["factlib_position", "factlib_source"];
        if let Some(trace) = self.fact.trace_info.as_ref().filter(|trace| trace.trace_id.is_empty())
        {
            expected.extend(trace.metadata.keys().map(String::as_str));
            expected.extend((!trace.span_id.is_empty()).then_some("span_id"));
        }
        expected.sort_unstable();
        assert_eq!(more, expected, "{file}");
    }

    /// What `LSN` is in factlib's record: the end of the message's record in the log, and the length of what
    /// pgoutput sends of it on top.
    pub(crate) fn their_lsn(&self) -> Lsn {
        // Tag, flags, LSN, prefix with its NUL, length.
        let length = 1 + 1 + 8 + self.prefix.len() + 1 + 4 + self.content.len();
        Lsn(self.lsn().0 + u64::try_from(length).unwrap())
    }
}
