//! What a real broker answers to the requests of transactions, in both of the protocols that there are (KIP-890). The
//! engine's classification of error codes and the model of a coordinator stand on it.

use crate::clients::{Language, path};
use factlib::kafka::{Admin, Config, Kafka as Driver};
use factlib::relay::batch::{OpenBatch, Record};
use factlib::relay::compression::Compression;
use factlib::relay::error_code::{
    CONCURRENT_TRANSACTIONS, COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE,
    INVALID_PRODUCER_EPOCH, INVALID_TRANSACTION_TIMEOUT, INVALID_TXN_STATE, NONE, NOT_COORDINATOR,
    PRODUCER_FENCED, TRANSACTION_ABORTABLE, UNSTABLE_OFFSET_COMMIT, name,
};
use factlib::relay::kafka::{
    Answer, BrokerId, CoordinatorOf, PartitionBatch, PositionPlace, ProducerId, Request,
    StoredPosition, Transaction, TransactionVersion,
};
use factlib::relay::position::{Position, Unit};
use factlib::relay::route::Headers;
use factlib_protocol::Lsn;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use testkit::kafka::Kafka;
use testkit::versions::{KAFKA, KAFKA_VERSIONS};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// One that has no other protocol, one that has gone back to it, and one that has the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cluster {
    Old,
    Downgraded,
    New,
}

impl Cluster {
    const ALL: [Self; 3] = [Self::Old, Self::Downgraded, Self::New];

    fn version(self) -> TransactionVersion {
        match self {
            Self::Old | Self::Downgraded => TransactionVersion::Explicit,
            Self::New => TransactionVersion::EpochPerTransaction,
        }
    }

    /// One of one's own. It ends expired transactions without delay.
    pub(crate) fn start(self) -> Kafka {
        let cleanup = "transaction.abort.timed.out.transaction.cleanup.interval.ms";
        let version = if self == Self::Old { KAFKA_VERSIONS[0] } else { KAFKA };
        let kafka = Kafka::builder().version(version).setting(cleanup, "100").start();
        if self == Self::Downgraded {
            kafka.downgrade("transaction.version", 1);
        }
        kafka
    }

    /// The one that the tests here share.
    fn shared(self) -> &'static Kafka {
        static ALL: [OnceLock<Kafka>; 3] = [const { OnceLock::new() }; 3];
        ALL[self as usize].get_or_init(|| self.start())
    }
}

/// Does the same in each of them, under a name that no other test has.
async fn everywhere(name: &str, what: impl AsyncFn(&'static Kafka, Client)) {
    for cluster in Cluster::ALL {
        let kafka = spawn_blocking(move || cluster.shared()).await.unwrap();
        what(kafka, Client::new(kafka, cluster, name).await).await;
    }
}

/// Asks one thing after the other under a transactional id.
struct Client {
    driver: Driver,
    inbox: mpsc::UnboundedReceiver<Answer>,
    id: Arc<str>,
    topic: Arc<str>,
    place: PositionPlace,
    coordinator: BrokerId,
    leader: BrokerId,
    cluster: Cluster,
    version: TransactionVersion,
    producer: ProducerId,
    sequence: i32,
}

const MINUTE: Duration = Duration::from_secs(60);
const A_LITTLE: Duration = Duration::from_millis(5);

impl Client {
    async fn new(kafka: &'static Kafka, cluster: Cluster, id: &str) -> Self {
        let (topic, own): (Arc<str>, Arc<str>) = (Arc::from(format!("{id}.facts")), Arc::from(id));
        let position: Arc<str> = Arc::from(format!("{id}.position"));
        let topics = [Arc::clone(&topic), Arc::clone(&position)];
        let make = topics.clone();
        spawn_blocking(move || {
            for topic in make {
                if !kafka.topics().contains(&topic.to_string()) {
                    kafka.create_topic(&topic, 1, &[]);
                }
            }
        })
        .await
        .unwrap();
        let (answers, inbox) = mpsc::unbounded_channel();
        let driver = Driver::new(Config::new(vec![kafka.bootstrap()]), answers);
        driver.lease_until(Instant::now() + Duration::from_secs(3600));
        let mut client = Self {
            driver,
            inbox,
            place: PositionPlace { group: Arc::clone(&own), topic: position },
            id: own,
            topic,
            coordinator: -1,
            leader: -1,
            cluster,
            version: cluster.version(),
            producer: ProducerId { id: -1, epoch: -1 },
            sequence: 0,
        };
        client.driver.send(Request::Metadata { topics: topics.into() });
        let Some(Answer::Metadata(Ok(metadata))) = client.inbox.recv().await else { panic!() };
        client.leader = metadata.topics[0].partitions[0].leader.unwrap();
        for of in [CoordinatorOf::Group, CoordinatorOf::Transactions] {
            client.coordinator = loop {
                let key = Arc::clone(&client.id);
                match client.ask(Request::FindCoordinator { of, key }).await {
                    Answer::Coordinator { of: found, answer: Ok(Ok(broker)) } if found == of => {
                        break broker;
                    }
                    Answer::Coordinator { answer: Ok(Err(COORDINATOR_NOT_AVAILABLE)), .. } => {
                        sleep(A_LITTLE).await;
                    }
                    other => panic!("{other:?}"),
                }
            };
        }
        client
    }

    async fn ask(&mut self, request: Request) -> Answer {
        self.driver.send(request);
        tokio::time::timeout(MINUTE, self.inbox.recv()).await.expect("in time").unwrap()
    }

    async fn init_once(
        &mut self,
        timeout: Duration,
        producer: Option<ProducerId>,
    ) -> Result<ProducerId, i16> {
        let (coordinator, id) = (self.coordinator, Arc::clone(&self.id));
        match self.ask(Request::InitTransactions { coordinator, id, timeout, producer }).await {
            Answer::TransactionsReady(Ok(Ok((producer, version)))) => {
                assert_eq!(version, self.version);
                self.producer = producer;
                self.sequence = 0;
                Ok(producer)
            }
            Answer::TransactionsReady(Ok(Err(code))) => Err(code),
            other => panic!("{other:?}"),
        }
    }

    async fn init(
        &mut self,
        timeout: Duration,
        producer: Option<ProducerId>,
    ) -> Result<ProducerId, i16> {
        loop {
            match self.init_once(timeout, producer).await {
                Err(CONCURRENT_TRANSACTIONS | COORDINATOR_LOAD_IN_PROGRESS | NOT_COORDINATOR) => {
                    sleep(A_LITTLE).await;
                }
                other => return other,
            }
        }
    }

    fn transaction(&self) -> Transaction {
        let (coordinator, id, producer) = (self.coordinator, Arc::clone(&self.id), self.producer);
        Transaction { coordinator, id, producer }
    }

    async fn add_once(&mut self) -> i16 {
        let partitions = vec![(Arc::clone(&self.topic), 0)];
        let transaction = self.transaction();
        match self.ask(Request::AddPartitions { transaction, partitions }).await {
            Answer::PartitionsAdded(Ok(codes)) => codes[0],
            other => panic!("{other:?}"),
        }
    }

    async fn produce_once(&mut self, value: &str) -> i16 {
        let position = Position { timeline: 1, unit: Unit::transaction(Lsn(1)), index: 0 };
        let mut open = OpenBatch::new(position, Compression::None);
        let headers = Headers::default();
        let (key, value) = (Some(&b"k"[..]), Some(value.as_bytes()));
        // Of now: what is older than the topic keeps is deleted half a minute after the broker's start.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let timestamp_ms = i64::try_from(now.as_millis()).unwrap();
        open.push(&Record { timestamp_ms, key, value, headers: &headers });
        let mut batch = open.seal();
        batch.set_transactional_stamp(self.producer, self.sequence);
        let batches = vec![PartitionBatch {
            topic: Arc::clone(&self.topic),
            topic_id: None,
            partition: 0,
            base_sequence: self.sequence,
            batch: batch.encoded(),
        }];
        let transaction = Some((Arc::clone(&self.id), self.version));
        let broker = self.leader;
        match self.ask(Request::Produce { broker, transaction, batches }).await {
            Answer::Produced { partitions, .. } => {
                if partitions[0].error == 0 {
                    self.sequence += 1;
                }
                partitions[0].error
            }
            other => panic!("{other:?}"),
        }
    }

    async fn add_offsets_once(&mut self) -> i16 {
        let group = Arc::clone(&self.place.group);
        let transaction = self.transaction();
        match self.ask(Request::AddOffsets { transaction, group }).await {
            Answer::OffsetsAdded(Ok(answer)) => answer.err().unwrap_or(0),
            other => panic!("{other:?}"),
        }
    }

    async fn position_once(&mut self, offset: i64) -> i16 {
        let request = Request::CommitPosition {
            coordinator: self.coordinator,
            id: Arc::clone(&self.id),
            producer: self.producer,
            version: self.version,
            place: self.place.clone(),
            position: StoredPosition { offset, metadata: format!("at {offset}") },
        };
        match self.ask(request).await {
            Answer::PositionCommitted(Ok(answer)) => answer.err().unwrap_or(0),
            other => panic!("{other:?}"),
        }
    }

    async fn end_once(&mut self, commit: bool) -> i16 {
        let (transaction, version) = (self.transaction(), self.version);
        match self.ask(Request::EndTransaction { transaction, version, commit }).await {
            Answer::TransactionEnded(Ok(Ok(next))) => {
                assert_eq!(next.is_some(), self.version == TransactionVersion::EpochPerTransaction);
                if let Some(next) = next {
                    self.sequence = 0;
                    self.producer = next;
                }
                0
            }
            Answer::TransactionEnded(Ok(Err(code))) => code,
            other => panic!("{other:?}"),
        }
    }

    /// Nothing, if it is not settled.
    async fn kept_once(&mut self) -> Result<Option<StoredPosition>, i16> {
        let (coordinator, place) = (self.coordinator, self.place.clone());
        match self.ask(Request::FetchPosition { coordinator, place }).await {
            Answer::Position(answer) => answer.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// The offset that is kept, once it is settled; of the text that it is the one beside it.
    async fn kept(&mut self) -> Option<i64> {
        loop {
            match self.kept_once().await {
                Ok(None) => return None,
                Ok(Some(StoredPosition { offset, metadata })) => {
                    assert_eq!(metadata, format!("at {offset}"));
                    return Some(offset);
                }
                Err(UNSTABLE_OFFSET_COMMIT) => sleep(A_LITTLE).await,
                Err(code) => panic!("{}", name(code)),
            }
        }
    }

    fn explicit(&self) -> bool {
        self.version == TransactionVersion::Explicit
    }

    /// Produces, with its partition in the transaction, once the transaction before is concluded.
    async fn produce(&mut self, value: &str) -> i16 {
        if self.explicit() {
            let added = settled(async || self.add_once().await).await;
            if added != NONE {
                return added;
            }
        }
        settled(async || self.produce_once(value).await).await
    }

    /// Commits a position, with its group in the transaction, once the transaction before is concluded.
    async fn position(&mut self, offset: i64) -> i16 {
        if self.explicit() {
            let added = settled(async || self.add_offsets_once().await).await;
            if added != NONE {
                return added;
            }
        }
        settled(async || self.position_once(offset).await).await
    }

    /// Begins a transaction that has a record and a position.
    async fn open(&mut self, value: &str, offset: i64) {
        assert_eq!(name(self.produce(value).await), "NONE");
        assert_eq!(name(self.position(offset).await), "NONE");
    }
}

/// Asks again while the transaction before is not concluded.
async fn settled(mut ask: impl AsyncFnMut() -> i16) -> i16 {
    loop {
        match ask().await {
            CONCURRENT_TRANSACTIONS => sleep(A_LITTLE).await,
            code => return code,
        }
    }
}

/// What can be asked of a broker in a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Produce,
    AddPartitions,
    AddOffsets,
    Position,
    Commit,
    Abort,
    InitAgain,
}

impl Asked {
    const ALL: [Self; 7] = [
        Self::Produce,
        Self::AddPartitions,
        Self::AddOffsets,
        Self::Position,
        Self::Commit,
        Self::Abort,
        Self::InitAgain,
    ];

    /// Those that the client's protocol has.
    fn all(client: &Client) -> impl Iterator<Item = Self> + use<> {
        let explicit = client.explicit();
        let adds = [Self::AddPartitions, Self::AddOffsets];
        Self::ALL.into_iter().filter(move |asked| explicit || !adds.contains(asked))
    }

    async fn ask(self, client: &mut Client) -> i16 {
        match self {
            Self::Produce => client.produce_once("too late").await,
            Self::AddPartitions => client.add_once().await,
            Self::AddOffsets => client.add_offsets_once().await,
            Self::Position => client.position_once(666).await,
            Self::Commit => client.end_once(true).await,
            Self::Abort => client.end_once(false).await,
            Self::InitAgain => {
                client.init_once(MINUTE, Some(client.producer)).await.err().unwrap_or(NONE)
            }
        }
    }
}

#[tokio::test]
async fn what_is_committed_is_seen_with_its_position_and_what_is_aborted_is_not() {
    everywhere("txn-seen", async |kafka, mut client| {
        client.init(MINUTE, None).await.unwrap();
        assert_eq!(client.kept().await, None);
        client.open("committed", 11).await;
        assert_eq!(client.kept_once().await, Err(UNSTABLE_OFFSET_COMMIT), "while it is open");
        assert_eq!(client.end_once(true).await, NONE);
        assert_eq!(client.kept().await, Some(11));

        client.open("aborted", 12).await;
        assert_eq!(client.end_once(false).await, NONE);
        assert_eq!(client.kept().await, Some(11));

        client.open("committed, too", 13).await;
        assert_eq!(client.end_once(true).await, NONE);
        assert_eq!(client.kept().await, Some(13));
        client.open("open", 14).await;
        let topic = client.topic.to_string();
        let read = move || (kafka.read_topic_by_java(&topic), kafka.read_committed_by_java(&topic));
        let (all, committed) = spawn_blocking(read).await.unwrap();
        assert_eq!(values(&all), ["committed", "aborted", "committed, too", "open"]);
        assert_eq!(values(&committed), ["committed", "committed, too"]);
    })
    .await;
}

fn values(records: &[testkit::Record]) -> Vec<String> {
    let values = records.iter().map(|record| record.value.clone().unwrap());
    values.map(|value| String::from_utf8(value).unwrap()).collect()
}

/// The judges of the torture test.
#[tokio::test]
async fn consumers_that_go_on_reading_see_what_is_committed_and_know_where_that_ends() {
    everywhere("txn-followed", async |kafka, mut client| {
        let topics = [client.topic.to_string()];
        let follow = move || {
            let mut followers = vec![kafka.follow_by_java(&topics)];
            if Language::Python.is_ready() {
                let python = path("target/clients/python/bin/python");
                followers.push(kafka.follow_by_librdkafka(&python, &topics));
            }
            followers
        };
        let mut followers = spawn_blocking(follow).await.unwrap();
        client.init(MINUTE, None).await.unwrap();
        for (value, commit) in [("committed", true), ("aborted", false), ("committed, too", true)] {
            client.open(value, 71).await;
            assert_eq!(client.end_once(commit).await, NONE);
            client.kept().await;
        }
        client.open("open", 72).await;
        let read = move || -> Vec<Vec<String>> {
            let seen = followers.iter_mut().map(|follower| {
                follower.read_to_end(MINUTE).unwrap();
                values(&follower.take_records().unwrap())
            });
            seen.collect()
        };
        for seen in spawn_blocking(read).await.unwrap() {
            assert_eq!(seen, ["committed", "committed, too"]);
        }
    })
    .await;
}

#[tokio::test]
async fn who_inits_fences_who_has_the_transactional_id() {
    everywhere("txn-fenced", async |kafka, mut first| {
        for (asked, open) in Asked::all(&first).flat_map(|asked| [(asked, true), (asked, false)]) {
            first.init(MINUTE, None).await.unwrap();
            if open {
                first.open("to be fenced", 21).await;
            }
            let mut second = Client::new(kafka, first.cluster, "txn-fenced").await;
            let (before, now) = (first.producer, second.init(MINUTE, None).await.unwrap());
            assert!(now.id == before.id && now.epoch > before.epoch, "{before:?} {now:?}");
            let code = asked.ask(&mut first).await;
            let expected = match asked {
                Asked::Produce | Asked::Position => INVALID_PRODUCER_EPOCH,
                _ => PRODUCER_FENCED,
            };
            assert_eq!(name(code), name(expected), "{asked:?}, open: {open}");
            assert_eq!(second.kept().await, None, "what was open was aborted");
            // The second goes on, whatever the first has asked.
            second.open("of the second", 22).await;
            assert_eq!(second.end_once(false).await, NONE);
        }
    })
    .await;
}

/// In the new protocol an abort by who was fenced is taken for one that is asked for again, until the other was let in.
#[tokio::test]
async fn who_is_fenced_may_come_in_again_until_the_other_is_let_in_and_not_afterwards() {
    everywhere("txn-window", async |kafka, mut first| {
        first.init(MINUTE, None).await.unwrap();
        first.open("to be fenced", 81).await;
        let mut second = Client::new(kafka, first.cluster, "txn-window").await;
        assert_eq!(second.init_once(MINUTE, None).await, Err(CONCURRENT_TRANSACTIONS));
        let aborted = settled(async || first.end_once(false).await).await;
        if first.explicit() {
            assert_eq!(name(aborted), "PRODUCER_FENCED");
        } else {
            assert_eq!(name(aborted), "NONE");
            first.init(MINUTE, Some(first.producer)).await.unwrap();
        }
        // Who asks on is let in, and nothing that the first can say changes that.
        let now = second.init(MINUTE, None).await.unwrap();
        assert!(now.epoch > first.producer.epoch, "{now:?} {:?}", first.producer);
        for open in [false, true, false] {
            if open {
                second.open("of the second", 82).await;
            }
            for commit in [true, false] {
                assert_eq!(
                    name(first.end_once(commit).await),
                    "PRODUCER_FENCED",
                    "{open} {commit}"
                );
            }
            if open {
                assert_eq!(second.end_once(true).await, NONE);
                assert_eq!(second.kept().await, Some(82));
            }
            let again = first.init(MINUTE, Some(first.producer)).await;
            assert_eq!(again, Err(PRODUCER_FENCED), "{open}");
        }
        // But what is open is aborted by whoever asks for an epoch, also in vain.
        second.open("aborted by the first", 83).await;
        let again = first.init(MINUTE, Some(first.producer)).await;
        assert_eq!(again, Err(PRODUCER_FENCED));
        let expected = if second.explicit() { PRODUCER_FENCED } else { INVALID_TXN_STATE };
        assert_eq!(name(settled(async || second.end_once(true).await).await), name(expected));
        assert_eq!(second.kept().await, Some(82));
    })
    .await;
}

#[tokio::test]
async fn what_expires_is_aborted_and_only_the_new_protocol_lets_its_producer_go_on() {
    everywhere("txn-expired", async |_, mut client| {
        let new = !client.explicit();
        for asked in Asked::all(&client) {
            // Long enough for a busy machine to put something in it.
            client.init(Duration::from_secs(2), None).await.unwrap();
            client.open("to expire", 31).await;
            // Once it is settled, the broker has aborted the transaction, or is about to conclude that.
            assert_eq!(client.kept().await, None);
            let code = settled(async || asked.ask(&mut client).await).await;
            let expected = match asked {
                Asked::Produce | Asked::Position => INVALID_PRODUCER_EPOCH,
                Asked::Commit if new => INVALID_TXN_STATE,
                Asked::Abort | Asked::InitAgain if new => NONE,
                _ => PRODUCER_FENCED,
            };
            assert_eq!(name(code), name(expected), "{asked:?}");
            if new {
                client.init(MINUTE, Some(client.producer)).await.unwrap();
            } else {
                let again = client.init(MINUTE, Some(client.producer)).await;
                assert_eq!(again, Err(PRODUCER_FENCED), "after {asked:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_end_that_is_asked_for_again_is_answered_again() {
    everywhere("txn-end-again", async |_, mut client| {
        client.init(MINUTE, None).await.unwrap();
        for commit in [true, false] {
            let before = client.producer;
            client.open("once", 41).await;
            assert_eq!(client.end_once(commit).await, NONE);
            let after = client.producer;
            client.producer = before;
            assert_eq!(settled(async || client.end_once(commit).await).await, NONE);
            assert_eq!(client.producer, after, "the same next epoch");
            client.producer = before;
            assert_eq!(client.end_once(!commit).await, INVALID_TXN_STATE);
            client.producer = after;
        }
        assert_eq!(client.kept().await, Some(41));
    })
    .await;
}

#[tokio::test]
async fn there_is_nothing_to_end_where_nothing_was_begun() {
    everywhere("txn-nothing", async |_, mut client| {
        client.init(MINUTE, None).await.unwrap();
        assert_eq!(client.end_once(true).await, INVALID_TXN_STATE);
        let before = client.producer;
        let expected = if client.explicit() { INVALID_TXN_STATE } else { NONE };
        assert_eq!(client.end_once(false).await, expected);
        assert_eq!(client.producer == before, client.explicit(), "who may abort has a new epoch");
        // More than `transaction.max.timeout.ms`.
        let long = client.init(Duration::from_secs(24 * 60 * 60), None).await;
        assert_eq!(long, Err(INVALID_TRANSACTION_TIMEOUT));
    })
    .await;
}

/// KIP-360.
#[tokio::test]
async fn who_comes_back_with_its_own_epoch_is_let_in_but_not_into_an_open_transaction_of_the_old_protocol()
 {
    everywhere("txn-back", async |_, mut client| {
        let first = client.init(MINUTE, None).await.unwrap();
        let second = client.init(MINUTE, Some(first)).await.unwrap();
        assert_eq!(second.epoch, first.epoch + 1);
        let again = client.init(MINUTE, Some(first)).await;
        assert_eq!(again, Ok(second), "whose answer was lost asks again");

        client.open("committed", 51).await;
        let before = client.producer;
        assert_eq!(client.end_once(true).await, NONE);
        // The end's answer was lost.
        let after = client.init(MINUTE, Some(before)).await.unwrap();
        assert_eq!(after.epoch, before.epoch + 1);
        assert_eq!(client.kept().await, Some(51));

        client.open("open", 52).await;
        let back = client.init(MINUTE, Some(client.producer)).await;
        if client.explicit() {
            assert_eq!(back, Err(PRODUCER_FENCED), "by itself");
            client.init(MINUTE, None).await.unwrap();
        } else {
            assert!(back.is_ok(), "{back:?}");
        }
        assert_eq!(client.kept().await, Some(51), "it was aborted");
    })
    .await;
}

#[tokio::test]
async fn what_is_not_added_is_refused_or_added_by_the_new_protocol() {
    everywhere("txn-not-added", async |_, mut client| {
        client.init(MINUTE, None).await.unwrap();
        let expected = if client.explicit() { TRANSACTION_ABORTABLE } else { NONE };
        assert_eq!(client.produce_once("not added").await, expected);
        assert_eq!(client.position_once(61).await, expected);
        if client.explicit() {
            assert_eq!(client.kept().await, None);
        } else {
            assert_eq!(client.end_once(true).await, NONE);
            assert_eq!(client.kept().await, Some(61));
        }
    })
    .await;
}

/// What `owlpost status` shows of it.
#[tokio::test]
async fn a_coordinator_describes_a_transaction_from_its_begin_to_its_end() {
    everywhere("txn-told", async |kafka, mut client| {
        let mut admin = Admin::new(Config::new(vec![kafka.bootstrap()]));
        let id = Arc::clone(&client.id);
        let mut told = async || admin.transaction(&id).await.unwrap();
        let unknown = told().await.unwrap_err();
        assert_eq!(name(unknown), "TRANSACTIONAL_ID_NOT_FOUND");
        client.init(MINUTE, None).await.unwrap();
        let empty = told().await.unwrap();
        assert_eq!((empty.state.as_str(), empty.producer), ("Empty", client.producer));
        assert_eq!((empty.timeout, empty.partitions.as_slice()), (MINUTE, &[][..]));

        client.open("open", 71).await;
        let open = told().await.unwrap();
        assert_eq!((open.state.as_str(), open.producer), ("Ongoing", client.producer));
        let topics: Vec<_> = open.partitions.iter().map(|(topic, _)| topic.as_str()).collect();
        assert_eq!(topics, ["__consumer_offsets", "txn-told.facts"]);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
        let now = i64::try_from(now).unwrap();
        let since = open.since_ms.unwrap();
        assert!((now - 60_000..=now).contains(&since), "{since} beside {now}");

        for (commit, state) in [(true, "CompleteCommit"), (false, "CompleteAbort")] {
            assert_eq!(client.end_once(commit).await, NONE);
            // Its markers may not be written yet.
            let ended = loop {
                let ended = told().await.unwrap();
                if !ended.state.starts_with("Prepare") {
                    break ended;
                }
                sleep(A_LITTLE).await;
            };
            assert_eq!((ended.state.as_str(), ended.partitions), (state, Vec::new()));
            client.open("open", 72).await;
        }
        assert_eq!(client.end_once(false).await, NONE);
    })
    .await;
}

/// Why nothing may be written before it is added: whose markers are still on their way takes what is written.
#[tokio::test]
async fn a_position_that_was_not_added_is_committed_by_the_transaction_before() {
    everywhere("txn-trap", async |_, mut client| {
        const WRONG: i64 = 1_000_000;
        client.init(MINUTE, None).await.unwrap();
        let mut wrong = 0;
        for n in 0..100 {
            client.open("right", n).await;
            assert_eq!(client.end_once(true).await, NONE);
            client.position_once(WRONG + n).await;
            if !client.explicit() {
                // What it may have begun.
                client.end_once(false).await;
            }
            wrong += usize::from(client.kept().await >= Some(WRONG));
            if client.explicit() && wrong > 0 {
                return;
            }
        }
        assert_eq!((wrong, client.explicit()), (0, false), "only the new protocol prevents it");
    })
    .await;
}
