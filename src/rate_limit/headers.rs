//! The fields that tell a client its limits (draft-ietf-httpapi-ratelimit-headers-10, RFC 9651 Lists of Strings).

use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use smallvec::SmallVec;

use super::config::Config;
use super::rule::Rule;
use super::status::{PolicyStatus, RateLimitStatus};
use super::store::{Mode, Outcome};
use crate::core::fields::{
    RATE_LIMIT, RATE_LIMIT_POLICY, X_RATE_LIMIT_LIMIT, X_RATE_LIMIT_REMAINING, X_RATE_LIMIT_RESET,
};
use crate::core::{Digits, interned_field};

type Line = SmallVec<[u8; 256]>;

/// The fields of one response.
#[derive(Debug, Default)]
pub(super) struct RateLimitFields {
    standard: Option<(HeaderValue, HeaderValue)>,
    legacy: Option<Box<[HeaderValue; 3]>>,
}

impl RateLimitFields {
    /// Renders what `own` says; the older fields speak for the layers further out, too.
    pub(super) fn render(
        config: &Config,
        earlier: Option<&RateLimitStatus>,
        own: &[PolicyStatus],
    ) -> Self {
        let fields = config.settings.fields;
        let standard = (fields.standard).then(|| standard(config, own)).flatten();
        let legacy = shows_older(config, earlier).then(|| legacy(earlier, own));
        Self {
            standard,
            legacy: legacy.flatten(),
        }
    }

    /// Only the older fields.
    pub(super) fn older(
        config: &Config,
        earlier: Option<&RateLimitStatus>,
        own: &[PolicyStatus],
    ) -> Self {
        let legacy = shows_older(config, earlier).then(|| legacy(earlier, own));
        Self {
            standard: None,
            legacy: legacy.flatten(),
        }
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

/// Whether this layer or one further out shows the older fields: the innermost that decides knows all states.
fn shows_older(config: &Config, earlier: Option<&RateLimitStatus>) -> bool {
    config.settings.fields.legacy || earlier.is_some_and(RateLimitStatus::shows_older)
}

/// Returns the `RateLimit-Policy` value of a layer whose enforced policies always apply, at their declared limits.
pub(super) fn fixed_policy_line(rules: &[Rule]) -> Option<HeaderValue> {
    let enforced = || {
        rules
            .iter()
            .map(|rule| &rule.policy)
            .filter(|policy| policy.mode == Mode::Enforced)
    };
    if enforced().any(|policy| policy.limit_by.is_some()) {
        return None;
    }
    let mut line = Line::new();
    for (index, policy) in enforced().enumerate() {
        push_policy(
            &mut line,
            index,
            &policy.name,
            policy.quota.capacity(),
            policy.quota.field_window(),
        );
    }
    (!line.is_empty()).then(|| interned_field(&line)).flatten()
}

fn standard(config: &Config, own: &[PolicyStatus]) -> Option<(HeaderValue, HeaderValue)> {
    let policies = match policies(config, own) {
        Policies::None => return None,
        Policies::AsDeclared(line) => line.clone(),
        Policies::Other => policies_as_asked(own)?,
    };
    Some((policies, limits(config, own)?))
}

/// Writes the `RateLimit` line.
pub(super) fn limits(config: &Config, own: &[PolicyStatus]) -> Option<HeaderValue> {
    let [only] = own else {
        let mut line = Line::new();
        push_limits(&mut line, config, own);
        return value(&line);
    };
    // The usual one is written where it stays: whoever is asked has room for this much and no more.
    let (remaining, wait) = numbers(only);
    let member = &config.rules[only.rule].member;
    let wait = wait.as_ref().map_or(&[] as &[u8], Digits::text);
    let between: &[u8] = if wait.is_empty() { b"" } else { b";t=" };
    let parts = [&**member, remaining.text(), between, wait];
    let mut text = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        text.extend_from_slice(part);
    }
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

/// The `RateLimit-Policy` line of an answer.
pub(super) enum Policies<'a> {
    /// No enforced policy was asked.
    None,
    /// The one that is ready.
    AsDeclared(&'a HeaderValue),
    /// To be written: the line is ready for the shared store's quotas; a share of them has numbers of its own.
    Other,
}

pub(super) fn policies<'a>(config: &'a Config, own: &[PolicyStatus]) -> Policies<'a> {
    let (mut shown, mut declared) = (0, true);
    for entry in own.iter().filter(|entry| entry.is_enforced()) {
        shown += 1;
        declared &= entry.is_declared();
    }
    match &config.policy_line {
        _ if shown == 0 => Policies::None,
        Some(line) if shown == config.enforced && declared => Policies::AsDeclared(line),
        _ => Policies::Other,
    }
}

/// Writes the `RateLimit-Policy` line of an answer, where the one that is ready does not fit.
pub(super) fn policies_as_asked(own: &[PolicyStatus]) -> Option<HeaderValue> {
    let mut line = Line::new();
    let enforced = own.iter().filter(|entry| entry.is_enforced());
    for (index, entry) in enforced.enumerate() {
        let (limit, window) = (entry.state().limit, entry.quota().field_window());
        push_policy(&mut line, index, entry.policy(), limit, window);
    }
    value(&line)
}

fn push_policy(line: &mut Line, index: usize, name: &str, quota: u32, window: Option<u64>) {
    push_comma(line, index);
    // Names need no escaping: they were checked when the policy was made.
    line.extend_from_slice(b"\"");
    line.extend_from_slice(name.as_bytes());
    line.extend_from_slice(b"\";q=");
    line.extend_from_slice(Digits::of(u64::from(quota)).text());
    if let Some(window) = window {
        line.extend_from_slice(b";w=");
        line.extend_from_slice(Digits::of(window).text());
    }
}

fn push_limits(line: &mut Line, config: &Config, own: &[PolicyStatus]) {
    let enforced = own.iter().filter(|entry| entry.is_enforced());
    for (index, entry) in enforced.enumerate() {
        push_comma(line, index);
        let (remaining, wait) = numbers(entry);
        line.extend_from_slice(&config.rules[entry.rule].member);
        line.extend_from_slice(remaining.text());
        if let Some(wait) = wait {
            line.extend_from_slice(b";t=");
            line.extend_from_slice(wait.text());
        }
    }
}

/// What is left, and the seconds until there is more.
fn numbers(entry: &PolicyStatus) -> (Digits, Option<Digits>) {
    let more_in = entry.more_in_secs();
    let remaining = Digits::of(u64::from(entry.state().remaining));
    let wait = (more_in > 0).then(|| Digits::of(more_in));
    (remaining, wait)
}

fn push_comma(line: &mut Line, index: usize) {
    if index > 0 {
        line.extend_from_slice(b", ");
    }
}

fn value(line: &Line) -> Option<HeaderValue> {
    if line.is_empty() {
        return None;
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(line)).ok()
}

/// Whole seconds, rounded up.
pub(super) fn ceil_secs(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// The three numbers of the policy that binds: violated with the longest wait, else the fewest remaining, then the longest time.
fn legacy(
    earlier: Option<&RateLimitStatus>,
    own: &[PolicyStatus],
) -> Option<Box<[HeaderValue; 3]>> {
    let earlier = earlier.into_iter().flat_map(RateLimitStatus::iter);
    let binding = earlier
        .chain(own)
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
