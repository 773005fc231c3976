//! A plain producer: what an application would have that published by itself, without an outbox.

use crate::shape::{AGGREGATES, Shape};
use rskafka::chrono::Utc;
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, PartitionClient, UnknownTopicHandling};
use rskafka::record::Record;
use std::collections::BTreeMap;
use std::thread::{self, JoinHandle};
use std::time::Instant;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

/// A thread with a task for each partition, which sends what has gathered while it waited for the answer before.
#[derive(Debug)]
pub struct Producer {
    shape: Shape,
    queues: Vec<UnboundedSender<(usize, Record)>>,
    thread: JoinHandle<Vec<(usize, Instant)>>,
}

impl Producer {
    /// Once it is connected.
    pub fn start(bootstrap: &str, topic: &str, shape: Shape) -> Self {
        let (bootstrap, topic) = (vec![bootstrap.to_owned()], topic.to_owned());
        let (queues, receivers): (Vec<_>, Vec<_>) =
            (0..shape.partitions).map(|_| mpsc::unbounded_channel()).unzip();
        let (connected, ready) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let client = ClientBuilder::new(bootstrap).build().await.expect("a broker");
                let mut partitions = Vec::new();
                for (index, receiver) in receivers.into_iter().enumerate() {
                    let retry = UnknownTopicHandling::Retry;
                    let partition = client.partition_client(&topic, index as i32, retry).await;
                    partitions.push((partition.expect("the topic"), receiver));
                }
                connected.send(()).expect("the one who waits for this");
                let tasks: Vec<_> = partitions
                    .into_iter()
                    .map(|(partition, receiver)| tokio::spawn(produce(partition, receiver)))
                    .collect();
                let mut acknowledged = Vec::new();
                for task in tasks {
                    acknowledged.extend(task.await.expect("a producer's task"));
                }
                acknowledged
            })
        });
        ready.recv().expect("a producer");
        Self { shape, queues, thread }
    }

    pub fn send(&self, number: usize) {
        let queue = &self.queues[number % self.queues.len()];
        queue.send((number, self.record(number))).expect("a producer's task");
    }

    /// Like the relay's records, and as long.
    fn record(&self, number: usize) -> Record {
        let headers = [
            ("event_id", format!("00000000-0000-4000-8000-{number:012x}")),
            ("event_type", "order_created".to_owned()),
            ("factlib_position", format!("00000001.{number:016x}.1.00000000")),
            ("factlib_source", "7300000000000000000/bench".to_owned()),
            ("LSN", "0/1234567".to_owned()),
        ];
        let headers: BTreeMap<String, Vec<u8>> = headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into_bytes()))
            .collect();
        Record {
            key: Some((number % AGGREGATES).to_string().into_bytes()),
            value: Some(self.shape.envelope(number)),
            headers,
            timestamp: Utc::now(),
        }
    }

    /// When each fact was acknowledged.
    pub fn finish(self) -> Vec<Option<Instant>> {
        drop(self.queues);
        let mut times = vec![None; self.shape.facts];
        for (number, at) in self.thread.join().expect("the producer") {
            times[number] = Some(at);
        }
        times
    }
}

async fn produce(
    partition: PartitionClient,
    mut queue: UnboundedReceiver<(usize, Record)>,
) -> Vec<(usize, Instant)> {
    let mut acknowledged = Vec::new();
    let mut gathered = Vec::new();
    while queue.recv_many(&mut gathered, usize::MAX).await > 0 {
        let (numbers, records): (Vec<usize>, Vec<Record>) = gathered.drain(..).unzip();
        partition.produce(records, Compression::NoCompression).await.expect("an acknowledgement");
        let at = Instant::now();
        acknowledged.extend(numbers.into_iter().map(|number| (number, at)));
    }
    acknowledged
}
