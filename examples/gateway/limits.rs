//! The rate limit: `--rate-limit N/WINDOW` for each client's address.

use std::sync::Arc;
use std::time::Duration;

use tower_keep::core::TrustedProxies;
use tower_keep::rate_limit::{Partition, Quota, RateLimitLayer};
use tower_keep::store::Store;

pub fn layer(store: Arc<dyn Store>, quota: Quota, proxies: TrustedProxies) -> RateLimitLayer {
    RateLimitLayer::new(store)
        .trusted_proxies(proxies)
        .limit(quota, Partition::client_ip())
}

/// Reads `100/60s`, `100/1m`, `5000/1h`, `5000/1d`, or a window in plain seconds.
///
/// # Errors
/// One sentence.
pub fn quota(text: &str) -> Result<Quota, String> {
    let wrong = || format!("--rate-limit wants N/WINDOW such as 100/60s, not {text}");
    let (limit, window) = text.split_once('/').ok_or_else(wrong)?;
    let digits = window.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let unit = match &window[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    // A window without a number is one of its unit.
    let count: u64 = if digits.is_empty() && unit != 1 {
        1
    } else {
        digits.parse().map_err(|_| wrong())?
    };
    let seconds = count.checked_mul(unit).ok_or_else(wrong)?;
    let limit = limit.parse().map_err(|_| wrong())?;
    Quota::try_new(limit, Duration::from_secs(seconds))
        .map_err(|why| format!("--rate-limit: {why}"))
}
