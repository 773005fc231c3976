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
//!   slot, was still this client's when the question was sent: [`Feedback::alive_since`]. An answer is a
//!   keepalive like any other, and servers also send some that nobody asked for (one or two a commit while
//!   the client's `write` is behind, seen on 15). What was sent before the question, by the server's own
//!   clock, is no answer to it, however late it is read.
//! - A server that wants to stop waits until all it has sent is flushed, and asks for that more than
//!   10,000 times a second. A client that cannot flush lets it go with "written, no opinion on flush":
//!   the slot stays where it is, and what was not flushed comes again.
//!
//! Time is an argument, of any type that is ordered and can be added to: `std::time::Instant`, or a
//! [`Duration`] since whenever.

use alloc::collections::VecDeque;
use core::{
    ops::{Add, Sub},
    time::Duration,
};

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

/// With so many questions unanswered no more are asked. A server that owes more answers is dead, whoever
/// looks at [`Feedback::alive_since`] knows, and whoever does not must not grow by it.
const QUESTIONS_MAX: usize = 64;

/// Two clocks may drift apart by one part in so many: five times what cheap crystals do.
const DRIFT: i64 = 2_000;

/// So much the server's clock may be set back without its answers being taken for older than they are, in
/// microseconds. An answer that is older by as much than it seems does no harm: leases are seconds.
const SET_BACK: i64 = 100_000;

/// Longer than any stream; what is added to a moment must not overflow it.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A point in time that the caller's clock gives and never takes back. The difference of two is taken only
/// where the first is the later one.
pub trait Moment: Copy + Ord + Add<Duration, Output = Self> + Sub<Output = Duration> {}

impl<T: Copy + Ord + Add<Duration, Output = T> + Sub<Output = Duration>> Moment for T {}

/// How patient a client is. [`Duration::MAX`] is for ever, [`Duration::ZERO`] at once.
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
    /// When each unanswered question was sent, and the flush position it told; oldest first.
    asked: VecDeque<(I, Lsn)>,
    asked_at: Option<I>,
    alive_since: I,
    /// The highest flush position in a status that was answered.
    answered: Option<Lsn>,
    /// When a message of the server was read that had been on its way for as little as any, and when it
    /// was sent, by the server's clock.
    prompt: Option<(I, Timestamp)>,
    last_question: Option<(Lsn, I)>,
    server_stopping: Option<I>,
}

/// What a keepalive revealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revealed {
    /// The server lives.
    Alive,
    /// It is plain that the server wants to stop: it has asked twice at one position within a second, which
    /// it does otherwise only with a `wal_sender_timeout` below two. Said once, and again if data came in
    /// between.
    ServerStopping,
}

impl<I: Moment> Feedback<I> {
    /// `asked_at` is when `START_REPLICATION` was sent: `CopyBothResponse` is an answer to it.
    #[must_use]
    pub fn new(policy: FeedbackPolicy, asked_at: I) -> Self {
        let policy = FeedbackPolicy {
            status_interval: policy.status_interval.min(FOREVER),
            advance_delay: policy.advance_delay.min(FOREVER),
            stopping_grace: policy.stopping_grace.min(FOREVER),
        };
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
            answered: None,
            prompt: None,
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
        self.last_question = None;
    }

    /// A keepalive came, after everything that was read before it.
    pub fn keepalive(&mut self, now: I, keepalive: &PrimaryKeepalive) -> Revealed {
        self.receive(keepalive.wal_end);
        self.compare_clocks(now, keepalive.server_clock);
        if !keepalive.reply_requested {
            if let Some((asked, told)) = self.asked.front().copied()
                && keepalive.server_clock >= self.server_clock_at(asked)
            {
                self.asked.pop_front();
                self.alive_since = self.alive_since.max(asked);
                self.answered = self.answered.max(Some(told));
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

    /// Learns from a message that was sent at `sent` by the server's clock and read at `now`.
    ///
    /// The message that was on its way for the least time says best what the server's clock shows. An
    /// equally prompt one replaces it, give or take the drift, so that clocks which run apart are followed.
    fn compare_clocks(&mut self, now: I, sent: Timestamp) {
        let prompt = self.prompt.is_none_or(|(read, before)| {
            let (here, there) = (micros(read, now), sent.0.saturating_sub(before.0));
            there >= here - here / DRIFT
        });
        if prompt {
            self.prompt = Some((now, sent));
        }
    }

    /// The least that the server's clock can have shown at `moment`, as far as is known. Once it was set back
    /// by more than is allowed for, nothing counts as an answer any more, and a client with a lease logs in
    /// anew.
    fn server_clock_at(&self, moment: I) -> Timestamp {
        match self.prompt {
            Some((read, sent)) => {
                let elapsed = micros(read, moment);
                let doubt = (elapsed / DRIFT).abs().saturating_add(SET_BACK);
                Timestamp(sent.0.saturating_add(elapsed).saturating_sub(doubt))
            }
            // Nothing has come in this stream, so nothing can be late.
            None => Timestamp(i64::MIN),
        }
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
    ///
    /// One doubt is left: a keepalive that nobody asked for and that was sent while the question was on its
    /// way counts as its answer.
    #[must_use]
    pub const fn alive_since(&self) -> I {
        self.alive_since
    }

    /// What the server's clock shows at `now`, less the time that its promptest message was on its way;
    /// `None` before the first keepalive of this stream.
    #[must_use]
    pub fn server_clock(&self, now: I) -> Option<Timestamp> {
        let (read, sent) = self.prompt?;
        Some(Timestamp(sent.0.saturating_add(micros(read, now))))
    }

    /// True when a status that told `flush`, or more, was answered: the server has read it.
    #[must_use]
    pub fn is_confirmed(&self, flush: Lsn) -> bool {
        self.answered.is_some_and(|answered| answered >= flush)
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

    /// Appends a status now. With `ask`, the server answers it at once, unless it owes too many answers
    /// already.
    pub fn status(&mut self, now: I, clock: Timestamp, flush: Lsn, ask: bool, out: &mut BytesMut) {
        if ask {
            // Even where there is no room for the question: it is not due again at once.
            self.asked_at = Some(now);
        }
        let ask = ask && self.asked.len() < QUESTIONS_MAX;
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
            self.asked.push_back((now, flush));
        }
    }

    fn ask_after(&self) -> Duration {
        let interval = self.policy.status_interval;
        if self.asked.is_empty() { interval } else { ASK_AGAIN.min(interval) }
    }
}

/// From one moment to another, in microseconds; negative if the other is earlier.
fn micros<I: Moment>(from: I, to: I) -> i64 {
    let (elapsed, sign) = if to >= from { (to - from, 1) } else { (from - to, -1) };
    i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX) * sign
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);
    const ZERO: Lsn = Lsn::INVALID;

    /// Sent at `at`, by a server whose clock is an hour behind.
    fn keepalive(at: Duration, wal_end: u64, reply_requested: bool) -> PrimaryKeepalive {
        let server_clock = Timestamp(i64::try_from(at.as_micros()).unwrap() - 3_600_000_000);
        PrimaryKeepalive { wal_end: Lsn(wal_end), server_clock, reply_requested }
    }

    /// A keepalive that is read as soon as it is sent.
    fn hear(
        feedback: &mut Feedback<Duration>,
        now: Duration,
        wal_end: u64,
        reply_requested: bool,
    ) -> Revealed {
        feedback.keepalive(now, &keepalive(now, wal_end, reply_requested))
    }

    /// A client that has sent its first status at [`START`] and was answered.
    fn answered(flush: Lsn) -> Feedback<Duration> {
        let mut feedback = Feedback::new(FeedbackPolicy::default(), START);
        assert!(said(&mut feedback, START, flush).unwrap().reply_requested);
        assert_eq!(hear(&mut feedback, START, 10, false), Revealed::Alive);
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
        let _ = hear(&mut feedback, START + millis(6500), 10, false);
        assert_eq!(feedback.alive_since(), START + millis(5000));
        let _ = hear(&mut feedback, START + millis(6600), 10, false);
        assert_eq!(feedback.alive_since(), START + millis(6000));
    }

    /// Symptom: after seven busy seconds, keepalives of a server that had died in the meantime were read,
    /// and counted as answers to a question that was sent after its death.
    #[test]
    fn what_was_sent_before_a_question_is_no_answer_to_it() {
        let mut feedback = answered(ZERO);
        // Nobody asked for these; they are read late.
        let unasked = [500, 900, 2000].map(|at| keepalive(START + millis(at), 10, false));
        assert!(said(&mut feedback, START + millis(7000), ZERO).unwrap().reply_requested);
        for keepalive in &unasked {
            assert_eq!(feedback.keepalive(START + millis(7001), keepalive), Revealed::Alive);
        }
        assert_eq!(feedback.alive_since(), START);
        assert!(!feedback.is_confirmed(Lsn(1)));
        let answer = keepalive(START + millis(7002), 10, false);
        let _ = feedback.keepalive(START + millis(9500), &answer);
        assert_eq!(feedback.alive_since(), START + millis(7000));
    }

    /// A client that is always slow does not take a late message for a prompt one.
    #[test]
    fn clocks_that_drift_apart_are_followed_and_lateness_is_not() {
        let mut feedback = answered(ZERO);
        // The server's clock loses 100 microseconds a second, for 40 days.
        for round in 1..700_000_u32 {
            let sent = START + millis(5000) * round;
            assert!(said(&mut feedback, sent, ZERO).unwrap().reply_requested);
            let behind = Duration::from_micros(500) * round;
            let _ = feedback.keepalive(sent + millis(1), &keepalive(sent - behind, 10, false));
            assert_eq!(feedback.alive_since(), sent, "{round}");
        }
    }

    #[test]
    fn the_servers_clock_is_told_by_its_promptest_message() {
        let mut feedback = Feedback::new(FeedbackPolicy::default(), START);
        assert_eq!(feedback.server_clock(START), None);
        let hour = 3_600_000_000;
        let shows = |at: Duration| Some(Timestamp(i64::try_from(at.as_micros()).unwrap() - hour));
        let _ = feedback.keepalive(START + millis(40), &keepalive(START, 10, false));
        assert_eq!(feedback.server_clock(START + millis(140)), shows(START + millis(100)));
        let _ = hear(&mut feedback, START + millis(200), 10, false);
        // A late one changes nothing.
        let _ = feedback.keepalive(START + millis(900), &keepalive(START + millis(300), 10, false));
        assert_eq!(feedback.server_clock(START + millis(1000)), shows(START + millis(1000)));
    }

    #[test]
    fn a_clock_that_is_set_forward_is_believed_and_one_that_is_set_back_is_not() {
        let mut feedback = answered(ZERO);
        let sent = START + millis(5000);
        assert!(said(&mut feedback, sent, ZERO).is_some());
        let _ = feedback.keepalive(sent + millis(1), &keepalive(sent + millis(60_000), 10, false));
        assert_eq!(feedback.alive_since(), sent);
        let later = START + millis(10_000);
        assert!(said(&mut feedback, later, ZERO).is_some());
        let _ = feedback.keepalive(later + millis(1), &keepalive(later, 10, false));
        assert_eq!(feedback.alive_since(), sent);
    }

    #[test]
    fn only_an_answer_confirms_and_never_too_much() {
        let mut feedback = answered(ZERO);
        let mut out = BytesMut::new();
        // Told without a question, or not yet answered.
        assert!(!said(&mut feedback, START + millis(300), Lsn(4)).unwrap().reply_requested);
        assert!(!feedback.is_confirmed(Lsn(4)));
        for flush in 5..200 {
            feedback.status(START + millis(300), Timestamp(0), Lsn(flush), true, &mut out);
        }
        for answers in 1..=QUESTIONS_MAX {
            let _ = hear(&mut feedback, START + millis(301), 10, false);
            assert!(feedback.is_confirmed(Lsn(u64::try_from(answers).unwrap() + 4)));
            assert!(!feedback.is_confirmed(Lsn(u64::try_from(answers).unwrap() + 5)));
        }
    }

    #[test]
    fn patience_without_end_does_not_overflow() {
        let forever = Duration::MAX;
        let policy = FeedbackPolicy {
            status_interval: forever,
            advance_delay: forever,
            stopping_grace: forever,
        };
        let mut feedback = Feedback::new(policy, START);
        assert!(said(&mut feedback, START, Lsn(3)).is_some());
        let _ = hear(&mut feedback, START, 10, false);
        let _ = hear(&mut feedback, START + millis(1), 10, true);
        assert_eq!(hear(&mut feedback, START + millis(2), 10, true), Revealed::ServerStopping);
        assert_eq!(said(&mut feedback, START + millis(90_000), Lsn(3)).unwrap().flush, Lsn(3));
    }

    #[test]
    fn what_is_written_is_never_behind_what_is_flushed() {
        let mut feedback = answered(ZERO);
        let status = said(&mut feedback, START + millis(300), Lsn(20)).unwrap();
        assert_eq!((status.write, status.flush), (Lsn(20), Lsn(20)));
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

    /// Symptom: 64 questions into a silence, a status was due at every moment, and a driver span.
    #[test]
    fn a_server_that_owes_many_answers_is_not_told_without_pause() {
        let mut feedback = answered(ZERO);
        for second in 5..100 {
            let now = START + millis(second * 1000);
            let status = said(&mut feedback, now, ZERO).unwrap();
            assert_eq!(status.reply_requested, second < 5 + 64, "{second}");
            assert_eq!(feedback.due(ZERO), Some(now + millis(1000)));
            assert_eq!(said(&mut feedback, now, ZERO), None);
        }
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
        let _ = hear(&mut feedback, START + millis(10), 10, true);
        assert!(!said(&mut feedback, START + millis(10), Lsn(10)).unwrap().reply_requested);
        assert_eq!(said(&mut feedback, START + millis(10), Lsn(10)), None);
    }

    #[test]
    fn a_server_that_stops_is_let_go_without_what_is_not_flushed() {
        let mut feedback = answered(Lsn(3));
        assert_eq!(hear(&mut feedback, START + millis(10), 10, true), Revealed::Alive);
        assert!(said(&mut feedback, START + millis(10), Lsn(3)).is_some());
        assert_eq!(hear(&mut feedback, START + millis(11), 10, true), Revealed::ServerStopping);
        assert_eq!(hear(&mut feedback, START + millis(12), 10, true), Revealed::Alive);
        // Its flood of questions is answered a hundred times a second.
        assert_eq!(said(&mut feedback, START + millis(19), Lsn(3)), None);
        assert_eq!(said(&mut feedback, START + millis(20), Lsn(3)).unwrap().flush, Lsn(3));

        let _ = hear(&mut feedback, START + millis(1010), 10, true);
        assert_eq!(said(&mut feedback, START + millis(1010), Lsn(3)).unwrap().flush, Lsn(3));
        let _ = hear(&mut feedback, START + millis(1020), 10, true);
        // What became safe in the meantime is told before it is let go.
        assert_eq!(said(&mut feedback, START + millis(1020), Lsn(4)).unwrap().flush, Lsn(4));
        let _ = hear(&mut feedback, START + millis(1030), 10, true);
        let status = said(&mut feedback, START + millis(1030), Lsn(4)).unwrap();
        assert_eq!((status.write, status.flush, status.apply), (Lsn(10), ZERO, ZERO));
        assert_eq!(feedback.told(), Lsn(4));
    }

    #[test]
    fn a_server_that_sends_data_again_does_not_stop() {
        let mut feedback = answered(ZERO);
        let _ = hear(&mut feedback, START + millis(10), 10, true);
        assert_eq!(hear(&mut feedback, START + millis(11), 10, true), Revealed::ServerStopping);
        feedback.data();
        assert!(said(&mut feedback, START + millis(12), ZERO).is_some());
        assert_eq!(hear(&mut feedback, START + millis(5000), 10, true), Revealed::Alive);
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
        let _ = hear(&mut feedback, START, 10, false);
        assert!(feedback.is_confirmed(Lsn(4)));
    }
}
