//! The fields that tell a client its limits (draft-ietf-httpapi-ratelimit-headers-10, RFC 9651 Lists of Strings).

use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use smallvec::SmallVec;

use super::config::{Config, Policy};
use super::status::{PolicyStatus, RateLimitStatus};
use super::store::{Mode, Outcome};
use crate::core::fields::{
    RATE_LIMIT, RATE_LIMIT_POLICY, X_RATE_LIMIT_LIMIT, X_RATE_LIMIT_REMAINING, X_RATE_LIMIT_RESET,
};

type Line = SmallVec<[u8; 256]>;

/// The fields of one response.
#[derive(Debug, Default)]
pub(super) struct RateLimitFields {
    standard: Option<(HeaderValue, HeaderValue)>,
    legacy: Option<Box<[HeaderValue; 3]>>,
}

impl RateLimitFields {
    /// Renders what `own` (this layer's part of `status`) says; the older fields speak for all of `status`.
    pub(super) fn render(config: &Config, status: &RateLimitStatus, own: &[PolicyStatus]) -> Self {
        let fields = config.settings.fields;
        let standard = (fields.standard).then(|| standard(config, own)).flatten();
        let legacy = (fields.legacy).then(|| legacy(status)).flatten();
        Self { standard, legacy }
    }

    /// Appends the standard fields, so that stacked layers add up to one List, and sets the older ones
    /// unless a layer further inside, which knew more, has done so.
    pub(super) fn apply(self, headers: &mut HeaderMap) {
        if let Some((policy, limit)) = self.standard {
            headers.append(RATE_LIMIT_POLICY, policy);
            headers.append(RATE_LIMIT, limit);
        }
        if let Some(legacy) = self.legacy
            && !headers.contains_key(X_RATE_LIMIT_LIMIT)
        {
            let [limit, remaining, reset] = *legacy;
            headers.insert(X_RATE_LIMIT_LIMIT, limit);
            headers.insert(X_RATE_LIMIT_REMAINING, remaining);
            headers.insert(X_RATE_LIMIT_RESET, reset);
        }
    }

    /// Like `apply`, but leaves alone what a hook has set.
    pub(super) fn apply_after_hook(mut self, headers: &mut HeaderMap) {
        if headers.contains_key(RATE_LIMIT_POLICY) || headers.contains_key(RATE_LIMIT) {
            self.standard = None;
        }
        self.apply(headers);
    }
}

/// Returns the `RateLimit-Policy` value of a layer whose enforced policies always apply, at their declared limits.
pub(super) fn fixed_policy_line(policies: &[Policy]) -> Option<HeaderValue> {
    let enforced = || {
        policies
            .iter()
            .filter(|policy| policy.mode == Mode::Enforced)
    };
    if enforced().any(|policy| policy.limit_by.is_some()) {
        return None;
    }
    let mut line = Line::new();
    for policy in enforced() {
        push_policy(
            &mut line,
            &policy.name,
            policy.quota.capacity(),
            policy.quota.field_window(),
        );
    }
    value(&line)
}

fn standard(config: &Config, own: &[PolicyStatus]) -> Option<(HeaderValue, HeaderValue)> {
    let (mut limits, mut shown) = (Line::new(), 0);
    for entry in own.iter().filter(|entry| entry.is_enforced()) {
        push_limit(&mut limits, entry);
        shown += 1;
    }
    if shown == 0 {
        return None;
    }
    let all = config
        .rules
        .iter()
        .filter(|rule| rule.policy.mode == Mode::Enforced);
    let policies = match &config.policy_line {
        // The line is ready for the shared store's quotas; a share of them has numbers of its own.
        Some(line) if shown == all.count() && own.iter().all(PolicyStatus::is_declared) => {
            line.clone()
        }
        _ => {
            let mut line = Line::new();
            for entry in own.iter().filter(|entry| entry.is_enforced()) {
                let window = entry.quota().field_window();
                push_policy(&mut line, entry.policy(), entry.state().limit, window);
            }
            value(&line)?
        }
    };
    Some((policies, value(&limits)?))
}

fn push_policy(line: &mut Line, name: &str, quota: u32, window: Option<u64>) {
    push_name(line, name);
    line.extend_from_slice(b";q=");
    push_number(line, u64::from(quota));
    if let Some(window) = window {
        line.extend_from_slice(b";w=");
        push_number(line, window);
    }
}

fn push_limit(line: &mut Line, entry: &PolicyStatus) {
    push_name(line, entry.policy());
    line.extend_from_slice(b";r=");
    push_number(line, u64::from(entry.state().remaining));
    if let Some(more_in) = entry.state().more_in() {
        line.extend_from_slice(b";t=");
        push_number(line, ceil_secs(more_in));
    }
}

/// Names need no escaping: they were checked when the policy was made.
fn push_name(line: &mut Line, name: &str) {
    if !line.is_empty() {
        line.extend_from_slice(b", ");
    }
    line.push(b'"');
    line.extend_from_slice(name.as_bytes());
    line.push(b'"');
}

fn value(line: &Line) -> Option<HeaderValue> {
    if line.is_empty() {
        return None;
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(line)).ok()
}

/// Appends a number in decimal.
pub(super) fn push_number(out: &mut impl Extend<u8>, mut number: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend(digits[at..].iter().copied());
}

/// Whole seconds, rounded up.
pub(super) fn ceil_secs(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// The three numbers of the policy that binds: violated with the longest wait, else the fewest remaining, then the longest time.
fn legacy(status: &RateLimitStatus) -> Option<Box<[HeaderValue; 3]>> {
    let binding = status
        .iter()
        .filter(|entry| entry.is_enforced())
        .max_by_key(|entry| {
            let state = entry.state();
            let wait = match state.outcome {
                Outcome::Admitted => None,
                _ => Some(state.retry_in().unwrap_or(Duration::MAX)),
            };
            (wait, u32::MAX - state.remaining, state.more_in())
        })?;
    let state = binding.state();
    let reset = binding
        .decided_at()
        .saturating_add(state.more_in_micros())
        .div_ceil(1_000_000);
    Some(Box::new([
        HeaderValue::from(state.limit),
        HeaderValue::from(state.remaining),
        HeaderValue::from(reset),
    ]))
}
