//! The decisions, held against words of the RFCs written another way.

use http::HeaderValue;
use proptest::prelude::*;

use super::super::consider::consider;
use super::super::status::Bypass;
use super::*;

const HIT: Demands = Demands {
    no_store: false,
    only_if_cached: false,
    stale_if_error: None,
    max_stale: None,
    no_cache: false,
    max_age: None,
    min_fresh: None,
};

fn map(list: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(*name, HeaderValue::try_from(*value).unwrap());
    }
    map
}

fn storable(
    config: &Config,
    request: &[(&'static str, &str)],
    response: &[(&'static str, &str)],
    own: Option<&CachePolicy>,
    status: u16,
) -> Result<Plan, Reason> {
    let (request, fields) = (map(request), map(response));
    plan(&Offer {
        config,
        request: &Sent::from(request.clone()),
        host: b"h.test",
        status: StatusCode::from_u16(status).unwrap(),
        fields: &fields,
        policy: own,
        personal: false,
        signals: Signals::scan(&request),
        asked: 0,
        received: 0,
    })
}

proptest! {
    /// Fresh while lifetime > age; stale windows end where they end.
    #[test]
    fn an_entry_is_used_as_rfc_9111_4_2_says(lifetime in 0_u64..50, initial in 0_u64..50, resident in 0_u64..120, window in 0_u64..50, never: bool) {
        let mut head = Head { lifetime: lifetime * MICROS, initial_age: initial * MICROS, received: 7,
            stale_while_revalidate: window * MICROS, expires_at: u64::MAX, ..Head::default() };
        head.flags.set(Flags::NEVER_STALE, never);
        let current_age = initial + resident;
        let oracle = if lifetime > current_age {
            Use::Fresh
        } else if !never && current_age < lifetime + window {
            Use::StaleWhileRevalidate
        } else {
            Use::Validate
        };
        prop_assert_eq!(use_of(&head, 7 + resident * MICROS, Verdict::Live, &HIT), oracle);
    }

    /// Monotone safety: no request field makes storable what was not.
    #[test]
    fn no_request_field_widens_storability(
        response in prop::sample::subsequence(vec!["max-age=60", "public", "private", "no-store", "no-cache", "must-revalidate"], 0..4),
        cookie: bool, etag: bool, vary in prop::sample::select(vec!["", "*", "cookie", "origin"]),
        name in prop::sample::select(vec!["authorization", "cookie", "cache-control", "origin", "x-forwarded-host", "range", "accept", "pragma", "if-none-match"]),
        value in prop::sample::select(vec!["*", "public", "no-cache", "max-age=9", "bytes=0-", "x"]),
        ttl: bool,
    ) {
        let mut config = Config::default();
        config.route.ttl = ttl.then_some(std::time::Duration::from_secs(60));
        let control = response.join(",");
        let mut fields = vec![("cache-control", control.as_str()), ("last-modified", "Thu, 01 Jan 1970 00:00:00 GMT")];
        if cookie { fields.push(("set-cookie", "a=b")); }
        if etag { fields.push(("etag", "\"1\"")); }
        if !vary.is_empty() { fields.push(("vary", vary)); }
        let bare = storable(&config, &[], &fields, None, 200).is_ok();
        let with = storable(&config, &[(name, value)], &fields, None, 200).is_ok();
        prop_assert!(bare || !with, "{} {} {:?}", name, value, fields);
    }

    /// R22 over silent, explicit and restrictive in three sources.
    #[test]
    fn the_response_decides_then_the_handler_then_the_route(
        response in prop::sample::select(vec!["", "max-age=10", "no-store", "private"]),
        own in prop::option::of((prop::option::of(Just(20_u64)), any::<bool>(), any::<bool>())),
        route in prop::option::of(Just(30_u64)),
    ) {
        let mut config = Config::default();
        config.route.ttl = route.map(std::time::Duration::from_secs);
        let policy = own.map(|(ttl, private, no_store)| {
            let mut policy = CachePolicy::new();
            policy.ttl = ttl.map(std::time::Duration::from_secs);
            policy.private = private;
            policy.no_store = no_store;
            policy
        });
        let fields: Vec<_> = if response.is_empty() { vec![] } else { vec![("cache-control", response)] };
        let restricted = ["no-store", "private"].contains(&response) || own.is_some_and(|(_, private, no_store)| private || no_store);
        let lifetime = if response == "max-age=10" { Some(10) } else { own.and_then(|(ttl, ..)| ttl).or(route) };
        let expected = lifetime.filter(|_| !restricted);
        let got = storable(&config, &[], &fields, policy.as_ref(), 200).ok().map(|plan| plan.lifetime / MICROS);
        prop_assert_eq!(got, expected);
    }
}

#[test]
fn a_lifetime_of_nothing_needs_a_validator() {
    let config = Config::default();
    let with = |fields: &[(&'static str, &str)]| {
        storable(&config, &[], fields, None, 200).map(|plan| plan.lifetime)
    };
    assert_eq!(
        with(&[("cache-control", "max-age=0")]),
        Err(Reason::Lifetime)
    );
    assert_eq!(
        with(&[("cache-control", "max-age=0"), ("etag", "\"1\"")]),
        Ok(0)
    );
    assert_eq!(
        with(&[("cache-control", "max-age=10"), ("age", "10")]),
        Err(Reason::Lifetime)
    );
    assert_eq!(
        with(&[("cache-control", "no-cache")]),
        Err(Reason::Lifetime)
    );
    assert_eq!(
        with(&[("cache-control", "no-cache"), ("etag", "\"1\"")]),
        Ok(0)
    );
    assert_eq!(with(&[]), Err(Reason::Lifetime));
}

#[test]
fn must_understand_overrules_no_store_for_understood_statuses_only() {
    let config = Config::default();
    let with = |status| {
        storable(
            &config,
            &[],
            &[("cache-control", "max-age=9, no-store, must-understand")],
            None,
            status,
        )
        .is_ok()
    };
    assert!(with(200) && with(404) && !with(299) && !with(599));
}

#[test]
fn stale_is_forbidden_by_what_says_so() {
    let config = Config::default();
    let never = |control: &str| {
        let plan = storable(
            &config,
            &[],
            &[("cache-control", control), ("etag", "\"1\"")],
            None,
            200,
        )
        .unwrap();
        plan.flags.has(Flags::NEVER_STALE)
    };
    for control in [
        "max-age=9, must-revalidate",
        "max-age=9, proxy-revalidate",
        "max-age=9, no-cache",
        "s-maxage=9",
    ] {
        assert!(never(control), "{control}");
    }
    assert!(!never("max-age=9") && !never("s-maxage=60, stale-while-revalidate=30"));
}

#[test]
fn ill_formed_and_too_many_tags_keep_an_answer_out() {
    let config = Config::default();
    let with = |tags: &str| {
        storable(
            &config,
            &[],
            &[("cache-control", "max-age=9"), ("cache-tag", tags)],
            None,
            200,
        )
        .map(|plan| plan.targets.len())
    };
    assert_eq!(with("a, b,,c"), Ok(3));
    let many: Vec<String> = (0..65).map(|n| n.to_string()).collect();
    assert_eq!(with(&many.join(",")), Err(Reason::Tags));
    assert_eq!(with(&"x".repeat(129)), Err(Reason::Tags));
}

#[test]
fn groups_are_read_as_strings() {
    let read = |value: &str| groups(&map(&[("cache-groups", value)]), "cache-groups");
    assert_eq!(read("\"a\", \"b, c\";x, \"d\\\"e\""), ["a", "b, c", "d\"e"]);
    assert_eq!(read("a, 1, \"open"), Vec::<String>::new());
}

#[test]
fn requests_with_oddities_are_not_considered() {
    let consider_with = |method: &str, uri: &str, fields: &[(&'static str, &str)], ended| {
        let (fields, method) = (map(fields), method.parse().unwrap());
        consider(
            &method,
            &uri.parse().unwrap(),
            &fields,
            &Signals::scan(&fields),
            ended,
        )
    };
    assert_eq!(
        consider_with("GET", "/", &[("host", "a.test")], true),
        Ok(())
    );
    assert_eq!(consider_with("HEAD", "/", &[], true), Ok(()));
    assert_eq!(consider_with("POST", "/", &[], true), Err(Bypass::Method));
    assert_eq!(consider_with("GET", "/", &[], false), Err(Bypass::Body));
    assert_eq!(
        consider_with("GET", "/", &[("upgrade", "websocket")], true),
        Err(Bypass::Upgrade)
    );
    assert_eq!(
        consider_with("GET", "/", &[("x-method-override", "PUT")], true),
        Err(Bypass::Override)
    );
    assert_eq!(
        consider_with("GET", "/", &[("if-match", "*")], true),
        Err(Bypass::Precondition)
    );
    assert_eq!(
        consider_with("GET", "/", &[("host", "a"), ("host", "b")], true),
        Err(Bypass::Host)
    );
    assert_eq!(
        consider_with("GET", "/", &[("host", "a b")], true),
        Err(Bypass::Host)
    );
    assert_eq!(
        consider_with("GET", "/", &[("host", "u@a")], true),
        Err(Bypass::Host)
    );
    // Over HTTP/2 a target names its authority; who stands before the host in it is in no key.
    for host in [&[][..], &[("host", "u@a")]] {
        assert_eq!(
            consider_with("GET", "http://u@a/", host, true),
            Err(Bypass::Host)
        );
    }
    assert_eq!(consider_with("GET", "http://a/", &[], true), Ok(()));
    assert_eq!(
        consider_with("GET", &format!("/{}", "x".repeat(9_000)), &[], true),
        Err(Bypass::Length)
    );
}
