//! From what the application says to a subscriber, or to everything that is wrong with it.

use super::delivery::Delivery;
use super::error::BuildError;
use super::policy::{Callback, ErrorPolicy, HandlerError, UnreadablePolicy};
use super::{Handlers, Subscriber};
use crate::config::{Config, Needs, RawConfig};
use std::collections::HashMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::time::Duration;

/// What a subscriber is to do. Nothing is contacted before [`Subscriber::run`].
#[derive(Debug)]
#[must_use]
pub struct Builder {
    raw: RawConfig,
    prefixes: Vec<String>,
    create_if_missing: bool,
    general: Option<Callback<Delivery>>,
    by_type: HashMap<String, Callback<Delivery>>,
    concurrency: NonZeroUsize,
    handler_timeout: Option<Duration>,
    on_error: ErrorPolicy,
    on_unreadable: UnreadablePolicy,
}

/// A setting of the relay, and what it is called here.
const CALLED_HERE: [(&str, &str); 9] = [
    ("SRC_SERVICE_NAME", "prefix"),
    ("WAL_PREFIX", "prefix"),
    ("MASTER_DATABASE_URL", "the URL"),
    ("REPLICATION_SLOT_NAME", "slot"),
    ("PUBLICATION_NAME", "publication"),
    ("IN_FLIGHT_BYTES", "in_flight_bytes"),
    ("SHUTDOWN_TIMEOUT", "stop_timeout"),
    ("STARTUP_TIMEOUT", "startup_timeout"),
    ("APP_NAME", "application_name"),
];

/// The same for what only stands in the relay's sentences.
const NAMED_HERE: [(&str, &str); 3] = [
    ("POISON_POLICY", "Builder::on_unreadable"),
    ("FRAME_MAX_BYTES", "RawConfig::frame_max_bytes"),
    ("REPLICATION_SLOT_FAILOVER", "RawConfig::replication_slot_failover"),
];

/// A sentence of the relay's, with what its settings are called here.
pub(super) fn in_words_of_the_builder(sentence: &str) -> String {
    let mut words = sentence.to_owned();
    for (setting, here) in CALLED_HERE.iter().chain(&NAMED_HERE) {
        if words.contains(setting) {
            words = words.replace(setting, here);
        }
    }
    words
}

impl Builder {
    pub(super) fn new(raw: RawConfig) -> Self {
        Self {
            raw,
            prefixes: Vec::new(),
            create_if_missing: false,
            general: None,
            by_type: HashMap::new(),
            concurrency: NonZeroUsize::MIN.saturating_add(15),
            handler_timeout: None,
            on_error: ErrorPolicy::default(),
            on_unreadable: UnreadablePolicy::default(),
        }
    }

    /// The replication slot: 1 to 63 of a-z, 0-9 and `_`. It is this subscriber's alone; every group of processes
    /// that is to see each fact needs one. Of several processes with the same slot one has it, the others wait.
    pub fn slot(mut self, name: &str) -> Self {
        self.raw.replication_slot_name = Some(name.to_owned());
        self
    }

    /// The publication, at most 63 bytes; unless said, of the slot's name. It stays empty, and belongs to the slot:
    /// two slots have two publications, because its comment says what the slot was made for.
    pub fn publication(mut self, name: &str) -> Self {
        self.raw.publication_name = Some(name.to_owned());
        self
    }

    /// Makes slot and publication, as `owlpost init` does, if neither is there at the first contact: facts that are
    /// committed after that are delivered, earlier ones are not. Never one that is lost, nor later: facts would be
    /// missing silently. Off unless said.
    pub fn create_if_missing(mut self, create: bool) -> Self {
        self.create_if_missing = create;
        self
    }

    /// A prefix (the second argument of `pg_logical_emit_message`) whose messages are facts for us; 1 to 200 of
    /// a-z, A-Z, 0-9, `.`, `_` and `-`. May be said more than once.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefixes.push(prefix.to_owned());
        self
    }

    /// Is called for each fact that none of [`on`](Self::on) is for.
    ///
    /// It may be called again with a fact that it has handled (see [duplicates](super#duplicates)). When it returns
    /// `Ok` the fact is done with; whatever else happens, an error or a panic, is up to
    /// [`on_error`](Self::on_error). It runs as a task of the runtime that [`Subscriber::run`] is polled in, and
    /// must not block it.
    pub fn handler<F, A>(mut self, handler: F) -> Self
    where
        F: Fn(Delivery) -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.general = Some(Callback::new(handler));
        self
    }

    /// The same for the facts of one aggregate type, of any prefix. Facts that no handler is for are passed over.
    pub fn on<F, A>(mut self, aggregate_type: &str, handler: F) -> Self
    where
        F: Fn(Delivery) -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.by_type.insert(aggregate_type.to_owned(), Callback::new(handler));
        self
    }

    /// How many handlers are under way at once, each of another aggregate; 16 unless said.
    pub fn concurrency(mut self, handlers: NonZeroUsize) -> Self {
        self.concurrency = handlers;
        self
    }

    /// How long a call may take; one that takes longer is dropped at its next `await`, and has failed. No limit
    /// unless said.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.handler_timeout = Some(timeout);
        self
    }

    /// What becomes of a fact that its handler does not take; [`ErrorPolicy::retry`] unless said.
    pub fn on_error(mut self, policy: ErrorPolicy) -> Self {
        self.on_error = policy;
        self
    }

    /// What becomes of a message that is no fact; [`UnreadablePolicy::halt`] unless said.
    pub fn on_unreadable(mut self, policy: UnreadablePolicy) -> Self {
        self.on_unreadable = policy;
        self
    }

    /// The window, from 1 MiB to 1 GiB, 8 MiB unless said: so many encoded bytes since the oldest fact that is not
    /// done with may be read. It bounds memory (about three times as much at worst), and what comes again after a
    /// crash, but for a larger transaction.
    pub fn in_flight_bytes(mut self, bytes: usize) -> Self {
        self.raw.in_flight_bytes = Some(format!("{bytes}B"));
        self
    }

    /// How long handlers that are under way may take when the subscriber is to stop, at most 1 h; 10 s unless said.
    pub fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.raw.shutdown_timeout = Some(humantime::format_duration(timeout).to_string());
        self
    }

    /// How long the first contact with PostgreSQL may take, at most a day; 30 s unless said, zero tries for ever.
    pub fn startup_timeout(mut self, timeout: Duration) -> Self {
        self.raw.startup_timeout = Some(humantime::format_duration(timeout).to_string());
        self
    }

    /// `application_name` of the session, 1 to 63 printable ASCII characters; the slot's name unless said.
    pub fn application_name(mut self, name: &str) -> Self {
        self.raw.app_name = Some(name.to_owned());
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    ///
    /// Every mistake at once.
    pub fn build(mut self) -> Result<Subscriber, BuildError> {
        let mut problems = Vec::new();
        if self.general.is_none() && self.by_type.is_empty() {
            problems.push("handler: there is none; say what is to be done with facts".to_owned());
        }
        if self.prefixes.iter().any(|prefix| prefix.contains(',')) {
            problems.push("prefix: one has a comma; call it once for each".to_owned());
        }
        if !self.prefixes.is_empty() {
            self.raw.wal_prefix = Some(self.prefixes.join(","));
        }
        let raw = &mut self.raw;
        match raw.replication_slot_name.clone() {
            // The relay's own is what it would be otherwise.
            None => problems.push("slot: not set; name one that is this subscriber's".to_owned()),
            Some(slot) => {
                raw.publication_name.get_or_insert_with(|| slot.clone());
                raw.app_name.get_or_insert(slot);
            }
        }
        let needs = Needs { service: true, postgres: true, kafka: false, dead_letters: false };
        match Config::for_command(raw, needs, |name| std::env::var(name).ok()) {
            Ok(config) if problems.is_empty() => {
                let Self { general, by_type, on_error, on_unreadable, .. } = self;
                let handlers = Handlers {
                    general,
                    by_type,
                    dead_letter: on_error.dead_letter().cloned(),
                    unreadable: on_unreadable.0,
                    timeout: self.handler_timeout,
                };
                let rules = on_error.rules(self.concurrency.get());
                return Ok(Subscriber::new(config, self.create_if_missing, rules, handlers));
            }
            Ok(_) => {}
            Err(found) => problems.extend(found.iter().map(|problem| {
                let mut names = CALLED_HERE.iter();
                let here = names.find(|(setting, _)| *setting == problem.setting);
                let name = here.map_or(problem.setting, |(_, name)| *name);
                format!("{name}: {}", problem.sentence)
            })),
        }
        Err(BuildError(problems))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Builder {
        Subscriber::builder("postgres://app@db/app")
            .slot("billing_facts")
            .prefix("orders")
            .handler(|_| async { Ok(()) })
    }

    fn problems(builder: Builder) -> Vec<String> {
        builder.build().unwrap_err().problems().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_not_said_is_derived_from_the_slot() {
        let subscriber = complete().build().unwrap();
        assert_eq!(subscriber.config.publication, "billing_facts");
        assert_eq!(subscriber.config.prefixes, ["orders"]);
        assert_eq!(subscriber.rules.concurrency, 16);
        let other = complete().publication("facts").prefix("b").build().unwrap();
        assert_eq!(other.config.publication, "facts");
        assert_eq!(other.config.prefixes, ["orders", "b"]);
    }

    #[test]
    fn every_mistake_is_told_at_once_in_the_words_of_the_builder() {
        let found = problems(Subscriber::builder("http://x").prefix("a b").in_flight_bytes(1));
        for name in ["handler: ", "slot: ", "the URL: ", "prefix: ", "in_flight_bytes: "] {
            assert!(found.iter().any(|problem| problem.starts_with(name)), "{name} in {found:?}");
        }
        assert_eq!(found.len(), 5, "{found:?}");
        let nobody =
            Subscriber::builder("postgres://app@db/app").slot("s").handler(|_| async { Ok(()) });
        assert!(problems(nobody)[0].starts_with("prefix: "));
        let two = problems(complete().prefix("a,b"));
        assert_eq!(two, ["prefix: one has a comma; call it once for each"]);
    }

    #[test]
    fn sentences_of_the_relay_name_what_the_builder_has() {
        for (sentence, here) in [
            ("look at the database in MASTER_DATABASE_URL", "look at the database in the URL"),
            ("choose another REPLICATION_SLOT_NAME", "choose another slot"),
            (
                "correct the emitter, and see POISON_POLICY",
                "correct the emitter, and see Builder::on_unreadable",
            ),
            ("over FRAME_MAX_BYTES (8)", "over RawConfig::frame_max_bytes (8)"),
            ("the socket is closed", "the socket is closed"),
        ] {
            assert_eq!(in_words_of_the_builder(sentence), here);
        }
    }

    #[test]
    fn limits_are_those_of_the_relay() {
        let built = complete()
            .in_flight_bytes(2 << 20)
            .stop_timeout(Duration::from_millis(1500))
            .startup_timeout(Duration::ZERO)
            .build()
            .unwrap();
        let limits = built.config.limits;
        assert_eq!((limits.in_flight_bytes, limits.startup), (2 << 20, None));
        assert_eq!(limits.shutdown, Duration::from_millis(1500));
        let long = problems(complete().stop_timeout(Duration::from_secs(3601)));
        assert!(long[0].starts_with("stop_timeout: "), "{long:?}");
    }

    #[test]
    fn no_password_is_in_a_problem_or_in_debug() {
        let builder = Subscriber::builder("postgres://app:s3cret@db:port/app").slot("UPPER");
        assert!(!format!("{builder:?}").contains("s3cret"));
        assert!(!problems(builder).concat().contains("s3cret"));
        let built = Subscriber::builder("postgres://app:s3cret@db/app")
            .slot("s")
            .prefix("p")
            .handler(|_| async { Ok(()) })
            .build()
            .unwrap();
        assert!(!format!("{built:?}").contains("s3cret"));
    }
}
