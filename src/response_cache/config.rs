//! Settings of one layer, behind one `Arc`, and the policy that a route or an answer adds to what headers say.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::cache::Cache;
use super::key::KeyRules;
use super::rejection::ResponseCacheRejection;
use super::status::Names;

/// What a route, or one answer of a handler, says about caching where the response's own fields leave it open.
///
/// As a response extension, or as part of an axum response, it speaks for this answer only. The
/// response's fields decide first, then the handler's policy, then the route's; a restriction from any
/// of the three holds, and tags add up. An answer's own `ttl` is for the statuses that caches may keep
/// without being told (RFC 9110 §15.1).
///
/// ```
/// use tower_keep::MINUTE;
/// use tower_keep::response_cache::CachePolicy;
///
/// let policy = CachePolicy::new().ttl(MINUTE).tag("experts");
/// # let mut response = http::Response::new(());
/// response.extensions_mut().insert(policy);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct CachePolicy {
    pub(super) ttl: Option<Duration>,
    pub(super) refresh_after: Option<Duration>,
    pub(super) stale_while_revalidate: Option<Duration>,
    pub(super) stale_if_error: Option<Duration>,
    pub(super) tags: Vec<Cow<'static, str>>,
    pub(super) public: bool,
    pub(super) private: bool,
    pub(super) no_store: bool,
}

impl CachePolicy {
    /// Says nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the answer fresh for this long where its fields say nothing.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// From this age on it is answered and refreshed behind the answer.
    pub fn refresh_after(mut self, age: Duration) -> Self {
        self.refresh_after = Some(age);
        self
    }

    /// For this long after its lifetime it is answered stale and refreshed behind the answer (RFC 5861 §3).
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.stale_while_revalidate = Some(window);
        self
    }

    /// For this long after its lifetime it stands in for an error (RFC 5861 §4).
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.stale_if_error = Some(window);
        self
    }

    /// Adds a tag: 1 to 128 bytes without control characters. With an ill-formed one nothing is stored.
    pub fn tag(mut self, tag: impl Into<Cow<'static, str>>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Says what `Cache-Control: public` says.
    pub fn public(mut self) -> Self {
        self.public = true;
        self
    }

    /// Keeps the answer out of everything but a private route's cache.
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Keeps the answer out of every cache of this crate.
    pub fn no_store(mut self) -> Self {
        self.no_store = true;
        self
    }
}

pub(super) type OnRejection =
    Arc<dyn Fn(&ResponseCacheRejection, &mut Response<Bytes>) + Send + Sync>;

/// What the services of one layer share, behind one `Arc`.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) cache: Arc<Cache>,
    pub(super) config: Config,
}

/// Everything that one route's layer was told.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) route: CachePolicy,
    pub(super) ttl_for: Vec<(StatusCode, Duration)>,
    pub(super) key: KeyRules,
    pub(super) lease: Duration,
    pub(super) max_body: usize,
    /// The target list of RFC 9213 §2.2: the first of these fields that is there and valid decides.
    pub(super) targeted: Vec<HeaderName>,
    pub(super) heuristics: bool,
    pub(super) allow_reload: bool,
    pub(super) replay_set_cookie: bool,
    pub(super) downstream: HeaderValue,
    pub(super) status: Names,
    pub(super) on_rejection: Option<OnRejection>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            route: CachePolicy::default(),
            ttl_for: Vec::new(),
            key: KeyRules::default(),
            lease: Duration::from_secs(5),
            max_body: 1_024 * 1_024,
            targeted: vec![HeaderName::from_static("cdn-cache-control")],
            heuristics: true,
            allow_reload: false,
            replay_set_cookie: false,
            downstream: HeaderValue::from_static("no-cache"),
            status: Names::new(super::ready::NAME),
            on_rejection: None,
        }
    }
}

impl Config {
    /// One copy per principal. Where a route says both, private wins.
    pub(super) const fn private(&self) -> bool {
        self.route.private
    }

    pub(super) const fn public(&self) -> bool {
        self.route.public && !self.route.private
    }

    pub(super) fn ttl_of(&self, status: StatusCode) -> Option<Duration> {
        let named = self
            .ttl_for
            .iter()
            .rev()
            .find(|(named, _)| *named == status);
        named.map(|(_, ttl)| *ttl).or_else(|| {
            super::freshness::is_plain(status)
                .then_some(self.route.ttl)
                .flatten()
        })
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("route", &self.route)
            .field("ttl_for", &self.ttl_for)
            .field("key", &self.key)
            .field("lease", &self.lease)
            .field("max_body", &self.max_body)
            .field("targeted", &self.targeted)
            .field("heuristics", &self.heuristics)
            .field("allow_reload", &self.allow_reload)
            .field("replay_set_cookie", &self.replay_set_cookie)
            .field("on_rejection", &self.on_rejection.is_some())
            .finish_non_exhaustive()
    }
}
