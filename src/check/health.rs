//! The health port: free, or served by a relay that may be ours.

use super::report::Check;
use crate::config::Config;
use crate::http::{self, Port};
use serde::Deserialize;
use std::net::SocketAddr;

const NAME: &str = "health port";
const METRICS: &str = "metrics port";

/// What `/health` says of a relay, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Running {
    pub(super) slot: String,
    pub(super) ready: bool,
    pub(super) state: String,
    pub(super) reason: Option<String>,
}

/// Looks at the port. The relay of our slot, if one answers there.
pub(super) async fn look(config: &Config, checks: &mut Vec<Check>) -> Option<Running> {
    let Some(address) = config.http else {
        checks.push(Check::ok(NAME, "switched off (WAL_HEALTH_PORT=0)"));
        return None;
    };
    let Err(taken) = http::is_free(address, Port::Health { page: config.status_page }) else {
        checks.push(Check::ok(NAME, format!("{address} is free")));
        look_at_metrics(config, checks);
        return None;
    };
    // Whoever has the port and does not say so is not ours.
    let running = http::ask(address, "/health").await.ok();
    let (check, running) = judge(config, address, running, &taken.to_string());
    checks.push(check);
    running
}

/// The other port, where no relay of ours has it.
fn look_at_metrics(config: &Config, checks: &mut Vec<Check>) {
    let Some(address) = config.metrics else { return };
    checks.push(match http::is_free(address, Port::Metrics) {
        Ok(()) => Check::ok(METRICS, format!("{address} is free")),
        Err(taken) => Check::failure(METRICS, &taken.to_string()),
    });
}

fn judge(
    config: &Config,
    address: SocketAddr,
    running: Option<Running>,
    taken: &str,
) -> (Check, Option<Running>) {
    let Some(running) = running else { return (Check::failure(NAME, taken), None) };
    if running.slot != config.slot {
        let sentence = format!(
            "{address} is served by the relay of slot {}; choose another WAL_HEALTH_PORT or HTTP_BIND",
            running.slot
        );
        return (Check::failure(NAME, &sentence), None);
    }
    let Running { state, reason, ready, .. } = &running;
    let because = reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    let seen = format!("the relay of slot {} answers at {address}: {state}{because}", config.slot);
    let check = match (ready, state.as_str()) {
        (true, _) => Check::ok(NAME, seen),
        // One that waits is there to wait.
        (false, "waiting_for_slot" | "starting" | "connecting" | "stopping") => {
            Check::warning(NAME, &seen)
        }
        (false, _) => Check::failure(NAME, &seen),
    };
    (check, Some(running))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::Verdict;
    use crate::config::RawConfig;
    use crate::http::{Health, Snapshot, State};
    use std::sync::Arc;

    fn config(port: u16) -> Config {
        let raw = RawConfig {
            src_service_name: Some("orders".to_owned()),
            master_database_url: Some("postgres://owlpost@db/app".to_owned()),
            kafka_brokers: Some("kafka".to_owned()),
            http_bind: Some("127.0.0.1".to_owned()),
            wal_health_port: Some(port.to_string()),
            metrics_port: Some("0".to_owned()),
            ..RawConfig::default()
        };
        Config::from_raw(&raw, |_| None).unwrap()
    }

    async fn looked(config: &Config) -> (Verdict, String, bool) {
        let mut checks = Vec::new();
        let running = look(config, &mut checks).await;
        let [check] = checks.as_slice() else { panic!("{checks:?}") };
        (check.verdict, check.to_string(), running.is_some())
    }

    #[tokio::test]
    async fn a_relay_of_our_slot_may_have_the_port_and_nobody_else() {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let health = Arc::new(Health::new("factlib_slot"));
        let server =
            http::serve(address, Port::Health { page: false }, Arc::clone(&health)).unwrap();
        let port = server.local_addr().port();
        health.set(Snapshot { ready: true, state: State::Streaming, ..health.snapshot() });
        let (verdict, said, ours) = looked(&config(port)).await;
        assert_eq!((verdict, ours), (Verdict::Ok, true), "{said}");
        assert!(said.ends_with(": streaming"), "{said}");

        health.set(Snapshot {
            ready: false,
            state: State::Halted,
            reason: Some("no such topic; create it".to_owned()),
            ..health.snapshot()
        });
        let (verdict, said, ours) = looked(&config(port)).await;
        assert_eq!((verdict, ours), (Verdict::Failure, true), "{said}");
        assert!(said.ends_with(": halted: no such topic; create it"), "{said}");

        let other = Config { slot: "another".to_owned(), ..config(port) };
        let (verdict, said, ours) = looked(&other).await;
        assert_eq!((verdict, ours), (Verdict::Failure, false), "{said}");
        assert!(said.contains("the relay of slot factlib_slot; choose another WAL_HEALTH_PORT"));

        drop(server);
        let other = std::net::TcpListener::bind(address).unwrap();
        let config = config(other.local_addr().unwrap().port());
        let closes = std::thread::spawn(move || drop(other.accept()));
        let (verdict, said, ours) = looked(&config).await;
        assert_eq!((verdict, ours), (Verdict::Failure, false), "{said}");
        assert!(said.contains("cannot listen on") && said.contains("WAL_HEALTH_PORT"), "{said}");
        closes.join().unwrap();
        assert_eq!(looked(&config).await.0, Verdict::Ok);
    }
}
