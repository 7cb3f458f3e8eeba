//! All settings of the layer and their defaults, shared behind one `Arc`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response};

use super::derive::DerivedKey;
use super::fingerprint::FingerprintRule;
use super::key::KeyFormat;
use super::mac::Keyed;
use super::policy::{Directive, LeaseEnd, Methods, StatusPolicy, Twins};
use super::record::{StoredAnswer, UNKNOWN_KEPT};
use super::rejection::IdempotencyRejection;
use super::scope::{Scope, ScopeId};
use super::store::IdempotencyStore;
use crate::core::StoreFailure;
use crate::core::ttl::{HOUR, MINUTE, SECOND};

pub(super) const KEY_FIELD: HeaderName = HeaderName::from_static("idempotency-key");
pub(super) const REPLAYED_FIELD: HeaderName = HeaderName::from_static("idempotency-replayed");
pub(super) const STATUS_FIELD: HeaderName = HeaderName::from_static("idempotency-status");
pub(super) const EXPIRES_FIELD: HeaderName = HeaderName::from_static("idempotency-expires");

const MIB: usize = 1_024 * 1_024;

pub(super) type Sanitize = dyn Fn(&mut StoredAnswer) + Send + Sync;
pub(super) type OnRejection = dyn Fn(&IdempotencyRejection, &mut Response<Bytes>) + Send + Sync;

/// Settings for a usual kind of route; setters that come later win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Preset {
    /// Key required, kept for 24 h, 5xx and crashes are undecided until an operator resolves them.
    Payments,
    /// Key optional, kept for 10 minutes, a crash lets the retry run.
    Api,
    /// For a key derived of form fields (set [`derive`](super::IdempotencyLayer::derive)): kept for 5 minutes, a
    /// second click waits up to 10 s for the first one's answer, a 409 is kept for 10 s.
    Form,
    /// The key is the body's field `id` (or a field, by [`header`](super::IdempotencyLayer::header)): kept for 72 h,
    /// 2xx stored, the rest released for redelivery. The layer stands inside the signature check.
    Webhook,
}

#[derive(Clone)]
pub(super) struct Config {
    pub(super) store: Arc<dyn IdempotencyStore>,
    pub(super) scope: Scope,
    pub(super) key_required: bool,
    pub(super) key_field: HeaderName,
    pub(super) key_format: KeyFormat,
    pub(super) derive: Option<DerivedKey>,
    pub(super) namespace: Arc<str>,
    pub(super) per_endpoint: bool,
    pub(super) has_secret: bool,
    pub(super) keyed: KeyedHashes,
    pub(super) methods: Methods,
    pub(super) fingerprint: Option<FingerprintRule>,
    pub(super) ttl: Duration,
    pub(super) lease: Duration,
    pub(super) run_limit: Duration,
    pub(super) at_lease_end: LeaseEnd,
    pub(super) twins: Twins,
    pub(super) statuses: StatusPolicy,
    pub(super) max_request_body: usize,
    pub(super) max_response_body: usize,
    pub(super) tee_up_to: usize,
    pub(super) replay_only: Option<Arc<[HeaderName]>>,
    pub(super) sanitize: Option<Arc<Sanitize>>,
    pub(super) replay_field: HeaderName,
    pub(super) report_status: bool,
    pub(super) on_store_failure: StoreFailure,
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(super) transactional: Option<super::transactional::Transactional>,
    pub(super) documentation: Option<HeaderValue>,
    pub(super) on_rejection: Option<Arc<OnRejection>>,
}

/// The three keyed hashes, each under a key of its own.
#[derive(Clone)]
pub(super) struct KeyedHashes {
    pub(super) scope: Keyed,
    pub(super) key: Keyed,
    pub(super) fingerprint: Keyed,
    /// The hash of the one scope of all, made once.
    pub(super) global: [u8; 32],
}

impl KeyedHashes {
    pub(super) fn new(secret: &[u8; 32]) -> Self {
        let scope = Keyed::new(secret, b"scope");
        Self {
            global: ScopeId::global().hash(&scope),
            scope,
            key: Keyed::new(secret, b"key"),
            fingerprint: Keyed::new(secret, b"fingerprint"),
        }
    }

    /// Hashes a scope; the first half of the ids of all its records.
    pub(super) fn of_scope(&self, scope: &ScopeId) -> [u8; 32] {
        if scope.is_global() {
            self.global
        } else {
            scope.hash(&self.scope)
        }
    }
}

impl Config {
    pub(super) fn new(store: Arc<dyn IdempotencyStore>, scope: Scope) -> Self {
        Self {
            store,
            scope,
            key_required: false,
            key_field: KEY_FIELD,
            key_format: KeyFormat::lenient(),
            derive: None,
            namespace: "".into(),
            per_endpoint: false,
            has_secret: false,
            keyed: KeyedHashes::new(&[0; 32]),
            methods: Methods::PostPatch,
            fingerprint: None,
            ttl: 24 * HOUR,
            lease: 30 * SECOND,
            run_limit: 5 * MINUTE,
            at_lease_end: LeaseEnd::Reexecute,
            twins: Twins::Reject,
            statuses: StatusPolicy::default(),
            max_request_body: 2 * MIB,
            max_response_body: 2 * MIB,
            tee_up_to: 0,
            replay_only: None,
            sanitize: None,
            replay_field: REPLAYED_FIELD,
            report_status: false,
            on_store_failure: StoreFailure::Closed,
            #[cfg(any(feature = "sqlite", feature = "postgres"))]
            transactional: None,
            documentation: None,
            on_rejection: None,
        }
    }

    pub(super) fn preset(&mut self, preset: Preset) {
        self.lease = 30 * SECOND;
        self.at_lease_end = LeaseEnd::Reexecute;
        self.twins = Twins::Reject;
        self.key_required = false;
        self.derive = None;
        self.fingerprint = None;
        self.statuses = StatusPolicy::default();
        match preset {
            Preset::Payments => {
                self.key_required = true;
                self.ttl = 24 * HOUR;
                self.at_lease_end = LeaseEnd::Indeterminate;
                self.statuses = StatusPolicy::default().on_range(500, 599, Directive::Unknown);
            }
            Preset::Api => self.ttl = 10 * MINUTE,
            Preset::Form => {
                self.ttl = 5 * MINUTE;
                self.twins = Twins::Attach(10 * SECOND);
                self.fingerprint = Some(FingerprintRule::route());
                self.statuses =
                    StatusPolicy::success_and_redirects().on(409, Directive::StoreFor(10 * SECOND));
            }
            Preset::Webhook => {
                self.ttl = 72 * HOUR;
                self.derive = Some(DerivedKey::fields("webhook").text("id"));
                self.fingerprint = Some(FingerprintRule::route());
                self.statuses = StatusPolicy::success_only();
            }
        }
    }

    /// Returns the rule of the fingerprint: the body as received, but with a derived key only the route.
    pub(super) fn rule(&self) -> FingerprintRule {
        self.fingerprint.clone().unwrap_or_else(|| {
            if self.derive.is_some() {
                FingerprintRule::route()
            } else {
                FingerprintRule::bytes()
            }
        })
    }

    /// Says whether a body may reach the handler before it was read: not where the key is made of it, nor where a
    /// transaction would wait for the client.
    pub(super) fn may_stream(&self) -> bool {
        #[cfg(any(feature = "sqlite", feature = "postgres"))]
        if self.transactional.is_some() {
            return false;
        }
        self.derive.is_none()
    }

    /// How long a claim's record is kept: a run may take that long, and an undecided one must be found.
    pub(super) fn keep(&self) -> Duration {
        let keep = self.ttl.max(self.run_limit.saturating_add(self.lease));
        match self.at_lease_end {
            LeaseEnd::Reexecute => keep,
            LeaseEnd::Indeterminate => keep.max(UNKNOWN_KEPT),
        }
    }
}

impl fmt::Debug for Config {
    /// Secret, scope and hooks are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("store", &self.store)
            .field("scope", &self.scope)
            .field("key_required", &self.key_required)
            .field("key_field", &self.key_field)
            .field("derive", &self.derive)
            .field("namespace", &self.namespace)
            .field("ttl", &self.ttl)
            .field("lease", &self.lease)
            .field("at_lease_end", &self.at_lease_end)
            .field("twins", &self.twins)
            .finish_non_exhaustive()
    }
}
