//! Facts to async handlers in this process, without Kafka.
//!
//! The relay's own engine reads a slot; in the place of Kafka stand the application's handlers. A fact is confirmed
//! to PostgreSQL once its handler has returned `Ok`.
//!
//! ```no_run
//! use factlib::subscribe::{Delivery, ErrorPolicy, HandlerError, Subscriber};
//!
//! # async fn bill(_: &str, _: Option<&[u8]>) -> Result<(), std::io::Error> { Ok(()) }
//! async fn order(fact: Delivery) -> Result<(), HandlerError> {
//!     if fact.event_type() == "paid" {
//!         bill(fact.aggregate_id(), fact.payload()).await?;
//!     }
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let subscriber = Subscriber::builder("postgres://billing@db/app")
//!     .slot("billing_facts")
//!     .create_if_missing(true)
//!     .prefix("orders")
//!     .on("order", order)
//!     .build()?;
//! let standing = subscriber.standing();
//! let stopped = subscriber.run(async { drop(tokio::signal::ctrl_c().await) }).await?;
//! println!("confirmed up to {}, {} facts come again", stopped.confirmed, stopped.left);
//! # Ok(())
//! # }
//! ```
//!
//! # Order
//!
//! Facts of one [`Aggregate`] (prefix, aggregate type and aggregate id) are handled one after the other, in the order
//! in which their transactions committed: the next one's handler is called when the one before is done with. Facts of
//! different aggregates are handled side by side, up to [`Builder::concurrency`], in no order that could be relied
//! on. A fact that fails holds up its aggregate and no other, until the window is full
//! ([`Builder::in_flight_bytes`]): what lies behind it cannot be confirmed, and would come again after a crash.
//!
//! A fact may be handled before the rows of its transaction are visible to other sessions: PostgreSQL writes the commit
//! to its log, and to us, a moment before it lets others see it (with synchronous replication that can be long). A
//! handler that needs a row should treat its absence as an error, and be called again.
//!
//! # Duplicates
//!
//! Delivery is at least once. A fact comes again after a crash of the process, or of both it and PostgreSQL; after a
//! failover; after a stop, if one before it was not done with; when its handler failed after it had done its work; and, now and then, in
//! another process: one that loses its slot (its connection broke, it was stopped for a while) lets the handlers that
//! are under way go on, and begins no other, while a second process may take the slot and handle the same facts. Repeats
//! are byte for byte the same, with the same [`Delivery::id`] and the same [`Delivery::position`].
//!
//! So handlers must be idempotent. Where the effects are rows of one database there are two ways, both in the same
//! transaction as the effects:
//!
//! * **Keep the ids** that were handled, and leave out what is there.
//! * **Keep the highest position for each aggregate**, and leave out what is not higher. The aggregate is the right
//!   grain: aggregates overtake each other, and one position for all of a slot would leave out facts that were never
//!   handled. Write the position in one statement with the comparison, so that two processes cannot pass each other:
//!
//! ```sql
//! INSERT INTO handled (prefix, aggregate_type, aggregate_id, position) VALUES ($1, $2, $3, $4)
//!     ON CONFLICT (prefix, aggregate_type, aggregate_id) DO UPDATE SET position = excluded.position
//!     WHERE handled.position < excluded.position;   -- no row changed: handled already
//! ```
//!
//! `position` is the text of [`Delivery::position`] (`position text COLLATE "C"`): the order of its bytes is delivery
//! order, also across a failover.
//!
//! # Errors
//!
//! A handler has failed if it returns an error, panics, or takes longer than [`Builder::handler_timeout`]. What follows
//! is up to [`ErrorPolicy`]; no fact is ever passed over without one of these. A message that is no fact goes by
//! [`UnreadablePolicy`].
//!
//! ```no_run
//! use factlib::subscribe::{DeadLetter, ErrorPolicy, Subscriber, UnreadablePolicy};
//! use std::num::NonZeroU32;
//! use std::time::Duration;
//!
//! # struct Table;
//! # impl Table { async fn keep(&self, _: &str, _: &str) -> Result<(), std::io::Error> { Ok(()) } }
//! # fn build(table: std::sync::Arc<Table>) -> Result<(), Box<dyn std::error::Error>> {
//! let policy = ErrorPolicy::dead_letter_after(NonZeroU32::MIN.saturating_add(9), move |letter: DeadLetter| {
//!     let table = table.clone();
//!     async move { Ok(table.keep(letter.delivery.id(), &letter.error).await?) }
//! });
//! let subscriber = Subscriber::builder("postgres://billing@db/app")
//!     .slot("billing_facts")
//!     .prefix("orders")
//!     .handler(|fact| async move { Err(format!("nobody knows {}", fact.event_type()).into()) })
//!     .handler_timeout(Duration::from_secs(60))
//!     .on_error(policy.pauses(Duration::from_millis(200), Duration::from_secs(5)))
//!     .on_unreadable(UnreadablePolicy::skip())
//!     .build()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Slow handlers
//!
//! Memory is bounded whatever waits: the window says how much is read ahead. When it stays full the subscriber hangs
//! up, so that PostgreSQL is not kept from checkpoints, shutdowns and other walsenders' work, and comes back as soon as
//! something moves, and else every five seconds. Handlers that are under way go on meanwhile, and are not called twice
//! for it; none is begun without the slot. The log that PostgreSQL keeps for the slot grows as long as handlers are
//! slower than emitters: watch [`Standing::lag_bytes`].

mod builder;
mod counter;
mod delivery;
mod desk;
mod error;
mod policy;
mod schedule;
mod sink;
mod standing;

pub use builder::Builder;
pub use delivery::{Aggregate, DeadLetter, Delivery, Unreadable};
pub use error::{BuildError, Error, Halted, Stopped};
pub use policy::{ErrorPolicy, HandlerError, UnreadablePolicy};
pub use standing::{BLOCKED_LISTED_MAX, Blocked, Standing, State};

pub use crate::config::RawConfig;
pub use crate::relay::gone::ExitKind;
pub use crate::relay::position::Position;
pub use factlib_protocol::Lsn;

use crate::config::Config;
use crate::postgres::Ask;
use crate::relay::compression::Compression;
use crate::relay::gone::Exit;
use crate::relay::poison::{Policies, Policy};
use crate::relay::seeded_bug::Seeded;
use crate::relay::template::{Field, Naming, Template, TemplateError};
use crate::relay::{Relay, Settings};
use crate::run::{self, drive};
use counter::Shared;
use desk::Desk;
use policy::{Callback, Unread};
use schedule::Rules;
use sink::Sink;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// The topic that the engine is made to believe in, whatever aggregate types there are.
const FACTS: &str = "facts";

/// The one of messages that are no facts.
const UNREADABLE: &str = "unreadable";

/// Calls handlers with the facts of a slot. See the [module](self).
#[derive(Debug)]
#[must_use = "it does nothing before it runs"]
pub struct Subscriber {
    config: Config,
    may_create: bool,
    rules: Rules,
    handlers: Handlers,
    standing: watch::Sender<Standing>,
}

/// Whom to call.
#[derive(Debug)]
struct Handlers {
    general: Option<Callback<Delivery>>,
    by_type: HashMap<String, Callback<Delivery>>,
    dead_letter: Option<Callback<DeadLetter>>,
    unreadable: Unread,
    timeout: Option<std::time::Duration>,
}

impl Handlers {
    fn of(&self, aggregate_type: &str) -> Option<&Callback<Delivery>> {
        self.by_type.get(aggregate_type).or(self.general.as_ref())
    }
}

impl Subscriber {
    /// A subscriber to the facts of this database: a `postgres://` URL or a `keyword=value` string with libpq's
    /// meaning. What it leaves out comes from libpq's `PG*` variables. TLS, passwords and several hosts are what they
    /// are to `owlpost`; over a network use `sslmode=verify-full`.
    pub fn builder(url: &str) -> Builder {
        let raw = RawConfig { master_database_url: Some(url.to_owned()), ..RawConfig::default() };
        Builder::new(raw)
    }

    /// The same with settings of `owlpost` as they are typed, for what [`Builder`] has no word for: password files
    /// and commands, time-outs, slots that standbys follow. What is about Kafka has no effect.
    pub fn from_settings(settings: RawConfig) -> Builder {
        Builder::new(settings)
    }

    fn new(config: Config, may_create: bool, rules: Rules, handlers: Handlers) -> Self {
        let (standing, _) = watch::channel(Standing::before_the_start());
        Self { config, may_create, rules, handlers, standing }
    }

    /// Where it stands, from now on: for probes, metrics, and tests that wait.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Handles facts until `stop` is ready, or it cannot go on. Connections that are lost are made again, for ever.
    ///
    /// When it is to stop it calls no handler any more, waits for those that are under way
    /// ([`Builder::stop_timeout`]), confirms what is done with, and leaves; what was not handled comes again.
    ///
    /// Handlers run as tasks of the runtime that polls this future, which must have its timers and I/O switched on.
    /// If they keep that from polling it for seconds, the slot may be lost to another process for a while.
    ///
    /// # Errors
    ///
    /// [`Error`], if it halts as a policy says, or cannot begin or go on. Handlers that are under way are waited for
    /// then, too.
    ///
    /// # Cancel safety
    ///
    /// To drop the future is like a crash: handlers that are under way are cut off at their next `await`, and what
    /// was not confirmed yet comes again.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<Stopped, Error> {
        let Self { config, may_create, rules, handlers, standing } = self;
        let (answers, answered) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(rules, answers));
        let slot = config.slot.clone();
        let settings = settings(&config, &handlers.unreadable).map_err(|error| Error::Server {
            kind: ExitKind::Unsuitable,
            reason: error.to_string(),
        })?;
        let mut sink = Sink::new(slot.clone(), Arc::clone(&shared), &handlers, standing);
        let mut desk = Desk::new(slot, Arc::clone(&shared), handlers);
        let ask = |known_system| Ask {
            may_create,
            ..run::ask(&config, Seeded::default(), known_system, false)
        };
        let stop = async {
            tokio::select! {
                () = stop => {}
                () = shared.halt.notified() => {}
            }
        };
        let engine = drive(Relay::new(settings), ask, answered, &mut sink, stop);
        let exit = tokio::select! {
            exit = Box::pin(engine) => exit,
            never = desk.run() => match never {},
        };
        shared.counter().schedule.stop();
        if !matches!(exit.kind, ExitKind::Stopped | ExitKind::Deadline) {
            desk.finish(config.limits.shutdown).await;
        }
        let halted = shared.counter().halted.take();
        outcome(&exit, halted, &sink, desk.running())
    }
}

fn outcome(
    exit: &Exit,
    halted: Option<Error>,
    sink: &Sink,
    cut_off: usize,
) -> Result<Stopped, Error> {
    match (halted, exit.kind) {
        (Some(error), _) => Err(error),
        (None, ExitKind::Stopped | ExitKind::Deadline) => {
            let stopped = Stopped { confirmed: sink.confirmed, left: sink.unsettled, cut_off };
            tracing::info!(
                slot = sink.slot, lsn = %stopped.confirmed, left = stopped.left, cut_off, "stopped"
            );
            Ok(stopped)
        }
        (None, kind) => {
            Err(Error::Server { kind, reason: builder::in_words_of_the_builder(&exit.reason) })
        }
    }
}

/// The relay's settings, with handlers in the place of Kafka.
fn settings(config: &Config, unreadable: &Unread) -> Result<Settings, TemplateError> {
    let general = match unreadable {
        Unread::Halt => Policy::Halt,
        Unread::Skip => Policy::Skip,
        Unread::DeadLetter(_) => Policy::DeadLetter,
    };
    let dead_letter_topic = matches!(unreadable, Unread::DeadLetter(_)).then(|| UNREADABLE.into());
    Ok(Settings {
        naming: Naming {
            topic: Template::parse(FACTS, Field::OF_TOPICS)?,
            // The envelope has everything else.
            key: Some(Template::parse("{prefix}", Field::OF_KEYS)?),
            prefixes: Vec::new(),
        },
        value_is_payload: false,
        timestamp_is_publish: false,
        metadata_headers: false,
        policies: Policies { general, by_topic: Vec::new(), dead_letter_topic },
        create_topics: None,
        skip_stored: false,
        delivery: crate::relay::Delivery::AtLeastOnce,
        compression: Compression::None,
        keeps_order: true,
        // Each fact is settled by itself: else one that is not would bring back all that it is together with.
        batch_records: 1,
        ..run::settings(config)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_can_be_spawned_on_a_runtime_of_several_threads() {
        fn is_send<T: Send>(_: &T) {}
        let subscriber = Subscriber::builder("postgres://app@db/app")
            .slot("s")
            .prefix("p")
            .handler(|_| async { Ok(()) })
            .build()
            .unwrap();
        is_send(&subscriber.run(std::future::pending()));
    }
}
