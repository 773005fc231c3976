//! The model of what a partition does with producers' sequences, which other tests stand on, beside a
//! real broker.

#[path = "../model/mod.rs"]
mod model;

use factlib::kafka::{Config, Kafka as Driver};
use factlib::relay::batch::{OpenBatch, Record};
use factlib::relay::compression::Compression;
use factlib::relay::error_code::name;
use factlib::relay::kafka::{Answer, PartitionBatch, ProducerId, Request};
use factlib::relay::position::{Position, Unit};
use factlib::relay::route::Headers;
use factlib_protocol::Lsn;
use model::{Dice, Fate, Producers};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::kafka::Kafka;
use tokio::sync::mpsc;

const TOPIC: &str = "model.sequences";

fn batch(producer: ProducerId, base_sequence: i32, count: i32) -> PartitionBatch {
    let position = Position { timeline: 1, unit: Unit::transaction(Lsn(1)), index: 0 };
    let mut open = OpenBatch::new(position, Compression::None);
    for _ in 0..count {
        let headers = Headers::default();
        open.push(&Record {
            timestamp_ms: 0,
            key: Some(b"k"),
            value: Some(b"v"),
            headers: &headers,
        });
    }
    let mut batch = open.seal();
    batch.set_stamp(producer, base_sequence);
    let topic = Arc::from(TOPIC);
    PartitionBatch { topic, topic_id: None, partition: 0, base_sequence, batch: batch.encoded() }
}

#[tokio::test]
async fn a_real_broker_answers_what_the_model_says() {
    let kafka = tokio::task::spawn_blocking(|| {
        let kafka = Kafka::shared();
        // Records are of 1970.
        kafka.create_topic(TOPIC, 1, &[("retention.ms", "-1")]);
        kafka
    });
    let kafka = kafka.await.unwrap();
    let (answers, mut inbox) = mpsc::unbounded_channel();
    let brokers = kafka.bootstrap().split(',').map(str::to_owned).collect();
    let driver = Driver::new(Config::new(brokers), answers);
    driver.lease_until(Instant::now() + Duration::from_secs(3600));
    driver.send(Request::Metadata { topics: vec![Arc::from(TOPIC)] });
    let Some(Answer::Metadata(Ok(metadata))) = inbox.recv().await else { panic!("no metadata") };
    let broker = metadata.topics[0].partitions[0].leader.unwrap();
    let mut ids = Vec::new();
    while ids.len() < 3 {
        driver.send(Request::InitProducerId);
        match inbox.recv().await {
            Some(Answer::ProducerId(Ok(Ok(producer)))) => ids.push(producer.id),
            // The coordinator is loading.
            Some(Answer::ProducerId(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            other => panic!("{other:?}"),
        }
    }

    let mut dice = Dice(7);
    let mut model = Producers::default();
    let mut counts = HashMap::<_, usize>::new();
    // Epoch and next sequence of each producer, as it would count by itself.
    let mut ours = vec![(0_i16, 0_i32); ids.len()];
    let mut sent: Vec<(ProducerId, i32, i32)> = Vec::new();
    for _ in 0..600 {
        let at = dice.below(ids.len());
        let (epoch, next) = ours[at];
        let count = 1 + i32::try_from(dice.below(3)).unwrap();
        let again = !sent.is_empty() && dice.percent(30);
        let (producer, base, count) = match dice.below(10) {
            // What was sent before, by whomever.
            _ if again => sent[sent.len() - 1 - dice.below(sent.len().min(12))],
            // Behind a gap, or before what is there.
            3 => (ProducerId { id: ids[at], epoch }, next + 1, count),
            4 => (ProducerId { id: ids[at], epoch }, (next - 1).max(0), count),
            // Another epoch, that begins where it should, or not.
            5 => (ProducerId { id: ids[at], epoch: epoch + 1 }, 0, count),
            6 => (ProducerId { id: ids[at], epoch: epoch + 1 }, 1, count),
            7 if epoch > 0 => (ProducerId { id: ids[at], epoch: epoch - 1 }, next, count),
            _ => (ProducerId { id: ids[at], epoch }, next, count),
        };
        let fate = model.arrive(producer.id, producer.epoch, base, count);
        let batches = vec![batch(producer, base, count)];
        driver.send(Request::Produce { broker, transaction: None, batches });
        let Some(Answer::Produced { partitions, .. }) = inbox.recv().await else {
            panic!("no answer")
        };
        let error = partitions[0].error;
        let expected = match fate {
            Fate::Appended | Fate::Repeated => 0,
            Fate::Refused(error) => error,
        };
        assert_eq!(name(error), name(expected), "{producer:?} {base} {count}: {fate:?}");
        *counts.entry(fate).or_default() += 1;
        sent.push((producer, base, count));
        if fate == Fate::Appended {
            let at = ids.iter().position(|id| *id == producer.id).unwrap();
            ours[at] = (producer.epoch, base + count);
        }
    }
    let fates = [Fate::Appended, Fate::Repeated, Fate::Refused(45), Fate::Refused(47)];
    assert!(fates.iter().all(|fate| counts.get(fate).is_some_and(|n| *n > 20)), "{counts:?}");
}
