//! Asks the server about the slot now and then, on a thread and a connection of its own, for metrics and the
//! page: whatever becomes of it, the stream does not notice.

use crate::config::Config;
use crate::http::Health;
use crate::postgres::SlotPoll;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

/// How often is looked whether a new stream has begun: then the server is asked at once.
const TICK: Duration = Duration::from_secs(1);

/// The running watch; dropping it ends it.
#[derive(Debug)]
pub struct SlotWatch {
    _stop: Option<oneshot::Sender<()>>,
}

/// Begins to ask, if the configuration wants it.
///
/// # Errors
///
/// If there is no thread to be had.
pub fn start(config: &Config, health: Arc<Health>) -> io::Result<SlotWatch> {
    let Some(interval) = config.slot_poll else { return Ok(SlotWatch { _stop: None }) };
    let poll = SlotPoll::new(&config.postgres, &config.slot);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    std::thread::Builder::new().name("slot".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = watch(poll, interval, &health) => {}
                // Its sender is dropped.
                _ = stopped => {}
            }
        });
    })?;
    Ok(SlotWatch { _stop: Some(stop) })
}

async fn watch(mut poll: SlotPoll, interval: Duration, health: &Health) {
    let mut asked: Option<Instant> = None;
    let mut streams = 0;
    let mut failing = false;
    loop {
        sleep(TICK.min(interval)).await;
        let begun = health.streams();
        let new_stream = begun != streams;
        // Before the first stream there may be no slot, and the relay tells what is wrong.
        let due = asked.is_some_and(|at| at.elapsed() >= interval);
        if !new_stream && !due {
            continue;
        }
        if new_stream {
            poll.hang_up();
        }
        streams = begun;
        asked = Some(Instant::now());
        match poll.ask().await {
            Ok(found) => {
                health.slot_polled(found);
                failing = false;
            }
            Err(error) => {
                health.slot_not_polled();
                if !failing {
                    tracing::info!(%error, "PostgreSQL does not say what the slot keeps; asked again every {interval:?}");
                }
                failing = true;
            }
        }
    }
}
