//! Header fields that belong to one exchange and must never be stored or replayed.

use http::header::{self, HeaderMap, HeaderName};

/// The structured field that lists the policies of a limit (draft-ietf-httpapi-ratelimit-headers-10).
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// The structured field that says what is left (draft-ietf-httpapi-ratelimit-headers-10).
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// The older field with the limit.
pub const X_RATE_LIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
/// The older field with what is left.
pub const X_RATE_LIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
/// The older field with the Unix second at which more is free.
pub const X_RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// What the response cache did (RFC 9211).
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// The five rate limit fields: they belong to the request that was counted.
pub static RATE_LIMIT_FIELDS: [HeaderName; 5] = [
    RATE_LIMIT_POLICY,
    RATE_LIMIT,
    X_RATE_LIMIT_LIMIT,
    X_RATE_LIMIT_REMAINING,
    X_RATE_LIMIT_RESET,
];

/// Fields of one connection (RFC 9110 §7.6.1), but for those that a `Connection` field names.
pub static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Says whether `name` is one of the rate limit fields.
#[must_use]
pub fn is_rate_limit(name: &HeaderName) -> bool {
    // Most names begin otherwise.
    let text = name.as_str();
    (text.starts_with("ratelimit") || text.starts_with("x-ratelimit-"))
        && RATE_LIMIT_FIELDS.contains(name)
}

/// Says whether `name` concerns one connection only by its own nature.
#[must_use]
pub fn is_of_connection(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
}

/// Says whether `name` concerns one connection only, by its own nature or because `Connection` in `fields` names it.
#[must_use]
pub fn is_hop_by_hop(name: &HeaderName, fields: &HeaderMap) -> bool {
    is_of_connection(name) || is_named_by_connection(name, fields)
}

/// Returns the names that `Connection` lists.
pub(crate) fn named_by_connection(fields: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    let lines = fields.get_all(header::CONNECTION).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|item| HeaderName::from_bytes(item.trim_ascii()).ok())
}

fn is_named_by_connection(name: &HeaderName, fields: &HeaderMap) -> bool {
    fields.get_all(header::CONNECTION).iter().any(|line| {
        line.as_bytes().split(|byte| *byte == b',').any(|item| {
            item.trim_ascii()
                .eq_ignore_ascii_case(name.as_str().as_bytes())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_names_further_fields() {
        let mut fields = HeaderMap::new();
        fields.append(
            header::CONNECTION,
            http::HeaderValue::from_static("close, X-Own"),
        );
        assert!(is_hop_by_hop(&HeaderName::from_static("x-own"), &fields));
        assert!(is_hop_by_hop(&header::TE, &HeaderMap::new()));
        assert!(!is_hop_by_hop(&header::ETAG, &fields));
    }
}
