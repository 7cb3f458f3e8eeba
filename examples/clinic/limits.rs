//! Every quota of the practice by name, and nothing else. One function is one atomic check.
//!
//! Try it: `for i in $(seq 11); do curl -i -X POST localhost:8080/api/login -H 'content-type: application/json' -d '{"email":"pat@clinic.test","password":"no"}'; done`
//!
//! Proof: `payment_limits`

use tower_keep::core::{ClientIpLayer, StoreFailure, TrustedProxies};
use tower_keep::rate_limit::{Partition, Policy, Quota, RateLimitLayer};
use tower_keep::{DAY, HOUR, MINUTE};

use crate::guests;
use crate::state::State;

/// Logging in, by address.
pub fn login(state: &State) -> RateLimitLayer {
    layer(state, "login").policy(Policy::new(
        "ip",
        Quota::new(10, 15 * MINUTE),
        Partition::client_ip(),
    ))
}

/// Asking for a payment, before anything is known but the address.
pub fn pay_outer(state: &State) -> RateLimitLayer {
    layer(state, "pay-outer")
        .policy(Policy::new(
            "ip",
            Quota::new(20, 15 * MINUTE),
            Partition::client_ip(),
        ))
        .policy(Policy::new(
            "global",
            Quota::new(1_000, MINUTE),
            Partition::global(),
        ))
        .on_store_failure(StoreFailure::Closed)
}

/// Asking for a payment, once the subject is known and the request is no repetition.
pub fn pay_inner(state: &State) -> RateLimitLayer {
    let subject = || Partition::custom("subject", guests::partition);
    layer(state, "pay-inner")
        .policy(Policy::new("user", Quota::new(5, 15 * MINUTE), subject()))
        .policy(Policy::new("user-daily", Quota::new(20, DAY), subject()))
        .on_store_failure(StoreFailure::Closed)
}

/// Having one's identity verified: a visit to somebody who wants money for it.
pub fn identity(state: &State) -> RateLimitLayer {
    layer(state, "identity")
        .policy(by_user("user", Quota::new(3, HOUR)))
        .policy(Policy::new(
            "ip",
            Quota::new(10, HOUR),
            Partition::client_ip(),
        ))
        .policy(Policy::new(
            "global",
            Quota::new(500, 5 * MINUTE),
            Partition::global(),
        ))
}

/// Everything below `/api/user`.
pub fn user(state: &State) -> RateLimitLayer {
    layer(state, "user").policy(by_user("user", Quota::new(30, 5 * MINUTE)))
}

/// Everything below `/api/admin`, and changes of roles.
pub fn admin(state: &State) -> RateLimitLayer {
    layer(state, "admin").policy(by_user("admin", Quota::new(100, 10 * MINUTE)))
}

/// Changes of roles, inside the quota of admins.
pub fn roles(state: &State) -> RateLimitLayer {
    layer(state, "roles").policy(by_user("roles", Quota::new(5, HOUR)))
}

/// Verifying by force.
pub fn force(state: &State) -> RateLimitLayer {
    layer(state, "force")
        .policy(by_user("force-verification", Quota::new(10, DAY)))
        .on_store_failure(StoreFailure::Closed)
}

/// Verifying an expert.
pub fn verify(state: &State) -> RateLimitLayer {
    layer(state, "verify").policy(by_user("verify", Quota::new(20, HOUR)))
}

/// Approving transfers, inside the quota of admins.
pub fn transfer(state: &State) -> RateLimitLayer {
    layer(state, "transfer")
        .policy(by_user("transfer", Quota::new(50, HOUR)))
        .policy(by_user("transfer-daily", Quota::new(200, DAY)))
        .policy(Policy::new(
            "transfer-global",
            Quota::new(500, 10 * MINUTE),
            Partition::global(),
        ))
        .on_store_failure(StoreFailure::Closed)
}

/// Finds the visitor's address, for sessions as for limits.
pub fn addresses(state: &State) -> ClientIpLayer {
    ClientIpLayer::new(proxies(state))
}

fn proxies(state: &State) -> TrustedProxies {
    match state.options.trusted_hops {
        0 => TrustedProxies::none(),
        hops => TrustedProxies::hops(hops),
    }
}

fn by_user(name: &'static str, quota: Quota) -> Policy {
    Policy::new(name, quota, Partition::principal())
}

fn layer(state: &State, group: &'static str) -> RateLimitLayer {
    RateLimitLayer::new(state.store.clone())
        .group(group)
        .trusted_proxies(proxies(state))
        .legacy_headers()
        .timeout(state.options.limit_timeout)
}
