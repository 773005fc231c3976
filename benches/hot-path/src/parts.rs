//! The parts of the way, each alone, and the whole.

use crate::engine::Engine;
use crate::stream::{PREFIX, Shape, Walsender, envelope};
use bytes::BytesMut;
use factlib::relay::batch::{OpenBatch, Record};
use factlib::relay::compression::Compression;
use factlib::relay::fact::Fact;
use factlib::relay::kafka::ProducerId;
use factlib::relay::ledger::Ledger;
use factlib::relay::position::{Position, Unit};
use factlib::relay::route::{Headers, Source, partition};
use factlib_protocol::pgoutput::{Decoder, Message};
use factlib_protocol::{Frame, Lsn, backend, replication};
use std::hint::black_box;

/// Facts of one run: enough that what a batch costs is spread over many.
const FACTS: usize = 20_000;

/// Bytes of payload.
const PAYLOAD: usize = 256;

/// Records of one batch, about as many as a full one has.
const BATCH: usize = 800;

const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;

/// One part, ready to run.
pub struct Part {
    /// What it is called.
    pub name: &'static str,
    /// Facts of a run.
    pub facts: usize,
    /// Bytes of a run, as they come from PostgreSQL.
    pub bytes: usize,
    /// Makes what the next run reads, where that is another thing each time: the log goes on.
    input: Box<dyn FnMut() -> BytesMut>,
    run: Box<dyn FnMut(&[u8])>,
}

impl Part {
    fn new(name: &'static str, bytes: usize, mut run: impl FnMut() + 'static) -> Self {
        let run = Box::new(move |_: &[u8]| run());
        Self { name, facts: FACTS, bytes, input: Box::new(BytesMut::new), run }
    }

    /// What the next run reads; not the relay's work, so it is not measured.
    pub fn input(&mut self) -> BytesMut {
        (self.input)()
    }

    /// Runs it once. By this name callgrind finds what to count.
    #[inline(never)]
    pub fn measured(&mut self, input: &[u8]) {
        (self.run)(input);
    }
}

/// A name, and how the part is made ready.
type Make = (&'static str, fn(&'static str) -> Part);

/// All parts, in the order of the way.
pub const PARTS: [Make; 13] = [
    ("frame", frame),
    ("replication_header", replication_header),
    ("pgoutput", pgoutput),
    ("envelope", fact),
    ("headers", headers),
    ("murmur2", murmur2),
    ("record", record),
    ("seal_and_stamp", seal_and_stamp),
    ("ledger", ledger),
    ("engine_100_per_transaction", |name| engine(name, WHOLE, Compression::None)),
    ("engine_1_per_transaction", |name| {
        engine(name, Shape { per_transaction: 1, ..WHOLE }, Compression::None)
    }),
    ("engine_99_percent_foreign", |name| {
        engine(name, Shape { foreign_percent: 99, ..WHOLE }, Compression::None)
    }),
    ("engine_lz4", |name| engine(name, WHOLE, Compression::Lz4)),
];

const WHOLE: Shape =
    Shape { facts: FACTS, per_transaction: 100, payload: PAYLOAD, foreign_percent: 0 };

/// The part of this name, ready to run.
pub fn part(name: &str) -> Option<Part> {
    PARTS.iter().find(|(known, _)| *known == name).map(|(name, make)| make(name))
}

/// Over the bytes of a stream, frame by frame.
fn over_frames(name: &'static str, mut each: impl FnMut(Frame<'_>) + 'static) -> Part {
    let stream = Walsender::default().stream(WHOLE);
    let bytes = stream.len();
    let run = move || {
        let mut rest: &[u8] = &stream;
        while let Ok(Some(frame)) = Frame::decode(rest, FRAME_BYTES_MAX) {
            rest = &rest[frame.encoded_len()..];
            each(frame);
        }
        assert!(rest.is_empty());
    };
    Part::new(name, bytes, run)
}

fn frame(name: &'static str) -> Part {
    over_frames(name, |frame| {
        black_box(frame.body.len());
    })
}

fn replication_header(name: &'static str) -> Part {
    over_frames(name, |frame| {
        let Ok(backend::Message::CopyData(body)) = backend::Message::decode(frame) else {
            panic!("no CopyData");
        };
        black_box(replication::Message::decode(body).expect("XLogData"));
    })
}

fn pgoutput(name: &'static str) -> Part {
    let mut decoder = Decoder::default();
    over_frames(name, move |frame| {
        // Behind the header of XLogData.
        let message = decoder.decode(&frame.body[25..]).expect("pgoutput");
        if let Message::Message(message) = message {
            black_box(message.content.len());
        }
    })
}

fn contents() -> Vec<Vec<u8>> {
    (0..FACTS).map(|number| envelope(number, PAYLOAD)).collect()
}

fn over_contents(name: &'static str, mut each: impl FnMut(usize, &[u8]) + 'static) -> Part {
    let contents = contents();
    let bytes = contents.iter().map(Vec::len).sum();
    let run =
        move || contents.iter().enumerate().for_each(|(number, content)| each(number, content));
    Part::new(name, bytes, run)
}

fn fact(name: &'static str) -> Part {
    over_contents(name, |_, content| {
        black_box(Fact::decode(content).expect("an envelope").payload.bytes());
    })
}

fn position(number: usize) -> Position {
    let unit = Unit::transaction(Lsn(0x0100_0000 + number as u64));
    Position { timeline: 1, unit, index: 3 }
}

fn headers(name: &'static str) -> Part {
    let source = Source::new(7_300_000_000_000_000_000, 16384);
    let mut headers = Headers::default();
    let content = envelope(7, PAYLOAD);
    over_contents(name, move |number, _| {
        let fact = Fact::decode(&content).expect("an envelope");
        let position = position(number);
        headers.fill(&fact, &source, &position, position.unit.lsn, false);
        black_box(headers.encoded());
    })
}

fn murmur2(name: &'static str) -> Part {
    over_contents(name, |_, content| {
        // As long as a UUID, which is what most keys are.
        black_box(partition(black_box(&content[2..38]), 12));
    })
}

/// Headers as a fact has them.
fn filled() -> Headers {
    let mut headers = Headers::default();
    let content = envelope(7, PAYLOAD);
    let fact = Fact::decode(&content).expect("an envelope");
    let source = Source::new(7_300_000_000_000_000_000, 16384);
    let position = position(7);
    headers.fill(&fact, &source, &position, position.unit.lsn, false);
    headers
}

fn full_batch(contents: &[Vec<u8>], headers: &Headers) -> OpenBatch {
    let mut batch = OpenBatch::with_capacity(position(0), Compression::None, BATCH * 512);
    for content in contents {
        let key = Some(content.get(..8).unwrap_or_default());
        batch.push(&Record { timestamp_ms: 1_700_000_000_000, key, value: Some(content), headers });
    }
    batch
}

fn record(name: &'static str) -> Part {
    let (contents, headers) = (contents(), filled());
    let bytes = contents.iter().map(Vec::len).sum();
    let run = move || {
        for contents in contents.chunks(BATCH) {
            black_box(full_batch(contents, &headers).encoded_len());
        }
    };
    Part::new(name, bytes, run)
}

fn seal_and_stamp(name: &'static str) -> Part {
    let (contents, headers) = (contents(), filled());
    let bytes = contents.iter().map(Vec::len).sum();
    // Stamped again and again, which is what a repetition after an epoch bump does, too.
    let mut batches: Vec<_> =
        contents.chunks(BATCH).map(|contents| full_batch(contents, &headers).seal()).collect();
    let mut sequence = 0;
    let run = move || {
        for batch in &mut batches {
            batch.set_stamp(ProducerId { id: 4000, epoch: 0 }, sequence);
            sequence += batch.records();
            black_box(batch.stamp());
        }
    };
    Part::new(name, bytes, run)
}

/// As the engine uses it: a transaction of a hundred facts, a batch of eight transactions, ten of them unsettled.
fn ledger(name: &'static str) -> Part {
    let mut ledger = Ledger::default();
    let mut lsn = 0x0100_0000;
    let run = move || {
        let mut open = std::collections::VecDeque::new();
        for transaction in 0..FACTS / 100 {
            lsn += 1000;
            let unit = Unit::transaction(Lsn(lsn));
            ledger.begin(unit);
            if transaction % 8 == 0 {
                open.push_back(ledger.batch_opened(unit));
            }
            (0..100).for_each(|_| ledger.enqueued(black_box(480)));
            ledger.end(unit, Lsn(lsn + 48));
            if open.len() > 10 {
                open.pop_front().into_iter().for_each(|place| ledger.batch_settled(place));
            }
            black_box(ledger.flush());
        }
        open.into_iter().for_each(|place| ledger.batch_settled(place));
        ledger.told();
    };
    Part::new(name, 0, run)
}

/// Bytes in, Produce requests out, and their acknowledgements in.
fn engine(name: &'static str, shape: Shape, compression: Compression) -> Part {
    let mut walsender = Walsender::default();
    let mut engine = Engine::streaming(PREFIX, compression);
    // Topics are known, buffers have their size.
    let first = walsender.stream(shape);
    engine.feed(&first);
    let input = Box::new(move || walsender.stream(shape));
    let run = Box::new(move |stream: &[u8]| engine.feed(stream));
    Part { name, facts: shape.facts, bytes: first.len(), input, run }
}
