//! What the tests have in common.

use std::time::Duration;
use testkit::{Kafka, Lsn, Owlpost, Postgres, owlpost};

/// For what takes milliseconds on an idle machine: only a failure waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The slot where nothing else is said.
pub(crate) const SLOT: &str = "factlib_slot";

/// The relay of this build, not yet started, for one prefix.
pub(crate) fn relay(prefix: &str, postgres: &Postgres, kafka: &Kafka) -> owlpost::Command {
    Owlpost::command(env!("CARGO_BIN_EXE_owlpost"))
        .servers(postgres, kafka)
        .env("SRC_SERVICE_NAME", prefix)
        .env("WAL_PREFIX", prefix)
}

/// Everything before this is in Kafka for good, says the server.
pub(crate) fn confirmed(postgres: &Postgres) -> Lsn {
    let query = format!(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
    );
    postgres.ask(&query).parse().unwrap()
}

/// Waits until the relay has confirmed everything that is committed by now.
#[track_caller]
pub(crate) fn wait_confirmed(relay: &Owlpost, postgres: &Postgres, limit: Duration) {
    let written: Lsn = postgres.ask("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
    relay.wait_until("the relay to confirm everything", limit, || confirmed(postgres) >= written);
}
