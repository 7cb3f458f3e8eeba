//! The fields, read by a parser that is not ours.

use super::*;
use sfv::{BareItem, ListEntry, Parser};
use tower_keep::core::TrustedProxies;
use tower_keep::rate_limit::{PolicyStatus, RateLimitStatus};

type Member = (String, Vec<(String, i64)>);

/// Reads a List of Strings whose parameters are Integers; anything else is an error.
fn parse(line: &str) -> Result<Vec<Member>, String> {
    let list = Parser::new(line).parse::<sfv::List>();
    let list = list.map_err(|error| error.to_string())?;
    let mut members = Vec::new();
    for entry in list {
        let ListEntry::Item(item) = entry else {
            return Err("an inner list".to_owned());
        };
        let BareItem::String(name) = &item.bare_item else {
            return Err("not a String".to_owned());
        };
        let mut parameters = Vec::new();
        for (key, value) in &item.params {
            let BareItem::Integer(number) = value else {
                return Err("not an Integer".to_owned());
            };
            parameters.push((key.to_string(), i64::from(*number)));
        }
        members.push((name.to_string(), parameters));
    }
    Ok(members)
}

fn lines(answer: &Answer, name: &str) -> Vec<Member> {
    let lines: Vec<_> = answer
        .headers
        .get_all(name)
        .iter()
        .map(|line| line.to_str().unwrap())
        .collect();
    parse(&lines.join(", ")).unwrap()
}

fn member(name: &str, parameters: &[(&str, i64)]) -> Member {
    let parameters = parameters
        .iter()
        .map(|(key, value)| ((*key).to_owned(), *value));
    (name.to_owned(), parameters.collect())
}

#[test]
fn the_check_refuses_faulty_fields() {
    for faulty in [
        "default;r=50;t=30",
        "\"a\";r=5.0",
        "\"a\";r=\"5\"",
        "(\"a\");r=5",
        "\"a\" \"b\"",
    ] {
        assert!(parse(faulty).is_err(), "{faulty}");
    }
}

#[tokio::test]
async fn every_answer_after_a_decision_says_what_is_left_in_declared_order() {
    let clock = clock();
    let app = App::new(payments(memory(&clock)));
    for _ in 0..3 {
        app.get("u1", "192.0.2.1").await;
    }
    clock.advance(Duration::from_millis(1_500));
    for (status, left) in [(200, 1), (200, 0), (429, 0)] {
        let answer = app.get("u1", "192.0.2.1").await;
        assert_eq!(answer.status, status);
        let policies = lines(&answer, "ratelimit-policy");
        assert_eq!(
            policies,
            [
                member("user", &[("q", 5), ("w", 900)]),
                member("user-daily", &[("q", 20), ("w", 86_400)]),
                member("ip", &[("q", 20), ("w", 900)]),
                member("global", &[("q", 1_000), ("w", 60)]),
            ]
        );
        assert_eq!(
            lines(&answer, "ratelimit"),
            [
                member("user", &[("r", left), ("t", 899)]),
                member("user-daily", &[("r", left + 15), ("t", 86_399)]),
                member("ip", &[("r", left + 15), ("t", 899)]),
                member("global", &[("r", left + 995), ("t", 59)]),
            ]
        );
    }
}

#[tokio::test]
async fn months_have_no_window_and_gcra_shows_its_burst() {
    let layer = RateLimitLayer::new(memory(&clock()))
        .policy(Policy::new(
            "plan",
            Quota::per_month(9),
            Partition::global(),
        ))
        .policy(Policy::new(
            "pace",
            Quota::per_minute(60).gcra(10),
            Partition::global(),
        ));
    let answer = App::new(layer).get("", "192.0.2.1").await;
    assert_eq!(
        answer.field("ratelimit-policy"),
        Some("\"plan\";q=9, \"pace\";q=10;w=10")
    );
    assert_eq!(
        answer.field("ratelimit"),
        Some("\"plan\";r=8;t=1425600, \"pace\";r=9;t=1")
    );
}

#[tokio::test]
async fn only_policies_that_applied_are_named() {
    let custom = Partition::custom("tenant", |parts| {
        Some(parts.headers.get("x-tenant")?.to_str().ok()?.into())
    });
    let layer = RateLimitLayer::new(MemoryStore::new())
        .limit(Quota::per_minute(5), custom)
        .limit(Quota::per_minute(9), Partition::global());
    let app = App::new(layer);
    let answer = app.get("", "192.0.2.1").await;
    assert_eq!(
        answer.field("ratelimit-policy"),
        Some("\"global\";q=9;w=60")
    );
    let mut with_tenant = request("", "192.0.2.1");
    with_tenant
        .headers_mut()
        .insert("x-tenant", "t1".parse().unwrap());
    let answer = app.send(with_tenant).await;
    assert_eq!(
        answer.field("ratelimit-policy"),
        Some("\"tenant\";q=5;w=60, \"global\";q=9;w=60")
    );
}

/// Two layers round one service; tells what the handler saw as well.
async fn stacked(outer: RateLimitLayer, inner: RateLimitLayer) -> (Answer, RateLimitStatus) {
    let (tell, told) = std::sync::mpsc::channel();
    let handler = service_fn(move |request: Request<()>| {
        let status = request.extensions().get::<RateLimitStatus>().cloned();
        tell.send(status.unwrap_or_default()).unwrap();
        async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) }
    });
    let service = outer.layer(inner.layer(handler));
    let answer = read(service.oneshot(request("u1", "192.0.2.1")).await.unwrap()).await;
    (answer, told.try_recv().unwrap_or_default())
}

#[tokio::test]
async fn stacked_layers_add_up_to_one_list_and_the_older_fields_speak_for_all() {
    let clock = clock();
    let store = memory(&clock);
    let outer = RateLimitLayer::new(store.clone())
        .limit(Quota::per_minute(3), Partition::client_ip())
        .legacy_headers();
    let inner = RateLimitLayer::new(store)
        .limit(Quota::per_hour(9), Partition::principal())
        .legacy_headers();
    let (answer, seen) = stacked(outer, inner).await;
    assert_eq!(
        lines(&answer, "ratelimit"),
        [
            member("principal", &[("r", 8), ("t", 3_600)]),
            member("client-ip", &[("r", 2), ("t", 60)])
        ]
    );
    let reset = (Timestamp::of(&clock).as_millis() / 1_000 + 60).to_string();
    assert_eq!(answer.field("x-ratelimit-limit"), Some("3"));
    assert_eq!(answer.field("x-ratelimit-remaining"), Some("2"));
    assert_eq!(answer.field("x-ratelimit-reset"), Some(&*reset));
    let names: Vec<_> = seen.iter().map(PolicyStatus::policy).collect();
    assert_eq!(names, ["client-ip", "principal"]);
}

#[tokio::test]
async fn the_older_fields_of_an_outer_layer_tell_of_the_refusal_of_an_inner_one() {
    let store = memory(&clock());
    let outer = RateLimitLayer::new(store.clone())
        .limit(Quota::per_minute(300), Partition::client_ip())
        .legacy_headers();
    let inner = RateLimitLayer::new(store).limit(Quota::per_hour(1), Partition::principal());
    for left in ["0", "0"] {
        let (answer, _) = stacked(outer.clone(), inner.clone()).await;
        assert_eq!(answer.field("x-ratelimit-limit"), Some("1"));
        assert_eq!(answer.field("x-ratelimit-remaining"), Some(left));
    }
}

#[tokio::test]
async fn a_policy_that_stands_in_two_layers_is_charged_once() {
    let store = MemoryStore::new();
    let layer = RateLimitLayer::new(store).limit(Quota::per_minute(3), Partition::client_ip());
    let (answer, _) = stacked(layer.clone(), layer.clone()).await;
    assert_eq!(
        lines(&answer, "ratelimit"),
        [member("client-ip", &[("r", 2), ("t", 60)])]
    );
    let address: std::net::IpAddr = "192.0.2.1".parse().unwrap();
    assert_eq!(
        layer
            .limiter()
            .peek("client-ip", address)
            .await
            .unwrap()
            .attempts,
        1
    );
}

#[tokio::test]
async fn layers_that_count_the_same_client_by_other_policies_are_all_charged() {
    let store = MemoryStore::new();
    let layer = |group: &str, quota| {
        let layer = RateLimitLayer::new(store.clone()).group(group);
        layer.limit(quota, Partition::client_ip())
    };
    let outer = layer("a", Quota::per_minute(3));
    for inner in [
        layer("b", Quota::per_minute(3)),
        layer("a", Quota::per_minute(4)),
    ] {
        let (answer, seen) = stacked(outer.clone(), inner.clone()).await;
        assert_eq!(lines(&answer, "ratelimit").len(), 2);
        assert_eq!(seen.iter().count(), 2);
        let address: std::net::IpAddr = "192.0.2.1".parse().unwrap();
        let inner = inner.limiter().peek("client-ip", address).await.unwrap();
        assert_eq!(inner.attempts, 1);
    }
}

#[tokio::test]
async fn of_policies_with_as_much_left_the_older_fields_tell_of_the_one_that_takes_longest() {
    let clock = clock();
    // Told in whole seconds, and never too early.
    clock.advance(Duration::from_millis(1));
    let reset = (Timestamp::of(&clock).as_millis() / 1_000 + 3_601).to_string();
    let quotas = [Quota::per_minute(3), Quota::per_hour(3)];
    for [first, second] in [quotas, [quotas[1], quotas[0]]] {
        let layer = RateLimitLayer::new(memory(&clock))
            .policy(Policy::new("first", first, Partition::global()))
            .policy(Policy::new("second", second, Partition::global()))
            .legacy_headers();
        let answer = App::new(layer).get("", "192.0.2.1").await;
        assert_eq!(answer.field("x-ratelimit-remaining"), Some("2"));
        assert_eq!(answer.field("x-ratelimit-reset"), Some(&*reset));
    }
}

#[tokio::test]
async fn fields_can_be_left_out_and_the_retry_stays() {
    let layer = RateLimitLayer::new(MemoryStore::new())
        .limit(Quota::per_minute(1), Partition::global())
        .trusted_proxies(TrustedProxies::none())
        .no_fields();
    let app = App::new(layer);
    assert_eq!(app.get("", "192.0.2.1").await.field("ratelimit"), None);
    let refused = app.get("", "192.0.2.1").await;
    assert_eq!(refused.field("ratelimit-policy"), None);
    assert_eq!(refused.field("retry-after"), Some("60"));
    assert_eq!(refused.field("cache-control"), Some("no-store"));
}

#[tokio::test]
async fn the_older_fields_show_the_policy_that_refuses_before_one_that_has_less_left() {
    let is_large = |parts: &http::request::Parts| parts.uri.path() == "/large";
    let layer = RateLimitLayer::new(MemoryStore::new())
        .legacy_headers()
        .policy(
            Policy::new("a", Quota::per_minute(3), Partition::global())
                .cost(move |parts| if is_large(parts) { 3 } else { 1 }),
        )
        .policy(
            Policy::new("b", Quota::per_minute(1), Partition::client_ip())
                .cost(move |parts| u32::from(!is_large(parts))),
        );
    let app = App::new(layer);
    app.get("", "192.0.2.1").await;
    let mut request = request("", "192.0.2.1");
    *request.uri_mut() = "/large".parse().unwrap();
    let answer = app.send(request).await;
    answer.refused_by("a");
    let ratelimit = answer.field("ratelimit").unwrap();
    assert!(ratelimit.contains("\"a\";r=2") && ratelimit.contains("\"b\";r=0"));
    assert_eq!(answer.field("x-ratelimit-limit"), Some("3"));
    assert_eq!(answer.field("x-ratelimit-remaining"), Some("2"));
}
