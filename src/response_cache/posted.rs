//! Answers to POST that are answers to GET, too (RFC 9110 §9.3.3): kept under the stamp of their own invalidation.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::header::CONTENT_LOCATION;
use http::{Method, Request, Response};

use super::ask::Ask;
use super::body::{BoxError, ResponseBody};
use super::config::Setup;
use super::consider::Signals;
use super::exchange::Exchange;
use super::fetch::Fetch;
use super::freshness;
use super::keep::Fetched;
use super::key::Key;
use super::service::same_site;
use super::status::Forward;
use super::target::Target;
use super::targeted;

/// The GET that a POST's answer may be stored for; none on private routes, which ask who is there.
pub(super) fn as_get<B>(
    setup: &Arc<Setup>,
    request: &Request<B>,
    signals: Signals,
) -> Option<Exchange> {
    if *request.method() != Method::POST || setup.config.private() {
        return None;
    }
    let mut get = Request::new(());
    *get.uri_mut() = request.uri().clone();
    *get.headers_mut() = request.headers().clone();
    *get.extensions_mut() = request.extensions().clone();
    let mut ask = Ask::of(&setup.config, &mut get, signals, None)?;
    // The conditions were the POST's own, and are the handler's to evaluate.
    ask.forget_conditions();
    (!ask.demands.no_store).then(|| Exchange::new(setup, ask, &get))
}

/// Says whether an answer is one to GET: a 2xx that names its own target, and says how long it is fresh.
pub(super) fn answers_get<R>(
    setup: &Setup,
    site: &Key,
    response: &Response<R>,
    received: u64,
) -> bool {
    let fields = response.headers();
    let mut lines = fields.get_all(CONTENT_LOCATION).iter();
    let (Some(named), None) = (lines.next(), lines.next()) else {
        return false;
    };
    let named = named.to_str().ok().and_then(|named| same_site(site, named));
    let own = Target::url_of(Some(site.host()), site.target());
    let said = targeted::said(fields, &setup.config.targeted);
    let now = freshness::seconds_of(received);
    response.status().is_success()
        && named == Some(own)
        && freshness::said_seconds(&said, fields, false, now).is_some()
}

/// Stores the answer if the rules for GET let it, and passes it on.
pub(super) async fn kept<R>(
    mut exchange: Exchange,
    response: Response<R>,
    times: (u64, u64),
) -> Response<ResponseBody<R>>
where
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let mut fetch = Fetch::alone(exchange.cache().ticket(), Forward::Method);
    let mut response = Some(response);
    let fetched = poll_fn(|cx| {
        // Ready at once: there is a response for the one poll.
        response.take().map_or(Poll::Pending, |response| {
            Poll::Ready(exchange.fetched(&mut fetch, response, times, cx))
        })
    });
    match fetched.await {
        Fetched::Answer(answer) => answer,
        Fetched::Streams(unread) => exchange.pulled(fetch, *unread),
    }
}
