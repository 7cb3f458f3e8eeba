//! Vectors that others published, as tables: the GCRA steps of throttled and redis-cell, and the addresses and fields
//! that the users of express-rate-limit met. Where we answer otherwise on purpose, the row says so.

use super::*;
use tower_keep::SECOND;
use tower_keep::core::TrustedProxies;
use tower_keep::rate_limit::store::Outcome;
use tower_keep::rate_limit::{Attempt, Decision, RateLimiter};

/// At so many milliseconds, a request of so many units: is it limited, how many are left, how long until all are,
/// and how long until this one is admitted.
type Step = (u64, u32, bool, u32, u64, Option<u64>);

/// One unit a second, five at once.
const STEPS: [Step; 15] = [
    (0, 6, true, 5, 0, None), // never: more than fits
    (0, 1, false, 4, 1_000, None),
    (0, 1, false, 3, 2_000, None),
    (0, 1, false, 2, 3_000, None),
    (0, 1, false, 1, 4_000, None),
    (0, 1, false, 0, 5_000, None),
    (0, 1, true, 0, 5_000, Some(1_000)),
    (3_000, 1, false, 2, 3_000, None),
    (3_100, 1, false, 1, 3_900, None),
    (4_000, 1, false, 1, 4_000, None),
    (8_000, 1, false, 4, 1_000, None),
    (9_500, 1, false, 4, 1_000, None),
    (9_500, 0, false, 4, 1_000, None), // a look
    (9_500, 2, false, 2, 3_000, None),
    (9_500, 5, true, 2, 3_000, Some(3_000)),
];

async fn steps_as_published(store: impl RateLimitStore, clock: &ManualClock) {
    let quota = Quota::per_second(1).gcra(5);
    let policy = Policy::new("cell", quota, Partition::global());
    let limiter = RateLimiter::new(store).policy(policy).timeout(PATIENCE);
    let start = Timestamp::of(clock);
    for (at, units, limited, remaining, reset_after, retry_after) in STEPS {
        clock.set(start.plus(Duration::from_millis(at)));
        let attempt = Attempt::new().on("cell", ()).cost(units);
        let (decided, retry) = match limiter.check_and_record(attempt).await.unwrap() {
            Decision::Allowed(grant) => (*grant.states().next().unwrap().state(), None),
            Decision::Denied(denial) => {
                let state = *denial.states().next().unwrap().state();
                (state, state.retry_in())
            }
        };
        // All is left when the one debt that grows with each unit is paid.
        let whole = SECOND * decided.used.saturating_sub(1);
        let reset = decided
            .more_in()
            .map_or(Duration::ZERO, |more| whole + more);
        let context = format!("{units} at {at} ms: {decided:?}");
        assert_eq!(decided.outcome != Outcome::Admitted, limited, "{context}");
        assert_eq!(decided.remaining, remaining, "{context}");
        assert_eq!(reset, Duration::from_millis(reset_after), "{context}");
        assert_eq!(retry, retry_after.map(Duration::from_millis), "{context}");
    }
}

#[tokio::test]
async fn memory_takes_the_steps_of_redis_cell() {
    let clock = clock();
    steps_as_published(memory(&clock), &clock).await;
}

#[tokio::test]
async fn redis_takes_the_steps_of_redis_cell() {
    let clock = clock();
    let store = crate::support::redis::shared().await.store(&clock).await;
    steps_as_published(store, &clock).await;
}

/// A prefix, two addresses, and whether they are one client.
const CLIENTS: [(u8, &str, &str, bool); 21] = [
    (64, "1.2.3.4", "1.2.3.4", true),
    (64, "1.2.3.4", "1.2.3.5", false),
    (32, "1.2.3.4", "1.2.3.5", false), // the prefix is one of IPv6
    (64, "::ffff:1.2.3.4", "1.2.3.4", true),
    (64, "::ffff:102:304", "1.2.3.4", true),
    (32, "::ffff:1.2.3.4", "1.2.3.4", true),
    (128, "::ffff:102:304", "::ffff:1.2.3.4", true),
    (64, "::ffff:1.2.3.4", "::ffff:1.2.3.5", false),
    // Only looks like IPv4: what the client chooses itself is no key.
    (
        56,
        "2001:db8:1234:5678::1.2.3.4",
        "2001:db8:1234:5600::",
        true,
    ),
    (
        64,
        "2001:db8:1234:5678::1.2.3.4",
        "2001:db8:1234:5678::102:304",
        true,
    ),
    (64, "2001:db8::1.2.3.4", "1.2.3.4", false),
    (56, "64:ff9b::1.2.3.4", "64:ff9b::9", true),
    (64, "64:ff9b::1.2.3.4", "1.2.3.4", false),
    // express-rate-limit takes this one for 1.2.3.4; it is an IPv6 address like `::1` (RFC 4291, 2.5.5.1).
    (64, "::1.2.3.4", "1.2.3.4", false),
    (64, "::1.2.3.4", "::1", true),
    (56, "::1", "::", true),
    (
        56,
        "0123:4567:89ab:cdef:0123:4567:89ab:cdef",
        "123:4567:89ab:cd00::",
        true,
    ),
    (
        63,
        "0123:4567:89ab:cdef:0123:4567:89ab:cdef",
        "123:4567:89ab:cdee::",
        true,
    ),
    (
        64,
        "0123:4567:89ab:cdef:0123:4567:89ab:cdef",
        "123:4567:89ab:cdee::",
        false,
    ),
    (56, "123:ABC::89", "123:abc::", true),
    (
        128,
        "123:4567:89ab:cdef:123:4567:89ab:cdef",
        "123:4567:89ab:cdef:123:4567:89ab:cdee",
        false,
    ),
];

#[tokio::test]
async fn an_address_is_one_client_however_it_is_written() {
    for (prefix, one, other, is_one) in CLIENTS {
        let partition = Partition::client_ip().ipv6_prefix(prefix);
        let layer = RateLimitLayer::new(MemoryStore::new()).limit(Quota::per_minute(1), partition);
        let app = App::new(layer);
        assert_eq!(app.get("", one).await.status, StatusCode::OK);
        let second = app.get("", other).await.status;
        let context = format!("{one} and {other} by /{prefix}");
        assert_eq!(second == StatusCode::TOO_MANY_REQUESTS, is_one, "{context}");
    }
}

/// Trusted proxies, the lines of the forwarding field, and the client they name; the peer is 10.0.0.1.
const FORWARDED: [(u8, &[&str], &str); 20] = [
    // Nobody is trusted: the field changes nothing, and the request is not refused for it.
    (0, &["1.2.3.4"], "10.0.0.1"),
    (0, &["badip"], "10.0.0.1"),
    (0, &[], "10.0.0.1"),
    (1, &["1.2.3.4"], "1.2.3.4"),
    (1, &["1.2.3.4:1234"], "1.2.3.4"),
    (
        1,
        &["1200:0000:AB00:1234:0000:2552:7777:1313"],
        "1200:0:ab00:1234::1",
    ),
    (
        1,
        &["[1200:0000:AB00:1234:0000:2552:7777:1313]"],
        "1200:0:ab00:1234::1",
    ),
    (
        1,
        &["[1200:0000:AB00:1234:0000:2552:7777:1313]:1234"],
        "1200:0:ab00:1234::1",
    ),
    (1, &["::ffff:1.2.3.4"], "1.2.3.4"),
    (1, &["badip"], "10.0.0.1"),
    (1, &["undefined"], "10.0.0.1"),
    (1, &["unknown"], "10.0.0.1"),
    (1, &[""], "10.0.0.1"),
    (1, &[], "10.0.0.1"),
    // The first item is whatever the client wrote there itself.
    (1, &["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
    (1, &["6.6.6.6", "1.2.3.4"], "1.2.3.4"),
    (1, &["6.6.6.6,  1.2.3.4 "], "1.2.3.4"),
    (2, &["6.6.6.6, 1.2.3.4, 10.0.0.2"], "1.2.3.4"),
    (2, &["6.6.6.6", "1.2.3.4", "10.0.0.2"], "1.2.3.4"),
    // Fewer than promised: the leftmost there is.
    (3, &["1.2.3.4"], "1.2.3.4"),
];

#[tokio::test]
async fn the_client_behind_proxies_is_the_one_that_they_name() {
    for (hops, lines, client) in FORWARDED {
        let proxies = match hops {
            0 => TrustedProxies::none(),
            hops => TrustedProxies::hops(hops),
        };
        let layer = RateLimitLayer::new(MemoryStore::new())
            .limit(Quota::per_minute(1), Partition::client_ip())
            .trusted_proxies(proxies);
        let limiter = layer.limiter();
        let app = App::new(layer);
        let mut request = request("", "10.0.0.1");
        for line in lines {
            let line = line.parse().unwrap();
            request.headers_mut().append("x-forwarded-for", line);
        }
        let context = format!("{lines:?} behind {hops}");
        assert_eq!(app.send(request).await.status, StatusCode::OK, "{context}");
        let client: std::net::IpAddr = client.parse().unwrap();
        let counted = limiter.peek("client-ip", client).await.unwrap();
        assert_eq!(counted.attempts, 1, "{context}: not {client}");
    }
}

fn five_windows(clock: &ManualClock) -> RateLimitLayer {
    let policy = |name: &str, limit, seconds| {
        let quota = Quota::new(limit, SECOND * seconds);
        Policy::new(name, quota, Partition::client_ip())
    };
    RateLimitLayer::new(memory(clock))
        .policy(policy("1-in-5sec", 1, 5))
        .policy(policy("5-in-1min", 5, 60))
        .policy(policy("6-in-1hr", 6, 3_600))
        .policy(policy("7-in-1day", 7, 86_400))
        .policy(policy("8-in-2days", 8, 172_800))
}

#[tokio::test]
async fn five_windows_say_the_numbers_that_express_rate_limit_says() {
    let clock = clock();
    let answer = App::new(five_windows(&clock)).get("", "1.2.3.4").await;
    // No blanks behind the semicolons (RFC 9651), and no hash of the client as `pk`.
    let policies = [
        r#""1-in-5sec";q=1;w=5"#,
        r#""5-in-1min";q=5;w=60"#,
        r#""6-in-1hr";q=6;w=3600"#,
        r#""7-in-1day";q=7;w=86400"#,
        r#""8-in-2days";q=8;w=172800"#,
    ];
    let limits = [
        r#""1-in-5sec";r=0;t=5"#,
        r#""5-in-1min";r=4;t=60"#,
        r#""6-in-1hr";r=5;t=3600"#,
        r#""7-in-1day";r=6;t=86400"#,
        r#""8-in-2days";r=7;t=172800"#,
    ];
    assert_eq!(
        answer.field("ratelimit-policy"),
        Some(&*policies.join(", "))
    );
    assert_eq!(answer.field("ratelimit"), Some(&*limits.join(", ")));
    assert_eq!(
        answer.field("retry-after"),
        None,
        "only where it was refused"
    );
}

#[tokio::test]
async fn the_older_fields_and_retry_after_say_what_express_rate_limit_says() {
    let clock = clock();
    let five = RateLimitLayer::new(memory(&clock))
        .limit(Quota::per_minute(5), Partition::client_ip())
        .legacy_headers();
    let answer = App::new(five).get("", "1.2.3.4").await;
    let reset = (Timestamp::of(&clock).as_millis() / 1_000 + 60).to_string();
    for (name, value) in [
        ("x-ratelimit-limit", "5"),
        ("x-ratelimit-remaining", "4"),
        ("x-ratelimit-reset", &reset),
    ] {
        assert_eq!(answer.field(name), Some(value), "{name}");
    }
    let one = || {
        let store = memory(&clock);
        RateLimitLayer::new(store).limit(Quota::per_minute(1), Partition::client_ip())
    };
    // It sends no Retry-After where the other fields are off; here that one stays.
    for layer in [one(), one().no_fields()] {
        let app = App::new(layer);
        assert_eq!(app.get("", "1.2.3.4").await.status, StatusCode::OK);
        let refused = app.get("", "1.2.3.4").await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.field("retry-after"), Some("60"));
    }
    let silent = App::new(one().no_fields()).get("", "1.2.3.4").await;
    for name in ["ratelimit", "ratelimit-policy", "x-ratelimit-limit"] {
        assert_eq!(silent.field(name), None, "{name}");
    }
}
