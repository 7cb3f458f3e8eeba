//! The layer: what a route says about caching, over a cache that all clones share.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use tower_layer::Layer;

use crate::core::{Clock, telemetry};

use super::cache::Cache;
use super::config::{Config, Setup};
use super::handle::ResponseCacheHandle;
use super::key::KeyRules;
use super::rejection::ResponseCacheRejection;
use super::service::ResponseCache;
use super::status::{self, Names};
use super::store::{Observed, ResponseStore};
use super::target;

const LOCAL_BYTES: usize = 64 * 1_024 * 1_024;

/// Answers with stored responses wherever RFC 9111 allows a shared cache to; see the [module](super).
///
/// Clones share the store, one local level, one table of fetches under way, and one handle; each keeps
/// the policy of its own route.
#[derive(Clone)]
#[must_use]
pub struct ResponseCacheLayer {
    /// One `Arc` only: axum clones layers, and applies them, for every request.
    setup: Arc<Setup>,
}

impl ResponseCacheLayer {
    /// Makes a cache that obeys the headers of responses and nothing else.
    pub fn new(store: impl ResponseStore) -> Self {
        let cache = Arc::new(Cache::new(
            Observed::over(Arc::new(store)),
            LOCAL_BYTES,
            None,
        ));
        let config = Config::default();
        Self {
            setup: Arc::new(Setup { cache, config }),
        }
    }

    fn set(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut Arc::make_mut(&mut self.setup).config);
        self
    }

    fn with_cache(mut self, local_bytes: usize, clock: Option<Arc<dyn Clock>>) -> Self {
        let setup = Arc::make_mut(&mut self.setup);
        let store = Arc::clone(&setup.cache.store);
        let cache = Cache::new(store, local_bytes, clock);
        if let Some(name) = setup.cache.counters.given_name() {
            cache.counters.be_named(name);
        }
        setup.cache = Arc::new(cache);
        self
    }

    /// Bounds the copies that this process keeps of a shared store's entries, in bytes, everything counted (64 MiB).
    ///
    /// With 0 there are none, and every hit is one exact shared read; who would wait for a fetch under way asks first whether
    /// an invalidation elsewhere came since, one for all who come meanwhile (while the store is away fetches are shared
    /// unasked). Call it before cloning: it begins
    /// a local level of its own. A [`MemoryStore`](crate::backend::memory::MemoryStore) has its own bound.
    pub fn local_bytes(self, bytes: usize) -> Self {
        self.with_cache(bytes, None)
    }

    /// Follows `clock` for the staleness bound and marks instead of the machine's; for tests of exactly these.
    #[doc(hidden)]
    pub fn real_clock(self, local_bytes: usize, clock: impl Clock) -> Self {
        self.with_cache(local_bytes, Some(Arc::new(clock)))
    }

    /// Makes answers fresh for this long where nothing else says so; for the statuses 200 203 204 300 301 308.
    pub fn ttl(self, ttl: Duration) -> Self {
        self.set(|config| config.route.ttl = Some(ttl))
            .check_refresh()
    }

    /// Makes answers of one more status fresh for this long where nothing else says so (negative caching).
    pub fn ttl_for(self, status: StatusCode, ttl: Duration) -> Self {
        self.set(|config| config.ttl_for.push((status, ttl)))
    }

    /// From this age on an answer is given at once and refreshed behind it.
    pub fn refresh_after(self, age: Duration) -> Self {
        self.set(|config| config.route.refresh_after = Some(age))
            .check_refresh()
    }

    fn check_refresh(self) -> Self {
        let route = &self.setup.config.route;
        if let (Some(ttl), Some(after)) = (route.ttl, route.refresh_after)
            && after >= ttl
        {
            telemetry::warn!("response cache: refresh_after is not below ttl and has no effect");
        }
        self
    }

    /// For this long after its lifetime an answer is given stale and refreshed behind it (RFC 5861 §3).
    pub fn stale_while_revalidate(self, window: Duration) -> Self {
        self.set(|config| config.route.stale_while_revalidate = Some(window))
    }

    /// For this long after its lifetime an answer stands in for an error (RFC 5861 §4).
    pub fn stale_if_error(self, window: Duration) -> Self {
        self.set(|config| config.route.stale_if_error = Some(window))
    }

    /// Tags every answer of this route; repeatable.
    ///
    /// # Panics
    /// If `tag` is not 1 to 128 bytes without control characters.
    #[track_caller]
    pub fn tag(self, tag: impl Into<Cow<'static, str>>) -> Self {
        let tag = tag.into();
        assert!(
            target::is_tag(&tag),
            "a tag has 1 to 128 bytes and no control characters"
        );
        self.set(|config| config.route.tags.push(tag))
    }

    /// Keeps one copy per principal. Requests without one are passed. Wins over [`public`](Self::public).
    pub fn private(self) -> Self {
        self.set(|config| config.route.private = true)
            .check_privacy()
    }

    /// Says what `Cache-Control: public` says: these answers are the same for all, whatever was sent along.
    pub fn public(self) -> Self {
        self.set(|config| config.route.public = true)
            .check_privacy()
    }

    fn check_privacy(self) -> Self {
        if self.setup.config.route.private && self.setup.config.route.public {
            telemetry::warn!(
                "response cache: a route is both private and public, and is kept private"
            );
        }
        self
    }

    /// Sets what belongs to the key beside scheme, host, path and query.
    pub fn key(self, rules: KeyRules) -> Self {
        self.set(|config| config.key = rules)
    }

    /// Sets how long others wait for one run before the next may start (5 s), 100 ms to 60 s.
    pub fn lease(self, lease: Duration) -> Self {
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(60));
        self.set(|config| config.lease = lease.clamp(least, most))
    }

    /// Bounds the bodies that are stored (1 MiB); larger ones stream through.
    pub fn max_body(self, bytes: usize) -> Self {
        self.set(|config| config.max_body = bytes)
    }

    /// Sets the target list (`CDN-Cache-Control` alone): the first of these response fields that is there and
    /// valid replaces `Cache-Control` and `Expires` for this cache (RFC 9213). They are passed on.
    ///
    /// ```
    /// # use http::HeaderName;
    /// # use tower_keep::{backend::memory::MemoryStore, response_cache::ResponseCacheLayer};
    /// let own = HeaderName::from_static("keep-cache-control");
    /// let all = HeaderName::from_static("cdn-cache-control");
    /// let cache = ResponseCacheLayer::new(MemoryStore::new()).targeted([own, all]);
    /// # let _ = cache;
    /// ```
    pub fn targeted(self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.set(|config| config.targeted = names.into_iter().collect())
    }

    /// Stores answers with `Set-Cookie` and replays it, as RFC 9111 §7.3 leaves caches free to.
    ///
    /// Off by default: only for handlers whose cookies are the same for all, since everybody gets them.
    pub fn replay_set_cookie(self) -> Self {
        self.set(|config| config.replay_set_cookie = true)
    }

    /// Guesses no lifetime from `Last-Modified` (RFC 9111 §4.2.2).
    pub fn no_heuristics(self) -> Self {
        self.set(|config| config.heuristics = false)
    }

    /// Obeys requests that demand a fresh answer (`no-cache`, `max-age`, `min-fresh`, `Pragma`).
    ///
    /// Off by default, because it lets any client make the handler run.
    pub fn allow_reload(self) -> Self {
        self.set(|config| config.allow_reload = true)
    }

    /// Sets `Cache-Control` for clients on answers that only a policy made storable (`no-cache`), since no
    /// invalidation reaches a browser.
    pub fn downstream(self, value: HeaderValue) -> Self {
        self.set(|config| config.downstream = value)
    }

    /// Sets the name in `Cache-Status` (`tower-keep`).
    ///
    /// # Panics
    /// If `name` is longer than 64 bytes, does not begin with a letter, or has other characters than letters, digits,
    /// `-`, `_`, `.`.
    #[track_caller]
    pub fn name(self, name: &'static str) -> Self {
        assert!(
            status::is_name(name),
            "a cache name is a letter, then letters, digits, - _ ."
        );
        self.setup.cache.counters.be_named(name);
        self.set(|config| {
            let hidden = config.status.is_hidden();
            config.status = Names::new(name);
            if hidden {
                config.status.hide();
            }
        })
    }

    /// Sends no `Cache-Status`.
    pub fn hide_status(self) -> Self {
        self.set(|config| config.status.hide())
    }

    /// Changes the one refusal before it goes out.
    pub fn on_rejection(
        self,
        hook: impl Fn(&ResponseCacheRejection, &mut Response<Bytes>) + Send + Sync + 'static,
    ) -> Self {
        self.set(|config| config.on_rejection = Some(Arc::new(hook)))
    }

    pub(super) fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Returns the handle to invalidate and observe this cache by; all clones have the same.
    #[must_use]
    pub fn handle(&self) -> ResponseCacheHandle {
        ResponseCacheHandle::new(Arc::clone(&self.setup.cache))
    }
}

impl<S: Clone> Layer<S> for ResponseCacheLayer {
    type Service = ResponseCache<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ResponseCache::new(inner, Arc::clone(&self.setup))
    }
}

impl fmt::Debug for ResponseCacheLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseCacheLayer")
            .field("store", &self.setup.cache.store)
            .field("config", &self.setup.config)
            .finish_non_exhaustive()
    }
}
