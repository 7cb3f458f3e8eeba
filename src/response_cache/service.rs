//! The service: decides by the request's head which way it goes.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use parking_lot::Mutex;
use tower_service::Service;

use crate::core::{Body, Principal, ResponseCacheOutcome, Visitor, emptied};

use super::ask::Ask;
use super::body::{BoxError, ResponseBody};
use super::config::Setup;
use super::consider::{self, Signals};
use super::counters::Level;
use super::entry::Entry;
use super::exchange::{self, Exchange};
use super::fetch::{Fetch, LeaseHold};
use super::flight::Leading;
use super::future::{Marked, ResponseFuture};
use super::hit::Tried;
use super::key::{self, Key, KeyRules};
use super::meters::Span;
use super::miss::{self, Fetching, Led};
use super::policy;
use super::posted;
use super::run::{Answer, Run};
use super::sent::Sent;
use super::stamps::{Change, ChangeKind};
use super::status::{Bypass, Forward};
use super::target::{self, Target};

/// Answers from stored responses where it may; made by [`ResponseCacheLayer`](super::ResponseCacheLayer).
#[derive(Clone)]
pub struct ResponseCache<S> {
    /// Nothing once its readiness was given back, or taken along: the next one is a clone of the origin.
    inner: Option<S>,
    shared: Arc<Shared<S>>,
}

/// What all clones of one service share.
struct Shared<S> {
    setup: Arc<Setup>,
    /// Never made ready. Locked only by who was answered before and is asked again.
    origin: Mutex<S>,
}

impl<S: Clone> ResponseCache<S> {
    pub(super) fn new(inner: S, setup: Arc<Setup>) -> Self {
        let origin = Mutex::new(inner.clone());
        Self {
            inner: Some(inner),
            shared: Arc::new(Shared { setup, origin }),
        }
    }

    fn inner(&mut self) -> &mut S {
        let origin = &self.shared.origin;
        self.inner.get_or_insert_with(|| origin.lock().clone())
    }

    /// Takes the readied one along.
    fn take_inner(&mut self) -> S {
        let ready = self.inner.take();
        ready.unwrap_or_else(|| self.shared.origin.lock().clone())
    }
}

impl<S, B, R> Service<Request<B>> for ResponseCache<S>
where
    S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: http_body::Body + Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner().poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let signals = Signals::scan(request.headers());
        let ended = request.body().is_end_stream();
        match consider::consider(
            request.method(),
            request.uri(),
            request.headers(),
            &signals,
            ended,
        ) {
            Err(_) if consider::is_unsafe(request.method()) => self.change(request, signals),
            Err(why) => self.pass(request, why),
            Ok(()) => self.consider(request, signals),
        }
    }
}

impl<S> ResponseCache<S> {
    /// Sends the request inwards with its own body, and says so.
    #[inline(never)]
    fn pass<B, R>(
        &mut self,
        request: Request<B>,
        why: Bypass,
    ) -> ResponseFuture<S::Future, R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone,
        R: Send + 'static,
    {
        self.shared
            .setup
            .cache
            .counters
            .count(ResponseCacheOutcome::Bypass);
        let call = self.inner().call(request.map(Body::pass));
        ResponseFuture::pass(call, Arc::clone(&self.shared.setup), why)
    }

    /// A request that may change things: a good answer invalidates what it names.
    #[inline(never)]
    fn change<B, R>(
        &mut self,
        mut request: Request<B>,
        signals: Signals,
    ) -> ResponseFuture<S::Future, R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let setup = Arc::clone(&self.shared.setup);
        let rules = &setup.config.key;
        // The handler gets what the client sent; only the target is named in the key's form.
        let rewritten = key::rewritten(rules, request.uri());
        let uri = rewritten.as_ref().unwrap_or(request.uri());
        let site = Key::site(&request, uri);
        let posted = posted::as_get(&setup, &mut request, rewritten.as_ref(), signals);
        let begun = setup.cache.stamps.issued();
        let call = self.inner().call(request.map(Body::pass));
        let run = async move {
            let asked = setup.cache.now();
            let mut response = call.await?;
            let times = (asked, setup.cache.now());
            let status = response.status();
            if status.is_success() || status.is_redirection() {
                let posted =
                    posted.filter(|_| posted::answers_get(&setup, &site, &response, times.1));
                let changes = changed_by(&setup.config.key, &site, response.headers());
                // What others changed meanwhile would be undone under the stamp of its own invalidation.
                let since = posted.as_ref().map(|exchange| (&exchange.ask, begun));
                let (_, stamp) = setup.cache.invalidate_since(changes, since).await;
                if let (Some(exchange), Some(stamp)) = (posted, stamp) {
                    return Ok(posted::kept(exchange, stamp, response, times).await);
                }
            }
            setup.cache.counters.count(ResponseCacheOutcome::Bypass);
            setup
                .config
                .status
                .pass(response.headers_mut(), Bypass::Method);
            response
                .extensions_mut()
                .insert(ResponseCacheOutcome::Bypass);
            Ok(response.map(ResponseBody::pass))
        };
        ResponseFuture::run(Marked::new(run, Arc::default()), Span::none())
    }

    fn consider<B, R>(
        &mut self,
        mut request: Request<B>,
        signals: Signals,
    ) -> ResponseFuture<S::Future, R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let setup = &self.shared.setup;
        let principal = if setup.config.private() {
            let named = request.extensions().get::<Principal>();
            match named.map(|own| target::principal_digest(own.id())) {
                None => return self.identify(request, signals),
                digest => {
                    setup.cache.asked_by(true);
                    digest
                }
            }
        } else {
            None
        };
        let Some(mut ask) = Ask::of(&setup.config, &mut request, signals, principal) else {
            return self.pass(request, Bypass::Length);
        };
        match setup.cache.try_now(&mut ask, request.headers()) {
            Tried::Hit(entry, now) => {
                let response = answer(setup, &ask, request, &entry, now);
                Span::begin(Some(ask.key.local)).end(response.extensions().get());
                // Whatever readiness reserved is given back.
                self.inner = None;
                ResponseFuture::hit(response)
            }
            tried => self.go_in(ask, request, tried),
        }
    }

    /// Nothing here answers at once: a fetch, or more than one step to find out.
    fn go_in<B, R>(
        &mut self,
        ask: Ask,
        request: Request<B>,
        tried: Tried,
    ) -> ResponseFuture<S::Future, R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let span = Span::begin(Some(ask.key.local));
        let mut exchange = Exchange::new(&self.shared.setup, ask, &request);
        let led = match tried {
            Tried::Unknown(at) => exchange.lead_now(request.headers(), at),
            _ => Led::Not,
        };
        if let Led::Miss(fetch) = led {
            exchange.ask.mark_personal();
            exchange.fields = Sent::of(request.headers());
            let lease = LeaseHold::new(&exchange, fetch.ticket);
            let call = span.within(|| self.inner().call(miss::shared(&exchange, request)));
            return ResponseFuture::run(Fetching::new(call, exchange, fetch, lease), span);
        }
        let (inner, leading) = (self.take_inner(), Arc::<Leading>::default());
        let mut run = Box::new(Run::new(exchange, inner, request, &leading));
        if let Led::Leader(lead) = led {
            run.led = Some(lead);
        }
        ResponseFuture::run(Marked::new(go(run, tried), leading), span)
    }

    /// Asks the session who is asking; nobody, or a failing session store, is passed.
    #[inline(never)]
    fn identify<B, R>(
        &mut self,
        mut request: Request<B>,
        signals: Signals,
    ) -> ResponseFuture<S::Future, R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let Some(visitor) = request.extensions().get::<Visitor>().cloned() else {
            self.shared.setup.cache.asked_by(false);
            return self.pass(request, Bypass::Principal);
        };
        let (mut inner, setup) = (self.take_inner(), Arc::clone(&self.shared.setup));
        let leading = Arc::<Leading>::default();
        let own = Arc::clone(&leading);
        let span = Span::begin(None);
        let named = span.clone();
        let run = async move {
            let principal = visitor.principal().await.ok().flatten();
            let digest = principal.map(|own| target::principal_digest(own.id()));
            setup.cache.asked_by(digest.is_some());
            let mut why = Bypass::Principal;
            if digest.is_some() {
                why = Bypass::Length;
                if let Some(mut ask) = Ask::of(&setup.config, &mut request, signals, digest) {
                    named.name(ask.key.local);
                    let tried = setup.cache.try_now(&mut ask, request.headers());
                    if let Tried::Hit(entry, now) = tried {
                        return Ok(answer(&setup, &ask, request, &entry, now));
                    }
                    let exchange = Exchange::new(&setup, ask, &request);
                    let run = Box::new(Run::new(exchange, inner, request, &own));
                    return go(run, tried).await;
                }
            }
            setup.cache.counters.count(ResponseCacheOutcome::Bypass);
            let mut response = inner.call(request.map(Body::pass)).await?;
            setup.config.status.pass(response.headers_mut(), why);
            response
                .extensions_mut()
                .insert(ResponseCacheOutcome::Bypass);
            Ok(response.map(ResponseBody::pass))
        };
        ResponseFuture::run(Marked::new(run, leading), span)
    }
}

/// Answers with what is there.
fn answer<B, R>(
    setup: &Setup,
    ask: &Ask,
    mut request: Request<B>,
    entry: &Entry,
    now: u64,
) -> Response<ResponseBody<R>> {
    if ask.private
        && let Some(visitor) = request.extensions().get::<Visitor>()
    {
        visitor.mark_personal();
    }
    let spare = emptied(request.extensions_mut());
    let asked = ask.asked(request.headers());
    exchange::hit(setup, asked, entry, now, Level::Local, spare)
}

/// The way of a request that nothing here could answer at once.
async fn go<S, B, R>(run: Box<Run<S>>, tried: Tried) -> Answer<R, S::Error>
where
    S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let exchange = &run.exchange;
    let alone = exchange.ask.is_alone(&exchange.fields);
    match tried {
        // Known as uncacheable: no flight and no store call; if it is storable after all, it is stored.
        Tried::Marked if !exchange.ask.demands.only_if_cached && !alone => {
            let fetch = Fetch::alone(exchange.cache().ticket(), Forward::UriMiss);
            run.fetch(fetch).await
        }
        _ => run.go().await,
    }
}

/// What a good answer to an unsafe request changes (RFC 9111 §4.4, RFC 9875 §3).
fn changed_by(rules: &KeyRules, site: &Key, fields: &http::HeaderMap) -> Vec<Change> {
    let url = |path: &str| Target::url_of(Some(site.host()), path);
    let mut targets = vec![url(site.target())];
    for name in [http::header::LOCATION, http::header::CONTENT_LOCATION] {
        // A target may hold any text. Several lines are one too many, but each may be the one that is meant.
        let named = fields.get_all(name).iter();
        let named = named.filter_map(|value| std::str::from_utf8(value.as_bytes()).ok());
        for path in named.filter_map(|named| same_site(site, named)) {
            // Another route may have it under its own rules, or none.
            targets.extend(key::in_form(rules, &path).map(|path| url(&path)));
            targets.push(url(&path));
        }
    }
    for group in policy::groups(fields, "cache-group-invalidation") {
        targets.push(Target::group_of(site.host(), &group));
    }
    let gone = |target| Change {
        target,
        kind: ChangeKind::Gone,
    };
    targets.into_iter().map(gone).collect()
}

/// Path and query of a URI reference, if it lies on the same host.
pub(super) fn same_site(site: &Key, reference: &str) -> Option<String> {
    let cut = reference.find('#').unwrap_or(reference.len());
    let reference = &reference[..cut];
    let Some((_, rest)) = reference
        .split_once("//")
        .filter(|(scheme, _)| is_scheme(scheme))
    else {
        return target::resolved(site.target(), reference);
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let same = target::host_of(authority) == target::host_of(site.host());
    // Without a path it is the root's, as a client asks for it.
    let root = if path.starts_with('/') { "" } else { "/" };
    same.then(|| format!("{root}{path}"))
}

/// What stands before `//` in a reference that names a host: a scheme, or nothing.
fn is_scheme(text: &str) -> bool {
    text.is_empty() || text.eq_ignore_ascii_case("http:") || text.eq_ignore_ascii_case("https:")
}

impl<S: fmt::Debug> fmt::Debug for ResponseCache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseCache")
            .field("inner", &self.inner)
            .field("cache", &self.shared.setup.cache)
            .field("config", &self.shared.setup.config)
            .finish()
    }
}
