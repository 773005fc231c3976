//! A model PostgreSQL: a WAL, a slot, and a walsender for one session at a time, as they were seen on real
//! servers.

use crate::truth::{Nature, State, Truth};
use bytes::BytesMut;
use factlib_protocol::replication::{PrimaryKeepalive, XLogData};
use factlib_protocol::{Lsn, Timestamp, pgoutput};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub(crate) const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(15);

/// One `pg_logical_emit_message`; without a fact it is another service's.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    lsn: u64,
    fact: Option<u32>,
}

/// What is delivered as a whole: a transaction, or a message outside of any.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    alone: bool,
    /// Of its first record.
    first: u64,
    /// Of the commit record, or the message's.
    pub(crate) start: u64,
    pub(crate) end: u64,
    messages: Vec<Message>,
    committed_at: Timestamp,
}

impl Unit {
    pub(crate) fn facts(&self) -> impl Iterator<Item = u32> {
        self.messages.iter().filter_map(|message| message.fact)
    }

    /// What its position names.
    pub(crate) fn name(&self) -> (u64, bool) {
        (if self.alone { self.end } else { self.start }, self.alone)
    }

    /// By what its position names.
    pub(crate) fn is_at(&self, lsn: u64, alone: bool) -> bool {
        self.alone == alone && lsn == if alone { self.end } else { self.start }
    }

    pub(crate) fn fact_at(&self, index: u32) -> Option<u32> {
        self.messages.get(index as usize)?.fact
    }
}

/// What a relay says.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Said {
    Status { write: u64, flush: u64, reply: bool },
    CopyDone,
}

/// A walsender.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) process: usize,
    /// Index of the unit that is sent next.
    pub(crate) sent: usize,
    /// How far the WAL is sent.
    pub(crate) position: u64,
    last_reply: Instant,
    asked: bool,
    write: u64,
    flush: u64,
    /// What was said while it was busy.
    inbox: VecDeque<Said>,
    /// The relay has said CopyDone, and was answered.
    over: bool,
    busy_until: Option<Instant>,
    /// For the relay, where nothing is in between.
    pub(crate) outgoing: BytesMut,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) begun: Instant,
    pub(crate) system: u64,
    pub(crate) timeline: u32,
    pub(crate) history: Vec<(u32, Lsn)>,
    insert: u64,
    flushed: u64,
    open: Vec<Vec<Message>>,
    prepared: Vec<Vec<Message>>,
    pub(crate) wal: Vec<Unit>,
    pub(crate) confirmed: u64,
    /// What a crash falls back to.
    persisted: u64,
    /// The highest it ever was on this timeline.
    highest: u64,
    pub(crate) session: Option<Session>,
    /// The furthest that any session was sent on this timeline.
    handed_on: u64,
    /// It is being stopped, and since when all it has is sent.
    pub(crate) stopping: Option<Option<Instant>>,
}

impl Server {
    pub(crate) fn new(begun: Instant) -> Self {
        Self {
            begun,
            system: 7,
            timeline: 1,
            history: Vec::new(),
            insert: 1000,
            flushed: 1000,
            open: Vec::new(),
            prepared: Vec::new(),
            wal: Vec::new(),
            confirmed: 1000,
            persisted: 1000,
            highest: 1000,
            session: None,
            handed_on: 1000,
            stopping: None,
        }
    }

    pub(crate) fn flushed(&self) -> u64 {
        self.flushed
    }

    /// A crash took the slot back, and nobody has confirmed as much again.
    pub(crate) fn has_forgotten(&self) -> bool {
        self.confirmed < self.highest
    }

    fn clock(&self, now: Instant) -> Timestamp {
        Timestamp(i64::try_from((now - self.begun).as_micros()).unwrap())
    }

    /// A record of so many bytes; where it starts and ends.
    fn record(&mut self, bytes: u64) -> (u64, u64) {
        let start = self.insert;
        self.insert += bytes.next_multiple_of(8).max(8);
        (start, self.insert)
    }

    // ---- applications ----

    pub(crate) fn begin(&mut self) -> usize {
        self.open.push(Vec::new());
        self.open.len() - 1
    }

    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn emit(&mut self, transaction: usize, fact: Option<u32>) {
        let (_, lsn) = self.record(40);
        self.open[transaction].push(Message { lsn, fact });
    }

    /// A savepoint is rolled back, and with it the last messages.
    pub(crate) fn roll_back_to(&mut self, transaction: usize, kept: usize, truth: &mut Truth) {
        let Some(messages) = self.open.get_mut(transaction) else { return };
        let kept = kept.min(messages.len());
        forget(messages.drain(kept..), truth);
    }

    pub(crate) fn abort(&mut self, transaction: usize, truth: &mut Truth) {
        self.record(8);
        forget(self.open.swap_remove(transaction), truth);
    }

    pub(crate) fn prepare(&mut self, transaction: usize) {
        let (_, end) = self.record(24);
        self.flushed = end;
        let messages = self.open.swap_remove(transaction);
        self.prepared.push(messages);
    }

    /// COMMIT PREPARED or ROLLBACK PREPARED of the oldest.
    pub(crate) fn finish_prepared(&mut self, now: Instant, commit: bool, truth: &mut Truth) {
        if self.prepared.is_empty() {
            return;
        }
        let messages = self.prepared.remove(0);
        match commit {
            true => self.committed(now, messages, truth),
            false => forget(messages, truth),
        }
    }

    pub(crate) fn commit(&mut self, now: Instant, transaction: usize, truth: &mut Truth) {
        let messages = self.open.swap_remove(transaction);
        self.committed(now, messages, truth);
    }

    fn committed(&mut self, now: Instant, messages: Vec<Message>, truth: &mut Truth) {
        let first = messages.first().map_or(self.insert, |message| message.lsn);
        let (start, end) = self.record(16);
        self.flushed = end;
        let committed_at = self.clock(now);
        self.push(Unit { alone: false, first, start, end, messages, committed_at }, truth);
    }

    /// A message outside of transactions. It is sent once something later is flushed.
    pub(crate) fn emit_alone(&mut self, now: Instant, fact: u32, truth: &mut Truth) {
        let (start, end) = self.record(40);
        let messages = vec![Message { lsn: end, fact: Some(fact) }];
        let committed_at = self.clock(now);
        self.push(Unit { alone: true, first: start, start, end, messages, committed_at }, truth);
    }

    fn push(&mut self, unit: Unit, truth: &mut Truth) {
        unit.facts().for_each(|id| truth.fact(id).state = State::Committed);
        if truth.trace {
            eprintln!("  {unit:x?}");
        }
        self.wal.push(unit);
        truth.committed(self.wal.iter());
    }

    /// What else databases write.
    pub(crate) fn write_others(&mut self, bytes: u64) {
        let (_, end) = self.record(bytes);
        self.flushed = end;
    }

    // ---- operators ----

    /// SIGKILL of everything, and a start.
    pub(crate) fn crash(&mut self, truth: &mut Truth) {
        self.session = None;
        self.stopping = None;
        self.confirmed = self.persisted;
        self.lose_from(self.flushed, truth);
    }

    /// What was not flushed is lost, and so are open transactions.
    fn lose_from(&mut self, end: u64, truth: &mut Truth) {
        for messages in std::mem::take(&mut self.open) {
            forget(messages, truth);
        }
        let kept = self.wal.iter().take_while(|unit| unit.end <= end).count();
        for unit in self.wal.drain(kept..) {
            unit.facts().for_each(|id| truth.fact(id).state = State::Gone);
        }
        truth.committed(self.wal.iter());
        self.insert = end;
    }

    /// CHECKPOINT, which saves the slot.
    pub(crate) fn checkpoint(&mut self) {
        self.persisted = self.confirmed;
    }

    /// A standby whose WAL ends at `end` is the primary now. Its slot was synchronised a while ago.
    pub(crate) fn promote(&mut self, end: u64, truth: &mut Truth) {
        self.session = None;
        self.stopping = None;
        self.confirmed = self.persisted.min(end);
        self.persisted = self.confirmed;
        self.highest = self.confirmed;
        self.handed_on = self.confirmed;
        self.flushed = end;
        self.prepared.retain(|messages| messages.iter().all(|message| message.lsn <= end));
        self.lose_from(end, truth);
        self.history.push((self.timeline, Lsn(end)));
        self.timeline += 1;
    }

    /// `pg_replication_slot_advance` past the unit at `at`; false while somebody has the slot.
    pub(crate) fn advance_past(&mut self, lsn: u64, alone: bool, truth: &mut Truth) -> bool {
        let unit = self.wal.iter().find(|unit| unit.is_at(lsn, alone));
        let Some(end) = unit.map(|unit| unit.end) else { return false };
        if self.session.is_some() || end > self.flushed {
            return false;
        }
        let passed = self.wal.iter().take_while(|unit| unit.end <= end).flat_map(Unit::facts);
        for id in passed {
            if !truth.is_done(id) {
                truth.facts[id as usize].state = State::Gone;
            }
        }
        truth.committed(self.wal.iter());
        self.confirmed = self.confirmed.max(end);
        self.persisted = self.confirmed;
        self.handed_on = self.handed_on.max(end);
        true
    }

    /// Whoever was told so much by the server before, of the part that it has, may confirm it.
    pub(crate) fn was_handed_on(&mut self, at: u64) {
        self.handed_on = self.handed_on.max(at.min(self.flushed));
    }

    // ---- the walsender ----

    pub(crate) fn start(&mut self, now: Instant, process: usize, start: u64) {
        // What commits at or after the start, never before the slot's own position.
        let from = start.max(self.confirmed);
        let sent = self.wal.iter().take_while(|unit| unit.start < from).count();
        self.session = Some(Session {
            process,
            sent,
            position: from,
            last_reply: now,
            asked: false,
            write: 0,
            flush: 0,
            inbox: VecDeque::new(),
            over: false,
            busy_until: None,
            outgoing: BytesMut::new(),
        });
    }

    /// Decodes somebody's rows for so long, and neither sends nor answers meanwhile.
    pub(crate) fn busy(&mut self, until: Instant) {
        if let Some(session) = &mut self.session {
            session.busy_until = Some(until);
        }
    }

    pub(crate) fn listens_to(&self, process: usize, now: Instant) -> bool {
        let session = self.session.as_ref().filter(|session| session.process == process);
        session.is_some_and(|session| session.inbox.is_empty()) && !self.is_busy(now)
    }

    fn is_busy(&self, now: Instant) -> bool {
        let until = self.session.as_ref().and_then(|session| session.busy_until);
        until.is_some_and(|until| now < until)
    }

    fn is_over(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.over)
    }

    /// There is nothing to send: before it sleeps, `WalSndWaitForWal` says how far it is, unless it heard of
    /// as much.
    pub(crate) fn idle(&mut self, now: Instant) {
        let unheard = |s: &Session| s.flush < s.position && s.write < s.position && !s.asked;
        if self.caught_up() && self.session.as_ref().is_some_and(unheard) {
            self.keepalive(now, false);
        }
    }

    fn caught_up(&self) -> bool {
        let Some(session) = &self.session else { return true };
        self.wal.get(session.sent).is_none_or(|unit| unit.end > self.flushed)
    }

    pub(crate) fn send_next(&mut self, now: Instant, truth: &Truth) {
        if self.is_busy(now) || self.is_over() || self.caught_up() {
            return;
        }
        let server_clock = self.clock(now);
        let Some(session) = &mut self.session else { return };
        let unit = &self.wal[session.sent];
        session.sent += 1;
        session.position = session.position.max(unit.end);
        self.handed_on = self.handed_on.max(unit.end);
        let mut put = |at: u64, message: pgoutput::Message<'_>| {
            let mut data = BytesMut::new();
            message.encode(&mut data).unwrap();
            let data = XLogData { wal_start: Lsn(at), wal_end: Lsn(at), server_clock, data: &data };
            data.encode(&mut session.outgoing).unwrap();
        };
        let (commit_lsn, end_lsn) = (Lsn(unit.start), Lsn(unit.end));
        let commit_timestamp = unit.committed_at;
        if !unit.alone {
            let begin = pgoutput::Begin { final_lsn: commit_lsn, commit_timestamp, xid: 1 };
            put(unit.first, pgoutput::Message::Begin(begin));
        }
        for Message { lsn, fact } in &unit.messages {
            let (prefix, content) = match fact {
                Some(id) => ("sim", truth.facts[*id as usize].content.as_slice()),
                None => ("foreign", &b"x"[..]),
            };
            let message = pgoutput::LogicalMessage {
                xid: None,
                transactional: !unit.alone,
                lsn: Lsn(*lsn),
                prefix: prefix.as_bytes(),
                content,
            };
            put(*lsn, pgoutput::Message::Message(message));
        }
        if !unit.alone {
            let commit = pgoutput::Commit { commit_lsn, end_lsn, commit_timestamp };
            put(unit.end, pgoutput::Message::Commit(commit));
        }
    }

    /// How far the WAL is sent: through all that nobody waits for, too.
    pub(crate) fn keepalive(&mut self, now: Instant, reply_requested: bool) {
        if self.is_busy(now) || self.is_over() {
            return;
        }
        let server_clock = self.clock(now);
        let next = self.session.as_ref().and_then(|session| self.wal.get(session.sent));
        // In the middle of what comes next, if that is not flushed or not read yet.
        let wal_end = next.map_or(self.flushed, |next| next.start.min(self.flushed));
        let Some(session) = &mut self.session else { return };
        session.position = session.position.max(wal_end);
        self.handed_on = self.handed_on.max(session.position);
        session.asked |= reply_requested;
        let wal_end = Lsn(session.position);
        let keepalive = PrimaryKeepalive { wal_end, server_clock, reply_requested };
        keepalive.encode(&mut session.outgoing);
    }

    /// The relay says how far it is, or that it is done. True if more is confirmed now.
    pub(crate) fn hear(&mut self, now: Instant, said: Said) -> bool {
        let busy = self.is_busy(now);
        let Some(session) = &mut self.session else { return false };
        session.inbox.push_back(said);
        if busy {
            return false;
        }
        self.read_inbox(now)
    }

    fn read_inbox(&mut self, now: Instant) -> bool {
        let Some(session) = &mut self.session else { return false };
        let said = std::mem::take(&mut session.inbox);
        let before = self.confirmed;
        let (mut answers, mut over) = (0, session.over);
        for said in said {
            let Said::Status { write, flush, reply } = said else {
                over = true;
                continue;
            };
            if over {
                // Accepted and ignored.
                continue;
            }
            session.last_reply = now;
            session.asked = false;
            (session.write, session.flush) = (write, flush);
            // A slot's position never goes back.
            self.confirmed = self.confirmed.max(flush);
            answers += usize::from(reply);
        }
        let handed_on = self.handed_on;
        assert!(
            self.confirmed <= handed_on,
            "{} is confirmed, and the relay was told of nothing behind {handed_on}",
            self.confirmed
        );
        let until = session.busy_until.take();
        (0..answers).for_each(|_| self.keepalive(now, false));
        if let Some(session) = &mut self.session {
            session.busy_until = until;
            if over && !session.over {
                session.over = true;
                session.outgoing.extend_from_slice(b"c\0\0\0\x04");
            }
        }
        self.highest = self.highest.max(self.confirmed);
        self.confirmed > before
    }

    /// What a walsender does as time passes. True if more is confirmed now.
    pub(crate) fn tick(&mut self, now: Instant) -> (bool, Option<Ended>) {
        let Some(session) = &mut self.session else { return (false, None) };
        let mut confirmed = false;
        if session.over {
            return (false, None);
        }
        let silent = now - session.last_reply;
        let busy = session.busy_until.is_some_and(|until| now < until);
        if (!busy || silent >= WAL_SENDER_TIMEOUT / 2) && !session.inbox.is_empty() {
            // What it does now and then while it decodes.
            confirmed = self.read_inbox(now);
        } else if silent >= WAL_SENDER_TIMEOUT {
            let process = session.process;
            self.session = None;
            return (false, Some(Ended::TimedOut(process)));
        } else if silent >= WAL_SENDER_TIMEOUT / 2 && !session.asked {
            self.keepalive(now, true);
        }
        if self.stopping.is_some() && !self.is_busy(now) && self.caught_up() {
            let since = self.stopping.flatten().unwrap_or(now);
            self.stopping = Some(Some(since));
            self.keepalive(now, true);
            let Some(session) = &self.session else { return (confirmed, None) };
            // `WalSndDone`: all that was sent is flushed, or written by one who says nothing of flushed.
            let reached = if session.flush == 0 { session.write } else { session.flush };
            if reached >= session.position {
                let process = session.process;
                self.session = None;
                return (confirmed, Some(Ended::Stopped(process, since)));
            }
        }
        (confirmed, None)
    }

    /// The relay's end of the connection comes behind what it said. True if more is confirmed now.
    pub(crate) fn closed(&mut self, now: Instant, process: usize) -> bool {
        let is_its = |session: &Session| session.process == process;
        let more = self.session.as_ref().is_some_and(is_its) && self.read_inbox(now);
        self.hung_up(process);
        more
    }

    pub(crate) fn hung_up(&mut self, process: usize) {
        self.session.take_if(|session| session.process == process);
    }

    /// All that is to be delivered is confirmed.
    pub(crate) fn is_done(&self) -> bool {
        self.confirmed >= self.flushed
    }

    /// A restored backup: the same cluster, and less of it.
    pub(crate) fn restore(&mut self) {
        self.session = None;
        self.flushed = 900;
    }
}

/// How a walsender ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ended {
    TimedOut(usize),
    /// Because the server is stopped, which it could be since then.
    Stopped(usize, Instant),
}

fn forget(messages: impl IntoIterator<Item = Message>, truth: &mut Truth) {
    for id in messages.into_iter().filter_map(|message| message.fact) {
        truth.fact(id).state = State::RolledBack;
    }
}

/// Facts that a relay under [`Policy::Halt`](factlib::relay::poison::Policy) cannot get past.
pub(crate) fn halts(nature: Nature) -> bool {
    nature != Nature::Good
}
