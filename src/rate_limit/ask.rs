//! What a request asks of the policies: who it is, which policies apply, and at what cost.

use ipnet::IpNet;

use super::config::Config;
use super::head::{Client, View};
use super::partition::{Found, Keyed};
use super::rejection::RateLimitRejection;
use super::rule::Rule;
use super::status::{PolicyStatus, RateLimitStatus, Statuses};
use super::store::Mode;
use crate::core::telemetry::{error, warn};
use crate::core::{ClientIp, Principal, StoreError, StoreFailure};

/// What is known of a request before any policy is looked at.
#[derive(Debug)]
pub(super) enum Classified {
    /// Exempt or on the allow list, or there is no policy.
    Pass,
    /// On the deny list.
    Refuse(RateLimitRejection),
    /// To be decided by the policies.
    Limit,
}

/// Exemptions, the client's address, the lists: in this order, and without a store.
pub(super) fn classify(config: &Config, head: View<'_>) -> (Classified, Client) {
    let settings = &config.settings;
    let is_exempt = |parts| settings.exempt.iter().any(|exempt| exempt(parts));
    if is_preflight(head) || head.parts.is_some_and(is_exempt) {
        return (Classified::Pass, Client::known(head.extensions));
    }
    let known = head.extensions.get().map(|ClientIp(client)| *client);
    let found = match known {
        None => settings.proxies.find(head.headers, head.extensions),
        known => known,
    };
    let found = found.map(|client| client.to_canonical());
    let client = Client {
        address: found,
        is_new: found.is_some() && known != found,
    };
    let is_in = |networks: &[IpNet]| {
        found.is_some_and(|client| networks.iter().any(|net| net.contains(&client)))
    };
    let classified = if is_in(&settings.deny) {
        Classified::Refuse(RateLimitRejection::listed())
    } else if is_in(&settings.allow) || config.rules.is_empty() {
        Classified::Pass
    } else {
        Classified::Limit
    };
    (classified, client)
}

/// A CORS preflight: the browser asks, no user does.
fn is_preflight(head: View<'_>) -> bool {
    head.method == http::Method::OPTIONS
        && head.headers.contains_key(http::header::ORIGIN)
        && head
            .headers
            .contains_key(http::header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Makes the keys of all policies that apply, perhaps of none; refuses where that cannot be told and the layer is closed.
pub(super) fn ask(
    config: &Config,
    head: View<'_>,
    client: &Client,
    principal: Result<Option<Principal>, StoreError>,
    asks: &mut Statuses,
) -> Result<(), RateLimitRejection> {
    let principal = match (principal, config.failure()) {
        (Ok(principal), _) => principal,
        (Err(fault), StoreFailure::Closed) if config.principal_binds => {
            return Err(RateLimitRejection::unavailable(&fault));
        }
        (Err(_), StoreFailure::Open) => return Ok(()),
        // Counted by the address, like an anonymous request.
        (Err(_), StoreFailure::Local | StoreFailure::Closed) => None,
    };
    let found = Found {
        head,
        client: client.address,
        principal: principal.as_ref(),
    };
    let earlier = head.extensions.get::<RateLimitStatus>();
    // Once for all: growing would copy them.
    asks.reserve_exact(config.rules.len());
    for (index, rule) in config.rules.iter().enumerate() {
        asks.push(PolicyStatus::asked(index, rule));
        let Some(ask) = asks.last_mut() else { continue };
        match rule.policy.partition.find(&found, &mut ask.key) {
            Keyed::Key => {
                report_anonymous(rule, &found);
                ask.limit = limit_of(rule, head);
                if let (Some(cost), Some(parts)) = (&rule.policy.cost, head.parts) {
                    ask.cost = cost(parts);
                }
                if !earlier.is_some_and(|earlier| was_charged(rule, ask, earlier)) {
                    continue;
                }
            }
            Keyed::NotApplicable => {}
            Keyed::NoAddress => {
                report_unkeyed(rule);
                if config.settings.failure == StoreFailure::Closed
                    && rule.policy.mode == Mode::Enforced
                {
                    return Err(RateLimitRejection::no_address());
                }
            }
        }
        asks.pop();
    }
    Ok(())
}

fn limit_of(rule: &Rule, head: View<'_>) -> Option<u32> {
    let limit = rule.policy.limit_by.as_ref()?(head.parts?)?;
    let declared = rule.policy.quota.limit();
    if limit > declared && rule.capped.first() {
        warn!(
            policy = &*rule.policy.name,
            limit, declared, "limit_by gave more than the declared limit: capped"
        );
    }
    Some(limit.min(declared))
}

/// An outer layer with the same policy has charged this very key: once is enough.
fn was_charged(rule: &Rule, ask: &PolicyStatus, earlier: &RateLimitStatus) -> bool {
    let charged =
        earlier.has_charged(&rule.scope, &ask.key) || earlier.has_charged(&rule.local, &ask.key);
    if charged && rule.repeated.first() {
        warn!(
            policy = &*rule.policy.name,
            "two layers hold the same policy: it is charged once per request"
        );
    }
    charged
}

fn report_unkeyed(rule: &Rule) {
    rule.meters.unkeyed.add_one();
    if rule.unkeyed.first() {
        error!(
            policy = &*rule.policy.name,
            "no client address: serve with connect info, or insert PeerAddr"
        );
    }
}

fn report_anonymous(rule: &Rule, found: &Found<'_>) {
    if found.principal.is_none() && rule.policy.partition.asks_principal() && rule.anonymous.first()
    {
        warn!(
            policy = &*rule.policy.name,
            "a request without a principal is limited by its address"
        );
    }
}
