//! The few messages of Kafka that the null broker takes and gives, each in one version.
//!
//! <https://kafka.apache.org/protocol>: ApiVersions 3, Metadata 12, InitProducerId 1, Produce 13. But for
//! InitProducerId they have compact lengths and tagged fields (KIP-482).

use std::ops::Range;

const PRODUCE: i16 = 0;
const METADATA: i16 = 3;
const API_VERSIONS: i16 = 18;
const INIT_PRODUCER_ID: i16 = 22;

/// Key and the one version.
const APIS: [(i16, i16); 4] =
    [(PRODUCE, 13), (METADATA, 12), (API_VERSIONS, 3), (INIT_PRODUCER_ID, 1)];

/// A request's correlation id, which its answer bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Correlation(i32);

#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    ApiVersions,
    /// Names of topics.
    Metadata(Vec<String>),
    InitProducerId,
    Produce(Vec<Batch>),
}

/// A record batch in a Produce request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub topic: [u8; 16],
    pub partition: i32,
    /// Where it is in the request.
    pub range: Range<usize>,
}

/// What stands at the head of a record batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHead {
    pub producer_id: i64,
    pub epoch: i16,
    pub base_sequence: i32,
    pub records: i32,
}

impl BatchHead {
    /// <https://kafka.apache.org/documentation/#recordbatch>
    pub fn read(batch: &[u8]) -> Option<Self> {
        let mut reader = Reader { bytes: batch, at: 43 };
        let head = Self {
            producer_id: i64::from_be_bytes(reader.array().ok()?),
            epoch: i16::from_be_bytes(reader.array().ok()?),
            base_sequence: i32::from_be_bytes(reader.array().ok()?),
            records: i32::from_be_bytes(reader.array().ok()?),
        };
        (head.records > 0).then_some(head)
    }

    /// Sequences go on with 0 behind the largest.
    pub fn next_sequence(&self) -> i32 {
        self.base_sequence.wrapping_add(self.records) & i32::MAX
    }
}

/// An id for each name, and not zero: the name's bytes, hashed twice (FNV-1a).
pub fn topic_id(name: &str) -> [u8; 16] {
    let hash = |seed: u64| {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        name.bytes().fold(seed, step)
    };
    let (high, low) = (hash(0xcbf2_9ce4_8422_2325), hash(0x9ae1_6a3b_2f90_404f));
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

/// # Errors
///
/// What could not be read.
pub fn read(request: &[u8]) -> Result<(Correlation, Request), String> {
    let mut r = Reader { bytes: request, at: 0 };
    let (api, version, correlation) = (r.i16()?, r.i16()?, r.i32()?);
    if !APIS.contains(&(api, version)) {
        return Err(format!(
            "a request of kind {api}, version {version}, which this broker does not offer"
        ));
    }
    let client_id = r.i16()?;
    r.take(usize::try_from(client_id).unwrap_or(0))?;
    let request = match api {
        // The rest says who asks.
        API_VERSIONS => Request::ApiVersions,
        INIT_PRODUCER_ID => Request::InitProducerId,
        METADATA => {
            r.tags()?;
            let mut names = Vec::new();
            for _ in 0..r.compact_len()? {
                let _id = r.take(16)?;
                let len = r.compact_len()?;
                names.push(String::from_utf8(r.take(len)?.to_vec()).map_err(|e| e.to_string())?);
                r.tags()?;
            }
            Request::Metadata(names)
        }
        _ => {
            r.tags()?;
            let transactional_id = r.compact_len()?;
            r.take(transactional_id)?;
            let (acks, _timeout) = (r.i16()?, r.i32()?);
            if acks != -1 {
                return Err(format!("acks={acks}: every rule of delivery is to be on"));
            }
            let mut batches = Vec::new();
            for _ in 0..r.compact_len()? {
                let topic = r.array()?;
                for _ in 0..r.compact_len()? {
                    let partition = r.i32()?;
                    let len = r.compact_len()?;
                    let begin = r.at;
                    r.take(len)?;
                    batches.push(Batch { topic, partition, range: begin..begin + len });
                    r.tags()?;
                }
                r.tags()?;
            }
            r.tags()?;
            Request::Produce(batches)
        }
    };
    Ok((Correlation(correlation), request))
}

pub fn api_versions(correlation: Correlation) -> Vec<u8> {
    // Its answer's head has no tagged fields in any version.
    let mut out = Writer::new(correlation, false);
    out.put(0_i16.to_be_bytes());
    out.compact_len(APIS.len());
    for (key, version) in APIS {
        out.put(key.to_be_bytes());
        out.put(version.to_be_bytes());
        out.put(version.to_be_bytes());
        out.tags();
    }
    out.throttle();
    out.tags();
    out.end()
}

pub fn producer_id(correlation: Correlation) -> Vec<u8> {
    let mut out = Writer::new(correlation, false);
    out.throttle();
    out.put(0_i16.to_be_bytes());
    out.put(4000_i64.to_be_bytes());
    out.put(0_i16.to_be_bytes());
    out.end()
}

/// Every topic is there, with as many partitions as there are to be.
pub fn metadata(
    correlation: Correlation,
    port: u16,
    names: &[String],
    partitions: usize,
) -> Vec<u8> {
    let mut out = Writer::new(correlation, true);
    out.throttle();
    out.compact_len(1);
    out.put(NODE.to_be_bytes());
    out.text("127.0.0.1");
    out.put(i32::from(port).to_be_bytes());
    out.null();
    out.tags();
    out.text("null-broker");
    out.put(NODE.to_be_bytes());
    out.compact_len(names.len());
    for name in names {
        out.put(0_i16.to_be_bytes());
        out.text(name);
        out.put(topic_id(name));
        out.put([0]);
        out.compact_len(partitions);
        for index in 0..partitions {
            out.put(0_i16.to_be_bytes());
            out.put((index as i32).to_be_bytes());
            out.put(NODE.to_be_bytes());
            // The leader's epoch.
            out.put(0_i32.to_be_bytes());
            for nodes in [1, 1, 0] {
                out.compact_len(nodes);
                (0..nodes).for_each(|_| out.put(NODE.to_be_bytes()));
            }
            out.tags();
        }
        // What may be done with it was not asked.
        out.put(i32::MIN.to_be_bytes());
        out.tags();
    }
    out.tags();
    out.end()
}

/// All is stored; `offsets` are those of the batches.
pub fn produced(correlation: Correlation, batches: &[Batch], offsets: &[i64]) -> Vec<u8> {
    let mut out = Writer::new(correlation, true);
    let topics: Vec<&[Batch]> = batches.chunk_by(|a, b| a.topic == b.topic).collect();
    out.compact_len(topics.len());
    let mut offsets = offsets.iter();
    for topic in topics {
        out.put(topic[0].topic);
        out.compact_len(topic.len());
        for batch in topic {
            out.put(batch.partition.to_be_bytes());
            out.put(0_i16.to_be_bytes());
            out.put(offsets.next().copied().unwrap_or(-1).to_be_bytes());
            // Appended at no time of the log's own; its first offset is 0; no record is at fault.
            out.put((-1_i64).to_be_bytes());
            out.put(0_i64.to_be_bytes());
            out.compact_len(0);
            out.null();
            out.tags();
        }
        out.tags();
    }
    out.throttle();
    out.tags();
    out.end()
}

const NODE: i32 = 1;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("a request ends before byte {}", self.at + len))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were taken"))
    }

    fn i16(&mut self) -> Result<i16, String> {
        self.array().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32, String> {
        self.array().map(i32::from_be_bytes)
    }

    fn varint(&mut self) -> Result<usize, String> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number of more than five bytes".to_owned())
    }

    /// What is null has none.
    fn compact_len(&mut self) -> Result<usize, String> {
        Ok(self.varint()?.saturating_sub(1))
    }

    fn tags(&mut self) -> Result<(), String> {
        for _ in 0..self.varint()? {
            self.varint()?;
            let len = self.varint()?;
            self.take(len)?;
        }
        Ok(())
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(Correlation(correlation): Correlation, flexible: bool) -> Self {
        let mut out = Self(vec![0; 4]);
        out.put(correlation.to_be_bytes());
        if flexible {
            out.tags();
        }
        out
    }

    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.0.extend(bytes);
    }

    fn compact_len(&mut self, len: usize) {
        let mut rest = len + 1;
        while rest >= 0x80 {
            self.0.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.0.push(rest as u8);
    }

    fn text(&mut self, text: &str) {
        self.compact_len(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn null(&mut self) {
        self.0.push(0);
    }

    fn tags(&mut self) {
        self.0.push(0);
    }

    /// None: nobody is asked to go slower.
    fn throttle(&mut self) {
        self.put(0_i32.to_be_bytes());
    }

    fn end(mut self) -> Vec<u8> {
        let len = (self.0.len() - 4) as u32;
        self.0[..4].copy_from_slice(&len.to_be_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As docs/how-it-works.md draws a Produce request, with a batch of three bytes.
    fn produce() -> Vec<u8> {
        let head: &[&[u8]] = &[
            &[0, 0, 0, 13, 0, 0, 0, 9, 0, 1, b'o', 0],
            &[0, 255, 255, 0, 0, 0, 1, 2],
            &[7; 16],
            &[3, 0, 0, 0, 4, 4, 1, 2, 3, 0, 0, 0, 0, 5, 1, 0, 0, 0],
        ];
        head.concat()
    }

    #[test]
    fn a_produce_request_is_taken_apart() {
        let request = produce();
        let (correlation, read) = read(&request).unwrap();
        let Request::Produce(batches) = read else { panic!("{read:?}") };
        assert_eq!(correlation, Correlation(9));
        assert_eq!((batches[0].partition, batches[1].partition), (4, 5));
        assert_eq!(request[batches[0].range.clone()], [1, 2, 3]);
        assert!(batches[1].range.is_empty());
        let answer = produced(correlation, &batches, &[10, 20]);
        assert_eq!(answer.len() - 4, u32::from_be_bytes(answer[..4].try_into().unwrap()) as usize);
        assert_eq!(answer[4..8], [0, 0, 0, 9]);
    }

    #[test]
    fn what_is_cut_off_or_not_offered_is_no_request() {
        let request = produce();
        for end in 0..request.len() {
            assert!(read(&request[..end]).is_err(), "{end}");
        }
        let mut older = request.clone();
        older[3] = 7;
        assert!(read(&older).unwrap_err().contains("version 7"));
        let mut careless = request;
        careless[13..15].copy_from_slice(&[0, 1]);
        assert!(read(&careless).unwrap_err().contains("acks=1"));
    }

    #[test]
    fn the_head_of_a_batch_says_what_must_come_next() {
        let mut batch = vec![0; 61];
        batch[43..51].copy_from_slice(&4000_i64.to_be_bytes());
        batch[53..57].copy_from_slice(&(i32::MAX - 1).to_be_bytes());
        batch[57..61].copy_from_slice(&3_i32.to_be_bytes());
        let head = BatchHead::read(&batch).unwrap();
        assert_eq!((head.producer_id, head.epoch, head.records), (4000, 0, 3));
        assert_eq!(head.next_sequence(), 1);
        assert_eq!(BatchHead::read(&batch[..60]), None);
    }

    #[test]
    fn topics_have_ids_of_their_own() {
        assert_ne!(topic_id("bench.order0"), topic_id("bench.order1"));
        assert_eq!(topic_id("a"), topic_id("a"));
    }
}
