//! Where a fact goes: topic, partition, headers. The compatibility contract with consumers.

use super::fact::Fact;
use super::position::Position;
use factlib_protocol::Lsn;

/// Longest topic name a broker accepts (`org.apache.kafka.common.internals.Topic.MAX_NAME_LENGTH`).
pub const TOPIC_LEN_MAX: usize = 249;

/// True if a broker can have a topic of this name: letters, digits, `.`, `_`, `-`, at most
/// [`TOPIC_LEN_MAX`] bytes, not empty, `.` or `..`.
pub fn is_topic(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=TOPIC_LEN_MAX).contains(&name.len())
        && name.bytes().all(legal)
        && !matches!(name, "." | "..")
}

/// The partition that the Java client's default partitioner chooses for `key` among `partitions`.
///
/// An empty key is hashed like any other, so that it is deterministic.
pub fn partition(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions.max(1)
}

/// `org.apache.kafka.common.utils.Utils.murmur2`.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    // Java's int arithmetic: lengths beyond 2^32 cannot occur in a frame.
    #[expect(clippy::cast_possible_truncation, reason = "wraps as Java's does")]
    let mut hash = SEED ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (shift, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * shift);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

/// Which cluster and database the facts come from: the value of the `factlib_source` header.
///
/// Not the slot: the same WAL read through another slot is the same source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    value: String,
    /// The whole header, as a record has it.
    encoded: Vec<u8>,
}

impl Source {
    /// From IDENTIFY_SYSTEM's system id and the database's OID.
    pub fn new(system: u64, database: u32) -> Self {
        let value = format!("{system}/{database}");
        let mut headers = Headers::default();
        headers.push(SOURCE, value.as_bytes());
        Self { value, encoded: headers.encoded }
    }

    /// The header's value.
    pub fn as_str(&self) -> &str {
        &self.value
    }

    /// The id of a fact that came without one: UUIDv5 of source and position, so that a repeat has
    /// the same.
    pub fn id(&self, position: &Position) -> uuid::Uuid {
        let name = format!("{}/{position}", self.value);
        uuid::Uuid::new_v5(&NAMESPACE, name.as_bytes())
    }
}

/// The header with the record's position, in [`Position::text`].
pub const POSITION: &str = "factlib_position";

/// Name of the header that says where a fact comes from: [`Source`].
pub const SOURCE: &str = "factlib_source";

/// The header that says of a fact that the transaction it was emitted in went to Kafka in several, from the second
/// part on.
pub const PART: &str = "factlib_part";

/// Namespace of the ids that [`Source::id`] makes: UUIDv5 of the DNS name `factlib.event_id`.
const NAMESPACE: uuid::Uuid = uuid::uuid!("b7eb0b78-6f97-5916-a7e2-b8e0a93110a4");

/// Names of the headers that each fact has, with what a record has before them: twice their length (zigzag). Known
/// when this is compiled, they are no copies of unknown length.
const EVENT_ID_NAMED: &[u8; 9] = b"\x10event_id";
const EVENT_TYPE_NAMED: &[u8; 11] = b"\x14event_type";
const LSN_NAMED: &[u8; 4] = b"\x06LSN";
const POSITION_NAMED: &[u8; 17] = b"\x20factlib_position";

/// The headers of one record, encoded as a record batch holds them.
#[derive(Debug, Default)]
pub struct Headers {
    count: u32,
    encoded: Vec<u8>,
}

impl Headers {
    /// Fills in the headers of `fact`, in a fixed order: event, position, trace, then, if asked for,
    /// the event's metadata. Keys of the emitter that ours would clash with are left out: a consumer
    /// must be able to trust ours.
    pub fn fill(
        &mut self,
        fact: &Fact<'_>,
        source: &Source,
        position: &Position,
        lsn: Lsn,
        event_metadata: bool,
    ) {
        self.count = 0;
        self.encoded.clear();
        if fact.id.is_empty() {
            let mut buffer = uuid::Uuid::encode_buffer();
            let id = source.id(position).hyphenated().encode_lower(&mut buffer);
            self.push_named(EVENT_ID_NAMED, id.as_bytes());
        } else {
            self.push_named(EVENT_ID_NAMED, fact.id.as_bytes());
        }
        self.push_named(EVENT_TYPE_NAMED, fact.event_type.as_bytes());
        self.push_named(LSN_NAMED, lsn_text(lsn, &mut [0; LSN_LEN_MAX]));
        self.push_named(POSITION_NAMED, &position.text());
        self.push_source(source);
        if let Some(trace) = &fact.trace {
            // Emitters that have no trace write an empty one (factlib's do): a consumer that looks whether there
            // is a trace_id must not find one.
            if !trace.trace_id.is_empty() {
                self.push("trace_id", trace.trace_id.as_bytes());
            }
            if !trace.trace_id.is_empty() || !trace.span_id.is_empty() {
                self.push("span_id", trace.span_id.as_bytes());
            }
            trace.metadata(|key, value| self.push_foreign(key, value));
        }
        if event_metadata {
            fact.metadata(|key, value| self.push_foreign(key, value));
        }
    }

    /// The headers of a fact of which only the position is known.
    pub fn fill_unreadable(&mut self, source: &Source, position: &Position, lsn: Lsn) {
        self.count = 0;
        self.encoded.clear();
        self.push("event_id", source.id(position).hyphenated().to_string().as_bytes());
        self.push("LSN", lsn.to_string().as_bytes());
        self.push(POSITION, &position.text());
        self.push_source(source);
    }

    /// Number of headers.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Key length, key, value length, value of each, as varints and bytes.
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// Headers of a record that is encoded already, and room for more.
    pub(super) fn from_encoded(count: u32, encoded: &[u8]) -> Self {
        Self { count, encoded: encoded.to_vec() }
    }

    pub(crate) fn push(&mut self, key: &str, value: &[u8]) {
        self.count += 1;
        super::batch::write_bytes(&mut self.encoded, Some(key.as_bytes()));
        super::batch::write_bytes(&mut self.encoded, Some(value));
    }

    fn push_named<const LEN: usize>(&mut self, name: &[u8; LEN], value: &[u8]) {
        self.count += 1;
        self.encoded.extend_from_slice(name);
        super::batch::write_bytes(&mut self.encoded, Some(value));
    }

    fn push_source(&mut self, source: &Source) {
        self.count += 1;
        self.encoded.extend_from_slice(&source.encoded);
    }

    fn push_foreign(&mut self, key: &str, value: &str) {
        let ours = ["event_id", "event_type", "LSN", "trace_id", "span_id"];
        if !ours.contains(&key) && !key.starts_with("factlib_") {
            self.push(key, value.as_bytes());
        }
    }
}

/// Two halves of 32 bits, and what is between them.
const LSN_LEN_MAX: usize = 8 + 1 + 8;

/// As `Display` writes it, and several times faster: it is in every record.
fn lsn_text(Lsn(lsn): Lsn, out: &mut [u8; LSN_LEN_MAX]) -> &[u8] {
    let mut places = out.iter_mut().rev();
    let mut put = |byte| {
        if let Some(place) = places.next() {
            *place = byte;
        }
    };
    for (mut half, before) in [(lsn & 0xffff_ffff, Some(b'/')), (lsn >> 32, None)] {
        loop {
            put(HEX.get((half & 0xf) as usize).copied().unwrap_or_default());
            half >>= 4;
            if half == 0 {
                break;
            }
        }
        before.into_iter().for_each(&mut put);
    }
    let unused = places.len();
    out.get(unused..).unwrap_or_default()
}

const HEX: [u8; 16] = *b"0123456789ABCDEF";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::position::Unit;

    #[test]
    fn an_lsn_is_written_as_it_is_displayed() {
        for lsn in
            [0, 1, 0xf, 0x10, 0xffff_ffff, 1 << 32, 0x16_B374_8000, 0xdead_beef_0000_00a0, u64::MAX]
        {
            let mut out = [0; LSN_LEN_MAX];
            assert_eq!(lsn_text(Lsn(lsn), &mut out), Lsn(lsn).to_string().as_bytes());
        }
    }

    #[test]
    fn names_that_are_known_beforehand_are_encoded_as_any_other() {
        let mut any = Headers::default();
        let mut known = Headers::default();
        for name in ["event_id", "event_type", "LSN", POSITION] {
            any.push(name, b"value");
        }
        known.push_named(EVENT_ID_NAMED, b"value");
        known.push_named(EVENT_TYPE_NAMED, b"value");
        known.push_named(LSN_NAMED, b"value");
        known.push_named(POSITION_NAMED, b"value");
        assert_eq!(known.encoded(), any.encoded());
        assert_eq!(known.count(), any.count());
    }

    #[test]
    fn murmur2_is_javas() {
        // The vectors of Kafka's own UtilsTest.
        let vectors: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (key, hash) in vectors {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    #[test]
    fn an_empty_key_has_one_partition() {
        assert_eq!(partition(b"", 7), partition(b"", 7));
        assert!(partition(b"", 7) < 7);
    }

    #[test]
    fn topic_names_follow_the_brokers_rules() {
        for legal in ["orders.order", "a", "A_b-c.9", &"x".repeat(249)] {
            assert!(is_topic(legal), "{legal}");
        }
        for illegal in ["", ".", "..", "a b", "a/b", "ä", &"x".repeat(250)] {
            assert!(!is_topic(illegal), "{illegal}");
        }
    }

    #[test]
    fn a_fact_without_an_id_has_the_same_id_every_time() {
        let source = Source::new(7_300_000_000_000_000_000, 16384);
        let unit = Unit::transaction(Lsn(0x151_7030));
        let position = Position { timeline: 1, unit, index: 4 };
        let id = source.id(&position);
        assert_eq!(id, source.id(&position));
        assert_eq!(id.get_version_num(), 5);
        assert_ne!(id, source.id(&Position { index: 5, ..position }));
        assert_ne!(id, Source::new(1, 16384).id(&position));
    }

    #[test]
    fn keys_of_the_emitter_never_overwrite_ours() {
        let content =
            br#"{"aggregate_type":"order","event_type":"created","trace_info":{"trace_id":"t",
            "metadata":{"LSN":"x","factlib_position":"0","traceparent":"00-t-s-01"}}}"#;
        let fact = Fact::decode(content).unwrap();
        let position = Position { timeline: 1, unit: Unit::transaction(Lsn(1)), index: 0 };
        let mut headers = Headers::default();
        headers.fill(&fact, &Source::new(1, 2), &position, Lsn(0x16_B374), true);
        assert_eq!(headers.count(), 8);
        let text = String::from_utf8_lossy(headers.encoded());
        assert_eq!(text.matches("LSN").count(), 1);
        assert!(text.contains("0/16B374"), "{text}");
        assert!(text.contains("traceparent"), "{text}");
        assert_eq!(text.matches("factlib_position").count(), 1);
    }
}
