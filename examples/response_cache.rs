//! A small catalogue behind the response cache: tags, invalidation by tag, prefix and URL, soft expiry, two processes.
//!
//! Run it: `cargo run --example response_cache`, then
//! `curl -i localhost:8083/experts`, twice: the second one says `cache-status: tower-keep;hit`.
//! `curl -X PUT localhost:8083/experts/e1 -d name=Eve` renames an expert: the answer to a good `PUT` drops the URL, and
//! the handler expires the lists that show her by their tag: the next look still shows the old name, the one after it the new
//! one. `curl -X POST localhost:8083/purge -d tag=lists` drops by hand.
//!
//! Arguments: where to listen, the store (`memory:`). Two of them on one `redis://…` see each other's changes.

#![allow(clippy::print_stdout, reason = "a program tells where it listens")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tower_keep::response_cache::{
    CachePolicy, InvalidateOutcome, KeyRules, ResponseCacheHandle, ResponseCacheLayer, TRACKING,
    Target,
};
use tower_keep::{HOUR, MINUTE};

#[derive(Clone)]
struct Site {
    /// What belongs into a database.
    experts: Arc<Mutex<BTreeMap<String, String>>>,
    /// How often a handler ran: what the cache is there to keep low.
    runs: Arc<AtomicU64>,
    cache: ResponseCacheHandle,
}

#[derive(Serialize)]
struct Page<T> {
    run: u64,
    shows: T,
}

impl Site {
    fn page<T>(&self, show: impl FnOnce(&BTreeMap<String, String>) -> T) -> Json<Page<T>> {
        let experts = self.experts.lock().unwrap_or_else(PoisonError::into_inner);
        Json(Page {
            run: self.runs.fetch_add(1, Ordering::Relaxed) + 1,
            shows: show(&experts),
        })
    }
}

async fn list(State(site): State<Site>) -> Json<Page<Vec<String>>> {
    site.page(|experts| experts.values().cloned().collect())
}

/// This answer's own policy: one more tag than the route gives it.
async fn show(
    State(site): State<Site>,
    Path(id): Path<String>,
) -> (CachePolicy, Json<Page<Option<String>>>) {
    let policy = CachePolicy::new().tag(format!("expert:{id}"));
    (policy, site.page(|experts| experts.get(&id).cloned()))
}

#[derive(Deserialize)]
struct Rename {
    name: String,
}

async fn rename(
    State(site): State<Site>,
    Path(id): Path<String>,
    Form(wish): Form<Rename>,
) -> StatusCode {
    site.experts
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(id, wish.name);
    // The URL itself goes by the answer's status. The lists know her by their tag: stale, they are shown once more while
    // they are fetched anew.
    site.cache.expire([Target::tag("lists")]).await;
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct Purge {
    tag: Option<String>,
    prefix: Option<String>,
    url: Option<String>,
}

/// In earnest this route is for administrators: the cache itself brings no such route along.
async fn purge(State(site): State<Site>, Form(wish): Form<Purge>) -> &'static str {
    let targets = [
        wish.tag.map(Target::tag),
        wish.prefix.map(Target::prefix),
        wish.url.map(Target::url),
    ];
    match site.cache.invalidate(targets.into_iter().flatten()).await {
        InvalidateOutcome::Done => "done\n",
        InvalidateOutcome::Queued => "queued: the store is away\n",
    }
}

async fn stats(State(site): State<Site>) -> String {
    let stats = site.cache.stats();
    format!(
        "hits {} misses {} hit rate {:.2}\n",
        stats.hits,
        stats.misses,
        stats.hit_rate()
    )
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8083".into());
    let store = arguments.next().unwrap_or_else(|| "memory:".into());
    let cache = ResponseCacheLayer::new(tower_keep::store::open(&store).await?);
    let lists = cache
        .clone()
        .ttl(10 * MINUTE)
        .stale_while_revalidate(HOUR)
        .tag("lists")
        .key(KeyRules::new().sort_query().ignore_query(TRACKING));
    let site = Site {
        experts: Arc::new(Mutex::new(BTreeMap::from([
            ("e1".into(), "Ada".into()),
            ("e2".into(), "Bob".into()),
        ]))),
        runs: Arc::default(),
        cache: cache.handle(),
    };
    let app = Router::new()
        .route("/experts", get(list).layer(lists))
        .route(
            "/experts/{id}",
            get(show).put(rename).layer(cache.ttl(10 * MINUTE)),
        )
        .route("/purge", post(purge))
        .route("/stats", get(stats))
        .with_state(site);
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}
