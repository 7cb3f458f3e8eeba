//! The layer and its setters.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, request};
use ipnet::IpNet;
use tower_layer::Layer;

use super::config::{Policy, Settings, Shared};
use super::limiter::RateLimiter;
use super::partition::Partition;
use super::quota::Quota;
use super::rejection::RateLimitRejection;
use super::service::RateLimit;
use super::store::RateLimitStore;
use crate::core::{StoreFailure, TrustedProxies};

/// Decides by any number of policies, in one atomic step, whether a request may go on.
///
/// What is set is fixed once a service or a limiter was made; clones share counters, warnings and the local store.
#[derive(Clone, Debug)]
#[must_use]
pub struct RateLimitLayer {
    shared: Arc<Shared>,
}

impl RateLimitLayer {
    /// Makes a layer that counts in `store`; without a policy it lets everything pass.
    pub fn new(store: impl RateLimitStore) -> Self {
        Self {
            shared: Shared::new(Settings::new(store)),
        }
    }

    fn set(self, change: impl FnOnce(&mut Settings)) -> Self {
        Self {
            shared: self.shared.set(change),
        }
    }

    /// Adds a policy that is named by its partition.
    ///
    /// # Panics
    /// See [`RateLimitLayer::policy`] and [`Policy::new`].
    pub fn limit(self, quota: Quota, partition: Partition) -> Self {
        let name = partition.name().to_owned();
        self.policy(Policy::new(name, quota, partition))
    }

    /// Adds a policy.
    ///
    /// # Panics
    /// If the layer has a policy of that name, or 16 policies.
    pub fn policy(self, policy: Policy) -> Self {
        self.set(|settings| settings.add(policy))
    }

    /// Names the group, `default` unless set. Layers that declare the same policy in the same group share its state.
    ///
    /// # Panics
    /// If the name is not 1 to 64 characters of `a-z 0-9 . _ -`.
    pub fn group(self, name: impl AsRef<str>) -> Self {
        self.set(|settings| settings.set_group(name.as_ref()))
    }

    /// Says who is believed about the client's address; unless set nobody, and the client is the peer.
    ///
    /// An address that stands in the request already ([`ClientIp`](crate::core::ClientIp)) is taken as it is: where several
    /// layers want it, the outermost finds it for all.
    pub fn trusted_proxies(self, proxies: TrustedProxies) -> Self {
        self.set(|settings| settings.proxies = proxies)
    }

    /// Lets clients from these networks pass uncounted.
    pub fn allow_ips(self, networks: impl IntoIterator<Item = IpNet>) -> Self {
        self.set(|settings| settings.allow.extend(networks))
    }

    /// Refuses clients from these networks with 403; stronger than the allow list.
    pub fn deny_ips(self, networks: impl IntoIterator<Item = IpNet>) -> Self {
        self.set(|settings| settings.deny.extend(networks))
    }

    /// Lets requests pass uncounted, besides CORS preflights.
    pub fn exempt(self, exempt: impl Fn(&request::Parts) -> bool + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.exempt.push(Arc::new(exempt)))
    }

    /// Sets who decides while the store cannot answer, [`StoreFailure::Local`] unless set.
    ///
    /// Under `Local` an outage admits at most `n * max(1, limit / n)` more in a window, for `n` [`processes`](Self::processes),
    /// counted in requests of cost 1. One that costs more than the share of a process, and no more than the limit, takes that
    /// whole share: at most `n` such are admitted.
    pub fn on_store_failure(self, mode: StoreFailure) -> Self {
        self.set(|settings| settings.failure = mode)
    }

    /// Sets how many processes share the store, 1 unless set: each gets its share of a limit while the store is away.
    ///
    /// # Panics
    /// If `processes` is 0.
    pub fn processes(self, processes: u32) -> Self {
        self.set(|settings| settings.set_processes(processes))
    }

    /// Sets how long a store call may take, 50 ms unless set.
    ///
    /// # Panics
    /// If `timeout` is not within 1 ms and 5 s.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.set_timeout(timeout))
    }

    /// Sends the older `X-RateLimit-Limit`, `-Remaining` and `-Reset` (Unix seconds) too.
    pub fn legacy_headers(self) -> Self {
        self.set(|settings| settings.fields.legacy = true)
    }

    /// Sends no `RateLimit` and `RateLimit-Policy` fields. `Retry-After` stays.
    pub fn no_fields(self) -> Self {
        self.set(|settings| settings.fields.standard = false)
    }

    /// Changes finished refusals. `Retry-After` and the `RateLimit` fields are added afterwards, unless it set them.
    pub fn on_rejection(
        self,
        hook: impl Fn(&RateLimitRejection, &mut Response<Bytes>) + Send + Sync + 'static,
    ) -> Self {
        self.set(|settings| settings.hook = Some(Arc::new(hook)))
    }

    /// Returns a handle with the same policies, store and failure mode, for code without a request.
    pub fn limiter(&self) -> RateLimiter {
        RateLimiter::of(Arc::clone(&self.shared))
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, Arc::clone(self.shared.config()))
    }
}
