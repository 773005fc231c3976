//! The page at `/`: what an operator wants to see first, on a phone as well.
//!
//! It is made here, whole; the script only fetches it again every second and puts it in place. So there is
//! one place that escapes what strangers wrote (topics, error texts): the template library, which escapes
//! everything. The Content-Security-Policy lets this style and this script run and nothing else.

use super::health::Past;
use super::history::{SAMPLE_INTERVAL, SAMPLES_MAX, Told};
use super::{Blocked, Delivery, Health, Snapshot, State};
use crate::exit::ExitCode;
use crate::metrics::{SlotFacts, View};
use crate::size::human as bytes;
use axum::Router;
use axum::extract::State as Extract;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use factlib_protocol::Lsn;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page is looked at in one glance; more events are in the log.
const EVENTS_SHOWN: usize = 15;

/// The least samples that the width of a line stands for: two minutes.
const WIDTH_MIN: usize = 60;

/// What is kept of a sentence that somebody else wrote.
const REASON_CHARS_MAX: usize = 600;

#[derive(Debug)]
struct Page {
    health: Arc<Health>,
    policy: String,
}

pub(super) fn routes(health: Arc<Health>) -> Router {
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        digest(SCRIPT),
        digest(STYLE)
    );
    Router::new()
        .route("/", get(whole))
        .route("/now", get(now))
        .route("/status.json", get(status))
        .with_state(Arc::new(Page { health, policy }))
}

fn digest(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text))
}

async fn whole(Extract(page): Extract<Arc<Page>>) -> Response {
    let shown = Shown::of(&page.health);
    page.answer("text/html; charset=utf-8", shown.document().into_string())
}

async fn now(Extract(page): Extract<Arc<Page>>) -> Response {
    let shown = Shown::of(&page.health);
    page.answer("text/html; charset=utf-8", shown.content().into_string())
}

async fn status(Extract(page): Extract<Arc<Page>>) -> Response {
    let shown = Shown::of(&page.health);
    page.answer("application/json", shown.json().to_string())
}

impl Page {
    fn answer(&self, kind: &str, body: String) -> Response {
        let headers = [
            (header::CONTENT_TYPE, kind),
            (header::CACHE_CONTROL, "no-store"),
            (header::CONTENT_SECURITY_POLICY, &self.policy),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        ];
        (headers, body).into_response()
    }
}

/// All that is shown, from one moment.
struct Shown {
    snapshot: Snapshot,
    view: View,
    past: Past,
    uptime: Duration,
}

impl Shown {
    fn of(health: &Health) -> Self {
        Self {
            snapshot: health.shown(),
            view: health.view(),
            past: health.past(),
            uptime: health.uptime(),
        }
    }

    /// Which colour it has.
    fn tone(&self) -> &'static str {
        match self.snapshot.state {
            _ if !self.view.live => "bad",
            State::Streaming if self.snapshot.ready => "good",
            State::Failed | State::Halted | State::Stalled => "bad",
            State::Streaming | State::Connecting => "warn",
            State::Starting | State::WaitingForSlot | State::Stopping => "wait",
        }
    }

    /// The state in one sentence.
    fn sentence(&self) -> String {
        let once = match self.snapshot.delivery {
            Some(Delivery::ExactlyOnce) => ", each once",
            Some(Delivery::AtLeastOnce) | None => "",
        };
        let lag = self.view.lag_seconds();
        let rate = self.past.history.rate();
        match self.snapshot.state {
            State::Failed => {
                let code = self.snapshot.exit_code.unwrap_or_default();
                let meaning = ExitCode::ALL.iter().find(|known| known.number() == code);
                let meaning = meaning.map_or("", |code| code.meaning());
                format!("The relay cannot go on, and ends with exit code {code}: {meaning}.")
            }
            _ if !self.view.live => "The relay hangs.".to_owned(),
            State::Starting => "Starting: nothing was contacted yet.".to_owned(),
            State::Connecting => "Not connected yet, or not any more: no facts flow.".to_owned(),
            State::WaitingForSlot => {
                "Standing by: another relay has the slot, and this one takes over when it is gone."
                    .to_owned()
            }
            State::Stalled => "Stalled: Kafka does not take what was read.".to_owned(),
            State::Halted => {
                "Halted: a fact cannot be published, and nothing after it is confirmed.".to_owned()
            }
            State::Stopping => "Stopping: what was read is being settled.".to_owned(),
            State::Streaming if lag >= 5.0 => format!(
                "Catching up: {} facts a second, and the oldest has waited for {}.",
                grouped(rate),
                age(lag)
            ),
            State::Streaming if rate >= 0.5 => {
                format!("Facts flow{once}, {} a second, and none waits.", grouped(rate))
            }
            State::Streaming if self.view.lag_bytes() == 0 => {
                format!("All is well: every fact that was committed is in Kafka{once}.")
            }
            State::Streaming => format!("All is well: facts flow{once}."),
        }
    }

    fn document(&self) -> Markup {
        let colour = match self.tone() {
            "good" => "%230a7d4b",
            "bad" => "%23b3261e",
            "warn" => "%239a5b00",
            _ => "%231f63b5",
        };
        let icon = format!(
            "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'>\
             <circle cx='4' cy='4' r='4' fill='{colour}'/></svg>"
        );
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width,initial-scale=1";
                    title { "owlpost " (self.snapshot.slot) }
                    link rel="icon" href=(icon);
                    style { (PreEscaped(STYLE)) }
                    noscript { meta http-equiv="refresh" content="5"; }
                }
                body {
                    div #gone role="alert" hidden {}
                    main #page { (self.content()) }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        }
    }

    fn content(&self) -> Markup {
        html! {
            div class=(self.tone()) {
                header {
                    b { "owlpost" }
                    span { "slot " (self.snapshot.slot) }
                    span { "up " (age(self.uptime.as_secs_f64())) }
                }
                div #state aria-live="polite" {
                    span.pill { (self.snapshot.state.name().replace('_', " ")) }
                    h1 { (self.sentence()) }
                    @if let Some(reason) = &self.snapshot.reason { p { (sentence_case(reason)) } }
                    p.note { "Since " (moment(self.snapshot.since)) ", for " (age(self.since())) "." }
                }
                div.tiles { (self.throughput()) (self.lag()) (self.wal()) (self.window()) }
                (self.blocked())
                (self.events())
                (self.positions())
                footer {
                    a href="metrics" { "metrics" }
                    a href="readyz" { "readyz" }
                    a href="status.json" { "status.json" }
                    span { "version " (env!("CARGO_PKG_VERSION")) }
                }
            }
        }
    }

    fn since(&self) -> f64 {
        let now = SystemTime::UNIX_EPOCH
            + Duration::from_micros(u64::try_from(self.view.clock.unix_micros()).unwrap_or(0));
        now.duration_since(self.snapshot.since).unwrap_or_default().as_secs_f64()
    }

    fn throughput(&self) -> Markup {
        let rates = self.past.history.throughput();
        let most = rates.iter().copied().fold(0.0, f64::max);
        html! {
            div.tile {
                h2 { "Published" }
                div.big { (grouped(self.past.history.rate())) " " small { "facts/s" } }
                div.note { (thousands(self.snapshot.published)) " since the start; at most " (grouped(most)) "/s in 10 min" }
                (sparkline(&rates, "facts a second, last 10 minutes"))
            }
        }
    }

    fn lag(&self) -> Markup {
        let lags = self.past.history.lag_seconds();
        // What waits grows older also when no samples are taken any more.
        let most = lags.iter().copied().fold(self.view.lag_seconds(), f64::max);
        let (middle, late) = self.view.metrics.delays();
        let delays = middle.zip(late).map(|(middle, late)| {
            format!("half within {} of the commit, 99% within {}", bound(middle), bound(late))
        });
        html! {
            div.tile {
                h2 { "Lag" }
                div.big { (age(self.view.lag_seconds())) " " small { (bytes(self.view.lag_bytes())) } }
                div.note { "at most " (age(most)) " in 10 min" @if let Some(delays) = delays { "; " (delays) } }
                (sparkline(&lags, "age of the oldest fact that waits, last 10 minutes"))
            }
        }
    }

    fn wal(&self) -> Markup {
        let slot = self.view.slot.as_deref();
        html! {
            div.tile {
                h2 { "WAL kept for the slot" }
                @match slot {
                    None => {
                        div.big { "?" }
                        div.note { "The server has not been asked, or does not answer." }
                    }
                    Some(slot) => {
                        div.big {
                            @match slot.retained_bytes {
                                Some(kept) => { (bytes(kept)) " " small { (slot.wal_status) } }
                                None => span.tone { (slot.wal_status) }
                            }
                        }
                        @for line in slot_lines(slot) { div.note { (line) } }
                    }
                }
            }
        }
    }

    fn window(&self) -> Markup {
        let standing = self.view.standing.as_deref();
        let (used, limit) = standing.map_or((0, 0), |s| (s.window_bytes, s.window_limit));
        let facts = standing.map_or(0, |standing| standing.unsettled_facts as u64);
        html! {
            div.tile {
                h2 { "On the way to Kafka" }
                div.big { (thousands(facts)) " " small { "facts" } }
                div.note { (bytes(used)) " of the window's " (bytes(limit)) }
                progress max=(limit.max(1)) value=(used.min(limit)) aria-label="how full the window is" {}
            }
        }
    }

    /// The fact or the partitions that hold everything up.
    fn blocked(&self) -> Markup {
        let standing = self.view.standing.as_deref();
        let listed = standing.map_or(&[][..], |standing| &standing.most_blocked);
        let count = standing.map_or(0, |standing| standing.blocked_count);
        // A fact that could not be enqueued has no partition yet.
        let alone = self.snapshot.blocked.as_ref().filter(|_| listed.is_empty());
        html! {
            @if count > 0 || alone.is_some() {
                section {
                    h2 {
                        @match count { 0 => "What holds everything up", 1 => "1 blocked partition", _ => { (count) " blocked partitions" } }
                    }
                    ul {
                        @if let Some(Blocked { topic, position, reason, .. }) = alone {
                            li {
                                span.tone { (sentence_case(reason)) }
                                span.where { @if let Some(topic) = topic { (topic) ", " } "position " (position) }
                            }
                        }
                        @for blocked in listed {
                            li {
                                span.tone { (sentence_case(&blocked.reason)) }
                                span.where {
                                    (blocked.topic) ", partition " (blocked.partition) ", for "
                                    (age(self.view.now.saturating_duration_since(blocked.since).as_secs_f64()))
                                    ", from position " (blocked.position)
                                }
                            }
                        }
                        @if count > listed.len() { li.note { "and " (count - listed.len()) " more" } }
                    }
                }
            }
        }
    }

    fn events(&self) -> Markup {
        html! {
            section {
                h2 { "What happened last" }
                ul {
                    @for Told { at, level, sentence, times } in self.past.news.iter().take(EVENTS_SHOWN) {
                        li class=(format!("event {}", tone_of(level))) {
                            time datetime=(humantime::format_rfc3339_seconds(*at)) { (moment(*at)) }
                            span class=[(*level != "info").then_some("tone")] {
                                (cut(sentence)) @if *times > 1 { " (" (times) " times)" }
                            }
                        }
                    }
                    @if self.past.news.iter().next().is_none() { li.note { "Nothing yet." } }
                }
            }
        }
    }

    fn positions(&self) -> Markup {
        let standing = self.view.standing.as_deref();
        let lsn = |lsn: Option<Lsn>| {
            lsn.filter(|lsn| *lsn != Lsn::INVALID).map_or("-".to_owned(), |lsn| lsn.to_string())
        };
        let rows = [
            ("read up to", standing.map(|standing| standing.received)),
            ("in Kafka up to", standing.map(|standing| standing.confirmed)),
            ("reported to PostgreSQL", standing.map(|standing| standing.told)),
            (
                "server's log ends at",
                standing.map(|standing| {
                    self.view
                        .slot
                        .as_ref()
                        .map_or(standing.wal_end, |slot| slot.wal_flushed.max(standing.wal_end))
                }),
            ),
        ];
        html! {
            section {
                h2 { "Positions" }
                dl {
                    @for (name, at) in rows { div { dt { (name) } dd { (lsn(at)) } } }
                    @if let Some(state) = self.snapshot.transaction { div { dt { "Kafka transactions" } dd { (state) } } }
                    @for (name, count) in [("dead letters", self.snapshot.dead_lettered), ("skipped", self.snapshot.skipped)] {
                        @if count > 0 { div.bad { dt { (name) } dd.tone { (thousands(count)) } } }
                    }
                }
            }
        }
    }

    /// The same for programs.
    fn json(&self) -> serde_json::Value {
        let standing = self.view.standing.as_deref();
        let slot = self.view.slot.as_deref();
        let age = |since| self.view.now.saturating_duration_since(since).as_secs_f64();
        let blocked: Vec<_> = standing
            .map_or(&[][..], |standing| &standing.most_blocked)
            .iter()
            .map(|blocked| {
                serde_json::json!({
                    "topic": *blocked.topic,
                    "partition": blocked.partition,
                    "position": blocked.position.to_string(),
                    "reason": blocked.reason,
                    "halted": blocked.halted,
                    "seconds": age(blocked.since),
                })
            })
            .collect();
        let history = &self.past.history;
        serde_json::json!({
            "sentence": self.sentence(),
            "live": self.view.live,
            "health": self.snapshot,
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.uptime.as_secs_f64(),
            "facts_per_second": history.rate(),
            "lag_seconds": self.view.lag_seconds(),
            "lag_bytes": self.view.lag_bytes(),
            "in_flight_facts": standing.map(|standing| standing.unsettled_facts),
            "window_bytes": standing.map(|standing| standing.window_bytes),
            "window_limit_bytes": standing.map(|standing| standing.window_limit),
            "slot": slot.map(|slot| serde_json::json!({
                "active": slot.active,
                "wal_status": slot.wal_status,
                "retained_bytes": slot.retained_bytes,
                "safe_wal_bytes": slot.safe_wal_bytes,
                "seconds_to_loss": slot.seconds_to_loss(),
                "invalidation_reason": slot.invalidation_reason,
            })),
            "blocked_partitions": standing.map(|standing| standing.blocked_count),
            "blocked": blocked,
            "events": self.past.news,
            "history": {
                "interval_seconds": SAMPLE_INTERVAL.as_secs_f64(),
                "facts_per_second": history.throughput(),
                "lag_seconds": history.lag_seconds(),
                "lag_bytes": history.lag_bytes(),
            },
        })
    }
}

fn tone_of(level: &str) -> &'static str {
    match level {
        "error" => "bad",
        "warn" => "warn",
        _ => "wait",
    }
}

/// What threatens the slot, in words.
fn slot_lines(slot: &SlotFacts) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(reason) = &slot.invalidation_reason {
        lines.push(format!("invalidated: {reason}"));
    }
    lines.push(match (slot.safe_wal_bytes, slot.seconds_to_loss()) {
        _ if slot.wal_status == "lost" => "the server has removed what the slot needed".to_owned(),
        (None, _) => "no limit: the disk is the limit (max_slot_wal_keep_size)".to_owned(),
        (Some(safe), Some(seconds)) => format!(
            "{} more until it may be lost: {} at this rate, if it did not move",
            bytes(u64::try_from(safe).unwrap_or(0)),
            age(seconds)
        ),
        (Some(safe), None) => {
            format!("{} more until it may be lost", bytes(u64::try_from(safe).unwrap_or(0)))
        }
    });
    if let Some(rate) = slot.wal_rate {
        // Rates are far below 2^64, and never negative.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as said")]
        let rate = rate.max(0.0) as u64;
        lines.push(format!("the server writes {}/s", bytes(rate)));
    }
    if let Some(seconds) = slot.oldest_transaction.filter(|seconds| *seconds >= 60.0) {
        lines.push(format!("a transaction has been open for {}, and keeps log, too", age(seconds)));
    }
    if slot.others.lost > 0 {
        lines.push(format!("other slots of this server that are lost: {}", slot.others.lost));
    }
    lines
}

/// A line without axes: its shape is the message, and the numbers are beside it.
fn sparkline(values: &[f64], label: &str) -> Markup {
    let most = values.iter().copied().fold(0.0, f64::max);
    // A young process has its line over two minutes, so that it can be seen.
    let width = values.len().clamp(WIDTH_MIN, SAMPLES_MAX + 1);
    let mut points = String::new();
    for (at, value) in (width.saturating_sub(values.len())..).zip(values) {
        let height = if most > 0.0 { value / most * 36.0 } else { 0.0 };
        // Writing to a String cannot fail.
        let _ = write!(points, "{at},{:.1} ", 38.0 - height);
    }
    let area = format!("{},40 {points}{},40", width.saturating_sub(values.len()), width - 1);
    html! {
        svg viewBox=(format!("0 0 {width} 40")) preserveAspectRatio="none" role="img" aria-label=(label) {
            @if values.len() > 1 { polygon points=(area) {} polyline points=(points) {} }
        }
    }
}

/// Reasons go on where a log line has begun.
fn sentence_case(text: &str) -> String {
    let text = cut(text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => text,
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(REASON_CHARS_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// As a clock shows it, in UTC: days only where it is not today's is worth the room on a phone, and the log has
/// them.
fn moment(at: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(at).to_string();
    let time = text.split_once('T').map_or(&*text, |(_, time)| time);
    format!("{} UTC", time.trim_end_matches('Z'))
}

/// Seconds in two units at most.
fn age(seconds: f64) -> String {
    if seconds <= 0.0 {
        return "0 s".to_owned();
    }
    if seconds < 0.999_5 {
        return format!("{:.0} ms", (seconds * 1000.0).max(1.0));
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and saturating"
    )]
    let whole = seconds.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{minutes} min {} s", whole % 60),
        3600..86_400 => format!("{hours} h {minutes} min"),
        _ => format!("{} d {hours} h", thousands(days)),
    }
}

/// The bound of a bucket.
fn bound(seconds: f64) -> String {
    if seconds.is_finite() { age(seconds) } else { "more than an hour".to_owned() }
}

/// A rate, without digits that mean nothing.
fn grouped(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 {
        return format!("{rate:.1}");
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and saturating"
    )]
    let whole = rate.round() as u64;
    thousands(whole)
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::history::History;
    use super::*;

    const EVIL: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&";

    fn shown(snapshot: impl FnOnce(Snapshot) -> Snapshot) -> Shown {
        let health = Health::new("factlib_slot");
        let mut shown = Shown::of(&health);
        shown.snapshot = snapshot(shown.snapshot);
        shown
    }

    fn full_history(view: &View) -> History {
        let mut history = History::default();
        let start = view.now;
        for step in 0..=u32::try_from(SAMPLES_MAX).unwrap() {
            history.add(start + SAMPLE_INTERVAL * step, u64::from(step * step) * 1_000_000, view);
        }
        history
    }

    #[test]
    fn what_strangers_wrote_is_text_and_never_markup() {
        let mut shown = shown(|snapshot| Snapshot {
            state: State::Halted,
            reason: Some(EVIL.into()),
            slot: EVIL.into(),
            blocked: Some(Blocked {
                topic: Some(EVIL.into()),
                partition: None,
                position: EVIL.into(),
                reason: EVIL.into(),
                since: SystemTime::UNIX_EPOCH,
            }),
            ..snapshot
        });
        for number in 0..3 {
            let sentence = format!("{EVIL}{number}");
            shown.past.news.add(SystemTime::UNIX_EPOCH, tracing::Level::ERROR, sentence);
        }
        let html = shown.document().into_string();
        assert_eq!(html.matches("<script>").count(), 1, "ours alone: {html}");
        assert_eq!(html.matches("<img").count(), 0);
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;"), "{html}");
        let json = shown.json().to_string();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["health"]["reason"], EVIL);
        assert_eq!(json["events"][0]["sentence"], format!("{EVIL}2"));
    }

    #[test]
    fn the_page_is_small_however_much_there_is_to_say() {
        let mut shown = shown(|snapshot| Snapshot {
            reason: Some("x".repeat(100_000)),
            state: State::Stalled,
            ..snapshot
        });
        shown.past.history = full_history(&shown.view);
        for number in 0..100 {
            let sentence = format!("{number}: {}", "y".repeat(10_000));
            shown.past.news.add(SystemTime::UNIX_EPOCH, tracing::Level::WARN, sentence);
        }
        let html = shown.document().into_string();
        assert!(html.len() < 50_000, "{} bytes", html.len());
        assert!(html.contains("<polyline points="));
    }

    #[test]
    fn nothing_comes_from_elsewhere_and_only_our_script_and_style_may_run() {
        let html = shown(|snapshot| snapshot).document().into_string();
        for (open, close, text) in
            [("<style>", "</style>", STYLE), ("<script>", "</script>", SCRIPT)]
        {
            let (_, rest) = html.split_once(open).unwrap();
            let (found, _) = rest.split_once(close).unwrap();
            assert_eq!(digest(found), digest(text), "its hash is in the policy");
        }
        // The name of a namespace is no address.
        let html = html.replace("http://www.w3.org/2000/svg", "");
        for word in ["http:", "https:", " src=", "@import", "url(", " style=", " onclick="] {
            assert!(!html.contains(word), "{word} in {html}");
        }
    }

    #[test]
    fn each_state_has_a_sentence_and_a_colour() {
        let of = |state, ready| {
            let mut shown = shown(|snapshot| Snapshot { state, ready, ..snapshot });
            shown.view.live = state != State::Failed;
            (shown.tone(), shown.sentence())
        };
        for (state, ready, tone, words) in [
            (State::Starting, false, "wait", "Starting"),
            (State::Connecting, false, "warn", "Not connected"),
            (State::WaitingForSlot, false, "wait", "Standing by"),
            (State::Streaming, true, "good", "All is well"),
            (State::Stalled, false, "bad", "Stalled"),
            (State::Halted, false, "bad", "Halted"),
            (State::Stopping, false, "wait", "Stopping"),
            (State::Failed, false, "bad", "The relay cannot go on"),
        ] {
            let (found, sentence) = of(state, ready);
            assert_eq!(found, tone, "{state:?}");
            assert!(sentence.starts_with(words), "{state:?}: {sentence}");
        }
    }

    #[test]
    fn who_delivers_exactly_once_says_so() {
        let of = |delivery| {
            let streaming = |snapshot| Snapshot {
                ready: true,
                state: State::Streaming,
                delivery: Some(delivery),
                transaction: (delivery == Delivery::ExactlyOnce).then_some("producing"),
                ..snapshot
            };
            let shown = shown(streaming);
            (shown.sentence(), shown.json()["health"].clone(), shown.document().into_string())
        };
        let (sentence, json, page) = of(Delivery::ExactlyOnce);
        assert_eq!(sentence, "All is well: every fact that was committed is in Kafka, each once.");
        assert_eq!(
            (&json["delivery"], &json["transaction"]),
            (&"exactly-once".into(), &"producing".into())
        );
        assert!(page.contains("Kafka transactions"), "{page}");
        let (sentence, json, page) = of(Delivery::AtLeastOnce);
        assert_eq!(sentence, "All is well: every fact that was committed is in Kafka.");
        assert_eq!(
            (&json["delivery"], &json["transaction"]),
            (&"at-least-once".into(), &().into())
        );
        assert!(!page.contains("Kafka transactions"), "{page}");
    }

    #[test]
    fn numbers_are_made_for_people() {
        for (seconds, text) in [
            (0.0, "0 s"),
            (0.000_2, "1 ms"),
            (0.25, "250 ms"),
            (1.0, "1.0 s"),
            (59.6, "60 s"),
            (61.0, "1 min 1 s"),
            (7300.0, "2 h 1 min"),
            (200_000.0, "2 d 7 h"),
        ] {
            assert_eq!(age(seconds).replace("1 min 0 s", "60 s"), text);
        }
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(
            (grouped(0.0), grouped(1.25), grouped(1234.4)),
            ("0".into(), "1.2".into(), "1,234".into())
        );
        assert_eq!(cut(&"ä".repeat(1000)).chars().count(), REASON_CHARS_MAX + 1);
    }
}
