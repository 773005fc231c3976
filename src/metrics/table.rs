//! Every metric: its name, what it means, and where its value is. The documentation is made of this table, too.

use super::Metrics;
use super::render::{Samples, Shown};
use super::topics::Topic;
use super::transactions::Transactions;
use crate::relay::producer::TransactionState;
use crate::relay::{Kind, Standing};
use prometheus_client::metrics::MetricType;
use std::fmt::{self, Write as _};

/// What kind of number it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Counter,
    Gauge,
    Histogram,
    Info,
}

impl Type {
    pub(super) fn of_client(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Histogram => MetricType::Histogram,
            Self::Info => MetricType::Info,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Gauge | Self::Histogram => "",
            Self::Info => "_info",
        }
    }
}

/// What it is counted in; part of the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Bytes,
}

impl Unit {
    pub(super) fn of_client(self) -> Option<prometheus_client::registry::Unit> {
        Some(match self {
            Self::Seconds => prometheus_client::registry::Unit::Seconds,
            Self::Bytes => prometheus_client::registry::Unit::Bytes,
        })
    }

    fn word(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
        }
    }
}

/// One metric.
pub(super) struct Metric {
    /// Its name without unit and suffix.
    pub(super) base: &'static str,
    pub(super) kind: Type,
    pub(super) unit: Option<Unit>,
    labels: &'static [&'static str],
    help: &'static str,
    pub(super) samples: fn(&Shown, &mut Samples<'_>) -> fmt::Result,
}

impl Metric {
    /// As it is scraped.
    fn name(&self) -> String {
        let unit = self.unit.map_or(String::new(), |unit| format!("_{}", unit.word()));
        format!("{}{unit}{}", self.base, self.kind.suffix())
    }

    pub(super) fn help_text(&self) -> String {
        format!("{}.", self.help)
    }
}

macro_rules! metrics {
    ($( $base:literal, $kind:ident $(in $unit:ident)?, [$($label:literal),*], $help:literal, $samples:expr; )*) => {
        /// All metrics, in the order of a scrape.
        pub(super) static METRICS: &[Metric] = &[$(
            Metric {
                base: $base,
                kind: Type::$kind,
                unit: metrics!(@unit $($unit)?),
                labels: &[$($label),*],
                help: $help,
                samples: $samples,
            },
        )*];
    };
    (@unit) => { None };
    (@unit $unit:ident) => { Some(Unit::$unit) };
}

metrics! {
    "owlpost_build", Info, ["version"], "The version of owlpost",
        |_, out| out.info(&[("version", env!("CARGO_PKG_VERSION"))]);
    "owlpost_ready", Gauge, [], "1 while facts flow, or would if there were any; what /readyz says",
        |s, out| out.gauge(&[], u64::from(s.view.ready));
    "owlpost_live", Gauge, [], "1 while the main loop moves; what /livez says",
        |s, out| out.gauge(&[], u64::from(s.view.live));
    "owlpost_state", Gauge, ["state"], "1 for what the relay is doing, 0 for all else",
        |s, out| out.one_of("state", s.view.states, s.view.state);
    "owlpost_exit_code", Gauge, [],
        "The exit code that the process will end with; absent unless it has failed for good",
        |s, out| s.view.exit_code.map_or(Ok(()), |code| out.gauge(&[], code.into()));

    "owlpost_lag", Gauge in Seconds, [],
        "Age of the oldest commit that was read and that Kafka has not acknowledged, by the server's clock; 0 when there is none",
        |s, out| out.gauge_f64(s.view.lag_seconds());
    "owlpost_lag", Gauge in Bytes, [],
        "Write-ahead log between what Kafka has and the server's end; 0 when none of it is ours, as far as it was read, and for a relay that waits for the slot",
        |s, out| out.gauge(&[], s.view.lag_bytes());
    "owlpost_received_lsn", Gauge, [], "Everything before this position was read in this session; absent without one",
        |s, out| position(s, out, |standing| standing.received.0);
    "owlpost_published_lsn", Gauge, [], "Everything before this position is in Kafka for good",
        |s, out| position(s, out, |standing| standing.confirmed.0);
    "owlpost_confirmed_lsn", Gauge, [], "Everything before this position was reported to PostgreSQL as flushed",
        |s, out| position(s, out, |standing| standing.told.0);
    "owlpost_server_wal_lsn", Gauge, [], "The end of the server's write-ahead log, as far as it has told",
        |s, out| position(s, out, |standing| s.view.slot.as_ref().map_or(0, |slot| slot.wal_flushed.0).max(standing.wal_end.0));
    "owlpost_timeline", Gauge, [], "The server's timeline; it rises with each failover",
        |s, out| position(s, out, |standing| standing.timeline.into());

    "owlpost_in_flight_facts", Gauge, [], "Facts that were read and that Kafka has not acknowledged",
        |s, out| standing(s, |standing| out.gauge(&[], standing.unsettled_facts as u64));
    "owlpost_in_flight", Gauge in Bytes, [], "The same in bytes of record batches, before compression",
        |s, out| standing(s, |standing| out.gauge(&[], standing.unsettled_bytes as u64));
    "owlpost_window", Gauge in Bytes, [],
        "What counts against IN_FLIGHT_BYTES: bytes since the oldest batch that is not acknowledged, and those that PostgreSQL was not told of",
        |s, out| standing(s, |standing| out.gauge(&[], standing.window_bytes));
    "owlpost_window_limit", Gauge in Bytes, [], "IN_FLIGHT_BYTES",
        |s, out| standing(s, |standing| out.gauge(&[], standing.window_limit));
    "owlpost_blocked_partitions", Gauge, [], "Partitions that do not take what they are given",
        |s, out| standing(s, |standing| out.gauge(&[], standing.blocked_count as u64));
    "owlpost_blocked", Gauge in Seconds, [], "How long the longest of them has not; 0 when there is none",
        |s, out| out.gauge_f64(s.view.blocked_seconds());

    "owlpost_facts", Counter, ["topic", "outcome"],
        "Facts by what became of them: published, dead_lettered (and then published to the dead-letter topic), skipped",
        |s, out| by_outcome(s, out, |amount| amount.facts);
    "owlpost_fact", Counter in Bytes, ["topic", "outcome"],
        "The same in bytes of record batches, before compression",
        |s, out| by_outcome(s, out, |amount| amount.bytes);
    "owlpost_facts_read", Counter, [], "Facts that were read from the write-ahead log",
        |s, out| standing(s, |standing| {
            let (published, given_up) = standing.other_kinds;
            let kinds: u64 = standing.kinds.iter().map(|kind| kind.published + kind.given_up).sum();
            out.counter(&[], kinds + published + given_up)
        });
    "owlpost_received", Counter in Bytes, [], "Bytes that were read from the replication stream, others' messages included",
        |s, out| standing(s, |standing| out.counter(&[], standing.received_bytes));
    "owlpost_commit_to_ack", Histogram in Seconds, [],
        "From commit to Kafka's acknowledgement, by the server's clock, weighted by facts; of a batch, half of the facts count as old as the oldest commit in it, half as young as the youngest",
        |s, out| out.histogram(&[], &metrics(s).commit_to_ack);
    "owlpost_batch_records", Histogram, [], "Facts in a batch that was stored",
        |s, out| out.histogram(&[], &metrics(s).batch_records);
    "owlpost_batch", Histogram in Bytes, [], "Size of a batch that was stored, before compression",
        |s, out| out.histogram(&[], &metrics(s).batch_bytes);

    "owlpost_kafka_request", Histogram in Seconds, ["api"],
        "From handing a request to its connection to the broker's answer, if there was one",
        |s, out| metrics(s).requests.iter().try_for_each(|(api, served)| {
            out.histogram(&[("api", api.as_str())], &served.seconds)
        });
    "owlpost_kafka_requests", Counter, ["api", "outcome"], "Requests to Kafka: answered, or unanswered",
        |s, out| metrics(s).requests.iter().try_for_each(|(api, served)| {
            let api = ("api", api.as_str());
            out.counter(&[api, ("outcome", "answered")], served.answered)?;
            out.counter(&[api, ("outcome", "unanswered")], served.unanswered)
        });
    "owlpost_kafka_sent", Counter in Bytes, [], "Bytes of record batches in Produce requests, compressed, repetitions included",
        |s, out| out.counter(&[], metrics(s).requests.sent_bytes);
    "owlpost_kafka_retries", Counter, ["error"],
        "Batches that were sent and not stored, or not known to be, by Kafka's name of the error; NETWORK_EXCEPTION is no answer",
        |s, out| metrics(s).not_stored.iter().try_for_each(|(error, count)| {
            out.counter(&[("error", error)], *count)
        });
    "owlpost_kafka_throttled", Counter in Seconds, [], "How long brokers asked to be left alone, by quota",
        |s, out| out.counter_f64(metrics(s).throttled.as_secs_f64());
    "owlpost_sequences_lost", Counter, [], "How often a partition's sequence had to begin anew",
        |s, out| out.counter(&[], metrics(s).sequences_lost);
    "owlpost_facts_maybe_repeated", Counter, [], "Facts that may be stored twice because of that",
        |s, out| out.counter(&[], metrics(s).facts_maybe_repeated);
    "owlpost_topics_created", Counter, ["outcome"], "Topics that KAFKA_CREATE_TOPICS asked for: created, refused",
        |s, out| {
            out.counter(&[("outcome", "created")], metrics(s).topics_created)?;
            out.counter(&[("outcome", "refused")], metrics(s).topics_not_created)
        };

    "owlpost_transaction_state", Gauge, ["state"],
        "1 for where the relay's Kafka transactions stand, 0 for all else. This and the following are absent unless DELIVERY is exactly-once",
        |s, out| standing(s, |standing| standing.transaction.map_or(Ok(()), |holds| {
            let states = TransactionState::ALL.map(TransactionState::as_str);
            out.one_of("state", &states, holds.as_str())
        }));
    "owlpost_transaction_open", Gauge in Seconds, [],
        "How long the Kafka transaction has been open that may be, for which consumers of committed records wait; 0 when there is none",
        |s, out| transactions(s, |_| out.gauge_f64(s.view.transaction_seconds()));
    "owlpost_transactions_committed", Counter, [], "Kafka transactions that were committed, those of nothing but a position included",
        |s, out| transactions(s, |all| out.counter(&[], all.committed));
    "owlpost_transactions_aborted", Counter, ["reason"],
        "Kafka transactions that were given up: unanswered, refused (it had expired, or another relay has come), read_in_part (the connection to PostgreSQL was lost within a transaction, or a fact halts), dropped (another may have published what is held), given_up (a batch of it was, by policy), topic_made_anew, postgres_away (for longer than STALL_TIMEOUT), halted (Kafka does not take a fact, and nothing is published until somebody sees to that). Their facts go again in another one; one that is then found to be committed counts there, too",
        |s, out| transactions(s, |all| all.aborted.iter().try_for_each(|(reason, count)| {
            out.counter(&[("reason", reason)], *count)
        }));
    "owlpost_transactions_split", Counter, [], "Transactions of PostgreSQL that were too large for one of Kafka, and went in several",
        |s, out| transactions(s, |all| out.counter(&[], all.split));
    "owlpost_transaction_phase", Histogram in Seconds, ["phase"],
        "Where the time of a Kafka transaction went: producing (from its begin until nothing was added any more), closing (until its facts were stored and the position was in it), ending (until it was committed); and recovering, from when one was given up until transactions went on",
        |s, out| transactions(s, |all| all.phases().into_iter().try_for_each(|(phase, seconds)| {
            out.histogram(&[("phase", phase)], seconds)
        }));
    "owlpost_transaction_facts", Histogram, [], "Facts in a Kafka transaction that was committed; 0 in one of nothing but a position",
        |s, out| transactions(s, |all| out.histogram(&[], &all.facts));
    "owlpost_transaction", Histogram in Bytes, [], "The same in bytes of record batches, before compression",
        |s, out| transactions(s, |all| out.histogram(&[], &all.bytes));
    "owlpost_transactional_id_inits", Counter, [],
        "How often the transactional id was initialised, each time with the next epoch: at the start, and whenever a transaction was given up",
        |s, out| transactions(s, |all| out.counter(&[], all.initialised));
    "owlpost_fenced", Counter, [], "How often another relay, or somebody else, had taken the transactional id",
        |s, out| transactions(s, |all| out.counter(&[], all.fenced));

    "owlpost_stalls", Counter, [], "How often Kafka did not take what was read for longer than STALL_TIMEOUT",
        |s, out| out.counter(&[], metrics(s).stalls);
    "owlpost_halts", Counter, [], "How often a fact that cannot be published has stopped the relay",
        |s, out| out.counter(&[], metrics(s).halts);
    "owlpost_streams", Counter, [], "How often the stream from PostgreSQL was begun; beyond the first, these are reconnects",
        |s, out| out.counter(&[], metrics(s).streams);
    "owlpost_disconnects", Counter, ["reason"],
        "Ends of the connection to PostgreSQL, and attempts in vain: lost, refused, stalled (we hung up because Kafka did not take what was read), silent (no answer), unreadable, fenced (somebody else may publish), asking (at a stop, or where the log ends)",
        |s, out| metrics(s).ends.iter().try_for_each(|(end, count)| out.counter(&[("reason", end)], *count));
    "owlpost_slot_waits", Counter, [], "How often another session had the slot",
        |s, out| out.counter(&[], metrics(s).slot_waits);
    "owlpost_slot_moves", Counter, [], "How often the slot was further than this relay left it",
        |s, out| out.counter(&[], metrics(s).slot_moves);
    "owlpost_timeline_changes", Counter, [], "Failovers that were followed",
        |s, out| out.counter(&[], metrics(s).timeline_changes);

    "owlpost_slot_active", Gauge, [], "1 while a session has the slot. This and the following are asked of the server every SLOT_POLL_INTERVAL, and absent if it does not answer",
        |s, out| slot(s, |slot| out.gauge(&[], slot.active.into()));
    "owlpost_slot_wal_status", Gauge, ["status"], "1 for the slot's wal_status: reserved and extended are good, unreserved is a last warning, lost is the end",
        |s, out| slot(s, |slot| out.one_of("status", &["reserved", "extended", "unreserved", "lost"], &slot.wal_status));
    "owlpost_slot_invalidated", Gauge, ["reason"], "1 if the server has invalidated the slot, with its reason (PostgreSQL 17 and later); absent otherwise",
        |s, out| slot(s, |slot| slot.invalidation_reason.as_deref().map_or(Ok(()), |reason| {
            out.gauge(&[("reason", reason)], 1)
        }));
    "owlpost_slot_retained", Gauge in Bytes, [], "Write-ahead log that the server keeps because of the slot",
        |s, out| slot(s, |slot| slot.retained_bytes.map_or(Ok(()), |bytes| out.gauge(&[], bytes)));
    "owlpost_slot_safe_wal", Gauge in Bytes, [], "safe_wal_size: write-ahead log that can still be written before the slot may be lost; absent if max_slot_wal_keep_size does not limit it",
        |s, out| slot(s, |slot| slot.safe_wal_bytes.map_or(Ok(()), |bytes| out.gauge_i64(bytes)));
    "owlpost_slot_loss", Gauge in Seconds, [], "When the slot may be lost if it does not move and WAL is written as in the last five minutes; absent without a limit or without WAL",
        |s, out| slot(s, |slot| slot.seconds_to_loss().map_or(Ok(()), |seconds| out.gauge_f64(seconds)));
    "owlpost_walsender_unsent", Gauge in Bytes, [], "Flushed write-ahead log, whoever's, that the walsender has not read for us yet; absent while not streaming",
        |s, out| slot(s, |slot| slot.unsent_bytes.map_or(Ok(()), |bytes| out.gauge(&[], bytes)));
    "owlpost_server_wal_bytes_per_second", Gauge, [], "How fast the server writes WAL, over the last five minutes",
        |s, out| slot(s, |slot| slot.wal_rate.map_or(Ok(()), |rate| out.gauge_f64(rate)));
    "owlpost_oldest_transaction", Gauge in Seconds, [], "How long the oldest open transaction of the server that has written has lasted: the slot keeps WAL from its begin; absent unless the role is in pg_monitor",
        |s, out| slot(s, |slot| slot.oldest_transaction.map_or(Ok(()), |seconds| out.gauge_f64(seconds)));
    "owlpost_other_slots", Gauge, ["state"], "The server's other slots: active, inactive, lost",
        |s, out| slot(s, |slot| {
            out.gauge(&[("state", "active")], slot.others.active)?;
            out.gauge(&[("state", "inactive")], slot.others.inactive)?;
            out.gauge(&[("state", "lost")], slot.others.lost)
        });
    "owlpost_other_slots_retained", Gauge in Bytes, [], "The most write-ahead log that one of them keeps",
        |s, out| slot(s, |slot| out.gauge(&[], slot.others.retained_bytes));
    "owlpost_slot_poll_failures", Counter, [], "How often the server could not be asked about the slot",
        |s, out| out.counter(&[], s.view.slot_poll_failures);
    "owlpost_log_lines_dropped", Counter, [], "Log lines dropped because nobody read them",
        |s, out| out.counter(&[], s.view.dropped_log_lines);

    "process_cpu", Counter in Seconds, [], "User and system time of the process",
        |s, out| s.process.cpu_seconds.map_or(Ok(()), |seconds| out.counter_f64(seconds));
    "process_resident_memory", Gauge in Bytes, [], "Resident memory of the process",
        |s, out| s.process.resident_bytes.map_or(Ok(()), |bytes| out.gauge(&[], bytes));
    "process_open_fds", Gauge, [], "Open file descriptors",
        |s, out| s.process.open_fds.map_or(Ok(()), |fds| out.gauge(&[], fds));
    "process_start_time", Gauge in Seconds, [], "When the process was started, in seconds since 1970",
        |s, out| s.process.start_seconds.map_or(Ok(()), |seconds| out.gauge_f64(seconds));

    "factlib_events_consumed", Counter, ["aggregate_type", "event_type"], "As factlib: facts that were read",
        |s, out| by_kind(s, out, &[], |kind| kind.published + kind.given_up);
    "factlib_event_handler_success", Counter, ["aggregate_type", "event_type"], "As factlib: facts that were given to the producer",
        |s, out| by_kind(s, out, &[], |kind| kind.published);
    "factlib_event_handler_failures", Counter, ["aggregate_type", "event_type", "error_type"],
        "As factlib: facts that were skipped or became dead letters before they were sent; error_type is handler_error",
        |s, out| by_kind(s, out, &[("error_type", "handler_error")], |kind| kind.given_up);
    "factlib_event_handler_latency", Histogram in Seconds, [],
        "How long Produce requests took. factlib has it by aggregate and event type, and always near 0, because it measures before it calls",
        |s, out| {
            let mut all = super::Histogram::new(super::histogram::FACTLIB_SECONDS);
            metrics(s).topics.iter().for_each(|topic| all.merge(&topic.produce));
            out.histogram(&[], &all)
        };
    "factlib_kafka_produce_success", Counter, ["topic"], "As factlib: facts that Kafka has",
        |s, out| by_topic(s, |topic| out.counter(&[("topic", &topic.name)], topic.published.facts));
    "factlib_kafka_produce_failures", Counter, ["topic", "error_type"],
        "As factlib, which gives up then: facts in batches that were not stored when they were sent; they are sent again. error_type is produce_error",
        |s, out| by_topic(s, |topic| {
            out.counter(&[("topic", &topic.name), ("error_type", "produce_error")], topic.not_stored)
        });
    "factlib_kafka_produce_latency", Histogram in Seconds, ["topic"], "As factlib: how long Produce requests took, weighted by facts",
        |s, out| by_topic(s, |topic| out.histogram(&[("topic", &topic.name)], &topic.produce));
    "factlib_wal_replication_errors", Counter, ["slot", "error_type"],
        "As factlib: receive_message is a lost connection, pg_error a refusal, standby_status_update a silent server, parse_xlogdata what cannot be read",
        |s, out| {
            let names = [
                ("lost", "receive_message"),
                ("refused", "pg_error"),
                ("silent", "standby_status_update"),
                ("unreadable", "parse_xlogdata"),
            ];
            names.iter().try_for_each(|(end, name)| {
                let count = metrics(s).ends.get(end).copied().unwrap_or(0);
                out.counter(&[("slot", &s.view.slot_name), ("error_type", name)], count)
            })
        };
}

fn metrics(shown: &Shown) -> &Metrics {
    &shown.view.metrics
}

/// Nothing is shown before there is something to show.
fn standing(shown: &Shown, show: impl FnOnce(&Standing) -> fmt::Result) -> fmt::Result {
    shown.view.standing.as_deref().map_or(Ok(()), show)
}

/// Nothing is shown where facts do not go in transactions.
fn transactions(shown: &Shown, show: impl FnOnce(&Transactions) -> fmt::Result) -> fmt::Result {
    standing(shown, |standing| match standing.transaction {
        Some(_) => show(&metrics(shown).transactions),
        None => Ok(()),
    })
}

fn slot(shown: &Shown, show: impl FnOnce(&super::SlotFacts) -> fmt::Result) -> fmt::Result {
    shown.view.slot.as_deref().map_or(Ok(()), show)
}

/// A position; 0 is none.
fn position(
    shown: &Shown,
    out: &mut Samples<'_>,
    of: impl FnOnce(&Standing) -> u64,
) -> fmt::Result {
    standing(shown, |standing| match of(standing) {
        0 => Ok(()),
        position => out.gauge(&[], position),
    })
}

fn by_topic(shown: &Shown, show: impl FnMut(&Topic) -> fmt::Result) -> fmt::Result {
    metrics(shown).topics.iter().try_for_each(show)
}

fn by_outcome(
    shown: &Shown,
    out: &mut Samples<'_>,
    of: impl Fn(&super::topics::Amount) -> u64,
) -> fmt::Result {
    by_topic(shown, |topic| {
        let name = ("topic", &*topic.name);
        out.counter(&[name, ("outcome", "published")], of(&topic.published))?;
        // Most topics never have any of these.
        for (outcome, amount) in
            [("dead_lettered", topic.dead_lettered), ("skipped", topic.skipped)]
        {
            if amount.facts > 0 {
                out.counter(&[name, ("outcome", outcome)], of(&amount))?;
            }
        }
        Ok(())
    })
}

fn by_kind(
    shown: &Shown,
    out: &mut Samples<'_>,
    more: &[(&str, &str)],
    of: impl Fn(&Kind) -> u64,
) -> fmt::Result {
    standing(shown, |standing| {
        let (published, given_up) = standing.other_kinds;
        let (aggregate_type, event_type) = (super::OTHER.into(), super::OTHER.into());
        let others = Kind { aggregate_type, event_type, published, given_up };
        let others = Some(&others).filter(|_| published + given_up > 0);
        for kind in standing.kinds.iter().chain(others) {
            let count = of(kind);
            if count > 0 {
                let mut labels = vec![
                    ("aggregate_type", &*kind.aggregate_type),
                    ("event_type", &*kind.event_type),
                ];
                labels.extend_from_slice(more);
                out.counter(&labels, count)?;
            }
        }
        Ok(())
    })
}

/// The table of `docs/metrics.md`.
pub fn markdown() -> String {
    let mut text = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for metric in METRICS {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind) = (metric.name(), metric.kind.word());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{name}` | {kind} | {} | {} |", labels.join(", "), metric.help);
    }
    text
}
