//! What a partition has, read back by a connection that only lives for as long as somebody asks: what is handed
//! out may be large, and a broker does one thing at a time for a connection.

use super::dial::{Connection, describe, dial};
use super::fetch::{FetchRequest, Fetched, Isolation, ListOffsetsRequest, Partition};
use super::fetched::{Of, encoded_records};
use super::{Address, Config, Owed};
use crate::relay::error_code::{NONE, OFFSET_OUT_OF_RANGE, TOPIC_AUTHORIZATION_FAILED, name};
use crate::relay::kafka::{Answer, StoredRecord, Tail, Unanswered};
use crate::relay::position::Position;
use rskafka::protocol::messages::{ReadVersionedType, RequestBody, WriteVersionedType};
use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

/// How many bytes are asked for at once.
const FETCH_BYTES: i32 = 1024 * 1024;

/// A broker that has nothing to hand out answers after this long: what is asked for is there.
const FETCH_WAIT: Duration = Duration::from_millis(100);

/// So many answers in a row may be empty: a client that is over its quota gets some.
const EMPTY_MAX: u32 = 3;

/// More is not read for one question: a window of 8 MiB several times over.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// A batch that is larger than this once it is unpacked is none of ours.
const UNPACKED_MAX: usize = 16 * 1024 * 1024;

/// When nothing was asked for so long, the connection goes.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// Adds what the batches in `bytes` have at these offsets; the offset behind the last batch that is whole, none if
/// there is none.
///
/// # Errors
///
/// A sentence, if the bytes are no record batches of magic 2 or are packed in a way that cannot be read.
pub fn add(
    tail: &mut Tail,
    bytes: &[u8],
    offsets: Range<i64>,
    source: &str,
) -> Result<Option<i64>, String> {
    encoded_records(bytes, UNPACKED_MAX, |of, found, record| {
        // A batch is handed out whole, also if it begins earlier or ends later.
        if of == Of::Transaction || !offsets.contains(&found.offset) {
            return;
        }
        let Some(position) = found.position.and_then(Position::from_text) else { return };
        if found.source == Some(source.as_bytes()) {
            tail.records.push(StoredRecord { position, fingerprint: record.fingerprint() });
        } else if let Some(other) = found.source.filter(|_| tail.other.is_none()) {
            tail.other = Some(String::from_utf8_lossy(other).into_owned());
        }
    })
}

/// What is to be read, and by when.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) from: i64,
    pub(super) to: i64,
    pub(super) source: Arc<str>,
    pub(super) deadline: Instant,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) wanted: Wanted,
    pub(super) owed: Owed,
}

/// Begins to read from a broker; more jobs go to what is returned, until that is closed.
pub(super) fn read(
    address: &Address,
    config: &Arc<Config>,
    answers: &mpsc::UnboundedSender<Answer>,
    runtime: &Handle,
    first: Job,
) -> mpsc::UnboundedSender<Job> {
    let (jobs, inbox) = mpsc::unbounded_channel();
    let reader = Reader { address: address.clone(), config: Arc::clone(config), connection: None };
    runtime.spawn(run(reader, first, inbox, answers.clone()));
    jobs
}

async fn run(
    mut reader: Reader,
    first: Job,
    mut inbox: mpsc::UnboundedReceiver<Job>,
    answers: mpsc::UnboundedSender<Answer>,
) {
    let mut next = Some(first);
    while let Some(Job { wanted, owed }) = next {
        if answers.is_closed() {
            return;
        }
        match reader.tail(&wanted).await {
            Ok(tail) => {
                let Wanted { topic, partition, from, .. } = wanted;
                owed.pay(Answer::Tail { topic, partition, from, answer: Ok(tail) });
            }
            Err(cause) => {
                if let Some(connection) = reader.connection.take() {
                    connection.cut();
                }
                owed.unanswered(cause, true);
            }
        }
        next = match timeout(IDLE_MAX, inbox.recv()).await {
            Ok(job) => job,
            Err(_) => {
                // What comes later goes to another one; what is there already is still done.
                inbox.close();
                inbox.recv().await
            }
        };
    }
}

/// One connection to one broker, while it is good.
#[derive(Debug)]
struct Reader {
    address: Address,
    config: Arc<Config>,
    connection: Option<Connection>,
}

impl Reader {
    async fn tail(&mut self, wanted: &Wanted) -> Result<Tail, Unanswered> {
        let Wanted { ref topic, partition, from, to, ref source, deadline } = *wanted;
        let at = format!("{}: partition {partition} of topic {topic}", self.address);
        let refused = |code: i16| {
            let hint = match code {
                TOPIC_AUTHORIZATION_FAILED => "; give this client the right to read the topic",
                _ => "",
            };
            Unanswered(format!("{at}: {}{hint}", name(code)))
        };
        let mut tail = Tail { first: from, records: Vec::new(), other: None };
        let (mut next, mut bytes, mut empty) = (from, 0, 0);
        while next < to {
            let Partition { error, found: Fetched { batches, throttle, .. } } =
                self.fetch(wanted, next).await?;
            if error == OFFSET_OUT_OF_RANGE {
                let Partition { error, found: earliest } = self.earliest(wanted).await?;
                if error != NONE {
                    return Err(refused(error));
                }
                if earliest <= next {
                    return Err(refused(OFFSET_OUT_OF_RANGE));
                }
                (next, tail.first) = (earliest, earliest);
                continue;
            }
            if error != NONE {
                return Err(refused(error));
            }
            let behind = add(&mut tail, &batches, next..to, source);
            let behind = behind.map_err(|what| Unanswered(format!("{at}: {what}")))?;
            bytes += batches.len();
            if bytes > BYTES_MAX {
                return Err(Unanswered(format!("{at}: more than {BYTES_MAX} bytes")));
            }
            match behind.filter(|behind| *behind > next) {
                Some(behind) => (next, empty) = (behind, 0),
                None if empty < EMPTY_MAX => empty += 1,
                None => return Err(Unanswered(format!("{at}: nothing is handed out"))),
            }
            if !throttle.is_zero() && next < to {
                sleep_until(deadline.min(Instant::now() + throttle)).await;
            }
        }
        Ok(tail)
    }

    async fn fetch(
        &mut self,
        wanted: &Wanted,
        offset: i64,
    ) -> Result<Partition<Fetched>, Unanswered> {
        let (topic, partition) = (Arc::clone(&wanted.topic), wanted.partition);
        let (bytes, wait) = (FETCH_BYTES, FETCH_WAIT);
        // Of transactions nothing is taken: what was in one may be there, or may not.
        let isolation = Isolation::Uncommitted;
        let request = FetchRequest { topic, partition, offset, bytes, wait, isolation };
        self.ask(request, wanted.deadline).await
    }

    async fn earliest(&mut self, wanted: &Wanted) -> Result<Partition<i64>, Unanswered> {
        let (topic, partition) = (Arc::clone(&wanted.topic), wanted.partition);
        let (isolation, timestamp_ms) = (Isolation::Uncommitted, ListOffsetsRequest::EARLIEST);
        let request = ListOffsetsRequest { isolation, topic, partition, timestamp_ms };
        self.ask(request, wanted.deadline).await
    }

    async fn ask<R>(&mut self, request: R, deadline: Instant) -> Result<R::ResponseBody, Unanswered>
    where
        R: RequestBody + Send + WriteVersionedType<Vec<u8>>,
        R::ResponseBody: ReadVersionedType<Cursor<Vec<u8>>>,
    {
        let worn = |c: &mut Connection| c.renew_at.is_some_and(|at| at <= Instant::now());
        self.connection.take_if(worn);
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let limit = deadline.min(Instant::now() + self.config.connect_timeout);
                dial(&self.address, &self.config, limit).await?
            }
        };
        // Kept at once: whoever gives it up must cut it.
        let connection = self.connection.insert(connection);
        let address = &self.address;
        match timeout_at(deadline, connection.messenger.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Unanswered(format!("{address}: {}", describe(&error)))),
            Err(_) => {
                let limit = self.config.request_timeout.as_millis();
                Err(Unanswered(format!("{address}: what is there is not read within {limit} ms")))
            }
        }
    }
}
