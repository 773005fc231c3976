//! The Kafka driver: carries the engine's requests to brokers and their answers back.
//!
//! It decides nothing about delivery. What to send where, again, or instead is the engine's
//! business; here are sockets, time-outs and formats. [`Kafka::send`] takes a [`Request`], and an
//! [`Answer`] comes out of the channel for each, whatever happens.
//!
//! ```text
//!  send(Produce) ──▶ broker 1 ┐                     one task, one connection each,
//!  send(Produce) ──▶ broker 2 ├──▶ answers          requests pipelined in the order of `send`
//!  send(Metadata) ─▶ any      ┘    (bootstrap addresses have connections of their own, and so has
//!                                   what is read back)
//! ```
//!
//! Promises, each with a test:
//!
//! - The requests to one broker go out in the order of the calls. When its connection is lost, what
//!   waits behind is answered too (`sent: false`) instead of going out ahead of the repetitions.
//! - A Produce is answered [`Config::request_timeout`] after `send` at the latest, and none of its
//!   bytes leave later. The time covers queueing, connecting, writing and waiting.
//! - A Produce is not begun once the lease is over, and one that is half written then is not finished; nor is
//!   anything else of a transaction but its abort.
//! - `sent: false` means that no byte left this machine.
//! - A topic is created only by [`Request::CreateTopics`], never by asking for metadata.

mod admin;
mod configs;
mod consumer;
mod describe_transactions;
mod dial;
mod fail_point;
mod fetch;
mod fetched;
mod group;
mod lease;
mod link;
mod message;
mod metadata;
mod peer;
mod primitive;
mod produce;
mod sasl;
mod tail;
#[cfg(test)]
mod tests;
mod tls;
mod transaction;

pub use admin::Admin;
pub use configs::TopicConfigs;
pub use consumer::Consumer;
pub use describe_transactions::TransactionDescription;
pub use fetch::Isolation;
pub use fetched::{Found, records};
pub use group::Committed;
pub use metadata::{ClusterDescription, Operations, TopicDescription};
pub use sasl::{Mechanism, Sasl};
pub use tail::add as add_to_tail;
pub use tls::{Tls, TlsFiles, TlsFilesError};

pub use dial::{Address, InvalidAddress};
pub(crate) use fail_point::FailPoint;

use crate::relay::kafka::{
    Answer, BrokerId, CoordinatorOf, Metadata, PartitionBatch, Request, Unanswered,
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use lease::Lease;
use peer::{Ask, Job, Peer};
use produce::ProduceRequest;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use transaction::{
    AddOffsetsRequest, AddPartitionsRequest, Commit, End, InitTransactionsRequest, Question,
};

/// A question that any broker can answer goes to one more of them whenever this long has passed
/// without an answer: a broker that swallows packets must not cost a whole time-out.
const ASK_ANOTHER_AFTER: Duration = Duration::from_secs(1);

/// How many of the known brokers are asked before the bootstrap addresses are. In a cluster of a
/// hundred that has moved away, trying each first would take minutes.
const KNOWN_BROKERS_ASKED: usize = 3;

/// Far above any sensible setting, and far below where adding it to the time overflows.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What the driver needs to know.
///
/// Start from [`Config::new`]; more fields will come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Where the cluster is found, as `host:port`; see [`Address`].
    pub bootstrap: Vec<String>,
    /// What brokers call us in their logs, metrics and quotas.
    pub client_id: String,
    /// A request that has no answer after this long gets none, and its connection is given up.
    pub request_timeout: Duration,
    /// The part of it that connecting may take, up to the answer to ApiVersions.
    pub connect_timeout: Duration,
    /// How long a broker may wait for its replicas. Shorter than the request's time-out: then it
    /// can still tell us that they were too slow (REQUEST_TIMED_OUT), and the connection survives.
    pub ack_timeout: Duration,
    /// TLS, where the listeners have it.
    pub tls: Option<Tls>,
    /// Who we are, where the listeners want to know.
    pub sasl: Option<Sasl>,
    /// Where the process kills itself, in a build for tests.
    pub(crate) fail_point: FailPoint,
}

impl Config {
    /// The defaults: 10 s for a request, 5 s of it for connecting, 8 s for the replicas.
    #[must_use]
    pub fn new(bootstrap: Vec<String>) -> Self {
        Self {
            bootstrap,
            client_id: "owlpost".to_owned(),
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            ack_timeout: Duration::from_secs(8),
            tls: None,
            sasl: None,
            fail_point: FailPoint::default(),
        }
    }
}

/// Connections to a Kafka cluster, opened when they are needed.
///
/// Dropping it lets what was sent finish and closes the connections. Dropping the receiver of the
/// answers closes them at once.
#[derive(Debug)]
pub struct Kafka {
    shared: Arc<Shared>,
}

impl Kafka {
    /// A driver that has contacted nobody yet. The answers to all requests go to `answers`.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with time and I/O enabled. A current-thread runtime will do.
    #[must_use]
    pub fn new(mut config: Config, answers: mpsc::UnboundedSender<Answer>) -> Self {
        config.request_timeout = config.request_timeout.min(TIMEOUT_MAX);
        config.connect_timeout = config.connect_timeout.min(TIMEOUT_MAX);
        let shared = Shared {
            config: Arc::new(config),
            answers,
            runtime: Handle::current(),
            directory: Mutex::default(),
            lease: Arc::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Produces may be written until then, and none before this was said. What cannot be written to its
    /// end in time loses its connection: a broker takes nothing from half a request. What the operating
    /// system has taken already leaves all the same, even if this process is stopped.
    pub fn lease_until(&self, until: std::time::Instant) {
        self.shared.lease.set(until.into());
    }

    /// Sends a request on its way. Never waits; the request is answered once, in the channel.
    ///
    /// A Produce is answered within [`Config::request_timeout`]. What any broker can answer is
    /// asked of up to three known ones and then of each bootstrap address, a second apart or as
    /// soon as the one before has failed, and each has that time.
    pub fn send(&self, request: Request) {
        let shared = &self.shared;
        match request {
            Request::Metadata { topics } => {
                let owed = Owed::new(Owes::Metadata, shared);
                let shared = Arc::clone(shared);
                self.shared.runtime.spawn(async move {
                    let asked =
                        shared.ask_any(|reply| Ask::Metadata { topics: topics.clone(), reply });
                    match asked.await {
                        Ok(metadata) => shared.take(metadata, owed),
                        Err(cause) => owed.unanswered(cause, true),
                    }
                });
            }
            Request::InitProducerId => {
                let owed = Owed::new(Owes::ProducerId, shared);
                let shared = Arc::clone(shared);
                self.shared.runtime.spawn(async move {
                    match shared.ask_any(|reply| Ask::InitProducerId { reply }).await {
                        Ok(answer) => owed.pay(Answer::ProducerId(Ok(answer))),
                        Err(cause) => owed.unanswered(cause, true),
                    }
                });
            }
            Request::FindCoordinator { of, key } => {
                let owed = Owed::new(Owes::Coordinator(of), shared);
                let shared = Arc::clone(shared);
                self.shared.runtime.spawn(async move {
                    let asked = shared.ask_any(|reply| {
                        let key = Arc::clone(&key);
                        Ask::FindCoordinator { of, key, reply }
                    });
                    match asked.await {
                        Ok(found) => shared.take_coordinator(of, found, owed),
                        Err(cause) => owed.unanswered(cause, true),
                    }
                });
            }
            Request::InitTransactions { coordinator, id, timeout, producer } => {
                let request = InitTransactionsRequest { id, timeout, producer };
                shared.ask(coordinator, Question::Initialise(request));
            }
            Request::AddPartitions { transaction, partitions } => {
                let coordinator = transaction.coordinator;
                let request = AddPartitionsRequest { transaction, partitions };
                shared.ask(coordinator, Question::AddPartitions(request));
            }
            Request::AddOffsets { transaction, group } => {
                let coordinator = transaction.coordinator;
                let request = AddOffsetsRequest { transaction, group };
                shared.ask(coordinator, Question::AddOffsets(request));
            }
            Request::CommitPosition { coordinator, id, producer, version, place, position } => {
                let commit = Commit { id, producer, place, position };
                shared.ask(coordinator, Question::CommitPosition(commit, version));
            }
            Request::EndTransaction { transaction, version, commit } => {
                let coordinator = transaction.coordinator;
                let end = End { transaction, commit };
                shared.ask(coordinator, Question::End(end, version));
            }
            Request::FetchPosition { coordinator, place } => {
                shared.ask(coordinator, Question::FetchPosition(place));
            }
            Request::CreateTopics { topics } => {
                let names: Vec<_> = topics.iter().map(|(topic, _)| Arc::clone(topic)).collect();
                let owed = Owed::new(Owes::Topics(names.clone()), shared);
                let (shared, topics) = (Arc::clone(shared), Arc::new(topics));
                self.shared.runtime.spawn(async move {
                    let asked = shared
                        .ask_any(|reply| Ask::CreateTopics { topics: Arc::clone(&topics), reply });
                    match asked.await {
                        Ok(answers) => {
                            owed.pay(Answer::TopicsCreated { topics: names, answer: Ok(answers) });
                        }
                        Err(cause) => owed.unanswered(cause, true),
                    }
                });
            }
            Request::Tail { broker, topic, partition, from, to, source } => {
                let owed = Owed::new(Owes::Tail(Arc::clone(&topic), partition, from), shared);
                let Some(peer) = shared.broker(broker) else {
                    return owed.unanswered(nobody(broker), false);
                };
                let deadline = Instant::now() + shared.config.request_timeout;
                let wanted = tail::Wanted { topic, partition, from, to, source, deadline };
                shared.read_tail(&peer.address, tail::Job { wanted, owed });
            }
            Request::Produce { broker, transaction, mut batches } => {
                produce::sort(&mut batches);
                let batches = Arc::new(batches);
                let owed = Owed::new(Owes::Produce(broker, Arc::clone(&batches)), shared);
                let timeout = shared.config.ack_timeout;
                let request = ProduceRequest { transaction, batches, timeout };
                if let Some(fault) = produce::fault(&request) {
                    owed.unanswered(Unanswered(fault), false);
                } else if let Some(peer) = shared.broker(broker) {
                    let deadline = Instant::now() + shared.config.request_timeout;
                    let ask = Ask::Produce { broker, request, owed };
                    peer.send(Job { ask, deadline });
                } else {
                    owed.unanswered(nobody(broker), false);
                }
            }
        }
    }
}

fn nobody(broker: BrokerId) -> Unanswered {
    Unanswered(format!("broker {broker} is not among the live brokers"))
}

#[derive(Debug)]
struct Shared {
    config: Arc<Config>,
    answers: mpsc::UnboundedSender<Answer>,
    runtime: Handle,
    directory: Mutex<Directory>,
    lease: Arc<Lease>,
}

/// Who is where.
#[derive(Debug, Default)]
struct Directory {
    /// The brokers of the latest Metadata answer.
    brokers: BTreeMap<BrokerId, Peer>,
    /// The bootstrap addresses, while they are in use.
    bootstrap: Vec<Peer>,
    /// Who reads back what brokers have, while somebody does.
    readers: HashMap<String, mpsc::UnboundedSender<tail::Job>>,
    /// Which of the known brokers is asked first, so that not one of them has all the work.
    turn: usize,
}

impl Shared {
    fn directory(&self) -> MutexGuard<'_, Directory> {
        // A panic elsewhere leaves a directory that is still good: each change is one assignment.
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer(&self, address: Address) -> Peer {
        Peer::new(address, &self.config, &self.answers, &self.lease, &self.runtime)
    }

    /// Hands the job to whoever reads from this broker.
    fn read_tail(&self, address: &Address, job: tail::Job) {
        let mut directory = self.directory();
        let key = address.to_string();
        let job = match directory.readers.get(&key) {
            None => job,
            Some(reader) => match reader.send(job) {
                Ok(()) => return,
                Err(mpsc::error::SendError(job)) => job,
            },
        };
        directory.readers.retain(|_, reader| !reader.is_closed());
        let reader = tail::read(address, &self.config, &self.answers, &self.runtime, job);
        directory.readers.insert(key, reader);
    }

    fn broker(&self, id: BrokerId) -> Option<Peer> {
        let mut directory = self.directory();
        let peer = directory.brokers.get_mut(&id)?;
        if peer.is_gone() {
            *peer = self.peer(peer.address.clone());
        }
        Some(peer.clone())
    }

    /// Asks this coordinator, in the order of the calls.
    fn ask(&self, coordinator: BrokerId, question: Question) {
        let owed = Owed::new(question.owes(), self);
        let Some(peer) = self.broker(coordinator) else {
            return owed.unanswered(nobody(coordinator), false);
        };
        let deadline = Instant::now() + self.config.request_timeout;
        let question = Arc::new(question);
        peer.send(Job { ask: Ask::Coordinator { question, owed }, deadline });
    }

    /// Takes the coordinator's address and passes the answer on.
    fn take_coordinator(
        &self,
        of: CoordinatorOf,
        found: Result<(BrokerId, Address), i16>,
        owed: Owed,
    ) {
        let answer = found.map(|(id, address)| {
            let mut directory = self.directory();
            let known = directory.brokers.get(&id);
            if known.is_none_or(|peer| peer.address != address || peer.is_gone()) {
                directory.brokers.insert(id, self.peer(address));
            }
            id
        });
        owed.pay(Answer::Coordinator { of, answer: Ok(answer) });
    }

    /// Takes the brokers' addresses and passes the answer on.
    fn take(&self, metadata: Metadata, owed: Owed) {
        let mut directory = self.directory();
        let mut known = std::mem::take(&mut directory.brokers);
        for broker in &metadata.brokers {
            let address = Address { host: broker.host.clone(), port: broker.port };
            let peer = known
                .remove(&broker.id)
                .filter(|peer| peer.address == address && !peer.is_gone())
                .unwrap_or_else(|| self.peer(address));
            directory.brokers.insert(broker.id, peer);
        }
        directory.bootstrap.clear();
        // With the directory locked: of several answers the engine hears last the one that holds.
        owed.pay(Answer::Metadata(Ok(metadata)));
    }

    /// The brokers to ask first: those with a connection, and not always the same one.
    fn known(&self) -> Vec<Peer> {
        let mut directory = self.directory();
        let mut peers: Vec<Peer> =
            directory.brokers.values().filter(|peer| !peer.is_gone()).cloned().collect();
        if !peers.is_empty() {
            let first = directory.turn % peers.len();
            directory.turn = directory.turn.wrapping_add(1);
            peers.rotate_left(first);
            peers.sort_by_key(|peer| !peer.is_connected());
            peers.truncate(KNOWN_BROKERS_ASKED);
        }
        peers
    }

    /// All bootstrap addresses, and why some of them are none.
    fn bootstrap(&self) -> (Vec<Peer>, Vec<Unanswered>) {
        let mut directory = self.directory();
        let mut faults = Vec::new();
        let mut peers = Vec::with_capacity(self.config.bootstrap.len());
        for text in &self.config.bootstrap {
            match text.parse::<Address>() {
                Ok(address) => {
                    let used =
                        directory.bootstrap.iter().find(|p| p.address == address && !p.is_gone());
                    peers.push(used.cloned().unwrap_or_else(|| self.peer(address)));
                }
                Err(e) => faults.push(Unanswered(e.to_string())),
            }
        }
        directory.bootstrap.clone_from(&peers);
        (peers, faults)
    }

    /// Asks one broker after the other until one answers.
    ///
    /// Cancel safe: what was asked may still be answered, to nobody.
    async fn ask_any<T>(
        &self,
        ask: impl Fn(oneshot::Sender<Result<T, Unanswered>>) -> Ask,
    ) -> Result<T, Unanswered> {
        let mut candidates = self.known().into_iter();
        let mut fallen_back = false;
        let mut causes = Vec::new();
        let mut asked = FuturesUnordered::new();
        loop {
            if candidates.len() == 0 && !fallen_back {
                let (peers, faults) = self.bootstrap();
                candidates = peers.into_iter();
                causes.extend(faults);
                fallen_back = true;
            }
            if let Some(peer) = candidates.next() {
                let (reply, answer) = oneshot::channel();
                let deadline = Instant::now() + self.config.request_timeout;
                peer.send(Job { ask: ask(reply), deadline });
                asked.push(answer);
            }
            match timeout(ASK_ANOTHER_AFTER, asked.next()).await {
                Ok(Some(Ok(Ok(answer)))) => return Ok(answer),
                Ok(Some(Ok(Err(cause)))) => causes.push(cause),
                Ok(Some(Err(oneshot::error::RecvError { .. }))) => {
                    causes.push(Unanswered("a connection's task has ended".to_owned()));
                }
                Ok(None) if fallen_back && candidates.len() == 0 => break,
                Ok(None) | Err(_) => {}
            }
        }
        let causes: Vec<_> = causes.iter().map(|Unanswered(cause)| cause.as_str()).collect();
        Err(Unanswered(match causes.as_slice() {
            [] => "no bootstrap address".to_owned(),
            causes => causes.join("; "),
        }))
    }
}

/// A request that must be answered. Dropped unanswered, which only a panic or the end of the
/// runtime can do, it says so.
#[derive(Debug)]
struct Owed {
    owes: Option<Owes>,
    answers: mpsc::UnboundedSender<Answer>,
}

#[derive(Debug)]
enum Owes {
    Metadata,
    ProducerId,
    Topics(Vec<Arc<str>>),
    Coordinator(CoordinatorOf),
    /// What a coordinator is asked.
    Coordinated(fn(Unanswered) -> Answer),
    Tail(Arc<str>, i32, i64),
    Produce(BrokerId, Arc<Vec<PartitionBatch>>),
}

impl Owed {
    fn new(owes: Owes, shared: &Shared) -> Self {
        Self { owes: Some(owes), answers: shared.answers.clone() }
    }

    fn pay(mut self, answer: Answer) {
        self.owes = None;
        // Without a receiver there is nobody to be told.
        let _ = self.answers.send(answer);
    }

    fn unanswered(mut self, cause: Unanswered, sent: bool) {
        self.report(cause, sent);
    }

    fn report(&mut self, cause: Unanswered, sent: bool) {
        let answer = match self.owes.take() {
            None => return,
            Some(Owes::Metadata) => Answer::Metadata(Err(cause)),
            Some(Owes::ProducerId) => Answer::ProducerId(Err(cause)),
            Some(Owes::Topics(topics)) => Answer::TopicsCreated { topics, answer: Err(cause) },
            Some(Owes::Coordinator(of)) => Answer::Coordinator { of, answer: Err(cause) },
            Some(Owes::Coordinated(answer)) => answer(cause),
            Some(Owes::Tail(topic, partition, from)) => {
                Answer::Tail { topic, partition, from, answer: Err(cause) }
            }
            Some(Owes::Produce(broker, batches)) => {
                let batches = Arc::unwrap_or_clone(batches);
                Answer::ProduceUnanswered { broker, batches, sent, cause }
            }
        };
        let _ = self.answers.send(answer);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.report(Unanswered("the Kafka driver was stopped".to_owned()), true);
    }
}
