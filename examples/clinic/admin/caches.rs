//! The response cache by hand: drop what is out of date, warm what everybody asks for, see how it does.
//!
//! Try it: `curl -b jar localhost:8080/api/admin/cache/stats` as `root@clinic.test`
//!
//! Proof: `a_warmed_cache_answers_the_first_visitor`

use axum::Json;
use axum::body::Body;
use axum::extract::State as Extract;
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_keep::backend::health::StoreMode;
use tower_keep::response_cache::Target;

use crate::app;
use crate::fault::Input;
use crate::fixtures;
use crate::state::App;

#[derive(Deserialize)]
pub struct Invalidation {
    tags: Vec<String>,
    prefix: Option<String>,
}

/// `POST /api/admin/cache/invalidate`
pub async fn invalidate(
    Extract(app): Extract<App>,
    Input(wish): Input<Invalidation>,
) -> Json<Value> {
    let mut targets: Vec<Target> = wish.tags.iter().map(Target::tag).collect();
    targets.extend(wish.prefix.as_ref().map(Target::prefix));
    let invalidated = targets.len();
    app.cache.invalidate(targets).await;
    Json(json!({ "invalidated": invalidated }))
}

/// `POST /api/admin/cache/warm`: the catalogue, everybody, and today's times, by the way that any request takes and under
/// the name by which we were called: answers are kept for each host by itself.
pub async fn warm(Extract(app): Extract<App>, headers: HeaderMap) -> Json<Value> {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let site = host.map_or_else(String::new, |host| format!("http://{host}"));
    let today = fixtures::day_of(app.now()).to_string();
    let mut urls = vec![format!("{site}/api/experts")];
    for expert in &fixtures::EXPERTS {
        let own = format!("{site}/api/experts/{}", expert.id);
        urls.extend(
            expert
                .services
                .iter()
                .map(|service| format!("{own}/slots?service={}&day={}", service.id, &today[..10])),
        );
        urls.push(own);
    }
    let routes = app::catalogue(&app).with_state::<()>(app.clone());
    let report = app.cache.warm::<_, Body, _>(routes, urls).await;
    Json(json!({ "warmed": report.stored + report.present }))
}

/// `GET /api/admin/cache/stats`: told per operation, never remembered from the start.
pub async fn stats(Extract(app): Extract<App>) -> Json<Value> {
    let (mode, stats, store) = (app.store.mode(), app.cache.stats(), app.store.stats());
    Json(json!({
        "cache_type": mode.to_string(),
        "is_redis_available": mode == StoreMode::Redis && store.reachable,
        "in_memory_size": stats.local_entries,
        "hit": stats.hits,
        "miss": stats.misses,
        "stale": stats.stale_hits,
        "error": stats.store_errors,
        "fallback": stats.passed,
    }))
}
