//! How far a relay is behind, for a bar on a terminal.

use crate::http::Health;
use crate::progress::{CatchUp, CaughtUp, Stands, Step, shortly};
use crate::size;
use factlib_protocol::Lsn;
use std::sync::Arc;
use std::time::Instant;
use tracing::info;

/// What to show of the relay on this board until it has caught up, with the server's log, or with what is `until`
/// there; whoever has caught up with the log says so in a line.
pub fn catching_up(health: Arc<Health>, until: Option<Lsn>) -> impl FnMut() -> Step + Send {
    let mut catch_up = CatchUp::default();
    let mut begun: Option<Instant> = None;
    move || {
        let (stands, at) = stands(&health, until);
        let (step, caught_up) = catch_up.look(&stands);
        if let Step::Show(_) = step {
            begun.get_or_insert(at);
        }
        if let (Some(CaughtUp { bytes, facts }), Some(begun), None) = (caught_up, begun, until) {
            let took = shortly(at.saturating_duration_since(begun));
            let log = size::human(bytes);
            info!(facts, %log, %took, "caught up");
        }
        step
    }
}

fn stands(health: &Health, until: Option<Lsn>) -> (Stands, Instant) {
    let view = health.view();
    let (mut behind, mut unread) = (view.lag_bytes(), 0);
    if let Some(standing) = &view.standing {
        let end = Lsn(standing.confirmed.0.saturating_add(behind));
        let end = until.unwrap_or(end).0;
        behind = end.saturating_sub(standing.confirmed.0);
        unread = end.saturating_sub(standing.received.max(standing.confirmed).0);
    }
    let stands = Stands {
        state: view.state,
        behind,
        unread,
        age: view.lag_seconds(),
        published: view.metrics.published_facts(),
    };
    (stands, view.now)
}
