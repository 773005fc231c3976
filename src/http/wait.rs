//! `/wait`: the barrier of `owlpost wait`, over HTTP.

use super::health::{Health, State};
use axum::Router;
use axum::extract::{Query, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use factlib_protocol::Lsn;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

/// So many may wait at once: each holds one of the port's connections, and probes need some, too.
const WAITERS_MAX: usize = 16;

/// How long may be waited in one request; less than a connection may last. Whoever wants more asks again.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);

/// The board is looked at so often.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
struct Asked {
    lsn: String,
    timeout: Option<String>,
}

#[derive(Clone)]
struct Waiting {
    health: Arc<Health>,
    waiters: Arc<Semaphore>,
}

/// The route.
pub(super) fn router(health: Arc<Health>) -> Router {
    let waiters = Arc::new(Semaphore::new(WAITERS_MAX));
    Router::new().route("/wait", get(wait)).with_state(Waiting { health, waiters })
}

async fn wait(Extract(waiting): Extract<Waiting>, Query(asked): Query<Asked>) -> Response {
    let (lsn, timeout) = match asked.read() {
        Ok(read) => read,
        Err(reason) => return refuse(StatusCode::BAD_REQUEST, &reason),
    };
    let Ok(_permit) = waiting.waiters.try_acquire() else {
        let reason = format!("{WAITERS_MAX} are waiting already; ask again");
        return refuse(StatusCode::TOO_MANY_REQUESTS, &reason);
    };
    let deadline = Instant::now() + timeout;
    loop {
        let snapshot = waiting.health.snapshot();
        let confirmed = snapshot.confirmed_lsn.as_deref().and_then(|text| text.parse().ok());
        let reached =
            confirmed.is_some_and(|confirmed: Lsn| confirmed >= waiting.health.wanted(lsn));
        let hung = waiting.health.hung();
        let (status, reason) = if reached {
            (StatusCode::OK, None)
        } else if hung.is_some() {
            (StatusCode::SERVICE_UNAVAILABLE, Some("the relay hangs; see /readyz".to_owned()))
        } else if snapshot.state == State::Halted {
            (StatusCode::SERVICE_UNAVAILABLE, snapshot.reason)
        } else if Instant::now() >= deadline {
            (StatusCode::GATEWAY_TIMEOUT, snapshot.reason)
        } else {
            sleep(LOOK).await;
            continue;
        };
        let body = serde_json::json!({
            "lsn": lsn.to_string(),
            "confirmed_lsn": snapshot.confirmed_lsn,
            "reached": reached,
            "state": snapshot.state,
            "reason": reason,
        });
        return answer(status, body);
    }
}

impl Asked {
    fn read(&self) -> Result<(Lsn, Duration), String> {
        let lsn = self.lsn.parse().map_err(|error| format!("lsn={}: {error}", self.lsn))?;
        let Some(text) = &self.timeout else { return Ok((lsn, WAIT_MAX)) };
        match humantime::parse_duration(text) {
            Ok(timeout) if timeout <= WAIT_MAX => Ok((lsn, timeout)),
            Ok(_) => Err(format!(
                "timeout={text}: at most {} s in one request; ask again for more",
                WAIT_MAX.as_secs()
            )),
            Err(_) => Err(format!("timeout={text}: write a number with a unit, such as 5s")),
        }
    }
}

fn refuse(status: StatusCode, reason: &str) -> Response {
    answer(status, serde_json::json!({ "reason": reason }))
}

fn answer(status: StatusCode, body: serde_json::Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::{connect, fetch, start};
    use crate::relay::pages::Pages;
    use std::io::Write as _;

    fn confirm(health: &Health, lsn: &str) {
        health.set(crate::http::Snapshot {
            state: State::Streaming,
            confirmed_lsn: Some(lsn.to_owned()),
            ..health.snapshot()
        });
    }

    #[test]
    fn what_is_confirmed_already_is_answered_at_once() {
        let health = Arc::new(Health::new("factlib_slot"));
        let server = start(&health);
        confirm(&health, "0/16B3748");
        let (status, body) = fetch(&server, "/wait?lsn=0/16B3748&timeout=10s");
        assert_eq!((status, &body["reached"]), (200, &true.into()), "{body}");
        assert_eq!(body["confirmed_lsn"], "0/16B3748");
    }

    #[test]
    fn what_stands_behind_a_pages_header_needs_no_more_than_the_page_before() {
        let health = Arc::new(Health::new("factlib_slot"));
        let server = start(&health);
        confirm(&health, "0/2002000");
        let status = |lsn| fetch(&server, &format!("/wait?lsn={lsn}&timeout=1ms")).0;
        assert_eq!(status("0/2002018"), 504, "nobody has said how long pages are");
        health.pages(Pages::new(8192, 16 << 20).unwrap());
        assert_eq!((status("0/2002018"), status("0/2002019")), (200, 504));
        confirm(&health, "0/3000000");
        assert_eq!((status("0/3000028"), status("0/3000018")), (200, 504));
    }

    #[test]
    fn a_confirmation_that_comes_meanwhile_ends_the_wait() {
        let health = Arc::new(Health::new("factlib_slot"));
        let server = start(&health);
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| fetch(&server, "/wait?lsn=0/2&timeout=10s"));
            confirm(&health, "0/1");
            confirm(&health, "0/2");
            assert_eq!(asked.join().unwrap().0, 200);
        });
    }

    #[test]
    fn what_is_not_confirmed_in_time_is_a_504_and_behind_a_halt_a_503() {
        let health = Arc::new(Health::new("factlib_slot"));
        let server = start(&health);
        confirm(&health, "0/1");
        let (status, body) = fetch(&server, "/wait?lsn=0/2&timeout=60ms");
        assert_eq!((status, &body["reached"]), (504, &false.into()), "{body}");
        health.set(crate::http::Snapshot {
            state: State::Halted,
            reason: Some("no such topic".to_owned()),
            ..health.snapshot()
        });
        let (status, body) = fetch(&server, "/wait?lsn=0/2");
        assert_eq!((status, &body["reason"]), (503, &"no such topic".into()), "{body}");
        assert_eq!(fetch(&server, "/wait?lsn=0/1").0, 200, "that is confirmed");
    }

    #[test]
    fn nonsense_is_a_400_with_the_reason() {
        let server = start(&Arc::new(Health::new("factlib_slot")));
        for path in ["/wait", "/wait?lsn=7", "/wait?lsn=0/1&timeout=11s", "/wait?lsn=0/1&timeout=x"]
        {
            assert_eq!(fetch(&server, path).0, 400, "{path}");
        }
        let (_, body) = fetch(&server, "/wait?lsn=0/1&timeout=11s");
        assert!(body["reason"].as_str().unwrap().contains("at most 10 s"), "{body}");
    }

    #[test]
    fn more_than_may_wait_are_sent_away_and_probes_are_answered() {
        let health = Arc::new(Health::new("factlib_slot"));
        let server = start(&health);
        let waiters: Vec<_> = (0..WAITERS_MAX)
            .map(|_| {
                let mut stream = connect(&server);
                stream.write_all(b"GET /wait?lsn=0/1 HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
                stream
            })
            .collect();
        // Their requests are on their way; this one is refused once all of them wait.
        let refused = || fetch(&server, "/wait?lsn=0/1&timeout=10ms").0 == 429;
        assert!((0..500).any(|_| refused()), "the limit was never reached");
        assert_eq!(fetch(&server, "/livez").0, 200);
        drop(waiters);
    }
}
