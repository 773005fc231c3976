//! The envelope: what an application wrote as the content of a logical decoding message.
//!
//! Protobuf `OutboxEvent` (field numbers as existing Go and Python emitters write them) or JSON with
//! the same names; the first byte tells them apart. Fields are borrowed and nothing is re-encoded.
//!
//! ```text
//! OutboxEvent { string id=1; string aggregate_type=2; string aggregate_id=3; string event_type=4;
//!               bytes payload=5; int64 created_at=6; map<string,string> metadata=7;
//!               optional TraceInfo trace_info=8 }
//! TraceInfo   { string trace_id=1; string span_id=2; map<string,string> metadata=3 }
//! ```
//!
//! Wire format: <https://protobuf.dev/programming-guides/encoding/>.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// A fact as it was emitted, borrowed from the message that carries it.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact<'a> {
    /// Identity given by the emitter; empty where it gave none.
    pub id: Cow<'a, str>,
    /// What kind of thing the fact is about; the topic is made from it. Never empty.
    pub aggregate_type: Cow<'a, str>,
    /// Which one; the record's key.
    pub aggregate_id: Cow<'a, str>,
    /// What happened.
    pub event_type: Cow<'a, str>,
    /// The application's own bytes.
    pub payload: Payload<'a>,
    /// Trace context, where the emitter gave one.
    pub trace: Option<Trace<'a>>,
    metadata: Pairs<'a>,
}

/// The payload as it was emitted.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload<'a> {
    /// Absent, `null`, or of no length.
    Empty,
    /// Bytes of a protobuf envelope, or the text of a JSON value, quotes and all.
    Borrowed(&'a [u8]),
    /// Decoded from `payload_base64`.
    Decoded(Vec<u8>),
}

impl Payload<'_> {
    /// The payload's bytes; none for [`Payload::Empty`].
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Empty => None,
            Self::Borrowed(bytes) => Some(bytes),
            Self::Decoded(bytes) => Some(bytes),
        }
    }
}

/// `TraceInfo`.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace<'a> {
    /// Trace id as emitted.
    pub trace_id: Cow<'a, str>,
    /// Span id as emitted.
    pub span_id: Cow<'a, str>,
    metadata: Pairs<'a>,
}

impl Trace<'_> {
    /// Calls `each` for every key and value of the trace's metadata, in the order of the envelope.
    pub fn metadata(&self, each: impl FnMut(&str, &str)) {
        self.metadata.walk(TRACE_METADATA, each);
    }
}

/// Why an envelope cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FactError {
    /// The content has no bytes at all.
    #[error("the envelope is empty")]
    Empty,
    /// Not protobuf, or not this message.
    #[error("not a protobuf OutboxEvent: {fault} in {field}")]
    Protobuf {
        /// The field in which reading ended.
        field: &'static str,
        /// What is wrong there.
        fault: &'static str,
    },
    /// Not JSON, or a member has another type.
    #[error("not a JSON envelope: {0}")]
    Json(String),
    /// No topic can be named without it.
    #[error("aggregate_type is empty")]
    NoAggregateType,
}

impl<'a> Fact<'a> {
    /// Reads `content`.
    ///
    /// # Errors
    ///
    /// [`FactError`] if it is neither a protobuf nor a JSON envelope with an aggregate type. Never
    /// panics, and allocates nothing for protobuf.
    pub fn decode(content: &'a [u8]) -> Result<Self, FactError> {
        let fact = match content.first() {
            None => return Err(FactError::Empty),
            // 0x7b would be field 15 with wire type 3 (a group), which no OutboxEvent has.
            Some(b'{') => Self::from_json(content)?,
            Some(_) => Self::from_protobuf(content)?,
        };
        if fact.aggregate_type.is_empty() {
            return Err(FactError::NoAggregateType);
        }
        Ok(fact)
    }

    /// Calls `each` for every key and value of the event's metadata, in the order of the envelope.
    pub fn metadata(&self, each: impl FnMut(&str, &str)) {
        self.metadata.walk(EVENT_METADATA, each);
    }

    fn from_protobuf(content: &'a [u8]) -> Result<Self, FactError> {
        let mut fact = Self {
            id: Cow::Borrowed(""),
            aggregate_type: Cow::Borrowed(""),
            aggregate_id: Cow::Borrowed(""),
            event_type: Cow::Borrowed(""),
            payload: Payload::Empty,
            trace: None,
            metadata: Pairs::Protobuf(content),
        };
        let mut fields = Fields { rest: content, message: "OutboxEvent" };
        // The last occurrence of a field wins, as the encoding guide says.
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Wire::Bytes(bytes)) => fact.id = text(bytes, "id")?,
                (2, Wire::Bytes(bytes)) => fact.aggregate_type = text(bytes, "aggregate_type")?,
                (3, Wire::Bytes(bytes)) => fact.aggregate_id = text(bytes, "aggregate_id")?,
                (4, Wire::Bytes(bytes)) => fact.event_type = text(bytes, "event_type")?,
                (5, Wire::Bytes([])) => fact.payload = Payload::Empty,
                (5, Wire::Bytes(bytes)) => fact.payload = Payload::Borrowed(bytes),
                (EVENT_METADATA, Wire::Bytes(bytes)) => {
                    entry(bytes, "metadata")?;
                }
                (8, Wire::Bytes(bytes)) => fact.trace = Some(Trace::from_protobuf(bytes)?),
                // created_at is passed on inside the value; emitters disagree on its unit.
                _ => {}
            }
        }
        Ok(fact)
    }

    fn from_json(content: &'a [u8]) -> Result<Self, FactError> {
        let json: Json<'a> = serde_json::from_slice(content)
            .map_err(|error| FactError::Json(fault(content, &error)))?;
        let payload = match (json.payload, json.payload_base64) {
            (Some(_), Some(_)) => {
                let both = "both payload and payload_base64 are given";
                return Err(FactError::Json(both.to_owned()));
            }
            (Some(value), None) if value.get() != "null" => {
                Payload::Borrowed(value.get().as_bytes())
            }
            (None, Some(text)) if !text.is_empty() => {
                Payload::Decoded(base64(&text).map_err(FactError::Json)?)
            }
            _ => Payload::Empty,
        };
        Ok(Self {
            id: json.id.0,
            aggregate_type: json.aggregate_type.0,
            aggregate_id: json.aggregate_id.0,
            event_type: json.event_type.0,
            payload,
            trace: json.trace_info.map(|trace| Trace {
                trace_id: trace.trace_id.0,
                span_id: trace.span_id.0,
                metadata: trace.metadata,
            }),
            metadata: json.metadata,
        })
    }
}

/// `created_at` of an envelope, if it is there and a number. Not among a [`Fact`]'s fields: nothing depends on it,
/// and no envelope is refused for it.
pub fn created_at(content: &[u8]) -> Option<i64> {
    #[derive(serde::Deserialize)]
    struct Json<'a> {
        #[serde(borrow)]
        created_at: Option<&'a RawValue>,
    }
    if content.first() == Some(&b'{') {
        let json: Json<'_> = serde_json::from_slice(content).ok()?;
        return json.created_at?.get().parse().ok();
    }
    let mut fields = Fields { rest: content, message: "OutboxEvent" };
    let mut found = None;
    while let Ok(Some((number, value))) = fields.next() {
        if let (CREATED_AT, Wire::Varint(value)) = (number, value) {
            found = Some(value.cast_signed());
        }
    }
    found
}

const CREATED_AT: u32 = 6;
const EVENT_METADATA: u32 = 7;
const TRACE_METADATA: u32 = 3;

impl<'a> Trace<'a> {
    fn from_protobuf(content: &'a [u8]) -> Result<Self, FactError> {
        let mut trace = Self {
            trace_id: Cow::Borrowed(""),
            span_id: Cow::Borrowed(""),
            metadata: Pairs::Protobuf(content),
        };
        let mut fields = Fields { rest: content, message: "trace_info" };
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (1, Wire::Bytes(bytes)) => trace.trace_id = text(bytes, "trace_info.trace_id")?,
                (2, Wire::Bytes(bytes)) => trace.span_id = text(bytes, "trace_info.span_id")?,
                (TRACE_METADATA, Wire::Bytes(bytes)) => {
                    entry(bytes, "trace_info.metadata")?;
                }
                _ => {}
            }
        }
        Ok(trace)
    }
}

/// Keys and values, checked when the envelope was read and walked when they are wanted.
#[derive(Debug, Clone, PartialEq)]
enum Pairs<'a> {
    /// The message that holds the map's entries among its other fields.
    Protobuf(&'a [u8]),
    Json(Vec<(Cow<'a, str>, Cow<'a, str>)>),
}

impl Default for Pairs<'_> {
    fn default() -> Self {
        Self::Json(Vec::new())
    }
}

impl Pairs<'_> {
    fn walk(&self, number: u32, mut each: impl FnMut(&str, &str)) {
        match self {
            Self::Json(pairs) => pairs.iter().for_each(|(key, value)| each(key, value)),
            Self::Protobuf(message) => {
                let mut fields = Fields { rest: message, message: "" };
                while let Ok(Some((found, value))) = fields.next() {
                    if found == number
                        && let Wire::Bytes(bytes) = value
                        && let Ok((key, value)) = entry(bytes, "")
                    {
                        each(key, value);
                    }
                }
            }
        }
    }
}

/// A field's value by wire type.
enum Wire<'a> {
    Varint(u64),
    Fixed,
    Bytes(&'a [u8]),
}

/// The fields of one protobuf message, in order.
struct Fields<'a> {
    rest: &'a [u8],
    message: &'static str,
}

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, FactError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        let number = number.ok_or_else(|| self.fault("a field number out of range"))?;
        let value = match tag & 7 {
            0 => self.varint().map(Wire::Varint)?,
            1 => self.take(8).map(|_| Wire::Fixed)?,
            2 => {
                let len = self.varint()?;
                Wire::Bytes(self.take(usize::try_from(len).unwrap_or(usize::MAX))?)
            }
            5 => self.take(4).map(|_| Wire::Fixed)?,
            _ => return Err(self.fault("a wire type that is not in use")),
        };
        Ok(Some((number, value)))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, FactError> {
        // Tags and most lengths are one byte.
        if let Some((byte @ 0..0x80, rest)) = self.rest.split_first() {
            self.rest = rest;
            return Ok(u64::from(*byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, FactError> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let Some((byte, rest)) = self.rest.split_first() else {
                return Err(self.fault("an early end"));
            };
            self.rest = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.fault("a number of more than ten bytes"))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], FactError> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            return Err(self.fault("an early end"));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn fault(&self, fault: &'static str) -> FactError {
        FactError::Protobuf { field: self.message, fault }
    }
}

fn text<'a>(bytes: &'a [u8], field: &'static str) -> Result<Cow<'a, str>, FactError> {
    str(bytes, field).map(Cow::Borrowed)
}

fn str<'a>(bytes: &'a [u8], field: &'static str) -> Result<&'a str, FactError> {
    std::str::from_utf8(bytes)
        .map_err(|_| FactError::Protobuf { field, fault: "text that is not UTF-8" })
}

/// One entry of a `map<string, string>`.
fn entry<'a>(bytes: &'a [u8], field: &'static str) -> Result<(&'a str, &'a str), FactError> {
    let (mut key, mut value) = ("", "");
    let mut fields = Fields { rest: bytes, message: field };
    while let Some((number, found)) = fields.next()? {
        match (number, found) {
            (1, Wire::Bytes(bytes)) => key = str(bytes, field)?,
            (2, Wire::Bytes(bytes)) => value = str(bytes, field)?,
            _ => {}
        }
    }
    Ok((key, value))
}

#[derive(serde::Deserialize)]
struct Json<'a> {
    #[serde(borrow, default)]
    id: Text<'a>,
    #[serde(borrow, default)]
    aggregate_type: Text<'a>,
    #[serde(borrow, default)]
    aggregate_id: Text<'a>,
    #[serde(borrow, default)]
    event_type: Text<'a>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    payload_base64: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "pairs")]
    metadata: Pairs<'a>,
    #[serde(borrow, default)]
    trace_info: Option<JsonTrace<'a>>,
}

#[derive(serde::Deserialize)]
struct JsonTrace<'a> {
    #[serde(borrow, default)]
    trace_id: Text<'a>,
    #[serde(borrow, default)]
    span_id: Text<'a>,
    #[serde(borrow, default, deserialize_with = "pairs")]
    metadata: Pairs<'a>,
}

/// A string, borrowed unless it has escapes; `null` is the empty string, as in protobuf's JSON.
#[derive(Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Serde copies a `Cow` unless it is told to borrow, also inside an `Option`.
        #[derive(serde::Deserialize)]
        struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);
        let text = Option::<Borrowed<'a>>::deserialize(deserializer)?;
        Ok(text.map_or_else(Self::default, |text| Self(text.0)))
    }
}

fn pairs<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Pairs<'a>, D::Error> {
    struct Object<'a>(std::marker::PhantomData<&'a ()>);
    impl<'de: 'a, 'a> Visitor<'de> for Object<'a> {
        type Value = Pairs<'a>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of strings")
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Pairs::default())
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some((Text(key), Text(value))) = map.next_entry()? {
                pairs.push((key, value));
            }
            Ok(Pairs::Json(pairs))
        }
    }
    deserializer.deserialize_any(Object(std::marker::PhantomData))
}

/// Where and what, in words of our own: those of serde quote the value, whatever it is and however long.
fn fault(content: &[u8], error: &serde_json::Error) -> String {
    if let Err(error) = std::str::from_utf8(content) {
        return format!("it is not UTF-8, from byte {} on", error.valid_up_to());
    }
    let what = match error.classify() {
        Category::Data => "a member is there twice, or of another type than it may be",
        Category::Eof => "it ends too early",
        Category::Syntax | Category::Io => "this is not JSON",
    };
    format!("{what}, in line {}, column {}", error.line(), error.column())
}

/// PostgreSQL's own `encode(..., 'base64')` breaks lines, as MIME wants it.
fn base64(text: &str) -> Result<Vec<u8>, String> {
    use base64::Engine as _;
    let text: String = text.split_ascii_whitespace().collect();
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|error| format!("payload_base64: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An `OutboxEvent` with every field set.
    fn golden() -> Vec<u8> {
        let mut out = Vec::new();
        field(&mut out, 1, b"7c9e6679-7425-40de-944b-e07fc1f90ae7");
        field(&mut out, 2, b"order");
        field(&mut out, 3, b"o-1");
        field(&mut out, 4, b"created");
        field(&mut out, 5, &[0, 159, 255]);
        out.extend([0x30, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        field(&mut out, 7, &pair("tenant", "a"));
        field(&mut out, 7, &pair("region", "eu"));
        let mut trace = Vec::new();
        field(&mut trace, 1, b"0af7651916cd43dd8448eb211c80319c");
        field(&mut trace, 2, b"b7ad6b7169203331");
        field(&mut trace, 3, &pair("tracestate", "x=1"));
        field(&mut out, 8, &trace);
        out
    }

    fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
        out.extend([number << 3 | 2, u8::try_from(bytes.len()).unwrap()]);
        out.extend(bytes);
    }

    fn pair(key: &str, value: &str) -> Vec<u8> {
        let mut out = Vec::new();
        field(&mut out, 1, key.as_bytes());
        field(&mut out, 2, value.as_bytes());
        out
    }

    fn collect(walk: impl FnOnce(&mut dyn FnMut(&str, &str))) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        walk(&mut |key, value| pairs.push((key.to_owned(), value.to_owned())));
        pairs
    }

    #[test]
    fn protobuf_fields_are_read_in_place() {
        let content = golden();
        let fact = Fact::decode(&content).unwrap();
        assert_eq!(fact.id, "7c9e6679-7425-40de-944b-e07fc1f90ae7");
        assert_eq!(fact.aggregate_type, "order");
        assert_eq!(fact.aggregate_id, "o-1");
        assert_eq!(fact.event_type, "created");
        assert_eq!(fact.payload.bytes(), Some(&[0, 159, 255][..]));
        assert!(matches!(fact.id, Cow::Borrowed(_)));
        let metadata = collect(|each| fact.metadata(each));
        assert_eq!(metadata, [("tenant".into(), "a".into()), ("region".into(), "eu".into())]);
        let trace = fact.trace.unwrap();
        assert_eq!(trace.span_id, "b7ad6b7169203331");
        assert_eq!(collect(|each| trace.metadata(each)), [("tracestate".into(), "x=1".into())]);
    }

    #[test]
    fn json_has_the_same_fields() {
        let content = br#" {"id":"1"} "#;
        assert!(matches!(Fact::decode(content), Err(FactError::Protobuf { .. })), "leading space");
        let content = br#"{"id":"1","aggregate_type":"or\u0064er","aggregate_id":"o-1",
            "event_type":"created","payload": {"a": [1, 2]},"created_at":"whatever","unknown":{},
            "metadata":{"tenant":"a"},"trace_info":{"trace_id":"t","metadata":{"k":"v"}}}"#;
        let fact = Fact::decode(content).unwrap();
        assert_eq!(fact.aggregate_type, "order");
        assert!(matches!(fact.aggregate_id, Cow::Borrowed("o-1")));
        assert_eq!(fact.payload.bytes(), Some(&br#"{"a": [1, 2]}"#[..]));
        assert_eq!(collect(|each| fact.metadata(each)), [("tenant".into(), "a".into())]);
        let trace = fact.trace.unwrap();
        assert_eq!((&*trace.trace_id, &*trace.span_id), ("t", ""));
        assert_eq!(collect(|each| trace.metadata(each)), [("k".into(), "v".into())]);
    }

    #[test]
    fn an_absent_null_or_empty_payload_is_empty() {
        for json in ["", r#","payload":null"#, r#","payload_base64":"""#] {
            let content = format!(r#"{{"aggregate_type":"order"{json}}}"#);
            assert_eq!(Fact::decode(content.as_bytes()).unwrap().payload, Payload::Empty, "{json}");
        }
        for text in ["AJ//", r"AJ\n//", r" AJ/\r\n/\t"] {
            let content = format!(r#"{{"aggregate_type":"order","payload_base64":"{text}"}}"#);
            let fact = Fact::decode(content.as_bytes()).unwrap();
            assert_eq!(fact.payload.bytes(), Some(&[0, 159, 255][..]), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_envelope_is_refused_with_the_place() {
        let cases: [(&[u8], &str); 9] = [
            (b"", "the envelope is empty"),
            (b"\x0a\x05ab", "not a protobuf OutboxEvent: an early end in OutboxEvent"),
            (b"\x0a\x01\xff", "not a protobuf OutboxEvent: text that is not UTF-8 in id"),
            (b"\x0f", "not a protobuf OutboxEvent: a wire type that is not in use in OutboxEvent"),
            (b"\x00", "not a protobuf OutboxEvent: a field number out of range in OutboxEvent"),
            (b"\x0a\x00", "aggregate_type is empty"),
            (b"{}", "aggregate_type is empty"),
            (b"\x3a\x02\x0a\x09", "not a protobuf OutboxEvent: an early end in metadata"),
            (
                br#"{"aggregate_type":"a","payload":1,"payload_base64":"AA=="}"#,
                "not a JSON envelope: both payload and payload_base64 are given",
            ),
        ];
        for (content, sentence) in cases {
            assert_eq!(Fact::decode(content).unwrap_err().to_string(), sentence, "{content:?}");
        }
    }

    /// Symptom: an envelope of the wrong shape stood in log, health and page, with all that was in it.
    #[test]
    fn what_stands_in_an_envelope_is_not_said_when_it_cannot_be_read() {
        let long =
            format!(r#"{{"aggregate_type":"order","metadata":"{}"}}"#, "s3cret".repeat(1000));
        let cases = [
            (long.as_str(), "another type"),
            (r#"{"aggregate_type":"s3cret","payload_base64":4711}"#, "another type"),
            (r#"{"aggregate_type":"a","aggregate_type":"s3cret"}"#, "twice"),
            (r#"{"aggregate_type":"s3cret"#, "too early"),
            (r#"{"aggregate_type":"s3cret" s3cret"#, "not JSON"),
        ];
        let error = Fact::decode(b"{\"aggregate_type\":\"s3cret\xff\"}").unwrap_err().to_string();
        assert_eq!(error, "not a JSON envelope: it is not UTF-8, from byte 25 on");
        for (content, what) in cases {
            let error = Fact::decode(content.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("in line 1, column"), "{error}");
            assert!(!error.contains("s3cret") && !error.contains("4711"), "{error}");
        }
    }

    #[test]
    fn created_at_is_what_was_emitted_and_its_absence_refuses_nothing() {
        for (text, expected) in [
            ("1700000000000001", Some(1_700_000_000_000_001)),
            ("-1", Some(-1)),
            ("0", Some(0)),
            ("null", None),
            ("\"yesterday\"", None),
            ("1e3", None),
            ("{}", None),
        ] {
            let content = format!(r#"{{"aggregate_type":"o","created_at":{text}}}"#);
            assert_eq!(created_at(content.as_bytes()), expected, "{text}");
            assert!(Fact::decode(content.as_bytes()).is_ok());
        }
        assert_eq!(created_at(br#"{"aggregate_type":"o"}"#), None);
        // Field 6 with wire type 0: 300, and -1 as ten bytes; the last one wins.
        assert_eq!(created_at(b"\x12\x01o\x30\xac\x02"), Some(300));
        let minus_one = b"\x30\x05\x30\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        assert_eq!(created_at(minus_one), Some(-1));
        assert_eq!(created_at(b"\x12\x01o"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Fact::decode(&content), created_at(&content));
            content.insert(0, b'{');
            let _ = (Fact::decode(&content), created_at(&content));
        }

        #[test]
        fn no_damaged_envelope_makes_it_panic(at in 0..120_usize, byte in any::<u8>()) {
            let mut content = golden();
            let at = at % content.len();
            content[at] = byte;
            if let Ok(fact) = Fact::decode(&content) {
                fact.metadata(|_, _| ());
            }
        }
    }
}
