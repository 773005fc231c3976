//! Topics, read back from the first record of some moment to what is there now.

use super::dial::{Connection, describe, dial};
use super::fetch::{FetchRequest, Isolation, ListOffsetsRequest, Partition};
use super::fetched::{Found, committed_records};
use super::group::{Committed, FindCoordinatorRequest, OffsetCommitRequest, OffsetFetchRequest};
use super::metadata::MetadataRequest;
use super::{Address, Config};
use crate::relay::error_code::name;
use crate::relay::kafka::{BrokerId, CoordinatorOf, Unanswered};
use rskafka::messenger::Messenger;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How many bytes of a partition are asked for at once.
const FETCH_BYTES: i32 = 4 * 1024 * 1024;

/// A broker that has nothing to hand out answers after this long: what is asked for is there.
const FETCH_WAIT: Duration = Duration::from_millis(500);

/// So often something is tried before its error is final: a broker may be restarting, or a leader moving.
const ATTEMPTS: u32 = 10;

/// A broker asks for no longer pause in earnest (`quota.window.size.seconds` times `quota.window.num`).
const THROTTLE_MAX: Duration = Duration::from_secs(30);

/// How long between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// A coordinator that is asked for first has to be made: the topic of all groups is created then.
const COORDINATOR_ATTEMPTS: u32 = 40;

/// COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR.
const COORDINATOR_BUSY: [i16; 3] = [14, 15, 16];

/// Reads partitions, one after the other, in no consumer group: nobody else notices.
#[derive(Debug)]
pub struct Consumer {
    config: Config,
    isolation: Isolation,
    connections: HashMap<String, Connection>,
    leaders: HashMap<(Arc<str>, i32), Address>,
}

impl Consumer {
    /// One that has contacted nobody yet.
    #[must_use]
    pub fn new(config: Config, isolation: Isolation) -> Self {
        Self { config, isolation, connections: HashMap::new(), leaders: HashMap::new() }
    }

    /// The partitions of a topic, from 0 on; none if there is no such topic.
    ///
    /// # Errors
    ///
    /// [`Unanswered`] if no broker answers, or a partition has no leader, after several attempts.
    pub async fn partitions(&mut self, topic: &Arc<str>) -> Result<Vec<i32>, Unanswered> {
        let mut failure = Unanswered("no broker is known".to_owned());
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                sleep(PAUSE).await;
            }
            match self.look(topic).await {
                Ok(partitions) => return Ok(partitions),
                Err(cause) => failure = cause,
            }
        }
        Err(failure)
    }

    async fn look(&mut self, topic: &Arc<str>) -> Result<Vec<i32>, Unanswered> {
        let mut failure = Unanswered("no broker is known".to_owned());
        for bootstrap in self.config.bootstrap.clone() {
            let address: Address = match bootstrap.parse() {
                Ok(address) => address,
                Err(error) => {
                    failure = Unanswered(format!("{error}"));
                    continue;
                }
            };
            let request = MetadataRequest::of(vec![Arc::clone(topic)]);
            let metadata = match self.ask(&address, async |m| m.request(request).await).await {
                Ok(response) => response
                    .answer(std::slice::from_ref(topic))
                    .map_err(|what| Unanswered(format!("{address}: {what}")))?,
                Err(cause) => {
                    failure = cause;
                    continue;
                }
            };
            let brokers: HashMap<BrokerId, Address> = metadata
                .brokers
                .into_iter()
                .map(|broker| (broker.id, Address { host: broker.host, port: broker.port }))
                .collect();
            let Some(found) = metadata.topics.into_iter().next() else { return Ok(Vec::new()) };
            match found.error {
                0 => {}
                3 => return Ok(Vec::new()),
                error => return Err(Unanswered(format!("topic {topic}: {}", name(error)))),
            }
            let mut partitions = Vec::new();
            for partition in found.partitions {
                let leader = partition.leader.and_then(|leader| brokers.get(&leader));
                let leader = leader.ok_or_else(|| {
                    Unanswered(format!(
                        "partition {} of topic {topic} has no leader",
                        partition.index
                    ))
                })?;
                self.leaders.insert((Arc::clone(topic), partition.index), leader.clone());
                partitions.push(partition.index);
            }
            partitions.sort_unstable();
            return Ok(partitions);
        }
        Err(failure)
    }

    /// The offset behind the last record of a partition that is there for us: of committed ones, behind the last before
    /// the first transaction that is open.
    ///
    /// # Errors
    ///
    /// As [`Consumer::read_between`].
    pub async fn end(&mut self, topic: &Arc<str>, partition: i32) -> Result<i64, Unanswered> {
        self.offset(topic, partition, ListOffsetsRequest::LATEST).await
    }

    /// The offset behind the last record of a partition, also where that is in a transaction that is open.
    ///
    /// # Errors
    ///
    /// As [`Consumer::read_between`].
    pub async fn written(&mut self, topic: &Arc<str>, partition: i32) -> Result<i64, Unanswered> {
        let latest = ListOffsetsRequest::LATEST;
        self.offset_as(Isolation::Uncommitted, topic, partition, latest).await
    }

    /// The offsets of a partition from the first record that is not older than `from_ms` (milliseconds since 1970)
    /// to the end.
    ///
    /// # Errors
    ///
    /// As [`Consumer::read_between`].
    pub async fn offsets_from(
        &mut self,
        topic: &Arc<str>,
        partition: i32,
        from_ms: i64,
    ) -> Result<Range<i64>, Unanswered> {
        let end = self.end(topic, partition).await?;
        let first = self.offset(topic, partition, from_ms).await?;
        Ok(first.min(end)..end)
    }

    /// Calls `each` with every record from one offset to before another, both of which were there.
    ///
    /// # Errors
    ///
    /// [`Unanswered`] if the leader cannot be reached, refuses, or says nonsense, after several attempts.
    pub async fn read_between(
        &mut self,
        topic: &Arc<str>,
        partition: i32,
        first: i64,
        end: i64,
        mut each: impl FnMut(Found<'_>),
    ) -> Result<(), Unanswered> {
        let mut next = first;
        while next < end {
            next = self.read_some(topic, partition, next..end, &mut each).await?;
        }
        Ok(())
    }

    /// The offsets of a partition: the first that is still there, and the end.
    ///
    /// # Errors
    ///
    /// As [`Consumer::read_between`].
    pub async fn offsets(
        &mut self,
        topic: &Arc<str>,
        partition: i32,
    ) -> Result<Range<i64>, Unanswered> {
        let first = self.offset(topic, partition, ListOffsetsRequest::EARLIEST).await?;
        let end = self.offset(topic, partition, ListOffsetsRequest::LATEST).await?;
        Ok(first..end)
    }

    /// Calls `each` with some of the records of a partition at `offsets`, the first ones, about 4 MiB; where to go
    /// on.
    ///
    /// # Errors
    ///
    /// As [`Consumer::read_between`].
    pub async fn read_some(
        &mut self,
        topic: &Arc<str>,
        partition: i32,
        offsets: Range<i64>,
        each: &mut impl FnMut(Found<'_>),
    ) -> Result<i64, Unanswered> {
        let Range { start: mut next, end } = offsets;
        for _ in 0..=ATTEMPTS {
            let fetched = self
                .attempt(topic, partition, async |consumer, leader| {
                    let request = FetchRequest {
                        topic: Arc::clone(topic),
                        partition,
                        offset: next,
                        bytes: FETCH_BYTES,
                        wait: FETCH_WAIT,
                        isolation: consumer.isolation,
                    };
                    consumer.ask(leader, async |m| m.request(request).await).await
                })
                .await?;
            let after = committed_records(&fetched.batches, fetched.aborted, |found| {
                // A batch is handed out whole, also if it begins earlier.
                if (next..end).contains(&found.offset) {
                    each(found);
                }
            });
            sleep(fetched.throttle.min(THROTTLE_MAX)).await;
            let at = || format!("partition {partition} of topic {topic}, offset {next}");
            let after = after.map_err(|what| Unanswered(format!("{}: {what}", at())))?;
            if let Some(after) = after.filter(|after| *after > next) {
                return Ok(after);
            }
            // What was there may have expired meanwhile.
            let first = self.offset(topic, partition, ListOffsetsRequest::EARLIEST).await?;
            next = next.max(first);
            if next >= end {
                return Ok(next);
            }
        }
        Err(Unanswered(format!(
            "partition {partition} of topic {topic}, offset {next}: nothing is handed out"
        )))
    }

    /// What `group` remembers of these partitions.
    ///
    /// # Errors
    ///
    /// [`Unanswered`] if its coordinator cannot be reached, or refuses, after several attempts.
    pub async fn committed(
        &mut self,
        group: &'static str,
        topic: &Arc<str>,
        partitions: &[i32],
    ) -> Result<Vec<Committed>, Unanswered> {
        self.coordinated(group, async |consumer, coordinator| {
            let request = OffsetFetchRequest {
                group: Arc::from(group),
                topic: Arc::clone(topic),
                partitions: partitions.to_vec(),
                require_stable: false,
            };
            let answer = consumer.ask(coordinator, async |m| m.request(request).await).await?;
            Ok(answer.0)
        })
        .await
    }

    /// Has `group`, which must have no members, remember this for ten years.
    ///
    /// # Errors
    ///
    /// As [`Consumer::committed`]. It may be remembered all the same.
    pub async fn commit(
        &mut self,
        group: &'static str,
        topic: &Arc<str>,
        committed: &Committed,
    ) -> Result<(), Unanswered> {
        self.coordinated(group, async |consumer, coordinator| {
            let (topic, committed) = (Arc::clone(topic), committed.clone());
            let request = OffsetCommitRequest { group, topic, committed };
            let answer = consumer.ask(coordinator, async |m| m.request(request).await).await?;
            Ok(match answer.0 {
                0 => Ok(()),
                code => Err(code),
            })
        })
        .await
    }

    /// Asks the coordinator of `group` until it answers.
    async fn coordinated<T>(
        &mut self,
        group: &'static str,
        mut what: impl AsyncFnMut(&mut Self, &Address) -> Result<Result<T, i16>, Unanswered>,
    ) -> Result<T, Unanswered> {
        let mut failure = Unanswered("no broker is known".to_owned());
        for attempt in 0..COORDINATOR_ATTEMPTS {
            if attempt > 0 {
                sleep(PAUSE).await;
            }
            let answer = match self.coordinator(group).await {
                Ok(Ok(coordinator)) => what(self, &coordinator).await,
                Ok(Err(code)) => Ok(Err(code)),
                Err(cause) => Err(cause),
            };
            let code = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(code)) => code,
                Err(cause) => {
                    failure = cause;
                    continue;
                }
            };
            failure = Unanswered(format!("group {group}: {}", name(code)));
            if !COORDINATOR_BUSY.contains(&code) {
                return Err(failure);
            }
        }
        Err(failure)
    }

    async fn coordinator(
        &mut self,
        group: &'static str,
    ) -> Result<Result<Address, i16>, Unanswered> {
        let mut failure = Unanswered("no broker is known".to_owned());
        for bootstrap in self.config.bootstrap.clone() {
            let asked = match bootstrap.parse::<Address>() {
                Ok(address) => {
                    let (of, key) = (CoordinatorOf::Group, Arc::from(group));
                    let request = FindCoordinatorRequest { of, key };
                    self.ask(&address, async |m| m.request(request).await).await
                }
                Err(error) => Err(Unanswered(error.to_string())),
            };
            match asked {
                Ok(answer) => return Ok(answer.0.map(|(_, address)| address)),
                Err(cause) => failure = cause,
            }
        }
        Err(failure)
    }

    /// The offset of the first record that is not older; the end, if there is none.
    async fn offset(
        &mut self,
        topic: &Arc<str>,
        partition: i32,
        timestamp_ms: i64,
    ) -> Result<i64, Unanswered> {
        self.offset_as(self.isolation, topic, partition, timestamp_ms).await
    }

    async fn offset_as(
        &mut self,
        isolation: Isolation,
        topic: &Arc<str>,
        partition: i32,
        timestamp_ms: i64,
    ) -> Result<i64, Unanswered> {
        let found = self
            .attempt(topic, partition, async |consumer, leader| {
                let topic = Arc::clone(topic);
                let request = ListOffsetsRequest { isolation, topic, partition, timestamp_ms };
                consumer.ask(leader, async |m| m.request(request).await).await
            })
            .await?;
        Ok(if found < 0 { i64::MAX } else { found })
    }

    /// Tries something at the leader until it works, a few times.
    async fn attempt<T>(
        &mut self,
        topic: &Arc<str>,
        partition: i32,
        mut what: impl AsyncFnMut(&mut Self, &Address) -> Result<Partition<T>, Unanswered>,
    ) -> Result<T, Unanswered> {
        let mut failure = Unanswered(String::new());
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                sleep(PAUSE).await;
                self.look(topic).await.unwrap_or_default();
            }
            let Some(leader) = self.leaders.get(&(Arc::clone(topic), partition)).cloned() else {
                failure = Unanswered(format!("partition {partition} of topic {topic} is gone"));
                continue;
            };
            failure = match what(self, &leader).await {
                Ok(Partition { error: 0, found }) => return Ok(found),
                Ok(Partition { error, .. }) => Unanswered(format!(
                    "{leader}: partition {partition} of topic {topic}: {}",
                    name(error)
                )),
                Err(cause) => cause,
            };
        }
        Err(failure)
    }

    /// Asks over the connection that there is, or a new one.
    pub(super) async fn ask<T>(
        &mut self,
        address: &Address,
        question: impl AsyncFnOnce(
            &Messenger<super::dial::Stream>,
        ) -> Result<T, rskafka::messenger::RequestError>,
    ) -> Result<T, Unanswered> {
        let key = address.to_string();
        let worn = |c: &Connection| c.renew_at.is_some_and(|at| at <= Instant::now());
        if self.connections.get(&key).is_some_and(worn) {
            self.connections.remove(&key);
        }
        if !self.connections.contains_key(&key) {
            let limit = Instant::now() + self.config.connect_timeout;
            let connection = dial(address, &self.config, limit).await?;
            self.connections.insert(key.clone(), connection);
        }
        let Some(connection) = self.connections.get(&key) else {
            return Err(Unanswered(format!("{address}: no connection")));
        };
        let limit = self.config.request_timeout;
        let answer = timeout(limit, question(&connection.messenger)).await;
        let cause = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => format!("{address}: {}", describe(&error)),
            Err(_) => format!("{address}: no answer within {} ms", limit.as_millis()),
        };
        if let Some(connection) = self.connections.remove(&key) {
            connection.cut();
        }
        Err(Unanswered(cause))
    }
}
