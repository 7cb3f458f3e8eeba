//! Filling a cache before anybody asks.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use http::{HeaderValue, Request, Response, Uri, header};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, consume_budget};
use tower_service::Service;

use crate::core::{ResponseCacheOutcome, telemetry};

use super::handle::ResponseCacheHandle;

/// As many requests are under way at once.
const AT_ONCE: usize = 8;

/// What became of the URLs that a cache was to be filled with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WarmReport {
    /// Fetched and stored.
    pub stored: usize,
    /// There already, or fetched by somebody else meanwhile.
    pub present: usize,
    /// Answered, but not by a stored answer nor one that may be stored.
    pub refused: usize,
    /// Not answered whole, or no URL.
    pub failed: usize,
}

impl ResponseCacheHandle {
    /// Sends a GET for each of `urls` through `app`, eight at a time, and reads the answers to their ends.
    ///
    /// `app` is the whole service, so that the requests take the way of any other; what is fresh already costs no run.
    /// A URL with scheme and host is asked as HTTP/1.1 carries it: its host in the `Host` field.
    /// Dropping the future ends what is under way.
    pub async fn warm<S, B, R>(
        &self,
        app: S,
        urls: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> WarmReport
    where
        S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Default + Send + 'static,
        R: http_body::Body + Send + 'static,
    {
        let (room, mut running) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
        for url in urls {
            let (app, room) = (app.clone(), Arc::clone(&room));
            let url = url.as_ref().parse::<Uri>();
            running.spawn(async move {
                let _place = room.acquire().await.ok()?;
                ask(app, url.ok()?).await
            });
        }
        let mut report = WarmReport::default();
        while let Some(asked) = running.join_next().await {
            *match asked.ok().flatten() {
                Some(Some(ResponseCacheOutcome::Stored)) => &mut report.stored,
                Some(Some(
                    ResponseCacheOutcome::Hit
                    | ResponseCacheOutcome::StaleHit
                    | ResponseCacheOutcome::Validated
                    | ResponseCacheOutcome::Collapsed
                    | ResponseCacheOutcome::StandIn,
                )) => &mut report.present,
                Some(_) => &mut report.refused,
                None => &mut report.failed,
            } += 1;
        }
        telemetry::info!(
            stored = report.stored,
            present = report.present,
            refused = report.refused,
            failed = report.failed,
            "response cache: warmed"
        );
        report
    }
}

/// One GET, read to its end; `None` if it has none. What the cache did is `None` where no cache stands in its way.
async fn ask<S, B, R>(mut app: S, url: Uri) -> Option<Option<ResponseCacheOutcome>>
where
    S: Service<Request<B>, Response = Response<R>>,
    B: Default,
    R: http_body::Body,
{
    let mut request = Request::new(B::default());
    if let Some(authority) = url.authority() {
        let host = HeaderValue::from_str(authority.as_str()).ok()?;
        request.headers_mut().insert(header::HOST, host);
    }
    *request.uri_mut() = Uri::from(url.path_and_query()?.clone());
    poll_fn(|cx| app.poll_ready(cx)).await.ok()?;
    let (parts, body) = app.call(request).await.ok()?.into_parts();
    let mut body = pin!(body);
    // Whether a frame came, not the frame: that may not move between threads.
    while let Some(came) = poll_fn(|cx| body.as_mut().poll_frame(cx).map(is_right)).await {
        came.then_some(())?;
        // A body that always has one more frame lets others in between, and can be given up.
        consume_budget().await;
    }
    Some(parts.extensions.get::<ResponseCacheOutcome>().copied())
}

fn is_right<T, E>(frame: Option<Result<T, E>>) -> Option<bool> {
    frame.map(|frame| frame.is_ok())
}
