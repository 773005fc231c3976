//! Reading back what a partition has.

use super::*;
use crate::relay::batch::{OpenBatch, Record};
use crate::relay::compression::Compression;
use crate::relay::error_code::{OFFSET_OUT_OF_RANGE, TOPIC_AUTHORIZATION_FAILED};
use crate::relay::kafka::Tail;
use crate::relay::position::{Position, Unit};
use crate::relay::route::{Headers, Source};
use factlib_protocol::Lsn;

/// Fact number n, of this system.
fn position(number: i64) -> Position {
    let lsn = Lsn(1000 + number.unsigned_abs());
    Position { timeline: 1, unit: Unit::transaction(lsn), index: 0 }
}

/// Facts, at the offsets from `base` on, that are numbered like their offsets.
fn batch(base: i64, facts: i64, system: u64, transactional: bool) -> Vec<u8> {
    let mut open = OpenBatch::new(position(base), Compression::None);
    for number in base..base + facts {
        let mut headers = Headers::default();
        headers.fill_unreadable(&Source::new(system, 5), &position(number), Lsn(1));
        open.push(&Record { timestamp_ms: 0, key: None, value: None, headers: &headers });
    }
    let mut batch = open.seal();
    batch.set_stamp(ProducerId { id: 1, epoch: 0 }, 0);
    let mut bytes = batch.encoded().to_vec();
    bytes[..8].copy_from_slice(&base.to_be_bytes());
    if transactional {
        bytes[22] |= 0x10;
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    }
    bytes
}

/// Topic, partition, offset.
fn wanted(incoming: &Incoming) -> (String, i32, i64) {
    let mut b = incoming.body.clone();
    assert_eq!((incoming.version, b.get_i32(), b.get_i32()), (4, -1, 100));
    assert_eq!((b.get_i32(), b.get_i32(), b.get_u8()), (1, 1024 * 1024, 0));
    assert_eq!(b.get_i32(), 1);
    let topic = string(&mut b);
    assert_eq!(b.get_i32(), 1);
    (topic, b.get_i32(), b.get_i64())
}

/// Fetch, version 4.
fn fetched(error: i16, batches: &[u8], throttle: i32) -> Reaction {
    let mut out = Vec::new();
    out.put_i32(throttle);
    out.put_i32(1);
    put_string(&mut out, "t");
    out.put_i32(1);
    out.put_i32(0);
    out.put_i16(error);
    out.put_i64(1000);
    out.put_i64(1000);
    out.put_i32(0);
    out.put_i32(i32::try_from(batches.len()).unwrap());
    out.put_slice(batches);
    Reaction::Answer(out)
}

/// ListOffsets, version 2.
fn offset(error: i16, offset: i64) -> Reaction {
    let mut out = Vec::new();
    out.put_i32(0);
    out.put_i32(1);
    put_string(&mut out, "t");
    out.put_i32(1);
    out.put_i32(0);
    out.put_i16(error);
    out.put_i64(-1);
    out.put_i64(offset);
    Reaction::Answer(out)
}

/// A broker that hands out what `at` gives for an offset, and whose log begins at 40.
async fn holding(at: impl Fn(i64) -> Reaction + Send + Sync + 'static) -> Broker {
    let port = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&port);
    let broker = Broker::start(move |i| match i.api {
        METADATA => metadata(i, &[(1, u16::try_from(own.load(Ordering::SeqCst)).unwrap())]),
        PRODUCE => stored(i),
        FETCH => at(wanted(i).2),
        LIST_OFFSETS => offset(0, 40),
        _ => Reaction::Answer(vec![]),
    })
    .await;
    port.store(usize::from(broker.port), Ordering::SeqCst);
    broker
}

impl Driver {
    fn ask_tail(&self, broker: BrokerId, from: i64, to: i64) {
        let (topic, source) = (Arc::from("t"), Arc::from("7/5"));
        self.kafka.send(Request::Tail { broker, topic, partition: 0, from, to, source });
    }

    async fn tail(&mut self, from: i64, to: i64) -> Result<Tail, String> {
        self.ask_tail(1, from, to);
        match self.next().await {
            Answer::Tail { topic, partition: 0, from: asked, answer } => {
                assert_eq!((&*topic, asked), ("t", from));
                answer.map_err(|Unanswered(cause)| cause)
            }
            other => panic!("{other:?}"),
        }
    }
}

fn positions(tail: &Tail) -> Vec<Position> {
    tail.records.iter().map(|record| record.position).collect()
}

#[tokio::test]
async fn what_lies_between_two_offsets_is_handed_over_and_no_more() {
    let broker = holding(|offset| match offset {
        // Batches are handed out whole, from the one with the offset on; the last is cut off.
        52 => fetched(0, &[batch(50, 4, 7, false), batch(54, 2, 8, false)].concat(), 0),
        56 => fetched(0, &[batch(56, 3, 7, true), batch(59, 5, 7, false)].concat(), 10),
        64 => fetched(0, &[&batch(64, 9, 7, false)[..], &batch(73, 9, 7, false)[..30]].concat(), 0),
        other => panic!("nobody needs {other}"),
    })
    .await;
    let mut driver = Driver::connected(&broker).await;
    let tail = driver.tail(52, 66).await.unwrap();
    // Those of a transaction may have been aborted.
    let expected: Vec<_> = [52, 53].into_iter().chain(59..66).map(position).collect();
    assert_eq!(positions(&tail), expected);
    assert_eq!((tail.first, tail.other.as_deref()), (52, Some("8/5")));
    let mut fingerprints: Vec<_> = tail.records.iter().map(|record| record.fingerprint).collect();
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), expected.len());
    driver.silent();
}

#[tokio::test]
async fn what_was_deleted_is_not_looked_for() {
    let broker = holding(|offset| match offset {
        10 | 20 => fetched(OFFSET_OUT_OF_RANGE, &[], 0),
        40 => fetched(0, &batch(40, 10, 7, false), 0),
        other => panic!("nobody needs {other}"),
    })
    .await;
    let mut driver = Driver::connected(&broker).await;
    let tail = driver.tail(10, 45).await.unwrap();
    assert_eq!((tail.first, positions(&tail)), (40, (40..45).map(position).collect()));
    let tail = driver.tail(20, 30).await.unwrap();
    assert_eq!((tail.first, tail.records.len()), (40, 0));
}

#[tokio::test]
async fn a_broker_that_refuses_or_says_nonsense_says_why_nothing_is_known() {
    let broker = holding(|offset| match offset {
        1 => fetched(TOPIC_AUTHORIZATION_FAILED, &[], 0),
        2 => fetched(0, &[], 0),
        3 => {
            let mut damaged = batch(3, 3, 7, false);
            *damaged.last_mut().unwrap() ^= 1;
            fetched(0, &damaged, 0)
        }
        // Behind the end, and not before the beginning.
        100 => fetched(OFFSET_OUT_OF_RANGE, &[], 0),
        4 => Reaction::Close,
        5 => fetched(0, &batch(5, 1, 7, false), 0),
        other => panic!("nobody needs {other}"),
    })
    .await;
    let mut driver = Driver::connected(&broker).await;
    for (from, expected) in [
        (1, "give this client the right to read"),
        (2, "nothing is handed out"),
        (3, "checksum"),
        (100, "OFFSET_OUT_OF_RANGE"),
        (4, "closed the connection"),
    ] {
        let cause = driver.tail(from, from + 2).await.unwrap_err();
        assert!(cause.contains(expected), "{from}: {cause}");
    }
    let tail = driver.tail(5, 6).await.unwrap();
    assert_eq!(positions(&tail), [position(5)], "and the next question is answered");
    driver.ask_tail(9, 5, 6);
    let Answer::Tail { answer: Err(Unanswered(cause)), .. } = driver.next().await else {
        panic!("broker 9 is not there")
    };
    assert!(cause.contains("broker 9"), "{cause}");
    driver.silent();
}

#[tokio::test]
async fn who_hands_out_nothing_in_time_holds_up_no_produce() {
    let broker = holding(|_| Reaction::Silence).await;
    let mut driver = Driver::connected_with(&broker, SHORT).await;
    driver.ask_tail(1, 5, 9);
    until(|| broker.seen(FETCH).len() == 1).await;
    driver.send(1, 0, b"a batch");
    assert_eq!(driver.produced().await[0].base_offset, 100, "it has a connection of its own");
    let Answer::Tail { answer: Err(Unanswered(cause)), .. } = driver.next().await else {
        panic!("it has no answer")
    };
    assert!(cause.contains("not read within 400 ms"), "{cause}");
}

#[tokio::test]
async fn the_connection_goes_when_nobody_asks_any_more() {
    let broker = holding(|offset| fetched(0, &batch(offset, 1, 7, false), 0)).await;
    let mut driver = Driver::connected(&broker).await;
    for offset in 50..53 {
        driver.tail(offset, offset + 1).await.unwrap();
    }
    assert_eq!(broker.connections.load(Ordering::SeqCst), 2, "the first was for metadata");
    broker.has_open(0).await;
    driver.tail(53, 54).await.unwrap();
    assert_eq!(broker.connections.load(Ordering::SeqCst), 3);
}
