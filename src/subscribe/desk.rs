//! The handlers' side: calls what [`Schedule`](super::schedule::Schedule) says, and reports how it ended.

use super::Handlers;
use super::counter::{Line, Shared};
use super::delivery::{DeadLetter, Delivery, Parcel, Unreadable};
use super::error::{Error, Halted};
use super::policy::{Answer, Callback, Unread};
use super::schedule::{Ended, Start, Step};
use crate::run::now;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{sleep_until, timeout};
use tracing::{error, info, warn};

/// What a handler says is kept up to here, in bytes.
const WORDS_MAX: usize = 1024;

pub(super) struct Desk {
    slot: String,
    shared: Arc<Shared>,
    handlers: Handlers,
    tasks: JoinSet<Outcome>,
    under_way: HashMap<Id, UnderWay>,
}

/// How a call ended.
#[derive(Debug)]
enum Outcome {
    Done,
    /// With this sentence.
    Failed(String),
    /// When its turn came the slot was not ours any more: nobody was called.
    NotBegun,
}

struct UnderWay {
    line: Line,
    parcel: Parcel,
    attempt: u32,
}

impl Desk {
    pub(super) fn new(slot: String, shared: Arc<Shared>, handlers: Handlers) -> Self {
        let (tasks, under_way) = (JoinSet::new(), HashMap::new());
        Self { slot, shared, handlers, tasks, under_way }
    }

    /// Calls handlers for as long as it is polled. Dropping the future drops none; dropping the desk does.
    pub(super) async fn run(&mut self) -> Infallible {
        loop {
            self.begin();
            let deadline = {
                let counter = self.shared.counter();
                if counter.schedule.is_quiet() {
                    self.shared.quiet.notify_one();
                }
                let open = counter.may_begin(now().at);
                counter.schedule.deadline().filter(|_| open)
            };
            let due = async {
                match deadline {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                () = self.shared.wake.notified() => {}
                () = due => {}
            }
            while let Some(ended) = self.tasks.try_join_next_with_id() {
                self.ended(ended);
            }
        }
    }

    /// Waits for what is under way, and begins nothing.
    pub(super) async fn finish(&mut self, limit: Duration) {
        let all = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.ended(ended);
            }
        };
        // The rest is cut off.
        let _ = timeout(limit, all).await;
    }

    /// Handlers that have not ended.
    pub(super) fn running(&self) -> usize {
        self.under_way.len()
    }

    fn begin(&mut self) {
        loop {
            let start = {
                let at = now().at;
                let mut counter = self.shared.counter();
                if !counter.may_begin(at) {
                    return;
                }
                counter.schedule.next(at)
            };
            let Some(start) = start else { return };
            let (line, parcel, attempt) = (start.line.clone(), start.job.clone(), start.attempt);
            let task = self.tasks.spawn(self.call(start));
            self.under_way.insert(task.id(), UnderWay { line, parcel, attempt });
        }
    }

    /// The call of a delivery, which is made when it is polled.
    fn call(&self, start: Start<Line, Parcel>) -> impl Future<Output = Outcome> + use<> {
        let limit = self.handlers.timeout;
        let call = self.prepared(start);
        let shared = Arc::clone(&self.shared);
        async move {
            // It may have been a while: the runtime was busy, or the process asleep.
            if !shared.counter().may_begin(now().at) {
                return Outcome::NotBegun;
            }
            let call = async { call?.make().await.map_err(|error| words(&*error)) };
            let answer = match limit {
                None => call.await,
                Some(limit) => timeout(limit, call).await.unwrap_or_else(|_| {
                    Err(format!("it had not ended after {}", humantime::format_duration(limit)))
                }),
            };
            answer.map_or_else(Outcome::Failed, |()| Outcome::Done)
        }
    }

    fn prepared(&self, start: Start<Line, Parcel>) -> Result<Call, String> {
        let Start { line, job, step, attempt, failed } = start;
        let defect = || "there is nobody to call: a defect".to_owned();
        if line == Line::Unreadable {
            let Unread::DeadLetter(callback) = &self.handlers.unreadable else {
                return Err(defect());
            };
            let letter = job.unreadable(attempt).ok_or_else(defect)?;
            return Ok(Call::Unreadable(callback.clone(), letter));
        }
        let delivery = Delivery::read(&job, attempt).map_err(|error| error.to_string())?;
        match step {
            Step::Handle => {
                let handler = self.handlers.of(delivery.aggregate_type()).ok_or_else(defect)?;
                Ok(Call::Handler(handler.clone(), delivery))
            }
            Step::DeadLetter => {
                let callback = self.handlers.dead_letter.clone().ok_or_else(defect)?;
                let (attempts, error) = failed.unwrap_or_default();
                Ok(Call::DeadLetter(callback, DeadLetter { delivery, error, attempts }))
            }
        }
    }

    fn ended(&mut self, joined: Result<(Id, Outcome), JoinError>) {
        let (id, outcome) = match joined {
            Ok((id, outcome)) => (id, outcome),
            Err(error) => (error.id(), Outcome::Failed(panic_words(error))),
        };
        let Some(UnderWay { line, parcel, attempt }) = self.under_way.remove(&id) else { return };
        let answer = match outcome {
            Outcome::Done => Ok(()),
            Outcome::Failed(words) => Err(words),
            Outcome::NotBegun => return self.shared.counter().schedule.put_back(&line),
        };
        let said = answer.as_ref().err().cloned();
        let mut counter = self.shared.counter();
        let ended = counter.schedule.ended(now().at, &line, answer);
        let settled = match ended {
            Ended::Done(Some(ticket)) => counter.settled(ticket),
            _ => None,
        };
        counter.due |= said.is_some() || attempt > 1;
        drop(counter);
        if let Some(answer) = settled {
            self.shared.answer(answer);
        }
        let Some(error) = said else {
            if attempt > 1 {
                info!(
                    slot = self.slot, aggregate = line.words(), position = %parcel.position, attempt,
                    "the fact is handled after all"
                );
            }
            return;
        };
        self.tell(&line, &parcel, ended, error);
    }

    fn tell(&self, line: &Line, parcel: &Parcel, ended: Ended, error: String) {
        let (slot, aggregate, position) = (&self.slot, line.words(), parcel.position);
        match ended {
            Ended::Again { attempt, delay } if attempt.is_power_of_two() => {
                warn!(
                    slot, aggregate, %position, attempt, retry_in = ?delay, error,
                    "a fact is not handled; it is tried again, and those behind it wait"
                );
            }
            Ended::DeadLetter { attempts } => {
                error!(slot, aggregate, %position, attempts, error, "a fact becomes a dead letter");
            }
            Ended::Halt { attempts } => {
                error!(slot, aggregate, %position, attempts, error, "halted: a fact is not handled");
                let (aggregate, lsn) = (Arc::clone(&parcel.aggregate), parcel.lsn());
                let halted = Halted { aggregate, position, lsn, error, attempts };
                self.shared.halt(Error::Halted(Box::new(halted)));
            }
            Ended::Again { .. } | Ended::Done(_) | Ended::Unknown => {}
        }
    }
}

/// Whom to call, and with what.
enum Call {
    Handler(Callback<Delivery>, Delivery),
    DeadLetter(Callback<DeadLetter>, DeadLetter),
    Unreadable(Callback<Unreadable>, Unreadable),
}

impl Call {
    fn make(self) -> Answer {
        match self {
            Self::Handler(handler, delivery) => handler.call(delivery),
            Self::DeadLetter(callback, letter) => callback.call(letter),
            Self::Unreadable(callback, letter) => callback.call(letter),
        }
    }
}

/// The error and what it comes from.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source.filter(|_| words.len() < WORDS_MAX) {
        let text = error.to_string();
        // Many errors say what they come from themselves.
        if !words.contains(&text) {
            words.push_str(": ");
            words.push_str(&text);
        }
        source = error.source();
    }
    cut(words)
}

fn panic_words(error: JoinError) -> String {
    let payload = match error.try_into_panic() {
        Ok(payload) => payload,
        // The runtime ends; or somebody has aborted the task, whose id only we know.
        Err(error) => return error.to_string(),
    };
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    cut(format!("it panicked: {}", text.unwrap_or("with something that is no text")))
}

fn cut(mut words: String) -> String {
    if words.len() > WORDS_MAX {
        let end = (0..=WORDS_MAX).rev().find(|at| words.is_char_boundary(*at));
        words.truncate(end.unwrap_or(0));
        words.push('…');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::super::policy::HandlerError;
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot bill")]
    struct CannotBill(#[source] std::io::Error);

    #[test]
    fn an_error_is_told_with_what_it_comes_from() {
        let error: HandlerError = CannotBill(std::io::Error::other("no ink")).into();
        assert_eq!(words(&*error), "cannot bill: no ink");
        let long: HandlerError = "ä".repeat(2000).into();
        let told = words(&*long);
        assert!(told.len() < WORDS_MAX + 5 && told.ends_with('…'), "{}", told.len());
    }
}
