//! `/metrics`: text made of the board, at most four times a second however often it is asked for.

use super::Health;
use crate::metrics::{Format, render};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A text as old as this is good enough: what it is made of changes once a second.
const FRESH: Duration = Duration::from_millis(250);

#[derive(Debug)]
struct Scrapes {
    health: Arc<Health>,
    /// The last text in each format.
    openmetrics: Mutex<Option<(Instant, Bytes)>>,
    prometheus: Mutex<Option<(Instant, Bytes)>>,
}

pub(super) fn routes(health: Arc<Health>) -> Router {
    let (openmetrics, prometheus) = (Mutex::default(), Mutex::default());
    let scrapes = Scrapes { health, openmetrics, prometheus };
    Router::new().route("/metrics", get(metrics)).with_state(Arc::new(scrapes))
}

async fn metrics(State(scrapes): State<Arc<Scrapes>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::asked_for(accept.unwrap_or_default());
    match scrapes.text(format) {
        Ok(text) => {
            let headers = [
                (header::CONTENT_TYPE, format.content_type()),
                (header::CACHE_CONTROL, "no-store"),
                (header::VARY, "Accept"),
            ];
            (headers, text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

impl Scrapes {
    fn text(&self, format: Format) -> Result<Bytes, std::fmt::Error> {
        let last = match format {
            Format::OpenMetrics => &self.openmetrics,
            Format::Prometheus => &self.prometheus,
        };
        // The port has one thread, so nobody waits here.
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let view = self.health.view();
        let now = view.now;
        if let Some((_, text)) = last.as_ref().filter(|(at, _)| now < *at + FRESH) {
            return Ok(text.clone());
        }
        let text = Bytes::from(render(view, format)?);
        *last = Some((now, text.clone()));
        Ok(text)
    }
}
