//! Prints facts as they are committed, without Kafka.
//!
//! ```sh
//! cargo run --package testkit -- serve         # starts servers, and prints MASTER_DATABASE_URL
//! export MASTER_DATABASE_URL=...
//! cargo run --example subscriber               # until Ctrl-C or SIGTERM
//! psql "$MASTER_DATABASE_URL" -c "SELECT pg_logical_emit_message(true, 'demo',
//!   '{\"aggregate_type\":\"order\",\"aggregate_id\":\"7\",\"event_type\":\"paid\",\"payload\":{\"by\":\"card\"}}')"
//! ```
//!
//! `PREFIX` (demo) and `SLOT` (example_facts) choose others; each handler takes `PAUSE_MS` (0) milliseconds before it
//! prints, and `CONCURRENCY` (16) are under way at once.

use factlib::subscribe::{Delivery, Error, ErrorPolicy, Stopped, Subscriber, UnreadablePolicy};
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let pause = Duration::from_millis(setting("PAUSE_MS", "0").parse()?);
    let concurrency: NonZeroUsize = setting("CONCURRENCY", "16").parse()?;
    let subscriber = Subscriber::builder(&setting("MASTER_DATABASE_URL", ""))
        .slot(&setting("SLOT", "example_facts"))
        .create_if_missing(true)
        .prefix(&setting("PREFIX", "demo"))
        .handler(move |fact: Delivery| async move {
            tokio::time::sleep(pause).await;
            Ok(print(&fact)?)
        })
        .concurrency(concurrency)
        .on_error(ErrorPolicy::retry())
        // Somebody else's messages with this prefix are no reason to stop an example.
        .on_unreadable(UnreadablePolicy::skip())
        .build()?;

    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    };
    let Stopped { confirmed, left, .. } = subscriber.run(stop).await.inspect_err(advise)?;
    writeln!(std::io::stderr(), "confirmed up to {confirmed}; {left} facts come again")?;
    Ok(())
}

/// One line for a fact, written before the handler returns: what is confirmed was printed.
fn print(fact: &Delivery) -> std::io::Result<()> {
    // Escaped: whoever emits facts must not be able to write to the terminal what they like.
    let payload = fact.payload().unwrap_or_default().escape_ascii();
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} {} {} {} {payload}",
        fact.position(),
        fact.id(),
        fact.aggregate_id(),
        fact.event_type()
    )?;
    out.flush()
}

fn advise(error: &Error) {
    tracing::error!(%error, "the subscriber cannot go on");
}
