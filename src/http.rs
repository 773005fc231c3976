//! The health port (`/livez`, `/readyz`, `/health`, `/wait`, the page, `/metrics`) and the metrics port.
//!
//! Each has a thread and a runtime of its own and reads a small [board](Health), so that no scrape,
//! however slow or hostile, touches the stream. A connection carries one request and lasts fifteen
//! seconds at most; when there are too many the oldest is closed, so that whoever comes next is
//! served.

mod ask;
mod health;
mod history;
mod page;
mod scrape;
mod wait;

pub(crate) use ask::ask;
pub use health::{Blocked, Delivery, Health, Snapshot, State};

use axum::Router;
use axum::extract::{RawQuery, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// Probes hold a connection for milliseconds; more than this at once is a fault or an attack.
const CONNECTIONS_MAX: usize = 64;

/// The longest that a connection may last, whatever it does: a wait, and the way there and back.
const CONNECTION_MAX: Duration = wait::WAIT_MAX.saturating_add(Duration::from_secs(5));

/// The longest that a request's head may take.
const HEADER_READ_MAX: Duration = Duration::from_secs(5);

/// A request's head; also hyper's smallest allowed buffer.
const HEADER_BYTES_MAX: usize = 8192;

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Health, metrics and, unless it is switched off, the page.
    Health {
        /// Whether `/` and `/status.json` are served.
        page: bool,
    },
    /// `/metrics` alone.
    Metrics,
}

impl Port {
    fn setting(self) -> &'static str {
        match self {
            Self::Health { .. } => "WAL_HEALTH_PORT",
            Self::Metrics => "METRICS_PORT",
        }
    }

    fn purpose(self) -> &'static str {
        match self {
            Self::Health { .. } => "health checks",
            Self::Metrics => "metrics",
        }
    }
}

/// Why a port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} for {}: {error}; choose another {} or HTTP_BIND",
    port.purpose(), port.setting()
)]
pub struct ListenError {
    address: SocketAddr,
    port: Port,
    #[source]
    error: io::Error,
}

/// A running port; dropping it closes it.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
}

impl Server {
    /// Where it listens: useful when port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that the thread has ended already.
            let _ = stop.send(());
        }
    }
}

/// Opens a port and serves it from a thread of its own.
///
/// The port is bound before this returns.
///
/// # Errors
///
/// [`ListenError`] at once if the port is taken, or may not be had.
pub fn serve(address: SocketAddr, port: Port, health: Arc<Health>) -> Result<Server, ListenError> {
    let listen_error = |error| ListenError { address, port, error };
    let listener = TcpListener::bind(address).map_err(listen_error)?;
    listener.set_nonblocking(true).map_err(listen_error)?;
    let address = listener.local_addr().map_err(listen_error)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(listen_error)?;
    let (stop, stopped) = oneshot::channel();
    std::thread::Builder::new()
        .name(if port == Port::Metrics { "metrics" } else { "health" }.to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, router(port, health)) => {}
                    // The sender sends or is dropped; both mean stop.
                    _ = stopped => {}
                }
            });
        })
        .map_err(listen_error)?;
    Ok(Server { address, stop: Some(stop) })
}

/// Whether a port could be opened; it is closed again at once.
///
/// # Errors
///
/// As [`serve`].
pub fn is_free(address: SocketAddr, port: Port) -> Result<(), ListenError> {
    TcpListener::bind(address).map(drop).map_err(|error| ListenError { address, port, error })
}

async fn accept(listener: TcpListener, router: Router) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "a port cannot be served");
            return;
        }
    };
    let mut connections: VecDeque<AbortHandle> = VecDeque::with_capacity(CONNECTIONS_MAX);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly "too many open files", which only time heals.
                tracing::warn!(%error, "a port cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= CONNECTIONS_MAX
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .keep_alive(false)
            .header_read_timeout(HEADER_READ_MAX)
            .max_buf_size(HEADER_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        // How a client's connection ends is its own affair.
        let task = tokio::spawn(async {
            let _ = tokio::time::timeout(CONNECTION_MAX, connection).await;
        });
        connections.push_back(task.abort_handle());
    }
}

fn router(port: Port, health: Arc<Health>) -> Router {
    let metrics = scrape::routes(Arc::clone(&health));
    let page = match port {
        Port::Metrics => return metrics,
        Port::Health { page: true } => page::routes(Arc::clone(&health)),
        Port::Health { page: false } => Router::new(),
    };
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        // What existing deployments call it.
        .route("/health", get(readyz))
        .with_state(Arc::clone(&health))
        .merge(wait::router(health))
        .merge(metrics)
        .merge(page)
}

async fn livez(Extract(health): Extract<Arc<Health>>) -> Response {
    let (live, body) = health.liveness();
    answer(live, body)
}

/// With `?standby=ok` one that waits for the slot, which another relay has, is ready, too.
async fn readyz(RawQuery(query): RawQuery, Extract(health): Extract<Arc<Health>>) -> Response {
    let standby = query.is_some_and(|query| query.split('&').any(|part| part == "standby=ok"));
    let (ready, body) = health.readiness(standby);
    answer(ready, body)
}

fn answer(well: bool, body: String) -> Response {
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{IpAddr, Ipv4Addr, TcpStream};

    const LOCALHOST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    pub(super) fn start(health: &Arc<Health>) -> Server {
        serve(LOCALHOST, Port::Health { page: true }, Arc::clone(health)).unwrap()
    }

    pub(super) fn connect(server: &Server) -> TcpStream {
        let stream = TcpStream::connect(server.local_addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    #[track_caller]
    pub(super) fn fetch(server: &Server, path: &str) -> (u16, serde_json::Value) {
        let (status, _, body) = fetch_text(server, path, "");
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    /// Status, head and body.
    #[track_caller]
    fn fetch_text(server: &Server, path: &str, header: &str) -> (u16, String, String) {
        let mut stream = connect(server);
        write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\n{header}connection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (status, head.to_owned(), body.to_owned())
    }

    #[test]
    fn readiness_follows_the_board() {
        let health = Arc::new(Health::new("factlib_slot"));
        let server = start(&health);
        let (status, body) = fetch(&server, "/readyz");
        assert_eq!((status, &body["state"]), (503, &"starting".into()));

        health.set(Snapshot {
            ready: true,
            state: State::Streaming,
            received_lsn: Some("0/16B3748".into()),
            ..health.snapshot()
        });
        for path in ["/readyz", "/health"] {
            let (status, body) = fetch(&server, path);
            assert_eq!(status, 200);
            assert_eq!(body["ready"], true);
            assert_eq!(body["state"], "streaming");
            assert_eq!(body["slot"], "factlib_slot");
            assert_eq!(body["received_lsn"], "0/16B3748");
            assert!(body["since"].as_str().unwrap().ends_with('Z'));
        }

        health.set(Snapshot {
            ready: false,
            state: State::Halted,
            reason: Some("the topic orders.order does not exist".into()),
            blocked: Some(Blocked {
                topic: Some("orders.order".into()),
                partition: None,
                position: "0000000100000000016b37480100000001".into(),
                reason: "unknown topic".into(),
                since: std::time::UNIX_EPOCH,
            }),
            ..health.snapshot()
        });
        let (status, body) = fetch(&server, "/readyz");
        assert_eq!(status, 503);
        assert_eq!(body["state"], "halted");
        assert_eq!(body["reason"], "the topic orders.order does not exist");
        assert_eq!(body["blocked"]["topic"], "orders.order");
        assert_eq!(body["blocked"]["since"], "1970-01-01T00:00:00.000Z");
        assert_eq!(fetch(&server, "/livez").0, 200);
        assert_eq!(fetch(&server, "/elsewhere").0, 404);
    }

    #[test]
    fn a_relay_that_stands_by_is_ready_for_those_who_accept_that() {
        let health = Arc::new(Health::new("factlib_slot"));
        let server = start(&health);
        let status = |state, path| {
            health.set(Snapshot { ready: false, state, ..health.snapshot() });
            fetch(&server, path).0
        };
        assert_eq!(status(State::WaitingForSlot, "/readyz"), 503);
        assert_eq!(status(State::WaitingForSlot, "/readyz?standby=no"), 503);
        assert_eq!(status(State::WaitingForSlot, "/readyz?standby=ok"), 200);
        assert_eq!(status(State::Halted, "/readyz?standby=ok"), 503);
    }

    #[test]
    fn a_relay_that_has_failed_is_neither_live_nor_ready_and_says_why() {
        let health = Arc::new(Health::new("factlib_slot"));
        let server = start(&health);
        health.set(Snapshot { ready: true, state: State::Streaming, ..health.snapshot() });
        health.fail("the slot is lost", 4);
        let (status, body) = fetch(&server, "/readyz");
        assert_eq!(
            (status, &body["state"], &body["exit_code"]),
            (503, &"failed".into(), &4.into())
        );
        assert_eq!(body["reason"], "the slot is lost");
        let (status, body) = fetch(&server, "/livez");
        assert_eq!((status, &body["reason"]), (503, &"the slot is lost".into()));
        let (_, _, metrics) = fetch_text(&server, "/metrics", "");
        for line in ["owlpost_live 0", "owlpost_state{state=\"failed\"} 1", "owlpost_exit_code 4"] {
            assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
        }
    }

    #[test]
    fn the_metrics_port_serves_metrics_in_the_format_asked_for_and_nothing_else() {
        let health = Arc::new(Health::new("factlib_slot"));
        let server = serve(LOCALHOST, Port::Metrics, health).unwrap();
        for path in ["/", "/readyz", "/status.json"] {
            assert_eq!(fetch_text(&server, path, "").0, 404, "{path}");
        }
        let (_, head, body) = fetch_text(&server, "/metrics", "");
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(!body.contains("# EOF"));
        // What Prometheus sends.
        let accept = "accept: application/openmetrics-text;version=1.0.0;q=0.6,\
                      application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3\r\n";
        let (_, head, body) = fetch_text(&server, "/metrics", accept);
        assert!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        assert!(body.ends_with("# EOF\n"), "{body}");
    }

    #[test]
    fn the_page_can_be_switched_off() {
        let health = Arc::new(Health::new("factlib_slot"));
        let on = start(&health);
        let (status, head, body) = fetch_text(&on, "/", "");
        assert_eq!(status, 200);
        assert!(body.starts_with("<!DOCTYPE html>"), "{body}");
        assert!(head.contains("content-security-policy: default-src 'none'; script-src 'sha256-"));
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        assert!(fetch_text(&on, "/now", "").2.starts_with("<div class="));
        assert_eq!(fetch_text(&on, "/status.json", "").0, 200);
        let off = serve(LOCALHOST, Port::Health { page: false }, health).unwrap();
        assert_eq!(fetch_text(&off, "/", "").0, 404);
        assert_eq!(fetch_text(&off, "/status.json", "").0, 404);
        assert_eq!(fetch_text(&off, "/metrics", "").0, 200);
    }

    #[test]
    fn a_loop_that_has_stopped_turns_both_red() {
        let health = Arc::new(Health::with_silence_max("factlib_slot", Duration::ZERO));
        health.set(Snapshot { ready: true, state: State::Streaming, ..health.snapshot() });
        let server = start(&health);
        std::thread::sleep(Duration::from_millis(5));
        let (status, body) = fetch(&server, "/livez");
        assert_eq!((status, &body["live"]), (503, &false.into()));
        let (status, body) = fetch(&server, "/readyz");
        assert_eq!((status, &body["ready"]), (503, &false.into()));
        assert_eq!(body["reason"], "the main loop has not moved for 0s; restart the process");
    }

    #[test]
    fn clients_that_never_read_or_never_ask_do_not_block_another() {
        let health = Arc::new(Health::new("factlib_slot"));
        let server = start(&health);
        let mut hostile = Vec::new();
        // More than are allowed at once: some ask without end and never read, some never ask.
        for index in 0..CONNECTIONS_MAX * 2 {
            let mut stream = connect(&server);
            stream.set_nonblocking(true).unwrap();
            if index % 2 == 0 {
                let request = b"GET /readyz HTTP/1.1\r\nhost: test\r\n\r\n".repeat(64);
                for _ in 0..1000 {
                    if stream.write(&request).is_err() {
                        break;
                    }
                }
            } else {
                let _ = stream.write(b"GET /rea");
            }
            hostile.push(stream);
        }
        assert_eq!(fetch(&server, "/livez").0, 200);
        drop(hostile);
    }

    #[test]
    fn a_port_that_is_taken_is_an_error_at_the_start() {
        let health = Arc::new(Health::new("factlib_slot"));
        let server = start(&health);
        let address = server.local_addr();
        for (port, purpose, setting) in [
            (Port::Health { page: true }, "health checks", "WAL_HEALTH_PORT"),
            (Port::Metrics, "metrics", "METRICS_PORT"),
        ] {
            let error = serve(address, port, Arc::clone(&health)).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "cannot listen on {address} for {purpose}: Address already in use (os error 98); \
                     choose another {setting} or HTTP_BIND"
                )
            );
        }
    }

    #[test]
    fn dropping_the_server_closes_the_port() {
        let server = start(&Arc::new(Health::new("factlib_slot")));
        let address = server.local_addr();
        drop(server);
        let closed = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            TcpStream::connect(address).is_err()
        });
        assert!(closed, "the port is still open after 2 s");
    }
}
