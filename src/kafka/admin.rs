//! What a tool for operators asks of a cluster: what there is, how it is set, what we may do, and how a transactional id
//! stands. It changes nothing, but that it creates a topic where it is told to.

use super::configs::{DescribeConfigsRequest, TopicConfigs};
use super::consumer::Consumer;
use super::describe_transactions::{DescribeTransactionsRequest, TransactionDescription};
use super::dial::{Stream, WANTS_SASL, dial};
use super::group::{FindCoordinatorRequest, OffsetFetchRequest};
use super::message::CreateTopicsRequest;
use super::metadata::{ClusterDescription, MetadataRequest};
use super::transaction::POSITION_PARTITION;
use super::{Address, Config, Isolation};
use crate::relay::error_code::{
    COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR,
};
use crate::relay::kafka::{
    Coordinated, CoordinatorOf, CreateRefusal, NewTopic, PositionPlace, StoredPosition, Unanswered,
};
use rskafka::messenger::{Messenger, RequestError};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// So many topics are asked for at once: a response then stays within some hundred kilobytes.
const TOPICS_ASKED: usize = 100;

/// A coordinator that is asked for first has to be made, and one that has moved to be found.
const COORDINATOR_BUSY: [i16; 3] =
    [COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR];
const COORDINATOR_ATTEMPTS: u32 = 40;
const COORDINATOR_PAUSE: Duration = Duration::from_millis(100);

/// Asks the first of the bootstrap brokers that answers.
#[derive(Debug)]
pub struct Admin {
    config: Config,
    /// For its connections.
    consumer: Consumer,
    /// A broker has answered.
    reached: bool,
}

impl Admin {
    /// One that has contacted nobody yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        // Which reads nothing.
        let consumer = Consumer::new(config.clone(), Isolation::Uncommitted);
        Self { consumer, config, reached: false }
    }

    /// Brokers and these topics, or all topics that we may describe.
    ///
    /// # Errors
    ///
    /// [`Unanswered`] if no broker answers: why, of each.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as everything here: dropping the future closes the connection at most.
    pub async fn describe(
        &mut self,
        topics: Option<&[Arc<str>]>,
    ) -> Result<ClusterDescription, Unanswered> {
        let request = || MetadataRequest::describe(topics.map(<[_]>::to_vec));
        let response = self.ask(async |m| m.request(request()).await).await?;
        response.describe().map_err(|what| Unanswered(format!("the cluster {what}")))
    }

    /// How these topics are set: of the configurations of these names those that the broker knows.
    ///
    /// # Errors
    ///
    /// [`Unanswered`] if no broker answers.
    pub async fn configs(
        &mut self,
        topics: &[Arc<str>],
        names: &'static [&'static str],
    ) -> Result<Vec<TopicConfigs>, Unanswered> {
        let mut found = Vec::with_capacity(topics.len());
        for topics in topics.chunks(TOPICS_ASKED) {
            let request = || DescribeConfigsRequest { topics: topics.to_vec(), names };
            found.extend(self.ask(async |m| m.request(request()).await).await?.0);
        }
        Ok(found)
    }

    /// Whether a topic could be created like this, without doing it.
    ///
    /// # Errors
    ///
    /// [`Unanswered`] if no broker answers.
    pub async fn could_create(
        &mut self,
        topic: &Arc<str>,
        new: &NewTopic,
    ) -> Result<Result<(), CreateRefusal>, Unanswered> {
        self.ask_to_create(topic, new, true).await
    }

    /// Creates a topic.
    ///
    /// # Errors
    ///
    /// [`Unanswered`] if no broker answers. It may be created all the same.
    pub async fn create(
        &mut self,
        topic: &Arc<str>,
        new: &NewTopic,
    ) -> Result<Result<(), CreateRefusal>, Unanswered> {
        self.ask_to_create(topic, new, false).await
    }

    async fn ask_to_create(
        &mut self,
        topic: &Arc<str>,
        new: &NewTopic,
        validate_only: bool,
    ) -> Result<Result<(), CreateRefusal>, Unanswered> {
        let topics = Arc::new(vec![(Arc::clone(topic), new.clone())]);
        let timeout = self.config.ack_timeout;
        let request = || {
            let topics = Arc::clone(&topics);
            CreateTopicsRequest { topics, timeout, validate_only }
        };
        let response = self.ask(async |m| m.request(request()).await).await?;
        let answers = response.answers(&topics);
        let mut answers = answers.map_err(|what| Unanswered(format!("the cluster {what}")))?;
        answers.pop().ok_or_else(|| Unanswered("the cluster says nothing of it".to_owned()))
    }

    /// What the coordinator says of a transactional id; or Kafka's error code.
    ///
    /// # Errors
    ///
    /// [`Unanswered`] if no broker, or not the one that is the coordinator, answers.
    pub async fn transaction(&mut self, id: &Arc<str>) -> Coordinated<TransactionDescription> {
        let request = || DescribeTransactionsRequest { id: Arc::clone(id) };
        let of = CoordinatorOf::Transactions;
        self.coordinated(of, id, async |m| Ok(m.request(request()).await?.0)).await
    }

    /// The position that a group keeps, if it does; or Kafka's error code. What a transaction has in hand is not
    /// answered with what was before it, but refused (UNSTABLE_OFFSET_COMMIT), if `is_stable` is asked for.
    ///
    /// # Errors
    ///
    /// As [`Admin::transaction`].
    pub async fn position(
        &mut self,
        place: &PositionPlace,
        is_stable: bool,
    ) -> Coordinated<Option<StoredPosition>> {
        let request = || OffsetFetchRequest {
            group: Arc::clone(&place.group),
            topic: Arc::clone(&place.topic),
            partitions: vec![POSITION_PARTITION],
            require_stable: is_stable,
        };
        let of = CoordinatorOf::Group;
        let kept = self.coordinated(of, &place.group, async |m| Ok(m.request(request()).await?.0));
        Ok(kept.await?.map(|kept| {
            let kept = kept.into_iter().next();
            kept.map(|kept| StoredPosition { offset: kept.offset, metadata: kept.metadata })
        }))
    }

    /// Asks the coordinator of this, until it is one.
    async fn coordinated<T>(
        &mut self,
        of: CoordinatorOf,
        key: &Arc<str>,
        mut question: impl AsyncFnMut(&Messenger<Stream>) -> Result<Result<T, i16>, RequestError>,
    ) -> Coordinated<T> {
        let mut attempts = 0;
        loop {
            let find = || FindCoordinatorRequest { of, key: Arc::clone(key) };
            let found = self.ask(async |m| m.request(find()).await).await?;
            let answer = match found.0 {
                Ok((_, address)) => self.consumer.ask(&address, &mut question).await?,
                Err(code) => Err(code),
            };
            attempts += 1;
            match answer {
                Err(code)
                    if COORDINATOR_BUSY.contains(&code) && attempts < COORDINATOR_ATTEMPTS =>
                {
                    sleep(COORDINATOR_PAUSE).await;
                }
                answer => return Ok(answer),
            }
        }
    }

    /// Connects and logs in at this address, and closes the connection again.
    ///
    /// # Errors
    ///
    /// [`Unanswered`] if that does not work.
    pub async fn reach(&self, address: &Address) -> Result<(), Unanswered> {
        let limit = Instant::now() + self.config.connect_timeout;
        dial(address, &self.config, limit).await.map(|connection| connection.cut())
    }

    /// Asks one bootstrap broker after the other.
    async fn ask<T>(
        &mut self,
        mut question: impl AsyncFnMut(&Messenger<Stream>) -> Result<T, RequestError>,
    ) -> Result<T, Unanswered> {
        let mut causes = Vec::new();
        for bootstrap in self.config.bootstrap.clone() {
            let address: Address = match bootstrap.parse() {
                Ok(address) => address,
                Err(error) => {
                    causes.push(error.to_string());
                    continue;
                }
            };
            let mut asked = false;
            let answer = self.consumer.ask(&address, async |m| {
                asked = true;
                question(m).await
            });
            match answer.await {
                Ok(answer) => {
                    self.reached = true;
                    return Ok(answer);
                }
                Err(Unanswered(mut cause)) => {
                    if asked && !self.reached && self.config.sasl.is_none() {
                        cause.push_str(WANTS_SASL);
                    }
                    causes.push(cause);
                }
            }
        }
        Err(Unanswered(match causes.as_slice() {
            [] => "no bootstrap address".to_owned(),
            causes => causes.join("; "),
        }))
    }
}
