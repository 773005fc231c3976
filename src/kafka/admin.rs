//! What a tool for operators asks of a cluster: what there is, how it is set, and what we may do. It changes nothing, but
//! that it creates a topic where it is told to.

use super::configs::{DescribeConfigsRequest, TopicConfigs};
use super::consumer::Consumer;
use super::dial::{Stream, WANTS_SASL, dial};
use super::message::CreateTopicsRequest;
use super::metadata::{ClusterDescription, MetadataRequest};
use super::{Address, Config, Isolation};
use crate::relay::kafka::{CreateRefusal, NewTopic, Unanswered};
use rskafka::messenger::{Messenger, RequestError};
use std::sync::Arc;
use tokio::time::Instant;

/// So many topics are asked for at once: a response then stays within some hundred kilobytes.
const TOPICS_ASKED: usize = 100;

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
