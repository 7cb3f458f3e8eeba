//! Operations: how the practice is right now, held against the platform's targets, for people and for Prometheus.
//!
//! Try it: `curl localhost:8080/metrics | grep clinic_`, or open `http://localhost:8080/admin` as `root@clinic.test`
//!
//! Proof: `an_admin_approves_by_a_form_and_sees_how_the_practice_is`

use minijinja::{Value, context};
use tower_keep::data::health::{HealthStatus, StoreMode};
use tower_keep::data::queue::Depth;

use crate::health;
use crate::state::App;

/// What the platform promises: at least this share of cached reads is a hit, …
const HIT_RATE: f64 = 0.9;
/// … at most these shares of store calls are decided without the store, or fail, …
const FALLBACK_SHARE: f64 = 0.05;
const ERROR_SHARE: f64 = 0.001;
/// … and of a hundred store calls 99 take no longer than this, in seconds.
const LATENCY: f64 = 0.01;

/// One figure and its target.
struct Figure {
    name: &'static str,
    title: &'static str,
    value: f64,
    target: f64,
    /// More is better.
    at_least: bool,
    shown: fn(f64) -> String,
}

/// What the targets are about, since this process began.
fn figures(app: &App) -> [Figure; 4] {
    let (cache, store) = (app.cache.stats(), app.store.stats());
    let hits = cache.hits + cache.stale_hits + cache.collapsed + cache.validations;
    // Memory has no commands: whatever it is asked it answers.
    let asked = store.commands + store.fallbacks;
    let figure = |name, title, value, target, at_least, shown| Figure {
        name,
        title,
        value,
        target,
        at_least,
        shown,
    };
    let latency = store.latency.p99().unwrap_or_default().as_secs_f64();
    [
        figure(
            "hit_rate",
            "Cache hit rate",
            share(hits, hits + cache.misses).unwrap_or(1.0),
            HIT_RATE,
            true,
            percent as fn(f64) -> String,
        ),
        figure(
            "fallback_share",
            "Decided without the store",
            share(store.fallbacks, asked).unwrap_or(0.0),
            FALLBACK_SHARE,
            false,
            percent,
        ),
        figure(
            "error_share",
            "Failed store calls",
            share(store.errors, asked).unwrap_or(0.0),
            ERROR_SHARE,
            false,
            percent,
        ),
        figure(
            "store_latency_p99_seconds",
            "99 of 100 store calls within",
            latency,
            LATENCY,
            false,
            millis,
        ),
    ]
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn percent(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}

fn millis(value: f64) -> String {
    format!("{:.1} ms", value * 1_000.0)
}

/// Both queues; nothing where the store cannot tell.
async fn depths(app: &App) -> Option<[(&'static str, Depth); 2]> {
    let (notices, events) = tokio::join!(app.notices.depth(), app.events.depth());
    Some([("notices", notices.ok()?), ("payment events", events.ok()?)])
}

/// Shows Prometheus the targets and what we measure against them.
pub async fn measure(app: &App) {
    for figure in figures(app) {
        let labels = [("name", figure.name)];
        metrics::gauge!("clinic_target", &labels).set(figure.target);
        metrics::gauge!("clinic_measured", &labels).set(figure.value);
    }
    metrics::gauge!("clinic_breaker_open").set(f64::from(u8::from(app.store.is_refusing())));
    // Whatever was decided without the store, each by itself.
    metrics::counter!("clinic_fallbacks_total").absolute(app.store.stats().fallbacks);
    let is_fallback = app.store.mode() == StoreMode::Fallback;
    metrics::gauge!("clinic_fallback").set(f64::from(u8::from(is_fallback)));
    for (queue, depth) in depths(app).await.into_iter().flatten() {
        let waiting = depth.ready + depth.delayed + depth.leased;
        metrics::gauge!("clinic_queue_depth", "queue" => queue).set(waiting as f64);
    }
}

/// The same for the page of the administration.
pub async fn shown(app: &App) -> Value {
    let report = app.health.report().await;
    let checks = report.checks.iter().map(|check| {
        let millis = check.response_time.as_millis();
        context! { name => check.name, status => check.status.as_str(), millis => millis.to_string() }
    });
    let targets = figures(app).map(|figure| {
        let is_met = if figure.at_least {
            figure.value >= figure.target
        } else {
            figure.value <= figure.target
        };
        let target = (figure.shown)(figure.target);
        let bound = if figure.at_least {
            "at least"
        } else {
            "at most"
        };
        context! {
            name => figure.name,
            title => figure.title,
            value => (figure.shown)(figure.value),
            target => format!("{bound} {target}"),
            is_met,
        }
    });
    let queues = depths(app).await.into_iter().flatten().map(|(name, depth)| {
        context! { name, waiting => depth.ready + depth.delayed + depth.leased, dead => depth.dead }
    });
    context! {
        status => report.status.as_str(),
        is_healthy => report.status == HealthStatus::Healthy,
        mode => app.store.mode().to_string(),
        breaker => if app.store.is_refusing() { "open" } else { "closed" },
        limits_hit => health::refused_by_limits(),
        checks => checks.collect::<Vec<_>>(),
        targets => targets.to_vec(),
        queues => queues.collect::<Vec<_>>(),
    }
}
