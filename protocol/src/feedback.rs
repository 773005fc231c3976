//! What to tell the server while its stream lasts, and when: the standby's half of the conversation.
//!
//! <https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-STANDBY-STATUS-UPDATE>
//!
//! How far the client has come is the client's to say, and it says it at every call. This decides the
//! rest, in the light of what servers were seen to do:
//!
//! - A status goes out on a timer of its own, however busy the stream is. A server that hears nothing for
//!   `wal_sender_timeout` hangs up, and while it decodes a large transaction it asks only at half of that.
//! - Each status on the timer asks for an answer. An answer proves that the connection, and with it the
//!   slot, was still this client's when the question was sent: [`Feedback::alive_since`].
//! - A server that wants to stop waits until all it has sent is flushed, and asks for that more than
//!   10,000 times a second. A client that cannot flush lets it go with "written, no opinion on flush":
//!   the slot stays where it is, and what was not flushed comes again.
//!
//! Time is an argument, of any type that is ordered and can be added to: `std::time::Instant`, or a
//! [`Duration`] since whenever.

use alloc::collections::VecDeque;
use core::{ops::Add, time::Duration};

use bytes::BytesMut;

use crate::{
    lsn::{Lsn, Timestamp},
    replication::{PrimaryKeepalive, StandbyStatusUpdate},
};

/// How long an unanswered question waits before it is asked again. The server reads what we say only
/// every half `wal_sender_timeout` while it decodes a large transaction of other people's rows; a question
/// that is fresh at that moment keeps [`Feedback::alive_since`] close to the truth.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Ordinary questions of the server at one position are half a `wal_sender_timeout` apart; those of a
/// server that wants to stop come at once.
const STOPPING_QUESTIONS_WITHIN: Duration = Duration::from_secs(1);

/// A server that wants to stop asks as fast as it is answered (more than 10,000 times a second,
/// measured); this bounds it.
const ANSWER_INTERVAL_STOPPING: Duration = Duration::from_millis(10);

/// As many unanswered questions are remembered. A server that owes more answers is dead, whoever looks at
/// [`Feedback::alive_since`] knows, and whoever does not must not grow by it.
const QUESTIONS_MAX: usize = 64;

/// A point in time that the caller's clock gives and never takes back.
pub trait Moment: Copy + Ord + Add<Duration, Output = Self> {}

impl<T: Copy + Ord + Add<Duration, Output = T>> Moment for T {}

/// How patient a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedbackPolicy {
    /// At least this often a status goes out and asks for an answer. A third of `wal_sender_timeout` or
    /// less.
    pub status_interval: Duration,
    /// How long an advance of the flush position may wait for company before it is told.
    pub advance_delay: Duration,
    /// How long a server that wants to stop waits for what is not flushed yet before it is let go
    /// without.
    pub stopping_grace: Duration,
}

/// 5 seconds, a quarter of a second, 1 second.
impl Default for FeedbackPolicy {
    fn default() -> Self {
        Self {
            status_interval: Duration::from_secs(5),
            advance_delay: Duration::from_millis(250),
            stopping_grace: Duration::from_secs(1),
        }
    }
}

/// The state of the conversation, from `CopyBothResponse` to the end of the stream.
#[derive(Debug)]
pub struct Feedback<I> {
    policy: FeedbackPolicy,
    /// Highest position read.
    received: Lsn,
    status_at: Option<I>,
    flush_sent: Lsn,
    answer_due: bool,
    hurry: bool,
    /// When each unanswered question was sent, oldest first.
    asked: VecDeque<I>,
    asked_at: Option<I>,
    alive_since: I,
    last_question: Option<(Lsn, I)>,
    server_stopping: Option<I>,
}

/// What a keepalive revealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revealed {
    /// The server lives.
    Alive,
    /// For the first time in this stream it is plain that the server wants to stop.
    ServerStopping,
}

impl<I: Moment> Feedback<I> {
    /// `asked_at` is when `START_REPLICATION` was sent: `CopyBothResponse` is an answer to it.
    #[must_use]
    pub const fn new(policy: FeedbackPolicy, asked_at: I) -> Self {
        Self {
            policy,
            received: Lsn::INVALID,
            status_at: None,
            flush_sent: Lsn::INVALID,
            answer_due: false,
            hurry: false,
            asked: VecDeque::new(),
            asked_at: None,
            alive_since: asked_at,
            last_question: None,
            server_stopping: None,
        }
    }

    /// Everything up to `lsn` was read: the end of a commit, or a non-transactional message's own
    /// position. Not the header of an [`XLogData`](crate::replication::XLogData), which goes up and down.
    pub fn receive(&mut self, lsn: Lsn) {
        self.received = self.received.max(lsn);
    }

    /// Data came, so the server is not at its end.
    pub const fn data(&mut self) {
        self.server_stopping = None;
    }

    /// A keepalive came, after everything that was read before it.
    pub fn keepalive(&mut self, now: I, keepalive: &PrimaryKeepalive) -> Revealed {
        self.receive(keepalive.wal_end);
        if !keepalive.reply_requested {
            if let Some(asked) = self.asked.pop_front() {
                self.alive_since = self.alive_since.max(asked);
            }
            return Revealed::Alive;
        }
        self.answer_due = true;
        let before = self.last_question.replace((keepalive.wal_end, now));
        let repeated = before.is_some_and(|(wal_end, at)| {
            wal_end == keepalive.wal_end && now < at + STOPPING_QUESTIONS_WITHIN
        });
        if repeated && self.server_stopping.is_none() {
            self.server_stopping = Some(now);
            return Revealed::ServerStopping;
        }
        Revealed::Alive
    }

    /// The next advance of the flush position is told without waiting for company.
    pub const fn hurry(&mut self) {
        self.hurry = true;
    }

    /// Highest position read in this stream.
    #[must_use]
    pub const fn received(&self) -> Lsn {
        self.received
    }

    /// The flush position that the server was told last.
    #[must_use]
    pub const fn told(&self) -> Lsn {
        self.flush_sent
    }

    /// When the newest question that has been answered was sent. Until `wal_sender_timeout` after it the
    /// server has not given the slot to anybody else, unless somebody ended this session.
    #[must_use]
    pub const fn alive_since(&self) -> I {
        self.alive_since
    }

    /// True when every question was answered and the server was told of `flush`.
    #[must_use]
    pub fn is_confirmed(&self, flush: Lsn) -> bool {
        self.asked.is_empty() && self.flush_sent == flush && self.status_at.is_some()
    }

    /// When the next status is due; `None` before the first, which is due at once.
    #[must_use]
    pub fn due(&self, flush: Lsn) -> Option<I> {
        let status_at = self.status_at?;
        let mut due = self.asked_at.map_or(status_at, |at| at + self.ask_after());
        if flush > self.flush_sent {
            let wait = if self.hurry { Duration::ZERO } else { self.policy.advance_delay };
            due = due.min(status_at + wait);
        }
        if self.answer_due {
            let wait = self.server_stopping.map_or(Duration::ZERO, |_| ANSWER_INTERVAL_STOPPING);
            due = due.min(status_at + wait);
        }
        Some(due)
    }

    /// Appends a status if one is due. `flush` is what the server may forget: everything before it is
    /// safe for good; it never goes down in one timeline. `clock` is the client's.
    pub fn poll(&mut self, now: I, clock: Timestamp, flush: Lsn, out: &mut BytesMut) {
        if self.due(flush).is_some_and(|due| due > now) {
            return;
        }
        let ask = self.asked_at.is_none_or(|at| at + self.ask_after() <= now);
        self.status(now, clock, flush, ask, out);
    }

    /// Appends a status now. With `ask`, the server answers it at once.
    pub fn status(&mut self, now: I, clock: Timestamp, flush: Lsn, ask: bool, out: &mut BytesMut) {
        let patience_ends = self.server_stopping.map(|since| since + self.policy.stopping_grace);
        let let_go = patience_ends.is_some_and(|end| now >= end);
        let unconfirmed = flush < self.received;
        // What became safe since it was told last is told first: the server may not come back.
        let untold = flush > self.flush_sent;
        let flush = if let_go && unconfirmed && !untold { Lsn::INVALID } else { flush };
        let update = StandbyStatusUpdate {
            write: self.received.max(flush),
            flush,
            apply: flush,
            clock,
            reply_requested: ask,
        };
        update.encode(out);
        if flush != Lsn::INVALID {
            self.flush_sent = flush;
        }
        self.hurry = false;
        self.status_at = Some(now);
        self.answer_due = false;
        if ask {
            self.asked_at = Some(now);
            if self.asked.len() < QUESTIONS_MAX {
                self.asked.push_back(now);
            }
        }
    }

    fn ask_after(&self) -> Duration {
        let interval = self.policy.status_interval;
        if self.asked.is_empty() { interval } else { ASK_AGAIN.min(interval) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);
    const ZERO: Lsn = Lsn::INVALID;

    fn keepalive(wal_end: u64, reply_requested: bool) -> PrimaryKeepalive {
        PrimaryKeepalive { wal_end: Lsn(wal_end), server_clock: Timestamp(0), reply_requested }
    }

    /// A client that has sent its first status at [`START`] and was answered.
    fn answered(flush: Lsn) -> Feedback<Duration> {
        let mut feedback = Feedback::new(FeedbackPolicy::default(), START);
        assert!(said(&mut feedback, START, flush).unwrap().reply_requested);
        assert_eq!(feedback.keepalive(START, &keepalive(10, false)), Revealed::Alive);
        feedback
    }

    fn said(
        feedback: &mut Feedback<Duration>,
        now: Duration,
        flush: Lsn,
    ) -> Option<StandbyStatusUpdate> {
        let mut out = BytesMut::new();
        feedback.poll(now, Timestamp(7), flush, &mut out);
        let frame = crate::Frame::decode(&out, 100).unwrap()?;
        assert_eq!(frame.encoded_len(), out.len());
        Some(StandbyStatusUpdate::decode(frame.body).unwrap())
    }

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_status_goes_out_on_its_own_timer_and_asks_for_an_answer() {
        let mut feedback = answered(ZERO);
        assert_eq!(feedback.due(ZERO), Some(START + millis(5000)));
        assert_eq!(said(&mut feedback, START + millis(4999), ZERO), None);
        let status = said(&mut feedback, START + millis(5000), ZERO).unwrap();
        assert_eq!((status.write, status.flush, status.clock), (Lsn(10), ZERO, Timestamp(7)));
        assert!(status.reply_requested);
    }

    #[test]
    fn what_is_not_answered_is_asked_again_after_a_second() {
        let mut feedback = answered(ZERO);
        assert!(said(&mut feedback, START + millis(5000), ZERO).is_some());
        assert_eq!(feedback.due(ZERO), Some(START + millis(6000)));
        assert!(said(&mut feedback, START + millis(6000), ZERO).unwrap().reply_requested);
        assert_eq!(feedback.alive_since(), START);
        // The answer to the first question proves no more than that.
        let _ = feedback.keepalive(START + millis(6500), &keepalive(10, false));
        assert_eq!(feedback.alive_since(), START + millis(5000));
        let _ = feedback.keepalive(START + millis(6600), &keepalive(10, false));
        assert_eq!(feedback.alive_since(), START + millis(6000));
    }

    #[test]
    fn a_server_that_never_answers_costs_no_memory() {
        let mut feedback = answered(ZERO);
        for second in 5..5000 {
            assert!(said(&mut feedback, START + millis(second * 1000), ZERO).is_some());
        }
        assert_eq!(feedback.asked.len(), QUESTIONS_MAX);
        assert_eq!(feedback.alive_since(), START);
    }

    #[test]
    fn an_advance_waits_for_company_unless_it_is_in_a_hurry() {
        let mut feedback = answered(ZERO);
        feedback.receive(Lsn(10));
        assert_eq!(feedback.due(Lsn(5)), Some(START + millis(250)));
        feedback.hurry();
        assert_eq!(feedback.due(Lsn(5)), Some(START));
        let status = said(&mut feedback, START + millis(1), Lsn(5)).unwrap();
        assert_eq!((status.flush, status.apply, status.reply_requested), (Lsn(5), Lsn(5), false));
        assert_eq!(feedback.due(Lsn(6)), Some(START + millis(251)));
    }

    #[test]
    fn a_question_is_answered_at_once() {
        let mut feedback = answered(Lsn(10));
        let _ = feedback.keepalive(START + millis(10), &keepalive(10, true));
        assert!(!said(&mut feedback, START + millis(10), Lsn(10)).unwrap().reply_requested);
        assert_eq!(said(&mut feedback, START + millis(10), Lsn(10)), None);
    }

    #[test]
    fn a_server_that_stops_is_let_go_without_what_is_not_flushed() {
        let mut feedback = answered(Lsn(3));
        let ask = keepalive(10, true);
        assert_eq!(feedback.keepalive(START + millis(10), &ask), Revealed::Alive);
        assert!(said(&mut feedback, START + millis(10), Lsn(3)).is_some());
        assert_eq!(feedback.keepalive(START + millis(11), &ask), Revealed::ServerStopping);
        assert_eq!(feedback.keepalive(START + millis(12), &ask), Revealed::Alive);
        // Its flood of questions is answered a hundred times a second.
        assert_eq!(said(&mut feedback, START + millis(19), Lsn(3)), None);
        assert_eq!(said(&mut feedback, START + millis(20), Lsn(3)).unwrap().flush, Lsn(3));

        let _ = feedback.keepalive(START + millis(1010), &ask);
        assert_eq!(said(&mut feedback, START + millis(1010), Lsn(3)).unwrap().flush, Lsn(3));
        let _ = feedback.keepalive(START + millis(1020), &ask);
        // What became safe in the meantime is told before it is let go.
        assert_eq!(said(&mut feedback, START + millis(1020), Lsn(4)).unwrap().flush, Lsn(4));
        let _ = feedback.keepalive(START + millis(1030), &ask);
        let status = said(&mut feedback, START + millis(1030), Lsn(4)).unwrap();
        assert_eq!((status.write, status.flush, status.apply), (Lsn(10), ZERO, ZERO));
        assert_eq!(feedback.told(), Lsn(4));
    }

    #[test]
    fn a_server_that_sends_data_again_does_not_stop() {
        let mut feedback = answered(ZERO);
        let ask = keepalive(10, true);
        let _ = feedback.keepalive(START + millis(10), &ask);
        assert_eq!(feedback.keepalive(START + millis(11), &ask), Revealed::ServerStopping);
        feedback.data();
        assert!(said(&mut feedback, START + millis(12), ZERO).is_some());
        let ask = keepalive(11, true);
        assert_eq!(feedback.keepalive(START + millis(5000), &ask), Revealed::Alive);
        let status = said(&mut feedback, START + millis(5000), Lsn(2)).unwrap();
        assert_eq!(status.flush, Lsn(2));
    }

    #[test]
    fn a_client_is_confirmed_once_the_server_has_answered() {
        let mut feedback = answered(Lsn(3));
        assert!(feedback.is_confirmed(Lsn(3)) && !feedback.is_confirmed(Lsn(4)));
        let mut out = BytesMut::new();
        feedback.status(START, Timestamp(0), Lsn(4), true, &mut out);
        assert!(!feedback.is_confirmed(Lsn(4)));
        let _ = feedback.keepalive(START, &keepalive(10, false));
        assert!(feedback.is_confirmed(Lsn(4)));
    }
}
