//! The service: decides by the request's head which way it goes.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response};
use tower_service::Service;

use crate::core::{Body, Principal, ResponseCacheOutcome, Visitor, take_ready};

use super::answer::Form;
use super::ask::Ask;
use super::body::{BoxError, ResponseBody};
use super::cache::Cache;
use super::config::Config;
use super::consider::{self, Demands, Signals};
use super::extract;
use super::fetch::Fetch;
use super::flight::Leading;
use super::future::ResponseFuture;
use super::hit::Tried;
use super::inner::Inner;
use super::key::{self, Key};
use super::policy;
use super::run::{self, Answer, Run};
use super::stamps::{Change, ChangeKind};
use super::status::{Bypass, Forward};
use super::target::{self, Target};

/// Answers from stored responses where it may; made by [`ResponseCacheLayer`](super::ResponseCacheLayer).
#[derive(Clone)]
pub struct ResponseCache<S> {
    inner: S,
    cache: Arc<Cache>,
    config: Arc<Config>,
}

impl<S> ResponseCache<S> {
    pub(super) const fn new(inner: S, cache: Arc<Cache>, config: Arc<Config>) -> Self {
        Self {
            inner,
            cache,
            config,
        }
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
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let inner = take_ready(&mut self.inner);
        let signals = Signals::scan(request.headers());
        let ended = request.body().is_end_stream();
        match consider::consider(
            request.method(),
            request.uri(),
            request.headers(),
            &signals,
            ended,
        ) {
            Err(_) if consider::is_unsafe(request.method()) => self.change(inner, request),
            Err(why) => self.pass(inner, request, why),
            Ok(()) => self.consider(inner, request, signals),
        }
    }
}

impl<S> ResponseCache<S> {
    /// Sends the request inwards with its own body, and says so.
    fn pass<B, R>(
        &self,
        mut inner: S,
        request: Request<B>,
        why: Bypass,
    ) -> ResponseFuture<S::Future, R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>>,
        R: Send + 'static,
    {
        self.cache.counters.count(ResponseCacheOutcome::Bypass);
        let call = inner.call(request.map(Body::pass));
        ResponseFuture::pass(call, Arc::clone(&self.config), why)
    }

    /// A request that may change things: a good answer invalidates what it names.
    fn change<B, R>(
        &self,
        mut inner: S,
        request: Request<B>,
    ) -> ResponseFuture<S::Future, R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        R: Send + 'static,
    {
        let (cache, config) = (Arc::clone(&self.cache), Arc::clone(&self.config));
        let (mut parts, body) = request.into_parts();
        let original = extract::original_uri(&parts.extensions).cloned();
        // The handler gets what the client sent; only the target is named in the key's form.
        let sent = parts.uri.clone();
        key::rewrite_uri(&config.key, &mut parts.uri);
        let site = Key::of(&config.key, &parts, original.as_ref(), false, None);
        parts.uri = sent;
        let request = Request::from_parts(parts, Body::pass(body));
        let call = inner.call(request);
        let run = Box::pin(async move {
            let mut response = call.await?;
            let status = response.status();
            if let Some(site) = site.filter(|_| status.is_success() || status.is_redirection()) {
                let changes = changed_by(&site, response.headers());
                cache.invalidate(changes).await;
            }
            cache.counters.count(ResponseCacheOutcome::Bypass);
            config.status.pass(response.headers_mut(), Bypass::Method);
            response
                .extensions_mut()
                .insert(ResponseCacheOutcome::Bypass);
            Ok(response.map(ResponseBody::pass))
        });
        ResponseFuture::run(run, Arc::default())
    }

    fn consider<B, R>(
        &self,
        inner: S,
        request: Request<B>,
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
        let private = self.config.private();
        let named = request.extensions().get::<Principal>().filter(|_| private);
        let named = named.map(|own| target::principal_digest(own.id()));
        if private && named.is_none() {
            let visitor = request.extensions().get::<Visitor>().cloned();
            return match visitor {
                Some(visitor) => self.identify(inner, request, signals, visitor),
                None => self.pass(inner, request, Bypass::Principal),
            };
        }
        let mut question = match Question::new(&self.config, request, signals, named) {
            Ok(question) => question,
            Err(request) => return self.pass(inner, request, Bypass::Length),
        };
        match self
            .cache
            .try_now(&mut question.ask, &question.parts.headers)
        {
            Tried::Hit(entry, now) => {
                let ask = &question.ask;
                ask.mark_personal();
                ResponseFuture::hit(run::hit(&self.cache, &self.config, ask, &entry, now))
            }
            tried => {
                let leading = Arc::<Leading>::default();
                let run = question.run(&self.cache, &self.config, inner, &leading);
                ResponseFuture::run(Box::pin(go(run, tried)), leading)
            }
        }
    }

    /// Asks the session who is asking; nobody, or a failing session store, is passed.
    fn identify<B, R>(
        &self,
        mut inner: S,
        request: Request<B>,
        signals: Signals,
        visitor: Visitor,
    ) -> ResponseFuture<S::Future, R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let (cache, config) = (Arc::clone(&self.cache), Arc::clone(&self.config));
        let leading = Arc::<Leading>::default();
        let own = Arc::clone(&leading);
        let run = Box::pin(async move {
            let principal = visitor.principal().await.ok().flatten();
            let digest = principal.map(|own| target::principal_digest(own.id()));
            let (request, why) = match digest {
                None => (request, Bypass::Principal),
                digest => match Question::new(&config, request, signals, digest) {
                    Err(request) => (request, Bypass::Length),
                    Ok(mut question) => {
                        let tried = cache.try_now(&mut question.ask, &question.parts.headers);
                        if let Tried::Hit(entry, now) = tried {
                            question.ask.mark_personal();
                            return Ok(run::hit(&cache, &config, &question.ask, &entry, now));
                        }
                        return go(question.run(&cache, &config, inner, &own), tried).await;
                    }
                },
            };
            cache.counters.count(ResponseCacheOutcome::Bypass);
            let mut response = inner.call(request.map(Body::pass)).await?;
            config.status.pass(response.headers_mut(), why);
            response
                .extensions_mut()
                .insert(ResponseCacheOutcome::Bypass);
            Ok(response.map(ResponseBody::pass))
        });
        ResponseFuture::run(run, leading)
    }
}

/// A considered request, read.
struct Question {
    ask: Ask,
    parts: Parts,
}

impl Question {
    /// Reads `request`, and rewrites its URI by the key rules. Its body has ended. Given back if its key is too long.
    #[allow(
        clippy::result_large_err,
        reason = "the request goes on its way by value"
    )]
    fn new<B>(
        config: &Config,
        request: Request<B>,
        signals: Signals,
        principal: Option<[u8; 16]>,
    ) -> Result<Self, Request<B>> {
        let (mut parts, body) = request.into_parts();
        let original = extract::original_uri(&parts.extensions);
        key::rewrite_uri(&config.key, &mut parts.uri);
        let key = Key::of(&config.key, &parts, original, signals.poison, principal);
        let Some(key) = key else {
            return Err(Request::from_parts(parts, body));
        };
        let demands = if signals.directives {
            Demands::of(&parts.headers, config.allow_reload)
        } else {
            Demands::default()
        };
        let form = Form {
            head: parts.method == Method::HEAD,
            conditions: (signals.conditional || signals.range)
                .then(|| Box::new(parts.headers.clone())),
        };
        let mut ask = Ask::new(key, demands, signals, form, config.private());
        ask.visitor = parts.extensions.get::<Visitor>().cloned();
        Ok(Self { ask, parts })
    }

    fn run<S: Clone>(
        self,
        cache: &Arc<Cache>,
        config: &Arc<Config>,
        inner: S,
        leading: &Arc<Leading>,
    ) -> Run<S> {
        Run {
            cache: Arc::clone(cache),
            config: Arc::clone(config),
            inner: Inner::new(inner),
            ask: self.ask,
            parts: self.parts,
            leading: Arc::clone(leading),
        }
    }
}

/// The way of a request that nothing here could answer at once.
async fn go<S, B, R>(run: Run<S>, tried: Tried) -> Answer<R, S::Error>
where
    S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    match tried {
        // Known as uncacheable: no flight and no store call; if it is storable after all, it is stored.
        Tried::Marked if !run.ask.demands.only_if_cached && !run.ask.is_alone() => {
            let fetch = Fetch::alone(run.cache.ticket(), Forward::UriMiss);
            run.fetch(fetch).await
        }
        _ => run.go().await,
    }
}

/// What a good answer to an unsafe request changes (RFC 9111 §4.4, RFC 9875 §3).
fn changed_by(site: &Key, fields: &http::HeaderMap) -> Vec<Change> {
    let mut targets = vec![Target::url_of(Some(site.host()), site.target())];
    for name in [http::header::LOCATION, http::header::CONTENT_LOCATION] {
        let named = fields.get(name).and_then(|value| value.to_str().ok());
        targets.extend(named.and_then(|named| same_site(site, named)));
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

/// The target of a URI reference, if it lies on the same host.
fn same_site(site: &Key, reference: &str) -> Option<Target> {
    let cut = reference.find('#').unwrap_or(reference.len());
    let uri: http::Uri = reference[..cut].parse().ok()?;
    let path = uri.path_and_query()?.as_str();
    if let Some(authority) = uri.authority() {
        let same = target::host_of(authority.as_str()) == target::host_of(site.host());
        return same.then(|| Target::url_of(Some(site.host()), path));
    }
    path.starts_with('/')
        .then(|| Target::url_of(Some(site.host()), path))
}

impl<S: fmt::Debug> fmt::Debug for ResponseCache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseCache")
            .field("inner", &self.inner)
            .field("cache", &self.cache)
            .field("config", &self.config)
            .finish()
    }
}
