//! The layer: a store, a scope and settings.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, Response, Uri};
use tower_layer::Layer;

use super::admin::Admin;
use super::config::{Config, EXPIRES_FIELD, KeyedHashes, Preset, STATUS_FIELD};
use super::derive::DerivedKey;
use super::fingerprint::FingerprintRule;
use super::key::KeyFormat;
use super::policy::{LeaseEnd, Methods, StatusPolicy, Twins};
use super::record::StoredAnswer;
use super::rejection::IdempotencyRejection;
use super::running::Runs;
use super::scope::Scope;
use super::service::{Idempotency, Shared};
use super::store::{Health, IdempotencyStore};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use super::transactional::Transactional;
use crate::core::telemetry::{Once, warn};
use crate::core::{StoreError, StoreFailure};

/// Lets one request per key reach the service inside, and answers every repetition with its answer.
#[derive(Clone, Debug)]
#[must_use]
pub struct IdempotencyLayer {
    config: Arc<Config>,
    runs: Arc<Runs>,
    /// Made once: axum asks for the service anew with every request.
    shared: Arc<OnceLock<Arc<Shared>>>,
}

/// What [`IdempotencyLayer::drain`] waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Runs that came to their end meanwhile.
    pub finished: usize,
    /// Runs that were given up: their lease is over at once.
    pub abandoned: usize,
}

impl IdempotencyLayer {
    /// Keeps claims and answers in `store`, each belonging to one `scope`.
    pub fn new(store: impl IdempotencyStore, scope: Scope) -> Self {
        static GLOBAL: Once = Once::new();
        if scope.is_global() && GLOBAL.first() {
            warn!(
                "idempotency: one scope for all callers, anybody who knows a key gets its answer"
            );
        }
        Self {
            config: Arc::new(Config::new(Arc::new(store), scope)),
            runs: Arc::new(Runs::default()),
            shared: Arc::default(),
        }
    }

    /// Keeps claims and answers in the transaction of the request: the claim, what the handler writes and the
    /// answer commit together before the client sees it, or none of them does. Of any number of requests
    /// with one key, the effect is there once or not at all.
    ///
    /// `database` is a [`SqlStore`](crate::backend::sql::SqlStore), or [`Transactional::new`]. The handler
    /// writes through [`SqlTransaction`](crate::backend::sql::SqlTransaction), or a reservation layer inside
    /// lends it. A status of 200–399 commits; any other undoes what the handler wrote, and its answer is
    /// kept all the same where the statuses say so. A run takes no longer than a transaction may (30 s), and
    /// needs no lease.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub fn transactional(database: impl Into<Transactional>, scope: Scope) -> Self {
        let mode = database.into();
        mode.register();
        Self::new(mode.db().clone(), scope).set(|config| config.transactional = Some(mode))
    }

    fn set(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.config));
        self.shared = Arc::default();
        self
    }

    /// Takes the settings of a usual kind of route over; setters that come later win.
    pub fn preset(self, preset: Preset) -> Self {
        self.set(|config| config.preset(preset))
    }

    /// Refuses requests without a key (400); otherwise they pass unguarded.
    pub fn require_key(self) -> Self {
        self.set(|config| config.key_required = true)
    }

    /// Takes the key from this field (`Idempotency-Key`), and no longer derives it.
    pub fn header(self, name: HeaderName) -> Self {
        self.set(|config| (config.key_field, config.derive) = (name, None))
    }

    /// Sets which values are keys ([`KeyFormat::lenient`]).
    pub fn key_format(self, format: KeyFormat) -> Self {
        self.set(|config| config.key_format = format)
    }

    /// Makes the key from the request instead of reading a field; every guarded request then has one.
    pub fn derive(self, key: DerivedKey) -> Self {
        self.set(|config| config.derive = Some(key))
    }

    /// Keeps the keys of this layer apart from those of others on the same store.
    pub fn namespace(self, name: &str) -> Self {
        self.set(|config| config.namespace = name.into())
    }

    /// Lets each method and path have keys of its own; otherwise reuse on another endpoint is 422.
    pub fn per_endpoint(self) -> Self {
        self.set(|config| config.per_endpoint = true)
    }

    /// Hashes keys, scopes and payloads under a secret that all processes share. Another secret forgets all keys.
    pub fn secret(self, secret: [u8; 32]) -> Self {
        self.set(|config| (config.keyed, config.has_secret) = (KeyedHashes::new(&secret), true))
    }

    /// Sets which methods are guarded ([`Methods::PostPatch`]).
    pub fn methods(self, methods: Methods) -> Self {
        self.set(|config| config.methods = methods)
    }

    /// Sets what makes two requests the same ([`FingerprintRule::bytes`]; with a derived key [`FingerprintRule::route`]).
    pub fn fingerprint(self, rule: FingerprintRule) -> Self {
        self.set(|config| config.fingerprint = Some(rule))
    }

    /// Keeps answers for this long (24 h).
    pub fn ttl(self, ttl: Duration) -> Self {
        self.set(|config| config.ttl = ttl)
    }

    /// Lets a claim hold this long without renewal (30 s); it is renewed at each third.
    ///
    /// # Panics
    /// Less than 30 ms.
    pub fn lease(self, lease: Duration) -> Self {
        assert!(
            lease >= Duration::from_millis(30),
            "a lease must last 30 ms at least"
        );
        self.set(|config| config.lease = lease)
    }

    /// Stops a run after this long (5 min): 503.
    pub fn run_limit(self, limit: Duration) -> Self {
        self.set(|config| config.run_limit = limit)
    }

    /// Sets what the end of a lease means ([`LeaseEnd::Reexecute`]).
    pub fn at_lease_end(self, end: LeaseEnd) -> Self {
        self.set(|config| config.at_lease_end = end)
    }

    /// Sets what a second request gets while the first runs ([`Twins::Reject`]).
    pub fn twins(self, twins: Twins) -> Self {
        self.set(|config| config.twins = twins)
    }

    /// Sets which answers are kept.
    pub fn statuses(self, policy: StatusPolicy) -> Self {
        self.set(|config| config.statuses = policy)
    }

    /// Refuses larger request bodies (2 MiB) before anything is claimed: 413.
    pub fn max_request_body(self, bytes: usize) -> Self {
        self.set(|config| config.max_request_body = bytes)
    }

    /// Keeps no larger response bodies (2 MiB); a retry then gets 409.
    pub fn max_response_body(self, bytes: usize) -> Self {
        self.set(|config| config.max_response_body = bytes)
    }

    /// Copies larger answers of known size, up to this one, while they go out (0: none).
    ///
    /// A tombstone is stored before the first byte leaves, and the answer takes its place after the last; a
    /// client that leaves mid-way does not stop it. Until then a retry gets 409. Each such answer is in memory
    /// as a whole while it goes out. Not in transactional mode, where the answer must be in the same commit.
    pub fn tee_up_to(self, bytes: usize) -> Self {
        self.set(|config| config.tee_up_to = bytes)
    }

    /// Keeps only these fields of an answer.
    ///
    /// # Panics
    /// A name is not a valid field name.
    pub fn replay_only<'a>(self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let names: Option<Arc<[HeaderName]>> = names
            .into_iter()
            .map(|name| HeaderName::try_from(name).ok())
            .collect();
        assert!(names.is_some(), "replay_only takes valid field names");
        self.set(|config| config.replay_only = names)
    }

    /// Changes what is kept of an answer; the first client gets its answer as it was.
    pub fn sanitize(self, change: impl Fn(&mut StoredAnswer) + Send + Sync + 'static) -> Self {
        self.set(|config| config.sanitize = Some(Arc::new(change)))
    }

    /// Marks replays with this field (`Idempotency-Replayed`).
    pub fn replay_header(self, name: HeaderName) -> Self {
        self.set(|config| config.replay_field = name)
    }

    /// Tells in `Idempotency-Status` and `Idempotency-Expires` what was done.
    pub fn report_status(self) -> Self {
        self.set(|config| config.report_status = true)
    }

    /// Sets what happens while the store cannot answer: [`StoreFailure::Closed`] (503) or [`StoreFailure::Open`] (runs unprotected).
    ///
    /// # Panics
    /// For [`StoreFailure::Local`]: a claim inside one process is none for the others. For
    /// [`StoreFailure::Open`] in transactional mode: without its database nothing can run.
    pub fn on_store_failure(self, mode: StoreFailure) -> Self {
        assert!(
            mode != StoreFailure::Local,
            "idempotency cannot be kept inside one process"
        );
        #[cfg(any(feature = "sqlite", feature = "postgres"))]
        assert!(
            mode == StoreFailure::Closed || self.config.transactional.is_none(),
            "without its database a transactional run cannot be"
        );
        self.set(|config| config.on_store_failure = mode)
    }

    /// Links refusals to a page that explains the policy.
    ///
    /// # Panics
    /// `page` cannot stand in a field.
    pub fn documentation(self, page: Uri) -> Self {
        let link = HeaderValue::try_from(format!("<{page}>; rel=\"describedby\"")).ok();
        assert!(link.is_some(), "the page's address must fit into a field");
        self.set(|config| config.documentation = link)
    }

    /// Changes refusals: the finished problem document and its fields.
    pub fn on_rejection(
        self,
        hook: impl Fn(&IdempotencyRejection, &mut Response<Bytes>) + Send + Sync + 'static,
    ) -> Self {
        self.set(|config| config.on_rejection = Some(Arc::new(hook)))
    }

    /// Returns the fields that a browser script may need to read: for a CORS layer.
    #[must_use]
    pub fn exposed_headers(&self) -> [HeaderName; 4] {
        [
            self.config.replay_field.clone(),
            STATUS_FIELD,
            EXPIRES_FIELD,
            RETRY_AFTER,
        ]
    }

    /// Asks the store for a sign of life, and whether it keeps what it is given. A Redis whose
    /// `maxmemory-policy` is not `noeviction` does not, and one warning says so: call it at the start, too.
    ///
    /// # Errors
    /// The store's.
    pub async fn health(&self) -> Result<Health, StoreError> {
        static EVICTION: Once = Once::new();
        let health = self.config.store.health().await?;
        if health == Health::MayEvict && EVICTION.first() {
            warn!(
                "idempotency: the store may evict records, a key may then run again; set maxmemory-policy to noeviction"
            );
        }
        Ok(health)
    }

    /// Waits until all runs are over and all answers are stored, at most `limit`; then gives the rest up by a zero lease.
    /// A request that came before and has not begun to run by then does not begin any more: 503, and its claim is
    /// released, should it still come back.
    ///
    /// To be called after the server stopped accepting, before the runtime ends.
    pub async fn drain(&self, limit: Duration) -> Drained {
        self.runs.drain(&*self.config.store, limit).await
    }

    /// Returns what operators need to look at records and to resolve them.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.config))
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = Idempotency<S>;

    fn layer(&self, inner: S) -> Self::Service {
        static NO_SECRET: Once = Once::new();
        if self.config.derive.is_some() && !self.config.has_secret && NO_SECRET.first() {
            warn!(
                "idempotency: derived keys without a secret can be guessed from a dump of the store"
            );
        }
        let shared = self
            .shared
            .get_or_init(|| Shared::new(&self.config, &self.runs));
        Idempotency::new(inner, Arc::clone(shared))
    }
}
