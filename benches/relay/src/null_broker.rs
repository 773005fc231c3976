//! A broker that acknowledges everything and keeps nothing: what a relay costs, without what a log costs.
//!
//! A process of its own, so that its processor time and memory are apart. It speaks just what the relay asks of a new
//! Kafka: ApiVersions, Metadata (with ids of topics), InitProducerId, and Produce by those ids. While records arrive it
//! only looks at the head of each batch; what it was given is checked once all of it is there, or where it gets too
//! much to keep, and told when it is asked to end.

mod wire;

use crate::shape::Shape;
use crate::verify::{Verdict, Verifier};
use rskafka::protocol::record::{ControlBatchOrRecords, RecordBatch};
use rskafka::protocol::traits::ReadType as _;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead as _, BufReader, Cursor, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use testkit::Record;
use wire::{Batch, Request};

/// Requests of so many bytes are kept to be checked later.
const KEPT_BYTES_MAX: usize = 1 << 30;

/// Longer ones are no requests: Kafka's `socket.request.max.bytes`.
const REQUEST_BYTES_MAX: u32 = 100 << 20;

/// What it says at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Account {
    pub verdict: Verdict,
    pub requests: usize,
    pub batches: usize,
    /// Of record batches, compressed where they are.
    pub bytes: usize,
}

/// Serves until standard input ends. Standard output: the port, `done` once as many records are there as there are
/// facts, and at the end an [`Account`].
pub fn serve(shape: Shape) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    say(&port.to_string())?;
    let state = Arc::new(Mutex::new(State::new(shape, port)));
    let accepting = Arc::clone(&state);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = Arc::clone(&accepting);
            thread::spawn(move || {
                if let Err(e) = talk(stream, &state)
                    && e.kind() != io::ErrorKind::UnexpectedEof
                    && e.kind() != io::ErrorKind::ConnectionReset
                {
                    eprintln!("null broker: {e}");
                    std::process::exit(1);
                }
            });
        }
    });
    io::copy(&mut io::stdin(), &mut io::sink())?;
    let mut state = locked(&state);
    while !state.kept.is_empty() {
        state.check_oldest();
    }
    let account = serde_json::to_string(&state.account())?;
    say(&account)
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn talk(mut stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let len = u32::from_be_bytes(len);
        if len > REQUEST_BYTES_MAX {
            return Err(io::Error::other(format!("a request of {len} bytes")));
        }
        let mut request = Vec::with_capacity(len as usize);
        if (&mut stream).take(len.into()).read_to_end(&mut request)? < len as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let response = locked(state).answer(request)?;
        stream.write_all(&response)?;
    }
}

#[derive(Debug)]
struct State {
    shape: Shape,
    port: u16,
    /// Names by id.
    topics: HashMap<[u8; 16], Arc<str>>,
    /// By topic and partition.
    partitions: HashMap<([u8; 16], i32), Partition>,
    verifier: Verifier,
    kept: VecDeque<(Vec<u8>, Vec<Batch>)>,
    kept_bytes: usize,
    requests: usize,
    batches: usize,
    bytes: usize,
    records: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Partition {
    records: i64,
    /// What the next batch of this producer must begin with.
    next: Option<(i64, i16, i32)>,
}

impl State {
    fn new(shape: Shape, port: u16) -> Self {
        Self {
            shape,
            port,
            topics: HashMap::new(),
            partitions: HashMap::new(),
            verifier: Verifier::new(shape),
            kept: VecDeque::new(),
            kept_bytes: 0,
            requests: 0,
            batches: 0,
            bytes: 0,
            records: 0,
        }
    }

    fn answer(&mut self, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let (head, request) = wire::read(&bytes).map_err(io::Error::other)?;
        Ok(match request {
            Request::ApiVersions => wire::api_versions(head),
            Request::InitProducerId => wire::producer_id(head),
            Request::Metadata(names) => {
                for name in &names {
                    self.topics.insert(wire::topic_id(name), Arc::from(name.as_str()));
                }
                wire::metadata(head, self.port, &names, self.shape.partitions)
            }
            Request::Produce(batches) => {
                self.requests += 1;
                let offsets: Vec<i64> =
                    batches.iter().map(|batch| self.take(batch, &bytes)).collect();
                let response = wire::produced(head, &batches, &offsets);
                self.kept_bytes += bytes.len();
                self.kept.push_back((bytes, batches));
                // One for one, so that nobody waits for more than that.
                while self.kept_bytes > KEPT_BYTES_MAX {
                    self.check_oldest();
                }
                response
            }
        })
    }

    /// The offset that a batch gets.
    fn take(&mut self, batch: &Batch, request: &[u8]) -> i64 {
        self.batches += 1;
        self.bytes += batch.range.len();
        let partition = self.partitions.entry((batch.topic, batch.partition)).or_default();
        let offset = partition.records;
        let head = wire::BatchHead::read(&request[batch.range.clone()]);
        let follows = head.is_some_and(|head| {
            let own = (head.producer_id, head.epoch, head.base_sequence);
            let follows = partition.next.map_or(head.base_sequence == 0, |next| next == own);
            partition.records += i64::from(head.records);
            partition.next = Some((head.producer_id, head.epoch, head.next_sequence()));
            let before = self.records;
            self.records += usize::try_from(head.records).unwrap_or(0);
            if before < self.shape.facts && self.records >= self.shape.facts {
                // Nobody may be reading.
                let _ = say(DONE);
            }
            follows
        });
        self.verifier.verdict.bad_batches += usize::from(!follows);
        offset
    }

    /// Looks into what was kept longest.
    fn check_oldest(&mut self) {
        let Some((request, batches)) = self.kept.pop_front() else { return };
        self.kept_bytes -= request.len();
        for batch in batches {
            let name = self.topics.get(&batch.topic).cloned();
            let mut bytes = Cursor::new(&request[batch.range.clone()]);
            // Its checksum, too.
            let read = RecordBatch::read(&mut bytes);
            let (Some(topic), Ok(read)) = (name, read) else {
                self.verifier.verdict.bad_batches += 1;
                continue;
            };
            let ControlBatchOrRecords::Records(records) = read.records else {
                self.verifier.verdict.bad_batches += 1;
                continue;
            };
            for record in records {
                let headers = record.headers.into_iter().map(|h| (h.key, h.value)).collect();
                self.verifier.record(&Record {
                    topic: Arc::clone(&topic),
                    partition: batch.partition,
                    offset: i64::from(record.offset_delta),
                    timestamp_ms: read.first_timestamp + record.timestamp_delta,
                    key: record.key,
                    value: record.value,
                    headers,
                });
            }
        }
    }

    fn account(&self) -> Account {
        Account {
            verdict: self.verifier.verdict.clone(),
            requests: self.requests,
            batches: self.batches,
            bytes: self.bytes,
        }
    }
}

const DONE: &str = "done";

/// The process, from outside.
#[derive(Debug)]
pub struct NullBroker {
    child: Child,
    port: u16,
    lines: mpsc::Receiver<(Instant, String)>,
}

impl NullBroker {
    pub fn start(shape: Shape) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("null-broker");
        for (name, value) in [
            ("--facts", shape.facts),
            ("--per-transaction", shape.per_transaction),
            ("--payload", shape.payload),
            ("--partitions", shape.partitions),
            ("--topics", shape.topics),
        ] {
            command.args([name, &value.to_string()]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().expect("its standard output"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                // The one who listens has stopped over something else.
                let _ = sender.send((Instant::now(), line));
            }
        });
        let mut broker = Self { child, port: 0, lines };
        broker.port = broker.line(Duration::from_secs(10)).1.parse().expect("its port");
        broker
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Whether, and when, as many records had arrived as there are facts.
    pub fn done(&self) -> Option<Instant> {
        let (at, line) = self.lines.recv_timeout(Duration::from_millis(5)).ok()?;
        assert_eq!(line, DONE);
        Some(at)
    }

    /// What it was given, all of it checked.
    pub fn account(mut self) -> Account {
        drop(self.child.stdin.take());
        let (_, line) = self.line(Duration::from_secs(600));
        let account = serde_json::from_str(&line).expect("an account");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the null broker: {status}");
        account
    }

    fn line(&self, limit: Duration) -> (Instant, String) {
        loop {
            let line = self.lines.recv_timeout(limit).expect("a line of the null broker");
            // More than was asked for may have come since.
            if line.1 != DONE {
                return line;
            }
        }
    }
}

impl Drop for NullBroker {
    fn drop(&mut self) {
        // It has ended already, unless something went wrong.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
