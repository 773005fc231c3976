//! The loop that carries inputs to the engine and its outputs to the world. It decides nothing.

use crate::config::{Config, RecordTimestamp, RecordValue};
use crate::http::Health;
use crate::kafka::{self, FailPoint, Kafka, Tls};
use crate::postgres::{Ask, Connection, Failure, Identified, Turn, identify};
use crate::relay::event::Event;
use crate::relay::gone::{Exit, Gone};
use crate::relay::kafka::{Answer, Request};
use crate::relay::pages::Pages;
use crate::relay::seeded_bug::{Seeded, SeededBug};
use crate::relay::{Delivery, Input, Now, Output, Reading, Relay, Settings, Standing};
use crate::report::Report;
pub use crate::report::catching_up;
use bytes::BytesMut;
use factlib_protocol::replication::{quote_identifier, start_logical};
use factlib_protocol::session::SessionError;
use factlib_protocol::{EncodeError, Lsn, Timestamp};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

/// How often health is brought up to date when nothing happens.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a relay that ends waits for the end of the Kafka transaction that it gives up.
const ABORT_MAX: Duration = Duration::from_secs(1);

/// A receive buffer that grew beyond this for one large message is given back when it is empty.
const RECEIVE_BUFFER_KEPT: usize = 4 * 1024 * 1024;

/// Both clocks. The only place of the relay that reads them.
#[expect(clippy::disallowed_methods, reason = "the driver's clock, handed to the engine")]
pub(crate) fn now() -> Now {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let micros = i64::try_from(unix.as_micros()).unwrap_or(i64::MAX);
    Now { at: Instant::now(), clock: Timestamp::from_unix_micros(micros) }
}

type Promise<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// What the connection to PostgreSQL is doing.
enum Postgres {
    None,
    Connecting(Promise<Identified, Gone>),
    Identified(Connection),
    Starting(Promise<(Connection, Instant), Failure>),
    Streaming(Connection),
}

/// What happened while waiting.
enum Happened {
    Connected(Result<Identified, Gone>),
    Started(Result<(Connection, Instant), Failure>),
    Turned(Turn),
    Answered(Answer),
    Deadline,
    Stop,
    GivenUp,
}

/// What the engine has to do with beside PostgreSQL.
pub(crate) trait Surroundings {
    /// Takes a request; its answer comes through the channel that [`drive`] was given.
    fn send(&mut self, request: Request);

    /// Facts may be published until then.
    fn lease_until(&mut self, until: Instant);

    /// The slot is not ours: nothing more may be begun that needs it.
    fn slot_gone(&mut self) {}

    /// Comes once what is not settled never will be, when the relay is to stop. Cancel safe.
    fn given_up(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// A request has come to its end; the engine takes the answer after this.
    fn answered(&mut self, _answer: &Answer) {}

    /// Something happened.
    fn event(&mut self, event: &Event);

    /// Slot and publication were made just now, and this is where the slot begins.
    fn created(&mut self, point: Lsn);

    /// So the server divides its log.
    fn pages(&mut self, _pages: Pages) {}

    /// True if [`Surroundings::standing`] is to be called soon, and not only every second.
    fn wants_standing(&self) -> bool;

    /// Where the relay stands.
    fn standing(&mut self, standing: &Standing, at: Instant);

    /// It has ended; what is to be said to PostgreSQL is said after this.
    fn ended(&mut self, _exit: &Exit) {}
}

/// Kafka, the log and the health board.
struct Live {
    kafka: Kafka,
    fail_point: FailPoint,
    report: Report,
    publication: String,
    /// Told once everything before this is confirmed.
    until: Option<(Lsn, Arc<Reached>)>,
}

/// Whether a drain has come to its end.
#[derive(Debug, Default)]
struct Reached {
    is_so: AtomicBool,
    told: Notify,
}

impl Surroundings for Live {
    fn send(&mut self, request: Request) {
        self.report.sent(&request, now().at);
        self.kafka.send(request);
    }

    fn answered(&mut self, answer: &Answer) {
        self.report.answered(answer, now().at);
    }

    fn lease_until(&mut self, until: Instant) {
        self.kafka.lease_until(until);
    }

    fn event(&mut self, event: &Event) {
        self.report.event(event);
        if matches!(event, Event::TransactionCommitted { .. }) {
            self.fail_point.committed();
        }
    }

    fn created(&mut self, point: Lsn) {
        self.report.created(&self.publication, point);
    }

    fn pages(&mut self, pages: Pages) {
        self.report.pages(pages);
    }

    fn wants_standing(&self) -> bool {
        self.report.is_due() || self.until.is_some()
    }

    fn standing(&mut self, standing: &Standing, at: Instant) {
        self.report.standing(standing, at);
        if let Some((_, reached)) = self.until.take_if(|(until, _)| standing.confirmed >= *until) {
            reached.is_so.store(true, Ordering::Relaxed);
            reached.told.notify_one();
        }
    }

    fn ended(&mut self, exit: &Exit) {
        self.report.ended(exit);
    }
}

/// Publishes until told to stop, or until it cannot go on.
///
/// `stop` is any future: it says when to finish.
pub async fn run(
    config: &Config,
    tls: Option<Tls>,
    health: Arc<Health>,
    stop: impl Future<Output = ()>,
) -> Exit {
    publish(config, tls, health, None, stop).await
}

/// Publishes up to a position, and then stops as if told to; says whether it came so far. Makes neither slot nor
/// publication.
pub async fn drain(
    config: &Config,
    tls: Option<Tls>,
    health: Arc<Health>,
    until: Lsn,
    stop: impl Future<Output = ()>,
) -> (Exit, bool) {
    let reached = Arc::new(Reached::default());
    let stop = async {
        tokio::select! {
            () = stop => {}
            () = reached.told.notified() => {}
        }
    };
    let exit = publish(config, tls, health, Some((until, Arc::clone(&reached))), stop).await;
    (exit, reached.is_so.load(Ordering::Relaxed))
}

async fn publish(
    config: &Config,
    tls: Option<Tls>,
    health: Arc<Health>,
    until: Option<(Lsn, Arc<Reached>)>,
    stop: impl Future<Output = ()>,
) -> Exit {
    let (answers, answered) = mpsc::unbounded_channel();
    let mut relay = Relay::new(settings(config));
    let seeded = Seeded::from_environment();
    if let Some(bug) = seeded.bug() {
        tracing::error!(bug = bug.name(), "this relay is broken on purpose");
    }
    relay.seed_bug(seeded);
    let fail_point = FailPoint::from_environment();
    let kafka = kafka::Config { fail_point: fail_point.clone(), ..kafka_config(config, tls) };
    let mut live = Live {
        kafka: Kafka::new(kafka, answers),
        fail_point,
        report: Report::new(&config.slot, health),
        publication: config.publication.clone(),
        until,
    };
    let may_create = live.until.is_none();
    let config = config.clone();
    let ask = move |known_system| Ask { may_create, ..ask(&config, seeded, known_system, false) };
    let (stops, told) = oneshot::channel();
    let told = async {
        let _ = told.await;
    };
    // As a task: what block_on itself waits for is polled only after one more look at the kernel. Of 2.6 epoll_wait for a
    // fact that comes alone 2.0 are left, and a tenth less processor time.
    let mut task = JoinSet::new();
    task.spawn(async move { drive(relay, ask, answered, &mut live, told).await });
    let ended = async {
        match task.join_next().await {
            Some(Ok(exit)) => exit,
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => std::future::pending().await,
        }
    };
    let mut ended = std::pin::pin!(ended);
    tokio::select! {
        exit = &mut ended => return exit,
        () = stop => {}
    }
    // It may have ended by itself just now.
    let _ = stops.send(());
    ended.await
}

/// Carries everything to the engine and from it, until it ends. `ask` says how to connect to PostgreSQL,
/// given the cluster that was connected to before; `stop`, when to finish.
pub(crate) async fn drive(
    mut relay: Relay,
    mut ask: impl FnMut(Option<u64>) -> Ask,
    mut answered: mpsc::UnboundedReceiver<Answer>,
    around: &mut impl Surroundings,
    stop: impl Future<Output = ()>,
) -> Exit {
    let mut postgres = Postgres::None;
    let mut asked = None;
    let mut read = now().at;
    let mut reported = now().at;
    let mut stop = std::pin::pin!(stop);
    let (mut stopping, mut gave_up) = (false, false);
    relay.handle(now(), Input::Timeout);
    loop {
        let mut parting = None;
        let mut aborts = false;
        match relay.lease() {
            Some(until) => around.lease_until(until),
            None => around.slot_gone(),
        }
        while let Some(output) = relay.poll_output() {
            match output {
                Output::Connect { known_system } => {
                    let ask = asked.insert(ask(known_system)).clone();
                    postgres = Postgres::Connecting(Box::pin(async move { identify(&ask).await }));
                }
                Output::StartReplication { start } => {
                    let (Postgres::Identified(connection), Some(asked)) = (postgres, &asked) else {
                        postgres = Postgres::None;
                        continue;
                    };
                    postgres = Postgres::Starting(Box::pin(start_replication(
                        connection,
                        start_command(asked, start),
                    )));
                }
                Output::Send(bytes) => {
                    if let Postgres::Streaming(connection) = &mut postgres {
                        connection.send(&bytes);
                    }
                }
                Output::Hangup => {
                    if let Postgres::Streaming(connection) =
                        std::mem::replace(&mut postgres, Postgres::None)
                    {
                        parting = Some(connection);
                    }
                }
                Output::Kafka(request) => {
                    aborts = matches!(request, Request::EndTransaction { commit: false, .. });
                    around.send(request);
                }
                Output::Event(event) => around.event(&event),
                Output::Exit(exit) => {
                    let at = now().at;
                    around.standing(&relay.standing(at), at);
                    around.ended(&exit);
                    if let Some(connection) = parting {
                        connection.part().await;
                    }
                    if aborts {
                        let aborted = async {
                            while let Some(answer) = answered.recv().await
                                && !matches!(answer, Answer::TransactionEnded(_))
                            {
                            }
                        };
                        // Otherwise it expires: consumers of committed records wait for that.
                        let _ = timeout(ABORT_MAX, aborted).await;
                    }
                    return exit;
                }
            }
        }
        if let Some(connection) = parting {
            connection.hang_up();
        }
        let at = now().at;
        if around.wants_standing() || at >= reported + REPORT_INTERVAL {
            reported = at;
            around.standing(&relay.standing(at), at);
        }

        let mut gathering = None;
        let reading = match relay.reading() {
            Reading::Gather(time) => {
                let until = read + time;
                gathering = (until > at).then_some(until);
                if gathering.is_some() { Reading::Paused } else { Reading::Now }
            }
            other => other,
        };
        let wake = reported + REPORT_INTERVAL;
        let wake = relay.deadline().into_iter().chain(gathering).fold(wake, Instant::min);
        let happened = tokio::select! {
            happened = postgres.turn(reading, relay.receive_buffer()) => happened,
            Some(answer) = answered.recv() => Happened::Answered(answer),
            () = &mut stop, if !stopping => Happened::Stop,
            () = around.given_up(), if stopping && !gave_up => Happened::GivenUp,
            () = sleep_until(wake.into()) => Happened::Deadline,
        };
        match happened {
            Happened::Connected(Ok(identified)) => {
                if let Some(point) = identified.created {
                    around.created(point);
                }
                if let Some(pages) = identified.pages {
                    around.pages(pages);
                }
                postgres = Postgres::Identified(identified.connection);
                relay.handle(now(), Input::Identified(identified.identity));
            }
            Happened::Connected(Err(gone)) => {
                postgres = Postgres::None;
                relay.handle(now(), Input::PostgresGone(gone));
            }
            Happened::Started(Ok((mut connection, asked_at))) => {
                relay.handle(now(), Input::Streaming { asked_at });
                let (bytes, drained) = connection.take_received(relay.receive_buffer());
                postgres = Postgres::Streaming(connection);
                relay.handle(now(), Input::Received { bytes, drained });
            }
            Happened::Started(Err(failure)) => {
                postgres = Postgres::None;
                relay.handle(now(), Input::PostgresGone(failure.into()));
            }
            Happened::Turned(Turn::Received { bytes, drained }) => {
                let now = now();
                read = now.at;
                relay.handle(now, Input::Received { bytes, drained });
                let buffer = relay.receive_buffer();
                if buffer.is_empty() && buffer.capacity() > RECEIVE_BUFFER_KEPT {
                    *buffer = BytesMut::new();
                }
            }
            Happened::Turned(Turn::Ended(failure)) => {
                postgres = Postgres::None;
                relay.handle(now(), Input::PostgresGone(failure.into()));
            }
            Happened::Answered(answer) => {
                around.answered(&answer);
                relay.handle(now(), Input::Kafka(answer));
                while let Ok(answer) = answered.try_recv() {
                    around.answered(&answer);
                    relay.handle(now(), Input::Kafka(answer));
                }
            }
            Happened::Stop => {
                stopping = true;
                relay.handle(now(), Input::Stop);
            }
            Happened::GivenUp => {
                gave_up = true;
                // What was settled before counts.
                while let Ok(answer) = answered.try_recv() {
                    around.answered(&answer);
                    relay.handle(now(), Input::Kafka(answer));
                }
                relay.handle(now(), Input::GiveUp);
            }
            Happened::Deadline => relay.handle(now(), Input::Timeout),
        }
    }
}

impl Postgres {
    /// Waits for whatever comes next. Cancel safe.
    async fn turn(&mut self, reading: Reading, into: &mut BytesMut) -> Happened {
        match self {
            Self::None | Self::Identified(_) => std::future::pending().await,
            Self::Connecting(future) => Happened::Connected(future.await),
            Self::Starting(future) => Happened::Started(future.await),
            Self::Streaming(connection) => Happened::Turned(connection.turn(reading, into).await),
        }
    }
}

async fn start_replication(
    mut connection: Connection,
    command: Result<String, EncodeError>,
) -> Result<(Connection, Instant), Failure> {
    let command = command.map_err(SessionError::from)?;
    let asked_at = now().at;
    connection.start_replication(&command).await?;
    Ok((connection, asked_at))
}

/// Protocol version 1 and no streaming: inside a stream block a fact of a rolled-back savepoint
/// cannot be told from a good one.
fn start_command(ask: &Ask, start: Lsn) -> Result<String, EncodeError> {
    let publication = quote_identifier(&ask.publication);
    let streams = ask.seeded.is(SeededBug::StreamingOn);
    let version = if streams { "2" } else { "1" };
    let mut options = vec![
        ("proto_version", version),
        ("publication_names", publication.as_str()),
        ("messages", "true"),
    ];
    if streams {
        options.push(("streaming", "on"));
    }
    start_logical(&ask.slot, start, &options)
}

/// What the PostgreSQL side of the relay needs of `config`, and of the cluster it was connected to before.
pub fn ask(
    config: &Config,
    seeded: Seeded,
    known_system: Option<u64>,
    may_change_prefixes: bool,
) -> Ask {
    Ask {
        postgres: config.postgres.clone(),
        slot: config.slot.clone(),
        temporary: None,
        may_create: true,
        looks_on: false,
        failover: config.slot_failover,
        publication: config.publication.clone(),
        prefixes: config.prefixes.clone(),
        wal_sender_timeout: config.limits.wal_sender_timeout,
        tcp_user_timeout: config.limits.tcp_user_timeout,
        seeded,
        known_system,
        may_change_prefixes,
    }
}

pub(crate) fn kafka_config(config: &Config, tls: Option<Tls>) -> kafka::Config {
    let bootstrap = config.kafka.brokers.iter().map(ToString::to_string).collect();
    let request_timeout = config.limits.request;
    kafka::Config {
        client_id: config.kafka.client_id.clone(),
        request_timeout,
        connect_timeout: request_timeout / 2,
        ack_timeout: request_timeout / 5 * 4,
        tls,
        sasl: config.kafka.sasl.clone(),
        ..kafka::Config::new(bootstrap)
    }
}

/// What of topics counts: of facts in transactions of Kafka's, those that are committed.
pub(crate) fn isolation(config: &Config) -> kafka::Isolation {
    match config.delivery {
        Delivery::AtLeastOnce => kafka::Isolation::Uncommitted,
        Delivery::ExactlyOnce(_) => kafka::Isolation::Committed,
    }
}

pub(crate) fn settings(config: &Config) -> Settings {
    let mut seed = [0; 8];
    // Without randomness the jitter is the same in every process, and that is all.
    if getrandom::fill(&mut seed).is_err() {
        tracing::warn!("no random bytes for jitter");
    }
    Settings {
        prefixes: config.prefixes.clone(),
        naming: config.naming.clone(),
        value_is_payload: config.records.value == RecordValue::Payload,
        timestamp_is_publish: config.records.timestamp == RecordTimestamp::Publish,
        metadata_headers: config.records.metadata_headers,
        in_flight_bytes_max: config.limits.in_flight_bytes,
        frame_bytes_max: config.limits.frame_max_bytes,
        stall_timeout: config.limits.stall,
        lease: config.limits.lease,
        status_interval: config.limits.status_interval,
        stop_timeout: config.limits.shutdown,
        backoff_max: config.limits.backoff_max,
        metadata_age_max: config.limits.metadata_age,
        batch_bytes: config.limits.batch_bytes,
        batch_records: config.limits.batch_records,
        compression: config.records.compression,
        policies: config.policies.clone(),
        create_topics: config.create_topics.clone(),
        skip_stored: config.skip_stored,
        in_flight_per_partition: config.limits.in_flight,
        keeps_order: false,
        startup_timeout: config.limits.startup,
        delivery: config.delivery.clone(),
        seed: u64::from_ne_bytes(seed),
    }
}
