//! Answers to POST that are answers to GET, too (RFC 9110 §9.3.3): kept under the stamp of their own invalidation.

use std::future::poll_fn;
use std::mem::swap;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::header::CONTENT_LOCATION;
use http::{Method, Request, Response, Uri};

use crate::core::Visitor;

use super::ask::Ask;
use super::body::{BoxError, ResponseBody};
use super::config::Setup;
use super::consider::Signals;
use super::exchange::Exchange;
use super::fetch::Fetch;
use super::freshness;
use super::keep::Fetched;
use super::key::{self, Key, KeyRules};
use super::seen::Seen;
use super::sent::Sent;
use super::service::same_site;
use super::stamps::Stamp;
use super::status::{Forward, Reason};
use super::store::Ticket;
use super::targeted;

/// The GET that a POST's answer may be stored for, without a copy of the request's fields; none on private routes,
/// which ask who is there.
pub(super) fn as_get<B>(
    setup: &Arc<Setup>,
    request: &mut Request<B>,
    uri: Option<&Uri>,
    signals: Signals,
) -> Option<Box<Exchange>> {
    let config = &setup.config;
    if *request.method() != Method::POST || config.private() {
        return None;
    }
    let own = own_parts(&config.key, request, uri);
    let uri = uri.unwrap_or(request.uri());
    let key = Key::of(&config.key, request, uri, &own, signals.poison, None)?;
    let mut ask = Ask::under(key, config, request.headers(), signals);
    // The conditions were the POST's own, and are the handler's to evaluate.
    ask.forget_conditions();
    ask.visitor = request.extensions().get::<Visitor>().cloned();
    (!ask.demands.no_store).then(|| {
        Box::new(Exchange {
            setup: Arc::clone(setup),
            ask,
            fields: Sent::default(),
        })
    })
}

/// What the route's own functions find in the GET of the same target.
fn own_parts<B>(
    rules: &KeyRules,
    request: &mut Request<B>,
    uri: Option<&Uri>,
) -> Vec<Option<String>> {
    if !rules.has_functions() {
        return Vec::new();
    }
    let mut other = (Method::GET, uri.unwrap_or(request.uri()).clone());
    swap(request.method_mut(), &mut other.0);
    swap(request.uri_mut(), &mut other.1);
    let own = rules.own_parts(request);
    swap(request.method_mut(), &mut other.0);
    swap(request.uri_mut(), &mut other.1);
    own
}

/// Says whether an answer is one to GET: a 2xx that names its own target, and says how long it is fresh. One that
/// varies is not kept: the fields that selected it went inwards with the request.
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
    let rules = &setup.config.key;
    let named = named.map(|named| key::in_form(rules, &named).unwrap_or(named));
    let said = targeted::said(fields, &setup.config.targeted);
    let now = freshness::seconds_of(received);
    response.status().is_success()
        && !Seen::of(fields).varies
        && named.as_deref() == Some(site.target())
        && freshness::said_seconds(&said, fields, false, now).is_some()
}

/// Stores the answer if the rules for GET let it, and passes it on; `stamp` is that of its own invalidation.
pub(super) async fn kept<R>(
    mut exchange: Box<Exchange>,
    stamp: Stamp,
    response: Response<R>,
    times: (u64, u64),
) -> Response<ResponseBody<R>>
where
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let ticket = Ticket {
        begun: stamp,
        ..exchange.cache().ticket()
    };
    let mut fetch = Fetch::alone(ticket, Forward::Method);
    // Where answers to GET vary, nobody would ever ask for it.
    let refused = match exchange.cache().names(&exchange.ask, stamp).await {
        Ok(names) if names.is_empty() => None,
        Ok(_) => Some(Some(Reason::Vary)),
        Err(_) => Some(None),
    };
    if let Some(reason) = refused {
        if let Some(reason) = reason {
            exchange.cache().counters.refused(reason);
        }
        return exchange.uncacheable(&fetch, response.map(ResponseBody::pass), reason);
    }
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
