//! Makes text of what was counted, in both formats that Prometheus asks for.

use super::process::Process;
use super::table::METRICS;
use super::{Metrics, SlotFacts, seconds_between};
use crate::relay::Standing;
use factlib_protocol::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::histogram::Histogram;

/// How the text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
    OpenMetrics,
    /// Prometheus' own older one, version 0.0.4.
    Prometheus,
}

impl Format {
    /// The one that the header `Accept` of a scrape asks for, by media type and `q`; that of people and of
    /// programs that say nothing is Prometheus' own.
    pub fn asked_for(accept: &str) -> Self {
        let mut best = (0.0, Self::Prometheus);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let format = match parts.next().unwrap_or_default() {
                "application/openmetrics-text" => Self::OpenMetrics,
                "text/plain" | "text/*" | "*/*" => Self::Prometheus,
                _ => continue,
            };
            let q = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse);
            let q = q.unwrap_or(0.0);
            if q > best.0 {
                best = (q, format);
            }
        }
        best.1
    }

    /// The header `Content-Type` of an answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// All that a scrape shows.
#[derive(Debug, Clone)]
pub struct View {
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Where the relay stands; none before it has begun.
    pub standing: Option<Arc<Standing>>,
    /// What the server says of the slot; none where it could not be asked.
    pub slot: Option<Arc<SlotFacts>>,
    /// How often it could not be asked.
    pub slot_poll_failures: u64,
    /// Facts flow, or would.
    pub ready: bool,
    /// The main loop moves, and has not come to its end.
    pub live: bool,
    /// What the relay is doing.
    pub state: &'static str,
    /// All that it can be doing.
    pub states: &'static [&'static str],
    /// The exit code, once the relay has failed for good.
    pub exit_code: Option<u8>,
    /// Log lines dropped because nobody read them.
    pub dropped_log_lines: u64,
    /// The slot's name.
    pub slot_name: String,
    /// When this is looked at.
    pub now: Instant,
    /// The same by our clock.
    pub clock: Timestamp,
}

impl View {
    /// The age in seconds of the oldest commit that was read and that Kafka has not acknowledged; 0 if there is
    /// none.
    pub fn lag_seconds(&self) -> f64 {
        let oldest = self.standing.as_ref().and_then(|standing| {
            let server_clock = Timestamp(self.clock.0.saturating_add(standing.server_ahead));
            Some(seconds_between(standing.oldest_commit?, server_clock))
        });
        oldest.unwrap_or(0.0)
    }

    /// How much WAL lies between what Kafka has and the server's end; 0 if nothing of ours is in it.
    pub fn lag_bytes(&self) -> u64 {
        let Some(standing) = &self.standing else { return 0 };
        if standing.is_caught_up || self.state == "waiting_for_slot" {
            return 0;
        }
        let end = self
            .slot
            .as_ref()
            .map_or(standing.wal_end, |slot| slot.wal_flushed.max(standing.wal_end));
        end.0.saturating_sub(standing.confirmed.0)
    }

    /// How long the Kafka transaction has been open that may be, in seconds; 0 if there is none.
    pub fn transaction_seconds(&self) -> f64 {
        let opened = self.standing.as_ref().and_then(|standing| standing.transaction_opened);
        opened.map_or(0.0, |opened| self.now.saturating_duration_since(opened).as_secs_f64())
    }

    /// How long the partition that is blocked for longest has been, in seconds; 0 if there is none.
    pub fn blocked_seconds(&self) -> f64 {
        let blocked = self.standing.as_ref().map(|standing| &standing.most_blocked);
        let since = blocked.and_then(|blocked| blocked.iter().map(|blocked| blocked.since).min());
        since.map_or(0.0, |since| self.now.saturating_duration_since(since).as_secs_f64())
    }
}

/// The text of a scrape.
///
/// # Errors
///
/// None that could happen: a `String` takes everything.
pub fn render(view: View, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Shown { view, process: Process::now() }));
    let mut text = String::with_capacity(32 * 1024);
    match format {
        Format::OpenMetrics => text::encode(&mut text, &registry)?,
        Format::Prometheus => prometheus_text::encode(&mut text, &registry)?,
    }
    Ok(text)
}

#[derive(Debug)]
pub(super) struct Shown {
    pub(super) view: View,
    pub(super) process: Process,
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in METRICS {
            let unit = metric.unit.and_then(super::table::Unit::of_client);
            let kind = metric.kind.of_client();
            let help = metric.help_text();
            let encoder = encoder.encode_descriptor(metric.base, &help, unit.as_ref(), kind)?;
            (metric.samples)(self, &mut Samples(encoder))?;
        }
        Ok(())
    }
}

/// Where the samples of one metric go.
pub(super) struct Samples<'a>(MetricEncoder<'a>);

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Samples<'_> {
    pub(super) fn counter(&mut self, labels: Labels<'_>, value: u64) -> fmt::Result {
        let none = None::<&Exemplar<NoLabelSet, u64>>;
        match labels {
            [] => self.0.encode_counter(&value, none),
            labels => self.0.encode_family(&labels)?.encode_counter(&value, none),
        }
    }

    /// A counter of something that has fractions.
    pub(super) fn counter_f64(&mut self, value: f64) -> fmt::Result {
        self.0.encode_counter(&value, None::<&Exemplar<NoLabelSet, f64>>)
    }

    pub(super) fn gauge(&mut self, labels: Labels<'_>, value: u64) -> fmt::Result {
        match labels {
            [] => self.0.encode_gauge(&value),
            labels => self.0.encode_family(&labels)?.encode_gauge(&value),
        }
    }

    pub(super) fn gauge_f64(&mut self, value: f64) -> fmt::Result {
        self.0.encode_gauge(&value)
    }

    pub(super) fn gauge_i64(&mut self, value: i64) -> fmt::Result {
        self.0.encode_gauge(&value)
    }

    /// One of these words holds.
    pub(super) fn one_of(&mut self, label: &str, words: &[&str], holds: &str) -> fmt::Result {
        words.iter().try_for_each(|word| self.gauge(&[(label, word)], u64::from(*word == holds)))
    }

    pub(super) fn info(&mut self, labels: Labels<'_>) -> fmt::Result {
        self.0.encode_info(&labels)
    }

    pub(super) fn histogram(&mut self, labels: Labels<'_>, histogram: &Histogram) -> fmt::Result {
        let (sum, count, buckets) = (histogram.sum(), histogram.count(), histogram.buckets());
        match labels {
            [] => self.0.encode_histogram::<NoLabelSet>(sum, count, &buckets, None),
            labels => self
                .0
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{OTHER, TOPICS_LABELLED_MAX, markdown};
    use super::*;
    use crate::cli::Cli;
    use crate::config::Config;
    use crate::http::Health;
    use crate::relay::Relay;
    use crate::relay::batch::Committed;
    use crate::relay::event::{AbortReason, Event, GivenUp, Phases};
    use crate::relay::kafka::{Answer, PartitionAnswer, PartitionBatch, Request};
    use crate::relay::poison::{Cause, Poison, Policy};
    use crate::relay::position::{Position, Unit};
    use crate::relay::producer::TransactionState;
    use crate::run;
    use bytes::Bytes;
    use factlib_protocol::Lsn;
    use std::time::Duration;
    use testkit::Scrape;

    const START: Timestamp = Timestamp(1_000_000_000);

    fn settled(topic: &str, facts: usize, ages_ms: [i64; 2]) -> Event {
        let [first, last] = ages_ms.map(|age| Timestamp(START.0 - age * 1000));
        let committed = Some(Committed { first, last });
        Event::Settled { topic: topic.into(), facts, bytes: facts * 300, committed }
    }

    fn view(metrics: Metrics) -> View {
        View { metrics: Arc::new(metrics), ..Health::new("factlib_slot").view() }
    }

    fn both(view: &View) -> Scrape {
        let openmetrics = render(view.clone(), Format::OpenMetrics).unwrap();
        let scrape =
            Scrape::openmetrics(&openmetrics).unwrap_or_else(|e| panic!("{e}\n{openmetrics}"));
        let prometheus = render(view.clone(), Format::Prometheus).unwrap();
        Scrape::prometheus(&prometheus).unwrap_or_else(|e| panic!("{e}\n{prometheus}"));
        scrape
    }

    #[test]
    fn what_happens_is_counted_and_both_formats_keep_their_rules() {
        let mut metrics = Metrics::default();
        metrics.event(&settled("orders.order", 10, [80, 4]), START);
        metrics.event(&settled("orders.order", 1, [2000, 2000]), START);
        let not_stored = Event::NotStored {
            topic: "orders.order".into(),
            error: "NOT_ENOUGH_REPLICAS",
            facts: 7,
        };
        metrics.event(&not_stored, START);
        metrics.stalled();
        let scrape = both(&view(metrics));
        let published = [("topic", "orders.order"), ("outcome", "published")];
        assert_eq!(scrape.value("owlpost_facts_total", &published), Some(11.0));
        assert_eq!(scrape.value("owlpost_fact_bytes_total", &published), Some(3300.0));
        // Half of the first batch is young, half old.
        for (le, count) in
            [("0.0025", 0.0), ("0.005", 5.0), ("0.05", 5.0), ("0.1", 10.0), ("2.5", 11.0)]
        {
            let found = scrape.value("owlpost_commit_to_ack_seconds_bucket", &[("le", le)]);
            assert_eq!(found, Some(count), "{le}");
        }
        assert_eq!(scrape.value("owlpost_batch_records_sum", &[]), Some(11.0));
        assert_eq!(scrape.value("owlpost_stalls_total", &[]), Some(1.0));
        let error = [("error", "NOT_ENOUGH_REPLICAS")];
        assert_eq!(scrape.value("owlpost_kafka_retries_total", &error), Some(1.0));
        let topic = ("topic", "orders.order");
        assert_eq!(scrape.value("factlib_kafka_produce_success_total", &[topic]), Some(11.0));
        let failures = [topic, ("error_type", "produce_error")];
        assert_eq!(scrape.value("factlib_kafka_produce_failures_total", &failures), Some(7.0));
        assert_eq!(scrape.value("owlpost_state", &[("state", "starting")]), Some(1.0));
        assert_eq!(scrape.sum("owlpost_state"), 1.0);
        assert!(
            scrape.value("owlpost_build_info", &[("version", env!("CARGO_PKG_VERSION"))]).is_some()
        );
    }

    #[test]
    fn what_is_not_known_is_absent_and_never_old() {
        let health = Health::new("factlib_slot");
        let facts = SlotFacts {
            at: health.view().now,
            wal_flushed: Lsn(5000),
            active: true,
            wal_status: "reserved".into(),
            confirmed_flush: Lsn(4000),
            retained_bytes: Some(2000),
            safe_wal_bytes: Some(-1),
            invalidation_reason: None,
            unsent_bytes: None,
            oldest_transaction: None,
            others: crate::metrics::OtherSlots::default(),
            wal_rate: Some(100.0),
        };
        health.slot_polled(Some(facts));
        let scrape = both(&health.view());
        assert_eq!(scrape.value("owlpost_slot_retained_bytes", &[]), Some(2000.0));
        assert_eq!(scrape.value("owlpost_slot_safe_wal_bytes", &[]).unwrap_or(0.0), -1.0);
        assert_eq!(scrape.value("owlpost_slot_loss_seconds", &[]), Some(0.0));
        let reserved = [("status", "reserved")];
        assert_eq!(scrape.value("owlpost_slot_wal_status", &reserved), Some(1.0));
        assert_eq!(scrape.value("owlpost_oldest_transaction_seconds", &[]), None);

        health.slot_not_polled();
        let scrape = both(&health.view());
        assert_eq!(scrape.value("owlpost_slot_retained_bytes", &[]), None);
        assert_eq!(scrape.value("owlpost_slot_wal_status", &reserved), None);
        assert_eq!(scrape.value("owlpost_slot_poll_failures_total", &[]), Some(1.0));
    }

    #[test]
    fn ten_thousand_topics_make_a_small_scrape() {
        let mut metrics = Metrics::default();
        for topic in 0..10_000 {
            // As long as topics may be.
            let name = format!("{topic:0>249}");
            metrics.event(&settled(&name, 2, [3, 3]), START);
        }
        let view = view(metrics);
        let scrape = both(&view);
        assert_eq!(scrape.label_values("topic").len(), TOPICS_LABELLED_MAX + 1);
        assert_eq!(scrape.sum("owlpost_facts_total"), 20_000.0);
        let other = [("topic", OTHER), ("outcome", "published")];
        assert_eq!(scrape.value("owlpost_facts_total", &other), Some(2.0 * 9_900.0));
        let text = render(view, Format::Prometheus).unwrap();
        assert!(text.len() < 1_000_000, "{} bytes", text.len());
    }

    #[test]
    fn strangers_cannot_write_lines_of_their_own() {
        let mut metrics = Metrics::default();
        let evil = "a\"} 1\nowlpost_ready 1\n\\";
        let poison = |topic: Option<&str>| Poison {
            cause: Cause::InvalidTopic,
            reason: evil.into(),
            topic: topic.map(str::to_owned),
            attempts: 0,
        };
        for topic in [Some(evil), None] {
            metrics.event(
                &Event::GivenUp(GivenUp {
                    policy: Policy::Skip,
                    poison: poison(topic),
                    partition: None,
                    position: Position { timeline: 1, unit: Unit::transaction(Lsn(7)), index: 0 },
                    facts: 1,
                    bytes: 9,
                }),
                START,
            );
        }
        let mut view = view(metrics);
        evil.clone_into(&mut view.slot_name);
        let scrape = both(&view);
        let skipped = [("topic", super::super::NONE), ("outcome", "skipped")];
        assert_eq!(scrape.value("owlpost_facts_total", &skipped), Some(2.0));
        assert_eq!(scrape.value("owlpost_ready", &[]), Some(0.0));
        assert!(scrape.label_values("slot").contains(evil));
    }

    #[test]
    fn requests_are_timed_by_what_is_asked() {
        let mut metrics = Metrics::default();
        let start = view(Metrics::default()).now;
        let topic: Arc<str> = "orders.order".into();
        let batch = Bytes::from(vec![0; 70]);
        let (partition, base_sequence, broker) = (0, 0, 1);
        let sent = PartitionBatch {
            topic: Arc::clone(&topic),
            topic_id: None,
            partition,
            base_sequence,
            batch,
        };
        metrics.sent(start, &Request::Produce { broker, transaction: None, batches: vec![sent] });
        metrics.sent(start, &Request::InitProducerId);
        let (error, base_offset) = (0, -1);
        let partitions =
            vec![PartitionAnswer { topic, partition, base_sequence, error, base_offset }];
        let answer = Answer::Produced { broker, partitions, throttle: Duration::ZERO };
        metrics.answered(start + Duration::from_millis(30), &answer);
        metrics.answered(start + Duration::from_millis(2), &Answer::ProducerId(Ok(Err(14))));
        let scrape = both(&view(metrics));
        for (api, sum) in [("Produce", 0.030), ("InitProducerId", 0.002), ("Metadata", 0.0)] {
            let found = scrape.value("owlpost_kafka_request_seconds_sum", &[("api", api)]).unwrap();
            assert!((found - sum).abs() < 1e-9, "{api}: {found}");
        }
        assert_eq!(scrape.value("owlpost_kafka_sent_bytes_total", &[]), Some(70.0));
    }

    /// Of a relay that has not begun.
    fn standing(delivery: &str, now: Instant) -> Standing {
        let arguments = [
            "owlpost",
            "--src-service-name=orders",
            "--master-database-url=postgres://owlpost@db/app",
            "--kafka-brokers=kafka",
            "--delivery",
            delivery,
        ];
        let raw = Cli::try_from_args(arguments).unwrap().config;
        let config = Config::from_raw(&raw, |_| None).unwrap();
        Relay::new(run::settings(&config)).standing(now)
    }

    #[test]
    fn transactions_are_absent_unless_facts_go_in_some_and_then_zero() {
        let mut metrics = Metrics::default();
        let mut shown = view(metrics.clone());
        for standing in [None, Some(Arc::new(standing("at-least-once", shown.now)))] {
            shown.standing = standing;
            let scrape = both(&shown);
            for name in [
                "owlpost_transaction_open_seconds",
                "owlpost_transactions_committed_total",
                "owlpost_transaction_facts_count",
                "owlpost_fenced_total",
            ] {
                assert_eq!(scrape.value(name, &[]), None, "{name}");
            }
            assert_eq!(scrape.sum("owlpost_transaction_state"), 0.0);
        }

        let standing = standing("exactly-once", shown.now);
        let transaction = Some(TransactionState::Producing);
        let transaction_opened = Some(shown.now);
        let standing = Standing { transaction, transaction_opened, ..standing };
        shown.standing = Some(Arc::new(standing));
        shown.now += Duration::from_secs(7);
        let scrape = both(&shown);
        for (name, labels, value) in [
            ("owlpost_transaction_state", &[("state", "producing")][..], 1.0),
            ("owlpost_transaction_open_seconds", &[], 7.0),
            ("owlpost_transactions_committed_total", &[], 0.0),
            ("owlpost_transactions_aborted_total", &[("reason", "refused")], 0.0),
            ("owlpost_transactions_split_total", &[], 0.0),
            ("owlpost_transaction_phase_seconds_count", &[("phase", "ending")], 0.0),
            ("owlpost_transactional_id_inits_total", &[], 0.0),
            ("owlpost_fenced_total", &[], 0.0),
        ] {
            assert_eq!(scrape.value(name, labels), Some(value), "{name}");
        }
        assert_eq!(scrape.sum("owlpost_transaction_state"), 1.0);

        let phases = Phases {
            producing: Duration::from_millis(50),
            closing: Duration::from_millis(4),
            ending: Duration::from_millis(3),
        };
        for facts in [0, 700] {
            let position = Lsn(7);
            let committed =
                Event::TransactionCommitted { facts, bytes: facts * 300, position, phases };
            metrics.event(&committed, START);
        }
        let cause = "INVALID_PRODUCER_EPOCH".to_owned();
        metrics.event(&Event::TransactionAborted { reason: AbortReason::Refused, cause }, START);
        metrics.event(&Event::TransactionsRecovered { after: Duration::from_millis(20) }, START);
        metrics.event(&Event::Fenced { cause: String::new(), waits: false }, START);
        shown.metrics = Arc::new(metrics);
        let scrape = both(&shown);
        for (name, labels, value) in [
            ("owlpost_transactions_committed_total", &[][..], 2.0),
            ("owlpost_transactions_aborted_total", &[("reason", "refused")], 1.0),
            ("owlpost_fenced_total", &[], 1.0),
            ("owlpost_transaction_facts_bucket", &[("le", "0.0")], 1.0),
            ("owlpost_transaction_facts_sum", &[], 700.0),
            ("owlpost_transaction_bytes_sum", &[], 210_000.0),
            ("owlpost_transaction_phase_seconds_count", &[("phase", "producing")], 2.0),
            ("owlpost_transaction_phase_seconds_count", &[("phase", "recovering")], 1.0),
        ] {
            assert_eq!(scrape.value(name, labels), Some(value), "{name}");
        }
        let ending = scrape.value("owlpost_transaction_phase_seconds_sum", &[("phase", "ending")]);
        assert!((ending.unwrap() - 0.006).abs() < 1e-9, "{ending:?}");
    }

    #[test]
    fn a_scrape_gets_the_format_that_it_prefers() {
        for (accept, format) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Format::Prometheus),
            ("application/openmetrics-text; version=1.0.0", Format::OpenMetrics),
            (
                "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4",
                Format::OpenMetrics,
            ),
            ("application/openmetrics-text;q=0.1,text/plain;q=0.5", Format::Prometheus),
            ("application/openmetrics-text;q=x", Format::Prometheus),
        ] {
            assert_eq!(Format::asked_for(accept), format, "{accept}");
        }
    }

    /// `UPDATE_DOCS=1 cargo test` writes the page anew.
    #[test]
    fn the_documentation_lists_what_there_is() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (head, table) = text.split_once("| metric |").expect("a table");
        let expected = markdown();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, format!("{head}{expected}")).unwrap();
            return;
        }
        assert_eq!(format!("| metric |{table}"), expected, "UPDATE_DOCS=1 makes it anew");
    }
}
