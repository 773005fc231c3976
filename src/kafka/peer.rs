//! One broker address: a task that dials on demand, writes requests in order and reads answers.
//!
//! ```text
//!            job                    versions known
//!  Apart ──────────▶ Dialling ─────────────────────▶ Connected ──┐ job: written in its turn
//!   ▲ ▲                 │                             │   ▲      │ answer: handed over
//!   │ └─────────────────┘ failed                      │   └──────┘
//!   └─────────────────────────────────────────────────┘ time-out, lost, nonsense: all answered
//! ```

use super::dial::{Connection, Stream, WANTS_SASL, describe, dial};
use super::fail_point::{Moment, Step};
use super::group::{FindCoordinatorRequest, FindCoordinatorResponse};
use super::lease::Lease;
use super::message::{
    CreateTopicsRequest, CreateTopicsResponse, InitProducerIdRequest, InitProducerIdResponse,
};
use super::metadata::{MetadataRequest, MetadataResponse};
use super::produce::{ProduceRequest, ProduceResponse};
use super::transaction::Question;
use super::{Address, Config, Owed};
use crate::relay::kafka::{
    Answer, BrokerId, Coordinated, CoordinatorOf, CreateRefusal, Metadata, NewTopic, ProducerId,
    Unanswered,
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use rskafka::messenger::{Messenger, RequestError};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

/// After a failure nothing is tried for this long; what is sent meanwhile gets the failure's cause.
///
/// It keeps a caller without a backoff of its own from dialling in a hot loop. And the caller
/// learns of the loss before anything that it sent without knowing of it can go out on a new
/// connection, ahead of the repetition of what was lost.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

/// What can be asked of a broker, with where the answer goes.
#[derive(Debug)]
pub(super) enum Ask {
    Metadata {
        topics: Vec<Arc<str>>,
        reply: oneshot::Sender<Result<Metadata, Unanswered>>,
    },
    InitProducerId {
        reply: oneshot::Sender<Result<Result<ProducerId, i16>, Unanswered>>,
    },
    CreateTopics {
        topics: Arc<Vec<(Arc<str>, NewTopic)>>,
        reply: oneshot::Sender<Result<Vec<Result<(), CreateRefusal>>, Unanswered>>,
    },
    FindCoordinator {
        of: CoordinatorOf,
        key: Arc<str>,
        reply: oneshot::Sender<Coordinated<(BrokerId, Address)>>,
    },
    Coordinator {
        question: Arc<Question>,
        owed: Owed,
    },
    Produce {
        broker: BrokerId,
        request: ProduceRequest,
        owed: Owed,
    },
}

impl Ask {
    /// True for what must not be sent any more: a Produce, and what makes one visible.
    fn is_too_late(&self, lease: &Lease) -> bool {
        let needs_lease = match self {
            Self::Metadata { .. }
            | Self::InitProducerId { .. }
            | Self::CreateTopics { .. }
            | Self::FindCoordinator { .. } => false,
            Self::Coordinator { question, .. } => question.needs_lease(),
            Self::Produce { .. } => true,
        };
        needs_lease && lease.is_over()
    }

    /// How many requests are written for it.
    fn requests(&self) -> u64 {
        match self {
            Self::Coordinator { question, .. } => question.requests(),
            _ => 1,
        }
    }

    /// Which step of a transaction it is, if it is one.
    fn step(&self) -> Option<Step> {
        match self {
            Self::Coordinator { question, .. } => Some(question.step()),
            Self::Produce { request, .. } => request.transaction.as_ref().map(|_| Step::Producing),
            _ => None,
        }
    }

    pub(super) fn unanswered(self, cause: Unanswered, sent: bool) {
        // Nobody may listen any more, because another broker was faster.
        match self {
            Self::Metadata { reply, .. } => drop(reply.send(Err(cause))),
            Self::InitProducerId { reply } => drop(reply.send(Err(cause))),
            Self::CreateTopics { reply, .. } => drop(reply.send(Err(cause))),
            Self::FindCoordinator { reply, .. } => drop(reply.send(Err(cause))),
            Self::Coordinator { owed, .. } | Self::Produce { owed, .. } => {
                owed.unanswered(cause, sent);
            }
        }
    }
}

/// A request on its way to a broker, to be answered by `deadline`.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) ask: Ask,
    pub(super) deadline: Instant,
}

/// The sending end of a broker's task. The task ends once all of these are dropped and what it was
/// given is answered.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: Address,
    jobs: mpsc::UnboundedSender<Job>,
    connected: Arc<AtomicBool>,
}

impl Peer {
    pub(super) fn new(
        address: Address,
        config: &Arc<Config>,
        answers: &mpsc::UnboundedSender<Answer>,
        lease: &Arc<Lease>,
        runtime: &Handle,
    ) -> Self {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let connected = Arc::new(AtomicBool::new(false));
        runtime.spawn(run(
            address.clone(),
            Arc::clone(config),
            answers.clone(),
            inbox,
            Arc::clone(lease),
            Arc::clone(&connected),
        ));
        Self { address, jobs, connected }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Whether the task is gone, which only a panic or the runtime's end can do.
    pub(super) fn is_gone(&self) -> bool {
        self.jobs.is_closed()
    }

    /// Hands the job over; it is answered even if the task is gone.
    pub(super) fn send(&self, job: Job) {
        if let Err(mpsc::error::SendError(job)) = self.jobs.send(job) {
            let cause = format!("{}: its task has ended", self.address);
            job.ask.unanswered(Unanswered(cause), false);
        }
    }
}

async fn run(
    address: Address,
    config: Arc<Config>,
    answers: mpsc::UnboundedSender<Answer>,
    mut inbox: mpsc::UnboundedReceiver<Job>,
    lease: Arc<Lease>,
    connected: Arc<AtomicBool>,
) {
    let mut failure: Option<(Instant, Unanswered)> = None;
    while let Some(job) = inbox.recv().await {
        if answers.is_closed() {
            return;
        }
        if let Some((at, cause)) = &failure
            && at.elapsed() < PAUSE_AFTER_FAILURE
        {
            job.ask.unanswered(cause.clone(), false);
            continue;
        }
        let limit = job.deadline.min(Instant::now() + config.connect_timeout);
        let ended = match dial(&address, &config, limit).await {
            Ok(_) if answers.is_closed() => return,
            Ok(connection) => {
                tracing::debug!(broker = %address, "connected");
                connected.store(true, Ordering::Relaxed);
                let served =
                    serve(&address, &config, connection, job, &mut inbox, &lease, &answers);
                let ended = served.await;
                connected.store(false, Ordering::Relaxed);
                ended
            }
            Err(cause) => {
                job.ask.unanswered(cause.clone(), false);
                Err(cause)
            }
        };
        failure = match ended {
            Ok(()) => None,
            Err(cause) => {
                tracing::debug!(broker = %address, error = %cause, "no connection");
                // What waits was sent behind what was lost and must not overtake its repetition.
                while let Ok(job) = inbox.try_recv() {
                    job.ask.unanswered(cause.clone(), false);
                }
                Some((Instant::now(), cause))
            }
        };
    }
}

enum Outgoing {
    Metadata(MetadataRequest),
    InitProducerId,
    CreateTopics(CreateTopicsRequest),
    FindCoordinator(FindCoordinatorRequest),
    Coordinator(Arc<Question>),
    Produce(ProduceRequest),
}

enum Response {
    Metadata(MetadataResponse),
    ProducerId(InitProducerIdResponse),
    TopicsCreated(CreateTopicsResponse),
    CoordinatorFound(FindCoordinatorResponse),
    /// Of a coordinator, compared with the question.
    Coordinator(Answer),
    Produce(ProduceResponse),
}

/// One request and its response: encodes at the first poll, writes, waits.
///
/// Before it is dropped unfinished the connection must be cut, see [`Connection::cut`].
async fn exchange(
    messenger: Arc<Messenger<Stream>>,
    id: u64,
    request: Outgoing,
) -> (u64, Result<Response, RequestError>) {
    let response = match request {
        Outgoing::Metadata(request) => messenger.request(request).await.map(Response::Metadata),
        Outgoing::InitProducerId => {
            messenger.request(InitProducerIdRequest).await.map(Response::ProducerId)
        }
        Outgoing::CreateTopics(request) => {
            messenger.request(request).await.map(Response::TopicsCreated)
        }
        Outgoing::FindCoordinator(request) => {
            messenger.request(request).await.map(Response::CoordinatorFound)
        }
        Outgoing::Coordinator(question) => {
            question.ask(&messenger).await.map(Response::Coordinator)
        }
        Outgoing::Produce(request) => request.ask(&messenger).await.map(Response::Produce),
    };
    (id, response)
}

/// A request that is being written or waits for its response.
struct Pending {
    id: u64,
    deadline: Instant,
    /// Bytes written on this connection before this request's first.
    written_before: u64,
    ask: Ask,
}

enum Event {
    /// The next request may be written.
    Job(Job),
    Done(u64, Result<Response, RequestError>),
    Timer,
    /// A Produce that is half written must not be written to its end.
    TooLate,
    /// The broker closed an idle connection.
    Ended,
    /// Nobody needs this connection any more.
    Released,
    /// The broker would want us to log in again.
    Renew,
}

/// Serves one connection until it is lost (the cause) or not needed any more. Everything taken from
/// the inbox is answered then.
async fn serve(
    address: &Address,
    config: &Config,
    connection: Connection,
    first: Job,
    inbox: &mut mpsc::UnboundedReceiver<Job>,
    lease: &Lease,
    answers: &mpsc::UnboundedSender<Answer>,
) -> Result<(), Unanswered> {
    let traffic = &*connection.traffic;
    let mut exchanges = FuturesUnordered::new();
    let mut pending: VecDeque<Pending> = VecDeque::new();
    let mut next_id = 0;
    let mut answered = false;
    // How many requests the traffic will have counted when all that were started are written.
    let mut started = traffic.requests();
    // Which step of a transaction is being written.
    let mut leaving = None;
    // One timer for all: it fires for the oldest request, or in vain and is set again.
    let mut timer = pin!(sleep_until(first.deadline));
    let mut deaf = pin!(answers.closed());

    let mut event = Event::Job(first);
    let cause = loop {
        match event {
            Event::Job(Job { ask, deadline }) if deadline <= Instant::now() => {
                ask.unanswered(timed_out(address, config), false);
            }
            // The last look before the bytes: a process that was stopped for a while, or a connection
            // that took its time, must not publish what is another relay's by now.
            Event::Job(Job { ask, .. }) if ask.is_too_late(lease) => {
                let cause = format!("{address}: the lease on the slot was over before it was sent");
                ask.unanswered(Unanswered(cause), false);
            }
            Event::TooLate => {
                break format!(
                    "{address}: the lease on the slot was over before all of it was sent"
                );
            }
            Event::Job(Job { ask, deadline }) => {
                let request = match &ask {
                    Ask::Metadata { topics, .. } => {
                        Outgoing::Metadata(MetadataRequest::of(topics.clone()))
                    }
                    Ask::InitProducerId { .. } => Outgoing::InitProducerId,
                    Ask::CreateTopics { topics, .. } => {
                        Outgoing::CreateTopics(CreateTopicsRequest {
                            topics: Arc::clone(topics),
                            timeout: config.ack_timeout,
                            validate_only: false,
                        })
                    }
                    Ask::FindCoordinator { of, key, .. } => {
                        let (of, key) = (*of, Arc::clone(key));
                        Outgoing::FindCoordinator(FindCoordinatorRequest { of, key })
                    }
                    Ask::Coordinator { question, .. } => {
                        Outgoing::Coordinator(Arc::clone(question))
                    }
                    Ask::Produce { request, .. } => Outgoing::Produce(request.clone()),
                };
                leaving = ask.step();
                config.fail_point.pass(leaving, Moment::Asking);
                let id = next_id;
                next_id += 1;
                started += ask.requests();
                pending.push_back(Pending { id, deadline, written_before: traffic.written(), ask });
                exchanges.push(exchange(Arc::clone(&connection.messenger), id, request));
                if timer.is_elapsed() || deadline < timer.deadline() {
                    timer.as_mut().reset(deadline);
                }
            }
            Event::Done(_, Err(e)) => {
                // A listener that wants to know who we are tells its versions, and no more. What is asked
                // of it first any broker could answer.
                let first = pending.front().map(|pending| &pending.ask);
                let general =
                    matches!(first, Some(Ask::Metadata { .. } | Ask::InitProducerId { .. }));
                let stranger = !answered && general;
                let hint = match stranger && config.sasl.is_none() {
                    true => WANTS_SASL,
                    false => "",
                };
                break format!("{address}: {}{hint}", describe(&e));
            }
            Event::Done(id, Ok(response)) => {
                answered = true;
                let at = pending.iter().position(|p| p.id == id);
                let done = at.and_then(|at| pending.remove(at));
                let step = done.as_ref().and_then(|done| done.ask.step());
                config.fail_point.pass(step, Moment::Answered);
                if let Some(mut done) = done
                    && let Err((ask, what)) = hand_over(address, done.ask, response)
                {
                    done.ask = ask;
                    pending.push_back(done);
                    break format!("{address}: {what}");
                }
            }
            Event::Timer => match pending.iter().map(|p| p.deadline).min() {
                Some(deadline) if deadline <= Instant::now() => {
                    break timed_out(address, config).0;
                }
                Some(deadline) => timer.as_mut().reset(deadline),
                None => {}
            },
            Event::Ended => {
                tracing::debug!(broker = %address, "closed by the broker while idle");
                return Ok(());
            }
            // Half a request would be written to its end all the same, by nobody's leave.
            Event::Released if traffic.requests() < started => {
                break format!("{address}: nobody waits for an answer any more");
            }
            Event::Released => return Ok(()),
            Event::Renew => {
                tracing::debug!(broker = %address, "connecting anew before the session ends");
                return Ok(());
            }
        }

        event = poll_fn(|cx| {
            // One request is written at a time, the newest. A process that was stopped meanwhile finds
            // room in the socket at once.
            let writing = traffic.requests() < started;
            if writing && pending.back().is_some_and(|newest| newest.ask.is_too_late(lease)) {
                return Poll::Ready(Event::TooLate);
            }
            // Before all else, because this also goes on writing.
            if let Poll::Ready(Some((id, result))) = exchanges.poll_next_unpin(cx) {
                return Poll::Ready(Event::Done(id, result));
            }
            if traffic.requests() == started {
                config.fail_point.pass(leaving.take(), Moment::Sent);
            }
            if deaf.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Released);
            }
            let renew = connection.renew_at.is_some_and(|at| at <= Instant::now());
            if pending.is_empty() {
                if renew {
                    return Poll::Ready(Event::Renew);
                }
                // Before the inbox: a request must not be written to a connection known to be dead.
                if traffic.poll_ended(cx).is_ready() {
                    return Poll::Ready(Event::Ended);
                }
            } else if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Timer);
            }
            // One request is written at a time, in the order of the inbox. Then the bytes counted
            // since a request was started are its own, and only one is held encoded.
            if traffic.requests() == started && !renew {
                match inbox.poll_recv(cx) {
                    Poll::Ready(Some(job)) => return Poll::Ready(Event::Job(job)),
                    Poll::Ready(None) if pending.is_empty() => {
                        return Poll::Ready(Event::Released);
                    }
                    Poll::Ready(None) | Poll::Pending => {}
                }
            }
            Poll::Pending
        })
        .await;
    };

    // In this order: after the cut no byte more can leave, and the count is final.
    connection.cut();
    let written = traffic.written();
    drop(exchanges);
    let cause = Unanswered(cause);
    for p in pending {
        p.ask.unanswered(cause.clone(), p.written_before < written);
    }
    Err(cause)
}

fn timed_out(address: &Address, config: &Config) -> Unanswered {
    Unanswered(format!("{address}: no answer within {} ms", config.request_timeout.as_millis()))
}

/// Passes a response on. Gives the request back, with a sentence, if the response is not one to it:
/// then nothing this connection says can be relied on.
fn hand_over(address: &Address, ask: Ask, response: Response) -> Result<(), (Ask, String)> {
    match (ask, response) {
        (Ask::Metadata { topics, reply }, Response::Metadata(response)) => {
            let metadata =
                response.answer(&topics).map_err(|what| Unanswered(format!("{address}: {what}")));
            drop(reply.send(metadata));
        }
        (Ask::InitProducerId { reply }, Response::ProducerId(response)) => {
            drop(reply.send(Ok(response.0)));
        }
        (Ask::CreateTopics { topics, reply }, Response::TopicsCreated(response)) => {
            let answers = response.answers(&topics);
            let answers = answers.map_err(|what| Unanswered(format!("{address}: {what}")));
            drop(reply.send(answers));
        }
        (Ask::FindCoordinator { reply, .. }, Response::CoordinatorFound(response)) => {
            drop(reply.send(Ok(response.0)));
        }
        (Ask::Coordinator { owed, .. }, Response::Coordinator(answer)) => owed.pay(answer),
        (Ask::Produce { broker, request, owed }, Response::Produce(response)) => {
            let throttle = response.throttle;
            match response.answers(&request.batches) {
                Ok(partitions) => owed.pay(Answer::Produced { broker, partitions, throttle }),
                Err(what) => return Err((Ask::Produce { broker, request, owed }, what)),
            }
        }
        (ask, _) => return Err((ask, "a response of another kind".to_owned())),
    }
    Ok(())
}
