//! axum: the routes.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::routing::get;
use http::{Response, StatusCode};

use super::handle::Health;
use crate::core::Problem;

impl Health {
    /// Returns the routes `/` (the whole) and `/{name}` (one part), to be nested: `.nest("/api/health", health.routes())`.
    ///
    /// A part that nobody added is 404 `NOT_FOUND`.
    pub fn routes<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        let (whole, part) = (Arc::new(self.clone()), Arc::new(self.clone()));
        let whole = move || {
            let health = Arc::clone(&whole);
            async move { health.report().await.response().map(Body::from) }
        };
        let part = move |Path(name): Path<String>| {
            let health = Arc::clone(&part);
            async move { one(&health, &name).await.map(Body::from) }
        };
        Router::new()
            .route("/", get(whole))
            .route("/{name}", get(part))
    }
}

async fn one(health: &Health, name: &str) -> Response<bytes::Bytes> {
    match health.report().await.part(name) {
        Some(part) => part.response(),
        None => Problem::new(StatusCode::NOT_FOUND, "NOT_FOUND").response(),
    }
}
