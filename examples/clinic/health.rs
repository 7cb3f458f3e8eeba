//! Health: each part asked now, never remembered from the start.
//!
//! Try it: `curl localhost:8080/api/health`
//!
//! Proof: `every_part_tells_its_health_and_a_slow_provider_is_no_slow_practice`

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State as Extract};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tower_keep::SECOND;
use tower_keep::backend::sql::SqlStore;
use tower_keep::data::health::{Health, Thresholds};
use tower_keep::data::queue::Queue;
use tower_keep::store::Store;

use crate::notifications::Notice;
use crate::operations;
use crate::provider::Provider;
use crate::state::App;

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Begins to gather the measurements of all layers; they are shown by `/metrics`.
pub fn gather() {
    if let Ok(handle) = PrometheusBuilder::new().install_recorder() {
        let _ = RECORDER.set(handle);
    }
}

/// Empties what was gathered into its buckets every few seconds: where nobody asks, it would grow without end.
pub async fn gather_on(stopped: impl Future<Output = ()>) {
    let mut pause = tokio::time::interval(5 * SECOND);
    let mut stopped = pin!(stopped);
    loop {
        tokio::select! {
            () = &mut stopped => return,
            _ = pause.tick() => {}
        }
        if let Some(handle) = RECORDER.get() {
            handle.run_upkeep();
            ::metrics::counter!("clinic_upkeeps_total").increment(1);
        }
    }
}

/// How many requests the quotas have refused, in this process.
pub fn refused_by_limits() -> u64 {
    let text = RECORDER.get().map(PrometheusHandle::render);
    let lines = text.iter().flat_map(|text| text.lines());
    let refused = lines.filter(|line| {
        line.starts_with("keep_rate_limit_requests_total{") && line.contains("outcome=\"limited")
    });
    let counts = refused.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

/// `GET /metrics`
pub async fn metrics(Extract(app): Extract<App>) -> impl IntoResponse {
    operations::measure(&app).await;
    let text = RECORDER.get().map(PrometheusHandle::render);
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text.unwrap_or_default())
}

/// Counts requests by the pattern of their route: a raw path would be a name without end.
pub async fn count(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or_else(|| "none".to_owned(), |route| route.as_str().to_owned());
    let method = method_of(request.method());
    let started = Instant::now();
    let response = next.run(request).await;
    if !route.starts_with("/_test/") {
        let status = response.status().as_u16().to_string();
        let labels = [
            ("route", route),
            ("method", method.to_owned()),
            ("status", status),
        ];
        ::metrics::counter!("clinic_requests_total", &labels).increment(1);
        let took = started.elapsed().as_secs_f64();
        ::metrics::histogram!("clinic_request_seconds", &labels[..1]).record(took);
    }
    response
}

/// Clients may make up methods; these are all that count by name.
fn method_of(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

/// What `/api/health` asks: 503 only without the database; without the store the practice works on, degraded.
pub fn of(
    db: SqlStore,
    store: &Arc<dyn Store>,
    notices: &Queue<Notice>,
    provider: &Arc<Provider>,
    window: Duration,
) -> Health {
    let provider = provider.clone();
    Health::new()
        .required("db", db)
        .check("store", Arc::clone(store))
        .check("queue", notices.clone())
        .check("provider", move || {
            let provider = provider.clone();
            async move { provider.ping().await }
        })
        .thresholds(Thresholds::default().window(window))
}
